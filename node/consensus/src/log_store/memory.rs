//! What the log keeps in memory: where it begins and ends, and its newest entries.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, RangeBounds};

use super::record::Extent;
use crate::types::{EncodedBatch, Entry, LogId, Vote, next_index};

/// What the tail may hold of entries that are on disk already, bytes.
pub(super) const TAIL: usize = 32 << 20;

/// What is known of the log without looking at the disk.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    /// The index of the first entry, or the one that it will have.
    pub(super) first: u64,
    pub(super) last: Option<LogId>,
    pub(super) committed: Option<LogId>,
    pub(super) tail: VecDeque<(Entry, usize)>,
    pub(super) tail_bytes: usize,
    /// The records on disk, by their first index. The newest may cover entries that were truncated since.
    pub(super) records: BTreeMap<u64, Extent>,
    /// Counts the truncations, for whoever reads in several steps, and for the writer, which comes to them later.
    pub(super) truncations: u64,
}

impl Inner {
    pub(super) fn tail_first(&self) -> u64 {
        self.tail.front().map_or_else(
            || next_index(self.last.as_ref()),
            |(entry, _)| entry.log_id.index,
        )
    }

    pub(super) fn push(&mut self, entry: Entry, size: usize) {
        if self.last.is_none() {
            self.first = entry.log_id.index;
        }
        self.last = Some(entry.log_id);
        self.tail_bytes += size;
        self.tail.push_back((entry, size));
    }

    pub(super) fn truncate_after(&mut self, after: Option<LogId>) {
        self.truncations += 1;
        if next_index(after.as_ref()) >= next_index(self.last.as_ref()) {
            return;
        }
        while self
            .tail
            .back()
            .is_some_and(|(entry, _)| Some(entry.log_id.index) > after.map(|id| id.index))
        {
            if let Some((_, size)) = self.tail.pop_back() {
                self.tail_bytes -= size;
            }
        }
        self.last = if next_index(after.as_ref()) > next_index(self.purged.as_ref()) {
            after
        } else {
            self.purged
        };
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        self.purged = Some(upto);
        self.first = self.first.max(upto.index + 1);
        while self
            .tail
            .front()
            .is_some_and(|(entry, _)| entry.log_id.index <= upto.index)
        {
            if let Some((_, size)) = self.tail.pop_front() {
                self.tail_bytes -= size;
            }
        }
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
        }
    }

    /// Forgets the oldest entries of the tail that are on disk while the tail is too large.
    pub(super) fn shrink(&mut self, durable: u64) {
        while self.tail_bytes > TAIL
            && self
                .tail
                .front()
                .is_some_and(|(entry, _)| entry.log_id.index < durable)
        {
            if let Some((_, size)) = self.tail.pop_front() {
                self.tail_bytes -= size;
            }
        }
    }

    /// The last entry that is too much when the log is to hold at most so many bytes up to `upto`, as its records lie on
    /// disk; `None` if nothing is too much. A record that lies across that border stays as a whole.
    pub(super) fn surplus(&self, upto: u64, bytes: u64) -> Option<u64> {
        let mut held: u64 = 0;
        let over = self.records.range(..=upto).rev().find(|(_, extent)| {
            held = held.saturating_add(extent.most_bytes());
            held > bytes
        });
        let last = over?.1.last.min(upto);
        (last >= self.first).then_some(last)
    }

    /// The part of a range that the log holds.
    pub(super) fn clip(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let start = start.max(self.first);
        (start, end.min(next_index(self.last.as_ref())))
    }

    /// The records that hold the entries of a range.
    pub(super) fn extents(&self, start: u64, end: u64) -> Vec<Extent> {
        let from = self
            .records
            .range(..=start)
            .next_back()
            .map_or(start, |(first, _)| *first);
        self.records
            .range(from..end)
            .map(|(_, extent)| *extent)
            .collect()
    }

    /// The entries of a range that are in the tail.
    pub(super) fn read_tail(&self, start: u64, end: u64, limit: usize) -> Vec<Entry> {
        let skip = usize::try_from(start.saturating_sub(self.tail_first())).unwrap_or(usize::MAX);
        let mut size = 0;
        self.tail
            .iter()
            .skip(skip)
            .take_while(|(entry, _)| entry.log_id.index < end)
            .take_while(|(_, bytes)| {
                let first = size == 0;
                size += bytes + 1;
                first || size <= limit
            })
            .map(|(entry, _)| entry.clone())
            .collect()
    }
}

/// What an entry takes of the tail and of a message, nearly.
pub(super) fn weight(entry: &Entry) -> usize {
    const OVERHEAD: usize = 64;
    OVERHEAD
        + match &entry.payload {
            openraft::EntryPayload::Blank => 0,
            openraft::EntryPayload::Normal(EncodedBatch(bytes)) => bytes.len(),
            openraft::EntryPayload::Membership(membership) => 64 * membership.nodes().count(),
        }
}
