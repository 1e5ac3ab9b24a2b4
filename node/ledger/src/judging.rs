//! What is judged and how: test cases, who compares, and what came of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::job::{Limits, Outcome, SourceFile, Verdict, is_false};

/// A part of a whole, in millionths of it: no rounding of another machine can make it another.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Score(u32);

impl Score {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// All of it.
    pub const FULL: Self = Self(1_000_000);

    /// So many millionths; all of it if that is more.
    #[must_use]
    pub const fn from_millionths(millionths: u32) -> Self {
        if millionths > Self::FULL.0 {
            Self::FULL
        } else {
            Self(millionths)
        }
    }

    /// The millionths.
    #[must_use]
    pub const fn millionths(self) -> u32 {
        self.0
    }

    /// The share that the points have of all that there are, rounded down: it is [`FULL`](Self::FULL) only if no point is
    /// missing. Each point is what a case weighs and what it got of that.
    fn of(points: impl Iterator<Item = (u32, Self)>, weight: u64) -> Self {
        if weight == 0 {
            return Self::NONE;
        }
        let points: u64 = points.map(|(w, s)| u64::from(w) * u64::from(s.0)).sum();
        Self::from_millionths(u32::try_from(points / weight).unwrap_or(u32::MAX))
    }
}

/// One of several inputs that a program is run with, each in a clean state of its own.
///
/// Fields that came later are left out where they hold their default, as decision 0003 has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestCase {
    /// What the program reads.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub stdin: Bytes,
    /// What it should print; whatever it prints will do where this is `None`. Never reaches the program's sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Bytes>,
    /// What the submitter calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its share of the score, among the others.
    #[serde(
        default = "TestCase::usual_weight",
        skip_serializing_if = "TestCase::is_usual_weight"
    )]
    pub weight: u32,
    /// What was printed is shown only to who asks for it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hidden: bool,
    /// CPU time, milliseconds, where it is not that of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Wall-clock time, milliseconds, where it is not that of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
}

impl TestCase {
    const fn usual_weight() -> u32 {
        1
    }

    const fn is_usual_weight(value: &u32) -> bool {
        *value == Self::usual_weight()
    }

    /// The limits of its run, in a job with these.
    #[must_use]
    pub fn limits(&self, job: &Limits) -> Limits {
        Limits {
            cpu_ms: self.cpu_ms.unwrap_or(job.cpu_ms),
            wall_ms: self.wall_ms.unwrap_or(job.wall_ms),
            ..*job
        }
    }
}

impl Default for TestCase {
    fn default() -> Self {
        Self {
            stdin: Bytes::new(),
            expected: None,
            name: None,
            weight: Self::usual_weight(),
            hidden: false,
            cpu_ms: None,
            wall_ms: None,
        }
    }
}

/// How far a number may be from the one that was expected. Finite and not negative.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tolerance(f64);

impl Tolerance {
    /// Wraps a distance; `None` unless it is finite and not negative.
    #[must_use]
    pub fn new(distance: f64) -> Option<Self> {
        // Adding zero makes one of the two zeroes.
        (distance.is_finite() && distance >= 0.0).then_some(Self(distance + 0.0))
    }

    /// The distance.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl PartialEq for Tolerance {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Tolerance {}

/// Who says whether what was printed is what was expected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checker {
    /// The same lines; blanks at the end of a line and empty lines at the end make no difference.
    #[default]
    Lines,
    /// The same bytes.
    Exact,
    /// The same words; what stands between them makes no difference.
    Tokens,
    /// The same words, where numbers may be a little different.
    Floats {
        /// How far a number may be off.
        absolute: Tolerance,
        /// The same, as a part of the number that was expected.
        relative: Tolerance,
    },
    /// A program of the submitter.
    Program(Box<CheckerProgram>),
}

/// The default.
pub(crate) fn is_lines(checker: &Checker) -> bool {
    matches!(checker, Checker::Lines)
}

