//! The examples of the documentation are run as they stand there, through a shell, and answer what they say.
//!
//! Every call of the API has one: which calls there are is read from the document of the API, which were made from the
//! nodes' own figures.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use quorun_tests::{Cluster, Figures, program, say};
use serde_json::Value;

/// The pages, in the order in which they are read.
const PAGES: [&str; 2] = ["docs/api.md", "docs/live.md"];
/// What the examples need of a machine.
const TOOLS: [&str; 3] = ["bash", "curl", "jq"];
/// What is left out of an answer.
const DOTS: &str = "…";
/// All examples together; those that wait do so for half a minute each at most.
const PATIENCE: Duration = Duration::from_secs(300);
/// What stands behind the answer of each command, and cannot be in it.
const MARK: char = '\u{1}';

/// A command, and what it answers.
#[derive(Debug)]
struct Example {
    page: &'static str,
    line: usize,
    command: String,
    answer: String,
}

fn repository(file: &str) -> String {
    format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"))
}

/// The examples of a page: in blocks of the kind `console`, a line that begins with `$ ` and those that a shell still waits
/// for are a command, what follows is its answer.
fn examples(page: &'static str) -> Vec<Example> {
    let text = std::fs::read_to_string(repository(page)).expect("a page");
    let mut found: Vec<Example> = Vec::new();
    let mut inside = false;
    let mut open = false;
    for (n, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```console";
            open = false;
            continue;
        }
        if !inside {
            continue;
        }
        if let Some(command) = line.strip_prefix("$ ") {
            found.push(Example {
                page,
                line: n + 1,
                command: String::new(),
                answer: String::new(),
            });
            open = true;
            continue_with(&mut found, command, &mut open);
        } else if open {
            continue_with(&mut found, line, &mut open);
        } else {
            let last = found.last_mut();
            let last = last.unwrap_or_else(|| panic!("{page}:{}: no command", n + 1));
            last.answer += line;
            last.answer.push('\n');
        }
    }
    found
}

fn continue_with(found: &mut [Example], line: &str, open: &mut bool) {
    let command = &mut found.last_mut().expect("a command").command;
    command.push_str(line);
    command.push('\n');
    *open = line.ends_with('\\') || command.matches('\'').count() % 2 == 1;
}

/// Runs all commands in one shell, one after the other. What each of them printed, and the code that it ended with.
async fn run(examples: &[Example], url: &str) -> Vec<(String, i32)> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut script = String::new();
    for Example { command, .. } in examples {
        let _ = writeln!(script, "{command}printf '{MARK}%s{MARK}' $?");
    }
    let file = folder.path().join("script");
    std::fs::write(&file, script).expect("write");
    let path = std::env::var("PATH").unwrap_or_default();
    let beside = program::quorun().parent().expect("a folder").display();
    let child = tokio::process::Command::new("bash")
        .arg(&file)
        .current_dir(folder.path())
        .env("PATH", format!("{beside}:{path}"))
        .env("QUORUN", url)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, child).await;
    let output = output.expect("the examples end").expect("bash");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut parts = text.split(MARK);
    let mut answers = Vec::new();
    while let (Some(printed), Some(code)) = (parts.next(), parts.next()) {
        answers.push((printed.to_owned(), code.parse().expect("an exit code")));
    }
    answers
}

/// What the first job of the README prints, at the nodes of a cluster in the place of those of the machine.
async fn first_job(cluster: &Cluster) -> String {
    let text = std::fs::read_to_string(repository("README.md")).expect("the page");
    let text = text.split_once("## A first job").expect("a first job").1;
    let text = text.split_once("\n## ").expect("its end").0;
    let blocks = text.split("```sh\n").skip(1);
    let blocks = blocks.map(|block| block.split_once("```").expect("the end of a block").0);
    let mut command = blocks.collect::<String>();
    for (n, client) in cluster.clients().iter().enumerate() {
        command = command.replace(&format!("http://127.0.0.1:808{n}"), client.url());
    }
    assert!(!command.contains(":808"), "{command}");
    let example = Example {
        page: "README.md",
        line: 0,
        command,
        answer: String::new(),
    };
    let printed = run(&[example], cluster.client(1).url()).await;
    printed.into_iter().map(|(printed, _)| printed).collect()
}

/// Whether an answer is what the page says. A JSON text is compared by what it says, whatever its order and its spaces;
/// of an answer with its head only those headers that the page has, and everything else line by line.
fn answers(page: &str, answer: &str) -> bool {
    let answer = answer.replace('\r', "");
    if page.starts_with("HTTP/") {
        let (wanted, body) = page.split_once("\n\n").unwrap_or((page, ""));
        let (head, there) = answer.split_once("\n\n").unwrap_or((&answer, ""));
        let mut wanted = wanted.lines();
        let mut head = head.lines();
        let status = wanted.next().zip(head.next());
        let headers: Vec<_> = head.collect();
        return status.is_some_and(|(wanted, there)| is_like(wanted.trim_end(), there.trim_end()))
            && wanted.all(|wanted| headers.iter().any(|header| is_like(wanted, header)))
            && answers(body, there);
    }
    if let Some(wanted) = json(page) {
        return serde_json::from_str(&answer).is_ok_and(|there: Value| says(&wanted, &there));
    }
    let wanted: Vec<_> = page.trim_end().lines().collect();
    let there: Vec<_> = answer.trim_end().lines().collect();
    lines(&wanted, &there)
}

/// A text for people with lines left out.
fn lines(wanted: &[&str], there: &[&str]) -> bool {
    match wanted.split_first() {
        None => there.is_empty(),
        Some((&DOTS, rest)) => (0..=there.len()).any(|n| lines(rest, &there[n..])),
        Some((first, rest)) => there.split_first().is_some_and(|(line, others)| {
            let data = ["data: "].iter().find_map(|name| {
                Some((json(first.strip_prefix(name)?)?, line.strip_prefix(name)?))
            });
            let same = match data {
                Some((wanted, line)) => {
                    serde_json::from_str(line).is_ok_and(|there: Value| says(&wanted, &there))
                }
                None => is_like(first, line),
            };
            same && lines(rest, others)
        }),
    }
}

/// Whether a text is like another one in which parts are left out.
fn is_like(wanted: &str, there: &str) -> bool {
    let mut parts = wanted.split(DOTS);
    let Some(mut rest) = there.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some((_, behind)) = rest.split_once(part) else {
            return false;
        };
        rest = behind;
    }
    rest.is_empty()
}

