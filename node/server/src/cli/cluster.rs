//! `quorun cluster`.

use std::process::ExitCode;

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::table::{table, text};
use super::target::Target;

/// Look at a cluster, and change it.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the nodes, who leads, and what waits
    Status {
        #[command(flatten)]
        target: Target,
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
        ClusterCommand::Status { target } => {
            let body = ask(&target, Method::GET, "/v1/cluster", None).await?;
            say(&target, &body, || print!("{}", status(&body)));
        }
        ClusterCommand::Add { peer, http, target } => {
            let request = json!({ "peer": peer, "http": http });
            let body = ask(&target, Method::POST, "/v1/cluster/nodes", Some(request)).await?;
            let client = target.client()?;
            say(&target, &body, || {
                println!(
                    "node {} has a place; start it with: quorun serve --join {} --peer {peer}",
                    text(&body["id"]),
                    client.base()
                );
            });
        }
        ClusterCommand::Remove { node, target } => {
            let path = format!("/v1/cluster/nodes/{node}");
            let body = ask(&target, Method::DELETE, &path, None).await?;
            let state = if body["removed"] == true {
                "has been removed"
            } else {
                "is being removed"
            };
            say(&target, &body, || {
                println!(
                    "node {node} {state}; jobs that went to others: {}",
                    text(&body["requeued"])
                );
            });
        }
        ClusterCommand::Drain { node, undo, target } => {
            let path = format!("/v1/cluster/nodes/{node}/drain");
            let request = json!({ "draining": !undo });
            let body = ask(&target, Method::POST, &path, Some(request)).await?;
            let work = if undo { "work again" } else { "no more work" };
            say(&target, &body, || println!("node {node} is given {work}"));
        }
        ClusterCommand::MoveLeader { node, target } => {
            let request = json!({ "node": node });
            let body = ask(&target, Method::POST, "/v1/cluster/leader", Some(request)).await?;
            say(&target, &body, || {
                println!("node {} leads", text(&body["leader"]));
            });
        }
        ClusterCommand::Settings {
            retention_s,
            retention_mb,
            replace_voter_s,
            reset,
            target,
        } => {
            let given = [
                ("retention_s", retention_s),
                ("retention_mb", retention_mb),
                ("replace_voter_s", replace_voter_s),
            ];
            let body = settings(&target, &given, reset).await?;
            say(&target, &body, || {
                for (name, _) in given {
                    let own = body["set"][name].is_null();
                    let origin = if own {
                        "the node's own"
                    } else {
                        "the cluster's"
                    };
                    let effective = text(&body["effective"][name]);
                    println!("{name:<16} {effective:>10}  {origin}");
                }
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Changes the settings that are given, and reads all of them.
async fn settings(
    target: &Target,
    given: &[(&str, Option<u64>)],
    reset: bool,
) -> anyhow::Result<Value> {
    const PATH: &str = "/v1/cluster/settings";
    let mut body = ask(target, Method::GET, PATH, None).await?;
    if reset || given.iter().any(|(_, value)| value.is_some()) {
        let mut set = if reset { json!({}) } else { body["set"].take() };
        for (name, value) in given {
            if let Some(value) = value {
                set[*name] = (*value).into();
            }
        }
        ask(target, Method::PUT, PATH, Some(set)).await?;
        body = ask(target, Method::GET, PATH, None).await?;
    }
    Ok(body)
}

/// Says an answer to a program as it is, or to a person in words.
fn say(target: &Target, body: &Value, words: impl FnOnce()) {
    if target.json {
        println!("{body:#}");
    } else {
        words();
    }
}

/// Sends a request that must succeed.
async fn ask(
    target: &Target,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> anyhow::Result<Value> {
    target.client()?.ask(method, path, body.as_ref()).await
}

fn status(body: &Value) -> String {
    let mut rows = vec![
        [
            "node", "role", "state", "busy", "http", "peer", "applied", "version",
        ]
        .map(str::to_owned)
        .to_vec(),
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
        rows.push(vec![
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
    out.push_str(&table(&rows));
    out
}
