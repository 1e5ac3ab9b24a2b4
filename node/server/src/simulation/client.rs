//! Clients: they submit with a key, retry through other nodes until they are answered, read, and sometimes cancel.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use quorun_consensus::Handle;
use quorun_ledger::{
    Command, IdempotencyKey, JobId, JobSpec, JobState, NodeId, Owner, Rejection, Reply, SourceFile,
};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::cluster::Node;
use super::history::{Seen, Shared};
use super::worker::LANGUAGE;

/// How long a node tries.
const DEADLINE: Duration = Duration::from_millis(1_500);

/// What a client asks of a node.
pub(super) enum Request {
    Submit {
        id: JobId,
        key: String,
        weight: usize,
        reply: oneshot::Sender<JobId>,
    },
    Read {
        job: JobId,
        reply: oneshot::Sender<Option<Seen>>,
    },
    Cancel {
        job: JobId,
        reply: oneshot::Sender<()>,
    },
    /// The leader is to hand over, to this node.
    Move(Option<NodeId>),
}

/// Every other client is an owner, and the rest are nobody in particular.
fn spec(key: &str, weight: usize) -> JobSpec {
    let number = key.split('-').next().unwrap_or_default();
    let odd = number.parse().is_ok_and(|number: usize| number % 2 == 1);
    JobSpec {
        owner: odd.then(|| Owner {
            name: number.to_owned(),
            ..Owner::default()
        }),
        language: LANGUAGE.to_owned(),
        files: vec![SourceFile {
            name: "main".to_owned(),
            content: Bytes::from(vec![b'#'; weight]),
        }],
        entrypoint: "main".to_owned(),
        retention_ms: 86_400_000,
        // No fault may use them up.
        max_attempts: 1_000,
        ..JobSpec::default()
    }
}

/// The node's side: answers what it can, and is silent about the rest.
pub(super) async fn serve(consensus: Handle, mut requests: mpsc::UnboundedReceiver<Request>) {
    while let Some(request) = requests.recv().await {
        tokio::task::spawn_local(answer(consensus.clone(), request));
    }
}

async fn answer(consensus: Handle, request: Request) {
    let deadline = Instant::now() + DEADLINE;
    match request {
        Request::Submit {
            id,
            key,
            weight,
            reply,
        } => {
            let mut fingerprint = [0; 16];
            fingerprint[..8].copy_from_slice(&weight.to_be_bytes());
            let command = Command::Submit {
                id,
                spec: spec(&key, weight),
                key: Some(IdempotencyKey { key, fingerprint }),
            };
            if let Ok(Reply::Submitted { job, .. }) = consensus.propose(command, deadline).await {
                let _ = reply.send(job);
            }
        }
        Request::Read { job, reply } => {
            if consensus.linearize(deadline).await.is_err() {
                return;
            }
            let view = consensus.view();
            let (Ok(record), Ok(output)) = (view.job(job), view.output(job)) else {
                return; // the node is ending
            };
            let stdout = output.unwrap_or_default().stdout;
            let stdout = String::from_utf8_lossy(&stdout).into_owned();
            let _ = reply.send(record.map(|record| (record, stdout)));
        }
        Request::Cancel { job, reply } => {
            let cancelled = consensus.propose(Command::Cancel { job }, deadline).await;
            if let Ok(Reply::Cancelled | Reply::Rejected(Rejection::AlreadyFinished)) = cancelled {
                let _ = reply.send(());
            }
        }
        Request::Move(to) => {
            // It may not lead any more.
            let _ = consensus.transfer_leadership(to).await;
        }
    }
}

/// A client.
pub(super) struct Client {
    number: usize,
    rng: SmallRng,
    nodes: Rc<Vec<Rc<Node>>>,
    history: Shared,
    /// No new jobs any more.
    stop: Rc<Cell<bool>>,
}

impl Client {
    pub(super) fn new(
        number: usize,
        seed: u64,
        nodes: Rc<Vec<Rc<Node>>>,
        history: Shared,
        stop: Rc<Cell<bool>>,
    ) -> Self {
        Self {
            number,
            rng: SmallRng::seed_from_u64(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9)),
            nodes,
            history,
            stop,
        }
    }

    pub(super) async fn run(mut self) {
        let mut count = 0;
        while !self.stop.get() {
            self.pause(0..300).await;
            count += 1;
            let key = format!("{}-{count}", self.number);
            // Some are split over several keys and records of the databases.
            let weight = match self.rng.random_range(0..20) {
                0 => self.rng.random_range(10_000..40_000),
                _ => self.rng.random_range(10..500),
            };
            let job = self.submit(&key, weight).await;
            self.history.borrow_mut().acknowledged(&key, job);
            match self.rng.random_range(0..10) {
                0 => self.cancel(job).await,
                1..=3 => {
                    // The answer was lost, and the client tries again.
                    let again = self.submit(&key, weight).await;
                    self.history.borrow_mut().acknowledged(&key, again);
                }
                4..=6 => {
                    self.read(job).await;
                }
                _ => self.wait(job).await,
            }
        }
    }

    async fn pause(&mut self, millis: std::ops::Range<u64>) {
        let millis = self.rng.random_range(millis);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// Asks one node after the other until one answers.
    async fn ask<T>(&mut self, request: impl Fn(JobId, oneshot::Sender<T>) -> Request) -> T {
        loop {
            let node = self.rng.random_range(0..self.nodes.len());
            // The node that takes a submission draws the id.
            let id = JobId::new(Uuid::from_u128(self.rng.random()));
            // Some lose their patience before the node does.
            let patience = Duration::from_millis(self.rng.random_range(200..3_000));
            let (reply, replied) = oneshot::channel();
            self.nodes[node].ask(request(id, reply));
            if let Ok(Ok(answer)) = tokio::time::timeout(patience, replied).await {
                return answer;
            }
            self.pause(10..200).await;
        }
    }

    async fn submit(&mut self, key: &str, weight: usize) -> JobId {
        self.ask(|id, reply| Request::Submit {
            id,
            key: key.to_owned(),
            weight,
            reply,
        })
        .await
    }

    async fn read(&mut self, job: JobId) -> Option<Seen> {
        let had_result = self.history.borrow().has_result(job);
        let found = self.ask(|_, reply| Request::Read { job, reply }).await;
        self.history
            .borrow_mut()
            .read(job, had_result, found.as_ref());
        found
    }

    async fn cancel(&mut self, job: JobId) {
        self.ask(|_, reply| Request::Cancel { job, reply }).await;
        self.wait(job).await;
    }

    /// Reads until the job has finished.
    async fn wait(&mut self, job: JobId) {
        loop {
            match self.read(job).await {
                Some((job, _)) if job.state != JobState::Finished => self.pause(50..500).await,
                _ => return,
            }
        }
    }
}
