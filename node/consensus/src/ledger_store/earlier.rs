//! What earlier programs have left: they kept the overlay in a database of sled, `ledger/N/`.
//!
//! It is read once, at the start, and made a run. One that is damaged is no loss where the log begins before the runs end.

use std::io;
use std::path::Path;
use std::sync::Arc;

use quorun_ledger::StateHash;

use super::check::Changes;
use super::layers::Runs;
use super::manifest::{self, Manifest};
use super::overlay::Overlay;
use super::run::{Run, block_cache};
use super::{Meta, chunks};
use crate::disk::{Disk, to_io};
use crate::types::next_index;

/// What sled keeps of it in memory while it is read, bytes.
const CACHE: u64 = 32 << 20;

/// An overlay of before, and how things stood with it.
pub(super) struct Earlier {
    pub(super) overlay: Overlay,
    pub(super) meta: Meta,
    pub(super) hash: StateHash,
}

/// Reads the overlay that the manifest names, if it is on the disk, and looks at all that is in it.
pub(super) fn read(
    data_dir: &Path,
    manifest: &Manifest,
    runs: &[Arc<Run>],
) -> io::Result<Option<Earlier>> {
    let path = manifest::overlay(data_dir, manifest.overlay);
    if !path.try_exists()? || path.with_extension("creating").try_exists()? {
        return Ok(None);
    }
    let disk = Disk::open(&path, CACHE)?;
    let tree = disk.tree();
    if !chunks::check_format(tree)? {
        return Ok(None);
    }
    let meta = match tree.get(chunks::META).map_err(to_io)? {
        Some(value) => Meta::decode(chunks::body(chunks::META, &value)?)?,
        None => manifest.meta.clone(),
    };
    if next_index(meta.applied.as_ref()) < next_index(manifest.meta.applied.as_ref()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what it has in sled is older than its runs",
        ));
    }
    let mut overlay = Overlay::default();
    for pair in tree.iter() {
        let (key, value) = pair.map_err(to_io)?;
        if !chunks::is_own(&key) {
            overlay.insert(&key, value);
        }
    }
    let runs = Runs::new(runs.to_vec(), block_cache());
    let hash = Changes::of(&overlay, &runs, manifest.hash)?;
    Ok(Some(Earlier {
        overlay,
        meta,
        hash,
    }))
}
