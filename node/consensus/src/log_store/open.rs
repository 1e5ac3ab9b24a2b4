//! What is read of the log at start, and whether it is what was acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;

use quorun_ledger::codec;

use super::record::{self, Extent};
use super::watermark::{DiskLogId, State, Watermark, decode_state};
use super::writer::{COMMITTED_KEY, STATE_KEY};
use super::{CACHE, Location, read_record};
use crate::disk::{Batch, Disk, to_io};
use crate::error::{Error, NewerFormat};
use crate::files;
use crate::options::ClusterId;
use crate::types::{LogId, next_index};

/// The log as it was found.
pub(super) struct Opened {
    pub(super) disk: Disk,
    pub(super) watermark: Watermark,
    pub(super) state: State,
    pub(super) committed: Option<LogId>,
    pub(super) records: BTreeMap<u64, Extent>,
    /// Records that were purged but are still there.
    pub(super) garbage: VecDeque<Extent>,
}

/// Opens the database and the watermark, and compares the two with each other and with the records.
pub(super) fn open(location: &Location) -> Result<Opened, Error> {
    let path = location.log();
    let damaged = |what: String| Error::Damaged {
        path: path.clone(),
        what,
    };
    let at_mark = |error: io::Error| {
        let path = location.watermark();
        if let Some(newer) = NewerFormat::of(&error) {
            return Error::Newer { path, newer };
        }
        if error.kind() == io::ErrorKind::InvalidData {
            let what = error.to_string();
            return Error::Damaged { path, what };
        }
        Error::Storage(format!("{}: {error}", path.display()))
    };
    std::fs::create_dir_all(&location.data_dir)
        .and_then(|()| files::sync_parent(&location.data_dir))
        .map_err(|error| {
            Error::Storage(format!("create {}: {error}", location.data_dir.display()))
        })?;
    let (watermark, mark) = Watermark::open(&location.watermark()).map_err(at_mark)?;
    if let Some(mark) = &mark {
        check_owner(location, location.watermark(), mark)?;
    }
    let known = mark.as_ref().is_some_and(|mark| mark.change > 0);
    let disk = Disk::open(&path, CACHE).map_err(|error| {
        if known && error.kind() != io::ErrorKind::WouldBlock {
            damaged(error.to_string())
        } else {
            Error::Storage(format!("open {}: {error}", path.display()))
        }
    })?;
    let read = |key: &[u8]| {
        disk.tree()
            .get(key)
            .map_err(|error| damaged(error.to_string()))
    };
    let found: Option<State> = read(STATE_KEY)?
        .map(|bytes| decode_state(&bytes))
        .transpose()
        .map_err(|error| match NewerFormat::of(&error) {
            Some(newer) => Error::Newer {
                path: path.clone(),
                newer,
            },
            None => damaged(format!("its state: {error}")),
        })?;
    if let Some(found) = &found {
        check_owner(location, path.clone(), found)?;
    }

    #[cfg(feature = "bugs")]
    let mark = if quorun_ledger::bugs::Bug::SkipWatermark.is_on() {
        found.clone()
    } else {
        mark
    };
    let state = match (found, mark) {
        (None, None) => {
            let state = State::new(location.cluster.0, location.node);
            create(&disk, &state).map_err(|e| Error::Storage(format!("create the log: {e}")))?;
            watermark.write(&state).map_err(at_mark)?;
            state
        }
        // The node died between the two while the folder was new.
        (Some(found), None) if found.change == 0 => {
            watermark.write(&found).map_err(at_mark)?;
            found
        }
        (Some(found), None) => {
            return Err(Error::Damaged {
                path: location.watermark(),
                what: format!("it is empty, but the log has seen {} changes", found.change),
            });
        }
        (None, Some(mark)) if mark.change == 0 => {
            create(&disk, &mark).map_err(|e| Error::Storage(format!("create the log: {e}")))?;
            mark
        }
        (None, Some(mark)) => {
            return Err(damaged(format!(
                "it is empty, but {} changes were acknowledged",
                mark.change
            )));
        }
        (Some(found), Some(mark)) => {
            if found.change < mark.change {
                return Err(damaged(format!(
                    "it ends with change {} and entry {}, but change {} and entry {} were acknowledged",
                    found.change,
                    describe(found.last()),
                    mark.change,
                    describe(mark.last()),
                )));
            }
            if found.change == mark.change && found != mark {
                return Err(damaged(format!(
                    "change {} is not the one that was acknowledged",
                    found.change
                )));
            }
            found
        }
    };
    remove_unfinished(&disk, &state)
        .map_err(|error| Error::Storage(format!("open {}: {error}", path.display())))?;
    let (records, garbage) = check_records(&disk, &state).map_err(damaged)?;
    let committed: Option<DiskLogId> = read(COMMITTED_KEY)?
        .map(|bytes| codec::decode(&bytes))
        .transpose()
        .map_err(|error| damaged(format!("the committed position: {error}")))?;
    Ok(Opened {
        disk,
        watermark,
        state,
        committed: committed.map(Into::into),
        records,
        garbage,
    })
}

