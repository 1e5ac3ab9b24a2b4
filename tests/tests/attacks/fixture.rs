//! A sandbox to attack, and the ordinary job that comes after an attack.
//!
//! Starting an executor with its container takes half a second, so the tests hand theirs on: whoever begins takes one that
//! is idle or starts one, and whoever ends while nobody else is at work stops them all. So each test has a sandbox for
//! itself, as many are started as tests run at a time, and none is left at the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorun_executor::{Executor, Health, Kind, Labels, Options, Task};
use quorun_ledger::job::{JobId, JobResult, JobSpec, Limits, SourceFile, StepLimits, Verdict};
use quorun_ledger::language::Language;
use quorun_tests::engine::Sweep;
use quorun_tests::{Engine, LONG, eventually};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::ZYGOTES;

const IMAGE: &str = "quorun/sandbox:0.1.0";

/// Enough for interpreters and gcc, and little enough to be used up at once.
const SMALL_KB: u64 = 128 << 10;

/// What the larger compilers need.
const LARGE_KB: u64 = 512 << 10;

/// Seconds that a job may take beyond its own limits until the test takes it for hung.
const SLACK: Duration = Duration::from_secs(90);

/// What is kept of each stream, KiB.
pub(crate) const OUTPUT_KB: u64 = 64;

/// Processes and threads of a job.
pub(crate) const PROCESSES: u32 = 64;

/// How a program is made and run; a single source is called like the first word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Toolchain {
    source: &'static str,
    compile: Option<&'static [&'static str]>,
    run: &'static [&'static str],
}

const PYTHON: Toolchain = interpreter("main.py", &["python3", "{source}"]);
const PERL: Toolchain = interpreter("main.pl", &["perl", "{source}"]);
const BASH: Toolchain = interpreter("main.sh", &["bash", "{source}"]);
const DASH: Toolchain = interpreter("main.dash", &["dash", "{source}"]);
const C: Toolchain = compiled(
    "main.c",
    &["gcc", "-std=gnu17", "-w", "-o", "main", "{source}"],
);
const CPP: Toolchain = compiled(
    "main.cpp",
    &["g++", "-std=gnu++20", "-w", "-o", "main", "{source}"],
);
const RUST: Toolchain = compiled(
    "main.rs",
    &["rustc", "--edition", "2021", "-o", "main", "{source}"],
);

/// A compile step that is as free as a run step: what a compiler might be talked into.
const SCRIPTS: Toolchain = Toolchain {
    source: "build.sh",
    compile: Some(&["bash", "{source}"]),
    run: &["dash", "run.sh"],
};

impl Toolchain {
    /// What has its interpreter wait.
    fn zygote(self) -> BTreeMap<String, String> {
        let hook = ("PYTHONPATH", "/usr/local/lib/quorun/zygote/python");
        let hook = (ZYGOTES && self.source == PYTHON.source).then_some(hook);
        hook.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect()
    }
}

