//! The newest layer: what was written since the newest run, in memory.
//!
//! It needs no place on the disk: the log has every entry that it comes from, until a run has what they have written. After a
//! crash it is empty, and the log is applied again from where the runs end.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;

use sled::IVec;

/// What a pair takes in memory beside its key and value, about: places in the tree, and what counts who shares them.
const OVERHEAD: u64 = 96;

/// Pairs in the order of their keys; where a key was removed, that it was.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pairs: BTreeMap<IVec, IVec>,
    bytes: u64,
}

fn weight(key: &[u8], value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + OVERHEAD
}

impl Overlay {
    /// What lies under a key; a removal where it was removed.
    pub(super) fn get(&self, key: &[u8]) -> Option<&IVec> {
        self.pairs.get(key)
    }

    pub(super) fn insert(&mut self, key: &[u8], value: impl Into<IVec>) {
        let value = value.into();
        self.bytes += weight(key, &value);
        if let Some(before) = self.pairs.insert(key.into(), value) {
            self.bytes -= weight(key, &before);
        }
    }

    /// Forgets a key, as if it had never been written.
    pub(super) fn forget(&mut self, key: &[u8]) {
        if let Some(before) = self.pairs.remove(key) {
            self.bytes -= weight(key, &before);
        }
    }

    /// The pairs in `[from, to)`.
    pub(super) fn range(&self, from: &[u8], to: &[u8]) -> Range<'_, IVec, IVec> {
        let range = (Bound::Included(from), Bound::Excluded(to));
        self.pairs.range::<[u8], _>(range)
    }

    /// All pairs.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&IVec, &IVec)> {
        self.pairs.iter()
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.pairs.len() as u64
    }

    /// What it takes in memory, about.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_weighs_what_it_holds() {
        let mut overlay = Overlay::default();
        overlay.insert(b"a", vec![0; 100]);
        overlay.insert(b"b", vec![0; 10]);
        assert_eq!(overlay.bytes(), 101 + 11 + 2 * OVERHEAD);
        overlay.insert(b"a", vec![1; 20]);
        assert_eq!(overlay.bytes(), 21 + 11 + 2 * OVERHEAD);
        overlay.forget(b"c");
        overlay.forget(b"a");
        assert_eq!((overlay.len(), overlay.bytes()), (1, 11 + OVERHEAD));
        overlay.forget(b"b");
        assert_eq!(overlay.bytes(), 0);
    }
}