fn describe(id: Option<LogId>) -> String {
    id.map_or_else(|| "none".to_owned(), |id| id.index.to_string())
}

fn check_owner(location: &Location, path: PathBuf, state: &State) -> Result<(), Error> {
    let cluster = ClusterId(state.cluster);
    if cluster == location.cluster && state.node == location.node {
        return Ok(());
    }
    Err(Error::Foreign {
        path,
        found: format!("node {} of cluster {cluster}", state.node),
        expected: format!("node {} of cluster {}", location.node, location.cluster),
    })
}

fn create(disk: &Disk, state: &State) -> io::Result<()> {
    disk.tree()
        .insert(STATE_KEY, codec::encode(state))
        .map_err(to_io)?;
    disk.sync()
}

/// Removes the records of a change that was cut short: they were written before the state that tells of them, and nobody
/// was told that they are there.
fn remove_unfinished(disk: &Disk, state: &State) -> io::Result<()> {
    let from = record::key(next_index(state.last().as_ref()), 0);
    let mut batch = Batch::default();
    let mut count = 0;
    for pair in disk.tree().scan_prefix([record::TABLE]).rev() {
        let (key, _) = pair.map_err(to_io)?;
        if key[..] < from[..] {
            break;
        }
        batch.remove(key);
        count += 1;
    }
    if count > 0 {
        tracing::info!(
            records = count,
            "removed what a crash has left of a change of the log"
        );
        disk.tree().apply_batch(batch).map_err(to_io)?;
    }
    Ok(())
}

/// Reads every record: that it is whole, that one follows the other, and that they end where the state says.
fn check_records(
    disk: &Disk,
    state: &State,
) -> Result<(BTreeMap<u64, Extent>, VecDeque<Extent>), String> {
    let (mut records, mut garbage) = (BTreeMap::new(), VecDeque::new());
    let next_purged = next_index(state.purged().as_ref());
    let mut previous: Option<(u64, u32)> = None;
    let mut expected_part = None;
    for pair in disk.tree().scan_prefix([record::TABLE]) {
        let (key, value) = pair.map_err(|error| error.to_string())?;
        let (first, part) = record::parts_of_key(&key).map_err(|error| error.to_string())?;
        if part > 0 {
            // Read together with its part 0, or purged together with it.
            if first >= next_purged && expected_part != Some((first, part)) {
                return Err(format!("part {part} of record {first} is alone"));
            }
            expected_part = Some((first, part + 1));
            continue;
        }
        expected_part = Some((first, 1));
        let parts = record::count_parts(first, &value).map_err(|error| error.to_string())?;
        let extent = Extent {
            first,
            last: first,
            parts,
        };
        let Some(read) = read_record(disk, extent).map_err(|error| error.to_string())? else {
            if first < next_purged {
                garbage.push_back(extent); // its removal was cut short
                continue;
            }
            return Err(format!("a part of record {first} is missing"));
        };
        let extent = Extent {
            last: first + read.entries.len() as u64 - 1,
            ..extent
        };
        if extent.last < next_purged {
            garbage.push_back(extent);
            continue;
        }
        match previous {
            Some((next, chain)) if next != first || chain != read.before => {
                return Err(format!("record {first} does not follow the one before it"));
            }
            None if first > next_purged && next_purged > 0 => {
                return Err(format!(
                    "entries {next_purged} to {} are missing",
                    first - 1
                ));
            }
            _ => {}
        }
        let chain = read.entries.iter().fold(read.before, record::chain);
        for entry in &read.entries {
            entry.decode().map_err(|error| error.to_string())?;
        }
        previous = Some((extent.last + 1, chain));
        records.insert(first, extent);
    }
    match previous {
        Some((next, _)) if next != next_index(state.last().as_ref()) => Err(format!(
            "its last entry is {}, but it should be {}",
            next - 1,
            describe(state.last())
        )),
        Some((_, chain)) if chain != state.chain => {
            Err("its entries are not those that were written".to_owned())
        }
        None if state.last() != state.purged() => Err(format!(
            "it has no entries, but should reach to {}",
            describe(state.last())
        )),
        _ => Ok((records, garbage)),
    }
}
