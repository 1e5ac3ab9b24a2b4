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
//! THE FILE is a row of frames: length, CRC-32, body; numbers are big-endian. The first body is the header: magic,
//! version, and the position as [`Meta`] encodes it. The others hold keys and values of the database, each behind its
//! length, in the order of the keys. The last frame is empty, so that a file that was cut short is noticed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::chunks::META;
use super::{CACHE, LedgerStore, Meta, closed, folder, load};
use crate::disk::to_io;
use crate::files;
use crate::types::{Snapshot, SnapshotMeta, next_index};

const MAGIC: &[u8; 8] = b"QUORUNSN";
const VERSION: u8 = 1;
/// A frame is full when it holds so much.
const FRAME: usize = 64 * 1024;
/// No frame is larger: a frame is full before its last pair, and no key or value comes near this.
const MAX_FRAME: usize = 1 << 20;
/// How many keys are looked at under the lock at one time.
const STEP: usize = 256;
/// How many bytes are unpacked into the new database at one time.
const UNPACK: usize = 1 << 20;

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
        tree: &sled::Tree,
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
    pub(super) fn step(&mut self, tree: &sled::Tree) -> io::Result<Option<Vec<RawPair>>> {
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
                && key != META
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

struct FrameWriter<W>(W);

impl<W: io::Write> FrameWriter<W> {
    fn write(&mut self, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len())
            .ok()
            .filter(|length| *length as usize <= MAX_FRAME)
            .ok_or_else(|| io::Error::other("a frame that is too large"))?;
        self.0.write_all(&length.to_be_bytes())?;
        self.0.write_all(&crc32fast::hash(body).to_be_bytes())?;
        self.0.write_all(body)
    }
}

struct FrameReader<R>(R);

impl<R: io::Read> FrameReader<R> {
    /// The next body; `None` at the frame that ends the file.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 8];
        self.0.read_exact(&mut head).map_err(cut_short)?;
        let (length, crc) = head.split_at(4);
        let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        if length > MAX_FRAME {
            return Err(invalid("a frame that is too large"));
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).map_err(cut_short)?;
        if crc32fast::hash(&body).to_be_bytes() != crc {
            return Err(invalid("a frame whose checksum is wrong"));
        }
        Ok((!body.is_empty()).then_some(body))
    }

    /// That nothing follows.
    fn end(&mut self) -> io::Result<()> {
        match self.0.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(invalid("something follows its end")),
        }
    }

    fn header(&mut self) -> io::Result<Meta> {
        let header = self.read()?.ok_or_else(|| invalid("no header"))?;
        let rest = header
            .strip_prefix(MAGIC)
            .ok_or_else(|| invalid("not a snapshot"))?;
        match rest.split_first() {
            Some((&VERSION, meta)) => Meta::decode(meta),
            Some((other, _)) => Err(invalid(&format!(
                "version {other}, but this program reads only {VERSION}"
            ))),
            None => Err(invalid("no version")),
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {what}"))
}

#[allow(clippy::needless_pass_by_value)] // for map_err
fn cut_short(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        invalid("it is cut short")
    } else {
        error
    }
}

fn put(frame: &mut Vec<u8>, bytes: &[u8]) {
    // Keys and values of the database are far below 4 GiB.
    frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(bytes);
}

fn take<'a>(frame: &mut &'a [u8]) -> io::Result<&'a [u8]> {
    let (length, rest) = frame
        .split_at_checked(4)
        .ok_or_else(|| invalid("a malformed frame"))?;
    let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let (bytes, rest) = rest
        .split_at_checked(length)
        .ok_or_else(|| invalid("a malformed frame"))?;
    *frame = rest;
    Ok(bytes)
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

impl LedgerStore {
    /// Writes a snapshot of the ledger as it is now.
    pub(super) fn build(&self) -> io::Result<Snapshot> {
        let _only_one = self.inner.snapshots.lock();
        let meta = {
            let mut current = self.inner.current.write();
            current.building = Some(Progress::default());
            current.meta.clone()
        };
        let path = name(&self.inner.data_dir, &meta);
        let built = self.write_snapshot(&meta, &path);
        self.inner.current.write().building = None;
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

    fn write_snapshot(&self, meta: &Meta, path: &Path) -> io::Result<()> {
        let fresh = path.with_extension("building");
        let mut frames = FrameWriter(BufWriter::new(File::create(&fresh)?));
        let mut header = MAGIC.to_vec();
        header.push(VERSION);
        header.extend_from_slice(&meta.encode());
        frames.write(&header)?;
        loop {
            let step = {
                let mut current = self.inner.current.write();
                let disk = current.disk.clone().ok_or_else(closed)?;
                let progress = current.building.as_mut();
                progress
                    .ok_or_else(|| io::Error::other("the building of a snapshot was ended"))?
                    .step(disk.tree())?
            };
            let Some(pairs) = step else {
                break;
            };
            if pairs.is_empty() {
                continue;
            }
            let mut frame = Vec::with_capacity(FRAME + FRAME / 4);
            for (key, value) in pairs {
                put(&mut frame, &key);
                put(&mut frame, &value);
            }
            frames.write(&frame)?;
        }
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
        let _only_one = self.inner.snapshots.lock();
        let data_dir = &self.inner.data_dir;
        let meta = meta_of(meta);
        let (number, disk) = folder::create_next(data_dir, CACHE)?;
        let mut frames = FrameReader(BufReader::new(snapshot.file));
        check_header(&mut frames, &meta)?;
        let mut batch = sled::Batch::default();
        let mut size = 0;
        while let Some(frame) = frames.read()? {
            let mut rest = frame.as_slice();
            while !rest.is_empty() {
                let (key, value) = (take(&mut rest)?, take(&mut rest)?);
                batch.insert(key, value);
            }
            size += frame.len();
            if size >= UNPACK {
                size = 0;
                let full = std::mem::take(&mut batch);
                disk.tree().apply_batch(full).map_err(to_io)?;
            }
        }
        frames.end()?;
        batch.insert(META, meta.encode());
        disk.tree().apply_batch(batch).map_err(to_io)?;
        let (_, hash) = load(&disk)?;
        disk.sync()?;
        files::sync_dir(disk.path())?;
        files::sync_parent(disk.path())?;

        let path = name(data_dir, &meta);
        if snapshot.path != path {
            fs::rename(&snapshot.path, &path)?;
            files::sync_parent(&path)?;
        }
        folder::switch(data_dir, number)?;
        let next = next_index(meta.applied.as_ref());
        let old = {
            let mut current = self.inner.current.write();
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
