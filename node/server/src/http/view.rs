//! How a job looks in JSON.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use quorun_ledger::{Compile, Job, Output};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::judged::{self, Show};
use super::openapi::words;
use crate::jobs::Details;

/// Milliseconds of a figure that is kept in microseconds, rounded.
pub const fn ms(us: u64) -> u64 {
    (us + 500) / 1000
}

/// RFC 3339, in UTC, with milliseconds.
pub fn time(ms: Option<u64>) -> Value {
    match ms {
        Some(ms) => {
            humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
                .to_string()
                .into()
        }
        None => Value::Null,
    }
}

/// How bytes stand in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// As text; what is not UTF-8 has replacement characters, and its bytes beside it.
    #[default]
    Text,
    /// As base64, under a name that says so.
    Base64,
}

impl Encoding {
    /// Puts bytes in under a name.
    pub fn put(self, object: &mut Map<String, Value>, name: &str, bytes: &Bytes) {
        match self {
            Self::Text => put_text(object, name, bytes),
            Self::Base64 => {
                object.insert(format!("{name}_base64"), BASE64.encode(bytes).into());
            }
        }
    }

    /// Puts the content of a file in: as text only where all of it is text.
    pub fn put_file(self, object: &mut Map<String, Value>, content: &Bytes) {
        match (self, std::str::from_utf8(content)) {
            (Self::Text, Ok(text)) => {
                object.insert("content".to_owned(), text.into());
            }
            _ => Self::Base64.put(object, "content", content),
        }
    }
}

/// Puts bytes in as text; where they are not UTF-8, the text has replacement characters and the bytes stand beside it.
pub fn put_text(object: &mut Map<String, Value>, name: &str, bytes: &Bytes) {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            object.insert(name.to_owned(), text.into());
        }
        Err(_) => {
            object.insert(name.to_owned(), String::from_utf8_lossy(bytes).into());
            object.insert(format!("{name}_base64"), BASE64.encode(bytes).into());
        }
    }
}

/// A job without what it printed, as lists have it.
#[derive(ToSchema)]
#[schema(as = JobSummary)]
#[expect(dead_code, reason = "describes what `summary` makes")]
pub struct SummaryShape {
    /// Its id.
    #[schema(format = Uuid)]
    id: String,
    /// Name of its language.
    language: String,
    state: words::JobState,
    /// How it ended; null until then.
    #[schema(required = true)]
    verdict: Option<words::Verdict>,
    /// The program's exit code; null when a signal ended it, or it never ran.
    #[schema(required = true)]
    exit_code: Option<i32>,
    /// The signal that ended the program.
    #[schema(required = true)]
    signal: Option<i32>,
    /// Which limit was hit, or why the program did not run.
    #[schema(required = true)]
    message: Option<String>,
    /// Of a job with tests: what it got of all weights, from 0 to 1.
    #[schema(required = true, minimum = 0, maximum = 1)]
    score: Option<f64>,
    /// Of a job with tests: how many were accepted.
    #[schema(required = true)]
    tests_passed: Option<u32>,
    /// Of a job with tests: how many there are.
    #[schema(required = true)]
    tests_total: Option<u32>,
    #[schema(required = true)]
    cpu_ms: Option<u64>,
    #[schema(required = true)]
    wall_ms: Option<u64>,
    #[schema(required = true)]
    memory_kb: Option<u64>,
    /// The node that runs it, or has run it.
    #[schema(required = true)]
    node: Option<u64>,
    /// How often it was tried.
    attempts: u32,
    labels: Vec<String>,
    priority: words::Priority,
    #[schema(format = DateTime)]
    submitted_at: String,
    /// When the last attempt began.
    #[schema(required = true, format = DateTime)]
    started_at: Option<String>,
    #[schema(required = true, format = DateTime)]
    finished_at: Option<String>,
    /// Whose it is, where there are tokens.
    #[schema(nullable = false)]
    owner: Option<String>,
}

