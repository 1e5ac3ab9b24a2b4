//! How test cases, and the files that a program left, look in JSON.

use quorun_ledger::{OutputFile, Score, TestCase, TestResult};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::openapi::words;
use super::view::{Encoding, ms};

/// What is shown of a job beyond what everybody sees of it.
#[derive(Clone, Debug, Default)]
pub struct Show {
    /// How bytes stand in the answer.
    pub encoding: Encoding,
    /// The test cases as they were submitted, if who asks wants to have all of them.
    pub cases: Option<Vec<TestCase>>,
}

/// How a test case ended. What was printed is missing of a hidden one, unless all is asked for; `weight`, `limits`,
/// `stdin` and `expected` come only with `include=tests`, and then a case that was not run has no more than those.
#[derive(ToSchema)]
#[schema(as = TestResult)]
#[expect(dead_code, reason = "describes what `tests` makes")]
pub struct TestShape {
    /// What the submitter calls it.
    #[schema(required = true)]
    name: Option<String>,
    /// How it ended; null if it was not run.
    #[schema(required = true)]
    verdict: Option<words::Verdict>,
    /// What it got of its weight, from 0 to 1.
    #[schema(nullable = false, minimum = 0, maximum = 1)]
    score: Option<f64>,
    hidden: bool,
    exit_code: Option<i32>,
    signal: Option<i32>,
    /// Which limit was hit, and what the checker said.
    message: Option<String>,
    #[schema(nullable = false)]
    cpu_ms: Option<u64>,
    #[schema(nullable = false)]
    wall_ms: Option<u64>,
    #[schema(nullable = false)]
    memory_kb: Option<u64>,
    #[schema(nullable = false)]
    stdout: Option<String>,
    #[schema(nullable = false, content_encoding = "base64")]
    stdout_base64: Option<String>,
    #[schema(nullable = false)]
    stderr: Option<String>,
    #[schema(nullable = false, content_encoding = "base64")]
    stderr_base64: Option<String>,
    #[schema(nullable = false)]
    truncated: Option<super::view::TruncatedShape>,
    #[schema(nullable = false)]
    weight: Option<u32>,
    #[schema(nullable = false)]
    limits: Option<CaseLimitsShape>,
    #[schema(nullable = false)]
    stdin: Option<String>,
    #[schema(nullable = false, content_encoding = "base64")]
    stdin_base64: Option<String>,
    /// What should be printed; null if anything will do.
    expected: Option<String>,
    #[schema(nullable = false, content_encoding = "base64")]
    expected_base64: Option<String>,
}

/// Times of one test case; null where they are the job's.
#[derive(ToSchema)]
#[schema(as = TestResultLimits)]
#[expect(dead_code, reason = "describes what `tests` makes")]
pub struct CaseLimitsShape {
    #[schema(required = true)]
    cpu_ms: Option<u64>,
    #[schema(required = true)]
    wall_ms: Option<u64>,
}

/// A file that was asked for. What is missing has no more than its name and the reason.
#[derive(ToSchema)]
#[schema(as = OutputFile)]
#[expect(dead_code, reason = "describes what `files` makes")]
pub struct FileShape {
    name: String,
    /// Why it is not there; null if it is.
    #[schema(required = true)]
    missing: Option<String>,
    /// How large it was, bytes.
    #[schema(nullable = false)]
    size: Option<u64>,
    /// Whether there was more than what was kept.
    #[schema(nullable = false)]
    truncated: Option<bool>,
    /// Its text, if it is one.
    #[schema(nullable = false)]
    content: Option<String>,
    /// Its bytes otherwise.
    #[schema(nullable = false, content_encoding = "base64")]
    content_base64: Option<String>,
}

/// A part of a whole as a number from 0 to 1.
pub fn score(score: Score) -> Value {
    (f64::from(score.millionths()) / f64::from(Score::FULL.millionths())).into()
}

/// The test cases: those that were run; with what was submitted, all.
pub fn tests(results: &[TestResult], show: &Show) -> Value {
    let Some(cases) = &show.cases else {
        return results.iter().map(|result| test(result, show)).collect();
    };
    let shown = cases.iter().enumerate().map(|(n, case)| {
        let mut object = Map::new();
        object.insert("name".to_owned(), json!(case.name));
        object.insert("verdict".to_owned(), Value::Null);
        object.insert("hidden".to_owned(), case.hidden.into());
        if let Some(Value::Object(ran)) = results.get(n).map(|result| test(result, show)) {
            object.extend(ran);
        }
        object.insert("weight".to_owned(), case.weight.into());
        object.insert(
            "limits".to_owned(),
            json!({ "cpu_ms": case.cpu_ms, "wall_ms": case.wall_ms }),
        );
        show.encoding.put(&mut object, "stdin", &case.stdin);
        match &case.expected {
            Some(expected) => show.encoding.put(&mut object, "expected", expected),
            None => {
                object.insert("expected".to_owned(), Value::Null);
            }
        }
        Value::Object(object)
    });
    shown.collect()
}

/// A test case that has just ended, as everybody sees it who may see the job: without what was printed.
pub fn ended(result: &TestResult) -> Map<String, Value> {
    heading(result, result.hidden)
}

fn heading(result: &TestResult, secret: bool) -> Map<String, Value> {
    let outcome = &result.outcome;
    let words = result.checker.as_ref().filter(|_| !secret);
    let message = match (&outcome.message, words) {
        (Some(message), Some(words)) => Some(format!("{message}: {words}")),
        (message, words) => message.as_ref().or(words).cloned(),
    };
    let body = json!({
        "name": result.name,
        "verdict": outcome.verdict.as_str(),
        "score": score(result.score()),
        "hidden": result.hidden,
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "message": message,
        "cpu_ms": ms(outcome.cpu_us),
        "wall_ms": ms(outcome.wall_us),
        "memory_kb": outcome.memory_kb,
    });
    match body {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn test(result: &TestResult, show: &Show) -> Value {
    let secret = result.hidden && show.cases.is_none();
    let mut object = heading(result, secret);
    if !secret {
        show.encoding.put(&mut object, "stdout", &result.stdout);
        show.encoding.put(&mut object, "stderr", &result.stderr);
        object.insert(
            "truncated".to_owned(),
            json!({ "stdout": result.stdout_truncated, "stderr": result.stderr_truncated }),
        );
    }
    Value::Object(object)
}

/// The files that were asked for.
pub fn files(files: &[OutputFile], show: &Show) -> Value {
    let shown = files.iter().map(|file| {
        let mut object = Map::new();
        object.insert("name".to_owned(), file.name.as_str().into());
        object.insert("missing".to_owned(), json!(file.missing));
        if file.missing.is_none() {
            object.insert("size".to_owned(), file.size.into());
            object.insert("truncated".to_owned(), file.truncated.into());
            show.encoding.put_file(&mut object, &file.content);
        }
        Value::Object(object)
    });
    shown.collect()
}
