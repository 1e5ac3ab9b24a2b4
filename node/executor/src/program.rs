//! A program on its way through sandboxes: compiled once, and started from what the box held after that for every run.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quorun_ledger::job::{Compile, JobResult, Limits};
use quorun_warden::protocol::{File, Program as Filled, Run};
use tokio_util::sync::CancellationToken;

use crate::artefacts::{self, Artefact, Key};
use crate::executor;
use crate::input::Input;
use crate::live::Live;
use crate::pool::Discard;
use crate::sandbox::{Broken, Interrupted, Link, Transcript};
use crate::task::{self, Task};
use crate::verdict;

/// A program, and how it can be started.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    task: &'a Task,
    /// Where the artefact is to be kept, if it is.
    key: Option<Key>,
    /// What the box held after the compile step, if that is known here.
    archive: Option<Bytes>,
    /// The present sandbox's warden holds it.
    held: bool,
    /// The artefact is among those of this node.
    kept: bool,
    /// The memory of the present sandbox ran out.
    used_up: bool,
    /// Interpreters are started ahead; how many of them were used is counted there.
    zygotes: Option<&'a AtomicU64>,
    compile: Option<Compile>,
}

/// What is particular to one run.
#[derive(Debug)]
pub(crate) struct Once {
    /// What the program reads.
    pub(crate) stdin: Bytes,
    /// Its limits; those that the compile step has in common with it are the task's.
    pub(crate) limits: Limits,
    /// Files that are there for this run alone.
    pub(crate) data: Vec<File>,
    /// Other runs follow.
    pub(crate) further: bool,
}

/// What is to be done with what a warden holds when its sandbox is clean again.
#[derive(Debug)]
pub(crate) enum Holding {
    /// It holds nothing.
    Nothing,
    /// It is of no use any more.
    Forget,
    /// It is an artefact that is to be kept.
    Fetch {
        key: Key,
        compile: Compile,
        limit: u64,
    },
}

impl<'a> Program<'a> {
    /// That of a task, from its source or from an artefact. `key`: where its artefact is to be kept.
    pub(crate) fn new(task: &'a Task, key: Option<Key>, artefact: Option<Artefact>) -> Self {
        let kept = artefact.is_some();
        let (compile, archive) = artefact
            .map(|Artefact { compile, archive }| (said_again(compile, task), archive))
            .unzip();
        Self {
            task,
            key,
            archive,
            held: false,
            kept,
            used_up: false,
            zygotes: None,
            compile,
        }
    }

    /// Has interpreters started ahead, if there is somewhere to count those that are used.
    pub(crate) fn with_zygotes(mut self, zygotes: Option<&'a AtomicU64>) -> Self {
        self.zygotes = zygotes;
        self
    }

    /// Comes into a sandbox that is clean.
    pub(crate) async fn enter(&mut self, link: &mut Link) -> Result<(), Broken> {
        self.held = false;
        self.used_up = false;
        if let Some(archive) = &self.archive {
            link.load(archive).await?;
            self.held = true;
        }
        Ok(())
    }

    /// One run, in the sandbox that it has come into.
    pub(crate) async fn run(
        &mut self,
        once: Once,
        link: &mut Link,
        live: &mut Live,
        input: &mut Input,
        cancel: &CancellationToken,
    ) -> Result<Transcript, Interrupted> {
        let patience = executor::patience(self.task, &once.limits);
        let run = self.request(once, input);
        let transcript = link.run(run, live, input, cancel, patience).await?;
        if let (Some(used), true) = (self.zygotes, transcript.zygote) {
            used.fetch_add(1, Ordering::Relaxed);
        }
        self.held |= transcript.held == Some(Ok(()));
        self.used_up = verdict::ran_out_of_memory(&transcript);
        Ok(transcript)
    }

