//! The poll loop: what arrives from the node, what the program prints, who has ended, and when to look next.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use quorun_warden::protocol::{
    self, Collect, Decoder, End, Event, LimitHit, MAX_OUTPUT, Program, Ready, Report, Request, Run,
    Step, StepKind, Stream, WindowSize, Zygote,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::stdio;

use crate::archive::Archive;
use crate::cgroup::Cgroup;
use crate::files::{self, ActingAs, WriteError};
use crate::filter::Filter;
use crate::job::{Active, Before, Feed, Meters};
use crate::options::Options;
use crate::processes::{self, Reap};
use crate::spawn::{self, Place, SpawnError, User};
use crate::zygote::Waiting;

/// While more than this waits for the node, programs are not read from: they wait, the memory does not grow.
const OUT_HIGH: usize = 1 << 20;

/// How long the first words of a program may wait for its next ones, or for its end. Each message costs the engine's
/// processes, through which it goes, a tenth of a short program's own time; and most programs are short.
const LINGER: Duration = Duration::from_millis(4);

/// With this much waiting, nothing waits for more.
const LINGER_BYTES: usize = 4 << 10;

/// Reads from one stream before the others have their turn.
const READS_PER_TURN: usize = 8;

/// How long the last processes are waited for when the warden ends.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// The warden: its ends of the protocol, and the job if there is one.
#[derive(Debug)]
pub(crate) struct Warden {
    options: Options,
    meters: Meters,
    /// What is wiped after a job.
    folders: Vec<PathBuf>,
    next_uid: Option<u32>,
    signals: OwnedFd,
    decoder: Decoder,
    out: OutQueue,
    job: Option<Job>,
    held: Option<Archive>,
    /// How much of what is held has been sent, while it is.
    sending: Option<u64>,
    /// What is held is being loaded: the next part continues it.
    loading: bool,
    /// Waits for the next run; never while there is a job.
    zygote: Option<Waiting>,
    /// Is to be started when there is nothing else to do.
    next_zygote: Option<Zygote>,
    /// One did not wait: interpreters here are started when they are needed.
    no_zygotes: bool,
    /// The node has gone, or the warden was told to end.
    ending: bool,
    buffer: Box<[u8; MAX_OUTPUT]>,
}

/// A run between its Run and its Done.
#[derive(Debug)]
struct Job {
    user: Option<User>,
    run: Step,
    /// Somebody talks to the program, and waits for its answers.
    interactive: bool,
    /// The size of the program's terminal, if it has one.
    terminal: Option<WindowSize>,
    /// The box is to be held before the run step.
    hold: Option<u64>,
    /// Is written after that.
    data: Vec<protocol::File>,
    /// Is read when the run step has ended.
    collect: Collect,
    /// Waits for the run step.
    stdin: Feed,
    active: Option<Active>,
    /// Becomes the run step.
    zygote: Option<Waiting>,
    cancelled: bool,
}

/// What the loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Node,
    NodeOut,
    Signals,
    Stdin,
    Output(Stream),
}

