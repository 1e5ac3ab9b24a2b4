//! A sled database whose writes can be made to reach the disk.
//!
//! [`Tree`], [`Batch`] and [`Iter`] are sled's own, called as sled's own are. With the feature `simulation` each of them
//! has a second form, for nodes that run in a simulation: [`simulation::disk`](crate::simulation).

use std::fs::{self, File};
use std::io;
use std::ops::RangeBounds;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sled::IVec;

#[cfg(feature = "simulation")]
use crate::simulation::disk as simulated;

/// sled takes back less than a segment at a time, and puts values over a quarter of one into files that it never syncs.
const SEGMENT: usize = 2 << 20;
/// How often sled itself flushes and collects garbage, milliseconds.
const FLUSH_EVERY: u64 = 500;
/// How long to wait for the lock on a database that was closed just now.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// An open database.
#[derive(Clone)]
pub(crate) struct Disk {
    tree: Tree,
    path: PathBuf,
}

/// What lies on the disk: keys in their order, and their values.
#[derive(Clone)]
pub(crate) enum Tree {
    Sled {
        db: sled::Db,
        /// sled's own file, to sync it.
        file: Arc<File>,
    },
    #[cfg(feature = "simulation")]
    Simulated(simulated::Image),
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens the database in a folder, or creates it.
    pub(crate) fn open(path: &Path, cache: u64) -> io::Result<Self> {
        let unfinished = path.with_extension("creating");
        if unfinished.try_exists()? && path.try_exists()? {
            fs::remove_dir_all(path)?;
        }
        let fresh = !path.try_exists()?;
        #[cfg(feature = "simulation")]
        if let Some(image) = simulated::open(path, fresh) {
            fs::create_dir_all(path)?;
            return Ok(Self {
                tree: Tree::Simulated(image),
                path: path.to_owned(),
            });
        }
        if fresh {
            // sled syncs nothing of what it creates, and does not open what is only half there.
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            File::create(&unfinished)?.sync_all()?;
            crate::files::sync_parent(&unfinished)?;
            fs::create_dir(path)?;
        }
        remove_page_tables(path)?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        let db = loop {
            match open_sled(path, cache) {
                Err(error) if is_locked(&error) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) if is_locked(&error) => {
                    return Err(io::Error::new(
                        io::ErrorKind::WouldBlock,
                        "another process has it open",
                    ));
                }
                other => break other?,
            }
        };
        let file = File::open(path.join("db"))?;
        let disk = Self {
            tree: Tree::Sled {
                db,
                file: Arc::new(file),
            },
            path: path.to_owned(),
        };
        if fresh {
            disk.sync()?;
            for entry in fs::read_dir(path)? {
                File::open(entry?.path())?.sync_all()?;
            }
            crate::files::sync_dir(path)?;
            crate::files::sync_parent(path)?;
            fs::remove_file(&unfinished)?;
            crate::files::sync_parent(path)?;
        }
        Ok(disk)
    }

    pub(crate) const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Returns when everything that was written before the call is on disk. sled's own flush does not wait for the
    /// drive on Linux (`sync_file_range`); that is what the second step is for.
    pub(crate) fn sync(&self) -> io::Result<()> {
        match &self.tree {
            Tree::Sled { db, file } => {
                db.flush().map_err(to_io)?;
                file.sync_data()
            }
            #[cfg(feature = "simulation")]
            Tree::Simulated(image) => {
                image.sync();
                Ok(())
            }
        }
    }
}

impl Tree {
    /// The value of a key.
    pub(crate) fn get(&self, key: impl AsRef<[u8]>) -> sled::Result<Option<IVec>> {
        match self {
            Self::Sled { db, .. } => db.get(key),
            #[cfg(feature = "simulation")]
            Self::Simulated(image) => Ok(image.get(key.as_ref())),
        }
    }

    /// Writes one key.
    pub(crate) fn insert(&self, key: &[u8], value: impl Into<IVec>) -> sled::Result<()> {
        match self {
            Self::Sled { db, .. } => db.insert(key, value).map(drop),
            #[cfg(feature = "simulation")]
            Self::Simulated(image) => {
                image.write(vec![(key.into(), Some(value.into()))]);
                Ok(())
            }
        }
    }

