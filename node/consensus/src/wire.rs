//! openraft's types as the messages of `quorun.proto`, and back. None of openraft's own encodings leaves the process.

use openraft::EntryPayload;
use quorun_proto::v1;

use crate::options::Member;
use crate::types::{
    EncodedBatch, Entry, LogId, Membership, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};

/// A message lacks a part that its sender always sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message without {0}")]
pub(crate) struct Incomplete(pub(crate) &'static str);

impl From<Incomplete> for tonic::Status {
    fn from(error: Incomplete) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

pub(crate) fn log_id_to(id: LogId) -> v1::LogId {
    v1::LogId {
        term: id.leader_id.term,
        index: id.index,
    }
}

#[allow(clippy::needless_pass_by_value)] // prost hands its parts over by value
pub(crate) fn log_id_from(id: v1::LogId) -> LogId {
    LogId::new_term_index(id.term, id.index)
}

pub(crate) fn vote_to(vote: &Vote) -> v1::Vote {
    v1::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(crate) fn vote_from(vote: Option<v1::Vote>) -> Result<Vote, Incomplete> {
    let vote = vote.ok_or(Incomplete("a vote"))?;
    Ok(if vote.committed {
        Vote::new_committed(vote.term, vote.node)
    } else {
        Vote::new(vote.term, vote.node)
    })
}

pub(crate) fn membership_to(membership: &Membership) -> v1::Membership {
    v1::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| v1::VoterSet {
                nodes: voters.iter().copied().collect(),
            })
            .collect(),
        members: membership
            .nodes()
            .map(|(id, member)| v1::Member {
                id: *id,
                peer: member.peer.clone(),
                http: member.http.clone(),
            })
            .collect(),
    }
}

pub(crate) fn membership_from(membership: v1::Membership) -> Result<Membership, Incomplete> {
    if membership.configs.is_empty() && membership.members.is_empty() {
        return Ok(Membership::default());
    }
    let configs = membership
        .configs
        .into_iter()
        .map(|voters| voters.nodes.into_iter().collect())
        .collect();
    let members: std::collections::BTreeMap<_, _> = membership
        .members
        .into_iter()
        .map(|m| {
            let member = Member {
                peer: m.peer,
                http: m.http,
            };
            (m.id, member)
        })
        .collect();
    Membership::new(configs, members).map_err(|_| Incomplete("a valid membership"))
}

pub(crate) fn entry_to(entry: &Entry) -> v1::Entry {
    v1::Entry {
        log_id: Some(log_id_to(entry.log_id)),
        payload: Some(match &entry.payload {
            EntryPayload::Blank => v1::entry::Payload::Blank(v1::Blank {}),
            EntryPayload::Normal(batch) => v1::entry::Payload::Batch(batch.0.clone()),
            EntryPayload::Membership(membership) => {
                v1::entry::Payload::Membership(membership_to(membership))
            }
        }),
    }
}

pub(crate) fn entry_from(entry: v1::Entry) -> Result<Entry, Incomplete> {
    let log_id = log_id_from(entry.log_id.ok_or(Incomplete("a log id"))?);
    let payload = match entry.payload.ok_or(Incomplete("a payload"))? {
        v1::entry::Payload::Blank(v1::Blank {}) => EntryPayload::Blank,
        v1::entry::Payload::Batch(batch) => EntryPayload::Normal(EncodedBatch(batch)),
        v1::entry::Payload::Membership(membership) => {
            EntryPayload::Membership(membership_from(membership)?)
        }
    };
    Ok(Entry { log_id, payload })
}

pub(crate) fn append_request_to(
    request: &openraft::raft::AppendEntriesRequest<TypeConfig>,
) -> v1::AppendRequest {
    v1::AppendRequest {
        vote: Some(vote_to(&request.vote)),
        prev_log_id: request.prev_log_id.map(log_id_to),
        entries: request.entries.iter().map(entry_to).collect(),
        leader_commit: request.leader_commit.map(log_id_to),
        quiet: false,
    }
}

pub(crate) fn append_request_from(
    request: v1::AppendRequest,
) -> Result<openraft::raft::AppendEntriesRequest<TypeConfig>, Incomplete> {
    Ok(openraft::raft::AppendEntriesRequest {
        vote: vote_from(request.vote)?,
        prev_log_id: request.prev_log_id.map(log_id_from),
        entries: request
            .entries
            .into_iter()
            .map(entry_from)
            .collect::<Result<_, _>>()?,
        leader_commit: request.leader_commit.map(log_id_from),
    })
}

type AppendResult = openraft::raft::StreamAppendResult<TypeConfig>;

pub(crate) fn append_reply_to(result: &AppendResult, clock_ms: u64) -> v1::AppendReply {
    use openraft::raft::StreamAppendError;
    let result = match result {
        Ok(matched) => v1::append_reply::Result::Matched(v1::Matched {
            log_id: matched.map(log_id_to),
        }),
        Err(StreamAppendError::Conflict(id)) => v1::append_reply::Result::Conflict(log_id_to(*id)),
        Err(StreamAppendError::HigherVote(vote)) => {
            v1::append_reply::Result::HigherVote(vote_to(vote))
        }
    };
    v1::AppendReply {
        result: Some(result),
        clock_ms,
    }
}

pub(crate) fn append_reply_from(reply: v1::AppendReply) -> Result<AppendResult, Incomplete> {
    use openraft::raft::StreamAppendError;
    Ok(match reply.result.ok_or(Incomplete("a result"))? {
        v1::append_reply::Result::Matched(matched) => Ok(matched.log_id.map(log_id_from)),
        v1::append_reply::Result::Conflict(id) => Err(StreamAppendError::Conflict(log_id_from(id))),
        v1::append_reply::Result::HigherVote(vote) => {
            Err(StreamAppendError::HigherVote(vote_from(Some(vote))?))
        }
    })
}

type TransferResult = openraft::raft::TransferLeaderResponse<TypeConfig>;

pub(crate) fn transfer_reply_to(result: &TransferResult) -> v1::TransferLeaderReply {
    use openraft::raft::TransferLeaderError;
    use v1::transfer_leader_reply::Result;
    let result = match result {
        Ok(()) => Result::Accepted(v1::Blank {}),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            Result::VoteChanged(v1::VoteChanged {
                expected: Some(vote_to(expected)),
                actual: Some(vote_to(actual)),
            })
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            Result::LogNotFlushed(v1::LogNotFlushed {
                expected: expected.map(log_id_to),
                actual: actual.map(log_id_to),
            })
        }
    };
    v1::TransferLeaderReply {
        result: Some(result),
    }
}

