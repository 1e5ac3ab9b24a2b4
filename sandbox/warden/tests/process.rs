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
    self, Decoder, End, Event, File, Limits, Program, Request, Run, Step, StepKind, Stream,
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
        stdin: b"hello\n".to_vec(),
        close_stdin: true,
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
