//! The worker: executes what the ledger assigns to this node, and reports until the report stands.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use quorun_consensus::{Handle, ProposeError};
use quorun_executor::{Executor, Task, Watched};
use quorun_ledger::{
    Checker, Command, Completion, JobId, JobResult, JobState, NodeId, Reply, Verdict,
    language::needed,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, info_span, warn};

use crate::catalogue::Catalogue;
use crate::console::Consoles;
use crate::images::Images;
use crate::ledger;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::output::{Outputs, Recorder};

/// How long one proposal of a report may take before it is proposed again.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);
/// Chunks of output between the sandbox and the listeners before the sandbox waits.
const CHUNKS: usize = 64;

/// Executes the attempts of this node.
#[derive(Clone)]
pub struct Worker {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    incarnation: u64,
    consensus: Handle,
    executor: Executor,
    outputs: Outputs,
    consoles: Consoles,
    membership: Membership,
    catalogue: Catalogue,
    images: Images,
    metrics: Metrics,
    /// What runs, with the attempt and the way to end it.
    running: Mutex<HashMap<JobId, (u32, CancellationToken)>>,
    tasks: TaskTracker,
    /// The node ends: what is stopped now is given back instead of reported.
    handing_back: AtomicBool,
}

/// How an execution ended, in the words of the ledger.
enum Report {
    Result(Box<JobResult>),
    /// This node cannot execute it now.
    Release(String),
}

impl Worker {
    /// A worker that has nothing to do yet.
    #[must_use]
    pub fn new(
        (node, incarnation): (NodeId, u64),
        consensus: Handle,
        executor: Executor,
        (outputs, consoles): (Outputs, Consoles),
        membership: Membership,
        (catalogue, images): (Catalogue, Images),
        metrics: Metrics,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                node,
                incarnation,
                consensus,
                executor,
                outputs,
                consoles,
                membership,
                catalogue,
                images,
                metrics,
                running: Mutex::default(),
                tasks: TaskTracker::new(),
                handing_back: AtomicBool::new(false),
            }),
        }
    }

    /// The ledger has assigned an attempt to a node, as it shows since `at`.
    pub fn assigned(&self, job: JobId, attempt: u32, node: NodeId, incarnation: u64, at: Instant) {
        // While the log is replayed after a start, assignments of earlier incarnations come by again.
        if node == self.inner.node && incarnation == self.inner.incarnation {
            self.start(job, attempt, at);
        }
    }

    /// The ledger has taken an attempt away from a node.
    pub fn revoked(&self, job: JobId, attempt: u32, node: NodeId) {
        if node != self.inner.node {
            return;
        }
        if let Some((running, cancel)) = self.inner.running().get(&job)
            && *running == attempt
        {
            info!(%job, attempt, "attempt revoked");
            cancel.cancel();
        }
    }

    /// Compares what runs with what the ledger says, after events were skipped.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn reconcile(&self) -> Result<(), ledger::ReadFailed> {
        let (me, incarnation) = (self.inner.node, self.inner.incarnation);
        let attempts = ledger::read(&self.inner.consensus, move |view| {
            let mut attempts = Vec::new();
            if view.node(me)?.is_some_and(|n| n.incarnation == incarnation) {
                for (job, attempt) in view.attempts(me)? {
                    let record = view.job(job)?;
                    let runs = record.is_some_and(|j| j.state == JobState::Running);
                    attempts.push((job, attempt, runs));
                }
            }
            Ok(attempts)
        })
        .await?;
        let mut wanted = HashMap::new();
        for (job, attempt, runs) in attempts {
            if runs {
                wanted.insert(job, attempt);
            } else if !self.inner.running().contains_key(&job) {
                // It was cancelled while this node did not look: nothing runs, but the slot is still taken.
                let inner = Arc::clone(&self.inner);
                self.inner.tasks.spawn(async move {
                    let reason = "cancelled before it was started".to_owned();
                    let node = inner.node;
                    let command = Command::Release {
                        job,
                        attempt,
                        node,
                        reason,
                    };
                    inner.report(command).await;
                });
            }
        }
        for (job, (attempt, cancel)) in self.inner.running().iter() {
            if wanted.get(job) != Some(attempt) {
                cancel.cancel();
            }
        }
        for (job, attempt) in wanted {
            self.start(job, attempt, Instant::now());
        }
        Ok(())
    }

    /// How many attempts run.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.inner.running().len()
    }

    /// Waits until nothing runs; nothing new may be assigned any more.
    pub async fn drained(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Stops what still runs and gives it back to the others.
    pub fn hand_back(&self) {
        self.inner.handing_back.store(true, Ordering::Release);
        for (_, cancel) in self.inner.running().values() {
            cancel.cancel();
        }
    }

    fn start(&self, job: JobId, attempt: u32, assigned: Instant) {
        let cancel = CancellationToken::new();
        {
            let mut running = self.inner.running();
            if running
                .get(&job)
                .is_some_and(|(known, _)| *known >= attempt)
            {
                return;
            }
            // An older attempt of the same job on this node is void.
            if let Some((_, old)) = running.insert(job, (attempt, cancel.clone())) {
                old.cancel();
            }
        }
        // Recorded from here on, so that whoever hears of the assignment finds the attempt. It lives until the report
        // is settled, so that a listener finds either it or the result.
        let recorder = Arc::new(self.inner.outputs.record((job, attempt)));
        let inner = Arc::clone(&self.inner);
        let span = info_span!("attempt", %job, attempt);
        self.inner.tasks.spawn(
            async move {
                inner
                    .attempt(job, attempt, assigned, cancel, recorder)
                    .await;
                let mut running = inner.running();
                if running
                    .get(&job)
                    .is_some_and(|(known, _)| *known == attempt)
                {
                    running.remove(&job);
                }
            }
            .instrument(span),
        );
    }
}

