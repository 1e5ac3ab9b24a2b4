//! The Raft log and the vote, over sled.
//!
//! Appending never touches the disk: it puts the entries into the tail in memory, where they can be read at once, and
//! hands them to the [`writer`], one thread that takes appends, votes, truncations and purges in the order in which they
//! came. The writer takes whatever waits, packs it into [`record`]s, applies them as one batch, syncs sled's file, then
//! the [`watermark`], and only then says that it is done. So one sync serves everything that came while the one before
//! it was under way.
//!
//! Invariants:
//! - entries are contiguous from the one behind `purged` to `last`;
//! - the tail ends with `last` and holds at least every entry that is not yet on disk;
//! - what was acknowledged is in sled and at or below the watermark.

mod memory;
mod open;
mod record;
mod watermark;
mod writer;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, RaftLogReader};
use parking_lot::{Mutex, RwLock};
use quorun_ledger::NodeId;
use quorun_metrics::Histogram;
use tokio::sync::{oneshot, watch};

use self::memory::{Inner, weight};
use self::record::{Encoded, Extent};
pub(crate) use self::watermark::DiskLogId;
use self::writer::{Handover, Op, Writer};
use crate::blocking::blocking;
use crate::disk::Disk;
use crate::error::Error;
use crate::handle;
use crate::ledger_store::LogRange;
use crate::options::ClusterId;
use crate::types::{Entry, LogId, TypeConfig, Vote, next_index};

const CACHE: u64 = 16 << 20;
/// What one reading for replication returns at most, unless a single entry is larger, bytes.
const READ_LIMIT: usize = 1 << 20;

/// Who the log belongs to, and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    pub(crate) data_dir: PathBuf,
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
}

impl Location {
    fn log(&self) -> PathBuf {
        self.data_dir.join("log")
    }

    fn watermark(&self) -> PathBuf {
        self.data_dir.join("log.watermark")
    }
}

/// The log of a node.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    ops: Handover,
    writer: Arc<Mutex<Option<thread::JoinHandle<()>>>>,
    purge_guard: Option<Arc<dyn PurgeGuard>>,
}

/// Who must have the entries elsewhere, durably, before they may be purged.
pub(crate) trait PurgeGuard: Debug + Send + Sync {
    /// Returns when what the entries up to this index did is on disk.
    fn make_durable(&self, index: u64) -> io::Result<()>;
}

#[derive(Debug)]
struct Shared {
    /// Taken away when the log is closed.
    disk: RwLock<Option<Disk>>,
    inner: Mutex<Inner>,
    /// The index behind the last entry that is on disk.
    durable: watch::Sender<u64>,
    /// How long the writes take.
    appends: Arc<Histogram>,
    /// Why the writer has given up.
    failure: watch::Sender<Option<String>>,
}

impl LogStore {
    /// Opens the log, creates it in an empty folder, and checks that it holds what it has acknowledged.
    pub(crate) fn open(location: &Location) -> Result<Self, Error> {
        let opened = open::open(location)?;
        let next_purged = next_index(opened.state.purged().as_ref());
        let first = opened.records.keys().next().copied();
        let inner = Inner {
            first: first.unwrap_or(0).max(next_purged),
            vote: opened.state.vote(),
            purged: opened.state.purged(),
            last: opened.state.last(),
            committed: opened.committed,
            tail: VecDeque::new(),
            tail_bytes: 0,
            records: opened.records.clone(),
            truncations: 0,
        };
        tracing::info!(
            node = location.node,
            last = next_index(inner.last.as_ref()),
            purged = next_index(inner.purged.as_ref()),
            records = inner.records.len(),
            "log opened"
        );
        let shared = Arc::new(Shared {
            disk: RwLock::new(Some(opened.disk)),
            durable: watch::Sender::new(next_index(inner.last.as_ref())),
            inner: Mutex::new(inner),
            appends: Arc::new(Histogram::of_times()),
            failure: watch::Sender::new(None),
        });
        let writer = Writer::new(
            shared.clone(),
            opened.watermark,
            opened.state,
            opened.committed,
            opened.records,
            opened.garbage,
        );
        #[cfg(feature = "simulation")]
        if crate::simulation::active() {
            return Ok(Self {
                shared,
                ops: writer.simulate(),
                writer: Arc::default(),
                purge_guard: None,
            });
        }
        let (ops, waiting) = Handover::new();
        let writer = thread::Builder::new()
            .name(format!("log-writer-{}", location.node))
            .spawn({
                let shared = shared.clone();
                move || {
                    // Where sled finds damage it panics; whoever waits must not wait for ever.
                    if catch_unwind(AssertUnwindSafe(|| writer.run(&waiting))).is_err() {
                        shared.fail(&io::Error::other("its writer has panicked"));
                    }
                }
            })
            .map_err(|error| Error::Storage(format!("start the log's writer: {error}")))?;
        Ok(Self {
            shared,
            ops,
            writer: Arc::new(Mutex::new(Some(writer))),
            purge_guard: None,
        })
    }

