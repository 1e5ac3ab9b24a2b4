//! A sled database whose writes can be made to reach the disk.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// sled takes back less than a segment at a time, and puts values over a quarter of one into files that it never syncs.
const SEGMENT: usize = 2 << 20;
/// How often sled itself flushes and collects garbage, milliseconds.
const FLUSH_EVERY: u64 = 500;
/// How long to wait for the lock on a database that was closed just now.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// An open database.
#[derive(Clone)]
pub(crate) struct Disk {
    db: sled::Db,
    file: std::sync::Arc<File>,
    path: PathBuf,
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
        let fresh = !path.try_exists()?;
        fs::create_dir_all(path)?;
        remove_unfinished(path)?;
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
            db,
            file: std::sync::Arc::new(file),
            path: path.to_owned(),
        };
        if fresh {
            disk.sync()?;
            crate::files::sync_dir(path)?;
            crate::files::sync_parent(path)?;
        }
        Ok(disk)
    }

    pub(crate) fn tree(&self) -> &sled::Tree {
        &self.db
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when everything that was written before the call is on disk. sled's own flush does not wait for the
    /// drive on Linux (`sync_file_range`); that is what the second step is for.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.db.flush().map_err(to_io)?;
        self.file.sync_data()
    }
}

/// sled panics on some kinds of damage; to the caller that is an error like the others.
fn open_sled(path: &Path, cache: u64) -> io::Result<sled::Db> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(cache)
        .flush_every_ms(Some(FLUSH_EVERY))
        .segment_size(SEGMENT);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(opened) => opened.map_err(to_io),
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
fn remove_unfinished(path: &Path) -> io::Result<()> {
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
