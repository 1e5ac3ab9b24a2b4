//! How a node does with a million finished jobs in its ledger.
//!
//! `cargo run --release -p quorun-consensus --example million -- [--jobs N] [--nodes 1|3] [--snapshot-after N]`
//!
//! Jobs with 200 bytes of source are submitted and ended, without being executed, by proposals to a node. Then a steady
//! load goes on, of 250 jobs a second, and it is measured for how long nothing is applied while a snapshot is built
//! and while none is; how long the node takes to lead again after it was killed and after it was ended; and what it
//! takes to bring an empty node up. With `--data`, a folder that was filled before is used again (one node only). Each part is a process of its own, so that the memory that is shown is that of a node
//! (of three, where three are asked for: they are in one process while the ledger is filled).
//!
//! The log of the nodes goes to stderr, the table to stdout.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod growth;

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use growth::{Jobs, Load, PATIENCE, Pauses, memory, mib, millis, row, said, size};
use quorun_consensus::Handle;

/// One job each so often: the steady load.
const STEADY: Duration = Duration::from_millis(4);
/// How many jobs are under way at one time while the ledger is filled.
const FILLING: u64 = 1024;
/// The node that joins.
const NEW: u64 = 9;
/// What a part says when it wants to be killed.
const KILL: &str = "kill me";
const READY: &str = "ready";

#[derive(Clone, Debug)]
struct Settings {
    jobs: u64,
    nodes: u64,
    snapshot_after: u64,
    data: Option<PathBuf>,
    ports: Vec<u16>,
    part: Option<String>,
}

impl Settings {
    fn read() -> Self {
        let mut settings = Self {
            jobs: 1_000_000,
            nodes: 1,
            snapshot_after: 20_000,
            data: None,
            ports: Vec::new(),
            part: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let value = args.next().unwrap_or_default();
            let number = || value.parse().unwrap_or_else(|_| panic!("{name} {value}"));
            match name.as_str() {
                "--jobs" => settings.jobs = number(),
                "--nodes" => settings.nodes = number(),
                "--snapshot-after" => settings.snapshot_after = number(),
                "--data" => settings.data = Some(value.into()),
                "--ports" => {
                    settings.ports = value.split(',').map(|port| port.parse().unwrap()).collect();
                }
                "--part" => settings.part = Some(value),
                _ => panic!("{name}: see the head of this program"),
            }
        }
        settings
    }

    fn folder(&self, id: u64) -> PathBuf {
        self.data.as_ref().unwrap().join(format!("node{id}"))
    }

    fn voters(&self) -> Vec<(u64, u16)> {
        (1..=self.nodes).zip(self.ports.iter().copied()).collect()
    }

    /// The port of the node that joins.
    fn new_port(&self) -> u16 {
        *self.ports.last().unwrap()
    }
}

fn main() {
    let settings = Settings::read();
    let Some(part) = settings.part.clone() else {
        return all_parts(settings);
    };
    growth::log();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        match part.as_str() {
            "fill" => fill(&settings).await,
            "again" => again(&settings).await,
            "restart" => restart(&settings).await,
            "lead" => lead(&settings).await,
            "join" => join(&settings).await,
            other => panic!("no part {other}"),
        }
    });
}

fn all_parts(mut settings: Settings) {
    let folder = tempfile::Builder::new()
        .prefix("quorun-million-")
        .tempdir()
        .unwrap();
    settings.data.get_or_insert_with(|| folder.path().into());
    settings.ports = growth::ports(usize::try_from(settings.nodes).unwrap() + 1);
    let part = |name: &str| Part::start(&settings, name);
    row("figure", "value");
    row("---", "---:");
    if !settings.folder(1).exists() {
        part("fill").killed();
        row("restart after kill -9:", "");
        part("restart").ends();
    } else {
        part("again").ends();
    }
    row("restart after a good end:", "");
    part("restart").ends();
    if settings.nodes == 1 {
        row("an empty node joins:", "");
        let mut new = part("join");
        new.says(READY);
        part("lead").ends();
        new.ends();
    }
}

