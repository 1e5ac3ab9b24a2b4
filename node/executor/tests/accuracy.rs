//! What Quorun says that a program used, against what GNU time says of the same program run bare: within 10%.
//!
//! `cargo test -p quorun-executor --test accuracy -- --nocapture` prints the figures.
//!
//! Bare means: by a few lines of C that do as GNU time does (fork, exec, wait4), in the same image (in an idle container
//! of it, with the same files), because the image has no GNU time and the test shall not need it either; where the machine
//! has it, the two are compared. Without an engine the test of the containers says so and does nothing, unless
//! QUORUN_REQUIRE_ENGINE is 1.

#![allow(clippy::unwrap_used)]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::engine::{docker, engine};
use quorun_executor::{Executor, Kind, Task};
use quorun_ledger::job::Verdict;
use tempfile::TempDir;

const BARE: &str = include_str!("accuracy/bare.c");
const SHAPES: &str = include_str!("accuracy/shapes.c");

/// How far apart the figures may be, percent.
const TOLERANCE: f64 = 10.0;

/// A process has what it inherited from the warden at the fork, some 650 KiB, before it becomes the program: one that is
/// smaller than that is reported as that large. Nothing that is linked dynamically is.
const SMALL_KB: f64 = 1024.0;

/// Less CPU time than this is not compared: starting and ending a process is part of one figure and not of the other.
const CPU_FROM_US: f64 = 100_000.0;

/// A machine that is busy with something else lets a program take longer, sometimes: the least of several rounds counts, and
/// there are more rounds as long as it is not near enough.
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);

/// What a program used.
#[derive(Clone, Copy, Debug)]
struct Usage {
    memory_kb: f64,
    cpu_us: f64,
}

impl Usage {
    const MOST: Self = Self {
        memory_kb: f64::MAX,
        cpu_us: f64::MAX,
    };

    fn least(self, other: Self) -> Self {
        Self {
            memory_kb: self.memory_kb.min(other.memory_kb),
            cpu_us: self.cpu_us.min(other.cpu_us),
        }
    }

    /// How much more this is than `other`, percent: memory, and CPU time where there is enough of it.
    fn beyond(self, other: Self) -> (f64, Option<f64>) {
        let percent = |ours: f64, theirs: f64| 100.0 * (ours / theirs - 1.0);
        (
            percent(self.memory_kb, other.memory_kb),
            (other.cpu_us >= CPU_FROM_US).then(|| percent(self.cpu_us, other.cpu_us)),
        )
    }

    fn is_near(self, other: Self) -> bool {
        let (memory, cpu) = self.beyond(other);
        let small = self.memory_kb.max(other.memory_kb) < SMALL_KB;
        (small || memory.abs() <= TOLERANCE) && cpu.is_none_or(|cpu| cpu.abs() <= TOLERANCE)
    }
}

/// A program that is run both ways.
struct Shape {
    name: &'static str,
    /// The compiled one with these arguments; or, for python, its source.
    arguments: &'static [&'static str],
    python: Option<&'static str>,
    stdin: usize,
}

