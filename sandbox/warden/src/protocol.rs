//! What a node and a warden say to each other, and how it looks on the wire.
//!
//! The warden's stdin carries [`Request`]s, its stdout [`Event`]s. Each is one frame: a length (u32, big endian, at most
//! [`MAX_FRAME`]) and a postcard encoding of that length. A node always brings the warden that it was built with, so the
//! two never differ in [`VERSION`] unless somebody mixed them up; the first frame says the version to notice just that.
//!
//! One run, seen from the node:
//!
//! ```text
//! ← Ready                       once, when the warden has started
//! → Load …                      only for a run whose files the node has in an archive
//! → Run
//! ← Started(compile)            for languages with a compile step
//! ← Output(compile) …
//! ← CompileDone
//! ← Held                        only if the run asked for it: an archive of the box, as the program will find it
//! ← Started(run)                not after a failed compile step
//! → Stdin … CloseStdin, Signal, Resize  at any time while it runs, or Kill
//! ← Fed …                       how much of what came by Stdin the program has been given
//! ← Output(run) …
//! ← File …                      only if the run asked for files that the program was to leave
//! ← Done                        every process of the job is gone; its output is complete
//! ← Clean                       every writable folder is empty again: the next Run may come
//! ```
//!
//! A job with several test cases is several runs: the first one brings the source, compiles it and has the box held; each
//! further one starts from what is held, in a box that was wiped in between and as another user. What the cases are
//! expected to print never comes here. The node may [`Request::Fetch`] what is held, to keep it for a later job with the
//! same source, which then begins with [`Request::Load`].
//!
//! A run may name a [`Zygote`]: an interpreter that is started when the run is over and cleaned up, and waits for the next
//! one. Nothing is said of that; the start of a run that found one waiting says so.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The protocol's version; changes with every change of its types.
pub const VERSION: u32 = 4;

/// No frame is longer than this, bytes. What does not fit is an error, never an allocation.
pub const MAX_FRAME: usize = 64 << 20;

/// Bytes before the payload of a frame.
pub const HEADER: usize = 4;

/// Longest piece of output in one [`Event::Output`], bytes.
pub const MAX_OUTPUT: usize = 64 << 10;

/// Beyond its cap a program may go on printing (the rest is dropped) until it has printed this many times the cap.
pub const OUTPUT_EXCESS: u64 = 10;

/// What the node tells the warden.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Run a program. Only when no other is there: after [`Event::Ready`] or [`Event::Clean`].
    Run(Box<Run>),
    /// A part of an archive that the next run takes its files from ([`Program::Held`]). Only between two runs; what was
    /// held from a run is gone with the first part.
    Load {
        /// The bytes that follow those of the part before.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Send what is held, which is then held no more. Only between two runs; answered by [`Event::Archive`].
    Fetch,
    /// Hold nothing any more. Only between two runs.
    Forget,
    /// More of the program's stdin.
    Stdin {
        /// The bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// The end of the program's stdin.
    CloseStdin,
    /// Send a signal to the program's process group.
    Signal {
        /// Number of the signal.
        signal: i32,
    },
    /// The size of the program's terminal, if it has one.
    Resize {
        /// The new one.
        size: WindowSize,
    },
    /// End the job: the node does not want it any more. Answered by [`Event::Done`] like any other end.
    Kill,
}

/// What the box holds before anything starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// These files.
    Files(Vec<File>),
    /// What the warden holds: of an earlier run, or loaded.
    Held,
}

/// A run: one program, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Written below the box before anything starts.
    pub program: Program,
    /// Runs first; its failure ends the run.
    pub compile: Option<Step>,
    /// Hold what the box holds when the program starts, if it is at most this much, bytes.
    pub hold: Option<u64>,
    /// Written below the box just before the program starts: the compile step has not seen them, and they are not held.
    pub data: Vec<File>,
    /// The program.
    pub run: Step,
    /// What is read of the box when the program has ended.
    pub collect: Collect,
    /// What the program reads.
    #[serde(with = "serde_bytes")]
    pub stdin: Vec<u8>,
    /// The program's stdin ends after [`Self::stdin`]; otherwise it stays open for [`Request::Stdin`].
    pub close_stdin: bool,
    /// The program's stdin, stdout and stderr are a terminal of this size instead of pipes; what it prints comes as its
    /// stdout. The end of stdin is then a control-D.
    pub terminal: Option<WindowSize>,
    /// This run may be given the interpreter that waits, if [`Self::run`] is what it was started for; and this one is
    /// started after it. With `None` there is neither.
    pub zygote: Option<Zygote>,
}

