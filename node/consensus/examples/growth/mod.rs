//! What the programs that measure growth have in common: nodes, loads, and what is read from outside.

#![allow(dead_code)] // neither program uses all of it

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quorun_consensus::{ClusterId, Handle, Member, Notice, Options, ProposeError, start};
use quorun_ledger::{
    Command, JobId, JobResult, JobSpec, Limits, NodeId, Outcome, Output, Reply, SourceFile, Verdict,
};
use tokio::sync::{mpsc, watch};
use tonic::service::Routes;
use tracing_subscriber::fmt::MakeWriter;

/// As in a node.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long something may take before the program gives it up.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// The node that all jobs are given to.
pub const WORKER: NodeId = 1;

/// Lines of the log that mark moments, and when they came.
static MARKS: Mutex<Vec<(Instant, String)>> = Mutex::new(Vec::new());

/// Passes the log on to stderr and remembers when it said what.
struct Marks;

impl Write for Marks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        MARKS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((Instant::now(), text));
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Marks {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// Shows the log of the nodes on stderr.
pub fn log() {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter("info,openraft=error,quorun_consensus::ledger_store::snapshot=debug")
        .with_writer(|| Marks)
        .init();
}

/// When the log has said this, each time since `since`.
pub fn said(what: &str, since: Instant) -> Vec<Instant> {
    let marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    marks
        .iter()
        .filter(|(when, text)| *when >= since && text.contains(what))
        .map(|(when, _)| *when)
        .collect()
}

/// How many entries the newest snapshot covers of which the log has told.
pub fn snapshot_covers() -> u64 {
    let marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    let built = marks.iter().rev();
    let mut built = built.filter(|(_, text)| text.contains("snapshot built"));
    let number = built.next().and_then(|(_, text)| {
        let (_, number) = text.split_once("applied=")?;
        number.split_whitespace().next()?.parse().ok()
    });
    number.unwrap_or(0)
}

/// Ports that were free a moment ago.
pub fn ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().expect("its address").port())
        .collect()
}

fn address(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// A member of the cluster on this machine.
pub fn member(port: u16) -> Member {
    Member {
        peer: address(port).to_string(),
        http: String::new(),
    }
}

/// Starts a node.
pub async fn node(
    id: NodeId,
    ports: &[(NodeId, u16)],
    data_dir: PathBuf,
    snapshot_after: u64,
) -> (Handle, mpsc::UnboundedReceiver<Notice>) {
    let own = ports.iter().find(|(node, _)| *node == id).expect("a port");
    let members: BTreeMap<_, _> = ports
        .iter()
        .map(|(id, port)| (*id, member(*port)))
        .collect();
    let mut options = Options::new(id, ClusterId([9; 16]), members, data_dir);
    options.snapshot_after = snapshot_after;
    let listener = TcpListener::bind(address(own.1)).expect("the node's port");
    // Only node 1 ever has work; nobody executes it.
    let (_, eligible) = watch::channel(BTreeSet::from([WORKER]));
    start(options, listener, |_| Routes::default(), eligible)
        .await
        .unwrap_or_else(|error| panic!("node {id}: {error}"))
}

/// Waits until one of the nodes leads and takes proposals.
pub async fn led(handles: &[Handle]) -> Handle {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let leading = handles.iter().find(|handle| {
            let status = handle.status();
            let status = status.borrow();
            status.leading && status.quorum
        });
        if let Some(leader) = leading {
            return leader.clone();
        }
        assert!(Instant::now() < deadline, "no leader");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Proposes until it is known what came of it; the ledger sees to it that a repetition does no harm.
pub async fn propose(handle: &Handle, command: Command) -> Option<Reply> {
    loop {
        let deadline = Instant::now() + PATIENCE;
        match handle.propose(command.clone(), deadline.into()).await {
            Ok(reply) => return Some(reply),
            Err(ProposeError::Stopped) => return None,
            Err(_) => {}
        }
    }
}

/// Announces the node that gets all jobs.
pub async fn announce(handle: &Handle) {
    let up = Command::NodeUp {
        node: WORKER,
        incarnation: 1,
        http: String::new(),
        slots: u32::MAX,
        languages: BTreeSet::from(["c".to_owned()]),
        version: "growth".to_owned(),
    };
    propose(handle, up).await;
}

/// Jobs of one size.
#[derive(Clone, Debug)]
pub struct Jobs {
    next: Arc<AtomicU64>,
    source: Bytes,
    session: u64,
}

impl Jobs {
    /// Jobs with so much source each.
    pub fn new(source_bytes: usize) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            next: Arc::default(),
            source: Bytes::from(vec![b'x'; source_bytes]),
            session: u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or_default(),
        }
    }

    /// How many were begun.
    pub fn begun(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Submits one job and ends it. `None` when the node has ended.
    pub async fn one(&self, handle: &Handle) -> Option<()> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        // Sorts as it came, as the ids of real jobs do.
        let id = u128::from(self.session) << 80 | u128::from(n);
        let job = JobId::from_slice(&id.to_be_bytes())?;
        let spec = JobSpec {
            language: "c".to_owned(),
            definition: None,
            files: vec![SourceFile {
                name: "main.c".to_owned(),
                content: self.source.clone(),
            }],
            entrypoint: "main.c".to_owned(),
            stdin: Bytes::new(),
            tests: Vec::new(),
            interactive: false,
            terminal: None,
            stop_on_failure: false,
            args: Vec::new(),
            env: BTreeMap::new(),
            limits: Limits::default(),
            labels: Vec::new(),
            isolation_key: None,
            owner: None,
            retention_ms: 86_400_000,
            max_attempts: 3,
            ..JobSpec::default()
        };
        let submit = Command::Submit {
            id: job,
            spec,
            key: None,
        };
        match propose(handle, submit).await? {
            Reply::Submitted { .. } => {}
            other => panic!("a submission was answered {other:?}"),
        }
        let result = JobResult {
            outcome: Outcome {
                verdict: Verdict::Accepted,
                exit_code: Some(0),
                signal: None,
                cpu_us: 1234,
                wall_us: 2345,
                memory_kb: 3456,
                message: None,
                judged: None,
            },
            output: Output {
                stdout: Bytes::from_static(b"ok\n"),
                ..Output::default()
            },
        };
        let complete = Command::Complete {
            job,
            attempt: 1,
            node: WORKER,
            result,
        };
        match propose(handle, complete).await? {
            Reply::Completed(_) => Some(()),
            other => panic!("a completion was answered {other:?}"),
        }
    }

    /// Runs so many jobs as fast as they go, `at_once` of them at one time.
    pub async fn many(&self, handle: &Handle, jobs: u64, at_once: u64) {
        let end = self.begun() + jobs;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..at_once {
            let (own, handle) = (self.clone(), handle.clone());
            tasks.spawn(
                async move { while own.begun() < end && own.one(&handle).await.is_some() {} },
            );
        }
        tasks.join_all().await;
    }
}

