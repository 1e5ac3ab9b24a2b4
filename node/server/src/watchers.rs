//! Who waits for news of a job on this node.
//!
//! A watcher is told that something about its job changed, not what: it reads the ledger, which is the truth. So a
//! notice that is missed, merged or repeated does no harm, and after a snapshot everybody is simply told to look.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quorun_ledger::JobId;
use tokio::sync::watch;

type Watched = HashMap<JobId, (watch::Sender<News>, usize)>;

/// How often something was told of a job.
#[derive(Clone, Copy, Debug, Default)]
struct News {
    /// That it has changed in some way.
    changes: u64,
    /// That it has finished, or may have.
    ends: u64,
    /// Since when its end is there to be seen.
    finished: Option<Instant>,
}

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
            .or_insert_with(|| (watch::Sender::new(News::default()), 0));
        *count += 1;
        let seen = *sender.borrow();
        Watch {
            job,
            seen,
            news: sender.subscribe(),
            jobs: Arc::clone(&self.jobs),
        }
    }

    /// Tells the watchers of a job to look.
    pub fn changed(&self, job: JobId) {
        self.tell(job, |news| news.changes += 1);
    }

    /// Tells the watchers of a job that it has finished, as the ledger shows since `at`.
    pub fn finished(&self, job: JobId, at: Instant) {
        self.tell(job, |news| {
            news.changes += 1;
            news.ends += 1;
            news.finished = Some(at);
        });
    }

    fn tell(&self, job: JobId, news: impl FnOnce(&mut News)) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((sender, _)) = jobs.get(&job) {
            sender.send_modify(news);
        }
    }

    /// Tells everybody to look.
    pub fn all_changed(&self) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for (sender, _) in jobs.values() {
            sender.send_modify(|news| {
                news.changes += 1;
                news.ends += 1;
            });
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
    news: watch::Receiver<News>,
    /// What was known when this watch last looked.
    seen: News,
    jobs: Arc<Mutex<Watched>>,
}

impl Watch {
    /// Waits until something has changed since the last call, or since the watch began.
    pub async fn changed(&mut self) {
        let before = self.seen.changes;
        self.wait(|news| news.changes != before).await;
    }

    /// Waits until the job has finished, or may have, since the last call, or since the watch began. Whoever waits for
    /// nothing else is not woken by the rest.
    pub async fn ended(&mut self) {
        let before = self.seen.ends;
        self.wait(|news| news.ends != before).await;
    }

    async fn wait(&mut self, until: impl FnMut(&News) -> bool) {
        // The sender lives in the map as long as this watch is counted there.
        if let Ok(news) = self.news.wait_for(until).await {
            self.seen = *news;
        }
    }

    /// Since when the end of the job is there to be seen, if that was told.
    pub fn finished(&self) -> Option<Instant> {
        self.news.borrow().finished
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
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_the_end_is_not_told_of_the_rest() {
        let watchers = Watchers::default();
        let job = JobId::new(uuid::Uuid::now_v7());
        let mut watch = watchers.watch(job);
        watchers.changed(job);
        assert!(watch.ended().now_or_never().is_none());
        watchers.finished(job, Instant::now());
        watch.ended().await;
        assert!(watch.ended().now_or_never().is_none());
        assert!(
            watch.changed().now_or_never().is_none(),
            "it was told already"
        );
        watchers.all_changed();
        watch.ended().await;
    }

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
