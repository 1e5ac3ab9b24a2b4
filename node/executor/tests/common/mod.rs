//! What the tests of both executors share: starting one, and jobs in a few languages.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::unwrap_used
)]

pub mod engine;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorun_executor::{Chunk, Executor, Health, Kind, Labels, Options, Task};
use quorun_ledger::job::{
    JobId, JobResult, JobSpec, Limits, SourceFile, StepLimits, TestCase, Verdict,
};
use quorun_ledger::language::Language;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The image of the Docker tests.
pub const IMAGE: &str = "quorun/sandbox:0.1.0";

/// Far longer than anything here takes; reached only when something hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A language that is called by the program that it runs.
pub fn language(name: &str, compile: Option<&[&str]>, run: &[&str]) -> Language {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Language {
        name: name.to_owned(),
        aliases: Vec::new(),
        title: name.to_owned(),
        image: IMAGE.to_owned(),
        source: "main".to_owned(),
        compile: compile.map(words),
        run: words(run),
        env: BTreeMap::new(),
        zygote: BTreeMap::new(),
        extensions: Vec::new(),
        limits: limits(),
        compile_limits: StepLimits {
            cpu_ms: 20_000,
            wall_ms: 60_000,
        },
        example: String::new(),
        version_command: None,
    }
}

/// Generous: a busy machine must not turn one verdict into another.
pub fn limits() -> Limits {
    Limits {
        cpu_ms: 20_000,
        wall_ms: 60_000,
        memory_kb: 256 << 10,
        processes: 64,
        output_kb: 400,
        ..Limits::default()
    }
}

pub fn python() -> Language {
    waiting(
        language("python", None, &["python3", "{source}"]),
        "PYTHONPATH",
        "/usr/local/lib/quorun/zygote/python",
    )
}

/// A language whose interpreter can be started ahead.
fn waiting(mut language: Language, variable: &str, value: &str) -> Language {
    language.zygote.insert(variable.into(), value.into());
    language
}

pub fn bash() -> Language {
    language("bash", None, &["bash", "{source}"])
}

pub fn perl() -> Language {
    language("perl", None, &["perl", "{source}"])
}

pub fn node() -> Language {
    waiting(
        language("javascript", None, &["node", "{source}"]),
        "NODE_OPTIONS",
        "--require=/usr/local/lib/quorun/zygote/node.js",
    )
}

pub fn c() -> Language {
    language(
        "c",
        Some(&["gcc", "-x", "c", "-o", "program", "{source}"]),
        &["./program"],
    )
}

/// The size of a terminal that never changes.
pub fn no_size() -> tokio::sync::watch::Receiver<quorun_ledger::job::Terminal> {
    let size = quorun_ledger::job::Terminal {
        rows: 24,
        columns: 80,
    };
    tokio::sync::watch::channel(size).1
}

/// A task that is changed before it is run.
pub fn task(language: Language, source: impl Into<Bytes>) -> Task {
    Task {
        job: JobId::new(uuid::Uuid::now_v7()),
        attempt: 1,
        spec: JobSpec {
            language: language.name.clone(),
            definition: None,
            files: vec![SourceFile {
                name: "main".to_owned(),
                content: source.into(),
            }],
            entrypoint: "main".to_owned(),
            stdin: Bytes::new(),
            tests: Vec::new(),
            interactive: false,
            terminal: None,
            stop_on_failure: false,
            args: Vec::new(),
            env: BTreeMap::new(),
            limits: limits(),
            labels: Vec::new(),
            isolation_key: None,
            owner: None,
            retention_ms: 0,
            max_attempts: 3,
            ..JobSpec::default()
        },
        checker: None,
        language,
    }
}

/// Runs a task that nobody watches.
pub async fn run(executor: &Executor, task: Task) -> JobResult {
    let (output, _) = mpsc::channel(1);
    tokio::time::timeout(
        PATIENCE,
        executor.execute(task, output, CancellationToken::new()),
    )
    .await
    .expect("the job came to an end")
    .expect("the executor is available")
}

/// Runs a task until its artefact is found: it is fetched after the job, off its path.
pub async fn until_cached(executor: &Executor, task: Task) -> JobResult {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let result = run(executor, task.clone()).await;
        if result.output.compile.as_ref().is_some_and(|c| c.cached) {
            return result;
        }
        assert!(tokio::time::Instant::now() < deadline, "never cached");
    }
}

/// Test cases of an input and what is expected of it.
pub fn cases(cases: &[(&str, Option<&str>)]) -> Vec<TestCase> {
    cases
        .iter()
        .map(|(stdin, expected)| TestCase {
            stdin: Bytes::copy_from_slice(stdin.as_bytes()),
            expected: expected.map(|text| Bytes::copy_from_slice(text.as_bytes())),
            ..TestCase::default()
        })
        .collect()
}

/// Runs a task and collects what is sent while it runs.
pub async fn run_watched(executor: &Executor, task: Task) -> (JobResult, Vec<Chunk>) {
    let (output, mut chunks) = mpsc::channel(4);
    let collect = async {
        let mut all = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            all.push(chunk);
        }
        all
    };
    let job = executor.execute(task, output, CancellationToken::new());
    let (result, chunks) = tokio::time::timeout(PATIENCE, async { tokio::join!(job, collect) })
        .await
        .expect("the job came to an end");
    (result.expect("the executor is available"), chunks)
}

/// That a job was accepted and printed this.
#[track_caller]
pub fn assert_prints(result: &JobResult, expected: &[u8]) {
    assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
    assert_eq!(
        String::from_utf8_lossy(&result.output.stdout),
        String::from_utf8_lossy(expected)
    );
    assert_eq!(result.output.stdout, expected);
}

/// The settings of a test's executor.
pub fn options(kind: Kind, data_dir: PathBuf) -> Options {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let labels = Labels {
        cluster: format!("test-{}", std::process::id()),
        node: NEXT.fetch_add(1, Ordering::Relaxed),
        incarnation: 7,
    };
    Options {
        images: vec![(IMAGE.to_owned(), 256 << 10)],
        ..Options::new(kind, 1, labels, data_dir)
    }
}

/// Starts an executor, waits until it is ready, lets the test use it, and shuts it down whatever the test did.
pub fn with_executor<F>(options: Options, test: impl FnOnce(Executor) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (executor, upkeep) = quorun_executor::start(options).expect("an executor");
        let upkeep = tokio::spawn(upkeep);
        ready(&executor).await;
        let result = tokio::spawn(test(executor.clone())).await;
        tokio::time::timeout(PATIENCE, executor.shutdown())
            .await
            .expect("the executor shuts down");
        upkeep.await.expect("the upkeep ends by itself");
        if let Err(panic) = result {
            std::panic::resume_unwind(panic.into_panic());
        }
    });
}

/// Waits until jobs can run.
pub async fn ready(executor: &Executor) {
    let mut health = executor.health();
    tokio::time::timeout(PATIENCE, health.wait_for(|health| *health == Health::Ready))
        .await
        .expect("the executor gets ready")
        .expect("the executor lives");
}

/// Waits until the sandboxes are in a state. Polls, because nothing tells of every change.
pub async fn sandboxes(executor: &Executor, wanted: impl Fn(&BTreeMap<String, u64>) -> bool) {
    let wait = async {
        while !wanted(&executor.sandboxes()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("sandboxes: {:?}", executor.sandboxes()));
}

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}
