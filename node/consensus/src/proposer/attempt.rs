//! One batch on its way into the log.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use quorun_ledger::{NodeId, Reply, codec};
use quorun_proto::v1;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::{Parts, Proposal, Refusal};
use crate::network::never_sent;
use crate::status::Status;
use crate::types::{EncodedBatch, Replies, TypeConfig};

/// What came of an attempt.
pub(super) enum Outcome {
    /// Everybody has been answered.
    Done,
    /// These are to be tried again.
    Again {
        proposals: Vec<Proposal>,
        /// Whom they were handed to this time.
        asked: NodeId,
    },
    /// Raft has ended.
    Ended,
}

/// Gives every proposal the replies to its commands.
fn answer(proposals: Vec<Proposal>, replies: Vec<Reply>) {
    let mut replies = replies.into_iter();
    for proposal in proposals {
        let own: Vec<_> = replies.by_ref().take(proposal.commands.len()).collect();
        let complete = own.len() == proposal.commands.len();
        let result = if complete {
            Ok(own)
        } else {
            Err(Refusal::Unknown)
        };
        // Whoever proposed it may have gone.
        let _ = proposal.reply.send(result);
    }
}

/// All commands, in order. Their bytes are shared.
fn commands(proposals: &[Proposal]) -> Vec<Bytes> {
    let commands = proposals.iter().flat_map(|proposal| &proposal.commands);
    commands.cloned().collect()
}

fn uncertain(mut proposals: Vec<Proposal>, asked: NodeId) -> Outcome {
    for proposal in &mut proposals {
        proposal.uncertain = true;
    }
    Outcome::Again { proposals, asked }
}

/// When nobody waits any more.
fn last_deadline(proposals: &[Proposal], patience: Duration) -> Instant {
    let last = proposals.iter().map(|proposal| proposal.deadline).max();
    last.unwrap_or_else(|| Instant::now() + patience)
}

/// Writes a batch into this node's log, under the condition that it still leads in `term`.
pub(super) async fn write(
    parts: Arc<Parts>,
    term: u64,
    proposals: Vec<Proposal>,
    slot: OwnedSemaphorePermit,
) -> Outcome {
    let asked = parts.id;
    let deadline = last_deadline(&proposals, parts.patience);
    let eligible = parts.eligible.borrow().clone();
    let commands = commands(&proposals);
    let metrics = &parts.metrics;
    let time_ms = metrics.clocks.stamp(&parts.status.borrow().voters);
    let encoded = EncodedBatch::of(time_ms, eligible, parts.queue, &commands);
    metrics.batch_commands.add(commands.len() as u64);
    metrics.batch_bytes.add(encoded.0.len() as u64);
    drop(commands);
    #[cfg(feature = "simulation")]
    crate::simulation::stamped(term, &encoded).await;
    #[cfg(feature = "bugs")]
    crate::bugs::stamped(term, &encoded).await;
    let (responder, committed, written) = ProgressResponder::<TypeConfig, _>::new();
    let started = Instant::now();
    let handed_over = parts.raft.write(encoded);
    #[cfg(feature = "bugs")]
    let fenced = !quorun_ledger::bugs::Bug::AssignWithoutFence.is_on();
    #[cfg(not(feature = "bugs"))]
    let fenced = true;
    let handed_over = if fenced {
        handed_over.with_leader(term)
    } else {
        handed_over
    };
    let handed_over = handed_over.responder(responder).await;
    if handed_over.is_err() {
        return Outcome::Ended;
    }
    let written = async {
        let committed = committed.await.is_ok().then(Instant::now);
        let written = written.await;
        if let Some(at) = committed {
            metrics.commit.took(at - started);
            metrics.reply.took(at.elapsed());
        }
        written
    };
    let written = timeout_at(deadline, hold(written, slot, parts.patience)).await;
    match written {
        Ok(Ok(Ok(response))) => {
            let Replies(replies) = response.data;
            answer(proposals, replies);
            Outcome::Done
        }
        // It was not appended.
        Ok(Ok(Err(ClientWriteError::ForwardToLeader(_)))) => Outcome::Again { proposals, asked },
        // It was appended; another leader may have committed it.
        Ok(_) | Err(_) => uncertain(proposals, asked),
    }
}

/// Waits, and after some time gives the slot free before the result is there.
async fn hold<F: Future>(result: F, slot: OwnedSemaphorePermit, patience: Duration) -> F::Output {
    tokio::pin!(result);
    tokio::select! {
        result = &mut result => return result,
        () = tokio::time::sleep(patience) => drop(slot),
    }
    result.await
}

/// Sends a batch to the leader.
pub(super) async fn forward(
    parts: Arc<Parts>,
    leader: NodeId,
    proposals: Vec<Proposal>,
    slot: OwnedSemaphorePermit,
) -> Outcome {
    use v1::propose_reply::Result as Reply;
    let asked = leader;
    let address = parts
        .status
        .borrow()
        .members
        .get(&leader)
        .map(|member| member.peer.clone());
    let client = address.and_then(|address| parts.peers.consensus(leader, &address).ok());
    let Some(mut client) = client else {
        return Outcome::Again { proposals, asked };
    };
    let deadline = last_deadline(&proposals, parts.patience);
    let left = deadline.saturating_duration_since(Instant::now());
    let request = v1::ProposeRequest {
        commands: commands(&proposals),
        deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
    };
    let started = Instant::now();
    let mut status = parts.status.clone();
    let deposed = async {
        let other = |status: &Status| status.leader.is_some_and(|now| now != leader);
        if status.wait_for(other).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let called = hold(
        timeout_at(deadline, client.propose(request)),
        slot,
        parts.patience,
    );
    let called = tokio::select! {
        called = called => called,
        // The old leader may have hung, and another one is there to be asked.
        () = deposed => return uncertain(proposals, asked),
    };
    match called {
        Ok(Ok(reply)) => match reply.into_inner().result {
            Some(Reply::Replies(replies)) => {
                parts.metrics.forward.took(started.elapsed());
                let decoded: Result<Vec<_>, _> = replies
                    .replies
                    .iter()
                    .map(|bytes| codec::decode(bytes))
                    .collect();
                match decoded {
                    Ok(replies) => {
                        answer(proposals, replies);
                        Outcome::Done
                    }
                    Err(error) => {
                        tracing::error!(%error, target_node = leader, "a malformed reply");
                        uncertain(proposals, asked)
                    }
                }
            }
            Some(Reply::NotLeader(_)) => Outcome::Again { proposals, asked },
            Some(Reply::Unknown(_)) | None => uncertain(proposals, asked),
        },
        Ok(Err(status)) if never_sent(&status) => Outcome::Again { proposals, asked },
        Ok(Err(status)) => {
            tracing::debug!(%status, target_node = leader, "a proposal was not answered");
            uncertain(proposals, asked)
        }
        Err(_) => uncertain(proposals, asked),
    }
}