const fn compiled(name: &'static str, arguments: &'static [&'static str]) -> Shape {
    Shape {
        name,
        arguments,
        python: None,
        stdin: 0,
    }
}

const fn python(name: &'static str, source: &'static str) -> Shape {
    Shape {
        name,
        arguments: &[],
        python: Some(source),
        stdin: 0,
    }
}

const ALL: [Shape; 9] = [
    compiled("C, nothing", &[]),
    Shape {
        stdin: 1 << 20,
        ..compiled("C, nothing, with 1 MiB of stdin", &[])
    },
    compiled("C, touches 50 MiB", &["touch", "50"]),
    compiled("C, touches 150 MiB", &["touch", "150"]),
    compiled("C, computes for 1 s", &["compute", "1000"]),
    compiled("C, calls the kernel for 0.5 s", &["call", "500"]),
    compiled(
        "C, two children of 40 MiB and 0.4 s each",
        &["children", "2"],
    ),
    python("Python, nothing", "pass"),
    python(
        "Python, a list of 3,000,000 numbers",
        "numbers = [n * n for n in range(3_000_000)]; print(sum(numbers))",
    ),
];

/// The programs, compiled.
struct Programs {
    folder: TempDir,
    shapes: Bytes,
}

impl Programs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, source) in [("bare", BARE), ("shapes", SHAPES)] {
            let file = folder.path().join(format!("{name}.c"));
            fs::write(&file, source).unwrap();
            let output = Command::new("gcc")
                .args(["-O1", "-static", "-o"])
                .arg(folder.path().join(name))
                .arg(&file)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        let shapes = fs::read(folder.path().join("shapes")).unwrap().into();
        Self { folder, shapes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn task(&self, shape: &Shape) -> Task {
        let mut task = match shape.python {
            Some(source) => common::task(common::python(), source),
            None => {
                // Files come without the right to be executed.
                let language = common::language(
                    "program",
                    Some(&["chmod", "755", "{source}"]),
                    &["./{source}"],
                );
                common::task(language, self.shapes.clone())
            }
        };
        task.spec.args = shape.arguments.iter().map(|a| (*a).to_owned()).collect();
        task.spec.stdin = vec![b'x'; shape.stdin].into();
        task
    }
}

/// Where programs run bare.
trait Bare {
    /// Something that runs `bare`, which runs the command behind it.
    fn command(&self) -> Command;

    /// Where the compiled program is there.
    fn shapes(&self) -> PathBuf;

    /// Where a python program is put there.
    fn python(&self, source: &str) -> PathBuf;

    fn run(&self, shape: &Shape) -> Usage {
        let mut command = self.command();
        match shape.python {
            Some(source) => command.arg("python3").arg(self.python(source)),
            None => command.arg(self.shapes()),
        };
        let output = command.args(shape.arguments).output().unwrap();
        assert!(output.status.success(), "{}: {output:?}", shape.name);
        let text = String::from_utf8(output.stdout).unwrap();
        let (memory, cpu) = text.trim().split_once(' ').unwrap();
        Usage {
            memory_kb: memory.parse().unwrap(),
            cpu_us: cpu.parse().unwrap(),
        }
    }
}

/// On this machine.
struct Here<'a>(&'a Programs);

impl Bare for Here<'_> {
    fn command(&self) -> Command {
        Command::new(self.0.path("bare"))
    }

    fn shapes(&self) -> PathBuf {
        self.0.path("shapes")
    }

    fn python(&self, source: &str) -> PathBuf {
        let file = self.0.path("main.py");
        fs::write(&file, source).unwrap();
        file
    }
}

/// In a container of the image that does nothing else; removed with this value.
struct Container {
    id: String,
    folder: TempDir,
}

impl Container {
    fn new(programs: &Programs) -> Self {
        let id = docker(&[
            "run",
            "-d",
            "--rm",
            "--network=none",
            common::IMAGE,
            "sleep",
            "600",
        ]);
        let container = Self {
            id,
            folder: tempfile::tempdir().unwrap(),
        };
        container.put(&programs.path("bare"));
        container.put(&programs.path("shapes"));
        container
    }

    fn put(&self, file: &Path) {
        docker(&["cp", file.to_str().unwrap(), &format!("{}:/opt/", self.id)]);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("docker")
            .args(["rm", "-f", "-v", &self.id])
            .output();
    }
}

impl Bare for Container {
    fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.args(["exec", &self.id, "/opt/bare"]);
        command
    }

    fn shapes(&self) -> PathBuf {
        "/opt/shapes".into()
    }

    fn python(&self, source: &str) -> PathBuf {
        let file = self.folder.path().join("main.py");
        fs::write(&file, source).unwrap();
        self.put(&file);
        "/opt/main.py".into()
    }
}

