//! What clients want of jobs, whatever surface they come through: submit, wait, look, list, cancel, follow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use quorun_consensus::{Handle, ProposeError, ReadError};
use quorun_executor::Stream as Std;
use quorun_ledger::{
    Command, IdempotencyKey, Job, JobFilter, JobId, JobPage, JobSpec, JobState, NodeId, Output,
    QueueBound, Rejection, Reply,
};
use tracing::info;

use crate::catalogue::{Catalogue, Refused};
use crate::disk_space::{DiskSpace, Low};
use crate::follow::{self, Followed};
use crate::ledger::{self, ReadFailed};
use crate::metrics::Metrics;
use crate::output::Outputs;
use crate::pressure::Held;
use crate::watchers::{Watch, Watchers};

/// How long a proposal or a linearizable read may take before the client is told to try again.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Why a request about jobs could not be met.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The idempotency key belongs to another request.
    #[error("the Idempotency-Key was used for job {job} with a different request")]
    KeyConflict {
        /// The job that has the key.
        job: JobId,
    },
    /// As many jobs wait as may.
    #[error("{jobs} jobs are waiting, which is the most that this cluster accepts")]
    QueueFull {
        /// Waiting jobs.
        jobs: u64,
        /// How many may wait.
        limit: u64,
    },
    /// The waiting jobs hold as much as they may.
    #[error(
        "the waiting jobs hold {bytes} bytes; with this one it would be more than the {limit} that this cluster keeps"
    )]
    QueueHeavy {
        /// What they hold.
        bytes: u64,
        /// What they may hold.
        limit: u64,
    },
    /// This node's disk has little room.
    #[error(transparent)]
    DiskFull(#[from] Low),
    /// An admin has disabled the language.
    #[error("the language {0} is disabled")]
    LanguageDisabled(String),
    /// No node can run the language.
    #[error("no node that lives can run the language {0} as it is defined now")]
    LanguageNotReady(String),
    /// No such job.
    #[error("there is no job {0}; it may have expired")]
    NotFound(JobId),
    /// It has its result.
    #[error("job {0} has already finished")]
    AlreadyFinished(JobId),
    /// Nothing was changed: no leader was reached.
    #[error("no leader was reached within {DEADLINE:?}; nothing was changed")]
    NoLeader,
    /// The proposal may or may not be committed.
    #[error(
        "the cluster did not confirm within {DEADLINE:?}; whether the request was taken is not known"
    )]
    Unknown {
        /// The job it was about, to look it up later.
        job: JobId,
    },
    /// The node is ending.
    #[error("this node is shutting down")]
    Stopped,
    /// The ledger could not be read.
    #[error("the ledger could not be read: {0}")]
    Ledger(#[from] ReadFailed),
}

impl Error {
    /// What a rejection by the queue's bounds is to the client.
    pub(crate) const fn of_queue(rejection: &Rejection) -> Option<Self> {
        match *rejection {
            Rejection::QueueFull { jobs, limit } => Some(Self::QueueFull { jobs, limit }),
            Rejection::QueueHeavy { bytes, limit } => Some(Self::QueueHeavy { bytes, limit }),
            _ => None,
        }
    }
}

/// A job with what it printed.
#[derive(Clone, Debug)]
pub struct Details {
    /// How it stands.
    pub job: Job,
    /// What it printed, once it has finished.
    pub output: Output,
}

/// A submission that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The job.
    pub job: JobId,
    /// Watches it since before it was proposed, so that nothing of it was missed. `None` when an earlier job was joined.
    watch: Option<Watch>,
}

/// The jobs of the cluster, as seen through this node.
#[derive(Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    consensus: Handle,
    watchers: Watchers,
    outputs: Outputs,
    queue: QueueBound,
    disk: DiskSpace,
    metrics: Metrics,
    catalogue: Catalogue,
    /// Submissions on their way from here to the ledger, and what they weigh, nearly: the ledger does not count them yet.
    under_way: Arc<(AtomicU64, AtomicU64)>,
}

