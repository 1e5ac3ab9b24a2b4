//! Giving one named job to one named node.

use crate::command::{Rejection, Reply};
use crate::job::{JobId, JobState};
use crate::node::NodeId;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;

use super::jobs;

pub(super) fn assign<S: Store>(
    tx: &mut Transaction<S>,
    id: JobId,
    node: NodeId,
) -> Result<Reply, StoreError> {
    let Some(job) = tx.view().job(id)? else {
        return Ok(Reply::Rejected(Rejection::UnknownJob));
    };
    if job.state != JobState::Queued {
        return Ok(Reply::Rejected(Rejection::NotQueued));
    }
    let Some(record) = tx.nodes.get(&node) else {
        return Ok(Reply::Rejected(Rejection::UnknownNode));
    };
    if !record.has_room() || !record.languages.contains(&*job.needs()) {
        return Ok(Reply::Rejected(Rejection::NoRoom));
    }
    let attempt = jobs::start(tx, job, node)?;
    Ok(Reply::Assigned { attempt })
}