/// A job.
#[derive(ToSchema)]
#[schema(as = Job)]
#[expect(dead_code, reason = "describes what `details` makes")]
pub struct JobShape {
    /// Its id.
    #[schema(format = Uuid)]
    id: String,
    /// Name of its language.
    language: String,
    state: words::JobState,
    /// How it ended; null until then.
    #[schema(required = true)]
    verdict: Option<words::Verdict>,
    /// The program's exit code; null when a signal ended it, or it never ran.
    #[schema(required = true)]
    exit_code: Option<i32>,
    /// The signal that ended the program.
    #[schema(required = true)]
    signal: Option<i32>,
    /// Which limit was hit, or why the program did not run.
    #[schema(required = true)]
    message: Option<String>,
    /// Of a job with tests: what it got of all weights, from 0 to 1.
    #[schema(required = true, minimum = 0, maximum = 1)]
    score: Option<f64>,
    /// Of a job with tests: how many were accepted.
    #[schema(required = true)]
    tests_passed: Option<u32>,
    /// Of a job with tests: how many there are.
    #[schema(required = true)]
    tests_total: Option<u32>,
    #[schema(required = true)]
    cpu_ms: Option<u64>,
    #[schema(required = true)]
    wall_ms: Option<u64>,
    #[schema(required = true)]
    memory_kb: Option<u64>,
    /// The node that runs it, or has run it.
    #[schema(required = true)]
    node: Option<u64>,
    /// How often it was tried.
    attempts: u32,
    labels: Vec<String>,
    priority: words::Priority,
    #[schema(format = DateTime)]
    submitted_at: String,
    /// When the last attempt began.
    #[schema(required = true, format = DateTime)]
    started_at: Option<String>,
    #[schema(required = true, format = DateTime)]
    finished_at: Option<String>,
    /// Whose it is, where there are tokens.
    #[schema(nullable = false)]
    owner: Option<String>,
    /// What it printed; with `encoding=base64` only `stdout_base64` is there.
    #[schema(nullable = false)]
    stdout: Option<String>,
    /// The same in base64: where it is not UTF-8, and with `encoding=base64`.
    #[schema(nullable = false, content_encoding = "base64")]
    stdout_base64: Option<String>,
    /// What it printed to stderr.
    #[schema(nullable = false)]
    stderr: Option<String>,
    /// The same in base64.
    #[schema(nullable = false, content_encoding = "base64")]
    stderr_base64: Option<String>,
    truncated: TruncatedShape,
    /// Its arguments for the compiler, if it has some.
    #[schema(nullable = false)]
    compile_args: Option<Vec<String>>,
    /// The compile step; null for languages without one, and until it has ended.
    #[schema(required = true)]
    compile: Option<CompileShape>,
    /// The test cases that were run; with `include=tests`, all of them.
    tests: Vec<judged::TestShape>,
    /// The files that were asked for.
    files: Vec<judged::FileShape>,
    /// Which place it has in the queue, from 1; only while it waits, and of one job.
    #[schema(nullable = false)]
    queue_position: Option<u64>,
    /// How long it may still wait; null if that is not known. Only while it waits.
    wait_estimate_ms: Option<u64>,
    timings: TimingsShape,
    #[schema(nullable = false)]
    callback: Option<super::callback::DeliveryShape>,
}

/// Whether there was more than what was kept.
#[derive(ToSchema)]
#[schema(as = Truncated)]
#[expect(dead_code, reason = "describes what `details` makes")]
pub struct TruncatedShape {
    stdout: bool,
    stderr: bool,
}

/// How the compiler fared.
#[derive(ToSchema)]
#[schema(as = Compilation)]
#[expect(dead_code, reason = "describes what `compile_step` makes")]
pub struct CompileShape {
    #[schema(required = true)]
    exit_code: Option<i32>,
    #[schema(required = true)]
    signal: Option<i32>,
    #[schema(nullable = false)]
    stdout: Option<String>,
    #[schema(nullable = false, content_encoding = "base64")]
    stdout_base64: Option<String>,
    #[schema(nullable = false)]
    stderr: Option<String>,
    #[schema(nullable = false, content_encoding = "base64")]
    stderr_base64: Option<String>,
    truncated: bool,
    cpu_ms: u64,
    wall_ms: u64,
    memory_kb: u64,
    /// The same source had been compiled on that node before.
    cached: bool,
}

