//! The warden as a plain child process, spoken to over its pipes: it says that it is ready, runs a job, and cleans up.
//!
//! `QUORUN_WARDEN_RUNNER=PROGRAM` runs it by another program, such as an emulator when it was built for another machine
//! (`tests/scripts/warden_arm64.sh`). An emulator of single processes cannot install a filter of system calls: then the
//! job ends there, and the test says so and is content with an orderly end.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use quorun_warden::protocol::{
    self, Collect, Decoder, End, Event, File, Limits, Program, Report, Request, Run, Step,
    StepKind, Stream, Zygote,
};

/// Far longer than it takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Warden {
    child: Child,
    decoder: Decoder,
}

impl Warden {
    fn start(folder: &std::path::Path) -> Self {
        let program = env!("CARGO_BIN_EXE_quorun-warden");
        let mut command = match std::env::var_os("QUORUN_WARDEN_RUNNER") {
            Some(runner) => {
                let mut command = Command::new(runner);
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        let (work, tmp) = (folder.join("box"), folder.join("tmp"));
        std::fs::create_dir(&work).unwrap();
        std::fs::create_dir(&tmp).unwrap();
        let child = command
            .arg("--box")
            .arg(work)
            .arg("--tmp")
            .arg(tmp)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            child,
            decoder: Decoder::default(),
        }
    }

    fn event(&mut self) -> Event {
        let mut buffer = [0; 4096];
        loop {
            if let Some(event) = self.decoder.frame().unwrap() {
                return event;
            }
            let stdout = self.child.stdout.as_mut().unwrap();
            let length = stdout.read(&mut buffer).unwrap();
            assert!(length > 0, "the warden has ended");
            self.decoder.extend(&buffer[..length]);
        }
    }

    fn send(&mut self, request: &Request) {
        let mut bytes = Vec::new();
        protocol::encode(request, &mut bytes).unwrap();
        self.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(&bytes)
            .unwrap();
    }
}

fn job() -> Run {
    Run {
        program: Program::Files(vec![File {
            name: "main.sh".into(),
            content: b"read word; echo \"$word\"; exit 7".to_vec(),
        }]),
        compile: None,
        hold: None,
        data: Vec::new(),
        run: Step {
            argv: vec!["/bin/sh".into(), "main.sh".into()],
            env: Vec::new(),
            limits: Limits {
                cpu_us: 20_000_000,
                wall_us: 50_000_000,
                memory_kb: 1 << 20,
                processes: 100,
                output_bytes: 1000,
                file_bytes: 1 << 20,
                open_files: 100,
                stack_bytes: 8 << 20,
            },
        },
        collect: Collect::default(),
        stdin: b"hello\n".to_vec(),
        close_stdin: true,
        terminal: None,
        zygote: None,
    }
}

#[test]
fn it_is_ready_runs_a_job_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut warden = Warden::start(folder.path());
    let Event::Ready(ready) = warden.event() else {
        panic!("not ready");
    };
    assert_eq!(ready.version, protocol::VERSION);
    assert!(!ready.contained);
    println!("{ready:?}");

    warden.send(&Request::Run(Box::new(job())));
    let mut printed = Vec::new();
    let end = loop {
        match warden.event() {
            Event::Started {
                step: StepKind::Run,
                zygote: false,
            } => {}
            Event::Output {
                stream: Stream::Stdout,
                data,
                ..
            } => printed.extend(data),
            Event::Done(end) => break end,
            other => panic!("{other:?}"),
        }
    };
    match end {
        End::Ran(report) => {
            assert_eq!((report.exit_code, report.limit), (Some(7), None));
            assert_eq!(printed, b"hello\n");
            println!("{report:?}");
        }
        End::Failed { message, .. }
            if std::env::var_os("QUORUN_WARDEN_RUNNER").is_some() && message.contains("Filter") =>
        {
            eprintln!(
                "SKIPPED the job: no filter of system calls can be installed here: {message}"
            );
        }
        other => panic!("{other:?}"),
    }
    let clean = warden.event();
    assert!(matches!(clean, Event::Clean { ok: true, .. }), "{clean:?}");

    // The end of its stdin is its own end.
    drop(warden.child.stdin.take());
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = warden.child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "the warden does not end");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{status}");
}

/// A run of a bash program, before which one that waits may be started: its hook notes who waits.
fn bash_job(folder: &std::path::Path, program: &str, hook: &str) -> Run {
    let path = folder.join("hook.sh");
    std::fs::write(&path, hook).unwrap();
    let mut run = job();
    run.program = Program::Files(vec![File {
        name: "main.sh".into(),
        content: program.as_bytes().to_vec(),
    }]);
    run.run.argv = vec!["/bin/bash".into(), "main.sh".into()];
    run.run.env = vec![("WAITED".into(), folder.join("waited").display().to_string())];
    run.zygote = Some(Zygote {
        step: run.run.clone(),
        env: vec![("BASH_ENV".into(), path.display().to_string())],
    });
    run
}