/// The place of a submission on its way to the queue, from its head until the cluster has it or has refused it.
#[derive(Debug)]
pub struct Place {
    began: Instant,
    bytes: u64,
    body: Held,
    under_way: Arc<(AtomicU64, AtomicU64)>,
}

impl Place {
    /// The body has been read, and has so many bytes.
    pub fn body_is(&mut self, bytes: usize) {
        self.body.shrink(bytes as u64);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.under_way.0.fetch_sub(1, Ordering::Relaxed);
        self.under_way.1.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Jobs {
    /// The jobs seen through node `node`.
    #[must_use]
    pub fn new(
        node: NodeId,
        consensus: Handle,
        watchers: Watchers,
        outputs: Outputs,
        queue: QueueBound,
        disk: DiskSpace,
        (metrics, catalogue): (Metrics, Catalogue),
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                node,
                consensus,
                watchers,
                outputs,
                queue,
                disk,
                metrics,
                catalogue,
                under_way: Arc::default(),
            }),
        }
    }

    /// Submits a job, or joins the one that has its idempotency key. Goes on to its end when the caller goes away: whoever has sent a whole submission can rely on it
    /// or on an answer that says otherwise.
    ///
    /// # Errors
    /// When the cluster did not take it, or did not confirm it.
    pub async fn submit(
        &self,
        place: Place,
        spec: JobSpec,
        key: Option<IdempotencyKey>,
    ) -> Result<Accepted, Error> {
        let inner = Arc::clone(&self.inner);
        inner.metrics.http.since(place.began);
        let task = tokio::spawn(async move {
            let submitted = inner.submit(spec, key).await;
            drop(place);
            submitted
        });
        let submitted = task.await.unwrap_or(Err(Error::Stopped));
        if let Err(error) = &submitted {
            self.inner.metrics.not_taken(error);
        }
        submitted
    }

    /// Gives a submission a place on its way to the queue, before its body of about so many bytes is read. This only
    /// keeps away what would be refused at the end: the ledger decides, and it always takes a retry of what it has. So
    /// what this node has under way is counted as queued already.
    ///
    /// # Errors
    /// When the queue has no room for it, or this node's disk has none.
    pub async fn admit(
        &self,
        began: Instant,
        key: Option<&str>,
        bytes: u64,
        body: Held,
    ) -> Result<Place, Error> {
        let granted = self.inner.admit(key, bytes).await;
        if let Err(error) = granted {
            self.inner.metrics.not_taken(&error);
            return Err(error);
        }
        let under_way = Arc::clone(&self.inner.under_way);
        under_way.0.fetch_add(1, Ordering::Relaxed);
        under_way.1.fetch_add(bytes, Ordering::Relaxed);
        Ok(Place {
            began,
            bytes,
            body,
            under_way,
        })
    }

    /// Waits until a job that was accepted just now has finished, at most until `deadline`; `None` if it has not by then.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn finish(
        &self,
        accepted: &mut Accepted,
        deadline: Instant,
    ) -> Result<Option<Details>, Error> {
        let job = accepted.job;
        match &mut accepted.watch {
            Some(watch) => {
                let finished = async {
                    watch.ended().await;
                    self.end_of(job, watch).await
                };
                timeout(deadline, finished).await
            }
            None => self.wait(job, deadline).await,
        }
    }

    /// Waits until a job that is known to have been accepted has finished, at most until `deadline`; `None` if it has
    /// not by then.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn wait(&self, job: JobId, deadline: Instant) -> Result<Option<Details>, Error> {
        let mut watch = self.watch(job);
        timeout(deadline, self.end_of(job, &mut watch)).await
    }

    async fn end_of(&self, job: JobId, watch: &mut Watch) -> Result<Option<Details>, Error> {
        loop {
            match self.inner.local(job).await? {
                Some(details) if details.job.state == JobState::Finished => {
                    if let Some(at) = watch.finished() {
                        self.inner.metrics.notify.since(at);
                    }
                    return Ok(Some(details));
                }
                _ => watch.ended().await,
            }
        }
    }

    /// How a job stands that was accepted just now. As good as a linearizable read: this node's ledger shows the
    /// submission, which came after the request, so what it shows was true while the request was under way.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    pub async fn accepted(&self, accepted: &mut Accepted) -> Result<Details, Error> {
        let job = accepted.job;
        if let Some(watch) = &mut accepted.watch {
            let shown = async {
                loop {
                    if let Some(details) = self.inner.local(job).await? {
                        return Ok(Some(details));
                    }
                    watch.changed().await;
                }
            };
            if let Some(details) = timeout(Instant::now() + DEADLINE, shown).await? {
                return Ok(details);
            }
        }
        self.get(job, false).await
    }

    /// How a job stands. Linearizable unless `stale`.
    ///
    /// # Errors
    /// When there is no such job, or the cluster cannot be asked.
    pub async fn get(&self, job: JobId, stale: bool) -> Result<Details, Error> {
        let local = self.inner.local(job).await?;
        match local {
            // What has finished does not change any more, so no newer state can contradict it.
            Some(details) if stale || details.job.state == JobState::Finished => Ok(details),
            None if stale => Err(Error::NotFound(job)),
            _ => {
                self.inner.linearize().await?;
                self.inner.local(job).await?.ok_or(Error::NotFound(job))
            }
        }
    }

    /// Lists jobs, newest first. Linearizable unless `stale`.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    pub async fn list(
        &self,
        filter: JobFilter,
        before: Option<JobId>,
        limit: usize,
        stale: bool,
    ) -> Result<JobPage, Error> {
        /// Records looked at for one page.
        const SCAN: usize = 10_000;
        if !stale {
            self.inner.linearize().await?;
        }
        let page = ledger::read(&self.inner.consensus, move |view| {
            view.jobs(&filter, before, limit, SCAN)
        });
        Ok(page.await?)
    }

    /// Cancels a job.
    ///
    /// # Errors
    /// When there is no such job, it has finished, or the cluster did not confirm.
    pub async fn cancel(&self, job: JobId) -> Result<Details, Error> {
        match self.inner.propose(Command::Cancel { job }, job).await? {
            Reply::Rejected(Rejection::UnknownJob) => Err(Error::NotFound(job)),
            Reply::Rejected(Rejection::AlreadyFinished) => Err(Error::AlreadyFinished(job)),
            _ => self
                .wait(job, Instant::now() + DEADLINE)
                .await?
                .ok_or(Error::Unknown { job }),
        }
    }

    /// Follows a job that is known to have been accepted: what it prints while it prints it, and its end.
    pub fn follow(&self, job: JobId) -> impl Stream<Item = Result<Followed, Error>> + Send + use<> {
        follow::follow(self.clone(), job)
    }

    pub(crate) fn watch(&self, job: JobId) -> Watch {
        self.inner.watchers.watch(job)
    }

    pub(crate) async fn local(&self, job: JobId) -> Result<Option<Details>, Error> {
        self.inner.local(job).await
    }

    pub(crate) fn node(&self) -> NodeId {
        self.inner.node
    }

    pub(crate) fn outputs(&self) -> &Outputs {
        &self.inner.outputs
    }

    pub(crate) fn consensus(&self) -> &Handle {
        &self.inner.consensus
    }
}