/// A part in a process of its own. It has an end when its stdin has.
struct Part {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Part {
    fn start(settings: &Settings, name: &str) -> Self {
        let ports: Vec<_> = settings.ports.iter().map(ToString::to_string).collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--jobs", &settings.jobs.to_string()])
            .args(["--nodes", &settings.nodes.to_string()])
            .args(["--snapshot-after", &settings.snapshot_after.to_string()])
            .arg("--data")
            .arg(settings.data.as_ref().unwrap())
            .args(["--ports", &ports.join(",")])
            .args(["--part", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Passes on what it prints until it says this.
    fn says(&mut self, what: &str) {
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if line == what {
                return;
            }
            println!("{line}");
        }
        panic!("a part has ended early: {:?}", self.child.wait());
    }

    fn killed(mut self) {
        self.says(KILL);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn ends(mut self) {
        drop(self.child.stdin.take());
        for line in self.lines.by_ref() {
            println!("{}", line.unwrap());
        }
        let status = self.child.wait().unwrap();
        assert!(status.success(), "a part has failed: {status}");
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Shows what is to be done at once.
fn tell(what: &str) {
    println!("{what}");
    std::io::stdout().flush().unwrap();
}

async fn fill(settings: &Settings) {
    let voters = settings.voters();
    let (mut handles, mut notices) = (Vec::new(), Vec::new());
    for (id, _) in &voters {
        let after = settings.snapshot_after;
        let (handle, notice) = growth::node(*id, &voters, settings.folder(*id), after).await;
        handles.push(handle);
        notices.push(notice);
    }
    for handle in &handles {
        handle.bootstrap().await.unwrap();
    }
    let leader = growth::led(&handles).await;
    let at = handles
        .iter()
        .position(|handle| handle.status().borrow().leading);
    let (at, leading_notices) = at.map(|at| (at, notices.swap_remove(at))).unwrap();
    for notices in notices {
        Pauses::listen(notices); // only so that they do not pile up
    }
    let data = settings.folder(voters[at].0);
    growth::announce(&leader).await;
    row("memory before", mib(memory().0));

    let jobs = Jobs::new(200);
    let pauses = Pauses::listen(leading_notices);
    let begun = Instant::now();
    let steps = 10;
    for step in 0..steps {
        let from = Instant::now();
        let count = settings.jobs * (step + 1) / steps - settings.jobs * step / steps;
        jobs.many(&leader, count, FILLING).await;
        eprintln!(
            "{} jobs, {:.0} a second, longest pause {}, memory {}, disk {}",
            jobs.begun(),
            count as f64 / from.elapsed().as_secs_f64(),
            millis(pauses.longest(from, Instant::now())),
            mib(memory().0),
            mib(size(&data))
        );
    }
    let took = begun.elapsed();
    row("jobs", settings.jobs);
    row(
        "filled, jobs a second",
        format!("{:.0}", settings.jobs as f64 / took.as_secs_f64()),
    );
    row(
        "memory when filled, all nodes of the process",
        mib(memory().0),
    );
    row(
        "longest pause while filling",
        millis(pauses.longest(begun, Instant::now())),
    );

    let load = Load::start(&leader, &jobs, STEADY);
    let snapshot = observe_snapshots(&leader, &load, &pauses, &data, settings).await;
    row("snapshot", mib(snapshot));
    row("log/", mib(size(&data.join("log"))));
    row("ledger/", mib(size(&data.join("ledger"))));
    row("memory, highest, all nodes of the process", mib(memory().1));
    fill_tail(&leader, &data, settings.snapshot_after).await;
    tell(KILL);
    std::future::pending::<()>().await;
}

/// Nodes that were filled before, under the steady load.
async fn again(settings: &Settings) {
    let voters = settings.voters();
    let after = settings.snapshot_after;
    let (handle, notices) = growth::node(1, &voters, settings.folder(1), after).await;
    let leader = growth::led(std::slice::from_ref(&handle)).await;
    growth::announce(&leader).await;
    let load = Load::start(&leader, &Jobs::new(200), STEADY);
    let data = settings.folder(1);
    let pauses = Pauses::listen(notices);
    let snapshot = observe_snapshots(&leader, &load, &pauses, &data, settings).await;
    row("snapshot", mib(snapshot));
    row("memory, highest", mib(memory().1));
    drop(load);
    handle.shutdown().await;
}

/// What the newest snapshot takes on the disk: the runs.
fn snapshot_size(data: &Path) -> u64 {
    let entries = std::fs::read_dir(data.join("ledger")).into_iter().flatten();
    let runs = entries.flatten().filter_map(|entry| {
        let path = entry.path();
        let is_run = path.extension().is_some_and(|ext| ext == "run");
        is_run.then(|| entry.metadata().map_or(0, |meta| meta.len()))
    });
    runs.sum()
}

/// Whether a run is being made, of the overlay or of others.
fn building(data: &Path) -> bool {
    let entries = std::fs::read_dir(data.join("ledger"));
    let mut entries = entries.into_iter().flatten().flatten();
    entries.any(|entry| entry.path().extension().is_some_and(|e| e == "building"))
}

/// Waits for a whole snapshot under the load, and prints how it and the time before it went. Returns its size.
async fn observe_snapshots(
    leader: &Handle,
    load: &Load,
    pauses: &Pauses,
    data: &Path,
    settings: &Settings,
) -> u64 {
    let pause = || tokio::time::sleep(Duration::from_millis(5));
    // What the filling has begun comes to its end first.
    loop {
        let calm = Instant::now();
        while !building(data) && calm.elapsed() < Duration::from_secs(5) {
            pause().await;
        }
        if !building(data) {
            break;
        }
        while building(data) {
            pause().await;
        }
    }
    let begin = Instant::now();
    let wanted = begin + Duration::from_secs(5);
    while Instant::now() < wanted {
        pause().await;
    }
    let quiet = Instant::now();
    row(
        "longest pause without a snapshot",
        millis(pauses.longest(begin, quiet)),
    );
    row(
        "slowest job (two proposals) without a snapshot",
        millis(load.slowest(begin, quiet)),
    );
    let since = Instant::now();
    let (from, to) = loop {
        if let Some(from) = said("snapshot begun", since).first()
            && let Some(to) = said("snapshot built", *from).first()
        {
            break (*from, *to);
        }
        assert!(since.elapsed() < PATIENCE, "no snapshot is built");
        pause().await;
    };
    // The purging of the log that follows is a part of it.
    let purged = to + Duration::from_secs(3);
    while Instant::now() < purged {
        pause().await;
    }
    row(
        "building a snapshot, final sync included",
        format!("{:.1} s", (to - from).as_secs_f64()),
    );
    row(
        "longest pause with a snapshot",
        millis(pauses.longest(from, purged)),
    );
    row(
        "slowest job with a snapshot",
        millis(load.slowest(from, purged)),
    );
    eprintln!(
        "entries: {}, snapshot each {}",
        leader.status().borrow().last_log_index,
        settings.snapshot_after
    );
    snapshot_size(data)
}

/// Waits until nearly as many entries as may be lie behind the newest snapshot.
async fn fill_tail(leader: &Handle, data: &Path, snapshot_after: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = leader.status().borrow().last_log_index;
        let covered = growth::snapshot_covers();
        let tail = last.saturating_sub(covered);
        if tail > snapshot_after / 4 * 3 && !building(data) {
            row("entries behind the snapshot when it is killed", tail);
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the tail has only {tail} entries"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn restart(settings: &Settings) {
    let begin = Instant::now();
    let voters = settings.voters();
    let (mut handles, mut notices) = (Vec::new(), Vec::new());
    for (id, _) in &voters {
        let after = settings.snapshot_after;
        let (handle, notice) = growth::node(*id, &voters, settings.folder(*id), after).await;
        handles.push(handle);
        notices.push(notice);
    }
    row("- opened", millis(begin.elapsed()));
    let leader = growth::led(&handles).await;
    row("- leads", millis(begin.elapsed()));
    growth::announce(&leader).await;
    row(
        "- serves: the first proposal is answered",
        millis(begin.elapsed()),
    );
    let finished = leader.view().counters().unwrap().finished;
    row("- finished jobs that are there", finished);
    row("- memory", mib(memory().0));

    let jobs = Jobs::new(200);
    let at = handles
        .iter()
        .position(|handle| handle.status().borrow().leading)
        .unwrap();
    let pauses = Pauses::listen(notices.swap_remove(at));
    for notices in notices {
        Pauses::listen(notices);
    }
    let load = Load::start(&leader, &jobs, STEADY);
    let checked = loop {
        let checked = said("the ledger's records are what was written", begin);
        let gave_way = said("the check of the ledger's records gave way", begin);
        if checked.len() + gave_way.len() == voters.len() {
            row("- checks that gave way to a snapshot", gave_way.len());
            break checked.into_iter().chain(gave_way).max().unwrap();
        }
        assert!(begin.elapsed() < PATIENCE, "the check does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    row(
        "- all records checked, behind the start",
        format!("{:.1} s", (checked - begin).as_secs_f64()),
    );
    row(
        "- longest pause meanwhile",
        millis(pauses.longest(begin, checked)),
    );
    row(
        "- slowest job meanwhile",
        millis(load.slowest(begin, checked)),
    );
    row("- memory, highest", mib(memory().1));
    drop(load);
    for handle in handles {
        handle.shutdown().await;
    }
}

/// The node that has all jobs takes the new one in.
async fn lead(settings: &Settings) {
    let voters = settings.voters();
    let after = settings.snapshot_after;
    let (handle, notices) = growth::node(1, &voters, settings.folder(1), after).await;
    let leader = growth::led(std::slice::from_ref(&handle)).await;
    growth::announce(&leader).await;
    let jobs = Jobs::new(200);
    let pauses = Pauses::listen(notices);
    let load = Load::start(&leader, &jobs, STEADY);
    let begin = Instant::now();
    let new = growth::member(settings.new_port());
    leader.add_learner(NEW, new).await.unwrap();
    while leader.behind().get(&NEW).is_none_or(|behind| *behind > 50) {
        assert!(begin.elapsed() < PATIENCE, "the new node does not catch up");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let end = Instant::now();
    row(
        "- has caught up after",
        format!("{:.1} s", (end - begin).as_secs_f64()),
    );
    row(
        "- longest pause of the leader meanwhile",
        millis(pauses.longest(begin, end)),
    );
    row("- slowest job meanwhile", millis(load.slowest(begin, end)));
    row("- memory of the leader, highest", mib(memory().1));
    drop(load);
    handle.shutdown().await;
}

/// The new node.
async fn join(settings: &Settings) {
    let port = settings.new_port();
    let folder = settings.folder(NEW);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    let begin = Instant::now();
    let (handle, notices) =
        growth::node(NEW, &[(NEW, port)], folder.clone(), settings.snapshot_after).await;
    Pauses::listen(notices);
    tell(READY);
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
        .await
        .unwrap()
        .unwrap();
    let finished = handle.view().counters().unwrap().finished;
    row(
        "- snapshots that were installed",
        said("snapshot installed", begin).len(),
    );
    row("- finished jobs that the new node has", finished);
    row("- memory of the new node, highest", mib(memory().1));
    row(
        "- ledger/ of the new node",
        mib(size(&folder.join("ledger"))),
    );
    handle.shutdown().await;
}
