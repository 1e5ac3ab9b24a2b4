//! The runs of a job: one, or one for each test case, in one sandbox as long as that sandbox will do.
//!
//! A program is compiled once. Before it runs for the first time the warden takes an archive of its box, and each further
//! case starts from that archive in a wiped box and as another user. A sandbox that a case has used up (its memory ran
//! out) is replaced, and the archive moves on to the next one. What a case is expected to print stays here.

use bytes::Bytes;
use quorun_ledger::job::{
    Checker, JobResult, Judged, Outcome, Output, TestCase, TestResult, Verdict,
};
use quorun_warden::protocol::End;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::executor::Tried;
use crate::input::Input;
use crate::judge::{Checked, Judge};
use crate::live::Live;
use crate::program::{Once, Program};
use crate::sandbox::{Interrupted, Link};
use crate::task::{CaseEnded, Task};
use crate::{check, verdict};

/// What is kept of a test case's stdout, and again of its stderr, bytes. All of it is compared.
const KEPT: usize = 16 << 10;

/// What is kept of all test cases of a job together, bytes: where there are many, less is kept of each.
const KEPT_IN_ALL: usize = 4 << 20;

/// Texts that are longer than this together are compared where nobody waits for it, bytes.
const LONG: usize = 64 << 10;

/// The runs of a task, and how far they have come.
#[derive(Debug)]
pub(crate) struct Runs<'a> {
    task: &'a Task,
    program: Program<'a>,
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
    /// What was printed cannot be judged here.
    NotJudged(Tried),
}

impl<'a> Runs<'a> {
    /// Those of a task, all of them with this program.
    pub(crate) fn new(task: &'a Task, program: Program<'a>) -> Self {
        Self {
            task,
            program,
            tests: Vec::new(),
            told: None,
        }
    }

    /// Tells somebody of each case when it has ended.
    pub(crate) fn telling(mut self, told: Option<&'a mpsc::UnboundedSender<CaseEnded>>) -> Self {
        self.told = told;
        self
    }

    fn has_tests(&self) -> bool {
        !self.task.spec.tests.is_empty()
    }

    /// Runs what is left, in a sandbox that is clean.
    pub(crate) async fn go_on(
        &mut self,
        link: &mut Link,
        judge: &mut Option<Judge<'_>>,
        live: &mut Live,
        input: &mut Input,
        cancel: &CancellationToken,
    ) -> Result<Next, Interrupted> {
        let broken = |cause| Interrupted {
            cause,
            started: false,
        };
        self.program.enter(link).await.map_err(broken)?;
        if !self.has_tests() {
            let limits = self.task.spec.limits;
            let once = Once {
                stdin: self.task.spec.stdin.clone(),
                limits,
                data: Vec::new(),
                further: false,
            };
            let transcript = self.program.run(once, link, live, input, cancel).await?;
            if let Some(reason) = verdict::sandbox_failed(&transcript) {
                return Ok(Next::SandboxFailed(reason));
            }
            live.finish().await;
            let (stdout, stderr) = live.take_output();
            let result = self.program.result(&limits, transcript, stdout, stderr);
            return Ok(Next::Finished(Box::new(result)));
        }
        while let Some(case) = self.case() {
            let limits = case.limits(&self.task.spec.limits);
            let once = Once {
                stdin: case.stdin.clone(),
                limits,
                data: Vec::new(),
                further: self.task.spec.tests.len() > self.tests.len() + 1,
            };
            // Nobody watches a test case: its output may be secret.
            let mut live = Live::new(mpsc::channel(1).0);
            let mut input = Input::none();
            let transcript = self
                .program
                .run(once, link, &mut live, &mut input, cancel)
                .await?;
            if let Some(reason) = verdict::sandbox_failed(&transcript) {
                return Ok(Next::SandboxFailed(reason));
            }
            let ran = matches!(transcript.end, End::Ran(_));
            let lost = self.program.lost(&transcript);
            let (stdout, stderr) = live.take_output();
            let result = self.program.result(&limits, transcript, stdout, stderr);
            if !ran {
                return Ok(Next::Finished(Box::new(result)));
            }
            let checked = match self.check(case, &result, judge, cancel).await {
                Ok(checked) => checked,
                Err(tried) => return Ok(Next::NotJudged(tried)),
            };
            if let Some(result) = self.case_ended(result, checked) {
                return Ok(Next::Finished(Box::new(result)));
            }
            if let Some(reason) = lost {
                return Ok(Next::Finished(Box::new(self.not_held(&reason))));
            }
            if !self.program.settle(link).await.map_err(broken)? {
                return Ok(Next::FreshSandbox);
            }
        }
        Ok(Next::Finished(Box::new(self.summary())))
    }

