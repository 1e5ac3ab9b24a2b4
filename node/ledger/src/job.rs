//! What a job is: what was submitted, how it stands, how it ended.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::callback::Callback;
use crate::judging::is_lines;
pub use crate::judging::{
    Checker, CheckerProgram, Judged, OutputFile, Score, TestCase, TestResult, Tolerance,
};
use crate::language::{self, Pinned};
use crate::node::NodeId;
use crate::owner::Owner;
use crate::priority::Priority;

/// The id of a job, for ever. A UUID of version 7, so that ids sort by the time of their submission; drawn by the node
/// that accepts the job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    /// Wraps a UUID that the caller has drawn.
    #[must_use]
    pub const fn new(id: Uuid) -> Self {
        Self(id)
    }

    /// The sixteen bytes that stand in keys; they sort as the ids do.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id whose [`as_bytes`](Self::as_bytes) these are; `None` unless there are sixteen.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::from_str(text).map(Self)
    }
}

/// One file of a submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Path below the job's folder, with `/` between its parts; checked by the node that accepts the job.
    pub name: String,
    /// The bytes of the file.
    pub content: Bytes,
}

/// What a step of a job may use.
///
/// Fields that came later are left out where they hold their default, as decision 0003 has it: a record from before reads
/// and encodes as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time of the run step over all its processes, milliseconds.
    pub cpu_ms: u64,
    /// Wall-clock time of the run step, milliseconds.
    pub wall_ms: u64,
    /// Memory of the sandbox, KiB; the compile step has the same.
    pub memory_kb: u64,
    /// Processes and threads at one time.
    pub processes: u32,
    /// What is kept of stdout, and again of stderr, KiB.
    pub output_kb: u64,
    /// Open files of one process of the run step.
    #[serde(
        default = "Limits::usual_open_files",
        skip_serializing_if = "Limits::is_usual_open_files"
    )]
    pub open_files: u32,
    /// Largest file that the run step may write, KiB. `None`: whatever the sandbox's folders hold, which follows from its
    /// memory; nor can more be had than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_kb: Option<u64>,
    /// Stack of the main thread of each process of the run step, KiB; never more than the memory.
    #[serde(
        default = "Limits::usual_stack_kb",
        skip_serializing_if = "Limits::is_usual_stack_kb"
    )]
    pub stack_kb: u64,
}

/// For fields that came later and are left out where they hold their default.
pub(crate) const fn is_false(value: &bool) -> bool {
    !*value
}

impl Limits {
    const fn usual_open_files() -> u32 {
        1024
    }

    const fn is_usual_open_files(value: &u32) -> bool {
        *value == Self::usual_open_files()
    }

    const fn usual_stack_kb() -> u64 {
        64 << 10
    }

    const fn is_usual_stack_kb(value: &u64) -> bool {
        *value == Self::usual_stack_kb()
    }
}

/// What a language has that does not say otherwise.
impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_ms: 2_000,
            wall_ms: 5_000,
            memory_kb: 256 << 10,
            processes: 64,
            output_kb: 400,
            open_files: Self::usual_open_files(),
            file_kb: None,
            stack_kb: Self::usual_stack_kb(),
        }
    }
}

/// The times that bound one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLimits {
    /// CPU time over all processes of the step, milliseconds.
    pub cpu_ms: u64,
    /// Wall-clock time, milliseconds.
    pub wall_ms: u64,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Characters in each.
    pub columns: u16,
}

/// What was submitted. Complete: defaults have been filled in by the node that accepted it, so that every attempt on
/// every node runs under the same limits. The default value is empty, to be filled in; as it is, it can not be executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Name of the language (never an alias).
    pub language: String,
    /// The language as it was when the job was accepted, if it was one of the ledger; otherwise the file of the node that
    /// executes the job says how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Box<Pinned>>,
    /// The files, at least one.
    pub files: Vec<SourceFile>,
    /// Which of the files the language's commands are given.
    pub entrypoint: String,
    /// What the program reads.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub stdin: Bytes,
    /// The test cases; where there are some, [`stdin`](Self::stdin) is not used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<TestCase>,
    /// The first test case that is not accepted is the last that is run.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stop_on_failure: bool,
    /// Who compares what a test case printed with what was expected.
    #[serde(default, skip_serializing_if = "is_lines")]
    pub checker: Checker,
    /// Files below the job's folder whose content is part of the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// Arguments after the language's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Arguments of the compile step, where the language's command has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compile_args: Vec<String>,
    /// Added to the environment of the run step.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What the run step may use.
    pub limits: Limits,
    /// The submitter's own marks, to find jobs by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Whose job it is, for the sandboxes: one that has served a job of one key, or of none, serves no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation_key: Option<String>,
    /// Who submits it, with the bounds that hold for that owner; nobody in particular where the cluster has no tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// How long the job is kept after it has finished, milliseconds.
    pub retention_ms: u64,
    /// How often the job may be tried before it ends with `internal_error`.
    pub max_attempts: u32,
    /// Which level of the queue it waits in.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// Who is to be told that it has finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
    /// Somebody may talk to the program while it runs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub interactive: bool,
    /// What an interactive program has in the place of pipes, if it is to have a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Terminal>,
}

