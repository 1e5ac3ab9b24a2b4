//! A node without anything but consensus, in a process of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use quorun_consensus::{ClusterId, Handle, Member, Notice, Options, ProposeError};
use quorun_ledger as ledger;
use quorun_ledger::{JobId, JobSpec, Limits, SourceFile};
use quorun_tests::{LONG, Shim};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::service::Routes;

const NAME: &str = "store::the_store";
const MODE: &str = "STORE_TEST_MODE";
const DIR: &str = "STORE_TEST_DIR";
const FIRST: &str = "STORE_TEST_FIRST";
const COUNT: &str = "STORE_TEST_COUNT";
const LIST: &str = "STORE_TEST_LIST";
const ID: &str = "STORE_TEST_ID";
const ADDRESS: &str = "STORE_TEST_ADDRESS";
const LEADER: &str = "STORE_TEST_LEADER";
const TARGET: &str = "STORE_TEST_TARGET";

/// A snapshot is built and the log purged every so many entries.
pub const SNAPSHOT_AFTER: u64 = 12;
/// The cluster of all stores.
pub const CLUSTER: [u8; 16] = [0x57; 16];
/// How long a store may take until it leads, or ends.
const SOON: Duration = Duration::from_secs(30);
/// Proposals under way at one time.
const AT_ONCE: usize = 4;

pub fn job(number: u64) -> JobId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    JobId::from_slice(&bytes).unwrap()
}

fn spec(number: u64) -> JobSpec {
    // Some are so large that they are split in both stores.
    let size = if number % 25 == 7 { 30_000 } else { 300 };
    let byte = u8::try_from(number % 251).unwrap();
    JobSpec {
        language: "python".to_owned(),
        files: vec![SourceFile {
            name: "main.py".to_owned(),
            content: Bytes::from(vec![byte; size]),
        }],
        entrypoint: "main.py".to_owned(),
        limits: Limits {
            cpu_ms: 1_000,
            wall_ms: 2_000,
            memory_kb: 65_536,
            processes: 8,
            output_kb: 64,
            ..Limits::default()
        },
        retention_ms: 60_000,
        max_attempts: 3,
        ..JobSpec::default()
    }
}

pub fn submit(number: u64) -> ledger::Command {
    ledger::Command::Submit {
        id: job(number),
        spec: spec(number),
        key: None,
    }
}

fn say(text: &str) {
    writeln!(std::io::stdout().lock(), "\n{text}").unwrap();
}

async fn start(dir: &Path) -> Result<Handle, quorun_consensus::Error> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let member = Member {
        peer: listener.local_addr().unwrap().to_string(),
        http: String::new(),
    };
    let members = BTreeMap::from([(1, member)]);
    let mut options = Options::new(1, ClusterId(CLUSTER), members, dir.to_owned());
    options.heartbeat = Duration::from_millis(20);
    options.election_min = Duration::from_millis(60);
    options.election_max = Duration::from_millis(120);
    options.snapshot_after = SNAPSHOT_AFTER;
    let (_, eligible) = watch::channel(BTreeSet::new());
    let (handle, _) =
        quorun_consensus::start(options, listener, |_| Routes::default(), eligible).await?;
    // Where it fails, the node ends, which is said below.
    let _ = handle.bootstrap().await;
    Ok(handle)
}

/// Follows a leader elsewhere until it has as much as that one, and says what it has then.
async fn follow(dir: &Path) {
    let text = |name| std::env::var(name).unwrap();
    let (id, target): (u64, u64) = (text(ID).parse().unwrap(), text(TARGET).parse().unwrap());
    let member = |address: String| Member {
        peer: address,
        http: String::new(),
    };
    let members = BTreeMap::from([(1, member(text(LEADER))), (id, member(text(ADDRESS)))]);
    let listener = TcpListener::bind(text(ADDRESS)).unwrap();
    let mut options = Options::new(id, ClusterId(CLUSTER), members, dir.to_owned());
    options.snapshot_after = SNAPSHOT_AFTER;
    let (_, eligible) = watch::channel(BTreeSet::new());
    let started = quorun_consensus::start(options, listener, |_| Routes::default(), eligible).await;
    let (handle, mut notices) = match started {
        Ok(started) => started,
        Err(error) => return say(&format!("refused {error}")),
    };
    let mut applied = handle.applied();
    tokio::select! {
        error = handle.stopped() => return say(&format!("stopped {error}")),
        there = applied.wait_for(|next| *next > target) => drop(there.unwrap()),
    }
    let (index, hash) = handle.state().unwrap();
    say(&format!("holds {index} {hash}"));
    handle.shutdown().await;
    // What was applied is told a little later; with consensus the telling ends as well.
    while let Ok(Some(notice)) = timeout(SOON, notices.recv()).await {
        if notice == Notice::Reset {
            say("reset");
        }
    }
    say("finished");
}

