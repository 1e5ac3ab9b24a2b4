//! `quorun jobs`, `logs`, `cancel` and `languages`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, problem};
use super::languages_set::{self, LanguagesCommand};
use super::stream::{Event, Events};
use super::table::{table, text};
use super::target::Target;
use super::{outcome, run};

/// How a job can have ended.
const VERDICTS: [&str; 9] = [
    "accepted",
    "wrong_answer",
    "compile_error",
    "runtime_error",
    "time_limit",
    "memory_limit",
    "output_limit",
    "cancelled",
    "internal_error",
];

/// List jobs, newest first.
#[derive(Args, Debug)]
pub struct JobsArgs {
    /// Only those that are so; several with commas between them
    #[arg(long, value_delimiter = ',', value_parser = ["queued", "running", "finished"])]
    state: Vec<String>,
    /// Only those that ended so; several with commas between them
    #[arg(long, value_delimiter = ',', value_parser = VERDICTS)]
    verdict: Vec<String>,
    /// Only those in this language
    #[arg(long, value_name = "NAME")]
    lang: Option<String>,
    /// Only those with this label
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    target: Target,
}

/// Lists jobs.
pub async fn jobs(args: JobsArgs) -> anyhow::Result<ExitCode> {
    const PAGE: usize = 500;
    let client = args.target.client()?;
    let mut jobs: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    let several = |names: &[String]| (!names.is_empty()).then(|| names.join(","));
    let (state, verdict) = (several(&args.state), several(&args.verdict));
    // A page may be short although there are more.
    while jobs.len() < args.limit {
        let limit = (args.limit - jobs.len()).min(PAGE).to_string();
        let query = [
            ("limit", Some(&limit)),
            ("state", state.as_ref()),
            ("verdict", verdict.as_ref()),
            ("language", args.lang.as_ref()),
            ("label", args.label.as_ref()),
            ("cursor", cursor.as_ref()),
        ];
        let path = format!("/v1/jobs?{}", encoded(&query));
        let body = client.ask(Method::GET, &path, None).await?;
        jobs.extend(body["jobs"].as_array().cloned().unwrap_or_default());
        cursor = body["next_cursor"].as_str().map(ToOwned::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    if args.target.json {
        println!("{:#}", json!({ "jobs": jobs, "next_cursor": cursor }));
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", listed(&jobs));
    Ok(ExitCode::SUCCESS)
}

/// The jobs of a list, for people.
fn listed(jobs: &[Value]) -> String {
    let judged = jobs.iter().any(outcome::is_judged);
    let mut columns = vec![
        ("id", "id"),
        ("language", "language"),
        ("state", "state"),
        ("verdict", "verdict"),
        ("exit", "exit_code"),
        ("cpu ms", "cpu_ms"),
        ("wall ms", "wall_ms"),
        ("node", "node"),
        ("submitted", "submitted_at"),
        ("labels", "labels"),
    ];
    if judged {
        columns.insert(4, ("score", "score"));
    }
    let head = columns.iter().map(|(head, _)| (*head).to_owned());
    let mut rows = vec![head.collect()];
    for job in jobs {
        let cells = columns.iter().map(|(_, member)| match *member {
            "labels" => {
                let labels = job["labels"].as_array().into_iter().flatten();
                labels.map(text).collect::<Vec<_>>().join(",")
            }
            "score" if outcome::is_judged(job) => format!(
                "{} ({}/{})",
                job["score"], job["tests_passed"], job["tests_total"]
            ),
            member => text(&job[member]),
        });
        rows.push(cells.collect());
    }
    table(&rows)
}

/// The query of what is there.
fn encoded(query: &[(&str, Option<&String>)]) -> String {
    let mut text = String::new();
    for (name, value) in query {
        let Some(value) = value else { continue };
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

/// The path of a job.
fn path(id: &str) -> anyhow::Result<String> {
    match id.parse::<quorun_ledger::JobId>() {
        Ok(id) => Ok(format!("/v1/jobs/{id}")),
        Err(_) => Err(super::usage(&anyhow::anyhow!("\"{id}\" is not a job id"))),
    }
}

/// Show what a job has printed.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The job
    id: String,
    /// Go on until it has finished
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    target: Target,
}

/// Shows what a job has printed, and how it has ended if it has; then it exits as `quorun run` would have.
pub async fn logs(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    let path = path(&args.id)?;
    // Events are waited for while nodes are away. That there is no such job, or nobody to ask, is said at once.
    let job = client.ask(Method::GET, &path, None).await?;
    let mut state = text(&job["state"]);
    let mut events = if args.follow {
        Events::of(&client, &args.id)
    } else {
        Events::until_now(&client, &args.id)
    };
    let mut printed = false;
    let mut ended = None;
    while let Some(event) = events.next().await? {
        if args.target.json {
            run::write(false, format!("{}\n", line(&event)).as_bytes())?;
        } else {
            run::show(&event)?;
        }
        match event.name.as_str() {
            "state" => state = text(&event.data["state"]),
            "output" => printed = true,
            "finished" => ended = Some(event.data),
            _ => {}
        }
    }
    let id = &args.id;
    let Some(job) = ended else {
        if !printed && !args.target.json {
            let words = format!("quorun: job {id} is {state} and has printed nothing yet\n");
            outcome::say(&words);
        }
        return Ok(ExitCode::SUCCESS);
    };
    if !args.target.json {
        run::show_end(&job);
        if !printed && !outcome::is_judged(&job) && outcome::words(&job).is_empty() {
            outcome::say(&outcome::silence(&job));
        }
    }
    Ok(outcome::exit_code(&job))
}

/// An event in one line.
fn line(event: &Event) -> Value {
    json!({ "event": event.name, "id": event.id, "data": event.data })
}

/// Cancel jobs.
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// The jobs
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// Cancels jobs; exits with 1 when one could not be.
pub async fn cancel(args: CancelArgs) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    let paths: Vec<String> = args
        .ids
        .iter()
        .map(|id| path(id))
        .collect::<Result<_, _>>()?;
    let mut answers = Vec::new();
    let mut failed = false;
    for (id, path) in args.ids.iter().zip(paths) {
        let (status, body) = client.json(Method::DELETE, &path, None).await?;
        failed |= !status.is_success();
        if args.target.json {
            answers.push(body);
        } else if status.is_success() {
            println!("{id} is cancelled");
        } else {
            eprintln!("quorun: {id}: {status}: {}", problem(&body));
        }
    }
    if args.target.json {
        println!("{:#}", Value::from(answers));
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Show what can be run, or change it.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LanguagesArgs {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    change: Option<LanguagesCommand>,
}

/// Shows the languages.
pub async fn languages(args: LanguagesArgs) -> anyhow::Result<ExitCode> {
    if let Some(change) = args.change {
        return languages_set::languages(change).await;
    }
    let client: Client = args.target.client()?;
    let body = client.ask(Method::GET, "/v1/languages", None).await?;
    if args.target.json {
        println!("{body:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let Some(languages) = body["languages"].as_array() else {
        bail!("the answer has no languages");
    };
    let head = [
        "name",
        "offered",
        "title",
        "aliases",
        "extensions",
        "compiled",
        "image",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for language in languages {
        let list = |name: &str| {
            let all = language[name].as_array().cloned().unwrap_or_default();
            all.iter().map(text).collect::<Vec<_>>().join(" ")
        };
        let compiled = if language["compiled"] == true {
            "yes"
        } else {
            "no"
        };
        rows.push(vec![
            text(&language["name"]),
            offered(language),
            text(&language["title"]),
            list("aliases"),
            list("extensions"),
            compiled.to_owned(),
            text(&language["image"]),
        ]);
    }
    print!("{}", table(&rows));
    Ok(ExitCode::SUCCESS)
}

/// Whether a language takes submissions, and where it can be run if not everywhere; why not, if nowhere.
fn offered(language: &Value) -> String {
    /// What is shown of a reason, characters.
    const REASON: usize = 60;
    let nodes = language["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let have = nodes.iter().filter(|n| n["state"] == "present").count();
    if language["disabled"] == true {
        "no: disabled".to_owned()
    } else if language["offered"] == true && have == nodes.len() {
        "yes".to_owned()
    } else if language["offered"] == true {
        format!("on {have} of {} nodes", nodes.len())
    } else {
        let failed = nodes.iter().find(|node| node["state"] != "present");
        let Some(node) = failed else {
            return "no".to_owned();
        };
        let state = text(&node["state"]);
        match node["reason"].as_str() {
            Some(reason) => {
                let mut reason = reason.to_owned();
                if let Some((end, _)) = reason.char_indices().nth(REASON) {
                    reason.truncate(end);
                    reason.push('…');
                }
                format!("no: {state}: {reason}")
            }
            None => format!("no: {state}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_shown_where_there_are_tests() {
        let plain = json!({ "id": "1", "verdict": "accepted", "labels": ["a", "b"] });
        let shown = listed(std::slice::from_ref(&plain));
        assert!(!shown.contains("score") && shown.contains("a,b"), "{shown}");
        let judged = json!({ "id": "2", "score": 0.25, "tests_passed": 1, "tests_total": 2 });
        let shown = listed(&[plain, judged]);
        assert!(
            shown.contains("score") && shown.contains("0.25 (1/2)"),
            "{shown}"
        );
    }

    #[test]
    fn a_language_is_offered_or_it_is_said_why_not() {
        let language = |offered: bool, states: &[&str]| {
            let nodes: Vec<Value> = states
                .iter()
                .map(|state| json!({ "state": state, "reason": (*state == "failed").then_some("no image") }))
                .collect();
            json!({ "offered": offered, "disabled": false, "nodes": nodes })
        };
        assert_eq!(offered(&language(true, &["present", "present"])), "yes");
        assert_eq!(
            offered(&language(true, &["present", "pulling"])),
            "on 1 of 2 nodes"
        );
        assert_eq!(
            offered(&language(false, &["failed", "pulling"])),
            "no: failed: no image"
        );
        assert_eq!(offered(&language(false, &["unknown"])), "no: unknown");
        assert_eq!(offered(&language(false, &[])), "no");
        let mut disabled = language(false, &["present"]);
        disabled["disabled"] = true.into();
        assert_eq!(offered(&disabled), "no: disabled");
    }

    #[test]
    fn a_query_has_what_was_given_and_nothing_else_gets_in() {
        let label = "a b&c=ü".to_owned();
        let state = "running".to_owned();
        let query = [
            ("state", Some(&state)),
            ("language", None),
            ("label", Some(&label)),
        ];
        assert_eq!(encoded(&query), "state=running&label=a%20b%26c%3D%C3%BC");
        assert_eq!(encoded(&[]), "");
    }

    #[test]
    fn only_an_id_becomes_a_path() {
        assert!(path("../cluster").is_err());
        assert!(path("").is_err());
        let id = "01900000-0000-7000-8000-000000000000";
        assert_eq!(path(id).unwrap(), format!("/v1/jobs/{id}"));
    }
}