impl Checker {
    /// What it weighs, bytes.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Program(program) => program
                .files
                .iter()
                .map(|file| file.name.len() + file.content.len())
                .sum(),
            _ => 0,
        }
    }
}

/// A checker that is a program: compiled once per attempt, run once for each case, in a sandbox of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckerProgram {
    /// Name of its language.
    pub language: String,
    /// Its files, at least one.
    pub files: Vec<SourceFile>,
    /// Which of them the language's commands are given.
    pub entrypoint: String,
    /// What one run of it may use.
    pub limits: Limits,
}

/// How a program did with one test case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestResult {
    /// The figures.
    pub outcome: Outcome,
    /// The program's stdout, its beginning.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub stdout: Bytes,
    /// The program's stderr, its beginning.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub stderr: Bytes,
    /// Part of stdout is not here.
    #[serde(default)]
    pub stdout_truncated: bool,
    /// Part of stderr is not here.
    #[serde(default)]
    pub stderr_truncated: bool,
    /// What the submitter calls the case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What was printed is shown only to who asks for it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hidden: bool,
    /// What the checker gave, where that does not follow from the verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Score>,
    /// What the checker said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checker: Option<String>,
}

impl TestResult {
    /// What it got of its weight.
    #[must_use]
    pub fn score(&self) -> Score {
        self.score.unwrap_or(match self.outcome.verdict {
            Verdict::Accepted => Score::FULL,
            _ => Score::NONE,
        })
    }
}

/// What came of all test cases of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Cases that were accepted.
    pub passed: u32,
    /// Cases that there are, whether they were run or not.
    pub total: u32,
    /// The sum of what each case got of its weight, as a part of all weights together.
    pub score: Score,
}

impl Judged {
    /// What came of the first of these cases, as many as there are results; the others were not run.
    #[must_use]
    pub fn of(cases: &[TestCase], results: &[TestResult]) -> Self {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let accepted = |result: &&TestResult| result.outcome.verdict == Verdict::Accepted;
        let points = cases.iter().zip(results);
        Self {
            passed: count(results.iter().filter(accepted).count()),
            total: count(cases.len()),
            score: Score::of(
                points.map(|(case, result)| (case.weight, result.score())),
                cases.iter().map(|case| u64::from(case.weight)).sum(),
            ),
        }
    }
}

