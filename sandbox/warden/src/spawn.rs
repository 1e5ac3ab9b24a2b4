//! Starting a program: everything between fork and exec.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use quorun_warden::protocol::{Limits, StartError, Step, WindowSize};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid};

use crate::files::ActingAs;
use crate::memory::Withheld;
use crate::terminal;

/// The user that a job runs as; its group has the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User(pub(crate) u32);

impl User {
    pub(crate) fn uid(self) -> Uid {
        Uid::from_raw(self.0)
    }

    pub(crate) fn gid(self) -> Gid {
        Gid::from_raw(self.0)
    }
}

/// Where a program runs, besides what its step says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// What waits for the program and must not be inherited by it.
    pub(crate) waiting: &'a [u8],
    /// It has a terminal of this size in the place of pipes.
    pub(crate) terminal: Option<WindowSize>,
    pub(crate) work: &'a Path,
    pub(crate) tmp: &'a Path,
    pub(crate) path: &'a str,
    pub(crate) user: Option<User>,
    pub(crate) contained: bool,
}

/// A program that has been started, with the warden's ends of its stdin, stdout and stderr.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    /// CPU time that it had used before it became the job's, microseconds.
    pub(crate) cpu_us: u64,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// The warden's end of the program's terminal, if it has one.
    pub(crate) terminal: Option<OwnedFd>,
}

/// A descriptor that a program gets beside stdin, stdout and stderr. Its source is one of [`pipe_away`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handed {
    pub(crate) source: RawFd,
    /// Its number in the program.
    pub(crate) target: RawFd,
}

/// Descriptors of [`pipe_away`] have this number or a higher one: no [`Handed::target`] is as high.
const AWAY: RawFd = 16;

/// Why a program could not be started.
#[derive(Debug)]
pub(crate) enum SpawnError {
    /// The program itself: it is missing or cannot be executed.
    Start(StartError),
    /// The sandbox: no process, no pipe.
    Sandbox(String),
}

/// The kernel's own CPU limit, seconds, for one of ours. It is only a backstop, and far behind: it counts each process by
/// itself, and in ticks, which on a busy machine can run well ahead of the time that was really used.
fn cpu_backstop(cpu_us: u64) -> u64 {
    2 * cpu_us.div_ceil(1_000_000) + 1
}

/// Starts a step's program and returns when it has been executed.
pub(crate) fn spawn(
    place: &Place<'_>,
    step: &Step,
    handed: &[Handed],
) -> Result<Started, SpawnError> {
    let sandbox = |what: &str, error: io::Error| SpawnError::Sandbox(format!("{what}: {error}"));
    let image = Image::new(place, step)?;
    let words = pipe_away().map_err(|error| sandbox("pipe", error))?;
    let ends = Ends::new(place)?;
    let plan = Plan {
        image: &image,
        redirect: ends.program.each_ref().map(AsRawFd::as_raw_fd),
        terminal: ends.terminal.is_some(),
        words: words.write.as_raw_fd(),
        handed,
        user: place.user,
        contained: place.contained,
        parent: rustix::process::getpid(),
        limits: rlimits(&step.limits, place.user.is_some()),
    };
    let withheld = Withheld::new(place.waiting);
    // SAFETY: this process has one thread, so the child may go on from here; it makes system calls only, allocates
    // nothing, and ends in exec or _exit.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(sandbox("fork", io::Error::last_os_error())),
        0 => plan.execute(),
        pid => Pid::from_raw(pid)
            .ok_or_else(|| SpawnError::Sandbox("fork: not a process id".to_owned()))?,
    };
    drop(withheld);
    drop(words.write);
    drop(ends.program);
    // Exec closes the other end; until then a failure is told as its stage and its errno.
    let mut message = Vec::with_capacity(FAILURE_LENGTH);
    File::from(words.read)
        .read_to_end(&mut message)
        .map_err(|error| sandbox("pipe", error))?;
    if let Some((stage, errno)) = parse_failure(&message) {
        // Reaped here: the loop never hears of a program that never was.
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        if stage == Stage::Execute {
            return Err(SpawnError::Start(StartError {
                program: image.program,
                stage: "cannot be executed".to_owned(),
                errno,
                not_found: image.searched && errno == libc::ENOENT,
            }));
        }
        return Err(sandbox(
            &format!("starting a program: {stage:?}"),
            io::Error::from_raw_os_error(errno),
        ));
    }
    Ok(Started {
        pid,
        cpu_us: 0,
        stdin: ends.stdin,
        stdout: ends.stdout,
        stderr: ends.stderr,
        terminal: ends.terminal,
    })
}