const fn interpreter(source: &'static str, run: &'static [&'static str]) -> Toolchain {
    Toolchain {
        source,
        compile: None,
        run,
    }
}

const fn compiled(source: &'static str, compile: &'static [&'static str]) -> Toolchain {
    Toolchain {
        source,
        compile: Some(compile),
        run: &["./main"],
    }
}

/// A job, with limits that a busy machine does not reach unless the test lowers them.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    toolchain: Toolchain,
    files: Vec<SourceFile>,
    stdin: Bytes,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    times: StepLimits,
    compile_times: StepLimits,
    output_kb: u64,
    outputs: Vec<String>,
    cancelled: bool,
}

impl Job {
    fn new(toolchain: Toolchain, source: impl Into<Bytes>) -> Self {
        let patient = StepLimits {
            cpu_ms: 20_000,
            wall_ms: 60_000,
        };
        Self {
            toolchain,
            files: Vec::new(),
            stdin: Bytes::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
            times: patient,
            compile_times: patient,
            output_kb: OUTPUT_KB,
            outputs: Vec::new(),
            cancelled: false,
        }
        .file(toolchain.source, source)
    }

    pub(crate) fn python(source: impl Into<Bytes>) -> Self {
        Self::new(PYTHON, source)
    }

    pub(crate) fn perl(source: impl Into<Bytes>) -> Self {
        Self::new(PERL, source)
    }

    pub(crate) fn bash(source: impl Into<Bytes>) -> Self {
        Self::new(BASH, source)
    }

    /// A shell that leaves all signals as it finds them, and starts in a millisecond.
    pub(crate) fn dash(source: impl Into<Bytes>) -> Self {
        Self::new(DASH, source)
    }

    pub(crate) fn c(source: impl Into<Bytes>) -> Self {
        Self::new(C, source)
    }

    pub(crate) fn cpp(source: impl Into<Bytes>) -> Self {
        Self::new(CPP, source)
    }

    pub(crate) fn rust(source: impl Into<Bytes>) -> Self {
        Self::new(RUST, source)
    }

    /// Two shell scripts, for the compile step and for the run step.
    pub(crate) fn scripts(build: impl Into<Bytes>, run: impl Into<Bytes>) -> Self {
        Self::new(SCRIPTS, build).file("run.sh", run)
    }

    /// One more file, after those that there are.
    pub(crate) fn file(mut self, name: impl Into<String>, content: impl Into<Bytes>) -> Self {
        self.files.push(SourceFile {
            name: name.into(),
            content: content.into(),
        });
        self
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Bytes>) -> Self {
        self.stdin = stdin.into();
        self
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "numbers and texts alike, without a sign before them"
    )]
    pub(crate) fn arg(mut self, arg: impl ToString) -> Self {
        self.args.push(arg.to_string());
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn cpu_ms(mut self, cpu_ms: u64) -> Self {
        self.times.cpu_ms = cpu_ms;
        self
    }

    pub(crate) fn wall_ms(mut self, wall_ms: u64) -> Self {
        self.times.wall_ms = wall_ms;
        self
    }

    pub(crate) fn output_kb(mut self, output_kb: u64) -> Self {
        self.output_kb = output_kb;
        self
    }

    /// One more file that is to come back.
    pub(crate) fn output(mut self, name: impl Into<String>) -> Self {
        self.outputs.push(name.into());
        self
    }

    /// Cancelled as soon as it prints something.
    pub(crate) fn cancelled(mut self) -> Self {
        self.cancelled = true;
        self
    }

    pub(crate) fn compile_cpu_ms(mut self, cpu_ms: u64) -> Self {
        self.compile_times.cpu_ms = cpu_ms;
        self
    }

    pub(crate) fn compile_wall_ms(mut self, wall_ms: u64) -> Self {
        self.compile_times.wall_ms = wall_ms;
        self
    }

    /// The one place where the executor's and the ledger's own types are filled in.
    fn task(&self, memory_kb: u64) -> Task {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let limits = Limits {
            cpu_ms: self.times.cpu_ms,
            wall_ms: self.times.wall_ms,
            memory_kb,
            processes: PROCESSES,
            output_kb: self.output_kb,
            ..Limits::default()
        };
        let language = Language {
            name: "attack".to_owned(),
            aliases: Vec::new(),
            title: "Attack".to_owned(),
            image: IMAGE.to_owned(),
            source: self.toolchain.source.to_owned(),
            compile: self.toolchain.compile.map(words),
            run: words(self.toolchain.run),
            env: BTreeMap::new(),
            zygote: self.toolchain.zygote(),
            extensions: Vec::new(),
            limits,
            compile_limits: self.compile_times,
            example: String::new(),
            version_command: None,
        };
        let spec = JobSpec {
            language: language.name.clone(),
            definition: None,
            files: self.files.clone(),
            entrypoint: self.toolchain.source.to_owned(),
            stdin: self.stdin.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
            limits,
            labels: Vec::new(),
            tests: Vec::new(),
            interactive: false,
            terminal: None,
            stop_on_failure: false,
            outputs: self.outputs.clone(),
            isolation_key: None,
            owner: None,
            retention_ms: 0,
            max_attempts: 3,
            ..JobSpec::default()
        };
        Task {
            job: JobId::new(uuid::Uuid::now_v7()),
            attempt: 1,
            language,
            spec,
            checker: None,
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.times.wall_ms + self.compile_times.wall_ms) + SLACK
    }
}

/// What is right to happen to the sandbox of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It serves on.
    Kept,
    /// It is thrown away, as after every kill for memory: who knows what the kernel chose to kill.
    Discarded,
    /// Which of both is a matter of chance.
    Either,
}

