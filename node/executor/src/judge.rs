//! A checker that is a program of the submitter: compiled once, run once for each case, in a sandbox of its own.
//!
//! It finds three files in its folder, whose names are also its arguments: `input` is what the program read, `output` what
//! it printed, `expected` what it should have printed. How it answers is testlib's way, with Kattis' codes for those whose
//! interpreter ends with 1 when it breaks. The program under test is in another sandbox: it sees neither the checker nor
//! any of the three.

use bytes::Bytes;
use quorun_ledger::job::{Compile, Outcome, Score, TestCase, Verdict};
use quorun_warden::protocol::File;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::executor::{Executor, TRIES, Tried};
use crate::input::Input;
use crate::live::Live;
use crate::pool::{Discard, Lease};
use crate::program::{Once, Program};
use crate::task::{self, Task};
use crate::verdict;

/// What is kept of a checker's words, bytes.
const WORDS: usize = 1 << 10;

/// What a checker has made of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// What becomes of a program that was accepted so far.
    pub(crate) verdict: Verdict,
    /// What the case gets of its weight, where that does not follow from the verdict.
    pub(crate) score: Option<Score>,
    /// Why, in Quorun's words.
    pub(crate) message: Option<String>,
    /// What the checker said.
    pub(crate) words: Option<String>,
}

impl Checked {
    /// A verdict that speaks for itself.
    pub(crate) const fn plain(verdict: Verdict) -> Self {
        Self {
            verdict,
            score: None,
            message: None,
            words: None,
        }
    }

    /// A verdict with its reason.
    pub(crate) fn because(verdict: Verdict, message: impl Into<String>) -> Self {
        Self {
            message: Some(message.into()),
            ..Self::plain(verdict)
        }
    }

    /// The checker is at fault, and the case was not judged.
    fn fault(message: impl Into<String>, words: Option<String>) -> Self {
        Self {
            words,
            ..Self::because(Verdict::InternalError, message)
        }
    }
}

