//! Reads that show everything that was committed before them.
//!
//! Whoever wants to read asks the leader how far the log must have been applied (Raft's ReadIndex: the leader
//! makes sure that it still leads, see `confirm`), waits until this node's ledger has come that far, and reads there. One question to
//! the leader serves all readers of this node that were waiting when it was asked.

use std::sync::Arc;
use std::time::Duration;

use quorun_ledger::NodeId;
use quorun_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::confirm::{Confirmer, Unconfirmed};
use crate::error::ReadError;
use crate::network::Peers;
use crate::status::Status;
use crate::types::Raft;

/// How long to wait after a refusal, unless something changes before.
const PAUSE: Duration = Duration::from_millis(25);

/// The way in.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    waiting: mpsc::UnboundedSender<oneshot::Sender<u64>>,
    applied: watch::Receiver<u64>,
}

impl Reader {
    /// Returns when the local ledger shows everything that was committed before the call.
    pub(crate) async fn linearize(&self, deadline: Instant) -> Result<(), ReadError> {
        let (tell, told) = oneshot::channel();
        self.waiting.send(tell).map_err(|_| ReadError::Stopped)?;
        let mut applied = self.applied.clone();
        let ready = async {
            let index = told.await.map_err(|_| ReadError::Stopped)?;
            applied
                .wait_for(|next| *next > index)
                .await
                .map(drop)
                .map_err(|_| ReadError::Stopped)
        };
        timeout_at(deadline, ready)
            .await
            .unwrap_or(Err(ReadError::Unavailable))
    }
}

/// What the loop works with.
pub(crate) struct Parts {
    pub(crate) id: NodeId,
    pub(crate) raft: Raft,
    pub(crate) confirmer: Confirmer,
    pub(crate) peers: Arc<Peers>,
    pub(crate) status: watch::Receiver<Status>,
    /// How long the leader may take to make sure that it leads.
    pub(crate) patience: Duration,
}

/// Makes a reader, and the loop that it needs.
pub(crate) fn reader(
    parts: Parts,
    applied: watch::Receiver<u64>,
) -> (Reader, impl Future<Output = ()> + Send) {
    let (waiting, waiters) = mpsc::unbounded_channel();
    (Reader { waiting, applied }, run(parts, waiters))
}

async fn run(mut parts: Parts, mut waiting: mpsc::UnboundedReceiver<oneshot::Sender<u64>>) {
    while let Some(first) = waiting.recv().await {
        let mut waiters = vec![first];
        loop {
            // Whoever has come before the question is asked is served by its answer.
            while let Ok(next) = waiting.try_recv() {
                waiters.push(next);
            }
            waiters.retain(|waiter| !waiter.is_closed());
            if waiters.is_empty() {
                break;
            }
            match parts.ask().await {
                Answer::Index(index) => {
                    for waiter in waiters {
                        // It may have gone.
                        let _ = waiter.send(index);
                    }
                    break;
                }
                Answer::Nobody if parts.pause().await => {}
                Answer::Nobody | Answer::Ended => return,
            }
        }
    }
}

enum Answer {
    Index(u64),
    /// There is no leader, or none that answers.
    Nobody,
    Ended,
}

impl Parts {
    /// Returns when it is time to ask again: soon, and whatever changes is a reason. False when nothing will change any more.
    async fn pause(&mut self) -> bool {
        !matches!(timeout(PAUSE, self.status.changed()).await, Ok(Err(_)))
    }

    async fn ask(&self) -> Answer {
        if self.raft.is_leader() {
            return match self.confirmer.read_index(self.patience).await {
                Ok(index) => Answer::Index(index),
                Err(Unconfirmed::NotLeader(_) | Unconfirmed::Unknown(_)) => Answer::Nobody,
                Err(Unconfirmed::Ended(_)) => Answer::Ended,
            };
        }
        let (leader, address) = {
            let status = self.status.borrow();
            let leader = status.leader.filter(|leader| *leader != self.id);
            let member = leader.and_then(|leader| status.members.get(&leader));
            match (leader, member) {
                (Some(leader), Some(member)) => (leader, member.peer.clone()),
                _ => return Answer::Nobody,
            }
        };
        let Ok(mut client) = self.peers.consensus(leader, &address) else {
            return Answer::Nobody;
        };
        let mut status = self.status.clone();
        let request = v1::ReadIndexRequest {
            deadline_ms: u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX),
        };
        let reply = tokio::select! {
            reply = timeout(self.patience, client.read_index(request)) => reply,
            Ok(_) = status.wait_for(|status| status.leader != Some(leader)) => return Answer::Nobody,
        };
        match reply {
            Ok(Ok(reply)) => match reply.into_inner().result {
                Some(v1::read_index_reply::Result::Index(index)) => Answer::Index(index),
                _ => Answer::Nobody,
            },
            Ok(Err(_)) | Err(_) => Answer::Nobody,
        }
    }
}
