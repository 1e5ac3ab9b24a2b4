//! The one thread that writes the log.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use openraft::storage::IOFlushed;
use quorun_ledger::codec;
use tokio::sync::oneshot;

use super::record::{self, Encoded, Extent};
use super::watermark::{DiskLogId, State, Watermark};
use super::{Shared, read_record};
use crate::disk::{Batch, to_io};
use crate::types::{LogId, TypeConfig, Vote, next_index};

pub(super) const STATE_KEY: &[u8] = b"s";
pub(super) const COMMITTED_KEY: &[u8] = b"c";
/// How many operations are written together at most.
const MAX_OPS: usize = 4096;
/// How many bytes of entries are written together at most, unless a single append is larger.
const MAX_BYTES: usize = 8 << 20;
/// How many keys of purged records are removed with one batch if it adds less than half as many; otherwise twice as many
/// as it adds, so that what is to be removed grows less whatever the load is. A removal takes sled up to 0.2 ms, and what
/// is appended meanwhile waits for it.
const MIN_REMOVALS: usize = 48;
/// Writing that takes longer is worth a warning.
const SLOW: Duration = Duration::from_millis(250);

/// What the writer is asked to do.
pub(super) enum Op {
    Append {
        entries: Vec<Encoded>,
        /// The last entry of the log behind them.
        last: Option<LogId>,
        callback: IOFlushed<TypeConfig>,
    },
    Vote {
        vote: Vote,
        done: oneshot::Sender<io::Result<()>>,
    },
    Truncate(Option<LogId>),
    Purge(LogId),
    Close,
}

/// The way to the writer.
#[derive(Clone, Debug)]
pub(super) enum Handover {
    Thread(mpsc::Sender<Op>),
    #[cfg(feature = "simulation")]
    Task(tokio::sync::mpsc::UnboundedSender<Op>),
}

impl Handover {
    /// To a writer that is a thread.
    pub(super) fn new() -> (Self, mpsc::Receiver<Op>) {
        let (ops, waiting) = mpsc::channel();
        (Self::Thread(ops), waiting)
    }

    pub(super) fn send(&self, op: Op) -> io::Result<()> {
        let taken = match self {
            Self::Thread(ops) => ops.send(op).is_ok(),
            #[cfg(feature = "simulation")]
            Self::Task(ops) => ops.send(op).is_ok(),
        };
        if taken {
            return Ok(());
        }
        Err(io::Error::other("the log is closed"))
    }
}

impl Op {
    fn size(&self) -> usize {
        match self {
            Self::Append { entries, .. } => entries.iter().map(|entry| entry.bytes.len()).sum(),
            _ => 0,
        }
    }
}

/// Who waits for a change to be on disk.
enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Vote(oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Append(callback) => callback.io_completed(result),
            // Whoever asked may have gone.
            Self::Vote(done) => drop(done.send(result)),
        }
    }
}

fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// The thread's own state: what is on disk, or will be with the batch that is being put together.
pub(super) struct Writer {
    shared: Arc<Shared>,
    watermark: Watermark,
    state: State,
    committed: Option<LogId>,
    /// Counts the truncations that it has come to.
    truncations: u64,
    records: BTreeMap<u64, Extent>,
    garbage: VecDeque<Extent>,
    failed: bool,
}

/// Changes on their way to the disk.
#[derive(Default)]
struct Staged {
    batch: Batch,
    /// Entries that are not packed yet; they follow the records.
    pending: Vec<Encoded>,
    /// How the records change: the new one at a first index, or `None` where it is gone.
    records: BTreeMap<u64, Option<Extent>>,
    waiters: Vec<Waiter>,
    changed: bool,
}

/// What has been handed to the database and is not safe yet.
enum Unsynced {
    Nothing,
    /// Nobody waits for it, but the log is closed.
    Remainder,
    /// A change of the log's state, which also goes into the watermark.
    Change,
}

impl Writer {
    pub(super) const fn new(
        shared: Arc<Shared>,
        watermark: Watermark,
        state: State,
        committed: Option<LogId>,
        records: BTreeMap<u64, Extent>,
        garbage: VecDeque<Extent>,
    ) -> Self {
        Self {
            shared,
            watermark,
            state,
            committed,
            truncations: 0,
            records,
            garbage,
            failed: false,
        }
    }