/// Files below the box that the node wants to have when the program has ended, however it did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collect {
    /// Their names, as for [`File::name`].
    pub names: Vec<String>,
    /// What is sent of all of them together, in their order, bytes.
    pub bytes: u64,
}

/// The size of a terminal, characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in each.
    pub columns: u16,
}

/// An interpreter that is started ahead of the run that it is for, and waits just before it opens its program. It serves
/// one run, or none: whatever else comes first, it is ended before that begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zygote {
    /// What it is started as. It serves a run whose step is exactly this.
    pub step: Step,
    /// Added to the step's environment: what makes the interpreter load its hook. The hook says by a byte to descriptor
    /// [`ZYGOTE_READY`] that it waits, does so until a byte comes from [`ZYGOTE_GO`], closes both, and takes these
    /// variables and [`ZYGOTE_VARIABLE`] out of the environment.
    pub env: Vec<(String, String)>,
}

/// Set for a zygote's hook, which does nothing without it.
pub const ZYGOTE_VARIABLE: &str = "QUORUN_ZYGOTE";

/// The descriptor that a zygote's hook waits for.
pub const ZYGOTE_GO: i32 = 3;

/// The descriptor by which a zygote's hook says that it waits.
pub const ZYGOTE_READY: i32 = 4;

/// A file of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Path below the box: relative, `/` between its parts, no part empty, `.` or `..`.
    pub name: String,
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub content: Vec<u8>,
}

/// A command with its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Program and arguments. A program without `/` is looked up in the step's PATH.
    pub argv: Vec<String>,
    /// Added to the environment that every step has (PATH, HOME, TMPDIR, LANG).
    pub env: Vec<(String, String)>,
    /// What it may use.
    pub limits: Limits,
}

/// What a step may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time over all processes, microseconds.
    pub cpu_us: u64,
    /// Wall-clock time, microseconds.
    pub wall_us: u64,
    /// Memory, KiB. In a container the cgroup enforces it and the warden only reads its counters; otherwise the warden
    /// samples the resident memory of the job's processes and ends the job that exceeds it.
    pub memory_kb: u64,
    /// Processes and threads at one time.
    pub processes: u32,
    /// What is kept of stdout, and again of stderr, bytes.
    pub output_bytes: u64,
    /// Largest file that it may write, bytes.
    pub file_bytes: u64,
    /// Open files of one process.
    pub open_files: u64,
    /// Stack of the main thread, bytes.
    pub stack_bytes: u64,
}

/// What the warden tells the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The warden has started.
    Ready(Ready),
    /// A step's program has been started.
    Started {
        /// Which step.
        step: StepKind,
        /// It had been started ahead, and waited.
        zygote: bool,
    },
    /// What a step printed, as it prints it, up to its cap.
    Output {
        /// Which step.
        step: StepKind,
        /// Where it was printed.
        stream: Stream,
        /// How many bytes of this stream came before.
        offset: u64,
        /// The bytes, at most [`MAX_OUTPUT`].
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// The compile step has ended.
    CompileDone(Report),
    /// The box is held, as [`Run::hold`] wanted; or not.
    Held {
        /// Why not, for people.
        refused: Option<String>,
    },
    /// So many more bytes of what came by [`Request::Stdin`] have been given to the program, or never will be.
    Fed {
        /// How many.
        bytes: u64,
    },
    /// A part of what was held, in answer to [`Request::Fetch`].
    Archive {
        /// The bytes, at most [`MAX_OUTPUT`].
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        /// Nothing follows.
        last: bool,
    },
    /// A part of a file of [`Run::collect`], or the news that there is none. Each name comes in its turn, with one event
    /// at least.
    File {
        /// Which of the names.
        index: u32,
        /// What is there, and how large it is; or why it cannot be had, for people.
        size: Result<u64, String>,
        /// The bytes that follow those of the part before, at most [`MAX_OUTPUT`].
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// The run has ended and none of its processes is left.
    Done(End),
    /// Everything that the job wrote has been removed.
    Clean {
        /// Nothing is left; otherwise the sandbox must not be used again.
        ok: bool,
        /// What is left, for people.
        left: Vec<String>,
    },
}

/// The warden's first words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`VERSION`] of the warden.
    pub version: u32,
    /// Its process id, as it sees it.
    pub pid: u32,
    /// It is PID 1 of a container and gives every job a user of its own.
    pub contained: bool,
    /// CPU time comes from the cgroup.
    pub cgroup_cpu: bool,
    /// Memory kills come from the cgroup.
    pub cgroup_memory: bool,
}

