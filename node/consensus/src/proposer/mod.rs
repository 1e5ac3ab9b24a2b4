//! The way of commands into the log.
//!
//! Every node has one proposer. What is proposed on the node goes through its queue; on the leader it leaves as a
//! [`Batch`](quorun_ledger::Batch) for Raft, elsewhere as a call to the leader, whose proposer takes it into its own
//! queue. Nothing waits to be joined by others: a batch is made as soon as fewer than [`IN_FLIGHT`] are under way, of all
//! that has come by then.
//!
//! A batch carries the time ([`crate::clock`]) and the leader's scheduling decision, so it may only be committed under the leader that
//! made it: it is written with that leader's term as a condition.
//!
//! Elections, lost connections and refusals are nobody's failure: a proposal goes back to the front of the queue and is
//! tried again until its deadline. The ledger makes sure that a command that was applied twice has done no harm.

mod attempt;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorun_ledger::{Command, NodeId, QueueBound, Reply, codec};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use self::attempt::{Outcome, forward, write};
use crate::error::ProposeError;
use crate::metrics::Metrics;
use crate::network::Peers;
use crate::status::Status;
use crate::types::Raft;

/// How many batches are under way at one time.
const IN_FLIGHT: usize = 4;
/// A batch has no more commands.
const MAX_COMMANDS: usize = 1_000;
/// A batch is no larger, unless a single command is, bytes.
const MAX_BYTES: usize = 1 << 20;
/// So many proposals wait at most; further ones wait to be let in.
const QUEUE: usize = 16_384;
/// How long to wait after a refusal, unless something changes before.
const PAUSE: Duration = Duration::from_millis(25);

/// Why a proposal has no replies, to the proposer of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nothing was proposed: this node does not lead.
    NotLeader(Option<NodeId>),
    /// It may still be applied.
    Unknown,
    Stopped,
}

/// Commands that came together and are answered together.
#[derive(Debug)]
struct Proposal {
    /// In their encoding, in which they travel and go into the batch.
    commands: Vec<Bytes>,
    weight: usize,
    deadline: Instant,
    /// Came from another node: it is not sent on to a third.
    here: bool,
    /// An attempt has ended without it being known whether it is applied.
    uncertain: bool,
    /// It may be applied, as things stand.
    exposed: Arc<AtomicBool>,
    reply: oneshot::Sender<Result<Vec<Reply>, Refusal>>,
}

impl Proposal {
    fn abandoned(&self) -> bool {
        self.reply.is_closed() || self.deadline <= Instant::now()
    }
}

/// The way in.
#[derive(Clone, Debug)]
pub(crate) struct Proposer {
    incoming: mpsc::Sender<Proposal>,
    schedule: Arc<Notify>,
}

impl Proposer {
    /// Proposes a command wherever the leader is.
    pub(crate) async fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Reply, ProposeError> {
        let exposed = Arc::new(AtomicBool::new(false));
        let commands = vec![codec::encode(&command).into()];
        drop(command);
        let outcome = self.submit(commands, deadline, false, &exposed).await;
        match outcome {
            Some(Ok(replies)) => replies.into_iter().next().ok_or(ProposeError::Unknown),
            Some(Err(Refusal::Stopped)) => Err(ProposeError::Stopped),
            _ if exposed.load(Ordering::Acquire) => Err(ProposeError::Unknown),
            _ => Err(ProposeError::Unavailable),
        }
    }

    /// Proposes what has come from another node, if this one leads. Each is the encoding of a command, which the caller
    /// has made sure of: one that cannot be read would stop every node that has to apply it.
    pub(crate) async fn propose_here(
        &self,
        commands: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Vec<Reply>, Refusal> {
        let exposed = Arc::new(AtomicBool::new(false));
        self.submit(commands, deadline, true, &exposed)
            .await
            .unwrap_or(Err(Refusal::Unknown))
    }

    /// `None` when time is up.
    async fn submit(
        &self,
        commands: Vec<Bytes>,
        deadline: Instant,
        here: bool,
        exposed: &Arc<AtomicBool>,
    ) -> Option<Result<Vec<Reply>, Refusal>> {
        let (reply, replied) = oneshot::channel();
        let proposal = Proposal {
            weight: commands.iter().map(Bytes::len).sum(),
            commands,
            deadline,
            here,
            uncertain: false,
            exposed: exposed.clone(),
            reply,
        };
        let waited = timeout_at(deadline, async {
            if self.incoming.send(proposal).await.is_err() {
                return Some(Err(Refusal::Stopped));
            }
            match replied.await {
                Ok(result) => Some(result),
                Err(_) if self.incoming.is_closed() => Some(Err(Refusal::Stopped)),
                Err(_) => None, // dropped because its time is up
            }
        });
        waited.await.unwrap_or(None)
    }

    /// Asks for a batch soon, even an empty one.
    pub(crate) fn schedule(&self) {
        self.schedule.notify_one();
    }
}

/// What a proposer works with.
pub(crate) struct Parts {
    pub(crate) id: NodeId,
    pub(crate) raft: Raft,
    pub(crate) peers: Arc<Peers>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) eligible: watch::Receiver<BTreeSet<NodeId>>,
    pub(crate) queue: Option<QueueBound>,
    pub(crate) metrics: Arc<Metrics>,
    /// After so long a batch no longer keeps others from being made.
    pub(crate) patience: Duration,
}

/// Makes a proposer, and the loop that it needs.
pub(crate) fn proposer(parts: Parts) -> (Proposer, impl Future<Output = ()> + Send) {
    let (incoming, waiting) = mpsc::channel(QUEUE);
    let schedule = Arc::new(Notify::new());
    let looping = Loop {
        parts: Arc::new(parts),
        waiting,
        schedule: schedule.clone(),
        scheduling: false,
        queue: VecDeque::new(),
        slots: Arc::new(Semaphore::new(IN_FLIGHT)),
        attempts: JoinSet::new(),
        pause: None,
    };
    (Proposer { incoming, schedule }, looping.run())
}

