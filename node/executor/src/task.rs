//! A job as the executor is given it, and what is sent to the warden for it.

use bytes::Bytes;
use quorun_ledger::job::{JobId, JobSpec};
use quorun_ledger::language::Language;
use quorun_warden::protocol::{self, File, Limits, Program, Run, Step};

/// One attempt at a job.
#[derive(Clone, Debug)]
pub struct Task {
    /// The job.
    pub job: JobId,
    /// Which attempt this is.
    pub attempt: u32,
    /// Its language, as this node knows it.
    pub language: Language,
    /// What was submitted.
    pub spec: JobSpec,
}

/// Where a program printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Its stdout.
    Stdout,
    /// Its stderr.
    Stderr,
}

/// A piece of what the run step printed, as it printed it. Within the cap only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it was printed.
    pub stream: Stream,
    /// How many bytes of this stream came before.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
}

/// Stack of a program's main thread, KiB, unless its memory is less.
const STACK_KB: u64 = 64 << 10;

/// Open files of one process.
const OPEN_FILES: u64 = 1024;

/// Compilers start more processes and threads than most programs may.
const COMPILE_PROCESSES: u32 = 512;

/// What the box can hold of a sandbox with this memory. It counts into that memory: together with the folder for
/// temporary files it stays below it, so that full folders alone cannot exhaust it.
pub(crate) fn box_bytes(memory_kb: u64) -> u64 {
    memory_kb * 1024 / 2
}

/// What the folder for temporary files can hold.
pub(crate) fn tmp_bytes(memory_kb: u64) -> u64 {
    memory_kb * 1024 / 4
}

/// The request that compiles and runs a task.
pub(crate) fn request(task: &Task) -> Run {
    let Task { language, spec, .. } = task;
    let limits = spec.limits;
    let run = Limits {
        cpu_us: limits.cpu_ms.saturating_mul(1000),
        wall_us: limits.wall_ms.saturating_mul(1000),
        memory_kb: limits.memory_kb,
        processes: limits.processes,
        output_bytes: limits.output_kb.saturating_mul(1024),
        file_bytes: box_bytes(limits.memory_kb),
        open_files: OPEN_FILES,
        stack_bytes: STACK_KB.min(limits.memory_kb) * 1024,
    };
    let compile = Limits {
        cpu_us: language.compile_limits.cpu_ms.saturating_mul(1000),
        wall_us: language.compile_limits.wall_ms.saturating_mul(1000),
        processes: limits.processes.max(COMPILE_PROCESSES),
        ..run
    };
    let language_env = || language.env.iter().map(|(k, v)| (k.clone(), v.clone()));
    let mut argv = Language::command(&language.run, &spec.entrypoint, &spec.files);
    argv.extend(spec.args.iter().cloned());
    Run {
        program: Program::Files(
            spec.files
                .iter()
                .map(|file| File {
                    name: file.name.clone(),
                    content: file.content.to_vec(),
                })
                .collect(),
        ),
        hold: None,
        compile: language.compile.as_ref().map(|command| Step {
            argv: Language::command(command, &spec.entrypoint, &spec.files),
            env: language_env().collect(),
            limits: compile,
        }),
        run: Step {
            argv,
            env: language_env()
                .chain(spec.env.iter().map(|(k, v)| (k.clone(), v.clone())))
                .collect(),
            limits: run,
        },
        stdin: spec.stdin.to_vec(),
        close_stdin: true,
    }
}

impl From<protocol::Stream> for Stream {
    fn from(stream: protocol::Stream) -> Self {
        match stream {
            protocol::Stream::Stdout => Self::Stdout,
            protocol::Stream::Stderr => Self::Stderr,
        }
    }
}
