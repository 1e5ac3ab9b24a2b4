//! The runs of a job: one, or one for each test case, in one sandbox as long as that sandbox will do.
//!
//! A program is compiled once. Before it runs for the first time the warden takes an archive of its box, and each further
//! case starts from that archive in a wiped box and as another user. A sandbox that a case has used up (its memory ran
//! out) is replaced, and the archive moves on to the next one. What a case is expected to print stays here.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quorun_ledger::job::{Compile, JobResult, Outcome, Output, TestCase, TestResult, Verdict};
use quorun_warden::protocol::{End, Program};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::artefacts::{self, Artefact, Key};
use crate::input::Input;
use crate::live::Live;
use crate::pool::Discard;
use crate::sandbox::{Interrupted, Link, Transcript};
use crate::task::{self, CaseEnded, Task};
use crate::{check, executor, verdict};

/// What is kept of a test case's stdout, and again of its stderr, bytes. All of it is compared.
const KEPT: usize = 16 << 10;

/// The runs of a task, and how far they have come.
#[derive(Debug)]
pub(crate) struct Runs<'a> {
    task: &'a Task,
    /// Where the artefact is to be kept, if it is.
    key: Option<Key>,
    /// What the box held after the compile step, if that is known here.
    archive: Option<Bytes>,
    /// The present sandbox's warden holds it.
    held: bool,
    /// The artefact is among those of this node.
    kept: bool,
    /// The memory of the present sandbox ran out.
    used_up: bool,
    /// Interpreters are started ahead; how many of them were used is counted there.
    zygotes: Option<&'a AtomicU64>,
    compile: Option<Compile>,
    tests: Vec<TestResult>,
    /// Who is told of each case when it has ended.
    told: Option<&'a mpsc::UnboundedSender<CaseEnded>>,
}

/// What comes after the runs in one sandbox.
#[derive(Debug)]
pub(crate) enum Next {
    /// The job has its result.
    Finished(Box<JobResult>),
    /// The other cases need a fresh sandbox.
    FreshSandbox,
    /// The sandbox failed before the program ran; another one may do better.
    SandboxFailed(String),
}

/// What is to be done with what a warden holds when its sandbox is clean again.
#[derive(Debug)]
pub(crate) enum Holding {
    /// It holds nothing.
    Nothing,
    /// It is of no use any more.
    Forget,
    /// It is an artefact that is to be kept.
    Fetch {
        key: Key,
        compile: Compile,
        limit: u64,
    },
}

impl<'a> Runs<'a> {
    /// Those of a task, from its source or from an artefact. `key`: where its artefact is to be kept.
    pub(crate) fn new(task: &'a Task, key: Option<Key>, artefact: Option<Artefact>) -> Self {
        let kept = artefact.is_some();
        let (compile, archive) = artefact
            .map(|Artefact { compile, archive }| (said_again(compile, task), archive))
            .unzip();
        Self {
            task,
            key,
            archive,
            held: false,
            kept,
            used_up: false,
            zygotes: None,
            compile,
            tests: Vec::new(),
            told: None,
        }
    }

    /// Tells somebody of each case when it has ended.
    pub(crate) fn telling(mut self, told: Option<&'a mpsc::UnboundedSender<CaseEnded>>) -> Self {
        self.told = told;
        self
    }

    /// Has interpreters started ahead, if there is somewhere to count those that are used.
    pub(crate) fn with_zygotes(mut self, zygotes: Option<&'a AtomicU64>) -> Self {
        self.zygotes = zygotes;
        self
    }

    fn has_tests(&self) -> bool {
        !self.task.spec.tests.is_empty()
    }

    /// Runs what is left, in a sandbox that is clean.
    pub(crate) async fn go_on(
        &mut self,
        link: &mut Link,
        live: &mut Live,
        input: &mut Input,
        cancel: &CancellationToken,
    ) -> Result<Next, Interrupted> {
        let broken = |cause| Interrupted {
            cause,
            started: false,
        };
        self.held = false;
        if let Some(archive) = &self.archive {
            link.load(archive).await.map_err(broken)?;
            self.held = true;
        }
        if !self.has_tests() {
            let transcript = self.run(link, live, input, cancel).await?;
            if let Some(reason) = verdict::sandbox_failed(&transcript) {
                return Ok(Next::SandboxFailed(reason));
            }
            live.finish().await;
            let (stdout, stderr) = live.take_output();
            return Ok(Next::Finished(Box::new(
                self.result(transcript, stdout, stderr),
            )));
        }
        loop {
            // Nobody watches a test case: its output may be secret.
            let mut live = Live::new(mpsc::channel(1).0);
            let transcript = self
                .run(link, &mut live, &mut Input::none(), cancel)
                .await?;
            if let Some(reason) = verdict::sandbox_failed(&transcript) {
                return Ok(Next::SandboxFailed(reason));
            }
            let ran = matches!(transcript.end, End::Ran(_));
            let lost = match (&transcript.held, self.held) {
                (Some(Err(reason)), false) => Some(reason.clone()),
                _ => None,
            };
            let (stdout, stderr) = live.take_output();
            let result = self.result(transcript, stdout, stderr);
            if !ran {
                return Ok(Next::Finished(Box::new(result)));
            }
            if let Some(result) = self.case_ended(result) {
                return Ok(Next::Finished(Box::new(result)));
            }
            if let Some(reason) = lost {
                return Ok(Next::Finished(Box::new(self.not_held(&reason))));
            }
            let clean = link.clean().await.map_err(broken)?;
            if clean.is_err() || self.used_up {
                // Worth a try: otherwise the next sandbox compiles again.
                if self.archive.is_none() && self.held {
                    self.archive = link.fetch(artefacts::largest(self.task)).await.ok();
                }
                self.held = false;
                return Ok(Next::FreshSandbox);
            }
        }
    }

