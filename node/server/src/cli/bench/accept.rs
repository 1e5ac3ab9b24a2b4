//! `quorun bench accept`: how fast submissions are accepted, while nothing is executed. [`beside`](super::beside) does it in
//! rounds, in turn with etcd.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use futures::stream::{self, StreamExt};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::beside::beside;
use super::client::Nodes;
use super::cluster::{Local, LocalArgs};
use super::etcd::puts::CONNECTIONS;
use super::loops::Sender;
use super::mix::{Jobs, Mix, Program};
use super::processor::of_processes;
use super::record::{Figures, Record};
use super::report::Report;
use super::run::{ShapeArgs, end, shown};
use super::verify::{Depth, Verified, listed, verify};
use super::{Interrupt, LoadArgs, OutArgs, TargetArgs, run_label};
use crate::config::ExecutorKind;

/// How long submissions are sent if nothing is said. With the default bound of the queue, 100,000 jobs, a fast cluster
/// fills up after that.
pub const DURATION: Duration = Duration::from_secs(5);
/// Jobs that are cancelled at one time.
const AT_ONCE: usize = 256;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the queue of a cluster of its own may hold.
const QUEUE: u64 = 10_000_000;
/// Rounds beside etcd if nothing is said.
const ROUNDS: u32 = 5;

/// How fast submissions are accepted while nothing is executed: all nodes are drained for it.
///
/// All nodes are drained through the HTTP API, so that what is accepted only waits; at the end every job is looked up, cancelled, and the
/// nodes are given work again, also after Ctrl-C. Not for a cluster that others use: their jobs wait meanwhile.
///
/// With --etcd, in each round as many nodes of etcd are started on this machine when those of Quorun have ended, and as many
/// clients put values of as many bytes under keys of their own, for as long. Each put is checked, and the keys are counted
/// at the end. Printed are least, median and largest of the rounds, and of the ratios within each.
#[derive(Args, Debug)]
pub struct AcceptArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Start a cluster on this machine for it instead, and end it
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    pub cluster: LocalArgs,
    /// Closed loop: so many clients, one submission after the other each
    #[arg(long, default_value_t = 256, conflicts_with = "rate", value_name = "N")]
    clients: usize,
    /// Open loop: so many submissions a second, whatever the cluster does
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// Open loop: most submissions that are open at one time; what is due beyond is not sent, and counted
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    max_open: usize,
    /// Bytes of each source
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    pub source: usize,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Also when jobs wait or run on the cluster
    #[arg(long)]
    force: bool,
    /// Beside the puts of an etcd of its own, version 3.4 or newer, in the same run; needs --local
    #[arg(long, value_name = "PROGRAM")]
    pub etcd: Option<PathBuf>,
    /// Connections to each node of etcd, which the clients share
    #[arg(long, requires = "etcd", default_value_t = CONNECTIONS, value_name = "N")]
    pub etcd_connections: usize,
    /// Rounds, each with a new cluster; more than one needs --local [default: 1, with --etcd 5]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    #[command(flatten)]
    pub out: OutArgs,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: u64,
    #[serde(default)]
    draining: bool,
}

#[derive(Debug, Deserialize)]
struct Queue {
    jobs: u64,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    leader: Option<u64>,
    nodes: Vec<Node>,
    queue: Queue,
    running: u64,
}

impl AcceptArgs {
    /// How many rounds there are.
    pub fn rounds(&self) -> u32 {
        self.rounds
            .unwrap_or(if self.etcd.is_some() { ROUNDS } else { 1 })
    }

    fn check(&self) -> anyhow::Result<()> {
        let check = || {
            if let Some(etcd) = &self.etcd {
                ensure!(
                    self.local,
                    "--etcd {} needs --local: both are started on this machine, in turn",
                    etcd.display()
                );
                ensure!(
                    self.rate.is_none(),
                    "--rate says how fast submissions come; --etcd is for --clients, which go as fast as they are answered"
                );
            }
            ensure!(
                (1..=1000).contains(&self.etcd_connections),
                "--etcd-connections {} is out of range; 1 to 1000",
                self.etcd_connections
            );
            let rounds = self.rounds();
            ensure!(
                (1..=10_000).contains(&rounds),
                "--rounds {rounds} is out of range; 1 to 10000"
            );
            ensure!(
                rounds == 1 || self.local,
                "--rounds {rounds} needs --local: each round has a new cluster"
            );
            Ok(())
        };
        check().map_err(|error| super::super::usage(&error))
    }
}

