//! Accepting a job.

use crate::command::{IdempotencyKey, QueueBound, Rejection, Reply};
use crate::job::{Job, JobId, JobSpec, JobState};
use crate::keys;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;
use crate::view::KeyRecord;

use super::jobs;

/// A submission is taken once: the same id is the same proposal come twice, the same key with the same fingerprint a
/// client's retry; both join the first job, however full the queue is. The same key with another fingerprint is a mistake
/// of the client.
pub(super) fn submit<S: Store>(
    tx: &mut Transaction<S>,
    id: JobId,
    spec: &JobSpec,
    key: Option<IdempotencyKey>,
    queue: Option<QueueBound>,
) -> Result<Reply, StoreError> {
    if tx.view().job(id)?.is_some() {
        return Ok(Reply::Submitted {
            job: id,
            joined: true,
        });
    }
    if let Some(key) = &key
        && let Some(first) = tx.view().key(&key.key)?
    {
        return Ok(if first.fingerprint == key.fingerprint {
            Reply::Submitted {
                job: first.job,
                joined: true,
            }
        } else {
            Reply::Rejected(Rejection::KeyConflict { job: first.job })
        });
    }
    let weight = spec.weight();
    let (jobs, bytes) = (tx.counters.queued, tx.counters.queued_bytes);
    if let Some(rejection) = queue.and_then(|bound| bound.refuses(jobs, bytes, weight)) {
        return Ok(Reply::Rejected(rejection));
    }
    if let Some(key) = &key {
        let record = KeyRecord {
            job: id,
            fingerprint: key.fingerprint,
        };
        tx.put(keys::idempotency(&key.key), &record)?;
    }
    tx.put(keys::spec(id), spec)?;
    let job = Job {
        id,
        language: spec.language.clone(),
        definition: spec.definition.as_ref().map(|d| d.version),
        state: JobState::Queued,
        attempt: 0,
        max_attempts: spec.max_attempts,
        node: None,
        order: None,
        submitted_ms: tx.counters.time_ms,
        started_ms: None,
        finished_ms: None,
        outcome: None,
        labels: spec.labels.clone(),
        key: key.map(|k| k.key),
        retention_ms: spec.retention_ms,
        weight,
    };
    jobs::enqueue_back(tx, job)?;
    Ok(Reply::Submitted {
        job: id,
        joined: false,
    })
}