impl Inner {
    async fn admit(&self, key: Option<&str>, bytes: u64) -> Result<(), Error> {
        if let Some(low) = self.disk.low() {
            return Err(low.into());
        }
        let figures = &self.consensus.metrics().figures;
        let jobs = figures.queued() + self.under_way.0.load(Ordering::Relaxed);
        let held = figures.queued_bytes() + self.under_way.1.load(Ordering::Relaxed);
        let Some(rejection) = self.queue.refuses(jobs, held, bytes) else {
            return Ok(());
        };
        if let Some(key) = key.map(ToOwned::to_owned)
            && ledger::read(&self.consensus, move |view| view.key(&key))
                .await?
                .is_some()
        {
            return Ok(());
        }
        Err(Error::of_queue(&rejection).unwrap_or(Error::NoLeader))
    }

    async fn submit(&self, spec: JobSpec, key: Option<IdempotencyKey>) -> Result<Accepted, Error> {
        self.offered(&spec, key.as_ref()).await?;
        let id = JobId::new(uuid::Uuid::now_v7());
        let language = spec.language.clone();
        let watch = self.watchers.watch(id);
        match self.propose(Command::Submit { id, spec, key }, id).await? {
            Reply::Submitted { job, joined } => {
                // A retry of the proposal finds its own id: that is this submission, not an earlier one.
                let joined = joined && job != id;
                self.metrics.accepted(joined);
                info!(%job, language, joined, "job accepted");
                let watch = (job == id).then_some(watch);
                Ok(Accepted { job, watch })
            }
            Reply::Rejected(Rejection::KeyConflict { job }) => Err(Error::KeyConflict { job }),
            Reply::Rejected(rejection) => {
                Err(Error::of_queue(&rejection).unwrap_or(Error::Unknown { job: id }))
            }
            _ => Err(Error::Unknown { job: id }),
        }
    }