    /// Purged entries must be elsewhere: this is who sees to it.
    pub(crate) fn guard_purges(&mut self, guard: Arc<dyn PurgeGuard>) {
        self.purge_guard = Some(guard);
    }

    /// Which entries there are.
    pub(crate) fn range(&self) -> LogRange {
        let inner = self.shared.inner.lock();
        LogRange {
            purged: inner.purged,
            last: inner.last,
            voted: inner.vote.is_some(),
        }
    }

    /// The last entry that is too much when the log is to hold at most so many bytes up to `upto`; `None` if nothing is.
    pub(crate) fn surplus(&self, upto: u64, bytes: u64) -> Option<u64> {
        self.shared.inner.lock().surplus(upto, bytes)
    }

    /// The latest term that this node has voted in, durably; 0 before the first.
    pub(crate) fn voted_term(&self) -> u64 {
        let vote = self.shared.inner.lock().vote;
        vote.map_or(0, |vote| vote.leader_id.term)
    }

    /// The index behind the last entry that is on disk.
    pub(crate) fn durable(&self) -> watch::Receiver<u64> {
        self.shared.durable.subscribe()
    }

    /// How long the writes take, sync included.
    pub(crate) fn appends(&self) -> Arc<Histogram> {
        self.shared.appends.clone()
    }

    /// Set when the log can no longer be written.
    pub(crate) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared.failure.subscribe()
    }

    /// Ends the writer behind what was handed to it, and closes the database.
    pub(crate) fn close(&self) {
        // A writer that has ended already takes no more.
        let _ = self.ops.send(Op::Close);
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("the log's writer has panicked");
        }
        self.shared.disk.write().take();
    }

    /// That the writer has not given up.
    fn check(&self) -> io::Result<()> {
        match &*self.shared.failure.borrow() {
            Some(failure) => Err(io::Error::other(failure.clone())),
            None => Ok(()),
        }
    }

    fn hand_over(&self, op: Op) -> io::Result<()> {
        self.check()?;
        self.ops.send(op)
    }

    /// Reads a range: all of it that the log holds, or the first part of it that exceeds `limit` bytes.
    async fn read(&self, range: impl RangeBounds<u64>, limit: usize) -> io::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut truncations = None;
        let mut missed = None;
        loop {
            let (next, end, extents) = {
                let inner = self.shared.inner.lock();
                let (start, end) = inner.clip(&range);
                if truncations.replace(inner.truncations) != Some(inner.truncations) {
                    entries.clear();
                }
                // What was purged while it was read from disk is no longer there.
                entries.retain(|entry| entry.log_id.index >= start);
                let next = entries.last().map_or(start, |entry| entry.log_id.index + 1);
                let size: usize = entries.iter().map(weight).sum();
                if next >= end || (size >= limit && !entries.is_empty()) {
                    return Ok(entries);
                }
                if next >= inner.tail_first() {
                    entries.extend(inner.read_tail(next, end, limit - size));
                    return Ok(entries);
                }
                if missed == Some(next) {
                    return Err(missing(next));
                }
                (next, end.min(inner.tail_first()), inner.extents(next, end))
            };
            let shared = self.shared.clone();
            let read = blocking(move || shared.read_records(&extents, next, end, limit)).await??;
            if read.is_empty() {
                missed = Some(next); // unless it was purged meanwhile
            }
            entries.extend(read);
        }
    }
}

