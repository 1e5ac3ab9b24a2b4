//! How the ledger's types become bytes: MessagePack with named fields behind one byte of version.
//!
//! Named fields let a later version add one with a default; the byte lets it change more than that. The encoding is
//! deterministic (fields in the order of their declaration, maps sorted), which the state hash relies on.

use std::io::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version that this program writes, but for what is [`RULED`].
pub const VERSION: u8 = 1;
/// The version of a ledger's counters once rules have begun that are told by their number. Programs from before that number
/// would leave it out and go on by their own rules; a version that they do not know they refuse.
pub const RULED: u8 = 2;

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There was not even a version byte.
    #[error("an empty record")]
    Empty,
    /// Written by a newer program.
    #[error("record version {0}, but this program reads only {VERSION}")]
    Version(u8),
    /// The bytes after the version are not what they should be.
    #[error("a malformed record: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
}

/// Encodes a value.
///
/// # Panics
/// Never for the types of this crate: encoding to memory fails only for values that MessagePack cannot express.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(value, &mut bytes);
    bytes
}

/// Encodes a value that programs from before [`RULED`] must not read.
pub(crate) fn encode_ruled<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_as(RULED, value, &mut bytes);
    bytes
}

/// Encodes a value into something that takes all that is written to it.
pub(crate) fn write<T: Serialize>(value: &T, into: &mut impl Write) {
    write_as(VERSION, value, into);
}

fn write_as<T: Serialize>(version: u8, value: &T, into: &mut impl Write) {
    let version = into.write_all(&[version]);
    debug_assert!(version.is_ok(), "{version:?}");
    let written = value.serialize(&mut rmp_serde::Serializer::new(into).with_struct_map());
    debug_assert!(written.is_ok(), "{written:?}");
}

/// Decodes a value.
///
/// # Errors
/// When the bytes are not a value of this type in a version that this program knows.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes.split_first() {
        None => Err(DecodeError::Empty),
        Some((&VERSION, body)) => Ok(rmp_serde::from_slice(body)?),
        Some((&other, _)) => Err(DecodeError::Version(other)),
    }
}

/// Decodes a value that may be one of [`RULED`].
pub(crate) fn decode_ruled<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes.split_first() {
        Some((&RULED, body)) => Ok(rmp_serde::from_slice(body)?),
        _ => decode(bytes),
    }
}