/// An executor with one slot and one sandbox, used by one test at a time.
pub(crate) struct Sandbox {
    runtime: Runtime,
    executor: Executor,
    upkeep: JoinHandle<()>,
    engine: Engine,
    memory_kb: u64,
    cluster: String,
    /// For what a failed test leaves; dropped after all that is above.
    _sweep: Sweep,
    _data: tempfile::TempDir,
}

impl Sandbox {
    /// Nothing when there is no engine, and that need not be.
    fn start(memory_kb: u64) -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let thread = std::thread::current();
        let engine = runtime.block_on(Engine::find(thread.name().unwrap_or("attacks")))?;
        let data = tempfile::tempdir().expect("a folder");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cluster = format!("attacks-{}-{number}", std::process::id());
        let labels = Labels {
            cluster: cluster.clone(),
            node: 1,
            incarnation: 1,
        };
        let options = Options {
            images: vec![(IMAGE.to_owned(), memory_kb)],
            // A sandbox that goes away shall have gone for what a job did.
            max_jobs_per_sandbox: u32::MAX,
            zygotes: ZYGOTES,
            ..Options::new(Kind::Docker, 1, labels, data.path().to_path_buf())
        };
        let (executor, upkeep) = {
            let _context = runtime.enter();
            quorun_executor::start(options).expect("an executor")
        };
        let upkeep = runtime.spawn(upkeep);
        let sandbox = Self {
            runtime,
            executor,
            upkeep,
            engine,
            memory_kb,
            _sweep: Sweep::of(&cluster),
            cluster,
            _data: data,
        };
        sandbox.runtime.block_on(async {
            let mut health = sandbox.executor.health();
            tokio::time::timeout(LONG, health.wait_for(|health| *health == Health::Ready))
                .await
                .expect("the executor gets ready")
                .expect("the executor lives");
        });
        sandbox.settle();
        Some(sandbox)
    }

    /// Memory of the sandbox.
    pub(crate) fn memory_kb(&self) -> u64 {
        self.memory_kb
    }

    /// Sandboxes that were thrown away since the start.
    pub(crate) fn discarded(&self) -> u64 {
        self.executor.sandboxes()["discarded"]
    }

    /// Waits until the one sandbox is clean and free, or its successor has started. A job that came sooner would be given
    /// a second sandbox, and prove nothing about the first.
    fn settle(&self) {
        self.runtime.block_on(eventually(
            "one sandbox, and that is free",
            async || match self.executor.sandboxes() {
                counts if counts["warm"] == 1 && counts["busy"] + counts["starting"] == 0 => Ok(()),
                counts => Err(format!("{counts:?}")),
            },
        ));
    }

    /// Runs that have begun in an interpreter that waited.
    pub(crate) fn zygotes(&self) -> u64 {
        self.executor
            .sandboxes()
            .get("zygotes")
            .copied()
            .unwrap_or(0)
    }

    /// Runs a job, and waits until its sandbox has been cleaned. Where interpreters wait, one does for this job, if it is
    /// in Python and has neither arguments nor variables.
    ///
    /// Whatever a program does, the job has a verdict, and never that Quorun could not run it.
    #[track_caller]
    pub(crate) fn run(&self, job: &Job) -> JobResult {
        if !job.toolchain.zygote().is_empty() {
            let mut before = job.clone();
            before.files.truncate(1);
            before.files[0].content = Bytes::new();
            before.cancelled = false;
            self.run_alone(&before);
        }
        self.run_alone(job)
    }

    /// Runs a job whatever waits.
    #[track_caller]
    pub(crate) fn run_alone(&self, job: &Job) -> JobResult {
        let task = job.task(self.memory_kb);
        let (output, mut chunks) = mpsc::channel(1);
        let result = self.runtime.block_on(async {
            let cancel = CancellationToken::new();
            let run = self.executor.execute(task, output, cancel.clone());
            let watch = async {
                while chunks.recv().await.is_some() {
                    if job.cancelled {
                        cancel.cancel();
                    }
                }
            };
            let (result, ()) =
                tokio::time::timeout(job.patience(), async { tokio::join!(run, watch) })
                    .await
                    .expect("the job ends");
            result.expect("the executor is available")
        });
        self.settle();
        assert_ne!(
            result.outcome.verdict,
            Verdict::InternalError,
            "{}",
            show(&result)
        );
        result
    }

    /// Runs a job that attacks, looks at what became of the sandbox, and at the next job.
    #[track_caller]
    pub(crate) fn attack(&self, after: After, job: &Job) -> JobResult {
        let before = self.discarded();
        let result = self.run(job);
        let discarded = self.discarded() - before;
        let right = match after {
            After::Kept => discarded == 0,
            After::Discarded => discarded == 1,
            After::Either => discarded <= 1,
        };
        assert!(
            right,
            "{after:?} is right, {discarded} discarded: {}",
            show(&result)
        );
        self.next_job_is_normal();
        result
    }

    /// Runs an attack that should end by itself with success, and gives what it printed.
    #[track_caller]
    pub(crate) fn attack_prints(&self, after: After, job: &Job) -> String {
        let result = self.attack(after, job);
        assert_eq!(
            result.outcome.verdict,
            Verdict::Accepted,
            "{}",
            show(&result)
        );
        text(&result)
    }

    /// Runs a job that finds out what there is in its sandbox that is not its own.
    #[track_caller]
    pub(crate) fn next_job_is_normal(&self) {
        let before = self.discarded();
        let result = self.run(&Job::perl(NORMAL).stdin("stdin\n"));
        assert_eq!(
            (result.outcome.verdict, text(&result).as_str()),
            (Verdict::Accepted, NORMAL_PRINTS),
            "{}",
            show(&result)
        );
        assert_eq!(self.discarded(), before, "a normal job keeps its sandbox");
    }

    /// Ends the executor, and looks for what it left.
    fn stop(self) {
        if ZYGOTES {
            println!(
                "{} runs began in an interpreter that waited",
                self.zygotes()
            );
        }
        self.runtime.block_on(async {
            tokio::time::timeout(LONG, self.executor.shutdown())
                .await
                .expect("the executor shuts down");
        });
        let upkeep = self.runtime.block_on(self.upkeep);
        let left = self.runtime.block_on(self.engine.containers(&self.cluster));
        if !std::thread::panicking() {
            upkeep.expect("the upkeep ends by itself");
            assert!(left.is_empty(), "left on the engine: {left:?}");
        }
    }
}

