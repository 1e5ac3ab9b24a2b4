//! Whether the records are what was written: all of them together, by the state hash.
//!
//! A checksum shows that a value is damaged, but not that one is missing, or is the one from before. The hash over all
//! records shows both, and it is kept with every change. It is computed anew for what an overlay changes when that
//! becomes a run ([`Changes`]), and for everything when a snapshot is unpacked and once behind each start ([`Check`]).

use std::io;

use quorun_ledger::{StateHash, keys};

use super::chunks::{self, Head};
use super::decode_hash;
use super::layers::Runs;
use super::overlay::Overlay;

fn mismatch(found: StateHash, kept: StateHash) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "the records are not those that were written: their hash is {found}, but it should be {kept}"
        ),
    )
}

/// Takes in all pairs of a ledger in the order of their keys.
#[derive(Debug, Default)]
pub(super) struct Check {
    hash: StateHash,
    /// What the ledger itself says.
    kept: StateHash,
    /// Chunks that are to come.
    chunks: u64,
    /// The record whose chunks are being read, how many there were, and what they held.
    split: Option<(Vec<u8>, u32, Vec<u8>)>,
}

impl Check {
    /// Takes in the next pair.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if chunks::is_own(key) {
            return Ok(());
        }
        let Some((record, chunk)) = chunks::parts_of_chunk_key(key) else {
            return match chunks::head(key, value)? {
                Head::Removed => Ok(()),
                Head::Whole(body) if key == keys::COUNTERS => {
                    self.kept = decode_hash(body)?;
                    Ok(())
                }
                Head::Whole(body) => {
                    self.hash.add(key, body);
                    Ok(())
                }
                Head::Split(count) => {
                    self.chunks += u64::from(count);
                    Ok(())
                }
            };
        };
        if matches!(chunks::head(key, value)?, Head::Removed) {
            return Ok(());
        }
        let piece = chunks::body(key, value)?;
        if self.split.as_ref().is_none_or(|split| split.0 != record) {
            self.end_split();
        }
        let (_, next, joined) = self
            .split
            .get_or_insert_with(|| (record.to_vec(), 0, Vec::new()));
        if *next != chunk || self.chunks == 0 {
            return Err(chunks::invalid(key, "a chunk out of its place"));
        }
        *next += 1;
        self.chunks -= 1;
        joined.extend_from_slice(piece);
        Ok(())
    }

    fn end_split(&mut self) {
        if let Some((key, _, joined)) = self.split.take() {
            self.hash.add(&key, &joined);
        }
    }

    /// Says what is wrong with all of them; otherwise their hash.
    pub(super) fn finish(mut self) -> io::Result<StateHash> {
        self.end_split();
        if self.chunks == 0 && self.hash == self.kept {
            return Ok(self.hash);
        }
        Err(mismatch(self.hash, self.kept))
    }
}

/// What the pairs of an overlay make of the hash of the runs below it.
pub(super) struct Changes<'a> {
    overlay: &'a Overlay,
    runs: &'a Runs,
    hash: StateHash,
    kept: StateHash,
    /// Chunks that there should be, less those that there are.
    chunks: i64,
}

impl<'a> Changes<'a> {
    /// Begins with the hash of the runs.
    pub(super) const fn new(overlay: &'a Overlay, runs: &'a Runs, hash: StateHash) -> Self {
        Self {
            overlay,
            runs,
            hash,
            kept: hash,
            chunks: 0,
        }
    }

    /// The hash that an overlay makes of that of the runs, or what is wrong with it.
    pub(super) fn of(
        overlay: &'a Overlay,
        runs: &'a Runs,
        hash: StateHash,
    ) -> io::Result<StateHash> {
        let mut changes = Self::new(overlay, runs, hash);
        for (key, value) in overlay.iter() {
            changes.take(key, value)?;
        }
        changes.finish()
    }

    /// Takes in a pair of the overlay, in any order.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if chunks::parts_of_chunk_key(key).is_some() {
            if !matches!(chunks::head(key, value)?, Head::Removed) {
                chunks::body(key, value)?;
                self.chunks -= 1;
            }
            return Ok(());
        }
        if let Head::Split(count) = chunks::head(key, value)? {
            self.chunks += i64::from(count);
        }
        let now = chunks::join(|key| Ok(self.overlay.get(key).cloned()), key, value)?;
        if key == keys::COUNTERS {
            self.kept = match now {
                Some(counters) => decode_hash(&counters)?,
                None => StateHash::default(),
            };
            return Ok(());
        }
        if let Some(below) = self.runs.get(key)?
            && let Some(before) = chunks::join(|key| self.runs.get(key), key, &below)?
        {
            self.hash.remove(key, &before);
        }
        if let Some(now) = now {
            self.hash.add(key, &now);
        }
        Ok(())
    }

    /// Says what is wrong with all of them together; otherwise the hash that they make.
    pub(super) fn finish(self) -> io::Result<StateHash> {
        if self.chunks == 0 && self.hash == self.kept {
            return Ok(self.hash);
        }
        Err(mismatch(self.hash, self.kept))
    }
}
