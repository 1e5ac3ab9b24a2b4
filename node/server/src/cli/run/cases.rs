//! `quorun run --tests`: a program is judged by its test cases.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value, json};

use super::super::table::{table, text};
use super::super::usage;
use super::job;

/// Adds what a file says of test cases: a list of them, or an object with `tests` and what else belongs to judging
/// (`checker`, `stop_on_failure`). JSON, or TOML where the file's name says so.
pub fn add_to(request: &mut Value, path: &Path) -> anyhow::Result<()> {
    let parsed = parse(path).with_context(|| path.display().to_string());
    let members = parsed.map_err(|error| usage(&error))?;
    if let Some(request) = request.as_object_mut() {
        request.extend(members);
    }
    Ok(())
}

fn parse(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let bytes = job::read(path)?;
    let text = std::str::from_utf8(&bytes).context("not UTF-8")?;
    let is_toml = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("toml"));
    let value: Value = if is_toml {
        toml::from_str(text)?
    } else {
        serde_json::from_str(text)?
    };
    let members = match value {
        Value::Array(_) => Map::from_iter([("tests".to_owned(), value)]),
        Value::Object(members) => members,
        _ => bail!("neither a list of test cases nor an object with tests"),
    };
    for name in members.keys() {
        if !matches!(name.as_str(), "tests" | "checker" | "stop_on_failure") {
            bail!("{name} is not tests, checker or stop_on_failure");
        }
    }
    match members.get("tests").and_then(Value::as_array) {
        Some(tests) if !tests.is_empty() => Ok(members),
        _ => Err(anyhow!("there are no test cases")),
    }
}

/// How one case ended, in a line.
pub fn line(test: &Value) -> String {
    let index = test["index"].as_u64().unwrap_or_default();
    format!(
        "test {}: {}",
        index.saturating_add(1),
        text(&test["verdict"])
    )
}

/// 0 if all cases were accepted, 1 if not.
pub fn exit_code(job: &Value) -> u8 {
    u8::from(job["verdict"] != "accepted")
}

/// The verdicts, for people.
pub fn report(job: &Value) -> String {
    let head = [
        "test",
        "verdict",
        "cpu ms",
        "wall ms",
        "memory kb",
        "message",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let tests = job["tests"].as_array().cloned().unwrap_or_default();
    for (number, test) in (1_u64..).zip(&tests) {
        let figures = ["verdict", "cpu_ms", "wall_ms", "memory_kb", "message"];
        let mut row = vec![text(&json!(number))];
        row.extend(figures.map(|name| text(&test[name])));
        rows.push(row);
    }
    let mut out = String::new();
    for name in ["stdout", "stderr"] {
        if job["verdict"] == "compile_error" {
            out.push_str(job["compile"][name].as_str().unwrap_or_default());
        }
    }
    if !tests.is_empty() {
        out.push_str(&table(&rows));
    }
    out.push_str(&text(&job["verdict"]));
    if let Some(message) = job["message"].as_str() {
        out.push_str(": ");
        out.push_str(message);
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_cases_are_read_from_json_and_toml() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let mut request = json!({ "language": "python" });
            add_to(&mut request, &path).map(|()| request)
        };
        let cases = json!([{ "stdin": "1", "expected": "2" }]);
        let list = read("a.json", "[{\"stdin\": \"1\", \"expected\": \"2\"}]").unwrap();
        assert_eq!(list["tests"], cases);
        let toml = "stop_on_failure = true\n[[tests]]\nstdin = \"1\"\nexpected = \"2\"\n";
        let object = read("a.toml", toml).unwrap();
        assert_eq!(object["tests"], cases);
        assert_eq!(object["stop_on_failure"], true);
        assert_eq!(object["language"], "python");
        for (name, wrong) in [
            ("b.json", ""),
            ("b.json", "[]"),
            ("b.json", "{}"),
            ("b.json", "7"),
            ("b.json", "{\"tests\": 7}"),
            ("b.json", "{\"tests\": [{}], \"language\": \"c\"}"),
            ("b.toml", "tests = ["),
        ] {
            assert!(read(name, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_report_has_a_line_for_each_case_and_the_verdict() {
        let job = json!({
            "verdict": "wrong_answer",
            "message": "test 2 of 2",
            "tests": [
                { "verdict": "accepted", "cpu_ms": 1, "wall_ms": 2, "memory_kb": 3 },
                { "verdict": "wrong_answer", "cpu_ms": 1, "wall_ms": 2, "memory_kb": 3, "message": "x" },
            ],
        });
        let shown = report(&job);
        assert_eq!(shown.lines().count(), 4, "{shown}");
        assert!(shown.ends_with("wrong_answer: test 2 of 2\n"), "{shown}");
    }
}
