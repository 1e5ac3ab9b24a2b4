//! Deliveries: made with the job, due when it finishes, settled by what their attempts came to.

use crate::callback::{
    Callback, Delivery, DeliveryAttempt, DeliveryState, MAX_ATTEMPTS, MAX_ON_DEMAND,
};
use crate::command::{Completion, Rejection, Reply};
use crate::event::Event;
use crate::job::{Job, JobId};
use crate::keys;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;

use super::expire;

/// A job was accepted whose end somebody wants to be told of.
pub(super) fn wanted<S: Store>(
    tx: &mut Transaction<S>,
    job: JobId,
    callback: &Callback,
) -> Result<(), StoreError> {
    let delivery = Delivery {
        url: callback.url.clone(),
        state: DeliveryState::Waiting,
        due_ms: None,
        attempts: Vec::new(),
    };
    tx.put(keys::delivery(job), &delivery)
}

/// The job has finished.
pub(super) fn due<S: Store>(tx: &mut Transaction<S>, job: &Job) -> Result<(), StoreError> {
    if !job.callback {
        return Ok(());
    }
    let Some(mut delivery) = tx.view().delivery(job.id)? else {
        return Err(StoreError::Inconsistent(format!(
            "job {} has a callback but no delivery",
            job.id
        )));
    };
    delivery.state = DeliveryState::Pending;
    schedule(tx, job.id, delivery, tx.counters.time_ms)?;
    tx.events.push(Event::CallbackDue { job: job.id });
    Ok(())
}

fn schedule<S: Store>(
    tx: &mut Transaction<S>,
    job: JobId,
    mut delivery: Delivery,
    due_ms: u64,
) -> Result<(), StoreError> {
    delivery.due_ms = Some(due_ms);
    tx.put(keys::due(due_ms, job), &delivery.host())?;
    tx.put(keys::delivery(job), &delivery)
}

/// An attempt has ended. It counts if it is the next one: two leaders may have sent the same, and a proposal may come twice.
pub(super) fn tried<S: Store>(
    tx: &mut Transaction<S>,
    job: JobId,
    attempt: u32,
    outcome: DeliveryAttempt,
    retry_ms: Option<u64>,
) -> Result<Reply, StoreError> {
    let fenced = Ok(Reply::Completed(Completion::Fenced));
    let Some(mut delivery) = tx.view().delivery(job)? else {
        return fenced; // expired with its job
    };
    let next = u32::try_from(delivery.attempts.len() + 1).unwrap_or(u32::MAX);
    if delivery.state != DeliveryState::Pending || attempt != next {
        return fenced;
    }
    if let Some(due_ms) = delivery.due_ms.take() {
        tx.remove(keys::due(due_ms, job))?;
    }
    let delivered = outcome.delivered();
    let outcome = outcome.bounded();
    let weight = tx.counters.weights.of_attempt(&outcome);
    delivery.attempts.push(outcome);
    let may_be_tried = delivery.attempts.len() < MAX_ATTEMPTS;
    match retry_ms {
        _ if delivered => delivery.state = DeliveryState::Delivered,
        Some(pause) if may_be_tried => {
            let due_ms = tx.counters.time_ms.saturating_add(pause);
            schedule(tx, job, delivery, due_ms)?;
            grown(tx, job, weight, true)?;
            return Ok(Reply::Completed(Completion::Committed));
        }
        _ => delivery.state = DeliveryState::Failed,
    }
    tx.put(keys::delivery(job), &delivery)?;
    grown(tx, job, weight, false)?;
    Ok(Reply::Completed(Completion::Committed))
}

/// Somebody wants it to be sent now, however it stands: behind what was tried, and as often as is left of what it may be tried
/// by itself, but once at least. To be asked for the same again changes nothing.
pub(super) fn again<S: Store>(tx: &mut Transaction<S>, id: JobId) -> Result<Reply, StoreError> {
    if tx.view().job(id)?.is_none() {
        return Ok(Reply::Rejected(Rejection::UnknownJob));
    }
    let Some(mut delivery) = tx.view().delivery(id)? else {
        return Ok(Reply::Rejected(Rejection::NotDeliverable));
    };
    if delivery.state == DeliveryState::Waiting || delivery.attempts.len() >= MAX_ON_DEMAND {
        return Ok(Reply::Rejected(Rejection::NotDeliverable));
    }
    if let Some(due_ms) = delivery.due_ms.take() {
        tx.remove(keys::due(due_ms, id))?;
    }
    delivery.state = DeliveryState::Pending;
    schedule(tx, id, delivery, tx.counters.time_ms)?;
    grown(tx, id, 0, true)?;
    tx.events.push(Event::CallbackDue { job: id });
    Ok(Reply::CallbackDue)
}

/// The log of a job's delivery has become longer; whether it is still to be delivered.
fn grown<S: Store>(
    tx: &mut Transaction<S>,
    job: JobId,
    weight: u64,
    undelivered: bool,
) -> Result<(), StoreError> {
    if !tx.counters.weights.by_records() {
        return Ok(());
    }
    let Some(mut job) = tx.view().job(job)? else {
        return Err(StoreError::Inconsistent(format!(
            "job {job} has a delivery but no record"
        )));
    };
    expire::no_longer_kept(tx, &job)?;
    job.weight += weight;
    expire::kept(tx, &job, undelivered)?;
    tx.put(keys::job(job.id), &job)
}

/// The job is removed, and its delivery with it, however it stands.
pub(super) fn forget<S: Store>(tx: &mut Transaction<S>, job: &Job) -> Result<(), StoreError> {
    if !job.callback {
        return Ok(());
    }
    if let Some(due_ms) = tx.view().delivery(job.id)?.and_then(|d| d.due_ms) {
        tx.remove(keys::due(due_ms, job.id))?;
    }
    tx.remove(keys::delivery(job.id))
}
