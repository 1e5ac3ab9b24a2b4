//! Retention: finished jobs are kept for a time and up to a size.

use crate::command::Reply;
use crate::keys;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;
use crate::view;

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
        tx.remove(key.to_vec())?;
        tx.remove(keys::spec(id))?;
        tx.remove(keys::output(id))?;
        tx.remove(keys::job(id))?;
        jobs += 1;
    }
    Ok(Reply::Expired { jobs })
}