/// Where the time of a job went. What is not known yet, or never was, is null.
#[derive(ToSchema)]
#[schema(as = Timings)]
#[expect(dead_code, reason = "describes what `timings` makes")]
pub struct TimingsShape {
    /// Until the last attempt was assigned.
    #[schema(required = true)]
    queued_ms: Option<u64>,
    /// On the node that ran it.
    #[schema(required = true)]
    attempt_ms: Option<u64>,
    /// Of that, the compiler's.
    #[schema(required = true)]
    compile_ms: Option<u64>,
    /// Of that, the program's, of all test cases together.
    #[schema(required = true)]
    run_ms: Option<u64>,
    /// Of that, the sandbox's.
    #[schema(required = true)]
    overhead_ms: Option<u64>,
    /// Until the result was committed.
    #[schema(required = true)]
    commit_ms: Option<u64>,
    /// From the submission to the end.
    #[schema(required = true)]
    total_ms: Option<u64>,
}

/// The job without what it printed: what lists hold.
pub fn summary(job: &Job) -> Map<String, Value> {
    let outcome = job.outcome.as_ref();
    let judged = outcome.and_then(|o| o.judged);
    let body = json!({
        "id": job.id.to_string(),
        "language": job.language,
        "state": job.state.as_str(),
        "verdict": outcome.map(|o| o.verdict.as_str()),
        "exit_code": outcome.and_then(|o| o.exit_code),
        "signal": outcome.and_then(|o| o.signal),
        "message": outcome.and_then(|o| o.message.as_deref()).map(message),
        "score": judged.map(|j| judged::score(j.score)),
        "tests_passed": judged.map(|j| j.passed),
        "tests_total": judged.map(|j| j.total),
        "cpu_ms": outcome.map(|o| ms(o.cpu_us)),
        "wall_ms": outcome.map(|o| ms(o.wall_us)),
        "memory_kb": outcome.map(|o| o.memory_kb),
        "node": job.node,
        "attempts": job.attempt,
        "labels": job.labels,
        "priority": job.priority.as_str(),
        "submitted_at": time(Some(job.submitted_ms)),
        "started_at": time(job.started_ms),
        "finished_at": time(job.finished_ms),
    });
    match body {
        Value::Object(mut map) => {
            if let Some(owner) = &job.owner {
                map.insert("owner".to_owned(), owner.as_str().into());
            }
            map
        }
        _ => Map::new(),
    }
}

/// A message as it is shown. The ledger does not know who has cancelled a job: the words that it has for that, the same on
/// all nodes whatever their version, say more than is known where it was an admin.
pub fn message(kept: &str) -> &str {
    match kept {
        quorun_ledger::CANCELLED => "cancelled",
        other => other,
    }
}

/// A finished job, for the document.
pub fn example() -> Value {
    json!({
        "id": "01900000-0000-7000-8000-000000000000", "language": "python", "state": "finished", "verdict": "accepted",
        "exit_code": 0, "signal": null, "message": null, "score": null, "tests_passed": null, "tests_total": null,
        "cpu_ms": 14, "wall_ms": 17, "memory_kb": 9216, "node": 2, "attempts": 1, "labels": ["first"], "priority": "normal",
        "submitted_at": "2026-01-01T00:00:00.000Z", "started_at": "2026-01-01T00:00:00.001Z",
        "finished_at": "2026-01-01T00:00:00.025Z",
        "stdout": "hello\n", "stderr": "", "truncated": { "stdout": false, "stderr": false }, "compile": null, "tests": [],
        "files": [],
        "timings": { "queued_ms": 1, "attempt_ms": 21, "compile_ms": null, "run_ms": 17, "overhead_ms": 4, "commit_ms": 3,
            "total_ms": 25 },
    })
}

/// The same before it was begun.
pub fn example_of_queued() -> Value {
    let mut job = example();
    for (name, value) in [
        ("state", json!("queued")),
        ("attempts", json!(0)),
        ("stdout", json!("")),
        ("queue_position", json!(3)),
        ("wait_estimate_ms", json!(120)),
    ] {
        job[name] = value;
    }
    let later = ["verdict", "exit_code", "cpu_ms", "wall_ms", "memory_kb"];
    for name in later.iter().chain(&["node", "started_at", "finished_at"]) {
        job[*name] = Value::Null;
    }
    if let Some(timings) = job["timings"].as_object_mut() {
        timings.values_mut().for_each(|time| *time = Value::Null);
    }
    job
}

