//! Measures how a cluster bears much at one time: a long queue, many clients that wait, and large jobs beside small ones.
//!
//! ```sh
//! cargo build --release -p quorun-server
//! export QUORUN_BIN=target/release/quorun
//! cargo run --release -p quorun-tests --bin pressure -- queue --jobs 100000
//! cargo run --release -p quorun-tests --bin pressure -- waiting --clients 2000
//! cargo run --release -p quorun-tests --bin pressure -- beside --seconds 20
//! cargo run --release -p quorun-tests --bin pressure -- overload --seconds 20
//! ```
//!
//! It prints figures and judges none of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use quorun_tests::{Client, Cluster, Executor, Figures, Plan, Witness, eventually, say};
use serde_json::{Value, json};
use tokio::task::JoinSet;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A long queue: memory, the time of a page, and how fast it gets shorter
    Queue {
        /// Jobs that wait
        #[arg(long, default_value_t = 100_000)]
        jobs: usize,
        /// How long it is watched getting shorter
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Clients that wait for one job on one node
    Waiting {
        /// How many
        #[arg(long, default_value_t = 2_000)]
        clients: usize,
    },
    /// Small jobs alone, and beside jobs with 1 MiB of source and 1 MiB of output
    Beside {
        /// How long each
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Small jobs, as many as can be done and ten times as many, in turn
    Overload {
        /// How long each
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
}

#[tokio::main]
async fn main() {
    match Arguments::parse().what {
        What::Queue { jobs, seconds } => queue(jobs, Duration::from_secs(seconds)).await,
        What::Waiting { clients } => waiting(clients).await,
        What::Beside { seconds } => beside(Duration::from_secs(seconds)).await,
        What::Overload { seconds } => overload(Duration::from_secs(seconds)).await,
    }
}

fn small() -> Value {
    json!({ "language": "bash", "source": "echo small" })
}

fn clients(cluster: &Cluster) -> Vec<Client> {
    cluster.clients().into_iter().cloned().collect()
}

async fn memory(cluster: &Cluster) -> String {
    let mut all = Vec::new();
    for client in cluster.clients() {
        all.push(format!("{:.0} MB", client.figures().await.memory() / 1e6));
    }
    all.join(", ")
}

async fn queue(jobs: usize, watched: Duration) {
    let plan = Plan::new(Executor::Process).slots(1);
    // What holds the slots must not end by itself.
    let plan = plan.arg("--max-wall-ms=3600000");
    let cluster = Cluster::start(plan.arg(format!("--max-queue={}", 2 * jobs))).await;
    cluster.all_work().await;
    say(&format!(
        "memory of the nodes, empty: {}",
        memory(&cluster).await
    ));
    let witness = Witness::new();
    for n in 0..3 {
        let name = format!("holds-{n}");
        let mut job = witness.gated(&name);
        job["limits"]["wall_ms"] = 3_600_000.into();
        cluster.any().submit(&job).await;
        witness.began(&name, 1).await;
    }
    let nodes = clients(&cluster);
    let began = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut submitting = JoinSet::new();
    for n in 0..96 {
        let (client, next) = (nodes[n % nodes.len()].clone(), Arc::clone(&next));
        submitting.spawn(async move {
            let mut slowest = Duration::ZERO;
            while next.fetch_add(1, Ordering::Relaxed) < jobs {
                let began = Instant::now();
                client.submit(&small()).await;
                slowest = slowest.max(began.elapsed());
            }
            slowest
        });
    }
    let slowest = submitting.join_all().await.into_iter().max();
    let took = began.elapsed();
    let rate = jobs as f64 / took.as_secs_f64();
    say(&format!(
        "{jobs} jobs queued in {took:.1?}: {rate:.0}/s, the slowest {slowest:.0?}"
    ));
    say(&format!(
        "memory of the nodes, {jobs} waiting: {}",
        memory(&cluster).await
    ));
    for path in [
        "/v1/jobs?limit=50&consistency=stale",
        "/v1/jobs?limit=500&consistency=stale",
        "/v1/jobs?state=queued&limit=50&consistency=stale",
        // What nothing is found for: as much is looked at as may be for one page.
        "/v1/jobs?state=finished&limit=50&consistency=stale",
        "/v1/cluster",
    ] {
        let client = cluster.any();
        let mut times = Vec::new();
        for _ in 0..11 {
            let began = Instant::now();
            let _page = client.get(path).await.expect(200);
            times.push(began.elapsed());
        }
        times.sort_unstable();
        say(&format!(
            "GET {path}: median {:.1?}, slowest {:.1?}",
            times[5], times[10]
        ));
    }
    witness.open_gate();
    let began = Instant::now();
    loop {
        let before = cluster.any().cluster().await["finished"]["jobs"]
            .as_u64()
            .unwrap_or(0);
        let at = Instant::now();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let status = cluster.any().cluster().await;
        let done = status["finished"]["jobs"].as_u64().unwrap_or(0) - before;
        let left = status["queue"]["jobs"].as_u64().unwrap_or(0);
        let rate = done as f64 / at.elapsed().as_secs_f64();
        say(&format!("{left} wait, {rate:.0} jobs/s are done"));
        if left == 0 || began.elapsed() > watched {
            break;
        }
    }
    say(&format!("memory of the nodes: {}", memory(&cluster).await));
}

async fn waiting(count: usize) {
    let cluster = Cluster::of_processes().await;
    cluster.all_work().await;
    let client = cluster.any().clone();
    let witness = Witness::new();
    let id = client.submit(&witness.gated("long")).await;
    let before = client.figures().await;
    let mut waits = JoinSet::new();
    for _ in 0..count {
        let (client, id) = (client.clone(), id.clone());
        waits.spawn(async move {
            let job = client.finished(&id).await;
            assert_eq!(job["verdict"], "accepted", "{job}");
            Instant::now()
        });
    }
    eventually("all wait", async || {
        let now = client.figures().await.sum("quorun_waiting_clients", &[]);
        if now + 0.5 > count as f64 {
            Ok(())
        } else {
            Err(now)
        }
    })
    .await;
    let full = client.figures().await;
    let files = full.sum("process_open_fds", &[]);
    let each = (full.memory() - before.memory()) / count as f64;
    say(&format!(
        "{count} clients wait: {:.0} MB, {files} files, {each:.0} bytes for each",
        full.memory() / 1e6
    ));
    let mut times = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        assert_eq!(client.lang("bash", "echo small").await.text(), "small\n");
        times.push(began.elapsed());
    }
    times.sort_unstable();
    say(&format!(
        "a small job beside them: median {:.1?}, slowest {:.1?}",
        times[25], times[49]
    ));
    let opened = Instant::now();
    witness.open_gate();
    let ends = waits.join_all().await;
    let last = ends
        .into_iter()
        .max()
        .map_or(Duration::ZERO, |end| end - opened);
    say(&format!(
        "all are answered, the last {last:.1?} after the gate was opened"
    ));
}

/// The times of small jobs from `count` clients, sorted.
async fn small_jobs(cluster: &Cluster, count: usize, lasts: Duration) -> Vec<Duration> {
    let nodes = clients(cluster);
    let until = Instant::now() + lasts;
    let mut load = JoinSet::new();
    for n in 0..count {
        let client = nodes[n % nodes.len()].clone();
        load.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let began = Instant::now();
                let answer = client.lang("bash", "echo small").await;
                assert_eq!(answer.text(), "small\n");
                times.push(began.elapsed());
            }
            times
        });
    }
    let mut times: Vec<_> = load.join_all().await.concat();
    times.sort_unstable();
    times
}

