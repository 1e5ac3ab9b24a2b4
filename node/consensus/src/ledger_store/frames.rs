//! The form of a snapshot: a row of frames: length, CRC-32, body; numbers are big-endian. The first body is the header: magic,
//! version, and the position as [`Meta`] encodes it. The others hold keys and values of the database, each behind its
//! length, in the order of the keys. The last frame is empty, so that a file that was cut short is noticed.

use std::io;

use super::Meta;

const MAGIC: &[u8; 8] = b"QUORUNSN";
const VERSION: u8 = 2;
/// A frame is full when it holds so much.
pub(super) const FRAME: usize = 64 * 1024;
/// No frame is larger: a frame is full before its last pair, and no key or value comes near this.
const MAX_FRAME: usize = 1 << 20;

/// The first body.
pub(super) fn header(meta: &Meta) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.push(VERSION);
    header.extend_from_slice(&meta.encode());
    header
}

pub(super) struct FrameWriter<W>(pub(super) W);

impl<W: io::Write> FrameWriter<W> {
    pub(super) fn write(&mut self, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len())
            .ok()
            .filter(|length| *length as usize <= MAX_FRAME)
            .ok_or_else(|| io::Error::other("a frame that is too large"))?;
        self.0.write_all(&length.to_be_bytes())?;
        self.0.write_all(&crc32fast::hash(body).to_be_bytes())?;
        self.0.write_all(body)
    }
}

pub(super) struct FrameReader<R>(pub(super) R);

impl<R: io::Read> FrameReader<R> {
    /// The next body; `None` at the frame that ends the file.
    pub(super) fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 8];
        self.0.read_exact(&mut head).map_err(cut_short)?;
        let (length, crc) = head.split_at(4);
        let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        if length > MAX_FRAME {
            return Err(invalid("a frame that is too large"));
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).map_err(cut_short)?;
        if crc32fast::hash(&body).to_be_bytes() != crc {
            return Err(invalid("a frame whose checksum is wrong"));
        }
        Ok((!body.is_empty()).then_some(body))
    }

    /// That nothing follows.
    pub(super) fn end(&mut self) -> io::Result<()> {
        match self.0.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(invalid("something follows its end")),
        }
    }

    pub(super) fn header(&mut self) -> io::Result<Meta> {
        let header = self.read()?.ok_or_else(|| invalid("no header"))?;
        let rest = header
            .strip_prefix(MAGIC)
            .ok_or_else(|| invalid("not a snapshot"))?;
        match rest.split_first() {
            Some((&VERSION, meta)) => Meta::decode(meta),
            Some((other, _)) => Err(invalid(&format!(
                "version {other}, but this program reads only {VERSION}"
            ))),
            None => Err(invalid("no version")),
        }
    }
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {what}"))
}

#[allow(clippy::needless_pass_by_value)] // for map_err
fn cut_short(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        invalid("it is cut short")
    } else {
        error
    }
}

pub(super) fn put(frame: &mut Vec<u8>, bytes: &[u8]) {
    // Keys and values of the database are far below 4 GiB.
    frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(bytes);
}

pub(super) fn take<'a>(frame: &mut &'a [u8]) -> io::Result<&'a [u8]> {
    let (length, rest) = frame
        .split_at_checked(4)
        .ok_or_else(|| invalid("a malformed frame"))?;
    let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let (bytes, rest) = rest
        .split_at_checked(length)
        .ok_or_else(|| invalid("a malformed frame"))?;
    *frame = rest;
    Ok(bytes)
}
