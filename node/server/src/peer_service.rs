//! What this node answers its peers outside the log.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::Stream;
use quorun_consensus::{Error as ConsensusError, Handle};
use quorun_executor::Stream as Std;
use quorun_ledger::{JobId, JobState, codec};
use quorun_proto::FROM_KEY;
use quorun_proto::v1::peer_server::Peer;
use quorun_proto::v1::{
    AttachReply, AttachRequest, Blank, HeartbeatReply, HeartbeatRequest, HelloReply, HelloRequest,
    LanguagesReply, MoveLeaderReply, MoveLeaderRequest, OutputChunk, Stream as WireStream,
    TestEnded, WatchReply, WatchRequest, attach_request, watch_reply::Event,
};
use tonic::{Request, Response, Status, Streaming};

use crate::console::Consoles;
use crate::images::Images;
use crate::ledger;
use crate::liveness::Liveness;
use crate::output::{Outputs, Piece};
use crate::resume::Position;
use crate::talk;
use crate::watchers::Watchers;

/// How long a peer waits for an attempt that this node has not heard of yet.
const WATCH_PATIENCE: Duration = Duration::from_secs(10);

/// The service.
#[derive(Clone)]
pub struct PeerService {
    /// This node.
    pub id: u64,
    /// Drawn by this process.
    pub process: String,
    /// Who is alive.
    pub liveness: Liveness,
    /// What runs here.
    pub outputs: Outputs,
    /// What runs here and may be talked to.
    pub consoles: Consoles,
    /// Who waits for news of jobs.
    pub watchers: Watchers,
    /// The cluster.
    pub consensus: Handle,
    /// What can be run here; not there yet while the node starts.
    pub images: Arc<OnceLock<Images>>,
}

impl PeerService {
    /// What there is of an attempt on this node. It may be behind the one that asks, so it waits for the assignment, until
    /// the ledger says that the attempt is over.
    async fn find<T>(
        &self,
        (job, attempt): (JobId, u32),
        there: impl Fn() -> Option<T>,
    ) -> Option<T> {
        let mut watch = self.watchers.watch(job);
        let mut opened = self.consoles.opened();
        let found = async {
            loop {
                if let Some(found) = there() {
                    return Some(found);
                }
                let record = ledger::read(&self.consensus, move |view| view.job(job)).await;
                match record.ok()? {
                    Some(record)
                        if record.state == JobState::Finished || record.attempt > attempt =>
                    {
                        return None;
                    }
                    _ => tokio::select! {
                        () = watch.changed() => {}
                        // The sender is in the consoles.
                        _ = opened.changed() => {}
                    },
                }
            }
        };
        tokio::time::timeout(WATCH_PATIENCE, found).await.ok()?
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn hello(&self, _request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let initialized = self.consensus.status().borrow().initialized;
        Ok(Response::new(HelloReply {
            id: self.id,
            process: self.process.clone(),
            initialized,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let from = request
            .metadata()
            .get(FROM_KEY)
            .and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
        let report = request
            .into_inner()
            .report
            .ok_or_else(|| Status::invalid_argument("a heartbeat without a report"))?;
        let (leader, leading, member) = {
            let status = self.consensus.status();
            let status = status.borrow();
            let member = status.members.contains_key(&report.id);
            (status.leader.unwrap_or(0), status.leading, member)
        };
        if from != Some(report.id) || !member {
            return Err(Status::permission_denied(
                "a node reports of itself, and only if it is a member",
            ));
        }
        let peers = if leading {
            // The scheduler may not have noticed yet that this node leads; what it is told now must not be forgotten.
            self.liveness.leading(true);
            self.consensus.remember(report.id, report.applied_index);
            self.liveness.heard(report)
        } else {
            Vec::new()
        };
        Ok(Response::new(HeartbeatReply {
            leader,
            is_leader: leading,
            peers,
        }))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderReply>, Status> {
        let to = Some(request.into_inner().to).filter(|to| *to != 0);
        self.consensus
            .transfer_leadership(to)
            .await
            .map_err(|error| match error {
                ConsensusError::NotLeader => Status::unavailable(error.to_string()),
                ConsensusError::Failed(_) => Status::failed_precondition(error.to_string()),
                _ => Status::internal(error.to_string()),
            })?;
        let leader = self.consensus.status().borrow().leader.unwrap_or(0);
        Ok(Response::new(MoveLeaderReply { leader }))
    }

    async fn languages(
        &self,
        _request: Request<Blank>,
    ) -> Result<Response<LanguagesReply>, Status> {
        let images = self
            .images
            .get()
            .ok_or_else(|| Status::unavailable("the node is starting"))?;
        let languages = images.report();
        Ok(Response::new(LanguagesReply { languages }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchReply, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let job: JobId = request
            .job
            .parse()
            .map_err(|_| Status::invalid_argument("job is not an id"))?;
        let from = Position {
            attempt: request.attempt,
            heard: [request.stdout_from, request.stderr_from],
            cases: request.tests_from,
            ended: false,
        };
        let attempt = (job, request.attempt);
        let listener = self
            .find(attempt, || self.outputs.listen(attempt, from))
            .await
            .ok_or_else(|| Status::not_found("the attempt does not run here"))?;
        let listener = if request.until_now {
            listener.until_now()
        } else {
            listener
        };
        let events = futures::stream::unfold(Some(listener), |listener| async move {
            let mut listener = listener?;
            let (event, rest) = match listener.next().await {
                Some(piece) => (event(piece), Some(listener)),
                None if listener.has_shown() => (Event::Shown(Blank {}), None),
                None => (Event::End(Blank {}), None),
            };
            Some((Ok(WatchReply { event: Some(event) }), rest))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<AttachReply>, Status> {
        let mut said = request.into_inner();
        let first = tokio::time::timeout(WATCH_PATIENCE, said.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no first message"))??;
        let Some(attach_request::Said::Attempt(to)) = first.and_then(|first| first.said) else {
            return Err(Status::invalid_argument(
                "the first message names the attempt",
            ));
        };
        let job: JobId = to
            .job
            .parse()
            .map_err(|_| Status::invalid_argument("job is not an id"))?;
        let attempt = (job, to.attempt);
        let mut attached = self
            .find(attempt, || self.consoles.attach(attempt))
            .await
            .ok_or_else(|| Status::not_found("the attempt does not run here"))?;
        loop {
            let message = tokio::select! {
                message = said.message() => message?,
                () = attached.over() => None,
            };
            let Some(message) = message else {
                return Ok(Response::new(AttachReply {}));
            };
            let said = talk::from_wire(message)
                .ok_or_else(|| Status::invalid_argument("a message that means nothing"))?;
            attached.say(said).await;
        }
    }
}

/// A piece of a running attempt, for a peer.
fn event(piece: Piece) -> Event {
    match piece {
        Piece::Output(chunk) => {
            let stream = match chunk.stream {
                Std::Stdout => WireStream::Stdout,
                Std::Stderr => WireStream::Stderr,
            };
            Event::Output(OutputChunk {
                stream: stream.into(),
                offset: chunk.offset,
                data: chunk.data,
            })
        }
        Piece::Case(case) => Event::Test(TestEnded {
            index: case.index,
            result: codec::encode(&case.result).into(),
        }),
    }
}
