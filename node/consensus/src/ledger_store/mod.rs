//! The ledger of a node: the newest of it in memory, the rest in sorted runs.
//!
//! Each group of committed entries becomes one transaction of the ledger. Nothing of this waits for the disk: after a crash
//! the log, which is on disk, is applied again from where the runs end. So that the ledger is never ahead of the log
//! instead, entries are applied only when this node's own log has them on disk.
//!
//! LAYERS. The [`overlay`] holds what has changed since the newest run. When it has become large, and when a snapshot is
//! built, it becomes a sorted [`run`] itself, and an empty one takes its place; runs are [merged](merge) in the
//! background. So the cost of a job, of a snapshot and of a start does not grow with the number of jobs, and the space of what
//! was removed is given back. [`layers`] reads all of them as one; the [`manifest`] says which runs there are. Entries are
//! purged from the log only when they are in the runs.
//!
//! OPENING. The runs are opened, and openraft has what the log has beyond them applied before it does anything else. A node
//! that ends as it should makes a run of its overlay, so that there is nothing of that. Runs that are damaged, or that end
//! before the log begins, cannot be made anew here, and the node is refused. Damage that shows later ends the process.

mod apply;
mod check;
mod chunks;
mod earlier;
mod frames;
mod layers;
mod manifest;
mod merge;
mod overlay;
mod run;
mod snapshot;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use quorun_ledger::store::Pair;
use quorun_ledger::{
    Counters, Emptied, Heads, NodeId, RULES, StateHash, Store, StoreError, View, Writes, codec,
    keys,
};
use quorun_proto::v1;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot, watch};

pub(crate) use self::apply::StateMachine;
use self::chunks::Head;
use self::layers::{Layers, Runs};
use self::manifest::Manifest;
use self::overlay::Overlay;
use self::run::{RawPair, Run, block_cache};
use self::snapshot::Of;
pub(crate) use self::snapshot::{
    Received, SnapshotFile, SnapshotReader, folder as snapshot_folder,
};
use crate::blocking::blocking;
use crate::disk;
use crate::error::{Error, NewerFormat};
use crate::handle::fail;
use crate::log_store::{DiskLogId, PurgeGuard};
use crate::options::Member;
use crate::types::{LogId, StoredMembership, next_index};
use crate::wire;

/// With so much in the overlay it is made a run, bytes. It is memory that a node takes, and what it has to apply again after a
/// crash.
const FULL: u64 = 16 << 20;
/// So many times as much may be in the overlay while the one before it is not a run yet; then nothing more is applied.
const TOO_MUCH: u64 = 3;
/// When pairs of so many bytes were written since the newest snapshot it is time for another one: the log is cut with it.
const MUCH: u64 = 64 << 20;

/// The records of the ledger as this node has applied them. Cheap to clone; reading blocks for a moment.
#[derive(Clone, Debug)]
pub struct LedgerStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data_dir: PathBuf,
    current: RwLock<Current>,
    /// What the folder says. Held while it, and the layers with it, are changed.
    manifest: Mutex<Manifest>,
    /// Held while a run is made of the overlay, or a snapshot installed.
    snapshots: Mutex<()>,
    /// Held while runs are merged.
    merges: Mutex<()>,
    /// Whether there is a thread that merges.
    merging: AtomicBool,
    /// Whether it is to look once more.
    merge_again: AtomicBool,
    /// Set while a snapshot waits to be installed: merging then gives way.
    installing: AtomicBool,
    /// The index behind the last entry that is in the runs, as the manifest on disk says.
    covered: AtomicU64,
    /// The number that the next run gets.
    next_number: AtomicU64,
    emptied: Mutex<Emptied>,
    /// What the last entries that were applied have left, for the next ones.
    heads: Mutex<Option<Heads>>,
    /// The index behind the last entry that was applied.
    applied: watch::Sender<u64>,
    /// Told when much was written since the newest snapshot.
    grown: Notify,
    /// Told when the overlay has become large.
    full: Notify,
    /// What has gone wrong beside the applying of entries.
    failure: watch::Sender<Option<String>>,
}

