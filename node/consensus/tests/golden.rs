//! Data folders that earlier programs have written: each must open, and show what it then showed.
//!
//! `golden/NAME.data` is a data folder in a form that packs well (sled's files are large and mostly empty): path, length,
//! and the pieces of the content, once where they repeat themselves. `golden/NAME.expected` is what the folder holds: one
//! line for each job and one for the state. After a change of a format a new pair is made with another name, and the old
//! ones stay:
//!
//! ```sh
//! QUORUN_GOLDEN=v1 cargo test -p quorun-consensus --test golden -- --ignored a_new_golden_folder
//! ```

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{CLUSTER, PATIENCE, complete, job, node_up, soon, submit};
use quorun_consensus::{Handle, Member, Options};
use quorun_ledger::{Command, JobId, JobState, NodeId, Owner, RULES};
use tokio::sync::watch;
use tonic::service::Routes;

const JOBS: u64 = 24;
const PIECE: usize = 512;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

async fn start(data_dir: &Path) -> (Handle, watch::Sender<BTreeSet<NodeId>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // The folder remembers the first address; nobody else is there to be told.
    let member = Member {
        peer: listener.local_addr().unwrap().to_string(),
        http: String::new(),
    };
    let mut options = Options::new(
        1,
        CLUSTER,
        BTreeMap::from([(1, member)]),
        data_dir.to_owned(),
    );
    options.heartbeat = Duration::from_millis(30);
    options.election_min = Duration::from_millis(100);
    options.election_max = Duration::from_millis(200);
    options.snapshot_after = 15;
    let (sender, eligible) = watch::channel(BTreeSet::new());
    let started = quorun_consensus::start(options, listener, |_| Routes::default(), eligible).await;
    let (handle, _) = started.unwrap();
    handle.bootstrap().await.unwrap();
    tokio::time::timeout(PATIENCE, handle.linearize(soon()))
        .await
        .unwrap()
        .unwrap();
    (handle, sender)
}

/// What a node's ledger holds, in words. Its hash is over every record of it.
fn describe(handle: &Handle) -> String {
    let mut text = String::new();
    let view = handle.view();
    for number in 0..JOBS {
        let found = view.job(job(number)).unwrap().unwrap();
        let spec = view.spec(job(number)).unwrap().unwrap();
        let size: usize = spec.files.iter().map(|file| file.content.len()).sum();
        writeln!(text, "job {number}: {:?}, {size} bytes", found.state).unwrap();
    }
    writeln!(text, "state hash {}", handle.state().unwrap().1).unwrap();
    text
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn put(into: &mut Vec<u8>, bytes: &[u8]) {
    into.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    into.extend_from_slice(bytes);
}

fn take<'a>(from: &mut &'a [u8]) -> &'a [u8] {
    let (length, rest) = from.split_first_chunk::<8>().unwrap();
    let length = usize::try_from(u64::from_be_bytes(*length)).unwrap();
    let (bytes, rest) = rest.split_at(length);
    *from = rest;
    bytes
}

fn take_number(from: &mut &[u8]) -> usize {
    let number = u64::from_be_bytes(take(from).try_into().unwrap());
    usize::try_from(number).unwrap()
}

/// A folder as one row of bytes, without what repeats itself.
fn pack(dir: &Path) -> Vec<u8> {
    let mut packed = Vec::new();
    for path in files(dir) {
        let content = fs::read(&path).unwrap();
        let name = path.strip_prefix(dir).unwrap().to_str().unwrap();
        put(&mut packed, name.as_bytes());
        put(&mut packed, &(content.len() as u64).to_be_bytes());
        // Where a piece lies, how often it follows itself, and what it is.
        let mut pieces: Vec<(u64, u64, &[u8])> = Vec::new();
        for (number, piece) in (0..).zip(content.chunks(PIECE)) {
            match pieces.last_mut() {
                Some((_, count, last)) if *last == piece => *count += 1,
                _ => pieces.push((number, 1, piece)),
            }
        }
        put(&mut packed, &(pieces.len() as u64).to_be_bytes());
        for (number, count, piece) in pieces {
            put(&mut packed, &number.to_be_bytes());
            put(&mut packed, &count.to_be_bytes());
            put(&mut packed, piece);
        }
    }
    packed
}

