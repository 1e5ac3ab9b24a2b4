//! How long a cluster of three nodes on this machine takes to get over what happens to one of them.
//!
//! ```text
//! cargo run --release -p quorun-tests --bin failover -- --rounds 50
//! cargo run --release -p quorun-tests --bin failover -- --what kill,calm --times 50/150,100/300 --busy 0,2 --json F
//! ```
//!
//! Every figure is taken under load: clients submit jobs one after the other, each first to a node of its own, then to
//! the next. What they were told is counted at the end: nothing may be lost, nothing there twice.

mod load;
mod rounds;

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use quorun_tests::{Cluster, Executor, Plan};
use serde_json::{Value, json};

use load::Load;
use rounds::Figures;

/// Measures failover.
#[derive(Debug, Parser)]
struct Args {
    /// How often each thing is done
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// What is done
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kill,worker,move,stop,restart"
    )]
    what: Vec<What>,
    /// Heartbeat and election timeout, milliseconds; several are compared
    #[arg(long, value_delimiter = ',', default_value = "100/300")]
    times: Vec<Times>,
    /// How many spinning processes keep the machine busy; several are compared
    #[arg(long, value_delimiter = ',', default_value = "0")]
    busy: Vec<u32>,
    /// How many clients submit
    #[arg(long, default_value_t = 6)]
    clients: usize,
    /// How long a client pauses between two submissions, milliseconds
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
    /// The same for what is expected to be short: a leader that is moved or stopped
    #[arg(long, default_value_t = 2)]
    short_pause_ms: u64,
    /// How long `calm` takes
    #[arg(long, default_value_t = 60)]
    calm_seconds: u64,
    /// Writes all figures into this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Spins until its stdin is closed
    #[arg(long, hide = true)]
    spin: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// kill -9 of the leader
    Kill,
    /// kill -9 of a follower that executes jobs
    Worker,
    /// The leadership is moved to a named node
    Move,
    /// SIGTERM to the leader, and a start
    Stop,
    /// SIGTERM to a follower, and a start
    Restart,
    /// Nothing, for a while: elections that nobody asked for are counted
    Calm,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    heartbeat_ms: u64,
    election_ms: u64,
}

impl FromStr for Times {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(heartbeat, election)| {
            Some((heartbeat.parse().ok()?, election.parse().ok()?))
        });
        let (heartbeat_ms, election_ms) = numbers.ok_or("two numbers as in 100/300")?;
        Ok(Self {
            heartbeat_ms,
            election_ms,
        })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.spin {
        spin();
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let measured = match runtime {
        Ok(runtime) => runtime.block_on(measure(&args)),
        Err(error) => Err(error.to_string()),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failover: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One processor's worth of nothing, until whoever started this has gone.
fn spin() {
    let ended = Arc::new(AtomicBool::new(false));
    let told = ended.clone();
    let listener = std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        told.store(true, Ordering::Relaxed);
    });
    while !ended.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    let _ = listener.join();
}

/// Processes that do nothing but keep the machine busy.
struct Spinners(Vec<Child>);

impl Spinners {
    fn start(count: u32) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut spinners = Self(Vec::new());
        for _ in 0..count {
            let child = std::process::Command::new(&program)
                .arg("--spin")
                .stdin(Stdio::piped())
                .spawn()
                .map_err(|error| format!("start a spinner: {error}"))?;
            spinners.0.push(child);
        }
        Ok(spinners)
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn measure(args: &Args) -> Result<(), String> {
    let mut all = Vec::new();
    let mut shown = vec![Figures::header()];
    for times in &args.times {
        for busy in &args.busy {
            let setting = format!("{}/{}", times.heartbeat_ms, times.election_ms);
            let spinners = Spinners::start(*busy)?;
            let mut figures = Vec::new();
            for what in &args.what {
                figures.extend(one(args, *times, *what).await?);
            }
            drop(spinners);
            for figures in figures {
                shown.push(figures.line(&setting, *busy));
                let mut value = figures.json();
                value["heartbeat_ms"] = json!(times.heartbeat_ms);
                value["election_ms"] = json!(times.election_ms);
                value["busy"] = json!(busy);
                all.push(value);
            }
        }
    }
    println!();
    for line in shown {
        println!("{line}");
    }
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", Value::from(all));
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// One thing, in a cluster of its own.
async fn one(args: &Args, times: Times, what: What) -> Result<Vec<Figures>, String> {
    eprintln!("{what:?} with {times:?}");
    let began = Instant::now();
    let plan = Plan::new(Executor::Process)
        .slots(4)
        .arg(format!("--heartbeat-ms={}", times.heartbeat_ms))
        .arg(format!("--election-ms={}", times.election_ms));
    let mut cluster = Cluster::start(plan).await;
    cluster.all_work().await;
    if what == What::Worker {
        return rounds::worker(&mut cluster, args.rounds).await;
    }
    let pause = match what {
        What::Move | What::Stop => args.short_pause_ms,
        _ => args.pause_ms,
    };
    let load = Load::begin(&cluster, args.clients, Duration::from_millis(pause));
    load.everybody(began).await;
    let figures = match what {
        What::Kill => rounds::kill(&mut cluster, &load, args.rounds).await,
        What::Move => rounds::move_leader(&mut cluster, &load, args.rounds).await?,
        What::Stop => rounds::stop(&mut cluster, &load, args.rounds, true).await,
        What::Restart => rounds::stop(&mut cluster, &load, args.rounds, false).await,
        What::Calm | What::Worker => {
            rounds::calm(&cluster, &load, Duration::from_secs(args.calm_seconds)).await
        }
    };
    let jobs = load.settle(&cluster).await?;
    cluster.agree().await;
    eprintln!("{jobs} jobs were accepted, and every one has its result once");
    Ok(figures)
}
