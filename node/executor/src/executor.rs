//! The executor: takes a job to its result.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorun_ledger::job::{JobResult, Limits, Outcome, Output, Verdict};
use quorun_metrics::Histogram;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::artefacts::{self, Artefact, Artefacts};
use crate::docker::Docker;
use crate::engine::{Engine, Key, MakeError};
use crate::input::{Input, Interaction};
use crate::judge::Judge;
use crate::live::Live;
use crate::noop;
use crate::options::{Kind, Options};
use crate::pool::{Discard, Lease, Owner, Plan, Pool};
use crate::process::Processes;
use crate::program::{Holding, Program};
use crate::runs::{self, Next, Runs};
use crate::sandbox::{Broken, Interrupted};
use crate::task::{CaseEnded, Chunk, Task};
use crate::verdict;

/// How often the engine is asked whether it is there.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long no job is taken after sandboxes could not be made.
const UNWELL: Duration = Duration::from_secs(5);

/// What a sandbox may take beyond the times of a job's steps before it is taken for hung: a machine that is very busy, and
/// the warden's own patience with processes that do not die.
const GRACE: Duration = Duration::from_secs(20);

/// A job whose sandbox breaks is tried this often in all.
pub(crate) const TRIES: u32 = 2;

/// Why an executor cannot be started at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings are wrong.
    #[error("{0}")]
    Settings(String),
    /// The data folder cannot be used.
    #[error("preparing the sandboxes below {folder}: {source}")]
    Folder {
        /// The folder.
        folder: std::path::PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
}

/// Whether jobs can run now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// They can.
    Ready,
    /// They cannot.
    NotReady {
        /// Why not, for people.
        reason: String,
    },
}

/// This node cannot execute now; the attempt should be given back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// Why, for people.
    pub reason: String,
}

/// The handle through which jobs are run. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Executor {
    pub(crate) pool: Pool,
    artefacts: Artefacts,
    /// Where interpreters are started ahead: how many jobs, or test cases of them, have begun in one.
    zygotes: Option<Arc<AtomicU64>>,
    health: watch::Sender<Health>,
    /// Until when the executor stays not ready, although its engine answers.
    unwell: Arc<Mutex<Option<Instant>>>,
    waits: Arc<Histogram>,
}

/// Sets up an executor. The future keeps its health and its sandboxes in order until [`Executor::shutdown`]; it must be
/// polled all the time. Both need a tokio runtime, the engine need not be there yet.
///
/// # Errors
///
/// Settings that cannot work, or a data folder that cannot be written.
#[expect(
    clippy::needless_pass_by_value,
    reason = "options are given away, as to every component"
)]
pub fn start(
    options: Options,
) -> Result<(Executor, impl Future<Output = ()> + Send + 'static), Error> {
    if options.slots == 0 {
        return Err(Error::Settings(
            "an executor needs at least one slot".into(),
        ));
    }
    let engine = match options.kind {
        Kind::Docker => {
            let docker = Docker::new(
                &options.labels,
                options.cpus_per_sandbox,
                options.runtime.clone(),
            );
            Engine::Docker(Box::new(docker.map_err(Error::Settings)?))
        }
        Kind::Process if options.runtime.is_some() => {
            return Err(Error::Settings(
                "the process executor has no runtimes".into(),
            ));
        }
        Kind::Process => {
            tracing::warn!(
                "the process executor does NOT isolate: programs run with all rights of this user, on this machine; use it \
                 for trusted code and tests only"
            );
            Engine::Process(
                Processes::new(&options.data_dir).map_err(|source| Error::Folder {
                    folder: options.data_dir.clone(),
                    source,
                })?,
            )
        }
        Kind::Noop if options.runtime.is_some() => {
            return Err(Error::Settings("the no-op executor has no runtimes".into()));
        }
        Kind::Noop => {
            tracing::warn!(
                "the no-op executor executes NOTHING: every job is accepted without being run; use it only to measure the \
                 cluster around it"
            );
            Engine::Noop
        }
    };
    let folder = options.data_dir.join("artefacts");
    let artefacts = Artefacts::open(folder.clone(), options.artefact_bytes)
        .map_err(|source| Error::Folder { folder, source })?;
    let plan = plan(&engine, &options);
    let (health, _) = watch::channel(Health::NotReady {
        reason: "starting: the container engine has not been asked yet".into(),
    });
    let executor = Executor {
        pool: Pool::new(engine, plan),
        artefacts,
        // As a plain process, what waits would be in nobody's way but its machine's.
        zygotes: (options.zygotes && options.kind == Kind::Docker).then(Arc::default),
        health,
        unwell: Arc::default(),
        waits: Arc::new(Histogram::of_times()),
    };
    let run = executor.clone().run();
    Ok((executor, run))
}

