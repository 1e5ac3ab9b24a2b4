//! The watermark: a small file that says what the log must hold.
//!
//! sled opens a database whose tail is gone as if the tail had never been written. A node that forgets a vote or an
//! acknowledged entry in this way can break every promise of the cluster, so what the log's state is goes into a file
//! of its own as well: after the log was synced, and before anything is acknowledged. The log keeps the same [`State`]
//! inside; at the next start the two are compared.
//!
//! The file has two slots that are written by turns, so that a write that is torn by a power failure leaves the older
//! one, which says less but nothing wrong.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

use quorun_ledger::codec::DecodeError;
use quorun_ledger::{NodeId, codec};
use serde::{Deserialize, Serialize};

use crate::error::NewerFormat;
use crate::types::{LogId, Vote};

const SLOT: usize = 512;
const MAGIC: &[u8; 8] = b"QUORUNWM";
/// Magic, length of the body, CRC-32 of the body.
const HEAD: usize = 8 + 2 + 4;

/// A log id on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskLogId {
    term: u64,
    index: u64,
}

impl From<LogId> for DiskLogId {
    fn from(id: LogId) -> Self {
        Self {
            term: id.leader_id.term,
            index: id.index,
        }
    }
}

impl From<DiskLogId> for LogId {
    fn from(id: DiskLogId) -> Self {
        Self::new_term_index(id.term, id.index)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DiskVote {
    term: u64,
    node: NodeId,
    committed: bool,
}

/// What the log holds. Written with every change of the log, and to the watermark before the change is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Counts the changes.
    pub(super) change: u64,
    /// Who the log belongs to.
    pub(super) cluster: [u8; 16],
    pub(super) node: NodeId,
    vote: Option<DiskVote>,
    purged: Option<DiskLogId>,
    last: Option<DiskLogId>,
    /// The chain behind the last entry.
    pub(super) chain: u32,
}

impl State {
    pub(super) const fn new(cluster: [u8; 16], node: NodeId) -> Self {
        Self {
            change: 0,
            cluster,
            node,
            vote: None,
            purged: None,
            last: None,
            chain: 0,
        }
    }

    pub(super) fn vote(&self) -> Option<Vote> {
        self.vote.map(|vote| {
            if vote.committed {
                Vote::new_committed(vote.term, vote.node)
            } else {
                Vote::new(vote.term, vote.node)
            }
        })
    }

    pub(super) fn set_vote(&mut self, vote: &Vote) {
        self.vote = Some(DiskVote {
            term: vote.leader_id.term,
            node: vote.leader_id.voted_for,
            committed: vote.committed,
        });
    }

    /// The last entry that was purged.
    pub(super) fn purged(&self) -> Option<LogId> {
        self.purged.map(Into::into)
    }

    pub(super) fn set_purged(&mut self, purged: Option<LogId>) {
        self.purged = purged.map(Into::into);
    }

    /// The last entry; the last purged one if there is none.
    pub(super) fn last(&self) -> Option<LogId> {
        self.last.map(Into::into)
    }

    pub(super) fn set_last(&mut self, last: Option<LogId>) {
        self.last = last.map(Into::into);
    }
}

/// The file, open for writing.
#[derive(Debug)]
pub(super) struct Watermark {
    file: File,
}

impl Watermark {
    /// Creates the file, or opens it and reads the newest state that it holds. `None` when the file is new, or when its
    /// creation was cut short.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<State>)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut slots = vec![0; 2 * SLOT];
        let length = file.metadata()?.len();
        if length < slots.len() as u64 {
            if length > 0
                && file
                    .read_at(&mut slots, 0)
                    .is_ok_and(|_| slots.iter().any(|b| *b != 0))
            {
                return Err(invalid("the watermark is cut short"));
            }
            slots.fill(0);
            file.set_len(0)?;
            file.write_all(&slots)?;
            file.sync_all()?;
            crate::files::sync_parent(path)?;
            return Ok((Self { file }, None));
        }
        file.read_exact_at(&mut slots, 0)?;
        let (a, b) = slots.split_at(SLOT);
        let newest = match (read_slot(a), read_slot(b)) {
            (Ok(a), Ok(b)) => [a, b]
                .into_iter()
                .flatten()
                .max_by_key(|state| state.change),
            (Err(error), _) | (_, Err(error)) if NewerFormat::of(&error).is_some() => {
                return Err(error);
            }
            // One slot may be torn: it was being written when the power failed.
            (Ok(other), Err(_)) | (Err(_), Ok(other)) => other,
            (Err(error), Err(_)) => return Err(error),
        };
        Ok((Self { file }, newest))
    }