/// What one load of submissions has given.
#[derive(Debug)]
pub struct Measured {
    /// The nodes.
    pub urls: Vec<String>,
    /// The load.
    pub figures: Figures,
    /// What was found afterwards.
    pub verified: Verified,
    /// Jobs that did not wait any more.
    pub executed: u64,
    /// Jobs that could not be cancelled.
    pub left: u64,
    /// CPU time that the nodes took for the load, seconds, if they are of this machine.
    pub processor: Option<f64>,
}

/// Runs it.
pub async fn accept(args: AcceptArgs, interrupt: &Interrupt) -> anyhow::Result<Report> {
    let shape = ShapeArgs {
        mix: Mix::only(Program::Hello),
        clients: args.clients,
        rate: args.rate,
        max_open: args.max_open,
    };
    shape.check()?;
    args.check()?;
    args.out.check()?;
    if args.etcd.is_some() || args.rounds() > 1 {
        return beside(&args, &shape, interrupt).await;
    }
    let measured = once(&args, &shape, interrupt).await?;
    Ok(told(&args, &shape, measured))
}

/// One load, on a cluster that is started for it or on one that there is.
pub async fn once(
    args: &AcceptArgs,
    shape: &ShapeArgs,
    interrupt: &Interrupt,
) -> anyhow::Result<Measured> {
    let local = match args.local {
        true => {
            let mut cluster = args.cluster.clone();
            cluster.node_option.push(format!("--max-queue={QUEUE}"));
            let start = Local::start(&cluster, ExecutorKind::Noop);
            Some(interrupt.or(start).await??)
        }
        false => None,
    };
    let urls = local.as_ref().map_or(args.target.url.clone(), Local::urls);
    let nodes = args.load.nodes(&urls)?;
    let before: Cluster = nodes.get("/v1/cluster").await?;
    ensure!(
        args.force || before.queue.jobs + before.running == 0,
        "{} jobs wait and {} run on this cluster; they would be held up. Wait, or give --force",
        before.queue.jobs,
        before.running
    );
    let drained = drain(&nodes, &before).await;
    let measured = match &drained {
        Ok(_) => {
            let pids = local.as_ref().map(Local::pids).unwrap_or_default();
            measured(args, shape, &nodes, &pids, interrupt).await
        }
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    // Whatever has happened, and even if it is asked to end at once: these nodes must not stay without work.
    let restored = restore(&nodes, &before).await;
    if let Some(local) = local {
        local.end().await;
    }
    let measured = measured?;
    restored?;
    Ok(Measured { urls, ..measured })
}

fn told(args: &AcceptArgs, shape: &ShapeArgs, measured: Measured) -> Report {
    let Measured { executed, left, .. } = measured;
    let mut report = Report::new("accept", "Submissions accepted, nothing executed");
    report.set("nodes", measured.urls.join(", "));
    report.set("load", shape.words());
    report.set("connections", args.load.connections_words());
    report.set("source", format!("{} bytes", args.source));
    let refused = measured.figures.counts.refused;
    report.load(measured.figures, Some(measured.verified));
    put_waiting(&mut report, executed, left, refused);
    report
}

/// What became of the jobs that should only wait.
pub fn put_waiting(report: &mut Report, executed: u64, left: u64, refused: u64) {
    report.headline(
        "executed meanwhile",
        executed.to_string(),
        Some(executed == 0),
    );
    report.headline("not cancelled", left.to_string(), Some(left == 0));
    if refused > 0 {
        report.note("the queue was full, and the load was ended there; give fewer --jobs, or the nodes a larger --max-queue");
    }
    report.extra.insert("executed".to_owned(), executed.into());
    report.extra.insert("not_cancelled".to_owned(), left.into());
}

/// Drains all nodes: the leader last, so that it finds nobody to hand over to.
async fn drain(nodes: &Nodes, before: &Cluster) -> anyhow::Result<()> {
    let ids: Vec<_> = before
        .nodes
        .iter()
        .map(|node| node.id.to_string())
        .collect();
    eprintln!(
        "draining nodes {}; should this program be killed: quorun cluster drain ID --undo --url {}",
        ids.join(", "),
        nodes.url(0)
    );
    let leader = before.leader.context("the cluster has no leader")?;
    let others = before.nodes.iter().filter(|node| node.id != leader);
    for id in others.map(|node| node.id).chain([leader]) {
        set_draining(nodes, id, true).await?;
    }
    Ok(())
}

/// Gives work again to the nodes that had it before.
async fn restore(nodes: &Nodes, before: &Cluster) -> anyhow::Result<()> {
    let mut result = Ok(());
    for node in before.nodes.iter().filter(|node| !node.draining) {
        let done = set_draining(nodes, node.id, false).await;
        if let Err(error) = &done {
            eprintln!("node {} is still without work: {error:#}", node.id);
        }
        result = result.and(done);
    }
    result
}

async fn set_draining(nodes: &Nodes, id: u64, draining: bool) -> anyhow::Result<()> {
    let path = format!("/v1/cluster/nodes/{id}/drain");
    let body = json!({ "draining": draining }).to_string();
    let _: Value = nodes.ask(Method::POST, &path, body.into()).await?;
    Ok(())
}

async fn measured(
    args: &AcceptArgs,
    shape: &ShapeArgs,
    nodes: &Arc<Nodes>,
    pids: &[u32],
    interrupt: &Interrupt,
) -> anyhow::Result<Measured> {
    let jobs = Jobs::new(shape.mix.clone(), args.load.seed, run_label());
    let jobs = Arc::new(jobs.padded(args.source));
    let record = Record::new(args.load.warmup);
    let mut until = end(&args.load, DURATION, &record, interrupt);
    let sender = Arc::new(Sender {
        nodes: Arc::clone(nodes),
        jobs: Arc::clone(&jobs),
        end: false,
        patience: args.load.patience,
    });
    // A full queue ends it: what is turned away is no measure of how fast submissions are accepted.
    let full = until.asked.child_token();
    until.asked = full.clone();
    let work = shape.load(sender, &until, &record);
    let work = async {
        tokio::select! {
            () = work => {}
            () = full_queue(&record, &full) => {}
        }
    };
    let before = of_processes(pids);
    let load = interrupt.or(shown(nodes, &record, &until, work)).await;
    let processor = of_processes(pids).filter(|_| !pids.is_empty());
    let figures = record.figures();
    let looked = match load {
        Ok(()) => interrupt.or(look(nodes, jobs.run(), &figures)).await,
        Err(error) => Err(error),
    };
    // Also what was accepted without this program having been told.
    let left = clear(nodes, jobs.run()).await;
    let (verified, executed) = looked??;
    Ok(Measured {
        urls: Vec::new(),
        figures,
        verified,
        executed,
        left: left?,
        processor: processor.zip(before).map(|(after, before)| after - before),
    })
}

/// Asks the load to end when a submission has been turned away, and then never returns.
async fn full_queue(record: &Record, full: &tokio_util::sync::CancellationToken) {
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if record.refused() > 0 {
            full.cancel();
            return std::future::pending().await;
        }
    }
}

