//! One step of a job while it runs: its limits, its meters, its output.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use quorun_warden::protocol::{
    LimitHit, Limits, MAX_OUTPUT, OUTPUT_EXCESS, Report, StepKind, WindowSize,
};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::cgroup::Cgroup;
use crate::processes::{self, Reaped};
use crate::spawn::Started;
use crate::terminal::{self, END_OF_INPUT};

/// How often the processes are looked at where no cgroup does it.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// How often the cgroup is asked whether it killed something for its memory. What is left of the job would go on, and be
/// killed for its memory again and again.
const OOM_CHECK_EVERY: Duration = Duration::from_millis(50);

/// CPU time is not looked at more often than this.
const CPU_CHECK_AT_LEAST: Duration = Duration::from_millis(1);

/// How often killing is repeated while somebody is left.
const KILL_EVERY: Duration = Duration::from_millis(5);

/// When killed processes are still there after this time, the sandbox is given up.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What is known about the machine.
#[derive(Debug)]
pub(crate) struct Meters {
    pub(crate) cgroup: Cgroup,
    pub(crate) contained: bool,
    /// Processors that the job may use at one time.
    pub(crate) processors: u32,
}

/// A step that is running, or whose processes are being ended.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) kind: StepKind,
    pub(crate) stdin: Feed,
    pub(crate) stdout: Capture,
    pub(crate) stderr: Capture,
    terminal: Option<OwnedFd>,
    limits: Limits,
    main: Pid,
    started: Instant,
    /// The meters before the step.
    cgroup_cpu_us: Option<u64>,
    own_cpu_us: u64,
    oom_kills: Option<u64>,
    /// What the first process had used before it became the job's.
    ahead_cpu_us: u64,
    /// Of those reaped.
    reaped_cpu_us: u64,
    peak_kb: u64,
    /// How the first process ended, and when.
    ended: Option<(Reaped, Duration)>,
    limit: Option<LimitHit>,
    killing: Option<Instant>,
    next_check: Instant,
    /// Nobody is left.
    gone: bool,
}

impl Active {
    pub(crate) fn new(
        kind: StepKind,
        limits: Limits,
        program: Started,
        before: &Before,
        meters: &Meters,
        stdin: Feed,
    ) -> Self {
        let cap = limits.output_bytes;
        let mut active = Self {
            kind,
            stdin,
            stdout: Capture::new(program.stdout, cap),
            stderr: Capture::new(program.stderr, cap),
            terminal: program.terminal,
            limits,
            main: program.pid,
            started: before.started,
            cgroup_cpu_us: before.cgroup_cpu_us,
            own_cpu_us: before.own_cpu_us,
            oom_kills: before.oom_kills,
            ahead_cpu_us: program.cpu_us,
            reaped_cpu_us: 0,
            peak_kb: 0,
            ended: None,
            limit: None,
            killing: None,
            next_check: before.started,
            gone: false,
        };
        active.stdin.open(program.stdin);
        active.check(meters, before.started);
        active
    }

    /// Takes note of a process that has ended. The end of the first one is the end of the step: whoever is left is
    /// killed.
    pub(crate) fn reaped(&mut self, reaped: Reaped, meters: &Meters) {
        self.reaped_cpu_us += reaped.cpu_us;
        self.peak_kb = self.peak_kb.max(reaped.memory_kb);
        if reaped.pid == self.main.as_raw_nonzero().get() {
            self.ended = Some((reaped, self.started.elapsed()));
            self.kill(meters);
        }
    }

    /// There is no child left.
    pub(crate) fn nobody_left(&mut self) {
        self.gone = self.ended.is_some();
    }

    /// All processes are gone.
    pub(crate) fn is_over(&self) -> bool {
        self.gone
    }

    /// Killed processes do not go away.
    pub(crate) fn is_stuck(&self, now: Instant) -> bool {
        self.killing
            .is_some_and(|since| now.duration_since(since) > KILL_PATIENCE)
    }

    /// Ends the step for a reason; the first reason counts.
    pub(crate) fn stop(&mut self, limit: LimitHit, meters: &Meters) {
        if self.killing.is_none() {
            // A program that has all but filled its memory spends its time on getting back, page by page, what the
            // kernel takes from it: the kernel does not always kill in that state.
            let starved = matches!(limit, LimitHit::Cpu | LimitHit::Wall)
                && meters.cgroup.is_nearly_full() == Some(true);
            self.limit = Some(if starved { LimitHit::Memory } else { limit });
            self.kill(meters);
        }
    }

    fn kill(&mut self, meters: &Meters) {
        let now = Instant::now();
        self.killing.get_or_insert(now);
        self.next_check = now + KILL_EVERY;
        processes::kill_all(meters.contained);
    }

    /// Sends a signal to the step's process group while its first process is there.
    pub(crate) fn signal(&self, signal: i32) {
        if self.ended.is_some() || !(1..=libc::SIGRTMAX()).contains(&signal) {
            return;
        }
        // SAFETY: the group is the step's own (it is a session leader), not reaped yet, so its number is not reused.
        unsafe {
            libc::kill(-self.main.as_raw_nonzero().get(), signal);
        }
    }

