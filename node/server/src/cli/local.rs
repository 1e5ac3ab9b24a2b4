//! A cluster of child processes on this machine, for `quorun dev` and for `quorun bench`.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use http::{Method, StatusCode};
use tokio::process::{Child, ChildStdin, Command};

use super::client::Client;
use crate::config::ExecutorKind;

/// How far above its HTTP port a node's peer port is.
pub const PEER_OFFSET: u16 = 10_000;
/// Where free ports are looked for: the kernel does not hand these out to connections by itself, nor those of the peers.
const PORTS: std::ops::Range<u16> = 12_000..22_000;
/// How long the nodes may take to end by themselves.
const END: Duration = Duration::from_secs(30);
/// Pause between two looks whether a node is ready.
const LOOK: Duration = Duration::from_millis(50);
/// How often a folder is tried to be removed: the sandboxes of a node that was killed write until they have ended.
const REMOVALS: u32 = 100;

/// A temporary folder that is removed with this value.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one of this process.
    pub fn new(purpose: &str) -> anyhow::Result<Self> {
        let name = format!("quorun-{purpose}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for _ in 0..REMOVALS {
            if std::fs::remove_dir_all(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(LOOK);
        }
        eprintln!("quorun: {} could not be removed", self.0.display());
    }
}

/// Opens the file that a process logs into, for its stdout and for its stderr.
pub fn log_into(path: &Path) -> anyhow::Result<(File, File)> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    let copy = file.try_clone().context("the log")?;
    Ok((file, copy))
}

/// What the nodes are started with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many nodes.
    pub nodes: u16,
    /// HTTP port of the first node; the others follow.
    pub http: u16,
    /// What executes jobs.
    pub executor: ExecutorKind,
    /// Where the nodes keep their data, a folder for each.
    pub data: PathBuf,
    /// Jobs that each executes at one time; the node's own default if `None`.
    pub slots: Option<u32>,
    /// Name of the cluster.
    pub cluster: String,
    /// What the nodes log.
    pub log: String,
    /// They log into files beside their data instead of here.
    pub log_files: bool,
    /// More options for every node.
    pub more: Vec<String>,
}

impl Plan {
    /// Checks what the user may have got wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            (1..=5).contains(&self.nodes),
            "--nodes {} is out of range; 1 to 5",
            self.nodes
        );
        let highest = u32::from(self.http) + u32::from(self.nodes) + u32::from(PEER_OFFSET);
        ensure!(
            self.http > 0 && highest <= 65_536,
            "--http {} is out of range; the peers listen {PEER_OFFSET} ports above it",
            self.http
        );
        Ok(())
    }

    fn http_port(&self, id: u16) -> u16 {
        self.http + id - 1
    }

    /// Where clients reach a node.
    pub fn url(&self, id: u16) -> String {
        format!("http://127.0.0.1:{}", self.http_port(id))
    }

    /// Where clients reach all of them.
    pub fn urls(&self) -> Vec<String> {
        (1..=self.nodes).map(|id| self.url(id)).collect()
    }

    /// The log of a node, if it goes into a file.
    pub fn log_file(&self, id: u16) -> PathBuf {
        self.data.join(format!("node{id}.log"))
    }

    /// What a node is started with, behind `serve`.
    pub fn arguments(&self, id: u16) -> Vec<OsString> {
        let peers: Vec<String> = (1..=self.nodes)
            .map(|id| format!("{id}=127.0.0.1:{}", self.http_port(id) + PEER_OFFSET))
            .collect();
        let mut arguments: Vec<OsString> = Vec::new();
        let options: [(&str, OsString); 8] = [
            ("--id", id.to_string().into()),
            ("--peers", peers.join(",").into()),
            ("--http", format!("127.0.0.1:{}", self.http_port(id)).into()),
            ("--data", self.data.join(format!("node{id}")).into()),
            ("--executor", self.executor.name().into()),
            ("--cluster", self.cluster.as_str().into()),
            (
                "--cluster-secret-file",
                self.data.join("cluster-secret").into(),
            ),
            ("--log", self.log.as_str().into()),
        ];
        for (option, value) in options {
            arguments.extend([option.into(), value]);
        }
        arguments.push("--cluster-secret-create".into());
        if let Some(slots) = self.slots {
            arguments.extend(["--slots".into(), slots.to_string().into()]);
        }
        arguments.extend(self.more.iter().map(OsString::from));
        arguments
    }

    /// Starts a node.
    pub fn start(&self, id: u16) -> anyhow::Result<Node> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(&program);
        command
            .arg("serve")
            .args(self.arguments(id))
            .arg("--until-stdin-closes")
            .stdin(Stdio::piped())
            // Ctrl-C at a terminal goes to the group of the foreground; these are ended one by one, by SIGTERM.
            .process_group(0);
        if self.log_files {
            let (file, copy) = log_into(&self.log_file(id))?;
            command.stdout(file).stderr(copy);
        }
        let child = command
            .spawn()
            .with_context(|| format!("start node {id} as {}", program.display()))?;
        Ok(Node::new(id, child))
    }

    /// Waits until a node takes requests and work.
    pub async fn ready(&self, id: u16) -> anyhow::Result<()> {
        let client = Client::new(&self.url(id))?;
        while !matches!(
            client.json(Method::GET, "/readyz", None).await,
            Ok((StatusCode::OK, _))
        ) {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until all of them do.
    pub async fn all_ready(&self) -> anyhow::Result<()> {
        for id in 1..=self.nodes {
            self.ready(id).await?;
        }
        Ok(())
    }
}

/// One node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Its id.
    pub id: u16,
    /// Its process.
    pub child: Child,
    /// The node ends when this is closed, also when this process is killed. Waiting for a child closes the stdin that it
    /// still has, so it is kept here.
    _stdin: Option<ChildStdin>,
}

impl Node {
    /// A process that was started from here.
    pub fn new(id: u16, mut child: Child) -> Self {
        Self {
            id,
            _stdin: child.stdin.take(),
            child,
        }
    }

    /// The process's id; 0 when it has ended.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }
}

/// Ends nodes: kindly at first.
pub async fn end(nodes: Vec<Node>) {
    for node in &nodes {
        let pid = node
            .child
            .id()
            .and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    for mut node in nodes {
        if tokio::time::timeout(END, node.child.wait()).await.is_err() {
            let _ = node.child.kill().await;
        }
    }
}

/// The first of `count` HTTP ports in a row that are free now, as well as those of the peers. Nothing keeps them free.
pub fn free_ports(count: u16) -> anyhow::Result<u16> {
    let span = PORTS.end - PORTS.start - count;
    for _ in 0..1000 {
        let first = PORTS.start + fastrand::u16(0..span);
        let held: Result<Vec<_>, _> = (first..first + count)
            .flat_map(|port| [port, port + PEER_OFFSET])
            .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)))
            .collect();
        if held.is_ok() {
            return Ok(first);
        }
    }
    bail!("no {count} free ports in a row between {PORTS:?}")
}