struct Loop {
    parts: Arc<Parts>,
    waiting: mpsc::Receiver<Proposal>,
    schedule: Arc<Notify>,
    scheduling: bool,
    queue: VecDeque<Proposal>,
    slots: Arc<Semaphore>,
    attempts: JoinSet<Outcome>,
    /// Until when nothing is tried.
    pause: Option<Instant>,
}

/// Whom to hand a batch to.
enum Target {
    Here { term: u64 },
    Peer(NodeId),
}

impl Loop {
    async fn run(mut self) {
        let mut status = self.parts.status.clone();
        loop {
            let ready = self.pause.is_none() && (self.scheduling || !self.queue.is_empty());
            let target = if ready { self.target() } else { None };
            if ready && target.is_none() {
                // That Raft now takes proposals need not change the status: look again soon.
                self.pause = Some(Instant::now() + PAUSE);
            }
            let paused = self.pause;
            tokio::select! {
                Some(outcome) = self.attempts.join_next() => match outcome {
                    Ok(Outcome::Done) => {}
                    Ok(Outcome::Again { proposals, asked }) => self.again(proposals, asked),
                    Ok(Outcome::Ended) => return,
                    Err(error) => tracing::error!(%error, "a proposal was dropped"),
                },
                proposal = self.waiting.recv(), if self.queue.len() < QUEUE => match proposal {
                    Some(proposal) => self.queue.push_back(proposal),
                    None => return,
                },
                () = self.schedule.notified() => self.scheduling = true,
                changed = status.changed() => match changed {
                    Ok(()) => self.pause = None,
                    Err(_) => return,
                },
                () = sleep_until(paused), if paused.is_some() => self.pause = None,
                Ok(slot) = self.slots.clone().acquire_owned(), if target.is_some() => {
                    if let Some(target) = target {
                        self.dispatch(&target, slot);
                    }
                }
            }
            if self.queue.len() >= QUEUE {
                self.queue.retain(|proposal| !proposal.abandoned());
            }
            if !self.parts.raft.is_leader() {
                self.scheduling = false;
                self.refuse_foreign();
            }
        }
    }

    /// Whom to hand the next batch to; `None` while nobody is known to lead.
    fn target(&self) -> Option<Target> {
        match self.parts.raft.as_leader() {
            Ok(leader) => Some(Target::Here {
                term: leader.term(),
            }),
            Err(forward) => forward
                .leader_id
                .filter(|leader| *leader != self.parts.id)
                .map(Target::Peer),
        }
    }

    /// Tells other nodes that what they have sent is better sent elsewhere.
    fn refuse_foreign(&mut self) {
        if !self.queue.iter().any(|proposal| proposal.here) {
            return;
        }
        let leader = self.parts.status.borrow().leader;
        for proposal in std::mem::take(&mut self.queue) {
            if proposal.here {
                refuse(proposal, leader);
            } else {
                self.queue.push_back(proposal);
            }
        }
    }

    /// Puts back what is to be tried again: at once where it is somebody else's turn to be asked, and after a pause where
    /// the same node would be asked again.
    fn again(&mut self, proposals: Vec<Proposal>, asked: NodeId) {
        let next = self.target().map(|target| match target {
            Target::Here { .. } => self.parts.id,
            Target::Peer(leader) => leader,
        });
        if next.is_none_or(|next| next == asked) {
            self.pause = Some(Instant::now() + PAUSE);
        }
        let leader = self.parts.status.borrow().leader;
        for proposal in proposals.into_iter().rev() {
            proposal
                .exposed
                .store(proposal.uncertain, Ordering::Release);
            if proposal.here {
                refuse(proposal, leader);
            } else if !proposal.abandoned() {
                self.queue.push_front(proposal);
            }
        }
    }

    /// Takes a batch from the queue and sends it on its way.
    fn dispatch(&mut self, target: &Target, slot: OwnedSemaphorePermit) {
        while self.queue.len() < QUEUE {
            match self.waiting.try_recv() {
                Ok(proposal) => self.queue.push_back(proposal),
                Err(_) => break,
            }
        }
        let mut proposals = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        while let Some(next) = self.queue.front() {
            let fits =
                count + next.commands.len() <= MAX_COMMANDS && bytes + next.weight <= MAX_BYTES;
            if !proposals.is_empty() && !fits {
                break;
            }
            let Some(next) = self.queue.pop_front() else {
                break;
            };
            if next.abandoned() {
                continue;
            }
            count += next.commands.len();
            bytes += next.weight;
            next.exposed.store(true, Ordering::Release);
            proposals.push(next);
        }
        let parts = self.parts.clone();
        match *target {
            Target::Here { term } => {
                if proposals.is_empty() && !self.scheduling {
                    return;
                }
                self.scheduling = false;
                self.attempts.spawn(write(parts, term, proposals, slot));
            }
            Target::Peer(_) if proposals.is_empty() => {}
            Target::Peer(leader) => {
                self.attempts.spawn(forward(parts, leader, proposals, slot));
            }
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    if let Some(until) = until {
        tokio::time::sleep_until(until).await;
    }
}

fn refuse(proposal: Proposal, leader: Option<NodeId>) {
    let refusal = if proposal.uncertain {
        Refusal::Unknown
    } else {
        Refusal::NotLeader(leader)
    };
    // Whoever proposed it may have gone.
    let _ = proposal.reply.send(Err(refusal));
}
