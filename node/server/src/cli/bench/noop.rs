//! `quorun bench noop`: what the cluster does around the execution of a job, without the execution.

use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::cluster::{Local, LocalArgs};
use super::mix::{Jobs, Mix, Program};
use super::report::{Report, Table, json::round};
use super::run::{ShapeArgs, measure};
use super::verify::{Depth, verify};
use super::{Interrupt, LoadArgs, OutArgs, run_label};
use crate::config::ExecutorKind;

/// Jobs at one time on each node: none of them takes a processor.
const SLOTS: u32 = 256;
/// What finished jobs may take that are looked up at the end, MiB.
const RETENTION_MB: u64 = 64 << 10;

/// How fast jobs go through a cluster of its own that executes nothing.
///
/// Starts nodes with the no-op executor, which ends every attempt at once, and sends jobs of one line; each must be accepted,
/// assigned and completed. At the end the list of all jobs is compared with what was accepted.
#[derive(Args, Debug)]
pub struct NoopArgs {
    #[command(flatten)]
    cluster: LocalArgs,
    /// Closed loop: so many clients, one job after the other each
    #[arg(long, default_value_t = 256, conflicts_with = "rate", value_name = "N")]
    clients: usize,
    /// Open loop: so many jobs a second, whatever the cluster does
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// Open loop: most jobs that are open at one time; what is due beyond is not sent, and counted
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    max_open: usize,
    /// Bytes of each source, at least
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    source: usize,
    #[command(flatten)]
    load: LoadArgs,
    /// Ask for every job by its id at the end, too
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    pub out: OutArgs,
}

/// Runs it.
pub async fn noop(args: NoopArgs, interrupt: &Interrupt) -> anyhow::Result<Report> {
    let shape = ShapeArgs {
        mix: Mix::only(Program::Hello),
        clients: args.clients,
        rate: args.rate,
        max_open: args.max_open,
    };
    shape.check()?;
    args.out.check()?;
    let mut cluster = args.cluster;
    cluster.slots.get_or_insert(SLOTS);
    let retention = "--retention-mb";
    if !cluster.node_option.iter().any(|o| o.starts_with(retention)) {
        // Or the oldest jobs of a long run would be gone, as they should, when they are looked up.
        cluster
            .node_option
            .push(format!("{retention}={RETENTION_MB}"));
    }
    let local = interrupt
        .or(Local::start(&cluster, ExecutorKind::Noop))
        .await??;
    let nodes = args.load.nodes(&local.urls())?;
    let jobs = Jobs::new(shape.mix.clone(), args.load.seed, run_label());
    let jobs = Arc::new(jobs.not_executed().padded(args.source));
    let figures = measure(&nodes, &jobs, &shape, &args.load, interrupt).await?;
    let depth = if args.verify {
        Depth::Each
    } else {
        Depth::List
    };
    eprintln!(
        "comparing {} jobs with the cluster's list",
        figures.accepted.len()
    );
    let verified = interrupt
        .or(verify(&nodes, jobs.run(), &figures, depth))
        .await??;
    let memory = local.memory_mib();
    local.end().await;

    let mut report = Report::new("noop", "Jobs through the cluster, without their execution");
    report.note(
        "NOTHING was executed: the nodes have the no-op executor, which accepts every job at once",
    );
    report.set("nodes", u64::from(cluster.nodes));
    report.set(
        "slots of each node",
        u64::from(cluster.slots.unwrap_or(SLOTS)),
    );
    report.set("load", shape.words());
    report.set("connections", args.load.connections_words());
    report.set("least source", format!("{} bytes", args.source));
    report.load(figures, Some(verified));
    put_memory(&mut report, &memory);
    Ok(report)
}

/// What the nodes held at the end.
pub fn put_memory(report: &mut Report, memory: &[(u16, f64, f64)]) {
    report.more_tables.push(Table {
        title: "Memory of the nodes, MiB".to_owned(),
        columns: ["", "at the end", "at most"].map(str::to_owned).to_vec(),
        rows: memory
            .iter()
            .map(|(id, now, most)| {
                vec![
                    format!("node {id}"),
                    format!("{now:.0}"),
                    format!("{most:.0}"),
                ]
            })
            .collect(),
        note: "resident, with what jobs are kept".to_owned(),
    });
    let nodes: Vec<_> = memory
        .iter()
        .map(|(id, now, most)| json!({ "node": id, "now": round(*now), "most": round(*most) }))
        .collect();
    report.extra.insert("memory_mib".to_owned(), nodes.into());
}
