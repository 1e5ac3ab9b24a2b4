//! The ledger of a node, over sled.
//!
//! Each group of committed entries becomes one transaction of the ledger and one batch, which also says how far
//! the log has been applied. sled is given these batches a little later, many as one (`behind`). Nothing of this waits for the disk: after a crash the ledger may be behind what it was, and
//! the log, which is on disk, is applied again from there. So that it is never ahead of the log instead, entries are
//! applied only when this node's own log has them on disk. Before a snapshot is reported the ledger is synced, and
//! entries are purged only when they are in it; see [`snapshot`].
//!
//! OPENING. The ledger can be computed again, so one that is damaged is not the end of the node: where the database cannot
//! be read, or is behind what was purged from the log, it is made anew from the newest snapshot, and the log is applied
//! from there. Only where neither reaches the other is the node refused. Damage that shows later, to a single value or to
//! the [`check`] of all of them, ends the process.
//!
//! The database lies in a folder with a number. A snapshot from the leader is unpacked into a fresh one, and the small
//! file `ledger/current` switches over.

mod apply;
mod check;
mod chunks;
mod folder;
mod frames;
mod snapshot;

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use quorun_ledger::store::Pair;
use quorun_ledger::{Counters, NodeId, StateHash, Store, StoreError, View, Writes, codec, keys};
use quorun_proto::v1;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub(crate) use self::apply::StateMachine;
use self::check::Check;
use self::chunks::{Head, META};
use self::snapshot::Progress;
pub(crate) use self::snapshot::{SnapshotFile, folder as snapshot_folder};
use crate::disk::{Batch, Disk, Iter, Tree, to_io};
use crate::error::{Error, NewerFormat};
use crate::log_store::{DiskLogId, PurgeGuard};
use crate::options::Member;
use crate::types::{LogId, StoredMembership, next_index};
use crate::wire;

const CACHE: u64 = 64 << 20;

/// The records of the ledger as this node has applied them. Cheap to clone; reading blocks for a moment.
#[derive(Clone, Debug)]
pub struct LedgerStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data_dir: PathBuf,
    current: RwLock<Current>,
    /// Held while a snapshot is built or installed.
    snapshots: Mutex<()>,
    /// The index behind the last entry that was applied.
    applied: watch::Sender<u64>,
    /// The index behind the last entry whose effects are on disk.
    synced: AtomicU64,
    /// Set while a snapshot waits to be built or installed: the check of all records then gives way.
    snapshot_waits: AtomicBool,
}

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
    disk: Option<Disk>,
    meta: Meta,
    hash: StateHash,
    /// The snapshot that is being built.
    building: Option<Progress>,
}

/// What has been applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Meta {
    applied: Option<LogId>,
    membership: StoredMembership,
}