/// In how many chunks records lie that a transaction has read; those that lie in none are not there.
type Chunked = BTreeMap<Vec<u8>, u32>;

/// What the log still has: the ledger must fit to it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogRange {
    /// The last entry that was purged.
    pub(crate) purged: Option<LogId>,
    /// The last entry.
    pub(crate) last: Option<LogId>,
    /// Whether a vote was ever saved in it: nothing is applied before.
    pub(crate) voted: bool,
}

#[derive(Debug)]
struct Current {
    /// Taken away when the store is closed.
    layers: Option<Layers>,
    meta: Meta,
    hash: StateHash,
    written: Written,
}

/// What was written since the newest snapshot.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    bytes: u64,
    /// Whether it was told that this is much.
    told: bool,
}

/// What has been applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    applied: Option<LogId>,
    membership: StoredMembership,
}

/// [`Meta`] in a manifest.
#[derive(Serialize, Deserialize)]
struct DiskMeta {
    applied: Option<DiskLogId>,
    membership_log_id: Option<DiskLogId>,
    /// As the message of `quorun.proto`.
    membership: Bytes,
}

impl Meta {
    fn encode(&self) -> Vec<u8> {
        codec::encode(&DiskMeta {
            applied: self.applied.map(Into::into),
            membership_log_id: self.membership.log_id().map(Into::into),
            membership: wire::membership_to(self.membership.membership())
                .encode_to_vec()
                .into(),
        })
    }

    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let meta: DiskMeta = codec::decode(bytes).map_err(|error| invalid(error.to_string()))?;
        let membership = v1::Membership::decode(meta.membership)
            .map_err(|error| invalid(error.to_string()))
            .and_then(|message| {
                wire::membership_from(message).map_err(|error| invalid(error.to_string()))
            })?;
        Ok(Self {
            applied: meta.applied.map(Into::into),
            membership: StoredMembership::new(meta.membership_log_id.map(Into::into), membership),
        })
    }
}