/// What a program talks through.
struct Ends {
    /// Its stdin, stdout and stderr.
    program: [OwnedFd; 3],
    /// The warden's.
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    terminal: Option<OwnedFd>,
}

impl Ends {
    fn new(place: &Place<'_>) -> Result<Self, SpawnError> {
        let sandbox =
            |what: &'static str| move |error| SpawnError::Sandbox(format!("{what}: {error}"));
        match place.terminal {
            Some(size) => Self::terminal(size).map_err(sandbox("terminal")),
            None => {
                // Made as the job's user, so that a program may open its own /dev/stdin and /dev/stdout.
                let _acting = ActingAs::new(place.user).map_err(sandbox("setuid"))?;
                Self::pipes().map_err(sandbox("pipe"))
            }
        }
    }

    fn pipes() -> io::Result<Self> {
        let (stdin, stdout, stderr) = (pipe()?, pipe()?, pipe()?);
        Ok(Self {
            program: [stdin.read, stdout.write, stderr.write],
            stdin: stdin.write,
            stdout: stdout.read,
            stderr: stderr.read,
            terminal: None,
        })
    }

    /// All three are one terminal. The warden's stderr is a pipe that nobody writes to.
    fn terminal(size: WindowSize) -> io::Result<Self> {
        let ends = terminal::open(size)?;
        Ok(Self {
            program: [
                ends.program.try_clone()?,
                ends.program.try_clone()?,
                ends.program,
            ],
            stdin: ends.warden.try_clone()?,
            stdout: ends.warden.try_clone()?,
            stderr: pipe()?.read,
            terminal: Some(ends.warden),
        })
    }
}

/// A pipe's two ends.
pub(crate) struct Pipe {
    pub(crate) read: OwnedFd,
    pub(crate) write: OwnedFd,
}

fn pipe() -> Result<Pipe, Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok(Pipe { read, write })
}

/// A pipe whose descriptors are out of the way of those that a program gets.
pub(crate) fn pipe_away() -> io::Result<Pipe> {
    let near = pipe()?;
    Ok(Pipe {
        read: rustix::io::fcntl_dupfd_cloexec(&near.read, AWAY)?,
        write: rustix::io::fcntl_dupfd_cloexec(&near.write, AWAY)?,
    })
}

/// What can go wrong between fork and exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    Session,
    Redirect,
    Parent,
    OomScore,
    Limits,
    User,
    Folder,
    Privileges,
    Descriptors,
    Execute,
}

const STAGES: [Stage; 10] = [
    Stage::Session,
    Stage::Redirect,
    Stage::Parent,
    Stage::OomScore,
    Stage::Limits,
    Stage::User,
    Stage::Folder,
    Stage::Privileges,
    Stage::Descriptors,
    Stage::Execute,
];

/// A stage (one byte) and an errno.
const FAILURE_LENGTH: usize = 5;

fn parse_failure(message: &[u8]) -> Option<(Stage, i32)> {
    let (stage, errno) = message.split_first()?;
    let stage = STAGES.iter().find(|s| **s as u8 == *stage)?;
    Some((*stage, i32::from_ne_bytes(errno.try_into().ok()?)))
}

/// What is executed, as the kernel wants it: made before the fork, because the child must not allocate.
struct Image {
    program: String,
    /// The program was to be looked up in PATH.
    searched: bool,
    candidates: Vec<CString>,
    arguments: Strings,
    environment: Strings,
    work: CString,
}

/// C strings and the array of pointers to them that ends with a null.
struct Strings {
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl Strings {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        Self {
            pointers,
            _strings: strings,
        }
    }
}

