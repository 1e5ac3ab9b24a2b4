//! How the ledger's records lie in sled: small values as they are, large ones split over several keys of the same tree.
//!
//! | key | value |
//! | --- | --- |
//! | the record's key | `0`, the value |
//! | the record's key | `1`, the number of chunks |
//! | `zc`, the record's key, chunk | `0`, a piece of the value |
//! | `zm` | [`Meta`](super::Meta): what has been applied |
//!
//! Numbers are big-endian. The keys of the ledger end below `z`.

use std::io;

use bytes::{Bytes, BytesMut};
use quorun_ledger::keys;

use crate::disk::Tree;

/// A larger value is split into pieces of this size: sled puts what is much larger into files that it never syncs.
pub(super) const MAX_PIECE: usize = 8 * 1024;

/// What the keeper of the records keeps for itself.
pub(super) const META: &[u8] = &[keys::END, b'm'];
const CHUNKS: &[u8] = &[keys::END, b'c'];

const WHOLE: u8 = 0;
const SPLIT: u8 = 1;

/// What lies under a record's key.
pub(super) enum Head<'a> {
    Whole(&'a [u8]),
    Split(u32),
}

pub(super) fn head(value: &[u8]) -> io::Result<Head<'_>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed value");
    match value.split_first() {
        Some((&WHOLE, body)) => Ok(Head::Whole(body)),
        Some((&SPLIT, body)) => {
            let count = body.try_into().map_err(|_| malformed())?;
            Ok(Head::Split(u32::from_be_bytes(count)))
        }
        _ => Err(malformed()),
    }
}

pub(super) fn chunk_key(key: &[u8], chunk: u32) -> Vec<u8> {
    let mut full = Vec::with_capacity(CHUNKS.len() + key.len() + 4);
    full.extend_from_slice(CHUNKS);
    full.extend_from_slice(key);
    full.extend_from_slice(&chunk.to_be_bytes());
    full
}

fn whole(body: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(1 + body.len());
    value.push(WHOLE);
    value.extend_from_slice(body);
    value
}

/// Calls `write` with every key and value under which `value` lies. Returns the number of chunks.
pub(super) fn split(key: &[u8], value: &[u8], mut write: impl FnMut(Vec<u8>, Vec<u8>)) -> u32 {
    if value.len() <= MAX_PIECE {
        write(key.to_vec(), whole(value));
        return 0;
    }
    let mut count = 0;
    for piece in value.chunks(MAX_PIECE) {
        write(chunk_key(key, count), whole(piece));
        count += 1;
    }
    let mut head = vec![SPLIT];
    head.extend_from_slice(&count.to_be_bytes());
    write(key.to_vec(), head);
    count
}

/// The value of a record whose key holds `value`.
pub(super) fn join(tree: &Tree, key: &[u8], value: &[u8]) -> io::Result<Bytes> {
    let count = match head(value)? {
        Head::Whole(body) => return Ok(Bytes::copy_from_slice(body)),
        Head::Split(count) => count,
    };
    let mut joined = BytesMut::with_capacity(count as usize * MAX_PIECE);
    for chunk in 0..count {
        let key = chunk_key(key, chunk);
        let piece = tree.get(&key).map_err(crate::disk::to_io)?;
        match piece.as_deref().map(head).transpose()? {
            Some(Head::Whole(body)) => joined.extend_from_slice(body),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("chunk {} is missing", key.escape_ascii()),
                ));
            }
        }
    }
    Ok(joined.freeze())
}