/// Compares what was accepted with what waits; and how many jobs do not wait any more.
async fn look(nodes: &Arc<Nodes>, run: &str, figures: &Figures) -> anyhow::Result<(Verified, u64)> {
    eprintln!("looking {} jobs up", figures.accepted.len());
    let verified = verify(nodes, run, figures, Depth::List).await?;
    let found = listed(nodes, run).await?;
    let waiting = found
        .values()
        .flatten()
        .filter(|job| job.is_queued())
        .count() as u64;
    Ok((
        verified.clone(),
        verified.listed - waiting.min(verified.listed),
    ))
}

/// Cancels every job of the load; how many could not be.
async fn clear(nodes: &Arc<Nodes>, run: &str) -> anyhow::Result<u64> {
    let found = listed(nodes, run).await?;
    let ids: Vec<_> = found
        .into_values()
        .flatten()
        .filter(super::client::JobView::is_queued)
        .map(|job| job.id)
        .collect();
    eprintln!("cancelling {} jobs", ids.len());
    let left = AtomicU64::new(0);
    let counted = &left;
    stream::iter(ids.into_iter().enumerate())
        .for_each_concurrent(AT_ONCE, |(place, id)| async move {
            if !cancelled(nodes, place, id).await {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        })
        .await;
    Ok(left.into_inner())
}

async fn cancelled(nodes: &Nodes, first: usize, id: uuid::Uuid) -> bool {
    let path = format!("/v1/jobs/{id}");
    for turn in first..first + 3 * nodes.len() {
        let sent = nodes.send(turn, Method::DELETE, &path, None, Bytes::new(), PATIENCE);
        if let Ok(answer) = sent.await
            // A conflict says that it has its result already.
            && (answer.status.is_success() || answer.status == StatusCode::CONFLICT)
        {
            return true;
        }
    }
    false
}
