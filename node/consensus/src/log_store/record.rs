//! How entries lie in sled: packed into records, so that many small entries cost one write, and split over several, so
//! that no value comes near the size at which sled would put it into a blob file of its own (which it never syncs).
//!
//! | key | value |
//! | --- | --- |
//! | `e`, first index, part | version, kind, number, chain before it, body, CRC-32 |
//!
//! Numbers are big-endian. A record of kind *packed* has part 0 only; its number counts the entries, its body is each
//! entry behind its length. A record of kind *split* holds one entry: its number counts the parts, its body is the
//! first piece of the entry, and the parts of kind *piece* hold the others; their number is their part. The CRC is over
//! the key and all of the value before it.
//!
//! The chain is a rolling CRC over all entries since the log was last empty. Each record carries the value before its
//! first entry, so that a record that is missing, doubled or out of its place does not fit.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorun_proto::v1;

use crate::types::Entry;
use crate::wire;

/// No value is larger.
pub(super) const MAX_VALUE: usize = 8 * 1024;

const VERSION: u8 = 1;
const PACKED: u8 = 0;
const SPLIT: u8 = 1;
const PIECE: u8 = 2;
const HEAD: usize = 1 + 1 + 4 + 4;
const CRC: usize = 4;
const MAX_BODY: usize = MAX_VALUE - HEAD - CRC;
const LENGTH: usize = 4;

/// The first letter of every record's key.
pub(super) const TABLE: u8 = b'e';

/// Something that was read is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) String);

/// Where a record lies and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) parts: u32,
}

impl Extent {
    /// What it takes on disk, bytes: not more than this, and less by at most one part.
    pub(super) fn most_bytes(self) -> u64 {
        u64::from(self.parts) * MAX_VALUE as u64
    }

    pub(super) fn keys(self) -> impl Iterator<Item = [u8; 13]> {
        (0..self.parts).map(move |part| key(self.first, part))
    }
}

/// An entry in the form in which it is written.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) index: u64,
    pub(super) bytes: Bytes,
}

impl Encoded {
    pub(super) fn new(entry: &Entry) -> Self {
        Self {
            index: entry.log_id.index,
            bytes: wire::entry_to(entry).encode_to_vec().into(),
        }
    }

    pub(super) fn decode(&self) -> Result<Entry, Malformed> {
        let malformed = |what: String| Malformed(format!("entry {}: {what}", self.index));
        let message =
            v1::Entry::decode(self.bytes.clone()).map_err(|e| malformed(e.to_string()))?;
        let entry = wire::entry_from(message).map_err(|e| malformed(e.to_string()))?;
        if entry.log_id.index != self.index {
            return Err(malformed(format!(
                "it says that it is entry {}",
                entry.log_id.index
            )));
        }
        Ok(entry)
    }
}

/// The chain behind an entry.
pub(super) fn chain(before: u32, entry: &Encoded) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(before);
    crc.update(&(entry.bytes.len() as u64).to_be_bytes());
    crc.update(&entry.bytes);
    crc.finalize()
}

pub(super) fn key(first: u64, part: u32) -> [u8; 13] {
    let mut key = [TABLE; 13];
    key[1..9].copy_from_slice(&first.to_be_bytes());
    key[9..].copy_from_slice(&part.to_be_bytes());
    key
}

/// First index and part of a [`key`].
pub(super) fn parts_of_key(key: &[u8]) -> Result<(u64, u32), Malformed> {
    let malformed = || Malformed(format!("malformed key {}", key.escape_ascii()));
    let body: &[u8; 12] = key
        .strip_prefix(&[TABLE])
        .and_then(|body| body.try_into().ok())
        .ok_or_else(malformed)?;
    let (first, part) = body.split_at(8);
    let first = first.try_into().map_err(|_| malformed())?;
    let part = part.try_into().map_err(|_| malformed())?;
    Ok((u64::from_be_bytes(first), u32::from_be_bytes(part)))
}

fn value(key: &[u8], kind: u8, number: u32, chain: u32, body: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEAD + body.len() + CRC);
    value.put_u8(VERSION);
    value.put_u8(kind);
    value.put_u32(number);
    value.put_u32(chain);
    value.put_slice(body);
    let crc = checksum(key, &value);
    value.put_u32(crc);
    value
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(value);
    crc.finalize()
}