impl JobSpec {
    /// Whether every version of the program queues it in the same way, counts it for the same, and runs it alike.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.priority == Priority::Normal
            && self.callback.is_none()
            && self.owner.is_none()
            && self.tests.is_empty()
            && is_lines(&self.checker)
            && self.outputs.is_empty()
            && !self.interactive
            && self.definition.is_none()
            && self.compile_args.is_empty()
    }

    /// Whose sandboxes it may share, if not everybody's: an isolation key is its owner's own, whatever keys others use.
    #[must_use]
    pub fn kept_apart(&self) -> Option<String> {
        let key = self.isolation_key.as_ref()?;
        Some(match self.owner_name() {
            None => key.clone(),
            Some(owner) => format!("{owner}\0{key}"),
        })
    }

    /// The name of the owner, if there is one.
    #[must_use]
    pub fn owner_name(&self) -> Option<&str> {
        self.owner.as_ref().map(|owner| owner.name.as_str())
    }

    /// What the submission weighs, bytes: the payload, not its encoding.
    #[must_use]
    pub fn weight(&self) -> u64 {
        let files: usize = self
            .files
            .iter()
            .map(|f| f.name.len() + f.content.len())
            .sum();
        let args = self.args.iter().chain(&self.compile_args);
        let args: usize = args.map(String::len).sum();
        let env: usize = self.env.iter().map(|(k, v)| k.len() + v.len()).sum();
        let tests: usize = self
            .tests
            .iter()
            .map(|test| {
                test.stdin.len()
                    + test.expected.as_ref().map_or(0, Bytes::len)
                    + test.name.as_ref().map_or(0, String::len)
            })
            .sum();
        let outputs: usize = self.outputs.iter().map(String::len).sum();
        let checker = self.checker.weight();
        let callback = self.callback.as_ref().map_or(0, Callback::weight);
        let definition = self.definition.as_ref().map_or(0, |d| d.weight());
        let own = files + args + env + self.stdin.len() + tests + checker + outputs;
        own as u64 + callback + definition
    }
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a slot.
    Queued,
    /// Assigned to a node as its current attempt.
    Running,
    /// Has its result. Nothing about it changes any more.
    Finished,
}

impl JobState {
    /// The word used in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Finished => "finished",
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The program ended by itself with exit code 0 (and, where output was expected, printed it).
    Accepted,
    /// Ended well, but printed something else than was expected.
    WrongAnswer,
    /// The compile step failed.
    CompileError,
    /// A non-zero exit code, or a signal that no limit explains.
    RuntimeError,
    /// Over its CPU time or its wall-clock time.
    TimeLimit,
    /// The kernel killed it for its memory.
    MemoryLimit,
    /// Went on printing far beyond its cap.
    OutputLimit,
    /// Cancelled by the submitter.
    Cancelled,
    /// Quorun could not run it; the outcome's message says why.
    InternalError,
}

impl Verdict {
    /// All ends that a job can come to.
    pub const ALL: [Self; 9] = [
        Self::Accepted,
        Self::WrongAnswer,
        Self::CompileError,
        Self::RuntimeError,
        Self::TimeLimit,
        Self::MemoryLimit,
        Self::OutputLimit,
        Self::Cancelled,
        Self::InternalError,
    ];

    /// The verdict of a word of the API.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|verdict| verdict.as_str() == name)
    }

    /// The word used in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::WrongAnswer => "wrong_answer",
            Self::CompileError => "compile_error",
            Self::RuntimeError => "runtime_error",
            Self::TimeLimit => "time_limit",
            Self::MemoryLimit => "memory_limit",
            Self::OutputLimit => "output_limit",
            Self::Cancelled => "cancelled",
            Self::InternalError => "internal_error",
        }
    }
}

/// How a job ended, in figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How the attempt ended.
    pub verdict: Verdict,
    /// Exit code of the program; `None` when a signal ended it or it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// CPU time of the run step, user and system, over all its processes, microseconds.
    #[serde(default)]
    pub cpu_us: u64,
    /// Wall-clock time of the run step, microseconds.
    #[serde(default)]
    pub wall_us: u64,
    /// Peak memory of the run step, KiB.
    #[serde(default)]
    pub memory_kb: u64,
    /// Which limit was hit, or why Quorun could not run the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Of a job with test cases: what came of all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<Judged>,
}

