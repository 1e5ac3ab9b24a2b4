//! What the rest of the node holds of consensus.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{InitializeError, RaftError};
use quorun_ledger::{Command, Event, NodeId, Reply, StateHash, View};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::{Error, ProposeError, ReadError};
use crate::ledger_store::LedgerStore;
use crate::metrics::Metrics;
use crate::network::{PeerClient, Peers};
use crate::options::Member;
use crate::proposer::Proposer;
use crate::read::Reader;
use crate::recall::Marks;
use crate::status::Status;
use crate::types::Raft;

/// What happened to the local ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// These events, in the order of the log; the ledger shows them already, since this moment.
    Events(Vec<Event>, std::time::Instant),
    /// A snapshot has replaced the ledger: whatever was derived from it is to be read anew.
    Reset,
    /// At the start the log was applied beyond what the ledger had on disk; of these entries there are no events. Whatever was
    /// derived from the ledger before the node ended is to be looked at anew.
    Resumed,
}

/// The handle of a node's consensus. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: NodeId,
    pub(crate) members: BTreeMap<NodeId, Member>,
    pub(crate) raft: Raft,
    pub(crate) ledger: LedgerStore,
    pub(crate) peers: Arc<Peers>,
    pub(crate) proposer: Proposer,
    pub(crate) reader: Reader,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) fatal: watch::Receiver<Option<String>>,
    pub(crate) shutdown: watch::Sender<bool>,
    /// Closed when everything has ended and the files are closed.
    pub(crate) ended: watch::Receiver<()>,
    /// How long an election takes at most.
    pub(crate) election: Duration,
    pub(crate) marks: Marks,
    pub(crate) metrics: Arc<Metrics>,
}

impl Handle {
    /// Forms the cluster from the members of the options. To be called on every one of them, and harmless where the
    /// cluster has been formed already.
    ///
    /// # Errors
    /// When this node is not among the members, or consensus has ended.
    pub async fn bootstrap(&self) -> Result<(), Error> {
        match self
            .shared
            .raft
            .initialize(self.shared.members.clone())
            .await
        {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => Err(Error::Options(
                format!("node {} is not in its own list of peers", self.shared.id),
            )),
            Err(RaftError::Fatal(_)) => Err(self.ended()),
        }
    }

    /// Proposes a command wherever the leader is, trying again across elections.
    ///
    /// # Errors
    /// When there was no answer until the deadline; see [`ProposeError`] for what is then known.
    pub async fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Reply, ProposeError> {
        self.shared.proposer.propose(command, deadline).await
    }

    /// On the leader: proposes soon, with no command if there is none, so that queued jobs are given to free slots.
    /// Elsewhere nothing happens.
    pub fn schedule(&self) {
        self.shared.proposer.schedule();
    }

    /// Returns when the local ledger shows everything that was committed, on whatever node, before the call.
    ///
    /// # Errors
    /// When that was not known until the deadline.
    pub async fn linearize(&self, deadline: Instant) -> Result<(), ReadError> {
        self.shared.reader.linearize(deadline).await
    }

    /// The local ledger. Every question to it blocks for a moment.
    #[must_use]
    pub fn view(&self) -> View<LedgerStore> {
        self.shared.ledger.view()
    }

