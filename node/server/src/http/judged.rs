//! How test cases, and the files that a program left, look in JSON.

use quorun_ledger::{OutputFile, Score, TestCase, TestResult};
use serde_json::{Map, Value, json};

use super::view::{Encoding, ms};

/// What is shown of a job beyond what everybody sees of it.
#[derive(Clone, Debug, Default)]
pub struct Show {
    /// How bytes stand in the answer.
    pub encoding: Encoding,
    /// The test cases as they were submitted, if who asks wants to have all of them.
    pub cases: Option<Vec<TestCase>>,
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
