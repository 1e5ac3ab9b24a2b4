//! `quorun bench` itself: a mix of programs, in a closed or an open loop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use super::client::Nodes;
use super::cluster::{Local, LocalArgs};
use super::loops::{self, End, Schedule, Send1, Sender};
use super::mix::{Jobs, Mix};
use super::progress::{self, Goal};
use super::record::{Figures, Record};
use super::report::Report;
use super::verify::{Depth, verify};
use super::{Interrupt, LoadArgs, MIX, OutArgs, TargetArgs, parse_mix, run_label, watch};
use crate::config::ExecutorKind;

/// How long jobs are sent if nothing is said.
const DURATION: Duration = Duration::from_secs(30);
/// Most clients, and most open jobs.
const MOST: usize = 100_000;

/// The load.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Start a cluster on this machine for it instead, with this executor, and end it
    #[arg(long, value_enum, value_name = "EXECUTOR")]
    local: Option<ExecutorKind>,
    #[command(flatten)]
    cluster: LocalArgs,
    #[command(flatten)]
    shape: ShapeArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Look every accepted job up again at the end: lost, twice, changed
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    pub out: OutArgs,
}

/// What the jobs are, and how they come.
#[derive(Args, Clone, Debug)]
pub struct ShapeArgs {
    /// Programs and their weights: hello, lines, cpu, memory, random, endless (must get time_limit), compile (must get
    /// compile_error)
    #[arg(long, default_value = MIX, value_parser = parse_mix, value_name = "MIX")]
    pub mix: Mix,
    /// Closed loop: so many clients, one job after the other each
    #[arg(long, default_value_t = 4, conflicts_with = "rate", value_name = "N")]
    pub clients: usize,
    /// Open loop: so many jobs a second, whatever the cluster does
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// Open loop: most jobs that are open at one time; what is due beyond is not sent, and counted
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub max_open: usize,
}

impl ShapeArgs {
    /// Checks the numbers.
    pub fn check(&self) -> anyhow::Result<()> {
        let check = || {
            ensure!(
                (1..=MOST).contains(&self.clients),
                "--clients {} is out of range; 1 to {MOST}",
                self.clients
            );
            ensure!(
                (1..=MOST).contains(&self.max_open),
                "--max-open {} is out of range; 1 to {MOST}",
                self.max_open
            );
            if let Some(rate) = self.rate {
                ensure!(
                    rate.is_finite() && (0.001..=1e6).contains(&rate),
                    "--rate {rate} is out of range; 0.001 to 1000000 jobs a second"
                );
            }
            Ok(())
        };
        check().map_err(|error| super::super::usage(&error))
    }

    /// In words, for the report.
    pub fn words(&self) -> String {
        match self.rate {
            Some(rate) => format!(
                "open loop, {rate} jobs a second, at most {} open",
                self.max_open
            ),
            None => format!("closed loop, {} clients", self.clients),
        }
    }

    /// Sends jobs until the end.
    pub async fn load(&self, sender: Arc<impl Send1>, end: &End, record: &Record) {
        match self.rate {
            Some(rate) => {
                let schedule = Schedule::new(record.begin(), rate);
                loops::open(sender, schedule, self.max_open, end, record).await;
            }
            None => loops::closed(sender, self.clients, end, record).await,
        }
    }
}

/// The end of a load that begins with this record.
pub fn end(load: &LoadArgs, default: Duration, record: &Record, interrupt: &Interrupt) -> End {
    End {
        at: load.time(default).map(|time| record.begin() + time),
        jobs: load.jobs,
        asked: interrupt.asked.clone(),
    }
}

/// Shows and watches while the work goes on.
pub async fn shown<T>(
    nodes: &Arc<Nodes>,
    record: &Record,
    end: &End,
    work: impl Future<Output = T>,
) -> T {
    let goal = Goal {
        at: end.at,
        jobs: end.jobs,
    };
    tokio::select! {
        done = work => done,
        never = progress::show(record.clone(), goal) => match never {},
        never = watch::watch(Arc::clone(nodes), record.clone()) => match never {},
    }
}

/// A load of a mix against nodes, from its begin to its figures.
pub async fn measure(
    nodes: &Arc<Nodes>,
    jobs: &Arc<Jobs>,
    shape: &ShapeArgs,
    load: &LoadArgs,
    interrupt: &Interrupt,
) -> anyhow::Result<Figures> {
    let record = Record::new(load.warmup);
    let end = end(load, DURATION, &record, interrupt);
    let sender = Arc::new(Sender {
        nodes: Arc::clone(nodes),
        jobs: Arc::clone(jobs),
        end: true,
        patience: load.patience,
    });
    let work = shape.load(sender, &end, &record);
    interrupt.or(shown(nodes, &record, &end, work)).await?;
    Ok(record.figures())
}

/// Runs the load.
pub async fn run(args: RunArgs, interrupt: &Interrupt) -> anyhow::Result<Report> {
    args.shape.check()?;
    args.out.check()?;
    let local = match args.local {
        Some(executor) => Some(Local::start(&args.cluster, executor).await?),
        None => None,
    };
    let urls = local.as_ref().map_or(args.target.url, Local::urls);
    let nodes = args.load.nodes(&urls)?;
    let mut jobs = Jobs::new(args.shape.mix.clone(), args.load.seed, run_label());
    if args.local == Some(ExecutorKind::Noop) {
        jobs = jobs.not_executed();
    }
    let jobs = Arc::new(jobs);
    // A wrong URL should not be found out job by job.
    let _: serde_json::Value = nodes.get("/v1/cluster").await?;
    let figures = measure(&nodes, &jobs, &args.shape, &args.load, interrupt).await?;
    let verified = match args.verify {
        true => {
            eprintln!("looking {} jobs up", figures.accepted.len());
            let verified = verify(&nodes, jobs.run(), &figures, Depth::Each);
            Some(interrupt.or(verified).await??)
        }
        false => None,
    };
    if let Some(local) = local {
        local.end().await;
    }
    let mut report = Report::new("run", "Load");
    report.set("nodes", urls.join(", "));
    report.set("load", args.shape.words());
    report.set("connections", args.load.connections_words());
    report.set("mix", args.shape.mix.to_string());
    report.set("seed", args.load.seed);
    report.set("label of the jobs", jobs.run());
    if args.local == Some(ExecutorKind::Noop) {
        report.note("nothing was executed: the nodes have the no-op executor");
    }
    report.load(figures, verified);
    Ok(report)
}