    /// Gives its terminal another size, if it has one.
    pub(crate) fn resize(&self, size: WindowSize) {
        if let Some(warden) = &self.terminal {
            // The kernel takes any size of a terminal that is open.
            let _ = terminal::resize(warden, size);
        }
    }

    /// When [`check`](Self::check) must be called at the latest.
    pub(crate) fn next_check(&self) -> Instant {
        self.next_check
    }

    /// Looks at the clock and the meters.
    pub(crate) fn check(&mut self, meters: &Meters, now: Instant) {
        if self.killing.is_some() {
            if now >= self.next_check {
                self.kill(meters);
            }
            return;
        }
        let deadline = self.started + Duration::from_micros(self.limits.wall_us);
        if now >= deadline {
            return self.stop(LimitHit::Wall, meters);
        }
        let excess = self.limits.output_bytes.saturating_mul(OUTPUT_EXCESS);
        if self.stdout.total.max(self.stderr.total) > excess {
            return self.stop(LimitHit::Output, meters);
        }
        if now < self.next_check {
            return;
        }
        if self.killed_for_memory(meters) {
            return self.stop(LimitHit::Memory, meters);
        }
        let sampled = !meters.contained || self.cgroup_cpu_us.is_none() || self.oom_kills.is_none();
        let sample = if sampled {
            processes::sample()
        } else {
            processes::Sample::default()
        };
        if !meters.contained && sample.tasks > u64::from(self.limits.processes) {
            return self.stop(LimitHit::Processes, meters);
        }
        if sampled && self.oom_kills.is_none() && sample.memory_kb > self.limits.memory_kb {
            // The sum counts what processes share once for each of them, as after a fork: now exactly.
            let memory_kb = processes::proportional_memory_kb();
            if memory_kb > self.limits.memory_kb {
                self.peak_kb = self.peak_kb.max(memory_kb);
                return self.stop(LimitHit::Memory, meters);
            }
        }
        let used = self
            .cgroup_cpu(meters)
            .unwrap_or_else(|| self.processes_cpu(sample.cpu_us));
        let Some(rest) = self
            .limits
            .cpu_us
            .checked_sub(used)
            .filter(|rest| *rest > 0)
        else {
            return self.stop(LimitHit::Cpu, meters);
        };
        // The limit cannot be reached before all processors together have used up the rest.
        let earliest = Duration::from_micros(rest) / meters.processors.max(1);
        let mut next = now + earliest.clamp(CPU_CHECK_AT_LEAST, OOM_CHECK_EVERY);
        if sampled {
            next = next.min(now + SAMPLE_EVERY);
        }
        self.next_check = next.min(deadline);
    }

    /// CPU time by the processes' own, of which so much is that of living ones.
    fn processes_cpu(&self, living_cpu_us: u64) -> u64 {
        (self.reaped_cpu_us + living_cpu_us).saturating_sub(self.ahead_cpu_us)
    }

    /// CPU time by the cgroup's meter since the step began, without the warden's own.
    fn cgroup_cpu(&self, meters: &Meters) -> Option<u64> {
        let all = meters.cgroup.cpu_us()?.saturating_sub(self.cgroup_cpu_us?);
        let own = processes::own_cpu_us().saturating_sub(self.own_cpu_us);
        Some(all.saturating_sub(own))
    }

    /// Since the step began the kernel has killed something in the cgroup for its memory.
    fn killed_for_memory(&self, meters: &Meters) -> bool {
        match (self.oom_kills, meters.cgroup.oom_kills()) {
            (Some(before), Some(after)) => after > before,
            _ => false,
        }
    }

    /// The figures, when nobody is left and the output has been read to its end.
    pub(crate) fn report(&self, meters: &Meters) -> Report {
        let cpu_us = self
            .cgroup_cpu(meters)
            .unwrap_or_else(|| self.processes_cpu(0));
        let (wall_us, exit_code, signal) = match &self.ended {
            Some((main, wall)) => (*wall, main.exit_code, main.signal),
            None => (self.started.elapsed(), None, None),
        };
        let wall_us = u64::try_from(wall_us.as_micros()).unwrap_or(u64::MAX);
        // What the meters say at the end counts as much as what they said while it ran.
        let limit = match self.limit {
            Some(LimitHit::Cancelled) => Some(LimitHit::Cancelled),
            _ if self.killed_for_memory(meters) => Some(LimitHit::Memory),
            Some(limit) => Some(limit),
            None if cpu_us > self.limits.cpu_us => Some(LimitHit::Cpu),
            None if wall_us > self.limits.wall_us => Some(LimitHit::Wall),
            None => None,
        };
        Report {
            exit_code,
            signal,
            cpu_us,
            wall_us,
            memory_kb: self.peak_kb,
            stdout_bytes: self.stdout.total,
            stderr_bytes: self.stderr.total,
            stdout_truncated: self.stdout.truncated(),
            stderr_truncated: self.stderr.truncated(),
            limit,
            start_error: None,
        }
    }
}

