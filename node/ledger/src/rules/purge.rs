//! Removing a finished job because somebody wants it gone.

use crate::callback::DeliveryState;
use crate::command::{Rejection, Reply};
use crate::job::{JobId, JobState};
use crate::keys;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;

use super::expire;

/// For so long it is known that a job was purged, milliseconds: until nobody proposes its submission any more, who does not
/// know that it was taken. Otherwise such a proposal would be a new job. What has expired was kept for so long anyway.
pub const PURGED_MS: u64 = 30_000;

/// The job goes with all that belongs to it, its idempotency key as well, and counts for nothing from then on.
pub(super) fn purge<S: Store>(tx: &mut Transaction<S>, id: JobId) -> Result<Reply, StoreError> {
    let view = tx.view();
    let Some(job) = view.job(id)? else {
        // A proposal may come twice.
        return Ok(match view.was_purged(id)? {
            true => Reply::Purged,
            false => Reply::Rejected(Rejection::UnknownJob),
        });
    };
    if job.state != JobState::Finished {
        return Ok(Reply::Rejected(Rejection::NotFinished));
    }
    let delivery = view.delivery(id)?;
    if delivery.is_some_and(|delivery| delivery.state == DeliveryState::Pending) {
        return Ok(Reply::Rejected(Rejection::Undelivered));
    }
    expire::remove(tx, &job)?;
    tx.counters.purged += 1;
    tx.put(keys::purged(id), &())?;
    let until = tx.counters.time_ms.saturating_add(PURGED_MS);
    tx.put(keys::expiry(until, id), &())?;
    Ok(Reply::Purged)
}

/// That a job was purged need not be known any more.
pub(super) fn forget<S: Store>(
    tx: &mut Transaction<S>,
    id: JobId,
    until_ms: u64,
) -> Result<(), StoreError> {
    if !tx.take(keys::purged(id))? {
        return Err(expire::not_there(id));
    }
    tx.counters.purged -= 1;
    tx.remove(keys::expiry(until_ms, id))
}
