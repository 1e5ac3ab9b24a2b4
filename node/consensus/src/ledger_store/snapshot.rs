//! Snapshots: the whole ledger at one position of the log.
//!
//! A snapshot is the sorted runs of the ledger, so that building one writes only what has changed since the one before.
//!
//! BUILDING does not stop the ledger: the overlay is frozen, and an empty one takes the writes from then on. The frozen one
//! is written as a run (synced, renamed, the folder synced), and the manifest then names the run. Until then a crash
//! leaves the old manifest, and the log, from which only what the runs cover will be purged. The same is done whenever
//! the overlay has become large, without a snapshot for openraft, which would cut the log.
//!
//! SENDING passes on the files of the runs as they are, behind a header that says how long each is.
//!
//! INSTALLING copies the runs out of the received file, looks at all pairs, and then writes a manifest that names them. A crash before leaves files that are removed at the next start; a crash behind it leaves a ledger that
//! is newer than what openraft knows of, and openraft is told of it at the start.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use quorun_ledger::{StateHash, codec};
use serde::{Deserialize, Serialize};

use super::check::{Changes, Check};
use super::frames::{self, FrameReader, FrameWriter, invalid};
use super::layers::{Layers, Runs};
use super::manifest::{self, Manifest};
use super::overlay::Overlay;
use super::run::{Run, RunReader, RunWriter, block_cache};
use super::{LedgerStore, Meta, chunks, closed};
use crate::files;
use crate::types::{Snapshot, SnapshotMeta, next_index};

const MAGIC: &[u8; 8] = b"QUORUNSN";
const VERSION: u8 = 3;

/// What a snapshot begins with, in a frame, behind the magic and the version.
#[derive(Serialize, Deserialize)]
struct Header {
    /// What had been applied, as [`Meta`] encodes it.
    meta: Bytes,
    /// How long the files of the runs are that follow, bytes; the oldest first.
    runs: Vec<u64>,
    /// The state hash.
    hash: StateHash,
}

impl Header {
    fn write(meta: &Meta, hash: StateHash, runs: &[Arc<Run>]) -> io::Result<Vec<u8>> {
        let mut body = MAGIC.to_vec();
        body.push(VERSION);
        body.extend_from_slice(&codec::encode(&Self {
            meta: meta.encode().into(),
            runs: runs.iter().map(|run| run.bytes).collect(),
            hash,
        }));
        let mut framed = FrameWriter(Vec::new());
        framed.write(&body)?;
        Ok(framed.0)
    }

    /// Reads it, and says how long it is.
    fn read<R: io::Read>(reader: R) -> io::Result<(Self, u64)> {
        let body = FrameReader(reader).read()?;
        let rest = body
            .strip_prefix(MAGIC)
            .ok_or_else(|| invalid("it is not one"))?;
        match rest.split_first() {
            Some((&VERSION, rest)) => {
                let header = codec::decode(rest).map_err(|error| invalid(&error.to_string()))?;
                Ok((header, frames::length(&body)))
            }
            Some((other, _)) => Err(invalid(&format!(
                "version {other}, but this program reads only {VERSION}"
            ))),
            None => Err(invalid("no version")),
        }
    }
}

/// Says of what is wrong with a snapshot that it is one.
fn of_snapshot(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::InvalidData => invalid(&format!("snapshot: {error}")),
        _ => error,
    }
}

/// A snapshot: that of this node's ledger, or one that was received.
#[derive(Debug)]
pub(crate) enum SnapshotFile {
    /// Runs, the oldest first.
    Own {
        meta: Meta,
        hash: StateHash,
        runs: Vec<Arc<Run>>,
    },
    /// The file that it was put into.
    Received(Arc<Received>),
}

/// The file of a snapshot that is received. It is removed when nobody needs it any more, however that comes.
#[derive(Debug)]
pub(crate) struct Received(PathBuf);

impl Received {
    pub(crate) fn at(path: PathBuf) -> Arc<Self> {
        Arc::new(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        let remove = move || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "a received snapshot could not be removed");
            }
            _ => {} // removed, or never there
        };
        #[cfg(feature = "simulation")]
        if crate::simulation::active() {
            remove();
            return;
        }
        // A large file takes a moment, and this may be a thread that must not wait.
        if let Err(error) = std::thread::Builder::new().spawn(remove) {
            tracing::warn!(%error, "a received snapshot stays until the next start");
        }
    }
}

