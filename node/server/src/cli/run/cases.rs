//! `quorun run --tests`: a program is judged by its test cases.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value};

use super::super::table::{table, text};
use super::super::{NOT_RUN, usage};
use super::job;

/// How many cases' stderr is shown.
const SHOWN_CASES: u32 = 5;
/// How many lines of each.
const SHOWN_LINES: usize = 10;
/// How much of a line.
const SHOWN_CHARACTERS: usize = 200;

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
    let number = test["index"].as_u64().unwrap_or_default().saturating_add(1);
    let mut line = format!("{}: {}", title(number, test), text(&test["verdict"]));
    if let Some(message) = test["message"].as_str() {
        line += ": ";
        line += &clean(message);
    }
    line
}

/// What a case is called: by its number, from 1, and by its name if it has one.
fn title(number: u64, test: &Value) -> String {
    match test["name"].as_str() {
        Some(name) => format!("test {number} ({})", clean(name)),
        None => format!("test {number}"),
    }
}

/// What is not ours to print as it is, is not: a terminal does what control characters say.
fn clean(line: &str) -> String {
    line.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// 0 if all cases were accepted, 1 if not, 125 if Quorun is the reason.
pub fn exit_code(job: &Value) -> u8 {
    match job["verdict"].as_str() {
        Some("accepted") => 0,
        Some("cancelled" | "internal_error") | None => NOT_RUN,
        Some(_) => 1,
    }
}

/// What the cases that were not accepted wrote on stderr, the end of it: what a program says last mostly says why it ends.
pub fn failures(job: &Value) -> String {
    let mut out = String::new();
    let mut left_out = 0;
    let mut shown = 0;
    for (number, test) in (1..).zip(job["tests"].as_array().into_iter().flatten()) {
        let stderr = test["stderr"].as_str().unwrap_or_default().trim_end();
        if test["verdict"] == "accepted" || stderr.is_empty() {
            continue;
        }
        if shown == SHOWN_CASES {
            left_out += 1;
            continue;
        }
        shown += 1;
        out += &format!("{} wrote on stderr:\n", title(number, test));
        let lines: Vec<&str> = stderr.lines().collect();
        let skipped = lines.len().saturating_sub(SHOWN_LINES);
        if skipped > 0 {
            out += &format!("  … ({skipped} lines before)\n");
        }
        for line in &lines[skipped..] {
            let mut line = clean(line);
            if let Some((end, _)) = line.char_indices().nth(SHOWN_CHARACTERS) {
                line.truncate(end);
                line.push('…');
            }
            out += &format!("  {line}\n");
        }
        if test["truncated"]["stderr"] == true {
            out += "  … (there was more, which was not kept)\n";
        }
    }
    if left_out > 0 {
        out += &format!("{left_out} more cases wrote on stderr; --json has all of it\n");
    }
    out
}

/// The verdicts and what they come to, for people.
pub fn report(job: &Value) -> String {
    let tests = job["tests"].as_array().cloned().unwrap_or_default();
    let named = tests.iter().any(|test| !test["name"].is_null());
    let mut columns = vec![
        ("verdict", "verdict"),
        ("score", "score"),
        ("cpu ms", "cpu_ms"),
        ("wall ms", "wall_ms"),
        ("memory kb", "memory_kb"),
        ("message", "message"),
    ];
    if named {
        columns.insert(0, ("name", "name"));
    }
    let mut head = vec!["test".to_owned()];
    head.extend(columns.iter().map(|(head, _)| (*head).to_owned()));
    let mut rows = vec![head];
    for (number, test) in (1_u64..).zip(&tests) {
        let mut row = vec![number.to_string()];
        row.extend(columns.iter().map(|(_, member)| text(&test[member])));
        rows.push(row);
    }
    let mut out = String::new();
    if !tests.is_empty() {
        out.push_str(&table(&rows));
    }
    out.push_str(&text(&job["verdict"]));
    if let Some(message) = job["message"].as_str() {
        out.push_str(": ");
        out.push_str(&clean(message));
    }
    out.push('\n');
    if let (Some(total), Some(passed)) = (job["tests_total"].as_u64(), job["tests_passed"].as_u64())
    {
        out += &format!("{passed} of {total} accepted");
        let skipped = total.saturating_sub(tests.len() as u64);
        if skipped > 0 {
            out += &format!(", {skipped} not run");
        }
        out += &format!("; score {}\n", text(&job["score"]));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
    fn a_report_has_a_line_for_each_case_the_verdict_and_the_score() {
        let mut job = json!({
            "verdict": "wrong_answer",
            "message": "test 2 of 3",
            "score": 0.25, "tests_passed": 1, "tests_total": 3,
            "tests": [
                { "name": null, "verdict": "accepted", "score": 1.0, "cpu_ms": 1, "wall_ms": 2, "memory_kb": 3 },
                { "name": null, "verdict": "wrong_answer", "score": 0.0, "cpu_ms": 1, "wall_ms": 2, "memory_kb": 3, "message": "x" },
            ],
        });
        let shown = report(&job);
        assert_eq!(shown.lines().count(), 5, "{shown}");
        assert!(!shown.contains("name"), "{shown}");
        assert!(
            shown.ends_with("wrong_answer: test 2 of 3\n1 of 3 accepted, 1 not run; score 0.25\n"),
            "{shown}"
        );
        job["tests"][1]["name"] = "large\u{1b}".into();
        let shown = report(&job);
        assert!(shown.contains("large\u{fffd}  wrong_answer"), "{shown}");
        assert_eq!(
            line(
                &json!({ "index": 1, "name": "large", "verdict": "time_limit", "message": "too long" })
            ),
            "test 2 (large): time_limit: too long"
        );
    }

    #[test]
    fn what_failed_cases_wrote_on_stderr_is_shown_cut_short() {
        let many: Vec<String> = (1..=12).map(|n| format!("line {n}")).collect();
        let case = |verdict: &str, stderr: &str| json!({ "verdict": verdict, "stderr": stderr });
        let mut long = case("runtime_error", &many.join("\n"));
        long["name"] = "long".into();
        let wide = case("runtime_error", &"x".repeat(1000));
        let mut tests = vec![case("accepted", "quiet"), long, wide];
        tests.extend(vec![case("wrong_answer", "\u{1b}[2J"); 5]);
        // A hidden one has none.
        tests.push(json!({ "verdict": "wrong_answer" }));
        let shown = failures(&json!({ "tests": tests }));
        assert!(!shown.contains("quiet"), "{shown}");
        let begin = "test 2 (long) wrote on stderr:\n  … (2 lines before)\n  line 3\n";
        assert!(shown.starts_with(begin), "{shown}");
        assert!(shown.contains("  line 12\ntest 3 wrote"), "{shown}");
        assert!(
            shown.contains(&format!("  {}…\n", "x".repeat(200))),
            "{shown}"
        );
        assert!(shown.contains("  \u{fffd}[2J\n"), "{shown}");
        let end = "2 more cases wrote on stderr; --json has all of it\n";
        assert!(shown.ends_with(end), "{shown}");
        assert_eq!(failures(&json!({ "tests": [] })), "");
    }
}
