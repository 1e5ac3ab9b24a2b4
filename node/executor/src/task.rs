//! A job as the executor is given it, and what is sent to the warden for it.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorun_ledger::job::{self, Checker, JobId, JobSpec, TestResult};
use quorun_ledger::language::Language;
use quorun_warden::protocol::{self, Collect, File, Limits, Program, Run, Step, Zygote};

use crate::input;

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
    /// The language of its checker, if that is a program.
    pub checker: Option<Language>,
}

/// The names of the files that a checker finds, which are also its arguments, in the order of testlib.
pub(crate) const CHECKER_INPUT: &str = "input";
pub(crate) const CHECKER_OUTPUT: &str = "output";
pub(crate) const CHECKER_EXPECTED: &str = "expected";

/// The files that a checker finds in its folder beside its own, which are therefore no names for those.
pub const CHECKER_FILES: [&str; 3] = [CHECKER_INPUT, CHECKER_OUTPUT, CHECKER_EXPECTED];

impl Task {
    /// The checker as a task of its own, if it is a program. `Err` when its language is not known here.
    pub(crate) fn of_checker(&self) -> Result<Option<Self>, String> {
        let Checker::Program(program) = &self.spec.checker else {
            return Ok(None);
        };
        let Some(language) = self.checker.clone() else {
            return Err(format!(
                "the checker's language {} is not known to this node",
                program.language
            ));
        };
        Ok(Some(Self {
            job: self.job,
            attempt: self.attempt,
            spec: JobSpec {
                language: program.language.clone(),
                files: program.files.clone(),
                entrypoint: program.entrypoint.clone(),
                args: CHECKER_FILES.map(str::to_owned).to_vec(),
                limits: program.limits,
                isolation_key: self.spec.isolation_key.clone(),
                owner: self.spec.owner.clone(),
                ..JobSpec::default()
            },
            language,
            checker: None,
        }))
    }

    /// The files that are wanted of its box. Not of a job with test cases: it has a box for each.
    pub(crate) fn outputs(&self) -> &[String] {
        if self.spec.tests.is_empty() {
            &self.spec.outputs
        } else {
            &[]
        }
    }
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

/// How a test case ended, told as soon as it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseEnded {
    /// Which one, from 0.
    pub index: u32,
    /// How it ended, without what the program printed: that may be secret, and is in the job's result.
    pub result: TestResult,
}

/// Compilers start more processes and threads than most programs may.
const COMPILE_PROCESSES: u32 = 512;

/// What a compiler may have at least, however little its program may: open files, and stack in KiB.
const COMPILE_OPEN_FILES: u32 = 1024;
const COMPILE_STACK_KB: u64 = 64 << 10;

/// What the box can hold of a sandbox with this memory. It counts into that memory: together with the folder for
/// temporary files it stays below it, so that full folders alone cannot exhaust it.
pub(crate) fn box_bytes(memory_kb: u64) -> u64 {
    memory_kb * 1024 / 2
}

/// What the folder for temporary files can hold.
pub(crate) fn tmp_bytes(memory_kb: u64) -> u64 {
    memory_kb * 1024 / 4
}

/// What the folder for shared memory can hold; with the two others it stays below the memory.
pub(crate) fn shm_bytes(memory_kb: u64) -> u64 {
    memory_kb * 1024 / 8
}

/// The largest file that a job with this memory can write, KiB, unless its limits say less.
#[must_use]
pub fn largest_file_kb(memory_kb: u64) -> u64 {
    box_bytes(memory_kb) / 1024
}

/// What was submitted, for the box.
pub(crate) fn source(task: &Task) -> Program {
    let files = task.spec.files.iter().map(|file| File {
        name: file.name.clone(),
        content: file.content.to_vec(),
    });
    Program::Files(files.collect())
}

