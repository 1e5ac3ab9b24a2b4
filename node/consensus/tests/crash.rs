//! A node in a process of its own that is killed again and again.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{CLUSTER, PATIENCE, job, soon, submit};
use quorun_consensus::{Handle, Member, Notice, Options};
use tokio::sync::watch;
use tonic::service::Routes;

const NAME: &str = "nothing_acknowledged_is_lost_when_the_process_is_killed";
const DIR: &str = "QUORUN_CRASH_DIR";
const FIRST: &str = "QUORUN_CRASH_FIRST";

/// Starts the node. It says whether it has applied the log beyond what the ledger had on disk.
async fn start(data_dir: &Path) -> (Handle, bool) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let member = Member {
        peer: listener.local_addr().unwrap().to_string(),
        http: String::new(),
    };
    let members = BTreeMap::from([(1, member)]);
    let mut options = Options::new(1, CLUSTER, members, data_dir.to_owned());
    options.heartbeat = Duration::from_millis(30);
    options.election_min = Duration::from_millis(100);
    options.election_max = Duration::from_millis(200);
    options.snapshot_after = 30;
    let (_, eligible) = watch::channel(BTreeSet::new());
    let started = quorun_consensus::start(options, listener, |_| Routes::default(), eligible).await;
    let (handle, mut notices) = started.unwrap();
    let resumed = notices.try_recv() == Ok(Notice::Resumed);
    handle.bootstrap().await.unwrap();
    (handle, resumed)
}

/// Proposes job after job, and says which were accepted, until it is killed.
async fn child(data_dir: &Path, first: u64) {
    let (handle, resumed) = start(data_dir).await;
    if resumed {
        println!("\nresumed");
    }
    let mut proposals = tokio::task::JoinSet::new();
    let mut numbers = first..;
    loop {
        while proposals.len() < 12 {
            let number = numbers.next().unwrap();
            let handle = handle.clone();
            proposals.spawn(async move {
                let size = if number % 40 == 0 { 60_000 } else { 400 };
                handle.propose(submit(number, size), soon()).await.unwrap();
                number
            });
        }
        let number = proposals.join_next().await.unwrap().unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "\naccepted {number}").unwrap();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    if let Some(dir) = std::env::var_os(DIR) {
        let first = std::env::var(FIRST).unwrap().parse().unwrap();
        runtime().block_on(child(dir.as_ref(), first));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut accepted, mut resumed) = (BTreeSet::new(), 0);
    for (round, kill_after) in [1, 400, 35, 3, 150, 90, 20, 260].into_iter().enumerate() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(DIR, dir.path())
            .env(FIRST, (round * 10_000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            let line = line.unwrap();
            resumed += usize::from(line == "resumed");
            if let Some(number) = line.strip_prefix("accepted ") {
                accepted.insert(number.parse::<u64>().unwrap());
                seen += 1;
                if seen == kill_after {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(
            seen >= kill_after,
            "round {round}: the child has ended after {seen}"
        );
    }
    runtime().block_on(async {
        let (handle, _) = start(dir.path()).await;
        tokio::time::timeout(PATIENCE, handle.linearize(soon()))
            .await
            .unwrap()
            .unwrap();
        for number in &accepted {
            let found = handle.view().spec(job(*number)).unwrap();
            assert!(found.is_some(), "job {number} was accepted and is gone");
        }
        handle.shutdown().await;
        let (handle, resumed) = start(dir.path()).await;
        assert!(!resumed, "behind a good end there is nothing to apply");
        handle.shutdown().await;
    });
    assert!(accepted.len() >= 959);
    assert!(resumed > 0, "no kill has left anything to apply");
}