    /// The test case whose turn it is.
    fn case(&self) -> Option<&'a TestCase> {
        self.task.spec.tests.get(self.tests.len())
    }

    /// What becomes of a case whose program did nothing wrong so far; nothing, if it did.
    async fn check(
        &self,
        case: &TestCase,
        result: &JobResult,
        judge: &mut Option<Judge<'_>>,
        cancel: &CancellationToken,
    ) -> Result<Option<Checked>, Tried> {
        let JobResult { outcome, output } = result;
        let judged = judge.is_some() || case.expected.is_some();
        if outcome.verdict != Verdict::Accepted || !judged {
            return Ok(None);
        }
        if output.stdout_truncated {
            let message = format!(
                "printed more than the {} KiB that are kept and compared",
                self.task.spec.limits.output_kb
            );
            return Ok(Some(Checked::because(Verdict::WrongAnswer, message)));
        }
        if let Some(judge) = judge {
            // On the heap: jobs without such a checker need not carry the room for it.
            let check = Box::pin(judge.check(case, &output.stdout, cancel));
            return check.await.map(Some);
        }
        let expected = case.expected.clone().unwrap_or_default();
        let right = is_right(&self.task.spec.checker, output.stdout.clone(), expected).await;
        Ok(Some(match right {
            Some(true) => Checked::plain(Verdict::Accepted),
            Some(false) => Checked::plain(Verdict::WrongAnswer),
            None => Checked::because(
                Verdict::InternalError,
                "what was printed could not be compared with what was expected",
            ),
        }))
    }

    /// A case has ended, and was checked if there was something to check; the job's result, if it was the last.
    pub(crate) fn case_ended(
        &mut self,
        result: JobResult,
        checked: Option<Checked>,
    ) -> Option<JobResult> {
        let Some(case) = self.case() else {
            return Some(result);
        };
        let JobResult {
            mut outcome,
            output,
        } = result;
        let (mut score, mut words) = (None, None);
        if let Some(checked) = checked {
            outcome.verdict = checked.verdict;
            outcome.message = checked.message;
            (score, words) = (checked.score, checked.words);
        }
        let failed = outcome.verdict != Verdict::Accepted;
        let over = is_over(outcome.verdict);
        let kept = kept(self.task.spec.tests.len());
        let mut ended = TestResult {
            outcome,
            stdout_truncated: output.stdout_truncated || output.stdout.len() > kept,
            stderr_truncated: output.stderr_truncated || output.stderr.len() > kept,
            stdout: Bytes::new(),
            stderr: Bytes::new(),
            name: case.name.clone(),
            hidden: case.hidden,
            score,
            checker: words,
        };
        if let Some(told) = self.told {
            // Whoever does not hear it finds it in the result.
            let _ = told.send(CaseEnded {
                index: u32::try_from(self.tests.len()).unwrap_or(u32::MAX),
                result: ended.clone(),
            });
        }
        ended.stdout = beginning(&output.stdout, kept);
        ended.stderr = beginning(&output.stderr, kept);
        self.tests.push(ended);
        let last = over || (failed && self.task.spec.stop_on_failure) || self.case().is_none();
        last.then(|| self.summary())
    }

    /// The job ends with the case whose turn it is, whatever else there is to run: its result, with those of the cases before.
    pub(crate) fn ended_early(&mut self, result: JobResult) -> JobResult {
        self.case_ended(result, None)
            .unwrap_or_else(|| self.summary())
    }

    /// The result of a job with test cases: how the first one went that was not accepted, and the most that any took.
    fn summary(&mut self) -> JobResult {
        let tests = std::mem::take(&mut self.tests);
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
        let Some(shown) = tests.get(first.unwrap_or(tests.len().saturating_sub(1))) else {
            return JobResult::internal_error("no test case was run");
        };
        let shown = &shown.outcome;
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
                compile: self.program.compile().cloned(),
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
                compile: self.program.compile().cloned(),
                tests: std::mem::take(&mut self.tests),
                ..Output::default()
            },
        }
    }

    /// The program, for whoever looks after its sandbox.
    pub(crate) fn program(&self) -> &Program<'a> {
        &self.program
    }
}

