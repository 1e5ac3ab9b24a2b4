//! Snapshots: the whole ledger at one position of the log, in a file.
//!
//! BUILDING does not stop the ledger. The builder goes through the keys in their order, a few at a time; whatever is
//! written meanwhile behind the place that it has reached first has its old value saved for it ([`Progress`]). The file
//! is written under another name, synced, renamed, and the folder synced; then the ledger itself is synced, because
//! once the snapshot is reported the log may be purged.
//!
//! INSTALLING unpacks the file into a fresh database, syncs that, gives the file its name, and only then switches over.
//! A crash before leaves a folder that is removed at the next start; a crash between the last two leaves a snapshot that
//! is newer than the ledger, which openraft installs again.
//!
//! The form of the file is in [`frames`](super::frames).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use quorun_ledger::StateHash;

use super::check::Check;
use super::chunks::{self, META};
use super::frames::{FRAME, FrameReader, FrameWriter, header, invalid, put, take};
use super::{CACHE, LedgerStore, Meta, closed, folder, is_damage, load};
use crate::disk::{Disk, Tree, to_io};
use crate::files;
use crate::types::{LogId, Snapshot, SnapshotMeta, next_index};

/// How many keys are looked at under the lock at one time.
const STEP: usize = 256;
/// After so many bytes what was written is synced. All of it at once would keep the disk, and with it the log, busy for
/// long.
const SYNC_AFTER: usize = 8 << 20;

/// A snapshot in a file.
#[derive(Debug)]
pub(crate) struct SnapshotFile {
    /// Where it lies; it may be removed while it is read.
    pub(crate) path: PathBuf,
    /// Opened for reading, at its start.
    pub(crate) file: File,
}

impl SnapshotFile {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        Ok(Self { path, file })
    }

    /// Opens a file that was received, and reads all of it: that it is whole, and what was announced. Once openraft has
    /// it, it is too late to refuse it.
    pub(crate) fn open_received(path: PathBuf, announced: &SnapshotMeta) -> io::Result<Self> {
        let mut frames = FrameReader(BufReader::new(File::open(&path)?));
        check_header(&mut frames, &meta_of(announced))?;
        while frames.read()?.is_some() {}
        frames.end()?;
        Self::open(path)
    }
}

fn check_header<R: io::Read>(frames: &mut FrameReader<R>, expected: &Meta) -> io::Result<()> {
    if frames.header()? == *expected {
        return Ok(());
    }
    Err(invalid("its position is not the one that was announced"))
}

/// The folder of the snapshots.
pub(crate) fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("snapshots")
}

fn name(data_dir: &Path, meta: &Meta) -> PathBuf {
    let (term, index) = meta
        .applied
        .map_or((0, 0), |id| (id.leader_id.term, id.index));
    folder(data_dir).join(format!("{term:020}-{index:020}.snapshot"))
}

/// All complete snapshots, the newest last.
fn list(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder(data_dir))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "snapshot") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Creates the folder, and removes what a crash has left in it.
pub(super) fn clean(data_dir: &Path) -> io::Result<()> {
    fs::create_dir_all(folder(data_dir))?;
    files::sync_dir(data_dir)?;
    for entry in fs::read_dir(folder(data_dir))? {
        let path = entry?.path();
        if path.extension().is_none_or(|ext| ext != "snapshot") {
            fs::remove_file(&path)?;
            continue;
        }
        // The ledger itself is there, and another snapshot can be built from it.
        if let Err(error) = FrameReader(BufReader::new(File::open(&path)?)).header() {
            tracing::warn!(%error, path = %path.display(), "a snapshot that cannot be read is removed");
            fs::remove_file(&path)?;
        }
    }
    remove_old(data_dir)
}