/// An ordinary job: it reads, computes, uses memory and its folders, and tells what it finds.
const NORMAL: &str = r#"
sub list {
    opendir(my $folder, $_[0]) or return "none";
    return join(" ", sort(grep { !/^\.\.?$/ } readdir($folder)));
}
# Lines after the heading.
sub lines {
    open(my $file, "<", $_[0]) or return "none";
    my @lines = grep { $_[1] eq "" or /$_[1]/ } <$file>;
    return scalar(@lines) - ($_[1] eq "" ? 1 : 0);
}
$| = 1;
print "stdin: ", scalar(<STDIN>);
print "box: ", list("/box"), "\n";
print "tmp: ", list("/tmp"), "\n";
print "shared memory: ", list("/dev/shm"), "\n";
print "queues: ", list("/dev/mqueue"), "\n";
print "processes: ", join(" ", grep { /^\d+$/ and $_ != 1 and $_ != $$ } split(" ", list("/proc"))), "\n";
print "environment: ", join(" ", sort(keys(%ENV))), "\n";
print "system v: ", join(" ", map { lines("/proc/sysvipc/$_", "") } "shm", "sem", "msg"), "\n";
print "unix sockets: ", lines("/proc/net/unix", ""), "\n";
print "listening: ", lines("/proc/net/tcp", " 0A ") + lines("/proc/net/tcp6", " 0A "), "\n";
my $size = 8 << 20;
my $memory = "x" x $size;
for my $folder ("/box", "/tmp") {
    open(my $file, ">", "$folder/written") or die("$folder: $!");
    print $file $memory or die("$folder: $!");
    close($file) or die("$folder: $!");
}
my $child = fork() // die("fork: $!");
exit(7) if $child == 0;
waitpid($child, 0);
print "child: ", $? >> 8, "\n";
print "written: ", -s "/box/written", " ", -s "/tmp/written", " ", length($memory), "\n";
"#;