/// Reads JSON in which things are left out: `…` becomes a text, and in an object a member, of this name.
fn json(text: &str) -> Option<Value> {
    if !text.trim_start().starts_with(['{', '[']) {
        return None;
    }
    let mut whole = String::new();
    let mut within: Vec<char> = Vec::new();
    let (mut quoted, mut escaped) = (false, false);
    let mut last = ' ';
    for c in text.chars() {
        if quoted {
            quoted = c != '"' || escaped;
            escaped = c == '\\' && !escaped;
            whole.push(c);
        } else if c == '…' {
            let member = within.last() == Some(&'{') && last != ':';
            whole += if member { "\"…\": null" } else { "\"…\"" };
        } else {
            match c {
                '"' => quoted = true,
                '{' | '[' => within.push(c),
                '}' | ']' => drop(within.pop()),
                _ => {}
            }
            whole.push(c);
        }
        if !c.is_whitespace() {
            last = c;
        }
    }
    serde_json::from_str(&whole).ok()
}

fn says(wanted: &Value, there: &Value) -> bool {
    match (wanted, there) {
        (Value::String(dots), _) if dots == DOTS => true,
        (Value::String(wanted), Value::String(there)) => is_like(wanted, there),
        (Value::Object(wanted), Value::Object(there)) => {
            let has = |name: &String| wanted.contains_key(name);
            wanted
                .iter()
                .filter(|(name, _)| *name != DOTS)
                .all(|(name, wanted)| there.get(name).is_some_and(|there| says(wanted, there)))
                && (wanted.contains_key(DOTS) || there.keys().all(has))
        }
        (Value::Array(wanted), Value::Array(there)) => items(wanted, there),
        (wanted, there) => wanted == there,
    }
}

fn items(wanted: &[Value], there: &[Value]) -> bool {
    match wanted.split_first() {
        None => there.is_empty(),
        Some((Value::String(dots), rest)) if dots == DOTS => {
            (0..=there.len()).any(|n| items(rest, &there[n..]))
        }
        Some((first, rest)) => there
            .split_first()
            .is_some_and(|(item, others)| says(first, item) && items(rest, others)),
    }
}

/// A method, and the route that it is for.
pub type Call = (String, String);