pub(crate) fn transfer_reply_from(
    reply: v1::TransferLeaderReply,
) -> Result<TransferResult, Incomplete> {
    use openraft::raft::TransferLeaderError;
    use v1::transfer_leader_reply::Result;
    Ok(match reply.result.ok_or(Incomplete("a result"))? {
        Result::Accepted(v1::Blank {}) => Ok(()),
        Result::VoteChanged(changed) => Err(TransferLeaderError::VoteChanged {
            expected: vote_from(changed.expected)?,
            actual: vote_from(changed.actual)?,
        }),
        Result::LogNotFlushed(log) => Err(TransferLeaderError::LogNotFlushed {
            expected: log.expected.map(log_id_from),
            actual: log.actual.map(log_id_from),
        }),
    })
}

pub(crate) fn snapshot_header_to(
    vote: &Vote,
    meta: &SnapshotMeta,
    bytes: u64,
) -> v1::SnapshotHeader {
    v1::SnapshotHeader {
        vote: Some(vote_to(vote)),
        last_log_id: meta.last_log_id.map(log_id_to),
        last_membership_log_id: meta.last_membership.log_id().map(log_id_to),
        last_membership: Some(membership_to(meta.last_membership.membership())),
        bytes,
    }
}

pub(crate) fn snapshot_header_from(
    header: v1::SnapshotHeader,
) -> Result<(Vote, SnapshotMeta), Incomplete> {
    let membership = membership_from(header.last_membership.unwrap_or_default())?;
    let meta = SnapshotMeta {
        last_log_id: header.last_log_id.map(log_id_from),
        last_membership: StoredMembership::new(
            header.last_membership_log_id.map(log_id_from),
            membership,
        ),
    };
    Ok((vote_from(header.vote)?, meta))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use proptest::sample::Index;
    use prost::Message;

    use super::*;

    /// A message of a leader with an entry of each kind.
    fn append() -> v1::AppendRequest {
        let log_id = LogId::new_term_index(3, 17);
        let entries = [
            EntryPayload::Blank,
            EntryPayload::Normal(EncodedBatch(vec![1, 2, 3].into())),
            EntryPayload::Membership(membership()),
        ];
        let entries = entries.map(|payload| entry_to(&Entry { log_id, payload }));
        v1::AppendRequest {
            vote: Some(vote_to(&Vote::new(3, 1))),
            prev_log_id: Some(log_id_to(log_id)),
            entries: entries.into(),
            leader_commit: Some(log_id_to(log_id)),
            quiet: false,
        }
    }

    fn header() -> v1::SnapshotHeader {
        v1::SnapshotHeader {
            vote: Some(vote_to(&Vote::new(3, 1))),
            last_log_id: Some(v1::LogId { term: 3, index: 9 }),
            last_membership_log_id: Some(v1::LogId { term: 1, index: 1 }),
            last_membership: Some(membership_to(&membership())),
            bytes: 1000,
        }
    }

    /// Reads bytes as every message that a peer may send.
    fn read_all(bytes: &[u8]) {
        let _ = v1::AppendRequest::decode(bytes).map(append_request_from);
        let _ = v1::AppendReply::decode(bytes).map(append_reply_from);
        let _ = v1::TransferLeaderReply::decode(bytes).map(transfer_reply_from);
        let _ = v1::SnapshotHeader::decode(bytes).map(snapshot_header_from);
        let _ = v1::Vote::decode(bytes).map(|vote| vote_from(Some(vote)));
        let _ = v1::Membership::decode(bytes).map(membership_from);
        let _ = v1::Entry::decode(bytes).map(entry_from);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_bytes_of_a_peer_do_harm(
            of_leader: bool,
            changes in prop::collection::vec((any::<Index>(), any::<u8>()), 1..5),
            cut: Index,
            other in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut bytes = if of_leader {
                append().encode_to_vec()
            } else {
                header().encode_to_vec()
            };
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let end = cut.index(2 * bytes.len());
            bytes.truncate(end);
            read_all(&bytes);
            read_all(&other);
        }

        #[test]
        fn no_membership_of_a_peer_does_harm(
            configs in prop::collection::vec(prop::collection::vec(0..5_u64, 0..4), 0..4),
            members in prop::collection::vec((0..5_u64, ".{0,5}"), 0..5),
        ) {
            let voters = configs.into_iter().map(|nodes| v1::VoterSet { nodes });
            let members = members.into_iter().map(|(id, peer)| v1::Member { id, http: peer.clone(), peer });
            let sent = v1::Membership { configs: voters.collect(), members: members.collect() };
            if let Ok(read) = membership_from(sent) {
                prop_assert_eq!(membership_from(membership_to(&read)), Ok(read));
            }
        }
    }

    fn membership() -> Membership {
        let member = |n: u64| Member {
            peer: format!("node-{n}:7000"),
            http: format!("node-{n}:8080"),
        };
        Membership::new(
            vec![BTreeSet::from([1, 2]), BTreeSet::from([1, 2, 3])],
            BTreeMap::from([
                (1, member(1)),
                (2, member(2)),
                (3, member(3)),
                (4, member(4)),
            ]),
        )
        .unwrap()
    }

    #[test]
    fn entries_come_back_as_they_went() {
        let log_id = LogId::new_term_index(3, 17);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(EncodedBatch(vec![1, 2, 3].into())),
            EntryPayload::Normal(EncodedBatch(bytes::Bytes::new())),
            EntryPayload::Membership(membership()),
            EntryPayload::Membership(Membership::default()),
        ] {
            let entry = Entry { log_id, payload };
            let bytes = entry_to(&entry).encode_to_vec();
            let back = entry_from(v1::Entry::decode(bytes.as_slice()).unwrap()).unwrap();
            assert_eq!(back, entry);
        }
    }

    #[test]
    fn an_incomplete_message_is_refused() {
        assert_eq!(vote_from(None), Err(Incomplete("a vote")));
        assert!(entry_from(v1::Entry::default()).is_err());
        assert!(append_reply_from(v1::AppendReply::default()).is_err());
    }
}