    /// Writes a state and waits until it is on disk.
    pub(super) fn write(&self, state: &State) -> io::Result<()> {
        let body = codec::encode(state);
        let mut slot = Vec::with_capacity(SLOT);
        slot.extend_from_slice(MAGIC);
        let length = u16::try_from(body.len())
            .ok()
            .filter(|_| HEAD + body.len() <= SLOT);
        let length = length.ok_or_else(|| invalid("the state does not fit into the watermark"))?;
        slot.extend_from_slice(&length.to_be_bytes());
        slot.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
        slot.extend_from_slice(&body);
        slot.resize(SLOT, 0);
        let offset = (state.change % 2) * SLOT as u64;
        self.file.write_all_at(&slot, offset)?;
        self.file.sync_data()
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn read_slot(slot: &[u8]) -> io::Result<Option<State>> {
    if slot.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let damaged = || invalid("the watermark is damaged");
    let (head, rest) = slot.split_at(HEAD);
    let (magic, head) = head.split_at(MAGIC.len());
    let (length, crc) = head.split_at(2);
    if magic != MAGIC {
        return Err(damaged());
    }
    let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let body = rest.get(..length).ok_or_else(damaged)?;
    if crc32fast::hash(body).to_be_bytes() != crc {
        return Err(damaged());
    }
    decode_state(body).map(Some)
}

/// Reads a state. The version of its encoding stands for the format of the whole log: whoever changes how entries lie
/// there changes it as well.
pub(super) fn decode_state(bytes: &[u8]) -> io::Result<State> {
    codec::decode(bytes).map_err(|error| match error {
        DecodeError::Version(newer) => NewerFormat::error(newer, codec::VERSION),
        other => invalid(&other.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(change: u64) -> State {
        State {
            change,
            ..State::new([9; 16], 3)
        }
    }

    #[test]
    fn the_newest_state_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.watermark");
        let (watermark, found) = Watermark::open(&path).unwrap();
        assert_eq!(found, None);
        for change in 1..=5 {
            watermark.write(&state(change)).unwrap();
            assert_eq!(Watermark::open(&path).unwrap().1, Some(state(change)));
        }
    }

    #[test]
    fn a_torn_slot_leaves_the_older_state_and_two_leave_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.watermark");
        let (watermark, _) = Watermark::open(&path).unwrap();
        watermark.write(&state(1)).unwrap();
        watermark.write(&state(2)).unwrap();
        watermark.file.write_all_at(b"torn", 20).unwrap();
        assert_eq!(Watermark::open(&path).unwrap().1, Some(state(1)));
        watermark
            .file
            .write_all_at(b"torn", SLOT as u64 + 20)
            .unwrap();
        Watermark::open(&path).unwrap_err();
    }

    #[test]
    fn a_newer_format_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.watermark");
        let (watermark, _) = Watermark::open(&path).unwrap();
        watermark.write(&state(1)).unwrap();
        // As a newer program would write the next one.
        let mut body = codec::encode(&state(2));
        body[0] = 9;
        let mut slot = MAGIC.to_vec();
        slot.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
        slot.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
        slot.extend_from_slice(&body);
        watermark.file.write_all_at(&slot, 0).unwrap();
        let error = Watermark::open(&path).unwrap_err();
        let newer = NewerFormat { found: 9, known: 1 };
        assert_eq!(NewerFormat::of(&error), Some(newer));
    }

    #[test]
    fn the_largest_state_fits() {
        let dir = tempfile::tempdir().unwrap();
        let (watermark, _) = Watermark::open(&dir.path().join("wm")).unwrap();
        let id = LogId::new_term_index(u64::MAX, u64::MAX);
        let mut state = State::new([255; 16], u64::MAX);
        state.change = u64::MAX;
        state.chain = u32::MAX;
        state.set_vote(&Vote::new_committed(u64::MAX, u64::MAX));
        state.set_purged(Some(id));
        state.set_last(Some(id));
        watermark.write(&state).unwrap();
    }
}
