//! What running attempts print, while they print it.
//!
//! The worker puts pieces in; listeners, on this node or on others through [`Watch`](quorun_proto::v1), read every
//! attempt from wherever they want, at their own pace. All of it is kept until the report of the attempt is settled: its
//! size is bounded by the output caps of the jobs that run here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use quorun_executor::{CaseEnded, Chunk};
use quorun_ledger::JobId;
use tokio::sync::watch;

use crate::resume::{Position, slot};

/// One attempt of one job.
pub type Attempt = (JobId, u32);

/// What a listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Something was printed.
    Output(Chunk),
    /// A test case has ended.
    Case(CaseEnded),
}

impl Piece {
    /// Whether a listener who has come so far knows all of it.
    fn is_before(&self, position: &Position) -> bool {
        match self {
            Self::Output(chunk) => {
                let end = chunk.offset.saturating_add(chunk.data.len() as u64);
                end <= position.heard[slot(chunk.stream)]
            }
            Self::Case(case) => case.index < position.cases,
        }
    }
}

#[derive(Debug, Default)]
struct Tape {
    pieces: Mutex<Vec<Piece>>,
    /// How many pieces there are, and whether there will be no more.
    progress: watch::Sender<(usize, bool)>,
}

/// The output of the attempts that run on this node.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    tapes: Arc<Mutex<HashMap<Attempt, Arc<Tape>>>>,
}

impl Outputs {
    /// Starts to record an attempt.
    #[must_use]
    pub fn record(&self, attempt: Attempt) -> Recorder {
        let tape = Arc::new(Tape::default());
        self.lock().insert(attempt, Arc::clone(&tape));
        Recorder {
            attempt,
            tape,
            tapes: Arc::clone(&self.tapes),
        }
    }