fn remove_old(data_dir: &Path) -> io::Result<()> {
    let mut found = list(data_dir)?;
    found.pop();
    for path in found {
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// A key and its value, as they lie in sled.
pub(super) type RawPair = (Vec<u8>, sled::IVec);

/// How far the building of a snapshot has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The last key that is in the file.
    done: Option<Vec<u8>>,
    /// What lay under keys behind `done` before they were written meanwhile; `None` where there was nothing.
    saved: BTreeMap<Vec<u8>, Option<sled::IVec>>,
}

impl Progress {
    /// Saves what lies under keys that are about to be written.
    pub(super) fn save<'a>(
        &mut self,
        tree: &Tree,
        keys: impl Iterator<Item = &'a Vec<u8>>,
    ) -> io::Result<()> {
        for key in keys {
            let behind = self.done.as_ref().is_none_or(|done| key > done);
            if behind && !self.saved.contains_key(key) {
                let old = tree.get(key).map_err(to_io)?;
                self.saved.insert(key.clone(), old);
            }
        }
        Ok(())
    }

    /// The next pairs, as they were when the building began; possibly none of them. `None` behind the last key.
    pub(super) fn step(&mut self, tree: &Tree) -> io::Result<Option<Vec<RawPair>>> {
        let from = self
            .done
            .as_deref()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let mut stored = tree.range::<&[u8], _>((from, Bound::Unbounded)).peekable();
        let mut pairs = Vec::new();
        let mut size = 0;
        let mut looked_at = 0;
        let mut done = None;
        while size < FRAME && looked_at < STEP {
            looked_at += 1;
            let saved = self.saved.first_key_value().map(|(key, _)| key);
            let stored_key = match stored.peek() {
                Some(Ok((key, _))) => Some(key),
                Some(Err(error)) => return Err(to_io(error.clone())),
                None => None,
            };
            let (take_saved, skip_stored) = match (saved, stored_key) {
                (None, None) => break,
                (Some(_), None) => (true, false),
                (None, Some(_)) => (false, false),
                (Some(saved), Some(stored)) => (
                    saved.as_slice() <= stored.as_ref(),
                    saved.as_slice() == stored.as_ref(),
                ),
            };
            let (key, value) = if take_saved {
                if skip_stored {
                    stored.next();
                }
                match self.saved.pop_first() {
                    Some((key, value)) => (key, value),
                    None => break,
                }
            } else {
                match stored.next() {
                    Some(pair) => {
                        let (key, value) = pair.map_err(to_io)?;
                        (key.to_vec(), Some(value))
                    }
                    None => break,
                }
            };
            if let Some(value) = value
                && !chunks::is_own(&key)
            {
                size += key.len() + value.len();
                pairs.push((key.clone(), value));
            }
            done = Some(key);
        }
        if done.is_none() {
            return Ok(None);
        }
        self.done = done;
        Ok(Some(pairs))
    }
}

fn meta_of(meta: &SnapshotMeta) -> Meta {
    Meta {
        applied: meta.last_log_id,
        membership: meta.last_membership.clone(),
    }
}

fn snapshot_of(meta: Meta, path: PathBuf) -> io::Result<Snapshot> {
    Ok(Snapshot {
        meta: SnapshotMeta {
            last_log_id: meta.applied,
            last_membership: meta.membership,
        },
        snapshot: SnapshotFile::open(path)?,
    })
}

/// Unpacks what follows the header into a fresh database, which is then on disk, but is not yet the one that counts.
fn unpack<R: io::Read>(
    data_dir: &Path,
    meta: &Meta,
    mut frames: FrameReader<R>,
) -> io::Result<(u64, Disk, StateHash)> {
    let (number, disk) = folder::create_next(data_dir, CACHE)?;
    chunks::check_format(disk.tree())?;
    let mut size = 0;
    let mut check = Check::default();
    // One by one, because sled keeps what a batch has replaced in memory until the batch is done, and it replaces a whole
    // page with each key. Nobody sees the database before it is whole.
    let write = |key: &[u8], value: &[u8]| disk.tree().insert(key, value).map_err(to_io);
    while let Some(frame) = frames.read()? {
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let (key, value) = (take(&mut rest)?, take(&mut rest)?);
            check
                .take(key, value)
                .map_err(|error| invalid(&error.to_string()))?;
            write(key, value)?;
        }
        size += frame.len();
        if size >= SYNC_AFTER {
            size = 0;
            disk.sync()?;
        }
    }
    frames.end()?;
    check
        .finish()
        .map_err(|error| invalid(&error.to_string()))?;
    write(META, &chunks::whole(META, &meta.encode()))?;
    let (_, hash) = load(&disk)?;
    disk.sync()?;
    files::sync_dir(disk.path())?;
    files::sync_parent(disk.path())?;
    Ok((number, disk, hash))
}

