//! `quorun bench`: puts a cluster under load, checks every answer, and measures.
//!
//! [`mix`] says what is sent and what must come back, [`client`] sends one job, [`loops`] send many, [`record`] keeps
//! what happened, [`verify`] looks every accepted job up afterwards, and [`report`] shows all of it.

mod accept;
mod bare;
mod baseline;
mod beside;
mod client;
mod cluster;
mod connections;
mod etcd;
mod failover;
mod loops;
mod mix;
mod noop;
mod processor;
mod progress;
mod record;
mod report;
mod run;
mod verify;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use client::Nodes;
use mix::Mix;
use report::Report;

/// The default mix.
const MIX: &str = "hello=60,lines=10,cpu=10,memory=5,random=10,endless=2,compile=3";

/// Put a cluster under load, check every answer, and measure.
///
/// Without a benchmark's name: a mix of programs, sent to the nodes in turn. Each job has an Idempotency-Key; when a
/// connection is lost, it is sent again to the next node. Latency is from the moment at which a job was due to its
/// checked result.
///
/// Closed loop (--clients): each client sends its next job when the last one has ended. Open loop (--rate): jobs are due at a
/// fixed rate whatever the cluster does, and latency counts from there.
///
/// The exit code is 1 if an answer was wrong, a job got no answer, or an accepted job is lost, there twice or changed.
///
/// Examples:
///   quorun bench --clients 8 --duration 60s --html report.html
///   quorun bench --url http://a:8080 --url http://b:8080 --rate 40 --duration 10m --verify
///   quorun bench --mix hello=1 --clients 4 --jobs 1000
///   quorun bench --local process --duration 30s
#[derive(Args, Debug)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    mode: Option<Mode>,
    #[command(flatten)]
    run: run::RunArgs,
}

/// What each of them is stands at its arguments.
#[derive(Debug, Subcommand)]
enum Mode {
    Accept(Box<accept::AcceptArgs>),
    Noop(Box<noop::NoopArgs>),
    Failover(Box<failover::FailoverArgs>),
    Baseline(Box<baseline::BaselineArgs>),
}

/// Where the load goes.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// A node of the cluster; repeat it for several, which are asked in turn
    #[arg(
        long,
        env = "QUORUN_URL",
        default_value = "http://127.0.0.1:8080",
        value_delimiter = ',',
        value_name = "URL"
    )]
    url: Vec<String>,
}

/// How much load.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// How long jobs are sent, after the warm-up [default: 30s, without --jobs]
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    duration: Option<Duration>,
    /// Send no more jobs than these, those of the warm-up among them
    #[arg(long, value_name = "N")]
    jobs: Option<u64>,
    /// Jobs of the first while are checked, and in no figure
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration, value_name = "TIME")]
    warmup: Duration,
    /// What is drawn is drawn from this number: the same number, the same jobs
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// How long one job may take in all, with everything that is tried, before it is given up
    #[arg(long, default_value = "120s", value_parser = humantime::parse_duration, value_name = "TIME")]
    patience: Duration,
    /// Connections to each node that all requests share, over HTTP/2; without it, each request under way has one of its own, over HTTP/1.1
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000), value_name = "N")]
    connections: Option<u16>,
}

impl LoadArgs {
    /// The nodes at these URLs, connected to as it is said here.
    fn nodes(&self, urls: &[String]) -> anyhow::Result<Arc<Nodes>> {
        Nodes::sharing(urls, self.connections.map(usize::from))
            .map(Arc::new)
            .map_err(|error| super::usage(&error))
    }

    /// The connections in words, for the report.
    fn connections_words(&self) -> String {
        match self.connections {
            Some(count) => format!("HTTP/2, {count} to each node"),
            None => "HTTP/1.1, one for each request under way".to_owned(),
        }
    }

    /// How long jobs are sent in all, if time is what ends it.
    fn time(&self, default: Duration) -> Option<Duration> {
        let measured = match (self.duration, self.jobs) {
            (Some(duration), _) => duration,
            (None, Some(_)) => return None,
            (None, None) => default,
        };
        Some(self.warmup + measured)
    }
}

/// Where the report goes, beside the terminal.
#[derive(Args, Clone, Debug)]
pub struct OutArgs {
    /// Write all figures into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with curves into this file; it needs nothing else to be shown
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl OutArgs {
    /// A file that cannot be written should not be found out at the end.
    fn check(&self) -> anyhow::Result<()> {
        for path in [&self.json, &self.html].into_iter().flatten() {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path);
            file.with_context(|| format!("write {}", path.display()))
                .map_err(|error| super::usage(&error))?;
        }
        Ok(())
    }

    fn write(&self, report: &Report) -> anyhow::Result<()> {
        print!("{}", report::text::text(report));
        if let Some(path) = &self.json {
            let text = format!("{:#}\n", report::json::json(report));
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
            eprintln!("figures: {}", path.display());
        }
        if let Some(path) = &self.html {
            let text = report::html::html(report);
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
            eprintln!("page: {}", path.display());
        }
        Ok(())
    }
}

/// Ctrl-C. The first one ends the load and lets what is under way come to its end; the second one ends that as well.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    /// No new jobs.
    asked: CancellationToken,
    /// At once.
    hard: CancellationToken,
}

impl Interrupt {
    fn listen() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = Self::default();
        let mut int = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let told = interrupt.clone();
        tokio::spawn(async move {
            for token in [told.asked, told.hard] {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
                if !token.is_cancelled() {
                    eprintln!("ending what was begun; once more to end at once");
                }
                token.cancel();
            }
        });
        Ok(interrupt)
    }

    /// What it gives, unless it is ended at once meanwhile.
    async fn or<T>(&self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        tokio::select! {
            done = work => Ok(done),
            () = self.hard.cancelled() => anyhow::bail!("interrupted"),
        }
    }
}

/// A label for the jobs of this run, that no other run has.
fn run_label() -> String {
    let id = uuid::Uuid::now_v7().simple().to_string();
    format!("bench-{id}")
}

/// Does what the command line says.
pub async fn bench(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let (out, report) = match args.mode {
        None => (
            args.run.out.clone(),
            Box::pin(run::run(args.run, &interrupt)).await?,
        ),
        Some(Mode::Accept(args)) => (
            args.out.clone(),
            Box::pin(accept::accept(*args, &interrupt)).await?,
        ),
        Some(Mode::Noop(args)) => (
            args.out.clone(),
            Box::pin(noop::noop(*args, &interrupt)).await?,
        ),
        Some(Mode::Failover(args)) => (
            args.out.clone(),
            Box::pin(failover::failover(*args, &interrupt)).await?,
        ),
        Some(Mode::Baseline(args)) => (
            args.out.clone(),
            Box::pin(baseline::baseline(*args, &interrupt)).await?,
        ),
    };
    out.write(&report)?;
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Reads `--mix`.
fn parse_mix(text: &str) -> Result<Mix, String> {
    text.parse()
}