/// How many sandboxes, and which kinds are always kept warm: those of the images that are named. Beside them there is room
/// for as many as all slots can need of another kind.
fn plan(engine: &Engine, options: &Options) -> Plan {
    let mut kinds: Vec<Key> = Vec::new();
    // The no-op executor needs no sandboxes.
    let images = options.images.iter();
    for (image, memory_kb) in images.filter(|_| !matches!(engine, Engine::Noop)) {
        let key = engine.key(image, *memory_kb);
        if !kinds.contains(&key) {
            kinds.push(key);
        }
    }
    if let (Engine::Process(_), true) = (engine, kinds.is_empty()) {
        kinds.push(engine.key("", 0));
    }
    Plan {
        capacity: Plan::capacity(options.slots, kinds.len()),
        slots: options.slots,
        max_jobs: options.max_jobs_per_sandbox.max(1),
        makers: options.makers.max(1),
        kinds,
    }
}

/// How one try at a job ended.
#[derive(Debug)]
pub(crate) enum Tried {
    Result(Box<JobResult>),
    /// The sandbox broke; another one may do better.
    Again(String),
    /// No sandbox could be made here; another node may be able to.
    NoSandbox(String),
    Unavailable(Unavailable),
}

impl Tried {
    fn result(result: JobResult) -> Self {
        Self::Result(Box::new(result))
    }
}

/// What goes out and comes in while a job runs.
struct Streams<'a> {
    live: Live,
    input: Input,
    cases: Option<mpsc::UnboundedSender<CaseEnded>>,
    cancel: &'a CancellationToken,
}

/// Who follows a job while it runs, and who talks to it. See [`Executor::execute_watched`].
#[derive(Debug)]
pub struct Watched {
    /// What it prints.
    pub output: mpsc::Sender<Chunk>,
    /// How each of its test cases ended, if it has some.
    pub cases: mpsc::UnboundedSender<CaseEnded>,
    /// What it is told, if somebody may talk to it.
    pub interaction: Option<Interaction>,
}