impl SnapshotFile {
    /// A file that was received. All of it is read: that it is whole, and what was announced. Once openraft has
    /// it, it is too late to refuse it.
    pub(crate) fn open_received(
        received: Arc<Received>,
        announced: &SnapshotMeta,
    ) -> io::Result<Self> {
        let parts = Parts::read(received.path(), &meta_of(announced)).map_err(of_snapshot)?;
        let mut file = File::open(received.path())?;
        for (begin, length) in parts.runs {
            file.seek(SeekFrom::Start(begin))?;
            let reader = BufReader::new((&mut file).take(length));
            Run::read_through(reader, length).map_err(of_snapshot)?;
        }
        Ok(Self::Received(received))
    }

    /// What is sent of it.
    pub(crate) fn reader(self) -> io::Result<SnapshotReader> {
        match self {
            Self::Own { meta, hash, runs } => {
                let header = Header::write(&meta, hash, &runs)?;
                let bytes: u64 = runs.iter().map(|run| run.bytes).sum();
                Ok(SnapshotReader {
                    length: header.len() as u64 + bytes,
                    header: io::Cursor::new(header),
                    runs: runs.iter().map(Run::reader).collect(),
                })
            }
            Self::Received(_) => Err(io::Error::other("a received snapshot is not sent on")),
        }
    }
}

/// Reads a snapshot from its beginning to its end.
#[derive(Debug)]
pub(crate) struct SnapshotReader {
    length: u64,
    header: io::Cursor<Vec<u8>>,
    runs: VecDeque<RunReader>,
}

impl SnapshotReader {
    /// How long it is, bytes.
    pub(crate) const fn length(&self) -> u64 {
        self.length
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.header.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        while let Some(run) = self.runs.front_mut() {
            let read = run.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            self.runs.pop_front();
        }
        Ok(0)
    }
}

/// What a received file holds.
struct Parts {
    hash: StateHash,
    /// Where each run begins, and how long it is.
    runs: Vec<(u64, u64)>,
}

impl Parts {
    fn read(path: &Path, expected: &Meta) -> io::Result<Self> {
        let file = File::open(path)?;
        let (header, mut at) = Header::read(BufReader::new(&file))?;
        if Meta::decode(&header.meta)? != *expected {
            return Err(invalid("its position is not the one that was announced"));
        }
        let mut runs = Vec::new();
        for length in header.runs {
            runs.push((at, length));
            at = at.saturating_add(length);
        }
        match file.metadata()?.len().cmp(&at) {
            std::cmp::Ordering::Less => Err(invalid("it is cut short")),
            std::cmp::Ordering::Equal => Ok(Self {
                hash: header.hash,
                runs,
            }),
            std::cmp::Ordering::Greater => Err(invalid("something follows its end")),
        }
    }
}

/// Where snapshots are received.
pub(crate) fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("snapshots")
}

/// Creates the folder, and removes what a crash, or an earlier program, has left in it.
pub(super) fn clean(data_dir: &Path) -> io::Result<()> {
    fs::create_dir_all(folder(data_dir))?;
    files::sync_dir(data_dir)?;
    for entry in fs::read_dir(folder(data_dir))? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn meta_of(meta: &SnapshotMeta) -> Meta {
    Meta {
        applied: meta.last_log_id,
        membership: meta.last_membership.clone(),
    }
}

fn snapshot_of(meta: Meta, hash: StateHash, runs: &Runs) -> Snapshot {
    Snapshot {
        meta: SnapshotMeta {
            last_log_id: meta.applied,
            last_membership: meta.membership.clone(),
        },
        snapshot: SnapshotFile::Own {
            meta,
            hash,
            runs: runs.list().to_vec(),
        },
    }
}

/// What a run is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// A snapshot.
    Snapshot,
    /// The overlay, which is large.
    Overlay,
    /// The end of the node, which comes whether this succeeds or not.
    End,
}

/// An overlay that takes no more writes, and how things stood then.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) overlay: Arc<Overlay>,
    meta: Meta,
    hash: StateHash,
}

impl LedgerStore {
    /// Makes a snapshot of the ledger as it is now.
    pub(super) fn build(&self) -> io::Result<Snapshot> {
        let _only_one = self.inner.snapshots.lock();
        tracing::debug!("snapshot begun");
        let (meta, hash, runs) = self.make_run(Of::Snapshot)?;
        tracing::info!(
            applied = next_index(meta.applied.as_ref()),
            runs = runs.list().len(),
            bytes = runs.list().iter().map(|run| run.bytes).sum::<u64>(),
            "snapshot built"
        );
        self.merge_in_background();
        Ok(snapshot_of(meta, hash, &runs))
    }

