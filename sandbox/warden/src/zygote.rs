//! An interpreter that is started ahead of its run, and waits just before it opens the program.
//!
//! It is started like any program, by [`spawn`](crate::spawn): as a user of its own, with the limits, the environment and
//! the arguments of the step that it is for, in an empty box, when the job before it has been cleaned up. Its hook, which
//! the environment names, waits at the end of the interpreter's own start. So nothing has to be set later, and what the
//! interpreter is by then it has become without having seen anything of any job.
//!
//! No program of a job ever runs beside one that waits: whatever else is to be started, it is ended first.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use quorun_warden::protocol::{Step, ZYGOTE_GO, ZYGOTE_READY, ZYGOTE_VARIABLE, Zygote};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::processes;
use crate::spawn::{self, Handed, Place, SpawnError, Started, User};

/// How long one that was started a moment ago may take until it waits. Interpreters take less than a tenth of that.
const PATIENCE: Duration = Duration::from_secs(2);

/// An interpreter that waits, or will.
#[derive(Debug)]
pub(crate) struct Waiting {
    step: Step,
    user: Option<User>,
    program: Started,
    go: OwnedFd,
    ready: OwnedFd,
}

impl Waiting {
    /// Starts one; returns when it has been executed.
    pub(crate) fn start(place: &Place<'_>, zygote: Zygote) -> Result<Self, SpawnError> {
        let Zygote { step, env } = zygote;
        let pipe = || {
            spawn::pipe_away()
                .map_err(|error| SpawnError::Sandbox(format!("the pipe of a zygote: {error}")))
        };
        let (go, ready) = (pipe()?, pipe()?);
        let mut dressed = step.clone();
        dressed.env.extend(env);
        dressed.env.push((ZYGOTE_VARIABLE.into(), "1".into()));
        let handed = [
            Handed {
                source: go.read.as_raw_fd(),
                target: ZYGOTE_GO,
            },
            Handed {
                source: ready.write.as_raw_fd(),
                target: ZYGOTE_READY,
            },
        ];
        let program = spawn::spawn(place, &dressed, &handed)?;
        Ok(Self {
            step,
            user: place.user,
            program,
            go: go.write,
            ready: ready.read,
        })
    }

    /// The user that it is, and its job will be.
    pub(crate) fn user(&self) -> Option<User> {
        self.user
    }

    pub(crate) fn pid(&self) -> i32 {
        self.program.pid.as_raw_nonzero().get()
    }

    /// Whether it is what this step would become.
    pub(crate) fn is_for(&self, step: &Step) -> bool {
        self.step == *step
    }

    /// Lets it come to the end of its start. `false` if it has ended, or does not wait: then nobody knows what it does.
    pub(crate) fn is_ready(&self) -> io::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let rest = Timespec::try_from(rest).map_err(io::Error::other)?;
            let mut fds = [PollFd::from_borrowed_fd(self.ready.as_fd(), PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&rest)) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut byte = [0];
        Ok(rustix::io::read(&self.ready, &mut byte)? == 1)
    }

    /// Lets it go on. `None` if it has ended.
    pub(crate) fn release(self) -> Option<Started> {
        let cpu_us = processes::cpu_us_of(self.program.pid);
        match rustix::io::write(&self.go, b"!") {
            Ok(1) => Some(Started {
                cpu_us,
                ..self.program
            }),
            _ => None,
        }
    }
}