    /// That the job's language is one that is run. A retry of what was accepted before is let through.
    async fn offered(&self, spec: &JobSpec, key: Option<&IdempotencyKey>) -> Result<(), Error> {
        let Some(refused) = self.catalogue.current().refuses(spec) else {
            return Ok(());
        };
        if let Some(key) = key.map(|key| key.key.clone())
            && ledger::read(&self.consensus, move |view| view.key(&key))
                .await?
                .is_some()
        {
            return Ok(());
        }
        let language = spec.language.clone();
        Err(match refused {
            Refused::Disabled => Error::LanguageDisabled(language),
            Refused::NotReady => Error::LanguageNotReady(language),
        })
    }

    async fn propose(&self, command: Command, job: JobId) -> Result<Reply, Error> {
        let deadline = Instant::now() + DEADLINE;
        self.consensus
            .propose(command, deadline.into())
            .await
            .map_err(|error| match error {
                ProposeError::Unavailable => Error::NoLeader,
                ProposeError::Unknown => Error::Unknown { job },
                ProposeError::Stopped => Error::Stopped,
            })
    }

    async fn linearize(&self) -> Result<(), Error> {
        let deadline = Instant::now() + DEADLINE;
        self.consensus
            .linearize(deadline.into())
            .await
            .map_err(|error| match error {
                ReadError::Stopped => Error::Stopped,
                _ => Error::NoLeader,
            })
    }

    async fn local(&self, id: JobId) -> Result<Option<Details>, Error> {
        let details = ledger::look(&self.consensus, move |view| {
            let Some(job) = view.job(id)? else {
                return Ok(None);
            };
            let output = match job.state {
                JobState::Finished => view.output(id)?.unwrap_or_default(),
                JobState::Queued | JobState::Running => Output::default(),
            };
            Ok(Some(Details { job, output }))
        });
        Ok(details.await?)
    }
}

/// Waits for it at most until `deadline`; `None` when time is up.
async fn timeout<T>(
    deadline: Instant,
    waited: impl Future<Output = Result<Option<T>, Error>>,
) -> Result<Option<T>, Error> {
    tokio::time::timeout_at(deadline.into(), waited)
        .await
        .unwrap_or(Ok(None))
}

/// One of the two streams of an output.
#[must_use]
pub fn stream_of(output: &Output, stream: Std) -> &Bytes {
    match stream {
        Std::Stdout => &output.stdout,
        Std::Stderr => &output.stderr,
    }
}