impl Outcome {
    /// An outcome without a run: Quorun itself ended the job.
    #[must_use]
    pub fn without_run(verdict: Verdict, message: impl Into<String>) -> Self {
        Self {
            verdict,
            exit_code: None,
            signal: None,
            cpu_us: 0,
            wall_us: 0,
            memory_kb: 0,
            message: Some(message.into()),
            judged: None,
        }
    }
}

/// What the compile step did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compile {
    /// Exit code of the compiler; `None` when a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the compiler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What the compiler printed to stdout.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub stdout: Bytes,
    /// What the compiler printed to stderr.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub stderr: Bytes,
    /// Part of the compiler's output was dropped.
    #[serde(default)]
    pub truncated: bool,
    /// CPU time, microseconds.
    #[serde(default)]
    pub cpu_us: u64,
    /// Wall-clock time, microseconds.
    #[serde(default)]
    pub wall_us: u64,
    /// Peak memory, KiB.
    #[serde(default)]
    pub memory_kb: u64,
    /// The compiler was not run: the same source had been compiled before, and this is what it did then.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cached: bool,
}

/// What a job printed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The program's stdout, up to its cap.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub stdout: Bytes,
    /// The program's stderr, up to its cap.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub stderr: Bytes,
    /// Part of stdout was dropped.
    #[serde(default)]
    pub stdout_truncated: bool,
    /// Part of stderr was dropped.
    #[serde(default)]
    pub stderr_truncated: bool,
    /// The compile step, for languages that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compile: Option<Compile>,
    /// How the test cases went, in their order: all that were run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<TestResult>,
    /// The files that were asked for, in that order; none if the program did not run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<OutputFile>,
    /// How long the attempt took its node, from taking it up until the report, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_us: Option<u64>,
}

impl Output {
    /// What the output weighs, bytes.
    #[must_use]
    pub fn weight(&self) -> u64 {
        let compile = self
            .compile
            .as_ref()
            .map_or(0, |c| c.stdout.len() + c.stderr.len());
        let tests: usize = self
            .tests
            .iter()
            .map(|test| {
                test.stdout.len()
                    + test.stderr.len()
                    + test.name.as_ref().map_or(0, String::len)
                    + test.checker.as_ref().map_or(0, String::len)
            })
            .sum();
        let files: usize = self
            .files
            .iter()
            .map(|file| file.name.len() + file.content.len())
            .sum();
        (self.stdout.len() + self.stderr.len() + compile + tests + files) as u64
    }
}

/// What a worker reports of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobResult {
    /// The figures.
    pub outcome: Outcome,
    /// The text.
    pub output: Output,
}

impl JobResult {
    /// The result of an attempt that Quorun could not run.
    #[must_use]
    pub fn internal_error(message: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::without_run(Verdict::InternalError, message),
            output: Output::default(),
        }
    }
}

/// How a job stands: the small record that lists and waiters read. What was submitted and what was printed stand in
/// records of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The job's id.
    pub id: JobId,
    /// Name of its language.
    pub language: String,
    /// Version of the definition that it carries, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<u64>,
    /// How it stands.
    pub state: JobState,
    /// Number of the current or last attempt; 0 before the first.
    pub attempt: u32,
    /// How often it may be tried.
    pub max_attempts: u32,
    /// The node of the current or last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Place in the queue while queued; smaller is nearer to the front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<u64>,
    /// When it was accepted, Unix milliseconds of the leader's clock.
    pub submitted_ms: u64,
    /// When the current or last attempt was assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// When its result was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<u64>,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The submitter's own marks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The idempotency key it was submitted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whose job it is, if it was submitted with a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How long it is kept after it has finished, milliseconds.
    pub retention_ms: u64,
    /// Bytes of submission and output that it holds.
    pub weight: u64,
    /// Which level of the queue it waits in.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// Somebody is to be told that it has finished: there is a delivery.
    #[serde(default, skip_serializing_if = "is_false")]
    pub callback: bool,
    /// What was submitted has arguments for the compiler.
    #[serde(default, skip_serializing_if = "is_false")]
    pub compile_args: bool,
}

