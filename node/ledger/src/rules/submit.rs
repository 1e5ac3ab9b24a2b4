//! Accepting jobs.

use std::collections::BTreeMap;

use crate::command::{IdempotencyKey, QueueBound, Rejection, Reply, Submission, Taken};
use crate::job::{Job, JobId, JobSpec, JobState};
use crate::keys;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;
use crate::view::KeyRecord;

use super::{callback, jobs, owners};

/// A submission is taken once: the same id is the same proposal come twice, the same key with the same fingerprint a
/// client's retry; both join the first job, however full the queue is. The same key with another fingerprint is a mistake
/// of the client. Both are looked up among the jobs of the same owner.
pub(super) fn submit<S: Store>(
    tx: &mut Transaction<S>,
    id: JobId,
    spec: &JobSpec,
    key: Option<IdempotencyKey>,
    queue: Option<QueueBound>,
) -> Result<Reply, StoreError> {
    match earlier(tx, id, spec, key.as_ref())? {
        Ok(Some(job)) => return Ok(Reply::Submitted { job, joined: true }),
        Ok(None) => {}
        Err(rejection) => return Ok(Reply::Rejected(rejection)),
    }
    let weight = weigh(tx, spec, key.as_ref());
    let (jobs, bytes) = (tx.counters.queued, tx.counters.queued_bytes);
    if let Some(rejection) = queue.and_then(|bound| bound.refuses(jobs, bytes, weight)) {
        return Ok(Reply::Rejected(rejection));
    }
    if let Some(owner) = &spec.owner
        && let Some(rejection) = owners::refuses_all(tx, owner, 1, weight, queue)?
    {
        return Ok(Reply::Rejected(rejection));
    }
    accept(tx, id, spec, key, weight)?;
    Ok(Reply::Submitted {
        job: id,
        joined: false,
    })
}

/// What several submissions bring that are not joined: jobs, and their weight.
#[derive(Clone, Copy, Debug, Default)]
struct Brought {
    jobs: u64,
    weight: u64,
}

impl Brought {
    const fn add(&mut self, weight: u64) {
        self.jobs += 1;
        self.weight = self.weight.saturating_add(weight);
    }
}

/// All of several submissions, or none: nothing is written before it is clear that every one of them is joined or has room,
/// in the queue and among what its owner may have.
pub(super) fn submit_all<S: Store>(
    tx: &mut Transaction<S>,
    submissions: Vec<Submission>,
    queue: Option<QueueBound>,
) -> Result<Reply, StoreError> {
    let mut brought = Brought::default();
    let mut owners = BTreeMap::new();
    let mut keys = BTreeMap::new();
    for Submission { id, spec, key } in &submissions {
        if let Some(key) = key {
            let of_owner = (spec.owner_name(), &key.key);
            let (job, fingerprint) = *keys.entry(of_owner).or_insert((*id, key.fingerprint));
            if fingerprint != key.fingerprint {
                return Ok(Reply::Rejected(Rejection::KeyConflict { job }));
            }
        }
        match earlier(tx, *id, spec, key.as_ref())? {
            Ok(Some(_)) => {}
            Ok(None) => {
                let weight = weigh(tx, spec, key.as_ref());
                brought.add(weight);
                if let Some(owner) = &spec.owner {
                    let (_, of_owner) = owners
                        .entry(owner.name.as_str())
                        .or_insert((owner, Brought::default()));
                    of_owner.add(weight);
                }
            }
            Err(rejection) => return Ok(Reply::Rejected(rejection)),
        }
    }
    let (queued, bytes) = (tx.counters.queued, tx.counters.queued_bytes);
    let Brought { jobs: more, weight } = brought;
    if more > 0
        && let Some(rejection) =
            queue.and_then(|bound| bound.refuses_all(queued, bytes, more, weight))
    {
        return Ok(Reply::Rejected(rejection));
    }
    for (owner, Brought { jobs: more, weight }) in owners.into_values() {
        if let Some(rejection) = owners::refuses_all(tx, owner, more, weight, queue)? {
            return Ok(Reply::Rejected(rejection));
        }
    }
    let mut jobs = Vec::with_capacity(submissions.len());
    for Submission { id, spec, key } in submissions {
        // Asked once more: two of them may be the same.
        let taken = match earlier(tx, id, &spec, key.as_ref())? {
            Ok(Some(job)) => Taken { job, joined: true },
            Ok(None) => {
                let weight = weigh(tx, &spec, key.as_ref());
                accept(tx, id, &spec, key, weight)?;
                Taken {
                    job: id,
                    joined: false,
                }
            }
            Err(rejection) => {
                return Err(StoreError::Inconsistent(format!(
                    "a submission was refused after it was found sound: {rejection}"
                )));
            }
        };
        jobs.push(taken);
    }
    Ok(Reply::SubmittedAll { jobs })
}

fn weigh<S>(tx: &Transaction<S>, spec: &JobSpec, key: Option<&IdempotencyKey>) -> u64 {
    let key = key.map(|key| key.key.as_str());
    tx.counters.weights.of_submission(spec, key)
}

/// The job that a submission joins, if there is one; or that its key belongs to another.
fn earlier<S: Store>(
    tx: &Transaction<S>,
    id: JobId,
    spec: &JobSpec,
    key: Option<&IdempotencyKey>,
) -> Result<Result<Option<JobId>, Rejection>, StoreError> {
    if tx.view().job(id)?.is_some() {
        return Ok(Ok(Some(id)));
    }
    // The proposal of a job that has come to its end, and was purged.
    if tx.counters.purged > 0 && tx.view().was_purged(id)? {
        return Ok(Ok(Some(id)));
    }
    let Some(key) = key else {
        return Ok(Ok(None));
    };
    Ok(match tx.view().key(spec.owner_name(), &key.key)? {
        Some(first) if first.fingerprint == key.fingerprint => Ok(Some(first.job)),
        Some(first) => Err(Rejection::KeyConflict { job: first.job }),
        None => Ok(None),
    })
}

/// Takes in a job which is not there, nor is its key, as [`earlier`] has found.
fn accept<S: Store>(
    tx: &mut Transaction<S>,
    id: JobId,
    spec: &JobSpec,
    key: Option<IdempotencyKey>,
    weight: u64,
) -> Result<(), StoreError> {
    if let Some(owner) = &spec.owner {
        owners::accepted(tx, &owner.name, id)?;
    }
    if let Some(key) = &key {
        let record = KeyRecord {
            job: id,
            fingerprint: key.fingerprint,
        };
        tx.put_new(keys::idempotency(spec.owner_name(), &key.key), &record);
    }
    tx.put_new(keys::spec(id), spec);
    if let Some(callback) = &spec.callback {
        callback::wanted(tx, id, callback)?;
    }
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
        owner: spec.owner_name().map(ToOwned::to_owned),
        retention_ms: spec.retention_ms,
        weight,
        priority: spec.priority,
        callback: spec.callback.is_some(),
        compile_args: !spec.compile_args.is_empty(),
    };
    jobs::enqueue_back(tx, job)
}
