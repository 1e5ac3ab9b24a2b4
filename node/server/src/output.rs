//! What running attempts print, while they print it.
//!
//! The worker puts chunks in; listeners, on this node or on others through [`Watch`](quorun_proto::v1), read every
//! attempt from its first byte at their own pace. The size is bounded by the output caps of the jobs that run here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use quorun_executor::Chunk;
use quorun_ledger::JobId;
use tokio::sync::watch;

/// One attempt of one job.
pub type Attempt = (JobId, u32);

#[derive(Debug, Default)]
struct Tape {
    chunks: Mutex<Vec<Chunk>>,
    /// How many chunks there are, and whether there will be no more.
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

    /// Listens to an attempt from its first byte; `None` when it does not run here.
    #[must_use]
    pub fn listen(&self, attempt: Attempt) -> Option<Listener> {
        let tape = self.lock().get(&attempt).map(Arc::clone)?;
        let progress = tape.progress.subscribe();
        Some(Listener {
            tape,
            progress,
            next: 0,
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
        let count = {
            let mut chunks = self
                .tape
                .chunks
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            chunks.push(chunk);
            chunks.len()
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
        self.tape.progress.send_modify(|p| p.1 = true);
    }
}

/// A listener's end.
#[derive(Debug)]
pub struct Listener {
    tape: Arc<Tape>,
    progress: watch::Receiver<(usize, bool)>,
    next: usize,
}

impl Listener {
    /// The next chunk, once there is one; `None` when the attempt is over.
    pub async fn next(&mut self) -> Option<Chunk> {
        let next = self.next;
        let (count, _) = *self
            .progress
            .wait_for(|(count, over)| *count > next || *over)
            .await
            .ok()?;
        if count <= next {
            return None;
        }
        self.next += 1;
        let chunks = self
            .tape
            .chunks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        chunks.get(next).cloned()
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

    #[tokio::test]
    async fn a_late_listener_hears_everything_and_the_end() {
        let outputs = Outputs::default();
        let attempt = (JobId::new(uuid::Uuid::now_v7()), 1);
        assert!(outputs.listen(attempt).is_none());
        let recorder = outputs.record(attempt);
        recorder.push(chunk(0, "a"));
        let mut listener = outputs.listen(attempt).unwrap();
        recorder.push(chunk(1, "b"));
        assert_eq!(listener.next().await.unwrap().data, "a");
        assert_eq!(listener.next().await.unwrap().data, "b");
        drop(recorder);
        assert!(listener.next().await.is_none());
        assert!(outputs.listen(attempt).is_none());
    }
}
