//! What is kept of the owners: which jobs are whose, and how much of it is not finished.

use crate::command::{QueueBound, Rejection};
use crate::job::{Job, JobId};
use crate::keys;
use crate::owner::{Owner, OwnerLoad};
use crate::rounds::Turn;
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

/// The job waits from now on, at a place or else at its owner's next one. Returns its place.
pub(super) fn queued<S: Store>(
    tx: &mut Transaction<S>,
    job: &Job,
    place: Option<u64>,
) -> Result<u64, StoreError> {
    let level = job.priority as usize;
    let mut rounds = tx.counters.rounds[level];
    let mut enters = |turn: &mut Turn| place.unwrap_or_else(|| rounds.enters(turn));
    let place = match job.owner.as_deref() {
        None => {
            let mut turn = tx.counters.rounds[level].nobody;
            let place = enters(&mut turn);
            rounds.nobody = turn;
            place
        }
        owner => {
            let mut given = 0;
            change(tx, owner, |load| {
                load.queued += 1;
                load.queued_bytes += job.weight;
                given = enters(&mut load.turns[level]);
            })?;
            given
        }
    };
    tx.counters.rounds[level] = rounds;
    Ok(place)
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

/// The job no longer waits at its place.
pub(super) fn dequeued<S: Store>(
    tx: &mut Transaction<S>,
    job: &Job,
    place: u64,
) -> Result<(), StoreError> {
    let level = job.priority as usize;
    let mut rounds = tx.counters.rounds[level];
    let mut leaves = |turn: &mut Turn| {
        if rounds.have(place) {
            rounds.leaves(turn);
        }
    };
    match job.owner.as_deref() {
        None => {
            let mut turn = tx.counters.rounds[level].nobody;
            leaves(&mut turn);
            rounds.nobody = turn;
        }
        owner => change(tx, owner, |load| {
            load.queued = load.queued.saturating_sub(1);
            load.queued_bytes = load.queued_bytes.saturating_sub(job.weight);
            leaves(&mut load.turns[level]);
        })?,
    }
    tx.counters.rounds[level] = rounds;
    Ok(())
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
