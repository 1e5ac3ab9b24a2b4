//! The form of the ledger's files: a row of frames: length, CRC-32, body; numbers are big-endian. In the bodies, keys and
//! values each stand behind their length.

use std::io;

/// A frame is full when it holds so much.
pub(super) const FRAME: usize = 64 * 1024;
/// No frame is larger: a frame is full before its last pair, and no key or value comes near this.
const MAX_FRAME: usize = 1 << 20;

/// What a body takes as a frame, bytes.
pub(super) const fn length(body: &[u8]) -> u64 {
    8 + body.len() as u64
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
    /// The next body.
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
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
        Ok(body)
    }
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[allow(clippy::needless_pass_by_value)] // for map_err
pub(super) fn cut_short(error: io::Error) -> io::Error {
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