struct Value<'a> {
    kind: u8,
    number: u32,
    chain: u32,
    body: &'a [u8],
}

fn read_value<'a>(key: &[u8], value: &'a [u8]) -> Result<Value<'a>, Malformed> {
    let malformed = |what: &str| Malformed(format!("record {}: {what}", key.escape_ascii()));
    let word = |range: Range<usize>| {
        value
            .get(range)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_be_bytes)
            .ok_or_else(|| malformed("too short"))
    };
    let end = value
        .len()
        .checked_sub(CRC)
        .filter(|end| *end >= HEAD)
        .ok_or_else(|| malformed("too short"))?;
    if word(end..value.len())? != checksum(key, &value[..end]) {
        return Err(malformed("its checksum is wrong"));
    }
    if value[0] != VERSION {
        return Err(malformed(&format!(
            "version {}, but this program reads only {VERSION}",
            value[0]
        )));
    }
    Ok(Value {
        kind: value[1],
        number: word(2..6)?,
        chain: word(6..HEAD)?,
        body: &value[HEAD..end],
    })
}

/// Packs consecutive entries, calling `write` with each key and value, and moves the chain on. Returns what was made.
pub(super) fn pack(
    entries: &[Encoded],
    chain_value: &mut u32,
    mut write: impl FnMut([u8; 13], Vec<u8>),
) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut rest = entries;
    while let Some(head) = rest.first() {
        let before = *chain_value;
        let mut size = 0;
        let count = rest
            .iter()
            .take_while(|entry| {
                size += LENGTH + entry.bytes.len();
                size <= MAX_BODY
            })
            .count();
        let (now, later) = rest.split_at(count.max(1));
        rest = later;
        let mut parts = 1;
        if count == 0 {
            let mut pieces = head.bytes.chunks(MAX_BODY);
            parts = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
            let first_key = key(head.index, 0);
            let first_piece = pieces.next().unwrap_or_default();
            write(
                first_key,
                value(&first_key, SPLIT, parts, before, first_piece),
            );
            for (part, piece) in (1..).zip(pieces) {
                let key = key(head.index, part);
                write(key, value(&key, PIECE, part, before, piece));
            }
        } else {
            let mut body = Vec::with_capacity(MAX_BODY.min(size));
            for entry in now {
                // An entry that fits into a body has a length that fits into 32 bits.
                body.put_u32(u32::try_from(entry.bytes.len()).unwrap_or(u32::MAX));
                body.put_slice(&entry.bytes);
            }
            let key = key(head.index, 0);
            let number = u32::try_from(count).unwrap_or(u32::MAX);
            write(key, value(&key, PACKED, number, before, &body));
        }
        for entry in now {
            *chain_value = chain(*chain_value, entry);
        }
        extents.push(Extent {
            first: head.index,
            last: head.index + now.len() as u64 - 1,
            parts,
        });
    }
    extents
}

/// A record as it was packed.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) entries: Vec<Encoded>,
    /// The chain before its first entry.
    pub(super) before: u32,
}

/// How many parts the record has whose part 0 this is.
pub(super) fn count_parts(first: u64, head: &[u8]) -> Result<u32, Malformed> {
    let value = read_value(&key(first, 0), head)?;
    match value.kind {
        PACKED => Ok(1),
        SPLIT => Ok(value.number),
        other => Err(Malformed(format!("record {first} has kind {other}"))),
    }
}