const NORMAL_PRINTS: &str = "\
stdin: stdin
box: main.pl
tmp: 
shared memory: 
queues: 
processes: 
environment: HOME LANG PATH TMPDIR
system v: 0 0 0
unix sockets: 0
listening: 0
child: 7
written: 8388608 8388608 8388608
";

/// A sandbox in which little is enough.
pub(crate) fn small(test: impl FnOnce(&Sandbox)) {
    with(SMALL_KB, test);
}

/// A sandbox in which the larger compilers can work.
pub(crate) fn large(test: impl FnOnce(&Sandbox)) {
    with(LARGE_KB, test);
}

fn with(memory_kb: u64, test: impl FnOnce(&Sandbox)) {
    if let Some(turn) = Turn::take(memory_kb)
        && let Some(sandbox) = &turn.sandbox
    {
        test(sandbox);
    }
}

/// A test's hold of its sandbox.
struct Turn {
    sandbox: Option<Sandbox>,
}

static STATE: Mutex<State> = Mutex::new(State {
    turns: 0,
    idle: Vec::new(),
});

struct State {
    turns: usize,
    idle: Vec<Sandbox>,
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turn {
    fn take(memory_kb: u64) -> Option<Self> {
        let idle = {
            let mut state = state();
            state.turns += 1;
            let fits = state
                .idle
                .iter()
                .position(|sandbox| sandbox.memory_kb == memory_kb);
            fits.map(|index| state.idle.swap_remove(index))
        };
        // From here on its end is counted, also when starting fails.
        let mut turn = Self { sandbox: None };
        turn.sandbox = Some(idle.or_else(|| Sandbox::start(memory_kb))?);
        Some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        {
            let mut state = state();
            state.turns -= 1;
            match self.sandbox.take() {
                // Nobody else shall have to do with what made a test fail.
                Some(sandbox) if std::thread::panicking() => ended.push(sandbox),
                Some(sandbox) => state.idle.push(sandbox),
                None => {}
            }
            if state.turns == 0 {
                ended.append(&mut state.idle);
            }
        }
        for sandbox in ended {
            sandbox.stop();
        }
    }
}

/// What a program printed.
pub(crate) fn text(result: &JobResult) -> String {
    String::from_utf8_lossy(&result.output.stdout).into_owned()
}

/// What a compiler printed.
pub(crate) fn compiler_text(result: &JobResult) -> String {
    let compile = result.output.compile.as_ref();
    compile
        .map(|compile| {
            [&compile.stdout, &compile.stderr]
                .map(|text| String::from_utf8_lossy(text))
                .concat()
        })
        .unwrap_or_default()
}

/// A result, for the message of a failed test.
pub(crate) fn show(result: &JobResult) -> String {
    let head = |text: &str| text.chars().take(2000).collect::<String>();
    format!(
        "{:#?}\nstdout ({} bytes): {}\nstderr ({} bytes): {}\ncompiler: {}",
        result.outcome,
        result.output.stdout.len(),
        head(&text(result)),
        result.output.stderr.len(),
        head(&String::from_utf8_lossy(&result.output.stderr)),
        head(&compiler_text(result)),
    )
}

/// That a job ended in this way.
#[track_caller]
pub(crate) fn assert_verdict(result: &JobResult, verdict: Verdict) {
    assert_eq!(result.outcome.verdict, verdict, "{}", show(result));
}

/// That a job's message says this.
#[track_caller]
pub(crate) fn assert_message(result: &JobResult, words: &str) {
    let message = result.outcome.message.as_deref().unwrap_or_default();
    assert!(message.contains(words), "{}", show(result));
}
