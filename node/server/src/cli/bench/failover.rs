//! `quorun bench failover`: kills the leader of a cluster of its own under load.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::client::{Nodes, Outcome, Wanted, submit};
use super::cluster::{Local, LocalArgs};
use super::loops::{End, Sender};
use super::mix::{Jobs, Mix, Program};
use super::noop::put_memory;
use super::record::{Figures, Record, Times};
use super::report::{
    Report, Table, digits,
    json::{round, times_json},
};
use super::run::{ShapeArgs, shown};
use super::verify::{Depth, Verified, verify};
use super::{Interrupt, OutArgs, parse_mix, run_label};
use crate::config::ExecutorKind;

/// How long the cluster may take to have a leader, and a node to be back.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one job may take, over every kill that hits it.
const JOB_PATIENCE: Duration = Duration::from_secs(180);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Jobs of probes have numbers of their own.
const PROBES_FROM: u64 = 1 << 40;
/// How far the numbers of two probes are apart.
const PROBE_SPAN: u64 = 1 << 32;

/// Kills the leader of a cluster of its own under load: how long until the next job is accepted.
///
/// Starts nodes as child processes, puts a mix of programs on them, and kills the leader (SIGKILL) again and again; it is started
/// again when the next job has been accepted. Beside the load, probes submit small jobs one after the other and do not
/// wait for their end. The gap is the time from the kill until the first submission is accepted that was sent after it. At the end
/// every accepted job must be there once, with the result that was told.
#[derive(Args, Debug)]
pub struct FailoverArgs {
    /// How often the leader is killed
    #[arg(long, default_value_t = 10, value_name = "K")]
    kills: u32,
    /// Pause between a node's return and the next kill
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pause: Duration,
    /// How long the load goes on in all; the kills are spread over it [default: as long as the kills take]
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    duration: Option<Duration>,
    /// What executes jobs; `process` needs no Docker, and does NOT isolate the programs from this machine
    #[arg(long, value_enum, default_value = "process")]
    executor: ExecutorKind,
    #[command(flatten)]
    cluster: LocalArgs,
    /// Programs and their weights, as for `quorun bench`
    #[arg(long, default_value = "hello=80,lines=10,random=10", value_parser = parse_mix, value_name = "MIX")]
    mix: Mix,
    /// Closed loop: so many clients, one job after the other each
    #[arg(long, default_value_t = 2, conflicts_with = "rate", value_name = "N")]
    clients: usize,
    /// Open loop: so many jobs a second, whatever the cluster does
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// Open loop: most jobs that are open at one time; what is due beyond is not sent, and counted
    #[arg(long, default_value_t = 1000, value_name = "N")]
    max_open: usize,
    /// Clients that only submit, one small job after the other, to find the gap; their jobs are executed as well, and must not
    /// be more than the cluster can do beside the load
    #[arg(long, default_value_t = 1, value_name = "N")]
    probes: u16,
    /// Pause of a probe between two submissions
    #[arg(long, default_value = "50ms", value_parser = humantime::parse_duration, value_name = "TIME")]
    probe_pause: Duration,
    /// What is drawn is drawn from this number
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    pub out: OutArgs,
}

/// One kill.
#[derive(Clone, Debug)]
struct Kill {
    node: u16,
    /// Since the beginning.
    at: Duration,
    /// Until the first submission was accepted that was sent after it.
    gap: Duration,
    /// Until the node took work again.
    back: Duration,
}

/// When submissions were accepted: sent, and answered.
type Log = Arc<Mutex<Vec<(Instant, Instant)>>>;

#[derive(Deserialize)]
struct Leader {
    node: u64,
    leader: Option<u64>,
}