impl LedgerStore {
    /// Opens the ledger, or creates it, and clears away what a crash has left. It must fit to the log; without `log` that
    /// is not looked at.
    pub(crate) fn open(data_dir: &Path, log: Option<LogRange>) -> Result<Self, Error> {
        let root = data_dir.join("ledger");
        let failed = |error: io::Error| match NewerFormat::of(&error) {
            Some(newer) => Error::Newer {
                path: root.clone(),
                newer,
            },
            None if is_damage(&error) => Error::Damaged {
                path: root.clone(),
                what: error.to_string(),
            },
            None => Error::Storage(format!("open the ledger in {}: {error}", root.display())),
        };
        let purged = log.unwrap_or_default().purged;
        // Half-written files have never belonged to anything, and a full disk may need their room.
        manifest::remove_unfinished(data_dir).map_err(failed)?;
        let found = Manifest::read(data_dir).map_err(failed)?;
        let mut manifest = found.clone().unwrap_or_else(Manifest::first);
        let runs = open_runs(data_dir, &manifest).map_err(failed)?;
        let (covered, begins) = (
            next_index(manifest.meta.applied.as_ref()),
            next_index(purged.as_ref()),
        );
        let earlier = disk::catching(|| earlier::read(data_dir, &manifest, &runs));
        let (applied, earlier) = match earlier {
            // The runs were made, or received, a moment before it ended.
            Ok(Some(earlier))
                if earlier.overlay.len() == 0 && earlier.meta.applied == manifest.meta.applied =>
            {
                manifest.overlay = manifest::RECEIVED;
                (covered, None)
            }
            Ok(Some(earlier)) => (next_index(earlier.meta.applied.as_ref()), Some(earlier)),
            Ok(None) => (covered, None),
            Err(damage) if is_damage(&damage) && covered >= begins => {
                tracing::warn!(
                    %damage,
                    "what an earlier program had of the ledger in sled is lost; the log is applied again from the newest run"
                );
                manifest.overlay = manifest::next_number(data_dir).map_err(failed)?;
                (covered, None)
            }
            Err(error) => return Err(failed(error)),
        };
        if applied < begins {
            return Err(Error::Damaged {
                path: root,
                what: format!(
                    "it has {applied} entries, but the log begins behind {begins}, and there is no snapshot to make it from"
                ),
            });
        }
        // Nothing is written or removed before everything was read.
        manifest::create(data_dir).map_err(failed)?;
        manifest.settle(data_dir, found.as_ref()).map_err(failed)?;
        snapshot::clean(data_dir).map_err(failed)?;
        manifest
            .remove_others(data_dir, earlier.is_some())
            .map_err(failed)?;
        let next_number = manifest::next_number(data_dir).map_err(failed)?;
        let from_earlier = earlier.is_some();
        let (overlay, meta, hash) = match earlier {
            Some(earlier) => (earlier.overlay, earlier.meta, earlier.hash),
            None => (Overlay::default(), manifest.meta.clone(), manifest.hash),
        };
        tracing::info!(applied, %hash, runs = runs.len(), "ledger opened");
        let store = Self {
            inner: Arc::new(Inner {
                data_dir: data_dir.to_owned(),
                current: RwLock::new(Current {
                    layers: Some(Layers {
                        overlay,
                        frozen: None,
                        runs: Runs::new(runs, block_cache()),
                    }),
                    meta,
                    hash,
                    written: Written::default(),
                }),
                manifest: Mutex::new(manifest),
                snapshots: Mutex::new(()),
                merges: Mutex::new(()),
                merging: AtomicBool::new(false),
                merge_again: AtomicBool::new(false),
                covered: AtomicU64::new(covered),
                installing: AtomicBool::new(false),
                next_number: AtomicU64::new(next_number),
                emptied: Mutex::default(),
                heads: Mutex::default(),
                applied: watch::Sender::new(applied),
                grown: Notify::new(),
                full: Notify::new(),
                failure: watch::Sender::new(None),
            }),
        };
        if from_earlier {
            store.flush(0).map_err(failed)?;
        }
        store.merge_in_background();
        Ok(store)
    }

    /// Looks whether the log has what the ledger has applied: a log that ends before was put back from an old copy.
    /// Right behind the installing of a snapshot the ledger is ahead of it.
    pub(crate) fn check_not_ahead(&self, log: LogRange) -> Result<(), Error> {
        let applied = self.meta().applied;
        if next_index(applied.as_ref()) <= next_index(log.last.as_ref()) {
            return Ok(());
        }
        if log.voted && self.inner.manifest.lock().overlay == manifest::RECEIVED {
            return Ok(());
        }
        Err(Error::Damaged {
            path: self.inner.data_dir.join("log"),
            what: format!(
                "it has {} entries, but {} were applied to the ledger",
                next_index(log.last.as_ref()),
                next_index(applied.as_ref())
            ),
        })
    }