async fn execute(executor: &Executor, task: Task) -> Usage {
    let result = common::run(executor, task).await;
    assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
    Usage {
        memory_kb: result.outcome.memory_kb as f64,
        cpu_us: result.outcome.cpu_us as f64,
    }
}

/// Runs every shape both ways, in turn, until the figures are near each other or it has taken too long.
async fn compare(executor: &Executor, programs: &Programs, bare: &impl Bare) {
    let mut table = format!(
        "{:42} {:>9} {:>9} {:>7}   {:>9} {:>9} {:>7}   rounds\n",
        "program", "bare KiB", "Quorun", "", "bare ms", "Quorun", ""
    );
    let mut far = Vec::new();
    for shape in &ALL {
        let deadline = Instant::now() + PATIENCE;
        let (mut ours, mut theirs) = (Usage::MOST, Usage::MOST);
        let mut rounds = 0;
        while rounds < ROUNDS || (!ours.is_near(theirs) && Instant::now() < deadline) {
            theirs = theirs.least(bare.run(shape));
            ours = ours.least(execute(executor, programs.task(shape)).await);
            rounds += 1;
        }
        let (memory, cpu) = ours.beyond(theirs);
        let cpu = cpu.map_or_else(String::new, |cpu| format!("{cpu:+.1}%"));
        writeln!(
            table,
            "{:42} {:9} {:9} {:>+6.1}%   {:9.1} {:9.1} {:>7}   {rounds}",
            shape.name,
            theirs.memory_kb,
            ours.memory_kb,
            memory,
            theirs.cpu_us / 1000.0,
            ours.cpu_us / 1000.0,
            cpu,
        )
        .unwrap();
        if !ours.is_near(theirs) {
            far.push(shape.name);
        }
    }
    println!("{table}");
    assert!(
        far.is_empty(),
        "further than {TOLERANCE}%: {far:?}\n{table}"
    );
}

#[test]
fn figures_of_containers_are_those_of_the_bare_programs() {
    if !engine() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = common::options(Kind::Docker, folder.path().to_path_buf());
    common::with_executor(options, |executor| async move {
        let programs = Programs::new();
        let bare = Container::new(&programs);
        compare(&executor, &programs, &bare).await;
    });
}

#[test]
fn figures_of_plain_processes_are_those_of_the_bare_programs() {
    let folder = tempfile::tempdir().unwrap();
    let options = common::options(Kind::Process, folder.path().to_path_buf());
    common::with_executor(options, |executor| async move {
        let programs = Programs::new();
        compare(&executor, &programs, &Here(&programs)).await;
    });
}

/// That the few lines of C stand for GNU time.
#[test]
fn bare_figures_are_those_of_gnu_time() {
    const GNU_TIME: &str = "/usr/bin/time";
    if !Path::new(GNU_TIME).exists() {
        eprintln!("SKIPPED: {GNU_TIME} is not there to compare with; the package is called time");
        return;
    }
    let programs = Programs::new();
    let bare = Here(&programs);
    for shape in &ALL {
        let deadline = Instant::now() + PATIENCE;
        let (mut ours, mut theirs) = (Usage::MOST, Usage::MOST);
        while !ours.is_near(theirs) {
            assert!(
                Instant::now() < deadline,
                "{}: {ours:?} is far from GNU time's {theirs:?}",
                shape.name
            );
            ours = ours.least(bare.run(shape));
            let report = programs.path("report");
            let mut command = Command::new(GNU_TIME);
            command.args(["-f", "%M %U %S", "-o"]).arg(&report);
            match shape.python {
                Some(source) => command.arg("python3").arg(bare.python(source)),
                None => command.arg(bare.shapes()),
            };
            let output = command.args(shape.arguments).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let report = fs::read_to_string(report).unwrap();
            let figures: Vec<f64> = report
                .split_whitespace()
                .map(|word| word.parse().unwrap())
                .collect();
            theirs = theirs.least(Usage {
                memory_kb: figures[0],
                cpu_us: (figures[1] + figures[2]) * 1e6,
            });
        }
    }
}
