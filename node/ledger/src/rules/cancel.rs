//! Ending a job before it has a result.

use crate::command::{Rejection, Reply};
use crate::event::Event;
use crate::job::{JobId, JobResult, JobState, Outcome, Output, Verdict};
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;

use super::jobs;

/// What a job that was cancelled has as its message. It stays as it is, because all nodes must write the same; who it was
/// that cancelled it is not known here.
pub const CANCELLED: &str = "cancelled by the submitter";

/// The job ends at once. If it was running, its worker is told to stop, and the slot stays taken until it has.
pub(super) fn cancel<S: Store>(tx: &mut Transaction<S>, id: JobId) -> Result<Reply, StoreError> {
    let Some(job) = tx.view().job(id)? else {
        return Ok(Reply::Rejected(Rejection::UnknownJob));
    };
    match (job.state, job.node) {
        (JobState::Finished, _) => return Ok(Reply::Rejected(Rejection::AlreadyFinished)),
        (JobState::Running, Some(node)) => tx.events.push(Event::Revoked {
            job: id,
            attempt: job.attempt,
            node,
        }),
        (JobState::Queued | JobState::Running, _) => {}
    }
    let result = JobResult {
        outcome: Outcome::without_run(Verdict::Cancelled, CANCELLED),
        output: Output::default(),
    };
    jobs::finish(tx, job, result)?;
    Ok(Reply::Cancelled)
}