impl Warden {
    pub(crate) fn new(options: Options) -> io::Result<Self> {
        if options.uids.is_some() {
            rustix::thread::set_thread_groups(&[])?;
        }
        if !options.contained {
            // Processes whose parent ends become children of the warden instead of the machine's init.
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        // Its memory and descriptors are nobody's business, not even of a process of the same user.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        let filtered = Filter::new()
            .map_err(io::Error::other)
            .and_then(|filter| Ok(filter.install()?));
        match filtered {
            Err(error) if options.contained => return Err(error),
            // Without a container nothing is isolated in any case; emulators have no filters.
            Err(error) => eprintln!("quorun-warden: no filter of system calls: {error}"),
            Ok(()) => {}
        }
        if options.contained {
            close_terminals();
        }
        let signals = signal_descriptor()?;
        rustix::io::ioctl_fionbio(stdio::stdin(), true)?;
        rustix::io::ioctl_fionbio(stdio::stdout(), true)?;
        let mut folders = vec![options.work.clone(), options.tmp.clone()];
        let mut cgroup = Cgroup::default();
        if options.contained {
            cgroup = Cgroup::open();
            for mount in files::writable_mounts() {
                if !folders.contains(&mount) {
                    folders.push(mount);
                }
            }
        }
        let next_uid = options.uids.as_ref().map(any_of).transpose()?;
        // Not by way of the stack, which every program would inherit.
        let buffer = vec![0; MAX_OUTPUT].into_boxed_slice();
        let buffer = buffer
            .try_into()
            .map_err(|_| io::Error::other("a buffer of another size"))?;
        let mut warden = Self {
            meters: Meters {
                cgroup,
                contained: options.contained,
                processors: processes::processors(),
            },
            options,
            folders,
            next_uid,
            signals,
            decoder: Decoder::default(),
            out: OutQueue::default(),
            job: None,
            held: None,
            sending: None,
            loading: false,
            zygote: None,
            next_zygote: None,
            no_zygotes: false,
            ending: false,
            buffer,
        };
        warden.send(&Event::Ready(Ready {
            version: protocol::VERSION,
            pid: std::process::id(),
            contained: warden.options.uids.is_some(),
            cgroup_cpu: warden.meters.cgroup.cpu_us().is_some(),
            cgroup_memory: warden.meters.cgroup.oom_kills().is_some(),
        }))?;
        Ok(warden)
    }

    /// Serves the node until it goes away.
    pub(crate) fn serve(&mut self) -> io::Result<()> {
        while !self.ending {
            for source in self.wait()? {
                match source {
                    Source::Node => self.receive()?,
                    Source::NodeOut => {}
                    Source::Signals => self.take_signals()?,
                    Source::Stdin => {
                        if let Some(job) = &mut self.job {
                            job.feed().write();
                        }
                    }
                    Source::Output(stream) => {
                        self.capture(stream, READS_PER_TURN)?;
                    }
                }
            }
            self.advance()?;
            self.tell_what_was_fed()?;
            self.send_held()?;
            self.out.flush()?;
            self.start_zygote()?;
        }
        Ok(())
    }

    /// Ends whatever still runs, and leaves nothing behind.
    pub(crate) fn end(&mut self) {
        let deadline = Instant::now() + END_PATIENCE;
        while Instant::now() < deadline {
            match processes::reap() {
                Ok(Reap::One(_)) => {}
                Ok(Reap::Later) => {
                    processes::kill_all(self.options.contained);
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(Reap::Nobody) | Err(_) => break,
            }
        }
        if let Some(job) = self.job.take() {
            self.clean(job.user);
        }
    }

    /// Waits until there is something to do, and says what.
    fn wait(&mut self) -> io::Result<Vec<Source>> {
        let active = self.job.as_ref().and_then(|job| job.active.as_ref());
        let mut sources: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![
            (Source::Signals, self.signals.as_fd(), PollFlags::IN),
            (Source::Node, stdio::stdin(), PollFlags::IN),
        ];
        let now = Instant::now();
        // What is held follows as soon as there is room, also when all that was pushed before has been written.
        if self.out.is_due(now) || self.sending.is_some() {
            sources.push((Source::NodeOut, stdio::stdout(), PollFlags::OUT));
        }
        if let Some(active) = active {
            if self.out.len() <= OUT_HIGH {
                for (stream, capture) in [
                    (Stream::Stdout, &active.stdout),
                    (Stream::Stderr, &active.stderr),
                ] {
                    if let Some(fd) = capture.fd() {
                        sources.push((Source::Output(stream), fd.as_fd(), PollFlags::IN));
                    }
                }
            }
            if let Some(fd) = active.stdin.wants() {
                sources.push((Source::Stdin, fd.as_fd(), PollFlags::OUT));
            }
        }
        let next_check = active.map(Active::next_check);
        let next = next_check.into_iter().chain(self.out.due_later(now)).min();
        let timeout = next.map(|next| {
            let rest = next.saturating_duration_since(now);
            // A wait that is too long for the type is cut short; the loop comes back to it.
            Timespec::try_from(rest).unwrap_or(Timespec {
                tv_sec: 3600,
                tv_nsec: 0,
            })
        });
        let mut fds: Vec<PollFd<'_>> = sources
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        Ok(sources
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|((source, _, _), _)| *source)
            .collect())
    }

    /// Reads the signals that arrived. SIGCHLD needs no more: every turn of the loop reaps. Any other is a wish to end.
    fn take_signals(&mut self) -> io::Result<()> {
        const SIZE: usize = size_of::<libc::signalfd_siginfo>();
        let mut buffer = [0; 8 * SIZE];
        loop {
            match rustix::io::read(&self.signals, &mut buffer) {
                Ok(length) => {
                    for info in buffer[..length].chunks_exact(SIZE) {
                        // The number is the first field.
                        let number = info.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
                        if number != Some(libc::SIGCHLD.cast_unsigned()) {
                            self.ending = true;
                        }
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads what the node sent.
    fn receive(&mut self) -> io::Result<()> {
        loop {
            match rustix::io::read(stdio::stdin(), &mut self.buffer[..]) {
                Ok(0) => {
                    self.ending = true;
                    return Ok(());
                }
                Ok(length) => {
                    self.decoder.extend(&self.buffer[..length]);
                    while let Some(request) = self.decoder.frame().map_err(io::Error::other)? {
                        self.handle(request)?;
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn handle(&mut self, request: Request) -> io::Result<()> {
        match (request, &mut self.job) {
            (Request::Run(run), None) => self.start(*run),
            (Request::Load { data }, None) => self.load(&data),
            (Request::Fetch, None) => {
                self.sending = Some(0);
                Ok(())
            }
            (Request::Forget, None) => {
                self.forget();
                Ok(())
            }
            (
                Request::Run(_) | Request::Load { .. } | Request::Fetch | Request::Forget,
                Some(_),
            ) => Err(io::Error::other(
                "told during a run what belongs between two",
            )),
            // Said to a run that ended in the meantime.
            (_, None) => Ok(()),
            (Request::Stdin { data }, Some(job)) => {
                job.feed().push(&data);
                Ok(())
            }
            (Request::CloseStdin, Some(job)) => {
                job.feed().close();
                Ok(())
            }
            (Request::Signal { signal }, Some(job)) => {
                // A signal is meant for the program; its compiler would only fail.
                if let Some(active) = &job.active
                    && active.kind == StepKind::Run
                {
                    active.signal(signal);
                }
                Ok(())
            }
            (Request::Resize { size }, Some(job)) => {
                if let Some(terminal) = &mut job.terminal {
                    *terminal = size;
                    if let Some(active) = &job.active {
                        active.resize(size);
                    }
                }
                Ok(())
            }
            (Request::Kill, Some(job)) => {
                job.cancelled = true;
                if let Some(active) = &mut job.active {
                    active.stop(LimitHit::Cancelled, &self.meters);
                }
                Ok(())
            }
        }
    }

    fn load(&mut self, data: &[u8]) -> io::Result<()> {
        match &mut self.held {
            Some(held) if self.loading => held.append(data),
            _ => {
                self.forget();
                self.loading = true;
                self.held.insert(Archive::new()?).append(data)
            }
        }
    }

    fn forget(&mut self) {
        self.held = None;
        self.sending = None;
        self.loading = false;
    }

    fn start(&mut self, run: Run) -> io::Result<()> {
        if self.sending.is_some() {
            return Err(io::Error::other("told to run before what is held was sent"));
        }
        self.loading = false;
        let waiting = self.claim(&run)?;
        let user = match &waiting {
            Some(waiting) => waiting.user(),
            None => self.take_user(),
        };
        let Run {
            program,
            compile,
            hold,
            data,
            run,
            collect,
            stdin,
            close_stdin,
            terminal,
            zygote,
        } = run;
        self.next_zygote = zygote.filter(|_| !self.no_zygotes);
        if matches!(program, Program::Files(_)) {
            self.forget();
        }
        self.job = Some(Job {
            user,
            run,
            interactive: !close_stdin,
            terminal,
            hold,
            data,
            collect,
            stdin: Feed::new(stdin, close_stdin, terminal.is_some()),
            active: None,
            zygote: waiting,
            cancelled: false,
        });
        if let Err(error) = self.fill_box(user, &program) {
            return self.not_written(error);
        }
        // Not needed any more, and a program's memory is measured from what the warden has at the fork.
        drop(program);
        match compile {
            Some(step) => self.start_step(StepKind::Compile, &step),
            None => self.start_run(),
        }
    }

    /// The interpreter that waits, if it is for this run. Any other is ended.
    fn claim(&mut self, run: &Run) -> io::Result<Option<Waiting>> {
        let Some(waiting) = self.zygote.take() else {
            return Ok(None);
        };
        if run.compile.is_none() && run.zygote.is_some() && waiting.is_for(&run.run) {
            // Before the box is filled: one that would not wait must find nothing there.
            if waiting.is_ready()? {
                return Ok(Some(waiting));
            }
            self.give_up_zygotes("does not wait");
        }
        processes::end_all(self.options.contained)?;
        let left = self.clean(waiting.user());
        if left.is_empty() {
            Ok(None)
        } else {
            Err(io::Error::other(format!("left by a zygote: {left:?}")))
        }
    }

    /// Starts the interpreter for the next run, if nothing else is to be done.
    fn start_zygote(&mut self) -> io::Result<()> {
        if self.next_zygote.is_none() || self.job.is_some() || !self.out.is_empty() || self.ending {
            return Ok(());
        }
        let mut next = [PollFd::from_borrowed_fd(stdio::stdin(), PollFlags::IN)];
        let now = Timespec::default();
        match rustix::event::poll(&mut next, Some(&now)) {
            Ok(0) => {}
            // The next run may be here already, and of another kind.
            Ok(_) | Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let Some(zygote) = self.next_zygote.take() else {
            return Ok(());
        };
        let user = self.take_user();
        match Waiting::start(&self.place(user, &[], None), zygote) {
            Ok(waiting) => self.zygote = Some(waiting),
            Err(error) => self.give_up_zygotes(&format!("cannot be started: {error:?}")),
        }
        Ok(())
    }

    /// Without zygotes every run begins as it otherwise would.
    fn give_up_zygotes(&mut self, reason: &str) {
        eprintln!("quorun-warden: a zygote {reason}; there will be no more here");
        self.no_zygotes = true;
        self.next_zygote = None;
    }

    fn place<'a>(
        &'a self,
        user: Option<User>,
        waiting: &'a [u8],
        terminal: Option<WindowSize>,
    ) -> Place<'a> {
        Place {
            waiting,
            terminal,
            work: &self.options.work,
            tmp: &self.options.tmp,
            path: &self.options.path,
            user,
            contained: self.options.contained,
        }
    }

    fn fill_box(&mut self, user: Option<User>, program: &Program) -> Result<(), WriteError> {
        let _acting = ActingAs::new(user)
            .map_err(|error| WriteError::Sandbox(format!("becoming the job's user: {error}")))?;
        match (program, &mut self.held) {
            (Program::Files(files), _) => files::write(&self.options.work, files),
            (Program::Held, Some(held)) => held.restore(&self.options.work),
            (Program::Held, None) => Err(WriteError::Sandbox(
                "there is no archive to start from".into(),
            )),
        }
    }

    /// The run ends because something could not be written into its box.
    fn not_written(&mut self, error: WriteError) -> io::Result<()> {
        let (message, submission) = match error {
            WriteError::Submission(message) => (message, true),
            WriteError::Sandbox(message) => (message, false),
        };
        self.done(End::Failed {
            message,
            submission,
        })
    }

    /// Writes what the compile step was not to see.
    fn add_data(&self, user: Option<User>, data: &[protocol::File]) -> Result<(), WriteError> {
        let _acting = ActingAs::new(user)
            .map_err(|error| WriteError::Sandbox(format!("becoming the job's user: {error}")))?;
        files::write(&self.options.work, data)
    }

    /// Sends the files that the run was to leave. None of its processes is left, or none that could be ended: whatever is
    /// there is read as it is, as far as it goes.
    fn send_files(&mut self) -> io::Result<()> {
        let Some(job) = &mut self.job else {
            return Ok(());
        };
        let collect = std::mem::take(&mut job.collect);
        if collect.names.is_empty() {
            return Ok(());
        }
        let acting = ActingAs::new(job.user).map_err(|error| error.to_string());
        let mut rest = collect.bytes;
        for (index, name) in (0..).zip(&collect.names) {
            let opened = match &acting {
                Ok(_) => files::open(&self.options.work, name),
                Err(error) => Err(format!("becoming the job's user: {error}")),
            };
            let (file, size) = match opened {
                Ok((file, size)) => (file, size),
                Err(reason) => {
                    self.send_file(index, Err(reason), 0)?;
                    continue;
                }
            };
            let mut offset = 0;
            loop {
                let length = MAX_OUTPUT.min(usize::try_from(rest).unwrap_or(MAX_OUTPUT));
                let read = match rustix::io::pread(&file, &mut self.buffer[..length], offset) {
                    Ok(read) => read,
                    Err(Errno::INTR) => continue,
                    Err(error) => {
                        self.send_file(index, Err(error.to_string()), 0)?;
                        break;
                    }
                };
                // The first part also says that the file is there.
                if read > 0 || offset == 0 {
                    self.send_file(index, Ok(size), read)?;
                }
                rest -= read as u64;
                offset += read as u64;
                if read == 0 {
                    break;
                }
            }
        }
        drop(acting);
        Ok(())
    }

    /// Sends the beginning of the buffer as a part of a file.
    fn send_file(
        &mut self,
        index: u32,
        size: Result<u64, String>,
        length: usize,
    ) -> io::Result<()> {
        let data = self.buffer[..length].to_vec();
        self.send(&Event::File { index, size, data })
    }

    /// Holds what the box holds now, as a run asked for.
    fn hold(&mut self, user: Option<User>, limit: u64) -> io::Result<()> {
        let taken = match ActingAs::new(user) {
            Ok(_acting) => {
                Archive::of(&self.options.work, limit).map_err(|error| error.to_string())
            }
            Err(error) => Err(format!("becoming the job's user: {error}")),
        };
        let (held, refused) = match taken {
            Ok(archive) => (Some(archive), None),
            Err(reason) => (None, Some(reason)),
        };
        self.held = held;
        self.send(&Event::Held { refused })
    }

    /// Sends what is held as fast as the node takes it.
    fn send_held(&mut self) -> io::Result<()> {
        while let Some(sent) = self.sending {
            if self.out.len() > OUT_HIGH {
                break;
            }
            let length = match &self.held {
                Some(held) => held.read_at(&mut self.buffer[..], sent)?,
                None => 0,
            };
            let next = sent + length as u64;
            let last = self.held.as_ref().is_none_or(|held| next >= held.len());
            let data = self.buffer[..length].to_vec();
            self.send(&Event::Archive { data, last })?;
            self.sending = Some(next);
            if last {
                self.forget();
            }
        }
        Ok(())
    }

    /// The node sends no more to stdin than it has been told of: a program that does not read holds up its own input and
    /// nothing else.
    fn tell_what_was_fed(&mut self) -> io::Result<()> {
        let fed = self.job.as_mut().map_or(0, |job| job.feed().take_fed());
        if fed == 0 {
            return Ok(());
        }
        self.send(&Event::Fed { bytes: fed })
    }

    fn take_user(&mut self) -> Option<User> {
        let range = self.options.uids.as_ref()?;
        let uid = self.next_uid?;
        let next = uid + 1;
        self.next_uid = Some(if range.contains(&next) {
            next
        } else {
            range.start
        });
        Some(User(uid))
    }

    fn start_run(&mut self) -> io::Result<()> {
        let Some(job) = &mut self.job else {
            return Ok(());
        };
        let (step, user, hold) = (job.run.clone(), job.user, job.hold.take());
        let data = std::mem::take(&mut job.data);
        if let Some(limit) = hold {
            self.hold(user, limit)?;
        }
        if !data.is_empty()
            && let Err(error) = self.add_data(user, &data)
        {
            return self.not_written(error);
        }
        // Not needed any more, as above.
        drop(data);
        self.start_step(StepKind::Run, &step)
    }

    fn start_step(&mut self, kind: StepKind, step: &Step) -> io::Result<()> {
        let waiting = match (&mut self.job, kind) {
            (Some(job), StepKind::Run) => job.zygote.take(),
            _ => None,
        };
        let claimed = waiting.is_some();
        let mut before = Before::now(&self.meters);
        let ahead = waiting.and_then(Waiting::release);
        let zygote = ahead.is_some();
        if claimed && !zygote {
            self.give_up_zygotes("has ended while it waited");
            processes::end_all(self.options.contained)?;
            before = Before::now(&self.meters);
        }
        let Some(job) = &self.job else {
            return Ok(());
        };
        let started = match ahead {
            Some(program) => Ok(program),
            None => {
                let terminal = job.terminal.filter(|_| kind == StepKind::Run);
                let place = self.place(job.user, job.stdin.waiting(), terminal);
                spawn::spawn(&place, step, &[])
            }
        };
        let Some(job) = &mut self.job else {
            return Ok(());
        };
        match started {
            Ok(program) => {
                let stdin = match kind {
                    StepKind::Compile => Feed::new(Vec::new(), true, false),
                    StepKind::Run => std::mem::take(&mut job.stdin),
                };
                let limits = step.limits;
                let active = Active::new(kind, limits, program, &before, &self.meters, stdin);
                let active = job.active.insert(active);
                if job.cancelled {
                    active.stop(LimitHit::Cancelled, &self.meters);
                }
                self.send(&Event::Started { step: kind, zygote })
            }
            Err(SpawnError::Start(error)) => {
                let report = Report {
                    start_error: Some(error),
                    ..Report::default()
                };
                self.step_done(kind, report)
            }
            Err(SpawnError::Sandbox(message)) => self.done(End::Failed {
                message,
                submission: false,
            }),
        }
    }

    /// Reaps, looks at the limits, and goes on to what comes next.
    fn advance(&mut self) -> io::Result<()> {
        while let Some(job) = &mut self.job {
            let Some(active) = &mut job.active else {
                return Ok(());
            };
            loop {
                match processes::reap()? {
                    Reap::One(reaped) => active.reaped(reaped, &self.meters),
                    Reap::Later => break,
                    Reap::Nobody => {
                        active.nobody_left();
                        break;
                    }
                }
            }
            let now = Instant::now();
            active.check(&self.meters, now);
            if !active.is_over() && !active.is_stuck(now) {
                return Ok(());
            }
            // Nobody writes any more: what the pipes hold is the rest.
            self.capture(Stream::Stdout, usize::MAX)?;
            self.capture(Stream::Stderr, usize::MAX)?;
            let Some(active) = self.job.as_mut().and_then(|job| job.active.take()) else {
                return Ok(());
            };
            self.step_done(active.kind, active.report(&self.meters))?;
        }
        // Nothing runs, but somebody may have been left from a job that could not be ended.
        while let Reap::One(reaped) = processes::reap()? {
            if self.zygote.take_if(|w| w.pid() == reaped.pid).is_some() {
                self.give_up_zygotes("has ended by itself");
            }
        }
        Ok(())
    }

    fn step_done(&mut self, kind: StepKind, report: Report) -> io::Result<()> {
        match kind {
            StepKind::Run => {
                self.send_files()?;
                self.done(End::Ran(report))
            }
            StepKind::Compile => {
                let compiled = report.exit_code == Some(0) && report.limit.is_none();
                self.send(&Event::CompileDone(report))?;
                if compiled {
                    if let Err(message) = self.leave_only_the_box() {
                        return self.done(End::Failed {
                            message,
                            submission: false,
                        });
                    }
                    self.start_run()
                } else {
                    self.done(End::NotCompiled)
                }
            }
        }
    }

    /// Empties every folder but the box after a compile step. Only the box is held: what the step left elsewhere would be
    /// there for the first run of a program and for none of the others.
    fn leave_only_the_box(&self) -> Result<(), String> {
        let user = self.job.as_ref().and_then(|job| job.user);
        let _acting =
            ActingAs::new(user).map_err(|error| format!("becoming the job's user: {error}"))?;
        for folder in &self.folders {
            if *folder != self.options.work {
                files::wipe(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            }
        }
        Ok(())
    }

    /// Says how the job ended, and only then cleans up: the node does not wait for that.
    fn done(&mut self, end: End) -> io::Result<()> {
        let Some(job) = self.job.take() else {
            return Ok(());
        };
        self.send(&Event::Done(end))?;
        self.out.flush()?;
        if job.zygote.is_some() {
            processes::end_all(self.options.contained)?;
        }
        let left = self.clean(job.user);
        self.send(&Event::Clean {
            ok: left.is_empty(),
            left,
        })
    }

    /// Reads what a program printed and passes it on.
    fn capture(&mut self, stream: Stream, reads: usize) -> io::Result<()> {
        let Some(job) = &mut self.job else {
            return Ok(());
        };
        let lingers = !job.interactive;
        let Some(active) = &mut job.active else {
            return Ok(());
        };
        let step = active.kind;
        let capture = match stream {
            Stream::Stdout => &mut active.stdout,
            Stream::Stderr => &mut active.stderr,
        };
        for _ in 0..reads {
            let Some(piece) = capture.read(&mut self.buffer) else {
                break;
            };
            if piece.length > 0 {
                self.out.push(&Event::Output {
                    step,
                    stream,
                    offset: piece.offset,
                    data: self.buffer[..piece.length].to_vec(),
                })?;
                self.out.linger(lingers);
            }
        }
        Ok(())
    }

    /// Removes what a job left, and says what could not be removed.
    fn clean(&self, user: Option<User>) -> Vec<String> {
        let mut left = Vec::new();
        match processes::reap() {
            Ok(Reap::Nobody) => {}
            Ok(_) => left.push("processes that do not end".to_owned()),
            Err(error) => left.push(format!("processes: {error}")),
        }
        if self.options.contained {
            match processes::others() {
                Ok(pids) if pids.is_empty() => {}
                Ok(pids) => left.push(format!("processes {pids:?}")),
                Err(error) => left.push(format!("/proc: {error}")),
            }
        }
        free_what_is_in_flight();
        match ActingAs::new(user) {
            Ok(_acting) => {
                for folder in &self.folders {
                    if let Err(error) = files::wipe(folder) {
                        left.push(format!("{}: {error}", folder.display()));
                    }
                }
            }
            Err(error) => left.push(format!("becoming the job's user: {error}")),
        }
        for folder in &self.folders {
            match files::is_empty(folder) {
                Ok(true) => {}
                Ok(false) => left.push(format!("{} is not empty", folder.display())),
                Err(error) => left.push(format!("{}: {error}", folder.display())),
            }
        }
        if self.options.contained {
            // The filter keeps them from being made; should one be there all the same, something is wrong with the filter.
            for kind in ["shm", "msg", "sem"] {
                let objects = std::fs::read_to_string(format!("/proc/sysvipc/{kind}"));
                if objects.is_ok_and(|text| text.lines().count() > 1) {
                    left.push(format!("System V {kind} objects"));
                }
            }
        }
        left
    }

    fn send(&mut self, event: &Event) -> io::Result<()> {
        self.out.push(event)?;
        self.out.linger(matches!(event, Event::Started { .. }));
        Ok(())
    }
}

impl Job {
    /// What is written to stdin goes to the run step, whether it has been started or not.
    fn feed(&mut self) -> &mut Feed {
        match &mut self.active {
            Some(active) if active.kind == StepKind::Run => &mut active.stdin,
            _ => &mut self.stdin,
        }
    }
}

/// Frames on their way to the node.
#[derive(Debug, Default)]
struct OutQueue {
    bytes: Vec<u8>,
    written: usize,
    /// When it is to be written at the latest; `None` when it is empty.
    due: Option<Instant>,
}

impl OutQueue {
    fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&mut self, event: &Event) -> io::Result<()> {
        protocol::encode(event, &mut self.bytes).map_err(io::Error::other)
    }

    /// What was pushed last may wait a moment for what comes after it, or may not.
    fn linger(&mut self, may: bool) {
        let now = Instant::now();
        let due = if may && self.len() < LINGER_BYTES {
            now + LINGER
        } else {
            now
        };
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    fn is_due(&self, now: Instant) -> bool {
        !self.is_empty() && self.due.is_none_or(|due| due <= now)
    }

    /// When it will be due, if it is not yet.
    fn due_later(&self, now: Instant) -> Option<Instant> {
        self.due.filter(|due| *due > now && !self.is_empty())
    }

    /// Writes what the node takes, if it is time to.
    fn flush(&mut self) -> io::Result<()> {
        if !self.is_due(Instant::now()) {
            return Ok(());
        }
        while !self.is_empty() {
            match rustix::io::write(stdio::stdout(), &self.bytes[self.written..]) {
                Ok(length) => self.written += length,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.is_empty() {
            self.written = 0;
            self.due = None;
            if self.bytes.capacity() > 4 * MAX_OUTPUT {
                self.bytes = Vec::new();
            } else {
                self.bytes.clear();
            }
        } else if self.written > OUT_HIGH {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }
}

/// Has the kernel free what a job's sockets hold. Sockets that were sent over each other outlive all processes, with
/// every file that was sent along, and whatever these hold in memory counts against the next job: the kernel looks for
/// such rings only when some socket of this kind is closed.
fn free_what_is_in_flight() {
    drop(UnixStream::pair());
}

/// Keeps programs from making terminals; the warden makes the one of a run that is to have one. The machine has so many of
/// them for all containers together; a runtime that has its own kernel, and its own terminals, may refuse.
fn close_terminals() {
    match rustix::fs::chmod("/dev/pts/ptmx", Mode::from_raw_mode(0o600)) {
        Err(error) if error != Errno::NOENT => {
            eprintln!("quorun-warden: terminals can be made: /dev/pts/ptmx: {error}");
        }
        _ => {}
    }
}

/// Blocks the signals that the loop takes from a descriptor instead.
fn signal_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: the set is filled by sigemptyset before it is used; the process has one thread; a descriptor that
    // signalfd returned is open and nobody else's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Some number of the range: sandboxes that start at the same time shall not all begin with the same user.
fn any_of(range: &std::ops::Range<u32>) -> io::Result<u32> {
    let mut bytes = [0; 4];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(range.start + u32::from_ne_bytes(bytes) % (range.end - range.start))
}