/// Runs it.
pub async fn failover(args: FailoverArgs, interrupt: &Interrupt) -> anyhow::Result<Report> {
    let shape = ShapeArgs {
        mix: args.mix.clone(),
        clients: args.clients,
        rate: args.rate,
        max_open: args.max_open,
    };
    shape.check()?;
    args.out.check()?;
    let usable = || {
        ensure!(
            args.cluster.nodes >= 3,
            "--nodes {}: without one of them there must be a majority; at least 3",
            args.cluster.nodes
        );
        ensure!(
            (1..=100_000).contains(&args.kills),
            "--kills {} is out of range; 1 to 100000",
            args.kills
        );
        ensure!(
            (1..=1000).contains(&args.probes),
            "--probes {} is out of range; 1 to 1000",
            args.probes
        );
        Ok(())
    };
    usable().map_err(|error| super::super::usage(&error))?;
    let start = Local::start(&args.cluster, args.executor);
    let mut local = interrupt.or(start).await??;
    let nodes = Arc::new(Nodes::new(&local.urls())?);
    let mut jobs = Jobs::new(args.mix.clone(), args.seed, run_label());
    let mut probes = Jobs::new(Mix::only(Program::Hello), args.seed, jobs.run().to_owned());
    if args.executor == ExecutorKind::Noop {
        jobs = jobs.not_executed();
        probes = probes.not_executed();
    }
    let (jobs, probes) = (Arc::new(jobs), Arc::new(probes));
    let record = Record::new(Duration::ZERO);
    let probed = Record::new(Duration::ZERO);
    let log = Log::default();
    let asked = interrupt.asked.child_token();
    let end = End {
        at: None,
        jobs: None,
        asked: asked.clone(),
    };
    let sender = Arc::new(Sender {
        nodes: Arc::clone(&nodes),
        jobs: Arc::clone(&jobs),
        end: true,
        patience: JOB_PATIENCE,
    });
    let load = shape.load(sender, &end, &record);
    let all_probes = futures::future::join_all((0..args.probes).map(|number| {
        let (nodes, probes, log) = (Arc::clone(&nodes), Arc::clone(&probes), Arc::clone(&log));
        probe(
            number,
            nodes,
            probes,
            log,
            probed.clone(),
            asked.clone(),
            args.probe_pause,
        )
    }));
    let killing = async {
        let kills = kill_all(&args, &mut local, &nodes, &record, &log, &asked).await;
        // However it went, the load ends.
        asked.cancel();
        kills
    };
    let all = async { tokio::join!(load, all_probes, killing).2 };
    let mut shown_end = end.clone();
    shown_end.at = args.duration.map(|duration| record.begin() + duration);
    let all = Box::pin(shown(&nodes, &record, &shown_end, all));
    let kills = interrupt.or(all).await??;
    let mut figures = record.figures();
    let loaded = figures.accepted.len();
    // The probes' jobs are looked up as well: they were accepted around the kills.
    let probes_sent = join(&mut figures, probed.figures());
    eprintln!("looking {} jobs up", figures.accepted.len());
    let looked = verify(&nodes, jobs.run(), &figures, Depth::Each);
    let verified = interrupt.or(looked).await??;
    let memory = local.memory_mib();
    local.end().await;
    figures.accepted.truncate(loaded);
    let mut report = told(&args, &shape, &kills, figures, verified);
    report.set("submissions by probes", probes_sent);
    put_memory(&mut report, &memory);
    Ok(report)
}

/// Puts what the probes have had accepted beside the load's; how many they have sent.
fn join(figures: &mut Figures, probed: Figures) -> u64 {
    figures.accepted.extend(probed.accepted);
    figures.unknown.extend(probed.unknown);
    for (kind, (count, text)) in probed.errors {
        let known = figures.errors.entry(kind);
        known.or_insert_with(|| (0, text)).0 += count;
    }
    figures.counts.gave_up += probed.counts.gave_up;
    probed.counts.sent
}

/// Submits until it is asked to end.
async fn probe(
    number: u16,
    nodes: Arc<Nodes>,
    jobs: Arc<Jobs>,
    log: Log,
    record: Record,
    asked: CancellationToken,
    pause: Duration,
) {
    let mut next = PROBES_FROM + u64::from(number) * PROBE_SPAN;
    while !asked.is_cancelled() {
        let job = jobs.job(next);
        let wanted = Wanted {
            first: usize::from(number),
            end: false,
            patience: JOB_PATIENCE,
        };
        let planned = Instant::now();
        let sent = submit(&nodes, &job, &jobs.key(next), wanted).await;
        let done = Instant::now();
        if let (Outcome::Accepted(_), Some(sent_at)) = (&sent.outcome, sent.accepted_by) {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push((sent_at, done));
        }
        record.job(&job, planned, planned, done, sent);
        next += 1;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = asked.cancelled() => {}
        }
    }
}

/// Kills the leader as often as wanted, until it is asked to end.
async fn kill_all(
    args: &FailoverArgs,
    local: &mut Local,
    nodes: &Nodes,
    record: &Record,
    log: &Log,
    asked: &CancellationToken,
) -> anyhow::Result<Vec<Kill>> {
    let mut kills = Vec::new();
    for number in 0..args.kills {
        let due = args.duration.map(|duration| {
            let part = (f64::from(number) + 0.5) / f64::from(args.kills);
            record.begin() + duration.mul_f64(part)
        });
        let due = due.unwrap_or_else(|| Instant::now() + args.pause);
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            () = asked.cancelled() => break,
            error = local.ended() => return Err(error),
        }
        let node = leader(nodes, args.cluster.nodes).await?;
        let killed = Instant::now();
        record.event(format!("leader (node {node}) killed"));
        local.kill(node).await?;
        let accepted = accepted_after(log, killed).await?;
        let gap = accepted.saturating_duration_since(killed);
        record.event(format!(
            "first submission accepted after {} ms",
            gap.as_millis()
        ));
        tokio::time::timeout(PATIENCE, local.restart(node))
            .await
            .with_context(|| format!("node {node} is not back after {PATIENCE:?}"))??;
        let back = killed.elapsed();
        record.event(format!("node {node} takes work again"));
        kills.push(Kill {
            node,
            at: killed.saturating_duration_since(record.begin()),
            gap,
            back,
        });
    }
    if let Some(duration) = args.duration {
        let left = (record.begin() + duration).saturating_duration_since(Instant::now());
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            () = asked.cancelled() => {}
            error = local.ended() => return Err(error),
        }
    }
    Ok(kills)
}

