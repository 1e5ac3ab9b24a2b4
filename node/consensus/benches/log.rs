//! What a proposal costs a cluster of one node on this disk: encoded, appended to the log, synced, applied, answered.
//!
//! ```text
//! cargo bench -p quorun-consensus
//! ```
//!
//! The folder is below TMPDIR; on a file system in memory, a sync costs nothing.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use quorun_consensus::{ClusterId, Handle, Member, Options, start};
use quorun_ledger::{Command, JobId, JobSpec, Limits, Reply, SourceFile};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::service::Routes;

/// How long a proposal may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    divan::main();
}

/// A node that leads itself, and the runtime that it lives in.
struct Node {
    runtime: Runtime,
    handle: Handle,
    next: AtomicU64,
    _folder: tempfile::TempDir,
}

impl Node {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = Member {
            peer: listener.local_addr().unwrap().to_string(),
            http: String::new(),
        };
        let members = BTreeMap::from([(1, own)]);
        let options = Options::new(1, ClusterId([7; 16]), members, folder.path().to_path_buf());
        let handle = runtime.block_on(async {
            // Nobody executes: what is submitted waits.
            let (_, eligible) = watch::channel(BTreeSet::new());
            let started = start(options, listener, |_| Routes::default(), eligible).await;
            let (handle, mut notices) = started.unwrap();
            tokio::spawn(async move { while notices.recv().await.is_some() {} });
            handle.bootstrap().await.unwrap();
            let mut status = handle.status();
            let leads = status.wait_for(|status| status.leading && status.quorum);
            leads.await.unwrap();
            handle
        });
        Self {
            runtime,
            handle,
            next: AtomicU64::new(1),
            _folder: folder,
        }
    }

    fn submit(&self, source: &Bytes) -> impl Future<Output = ()> + Send + 'static {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let spec = JobSpec {
            language: "python".to_owned(),
            definition: None,
            files: vec![SourceFile {
                name: "main.py".to_owned(),
                content: source.clone(),
            }],
            entrypoint: "main.py".to_owned(),
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
        let id = JobId::from_slice(&u128::from(number).to_be_bytes()).unwrap();
        let handle = self.handle.clone();
        async move {
            let command = Command::Submit {
                id,
                spec,
                key: None,
            };
            let deadline = Instant::now() + PATIENCE;
            let reply = handle.propose(command, deadline.into()).await;
            assert!(matches!(reply, Ok(Reply::Submitted { .. })), "{reply:?}");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.runtime.block_on(self.handle.shutdown());
    }
}

/// One at a time: a sync for each.
#[divan::bench(args = [64, 1024, 65_536], sample_count = 50, sample_size = 10)]
fn one_at_a_time(bencher: Bencher<'_, '_>, source: usize) {
    let node = Node::start();
    let source = Bytes::from(vec![b'x'; source]);
    bencher
        .counter(ItemsCount::new(1u64))
        .bench_local(|| node.runtime.block_on(node.submit(&source)));
}

/// Many at a time: they share batches, and so do the syncs.
#[divan::bench(args = [16, 256, 1024], sample_count = 20, sample_size = 1)]
fn at_a_time(bencher: Bencher<'_, '_>, together: usize) {
    let node = Node::start();
    let source = Bytes::from(vec![b'x'; 1024]);
    bencher.counter(ItemsCount::new(together)).bench_local(|| {
        let all: Vec<_> = (0..together)
            .map(|_| node.runtime.spawn(node.submit(&source)))
            .collect();
        node.runtime.block_on(async {
            for one in all {
                one.await.unwrap();
            }
        });
    });
}