    /// Reads all runs and compares them with the state hash; other work goes on meanwhile. Returns whether all were looked
    /// at, which is not so when the node ends.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn check(&self) -> io::Result<bool> {
        let (runs, expected) = self.to_check()?;
        self.check_runs(&runs, expected)
    }

    /// The runs, and the state hash that they should make.
    fn to_check(&self) -> io::Result<(Runs, StateHash)> {
        let manifest = self.inner.manifest.lock();
        Ok((self.runs()?, manifest.hash))
    }

    fn check_runs(&self, runs: &Runs, expected: StateHash) -> io::Result<bool> {
        if runs.list().is_empty() {
            return Ok(true);
        }
        let Some(found) = snapshot::check(runs.list(), || self.is_closed())? else {
            return Ok(false);
        };
        if found == expected {
            return Ok(true);
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the runs have the hash {found}, but the manifest says {expected}"),
        ))
    }

    /// The same on a thread that gives way to all others.
    pub(crate) async fn check_in_background(&self) -> io::Result<bool> {
        #[cfg(feature = "simulation")]
        if crate::simulation::active() {
            return self.check();
        }
        let (tell, told) = oneshot::channel();
        let store = self.clone();
        // Whoever gives way holds no lock that others wait for.
        let (runs, expected) = self.to_check()?;
        std::thread::Builder::new()
            .name("ledger-check".to_owned())
            .spawn(move || {
                give_way();
                // Whoever asked may have gone.
                let _ = tell.send(store.check_runs(&runs, expected));
            })?;
        told.await.map_err(io::Error::other)?
    }

    /// The ledger's read side.
    #[must_use]
    pub fn view(&self) -> View<Self> {
        View::new(self.clone())
    }

    /// The index behind the last applied entry, and the ledger's hash at that point.
    pub(crate) fn state(&self) -> (Option<LogId>, StateHash) {
        let current = self.inner.current.read();
        (current.meta.applied, current.hash)
    }

    /// The index behind the last entry that was applied.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.inner.applied.subscribe()
    }

    /// The members as of the last entry that was applied.
    pub(crate) fn members(&self) -> BTreeMap<NodeId, Member> {
        let meta = self.meta();
        let nodes = meta.membership.membership().nodes();
        nodes.map(|(id, member)| (*id, member.clone())).collect()
    }

    fn meta(&self) -> Meta {
        self.inner.current.read().meta.clone()
    }

    /// Why the ledger can no longer be kept, where that shows beside the applying of entries.
    pub(crate) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.inner.failure.subscribe()
    }

    fn failed(&self, what: String) {
        fail(&self.inner.failure, || what);
    }

    /// Returns when so much was written since the newest snapshot that it is time for another one.
    pub(crate) async fn grown(&self) {
        self.inner.grown.notified().await;
    }

    /// How many times as much was written since the newest snapshot.
    pub(crate) fn changed(&self) -> u64 {
        self.inner.current.read().written.bytes / MUCH
    }

    fn runs(&self) -> io::Result<Runs> {
        self.layers_of(|layers| layers.runs.clone())
            .ok_or_else(closed)
    }

    fn is_closed(&self) -> bool {
        self.inner.current.read().layers.is_none()
    }

    fn next_number(&self) -> u64 {
        self.inner.next_number.fetch_add(1, Ordering::AcqRel)
    }

    /// Makes a run of what there is beyond the runs, and closes the ledger. Reading fails from here on.
    pub(crate) fn close(&self) {
        // What is being built or installed may take long, and is given up below; the log is then applied again.
        let idle = self.inner.snapshots.try_lock();
        if idle.is_some()
            && self.layers_of(|layers| layers.frozen.is_none()) == Some(true)
            && let Err(error) = self.make_run(Of::End)
        {
            tracing::warn!(%error, "the log is applied again at the next start");
        }
        drop(idle);
        self.abandon();
    }

    /// Closes the ledger as a crash would. Reading fails from here on.
    pub(crate) fn abandon(&self) {
        let layers = self.inner.current.write().layers.take();
        drop(layers);
        self.inner.full.notify_one();
        // What is being built, installed or merged fails at its next step, and then holds nothing open either.
        let _ended = (self.inner.snapshots.lock(), self.inner.merges.lock());
    }

    /// Takes over what entries have written, and says how far the log has been applied.
    fn commit(&self, writes: Writes, replaced: &Chunked, meta: Meta) -> io::Result<()> {
        let next = next_index(meta.applied.as_ref());
        {
            let mut current = self.inner.current.write();
            let current = &mut *current;
            let layers = current.layers.as_mut().ok_or_else(closed)?;
            let mut hash = current.hash;
            if let Some(Some(counters)) = writes.get(keys::COUNTERS) {
                hash = decode_hash(counters)?;
            }
            let raw = raw_writes(layers, writes, replaced)?;
            // From here on nothing fails.
            let mut emptied = self.inner.emptied.lock();
            for (key, value) in raw {
                let value = match value {
                    Some(value) => {
                        emptied.written(&key);
                        value
                    }
                    None if layers.may_be_below(&key) => chunks::removed(&key),
                    None => {
                        layers.overlay.forget(&key);
                        continue;
                    }
                };
                current.written.bytes += (key.len() + value.len()) as u64;
                layers.overlay.insert(&key, value);
            }
            drop(emptied);
            current.meta = meta;
            current.hash = hash;
            if current.written.bytes >= MUCH && !current.written.told {
                current.written.told = true;
                self.inner.grown.notify_one();
            }
            if layers.overlay.bytes() >= full() && layers.frozen.is_none() {
                self.inner.full.notify_one();
            }
        }
        self.inner.applied.send_replace(next);
        Ok(())
    }

    /// Returns when the overlay may take more: when it is large, and the one before it is not a run yet, what comes waits
    /// for that.
    fn wait_for_room(&self) -> io::Result<()> {
        let too_much = |layers: &Layers| {
            layers.frozen.is_some() && layers.overlay.bytes() >= TOO_MUCH * full()
        };
        if self.layers_of(too_much) != Some(true) {
            return Ok(());
        }
        drop(self.inner.snapshots.lock());
        match self.layers_of(too_much) {
            Some(true) => Err(io::Error::other(
                "what was written before cannot be made a run",
            )),
            _ => Ok(()),
        }
    }

    /// Makes a run of the overlay whenever it has become large, until the ledger is closed.
    pub(crate) async fn keep_small(self) {
        while !self.is_closed() {
            self.inner.full.notified().await;
            let store = self.clone();
            match blocking(move || store.flush(full())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no run of the overlay; the ledger has said why");
                    return;
                }
                Err(panic) => return self.failed(format!("the ledger cannot be written: {panic}")),
            }
        }
    }

    /// What is found of the layers, unless the ledger is closed.
    fn layers_of<T>(&self, look: impl FnOnce(&Layers) -> T) -> Option<T> {
        self.inner.current.read().layers.as_ref().map(look)
    }

    /// Whether entries are being applied at this moment: a question would have to wait for them.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.inner.current.is_locked_exclusive()
    }

    /// The record of a key, and in how many chunks it lies.
    fn record(&self, key: &[u8]) -> Result<Option<(Bytes, u32)>, StoreError> {
        self.reading(|layers| match layers.get(key)? {
            Some(value) => chunks::read(|key| layers.get(key), key, &value),
            None => Ok(None),
        })
    }

    fn reading<T>(&self, read: impl FnOnce(&Layers) -> io::Result<T>) -> Result<T, StoreError> {
        let current = self.inner.current.read();
        let layers = current.layers.as_ref().ok_or_else(closed);
        layers
            .and_then(read)
            .map_err(|error| StoreError::Io(error.to_string()))
    }
}