/// The node that leads, once all of them say the same.
async fn leader(nodes: &Nodes, count: u16) -> anyhow::Result<u16> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let mut said = Vec::new();
        for node in 0..usize::from(count) {
            let path = "/v1/cluster";
            let body = bytes::Bytes::new();
            let sent = nodes.send(
                node,
                http::Method::GET,
                path,
                None,
                body,
                Duration::from_secs(2),
            );
            if let Ok(answer) = sent.await {
                said.extend(serde_json::from_slice::<Leader>(&answer.body));
            }
        }
        let first = said.first().and_then(|said| said.leader);
        let alike = said
            .iter()
            .all(|said| said.leader == first && said.node > 0);
        if let Some(leader) = first.filter(|_| alike && said.len() == usize::from(count)) {
            return u16::try_from(leader).context("the leader's id");
        }
        tokio::time::sleep(LOOK).await;
    }
    anyhow::bail!("the nodes do not agree on a leader after {PATIENCE:?}")
}

/// When the first submission was accepted that was sent after this.
async fn accepted_after(log: &Log, since: Instant) -> anyhow::Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(done) = first_after(&log.lock().unwrap_or_else(PoisonError::into_inner), since)
        {
            return Ok(done);
        }
        tokio::time::sleep(LOOK).await;
    }
    anyhow::bail!("no submission was accepted within {PATIENCE:?} of the kill")
}

fn first_after(log: &[(Instant, Instant)], since: Instant) -> Option<Instant> {
    log.iter()
        .rev()
        // They are written down when they are done: what was done before was sent before.
        .take_while(|(_, done)| *done >= since)
        .filter(|(sent, _)| *sent >= since)
        .map(|(_, done)| *done)
        .min()
}

fn told(
    args: &FailoverArgs,
    shape: &ShapeArgs,
    kills: &[Kill],
    figures: Figures,
    verified: Verified,
) -> Report {
    let mut gaps = Times::new();
    for kill in kills {
        gaps.note(kill.gap);
    }
    let mut report = Report::new("failover", "The leader killed under load");
    report.set("nodes", u64::from(args.cluster.nodes));
    report.set("executor", args.executor.name());
    report.set("load", shape.words());
    report.set("mix", shape.mix.to_string());
    report.set(
        "probes",
        format!(
            "{}, {:?} between two submissions",
            args.probes, args.probe_pause
        ),
    );
    report.headline("kills", kills.len().to_string(), None);
    for (name, ms) in [
        ("gap p50", gaps.ms(0.5)),
        ("gap p90", gaps.ms(0.9)),
        ("gap p99", gaps.ms(0.99)),
        ("gap max", gaps.max_ms()),
    ] {
        report.headline(name, format!("{} ms", digits(ms)), None);
    }
    report.tables.push(Table {
        title: "Kills".to_owned(),
        columns: ["", "at, s", "node", "gap, ms", "back after, ms"].map(str::to_owned).to_vec(),
        rows: kills
            .iter()
            .enumerate()
            .map(|(number, kill)| {
                vec![
                    (number + 1).to_string(),
                    format!("{:.1}", kill.at.as_secs_f64()),
                    kill.node.to_string(),
                    kill.gap.as_millis().to_string(),
                    kill.back.as_millis().to_string(),
                ]
            })
            .collect(),
        note: "gap: from the kill until the first submission was accepted that was sent after it; back: until the node took work again".to_owned(),
    });
    let all: Vec<_> = kills
        .iter()
        .map(|kill| {
            json!({
                "at_s": round(kill.at.as_secs_f64()),
                "node": kill.node,
                "gap_ms": round(kill.gap.as_secs_f64() * 1e3),
                "back_ms": round(kill.back.as_secs_f64() * 1e3),
            })
        })
        .collect();
    report.extra.insert("kills".to_owned(), all.into());
    report.extra.insert("gap_ms".to_owned(), times_json(&gaps));
    report.load(figures, Some(verified));
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_before_a_kill_does_not_end_its_gap() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let killed = at(100);
        let mut log = vec![(at(10), at(20)), (at(90), at(700))];
        assert_eq!(first_after(&log, killed), None);
        log.push((at(650), at(720)));
        log.push((at(640), at(730)));
        assert_eq!(first_after(&log, killed), Some(at(720)));
    }
}