/// Waits as it should, in bash.
const HOOK: &str = "[ \"$QUORUN_ZYGOTE\" ] || return 0
unset QUORUN_ZYGOTE BASH_ENV
echo $$ >> $WAITED
printf . >&4
exec 4>&-
read -r -N 1 <&3 || exit 1
exec 3<&-
";

impl Warden {
    /// Runs a job to its end: whether its program had waited, what it printed, and how it went.
    fn run(&mut self, run: Run) -> (bool, String, Report) {
        self.send(&Request::Run(Box::new(run)));
        let mut printed = Vec::new();
        let mut waited = None;
        let report = loop {
            match self.event() {
                Event::Started { zygote, .. } => waited = Some(zygote),
                Event::Output { data, .. } => printed.extend(data),
                Event::Done(End::Ran(report)) => break report,
                other => panic!("{other:?}"),
            }
        };
        let clean = self.event();
        assert!(matches!(clean, Event::Clean { ok: true, .. }), "{clean:?}");
        (waited.unwrap(), String::from_utf8(printed).unwrap(), report)
    }
}

/// The process ids of those that waited, when there are so many.
fn waited(folder: &std::path::Path, number: usize) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(folder.join("waited")).unwrap_or_default();
        let pids: Vec<String> = text.lines().map(str::to_owned).collect();
        if pids.len() >= number && text.ends_with('\n') {
            return pids;
        }
        assert!(Instant::now() < deadline, "{pids:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn has_runner() -> bool {
    std::env::var_os("QUORUN_WARDEN_RUNNER").is_some()
}

#[test]
fn an_interpreter_that_waits_serves_one_run_of_its_kind() {
    if has_runner() {
        return eprintln!("SKIPPED: under an emulator of single processes no job runs");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut warden = Warden::start(folder.path());
    assert!(matches!(warden.event(), Event::Ready(_)));
    let job = bash_job(
        folder.path(),
        "echo $$ $(ls -A) ${QUORUN_ZYGOTE-none} ${BASH_ENV-none} $(ls /proc/self/fd); read a; echo $a",
        HOOK,
    );
    let (ahead, first, _) = warden.run(job.clone());
    assert!(!ahead);
    let (pid, rest) = first.split_once(' ').unwrap();
    for number in 1..=3 {
        let pids = waited(folder.path(), number);
        assert!(!pids.iter().any(|waited| waited == pid));
        let (ahead, printed, report) = warden.run(job.clone());
        assert!(ahead);
        // Only that it had another process tells it from the first one.
        assert_eq!(printed, format!("{} {rest}", pids[number - 1]));
        assert_eq!(report.exit_code, Some(0));
    }

    // A run of another kind finds it gone.
    let pids = waited(folder.path(), 4);
    let mut other = bash_job(
        folder.path(),
        "for pid in $(cat $WAITED); do [ -d /proc/$pid ] && echo $pid; done; echo end",
        HOOK,
    );
    other.run.env.push(("OF_ITS_OWN".into(), "1".into()));
    let (ahead, printed, _) = warden.run(other);
    assert_eq!((ahead, printed.as_str()), (false, "end\n"), "{pids:?}");

    // So does one that wants none; and none is started after it.
    waited(folder.path(), 5);
    let mut other = job.clone();
    other.zygote = None;
    assert!(!warden.run(other).0);
    assert!(!warden.run(job).0);
    let pids = waited(folder.path(), 6);
    assert_eq!(pids.len(), 6);

    // With the warden ends who waits.
    drop(warden.child.stdin.take());
    assert!(warden.child.wait().unwrap().success());
    assert!(!std::path::Path::new(&format!("/proc/{}", pids[5])).exists());
}

#[test]
fn what_does_not_wait_as_it_should_is_given_up() {
    if has_runner() {
        return eprintln!("SKIPPED: under an emulator of single processes no job runs");
    }
    for hook in [
        // ends at once; never waits; closes without a word; looks for a program that is not there
        "exit 3",
        "[ \"$QUORUN_ZYGOTE\" ] && echo $$ >> $WAITED && exec sleep 1000",
        "[ \"$QUORUN_ZYGOTE\" ] && exec 4>&- && exec sleep 1000",
        "",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut warden = Warden::start(folder.path());
        assert!(matches!(warden.event(), Event::Ready(_)));
        let job = bash_job(folder.path(), "echo right", hook);
        for _ in 0..4 {
            let (ahead, printed, report) = warden.run(job.clone());
            assert_eq!((ahead, printed.as_str()), (false, "right\n"), "{hook}");
            assert_eq!(report.exit_code, Some(0));
        }
    }
}