/// Proposes jobs and says which were accepted, until all are, or consensus ends.
async fn work(handle: &Handle, first: u64, count: u64) {
    let mut status = handle.status();
    let leading = status.wait_for(|status| status.leading).await;
    // The status is not held while it is told: who changes it would have to wait.
    let term = leading.unwrap().term;
    say(&format!("term {term}"));
    let mut proposals = tokio::task::JoinSet::new();
    let mut numbers = first..first + count;
    loop {
        while proposals.len() < AT_ONCE
            && let Some(number) = numbers.next()
        {
            let handle = handle.clone();
            proposals.spawn(async move {
                let proposed = handle.propose(submit(number), Instant::now() + LONG).await;
                proposed.map(|_| number)
            });
        }
        match proposals.join_next().await {
            None => return,
            Some(Ok(Ok(number))) => say(&format!("accepted {number}")),
            // Whether it is there is not known.
            Some(Ok(Err(ProposeError::Stopped | ProposeError::Unknown))) => {}
            Some(other) => panic!("{other:?}"),
        }
    }
}

/// Looks for everything in the list.
async fn check(handle: &Handle, list: &str) -> Result<(), String> {
    handle
        .linearize(Instant::now() + SOON)
        .await
        .map_err(|error| error.to_string())?;
    let view = handle.view();
    for number in list.split_whitespace() {
        let number = number.parse().unwrap();
        let found = view.spec(job(number)).map_err(|error| error.to_string())?;
        match found {
            Some(found) if found == spec(number) => {}
            Some(_) => say(&format!("changed {number}")),
            None => say(&format!("lost {number}")),
        }
        let found = view.job(job(number)).map_err(|error| error.to_string())?;
        if found.is_none_or(|found| found.id != job(number)) {
            say(&format!("lost {number}"));
        }
    }
    let term = handle.status().borrow().term;
    say(&format!("checked in term {term}"));
    Ok(())
}

async fn run(mode: &str, dir: &Path) {
    if mode == "follow" {
        return follow(dir).await;
    }
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let handle = match start(dir).await {
        Ok(handle) => handle,
        Err(error) => return say(&format!("refused {error}")),
    };
    let stopped = handle.clone();
    let doing = async {
        if mode == "work" {
            work(&handle, number(FIRST), number(COUNT)).await;
            Ok(())
        } else {
            let list = std::fs::read_to_string(std::env::var_os(LIST).unwrap()).unwrap();
            check(&handle, &list).await
        }
    };
    let ended = tokio::select! {
        biased;
        error = stopped.stopped() => Err(error.to_string()),
        done = doing => done,
    };
    match ended {
        Ok(()) => {
            handle.shutdown().await;
            say("finished");
        }
        Err(error) => {
            // The reason that it ends for, if it ends: what was under way fails at the same time.
            let first = tokio::time::timeout(SOON, stopped.stopped()).await;
            let first = first.map_or(error, |first| first.to_string());
            say(&format!("stopped {first}"));
        }
    }
}

/// The program that is started again.
#[test]
fn the_store() {
    let Some(mode) = std::env::var_os(MODE) else {
        return;
    };
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(run(mode.to_str().unwrap(), &dir));
}

/// What a store has said.
#[derive(Debug, Default)]
pub struct Said {
    pub accepted: BTreeSet<u64>,
    /// The term that it last worked in.
    pub term: Option<u64>,
    pub finished: bool,
    /// Why it ended.
    pub stopped: Option<String>,
    /// Why it was not opened.
    pub refused: Option<String>,
    pub lost: BTreeSet<u64>,
    pub changed: BTreeSet<u64>,
    pub checked: bool,
    /// How often it was given a ledger as a whole.
    pub resets: u64,
    /// The position and the hash of its ledger in the end.
    pub holds: Option<String>,
    pub status: Option<ExitStatus>,
}

/// A store that runs.
pub struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    pub said: Said,
}

