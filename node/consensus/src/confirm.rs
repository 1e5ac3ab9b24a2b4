//! The position up to which a linearizable read must see the log, from a leader that has made sure that it leads.
//!
//! openraft's own ReadIndex is not enough for that. It takes an acknowledgement of a log position for the answer to the
//! last request that ended there, and a request without entries ends where the one before it did. So a leader that was paused
//! and finds old acknowledgements waiting for it can believe that it was heard just now, while others have elected
//! another one (`replication/inflight_append_queue.rs` of 0.10.0-alpha.37; found by chaos with paused leaders). Here the
//! voters are asked, after the position was read, whether they have voted in a later term. Votes only grow: if most of
//! them have not by then, nobody else can have been elected, and have committed anything, before the question.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{LinearizerOption, ReadPolicy};
use quorun_ledger::NodeId;
use quorun_proto::v1::ConfirmTermRequest;
use tokio::time::timeout;

use crate::log_store::LogStore;
use crate::network::Peers;
use crate::types::Raft;

/// Why there is no position.
#[derive(Debug)]
pub(crate) enum Unconfirmed {
    /// This node does not lead.
    NotLeader(Option<NodeId>),
    /// It could not make sure in time that it leads.
    Unknown(String),
    /// Raft has ended.
    Ended(String),
}

/// Confirms positions.
#[derive(Clone, Debug)]
pub(crate) struct Confirmer {
    pub(crate) id: NodeId,
    pub(crate) raft: Raft,
    pub(crate) peers: Arc<Peers>,
    pub(crate) log: LogStore,
}

impl Confirmer {
    /// What was committed before the call, on whatever node, is applied once the returned index is.
    pub(crate) async fn read_index(&self, patience: Duration) -> Result<u64, Unconfirmed> {
        #[cfg(feature = "simulation")]
        if crate::simulation::reads_are_unconfirmed() {
            return self.openrafts_own(ReadPolicy::ReadIndex, patience).await;
        }
        let term = match self.raft.as_leader() {
            Ok(leader) => leader.term(),
            Err(forward) => return Err(Unconfirmed::NotLeader(forward.leader_id)),
        };
        let index = self.openrafts_own(ReadPolicy::LeaseRead, patience).await?;
        match timeout(patience, self.leads(term)).await {
            Ok(true) => Ok(index),
            Ok(false) => Err(Unconfirmed::Unknown(
                "others have voted in a later term".to_owned(),
            )),
            Err(_) => Err(Unconfirmed::Unknown(
                "most voters have not answered in time".to_owned(),
            )),
        }
    }

    /// What openraft says, and how sure it is.
    async fn openrafts_own(
        &self,
        policy: ReadPolicy,
        patience: Duration,
    ) -> Result<u64, Unconfirmed> {
        let option = LinearizerOption::from(policy).with_wait_timeout(patience);
        match self.raft.get_read_linearizer(option).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(Unconfirmed::NotLeader(forward.leader_id))
            }
            Err(RaftError::APIError(error)) => Err(Unconfirmed::Unknown(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(Unconfirmed::Ended(fatal.to_string())),
        }
    }

    /// Whether most voters have not voted in a later term.
    async fn leads(&self, term: u64) -> bool {
        let metrics = self.raft.metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        let membership = membership.membership();
        let sets = membership.get_joint_config();
        let mut held = BTreeSet::new();
        let mut asked: FuturesUnordered<_> = membership
            .nodes()
            .filter(|(id, _)| **id != self.id && sets.iter().any(|set| set.contains(id)))
            .map(|(id, member)| async move {
                let mut client = self.peers.consensus(*id, &member.peer).ok()?;
                let reply = client
                    .confirm_term(ConfirmTermRequest { term })
                    .await
                    .ok()?;
                reply.into_inner().confirmed.then_some(*id)
            })
            .collect();
        let most = |held: &BTreeSet<NodeId>| {
            sets.iter()
                .all(|set| 2 * set.intersection(held).count() > set.len())
        };
        held.insert(self.id);
        while !most(&held) {
            match asked.next().await {
                Some(confirmed) => held.extend(confirmed),
                None => return false,
            }
        }
        // This node's own vote comes last, as good as any other.
        self.log.voted_term() <= term
    }
}