impl Executor {
    async fn run(self) {
        let mut first = true;
        let mut tick = tokio::time::interval(CHECK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.pool.closed() => return,
                () = self.pool.work() => {}
                _ = tick.tick() => {
                    let health = match self.pool.engine().check().await {
                        Ok(()) if self.is_unwell() => continue,
                        Ok(()) => Health::Ready,
                        Err(reason) => Health::NotReady { reason },
                    };
                    let ready = health == Health::Ready;
                    if ready && first {
                        first = false;
                        self.pool.engine().remove_orphans().await;
                    }
                    if self.set_health(health) && ready {
                        self.pool.forgive();
                    }
                }
            }
            if *self.health.borrow() == Health::Ready {
                self.pool.tend(Instant::now());
            }
        }
    }

    /// Whether sandboxes could lately not be made.
    fn is_unwell(&self) -> bool {
        let until = *self.unwell.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes no jobs for a while, and says why.
    fn set_unwell(&self, reason: &str) {
        let mut until = self.unwell.lock().unwrap_or_else(PoisonError::into_inner);
        *until = Some(Instant::now() + UNWELL);
        drop(until);
        self.set_health(Health::NotReady {
            reason: reason.to_owned(),
        });
    }

    /// Says whether it changed.
    fn set_health(&self, health: Health) -> bool {
        self.health.send_if_modified(|current| {
            if *current == health {
                return false;
            }
            match &health {
                Health::Ready => tracing::info!("the executor is ready"),
                Health::NotReady { reason } => {
                    tracing::warn!("the executor is not ready: {reason}");
                }
            }
            *current = health;
            true
        })
    }

    /// Runs one task to its end. What goes wrong is a result with the verdict `internal_error`.
    ///
    /// While the program runs, what it prints is sent to `output`; a receiver that is slow or gone does not hold the job
    /// up. Should the sandbox break and the job be started again, what was sent already is not sent again. The result holds
    /// all of it in any case.
    ///
    /// # Errors
    ///
    /// This node cannot execute now: the engine does not answer, or the node is shutting down. There is no result, and
    /// the attempt should be given back.
    pub async fn execute(
        &self,
        task: Task,
        output: mpsc::Sender<Chunk>,
        cancel: CancellationToken,
    ) -> Result<JobResult, Unavailable> {
        let streams = Streams {
            live: Live::new(output),
            input: Input::none(),
            cases: None,
            cancel: &cancel,
        };
        self.execute_with(&task, streams).await
    }

    /// As [`execute`](Self::execute), with somebody who talks to the program while it runs. The program is started once:
    /// when its sandbox breaks after something was said, the job ends with `internal_error`. For a task without test cases;
    /// test cases are not talked to.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub async fn execute_interactive(
        &self,
        task: Task,
        output: mpsc::Sender<Chunk>,
        interaction: Interaction,
        cancel: CancellationToken,
    ) -> Result<JobResult, Unavailable> {
        let streams = Streams {
            live: Live::new(output),
            input: Input::from(interaction),
            cases: None,
            cancel: &cancel,
        };
        self.execute_with(&task, streams).await
    }

    /// As [`execute`](Self::execute), or as [`execute_interactive`](Self::execute_interactive) where there is an
    /// interaction, with somebody who is told of each test case when it has ended. Should a try at the job be repeated, the
    /// cases before are told again.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub async fn execute_watched(
        &self,
        task: Task,
        watched: Watched,
        cancel: CancellationToken,
    ) -> Result<JobResult, Unavailable> {
        let streams = Streams {
            live: Live::new(watched.output),
            input: watched.interaction.map_or_else(Input::none, Input::from),
            cases: Some(watched.cases),
            cancel: &cancel,
        };
        self.execute_with(&task, streams).await
    }

    async fn execute_with(
        &self,
        task: &Task,
        mut streams: Streams<'_>,
    ) -> Result<JobResult, Unavailable> {
        if let Engine::Noop = self.pool.engine() {
            return Ok(noop::result());
        }
        let result = self.tries(task, &mut streams).await?;
        Ok(runs::judged(task, result))
    }

    async fn tries(
        &self,
        task: &Task,
        streams: &mut Streams<'_>,
    ) -> Result<JobResult, Unavailable> {
        let mut reason = String::new();
        let mut no_sandbox = false;
        for number in 0..TRIES {
            if let Health::NotReady { reason } = &*self.health.borrow() {
                return Err(Unavailable {
                    reason: reason.clone(),
                });
            }
            streams.live.restart();
            match self.attempt(task, streams, number == 0).await {
                Tried::Result(result) => return Ok(*result),
                // All sandboxes go then, and nobody needs to be warned of it.
                Tried::Again(_) | Tried::NoSandbox(_) if self.pool.is_closed() => {
                    return Err(shutting_down());
                }
                Tried::Again(cause) => {
                    tracing::warn!(job = %task.job, attempt = task.attempt, "{cause}");
                    reason = cause;
                    no_sandbox = false;
                    // Sandboxes that were warm break one after the other when their engine has gone.
                    if let Err(reason) = self.pool.engine().check().await {
                        self.set_health(Health::NotReady {
                            reason: reason.clone(),
                        });
                        return Err(Unavailable { reason });
                    }
                }
                Tried::NoSandbox(cause) => {
                    tracing::warn!(job = %task.job, attempt = task.attempt, "{cause}");
                    reason = cause;
                    no_sandbox = true;
                }
                Tried::Unavailable(unavailable) => return Err(unavailable),
            }
            if streams.input.is_used() {
                return Ok(JobResult::internal_error(format!(
                    "{reason}; what the program had been told cannot be told again"
                )));
            }
        }
        if no_sandbox {
            // Failing is quick: a node that went on taking jobs would be the least busy one, and get most of them.
            self.set_unwell(&reason);
            return Err(Unavailable { reason });
        }
        Ok(JobResult::internal_error(format!(
            "given up after {TRIES} tries: {reason}"
        )))
    }

    /// One try. Only the first one starts from an artefact: should that be what goes wrong, the next one makes it anew.
    async fn attempt(&self, task: &Task, streams: &mut Streams<'_>, first: bool) -> Tried {
        let checker = match task.of_checker() {
            Ok(checker) => checker,
            Err(reason) => return Tried::result(JobResult::internal_error(reason)),
        };
        let further = task.spec.tests.len() > 1;
        let mut judge = checker
            .as_ref()
            .map(|checker| Judge::new(self, checker, further));
        // On the heap: whoever holds the future of a job need not have the room for all that is on its way.
        let tried = Box::pin(self.attempt_with(task, &mut judge, streams, first)).await;
        if let Some(judge) = judge {
            judge.finish();
        }
        tried
    }

    async fn attempt_with(
        &self,
        task: &Task,
        judge: &mut Option<Judge<'_>>,
        streams: &mut Streams<'_>,
        first: bool,
    ) -> Tried {
        let Streams {
            live,
            input,
            cases,
            cancel,
        } = streams;
        let mut lease = match self.acquire(task, cancel).await {
            Ok(lease) => lease,
            Err(tried) => return tried,
        };
        let program = self.program(task, lease.image_id(), first).await;
        let program = program.with_zygotes(self.zygotes.as_deref());
        let mut runs = Runs::new(task, program).telling(cases.as_ref());
        loop {
            let sandbox = lease.id().to_owned();
            tracing::debug!(job = %task.job, attempt = task.attempt, sandbox, "running");
            lease.count_job();
            let Some(link) = lease.link() else {
                return Tried::Again("the sandbox has gone".into());
            };
            match runs.go_on(link, judge, live, input, cancel).await {
                Ok(Next::Finished(result)) => {
                    self.look_after(lease, runs.program());
                    return Tried::Result(result);
                }
                Ok(Next::FreshSandbox) => lease.discard(runs.program().discard()),
                Ok(Next::SandboxFailed(reason)) => {
                    self.forget(lease);
                    return Tried::Again(reason);
                }
                Ok(Next::NotJudged(tried)) => {
                    self.look_after(lease, runs.program());
                    return tried;
                }
                Err(interrupted) => match self.interrupted(task, lease, interrupted, live).await {
                    Ok(result) => {
                        if let Some(result) = runs.case_ended(result, None) {
                            return Tried::result(result);
                        }
                    }
                    Err(Tried::Result(result)) => {
                        return Tried::result(runs.ended_early(*result));
                    }
                    Err(tried) => return tried,
                },
            }
            lease = match self.acquire(task, cancel).await {
                Ok(lease) => lease,
                // What the other cases did is part of the result.
                Err(Tried::Result(result)) => return Tried::result(runs.ended_early(*result)),
                Err(tried) => return tried,
            };
        }
    }

    /// The key of a task's artefact in the image of its sandbox; none for what is not compiled.
    fn artefact_key(&self, task: &Task, image_id: Option<&str>) -> Option<artefacts::Key> {
        if task.language.compile.is_none() || !self.artefacts.is_on() {
            return None;
        }
        Some(artefacts::Key::of(task, image_id?))
    }

    /// The program of a task, in the image of its sandbox.
    pub(crate) async fn program<'a>(
        &self,
        task: &'a Task,
        image_id: Option<&str>,
        from_artefact: bool,
    ) -> Program<'a> {
        let key = self.artefact_key(task, image_id);
        let artefact = match key {
            Some(key) if from_artefact => self.artefacts.get(key).await,
            _ => None,
        };
        // One that a job with more memory left may be more than this one's sandbox can hold.
        let artefact = artefact.filter(|a| a.archive.len() as u64 <= artefacts::largest(task));
        Program::new(task, key, artefact)
    }

    pub(crate) async fn acquire(
        &self,
        task: &Task,
        cancel: &CancellationToken,
    ) -> Result<Lease, Tried> {
        let image = &task.language.image;
        let key = self.pool.engine().key(image, task.spec.limits.memory_kb);
        let owner = Owner::of(task.spec.kept_apart().as_deref());
        let began = Instant::now();
        let lease = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                return Err(Tried::result(JobResult {
                    outcome: Outcome::without_run(Verdict::Cancelled, "cancelled before it ran"),
                    output: Output::default(),
                }));
            }
            lease = self.pool.acquire(&key, &owner) => lease,
        };
        self.waits.since(began);
        lease.map_err(|error| match error {
            MakeError::Unreachable(_) => {
                let reason = error.to_string();
                self.set_health(Health::NotReady {
                    reason: reason.clone(),
                });
                Tried::Unavailable(Unavailable { reason })
            }
            MakeError::ImageMissing(_) => {
                Tried::result(JobResult::internal_error(error.to_string()))
            }
            MakeError::Other(_) => Tried::NoSandbox(error.to_string()),
        })
    }

    /// The job has its result: its sandbox is looked after while that is on its way.
    pub(crate) fn look_after(&self, lease: Lease, program: &Program<'_>) {
        if program.used_up() {
            lease.discard(Discard::OutOfMemory);
        } else {
            let artefacts = self.artefacts.clone();
            self.pool.spawn(clean(lease, program.holding(), artefacts));
        }
    }

    /// What the sandbox holds is of no use; it is looked after all the same.
    pub(crate) fn forget(&self, lease: Lease) {
        self.pool
            .spawn(clean(lease, Holding::Forget, self.artefacts.clone()));
    }

    /// The sandbox broke. Why, decides what becomes of the run.
    pub(crate) async fn interrupted(
        &self,
        task: &Task,
        lease: Lease,
        interrupted: Interrupted,
        live: &mut Live,
    ) -> Result<JobResult, Tried> {
        let Interrupted { cause, started } = interrupted;
        if let (Broken::Silent(_), Health::NotReady { reason }) =
            (&cause, self.health.borrow().clone())
        {
            lease.discard(Discard::from(&cause));
            // The sandbox may well have answered, but the engine passes nothing on: another node can do the job.
            return Err(Tried::Unavailable(Unavailable { reason }));
        }
        let out_of_memory = started && self.pool.engine().was_out_of_memory(lease.id()).await;
        lease.discard(if out_of_memory {
            Discard::OutOfMemory
        } else {
            Discard::from(&cause)
        });
        if out_of_memory {
            live.finish().await;
            let (stdout, stderr) = live.take_output();
            return Ok(verdict::out_of_memory(task, stdout, stderr));
        }
        if let Broken::Silent(patience) = cause {
            // A second try would take as long.
            return Err(Tried::result(JobResult::internal_error(format!(
                "the sandbox did not answer within {} s, which is the time of the job's steps and {} s more",
                patience.as_secs(),
                GRACE.as_secs()
            ))));
        }
        Err(Tried::Again(cause.to_string()))
    }

    /// Whether jobs can run now, and every change of it.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Removes what another node of the cluster has left on this node's engine, in this incarnation and those before.
    /// That node must be known to be lost. What cannot be removed is left to its next incarnation.
    pub async fn remove_orphans_of(&self, node: u64, incarnation: u64) {
        self.pool
            .engine()
            .remove_orphans_of(node, incarnation)
            .await;
    }

    /// How many sandboxes there are: `warm`, `busy` and `starting`; and since the start `discarded`, which is the sum of
    /// `discarded.worn` and so on, one for each reason. With zygotes, `zygotes` is how many runs have begun in one.
    #[must_use]
    pub fn sandboxes(&self) -> BTreeMap<String, u64> {
        let mut counts = self.pool.counts();
        if let Some(zygotes) = &self.zygotes {
            counts.insert("zygotes".to_owned(), zygotes.load(Ordering::Relaxed));
        }
        counts
    }

    /// How long jobs have waited for a sandbox.
    #[must_use]
    pub fn waits(&self) -> &Histogram {
        &self.waits
    }

    /// Kills and removes every sandbox of this node and incarnation. Jobs that are running end as
    /// [`Unavailable`]; nothing can be executed afterwards.
    pub async fn shutdown(&self) {
        // Nobody needs to be warned of it.
        let Unavailable { reason } = shutting_down();
        self.health.send_replace(Health::NotReady { reason });
        self.pool.close().await;
    }
}

