//! The types that openraft is instantiated with.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use quorun_ledger::{Batch, NodeId, QueueBound, Reply, codec};

use crate::options::Member;
use crate::raft_runtime::RaftRuntime;

openraft::declare_raft_types!(
    /// Textbook Raft: one leader for a term, u64 ids.
    pub(crate) TypeConfig:
        D = EncodedBatch,
        R = Replies,
        NodeId = NodeId,
        Node = Member,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeId>,
        AsyncRuntime = RaftRuntime,
);

pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<NodeId, Member>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot =
    openraft::alias::SnapshotOf<TypeConfig, crate::ledger_store::SnapshotFile>;
pub(crate) type Raft = openraft::Raft<TypeConfig, crate::ledger_store::StateMachine>;

/// A [`Batch`] as it travels and lies on disk: put together by the proposer of commands
/// that were encoded where they were proposed, and decoded where it is applied.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct EncodedBatch(pub(crate) Bytes);

impl EncodedBatch {
    #[cfg(test)]
    pub(crate) fn new(batch: &Batch) -> Self {
        Self(codec::encode(batch).into())
    }

    /// A batch of commands that are encoded already.
    pub(crate) fn of(
        time_ms: u64,
        eligible: BTreeSet<NodeId>,
        queue: Option<QueueBound>,
        commands: &[Bytes],
    ) -> Self {
        Self(Batch::encode_with(time_ms, eligible, queue, commands).into())
    }

    pub(crate) fn decode(&self) -> Result<Batch, codec::DecodeError> {
        codec::decode(&self.0)
    }
}

impl fmt::Display for EncodedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.0.len())
    }
}

impl fmt::Debug for EncodedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the commands of a batch were answered, in their order; empty for entries that are not batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Replies(pub(crate) Vec<Reply>);

/// The index behind a log id: what is below it is covered. 0 when there is none.
pub(crate) fn next_index(log_id: Option<&LogId>) -> u64 {
    log_id.map_or(0, |id| id.index + 1)
}