    /// The index behind the last entry that the local ledger shows, whenever it has changed.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.shared.ledger.applied()
    }

    /// Whether a question to the local ledger would now have to wait for entries that are being applied.
    #[must_use]
    pub fn is_applying(&self) -> bool {
        self.shared.ledger.is_busy()
    }

    /// The index of the last applied entry (0 also when there is none), and the hash of the ledger at that point.
    ///
    /// # Errors
    /// When consensus has ended.
    pub fn state(&self) -> Result<(u64, StateHash), Error> {
        if self.shared.ended.has_changed().is_err() {
            return Err(Error::Stopped);
        }
        let (applied, hash) = self.shared.ledger.state();
        Ok((applied.map_or(0, |id| id.index), hash))
    }

    /// A node has said that it has applied the entries up to this index. Should it come back with less, it is told so.
    pub fn remember(&self, node: NodeId, applied_index: u64) {
        // 0 also stands for nothing at all.
        if applied_index > 0 {
            self.shared.marks.remember(node, applied_index + 1);
        }
    }

    /// What this node measures, since its start.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The time that a batch would be given now if this node led, Unix milliseconds: what the ledger's time is by what most
    /// voters say, or, while they are not heard, by how time has gone on since it was last seen.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        let shared = &self.shared;
        shared.metrics.clocks.now_ms(&shared.status.borrow().voters)
    }

    /// How this node stands in the cluster.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.clone()
    }

    /// Calls to the Peer service of a node, this one included. `None` when the node is not known.
    #[must_use]
    pub fn peer(&self, id: NodeId) -> Option<PeerClient> {
        let address = {
            let status = self.shared.status.borrow();
            let member = status
                .members
                .get(&id)
                .or_else(|| self.shared.members.get(&id));
            member?.peer.clone()
        };
        self.shared
            .peers
            .peer(id, &address)
            .inspect_err(
                |error| tracing::error!(target_node = id, %error, "a peer cannot be called"),
            )
            .ok()
    }

    /// Hands the leadership over, to the named voter or to the one whose log is the longest. Returns when another node
    /// leads.
    ///
    /// # Errors
    /// When this node does not lead, there is nobody to take over, or nobody took over in the time of two elections.
    pub async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<(), Error> {
        let id = self.shared.id;
        let mut status = self.status();
        if !status.borrow_and_update().leading {
            return Err(Error::NotLeader);
        }
        let to = match to {
            Some(to) if to == id => return Ok(()),
            Some(to) if status.borrow().voters.contains(&to) => to,
            Some(to) => return Err(Error::Failed(format!("node {to} is not a voter"))),
            None => self
                .longest_log()
                .ok_or_else(|| Error::Failed("there is no other voter".to_owned()))?,
        };
        tracing::info!(node = id, to, "handing the leadership over");
        let trigger = self.shared.raft.trigger();
        trigger
            .transfer_leader(to)
            .await
            .map_err(|_| self.ended())?;
        let moved = status.wait_for(|now| now.leader.is_some_and(|leader| leader != id));
        match tokio::time::timeout(2 * self.shared.election, moved).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.ended()),
            Err(_) => Err(Error::Failed(format!(
                "node {to} has not taken over the leadership"
            ))),
        }
    }

    fn longest_log(&self) -> Option<NodeId> {
        let voters = self.shared.status.borrow().voters.clone();
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched().clone();
        let replication = metrics.replication?;
        replication
            .into_iter()
            .filter(|(id, _)| voters.contains(id) && *id != self.shared.id)
            .max_by_key(|(_, matched)| *matched)
            .map(|(id, _)| id)
    }

    /// Returns when consensus has ended: because the storage failed, in which case the process must exit, or because of
    /// [`shutdown`](Self::shutdown).
    pub async fn stopped(&self) -> Error {
        let mut fatal = self.shared.fatal.clone();
        let mut ended = self.shared.ended.clone();
        tokio::select! {
            biased;
            Some(_) = failure(&mut fatal) => self.ended(),
            _ = ended.changed() => self.ended(),
        }
    }

    pub(crate) fn ended(&self) -> Error {
        if *self.shared.shutdown.borrow() {
            return Error::Stopped;
        }
        match &*self.shared.fatal.borrow() {
            Some(what) => Error::Storage(what.clone()),
            None => Error::Stopped,
        }
    }

    /// Ends consensus. Returns when all that was acknowledged is on disk and the files are closed.
    pub async fn shutdown(&self) {
        self.shared.shutdown.send_replace(true);
        let mut ended = self.shared.ended.clone();
        // Nothing is ever sent: the sender goes away at the end.
        while ended.changed().await.is_ok() {}
    }
}

/// Waits for the word of a failure; `None` when nobody can say it any more.
///
/// It is taken out of the channel: what the channel lends keeps its sender waiting, and whoever then looked into the channel
/// again would wait behind the sender for ever.
pub(crate) async fn failure(fatal: &mut watch::Receiver<Option<String>>) -> Option<String> {
    let failed = fatal.wait_for(Option::is_some).await;
    failed.ok().and_then(|failed| failed.clone())
}

/// Tells why something has failed. The first reason is the one that counts; others may follow from it.
pub(crate) fn fail(fatal: &watch::Sender<Option<String>>, why: impl FnOnce() -> String) {
    fatal.send_if_modified(|reason| {
        let first = reason.is_none();
        if first {
            *reason = Some(why());
        }
        first
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A storage that fails says so more than once, and whoever has heard it looks again.
    #[tokio::test]
    async fn a_failure_that_was_heard_can_be_told_again() {
        let (tell, mut fatal) = watch::channel(None);
        tell.send_replace(Some("the disk".to_owned()));
        let heard = failure(&mut fatal).await;
        let (done, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            tell.send_replace(Some("the disk, again".to_owned()));
            done.send(()).unwrap();
        });
        let told = told.recv_timeout(Duration::from_secs(20));
        assert!(told.is_ok(), "the sender waits for whoever has heard it");
        assert_eq!(heard.as_deref(), Some("the disk"));
        assert_eq!(fatal.borrow().as_deref(), Some("the disk, again"));
    }
}
