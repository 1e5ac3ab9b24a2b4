//! Many jobs at once: submit them together, wait for some of them, cancel them; and the queue that they wait in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use quorun_ledger::{
    Command, Counters, IdempotencyKey, Job, JobFilter, JobId, JobSpec, JobState, Rejection, Reply,
    Submission,
};
use tracing::info;

use super::{Accepted, Error, Jobs, Place};
use crate::insight::Rates;
use crate::ledger;

/// Commands that one request has under way at one time.
const AT_ONCE: usize = 64;

/// What a wait for several jobs is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// All of them have finished.
    All,
    /// One of them has.
    Any,
}

/// How several jobs stand.
#[derive(Debug)]
pub struct Waited {
    /// What was waited for has come.
    pub done: bool,
    /// The jobs in the order in which they were named; `None` for one that is not there.
    pub jobs: Vec<(JobId, Option<Job>)>,
}

/// What came of cancelling by a filter.
#[derive(Debug)]
pub struct Swept {
    /// Jobs that were cancelled.
    pub cancelled: u32,
    /// Jobs that ended before they could be.
    pub finished_before: u32,
    /// Where to go on, if there may be more.
    pub next: Option<JobId>,
}

/// The queue, and what works on it.
#[derive(Debug)]
pub struct Queue {
    /// The ledger's own figures.
    pub counters: Counters,
    /// For each level when its oldest job was submitted, Unix milliseconds.
    pub oldest: [Option<u64>; 3],
    /// For each level how many go before a job of whoever asks, at most, if it entered now.
    pub ahead: [u64; 3],
    /// Slots of the nodes that take work.
    pub slots: u64,
    /// Those that are free.
    pub free: u64,
    /// How fast it goes.
    pub rates: Rates,
}

/// The idempotency key of one job of a batch, from that of the batch. No key that a client can send has such a byte in it.
#[must_use]
pub fn key_of_item(batch: &str, item: usize) -> String {
    format!("{batch}\0{item}")
}

/// How long a job with so many before it may wait, at the rate of the last minute; `None` if nothing was begun in it.
#[must_use]
pub fn wait_estimate(ahead: u64, rates: Rates) -> Option<Duration> {
    if rates.started <= 0.0 {
        return None;
    }
    #[allow(clippy::cast_precision_loss)] // an estimate
    let seconds = (ahead + 1) as f64 / rates.started;
    Some(Duration::from_secs_f64(seconds.min(1e9)))
}

impl Place {
    /// The request turned out to bring so many jobs.
    pub fn jobs_are(&mut self, jobs: u64) {
        let more = jobs.saturating_sub(self.jobs);
        self.jobs += more;
        self.under_way
            .0
            .fetch_add(more, std::sync::atomic::Ordering::Relaxed);
    }

    fn own_all(&self, jobs: &mut [(JobSpec, Option<IdempotencyKey>)]) {
        for (spec, _) in jobs {
            self.own(spec);
        }
    }
}

impl Jobs {
    /// Submits several jobs, all of them or none. Goes on to its end when the caller goes away.
    ///
    /// # Errors
    /// When the cluster did not take them, or did not confirm it.
    pub async fn submit_all(
        &self,
        place: Place,
        mut jobs: Vec<(JobSpec, Option<IdempotencyKey>)>,
    ) -> Result<Vec<Accepted>, Error> {
        place.own_all(&mut jobs);
        let inner = Arc::clone(&self.inner);
        inner.metrics.http.since(place.began);
        let task = tokio::spawn(async move {
            let submissions: Vec<Submission> = jobs
                .into_iter()
                .map(|(spec, key)| Submission {
                    id: JobId::new(uuid::Uuid::now_v7()),
                    spec,
                    key,
                })
                .collect();
            for Submission { spec, key, .. } in &submissions {
                inner.offered(spec, key.as_ref()).await?;
            }
            let watches: Vec<_> = submissions
                .iter()
                .map(|submission| (submission.id, inner.watchers.watch(submission.id)))
                .collect();
            let Some((first, _)) = watches.first() else {
                return Ok(Vec::new());
            };
            let first = *first;
            let command = Command::submit_all(submissions);
            let submitted = match inner.propose(command, first).await? {
                Reply::SubmittedAll { jobs } if jobs.len() == watches.len() => {
                    let count = jobs.len();
                    info!(%first, count, "batch accepted");
                    jobs.into_iter()
                        .zip(watches)
                        .map(|(taken, (id, watch))| {
                            inner.metrics.accepted(taken.joined && taken.job != id);
                            Accepted {
                                job: taken.job,
                                watch: (taken.job == id).then_some(watch),
                            }
                        })
                        .collect()
                }
                Reply::Rejected(Rejection::KeyConflict { job }) => {
                    return Err(Error::KeyConflict { job });
                }
                Reply::Rejected(rejection) => {
                    let owner = place.owner.as_ref();
                    let error = Error::of_queue(&rejection, owner, inner.come_again());
                    return Err(error.unwrap_or(Error::Unknown { job: first }));
                }
                _ => return Err(Error::Unknown { job: first }),
            };
            drop(place);
            Ok(submitted)
        });
        let submitted = task.await.unwrap_or(Err(Error::Stopped));
        if let Err(error) = &submitted {
            self.inner.metrics.not_taken(error);
        }
        submitted
    }

