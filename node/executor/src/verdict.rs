//! From what a warden reports to what the ledger keeps.

use bytes::Bytes;
use quorun_ledger::job::{Compile, JobResult, Limits, Outcome, Output, OutputFile, Verdict};
use quorun_warden::protocol::{End, LimitHit, OUTPUT_EXCESS, Report, StartError};

use crate::sandbox::{Compiled, Transcript};
use crate::task::Task;

/// The result of a run with these limits whose sandbox answered to the end.
pub(crate) fn result(
    task: &Task,
    limits: &Limits,
    transcript: Transcript,
    stdout: Bytes,
    stderr: Bytes,
) -> JobResult {
    let Transcript {
        compile,
        files,
        end,
        ..
    } = transcript;
    let outcome = match (&end, &compile) {
        (End::Ran(report), _) => ran(task, limits, report),
        (End::NotCompiled, Some(compile)) => not_compiled(task, &compile.report),
        (End::NotCompiled, None) => {
            internal("the sandbox reports a failed compile step that never ran")
        }
        (
            End::Failed {
                message,
                submission: true,
            },
            _,
        ) => Outcome::without_run(
            Verdict::RuntimeError,
            format!("the job's files cannot be written: {message}"),
        ),
        (
            End::Failed {
                message,
                submission: false,
            },
            _,
        ) => internal(format!("the sandbox could not run the job: {message}")),
    };
    let (stdout_truncated, stderr_truncated) = match &end {
        End::Ran(report) => (report.stdout_truncated, report.stderr_truncated),
        _ => (false, false),
    };
    JobResult {
        outcome,
        output: Output {
            stdout,
            stderr,
            stdout_truncated,
            stderr_truncated,
            compile: compile.map(compile_output),
            tests: Vec::new(),
            files,
            attempt_us: None, // whoever took the attempt up knows
        },
    }
}

/// Whether the kernel killed something in the sandbox for its memory: it is not used again.
pub(crate) fn ran_out_of_memory(transcript: &Transcript) -> bool {
    let hit = |report: &Report| report.limit == Some(LimitHit::Memory);
    transcript
        .compile
        .as_ref()
        .is_some_and(|compile| hit(&compile.report))
        || matches!(&transcript.end, End::Ran(report) if hit(report))
}

/// The reason, if the sandbox itself failed before the program ran: another one may do better.
pub(crate) fn sandbox_failed(transcript: &Transcript) -> Option<String> {
    match &transcript.end {
        End::Failed {
            message,
            submission: false,
        } => Some(message.clone()),
        _ => None,
    }
}

/// The result of a run whose sandbox as a whole was killed for its memory, with what it had printed.
pub(crate) fn out_of_memory(task: &Task, stdout: Bytes, stderr: Bytes) -> JobResult {
    JobResult {
        outcome: Outcome {
            signal: Some(9),
            memory_kb: task.spec.limits.memory_kb,
            ..Outcome::without_run(Verdict::MemoryLimit, over_memory(task))
        },
        output: Output {
            stdout,
            stderr,
            files: gone(task),
            ..Output::default()
        },
    }
}

/// The files that were asked for, of a sandbox that is gone.
fn gone(task: &Task) -> Vec<OutputFile> {
    let file = |name: &String| OutputFile {
        name: name.clone(),
        size: 0,
        content: Bytes::new(),
        truncated: false,
        missing: Some("it went with its sandbox, whose memory had run out".into()),
    };
    task.outputs().iter().map(file).collect()
}

fn ran(task: &Task, limits: &Limits, report: &Report) -> Outcome {
    if let Some(error) = &report.start_error {
        return not_started(task, error, "run");
    }
    let (verdict, message) = match report.limit {
        Some(LimitHit::Cpu) => (
            Verdict::TimeLimit,
            Some(format!("more than {} ms of CPU time", limits.cpu_ms)),
        ),
        Some(LimitHit::Wall) => (
            Verdict::TimeLimit,
            Some(format!(
                "more than {} ms of wall-clock time",
                limits.wall_ms
            )),
        ),
        Some(LimitHit::Memory) => (Verdict::MemoryLimit, Some(over_memory(task))),
        Some(LimitHit::Output) => (
            Verdict::OutputLimit,
            Some(format!(
                "printed more than {OUTPUT_EXCESS} times the {} KiB that are kept",
                limits.output_kb
            )),
        ),
        Some(LimitHit::Processes) => (
            Verdict::RuntimeError,
            Some(format!(
                "more than {} processes and threads",
                limits.processes
            )),
        ),
        Some(LimitHit::Cancelled) => (Verdict::Cancelled, Some("cancelled".to_owned())),
        None => match (report.exit_code, report.signal) {
            (Some(0), _) => (Verdict::Accepted, None),
            (Some(_), _) => (Verdict::RuntimeError, None),
            (None, Some(signal)) => (
                Verdict::RuntimeError,
                Some(format!("ended by signal {signal}{}", signal_name(signal))),
            ),
            (None, None) => (
                Verdict::InternalError,
                Some("the program could not be ended".to_owned()),
            ),
        },
    };
    Outcome {
        verdict,
        exit_code: report.exit_code,
        signal: report.signal,
        cpu_us: report.cpu_us,
        wall_us: report.wall_us,
        memory_kb: report.memory_kb,
        message,
        judged: None,
    }
}

