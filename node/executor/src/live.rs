//! Output on its way to those who watch a job while it runs.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::task::{Chunk, Stream};

/// Longest piece that is sent at once.
const MAX_CHUNK: usize = 64 << 10;

/// How long the last pieces may wait for a watcher that is there but does not read.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a run printed, with a mark of how much of it has been sent on. A watcher that is slow gets larger pieces later;
/// one that has gone gets none. The job never waits for either.
#[derive(Debug)]
pub(crate) struct Live {
    sender: Option<mpsc::Sender<Chunk>>,
    stdout: Track,
    stderr: Track,
}

#[derive(Debug, Default)]
struct Track {
    bytes: BytesMut,
    sent: usize,
}

impl Live {
    pub(crate) fn new(sender: mpsc::Sender<Chunk>) -> Self {
        Self {
            sender: Some(sender),
            stdout: Track::default(),
            stderr: Track::default(),
        }
    }

    /// Forgets what was printed, because the job starts again; what was sent is not sent again.
    pub(crate) fn restart(&mut self) {
        self.stdout.bytes.clear();
        self.stderr.bytes.clear();
    }

    /// Takes what was printed.
    pub(crate) fn push(&mut self, stream: Stream, data: &[u8]) {
        self.track(stream).bytes.extend_from_slice(data);
    }

    /// How much was printed.
    pub(crate) fn len(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout.bytes.len() as u64,
            Stream::Stderr => self.stderr.bytes.len() as u64,
        }
    }

    /// Sends one piece as soon as there is room for it; never ends when there is nothing to send. May be dropped at any
    /// time.
    pub(crate) async fn forward(&mut self) {
        let stream = match (self.stdout.waits(), self.stderr.waits()) {
            (true, _) => Stream::Stdout,
            (_, true) => Stream::Stderr,
            _ => return std::future::pending().await,
        };
        let Some(sender) = self.sender.clone() else {
            return std::future::pending().await;
        };
        match sender.reserve().await {
            Ok(permit) => permit.send(self.track(stream).take(stream)),
            Err(_) => self.sender = None,
        };
    }

    /// Sends the rest, for a while.
    pub(crate) async fn finish(&mut self) {
        let rest = async {
            while self.sender.is_some() && (self.stdout.waits() || self.stderr.waits()) {
                self.forward().await;
            }
        };
        // Whoever watches finds the whole output in the result.
        let _ = tokio::time::timeout(PATIENCE, rest).await;
    }

    /// All of stdout and stderr.
    pub(crate) fn take_output(&mut self) -> (Bytes, Bytes) {
        let take = |track: &mut Track| std::mem::take(&mut track.bytes).freeze();
        (take(&mut self.stdout), take(&mut self.stderr))
    }

    fn track(&mut self, stream: Stream) -> &mut Track {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

impl Track {
    fn waits(&self) -> bool {
        self.sent < self.bytes.len()
    }

    fn take(&mut self, stream: Stream) -> Chunk {
        let end = self.bytes.len().min(self.sent + MAX_CHUNK);
        let chunk = Chunk {
            stream,
            offset: self.sent as u64,
            data: Bytes::copy_from_slice(&self.bytes[self.sent..end]),
        };
        self.sent = end;
        chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_join_up_and_are_not_repeated_after_a_restart() {
        let (sender, mut receiver) = mpsc::channel(16);
        let mut live = Live::new(sender);
        live.push(Stream::Stdout, b"abc");
        live.forward().await;
        live.restart();
        live.push(Stream::Stdout, b"ab");
        live.push(Stream::Stderr, b"E");
        live.finish().await;
        live.push(Stream::Stdout, b"cdef");
        live.finish().await;
        let (stdout, stderr) = live.take_output();
        assert_eq!((&stdout[..], &stderr[..]), (&b"abcdef"[..], &b"E"[..]));
        drop(live);
        let mut seen = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            seen.push((chunk.stream, chunk.offset, chunk.data.to_vec()));
        }
        assert_eq!(
            seen,
            [
                (Stream::Stdout, 0, b"abc".to_vec()),
                (Stream::Stderr, 0, b"E".to_vec()),
                (Stream::Stdout, 3, b"def".to_vec()),
            ]
        );
    }

    #[tokio::test]
    async fn a_watcher_that_has_gone_stops_nothing() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        let mut live = Live::new(sender);
        live.push(Stream::Stdout, b"abc");
        live.forward().await;
        live.finish().await;
        assert_eq!(live.len(Stream::Stdout), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_does_not_read_is_given_up_on() {
        let (sender, _receiver) = mpsc::channel(1);
        let mut live = Live::new(sender);
        live.push(Stream::Stdout, &vec![0; 3 * MAX_CHUNK]);
        live.finish().await;
        assert!(live.stdout.waits());
    }
}