fn told(what: &str, times: &[Duration], lasts: Duration) {
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    let rate = times.len() as f64 / lasts.as_secs_f64();
    say(&format!(
        "{what}: {rate:.0}/s, p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, slowest {:.1?}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    ));
}

const PHASES: [&str; 11] = [
    "http", "forward", "append", "commit", "reply", "apply", "start", "sandbox", "program",
    "result", "notify",
];

async fn profile(cluster: &Cluster, before: &[Figures]) {
    for (client, before) in cluster.clients().into_iter().zip(before) {
        let now = client.figures().await;
        let phases: Vec<_> = PHASES
            .iter()
            .map(|phase| format!("{phase} {:.2}", now.phase_ms(before, phase)))
            .collect();
        say(&format!(
            "  means at {}, ms: {}",
            client.url(),
            phases.join(", ")
        ));
    }
}

async fn figures(cluster: &Cluster) -> Vec<Figures> {
    let mut all = Vec::new();
    for client in cluster.clients() {
        all.push(client.figures().await);
    }
    all
}

async fn beside(lasts: Duration) {
    let plan = Plan::new(Executor::Process)
        .slots(4)
        .arg("--max-source-kb=1024");
    let cluster = Cluster::start(plan).await;
    cluster.all_work().await;
    let before = figures(&cluster).await;
    told(
        "small jobs alone",
        &small_jobs(&cluster, 4, lasts).await,
        lasts,
    );
    profile(&cluster, &before).await;
    for (what, job) in [
        (
            "with 1 MiB of source",
            json!({ "language": "bash", "source": format!("exit\n#{}", "x".repeat((1 << 20) - 100)) }),
        ),
        (
            "with 1 MiB of output",
            json!({ "language": "bash", "source": "head -c 1048576 /dev/zero | tr '\\0' x" }),
        ),
    ] {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let mut large = JoinSet::new();
        for client in clients(&cluster) {
            let (stop, count, job) = (stop.clone(), count.clone(), job.clone());
            large.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let done = client.run(&job).await;
                    assert_eq!(done["verdict"], "accepted", "{}", done["message"]);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let before = figures(&cluster).await;
        told(
            &format!("small jobs beside some {what}"),
            &small_jobs(&cluster, 4, lasts).await,
            lasts,
        );
        profile(&cluster, &before).await;
        stop.store(true, Ordering::Relaxed);
        large.join_all().await;
        let rate = count.load(Ordering::Relaxed) as f64 / lasts.as_secs_f64();
        say(&format!(
            "  and {rate:.1}/s of the large ones; memory {}",
            memory(&cluster).await
        ));
    }
}

/// Few clients that wait for each job say how many jobs a second there can be; then ten times as many arrive, whatever
/// becomes of them.
async fn overload(lasts: Duration) {
    const FEW: usize = 8;
    const MANY: usize = 10 * FEW;
    let plan = Plan::new(Executor::Process).arg("--max-queue=50");
    let cluster = Cluster::start(plan).await;
    cluster.all_work().await;
    let term = cluster.any().cluster().await["term"].clone();
    let mut peak = 0.0;
    for ten_times in [false, true, false, true, false] {
        let done = async || cluster.any().cluster().await["finished"]["jobs"].as_u64();
        let before = (done().await.unwrap_or(0), figures(&cluster).await);
        let nodes = clients(&cluster);
        let count = if ten_times { MANY } else { FEW };
        let path = if ten_times {
            "/v1/jobs"
        } else {
            "/v1/jobs?wait=60"
        };
        let pace = if ten_times {
            MANY as f64 / (10.0 * peak)
        } else {
            0.001
        };
        let until = Instant::now() + lasts;
        let mut load = JoinSet::new();
        for n in 0..count {
            let client = nodes[n % nodes.len()].clone();
            load.spawn(async move {
                let mut tick = tokio::time::interval(Duration::from_secs_f64(pace));
                let (mut sent, mut refused) = (0_usize, 0_usize);
                while Instant::now() < until {
                    tick.tick().await;
                    let answer = client.post_json(path, &small()).await;
                    sent += 1;
                    refused += usize::from(!answer.status.is_success());
                }
                (sent, refused)
            });
        }
        let answers = load.join_all().await;
        let sent: usize = answers.iter().map(|(sent, _)| sent).sum();
        let refused: usize = answers.iter().map(|(_, refused)| refused).sum();
        let rate = (done().await.unwrap_or(0) - before.0) as f64 / lasts.as_secs_f64();
        if !ten_times {
            peak = rate;
        }
        let came = sent as f64 / lasts.as_secs_f64();
        say(&format!(
            "{came:.0}/s come, {rate:.0} jobs/s are done, {refused} of {sent} refused; memory {}",
            memory(&cluster).await
        ));
        profile(&cluster, &before.1).await;
        eventually("the queue is empty", async || {
            let queued = cluster.any().cluster().await["queue"]["jobs"].clone();
            if queued == 0 { Ok(()) } else { Err(queued) }
        })
        .await;
    }
    say(&format!(
        "the term was {term} and is {}",
        cluster.any().cluster().await["term"]
    ));
}