    /// One run: of the next case, or of the only one.
    async fn run(
        &mut self,
        link: &mut Link,
        live: &mut Live,
        input: &mut Input,
        cancel: &CancellationToken,
    ) -> Result<Transcript, Interrupted> {
        let program = if self.held {
            Program::Held
        } else {
            task::source(self.task)
        };
        let mut run = task::request(self.task, program);
        if self.held {
            run.compile = None;
        } else {
            let artefact = run.compile.is_some() && self.key.is_some();
            let further = self.task.spec.tests.len() > self.tests.len() + 1;
            run.hold = (artefact || further).then(|| artefacts::largest(self.task));
        }
        if let Some(case) = self.case() {
            run.stdin = case.stdin.to_vec();
        }
        run.close_stdin = !input.is_open();
        run.zygote = self
            .zygotes
            // Its stdin, stdout and stderr are pipes.
            .filter(|_| run.terminal.is_none())
            .and_then(|_| task::zygote(self.task, &run.run));
        let patience = executor::patience(self.task);
        let transcript = link.run(run, live, input, cancel, patience).await?;
        if let (Some(used), true) = (self.zygotes, transcript.zygote) {
            used.fetch_add(1, Ordering::Relaxed);
        }
        self.held |= transcript.held == Some(Ok(()));
        self.used_up = verdict::ran_out_of_memory(&transcript);
        Ok(transcript)
    }

    /// The test case whose turn it is.
    fn case(&self) -> Option<&'a TestCase> {
        self.task.spec.tests.get(self.tests.len())
    }

    /// The result of one run.
    fn result(&mut self, transcript: Transcript, stdout: Bytes, stderr: Bytes) -> JobResult {
        let mut result = verdict::result(self.task, transcript, stdout, stderr);
        // The first to compile; a later sandbox may have had to do it again.
        if self.compile.is_none() {
            self.compile = result.output.compile.take();
        }
        result.output.compile = self.compile.clone();
        result
    }

    /// A case has ended; the job's result, if it was the last.
    pub(crate) fn case_ended(&mut self, result: JobResult) -> Option<JobResult> {
        let Some(case) = self.case() else {
            return Some(result);
        };
        let JobResult {
            mut outcome,
            output,
        } = result;
        let right = case
            .expected
            .as_ref()
            .is_none_or(|expected| check::same_lines(&output.stdout, expected));
        if outcome.verdict == Verdict::Accepted && !right {
            outcome.verdict = Verdict::WrongAnswer;
        }
        let failed = outcome.verdict != Verdict::Accepted;
        let over = is_over(outcome.verdict);
        if let Some(told) = self.told {
            // Whoever does not hear it finds it in the result.
            let _ = told.send(CaseEnded {
                index: u32::try_from(self.tests.len()).unwrap_or(u32::MAX),
                outcome: outcome.clone(),
            });
        }
        self.tests.push(TestResult {
            outcome,
            stdout_truncated: output.stdout_truncated || output.stdout.len() > KEPT,
            stderr_truncated: output.stderr_truncated || output.stderr.len() > KEPT,
            stdout: beginning(&output.stdout),
            stderr: beginning(&output.stderr),
        });
        let last = over || (failed && self.task.spec.stop_on_failure) || self.case().is_none();
        last.then(|| self.summary())
    }

    /// The job ends with the case whose turn it is, whatever else there is to run: its result, with those of the cases before.
    pub(crate) fn ended_early(&mut self, result: JobResult) -> JobResult {
        self.case_ended(result).unwrap_or_else(|| self.summary())
    }

    /// The result of a job with test cases: how the first one went that was not accepted, and the most that any took.
    fn summary(&mut self) -> JobResult {
        let tests = std::mem::take(&mut self.tests);
        let number = tests.len();
        // What Quorun itself ended was not judged to its end, whatever came before.
        let first = tests
            .iter()
            .position(|test| is_over(test.outcome.verdict))
            .or_else(|| {
                tests
                    .iter()
                    .position(|test| test.outcome.verdict != Verdict::Accepted)
            });
        let most =
            |of: fn(&Outcome) -> u64| tests.iter().map(|t| of(&t.outcome)).max().unwrap_or(0);
        let shown = &tests[first.unwrap_or(number - 1)].outcome;
        let outcome = Outcome {
            cpu_us: most(|outcome| outcome.cpu_us),
            wall_us: most(|outcome| outcome.wall_us),
            memory_kb: most(|outcome| outcome.memory_kb),
            message: first.map(|index| {
                let which = format!("test {} of {}", index + 1, self.task.spec.tests.len());
                match &shown.message {
                    Some(message) => format!("{which}: {message}"),
                    None => which,
                }
            }),
            ..shown.clone()
        };
        JobResult {
            outcome,
            output: Output {
                compile: self.compile.clone(),
                tests,
                ..Output::default()
            },
        }
    }

    /// The other cases cannot be run, because the box after the compile step cannot be had again.
    fn not_held(&mut self, reason: &str) -> JobResult {
        let message = format!(
            "what the program starts with cannot be kept for the other test cases: {reason}"
        );
        JobResult {
            outcome: Outcome::without_run(Verdict::CompileError, message),
            output: Output {
                compile: self.compile.clone(),
                tests: std::mem::take(&mut self.tests),
                ..Output::default()
            },
        }
    }

    /// Why the present sandbox is not used for the other cases.
    pub(crate) fn discard(&self) -> Discard {
        if self.used_up {
            Discard::OutOfMemory
        } else {
            Discard::Unclean
        }
    }

    /// The present sandbox is not to be used again: the kernel killed something in it for its memory.
    pub(crate) fn used_up(&self) -> bool {
        self.used_up
    }

    /// What the present sandbox's warden holds at the end, and what it is good for.
    pub(crate) fn holding(&self) -> Holding {
        if !self.held {
            return Holding::Nothing;
        }
        match (self.key, &self.compile) {
            // What was dropped because of this job's limit may be within another's.
            (Some(key), Some(compile)) if !self.kept && !compile.truncated => Holding::Fetch {
                key,
                compile: compile.clone(),
                limit: artefacts::largest(self.task),
            },
            _ => Holding::Forget,
        }
    }
}