impl Inner {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, (u32, CancellationToken)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn attempt(
        &self,
        job: JobId,
        attempt: u32,
        assigned: Instant,
        cancel: CancellationToken,
        recorder: Arc<Recorder>,
    ) {
        let began = Instant::now();
        info!("attempt started");
        let execution = self.execute(job, attempt, assigned, cancel, &recorder);
        let report = match AssertUnwindSafe(execution).catch_unwind().await {
            Ok(report) => report,
            // Without a report the job would stay assigned, and the slot taken, as long as this node lives.
            Err(_) => Report::Result(Box::new(JobResult::internal_error(
                "the node that ran the job has a bug; its log has the place",
            ))),
        };
        let report = match report {
            Report::Result(result)
                if result.outcome.verdict == Verdict::Cancelled
                    && self.handing_back.load(Ordering::Acquire) =>
            {
                Report::Release("the node was told to end".to_owned())
            }
            report => report,
        };
        let executed = began.elapsed();
        let completion = match report {
            Report::Result(mut result) => {
                result.output.attempt_us = u64::try_from(executed.as_micros()).ok();
                let verdict = result.outcome.verdict;
                let ran = Duration::from_micros(result.outcome.wall_us);
                self.metrics.program.took(ran);
                let ended = Instant::now();
                let command = Command::Complete {
                    job,
                    attempt,
                    node: self.node,
                    result: *result,
                };
                let completion = self.report(command).await;
                if completion.is_some() {
                    self.metrics.result.since(ended);
                    self.metrics.ended(verdict, completion);
                }
                info!(
                    verdict = verdict.as_str(),
                    ?completion,
                    ?executed,
                    "attempt ended"
                );
                completion
            }
            Report::Release(reason) => {
                warn!(reason, "attempt given back");
                self.metrics.given_back();
                // The leader must know that this node takes nothing before the job is free to be assigned again.
                self.membership.report_now(REPORT_DEADLINE).await;
                let command = Command::Release {
                    job,
                    attempt,
                    node: self.node,
                    reason,
                };
                self.report(command).await
            }
        };
        if completion == Some(Completion::Fenced) {
            info!("the report was fenced: the job has another attempt or has ended");
        }
    }