/// A step of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepKind {
    /// The compile step.
    Compile,
    /// The program itself.
    Run,
}

/// Where a program prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Its stdout.
    Stdout,
    /// Its stderr.
    Stderr,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The program was started and ended.
    Ran(Report),
    /// The compile step did not end well; [`Event::CompileDone`] says how.
    NotCompiled,
    /// The job could not be run.
    Failed {
        /// Why, for people.
        message: String,
        /// The submission is the reason (a file name, too many bytes), not the sandbox.
        submission: bool,
    },
}

/// How a step ended, in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Exit code of the step's first process.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// CPU time, user and system, over all processes, microseconds.
    pub cpu_us: u64,
    /// From the start to the end of the first process, microseconds.
    pub wall_us: u64,
    /// Peak memory, KiB: the largest resident set that any one process of the step had; where the warden itself ended
    /// the step for its memory, what all of them had together.
    pub memory_kb: u64,
    /// Bytes printed to stdout, kept or not.
    pub stdout_bytes: u64,
    /// Bytes printed to stderr, kept or not.
    pub stderr_bytes: u64,
    /// Part of stdout was dropped.
    pub stdout_truncated: bool,
    /// Part of stderr was dropped.
    pub stderr_truncated: bool,
    /// Why the warden ended it, or which limit the kernel ended it for.
    pub limit: Option<LimitHit>,
    /// The program could not be started at all.
    pub start_error: Option<StartError>,
}

/// Which limit ended a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitHit {
    /// CPU time.
    Cpu,
    /// Wall-clock time.
    Wall,
    /// Memory.
    Memory,
    /// Printed more than [`OUTPUT_EXCESS`] times its cap.
    Output,
    /// Processes, where the kernel does not hold them down (outside a container).
    Processes,
    /// Not a limit: the node said [`Request::Kill`].
    Cancelled,
}

/// Why a program could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartError {
    /// The program.
    pub program: String,
    /// What failed.
    pub stage: String,
    /// The error's number.
    pub errno: i32,
    /// The program was looked up in PATH and is in none of its folders.
    pub not_found: bool,
}

impl StartError {
    /// What was submitted is the reason: an argument or a variable with a NUL byte, or too many of them.
    #[must_use]
    pub const fn is_submission(&self) -> bool {
        matches!(self.errno, EINVAL | E2BIG)
    }
}

/// Numbers of the two errors that the kernel (or the warden in its stead) has for bad arguments.
const EINVAL: i32 = 22;
const E2BIG: i32 = 7;

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = std::io::Error::from_raw_os_error(self.errno);
        write!(f, "{}: {}: {reason}", self.program, self.stage)
    }
}

/// Why a frame could not be made or read.
#[derive(Debug)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`].
    TooLong(usize),
    /// Not an encoding of what was expected.
    Malformed(postcard::Error),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(length) => {
                write!(f, "a frame of {length} bytes; the most is {MAX_FRAME}")
            }
            Self::Malformed(error) => write!(f, "a malformed frame: {error}"),
        }
    }
}

impl std::error::Error for FrameError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLong(_) => None,
            Self::Malformed(error) => Some(error),
        }
    }
}

/// Appends `message` to `buffer` as one frame; on an error the buffer is as it was.
///
/// # Errors
///
/// The message is longer than [`MAX_FRAME`] or cannot be encoded.
pub fn encode<T: Serialize>(message: &T, buffer: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = buffer.len();
    let result = encode_behind(message, buffer, start);
    if result.is_err() {
        buffer.truncate(start);
    }
    result
}

fn encode_behind<T: Serialize>(
    message: &T,
    buffer: &mut Vec<u8>,
    start: usize,
) -> Result<(), FrameError> {
    /// Lets postcard write behind what is already in a buffer.
    struct Tail<'a>(&'a mut Vec<u8>);
    impl Extend<u8> for Tail<'_> {
        fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
            self.0.extend(bytes);
        }
    }
    buffer.extend_from_slice(&[0; HEADER]);
    postcard::to_extend(message, Tail(buffer)).map_err(FrameError::Malformed)?;
    let length = buffer.len() - start - HEADER;
    match u32::try_from(length) {
        Ok(header) if length <= MAX_FRAME => {
            buffer[start..start + HEADER].copy_from_slice(&header.to_be_bytes());
            Ok(())
        }
        _ => Err(FrameError::TooLong(length)),
    }
}

