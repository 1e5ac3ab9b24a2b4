//! The folder of the ledger: runs with numbers, and a small file that says which of them make the ledger.
//!
//! | in `ledger/` | |
//! | --- | --- |
//! | `manifest` | magic, version, [`Contents`], CRC-32 of all before |
//! | `N.run` | a sorted run |
//! | `N/` | of an [earlier](super::earlier) program: an overlay, a sled database |
//! | `current` | in the place of the manifest where a program from before the runs has written: the overlay's number |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorun_ledger::{StateHash, codec};
use serde::{Deserialize, Serialize};

use super::Meta;
use crate::error::NewerFormat;
use crate::files;

const MAGIC: &[u8; 8] = b"QUORUNLM";
const VERSION: u8 = 1;

/// What stands in the place of an overlay's number when nothing was written since the runs came from another node, or may
/// have come: this one's log may end before them.
pub(super) const RECEIVED: u64 = 0;

/// What makes the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    /// The number of the folder that an earlier program has its overlay in, or would make for it; [`RECEIVED`] if the log may end
    /// before the runs.
    pub(super) overlay: u64,
    /// The runs' numbers, the oldest first.
    pub(super) runs: Vec<u64>,
    /// What had been applied where the runs end.
    pub(super) meta: Meta,
    /// The state hash there.
    pub(super) hash: StateHash,
}

/// [`Manifest`] on disk.
#[derive(Serialize, Deserialize)]
struct Contents {
    overlay: u64,
    runs: Vec<u64>,
    meta: Bytes,
    hash: StateHash,
}

fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("ledger")
}

fn path(data_dir: &Path) -> PathBuf {
    root(data_dir).join("manifest")
}

/// The folder of an overlay of an earlier program.
pub(super) fn overlay(data_dir: &Path, number: u64) -> PathBuf {
    root(data_dir).join(number.to_string())
}

/// The file of a run.
pub(super) fn run(data_dir: &Path, number: u64) -> PathBuf {
    root(data_dir).join(format!("{number}.run"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the manifest: {what}"))
}

fn decode(bytes: &[u8]) -> io::Result<Manifest> {
    let (body, crc) = bytes
        .split_last_chunk::<4>()
        .ok_or_else(|| invalid("too short"))?;
    let rest = body
        .strip_prefix(MAGIC)
        .ok_or_else(|| invalid("it is not one"))?;
    match rest.split_first() {
        Some((&VERSION, contents)) => {
            if crc32fast::hash(body).to_be_bytes() != *crc {
                return Err(invalid("its checksum is wrong"));
            }
            let contents: Contents =
                codec::decode(contents).map_err(|error| invalid(&error.to_string()))?;
            Ok(Manifest {
                overlay: contents.overlay,
                runs: contents.runs,
                meta: Meta::decode(&contents.meta)?,
                hash: contents.hash,
            })
        }
        Some((newer, _)) => Err(NewerFormat::error(*newer, VERSION)),
        None => Err(invalid("no version")),
    }
}

/// What an earlier program has written in the place of a manifest.
fn earlier(data_dir: &Path) -> io::Result<Option<Manifest>> {
    let text = match fs::read_to_string(root(data_dir).join("current")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let overlay = text
        .trim()
        .parse()
        .map_err(|_| invalid("the file `current` does not hold a number"))?;
    Ok(Some(Manifest {
        overlay,
        ..Manifest::default()
    }))
}

impl Manifest {
    /// Reads what makes the ledger; `None` when there is none yet.
    pub(super) fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(path(data_dir)) {
            Ok(bytes) => decode(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => earlier(data_dir),
            Err(error) => Err(error),
        }
    }

    /// Makes this the ledger. It is on disk when this returns.
    pub(super) fn write(&self, data_dir: &Path) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        bytes.extend_from_slice(&codec::encode(&Contents {
            overlay: self.overlay,
            runs: self.runs.clone(),
            meta: self.meta.encode().into(),
            hash: self.hash,
        }));
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        files::replace(&path(data_dir), &bytes)
    }

    /// That of a ledger in which nothing was ever written.
    pub(super) fn first() -> Self {
        Self {
            overlay: 1,
            ..Self::default()
        }
    }

    /// Makes sure that this is on disk, where `found` was found. What is there already needs no room.
    pub(super) fn settle(&self, data_dir: &Path, found: Option<&Self>) -> io::Result<()> {
        let path = path(data_dir);
        if found == Some(self) && path.try_exists()? {
            fs::File::open(&path)?.sync_all()?;
            return files::sync_parent(&path);
        }
        self.write(data_dir)
    }

    /// Removes what does not belong to it. The overlay of an earlier program is kept if it is still needed.
    pub(super) fn remove_others(&self, data_dir: &Path, earlier: bool) -> io::Result<()> {
        for entry in fs::read_dir(root(data_dir))? {
            let found = entry?.path();
            let kept = (earlier && found == overlay(data_dir, self.overlay))
                || found == path(data_dir)
                || self
                    .runs
                    .iter()
                    .any(|number| found == run(data_dir, *number));
            if kept {
                continue;
            }
            super::remove(&found);
        }
        Ok(())
    }
}

/// Removes what was being written when the node ended.
pub(super) fn remove_unfinished(data_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(root(data_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let found = entry?.path();
        let ends = found.extension().and_then(|extension| extension.to_str());
        if matches!(ends, Some("building" | "tmp")) {
            fs::remove_file(&found)?;
        }
    }
    Ok(())
}

/// Creates the folder.
pub(super) fn create(data_dir: &Path) -> io::Result<()> {
    fs::create_dir_all(root(data_dir))?;
    files::sync_parent(&root(data_dir))
}

/// A number above all that are in use.
pub(super) fn next_number(data_dir: &Path) -> io::Result<u64> {
    let mut highest = 0;
    for entry in fs::read_dir(root(data_dir))? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str());
        let number = number.and_then(|stem| stem.parse().ok());
        highest = highest.max(number.unwrap_or(0));
    }
    Ok(highest + 1)
}
