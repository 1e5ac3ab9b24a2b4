//! A cluster that the benchmark starts for itself, in a temporary folder, and ends.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures::stream::{FuturesUnordered, StreamExt};

use super::super::local::{self, Folder, Node, Plan};
use crate::config::ExecutorKind;

/// The last lines of a node's log that are shown when it has ended by itself.
const SHOWN: usize = 20;

/// What a cluster of its own is like.
#[derive(Args, Clone, Debug)]
pub struct LocalArgs {
    /// Nodes of the cluster that is started, 1 to 5
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub nodes: u16,
    /// HTTP port of its first node; the others follow [default: ports that are free]
    #[arg(long, value_name = "PORT")]
    pub http: Option<u16>,
    /// Jobs that each of its nodes executes at one time [default: depends on the benchmark]
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,
    /// What its nodes log, into files in the temporary folder
    #[arg(long, default_value = "warn", value_name = "FILTER")]
    pub log: String,
    /// One more option of `quorun serve` for every node, such as --node-option=--heartbeat-ms=100; may be repeated
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub node_option: Vec<String>,
}

/// A cluster of this machine that ends with this value: the nodes when their stdin is closed, at the latest.
#[derive(Debug)]
pub struct Local {
    plan: Plan,
    nodes: BTreeMap<u16, Node>,
    /// After the nodes, so that it goes when they have gone.
    _folder: Folder,
}

impl Local {
    /// Starts nodes and waits until they take work.
    pub async fn start(args: &LocalArgs, executor: ExecutorKind) -> anyhow::Result<Self> {
        let folder = Folder::new("bench")?;
        let http = match args.http {
            Some(port) => port,
            None => local::free_ports(args.nodes)?,
        };
        let plan = Plan {
            nodes: args.nodes,
            http,
            executor,
            data: folder.path().to_path_buf(),
            slots: args.slots,
            cluster: format!("bench-{}", std::process::id()),
            log: args.log.clone(),
            log_files: true,
            more: args.node_option.clone(),
        };
        plan.check().map_err(|error| super::super::usage(&error))?;
        eprintln!(
            "starting {} nodes ({}) on ports from {http}, data in {}",
            plan.nodes,
            executor.name(),
            plan.data.display()
        );
        let mut nodes = BTreeMap::new();
        for id in 1..=plan.nodes {
            nodes.insert(id, plan.start(id)?);
        }
        let mut cluster = Self {
            plan,
            nodes,
            _folder: folder,
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Waits until all nodes take work; an error when one ends instead.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let plan = self.plan.clone();
        tokio::select! {
            ready = plan.all_ready() => ready,
            error = self.ended() => Err(error),
        }
    }

    /// Returns when a node has ended without having been killed from here.
    pub async fn ended(&mut self) -> anyhow::Error {
        let (id, status) = first_end(self.nodes.values_mut()).await;
        anyhow::anyhow!(
            "node {id} has ended by itself ({status}):\n{}",
            last_lines(&self.plan.log_file(id))
        )
    }

    /// The processes of its nodes.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.values().map(Node::pid).collect()
    }

    /// Where clients reach the nodes.
    pub fn urls(&self) -> Vec<String> {
        self.plan.urls()
    }

    /// `kill -9` of a node.
    pub async fn kill(&mut self, id: u16) -> anyhow::Result<()> {
        let Some(mut node) = self.nodes.remove(&id) else {
            bail!("node {id} does not run");
        };
        node.child
            .start_kill()
            .with_context(|| format!("kill node {id}"))?;
        node.child
            .wait()
            .await
            .with_context(|| format!("wait for node {id}"))?;
        Ok(())
    }

    /// Starts a node again, and waits until it takes work.
    pub async fn restart(&mut self, id: u16) -> anyhow::Result<()> {
        ensure!(!self.nodes.contains_key(&id), "node {id} runs");
        self.nodes.insert(id, self.plan.start(id)?);
        let plan = self.plan.clone();
        tokio::select! {
            ready = plan.ready(id) => ready,
            error = self.ended() => Err(error),
        }
    }

    /// Memory that each node holds now, and the most that it has held: MiB.
    pub fn memory_mib(&self) -> Vec<(u16, f64, f64)> {
        let of = |node: &Node| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).ok()?;
            Some((
                node.id,
                mib(&status, "VmRSS:").unwrap_or(0.0),
                mib(&status, "VmHWM:").unwrap_or(0.0),
            ))
        };
        self.nodes.values().filter_map(of).collect()
    }

    /// Ends the nodes and removes their data.
    pub async fn end(mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        local::end(nodes.into_values().collect()).await;
    }
}

impl Drop for Local {
    /// What was not ended well: the benchmark failed, or was told to end at once.
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            let _ = node.child.start_kill();
        }
    }
}

/// Which of these processes ends first, and how; waits for ever where there is none.
pub async fn first_end(nodes: impl Iterator<Item = &mut Node>) -> (u16, String) {
    let mut ends: FuturesUnordered<_> = nodes
        .map(|node| async { (node.id, node.child.wait().await) })
        .collect();
    match ends.next().await {
        Some((id, Ok(status))) => (id, status.to_string()),
        Some((id, Err(error))) => (id, error.to_string()),
        None => std::future::pending().await,
    }
}

/// The last lines of a log.
pub fn last_lines(log: &Path) -> String {
    let log = std::fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let skipped = log.lines().count().saturating_sub(SHOWN);
    let last: Vec<_> = log.lines().skip(skipped).collect();
    last.join("\n")
}

/// A figure of `/proc/PID/status` that is in KiB there.
fn mib(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let status = "Name:\tquorun\nVmHWM:\t   20480 kB\nVmRSS:\t   10240 kB\n";
        assert_eq!(mib(status, "VmRSS:"), Some(10.0));
        assert_eq!(mib(status, "VmHWM:"), Some(20.0));
        assert_eq!(mib(status, "VmSwap:"), None);
    }
}