    /// Makes a run of the overlay, if there is so much in it, bytes.
    pub(super) fn flush(&self, least: u64) -> io::Result<()> {
        let _only_one = self.inner.snapshots.lock();
        if self.layers_of(|layers| layers.overlay.bytes() < least) == Some(true) {
            return Ok(());
        }
        self.make_run(Of::Overlay)?;
        self.merge_in_background();
        Ok(())
    }

    /// Makes a run of the overlay; where the runs end then, and all of them. Whoever calls it holds `snapshots`.
    pub(super) fn make_run(&self, of: Of) -> io::Result<(Meta, StateHash, Runs)> {
        let frozen = self.freeze(of)?;
        let (meta, hash) = (frozen.meta.clone(), frozen.hash);
        let runs = self.write_run(frozen).inspect_err(|error| {
            // Told here, where the reason is known: what follows says only that a run has failed.
            if of != Of::End && !self.is_closed() {
                self.failed(format!("the ledger cannot be written: {error}"));
            }
        })?;
        Ok((meta, hash, runs))
    }

    /// Freezes the overlay and puts an empty one in its place.
    pub(super) fn freeze(&self, of: Of) -> io::Result<Frozen> {
        let mut current = self.inner.current.write();
        let current = &mut *current;
        let layers = current.layers.as_mut().ok_or_else(closed)?;
        if layers.frozen.is_some() {
            return Err(io::Error::other("a run was begun and has failed"));
        }
        let overlay = Arc::new(std::mem::take(&mut layers.overlay));
        layers.frozen = Some(overlay.clone());
        if of == Of::Snapshot {
            current.written = super::Written::default();
        }
        Ok(Frozen {
            overlay,
            meta: current.meta.clone(),
            hash: current.hash,
        })
    }

    /// Makes a run of a frozen overlay. Returns the runs that there are then.
    pub(super) fn write_run(&self, frozen: Frozen) -> io::Result<Runs> {
        let number = self.next_number();
        let path = manifest::run(&self.inner.data_dir, number);
        // Merging may change the runs meanwhile, but not what is in them.
        let below = self.runs()?;
        let hash_below = self.inner.manifest.lock().hash;
        let mut changes = Changes::new(&frozen.overlay, &below, hash_below);
        let mut writer = RunWriter::create(&path, frozen.overlay.len())?;
        let mut hidden = 0;
        for (key, value) in frozen.overlay.iter() {
            changes.take(key, value)?;
            let needed = if chunks::is_removed(value) {
                // A removal that hides nothing is not needed.
                let below = below.get(key)?;
                hidden += below.as_ref().map_or(0, |below| below.len() as u64);
                below.is_some()
            } else {
                true
            };
            if needed {
                writer.add(key, value)?;
            }
            if self.is_closed() {
                return Err(closed());
            }
        }
        if changes.finish()? != frozen.hash {
            return Err(io::Error::other("the ledger is not what was applied"));
        }
        let run = writer.finish(number, hidden)?;
        let mut manifest = self.inner.manifest.lock();
        let mut list = self.runs()?.list().to_vec();
        list.extend(run.map(Arc::new));
        let changed = Manifest {
            // Where nothing was applied since they were received, the log need not have heard of it.
            overlay: if frozen.meta == manifest.meta {
                manifest.overlay
            } else {
                self.next_number()
            },
            runs: list.iter().map(|run| run.number).collect(),
            meta: frozen.meta,
            hash: frozen.hash,
        };
        changed.write(&self.inner.data_dir)?;
        self.covers(&changed);
        let before = std::mem::replace(&mut *manifest, changed);
        let runs = {
            let mut current = self.inner.current.write();
            let layers = current.layers.as_mut().ok_or_else(closed)?;
            layers.runs = layers.runs.with(list);
            layers.frozen = None;
            layers.runs.clone()
        };
        drop(manifest);
        let earlier = manifest::overlay(&self.inner.data_dir, before.overlay);
        if earlier.try_exists()? {
            super::remove(&earlier);
        }
        Ok(runs)
    }

