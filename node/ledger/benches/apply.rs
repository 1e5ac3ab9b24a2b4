//! What one job costs the rules of the ledger: submitted and placed in one batch, completed in the next, on a ledger that
//! holds so many finished jobs already. The cost must not depend on their number.
//!
//! ```text
//! cargo bench -p quorun-ledger
//! ```

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use quorun_ledger::{
    Batch, Command, JobId, JobResult, JobSpec, Limits, MemoryStore, NodeId, Outcome, Output,
    SourceFile, Transaction, Verdict, codec,
};

/// Jobs that the ledger holds before.
const HELD: [u64; 3] = [1_000, 100_000, 1_000_000];
/// The node that gets all jobs.
const NODE: NodeId = 1;
/// Jobs of one batch.
const TOGETHER: u64 = 64;

fn main() {
    divan::main();
}

/// A ledger with finished jobs, and the number of the next one.
#[derive(Clone)]
struct Ledger {
    store: MemoryStore,
    next: u64,
}

impl Ledger {
    fn holding(jobs: u64) -> Self {
        let mut ledger = Self {
            store: MemoryStore::default(),
            next: 0,
        };
        ledger.apply(vec![Command::NodeUp {
            node: NODE,
            incarnation: 1,
            http: "127.0.0.1:8080".to_owned(),
            slots: 1024,
            languages: BTreeSet::from(["python".to_owned()]),
            version: "bench".to_owned(),
        }]);
        while ledger.next < jobs {
            ledger.jobs(TOGETHER.min(jobs - ledger.next));
        }
        ledger
    }

    /// Submits so many jobs in one batch, and completes them in the next.
    fn jobs(&mut self, count: u64) {
        let numbers = self.next..self.next + count;
        self.next += count;
        self.apply(numbers.clone().map(submit).collect());
        self.apply(numbers.map(complete).collect());
    }

    fn apply(&mut self, commands: Vec<Command>) {
        let mut transaction = Transaction::begin(&self.store).unwrap();
        let applied = transaction.apply(batch(self.next, commands)).unwrap();
        black_box(applied);
        let writes = transaction.finish().unwrap();
        self.store.commit(writes);
    }
}

fn batch(time: u64, commands: Vec<Command>) -> Batch {
    Batch {
        time_ms: 1_800_000_000_000 + time,
        eligible: BTreeSet::from([NODE]),
        queue: None,
        commands,
    }
}

fn id(number: u64) -> JobId {
    JobId::from_slice(&u128::from(number).to_be_bytes()).unwrap()
}

fn submit(number: u64) -> Command {
    let spec = JobSpec {
        language: "python".to_owned(),
        definition: None,
        files: vec![SourceFile {
            name: "main.py".to_owned(),
            content: Bytes::from_static(b"print('hello')\n"),
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
    Command::Submit {
        id: id(number),
        spec,
        key: None,
    }
}

fn complete(number: u64) -> Command {
    Command::Complete {
        job: id(number),
        attempt: 1,
        node: NODE,
        result: JobResult {
            outcome: Outcome {
                verdict: Verdict::Accepted,
                exit_code: Some(0),
                signal: None,
                cpu_us: 12_345,
                wall_us: 15_678,
                memory_kb: 9_216,
                message: None,
                judged: None,
            },
            output: Output {
                stdout: Bytes::from_static(b"hello\n"),
                ..Output::default()
            },
        },
    }
}

/// Each job in batches of its own.
#[divan::bench(args = HELD)]
fn one_job(bencher: Bencher<'_, '_>, held: u64) {
    let mut ledger = Ledger::holding(held);
    bencher
        .counter(ItemsCount::new(1u64))
        .bench_local(|| ledger.jobs(1));
}

/// Jobs that come together share their batches.
#[divan::bench(args = HELD)]
fn jobs_together(bencher: Bencher<'_, '_>, held: u64) {
    let mut ledger = Ledger::holding(held);
    bencher
        .counter(ItemsCount::new(TOGETHER))
        .bench_local(|| ledger.jobs(TOGETHER));
}

/// A batch of submissions as it stands in the log.
#[divan::bench]
fn encode_submissions(bencher: Bencher<'_, '_>) {
    let submissions = batch(0, (0..TOGETHER).map(submit).collect());
    bencher
        .counter(ItemsCount::new(TOGETHER))
        .bench(|| codec::encode(black_box(&submissions)));
}

/// The way back.
#[divan::bench]
fn decode_submissions(bencher: Bencher<'_, '_>) {
    let submissions = codec::encode(&batch(0, (0..TOGETHER).map(submit).collect()));
    bencher
        .counter(ItemsCount::new(TOGETHER))
        .bench(|| codec::decode::<Batch>(black_box(&submissions)).unwrap());
}