impl Job {
    /// What a node must be able to run, to run this job.
    #[must_use]
    pub fn needs(&self) -> Cow<'_, str> {
        language::needed(&self.language, self.definition)
    }

    /// When a finished job may be expired, Unix milliseconds.
    #[must_use]
    pub fn expires_ms(&self) -> Option<u64> {
        self.finished_ms
            .map(|finished| finished.saturating_add(self.retention_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    /// The limits as they were before open files, file size and stack were among them.
    #[derive(Serialize)]
    struct FormerLimits {
        cpu_ms: u64,
        wall_ms: u64,
        memory_kb: u64,
        processes: u32,
        output_kb: u64,
    }

    const FORMER: FormerLimits = FormerLimits {
        cpu_ms: 1,
        wall_ms: 2,
        memory_kb: 3,
        processes: 4,
        output_kb: 5,
    };

    #[test]
    fn limits_of_an_older_record_are_read_and_written_as_they_were() {
        let bytes = codec::encode(&FORMER);
        let read: Limits = codec::decode(&bytes).unwrap();
        let expected = Limits {
            cpu_ms: 1,
            wall_ms: 2,
            memory_kb: 3,
            processes: 4,
            output_kb: 5,
            open_files: 1024,
            file_kb: None,
            stack_kb: 65_536,
        };
        assert_eq!(read, expected);
        assert_eq!(codec::encode(&read), bytes);
    }

    #[test]
    fn a_job_without_anything_new_is_written_as_it_was() {
        let spec = JobSpec {
            language: "c".into(),
            definition: None,
            files: Vec::new(),
            entrypoint: "main.c".into(),
            stdin: Bytes::new(),
            tests: Vec::new(),
            interactive: false,
            terminal: None,
            stop_on_failure: false,
            args: Vec::new(),
            env: BTreeMap::new(),
            limits: Limits::default(),
            labels: Vec::new(),
            isolation_key: None,
            owner: None,
            retention_ms: 1,
            max_attempts: 3,
            ..JobSpec::default()
        };
        let output = Output {
            compile: Some(Compile::default()),
            ..Output::default()
        };
        let (spec, output) = (codec::encode(&spec), codec::encode(&output));
        let holds = |bytes: &[u8], name: &str| {
            bytes
                .windows(name.len())
                .any(|part| part == name.as_bytes())
        };
        assert!(holds(&spec, "max_attempts") && holds(&output, "compile"));
        for name in [
            "tests",
            "stop_on_failure",
            "isolation_key",
            "owner",
            "open_files",
            "file_kb",
            "stack_kb",
            "cached",
            "checker",
            "outputs",
            "judged",
            "attempt_us",
            "priority",
            "callback",
            "interactive",
            "terminal",
            "compile_args",
        ] {
            assert!(!holds(&spec, name) && !holds(&output, name), "{name}");
        }
        assert!(!codec::decode::<JobSpec>(&spec).unwrap().stop_on_failure);
    }

    #[test]
    fn a_job_is_plain_while_it_has_nothing_new() {
        let plain = JobSpec::default();
        assert!(plain.is_plain());
        let changes: [fn(&mut JobSpec); 8] = [
            |spec| spec.priority = Priority::High,
            |spec| spec.callback = Some(Callback::default()),
            |spec| spec.owner = Some(Owner::default()),
            |spec| spec.tests.push(TestCase::default()),
            |spec| spec.checker = Checker::Exact,
            |spec| spec.outputs.push("a".to_owned()),
            |spec| spec.interactive = true,
            |spec| spec.compile_args.push("-g".to_owned()),
        ];
        for (n, change) in changes.iter().enumerate() {
            let mut spec = plain.clone();
            change(&mut spec);
            assert!(!spec.is_plain(), "change {n}");
        }
    }

    #[test]
    fn an_isolation_key_is_its_owners_own() {
        let kept = |owner: Option<&str>, key: Option<&str>| {
            let owner = owner.map(|name| Owner {
                name: name.to_owned(),
                ..Owner::default()
            });
            let isolation_key = key.map(ToOwned::to_owned);
            JobSpec {
                owner,
                isolation_key,
                ..JobSpec::default()
            }
            .kept_apart()
        };
        assert_eq!(kept(None, None), None);
        assert_eq!(kept(Some("a"), None), None);
        let all = [
            kept(None, Some("k")),
            kept(Some("a"), Some("k")),
            kept(Some("b"), Some("k")),
            kept(None, Some("ak")),
        ];
        let apart: std::collections::BTreeSet<_> = all.iter().flatten().collect();
        assert_eq!(apart.len(), all.len());
    }

    #[test]
    fn limits_that_are_not_the_usual_ones_are_kept() {
        let limits = Limits {
            open_files: 20,
            file_kb: Some(7),
            stack_kb: 100,
            ..Limits::default()
        };
        let read: Limits = codec::decode(&codec::encode(&limits)).unwrap();
        assert_eq!(read, limits);
    }
}