/// Reads a record from its parts, in their order.
pub(super) fn unpack<V: AsRef<[u8]>>(first: u64, parts: &[V]) -> Result<Record, Malformed> {
    let malformed = |what: &str| Malformed(format!("record {first}: {what}"));
    let head = parts.first().ok_or_else(|| malformed("missing"))?;
    let head = read_value(&key(first, 0), head.as_ref())?;
    let entries = match head.kind {
        PACKED => {
            let mut body = Bytes::copy_from_slice(head.body);
            let mut entries = Vec::with_capacity(head.number as usize);
            for index in (first..).take(head.number as usize) {
                if body.len() < LENGTH {
                    return Err(malformed("too short for its entries"));
                }
                let length = body.split_to(LENGTH);
                let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
                if body.len() < length {
                    return Err(malformed("too short for its entries"));
                }
                entries.push(Encoded {
                    index,
                    bytes: body.split_to(length),
                });
            }
            if !body.is_empty() {
                return Err(malformed("too long for its entries"));
            }
            entries
        }
        SPLIT => {
            if head.number as usize != parts.len() {
                return Err(malformed("a part is missing"));
            }
            let mut bytes = BytesMut::with_capacity(MAX_BODY * parts.len());
            bytes.extend_from_slice(head.body);
            for (part, piece) in (1..).zip(&parts[1..]) {
                let piece = read_value(&key(first, part), piece.as_ref())?;
                if piece.kind != PIECE || piece.number != part || piece.chain != head.chain {
                    return Err(malformed("a part of another record"));
                }
                bytes.extend_from_slice(piece.body);
            }
            vec![Encoded {
                index: first,
                bytes: bytes.freeze(),
            }]
        }
        other => return Err(malformed(&format!("kind {other}"))),
    };
    if entries.is_empty() {
        return Err(malformed("without entries"));
    }
    Ok(Record {
        entries,
        before: head.chain,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn encoded(index: u64, size: usize) -> Encoded {
        let byte = u8::try_from(index % 251).unwrap();
        Encoded {
            index,
            bytes: vec![byte; size].into(),
        }
    }

    fn pack_all(entries: &[Encoded]) -> (BTreeMap<[u8; 13], Vec<u8>>, Vec<Extent>, u32) {
        let mut values = BTreeMap::new();
        let mut chain = 7;
        let extents = pack(entries, &mut chain, |key, value| {
            assert!(value.len() <= MAX_VALUE, "{}", value.len());
            values.insert(key, value);
        });
        (values, extents, chain)
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let sizes = [
            0,
            1,
            300,
            300,
            MAX_BODY,
            MAX_BODY - LENGTH,
            MAX_BODY + 1,
            1 << 20,
            5,
            4000,
            4000,
            4000,
        ];
        let entries: Vec<_> = (10..)
            .zip(sizes)
            .map(|(i, size)| encoded(i, size))
            .collect();
        let (values, extents, end) = pack_all(&entries);

        let mut chain_value = 7;
        let mut unpacked = Vec::new();
        for extent in &extents {
            let parts: Vec<_> = extent.keys().map(|key| values[&key].clone()).collect();
            assert_eq!(count_parts(extent.first, &parts[0]).unwrap(), extent.parts);
            let record = unpack(extent.first, &parts).unwrap();
            assert_eq!(record.before, chain_value);
            assert_eq!(record.entries.last().unwrap().index, extent.last);
            for entry in record.entries {
                chain_value = chain(chain_value, &entry);
                unpacked.push(entry);
            }
        }
        assert_eq!(chain_value, end);
        assert_eq!(unpacked.len(), entries.len());
        for (a, b) in unpacked.iter().zip(&entries) {
            assert_eq!((a.index, &a.bytes), (b.index, &b.bytes));
        }
        assert_eq!(
            values.len(),
            extents.iter().map(|e| e.parts as usize).sum::<usize>()
        );
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let (values, _, _) = pack_all(&[encoded(1, 40), encoded(2, 40)]);
        let value = &values[&key(1, 0)];
        for position in 0..value.len() {
            let mut damaged = value.clone();
            damaged[position] ^= 0x10;
            unpack(1, &[damaged]).unwrap_err();
        }
        unpack(2, std::slice::from_ref(value)).unwrap_err();
        unpack(1, &[&value[..value.len() - 1]]).unwrap_err();
    }

    #[test]
    fn a_missing_or_foreign_part_is_noticed() {
        let (values, extents, _) = pack_all(&[encoded(1, 20_000)]);
        let parts: Vec<_> = extents[0].keys().map(|key| values[&key].clone()).collect();
        assert_eq!(parts.len(), 3);
        unpack(1, &parts[..2]).unwrap_err();
        unpack(1, &[&parts[0], &parts[2], &parts[1]]).unwrap_err();
        unpack(1, &parts).unwrap();
    }
}
