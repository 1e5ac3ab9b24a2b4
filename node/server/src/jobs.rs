//! What clients want of jobs, whatever surface they come through: submit, wait, look, list, cancel, follow. `many` has what
//! concerns several jobs at once.

mod many;
mod purge;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use quorun_consensus::{Handle, ProposeError, ReadError};
use quorun_executor::Stream as Std;
use quorun_ledger::{
    Command, Delivery, IdempotencyKey, Job, JobFilter, JobId, JobPage, JobSpec, JobState, NodeId,
    Output, Owner, Priority, QueueBound, Rejection, Reply, Submission, Taken, TestCase,
};
use tracing::info;

use crate::catalogue::{Catalogue, Refused};
use crate::console::Consoles;
use crate::disk_space::{DiskSpace, Low};
use crate::follow::{self, Told};
use crate::insight::Throughput;
use crate::ledger::{self, ReadFailed};
use crate::metrics::Metrics;
use crate::output::Outputs;
use crate::pace::Pace;
use crate::pressure::Held;
use crate::resume::Heard;
use crate::talk::{Lost, Talk};
use crate::watchers::{Watch, Watchers};

pub use many::{Until, key_of_item, wait_estimate};

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
        /// When to come again, seconds.
        retry_s: u64,
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
        /// When to come again, seconds.
        retry_s: u64,
    },
    /// The owner has as much as its token allows.
    #[error(transparent)]
    OwnerBusy(#[from] OwnerBusy),
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
    /// It has no result yet.
    #[error("job {0} has not finished")]
    Unfinished(JobId),
    /// Somebody is still to be told of its end.
    #[error("the callback of job {0} is still to be delivered")]
    Undelivered(JobId),
    /// Not all nodes know what is asked for, or they have known it only for a moment.
    #[error(
        "finished jobs cannot be removed yet: some nodes run an older program that does not know how"
    )]
    OlderNodes,
    /// Its end cannot be told again.
    #[error("job {0} has nothing that could be sent again")]
    NotDeliverable(JobId),
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
    pub(crate) fn of_queue(
        rejection: &Rejection,
        owner: Option<&Owner>,
        retry_s: u64,
    ) -> Option<Self> {
        let busy = |field, value, limit| {
            let owner = owner.map_or_else(String::new, |owner| owner.name.clone());
            Self::OwnerBusy(OwnerBusy {
                owner,
                field,
                value,
                limit,
                retry_s,
            })
        };
        Some(match *rejection {
            Rejection::QueueFull { jobs, limit } => Self::QueueFull {
                jobs,
                limit,
                retry_s,
            },
            Rejection::QueueHeavy { bytes, limit } => Self::QueueHeavy {
                bytes,
                limit,
                retry_s,
            },
            Rejection::OwnerBusy { jobs, limit } => busy("jobs", jobs, limit),
            Rejection::OwnerQueueFull { jobs, limit } => busy("queue.jobs", jobs, limit),
            Rejection::OwnerQueueHeavy { bytes, limit } => busy("queue.bytes", bytes, limit),
            _ => return None,
        })
    }
}

/// That an owner has as much as its token allows.
#[derive(Debug, thiserror::Error)]
#[error("{owner} has {value} {} of the {limit} that its token allows in the whole cluster", self.what())]
pub struct OwnerBusy {
    /// Whose token it is.
    pub owner: String,
    /// What there is too much of: `jobs` without a result, `queue.jobs` that wait, or the `queue.bytes` of those.
    pub field: &'static str,
    /// How much there is.
    pub value: u64,
    /// How much there may be.
    pub limit: u64,
    /// When to come again, seconds.
    pub retry_s: u64,
}

impl OwnerBusy {
    fn what(&self) -> &'static str {
        match self.field {
            "jobs" => "unfinished jobs",
            "queue.jobs" => "waiting jobs",
            _ => "bytes of waiting jobs, and with this job would have more",
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
    /// How much longer it waits; only where somebody asks for a job that is queued.
    pub waits: Option<Waits>,
    /// How its end is told to whoever wants to be told.
    pub callback: Option<Delivery>,
    /// Its arguments for the compiler.
    pub compile_args: Vec<String>,
}

/// What a queued job can expect.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// Its place in the queue, from 1.
    pub position: u64,
    /// How long that takes at the rate of the last minute, if anything was begun in it.
    pub estimate: Option<Duration>,
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
    consoles: Consoles,
    queue: QueueBound,
    disk: DiskSpace,
    metrics: Metrics,
    /// How fast the queue lets jobs in.
    pace: Pace,
    throughput: Throughput,
    catalogue: Catalogue,
    /// Submissions on their way from here to the ledger, and what they weigh, nearly: the ledger does not count them yet.
    under_way: Arc<(AtomicU64, AtomicU64)>,
}

