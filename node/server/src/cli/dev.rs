//! `quorun dev`.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures::stream::{FuturesUnordered, StreamExt};
use http::{Method, StatusCode};
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::client::Client;
use super::usage;
use crate::config::ExecutorKind;

/// How far above its HTTP port a node's peer port is.
const PEER_OFFSET: u16 = 10_000;
/// Pause before a node that was killed is started again.
const RESTART_AFTER: Duration = Duration::from_secs(2);
/// How long the nodes may take to end by themselves.
const END: Duration = Duration::from_secs(30);

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
}

/// One node of the cluster.
struct Node {
    id: u16,
    child: Child,
    /// The node ends when this is closed, also when this process is killed. Waiting for a child closes the stdin that it
    /// still has, so it is kept here.
    _stdin: Option<ChildStdin>,
}

impl Node {
    fn new(id: u16, mut child: Child) -> Self {
        Self {
            id,
            _stdin: child.stdin.take(),
            child,
        }
    }
}

/// Runs the cluster until Ctrl-C.
pub async fn dev(args: DevArgs) -> anyhow::Result<ExitCode> {
    check(&args).map_err(|error| usage(&error))?;
    let program = std::env::current_exe().context("find this program")?;
    let (data, temporary) = match &args.data {
        Some(dir) => (dir.clone(), false),
        None => {
            let name = format!("quorun-dev-{}", std::process::id());
            (std::env::temp_dir().join(name), true)
        }
    };
    let mut nodes = Vec::new();
    for id in 1..=args.nodes {
        let child = start(&program, &args, &data, id)?;
        nodes.push(Node::new(id, child));
    }
    let result = supervise(&program, &args, &data, &mut nodes).await;
    end(nodes).await;
    if temporary {
        let _ = std::fs::remove_dir_all(&data);
    }
    result.map(|()| ExitCode::SUCCESS)
}

fn check(args: &DevArgs) -> anyhow::Result<()> {
    ensure!(
        (1..=5).contains(&args.nodes),
        "--nodes {} is out of range; 1 to 5",
        args.nodes
    );
    let highest = u32::from(args.http) + u32::from(args.nodes) + u32::from(PEER_OFFSET);
    ensure!(
        args.http > 0 && highest <= 65_536,
        "--http {} is out of range; the peers listen {PEER_OFFSET} ports above it",
        args.http
    );
    Ok(())
}

fn http_port(args: &DevArgs, id: u16) -> u16 {
    args.http + id - 1
}

fn url(args: &DevArgs, id: u16) -> String {
    format!("http://127.0.0.1:{}", http_port(args, id))
}

fn start(program: &Path, args: &DevArgs, data: &Path, id: u16) -> anyhow::Result<Child> {
    let peers: Vec<String> = (1..=args.nodes)
        .map(|id| format!("{id}=127.0.0.1:{}", http_port(args, id) + PEER_OFFSET))
        .collect();
    let executor = match args.executor {
        ExecutorKind::Docker => "docker",
        ExecutorKind::Process => "process",
    };
    let mut command = Command::new(program);
    command
        .arg("serve")
        .args(["--id", &id.to_string()])
        .args(["--peers", &peers.join(",")])
        .args(["--http", &format!("127.0.0.1:{}", http_port(args, id))])
        .arg("--data")
        .arg(data.join(format!("node{id}")))
        .args(["--executor", executor])
        .args(["--cluster", "dev"])
        .args(["--log", &args.log])
        .arg("--until-stdin-closes")
        .stdin(Stdio::piped())
        // Ctrl-C at a terminal goes to the group of the foreground; these are ended one by one, by SIGTERM.
        .process_group(0);
    if let Some(slots) = args.slots {
        command.args(["--slots", &slots.to_string()]);
    }
    command
        .spawn()
        .with_context(|| format!("start node {id} as {}", program.display()))
}

async fn supervise(
    program: &Path,
    args: &DevArgs,
    data: &Path,
    nodes: &mut Vec<Node>,
) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    println!("starting {} nodes, data in {}", args.nodes, data.display());
    let ready = all_ready(args);
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
                announce(args, nodes);
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
        let child = start(program, args, data, node.id)?;
        println!(
            "node {}  {}  pid {}",
            node.id,
            url(args, node.id),
            pid(&child)
        );
        nodes.push(Node::new(node.id, child));
    }
}

fn was_killed(status: ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&status).is_some()
}

fn pid(child: &Child) -> u32 {
    child.id().unwrap_or(0)
}

fn announce(args: &DevArgs, nodes: &[Node]) {
    println!();
    for node in nodes {
        println!(
            "node {}  {}  pid {}",
            node.id,
            url(args, node.id),
            pid(&node.child)
        );
    }
    println!();
    println!(
        "run a program:  curl --data-binary 'print(6*7)' {}/lang/python",
        url(args, 1)
    );
    println!(
        "look around:    quorun cluster status --url {}",
        url(args, 1)
    );
    println!("lose a node:    kill -9 one of the pids above, and post on; it is started again");
    println!("end:            Ctrl-C");
}

/// Waits until every node takes requests and work.
async fn all_ready(args: &DevArgs) -> anyhow::Result<()> {
    for id in 1..=args.nodes {
        let client = Client::new(&url(args, id))?;
        while !matches!(
            client.json(Method::GET, "/readyz", None).await,
            Ok((StatusCode::OK, _))
        ) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

/// Ends all nodes: kindly at first.
async fn end(nodes: Vec<Node>) {
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