/// All calls of the API.
pub fn calls() -> BTreeSet<Call> {
    let text = std::fs::read_to_string(repository("docs/openapi.json")).expect("the document");
    let document: Value = serde_json::from_str(&text).expect("the document");
    let paths = document["paths"].as_object().expect("paths");
    let calls = paths.iter().flat_map(|(route, methods)| {
        let methods = methods.as_object().expect("methods").keys();
        methods
            .filter(|name| ["get", "post", "put", "patch", "delete"].contains(&name.as_str()))
            .map(|method| (method.to_uppercase(), route.clone()))
    });
    calls.collect()
}

/// The calls that a cluster has answered, and not with an error.
async fn made(cluster: &Cluster) -> BTreeSet<Call> {
    let mut made = BTreeSet::new();
    for client in cluster.clients() {
        let page = client.get("/metrics").await.text();
        for figure in Figures::parse(&page).expect("figures").all {
            let label = |name: &str| figure.labels.get(name).cloned().unwrap_or_default();
            if figure.name == "quorun_http_requests_total" && label("status").as_str() < "400" {
                made.insert((label("method"), label("route")));
            }
        }
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_documentation_answer_what_they_say_and_no_call_has_none() {
    let lacks = |tool: &&str| {
        let mut command = std::process::Command::new(tool);
        let quiet = command.arg("--version").stdout(Stdio::null());
        quiet.stderr(Stdio::null()).status().is_err()
    };
    if let Some(tool) = TOOLS.iter().find(|tool| lacks(tool)) {
        let required = std::env::var_os("QUORUN_REQUIRE_ENGINE").is_some_and(|v| v == "1");
        assert!(!required, "the examples of the documentation need {tool}");
        say(&format!(
            "SKIPPED the examples of the documentation: they need {tool}"
        ));
        return;
    }
    let cluster = Cluster::of_processes().await;
    cluster.last_rules().await;
    let examples: Vec<_> = PAGES.into_iter().flat_map(examples).collect();
    assert!(examples.len() > 40, "the examples are not found");
    let answered = run(&examples, cluster.client(1).url()).await;
    assert_eq!(answered.len(), examples.len(), "the shell has ended early");
    let mut wrong = String::new();
    for (example, (answer, code)) in examples.iter().zip(answered) {
        let Example {
            page,
            line,
            command,
            answer: wanted,
        } = example;
        if code != 0 || !answers(wanted, &answer) {
            let _ = write!(
                wrong,
                "{page}:{line}: exit code {code}\n$ {command}--- the page\n{wanted}--- the answer\n{answer}\n\n"
            );
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    let said = first_job(&cluster).await;
    for part in ["45\n", "hello world\n", "\"stdout\":\"hello\\n\""] {
        assert!(said.contains(part), "the first job of the README: {said}");
    }
    let all = calls();
    let made = made(&cluster).await;
    let without: Vec<_> = all.difference(&made).collect();
    assert!(without.is_empty(), "calls without an example: {without:?}");
    assert!(all.len() >= 28, "{all:?}");
}

#[test]
fn what_is_left_out_may_be_anything_and_all_else_must_be_there() {
    for (page, answer) in [
        ("a…c", "abbc"),
        ("…", ""),
        ("a\n…\nd", "a\nb\nc\nd\n"),
        ("{\"a\": 1, …}", "{\"b\":2,\"a\":1}"),
        ("{\"a\": …}", "{\"a\":[1]}"),
        ("{\"a\": \"x…\"}", "{\"a\":\"xyz\"}"),
        ("{…}", "{}"),
        ("[1, …]", "[1,2,3]"),
        ("[…, {\"a\": \"…\"}]", "[1,{\"a\":\"}\\\"{\"}]"),
        (
            "HTTP/1.1 200 OK\nb: …\n\nx",
            "HTTP/1.1 200 OK\r\na: 1\r\nb: 2\r\n\r\nx",
        ),
        ("data: {\"b\": 1, \"a\": 2}", "data: {\"a\":2,\"b\":1}"),
    ] {
        assert!(answers(page, answer), "{page} {answer}");
    }
    for (page, answer) in [
        ("a…c", "abb"),
        ("a", "ab"),
        ("a\n…\nd", "a\nb"),
        ("{\"a\": 1, …}", "{\"b\":2,\"a\":2}"),
        ("{\"a\": 1}", "{\"b\":2,\"a\":1}"),
        ("{\"a\": 1, …}", "{}"),
        ("[1, …]", "[2,1]"),
        ("[1]", "[1,2]"),
        ("HTTP/1.1 200 OK\nb: 2", "HTTP/1.1 200 OK\r\na: 1\r\n\r\n"),
        ("HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found\r\n\r\n"),
    ] {
        assert!(!answers(page, answer), "{page} {answer}");
    }
}