/// The place of a submission on its way to the queue, from its head until the cluster has it or has refused it.
#[derive(Debug)]
pub struct Place {
    began: Instant,
    jobs: u64,
    bytes: u64,
    owner: Option<Owner>,
    max_priority: Priority,
    body: Held,
    under_way: Arc<(AtomicU64, AtomicU64)>,
}

impl Place {
    /// Says whose a job is that comes through this place, and holds it to the owner's level. Not before the fingerprint of its
    /// key was taken: an owner whose bounds have changed may repeat a request.
    fn own(&self, spec: &mut JobSpec) {
        spec.owner.clone_from(&self.owner);
        // The higher the level, the earlier in their order.
        spec.priority = spec.priority.max(self.max_priority);
    }

    /// The body has been read, and has so many bytes.
    pub fn body_is(&mut self, bytes: usize) {
        self.body.shrink(bytes as u64);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.under_way.0.fetch_sub(self.jobs, Ordering::Relaxed);
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
        (outputs, consoles): (Outputs, Consoles),
        queue: QueueBound,
        disk: DiskSpace,
        (metrics, throughput, catalogue): (Metrics, Throughput, Catalogue),
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                node,
                consensus,
                watchers,
                outputs,
                consoles,
                queue,
                disk,
                metrics,
                pace: Pace::default(),
                throughput,
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
        mut spec: JobSpec,
        key: Option<IdempotencyKey>,
    ) -> Result<Accepted, Error> {
        place.own(&mut spec);
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
        (owner, max_priority): (Option<Owner>, Priority),
        key: Option<&str>,
        bytes: u64,
        body: Held,
    ) -> Result<Place, Error> {
        let granted = self.inner.admit(owner.as_ref(), key, bytes).await;
        if let Err(error) = granted {
            self.inner.metrics.not_taken(&error);
            return Err(error);
        }
        let under_way = Arc::clone(&self.inner.under_way);
        under_way.0.fetch_add(1, Ordering::Relaxed);
        under_way.1.fetch_add(bytes, Ordering::Relaxed);
        Ok(Place {
            began,
            jobs: 1,
            bytes,
            owner,
            max_priority,
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
                // It was there, and has been purged.
                None if watch.finished().is_some() => return Err(Error::NotFound(job)),
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

    /// Waits until this node's ledger shows everything that had been committed by now.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    pub(crate) async fn linearize(&self) -> Result<(), Error> {
        self.inner.linearize().await
    }

    /// How a job stands. Linearizable unless `stale`.
    ///
    /// # Errors
    /// When there is no such job, or the cluster cannot be asked.
    pub async fn get(&self, job: JobId, stale: bool) -> Result<Details, Error> {
        let local = self.inner.local(job).await?;
        let mut details = match local {
            // What has finished does not change any more, so no newer state can contradict it.
            Some(details) if stale || details.job.state == JobState::Finished => details,
            None if stale => return Err(Error::NotFound(job)),
            _ => {
                self.inner.linearize().await?;
                self.inner.local(job).await?.ok_or(Error::NotFound(job))?
            }
        };
        if details.job.state == JobState::Queued {
            details.waits = self.inner.waits(details.job.clone()).await?;
        }
        Ok(details)
    }

    /// The test cases of a job that this node's ledger shows, as they were submitted.
    ///
    /// # Errors
    /// When it has expired meanwhile, or the ledger cannot be read.
    pub async fn cases(&self, job: JobId) -> Result<Vec<TestCase>, Error> {
        let spec = ledger::read(&self.inner.consensus, move |view| view.spec(job));
        let spec = spec.await?.ok_or(Error::NotFound(job))?;
        Ok(spec.tests)
    }

    /// That there is a job which `sees` admits. What it does not admit is not there, and found out in the same way.
    ///
    /// # Errors
    /// When there is none, or the cluster cannot be asked.
    pub async fn seen(
        &self,
        job: JobId,
        stale: bool,
        sees: impl Fn(&Job) -> bool,
    ) -> Result<(), Error> {
        let look = || ledger::look(&self.inner.consensus, move |view| view.job(job));
        if look().await?.is_some_and(|job| sees(&job)) {
            return Ok(());
        }
        if !stale {
            self.inner.linearize().await?;
        }
        let seen = look().await?.is_some_and(|job| sees(&job));
        seen.then_some(()).ok_or(Error::NotFound(job))
    }

    /// Lists jobs. Linearizable unless `stale`.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    pub async fn list(
        &self,
        filter: JobFilter,
        behind: Option<JobId>,
        limit: usize,
        stale: bool,
    ) -> Result<JobPage, Error> {
        /// Records looked at for one page.
        const SCAN: usize = 10_000;
        if !stale {
            self.inner.linearize().await?;
        }
        let page = ledger::read(&self.inner.consensus, move |view| {
            view.jobs(&filter, behind, limit, SCAN)
        });
        Ok(page.await?)
    }

    /// Cancels a job.
    ///
    /// # Errors
    /// When there is no such job, it has finished, or the cluster did not confirm.
    pub async fn cancel(&self, job: JobId) -> Result<Details, Error> {
        self.inner.cancel(job).await?;
        self.wait(job, Instant::now() + DEADLINE)
            .await?
            .ok_or(Error::Unknown { job })
    }

    /// Has a job's end told again, or now.
    ///
    /// # Errors
    /// When there is no such job, nothing to be told, or the cluster did not confirm.
    pub async fn tell_again(&self, job: JobId) -> Result<Details, Error> {
        let command = Command::CallbackAgain { job };
        match self.inner.propose(command, job).await? {
            Reply::CallbackDue => self.get(job, false).await,
            Reply::Rejected(Rejection::UnknownJob) => Err(Error::NotFound(job)),
            Reply::Rejected(Rejection::NotDeliverable) => Err(Error::NotDeliverable(job)),
            _ => Err(Error::Unknown { job }),
        }
    }

    /// Follows a job that is known to have been accepted, behind what was heard of it already: what it prints while it
    /// prints it, and its end, or only what there is of that now.
    pub fn follow(
        &self,
        job: JobId,
        heard: Heard,
        until: follow::Until,
    ) -> impl Stream<Item = Result<Told, Error>> + Send + use<> {
        follow::follow(self.clone(), job, heard, until)
    }

    /// Begins to talk to an attempt at an interactive job that the ledger shows on a node.
    ///
    /// # Errors
    /// When there is no way to that node.
    pub async fn talk(&self, node: NodeId, attempt: (JobId, u32)) -> Result<Talk, Lost> {
        let inner = &self.inner;
        let ways = (&inner.consoles, &inner.consensus);
        Talk::begin(ways, (inner.node, node), attempt).await
    }

    /// Whether a job waits for somebody to talk to it; `None` when its submission is no longer kept, because it has
    /// finished.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn is_interactive(&self, job: JobId) -> Result<Option<bool>, Error> {
        let spec = ledger::read(&self.inner.consensus, move |view| view.spec(job)).await?;
        Ok(spec.map(|spec| spec.interactive))
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
    async fn admit(
        &self,
        owner: Option<&Owner>,
        key: Option<&str>,
        bytes: u64,
    ) -> Result<(), Error> {
        if let Some(low) = self.disk.low() {
            return Err(low.into());
        }
        let figures = &self.consensus.metrics().figures;
        let jobs = figures.queued() + self.under_way.0.load(Ordering::Relaxed);
        let held = figures.queued_bytes() + self.under_way.1.load(Ordering::Relaxed);
        let mut rejection = self.queue.refuses(jobs, held, bytes);
        if rejection.is_none()
            && let Some(owner) = owner
            && (owner.max_jobs.is_some() || owner.queue_percent.is_some())
        {
            let name = owner.name.clone();
            let load = ledger::look(&self.consensus, move |view| view.owner_load(&name)).await?;
            rejection = owner.refuses(&load, bytes, Some(self.queue));
        }
        let Some(rejection) = rejection else {
            return Ok(());
        };
        if let Some(key) = key.map(ToOwned::to_owned) {
            let whose = owner.map(|owner| owner.name.clone());
            let known = ledger::read(&self.consensus, move |view| {
                let whose = whose.as_deref();
                // Of a batch its first job has the key in this form.
                Ok(view.key(whose, &key)?.is_some()
                    || view.key(whose, &many::key_of_item(&key, 0))?.is_some())
            });
            if known.await? {
                return Ok(());
            }
        }
        Err(Error::of_queue(&rejection, owner, self.come_again()).unwrap_or(Error::NoLeader))
    }

    async fn submit(&self, spec: JobSpec, key: Option<IdempotencyKey>) -> Result<Accepted, Error> {
        self.offered(&spec, key.as_ref()).await?;
        let id = JobId::new(uuid::Uuid::now_v7());
        let language = spec.language.clone();
        let owner = spec.owner.clone();
        let watch = self.watchers.watch(id);
        let reply = self.propose(submission(id, spec, key), id).await?;
        let reply = match reply {
            Reply::SubmittedAll { jobs } => match jobs[..] {
                [Taken { job, joined }] => Reply::Submitted { job, joined },
                _ => return Err(Error::Unknown { job: id }),
            },
            reply => reply,
        };
        match reply {
            Reply::Submitted { job, joined } => {
                // A retry of the proposal finds its own id: that is this submission, not an earlier one.
                let joined = joined && job != id;
                self.metrics.accepted(joined);
                let owner = owner.as_ref().map(|owner| owner.name.as_str());
                info!(%job, language, owner, joined, "job accepted");
                let watch = (job == id).then_some(watch);
                Ok(Accepted { job, watch })
            }
            Reply::Rejected(Rejection::KeyConflict { job }) => Err(Error::KeyConflict { job }),
            Reply::Rejected(rejection) => {
                let error = Error::of_queue(&rejection, owner.as_ref(), self.come_again());
                Err(error.unwrap_or(Error::Unknown { job: id }))
            }
            _ => Err(Error::Unknown { job: id }),
        }
    }

    /// When somebody should come again for whom the queue has no place: jobs leave it as they finish.
    fn come_again(&self) -> u64 {
        let finished = self.metrics.finishes();
        self.pace.come_again(finished, Instant::now())
    }

    /// That the job's language is one that is run. A retry of what was accepted before is let through.
    async fn offered(&self, spec: &JobSpec, key: Option<&IdempotencyKey>) -> Result<(), Error> {
        let Some(refused) = self.catalogue.current().refuses(spec) else {
            return Ok(());
        };
        let owner = spec.owner_name().map(ToOwned::to_owned);
        if let Some(key) = key.map(|key| key.key.clone())
            && ledger::read(&self.consensus, move |view| {
                view.key(owner.as_deref(), &key)
            })
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

    /// What a queued job can expect; `None` if it is not queued any more.
    async fn waits(&self, job: Job) -> Result<Option<Waits>, Error> {
        let place = ledger::look(&self.consensus, move |view| view.place(&job)).await?;
        let rates = self.throughput.rates(Instant::now());
        Ok(place.map(|place| Waits {
            position: place.ahead + 1,
            estimate: wait_estimate(place.ahead, rates),
        }))
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
            let callback = if job.callback {
                view.delivery(id)?
            } else {
                None
            };
            // Each of these was read by itself, and a purge may have come in between.
            if job.state == JobState::Finished && view.job(id)?.is_none() {
                return Ok(None);
            }
            Ok(Some(Details {
                job,
                output,
                waits: None,
                callback,
                compile_args: Vec::new(),
            }))
        });
        let mut details = details.await?;
        if let Some(details) = details.as_mut().filter(|details| details.job.compile_args) {
            // What was submitted is large, so it is only looked at where there are some, and by a thread that may take its time.
            let spec = ledger::read(&self.consensus, move |view| view.spec(id)).await?;
            details.compile_args = spec.map(|spec| spec.compile_args).unwrap_or_default();
        }
        Ok(details)
    }
}

/// The command that submits one job. What earlier versions would not queue in the same way goes as a command that they do
/// not know.
fn submission(id: JobId, spec: JobSpec, key: Option<IdempotencyKey>) -> Command {
    if spec.is_plain() {
        return Command::Submit { id, spec, key };
    }
    let jobs = vec![Submission { id, spec, key }];
    Command::submit_all(jobs)
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