/// The checker of a task, with the sandbox that it has.
#[derive(Debug)]
pub(crate) struct Judge<'a> {
    executor: &'a Executor,
    /// The checker as a task of its own.
    task: &'a Task,
    /// Other cases may follow the first one.
    further: bool,
    /// The first try starts from an artefact, if there is one.
    from_artefact: bool,
    program: Option<Program<'a>>,
    /// Cleans up after the last run, or has done so.
    lease: Option<Lease>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(executor: &'a Executor, task: &'a Task, further: bool) -> Self {
        Self {
            executor,
            task,
            further,
            from_artefact: true,
            program: None,
            lease: None,
        }
    }

    /// What the checker makes of a case in which this was printed. `Err` when that cannot be found out here.
    pub(crate) async fn check(
        &mut self,
        case: &TestCase,
        printed: &Bytes,
        cancel: &CancellationToken,
    ) -> Result<Checked, Tried> {
        let mut reason = String::new();
        for _ in 0..TRIES {
            match self.attempt(case, printed, cancel).await {
                Ok(checked) => return Ok(checked),
                Err(Tried::Again(cause)) => {
                    reason = cause;
                    // Should the artefact be what goes wrong, it is made anew.
                    self.program = None;
                    self.from_artefact = false;
                }
                // Cancelled, or without an image: the words are of the checker's task.
                Err(Tried::Result(result)) => {
                    let Outcome {
                        verdict, message, ..
                    } = result.outcome;
                    let message = message.unwrap_or_default();
                    return Ok(match verdict {
                        Verdict::Cancelled => Checked::because(verdict, message),
                        _ => Checked::fault(format!("the checker: {message}"), None),
                    });
                }
                Err(tried) => return Err(tried),
            }
        }
        // As with the program's own sandbox: it may be that the engine has gone, and with it all that was warm.
        Err(Tried::Again(format!(
            "the checker could not be run: {reason}"
        )))
    }

    async fn attempt(
        &mut self,
        case: &TestCase,
        printed: &Bytes,
        cancel: &CancellationToken,
    ) -> Result<Checked, Tried> {
        let gone = || Tried::Again("the checker's sandbox has gone".into());
        let mut lease = self.sandbox(cancel).await?;
        let (Some(link), Some(program)) = (lease.link(), &mut self.program) else {
            return Err(gone());
        };
        let limits = self.task.spec.limits;
        let once = Once {
            stdin: Bytes::new(),
            limits,
            data: data(case, printed),
            further: self.further,
        };
        // Nobody watches a checker: what it knows may be secret.
        let mut live = Live::new(mpsc::channel(1).0);
        let mut input = Input::none();
        let ran = program.run(once, link, &mut live, &mut input, cancel).await;
        let transcript = match ran {
            Ok(transcript) => transcript,
            Err(interrupted) => {
                let ended = self
                    .executor
                    .interrupted(self.task, lease, interrupted, &mut live);
                let result = ended.await?;
                return Ok(said(&result.outcome, None, &Bytes::new(), &Bytes::new()));
            }
        };
        if let Some(reason) = verdict::sandbox_failed(&transcript) {
            self.executor.forget(lease);
            return Err(Tried::Again(reason));
        }
        let lost = program.lost(&transcript);
        let (stdout, stderr) = live.take_output();
        let result = program.result(&limits, transcript, stdout, stderr);
        let compile = result.output.compile.as_ref();
        let mut checked = said(
            &result.outcome,
            compile,
            &result.output.stdout,
            &result.output.stderr,
        );
        if let (Some(reason), true) = (lost, checked.verdict != Verdict::InternalError) {
            checked = Checked::fault(
                format!(
                    "what the checker starts with cannot be kept for the other test cases: {reason}"
                ),
                None,
            );
        }
        self.lease = Some(lease);
        Ok(checked)
    }

    /// The sandbox for the next run: that of the last one, if it is clean, or another.
    async fn sandbox(&mut self, cancel: &CancellationToken) -> Result<Lease, Tried> {
        if let (Some(mut lease), Some(program)) = (self.lease.take(), &mut self.program) {
            let settled = match lease.link() {
                Some(link) => program.settle(link).await,
                None => Ok(false),
            };
            match settled {
                Ok(true) => return Ok(lease),
                Ok(false) => lease.discard(program.discard()),
                Err(broken) => lease.discard(Discard::from(&broken)),
            }
        }
        let mut lease = self.executor.acquire(self.task, cancel).await?;
        lease.count_job();
        let program = match &mut self.program {
            Some(program) => program,
            none => none.insert(
                self.executor
                    .program(self.task, lease.image_id(), self.from_artefact)
                    .await,
            ),
        };
        let Some(link) = lease.link() else {
            return Err(Tried::Again("the checker's sandbox has gone".into()));
        };
        match program.enter(link).await {
            Ok(()) => Ok(lease),
            Err(broken) => {
                lease.discard(Discard::from(&broken));
                Err(Tried::Again(broken.to_string()))
            }
        }
    }

    /// Gives the sandbox back.
    pub(crate) fn finish(self) {
        if let (Some(lease), Some(program)) = (self.lease, &self.program) {
            self.executor.look_after(lease, program);
        }
    }
}

/// The files of a case, for the checker.
fn data(case: &TestCase, printed: &Bytes) -> Vec<File> {
    let file = |name: &str, content: &[u8]| File {
        name: name.to_owned(),
        content: content.to_vec(),
    };
    vec![
        file(task::CHECKER_INPUT, &case.stdin),
        file(task::CHECKER_OUTPUT, printed),
        file(
            task::CHECKER_EXPECTED,
            case.expected.as_deref().unwrap_or_default(),
        ),
    ]
}

/// What a checker's end says about the case.
fn said(outcome: &Outcome, compile: Option<&Compile>, stdout: &[u8], stderr: &[u8]) -> Checked {
    let why = || outcome.message.clone().unwrap_or_default();
    let code = match outcome.verdict {
        Verdict::Accepted | Verdict::RuntimeError => outcome.exit_code,
        Verdict::Cancelled => return Checked::because(Verdict::Cancelled, "cancelled"),
        Verdict::CompileError => {
            let words = compile.and_then(|compile| words(&compile.stdout, &compile.stderr, true));
            return Checked::fault(
                format!("the checker cannot be compiled: {}", why()),
                words.map(|words| shortened(&words)),
            );
        }
        _ => None,
    };
    let words = words(stdout, stderr, false);
    let (score, words) = match words.as_deref().map(score_line) {
        Some(Ok((score, rest))) => (score, Some(rest.to_owned())),
        Some(Err(number)) => {
            let fault = format!("the checker gave the score {number}; a score is from 0 to 1");
            return Checked::fault(fault, words.map(|words| shortened(&words)));
        }
        None => (None, None),
    };
    let words = words
        .map(|words| shortened(&words))
        .filter(|words| !words.is_empty());
    let judged = |verdict| Checked {
        verdict,
        score,
        message: None,
        words: words.clone(),
    };
    match (code, score) {
        (Some(0 | 42), _) => judged(Verdict::Accepted),
        (Some(1 | 2 | 43), _) => judged(Verdict::WrongAnswer),
        (Some(7), Some(Score::FULL)) => judged(Verdict::Accepted),
        (Some(7), Some(_)) => judged(Verdict::WrongAnswer),
        (Some(7), None) => Checked::fault(
            "the checker ended with exit code 7, but its first line is not a score",
            words,
        ),
        (Some(code), _) => {
            Checked::fault(format!("the checker ended with exit code {code}"), words)
        }
        (None, _) => Checked::fault(format!("the checker: {}", why()), words),
    }
}

