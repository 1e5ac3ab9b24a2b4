//! `quorun dev`.

use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::signal::unix::{SignalKind, signal};

use super::local::{self, Folder, Node, Plan};
use super::{UsageError, serve, usage};
use crate::access::config::named;
use crate::config::ExecutorKind;

/// Pause before a node that was killed is started again.
const RESTART_AFTER: Duration = Duration::from_secs(2);

/// Run a whole cluster on this machine.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// How many nodes, 1 to 5
    #[arg(long, default_value_t = 3, value_name = "N")]
    nodes: u16,
    /// HTTP port of the first node; the others follow
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    http: u16,
    /// What executes jobs; `process` needs no Docker, and does NOT isolate the programs from this machine
    #[arg(long, value_enum, default_value = "docker")]
    executor: ExecutorKind,
    /// Keep the cluster's data here, so that it is there again next time [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Jobs that each node executes at one time [default: the number of cores, at least 2]
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
    /// What the nodes log: error, warn, info, debug, or a filter
    #[arg(long, default_value = "warn", value_name = "FILTER")]
    log: String,
    /// API tokens, as the nodes' own option has them [default: none, and whoever is on this machine may do everything]
    #[arg(long, env = "QUORUN_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Let callbacks of jobs go to addresses that are not on the public internet, such as this machine's
    #[arg(long, env = "QUORUN_CALLBACK_ALLOW_PRIVATE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    callback_allow_private: Option<bool>,
    /// Further CAs whose certificates receivers of callbacks may have, PEM
    #[arg(long, env = "QUORUN_CALLBACK_CA_FILE", value_name = "FILE")]
    callback_ca_file: Option<PathBuf>,
    /// Any other options of `quorun serve`, for every node: quorun dev -- --max-queue 100
    #[arg(last = true, value_name = "OPTION")]
    serve: Vec<String>,
}

impl DevArgs {
    /// What the nodes get beside what their plan says. An empty value is a variable that is not set.
    fn more(&self) -> anyhow::Result<Vec<String>> {
        let mut more = Vec::new();
        let files = [
            ("--tokens", &self.tokens),
            ("--callback-ca-file", &self.callback_ca_file),
        ];
        for (option, path) in files {
            if let Some(path) = named(path.as_deref()) {
                let path = path.to_str().with_context(|| {
                    format!("{option}: the name {} is not UTF-8", path.display())
                })?;
                more.push(format!("{option}={path}"));
            }
        }
        if let Some(allowed) = self.callback_allow_private {
            more.push(format!("--callback-allow-private={allowed}"));
        }
        more.extend(self.serve.iter().cloned());
        Ok(more)
    }
}

/// Runs the cluster until Ctrl-C.
pub async fn dev(args: DevArgs) -> anyhow::Result<ExitCode> {
    let more = args.more().map_err(|error| usage(&error))?;
    let mut plan = Plan {
        nodes: args.nodes,
        http: args.http,
        executor: args.executor,
        data: args.data.clone().unwrap_or_default(),
        slots: args.slots,
        cluster: "dev".to_owned(),
        log: args.log,
        log_files: false,
        more,
    };
    plan.check().map_err(|error| usage(&error))?;
    let temporary = match args.data {
        Some(_) => None,
        None => Some(Folder::new("dev")?),
    };
    if let Some(folder) = &temporary {
        folder.path().clone_into(&mut plan.data);
    }
    // So that what is wrong is said once, and not by each of the nodes.
    let settings = serve::check(&plan.arguments(1))?;
    if named(settings.tls_cert.as_deref()).is_some() {
        return Err(UsageError(
            "--tls-cert: quorun dev talks to its nodes without TLS; leave it out".to_owned(),
        )
        .into());
    }
    let tokens = named(settings.tokens.as_deref()).is_some();
    let mut nodes = Vec::new();
    for id in 1..=plan.nodes {
        nodes.push(plan.start(id)?);
    }
    let result = supervise(&plan, &mut nodes, tokens).await;
    local::end(nodes).await;
    drop(temporary);
    result.map(|()| ExitCode::SUCCESS)
}

async fn supervise(plan: &Plan, nodes: &mut Vec<Node>, tokens: bool) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    println!(
        "starting {} nodes, data in {}",
        plan.nodes,
        plan.data.display()
    );
    let ready = plan.all_ready();
    tokio::pin!(ready);
    let mut announced = false;
    loop {
        let mut ended: FuturesUnordered<_> = nodes
            .iter_mut()
            .enumerate()
            .map(|(place, node)| async move { (place, node.child.wait().await) })
            .collect();
        let (place, status) = tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            result = &mut ready, if !announced => {
                result?;
                announced = true;
                drop(ended);
                announce(plan, nodes, tokens);
                continue;
            }
            Some((place, status)) = ended.next() => (place, status.context("wait for a node")?),
        };
        drop(ended);
        let node = nodes.swap_remove(place);
        if !was_killed(status) {
            bail!(
                "node {} has ended by itself ({status}); what it logged stands above",
                node.id
            );
        }
        println!(
            "node {} was killed ({status}), starting it again in {RESTART_AFTER:?}",
            node.id
        );
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = tokio::time::sleep(RESTART_AFTER) => {}
        }
        let node = plan.start(node.id)?;
        println!(
            "node {}  {}  pid {}",
            node.id,
            plan.url(node.id),
            node.pid()
        );
        nodes.push(node);
    }
}

fn was_killed(status: ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&status).is_some()
}

fn announce(plan: &Plan, nodes: &[Node], tokens: bool) {
    let header = if tokens {
        "-H \"Authorization: Bearer $QUORUN_TOKEN\" "
    } else {
        ""
    };
    println!();
    for node in nodes {
        println!(
            "node {}  {}  pid {}",
            node.id,
            plan.url(node.id),
            node.pid()
        );
    }
    println!();
    println!(
        "run a program:  curl {header}--data-binary 'print(6*7)' {}/lang/python",
        plan.url(1)
    );
    println!(
        "look around:    quorun cluster status --url {}",
        plan.url(1)
    );
    println!("lose a node:    kill -9 one of the pids above, and post on; it is started again");
    println!("end:            Ctrl-C");
}