/// The request that compiles and runs a task, with the limits of this run.
pub(crate) fn request(task: &Task, limits: &job::Limits, program: Program) -> Run {
    let Task { language, spec, .. } = task;
    let room = box_bytes(limits.memory_kb);
    let stack_bytes = |kb: u64| kb.min(limits.memory_kb) * 1024;
    let run = Limits {
        cpu_us: limits.cpu_ms.saturating_mul(1000),
        wall_us: limits.wall_ms.saturating_mul(1000),
        memory_kb: limits.memory_kb,
        processes: limits.processes,
        output_bytes: limits.output_kb.saturating_mul(1024),
        file_bytes: limits
            .file_kb
            .map_or(room, |file_kb| file_kb.saturating_mul(1024).min(room)),
        open_files: limits.open_files.into(),
        stack_bytes: stack_bytes(limits.stack_kb),
    };
    let compile = Limits {
        cpu_us: language.compile_limits.cpu_ms.saturating_mul(1000),
        wall_us: language.compile_limits.wall_ms.saturating_mul(1000),
        processes: limits.processes.max(COMPILE_PROCESSES),
        file_bytes: room,
        open_files: limits.open_files.max(COMPILE_OPEN_FILES).into(),
        stack_bytes: stack_bytes(limits.stack_kb.max(COMPILE_STACK_KB)),
        ..run
    };
    let language_env = || language.env.iter().map(|(k, v)| (k.clone(), v.clone()));
    let mut argv = Language::command(&language.run, &spec.entrypoint, &spec.files);
    argv.extend(spec.args.iter().cloned());
    Run {
        program,
        hold: None,
        data: Vec::new(),
        collect: Collect {
            names: task.outputs().to_vec(),
            bytes: limits.output_kb.saturating_mul(1024),
        },
        compile: language
            .compile_command(&spec.entrypoint, &spec.files, &spec.compile_args)
            .map(|argv| Step {
                argv,
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
        terminal: spec.terminal.map(input::window_size),
        zygote: None,
    }
}

/// The interpreter to start ahead of the job after this one, and that this one may have found: that of a job with one source,
/// without arguments and without an environment of its own. `None` where the language has none, or where what an interpreter
/// looks at before it waits could be a file of this job: tools look for settings in hidden files of HOME.
pub(crate) fn zygote(task: &Task, run: &Step) -> Option<Zygote> {
    let Task { language, spec, .. } = task;
    let hidden = |name: &str| name.split('/').any(|part| part.starts_with('.'));
    if language.zygote.is_empty()
        || language.compile.is_some()
        || spec.files.iter().any(|file| hidden(&file.name))
    {
        return None;
    }
    let pairs = |map: &BTreeMap<String, String>| {
        map.iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    Some(Zygote {
        step: Step {
            argv: Language::command(&language.run, &language.source, &[]),
            env: pairs(&language.env),
            limits: run.limits,
        },
        env: pairs(&language.zygote),
    })
}

impl From<protocol::Stream> for Stream {
    fn from(stream: protocol::Stream) -> Self {
        match stream {
            protocol::Stream::Stdout => Self::Stdout,
            protocol::Stream::Stderr => Self::Stderr,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use quorun_ledger::job::StepLimits;

    use super::*;

    /// A task in C.
    pub(crate) fn task(limits: job::Limits) -> Task {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Task {
            job: JobId::from_slice(&[0; 16]).unwrap(),
            attempt: 1,
            language: Language {
                name: "c".into(),
                aliases: Vec::new(),
                title: "C".into(),
                image: "image:1".into(),
                source: "main.c".into(),
                compile: Some(words(&["cc", "{source}"])),
                run: words(&["./a.out"]),
                env: BTreeMap::new(),
                zygote: BTreeMap::new(),
                extensions: Vec::new(),
                limits,
                compile_limits: StepLimits {
                    cpu_ms: 10_000,
                    wall_ms: 15_000,
                },
                example: String::new(),
                version_command: None,
            },
            spec: JobSpec {
                language: "c".into(),
                definition: None,
                files: Vec::new(),
                entrypoint: "main.c".into(),
                stdin: Bytes::new(),
                args: Vec::new(),
                env: BTreeMap::new(),
                limits,
                labels: Vec::new(),
                retention_ms: 0,
                max_attempts: 3,
                isolation_key: None,
                owner: None,
                tests: Vec::new(),
                interactive: false,
                terminal: None,
                stop_on_failure: false,
                ..JobSpec::default()
            },
            checker: None,
        }
    }

    fn limits_of(limits: job::Limits) -> (Limits, Limits) {
        let request = request(&task(limits), &limits, Program::Held);
        (request.compile.unwrap().limits, request.run.limits)
    }

    #[test]
    fn limits_reach_the_program_and_small_ones_spare_its_compiler() {
        let (compile, run) = limits_of(job::Limits {
            processes: 1,
            open_files: 20,
            file_kb: Some(3),
            stack_kb: 100,
            ..job::Limits::default()
        });
        assert_eq!(
            (
                run.processes,
                run.open_files,
                run.file_bytes,
                run.stack_bytes
            ),
            (1, 20, 3 << 10, 100 << 10)
        );
        assert_eq!((compile.processes, compile.open_files), (512, 1024));
        assert_eq!(compile.file_bytes, 128 << 20);
        assert_eq!(compile.stack_bytes, 64 << 20);
        assert_eq!(compile.cpu_us, 10_000_000);
    }

    #[test]
    fn a_file_is_never_larger_than_its_folder_nor_a_stack_than_the_memory() {
        let small = job::Limits {
            memory_kb: 32 << 10,
            ..job::Limits::default()
        };
        let (_, run) = limits_of(small);
        assert_eq!((run.file_bytes, run.stack_bytes), (16 << 20, 32 << 20));
        let (_, run) = limits_of(job::Limits {
            file_kb: Some(u64::MAX),
            stack_kb: u64::MAX,
            ..small
        });
        assert_eq!((run.file_bytes, run.stack_bytes), (16 << 20, 32 << 20));
    }
}
