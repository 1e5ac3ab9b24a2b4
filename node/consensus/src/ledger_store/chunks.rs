//! How the ledger's records lie in the layers: small values as they are, large ones split over several keys.
//!
//! | key | value |
//! | --- | --- |
//! | the record's key | `0`, the value, CRC-32 |
//! | the record's key | `1`, the number of chunks, CRC-32 |
//! | `zc`, the record's key, chunk | `0`, a piece of the value, CRC-32 |
//! | either | `2`, CRC-32: the key was removed, and hides what an older layer has |
//! | `zf` | `0`, magic and version, CRC-32: in a database of an [earlier](super::earlier) program |
//! | `zm` | `0`, [`Meta`](super::Meta), CRC-32: there, what had been applied |
//!
//! Numbers are big-endian. The keys of the ledger end below `z`. The CRC is over the key and all of the value before it,
//! so that a value that was damaged, or lies under another key, is an error and never an answer.

use std::io;

use bytes::{Bytes, BytesMut};
use quorun_ledger::keys;
use sled::IVec;

use crate::disk::{Tree, to_io};
use crate::error::NewerFormat;

/// A larger value is split into pieces of this size.
pub(super) const MAX_PIECE: usize = 8 * 1024;

/// What earlier programs kept beside the records.
pub(super) const META: &[u8] = &[keys::END, b'm'];
const FORMAT: &[u8] = &[keys::END, b'f'];
const CHUNKS: &[u8] = &[keys::END, b'c'];

const WHOLE: u8 = 0;
const SPLIT: u8 = 1;
const REMOVED: u8 = 2;
const CRC: usize = 4;

/// What a database of an earlier program starts with.
const MAGIC: &[u8; 8] = b"QUORUNLG";
/// The version of everything in this table.
const VERSION: u8 = 2;
/// The version before there were removals.
const WITHOUT_REMOVALS: u8 = 1;

/// What lies under a key.
pub(super) enum Head<'a> {
    Whole(&'a [u8]),
    Split(u32),
    Removed,
}

pub(super) fn invalid(key: &[u8], what: &str) -> io::Error {
    let message = format!("the value of {}: {what}", key.escape_ascii());
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn checksum(key: &[u8], value: &[u8]) -> [u8; CRC] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(value);
    crc.finalize().to_be_bytes()
}

/// Reads what lies under a key.
pub(super) fn head<'a>(key: &[u8], value: &'a [u8]) -> io::Result<Head<'a>> {
    let (value, crc) = value
        .split_last_chunk::<CRC>()
        .ok_or_else(|| invalid(key, "too short"))?;
    if checksum(key, value) != *crc {
        return Err(invalid(key, "its checksum is wrong"));
    }
    match value.split_first() {
        Some((&WHOLE, body)) => Ok(Head::Whole(body)),
        Some((&SPLIT, body)) => {
            let count = body.try_into().map_err(|_| invalid(key, "malformed"))?;
            Ok(Head::Split(u32::from_be_bytes(count)))
        }
        Some((&REMOVED, [])) => Ok(Head::Removed),
        _ => Err(invalid(key, "malformed")),
    }
}

/// Reads what lies under a key and is never split.
pub(super) fn body<'a>(key: &[u8], value: &'a [u8]) -> io::Result<&'a [u8]> {
    match head(key, value)? {
        Head::Whole(body) => Ok(body),
        Head::Split(_) => Err(invalid(key, "split, although it never is")),
        Head::Removed => Err(invalid(key, "removed, although it never is")),
    }
}

pub(super) fn chunk_key(key: &[u8], chunk: u32) -> Vec<u8> {
    let mut full = Vec::with_capacity(CHUNKS.len() + key.len() + 4);
    full.extend_from_slice(CHUNKS);
    full.extend_from_slice(key);
    full.extend_from_slice(&chunk.to_be_bytes());
    full
}

/// The record's key and the number of the chunk, if this is the key of a chunk.
pub(super) fn parts_of_chunk_key(key: &[u8]) -> Option<(&[u8], u32)> {
    let (record, chunk) = key.strip_prefix(CHUNKS)?.split_last_chunk::<4>()?;
    Some((record, u32::from_be_bytes(*chunk)))
}

/// Whether a key says something of the database itself.
pub(super) fn is_own(key: &[u8]) -> bool {
    key == META || key == FORMAT
}

fn value(key: &[u8], tag: u8, body: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(1 + body.len() + CRC);
    value.push(tag);
    value.extend_from_slice(body);
    let crc = checksum(key, &value);
    value.extend_from_slice(&crc);
    value
}

/// What is written in the place of a key that was removed.
pub(super) fn removed(key: &[u8]) -> Vec<u8> {
    value(key, REMOVED, &[])
}

/// Whether this says that a key was removed. Whoever uses the value checks it.
pub(super) fn is_removed(value: &[u8]) -> bool {
    value.first() == Some(&REMOVED)
}

/// A value that is never split.
pub(super) fn whole(key: &[u8], body: &[u8]) -> Vec<u8> {
    value(key, WHOLE, body)
}

/// Calls `write` with every key and value under which `record` lies. Returns the number of chunks.
pub(super) fn split(key: &[u8], record: &[u8], mut write: impl FnMut(Vec<u8>, Vec<u8>)) -> u32 {
    if record.len() <= MAX_PIECE {
        write(key.to_vec(), whole(key, record));
        return 0;
    }
    let mut count = 0;
    for piece in record.chunks(MAX_PIECE) {
        let chunk = chunk_key(key, count);
        let piece = whole(&chunk, piece);
        write(chunk, piece);
        count += 1;
    }
    write(key.to_vec(), value(key, SPLIT, &count.to_be_bytes()));
    count
}

/// The value of a record whose key holds `value`; its other pieces come from `get`. `None`: it was removed.
pub(super) fn join(
    get: impl Fn(&[u8]) -> io::Result<Option<IVec>>,
    key: &[u8],
    value: &[u8],
) -> io::Result<Option<Bytes>> {
    Ok(read(get, key, value)?.map(|(record, _)| record))
}

/// The same, with the number of its chunks.
pub(super) fn read(
    get: impl Fn(&[u8]) -> io::Result<Option<IVec>>,
    key: &[u8],
    value: &[u8],
) -> io::Result<Option<(Bytes, u32)>> {
    let count = match head(key, value)? {
        Head::Whole(body) => return Ok(Some((Bytes::copy_from_slice(body), 0))),
        Head::Split(count) => count,
        Head::Removed => return Ok(None),
    };
    let mut joined = BytesMut::with_capacity(count as usize * MAX_PIECE);
    for chunk in 0..count {
        let key = chunk_key(key, chunk);
        let piece = get(&key)?.ok_or_else(|| invalid(&key, "missing"))?;
        joined.extend_from_slice(body(&key, &piece)?);
    }
    Ok(Some((joined.freeze(), count)))
}

/// Looks whether a database is one of the ledger that can be read. `false`: nothing was ever written into it.
pub(super) fn check_format(tree: &Tree) -> io::Result<bool> {
    let Some(found) = tree.get(FORMAT).map_err(to_io)? else {
        return match tree.iter().next() {
            Some(_) => Err(invalid(FORMAT, "missing")),
            None => Ok(false),
        };
    };
    match body(FORMAT, &found)?.strip_prefix(MAGIC) {
        Some([VERSION | WITHOUT_REMOVALS]) => Ok(true),
        Some([newer, ..]) => Err(NewerFormat::error(*newer, VERSION)),
        _ => Err(invalid(FORMAT, "not the ledger of a node")),
    }
}