/// Whether a checker that is no program takes what was printed; `None` when it could not be asked.
async fn is_right(checker: &Checker, printed: Bytes, expected: Bytes) -> Option<bool> {
    if printed.len() + expected.len() <= LONG {
        return check::accepts(checker, &printed, &expected);
    }
    let checker = checker.clone();
    tokio::task::spawn_blocking(move || check::accepts(&checker, &printed, &expected))
        .await
        .ok()?
}

/// What Quorun itself ended is not a case that went wrong.
const fn is_over(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Cancelled | Verdict::InternalError)
}

/// What is kept of each of two streams of each of so many cases, bytes.
fn kept(cases: usize) -> usize {
    KEPT.min(KEPT_IN_ALL / 2 / cases.max(1))
}

fn beginning(output: &Bytes, kept: usize) -> Bytes {
    // A copy: a slice would keep all of it in memory.
    Bytes::copy_from_slice(&output[..output.len().min(kept)])
}

/// Puts what came of all test cases of a task into its result, if it has some.
pub(crate) fn judged(task: &Task, mut result: JobResult) -> JobResult {
    let cases = &task.spec.tests;
    if !cases.is_empty() {
        result.outcome.judged = Some(Judged::of(cases, &result.output.tests));
    }
    result
}

#[cfg(test)]
mod tests {
    use quorun_ledger::job::Limits;

    use super::*;
    use crate::task;

    fn ended(verdict: Verdict) -> JobResult {
        JobResult {
            outcome: Outcome::without_run(verdict, "why"),
            output: Output::default(),
        }
    }

    /// What becomes of a job with three cases that end like this.
    fn of(verdicts: &[Verdict]) -> (Verdict, Option<String>, usize) {
        let mut task = task::tests::task(Limits::default());
        task.spec.tests = vec![TestCase::default(); 3];
        let mut runs = Runs::new(&task, Program::new(&task, None, None));
        let mut results = verdicts
            .iter()
            .filter_map(|v| runs.case_ended(ended(*v), None));
        let JobResult { outcome, output } = results.next().unwrap();
        assert!(results.next().is_none());
        (outcome.verdict, outcome.message, output.tests.len())
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

    #[test]
    fn of_many_cases_less_is_kept_and_all_of_it_within_bounds() {
        assert_eq!(kept(1), KEPT);
        assert_eq!(kept(128), KEPT);
        for cases in [129, 500, 1000] {
            assert!(kept(cases) < KEPT && 2 * cases * kept(cases) <= KEPT_IN_ALL);
        }
        assert!(kept(1000) >= 2 << 10, "{}", kept(1000));
    }

    #[test]
    fn what_a_checker_says_replaces_the_verdict_and_the_rest_is_a_sum() {
        let mut task = task::tests::task(Limits::default());
        task.spec.tests = [3, 1, 0]
            .map(|weight| TestCase {
                weight,
                ..TestCase::default()
            })
            .to_vec();
        let mut runs = Runs::new(&task, Program::new(&task, None, None));
        let half = Checked {
            score: Some(quorun_ledger::Score::from_millionths(500_000)),
            words: Some("half".into()),
            ..Checked::plain(Verdict::WrongAnswer)
        };
        let accepted = || JobResult {
            outcome: Outcome {
                message: None,
                ..ended(Verdict::Accepted).outcome
            },
            output: Output::default(),
        };
        let right = Checked::plain(Verdict::Accepted);
        assert!(runs.case_ended(accepted(), Some(half)).is_none());
        assert!(runs.case_ended(accepted(), Some(right.clone())).is_none());
        let result = judged(&task, runs.case_ended(accepted(), Some(right)).unwrap());
        let judged = result.outcome.judged.unwrap();
        assert_eq!((judged.passed, judged.total), (2, 3));
        assert_eq!(judged.score.millionths(), 625_000);
        assert_eq!(result.outcome.verdict, Verdict::WrongAnswer);
        // What the checker says about a case stays with the case.
        assert_eq!(result.outcome.message.as_deref(), Some("test 1 of 3"));
        assert_eq!(result.output.tests[0].checker.as_deref(), Some("half"));
    }
}
