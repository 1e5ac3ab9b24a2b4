//! What clients want of jobs, whatever surface they come through: submit, wait, look, list, cancel, follow.

use std::sync::Arc;
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

use crate::disk_space::{DiskSpace, Low};
use crate::follow::{self, Followed};
use crate::ledger::{self, ReadFailed};
use crate::output::Outputs;
use crate::watchers::{Watch, Watchers};

/// How long a proposal or a linearizable read may take before the client is told to try again.
const DEADLINE: Duration = Duration::from_secs(10);

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
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                node,
                consensus,
                watchers,
                outputs,
                queue,
                disk,
            }),
        }
    }

    /// Submits a job, or joins the one that has its idempotency key. Goes on to its end when the caller goes away: whoever has sent a whole submission can rely on it
    /// or on an answer that says otherwise.
    ///
    /// # Errors
    /// When the cluster did not take it, or did not confirm it.
    pub async fn submit(&self, spec: JobSpec, key: Option<IdempotencyKey>) -> Result<JobId, Error> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move { inner.submit(spec, key).await });
        task.await.unwrap_or(Err(Error::Stopped))
    }

    /// Waits until a job that is known to have been accepted has finished, at most until `deadline`; `None` if it has
    /// not by then.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn wait(&self, job: JobId, deadline: Instant) -> Result<Option<Details>, Error> {
        let mut watch = self.watch(job);
        let finished = async {
            loop {
                match self.inner.local(job).await? {
                    Some(details) if details.job.state == JobState::Finished => {
                        return Ok(Some(details));
                    }
                    _ => watch.changed().await,
                }
            }
        };
        tokio::time::timeout_at(deadline.into(), finished)
            .await
            .unwrap_or(Ok(None))
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
    async fn submit(&self, spec: JobSpec, key: Option<IdempotencyKey>) -> Result<JobId, Error> {
        if let Some(low) = self.disk.low() {
            return Err(low.into());
        }
        let counters = ledger::read(&self.consensus, quorun_ledger::View::counters).await?;
        let (queued, bytes) = (counters.queued, counters.queued_bytes);
        if let Some(rejection) = self.queue.refuses(queued, bytes, spec.weight())
            && let Some(error) = Error::of_queue(&rejection)
        {
            return Err(error);
        }
        let id = JobId::new(uuid::Uuid::now_v7());
        let language = spec.language.clone();
        match self.propose(Command::Submit { id, spec, key }, id).await? {
            Reply::Submitted { job, joined } => {
                // A retry of the proposal finds its own id: that is this submission, not an earlier one.
                let joined = joined && job != id;
                info!(%job, language, joined, "job accepted");
                Ok(job)
            }
            Reply::Rejected(Rejection::KeyConflict { job }) => Err(Error::KeyConflict { job }),
            Reply::Rejected(rejection) => {
                Err(Error::of_queue(&rejection).unwrap_or(Error::Unknown { job: id }))
            }
            _ => Err(Error::Unknown { job: id }),
        }
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
        let details = ledger::read(&self.consensus, move |view| {
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

/// One of the two streams of an output.
#[must_use]
pub fn stream_of(output: &Output, stream: Std) -> &Bytes {
    match stream {
        Std::Stdout => &output.stdout,
        Std::Stderr => &output.stderr,
    }
}