    /// Listens to an attempt from a position, or from somewhat before it; `None` when it does not run here.
    #[must_use]
    pub fn listen(&self, attempt: Attempt, from: Position) -> Option<Listener> {
        let tape = self.lock().get(&attempt).map(Arc::clone)?;
        let progress = tape.progress.subscribe();
        Some(Listener {
            tape,
            progress,
            from,
            next: 0,
            until: None,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Attempt, Arc<Tape>>> {
        self.tapes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct Recorder {
    attempt: Attempt,
    tape: Arc<Tape>,
    tapes: Arc<Mutex<HashMap<Attempt, Arc<Tape>>>>,
}

impl Recorder {
    /// Adds what was printed.
    pub fn push(&self, chunk: Chunk) {
        self.add(Piece::Output(chunk));
    }

    /// Adds how a test case ended.
    pub fn case(&self, case: CaseEnded) {
        self.add(Piece::Case(case));
    }

    fn add(&self, piece: Piece) {
        let count = {
            let mut pieces = self
                .tape
                .pieces
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            pieces.push(piece);
            pieces.len()
        };
        self.tape.progress.send_modify(|p| p.0 = count);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.tapes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.attempt);
        // The result has all of it. A listener that does not read must not keep it for ever.
        let mut pieces = self
            .tape
            .pieces
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *pieces = Vec::new();
        drop(pieces);
        self.tape.progress.send_replace((0, true));
    }
}

/// A listener's end.
#[derive(Debug)]
pub struct Listener {
    tape: Arc<Tape>,
    progress: watch::Receiver<(usize, bool)>,
    from: Position,
    next: usize,
    /// Nothing behind so many pieces is wanted.
    until: Option<usize>,
}

impl Listener {
    /// Hears what there is now, and nothing that comes later.
    #[must_use]
    pub fn until_now(mut self) -> Self {
        self.until = Some(self.progress.borrow().0);
        self
    }

    /// Whether all was heard that is wanted of an attempt that goes on.
    pub fn has_shown(&self) -> bool {
        self.until.is_some_and(|until| self.next >= until) && !self.progress.borrow().1
    }

    /// The next piece, once there is one; `None` when the attempt is over, whether or not all of it was heard, or when all
    /// that is wanted was heard.
    pub async fn next(&mut self) -> Option<Piece> {
        loop {
            let next = self.next;
            if self.until.is_some_and(|until| next >= until) {
                return None;
            }
            let (count, _) = *self
                .progress
                .wait_for(|(count, over)| *count > next || *over)
                .await
                .ok()?;
            if count <= next {
                return None;
            }
            let pieces = self
                .tape
                .pieces
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let until = self.until.unwrap_or(usize::MAX);
            while self.next < until
                && let Some(piece) = pieces.get(self.next)
            {
                self.next += 1;
                if !piece.is_before(&self.from) {
                    return Some(piece.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use quorun_executor::Stream;

    fn chunk(offset: u64, text: &'static str) -> Chunk {
        Chunk {
            stream: Stream::Stdout,
            offset,
            data: Bytes::from_static(text.as_bytes()),
        }
    }

    fn case(index: u32) -> CaseEnded {
        CaseEnded {
            index,
            result: quorun_ledger::TestResult {
                outcome: quorun_ledger::Outcome::without_run(quorun_ledger::Verdict::Accepted, "x"),
                stdout: Bytes::new(),
                stderr: Bytes::new(),
                stdout_truncated: false,
                stderr_truncated: false,
                name: None,
                hidden: false,
                score: None,
                checker: None,
            },
        }
    }

    #[tokio::test]
    async fn a_late_listener_hears_everything_and_the_end() {
        let outputs = Outputs::default();
        let attempt = (JobId::new(uuid::Uuid::now_v7()), 1);
        let start = Position::default();
        assert!(outputs.listen(attempt, start).is_none());
        let recorder = outputs.record(attempt);
        recorder.push(chunk(0, "a"));
        let mut listener = outputs.listen(attempt, start).unwrap();
        recorder.push(chunk(1, "b"));
        recorder.case(case(0));
        assert_eq!(listener.next().await, Some(Piece::Output(chunk(0, "a"))));
        assert_eq!(listener.next().await, Some(Piece::Output(chunk(1, "b"))));
        assert_eq!(listener.next().await, Some(Piece::Case(case(0))));
        drop(recorder);
        assert!(listener.next().await.is_none());
        assert!(outputs.listen(attempt, start).is_none());
    }

    #[tokio::test]
    async fn who_has_heard_something_is_given_the_rest() {
        let outputs = Outputs::default();
        let attempt = (JobId::new(uuid::Uuid::now_v7()), 1);
        let recorder = outputs.record(attempt);
        recorder.push(chunk(0, "abc"));
        recorder.push(chunk(3, "def"));
        recorder.case(case(0));
        recorder.case(case(1));
        let from: Position = "1-4-0-1".parse().unwrap();
        let mut listener = outputs.listen(attempt, from).unwrap();
        assert_eq!(listener.next().await, Some(Piece::Output(chunk(3, "def"))));
        assert_eq!(listener.next().await, Some(Piece::Case(case(1))));
        drop(recorder);
        assert!(listener.next().await.is_none());
    }

    #[tokio::test]
    async fn who_wants_what_there_is_waits_for_nothing() {
        let outputs = Outputs::default();
        let attempt = (JobId::new(uuid::Uuid::now_v7()), 1);
        let recorder = outputs.record(attempt);
        let listen = |from: &str| {
            let listener = outputs.listen(attempt, from.parse().unwrap());
            listener.unwrap().until_now()
        };
        let mut nothing = listen("1-0-0");
        assert!(nothing.next().await.is_none() && nothing.has_shown());
        recorder.push(chunk(0, "abc"));
        recorder.push(chunk(3, "def"));
        let mut listener = listen("1-3-0");
        assert!(listen("1-6-0").next().await.is_none());
        recorder.push(chunk(6, "ghi"));
        assert_eq!(listener.next().await, Some(Piece::Output(chunk(3, "def"))));
        assert!(listener.next().await.is_none() && listener.has_shown());
        // When the attempt is over, what there was of it may not have been heard: the result has it.
        let mut late = listen("1-0-0");
        drop(recorder);
        assert!(late.next().await.is_none() && !late.has_shown());
    }

    #[tokio::test]
    async fn a_listener_that_does_not_read_keeps_nothing_of_an_attempt_that_is_over() {
        let outputs = Outputs::default();
        let attempt = (JobId::new(uuid::Uuid::now_v7()), 1);
        let recorder = outputs.record(attempt);
        let data = Bytes::from(vec![b'x'; 1 << 20]);
        recorder.push(Chunk {
            stream: Stream::Stdout,
            offset: 0,
            data: data.clone(),
        });
        let mut listener = outputs.listen(attempt, Position::default()).unwrap();
        drop(recorder);
        assert!(data.is_unique());
        assert!(listener.next().await.is_none());
    }
}