fn not_compiled(task: &Task, report: &Report) -> Outcome {
    if let Some(error) = &report.start_error {
        return not_started(task, error, "compile");
    }
    let times = &task.language.compile_limits;
    let what = match report.limit {
        Some(LimitHit::Cancelled) => {
            return Outcome::without_run(Verdict::Cancelled, "cancelled while it was compiled");
        }
        Some(LimitHit::Cpu) => format!("took more than {} ms of CPU time", times.cpu_ms),
        Some(LimitHit::Wall) => format!("took more than {} ms of wall-clock time", times.wall_ms),
        Some(LimitHit::Memory) => format!("took {}", over_memory(task)),
        Some(LimitHit::Output) => "printed far more than is kept".to_owned(),
        Some(LimitHit::Processes) => "started too many processes".to_owned(),
        None => match (report.exit_code, report.signal) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}{}", signal_name(signal)),
            (None, None) => return internal("the compiler could not be ended"),
        },
    };
    Outcome::without_run(Verdict::CompileError, format!("the compile step {what}"))
}

/// A program that is not there is the language's or the machine's fault, unless the job was to bring it: a relative path.
fn not_started(task: &Task, error: &StartError, step: &str) -> Outcome {
    let job_brings_it = error.program.contains('/') && !error.program.starts_with('/');
    if job_brings_it || error.is_submission() {
        let verdict = match step {
            "compile" => Verdict::CompileError,
            _ => Verdict::RuntimeError,
        };
        return Outcome::without_run(verdict, error.to_string());
    }
    if error.not_found {
        return internal(format!(
            "the program {} ({step} step of {}) was not found in {}; install it there",
            error.program, task.language.name, task.language.image
        ));
    }
    internal(format!(
        "the {step} step of {}: {error}",
        task.language.name
    ))
}

fn over_memory(task: &Task) -> String {
    format!("more than {} KiB of memory", task.spec.limits.memory_kb)
}

fn internal(message: impl Into<String>) -> Outcome {
    Outcome::without_run(Verdict::InternalError, message)
}

fn compile_output(compile: Compiled) -> Compile {
    let Compiled {
        report,
        stdout,
        stderr,
    } = compile;
    Compile {
        exit_code: report.exit_code,
        signal: report.signal,
        stdout: stdout.into(),
        stderr: stderr.into(),
        truncated: report.stdout_truncated || report.stderr_truncated,
        cpu_us: report.cpu_us,
        wall_us: report.wall_us,
        memory_kb: report.memory_kb,
        cached: false,
    }
}

