//! Whether the records are what was written: all of them together, by the state hash.
//!
//! A checksum shows that a value is damaged, but not that one is missing, or is the one from before. The hash over all
//! records shows both, and it is kept with every change. It is computed anew where everything is read anyway, when a
//! snapshot is built or unpacked, and once behind each start.

use std::io;

use quorun_ledger::{StateHash, keys};

use super::chunks::{self, Head};
use super::decode_hash;

/// Takes in all pairs of a database in the order of their keys.
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

    /// Says what is wrong with all of them.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.end_split();
        if self.chunks == 0 && self.hash == self.kept {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the records are not those that were written: their hash is {}, but it should be {}",
                self.hash, self.kept
            ),
        ))
    }
}