/// Removes snapshots that end before the log begins: nobody could go on from there, and openraft does not expect them. The
/// next one is built from the ledger.
pub(super) fn remove_outdated(data_dir: &Path, purged: Option<LogId>) -> io::Result<()> {
    for path in list(data_dir)? {
        let meta = FrameReader(BufReader::new(File::open(&path)?)).header()?;
        if next_index(meta.applied.as_ref()) < next_index(purged.as_ref()) {
            tracing::warn!(path = %path.display(), "a snapshot that ends before the log begins is removed");
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Makes the ledger anew: from the newest snapshot, if it reaches what was purged from the log, or from nothing, if
/// nothing was. `None` when neither can be.
pub(super) fn rebuild(
    data_dir: &Path,
    purged: Option<LogId>,
    damage: &str,
) -> io::Result<Option<(Disk, Meta, StateHash)>> {
    for path in list(data_dir)?.into_iter().rev() {
        let mut frames = FrameReader(BufReader::new(File::open(&path)?));
        let unpacked = frames.header().and_then(|meta| {
            if next_index(meta.applied.as_ref()) < next_index(purged.as_ref()) {
                return Err(invalid("it ends before the log begins"));
            }
            unpack(data_dir, &meta, frames).map(|unpacked| (meta, unpacked))
        });
        match unpacked {
            Ok((meta, (number, disk, hash))) => {
                folder::switch(data_dir, number)?;
                folder::remove_others(data_dir, number)?;
                tracing::warn!(damage, path = %path.display(), "the ledger was made anew from a snapshot");
                return Ok(Some((disk, meta, hash)));
            }
            Err(error) if is_damage(&error) => {
                tracing::warn!(%error, path = %path.display(), "a snapshot from which the ledger cannot be made");
            }
            Err(error) => return Err(error),
        }
    }
    if purged.is_some() {
        return Ok(None);
    }
    let (number, disk) = folder::create_next(data_dir, CACHE)?;
    let (meta, hash) = load(&disk)?;
    disk.sync()?;
    folder::switch(data_dir, number)?;
    folder::remove_others(data_dir, number)?;
    tracing::warn!(
        damage,
        "the ledger was made anew; all of the log is applied again"
    );
    Ok(Some((disk, meta, hash)))
}

impl LedgerStore {
    /// Writes a snapshot of the ledger as it is now.
    pub(super) fn build(&self) -> io::Result<Snapshot> {
        let _only_one = self.lock_snapshots();
        let meta = self.begin_walk();
        let path = name(&self.inner.data_dir, &meta);
        let built = self.write_snapshot(&meta, &path);
        self.end_walk();
        built?;
        // Once the snapshot is known, what it covers may be purged from the log.
        self.sync()?;
        remove_old(&self.inner.data_dir)?;
        tracing::info!(
            applied = next_index(meta.applied.as_ref()),
            path = %path.display(),
            "snapshot built"
        );
        snapshot_of(meta, path)
    }

    /// The right to build or install a snapshot. The check of all records gives way.
    fn lock_snapshots(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.inner.snapshot_waits.store(true, Ordering::Release);
        let lock = self.inner.snapshots.lock();
        self.inner.snapshot_waits.store(false, Ordering::Release);
        lock
    }

    /// Begins to look at all pairs as they are now. Returns what has been applied.
    pub(super) fn begin_walk(&self) -> Meta {
        let mut current = self.inner.current.write();
        current.building = Some(Progress::default());
        current.meta.clone()
    }

    /// Shows all pairs to `each`, a few at a time, until it has enough of them. Returns whether it has seen all.
    pub(super) fn walk(
        &self,
        mut each: impl FnMut(Vec<RawPair>) -> io::Result<bool>,
    ) -> io::Result<bool> {
        loop {
            let step = {
                let mut current = self.inner.current.write();
                let disk = current.disk.clone().ok_or_else(closed)?;
                let progress = current.building.as_mut();
                progress
                    .ok_or_else(|| io::Error::other("the building of a snapshot was ended"))?
                    .step(disk.tree())?
            };
            match step {
                None => return Ok(true),
                Some(pairs) => {
                    if !each(pairs)? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    pub(super) fn end_walk(&self) {
        self.inner.current.write().building = None;
    }

    fn write_snapshot(&self, meta: &Meta, path: &Path) -> io::Result<()> {
        let fresh = path.with_extension("building");
        let mut frames = FrameWriter(BufWriter::new(File::create(&fresh)?));
        frames.write(&header(meta))?;
        let mut check = Check::default();
        let mut unsynced = 0;
        self.walk(|pairs| {
            if pairs.is_empty() {
                return Ok(true);
            }
            let mut frame = Vec::with_capacity(FRAME + FRAME / 4);
            for (key, value) in pairs {
                check.take(&key, &value)?;
                put(&mut frame, &key);
                put(&mut frame, &value);
            }
            frames.write(&frame)?;
            unsynced += frame.len();
            if unsynced >= SYNC_AFTER {
                unsynced = 0;
                frames.0.flush()?;
                frames.0.get_ref().sync_data()?;
            }
            // Whoever has something to do comes first.
            std::thread::yield_now();
            Ok(true)
        })?;
        check.finish()?;
        frames.write(&[])?;
        let file = frames
            .0
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        files::sync_parent(path)
    }

    /// The newest snapshot.
    pub(super) fn current_snapshot(&self) -> io::Result<Option<Snapshot>> {
        let Some(path) = list(&self.inner.data_dir)?.pop() else {
            return Ok(None);
        };
        let meta = FrameReader(BufReader::new(File::open(&path)?)).header()?;
        snapshot_of(meta, path).map(Some)
    }

    /// Replaces the ledger with a snapshot.
    pub(super) fn install(&self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let _only_one = self.lock_snapshots();
        let data_dir = &self.inner.data_dir;
        let meta = meta_of(meta);
        let mut frames = FrameReader(BufReader::new(snapshot.file));
        check_header(&mut frames, &meta)?;
        let (number, disk, hash) = unpack(data_dir, &meta, frames)?;
        let path = name(data_dir, &meta);
        if snapshot.path != path {
            fs::rename(&snapshot.path, &path)?;
            files::sync_parent(&path)?;
        }
        folder::switch(data_dir, number)?;
        let next = next_index(meta.applied.as_ref());
        let old = {
            let mut current = self.inner.current.write();
            if current.disk.is_none() {
                return Err(closed());
            }
            current.meta = meta;
            current.hash = hash;
            current.disk.replace(disk)
        };
        self.inner.synced.store(next, Ordering::Release);
        self.inner.applied.send_replace(next);
        if let Some(old) = old {
            let path = old.path().to_owned();
            drop(old);
            fs::remove_dir_all(&path)?;
        }
        remove_old(data_dir)?;
        tracing::info!(applied = next, %hash, "snapshot installed");
        Ok(())
    }
}