    fn request(&self, once: Once, input: &Input) -> Run {
        let Once {
            stdin,
            limits,
            data,
            further,
        } = once;
        let filled = if self.held {
            Filled::Held
        } else {
            task::source(self.task)
        };
        let mut run = task::request(self.task, &limits, filled);
        if self.held {
            run.compile = None;
        } else {
            let artefact = run.compile.is_some() && self.key.is_some();
            run.hold = (artefact || further).then(|| artefacts::largest(self.task));
        }
        run.stdin = stdin.to_vec();
        run.data = data;
        run.close_stdin = !input.is_open();
        run.zygote = self
            .zygotes
            // Its stdin, stdout and stderr are pipes.
            .filter(|_| run.terminal.is_none())
            .and_then(|_| task::zygote(self.task, &run.run));
        run
    }

    /// Why the runs that follow could not start from what this one started from, if they cannot.
    pub(crate) fn lost(&self, transcript: &Transcript) -> Option<String> {
        match (&transcript.held, self.held) {
            (Some(Err(reason)), false) => Some(reason.clone()),
            _ => None,
        }
    }

    /// The result of one run.
    pub(crate) fn result(
        &mut self,
        limits: &Limits,
        transcript: Transcript,
        stdout: Bytes,
        stderr: Bytes,
    ) -> JobResult {
        let mut result = verdict::result(self.task, limits, transcript, stdout, stderr);
        // The first to compile; a later sandbox may have had to do it again.
        if self.compile.is_none() {
            self.compile = result.output.compile.take();
        }
        result.output.compile = self.compile.clone();
        result
    }

    /// The compile step, once it is known.
    pub(crate) fn compile(&self) -> Option<&Compile> {
        self.compile.as_ref()
    }

    /// Waits until the sandbox is clean after a run. `false` if the other runs need a fresh one.
    pub(crate) async fn settle(&mut self, link: &mut Link) -> Result<bool, Broken> {
        let clean = link.clean().await?;
        if clean.is_ok() && !self.used_up {
            return Ok(true);
        }
        // Worth a try: otherwise the next sandbox compiles again.
        if self.archive.is_none() && self.held {
            self.archive = link.fetch(artefacts::largest(self.task)).await.ok();
        }
        self.held = false;
        Ok(false)
    }

    /// Why the present sandbox is not used for the other runs.
    pub(crate) fn discard(&self) -> Discard {
        if self.used_up {
            Discard::OutOfMemory
        } else {
            Discard::Unclean
        }
    }

    /// The present sandbox is not to be used again: the kernel killed something in it for its memory.
    pub(crate) fn used_up(&self) -> bool {
        self.used_up
    }

    /// What the present sandbox's warden holds at the end, and what it is good for.
    pub(crate) fn holding(&self) -> Holding {
        if !self.held {
            return Holding::Nothing;
        }
        match (self.key, &self.compile) {
            // What was dropped because of this job's limit may be within another's.
            (Some(key), Some(compile)) if !self.kept && !compile.truncated => Holding::Fetch {
                key,
                compile: compile.clone(),
                limit: artefacts::largest(self.task),
            },
            _ => Holding::Forget,
        }
    }
}

/// What a compiler said once, for another job: within that job's limit.
fn said_again(mut compile: Compile, task: &Task) -> Compile {
    let cap =
        usize::try_from(task.spec.limits.output_kb.saturating_mul(1024)).unwrap_or(usize::MAX);
    for text in [&mut compile.stdout, &mut compile.stderr] {
        compile.truncated |= text.len() > cap;
        text.truncate(cap);
    }
    compile.cached = true;
    compile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_compiler_said_is_kept_whole_and_given_within_each_job_s_limit() {
        let mut task = task::tests::task(Limits::default());
        task.spec.limits.output_kb = 1;
        let key = Key::of(&task, "image");
        let artefact = |length| Artefact {
            compile: Compile {
                stderr: vec![b'w'; length].into(),
                ..Compile::default()
            },
            archive: Bytes::new(),
        };
        for (length, truncated) in [(1024, false), (1025, true)] {
            let program = Program::new(&task, Some(key), Some(artefact(length)));
            let compile = program.compile.clone().unwrap();
            assert_eq!((compile.stderr.len(), compile.truncated), (1024, truncated));
            assert!(compile.cached);
            let mut fresh = Program::new(&task, Some(key), None);
            fresh.held = true;
            fresh.compile = Some(compile);
            let kept = matches!(fresh.holding(), Holding::Fetch { .. });
            assert_eq!(kept, !truncated);
        }
    }
}