fn unpack(mut packed: &[u8], dir: &Path) {
    while !packed.is_empty() {
        let path = dir.join(str::from_utf8(take(&mut packed)).unwrap());
        let mut content = vec![0; take_number(&mut packed)];
        for _ in 0..take_number(&mut packed) {
            let at = take_number(&mut packed) * PIECE;
            let count = take_number(&mut packed);
            let piece = take(&mut packed);
            for place in (at..).step_by(PIECE).take(count) {
                content[place..place + piece.len()].copy_from_slice(piece);
            }
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "makes a new golden folder; see the head of the file"]
async fn a_new_golden_folder() {
    let name = std::env::var("QUORUN_GOLDEN").expect("QUORUN_GOLDEN: its name");
    let dir = tempfile::tempdir().unwrap();
    let (handle, _) = start(dir.path()).await;
    let propose = async |command: Command| handle.propose(command, soon()).await.unwrap();
    propose(node_up(1, 1)).await;
    for number in 0..JOBS {
        let size = if number == 10 { 20_000 } else { 200 };
        propose(submit(number, size)).await;
        if number % 3 == 0 {
            // Refused where it was not assigned, which is as good here.
            propose(complete(number, 1, 1)).await;
        }
        if number % 7 == 1 {
            propose(Command::Cancel { job: job(number) }).await;
        }
    }
    let expected = describe(&handle);
    handle.shutdown().await;
    fs::create_dir_all(golden()).unwrap();
    fs::write(golden().join(format!("{name}.data")), pack(dir.path())).unwrap();
    fs::write(golden().join(format!("{name}.expected")), expected).unwrap();
}

/// What waits is served in its order, also when owners have their turns from now on, and what comes then behind it.
async fn goes_on(handle: &Handle, eligible: &watch::Sender<BTreeSet<NodeId>>) {
    let propose = async |command: Command| handle.propose(command, soon()).await.unwrap();
    propose(submit(JOBS, 100)).await;
    let queued = |number: &u64| {
        let found = handle.view().job(job(*number)).unwrap().unwrap();
        found.state == JobState::Queued
    };
    let mut expected: Vec<JobId> = (0..=JOBS).filter(queued).map(job).collect();
    assert!(expected.len() > 10);
    let limit = u32::MAX;
    for _ in 0..2 {
        propose(Command::OrderByAge { limit }).await;
    }
    for _ in 0..2 {
        propose(Command::Reweigh { limit }).await;
    }
    propose(Command::Begin { rules: RULES }).await;
    assert_eq!(handle.view().counters().unwrap().rules, RULES);
    for (number, owner) in (JOBS + 1..).zip(["a", "a", "a", "b"]) {
        let mut command = submit(number, 100);
        if let Command::Submit { spec, .. } = &mut command {
            spec.owner = Some(Owner {
                name: owner.to_owned(),
                ..Owner::default()
            });
        }
        propose(command).await;
    }
    expected.extend([1, 4, 2, 3].map(|behind| job(JOBS + behind)));
    let mut up = node_up(1, 2);
    if let Command::NodeUp { slots, .. } = &mut up {
        *slots = 1;
    }
    eligible.send_replace([1].into());
    propose(up).await;
    let mut served = Vec::new();
    while let [(next, attempt)] = handle.view().attempts(1).unwrap()[..] {
        served.push(next);
        let number = u64::from_be_bytes(next.as_bytes()[8..].try_into().unwrap());
        propose(complete(number, attempt, 1)).await;
    }
    assert_eq!(served, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_earlier_programs_have_written_is_read() {
    let mut count = 0;
    for path in files(&golden()) {
        if path.extension().is_none_or(|ext| ext != "data") {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        unpack(&fs::read(&path).unwrap(), dir.path());
        let expected = fs::read_to_string(path.with_extension("expected")).unwrap();
        let (handle, eligible) = start(dir.path()).await;
        assert_eq!(describe(&handle), expected, "{}", path.display());
        goes_on(&handle, &eligible).await;
        handle.shutdown().await;
        count += 1;
    }
    assert!(count > 0, "there is no golden folder");
}