    /// Submits several jobs, each by itself. Goes on to its end when the caller goes away.
    ///
    /// # Errors
    /// When the node ends.
    pub async fn submit_each(
        &self,
        place: Place,
        mut jobs: Vec<(JobSpec, Option<IdempotencyKey>)>,
    ) -> Result<Vec<Result<Accepted, Error>>, Error> {
        place.own_all(&mut jobs);
        let inner = Arc::clone(&self.inner);
        inner.metrics.http.since(place.began);
        let task = tokio::spawn(async move {
            // All at once: the proposer makes batches of what is there, in this order.
            let submitted = join_all(jobs.into_iter().map(|(spec, key)| inner.submit(spec, key)));
            let submitted = submitted.await;
            for error in submitted.iter().filter_map(|item| item.as_ref().err()) {
                inner.metrics.not_taken(error);
            }
            drop(place);
            submitted
        });
        task.await.map_err(|_| Error::Stopped)
    }

    /// Waits until all, or any, of several jobs have finished, at most until `deadline` or until `ending`. Who is not there
    /// is not waited for, and who is not `only`'s is not there.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    pub async fn wait_for(
        &self,
        ids: Vec<JobId>,
        only: Option<&str>,
        until: Until,
        deadline: Instant,
        ending: impl Future<Output = ()>,
    ) -> Result<Waited, Error> {
        // Watched before they are looked at, so that no end is missed.
        let mut watches: Vec<_> = ids.iter().map(|id| (*id, self.watch(*id))).collect();
        self.inner.linearize().await?;
        let mut known = self.records(&ids, only).await?;
        let finished =
            |job: &Option<Job>| job.as_ref().is_none_or(|j| j.state == JobState::Finished);
        watches.retain(|(id, _)| !known.get(id).is_none_or(finished));
        let any_finished = known
            .values()
            .flatten()
            .any(|j| j.state == JobState::Finished);
        if !(until == Until::Any && any_finished) {
            let mut waiting: FuturesUnordered<_> = watches
                .iter_mut()
                .map(|(id, watch)| async { self.end_of(*id, watch).await }.boxed())
                .collect();
            let ends = async {
                while let Some(ended) = waiting.next().await {
                    match ended {
                        // Purged: who is not there is not waited for.
                        Ok(_) | Err(Error::NotFound(_)) => {}
                        Err(error) => return Err(error),
                    }
                    if until == Until::Any {
                        break;
                    }
                }
                Ok::<_, Error>(())
            };
            tokio::select! {
                ended = tokio::time::timeout_at(deadline.into(), ends) => ended.unwrap_or(Ok(()))?,
                () = ending => {}
            }
            // What has finished while others were waited for shows, too.
            known = self.records(&ids, only).await?;
        }
        let mut ended = known
            .values()
            .flatten()
            .map(|j| j.state == JobState::Finished);
        let done = match until {
            Until::All => ended.all(|ended| ended),
            Until::Any => ended.any(|ended| ended) || known.values().all(Option::is_none),
        };
        let jobs = ids
            .into_iter()
            .map(|id| (id, known.remove(&id).flatten()))
            .collect();
        Ok(Waited { done, jobs })
    }

    /// The records of several jobs, as this node has them. Whose is not `only`'s has none.
    async fn records(
        &self,
        ids: &[JobId],
        only: Option<&str>,
    ) -> Result<HashMap<JobId, Option<Job>>, Error> {
        let ids = ids.to_vec();
        let only = only.map(ToOwned::to_owned);
        let records = ledger::read(&self.inner.consensus, move |view| {
            let seen = |job: &Job| only.is_none() || job.owner == only;
            ids.iter()
                .map(|id| Ok((*id, view.job(*id)?.filter(seen))))
                .collect()
        });
        Ok(records.await?)
    }

    /// Cancels several jobs, and says for each what became of it. Those that are not `only`'s are not there, and nothing is
    /// proposed for them.
    ///
    /// # Errors
    /// When the cluster cannot be asked whose they are.
    pub async fn cancel_all(
        &self,
        ids: Vec<JobId>,
        only: Option<&str>,
    ) -> Result<Vec<(JobId, Result<(), Error>)>, Error> {
        let known = match only {
            None => None,
            Some(_) => {
                self.inner.linearize().await?;
                Some(self.records(&ids, only).await?)
            }
        };
        let is_there = |id: &JobId| {
            let records = known.as_ref();
            records.is_none_or(|known| known.get(id).is_some_and(Option::is_some))
        };
        let outcomes = futures::stream::iter(ids)
            .map(|id| {
                let is_there = is_there(&id);
                async move {
                    let outcome = match is_there {
                        true => self.inner.cancel(id).await,
                        false => Err(Error::NotFound(id)),
                    };
                    (id, outcome)
                }
            })
            .buffered(AT_ONCE);
        Ok(outcomes.collect().await)
    }

    /// Cancels what a filter admits, at most `limit` jobs.
    ///
    /// # Errors
    /// When the cluster cannot be asked, or did not confirm.
    pub async fn sweep(
        &self,
        filter: JobFilter,
        behind: Option<JobId>,
        limit: usize,
    ) -> Result<Swept, Error> {
        let page = self.list(filter, behind, limit, false).await?;
        let mut swept = Swept {
            cancelled: 0,
            finished_before: 0,
            next: page.next,
        };
        let ids = page.jobs.iter().map(|job| job.id).collect();
        // The filter has said already whose they are.
        for (_, outcome) in self.cancel_all(ids, None).await? {
            match outcome {
                Ok(()) => swept.cancelled += 1,
                // It has ended, or is even gone.
                Err(Error::AlreadyFinished(_) | Error::NotFound(_)) => swept.finished_before += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(swept)
    }

    /// The queue, for an owner or for those without one. Linearizable unless `stale`.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    pub async fn queue(&self, owner: Option<String>, stale: bool) -> Result<Queue, Error> {
        if !stale {
            self.inner.linearize().await?;
        }
        let read = ledger::read(&self.inner.consensus, move |view| {
            let ahead = view.ahead_of_new(owner.as_deref())?;
            let (counters, oldest) = (view.counters()?, view.oldest_waiting()?);
            Ok((counters, oldest, ahead, view.nodes()?))
        });
        let (counters, oldest, ahead, nodes) = read.await?;
        let working = || nodes.iter().filter(|node| !node.lost && !node.draining);
        Ok(Queue {
            counters,
            oldest,
            ahead,
            slots: working().map(|node| u64::from(node.slots)).sum(),
            free: working()
                .map(|node| u64::from(node.slots.saturating_sub(node.busy)))
                .sum(),
            rates: self.inner.throughput.rates(Instant::now()),
        })
    }
}

impl super::Inner {
    /// Proposes that a job is cancelled.
    pub(super) async fn cancel(&self, job: JobId) -> Result<(), Error> {
        match self.propose(Command::Cancel { job }, job).await? {
            Reply::Cancelled => Ok(()),
            Reply::Rejected(Rejection::UnknownJob) => Err(Error::NotFound(job)),
            Reply::Rejected(Rejection::AlreadyFinished) => Err(Error::AlreadyFinished(job)),
            _ => Err(Error::Unknown { job }),
        }
    }
}