    /// From now on what is in the runs may be purged from the log.
    fn covers(&self, manifest: &Manifest) {
        let next = next_index(manifest.meta.applied.as_ref());
        self.inner.covered.store(next, Ordering::Release);
    }

    /// The newest snapshot.
    pub(super) fn current_snapshot(&self) -> io::Result<Option<Snapshot>> {
        let manifest = self.inner.manifest.lock();
        if manifest.meta.applied.is_none() {
            return Ok(None);
        }
        let (meta, hash) = (manifest.meta.clone(), manifest.hash);
        Ok(Some(snapshot_of(meta, hash, &self.runs()?)))
    }

    /// Replaces the ledger with a snapshot.
    pub(super) fn install(&self, meta: &SnapshotMeta, snapshot: &SnapshotFile) -> io::Result<()> {
        let _only_one = self.inner.snapshots.lock();
        self.inner.installing.store(true, Ordering::Release);
        let no_merge = self.inner.merges.lock();
        self.inner.installing.store(false, Ordering::Release);
        let data_dir = &self.inner.data_dir;
        let meta = meta_of(meta);
        let (runs, announced) = self.unpack(&meta, snapshot)?;
        let hash = check(&runs, || self.is_closed()).map_err(of_snapshot)?;
        let hash = hash.ok_or_else(closed)?;
        if hash != announced {
            return Err(of_snapshot(invalid(
                "its state hash is not the one that was announced",
            )));
        }
        let changed = Manifest {
            overlay: manifest::RECEIVED,
            runs: runs.iter().map(|run| run.number).collect(),
            meta: meta.clone(),
            hash,
        };
        let next = next_index(meta.applied.as_ref());
        let old = {
            let mut manifest = self.inner.manifest.lock();
            changed.write(data_dir)?;
            self.covers(&changed);
            *manifest = changed.clone();
            let mut current = self.inner.current.write();
            if current.layers.is_none() {
                return Err(closed());
            }
            current.meta = meta;
            current.hash = hash;
            current.written = super::Written::default();
            // Ranges that were empty need not be so any more.
            *self.inner.emptied.lock() = quorun_ledger::Emptied::default();
            *self.inner.heads.lock() = None;
            current.layers.replace(Layers {
                overlay: Overlay::default(),
                frozen: None,
                runs: Runs::new(runs, block_cache()),
            })
        };
        self.inner.applied.send_replace(next);
        drop(old);
        changed.remove_others(data_dir, false)?;
        tracing::info!(applied = next, %hash, "snapshot installed");
        drop(no_merge);
        self.merge_in_background();
        Ok(())
    }

    /// The runs of a snapshot as files of this node, and the state hash that it says.
    fn unpack(
        &self,
        meta: &Meta,
        snapshot: &SnapshotFile,
    ) -> io::Result<(Vec<Arc<Run>>, StateHash)> {
        let mut runs = Vec::new();
        let mut copy = |from: &mut dyn Read| {
            let number = self.next_number();
            let path = manifest::run(&self.inner.data_dir, number);
            let mut file = File::create(&path)?;
            io::copy(from, &mut file)?;
            file.sync_all()?;
            files::sync_parent(&path)?;
            runs.push(Arc::new(Run::open(&path, number)?));
            io::Result::Ok(())
        };
        let announced = match snapshot {
            SnapshotFile::Own { hash, runs, .. } => {
                for run in runs {
                    copy(&mut run.reader())?;
                }
                *hash
            }
            SnapshotFile::Received(received) => {
                let parts = Parts::read(received.path(), meta).map_err(of_snapshot)?;
                let mut file = File::open(received.path())?;
                for (begin, length) in parts.runs {
                    file.seek(SeekFrom::Start(begin))?;
                    copy(&mut (&mut file).take(length)).map_err(of_snapshot)?;
                }
                parts.hash
            }
        };
        Ok((runs, announced))
    }
}

/// Looks at all pairs of some runs. Returns their hash, or `None` when it is to `stop`.
pub(super) fn check(runs: &[Arc<Run>], stop: impl Fn() -> bool) -> io::Result<Option<StateHash>> {
    let mut check = Check::default();
    let mut merged = Runs::merged(runs)?;
    let mut since = 0;
    while let Some((key, value)) = merged.next()? {
        check.take(&key, &value)?;
        since += 1;
        if since == 1024 {
            since = 0;
            if stop() {
                return Ok(None);
            }
        }
    }
    check.finish().map(Some)
}