    pub(super) fn run(mut self, waiting: &mpsc::Receiver<Op>) {
        loop {
            let first = if self.garbage.is_empty() || self.failed {
                match waiting.recv() {
                    Ok(op) => Some(op),
                    Err(mpsc::RecvError) => return,
                }
            } else {
                match waiting.try_recv() {
                    Ok(op) => Some(op),
                    Err(mpsc::TryRecvError::Empty) => None,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            };
            let mut ops = Vec::new();
            let mut size = 0;
            let mut next = first;
            while let Some(op) = next {
                size += op.size();
                ops.push(op);
                if ops.len() >= MAX_OPS || size >= MAX_BYTES {
                    break;
                }
                next = waiting.try_recv().ok();
            }
            let close = ops.iter().any(|op| matches!(op, Op::Close));
            self.write(ops, close);
            if close {
                return;
            }
        }
    }

    /// The same as a task of the simulation. A crash can come while the disk is written.
    #[cfg(feature = "simulation")]
    pub(super) fn simulate(mut self) -> Handover {
        let (ops, mut waiting) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut ops = Vec::new();
            while waiting.recv_many(&mut ops, MAX_OPS).await > 0 {
                let ops = std::mem::take(&mut ops);
                let close = ops.iter().any(|op| matches!(op, Op::Close));
                let started = Instant::now();
                let (staged, unsynced) = self.stage_and_apply(ops, close);
                #[cfg(feature = "bugs")]
                let staged = self.answer_early(staged, unsynced.is_ok());
                tokio::time::sleep(crate::simulation::sync_time()).await;
                self.settle(staged, unsynced, started);
                if close {
                    return;
                }
            }
        });
        Handover::Task(ops)
    }

    fn write(&mut self, ops: Vec<Op>, close: bool) {
        let started = Instant::now();
        let (staged, unsynced) = self.stage_and_apply(ops, close);
        self.settle(staged, unsynced, started);
    }

    /// Hands the changes to the database, which may lose them as long as they are not synced.
    fn stage_and_apply(&mut self, ops: Vec<Op>, close: bool) -> (Staged, io::Result<Unsynced>) {
        let mut staged = Staged::default();
        let unsynced = if self.failed {
            staged.waiters = waiters(ops);
            // Whoever hears of this one first hears the reason of the first.
            let first = self.shared.failure.borrow().clone();
            Err(io::Error::other(first.unwrap_or_else(|| {
                "the log's writer has failed before".to_owned()
            })))
        } else {
            self.stage(ops, &mut staged)
                .and_then(|()| self.apply(&mut staged, close))
        };
        (staged, unsynced)
    }

    /// Waits for the disk, and tells those who wait for it.
    fn settle(&mut self, staged: Staged, unsynced: io::Result<Unsynced>, started: Instant) {
        #[cfg(feature = "bugs")]
        let staged = self.answer_early(staged, unsynced.is_ok());
        let change = matches!(unsynced, Ok(Unsynced::Change));
        match unsynced.and_then(|unsynced| self.sync(&unsynced)) {
            Ok(()) => {
                if change {
                    self.shared.appends.since(started);
                }
                let durable = next_index(self.state.last().as_ref());
                {
                    let mut inner = self.shared.inner.lock();
                    for (first, extent) in staged.records {
                        match extent {
                            Some(extent) => inner.records.insert(first, extent),
                            None => inner.records.remove(&first),
                        };
                    }
                    inner.vote = self.state.vote();
                    // Behind a truncation that the writer has not come to, the disk has other entries than the log.
                    if inner.truncations == self.truncations {
                        inner.shrink(durable);
                        self.shared.durable.send_replace(durable);
                    }
                }
                staged
                    .waiters
                    .into_iter()
                    .for_each(|waiter| waiter.tell(Ok(())));
                let took = started.elapsed();
                if took > SLOW {
                    tracing::warn!(?took, "writing the log is slow");
                }
            }
            Err(error) => {
                if !self.failed {
                    tracing::error!(%error, "the log cannot be written");
                    self.failed = true;
                }
                self.shared.fail(&error);
                for waiter in staged.waiters {
                    waiter.tell(Err(copy(&error)));
                }
            }
        }
    }

    /// A bug.
    #[cfg(feature = "bugs")]
    fn answer_early(&self, mut staged: Staged, applied: bool) -> Staged {
        if applied && quorun_ledger::bugs::Bug::AckBeforeSync.is_on() {
            let last = next_index(self.state.last().as_ref());
            self.shared.durable.send_replace(last);
            for waiter in staged.waiters.drain(..) {
                waiter.tell(Ok(()));
            }
        }
        staged
    }

    fn stage(&mut self, ops: Vec<Op>, staged: &mut Staged) -> io::Result<()> {
        let mut ops = ops.into_iter();
        while let Some(op) = ops.next() {
            let result = match op {
                Op::Append {
                    entries,
                    last,
                    callback,
                } => {
                    staged.waiters.push(Waiter::Append(callback));
                    staged.pending.extend(entries);
                    staged.changed = true;
                    self.state.set_last(last);
                    Ok(())
                }
                Op::Vote { vote, done } => {
                    staged.waiters.push(Waiter::Vote(done));
                    self.state.set_vote(&vote);
                    staged.changed = true;
                    Ok(())
                }
                Op::Truncate(after) => {
                    self.truncations += 1;
                    self.truncate(after, staged)
                }
                Op::Purge(upto) => {
                    self.purge(upto, staged);
                    Ok(())
                }
                Op::Close => Ok(()),
            };
            if let Err(error) = result {
                staged.waiters.extend(waiters(ops.by_ref().collect()));
                return Err(error);
            }
        }
        let pending = std::mem::take(&mut staged.pending);
        let extents = record::pack(&pending, &mut self.state.chain, |key, value| {
            staged.batch.insert(key.as_slice(), value);
        });
        self.keep(&extents, staged);
        Ok(())
    }

    fn keep(&mut self, extents: &[Extent], staged: &mut Staged) {
        for extent in extents {
            self.records.insert(extent.first, *extent);
            staged.records.insert(extent.first, Some(*extent));
        }
    }

    fn truncate(&mut self, after: Option<LogId>, staged: &mut Staged) -> io::Result<()> {
        let end = next_index(after.as_ref());
        if end >= next_index(self.state.last().as_ref()) {
            return Ok(());
        }
        staged.changed = true;
        staged.pending.retain(|entry| entry.index < end);
        let mut chain = None;
        while let Some((first, extent)) = self.records.last_key_value().map(|(f, e)| (*f, *e)) {
            if extent.last < end {
                break;
            }
            self.records.remove(&first);
            staged.records.insert(first, None);
            for key in extent.keys() {
                staged.batch.remove(&key);
            }
            let disk = self.shared.disk()?;
            let mut read = read_record(&disk, extent)?
                .ok_or_else(|| io::Error::other(format!("record {first} is missing")))?;
            read.entries.retain(|entry| entry.index < end);
            let mut before = read.before;
            let kept = record::pack(&read.entries, &mut before, |key, value| {
                staged.batch.insert(key.as_slice(), value);
            });
            self.keep(&kept, staged);
            chain = Some(before);
            if !kept.is_empty() {
                break;
            }
        }
        if let Some(chain) = chain {
            self.state.chain = chain;
        }
        let purged = self.state.purged();
        if end > next_index(purged.as_ref()) {
            self.state.set_last(after);
        } else {
            self.state.set_last(purged);
        }
        Ok(())
    }

    fn purge(&mut self, upto: LogId, staged: &mut Staged) {
        if self
            .state
            .purged()
            .is_some_and(|purged| purged.index >= upto.index)
        {
            return;
        }
        staged.changed = true;
        self.state.set_purged(Some(upto));
        staged.pending.retain(|entry| entry.index > upto.index);
        while let Some(entry) = self.records.first_entry() {
            if entry.get().last > upto.index {
                break;
            }
            staged.records.insert(*entry.key(), None);
            self.garbage.push_back(entry.remove());
        }
        if self
            .state
            .last()
            .is_none_or(|last| last.index <= upto.index)
        {
            self.state.set_last(Some(upto));
        }
        if staged.pending.is_empty() && self.records.is_empty() {
            self.state.chain = 0;
        }
    }

    fn apply(&mut self, staged: &mut Staged, close: bool) -> io::Result<Unsynced> {
        let disk = self.shared.disk()?;
        let most = MIN_REMOVALS.max(2 * staged.batch.len());
        let mut removals = 0;
        while let Some(extent) = self.garbage.front() {
            removals += extent.parts as usize;
            if removals > most.max(extent.parts as usize) {
                break;
            }
            for key in extent.keys() {
                staged.batch.remove(&key);
            }
            self.garbage.pop_front();
        }
        if !staged.changed {
            if removals > 0 || close {
                self.insert_committed(&mut staged.batch);
                let batch = std::mem::take(&mut staged.batch);
                disk.tree().apply_batch(batch).map_err(to_io)?;
            }
            return Ok(if close {
                Unsynced::Remainder
            } else {
                Unsynced::Nothing
            });
        }
        self.state.change += 1;
        staged.batch.insert(STATE_KEY, codec::encode(&self.state));
        self.insert_committed(&mut staged.batch);
        let batch = std::mem::take(&mut staged.batch);
        let written = if batch.only_adds() {
            // What comes before the state does not count without it, and is removed at the next start.
            disk.tree().apply_in_order(batch)
        } else {
            disk.tree().apply_batch(batch)
        };
        written.map_err(to_io)?;
        Ok(Unsynced::Change)
    }

    fn sync(&self, unsynced: &Unsynced) -> io::Result<()> {
        match unsynced {
            Unsynced::Nothing => Ok(()),
            Unsynced::Remainder => self.shared.disk()?.sync(),
            Unsynced::Change => {
                self.shared.disk()?.sync()?;
                self.watermark.write(&self.state)
            }
        }
    }

    /// Writes how far the log is known to be committed. What is not in the log yet is not spoken of, nor is anything while
    /// a truncation is still to come: another entry may stand in its place.
    fn insert_committed(&mut self, batch: &mut Batch) {
        let known = {
            let inner = self.shared.inner.lock();
            inner
                .committed
                .filter(|_| inner.truncations == self.truncations)
        };
        let held = |known: &LogId, last: LogId| {
            known.index <= last.index && known.leader_id.term <= last.leader_id.term
        };
        if let (Some(known), Some(last)) = (known, self.state.last())
            && held(&known, last)
        {
            self.committed = Some(known);
        }
        if let Some(committed) = self.committed {
            batch.insert(COMMITTED_KEY, codec::encode(&DiskLogId::from(committed)));
        }
    }
}

fn waiters(ops: Vec<Op>) -> Vec<Waiter> {
    ops.into_iter()
        .filter_map(|op| match op {
            Op::Append { callback, .. } => Some(Waiter::Append(callback)),
            Op::Vote { done, .. } => Some(Waiter::Vote(done)),
            _ => None,
        })
        .collect()
}