    /// Writes a batch: all of it or, after a crash, nothing of it.
    pub(crate) fn apply_batch(&self, batch: Batch) -> sled::Result<()> {
        match self {
            Self::Sled { db, .. } => {
                let mut writes = sled::Batch::default();
                for (key, value) in batch.writes {
                    match value {
                        Some(value) => writes.insert(key, value),
                        None => writes.remove(key),
                    }
                }
                db.apply_batch(writes)
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(image) => {
                image.write(batch.writes);
                Ok(())
            }
        }
    }

    /// Writes the pairs of a batch one after the other: after a crash the first of them are there, as many as reached the
    /// disk. sled's own batches cost it a write of their own.
    pub(crate) fn apply_in_order(&self, batch: Batch) -> sled::Result<()> {
        match self {
            Self::Sled { db, .. } => {
                for (key, value) in batch.writes {
                    match value {
                        Some(value) => db.insert(key, value)?,
                        None => db.remove(key)?,
                    };
                }
                Ok(())
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(image) => {
                for write in batch.writes {
                    image.write(vec![write]);
                }
                Ok(())
            }
        }
    }

    /// The pairs whose keys are in a range.
    pub(crate) fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(&self, range: R) -> Iter {
        match self {
            Self::Sled { db, .. } => Iter::Sled(db.range(range)),
            #[cfg(feature = "simulation")]
            Self::Simulated(image) => Iter::Simulated(image.range(range)),
        }
    }

    /// The pairs whose keys begin with a prefix.
    pub(crate) fn scan_prefix(&self, prefix: impl AsRef<[u8]>) -> Iter {
        match self {
            Self::Sled { db, .. } => Iter::Sled(db.scan_prefix(prefix)),
            #[cfg(feature = "simulation")]
            Self::Simulated(image) => Iter::Simulated(image.scan_prefix(prefix.as_ref())),
        }
    }

    /// All pairs.
    pub(crate) fn iter(&self) -> Iter {
        self.range::<&[u8], _>(..)
    }
}

/// Pairs in the order of their keys, taken from either end.
pub(crate) enum Iter {
    Sled(sled::Iter),
    #[cfg(feature = "simulation")]
    Simulated(simulated::Iter),
}

impl Iterator for Iter {
    type Item = sled::Result<(IVec, IVec)>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Sled(iter) => iter.next(),
            #[cfg(feature = "simulation")]
            Self::Simulated(iter) => iter.next().map(Ok),
        }
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        match self {
            Self::Sled(iter) => iter.next_back(),
            #[cfg(feature = "simulation")]
            Self::Simulated(iter) => iter.next_back().map(Ok),
        }
    }
}

/// Writes that happen together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    writes: Vec<(IVec, Option<IVec>)>,
}

impl Batch {
    pub(crate) fn insert(&mut self, key: impl Into<IVec>, value: impl Into<IVec>) {
        self.writes.push((key.into(), Some(value.into())));
    }

    /// How many keys it writes.
    pub(crate) fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether nothing is removed.
    pub(crate) fn only_adds(&self) -> bool {
        self.writes.iter().all(|(_, value)| value.is_some())
    }

    pub(crate) fn remove(&mut self, key: impl Into<IVec>) {
        self.writes.push((key.into(), None));
    }
}

/// sled panics on some kinds of damage; to the caller that is an error like the others.
fn open_sled(path: &Path, cache: u64) -> io::Result<sled::Db> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(cache)
        .flush_every_ms(Some(FLUSH_EVERY))
        .segment_size(SEGMENT);
    catching(|| config.open().map_err(to_io))
}

/// Reads from a database that may be damaged: a panic of sled is an error.
pub(crate) fn catching<T>(read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read,
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("panic");
            Err(io::Error::other(format!("sled cannot read it: {what}")))
        }
    }
}

/// Removes what a crash has left of a file that sled was writing its page table to: it would take it for the newest one,
/// and not open. Without it the database itself is read, which holds everything.
fn remove_page_tables(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "generating") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn is_locked(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

pub(crate) fn to_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}