impl Image {
    fn new(place: &Place<'_>, step: &Step) -> Result<Self, SpawnError> {
        let program = step
            .argv
            .first()
            .filter(|program| !program.is_empty())
            .ok_or_else(|| SpawnError::Sandbox("the command is empty".to_owned()))?;
        let text = |bytes: &[u8]| {
            CString::new(bytes).map_err(|_| {
                SpawnError::Start(StartError {
                    program: program.clone(),
                    stage: "an argument or an environment variable has a NUL byte".to_owned(),
                    errno: libc::EINVAL,
                    not_found: false,
                })
            })
        };
        let mut environment = BTreeMap::from([
            ("PATH", place.path.as_bytes()),
            ("HOME", place.work.as_os_str().as_bytes()),
            ("TMPDIR", place.tmp.as_os_str().as_bytes()),
            ("LANG", b"C.UTF-8"),
        ]);
        for (name, value) in &step.env {
            environment.insert(name, value.as_bytes());
        }
        let path = environment.get("PATH").copied().unwrap_or_default();
        let searched = !program.contains('/');
        let candidates = if searched {
            path.split(|byte| *byte == b':')
                .filter(|folder| !folder.is_empty())
                .map(|folder| text(&[folder, b"/", program.as_bytes()].concat()))
                .collect::<Result<_, _>>()?
        } else {
            vec![text(program.as_bytes())?]
        };
        let arguments = step
            .argv
            .iter()
            .map(|argument| text(argument.as_bytes()))
            .collect::<Result<_, _>>()?;
        let variables = environment
            .iter()
            .map(|(name, value)| text(&[name.as_bytes(), b"=", value].concat()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            program: program.clone(),
            searched,
            candidates,
            arguments: Strings::new(arguments),
            environment: Strings::new(variables),
            work: text(place.work.as_os_str().as_bytes())?,
        })
    }
}

type Rlimits = [Option<(Resource, Rlimit)>; 6];

/// What the kernel enforces for each process. `own_user` says that the job's user has no other processes, so that the
/// kernel's count of them is the job's.
fn rlimits(limits: &Limits, own_user: bool) -> Rlimits {
    let both = |value: u64| Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    let cpu_s = cpu_backstop(limits.cpu_us);
    [
        Some((
            Resource::Cpu,
            Rlimit {
                current: Some(cpu_s),
                maximum: Some(cpu_s + 1),
            },
        )),
        Some((Resource::Fsize, both(limits.file_bytes))),
        Some((Resource::Nofile, both(limits.open_files))),
        // No file is that small, and where a host pipes cores into a program of its own, 1 and not 0 means none.
        Some((Resource::Core, both(1))),
        Some((Resource::Stack, both(limits.stack_bytes))),
        own_user.then(|| (Resource::Nproc, both(u64::from(limits.processes)))),
        // No RLIMIT_AS: node and java reserve far more address space than they use.
    ]
}

/// Everything the child needs, in a form that takes no allocation.
struct Plan<'a> {
    image: &'a Image,
    redirect: [RawFd; 3],
    /// They are a terminal, which becomes that of the program's session.
    terminal: bool,
    words: RawFd,
    handed: &'a [Handed],
    user: Option<User>,
    contained: bool,
    parent: Pid,
    limits: Rlimits,
}

