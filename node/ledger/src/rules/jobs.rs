//! The steps of a job's life that several rules share. Each keeps the counters and the indexes true.

use crate::event::Event;
use crate::job::{Job, JobResult, JobState};
use crate::keys;
use crate::node::NodeId;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;

use super::{callback, expire, owners};

/// Queues a job that is new, behind all others of its owner in its level; where owners have no turns, behind all others.
pub(super) fn enqueue_back<S: Store>(tx: &mut Transaction<S>, job: Job) -> Result<(), StoreError> {
    let order = if tx.counters.rounds(job.priority).have_begun() {
        None
    } else {
        Some(tx.counters.place_behind(job.priority))
    };
    let job = enqueue(tx, job, order)?;
    tx.put_new(keys::job(job.id), &job);
    Ok(())
}

/// Queues a job before all others of its level.
fn enqueue_front<S: Store>(tx: &mut Transaction<S>, job: Job) -> Result<(), StoreError> {
    let order = tx.counters.place_before(job.priority);
    let job = enqueue(tx, job, Some(order))?;
    tx.put(keys::job(job.id), &job)
}

/// Queues a job at a place, or at its owner's next one; the caller writes its record.
fn enqueue<S: Store>(
    tx: &mut Transaction<S>,
    mut job: Job,
    order: Option<u64>,
) -> Result<Job, StoreError> {
    job.state = JobState::Queued;
    tx.counters
        .enters_queue(&job.language, job.priority, job.weight);
    let order = owners::queued(tx, &job, order)?;
    job.order = Some(order);
    tx.put_new(tx.counters.queued(&job, order), &job.id);
    tx.events.push(Event::Queued { job: job.id });
    Ok(job)
}

/// Takes a queued job out of the queue, and says at which place it was; the caller writes its record.
fn dequeue<S: Store>(tx: &mut Transaction<S>, job: &mut Job) -> Result<u64, StoreError> {
    let order = job.order.take().ok_or_else(|| {
        StoreError::Inconsistent(format!("job {} is queued but has no place", job.id))
    })?;
    tx.counters
        .leaves_queue(&job.language, job.priority, job.weight);
    owners::dequeued(tx, job, order)?;
    tx.remove(tx.counters.queued(job, order))?;
    Ok(order)
}

/// Gives the job whose turn it is to a node, see [`start`]; `first` is the first place that is taken in its level.
pub(super) fn serve<S: Store>(
    tx: &mut Transaction<S>,
    job: Job,
    node: NodeId,
    first: u64,
) -> Result<u32, StoreError> {
    // Not where somebody is served out of turn: those who come afterwards would be behind all that were passed over.
    if let Some(order) = job.order {
        tx.counters.rounds_mut(job.priority).served(order, first);
    }
    start(tx, job, node)
}

/// Gives a queued job to a node as its next attempt. The caller has checked that the node has room.
pub(super) fn start<S: Store>(
    tx: &mut Transaction<S>,
    mut job: Job,
    node: NodeId,
) -> Result<u32, StoreError> {
    dequeue(tx, &mut job)?;
    tx.counters.served(job.priority);
    job.state = JobState::Running;
    job.attempt += 1;
    job.node = Some(node);
    job.started_ms = Some(tx.counters.time_ms);
    tx.counters.running += 1;
    tx.counters.turn = node;
    let incarnation = match tx.node_mut(node) {
        Some(record) => {
            record.busy += 1;
            record.incarnation
        }
        None => return Err(StoreError::Inconsistent(format!("no node {node}"))),
    };
    // It may be there: the slot of a cancelled job outlives the job itself, if that expires, and the id may come again.
    tx.put(keys::attempt(node, job.id), &job.attempt)?;
    tx.put(keys::job(job.id), &job)?;
    tx.events.push(Event::Assigned {
        job: job.id,
        attempt: job.attempt,
        node,
        incarnation,
    });
    Ok(job.attempt)
}

/// Frees the slot that a job's attempt holds.
pub(super) fn free_slot<S: Store>(
    tx: &mut Transaction<S>,
    node: NodeId,
    job: crate::job::JobId,
) -> Result<(), StoreError> {
    tx.remove(keys::attempt(node, job))?;
    if let Some(record) = tx.node_mut(node) {
        record.busy = record.busy.saturating_sub(1);
    }
    Ok(())
}

/// Ends a job with its result, for ever. Slots are the caller's business.
pub(super) fn finish<S: Store>(
    tx: &mut Transaction<S>,
    mut job: Job,
    result: JobResult,
) -> Result<(), StoreError> {
    match job.state {
        JobState::Queued => dequeue(tx, &mut job).map(drop)?,
        JobState::Running => tx.counters.running -= 1,
        JobState::Finished => {
            return Err(StoreError::Inconsistent(format!(
                "job {} ends twice",
                job.id
            )));
        }
    }
    owners::finished(tx, &job)?;
    job.state = JobState::Finished;
    job.finished_ms = Some(tx.counters.time_ms);
    let weights = tx.counters.weights;
    job.weight += weights.of_result(&result.outcome, &result.output);
    job.outcome = Some(result.outcome);
    tx.counters.finished += 1;
    if let Some(expires) = job.expires_ms() {
        tx.put_new(keys::expiry(expires, job.id), &());
    }
    expire::kept(tx, &job, job.callback)?;
    tx.put_new(keys::output(job.id), &result.output);
    tx.put(keys::job(job.id), &job)?;
    tx.events.push(Event::Finished { job: job.id });
    callback::due(tx, &job)
}

/// What happens to a running job whose attempt came to nothing: back to the front of the queue, or, when its attempts
/// are used up, the end. The slot has been freed.
pub(super) fn retry<S: Store>(
    tx: &mut Transaction<S>,
    mut job: Job,
    why: &str,
) -> Result<(), StoreError> {
    if job.attempt >= job.max_attempts {
        let message = format!(
            "gave up after {} of {} attempts; the last one: {why}",
            job.attempt, job.max_attempts
        );
        return finish(tx, job, JobResult::internal_error(message));
    }
    tx.counters.running -= 1;
    job.node = None;
    job.started_ms = None;
    enqueue_front(tx, job)
}