/// The same in a list.
pub fn example_in_list() -> Value {
    let mut job = example();
    if let Some(job) = job.as_object_mut() {
        for name in [
            "stdout",
            "stderr",
            "truncated",
            "compile",
            "tests",
            "files",
            "timings",
        ] {
            job.remove(name);
        }
    }
    job
}

/// The whole job, as everybody sees it who may.
pub fn details(details: &Details) -> Value {
    details_as(details, &Show::default())
}

/// The whole job, as it was asked for.
pub fn details_as(details: &Details, show: &Show) -> Value {
    let Details {
        job,
        output,
        waits,
        callback,
        compile_args,
    } = details;
    let mut object = summary(job);
    if !compile_args.is_empty() {
        object.insert("compile_args".to_owned(), json!(compile_args));
    }
    let Output {
        stdout,
        stderr,
        stdout_truncated,
        stderr_truncated,
        compile,
        tests,
        files,
        attempt_us: _,
    } = output;
    show.encoding.put(&mut object, "stdout", stdout);
    show.encoding.put(&mut object, "stderr", stderr);
    object.insert(
        "truncated".to_owned(),
        json!({ "stdout": stdout_truncated, "stderr": stderr_truncated }),
    );
    object.insert(
        "compile".to_owned(),
        compile
            .as_ref()
            .map_or(Value::Null, |compile| compile_step(compile, show.encoding)),
    );
    object.insert("tests".to_owned(), judged::tests(tests, show));
    object.insert("files".to_owned(), judged::files(files, show));
    if let Some(waits) = waits {
        object.insert("queue_position".to_owned(), waits.position.into());
        object.insert(
            "wait_estimate_ms".to_owned(),
            super::queue::ms(waits.estimate),
        );
    }
    object.insert("timings".to_owned(), timings(job, output));
    if let Some(delivery) = callback {
        object.insert("callback".to_owned(), super::callback::show(delivery));
    }
    Value::Object(object)
}

/// Where the time of a job went. What is not known yet, or never was, is null.
fn timings(job: &Job, output: &Output) -> Value {
    // Until the last attempt was assigned; of a job that never was, until its end.
    let began = job.started_ms.or(job.finished_ms);
    let queued = began.map(|began| began.saturating_sub(job.submitted_ms));
    let compile_us = output.compile.as_ref().map(|compile| compile.wall_us);
    let run_us = job.outcome.as_ref().map(|outcome| {
        let cases = output.tests.iter().map(|test| test.outcome.wall_us);
        if output.tests.is_empty() {
            outcome.wall_us
        } else {
            cases.sum()
        }
    });
    let attempt = output.attempt_us.map(ms);
    let overhead_us = output.attempt_us.map(|attempt| {
        let programs = compile_us.unwrap_or(0) + run_us.unwrap_or(0);
        attempt.saturating_sub(programs)
    });
    // Both ends were stamped by leaders; the attempt was measured by its worker.
    let commit = match (job.started_ms, job.finished_ms, attempt) {
        (Some(started), Some(finished), Some(attempt)) => {
            Some(finished.saturating_sub(started).saturating_sub(attempt))
        }
        _ => None,
    };
    json!({
        "queued_ms": queued,
        "attempt_ms": attempt,
        "compile_ms": compile_us.map(ms),
        "run_ms": run_us.filter(|_| attempt.is_some()).map(ms),
        "overhead_ms": overhead_us.map(ms),
        "commit_ms": commit,
        "total_ms": job.finished_ms.map(|end| end.saturating_sub(job.submitted_ms)),
    })
}

fn compile_step(compile: &Compile, encoding: Encoding) -> Value {
    let mut object = Map::new();
    object.insert("exit_code".to_owned(), json!(compile.exit_code));
    object.insert("signal".to_owned(), json!(compile.signal));
    encoding.put(&mut object, "stdout", &compile.stdout);
    encoding.put(&mut object, "stderr", &compile.stderr);
    object.insert("truncated".to_owned(), compile.truncated.into());
    object.insert("cpu_ms".to_owned(), ms(compile.cpu_us).into());
    object.insert("wall_ms".to_owned(), ms(compile.wall_us).into());
    object.insert("memory_kb".to_owned(), compile.memory_kb.into());
    object.insert("cached".to_owned(), compile.cached.into());
    Value::Object(object)
}
