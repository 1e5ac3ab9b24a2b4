//! From what a warden reports to what the ledger keeps.

use bytes::Bytes;
use quorun_ledger::job::{Compile, JobResult, Outcome, Output, Verdict};
use quorun_warden::protocol::{End, LimitHit, OUTPUT_EXCESS, Report, StartError};

use crate::sandbox::{Compiled, Transcript};
use crate::task::Task;

/// The result of a job whose sandbox answered to the end.
pub(crate) fn result(
    task: &Task,
    transcript: Transcript,
    stdout: Bytes,
    stderr: Bytes,
) -> JobResult {
    let Transcript { compile, end } = transcript;
    let outcome = match (&end, &compile) {
        (End::Ran(report), _) => ran(task, report),
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

/// The result of a job whose sandbox as a whole was killed for its memory.
pub(crate) fn out_of_memory(task: &Task) -> JobResult {
    JobResult {
        outcome: Outcome {
            signal: Some(9),
            memory_kb: task.spec.limits.memory_kb,
            ..Outcome::without_run(Verdict::MemoryLimit, over_memory(task))
        },
        output: Output::default(),
    }
}

fn ran(task: &Task, report: &Report) -> Outcome {
    let limits = &task.spec.limits;
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