/// What a program said: what it printed to stdout, if it printed anything there, and otherwise to stderr, where testlib
/// says it; a compiler the other way round.
fn words(stdout: &[u8], stderr: &[u8], compiler: bool) -> Option<String> {
    let (first, second) = if compiler {
        (stderr, stdout)
    } else {
        (stdout, stderr)
    };
    let chosen = if first.trim_ascii().is_empty() {
        second
    } else {
        first
    };
    let chosen = chosen.trim_ascii();
    // More than is kept in the end, so that a cut in the middle of a letter does not show.
    let chosen = &chosen[..chosen.len().min(4 * WORDS)];
    (!chosen.is_empty()).then(|| String::from_utf8_lossy(chosen).into_owned())
}

/// The score that the first line gives, and what is said beside it. A line that only looks like one is text. `Err` has a
/// number that is no score.
fn score_line(words: &str) -> Result<(Option<Score>, &str), String> {
    let line = words.lines().next().unwrap_or_default();
    let mut parts = line.split_ascii_whitespace();
    let keyword = parts.next();
    let number = parts.next();
    let (Some("score" | "points"), Some(number)) = (keyword, number) else {
        return Ok((None, words));
    };
    let Ok(value) = number.parse::<f64>() else {
        return Ok((None, words));
    };
    if !(0.0..=1.0).contains(&value) {
        return Err(shortened(number));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is from 0 to a million"
    )]
    let millionths = (value * f64::from(Score::FULL.millionths())).round() as u32;
    let after = line.find(number).map_or(line.len(), |at| at + number.len());
    Ok((
        Some(Score::from_millionths(millionths)),
        words[after..].trim(),
    ))
}