/// A load that does not wait for what it began before, until it is dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    /// The answers that took longest, with their end.
    slowest: Arc<Mutex<Vec<(Instant, Duration)>>>,
}

impl Load {
    /// One job each `every`.
    pub fn start(handle: &Handle, jobs: &Jobs, every: Duration) -> Self {
        let load = Self {
            stop: Arc::default(),
            slowest: Arc::default(),
        };
        let (stop, slowest) = (load.stop.clone(), load.slowest.clone());
        let (handle, jobs) = (handle.clone(), jobs.clone());
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(every);
            while !stop.load(Ordering::Relaxed) {
                tick.tick().await;
                let (handle, jobs, slowest) = (handle.clone(), jobs.clone(), slowest.clone());
                tokio::spawn(async move {
                    let begun = Instant::now();
                    if jobs.one(&handle).await.is_some() {
                        let mut slowest = slowest.lock().unwrap_or_else(PoisonError::into_inner);
                        slowest.push((Instant::now(), begun.elapsed()));
                    }
                });
            }
        });
        load
    }

    /// The longest time that a job took (two proposals) of those that ended in between.
    pub fn slowest(&self, from: Instant, to: Instant) -> Duration {
        let slowest = self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        slowest
            .iter()
            .filter(|(end, _)| *end >= from && *end <= to)
            .map(|(_, took)| *took)
            .max()
            .unwrap_or_default()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Measures how long nothing is applied while something should be.
#[derive(Clone, Debug, Default)]
pub struct Pauses(Arc<Mutex<Vec<Instant>>>);

impl Pauses {
    /// Listens to what a node applies, on a thread of its own.
    pub fn listen(mut notices: mpsc::UnboundedReceiver<Notice>) -> Self {
        let pauses = Self::default();
        let applied = pauses.0.clone();
        thread::spawn(move || {
            while notices.blocking_recv().is_some() {
                let mut applied = applied.lock().unwrap_or_else(PoisonError::into_inner);
                applied.push(Instant::now());
            }
        });
        pauses
    }

    /// The longest between two batches, of which at least one was applied in between.
    pub fn longest(&self, from: Instant, to: Instant) -> Duration {
        let applied = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        applied
            .windows(2)
            .filter(|pair| pair[1] >= from && pair[0] <= to)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or_default()
    }
}

/// One line of the table.
pub fn row(what: &str, value: impl std::fmt::Display) {
    println!("| {what} | {value} |");
}

/// Milliseconds, to be read.
pub fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// MiB, to be read.
pub fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Memory of this process, bytes: now, and at most so far.
pub fn memory() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// What the files below a folder take on the disk, bytes.
pub fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(meta) = fs::symlink_metadata(path) else {
        return 0; // removed in this moment, or not there yet
    };
    let own = meta.blocks() * 512;
    let Ok(entries) = fs::read_dir(path) else {
        return own;
    };
    entries
        .flatten()
        .fold(own, |sum, entry| sum + size(&entry.path()))
}