/// What a compiler said once, for another job: within that job's limit.
fn said_again(mut compile: Compile, task: &Task) -> Compile {
    let cap =
        usize::try_from(task.spec.limits.output_kb.saturating_mul(1024)).unwrap_or(usize::MAX);
    for text in [&mut compile.stdout, &mut compile.stderr] {
        compile.truncated |= text.len() > cap;
        text.truncate(cap);
    }
    compile.cached = true;
    compile
}

/// What Quorun itself ended is not a case that went wrong.
const fn is_over(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Cancelled | Verdict::InternalError)
}

fn beginning(output: &Bytes) -> Bytes {
    // A copy: a slice would keep all of it in memory.
    Bytes::copy_from_slice(&output[..output.len().min(KEPT)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(verdict: Verdict) -> JobResult {
        JobResult {
            outcome: Outcome::without_run(verdict, "why"),
            output: Output::default(),
        }
    }

    /// What becomes of a job with three cases that end like this.
    fn of(verdicts: &[Verdict]) -> (Verdict, Option<String>, usize) {
        let mut task = task::tests::task(quorun_ledger::job::Limits::default());
        task.spec.tests = vec![TestCase::default(); 3];
        let mut runs = Runs::new(&task, None, None);
        let mut results = verdicts.iter().filter_map(|v| runs.case_ended(ended(*v)));
        let JobResult { outcome, output } = results.next().unwrap();
        assert!(results.next().is_none());
        (outcome.verdict, outcome.message, output.tests.len())
    }

    #[test]
    fn what_a_compiler_said_is_kept_whole_and_given_within_each_job_s_limit() {
        let mut task = task::tests::task(quorun_ledger::job::Limits::default());
        task.spec.limits.output_kb = 1;
        let key = Key::of(&task, "image");
        let artefact = |length| Artefact {
            compile: Compile {
                stderr: vec![b'w'; length].into(),
                ..Compile::default()
            },
            archive: Bytes::new(),
        };
        for (length, truncated) in [(1024, false), (1025, true)] {
            let runs = Runs::new(&task, Some(key), Some(artefact(length)));
            let compile = runs.compile.clone().unwrap();
            assert_eq!((compile.stderr.len(), compile.truncated), (1024, truncated));
            assert!(compile.cached);
            let mut fresh = Runs::new(&task, Some(key), None);
            fresh.held = true;
            fresh.compile = Some(compile);
            let kept = matches!(fresh.holding(), Holding::Fetch { .. });
            assert_eq!(kept, !truncated);
        }
    }

    #[test]
    fn the_first_case_that_went_wrong_decides_unless_the_job_was_ended() {
        use Verdict::{Accepted, Cancelled, InternalError, TimeLimit, WrongAnswer};
        let why = |number| Some(format!("test {number} of 3: why"));
        assert_eq!(
            of(&[Accepted, WrongAnswer, TimeLimit]),
            (WrongAnswer, why(2), 3)
        );
        assert_eq!(of(&[WrongAnswer, Cancelled]), (Cancelled, why(2), 2));
        assert_eq!(of(&[TimeLimit, InternalError]), (InternalError, why(2), 2));
    }
}