/// The name of a signal, in brackets, where it has one that people know.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        4 => " (SIGILL)",
        5 => " (SIGTRAP)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        10 => " (SIGUSR1)",
        11 => " (SIGSEGV)",
        12 => " (SIGUSR2)",
        13 => " (SIGPIPE)",
        14 => " (SIGALRM)",
        15 => " (SIGTERM)",
        24 => " (SIGXCPU)",
        25 => " (SIGXFSZ)",
        31 => " (SIGSYS)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use quorun_ledger::job::Limits;

    use super::*;

    fn task() -> Task {
        crate::task::tests::task(Limits {
            cpu_ms: 2000,
            wall_ms: 5000,
            memory_kb: 65_536,
            processes: 64,
            output_kb: 400,
            ..Limits::default()
        })
    }

    fn ended(exit_code: Option<i32>, signal: Option<i32>, limit: Option<LimitHit>) -> Report {
        Report {
            exit_code,
            signal,
            limit,
            ..Report::default()
        }
    }

    fn of_run(report: Report) -> Outcome {
        let transcript = Transcript {
            compile: None,
            held: None,
            zygote: false,
            files: Vec::new(),
            end: End::Ran(report),
        };
        result(
            &task(),
            &task().spec.limits,
            transcript,
            Bytes::new(),
            Bytes::new(),
        )
        .outcome
    }

    fn of_compile(report: Report) -> JobResult {
        let transcript = Transcript {
            compile: Some(Compiled {
                report,
                stdout: b"out".to_vec(),
                stderr: b"err".to_vec(),
            }),
            held: None,
            zygote: false,
            files: Vec::new(),
            end: End::NotCompiled,
        };
        result(
            &task(),
            &task().spec.limits,
            transcript,
            Bytes::new(),
            Bytes::new(),
        )
    }

    fn missing(program: &str, errno: i32, not_found: bool) -> Report {
        Report {
            start_error: Some(StartError {
                program: program.into(),
                stage: "cannot be executed".into(),
                errno,
                not_found,
            }),
            ..Report::default()
        }
    }

    #[test]
    fn every_end_has_its_verdict() {
        let killed = |limit| ended(None, Some(9), Some(limit));
        let table = [
            (ended(Some(0), None, None), Verdict::Accepted, None),
            (ended(Some(3), None, None), Verdict::RuntimeError, None),
            (
                ended(None, Some(11), None),
                Verdict::RuntimeError,
                Some("SIGSEGV"),
            ),
            (
                killed(LimitHit::Cpu),
                Verdict::TimeLimit,
                Some("2000 ms of CPU"),
            ),
            (
                killed(LimitHit::Wall),
                Verdict::TimeLimit,
                Some("5000 ms of wall-clock"),
            ),
            (
                killed(LimitHit::Memory),
                Verdict::MemoryLimit,
                Some("65536 KiB"),
            ),
            (
                killed(LimitHit::Output),
                Verdict::OutputLimit,
                Some("400 KiB"),
            ),
            (
                killed(LimitHit::Processes),
                Verdict::RuntimeError,
                Some("64 processes"),
            ),
            (
                killed(LimitHit::Cancelled),
                Verdict::Cancelled,
                Some("cancelled"),
            ),
            // A limit wins over the exit code, which is kept.
            (
                ended(Some(0), None, Some(LimitHit::Memory)),
                Verdict::MemoryLimit,
                None,
            ),
            (ended(None, None, None), Verdict::InternalError, None),
            (
                missing("python3", 2, true),
                Verdict::InternalError,
                Some("python3"),
            ),
            (
                missing("/usr/bin/x", 2, false),
                Verdict::InternalError,
                Some("/usr/bin/x"),
            ),
            (
                missing("./main", 2, false),
                Verdict::RuntimeError,
                Some("./main"),
            ),
            (
                missing("python3", 7, false),
                Verdict::RuntimeError,
                Some("python3"),
            ),
        ];
        for (report, verdict, words) in table {
            let outcome = of_run(report.clone());
            assert_eq!(outcome.verdict, verdict, "{report:?}");
            assert_eq!(outcome.exit_code, report.exit_code);
            assert_eq!(outcome.signal, report.signal);
            if let Some(words) = words {
                let message = outcome.message.unwrap();
                assert!(message.contains(words), "{message}");
            }
        }
    }

    #[test]
    fn a_compile_step_that_fails_is_a_compile_error_with_its_output() {
        let table = [
            (
                ended(Some(1), None, None),
                Verdict::CompileError,
                "exit code 1",
            ),
            (ended(None, Some(6), None), Verdict::CompileError, "SIGABRT"),
            (
                ended(None, Some(9), Some(LimitHit::Cpu)),
                Verdict::CompileError,
                "10000 ms of CPU",
            ),
            (
                ended(None, Some(9), Some(LimitHit::Wall)),
                Verdict::CompileError,
                "15000 ms of wall",
            ),
            (
                ended(None, Some(9), Some(LimitHit::Memory)),
                Verdict::CompileError,
                "65536 KiB",
            ),
            (
                ended(None, Some(9), Some(LimitHit::Cancelled)),
                Verdict::Cancelled,
                "cancelled",
            ),
            (missing("gcc", 2, true), Verdict::InternalError, "gcc"),
        ];
        for (report, verdict, words) in table {
            let result = of_compile(report);
            assert_eq!(result.outcome.verdict, verdict);
            // The program never ran.
            assert_eq!(
                (result.outcome.exit_code, result.outcome.signal),
                (None, None)
            );
            let message = result.outcome.message.unwrap();
            assert!(message.contains(words), "{message}");
            let compile = result.output.compile.unwrap();
            assert_eq!(
                (&compile.stdout[..], &compile.stderr[..]),
                (&b"out"[..], &b"err"[..])
            );
        }
    }

    #[test]
    fn memory_in_either_step_ends_a_sandbox() {
        let memory = || ended(None, Some(9), Some(LimitHit::Memory));
        let compile = Transcript {
            compile: Some(Compiled {
                report: memory(),
                ..Compiled::default()
            }),
            held: None,
            zygote: false,
            files: Vec::new(),
            end: End::NotCompiled,
        };
        assert!(ran_out_of_memory(&compile));
        let run = Transcript {
            compile: None,
            held: None,
            zygote: false,
            files: Vec::new(),
            end: End::Ran(memory()),
        };
        assert!(ran_out_of_memory(&run));
    }

    #[test]
    fn a_sandbox_that_fails_is_told_from_a_job_that_does() {
        let failed = |submission| Transcript {
            compile: None,
            held: None,
            zygote: false,
            files: Vec::new(),
            end: End::Failed {
                message: "file \"a\": File exists".into(),
                submission,
            },
        };
        assert!(sandbox_failed(&failed(false)).is_some());
        assert!(sandbox_failed(&failed(true)).is_none());
        let result = result(
            &task(),
            &task().spec.limits,
            failed(true),
            Bytes::new(),
            Bytes::new(),
        );
        assert_eq!(result.outcome.verdict, Verdict::RuntimeError);
    }
}
