//! Who belongs to the cluster, and who votes: changes of the membership, made by the leader one at a time.
//!
//! Each change is an entry of the log, a change of the voters two (joint consensus): a leader that dies between them
//! leaves a membership with two sets of voters, which the next one brings to its end
//! ([`Handle::finish_change`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use quorun_ledger::NodeId;
use tokio::time::timeout;

use crate::error::Error;
use crate::handle::Handle;
use crate::network::Peers;
use crate::options::Member;
use crate::types::next_index;

/// How long one change may take before the caller looks anew at how things stand.
const PATIENCE: Duration = Duration::from_secs(5);

impl Handle {
    /// Leader only: takes a node in that follows without a vote. Returns when that is committed; the node may be far
    /// behind still. Harmless when it belongs already.
    ///
    /// # Errors
    /// When this node does not lead, another change is under way, or it was not committed in time (and may be later).
    pub async fn add_learner(&self, id: NodeId, member: Member) -> Result<(), Error> {
        Peers::check_address(&member.peer)?;
        let change = ChangeMembers::AddNodes(BTreeMap::from([(id, member)]));
        self.change(change).await
    }

    /// Leader only: makes these the voters; all of them must be members. Whoever loses its vote goes on following.
    ///
    /// # Errors
    /// As for [`add_learner`](Self::add_learner).
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), Error> {
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Leader only: puts a node that has no vote out of the cluster.
    ///
    /// # Errors
    /// As for [`add_learner`](Self::add_learner).
    pub async fn remove_learner(&self, id: NodeId) -> Result<(), Error> {
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id])))
            .await
    }

    /// Leader only: brings to its end what a former leader has begun, when the membership has two sets of voters.
    ///
    /// # Errors
    /// As for [`add_learner`](Self::add_learner).
    pub async fn finish_change(&self) -> Result<(), Error> {
        // Any change is made on top of the newer set; this one adds nothing to it.
        self.change(ChangeMembers::AddVoterIds(BTreeSet::new()))
            .await
    }

    /// Leader only: how many entries each of the others is behind. Empty elsewhere.
    #[must_use]
    pub fn behind(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched().clone();
        let last = metrics.last_log_index.map_or(0, |index| index + 1);
        let replication = metrics.replication.unwrap_or_default();
        replication
            .into_iter()
            .map(|(id, matched)| (id, last.saturating_sub(next_index(matched.as_ref()))))
            .collect()
    }

    async fn change(&self, change: ChangeMembers<NodeId, Member>) -> Result<(), Error> {
        // Whoever loses its vote stays a learner until it is put out by itself.
        let changed = timeout(PATIENCE, self.shared.raft.change_membership(change, true));
        match changed.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Err(Error::NotLeader)
            }
            Ok(Err(RaftError::APIError(error))) => Err(Error::Failed(error.to_string())),
            Ok(Err(RaftError::Fatal(_))) => Err(self.ended()),
            Err(_) => Err(Error::Failed(format!(
                "the change was not committed within {PATIENCE:?}"
            ))),
        }
    }
}