impl PurgeGuard for LedgerStore {
    /// Nothing needs to be done: only what a snapshot covers is purged, and that is in the runs.
    fn make_durable(&self, index: u64) -> io::Result<()> {
        // No lock is taken: Raft waits for this.
        let covered = self.inner.covered.load(Ordering::Acquire);
        if covered > index {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "entry {index} is to be purged, but the ledger's runs cover only {covered} entries"
        )))
    }
}

/// [`FULL`], and little where nodes are simulated, so that they come to it.
fn full() -> u64 {
    #[cfg(feature = "simulation")]
    if crate::simulation::active() {
        return 32 << 10;
    }
    FULL
}

/// Removes a file or a folder that is no longer needed. Where that fails, the next start does it.
fn remove(path: &Path) {
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    if let Err(error) = removed {
        tracing::warn!(%error, path = %path.display(), "what is no longer needed stays until the next start");
    }
}

/// Lets everybody else have the processor first; for a thread that does nothing but what can wait.
fn give_way() {
    // The calling thread, which is what 0 means on Linux.
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!(%error, "the priority of a thread stays as it is");
    }
}

/// Opens the runs that make the ledger.
fn open_runs(data_dir: &Path, manifest: &Manifest) -> io::Result<Vec<Arc<Run>>> {
    let mut runs = Vec::new();
    for number in &manifest.runs {
        let path = manifest::run(data_dir, *number);
        let run = Run::open(&path, *number).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the sorted run {} is missing", path.display()),
            ),
            _ => error,
        })?;
        runs.push(Arc::new(run));
    }
    Ok(runs)
}