impl Running {
    /// Reads on until it has ended, or until `enough`.
    pub fn read(&mut self, mut enough: impl FnMut(&Said) -> bool) {
        while !enough(&self.said) {
            let Some(line) = self.lines.next() else {
                return;
            };
            let line = line.unwrap();
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let said = &mut self.said;
            let number = || rest.parse::<u64>().unwrap();
            match word {
                "accepted" => drop(said.accepted.insert(number())),
                "term" => said.term = Some(number()),
                "lost" => drop(said.lost.insert(number())),
                "changed" => drop(said.changed.insert(number())),
                "stopped" => said.stopped = Some(rest.to_owned()),
                "refused" => said.refused = Some(rest.to_owned()),
                "finished" => said.finished = true,
                "reset" => said.resets += 1,
                "holds" => said.holds = Some(rest.to_owned()),
                "checked" => {
                    said.checked = true;
                    said.term = rest
                        .split(' ')
                        .next_back()
                        .map(|term| term.parse().unwrap());
                }
                _ => {}
            }
        }
    }

    /// Reads all that it says, and waits for its end.
    pub fn end(mut self) -> Said {
        self.read(|_| false);
        self.said.status = Some(self.child.wait().unwrap());
        std::mem::take(&mut self.said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for a store, and the shim before it.
pub struct Place {
    folder: tempfile::TempDir,
    pub shim: Shim,
    /// Everything that was accepted.
    pub accepted: BTreeSet<u64>,
    /// The highest term that it was heard of.
    pub term: u64,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shim = Shim::new(&folder.path().join("control"), &folder.path().join("data"));
        Self {
            folder,
            shim,
            accepted: BTreeSet::new(),
            term: 0,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn spawn(&self, mode: &str, with_shim: bool, more: &[(&str, &str)]) -> Running {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([NAME, "--exact", "--nocapture"])
            .env(MODE, mode)
            .env(DIR, self.data())
            .envs(more.iter().copied())
            .env_remove("RUST_BACKTRACE")
            .stdout(Stdio::piped())
            .stderr(if std::env::var_os("RUST_LOG").is_some() {
                Stdio::inherit()
            } else {
                Stdio::null()
            });
        if with_shim {
            command.envs(self.shim.env());
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running {
            child,
            lines,
            said: Said::default(),
        }
    }

    /// A store that works on so many new jobs.
    pub fn start(&self, count: u64) -> Running {
        let first = self.accepted.last().map_or(0, |last| last + 1_000);
        let numbers = [(FIRST, first.to_string()), (COUNT, count.to_string())];
        self.spawn(
            "work",
            true,
            &[(numbers[0].0, &numbers[0].1), (numbers[1].0, &numbers[1].1)],
        )
    }

    /// A store that follows a leader until it has as much as that one.
    pub fn follow(
        &self,
        with_shim: bool,
        id: u64,
        address: &str,
        leader: &str,
        target: u64,
    ) -> Running {
        let (id, target) = (id.to_string(), target.to_string());
        let more = [
            (ID, id.as_str()),
            (ADDRESS, address),
            (LEADER, leader),
            (TARGET, target.as_str()),
        ];
        self.spawn("follow", with_shim, &more)
    }

    /// Remembers what a store has promised.
    pub fn remember(&mut self, said: &Said) {
        // Before anything was accepted it may say that it leads while its vote is on the way to the disk.
        if let (Some(term), false) = (said.term, said.accepted.is_empty()) {
            assert!(
                term > self.term,
                "term {} was led, and then {term}: a vote was forgotten",
                self.term
            );
            self.term = term;
        }
        self.accepted.extend(&said.accepted);
    }

    /// Lets a store work to its end.
    pub fn work(&mut self, count: u64) -> Said {
        let said = self.start(count).end();
        self.remember(&said);
        said
    }

    /// Opens the store without faults and looks for everything that was accepted.
    pub fn look(&self) -> Said {
        let list = self.folder.path().join("accepted");
        let numbers: Vec<_> = self.accepted.iter().map(u64::to_string).collect();
        std::fs::write(&list, numbers.join(" ")).unwrap();
        self.spawn("check", false, &[(LIST, list.to_str().unwrap())])
            .end()
    }

    /// Everything is there.
    pub fn whole(&self, after: &str) {
        let said = self.look();
        assert!(
            said.finished && said.lost.is_empty() && said.changed.is_empty(),
            "after {after}, of {} accepted: {said:?}",
            self.accepted.len()
        );
        assert!(
            said.term.unwrap() > self.term,
            "after {after} a vote was forgotten: {said:?}, before {}",
            self.term
        );
    }
}
