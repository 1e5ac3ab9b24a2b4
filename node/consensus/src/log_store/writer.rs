//! The one thread that writes the log, and what is read of it at start.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use openraft::storage::IOFlushed;
use quorun_ledger::codec;
use tokio::sync::oneshot;

use super::record::{self, Encoded, Extent};
use super::watermark::{DiskLogId, State, Watermark};
use super::{CACHE, Location, Shared, read_record};
use crate::disk::{Disk, to_io};
use crate::error::Error;
use crate::files;
use crate::types::{LogId, TypeConfig, Vote, next_index};

const STATE_KEY: &[u8] = b"s";
const COMMITTED_KEY: &[u8] = b"c";
/// How many operations are written together at most.
const MAX_OPS: usize = 4096;
/// How many bytes of entries are written together at most, unless a single append is larger.
const MAX_BYTES: usize = 8 << 20;
/// How many keys are removed at one time: sled takes very long over larger removals.
const MAX_REMOVALS: usize = 1000;
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
    /// Written with the next change; nobody waits for it.
    Committed(Option<LogId>),
    Close,
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

/// The log as it was found.
pub(super) struct Opened {
    pub(super) disk: Disk,
    pub(super) watermark: Watermark,
    pub(super) state: State,
    pub(super) committed: Option<LogId>,
    pub(super) records: BTreeMap<u64, Extent>,
    /// Records that were purged but are still there.
    pub(super) garbage: VecDeque<Extent>,
}

/// Opens the database and the watermark, and compares the two with each other and with the records.
pub(super) fn open(location: &Location) -> Result<Opened, Error> {
    let path = location.log();
    let damaged = |what: String| Error::Damaged {
        path: path.clone(),
        what,
    };
    let at_mark = |error: io::Error| {
        let path = location.watermark();
        if error.kind() == io::ErrorKind::InvalidData {
            let what = error.to_string();
            return Error::Damaged { path, what };
        }
        Error::Storage(format!("{}: {error}", path.display()))
    };
    std::fs::create_dir_all(&location.data_dir)
        .and_then(|()| files::sync_parent(&location.data_dir))
        .map_err(|error| {
            Error::Storage(format!("create {}: {error}", location.data_dir.display()))
        })?;
    let (watermark, mark) = Watermark::open(&location.watermark()).map_err(at_mark)?;
    if let Some(mark) = &mark {
        check_owner(location, location.watermark(), mark)?;
    }
    let known = mark.as_ref().is_some_and(|mark| mark.change > 0);
    let disk = Disk::open(&path, CACHE).map_err(|error| {
        if known && error.kind() != io::ErrorKind::WouldBlock {
            damaged(error.to_string())
        } else {
            Error::Storage(format!("open {}: {error}", path.display()))
        }
    })?;
    let read = |key: &[u8]| {
        disk.tree()
            .get(key)
            .map_err(|error| damaged(error.to_string()))
    };
    let found: Option<State> = read(STATE_KEY)?
        .map(|bytes| codec::decode(&bytes))
        .transpose()
        .map_err(|error| damaged(format!("its state: {error}")))?;
    if let Some(found) = &found {
        check_owner(location, path.clone(), found)?;
    }

    let state = match (found, mark) {
        (None, None) => {
            let state = State::new(location.cluster.0, location.node);
            create(&disk, &state).map_err(|e| Error::Storage(format!("create the log: {e}")))?;
            watermark.write(&state).map_err(at_mark)?;
            state
        }
        // The node died between the two while the folder was new.
        (Some(found), None) if found.change == 0 => {
            watermark.write(&found).map_err(at_mark)?;
            found
        }
        (Some(found), None) => {
            return Err(Error::Damaged {
                path: location.watermark(),
                what: format!("it is empty, but the log has seen {} changes", found.change),
            });
        }
        (None, Some(mark)) if mark.change == 0 => {
            create(&disk, &mark).map_err(|e| Error::Storage(format!("create the log: {e}")))?;
            mark
        }
        (None, Some(mark)) => {
            return Err(damaged(format!(
                "it is empty, but {} changes were acknowledged",
                mark.change
            )));
        }
        (Some(found), Some(mark)) => {
            if found.change < mark.change {
                return Err(damaged(format!(
                    "it ends with change {} and entry {}, but change {} and entry {} were acknowledged",
                    found.change,
                    describe(found.last()),
                    mark.change,
                    describe(mark.last()),
                )));
            }
            if found.change == mark.change && found != mark {
                return Err(damaged(format!(
                    "change {} is not the one that was acknowledged",
                    found.change
                )));
            }
            found
        }
    };
    let (records, garbage) = check_records(&disk, &state).map_err(damaged)?;
    let committed: Option<DiskLogId> = read(COMMITTED_KEY)?
        .map(|bytes| codec::decode(&bytes))
        .transpose()
        .map_err(|error| damaged(format!("the committed position: {error}")))?;
    Ok(Opened {
        disk,
        watermark,
        state,
        committed: committed.map(Into::into),
        records,
        garbage,
    })
}

fn describe(id: Option<LogId>) -> String {
    id.map_or_else(|| "none".to_owned(), |id| id.index.to_string())
}