/// The meters before a step is started.
#[derive(Debug)]
pub(crate) struct Before {
    started: Instant,
    cgroup_cpu_us: Option<u64>,
    own_cpu_us: u64,
    oom_kills: Option<u64>,
}

impl Before {
    pub(crate) fn now(meters: &Meters) -> Self {
        let (cpu, oom) = if meters.contained {
            (meters.cgroup.cpu_us(), meters.cgroup.oom_kills())
        } else {
            (None, None)
        };
        Self {
            cgroup_cpu_us: cpu,
            oom_kills: oom,
            own_cpu_us: processes::own_cpu_us(),
            started: Instant::now(),
        }
    }
}

/// What is written to a program's stdin.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    fd: Option<OwnedFd>,
    waiting: Vec<u8>,
    written: usize,
    /// Of what was pushed: not yet given to the program, and given but not told.
    pushed: u64,
    fed: u64,
    /// Ends when nothing is waiting any more.
    closing: bool,
    /// It is a terminal: its end is said, not the end of the descriptor.
    terminal: bool,
}

impl Feed {
    pub(crate) fn new(data: Vec<u8>, closing: bool, terminal: bool) -> Self {
        let mut feed = Self {
            waiting: data,
            terminal,
            ..Self::default()
        };
        if closing {
            feed.close();
        }
        feed
    }

    fn open(&mut self, fd: OwnedFd) {
        if rustix::io::ioctl_fionbio(&fd, true).is_ok() {
            self.fd = Some(fd);
        }
        self.write();
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        if self.closing {
            self.fed += data.len() as u64;
            return;
        }
        self.waiting.drain(..self.written);
        self.written = 0;
        self.waiting.extend_from_slice(data);
        self.pushed += data.len() as u64;
        self.write();
    }

    /// How many bytes of what was pushed have been given to the program, or never will be, since it was last asked.
    pub(crate) fn take_fed(&mut self) -> u64 {
        // What came with the run stands before what was pushed.
        let waiting = (self.waiting.len() - self.written) as u64;
        let given = self.pushed.saturating_sub(waiting);
        self.pushed -= given;
        std::mem::take(&mut self.fed) + given
    }

    pub(crate) fn close(&mut self) {
        if self.terminal && !self.closing {
            self.waiting.push(END_OF_INPUT);
        }
        self.closing = true;
        self.write();
    }

    /// What has not been given to the program, perhaps with some that has.
    pub(crate) fn waiting(&self) -> &[u8] {
        &self.waiting
    }

    /// The descriptor, if there is something to write to it.
    pub(crate) fn wants(&self) -> Option<&OwnedFd> {
        self.fd
            .as_ref()
            .filter(|_| self.written < self.waiting.len())
    }

    /// Writes what the pipe takes.
    pub(crate) fn write(&mut self) {
        let Some(fd) = &self.fd else { return };
        while self.written < self.waiting.len() {
            match rustix::io::write(fd, &self.waiting[self.written..]) {
                Ok(length) => self.written += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Nobody reads it any more, which is the program's own business.
                Err(_) => {
                    *self = Self {
                        closing: true,
                        pushed: self.pushed,
                        fed: self.fed,
                        ..Self::default()
                    };
                    return;
                }
            }
        }
        self.waiting = Vec::new();
        self.written = 0;
        if self.closing {
            self.fd = None;
        }
    }
}

/// What a program prints to one stream.
#[derive(Debug)]
pub(crate) struct Capture {
    fd: Option<OwnedFd>,
    cap: u64,
    /// Printed so far, kept or not.
    total: u64,
}

/// A piece of output that is within the cap.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: usize,
}

impl Capture {
    fn new(fd: OwnedFd, cap: u64) -> Self {
        let fd = rustix::io::ioctl_fionbio(&fd, true).is_ok().then_some(fd);
        Self { fd, cap, total: 0 }
    }

    pub(crate) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    fn truncated(&self) -> bool {
        self.total > self.cap
    }

    /// Reads once into `buffer`; `None` when there is nothing (now, or ever again). A piece may be empty: what was
    /// printed is beyond the cap.
    pub(crate) fn read(&mut self, buffer: &mut [u8; MAX_OUTPUT]) -> Option<Piece> {
        let fd = self.fd.as_ref()?;
        loop {
            match rustix::io::read(fd, &mut buffer[..]) {
                Ok(0) => {
                    self.fd = None;
                    return None;
                }
                Ok(length) => {
                    let offset = self.total;
                    self.total += length as u64;
                    let room =
                        usize::try_from(self.cap.saturating_sub(offset)).unwrap_or(usize::MAX);
                    return Some(Piece {
                        offset,
                        length: length.min(room),
                    });
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => {
                    self.fd = None;
                    return None;
                }
            }
        }
    }
}