    async fn execute(
        &self,
        job: JobId,
        attempt: u32,
        assigned: Instant,
        cancel: CancellationToken,
        recorder: &Arc<Recorder>,
    ) -> Report {
        let spec = match ledger::look(&self.consensus, move |view| view.spec(job)).await {
            Ok(Some(spec)) => spec,
            Ok(None) => return Report::Release("its submission is not in the ledger".to_owned()),
            Err(error) => return Report::Release(error.to_string()),
        };
        let Some(language) = self.catalogue.of_job(&spec) else {
            return Report::Result(Box::new(JobResult::internal_error(format!(
                "node {} does not know the language {}",
                self.node, spec.language
            ))));
        };
        let checker = match &spec.checker {
            Checker::Program(program) => {
                let known = self.catalogue.current();
                let Some(known) = known.find(&program.language) else {
                    // The node was chosen for the language of the program that is judged; another one may know both.
                    return Report::Release(format!(
                        "node {} does not know the checker's language {}",
                        self.node, program.language
                    ));
                };
                if !self.images.has(&known.needs())
                    && let Some(reason) = self.images.is_missing(&known.language).await
                {
                    return Report::Release(format!(
                        "the checker's language {} cannot run on node {}: {reason}",
                        program.language, self.node
                    ));
                }
                Some(known.language.clone())
            }
            _ => None,
        };
        if let Some(definition) = &spec.definition {
            // The language may be another one by now, or be gone, and its image with it.
            let needs = needed(&spec.language, Some(definition.version));
            if !self.images.has(&needs)
                && let Some(reason) = self.images.is_missing(&language).await
            {
                return Report::Release(format!(
                    "what the language {} was when the job was accepted cannot run on node {}: {reason}",
                    spec.language, self.node
                ));
            }
        }
        let (chunks, mut printed) = mpsc::channel(CHUNKS);
        let (cases, mut ended) = mpsc::unbounded_channel();
        let recorder = Arc::clone(recorder);
        let record = tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(chunk) = printed.recv() => recorder.push(chunk),
                    Some(case) = ended.recv() => recorder.case(case),
                    else => return,
                }
            }
        });
        let (desk, interaction) = spec
            .interactive
            .then(|| self.consoles.open((job, attempt), spec.terminal))
            .unzip();
        let task = Task {
            job,
            attempt,
            language,
            spec,
            checker,
        };
        if let Some(desk) = &desk {
            tokio::select! {
                () = desk.somebody_comes() => {}
                () = cancel.cancelled() => {}
            }
        } else {
            self.metrics.start.since(assigned);
        }
        let watched = Watched {
            output: chunks,
            cases,
            interaction,
        };
        let alone = async {
            match &desk {
                Some(desk) => desk.watch_over().await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            result = self.executor.execute_watched(task, watched, cancel) => result,
            never = alone => match never {},
        };
        drop(desk);
        // Ends by itself once the executor has dropped its senders.
        let _ = record.await;
        match result {
            Ok(result) => Report::Result(Box::new(result)),
            Err(unavailable) => Report::Release(unavailable.reason),
        }
    }

    /// Proposes a report until it is committed or fenced. `None` when the node ends before that; its next incarnation
    /// then has the job requeued.
    async fn report(&self, command: Command) -> Option<Completion> {
        loop {
            let deadline = Instant::now() + REPORT_DEADLINE;
            match self
                .consensus
                .propose(command.clone(), deadline.into())
                .await
            {
                Ok(Reply::Completed(completion)) => return Some(completion),
                Ok(other) => {
                    warn!(?other, "a report was answered with something else");
                    return None;
                }
                Err(ProposeError::Stopped) => return None,
                Err(error) => warn!(%error, "report not committed yet, proposing it again"),
            }
        }
    }
}