fn shutting_down() -> Unavailable {
    Unavailable {
        reason: "the node is shutting down".into(),
    }
}

/// Waits until a sandbox is clean, takes what its warden holds, and gives it back; or throws it away.
async fn clean(mut lease: Lease, holding: Holding, artefacts: Artefacts) {
    let Some(link) = lease.link() else { return };
    match link.clean().await {
        Ok(Ok(())) => {}
        Ok(Err(left)) => {
            tracing::warn!(sandbox = lease.id(), ?left, "a job left something behind");
            return lease.discard(Discard::Unclean);
        }
        Err(error) => {
            tracing::debug!(sandbox = lease.id(), "not clean after a job: {error}");
            return lease.discard(Discard::from(&error));
        }
    }
    let taken = match holding {
        Holding::Nothing => Ok(None),
        Holding::Forget => link.forget().await.map(|()| None),
        Holding::Fetch {
            key,
            compile,
            limit,
        } => link.fetch(limit).await.map(|archive| {
            let artefact = Artefact { compile, archive };
            Some((key, artefact))
        }),
    };
    match taken {
        Ok(kept) => {
            lease.keep();
            if let Some((key, artefact)) = kept {
                artefacts.put(key, artefact).await;
            }
        }
        Err(error) => {
            tracing::debug!(sandbox = lease.id(), "what it held was not had: {error}");
            lease.discard(Discard::from(&error));
        }
    }
}

/// How long a sandbox may take for a run with these limits.
pub(crate) fn patience(task: &Task, limits: &Limits) -> Duration {
    let compile = match task.language.compile {
        Some(_) => task.language.compile_limits.wall_ms,
        None => 0,
    };
    Duration::from_millis(compile.saturating_add(limits.wall_ms)).saturating_add(GRACE)
}
