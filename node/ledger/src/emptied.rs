//! Ranges of keys that are known to be empty because what was in them was removed.
//!
//! Where removals are kept beside what they hide, whoever takes from the front of a range again and again, such as of the
//! queue or of the order of expiry, would pass over all that was taken before each time.

use std::collections::BTreeMap;
use std::ops::Bound;

/// So many ranges are remembered; they are forgotten together beyond that.
const MAX_RANGES: usize = 1024;

/// Half-open ranges of keys without a pair. They do not touch.
#[derive(Debug, Default)]
pub struct Emptied(BTreeMap<Vec<u8>, Vec<u8>>);

impl Emptied {
    /// The first key from `from` on that may have a pair; `None` when `from` itself may.
    #[must_use]
    pub fn end(&self, from: &[u8]) -> Option<&[u8]> {
        let upto = (Bound::Unbounded, Bound::Included(from));
        let (_, end) = self.0.range::<[u8], _>(upto).next_back()?;
        (end.as_slice() > from).then_some(end)
    }

    /// Remembers that `[from, to)` has no pair.
    pub fn note(&mut self, from: &[u8], to: &[u8]) {
        if from >= to {
            return;
        }
        let (mut from, mut to) = (from.to_vec(), to.to_vec());
        // Whatever it meets becomes one range with it.
        loop {
            let upto = (Bound::Unbounded, Bound::Included(to.as_slice()));
            let met = self.0.range::<[u8], _>(upto).next_back();
            let Some((start, end)) = met.filter(|(_, end)| **end >= from) else {
                break;
            };
            let (start, end) = (start.clone(), end.clone());
            self.0.remove(&start);
            from = from.min(start);
            to = to.max(end);
        }
        if self.0.len() >= MAX_RANGES {
            self.0.clear();
        }
        self.0.insert(from, to);
    }

    /// Takes notice of a pair that was written: its range ends before it.
    pub fn written(&mut self, key: &[u8]) {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let Some((start, end)) = self.0.range_mut::<[u8], _>(upto).next_back() else {
            return;
        };
        if end.as_slice() <= key {
            return;
        }
        if start.as_slice() == key {
            self.0.remove(key);
        } else {
            *end = key.to_vec();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_what_was_noted_and_not_written_since_is_skipped(
            steps in prop::collection::vec((any::<bool>(), 0_u8..32, 0_u8..32), 1..80),
        ) {
            let mut emptied = Emptied::default();
            let mut empty = BTreeSet::new();
            for (write, from, to) in steps {
                if write {
                    emptied.written(&[from]);
                    empty.remove(&from);
                } else {
                    emptied.note(&[from], &[to]);
                    empty.extend(from..to);
                }
                for key in 0_u8..32 {
                    let end = emptied.end(&[key]);
                    // What is skipped was empty; and of what is empty, at least the key itself is skipped, unless
                    // something was written in front of it in its range.
                    let end = end.map_or(key, |end| end[0]);
                    prop_assert!((key..end).all(|key| empty.contains(&key)), "{key}..{end}");
                }
            }
        }

        #[test]
        fn ranges_that_meet_become_one(cuts in prop::collection::btree_set(1_u8..31, 0..10), seed: u64) {
            let mut ends: Vec<u8> = cuts.into_iter().collect();
            ends.push(31);
            let mut ranges: Vec<(u8, u8)> = Vec::new();
            for end in ends {
                ranges.push((ranges.last().map_or(0, |(_, end)| *end), end));
            }
            let mut seed = seed;
            let mut emptied = Emptied::default();
            while !ranges.is_empty() {
                let at = usize::try_from(seed % ranges.len() as u64).unwrap();
                seed = seed.rotate_left(13).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let (from, to) = ranges.swap_remove(at);
                emptied.note(&[from], &[to]);
            }
            prop_assert_eq!(emptied.end(&[0]), Some(&[31][..]));
            prop_assert_eq!(emptied.0.len(), 1);
        }
    }
}
