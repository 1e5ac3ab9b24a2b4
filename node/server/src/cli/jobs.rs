//! `quorun jobs`, `logs`, `cancel` and `languages`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, problem};
use super::languages_set::{self, LanguagesCommand};
use super::run;
use super::stream::{Event, Events};
use super::table::{table, text};
use super::target::Target;

/// List jobs, newest first.
#[derive(Args, Debug)]
pub struct JobsArgs {
    /// Only those that are queued, running or finished
    #[arg(long)]
    state: Option<String>,
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
    // A page may be short although there are more.
    while jobs.len() < args.limit {
        let limit = (args.limit - jobs.len()).min(PAGE).to_string();
        let query = [
            ("limit", Some(&limit)),
            ("state", args.state.as_ref()),
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
    let head = [
        "id",
        "language",
        "state",
        "verdict",
        "exit",
        "cpu ms",
        "wall ms",
        "node",
        "submitted",
        "labels",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for job in &jobs {
        let labels: Vec<_> = job["labels"]
            .as_array()
            .map(|labels| labels.iter().map(text).collect())
            .unwrap_or_default();
        let mut row: Vec<_> = [
            "id",
            "language",
            "state",
            "verdict",
            "exit_code",
            "cpu_ms",
            "wall_ms",
            "node",
            "submitted_at",
        ]
        .map(|name| text(&job[name]))
        .to_vec();
        row.push(labels.join(","));
        rows.push(row);
    }
    print!("{}", table(&rows));
    Ok(ExitCode::SUCCESS)
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

/// Shows what a job has printed.
pub async fn logs(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    let _path = path(&args.id)?;
    let mut events = if args.follow {
        Events::of(&client, &args.id)
    } else {
        Events::until_now(&client, &args.id)
    };
    while let Some(event) = events.next().await? {
        if args.target.json {
            println!("{}", line(&event));
        } else {
            run::show(&event)?;
        }
    }
    Ok(ExitCode::SUCCESS)
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

#[cfg(test)]
mod tests {
    use super::*;

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