impl Plan<'_> {
    /// The child: becomes the program, or says why not.
    fn execute(&self) -> ! {
        let (stage, error) = match self.prepare() {
            Ok(()) => (Stage::Execute, self.exec()),
            Err(failure) => failure,
        };
        let mut message = [0; FAILURE_LENGTH];
        message[0] = stage as u8;
        message[1..].copy_from_slice(&error.raw_os_error().to_ne_bytes());
        // SAFETY: `words` is open in the child until exec; _exit runs no handler of the parent's.
        unsafe {
            libc::write(self.words, message.as_ptr().cast(), message.len());
            libc::_exit(127)
        }
    }

    fn prepare(&self) -> Result<(), (Stage, Errno)> {
        let at = |stage| move |error| (stage, error);
        // A session of its own, hence a process group of its own and no terminal.
        rustix::process::setsid().map_err(at(Stage::Session))?;
        for (target, source) in (0..).zip(self.redirect) {
            // SAFETY: `source` is an open descriptor of the warden's and above 2, because the warden has 0, 1 and 2 open.
            if unsafe { libc::dup2(source, target) } < 0 {
                return Err((Stage::Redirect, last_errno()));
            }
        }
        if self.terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
                .map_err(at(Stage::Redirect))?;
        }
        rustix::process::umask(Mode::from_raw_mode(0o022));
        reset_signals();
        // The kernel takes the job's processes first when memory runs out, never the warden. A process that is not
        // dumpable (as the warden is not) has its files in /proc owned by root.
        let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable);
        if let Err(error) = write_oom_score()
            && self.contained
        {
            return Err((Stage::OomScore, error));
        }
        for (resource, limit) in self.limits.iter().flatten() {
            set_limit(*resource, *limit).map_err(at(Stage::Limits))?;
        }
        if let Some(user) = self.user {
            rustix::thread::set_thread_groups(&[]).map_err(at(Stage::User))?;
            let (uid, gid) = (user.uid(), user.gid());
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at(Stage::User))?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at(Stage::User))?;
        }
        // After the change of user, which would clear it. In a container the end of PID 1 ends everything anyway.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(at(Stage::Parent))?;
        if rustix::process::getppid() != Some(self.parent) {
            return Err((Stage::Parent, Errno::SRCH));
        }
        rustix::process::chdir(self.image.work.as_c_str()).map_err(at(Stage::Folder))?;
        rustix::thread::set_no_new_privs(true).map_err(at(Stage::Privileges))?;
        close_descriptors().map_err(at(Stage::Descriptors))?;
        for handed in self.handed {
            // SAFETY: what had the target's number is a copy of one of the warden's, which the program must not have anyway;
            // `words` and the sources are away from there.
            if unsafe { libc::dup2(handed.source, handed.target) } < 0 {
                return Err((Stage::Descriptors, last_errno()));
            }
        }
        Ok(())
    }

    /// Executes the first candidate that there is; returns only when there is none.
    fn exec(&self) -> Errno {
        let mut result = Errno::NOENT;
        for candidate in &self.image.candidates {
            // SAFETY: the strings and the arrays of pointers live in `image`, end with a null, and nobody changes them.
            unsafe {
                libc::execve(
                    candidate.as_ptr(),
                    self.image.arguments.pointers.as_ptr(),
                    self.image.environment.pointers.as_ptr(),
                );
            }
            match last_errno() {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => result = Errno::ACCESS,
                error => return error,
            }
        }
        result
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Default dispositions and no signal blocked, whatever the warden and those before it had.
fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default disposition is valid for every signal; for those that have no other it fails, harmlessly.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    // SAFETY: a set that sigemptyset has filled is a valid mask.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn write_oom_score() -> Result<(), Errno> {
    let file = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::io::write(&file, b"1000").map(drop)
}

/// Sets a limit, or the highest that may be set when a lower one is already in force.
fn set_limit(resource: Resource, wanted: Rlimit) -> Result<(), Errno> {
    let ceiling = rustix::process::getrlimit(resource).maximum;
    let clamp = |value: Option<u64>| match (value, ceiling) {
        (Some(value), Some(ceiling)) => Some(value.min(ceiling)),
        (value, None) => value,
        (None, ceiling) => ceiling,
    };
    let limit = Rlimit {
        current: clamp(wanted.current),
        maximum: clamp(wanted.maximum),
    };
    rustix::process::setrlimit(resource, limit)
}

/// Every descriptor of the warden is made with close-on-exec; this is for those that it was given.
fn close_descriptors() -> Result<(), Errno> {
    // SAFETY: marks descriptors, closes none; nothing here depends on their being inherited.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3_u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    match result {
        0 => Ok(()),
        // Kernels before 5.11, and seccomp profiles of that time.
        _ if matches!(last_errno(), Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
            for fd in 3..1024 {
                // SAFETY: sets a flag on a descriptor, or fails because it is not open.
                unsafe {
                    libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                }
            }
            Ok(())
        }
        _ => Err(last_errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_read_back() {
        for stage in STAGES {
            let mut message = vec![stage as u8];
            message.extend(7_i32.to_ne_bytes());
            assert_eq!(parse_failure(&message), Some((stage, 7)));
        }
        assert_eq!(parse_failure(&[]), None);
        assert_eq!(parse_failure(&[200, 0, 0, 0, 0]), None);
    }
}
