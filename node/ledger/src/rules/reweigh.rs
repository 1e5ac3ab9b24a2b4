//! Weighing the jobs anew that an earlier version has weighed by their payload, see [`crate::weight`].

use crate::callback::DeliveryState;
use crate::command::Reply;
use crate::job::{Job, JobState};
use crate::keys;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;
use crate::view::{self, Ages};
use crate::weight::{self, Weights};

use super::BY_RECORDS;
use super::expire::{self, behind};
use super::owners;

/// No more is begun by one command once it has looked at so much, bytes: every job has to be read as a whole.
const AT_ONCE: u64 = 4 << 20;

/// From the first of these on, whatever comes is weighed by its records; each weighs a part of those anew that there were
/// before. What a job weighs then is what it would weigh had it come later, so it does no harm to look at one that did.
pub(super) fn reweigh<S: Store>(tx: &mut Transaction<S>, limit: u32) -> Result<Reply, StoreError> {
    if tx.counters.ages != Ages::Kept {
        return Ok(Reply::Reweighed { jobs: 0 });
    }
    // One may come late, when later rules have begun.
    tx.counters.rules = tx.counters.rules.max(BY_RECORDS);
    let (mut from, to) = keys::jobs();
    let last = match tx.counters.weights {
        Weights::Records => return Ok(Reply::Reweighed { jobs: 0 }),
        Weights::Begun { seen, last } => {
            from = behind(seen);
            last
        }
        Weights::Payload => match tx.last(&from, &to)? {
            Some((key, value)) => view::decode::<Job>(&key, &value)?.id,
            None => {
                tx.counters.weights = Weights::Records;
                return Ok(Reply::Reweighed { jobs: 0 });
            }
        },
    };
    let to = behind(last);
    let (mut jobs, mut bytes) = (0, 0);
    while jobs < limit && bytes < AT_ONCE {
        let Some((key, value)) = tx.first(&from, &to)? else {
            tx.counters.weights = Weights::Records;
            break;
        };
        let job: Job = view::decode(&key, &value)?;
        let seen = job.id;
        // Before the job, which is counted by it.
        tx.counters.weights = Weights::Begun { seen, last };
        bytes += anew(tx, job)?;
        from = behind(seen);
        jobs += 1;
    }
    Ok(Reply::Reweighed { jobs })
}

/// Gives a job the weight that it has by its records, and returns that.
fn anew<S: Store>(tx: &mut Transaction<S>, mut job: Job) -> Result<u64, StoreError> {
    let view = tx.view();
    let Some(spec) = view.spec(job.id)? else {
        return Err(StoreError::Inconsistent(format!(
            "of job {} it is not there what was submitted",
            job.id
        )));
    };
    let mut weight = weight::of_submission(&spec, job.key.as_deref());
    if let Some(outcome) = &job.outcome {
        let output = view.output(job.id)?.unwrap_or_default();
        weight += weight::of_result(outcome, &output);
    }
    let delivery = view.delivery(job.id)?;
    let attempts = delivery.iter().flat_map(|delivery| &delivery.attempts);
    weight += attempts.map(weight::of_attempt).sum::<u64>();
    let old = job.weight;
    match job.state {
        JobState::Queued => {
            job.weight = weight;
            let counters = &mut tx.counters;
            counters.weighed_anew(&job.language, job.priority, old, weight);
            owners::weighed_anew(tx, &job, old)?;
        }
        JobState::Running => job.weight = weight,
        JobState::Finished => {
            let pending = |delivery: &crate::Delivery| delivery.state == DeliveryState::Pending;
            expire::no_longer_kept(tx, &job)?;
            job.weight = weight;
            expire::kept(tx, &job, delivery.as_ref().is_some_and(pending))?;
        }
    }
    tx.put(keys::job(job.id), &job)?;
    Ok(weight)
}