/// A file that a program was to leave in its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Its name, as it was asked for.
    pub name: String,
    /// How large it was, bytes, kept or not.
    #[serde(default)]
    pub size: u64,
    /// Its beginning.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub content: Bytes,
    /// Part of it is not here.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
    /// Why it is not here, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec;

    fn ended(verdict: Verdict, score: Option<u32>) -> TestResult {
        TestResult {
            outcome: Outcome::without_run(verdict, ""),
            stdout: Bytes::new(),
            stderr: Bytes::new(),
            stdout_truncated: false,
            stderr_truncated: false,
            name: None,
            hidden: false,
            score: score.map(Score::from_millionths),
            checker: None,
        }
    }

    fn weighing(weights: &[u32]) -> Vec<TestCase> {
        let case = |weight: &u32| TestCase {
            weight: *weight,
            ..TestCase::default()
        };
        weights.iter().map(case).collect()
    }

    #[test]
    fn a_score_is_full_only_if_nothing_is_missing() {
        use Verdict::{Accepted, WrongAnswer};
        let judged = Judged::of(
            &weighing(&[1_000_000, 1]),
            &[ended(Accepted, None), ended(WrongAnswer, None)],
        );
        assert_eq!((judged.passed, judged.total), (1, 2));
        assert_eq!(judged.score.millionths(), 999_999);
        let thirds = [
            ended(Accepted, None),
            ended(Accepted, None),
            ended(Accepted, None),
        ];
        assert_eq!(Judged::of(&weighing(&[1; 3]), &thirds).score, Score::FULL);
        assert_eq!(
            Judged::of(&weighing(&[1; 3]), &thirds[..2])
                .score
                .millionths(),
            666_666
        );
        // What is accepted may still not be all of it, and what is not may be some.
        let part = [
            ended(Accepted, Some(250_000)),
            ended(WrongAnswer, Some(750_000)),
        ];
        assert_eq!(
            Judged::of(&weighing(&[1, 1]), &part).score.millionths(),
            500_000
        );
        assert_eq!(Judged::of(&weighing(&[0]), &thirds[..1]).score, Score::NONE);
        assert_eq!(Judged::of(&[], &[]).score, Score::NONE);
    }

    #[test]
    fn a_case_of_an_older_record_is_read_and_written_as_it_was() {
        #[derive(Serialize)]
        struct Former {
            stdin: Bytes,
            expected: Option<Bytes>,
        }
        let bytes = codec::encode(&Former {
            stdin: Bytes::from_static(b"1"),
            expected: Some(Bytes::from_static(b"2")),
        });
        let read: TestCase = codec::decode(&bytes).unwrap();
        assert_eq!((read.weight, read.hidden), (1, false));
        assert_eq!(codec::encode(&read), bytes);
    }

    #[test]
    fn a_case_has_the_job_s_limits_but_for_its_own() {
        let case = TestCase {
            cpu_ms: Some(7),
            ..TestCase::default()
        };
        let limits = case.limits(&Limits::default());
        assert_eq!(
            (limits.cpu_ms, limits.wall_ms),
            (7, Limits::default().wall_ms)
        );
        assert_eq!(limits.memory_kb, Limits::default().memory_kb);
    }

    #[test]
    fn a_tolerance_is_finite_and_not_negative() {
        for wrong in [-1.0, f64::NAN, f64::INFINITY, -f64::MIN_POSITIVE] {
            assert_eq!(Tolerance::new(wrong), None, "{wrong}");
        }
        assert_eq!(Tolerance::new(-0.0), Tolerance::new(0.0));
        let kept = Tolerance::new(1e-9).unwrap();
        let read: Tolerance = codec::decode(&codec::encode(&kept)).unwrap();
        assert_eq!(read, kept);
    }

    proptest! {
        /// The sum is exact, whatever the order, and within bounds.
        #[test]
        fn a_score_is_what_exact_arithmetic_gives(
            cases in prop::collection::vec((0..=1_000_000_u32, prop::option::of(0..=1_000_000_u32), any::<bool>()), 1..1000),
            ran in 0..1000_usize,
        ) {
            let weights: Vec<u32> = cases.iter().map(|case| case.0).collect();
            let results: Vec<TestResult> = cases
                .iter()
                .take(ran)
                .map(|(_, score, right)| {
                    let verdict = if *right { Verdict::Accepted } else { Verdict::TimeLimit };
                    ended(verdict, *score)
                })
                .collect();
            let judged = Judged::of(&weighing(&weights), &results);
            let got = |result: &TestResult| u128::from(result.score().millionths());
            let points: u128 = weights.iter().zip(&results).map(|(w, r)| u128::from(*w) * got(r)).sum();
            let weight: u128 = weights.iter().map(|w| u128::from(*w)).sum();
            let exact = points.checked_div(weight).unwrap_or(0);
            prop_assert_eq!(u128::from(judged.score.millionths()), exact);
            prop_assert!(judged.score <= Score::FULL);
            let full = weight > 0 && points == weight * 1_000_000;
            prop_assert_eq!(judged.score == Score::FULL, full);
            let mut turned_cases = weighing(&weights[..results.len()]);
            turned_cases.reverse();
            let mut turned_results = results.clone();
            turned_results.reverse();
            turned_cases.extend(weighing(&weights[results.len()..]));
            prop_assert_eq!(Judged::of(&turned_cases, &turned_results).score, judged.score);
        }
    }
}