/// The beginning of a text.
fn shortened(text: &str) -> String {
    if text.len() <= WORDS {
        return text.to_owned();
    }
    let mut end = WORDS;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: Option<i32>) -> Outcome {
        Outcome {
            exit_code: code,
            message: None,
            ..Outcome::without_run(
                if code == Some(0) {
                    Verdict::Accepted
                } else {
                    Verdict::RuntimeError
                },
                "",
            )
        }
    }

    fn of(code: i32, stdout: &str, stderr: &str) -> Checked {
        said(
            &ended(Some(code)),
            None,
            stdout.as_bytes(),
            stderr.as_bytes(),
        )
    }

    fn millionths(checked: &Checked) -> Option<u32> {
        checked.score.map(Score::millionths)
    }

    #[test]
    fn the_exit_code_decides() {
        use Verdict::{Accepted, InternalError, WrongAnswer};
        for (code, verdict) in [
            (0, Accepted),
            (42, Accepted),
            (1, WrongAnswer),
            (2, WrongAnswer),
            (43, WrongAnswer),
            (3, InternalError),
            (7, InternalError),
            (139, InternalError),
        ] {
            let checked = of(code, "said\n", "");
            assert_eq!(checked.verdict, verdict, "{code}");
            assert_eq!(checked.words.as_deref(), Some("said"));
            assert_eq!(checked.message.is_some(), verdict == InternalError);
        }
    }

    #[test]
    fn a_checker_that_fails_is_named() {
        for verdict in [
            Verdict::TimeLimit,
            Verdict::MemoryLimit,
            Verdict::OutputLimit,
            Verdict::RuntimeError,
            Verdict::InternalError,
        ] {
            let outcome = Outcome::without_run(verdict, "too much");
            let checked = said(&outcome, None, b"ok", b"");
            assert_eq!(checked.verdict, Verdict::InternalError);
            assert_eq!(checked.message.as_deref(), Some("the checker: too much"));
        }
        // Its exit code does not help a checker that was over a limit.
        let outcome = Outcome {
            exit_code: Some(0),
            ..Outcome::without_run(Verdict::MemoryLimit, "too much")
        };
        let checked = said(&outcome, None, b"", b"");
        assert_eq!(checked.verdict, Verdict::InternalError);
        let compile = Compile {
            stderr: Bytes::from_static(b"line 1: no"),
            ..Compile::default()
        };
        let outcome = Outcome::without_run(Verdict::CompileError, "the compile step ended");
        let checked = said(&outcome, Some(&compile), b"", b"");
        assert_eq!(checked.verdict, Verdict::InternalError);
        assert!(checked.message.unwrap().contains("cannot be compiled"));
        assert_eq!(checked.words.as_deref(), Some("line 1: no"));
    }

    #[test]
    fn a_score_stands_in_the_first_line() {
        let half = of(0, "score 0.5\nnot all of it\n", "");
        assert_eq!(
            (half.verdict, millionths(&half)),
            (Verdict::Accepted, Some(500_000))
        );
        assert_eq!(half.words.as_deref(), Some("not all of it"));
        // As testlib says it: to stderr, with its text behind it.
        let part = of(7, "", "points 0.3333333 two of six\n");
        assert_eq!(
            (part.verdict, millionths(&part)),
            (Verdict::WrongAnswer, Some(333_333))
        );
        assert_eq!(part.words.as_deref(), Some("two of six"));
        let whole = of(7, "score 1", "");
        assert_eq!(
            (whole.verdict, millionths(&whole)),
            (Verdict::Accepted, Some(1_000_000))
        );
        assert_eq!(whole.words, None);
        assert_eq!(millionths(&of(1, "score 0.25", "")), Some(250_000));
        assert_eq!(millionths(&of(1, "score 1e-1", "")), Some(100_000));
        for (text, score) in [
            ("score board", None),
            ("scores 0.5", None),
            ("the score 0.5", None),
            ("hello\nscore 0.5", None),
            ("score", None),
            ("", None),
        ] {
            let checked = of(0, text, "");
            assert_eq!(checked.verdict, Verdict::Accepted);
            assert_eq!(millionths(&checked), score, "{text:?}");
        }
        for text in [
            "score 1.5",
            "score -1",
            "score nan",
            "score inf",
            "points 50",
        ] {
            let checked = of(0, text, "");
            assert_eq!(checked.verdict, Verdict::InternalError, "{text:?}");
            assert!(checked.message.unwrap().contains("0 to 1"));
        }
    }

    #[test]
    fn long_words_are_cut_between_letters() {
        let checked = of(1, &"\u{e9}".repeat(100_000), "");
        let words = checked.words.unwrap();
        assert!(words.len() <= WORDS + 3 && words.ends_with("é…"), "{words}");
    }

    #[test]
    fn what_is_not_text_is_no_trouble() {
        let checked = said(&ended(Some(1)), None, &[0xff; 5000], b"");
        assert!(checked.words.unwrap().len() <= WORDS + 3);
    }

    proptest::proptest! {
        /// Whatever a checker prints and however it ends, it is judged within bounds.
        #[test]
        fn whatever_is_said_is_taken_within_bounds(
            code in proptest::option::of(-1..300_i32),
            keyword in proptest::sample::select(vec!["score ", "points ", "score\t", ""]),
            number in "[-+0-9.einfax]{0,6}",
            rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3000),
            on_stderr: bool,
        ) {
            let text = [keyword.as_bytes(), number.as_bytes(), &rest].concat();
            let (stdout, stderr): (&[u8], &[u8]) = if on_stderr { (b" ", &text) } else { (&text, b"x") };
            let checked = said(&ended(code), None, stdout, stderr);
            let fault = checked.verdict == Verdict::InternalError;
            proptest::prop_assert_eq!(checked.message.is_some(), fault);
            proptest::prop_assert!(checked.words.is_none_or(|words| words.len() <= WORDS + 3));
            proptest::prop_assert!(checked.message.is_none_or(|message| message.len() <= 2 * WORDS));
            let judged = matches!(code, Some(0 | 1 | 2 | 7 | 42 | 43));
            proptest::prop_assert!(fault || judged);
        }
    }
}