/// [`Meta`] on disk.
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
    /// Opens the ledger, or creates it, and clears away what a crash has left of snapshots. A ledger that does not fit to
    /// the log is made anew from the newest snapshot if that does. Without `log` that is not looked at.
    pub(crate) fn open(data_dir: &Path, log: Option<LogRange>) -> Result<Self, Error> {
        let root = data_dir.join("ledger");
        let failed = |error: io::Error| match NewerFormat::of(&error) {
            Some(newer) => Error::Newer {
                path: root.clone(),
                newer,
            },
            None => Error::Storage(format!("open the ledger in {}: {error}", root.display())),
        };
        snapshot::clean(data_dir).map_err(failed)?;
        let opened = folder::open_current(data_dir, CACHE)
            .and_then(|disk| load(&disk).map(|(meta, hash)| (disk, meta, hash)))
            .map_err(|error| {
                if is_damage(&error) {
                    Ok(error.to_string())
                } else {
                    Err(failed(error))
                }
            });
        let log = log.unwrap_or_default();
        let opened = match opened {
            Ok(opened)
                if next_index(opened.1.applied.as_ref()) < next_index(log.purged.as_ref()) =>
            {
                Err(format!(
                    "it has applied {} entries, but the log begins behind {}",
                    next_index(opened.1.applied.as_ref()),
                    next_index(log.purged.as_ref())
                ))
            }
            Ok(opened) => Ok(opened),
            Err(Ok(damage)) => Err(damage),
            Err(Err(error)) => return Err(error),
        };
        let (disk, meta, hash) = match opened {
            Ok(opened) => opened,
            Err(damage) => snapshot::rebuild(data_dir, log.purged, &damage)
                .map_err(failed)?
                .ok_or_else(|| Error::Damaged {
                    path: root.clone(),
                    what: format!("{damage}, and there is no snapshot to make it from"),
                })?,
        };
        snapshot::remove_outdated(data_dir, log.purged).map_err(failed)?;
        // What is found is from here on relied upon: entries are purged because it is there.
        disk.sync().map_err(failed)?;
        let next = next_index(meta.applied.as_ref());
        tracing::info!(applied = next, %hash, "ledger opened");
        Ok(Self {
            inner: Arc::new(Inner {
                data_dir: data_dir.to_owned(),
                current: RwLock::new(Current {
                    disk: Some(disk),
                    meta,
                    hash,
                    building: None,
                }),
                snapshots: Mutex::new(()),
                applied: watch::Sender::new(next),
                synced: AtomicU64::new(next),
                snapshot_waits: AtomicBool::new(false),
            }),
        })
    }

    /// Looks whether the log has what the ledger has applied: a log that ends before was put back from an old copy.
    /// Right behind the installing of a snapshot the ledger is ahead of it, and just where the snapshot is.
    pub(crate) fn check_not_ahead(&self, log: LogRange) -> Result<(), Error> {
        let applied = self.meta().applied;
        if next_index(applied.as_ref()) <= next_index(log.last.as_ref()) {
            return Ok(());
        }
        let snapshot = self
            .current_snapshot()
            .map_err(|error| Error::Storage(format!("read the newest snapshot: {error}")))?;
        if log.voted && snapshot.is_some_and(|snapshot| snapshot.meta.last_log_id == applied) {
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

    /// Reads all records and compares them with the state hash; other work goes on meanwhile. Gives way to a snapshot,
    /// whose building or unpacking does the same. Returns whether all were looked at.
    pub(crate) fn check(&self) -> io::Result<bool> {
        let _only_one = self.inner.snapshots.lock();
        let mut check = Check::default();
        self.begin_walk();
        let checked = self.walk(|pairs| {
            if self.inner.snapshot_waits.load(Ordering::Acquire) {
                return Ok(false);
            }
            for (key, value) in &pairs {
                check.take(key, value)?;
            }
            // Whoever has something to do comes first.
            std::thread::yield_now();
            Ok(true)
        });
        self.end_walk();
        match checked {
            Ok(true) => check.finish().map(|()| true),
            Ok(false) => Ok(false),
            // Only because the node ends.
            Err(_) if self.inner.current.read().disk.is_none() => Ok(false),
            Err(error) => Err(error),
        }
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

    /// Returns when all that was applied before the call is on disk.
    fn sync(&self) -> io::Result<()> {
        let (disk, next) = {
            let current = self.inner.current.read();
            let disk = current.disk.clone().ok_or_else(closed)?;
            (disk, next_index(current.meta.applied.as_ref()))
        };
        disk.sync()?;
        self.inner.synced.fetch_max(next, Ordering::AcqRel);
        Ok(())
    }

    /// Syncs and closes the database. Reading fails from here on.
    pub(crate) fn close(&self) {
        if let Err(error) = self.sync() {
            tracing::warn!(%error, "the ledger could not be synced");
        }
        let disk = self.inner.current.write().disk.take();
        drop(disk);
        // A snapshot that is being built or installed fails at its next step, and then holds nothing open either.
        let _ended = self.inner.snapshots.lock();
    }

    /// Takes over what entries have written, and says how far the log has been applied.
    fn commit(&self, writes: Writes, meta: Meta) -> io::Result<()> {
        let next = next_index(meta.applied.as_ref());
        {
            let mut current = self.inner.current.write();
            let disk = current.disk.clone().ok_or_else(closed)?;
            let mut hash = current.hash;
            if let Some(Some(counters)) = writes.get(keys::COUNTERS) {
                hash = decode_hash(counters)?;
            }
            let mut raw = raw_writes(disk.tree(), writes)?;
            raw.insert(META.to_vec(), Some(chunks::whole(META, &meta.encode())));
            if let Some(building) = &mut current.building {
                building.save(disk.tree(), raw.keys())?;
            }
            let mut batch = Batch::default();
            for (key, value) in raw {
                match value {
                    Some(value) => batch.insert(key, value),
                    None => batch.remove(key),
                }
            }
            disk.tree().apply_batch(batch).map_err(to_io)?;
            current.meta = meta;
            current.hash = hash;
        }
        self.inner.applied.send_replace(next);
        Ok(())
    }

    /// Whether entries are being applied at this moment: a question would have to wait for them.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.inner.current.is_locked_exclusive()
    }

    fn reading<T>(&self, read: impl FnOnce(&Tree) -> io::Result<T>) -> Result<T, StoreError> {
        let current = self.inner.current.read();
        let disk = current.disk.as_ref().ok_or_else(closed);
        disk.and_then(|disk| read(disk.tree()))
            .map_err(|error| StoreError::Io(error.to_string()))
    }
}

impl PurgeGuard for LedgerStore {
    fn make_durable(&self, index: u64) -> io::Result<()> {
        if self.inner.synced.load(Ordering::Acquire) > index {
            return Ok(());
        }
        self.sync()
    }
}

fn closed() -> io::Error {
    io::Error::other("the ledger is closed")
}

fn decode_hash(counters: &[u8]) -> io::Result<StateHash> {
    codec::decode::<Counters>(counters)
        .map(|counters| counters.hash)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

/// Whether an error says that what lies on the disk is wrong, and not that the disk or somebody else is in the way.
fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
        && error.kind() != io::ErrorKind::WouldBlock
        && NewerFormat::of(error).is_none()
}

/// What a database says of itself.
fn load(disk: &Disk) -> io::Result<(Meta, StateHash)> {
    let tree = disk.tree();
    chunks::check_format(tree)?;
    let meta = match tree.get(META).map_err(to_io)? {
        Some(value) => Meta::decode(chunks::body(META, &value)?)?,
        None => Meta::default(),
    };
    let hash = match tree.get(keys::COUNTERS).map_err(to_io)? {
        Some(value) => decode_hash(&chunks::join(tree, keys::COUNTERS, &value)?)?,
        None => StateHash::default(),
    };
    Ok((meta, hash))
}

/// The keys and values of sled that make the ledger's writes, among them the chunks that are no longer needed.
fn raw_writes(tree: &Tree, writes: Writes) -> io::Result<BTreeMap<Vec<u8>, Option<Vec<u8>>>> {
    let mut raw = BTreeMap::new();
    for (key, value) in writes {
        let old = tree.get(&key).map_err(to_io)?;
        let old = old.as_deref().map(|old| chunks::head(&key, old));
        let chunks_before = match old.transpose()? {
            Some(Head::Split(count)) => count,
            _ => 0,
        };
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

impl Store for LedgerStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.reading(|tree| {
            let value = tree.get(key).map_err(to_io)?;
            value
                .map(|value| chunks::join(tree, key, &value))
                .transpose()
        })
    }

    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.reading(|tree| {
            pair(
                tree,
                range(tree, from, to).and_then(|mut range| range.next()),
            )
        })
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.reading(|tree| {
            pair(
                tree,
                range(tree, from, to).and_then(|mut range| range.next_back()),
            )
        })
    }
}

fn range(tree: &Tree, from: &[u8], to: &[u8]) -> Option<Iter> {
    (from < to).then(|| tree.range::<&[u8], _>((Bound::Included(from), Bound::Excluded(to))))
}

fn pair(
    tree: &Tree,
    found: Option<sled::Result<(sled::IVec, sled::IVec)>>,
) -> io::Result<Option<Pair>> {
    let Some((key, value)) = found.transpose().map_err(to_io)? else {
        return Ok(None);
    };
    let value = chunks::join(tree, &key, &value)?;
    Ok(Some((Bytes::copy_from_slice(&key), value)))
}

#[cfg(test)]
mod tests;