fn check_owner(location: &Location, path: PathBuf, state: &State) -> Result<(), Error> {
    let cluster = crate::options::ClusterId(state.cluster);
    if cluster == location.cluster && state.node == location.node {
        return Ok(());
    }
    Err(Error::Foreign {
        path,
        found: format!("node {} of cluster {cluster}", state.node),
        expected: format!("node {} of cluster {}", location.node, location.cluster),
    })
}

fn create(disk: &Disk, state: &State) -> io::Result<()> {
    disk.tree()
        .insert(STATE_KEY, codec::encode(state))
        .map_err(to_io)?;
    disk.sync()
}

/// Reads every record: that it is whole, that one follows the other, and that they end where the state says.
fn check_records(
    disk: &Disk,
    state: &State,
) -> Result<(BTreeMap<u64, Extent>, VecDeque<Extent>), String> {
    let (mut records, mut garbage) = (BTreeMap::new(), VecDeque::new());
    let next_purged = next_index(state.purged().as_ref());
    let mut previous: Option<(u64, u32)> = None;
    let mut expected_part = None;
    for pair in disk.tree().scan_prefix([record::TABLE]) {
        let (key, value) = pair.map_err(|error| error.to_string())?;
        let (first, part) = record::parts_of_key(&key).map_err(|error| error.to_string())?;
        if part > 0 {
            // Read together with its part 0, or purged together with it.
            if first >= next_purged && expected_part != Some((first, part)) {
                return Err(format!("part {part} of record {first} is alone"));
            }
            expected_part = Some((first, part + 1));
            continue;
        }
        expected_part = Some((first, 1));
        let parts = record::count_parts(first, &value).map_err(|error| error.to_string())?;
        let extent = Extent {
            first,
            last: first,
            parts,
        };
        let Some(read) = read_record(disk, extent).map_err(|error| error.to_string())? else {
            if first < next_purged {
                garbage.push_back(extent); // its removal was cut short
                continue;
            }
            return Err(format!("a part of record {first} is missing"));
        };
        let extent = Extent {
            last: first + read.entries.len() as u64 - 1,
            ..extent
        };
        if extent.last < next_purged {
            garbage.push_back(extent);
            continue;
        }
        match previous {
            Some((next, chain)) if next != first || chain != read.before => {
                return Err(format!("record {first} does not follow the one before it"));
            }
            None if first > next_purged && next_purged > 0 => {
                return Err(format!(
                    "entries {next_purged} to {} are missing",
                    first - 1
                ));
            }
            _ => {}
        }
        let chain = read.entries.iter().fold(read.before, record::chain);
        for entry in &read.entries {
            entry.decode().map_err(|error| error.to_string())?;
        }
        previous = Some((extent.last + 1, chain));
        records.insert(first, extent);
    }
    match previous {
        Some((next, _)) if next != next_index(state.last().as_ref()) => Err(format!(
            "its last entry is {}, but it should be {}",
            next - 1,
            describe(state.last())
        )),
        Some((_, chain)) if chain != state.chain => {
            Err("its entries are not those that were written".to_owned())
        }
        None if state.last() != state.purged() => Err(format!(
            "it has no entries, but should reach to {}",
            describe(state.last())
        )),
        _ => Ok((records, garbage)),
    }
}

/// The thread's own state: what is on disk, or will be with the batch that is being put together.
pub(super) struct Writer {
    shared: Arc<Shared>,
    watermark: Watermark,
    state: State,
    committed: Option<LogId>,
    records: BTreeMap<u64, Extent>,
    garbage: VecDeque<Extent>,
    failed: bool,
}

/// Changes on their way to the disk.
#[derive(Default)]
struct Staged {
    batch: sled::Batch,
    /// Entries that are not packed yet; they follow the records.
    pending: Vec<Encoded>,
    /// How the records change: the new one at a first index, or `None` where it is gone.
    records: BTreeMap<u64, Option<Extent>>,
    waiters: Vec<Waiter>,
    changed: bool,
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

    fn write(&mut self, ops: Vec<Op>, close: bool) {
        let started = Instant::now();
        let mut staged = Staged::default();
        let result = if self.failed {
            staged.waiters = waiters(ops);
            Err(io::Error::other("the log's writer has failed before"))
        } else {
            self.stage(ops, &mut staged)
                .and_then(|()| self.commit(&mut staged, close))
        };
        match result {
            Ok(()) => {
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
                    inner.shrink(durable);
                }
                self.shared.durable.send_replace(durable);
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
                Op::Truncate(after) => self.truncate(after, staged),
                Op::Purge(upto) => {
                    self.purge(upto, staged);
                    Ok(())
                }
                Op::Committed(committed) => {
                    self.committed = committed;
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

    fn commit(&mut self, staged: &mut Staged, close: bool) -> io::Result<()> {
        let disk = self.shared.disk()?;
        let mut removals = 0;
        while let Some(extent) = self.garbage.front() {
            removals += extent.parts as usize;
            if removals > MAX_REMOVALS.max(extent.parts as usize) {
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
            return if close { disk.sync() } else { Ok(()) };
        }
        self.state.change += 1;
        staged.batch.insert(STATE_KEY, codec::encode(&self.state));
        self.insert_committed(&mut staged.batch);
        let batch = std::mem::take(&mut staged.batch);
        disk.tree().apply_batch(batch).map_err(to_io)?;
        disk.sync()?;
        self.watermark.write(&self.state)
    }

    fn insert_committed(&self, batch: &mut sled::Batch) {
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
