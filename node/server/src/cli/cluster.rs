//! `quorun cluster`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use http::{Method, StatusCode};
use serde_json::Value;

use super::Target;
use super::client::{Client, problem};

/// Look at a cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the nodes, who leads, and what waits
    Status {
        #[command(flatten)]
        target: Target,
        /// Print the answer of /v1/cluster as it is
        #[arg(long)]
        json: bool,
    },
}

/// Does what the command says.
pub async fn cluster(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClusterCommand::Status { target, json } => {
            let client = Client::new(&target.url)?;
            let (status, body) = client.json(Method::GET, "/v1/cluster", None).await?;
            if status != StatusCode::OK {
                bail!("{status}: {}", problem(&body));
            }
            if json {
                println!("{body:#}");
            } else {
                print!("{}", table(&body));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn table(body: &Value) -> String {
    let mut rows = vec![
        [
            "node", "role", "state", "busy", "http", "peer", "applied", "version",
        ]
        .map(str::to_owned),
    ];
    let nodes = body["nodes"].as_array().cloned().unwrap_or_default();
    for node in &nodes {
        let leads = node["id"] == body["leader"];
        let state = if node["lost"] == true {
            "lost".to_owned()
        } else if node["alive"] != true {
            "silent".to_owned()
        } else if node["draining"] == true {
            "draining".to_owned()
        } else if node["ready"] != true {
            format!("not ready: {}", text(&node["reason"]))
        } else {
            "ready".to_owned()
        };
        rows.push([
            text(&node["id"]),
            if leads {
                "leader".to_owned()
            } else {
                text(&node["role"])
            },
            state,
            format!("{}/{}", text(&node["busy"]), text(&node["slots"])),
            text(&node["http"]),
            text(&node["peer"]),
            text(&node["applied_index"]),
            text(&node["version"]),
        ]);
    }
    let mut out = format!(
        "cluster {}  term {}  queued {}  running {}  finished {}\n",
        text(&body["cluster_id"]),
        text(&body["term"]),
        text(&body["queue"]["jobs"]),
        text(&body["running"]),
        text(&body["finished"]["jobs"]),
    );
    if body["leader"].is_null() {
        out.push_str("there is no leader: fewer than half of the voters reach each other\n");
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}
