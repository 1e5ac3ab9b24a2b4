//! Retention: finished jobs are kept for a time and up to a size.

use crate::command::Reply;
use crate::job::{Job, JobId};
use crate::keys;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;
use crate::view::{self, Ages};

use super::{callback, owners, purge};

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
        match tx.view().job(id)? {
            Some(job) => remove(tx, &job)?,
            None => purge::forget(tx, id, expires)?,
        }
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
    let mut jobs = 0;
    // Those that the order does not hold yet are the oldest of all.
    while tx.counters.ages == Ages::Kept && jobs < limit && tx.counters.finished_bytes > keep_bytes
    {
        // Whoever has a receiver that never answers must not have everybody else's jobs removed.
        let undelivered_first = tx.counters.undelivered_bytes > keep_bytes / 2;
        let mut next = None;
        for undelivered in [undelivered_first, !undelivered_first] {
            if next.is_none() {
                next = oldest_of(tx, undelivered, finished_ms)?;
            }
        }
        let Some(id) = next else {
            break;
        };
        let job = tx.view().job(id)?.ok_or_else(|| not_there(id))?;
        remove(tx, &job)?;
        jobs += 1;
    }
    Ok(Reply::Expired { jobs })
}

/// The oldest job of those that are still to be delivered, or of the others, if it has finished by then.
fn oldest_of<S: Store>(
    tx: &Transaction<S>,
    undelivered: bool,
    finished_ms: u64,
) -> Result<Option<JobId>, StoreError> {
    let (from, to) = if undelivered {
        keys::all_undelivered()
    } else {
        keys::ages()
    };
    let Some((key, _)) = tx.first(&from, &to)? else {
        return Ok(None);
    };
    let (finished, id) = keys::parts_of_expiry(&key).ok_or_else(|| view::malformed(&key))?;
    Ok((finished <= finished_ms).then_some(id))
}

/// That a job is not there which stands in an order of those that have finished.
pub(super) fn not_there(id: JobId) -> StoreError {
    StoreError::Inconsistent(format!("job {id} is to expire but is not there"))
}

/// Removes a finished job and all that belongs to it.
pub(super) fn remove<S: Store>(tx: &mut Transaction<S>, job: &Job) -> Result<(), StoreError> {
    let id = job.id;
    tx.counters.finished -= 1;
    no_longer_kept(tx, job)?;
    if let Some(value) = &job.key {
        tx.remove(keys::idempotency(job.owner.as_deref(), value))?;
    }
    owners::expired(tx, job)?;
    callback::forget(tx, job)?;
    if let Some(expires) = job.expires_ms() {
        tx.remove(keys::expiry(expires, id))?;
    }
    tx.remove(keys::spec(id))?;
    tx.remove(keys::output(id))?;
    tx.remove(keys::job(id))
}

/// Counts a job that has finished, and takes it into the order of age, if that is kept.
pub(super) fn kept<S: Store>(
    tx: &mut Transaction<S>,
    job: &Job,
    undelivered: bool,
) -> Result<(), StoreError> {
    tx.counters.finished_bytes += job.weight;
    let Some(finished) = job.finished_ms else {
        return Ok(());
    };
    if undelivered && tx.counters.weights.by_records() {
        tx.counters.undelivered_bytes += job.weight;
        return tx.put(keys::undelivered(finished, job.id), &());
    }
    if tx.counters.ages == Ages::Unkept {
        return Ok(());
    }
    tx.put(keys::age(finished, job.id), &())
}

/// The opposite of [`kept`].
pub(super) fn no_longer_kept<S: Store>(
    tx: &mut Transaction<S>,
    job: &Job,
) -> Result<(), StoreError> {
    tx.counters.finished_bytes -= job.weight;
    let Some(finished) = job.finished_ms else {
        return Ok(());
    };
    if tx.counters.weights.by_records() && tx.take(keys::undelivered(finished, job.id))? {
        tx.counters.undelivered_bytes -= job.weight;
        return Ok(());
    }
    tx.remove(keys::age(finished, job.id))
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
        if let Some(finished) = job.finished_ms {
            tx.put(keys::age(finished, job.id), &())?;
        }
        from = behind(job.id);
        jobs += 1;
    }
    Ok(Reply::Ordered { jobs })
}

/// The first key behind that of a job's record.
pub(super) fn behind(job: JobId) -> Vec<u8> {
    let mut key = keys::job(job);
    key.push(0);
    key
}
