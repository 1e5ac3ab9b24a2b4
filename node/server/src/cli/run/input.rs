//! What the program reads when this program's own stdin is not a terminal.
//!
//! `echo x | quorun run FILE` and `quorun run FILE < input` should do what they do with the program itself. What is all
//! there at once goes with the job. What does not end soon cannot be waited for: a build server may leave the write end of a
//! pipe open for ever, and a program that reads nothing must not wait for it. Then the rest flows to the program while it
//! runs, as it does with `--interactive`.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::super::usage;
use super::RunArgs;

/// Stands for this program's stdin.
const STDIN: &str = "-";
/// Read at once.
const PIECE: usize = 16 << 10;
/// How long the end of a pipe is waited for before the program is started without it.
const SOON: Duration = Duration::from_millis(250);
/// What may go with the job, bytes: what a node takes by default. More flows to the program.
const WITH_THE_JOB: usize = 1 << 20;
/// What is read to its end because somebody said so, bytes; no cluster takes as much.
const MOST: usize = 256 << 20;

/// This program's stdin, read once, piece by piece.
pub struct Keys {
    /// What was read and has not been passed on.
    first: VecDeque<Bytes>,
    rest: mpsc::Receiver<Bytes>,
}

impl Keys {
    /// Begins to read.
    pub fn begin() -> Self {
        let (to, rest) = mpsc::channel(4);
        // A read of a terminal or a pipe cannot be taken back; this program ends without it.
        tokio::spawn(async move {
            let mut stdin = tokio::io::stdin();
            let mut buffer = vec![0; PIECE];
            while let Ok(length @ 1..) = stdin.read(&mut buffer).await {
                let piece = Bytes::copy_from_slice(&buffer[..length]);
                if to.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Self {
            first: VecDeque::new(),
            rest,
        }
    }

    /// The next piece; `None` at the end. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Bytes> {
        match self.first.pop_front() {
            Some(piece) => Some(piece),
            None => self.rest.recv().await,
        }
    }

    /// All of it, if it ends within `patience` and is not longer than `most`.
    async fn whole(mut self, patience: Duration, most: usize) -> Result<Vec<u8>, Self> {
        let soon = tokio::time::sleep(patience);
        tokio::pin!(soon);
        let mut length = 0;
        loop {
            tokio::select! {
                piece = self.rest.recv() => match piece {
                    None => return Ok(Vec::from(self.first).concat()),
                    Some(piece) => {
                        length += piece.len();
                        self.first.push_back(piece);
                        if length > most {
                            return Err(self);
                        }
                    }
                },
                () = &mut soon => return Err(self),
            }
        }
    }
}

/// What a program reads.
pub enum Input {
    /// What the options say.
    Said,
    /// This, to its end.
    Whole(Vec<u8>),
    /// What comes while it runs.
    Flowing(Keys),
}

/// Whether a path stands for this program's stdin.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == STDIN
}

/// Refuses what would have two readers of one stdin.
pub fn check(args: &RunArgs) -> anyhow::Result<()> {
    let reads = args.stdin.as_deref().is_some_and(is_stdin);
    let wrong = if args.files.iter().any(|file| is_stdin(file)) {
        if args.files.len() > 1 {
            "the program from stdin (-) goes with no other file; name files, or ./- for a file of that name"
        } else if reads {
            "the program (-) and what it reads (--stdin -) cannot both come from stdin; put one of them into a file"
        } else if args.interactive {
            "the program cannot come from stdin (-) with --interactive, which is what talks to it there; put it into a file"
        } else if args.watch {
            "--watch watches files, and the program comes from stdin (-); put it into a file"
        } else if args.lang.is_none() {
            "the program comes from stdin (-), which has no extension; say its language with --lang"
        } else {
            return Ok(());
        }
    } else if reads && args.interactive {
        "--interactive passes stdin on by itself; leave --stdin - out"
    } else {
        return Ok(());
    };
    Err(usage(&anyhow!(wrong)))
}

/// Reads stdin to its end.
pub async fn all() -> anyhow::Result<Vec<u8>> {
    Keys::begin()
        .whole(Duration::MAX, MOST)
        .await
        .map_err(|_| usage(&anyhow!("stdin has more than {MOST} bytes")))
}

/// What the program reads: what the options say, and if they say nothing, what this program's stdin has, unless that is
/// needed for something else, or is a terminal or the like.
pub async fn of(args: &RunArgs) -> anyhow::Result<Input> {
    let taken = args.interactive || args.tests.is_some() || args.files.iter().any(|f| is_stdin(f));
    match &args.stdin {
        Some(path) if is_stdin(path) => return Ok(Input::Whole(all().await?)),
        None if !taken && !args.watch && has_something()? => {}
        _ => return Ok(Input::Said),
    }
    Ok(match Keys::begin().whole(SOON, WITH_THE_JOB).await {
        Ok(bytes) => Input::Whole(bytes),
        Err(keys) => Input::Flowing(keys),
    })
}

/// Whether stdin is where something may have been put for the program: a pipe, a file or a socket.
fn has_something() -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    let own = stdin.as_fd().try_clone_to_owned();
    let own = File::from(own.context("look at stdin")?);
    let kind = own.metadata().context("look at stdin")?.file_type();
    Ok(kind.is_fifo() || kind.is_file() || kind.is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (mpsc::Sender<Bytes>, Keys) {
        let (to, rest) = mpsc::channel(4);
        let first = VecDeque::new();
        (to, Keys { first, rest })
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_soon_is_whole_and_what_does_not_flows_from_its_beginning() {
        let (to, short) = keys();
        to.send(Bytes::from("a")).await.unwrap();
        to.send(Bytes::from("b")).await.unwrap();
        drop(to);
        assert_eq!(short.whole(SOON, 10).await.ok().unwrap(), b"ab");

        let (to, slow) = keys();
        to.send(Bytes::from("a")).await.unwrap();
        let mut slow = slow.whole(SOON, 10).await.err().unwrap();
        to.send(Bytes::from("b")).await.unwrap();
        drop(to);
        assert_eq!(slow.next().await.unwrap(), "a");
        assert_eq!(slow.next().await.unwrap(), "b");
        assert!(slow.next().await.is_none());

        let (to, long) = keys();
        to.send(Bytes::from("abc")).await.unwrap();
        let mut long = long.whole(SOON, 2).await.err().unwrap();
        assert_eq!(long.next().await.unwrap(), "abc");
    }
}