/// Puts frames together from bytes that arrive in pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    read: usize,
}

impl Decoder {
    /// Takes what has arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has arrived.
    ///
    /// # Errors
    ///
    /// The frame is longer than [`MAX_FRAME`] or is no encoding of `T`. Nothing that follows can be trusted.
    pub fn frame<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let waiting = &self.buffer[self.read..];
        let Some((header, rest)) = waiting.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*header) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        let Some(payload) = rest.get(..length) else {
            // Room for the whole frame at once, instead of growing to it by doubling.
            let missing = HEADER + length - waiting.len();
            self.compact();
            self.buffer.reserve_exact(missing);
            return Ok(None);
        };
        let message = postcard::from_bytes(payload).map_err(FrameError::Malformed)?;
        self.read += HEADER + length;
        if self.read == self.buffer.len() {
            self.read = 0;
            if self.buffer.capacity() > 2 * MAX_OUTPUT {
                self.buffer = Vec::new();
            } else {
                self.buffer.clear();
            }
        }
        Ok(Some(message))
    }

    /// Nothing has arrived that was not handed out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read == self.buffer.len()
    }

    fn compact(&mut self) {
        if self.read > 0 {
            self.buffer.drain(..self.read);
            self.read = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Request {
        let limits = Limits {
            cpu_us: 2_000_000,
            wall_us: 5_000_000,
            memory_kb: 262_144,
            processes: 64,
            output_bytes: 409_600,
            file_bytes: 1 << 26,
            open_files: 1024,
            stack_bytes: 1 << 26,
        };
        Request::Run(Box::new(Run {
            program: Program::Files(vec![File {
                name: "src/main.py".into(),
                content: vec![0xff; 70_000],
            }]),
            compile: None,
            hold: Some(1 << 20),
            data: Vec::new(),
            run: Step {
                argv: vec!["python3".into(), "main.py".into()],
                env: vec![("A".into(), "b".into())],
                limits,
            },
            collect: Collect::default(),
            stdin: vec![0, 1, 2, 255],
            close_stdin: true,
            terminal: None,
            zygote: None,
        }))
    }

    fn decode_in_pieces(bytes: &[u8], piece: usize) -> Vec<Request> {
        let mut decoder = Decoder::default();
        let mut requests = Vec::new();
        for part in bytes.chunks(piece) {
            decoder.extend(part);
            while let Some(request) = decoder.frame().unwrap() {
                requests.push(request);
            }
        }
        assert!(decoder.is_empty());
        requests
    }

    #[test]
    fn frames_survive_any_cut() {
        let sent = vec![
            run(),
            Request::Stdin {
                data: b"abc".to_vec(),
            },
            Request::CloseStdin,
            Request::Signal { signal: 15 },
            Request::Kill,
        ];
        let mut bytes = Vec::new();
        for request in &sent {
            encode(request, &mut bytes).unwrap();
        }
        for piece in [1, 3, 4, 5, 1000, 65_536, bytes.len()] {
            assert_eq!(decode_in_pieces(&bytes, piece), sent, "pieces of {piece}");
        }
    }

    #[test]
    fn a_length_beyond_the_maximum_is_refused_before_any_allocation() {
        let mut decoder = Decoder::default();
        decoder.extend(&u32::MAX.to_be_bytes());
        assert!(matches!(
            decoder.frame::<Request>(),
            Err(FrameError::TooLong(_))
        ));
    }

    #[test]
    fn too_long_a_message_leaves_the_buffer_as_it_was() {
        let mut bytes = b"before".to_vec();
        let request = Request::Stdin {
            data: vec![0; MAX_FRAME + 1],
        };
        assert!(matches!(
            encode(&request, &mut bytes),
            Err(FrameError::TooLong(_))
        ));
        assert_eq!(bytes, b"before");
    }

    #[test]
    fn garbage_is_an_error() {
        let mut decoder = Decoder::default();
        decoder.extend(&[0, 0, 0, 2, 250, 250]);
        assert!(matches!(
            decoder.frame::<Request>(),
            Err(FrameError::Malformed(_))
        ));
    }

    #[test]
    fn a_large_frame_does_not_keep_its_buffer() {
        let mut bytes = Vec::new();
        encode(
            &Request::Stdin {
                data: vec![7; 4 << 20],
            },
            &mut bytes,
        )
        .unwrap();
        let mut decoder = Decoder::default();
        decoder.extend(&bytes);
        assert!(decoder.frame::<Request>().unwrap().is_some());
        assert_eq!(decoder.buffer.capacity(), 0);
    }
}
