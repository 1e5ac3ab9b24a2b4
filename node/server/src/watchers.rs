//! Who waits for news of a job on this node.
//!
//! A watcher is told that something about its job changed, not what: it reads the ledger, which is the truth. So a
//! notice that is missed, merged or repeated does no harm, and after a snapshot everybody is simply told to look.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quorun_ledger::JobId;
use tokio::sync::watch;

/// How often something has changed, and since when the end of the job is there to be seen.
type News = (u64, Option<Instant>);
type Watched = HashMap<JobId, (watch::Sender<News>, usize)>;

/// The watchers of all jobs.
#[derive(Clone, Debug, Default)]
pub struct Watchers {
    jobs: Arc<Mutex<Watched>>,
}

impl Watchers {
    /// Starts to watch a job, whether or not it exists yet.
    #[must_use]
    pub fn watch(&self, job: JobId) -> Watch {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let (sender, count) = jobs
            .entry(job)
            .or_insert_with(|| (watch::Sender::new((0, None)), 0));
        *count += 1;
        Watch {
            job,
            changes: sender.subscribe(),
            jobs: Arc::clone(&self.jobs),
        }
    }

    /// Tells the watchers of a job to look.
    pub fn changed(&self, job: JobId) {
        self.tell(job, None);
    }

    /// Tells the watchers of a job that it has finished, as the ledger shows since `at`.
    pub fn finished(&self, job: JobId, at: Instant) {
        self.tell(job, Some(at));
    }

    fn tell(&self, job: JobId, finished: Option<Instant>) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((sender, _)) = jobs.get(&job) {
            sender.send_modify(|(count, end)| {
                *count += 1;
                *end = finished.or(*end);
            });
        }
    }

    /// Tells everybody to look.
    pub fn all_changed(&self) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for (sender, _) in jobs.values() {
            sender.send_modify(|(count, _)| *count += 1);
        }
    }

    /// How many jobs are watched.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

/// One watcher of one job; ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    job: JobId,
    changes: watch::Receiver<News>,
    jobs: Arc<Mutex<Watched>>,
}

impl Watch {
    /// Waits until something has changed since the last call, or since the watch began.
    pub async fn changed(&mut self) {
        // The sender lives in the map as long as this watch is counted there.
        let _ = self.changes.changed().await;
    }

    /// Since when the end of the job is there to be seen, if that was told.
    pub fn finished(&self) -> Option<Instant> {
        self.changes.borrow().1
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, count)) = jobs.get_mut(&self.job) {
            *count -= 1;
            if *count == 0 {
                jobs.remove(&self.job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_sees_what_came_before_it_was_asked_and_leaves_nothing_behind() {
        let watchers = Watchers::default();
        let job = JobId::new(uuid::Uuid::now_v7());
        let mut first = watchers.watch(job);
        let second = watchers.watch(job);
        watchers.changed(job);
        first.changed().await;
        watchers.all_changed();
        first.changed().await;
        assert_eq!(watchers.len(), 1);
        drop(first);
        drop(second);
        assert_eq!(watchers.len(), 0);
        watchers.changed(job);
    }
}
