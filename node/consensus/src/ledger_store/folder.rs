//! The folder of the ledger: databases with numbers, and a small file that says which of them counts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::files;

fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("ledger")
}

fn pointer(data_dir: &Path) -> PathBuf {
    root(data_dir).join("current")
}

fn database(data_dir: &Path, number: u64) -> PathBuf {
    root(data_dir).join(number.to_string())
}

fn read_pointer(data_dir: &Path) -> io::Result<Option<u64>> {
    match fs::read_to_string(pointer(data_dir)) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} does not hold a number", pointer(data_dir).display()),
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the database that counts, and removes the others.
pub(super) fn open_current(data_dir: &Path, cache: u64) -> io::Result<Disk> {
    fs::create_dir_all(root(data_dir))?;
    let number = match read_pointer(data_dir)? {
        Some(number) => number,
        None => {
            files::replace(&pointer(data_dir), b"1\n")?;
            files::sync_parent(&root(data_dir))?;
            1
        }
    };
    remove_others(data_dir, number)?;
    Disk::open_behind(&database(data_dir, number), cache)
}

/// Removes all databases but one.
pub(super) fn remove_others(data_dir: &Path, number: u64) -> io::Result<()> {
    let current = database(data_dir, number);
    for entry in fs::read_dir(root(data_dir))? {
        let path = entry?.path();
        if path.is_dir() && path != current {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// The highest number of a database that is there.
fn highest(data_dir: &Path) -> io::Result<u64> {
    let mut highest = 0;
    for entry in fs::read_dir(root(data_dir))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        highest = highest.max(number.unwrap_or(0));
    }
    Ok(highest)
}

/// Creates an empty database beside the one that counts.
pub(super) fn create_next(data_dir: &Path, cache: u64) -> io::Result<(u64, Disk)> {
    let number = highest(data_dir)? + 1;
    let path = database(data_dir, number);
    Ok((number, Disk::open_behind(&path, cache)?))
}

/// Makes a database the one that counts.
pub(super) fn switch(data_dir: &Path, number: u64) -> io::Result<()> {
    files::replace(&pointer(data_dir), format!("{number}\n").as_bytes())
}
