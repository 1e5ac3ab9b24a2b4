//! Retention: finished jobs are kept for a time and up to a size.

use crate::command::Reply;
use crate::job::{Job, JobId, JobState};
use crate::keys;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;
use crate::view::{self, Ages};

use super::{callback, owners};

/// Removes jobs in the order of their expiry, as long as they are over their time or all together over `keep_bytes`.
pub(super) fn expire<S: Store>(
    tx: &mut Transaction<S>,
    limit: u32,
    keep_bytes: u64,
) -> Result<Reply, StoreError> {
    let (from, to) = keys::expiries();
    let mut jobs = 0;
    while jobs < limit {
        let Some((key, _)) = tx.first(&from, &to)? else {
            break;
        };
        let (expires, id) = keys::parts_of_expiry(&key).ok_or_else(|| view::malformed(&key))?;
        if expires > tx.counters.time_ms && tx.counters.finished_bytes <= keep_bytes {
            break;
        }
        remove(tx, id)?;
        jobs += 1;
    }
    Ok(Reply::Expired { jobs })
}

/// Removes jobs in the order in which they have finished, up to those of a time, as long as all together are over
/// `keep_bytes`. By expiry, whoever asks for a long retention would have everybody else's jobs removed for their bytes.
pub(super) fn oldest<S: Store>(
    tx: &mut Transaction<S>,
    limit: u32,
    finished_ms: u64,
    keep_bytes: u64,
) -> Result<Reply, StoreError> {
    let (from, to) = keys::ages();
    let mut jobs = 0;
    // Those that the order does not hold yet are the oldest of all.
    while tx.counters.ages == Ages::Kept && jobs < limit && tx.counters.finished_bytes > keep_bytes
    {
        let Some((key, _)) = tx.first(&from, &to)? else {
            break;
        };
        let (finished, id) = keys::parts_of_expiry(&key).ok_or_else(|| view::malformed(&key))?;
        if finished > finished_ms {
            break;
        }
        remove(tx, id)?;
        jobs += 1;
    }
    Ok(Reply::Expired { jobs })
}

/// Removes a finished job and all that belongs to it.
fn remove<S: Store>(tx: &mut Transaction<S>, id: JobId) -> Result<(), StoreError> {
    let job = tx.view().job(id)?.ok_or_else(|| {
        StoreError::Inconsistent(format!("job {id} is to expire but is not there"))
    })?;
    tx.counters.finished -= 1;
    tx.counters.finished_bytes -= job.weight;
    if let Some(value) = &job.key {
        tx.remove(keys::idempotency(job.owner.as_deref(), value))?;
    }
    owners::expired(tx, &job)?;
    callback::forget(tx, &job)?;
    if let Some(expires) = job.expires_ms() {
        tx.remove(keys::expiry(expires, id))?;
    }
    if let Some(finished) = job.finished_ms {
        tx.remove(keys::age(finished, id))?;
    }
    tx.remove(keys::spec(id))?;
    tx.remove(keys::output(id))?;
    tx.remove(keys::job(id))
}

/// Takes a job that has finished into the order of age, if that is kept.
pub(super) fn ages<S: Store>(tx: &mut Transaction<S>, job: &Job) -> Result<(), StoreError> {
    match job.finished_ms {
        Some(finished) if tx.counters.ages != Ages::Unkept => {
            tx.put(keys::age(finished, job.id), &())
        }
        _ => Ok(()),
    }
}

/// From the first of these on, whatever finishes is taken into the order of age; each takes in a part of what had finished
/// before, so that none takes long to apply.
pub(super) fn order_by_age<S: Store>(
    tx: &mut Transaction<S>,
    limit: u32,
) -> Result<Reply, StoreError> {
    let (mut from, to) = keys::jobs();
    let last = match tx.counters.ages {
        Ages::Kept => return Ok(Reply::Ordered { jobs: 0 }),
        Ages::Begun { seen, last } => {
            from = behind(seen);
            last
        }
        // Jobs that come later are taken in when they finish.
        Ages::Unkept => match tx.last(&from, &to)? {
            Some((key, value)) => view::decode::<Job>(&key, &value)?.id,
            None => {
                tx.counters.ages = Ages::Kept;
                return Ok(Reply::Ordered { jobs: 0 });
            }
        },
    };
    let to = behind(last);
    let mut jobs = 0;
    while jobs < limit {
        let Some((key, value)) = tx.first(&from, &to)? else {
            tx.counters.ages = Ages::Kept;
            break;
        };
        let job: Job = view::decode(&key, &value)?;
        tx.counters.ages = Ages::Begun { seen: job.id, last };
        if job.state == JobState::Finished {
            ages(tx, &job)?;
        }
        from = behind(job.id);
        jobs += 1;
    }
    Ok(Reply::Ordered { jobs })
}

/// The first key behind that of a job's record.
fn behind(job: JobId) -> Vec<u8> {
    let mut key = keys::job(job);
    key.push(0);
    key
}
