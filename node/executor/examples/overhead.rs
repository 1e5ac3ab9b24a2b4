//! What a sandbox costs: a Python program that prints one line, run in several ways in turn, then as fast as it goes.
//!
//! ```text
//! cargo run --release -p quorun-executor --example overhead [-- ROUNDS [IMAGE]]
//! ```
//!
//! - `bare`: the image's own python, started from here as a plain process (by chroot into a container's root; takes root,
//!   else the machine's python3)
//! - `execute`: through `Executor::execute` on a warm sandbox; `inside` is the part of it from fork to exit in the sandbox
//! - `zygote`: the same where an interpreter was started ahead and waits; and for Node, with its own `bare`
//! - `fresh`: the same with `max_jobs_per_sandbox = 1`: a new container for every job, made ahead of need
//! - `process`: the machine's own `/usr/bin/python3` through the process executor, and bare
//! - `isolate`, if `QUORUN_ISOLATE` names the program: the machine's python3 in isolate, the run alone and the whole cycle
//! - `docker run`: a container for each, a tenth of the rounds

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorun_executor::{Executor, Health, Kind, Labels, Options, Task};
use quorun_ledger::job::{JobId, JobSpec, Limits, SourceFile, StepLimits, Verdict};
use quorun_ledger::language::Language;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const PROGRAM: &str = "print('hello')";
const HOST_PYTHON: &str = "/usr/bin/python3";
const MEMORY_KB: u64 = 256 << 10;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(200, |text| text.parse().unwrap());
    let image = arguments
        .next()
        .unwrap_or_else(|| "quorun/sandbox:0.1.0".to_owned());
    let isolate = std::env::var("QUORUN_ISOLATE").ok();
    let folder = std::env::temp_dir().join(format!("quorun-overhead-{}", std::process::id()));
    let docker = started(Kind::Docker, &image, &folder.join("docker"), None, false).await;
    let zygotes = started(Kind::Docker, &image, &folder.join("zygotes"), None, true).await;
    let process = started(Kind::Process, &image, &folder.join("process"), None, false).await;
    let (idle, root) = root_of(&image);
    let root = root.as_deref();
    if root.is_none() {
        println!("bare is the machine's own python3, not the image's");
    }

    let mut figures = Figures::default();
    for round in 0..rounds {
        figures.note("1 bare", bare(root, PYTHON));
        let (outer, inner) = execute(&docker, &image, "python3").await;
        figures.note("2 execute, docker", outer);
        figures.note("3   inside it", inner);
        figures.note("4   the rest", outer.saturating_sub(inner));
        let (outer, inner) = execute(&zygotes, &image, "python3").await;
        figures.note("4a zygote, docker", outer);
        figures.note("4b   inside it", inner);
        figures.note("4c node, bare", bare(root, NODE));
        let (outer, _) = run(&docker, task(&image, NODE)).await;
        figures.note("4d node, execute", outer);
        // Two of a kind: an interpreter waits for the one that is like the one before.
        run(&zygotes, task(&image, NODE)).await;
        settle(&zygotes).await;
        let (outer, _) = run(&zygotes, task(&image, NODE)).await;
        figures.note("4e node, zygote", outer);
        run(&zygotes, task(&image, PYTHON)).await;
        figures.note("5 bare, the machine's", bare(None, PYTHON));
        let (outer, _) = execute(&process, &image, HOST_PYTHON).await;
        figures.note("6 execute, process", outer);
        if let Some(isolate) = &isolate {
            let (run, cycle) = isolated(isolate);
            figures.note("7 isolate, run alone", run);
            figures.note("8 isolate, whole cycle", cycle);
        }
        if round % 10 == 0 {
            figures.note("9 docker run", docker_run(&image));
        }
    }
    figures.print();
    println!("{} runs began in a zygote", zygotes.sandboxes()["zygotes"]);
    println!("idle: {}", idle_memory(&folder.join("docker")));
    for program in [PYTHON, NODE] {
        run(&zygotes, task(&image, program)).await;
        settle(&zygotes).await;
        let memory = idle_memory(&folder.join("zygotes"));
        println!(
            "idle, after {}, with zygotes: {memory}",
            program.interpreter
        );
    }
    run(&zygotes, task(&image, PYTHON)).await;
    process.shutdown().await;

    // Sustained: so many at a time, in alternation.
    for clients in [2, 4] {
        for _ in 0..3 {
            let each = rounds / clients;
            let ours = sustained(&docker, &image, clients, each).await;
            let ahead = sustained(&zygotes, &image, clients, each).await;
            let theirs = rate(clients, each, || {
                bare(root, PYTHON);
            });
            let fresh = rate(clients, each / 20 + 1, || {
                docker_run(&image);
            });
            println!(
                "{clients} at a time: execute {ours:.1}/s, with zygotes {ahead:.1}/s, bare {theirs:.1}/s (ratios {:.2}, {:.2}), docker run {fresh:.1}/s (ratio {:.1})",
                ours / theirs,
                ahead / theirs,
                ours / fresh
            );
        }
    }
    docker.shutdown().await;
    zygotes.shutdown().await;

    let once = started(Kind::Docker, &image, &folder.join("once"), Some(1), false).await;
    let mut figures = Figures::default();
    for _ in 0..rounds / 10 {
        // Made ahead of need: a client that comes now and then finds one.
        warm(&once, 2).await;
        figures.note(
            "fresh, one now and then",
            execute(&once, &image, "python3").await.0,
        );
    }
    figures.print();
    for clients in [1, 2] {
        for _ in 0..3 {
            let each = rounds / 20 + 1;
            let ours = sustained(&once, &image, clients, each).await;
            let theirs = rate(clients, each, || {
                docker_run(&image);
            });
            println!(
                "{clients} at a time, a fresh sandbox each: {ours:.1}/s, docker run {theirs:.1}/s (ratio {:.2})",
                ours / theirs
            );
        }
    }
    once.shutdown().await;
    let removed = Command::new("docker").args(["rm", "-f", &idle]).output();
    assert!(removed.unwrap().status.success());
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Times by what was timed.
#[derive(Default)]
struct Figures(BTreeMap<&'static str, Vec<Duration>>);

impl Figures {
    fn note(&mut self, name: &'static str, time: Duration) {
        self.0.entry(name).or_default().push(time);
    }

    fn print(&mut self) {
        println!(
            "{:24} {:>8} {:>8} {:>8} {:>8} {:>6}",
            "ms", "min", "p50", "p90", "p99", "n"
        );
        for (name, times) in &mut self.0 {
            times.sort();
            let at =
                |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
            println!(
                "{name:24} {:8.2} {:8.2} {:8.2} {:8.2} {:6}",
                at(0.0),
                at(0.5),
                at(0.9),
                at(0.99),
                times.len()
            );
        }
    }
}

/// Jobs per second through an executor, closed loop.
async fn sustained(executor: &Executor, image: &str, clients: usize, each: usize) -> f64 {
    let begin = Instant::now();
    let jobs = (0..clients).map(|_| async {
        for _ in 0..each {
            execute(executor, image, "python3").await;
        }
    });
    futures::future::join_all(jobs).await;
    (each * clients) as f64 / begin.elapsed().as_secs_f64()
}

/// How often per second something can be done by as many threads.
fn rate(clients: usize, each: usize, work: impl Fn() + Sync) -> f64 {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| (0..each).for_each(|_| work()));
        }
    });
    (each * clients) as f64 / begin.elapsed().as_secs_f64()
}

