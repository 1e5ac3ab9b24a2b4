//! The end of an attempt, as its worker reports it.

use crate::command::{Completion, Reply};
use crate::job::{Job, JobId, JobResult, JobState};
use crate::keys;
use crate::node::NodeId;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;

use super::jobs;

/// A result stands if it is from the current attempt. A worker may report the same result again, because it could not
/// know that the first report was committed: that is answered as the first was.
pub(super) fn complete<S: Store>(
    tx: &mut Transaction<S>,
    id: JobId,
    attempt: u32,
    node: NodeId,
    result: JobResult,
) -> Result<Reply, StoreError> {
    let job = tx.view().job(id)?;
    settle_slot(tx, id, attempt, node)?;
    let completion = match job {
        Some(job) if is_current(&job, attempt, node) => {
            jobs::finish(tx, job, result)?;
            Completion::Committed
        }
        Some(job) if is_repeated(&job, attempt, node, &result) => Completion::Committed,
        _ => fenced(tx),
    };
    Ok(Reply::Completed(completion))
}

fn fenced<S>(tx: &mut Transaction<S>) -> Completion {
    tx.counters.fenced += 1;
    Completion::Fenced
}

/// An attempt given back counts as an attempt: a job that no node can run must come to an end.
pub(super) fn release<S: Store>(
    tx: &mut Transaction<S>,
    id: JobId,
    attempt: u32,
    node: NodeId,
    reason: &str,
) -> Result<Reply, StoreError> {
    let job = tx.view().job(id)?;
    settle_slot(tx, id, attempt, node)?;
    let completion = match job {
        Some(job) if is_current(&job, attempt, node) => {
            jobs::retry(tx, job, &format!("node {node} gave it back: {reason}"))?;
            Completion::Committed
        }
        _ => fenced(tx),
    };
    Ok(Reply::Completed(completion))
}

fn is_current(job: &Job, attempt: u32, node: NodeId) -> bool {
    #[cfg(feature = "bugs")]
    if crate::bugs::Bug::StaleAttempt.is_on() {
        return job.state == JobState::Running;
    }
    job.state == JobState::Running && job.attempt == attempt && job.node == Some(node)
}

fn is_repeated(job: &Job, attempt: u32, node: NodeId, result: &JobResult) -> bool {
    job.state == JobState::Finished
        && job.attempt == attempt
        && job.node == Some(node)
        && job.outcome.as_ref() == Some(&result.outcome)
}

/// The slot is free once the worker has reported, also when the job was cancelled under it.
fn settle_slot<S: Store>(
    tx: &mut Transaction<S>,
    id: JobId,
    attempt: u32,
    node: NodeId,
) -> Result<(), StoreError> {
    let held: Option<u32> = tx.view().read(&keys::attempt(node, id))?;
    if held == Some(attempt) {
        jobs::free_slot(tx, node, id)?;
    }
    Ok(())
}
