//! What is kept of the owners: which jobs are whose, and how much of it is not finished.

use crate::command::{QueueBound, Rejection};
use crate::job::{Job, JobId};
use crate::keys;
use crate::owner::{Owner, OwnerLoad};
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;

/// Why the owner does not get `more` further jobs that weigh so much all together, if so.
pub(super) fn refuses_all<S: Store>(
    tx: &Transaction<S>,
    owner: &Owner,
    more: u64,
    weight: u64,
    queue: Option<QueueBound>,
) -> Result<Option<Rejection>, StoreError> {
    let load = tx.view().owner_load(&owner.name)?;
    Ok(owner.refuses_all(&load, more, weight, queue))
}

/// The owner has a new job; it is not queued yet.
pub(super) fn accepted<S: Store>(
    tx: &mut Transaction<S>,
    owner: &str,
    job: JobId,
) -> Result<(), StoreError> {
    tx.put(keys::owned(owner, job), &())?;
    change(tx, Some(owner), |load| load.unfinished += 1)
}

/// The job waits from now on.
pub(super) fn queued<S: Store>(tx: &mut Transaction<S>, job: &Job) -> Result<(), StoreError> {
    change(tx, job.owner.as_deref(), |load| {
        load.queued += 1;
        load.queued_bytes += job.weight;
    })
}

/// The job, which waits, has had another weight.
pub(super) fn weighed_anew<S: Store>(
    tx: &mut Transaction<S>,
    job: &Job,
    old: u64,
) -> Result<(), StoreError> {
    change(tx, job.owner.as_deref(), |load| {
        load.queued_bytes = load.queued_bytes.saturating_sub(old) + job.weight;
    })
}

/// The job no longer waits.
pub(super) fn dequeued<S: Store>(tx: &mut Transaction<S>, job: &Job) -> Result<(), StoreError> {
    change(tx, job.owner.as_deref(), |load| {
        load.queued = load.queued.saturating_sub(1);
        load.queued_bytes = load.queued_bytes.saturating_sub(job.weight);
    })
}

/// The job has its result.
pub(super) fn finished<S: Store>(tx: &mut Transaction<S>, job: &Job) -> Result<(), StoreError> {
    change(tx, job.owner.as_deref(), |load| {
        load.unfinished = load.unfinished.saturating_sub(1);
    })
}

/// The job is removed.
pub(super) fn expired<S: Store>(tx: &mut Transaction<S>, job: &Job) -> Result<(), StoreError> {
    match &job.owner {
        Some(owner) => tx.remove(keys::owned(owner, job.id)),
        None => Ok(()),
    }
}

fn change<S: Store>(
    tx: &mut Transaction<S>,
    owner: Option<&str>,
    how: impl FnOnce(&mut OwnerLoad),
) -> Result<(), StoreError> {
    let Some(owner) = owner else { return Ok(()) };
    let mut load = tx.view().owner_load(owner)?;
    how(&mut load);
    let key = keys::owner_load(owner);
    if load == OwnerLoad::default() {
        return tx.remove(key);
    }
    tx.put(key, &load)
}
