//! How a job looks in JSON.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use quorun_ledger::{Compile, Job, Output};
use serde_json::{Map, Value, json};

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

/// The job without what it printed: what lists hold.
pub fn summary(job: &Job) -> Map<String, Value> {
    let outcome = job.outcome.as_ref();
    let body = json!({
        "id": job.id.to_string(),
        "language": job.language,
        "state": job.state.as_str(),
        "verdict": outcome.map(|o| o.verdict.as_str()),
        "exit_code": outcome.and_then(|o| o.exit_code),
        "signal": outcome.and_then(|o| o.signal),
        "message": outcome.and_then(|o| o.message.clone()),
        "cpu_ms": outcome.map(|o| ms(o.cpu_us)),
        "wall_ms": outcome.map(|o| ms(o.wall_us)),
        "memory_kb": outcome.map(|o| o.memory_kb),
        "node": job.node,
        "attempts": job.attempt,
        "labels": job.labels,
        "submitted_at": time(Some(job.submitted_ms)),
        "started_at": time(job.started_ms),
        "finished_at": time(job.finished_ms),
    });
    match body {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The whole job.
pub fn details(details: &Details) -> Value {
    let Details { job, output } = details;
    let mut object = summary(job);
    let Output {
        stdout,
        stderr,
        stdout_truncated,
        stderr_truncated,
        compile,
        tests: _,
    } = output;
    put_text(&mut object, "stdout", stdout);
    put_text(&mut object, "stderr", stderr);
    object.insert(
        "truncated".to_owned(),
        json!({ "stdout": stdout_truncated, "stderr": stderr_truncated }),
    );
    object.insert(
        "compile".to_owned(),
        compile.as_ref().map_or(Value::Null, compile_step),
    );
    Value::Object(object)
}

fn compile_step(compile: &Compile) -> Value {
    let mut object = Map::new();
    object.insert("exit_code".to_owned(), json!(compile.exit_code));
    object.insert("signal".to_owned(), json!(compile.signal));
    put_text(&mut object, "stdout", &compile.stdout);
    put_text(&mut object, "stderr", &compile.stderr);
    object.insert("truncated".to_owned(), compile.truncated.into());
    object.insert("cpu_ms".to_owned(), ms(compile.cpu_us).into());
    object.insert("wall_ms".to_owned(), ms(compile.wall_us).into());
    object.insert("memory_kb".to_owned(), compile.memory_kb.into());
    object.insert("cached".to_owned(), compile.cached.into());
    Value::Object(object)
}