/// The machine's python3 in isolate: the run alone, and with a box made before and removed after it.
fn isolated(isolate: &str) -> (Duration, Duration) {
    let call = |arguments: &[&str]| {
        let output = Command::new(isolate).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let begin = Instant::now();
    call(&["--init"]);
    let inner = Instant::now();
    call(&["--run", "--", HOST_PYTHON, "-c", PROGRAM]);
    let run = inner.elapsed();
    call(&["--cleanup"]);
    (run, begin.elapsed())
}

async fn started(
    kind: Kind,
    image: &str,
    folder: &std::path::Path,
    max_jobs: Option<u32>,
    zygotes: bool,
) -> Executor {
    let labels = Labels {
        cluster: cluster(folder),
        node: 1,
        incarnation: 1,
    };
    let options = Options {
        images: vec![(image.to_owned(), MEMORY_KB)],
        max_jobs_per_sandbox: max_jobs.unwrap_or(u32::MAX),
        zygotes,
        ..Options::new(kind, 4, labels, folder.to_path_buf())
    };
    let (executor, upkeep) = quorun_executor::start(options).unwrap();
    tokio::spawn(upkeep);
    executor
        .health()
        .wait_for(|health| *health == Health::Ready)
        .await
        .unwrap();
    warm(&executor, 1).await;
    executor
}

/// The name of an executor's sandboxes.
fn cluster(folder: &std::path::Path) -> String {
    let name = folder.file_name().unwrap().to_str().unwrap();
    format!("overhead-{}-{name}", std::process::id())
}

/// What the idle sandboxes of an executor hold of their memory, as the engine counts it.
fn idle_memory(folder: &std::path::Path) -> String {
    let docker = |arguments: &[&str]| {
        let output = Command::new("docker").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let label = format!("label=quorun.cluster={}", cluster(folder));
    let ids = docker(&["ps", "-q", "--filter", &label]);
    let mut arguments = vec!["stats", "--no-stream", "--format", "{{.MemUsage}}"];
    arguments.extend(ids.lines());
    docker(&arguments).replace('\n', ", ")
}

/// Waits until so many sandboxes are warm.
async fn warm(executor: &Executor, wanted: u64) {
    while executor.sandboxes()["warm"] < wanted {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until no sandbox is busy, and what is done behind a job's back has been.
async fn settle(executor: &Executor) {
    while executor.sandboxes()["busy"] > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
}

async fn execute(executor: &Executor, image: &str, python: &str) -> (Duration, Duration) {
    run(
        executor,
        task(
            image,
            Program {
                interpreter: python,
                ..PYTHON
            },
        ),
    )
    .await
}

async fn run(executor: &Executor, task: Task) -> (Duration, Duration) {
    let (output, _) = mpsc::channel(1);
    let begin = Instant::now();
    let result = executor
        .execute(task, output, CancellationToken::new())
        .await
        .unwrap();
    let outer = begin.elapsed();
    assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
    (outer, Duration::from_micros(result.outcome.wall_us))
}

/// A program in one of the languages.
#[derive(Clone, Copy)]
struct Program<'a> {
    interpreter: &'a str,
    option: &'static str,
    source: &'static str,
    zygote: (&'static str, &'static str),
}

const PYTHON: Program<'static> = Program {
    interpreter: "python3",
    option: "-c",
    source: PROGRAM,
    zygote: ("PYTHONPATH", "/usr/local/lib/quorun/zygote/python"),
};

const NODE: Program<'static> = Program {
    interpreter: "node",
    option: "-e",
    source: "console.log('hello')",
    zygote: (
        "NODE_OPTIONS",
        "--require=/usr/local/lib/quorun/zygote/node.js",
    ),
};

fn bare(root: Option<&str>, program: Program<'_>) -> Duration {
    let begin = Instant::now();
    let mut command = match root {
        Some(root) => {
            let mut command = Command::new("chroot");
            command.args([root, program.interpreter]);
            command
        }
        None if program.interpreter == PYTHON.interpreter => Command::new(HOST_PYTHON),
        None => Command::new(program.interpreter),
    };
    let arguments = [program.option, program.source];
    let output = command.args(arguments).output().unwrap();
    assert_eq!(output.stdout, b"hello\n");
    begin.elapsed()
}

fn docker_run(image: &str) -> Duration {
    let begin = Instant::now();
    let status = Command::new("docker")
        .args(["run", "--rm", "--network", "none", "--memory", "256m"])
        .args([image, "python3", "-c", PROGRAM])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    begin.elapsed()
}

/// The image's files as the machine sees them: the root of a container that does nothing meanwhile. Its name, and the
/// folder if a program can be started there.
fn root_of(image: &str) -> (String, Option<String>) {
    let output = |command: &mut Command| {
        let output = command.output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let name = format!("quorun-overhead-{}", std::process::id());
    let mut idle = Command::new("docker");
    idle.args([
        "run",
        "-d",
        "--rm",
        "--network",
        "none",
        "--name",
        &name,
        image,
        "sleep",
        "3600",
    ]);
    output(&mut idle).expect("a container that sleeps");
    let folder = output(Command::new("docker").args([
        "inspect",
        "--format",
        "{{.GraphDriver.Data.MergedDir}}",
        &name,
    ]));
    let usable = folder.filter(|folder| {
        output(Command::new("chroot").args([folder, "python3", "-c", PROGRAM])).is_some()
    });
    (name, usable)
}

fn task(image: &str, program: Program<'_>) -> Task {
    let limits = Limits {
        cpu_ms: 2000,
        wall_ms: 20_000,
        memory_kb: MEMORY_KB,
        processes: 64,
        output_kb: 400,
        ..Limits::default()
    };
    Task {
        job: JobId::new(uuid::Uuid::now_v7()),
        attempt: 1,
        language: Language {
            name: program.interpreter.into(),
            aliases: Vec::new(),
            title: program.interpreter.into(),
            image: image.to_owned(),
            source: "main".into(),
            compile: None,
            run: vec![program.interpreter.into(), "{source}".into()],
            env: BTreeMap::new(),
            zygote: BTreeMap::from([(program.zygote.0.into(), program.zygote.1.into())]),
            extensions: Vec::new(),
            limits,
            compile_limits: StepLimits {
                cpu_ms: 0,
                wall_ms: 0,
            },
            example: String::new(),
            version_command: None,
        },
        spec: JobSpec {
            language: program.interpreter.into(),
            definition: None,
            files: vec![SourceFile {
                name: "main".into(),
                content: Bytes::from_static(program.source.as_bytes()),
            }],
            entrypoint: "main".into(),
            stdin: Bytes::new(),
            tests: Vec::new(),
            interactive: false,
            terminal: None,
            stop_on_failure: false,
            args: Vec::new(),
            env: BTreeMap::new(),
            limits,
            labels: Vec::new(),
            isolation_key: None,
            owner: None,
            retention_ms: 0,
            max_attempts: 3,
            ..JobSpec::default()
        },
        checker: None,
    }
}