fn missing(index: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the log should hold entry {index}, but it is not there"),
    )
}

impl Shared {
    fn disk(&self) -> io::Result<Disk> {
        self.disk
            .read()
            .clone()
            .ok_or_else(|| io::Error::other("the log is closed"))
    }

    /// Reads contiguous entries from disk, the first of them `start`. Stops early where a record has gone, or when there
    /// are enough bytes.
    fn read_records(
        &self,
        extents: &[Extent],
        start: u64,
        end: u64,
        limit: usize,
    ) -> io::Result<Vec<Entry>> {
        let disk = self.disk()?;
        let mut entries = Vec::new();
        let mut size = 0;
        let mut next = start;
        for extent in extents {
            let Some(record) = read_record(&disk, *extent)? else {
                break;
            };
            for encoded in record.entries {
                if encoded.index < next {
                    continue;
                }
                if encoded.index > next || next >= end || (size >= limit && !entries.is_empty()) {
                    return Ok(entries);
                }
                let entry = encoded.decode().map_err(malformed)?;
                size += weight(&entry);
                next += 1;
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn fail(&self, error: &io::Error) {
        handle::fail(&self.failure, || format!("write the log: {error}"));
    }
}

/// Reads a record; `None` when it is not there.
fn read_record(disk: &Disk, extent: Extent) -> io::Result<Option<record::Record>> {
    let mut parts = Vec::with_capacity(extent.parts as usize);
    for key in extent.keys() {
        match disk.tree().get(key).map_err(crate::disk::to_io)? {
            Some(value) => parts.push(value),
            None => return Ok(None),
        }
    }
    record::unpack(extent.first, &parts)
        .map(Some)
        .map_err(malformed)
}

#[allow(clippy::needless_pass_by_value)] // for map_err
fn malformed(error: record::Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(range, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.inner.lock().vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start..end, READ_LIMIT).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let inner = self.shared.inner.lock();
        Ok(LogState {
            last_purged_log_id: inner.purged,
            last_log_id: inner.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, written) = oneshot::channel();
        self.hand_over(Op::Vote { vote: *vote, done })?;
        written
            .await
            .map_err(|_| io::Error::other("the log is closed"))?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.check()?;
        // The writer takes it along with the next change; nobody waits for it, and nobody is woken for it.
        self.shared.inner.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.inner.lock().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut encoded = Vec::new();
        let last = {
            let mut inner = self.shared.inner.lock();
            for entry in entries {
                let index = entry.log_id.index;
                // An empty log takes any first entry; openraft's is 0.
                if inner.last.is_some_and(|last| last.index + 1 != index) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("entry {index} is not the one behind the last"),
                    ));
                }
                encoded.push(Encoded::new(&entry));
                let size = weight(&entry);
                inner.push(entry, size);
            }
            inner.last
        };
        self.hand_over(Op::Append {
            entries: encoded,
            last,
            callback,
        })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        {
            let mut inner = self.shared.inner.lock();
            inner.truncate_after(last);
            // What comes in the place of the others is not on disk because they were.
            let end = next_index(inner.last.as_ref());
            self.shared.durable.send_if_modified(|durable| {
                let lower = end < *durable;
                *durable = end.min(*durable);
                lower
            });
        }
        self.hand_over(Op::Truncate(last))
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        if let Some(guard) = self.purge_guard.clone() {
            blocking(move || guard.make_durable(upto.index)).await??;
        }
        self.shared.inner.lock().purge(upto);
        self.hand_over(Op::Purge(upto))
    }
}

#[cfg(test)]
mod tests;
