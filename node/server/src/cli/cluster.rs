//! `quorun cluster`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::Target;
use super::client::problem;

/// Look at a cluster, and change it.
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
    /// Give a node a place before it comes: whoever then joins from this address has it (quorun serve --join)
    Add {
        /// HOST:PORT under which the others will reach its peer port
        peer: String,
        /// HOST:PORT under which its HTTP port will be reached
        #[arg(long, value_name = "HOST:PORT")]
        http: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Remove a node for ever; what it was running goes to others
    Remove {
        /// Its id
        node: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Give a node no more work; if it leads, another one takes over
    Drain {
        /// Its id
        node: u64,
        /// Give it work again
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Have another node lead
    MoveLeader {
        /// The voter that is to lead [default: the one that is best placed]
        node: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Show the settings of the whole cluster, and change those that are given
    Settings {
        /// Finished jobs are kept this long, seconds
        #[arg(long, value_name = "S")]
        retention_s: Option<u64>,
        /// Finished jobs are kept up to this size, MiB; the oldest go first
        #[arg(long, value_name = "MB")]
        retention_mb: Option<u64>,
        /// Silence after which a voter gives its vote to a learner, seconds
        #[arg(long, value_name = "S")]
        replace_voter_s: Option<u64>,
        /// Forget the settings of the cluster: each node's own configuration decides again
        #[arg(long, conflicts_with_all = ["retention_s", "retention_mb", "replace_voter_s"])]
        reset: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// Does what the command says.
pub async fn cluster(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClusterCommand::Status { target, json } => {
            let body = ask(&target, Method::GET, "/v1/cluster", None).await?;
            if json {
                println!("{body:#}");
            } else {
                print!("{}", table(&body));
            }
        }
        ClusterCommand::Add { peer, http, target } => {
            let request = json!({ "peer": peer, "http": http });
            let body = ask(&target, Method::POST, "/v1/cluster/nodes", Some(request)).await?;
            println!(
                "node {} has a place; start it with: quorun serve --join {} --peer {peer}",
                text(&body["id"]),
                target.url
            );
        }
        ClusterCommand::Remove { node, target } => {
            let path = format!("/v1/cluster/nodes/{node}");
            let body = ask(&target, Method::DELETE, &path, None).await?;
            let state = if body["removed"] == true {
                "has been removed"
            } else {
                "is being removed"
            };
            println!(
                "node {node} {state}; jobs that went to others: {}",
                text(&body["requeued"])
            );
        }
        ClusterCommand::Drain { node, undo, target } => {
            let path = format!("/v1/cluster/nodes/{node}/drain");
            let request = json!({ "draining": !undo });
            ask(&target, Method::POST, &path, Some(request)).await?;
            let work = if undo { "work again" } else { "no more work" };
            println!("node {node} is given {work}");
        }
        ClusterCommand::MoveLeader { node, target } => {
            let request = json!({ "node": node });
            let body = ask(&target, Method::POST, "/v1/cluster/leader", Some(request)).await?;
            println!("node {} leads", text(&body["leader"]));
        }
        ClusterCommand::Settings {
            retention_s,
            retention_mb,
            replace_voter_s,
            reset,
            target,
        } => {
            const PATH: &str = "/v1/cluster/settings";
            let given = [
                ("retention_s", retention_s),
                ("retention_mb", retention_mb),
                ("replace_voter_s", replace_voter_s),
            ];
            let mut body = ask(&target, Method::GET, PATH, None).await?;
            if reset || given.iter().any(|(_, value)| value.is_some()) {
                let mut set = if reset { json!({}) } else { body["set"].take() };
                for (name, value) in given {
                    if let Some(value) = value {
                        set[name] = value.into();
                    }
                }
                ask(&target, Method::PUT, PATH, Some(set)).await?;
                body = ask(&target, Method::GET, PATH, None).await?;
            }
            for (name, _) in given {
                let own = body["set"][name].is_null();
                let origin = if own {
                    "the node's own"
                } else {
                    "the cluster's"
                };
                println!(
                    "{name:<16} {:>10}  {origin}",
                    text(&body["effective"][name])
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends a request that must succeed.
async fn ask(
    target: &Target,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> anyhow::Result<Value> {
    let client = target.client()?;
    let (status, answer) = client.json(method, path, body.as_ref()).await?;
    if !status.is_success() {
        bail!("{status}: {}", problem(&answer));
    }
    Ok(answer)
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