fn closed() -> io::Error {
    io::Error::other("the ledger is closed")
}

/// The hash that the ledger's own counters say.
///
/// # Errors
/// When they cannot be read, or are of a ledger whose rules only a newer program knows.
fn decode_hash(counters: &[u8]) -> io::Result<StateHash> {
    let counters = Counters::decode(counters).map_err(|error| match error {
        codec::DecodeError::Version(newer) => NewerFormat::error(newer, codec::RULED),
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    })?;
    if counters.rules > RULES {
        let number = |rules: u32| u8::try_from(rules).unwrap_or(u8::MAX);
        return Err(NewerFormat::error(number(counters.rules), number(RULES)));
    }
    Ok(counters.hash)
}

/// Whether an error says that what lies on the disk is wrong, and not that the disk or somebody else is in the way.
fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
        && error.kind() != io::ErrorKind::WouldBlock
        && NewerFormat::of(error).is_none()
}

/// The keys and values that make the ledger's writes, among them the chunks that are no longer needed.
fn raw_writes(
    layers: &Layers,
    writes: Writes,
    replaced: &Chunked,
) -> io::Result<BTreeMap<Vec<u8>, Option<Vec<u8>>>> {
    let mut raw = BTreeMap::new();
    for (key, value) in writes {
        // These alone are written without having been read.
        let chunks_before = if key == keys::COUNTERS {
            chunks_of(layers, &key)?
        } else {
            replaced.get(&key).copied().unwrap_or(0)
        };
        debug_assert_eq!(chunks_before, chunks_of(layers, &key)?);
        let chunks_now = match value {
            Some(value) => chunks::split(&key, &value, |key, value| {
                raw.insert(key, Some(value));
            }),
            None => {
                raw.insert(key.clone(), None);
                0
            }
        };
        for chunk in chunks_now..chunks_before {
            raw.insert(chunks::chunk_key(&key, chunk), None);
        }
    }
    Ok(raw)
}

/// In how many chunks the record of a key lies.
fn chunks_of(layers: &Layers, key: &[u8]) -> io::Result<u32> {
    let found = layers.get(key)?;
    let head = found.as_deref().map(|value| chunks::head(key, value));
    Ok(match head.transpose()? {
        Some(Head::Split(count)) => count,
        _ => 0,
    })
}

impl Store for LedgerStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.record(key)?.map(|(record, _)| record))
    }

    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.reading(|layers| {
            let skipped = self.inner.emptied.lock().end(from).map(<[u8]>::to_vec);
            let start = skipped.as_deref().unwrap_or(from);
            let (found, passed) = layers.first(start, to)?;
            if passed {
                let end = found.as_ref().map_or(to, |(key, _)| key);
                self.inner.emptied.lock().note(from, end);
            }
            pair(layers, found)
        })
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.reading(|layers| {
            let skipped = self.inner.emptied.lock().end(from).map(<[u8]>::to_vec);
            let start = skipped.as_deref().unwrap_or(from);
            let (found, passed) = layers.last(start, to)?;
            if passed && found.is_none() {
                self.inner.emptied.lock().note(from, to);
            }
            pair(layers, found)
        })
    }
}

fn pair(layers: &Layers, found: Option<RawPair>) -> io::Result<Option<Pair>> {
    let Some((key, value)) = found else {
        return Ok(None);
    };
    let value = chunks::join(|key| layers.get(key), &key, &value)?;
    Ok(value.map(|value| (Bytes::copy_from_slice(&key), value)))
}

#[cfg(test)]
mod tests;
