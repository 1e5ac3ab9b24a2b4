//! A disk in memory that forgets, in a crash, what was not synced.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use sled::IVec;

use super::with;

/// What one batch writes; `None` removes.
pub(crate) type Writes = Vec<(IVec, Option<IVec>)>;

#[derive(Debug, Default)]
struct State {
    /// As it is read.
    now: BTreeMap<IVec, IVec>,
    /// As it would be read after the worst crash.
    synced: BTreeMap<IVec, IVec>,
    /// What was written since, batch by batch.
    unsynced: Vec<Writes>,
}

/// The content of one database.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    state: Arc<Mutex<State>>,
}

/// The database in a folder, if this thread simulates.
pub(crate) fn open(path: &Path, fresh: bool) -> Option<Image> {
    with(|world| {
        if fresh {
            world.disks.remove(path);
        }
        world.disks.entry(path.to_owned()).or_default().clone()
    })
}

fn change(map: &mut BTreeMap<IVec, IVec>, writes: &Writes) {
    for (key, value) in writes {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

impl Image {
    pub(crate) fn get(&self, key: &[u8]) -> Option<IVec> {
        self.state.lock().now.get(key).cloned()
    }

    pub(crate) fn write(&self, writes: Writes) {
        let mut state = self.state.lock();
        change(&mut state.now, &writes);
        state.unsynced.push(writes);
    }

    pub(crate) fn sync(&self) {
        let mut state = self.state.lock();
        for writes in std::mem::take(&mut state.unsynced) {
            change(&mut state.synced, &writes);
        }
    }

    pub(crate) fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Iter {
        let own = |bound: Bound<&K>| bound.map(|key| IVec::from(key.as_ref()));
        Iter {
            image: self.clone(),
            from: own(range.start_bound()),
            to: own(range.end_bound()),
        }
    }

    pub(crate) fn scan_prefix(&self, prefix: &[u8]) -> Iter {
        // The first key behind all that begin with the prefix.
        let mut end = prefix.to_vec();
        while end.last() == Some(&u8::MAX) {
            end.pop();
        }
        let to = match end.last_mut() {
            Some(last) => {
                *last += 1;
                Bound::Excluded(IVec::from(end))
            }
            None => Bound::Unbounded,
        };
        Iter {
            image: self.clone(),
            from: Bound::Included(prefix.into()),
            to,
        }
    }

    /// What a crash leaves: what was synced, and none, some or all of the batches behind it. Whoever still holds the old
    /// image no longer reaches the disk.
    pub(super) fn after_crash(&self, rng: &mut SmallRng) -> Self {
        let state = self.state.lock();
        let mut left = state.synced.clone();
        let kept = match rng.random_range(0..3) {
            0 => 0,
            1 => state.unsynced.len(),
            _ => rng.random_range(0..=state.unsynced.len()),
        };
        for writes in state.unsynced.iter().take(kept) {
            change(&mut left, writes);
        }
        let state = State {
            now: left.clone(),
            synced: left,
            unsynced: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// How many batches a crash could take.
    pub(super) fn at_risk(&self) -> usize {
        self.state.lock().unsynced.len()
    }
}

/// Pairs in the order of their keys. Like sled's, it sees what is written while it goes on.
pub(crate) struct Iter {
    image: Image,
    from: Bound<IVec>,
    to: Bound<IVec>,
}

impl Iter {
    fn is_empty(&self) -> bool {
        match (&self.from, &self.to) {
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to))
            | (Bound::Excluded(from), Bound::Included(to)) => from >= to,
            _ => false,
        }
    }

    fn at(
        &self,
        end: impl FnOnce(std::collections::btree_map::Range<'_, IVec, IVec>) -> Option<(IVec, IVec)>,
    ) -> Option<(IVec, IVec)> {
        if self.is_empty() {
            return None;
        }
        let state = self.image.state.lock();
        end(state.now.range((self.from.clone(), self.to.clone())))
    }
}

impl Iterator for Iter {
    type Item = (IVec, IVec);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) =
            self.at(|mut range| range.next().map(|(k, v)| (k.clone(), v.clone())))?;
        self.from = Bound::Excluded(key.clone());
        Some((key, value))
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        let (key, value) =
            self.at(|mut range| range.next_back().map(|(k, v)| (k.clone(), v.clone())))?;
        self.to = Bound::Excluded(key.clone());
        Some((key, value))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn put(image: &Image, key: u8) {
        image.write(vec![(IVec::from(&[key]), Some(IVec::from(&[key])))]);
    }

    fn keys(image: &Image) -> Vec<u8> {
        image.range::<&[u8]>(..).map(|(key, _)| key[0]).collect()
    }

    #[test]
    fn a_crash_takes_only_what_was_not_synced_and_the_newest_first() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let image = Image::default();
            put(&image, 1);
            put(&image, 2);
            image.sync();
            put(&image, 3);
            put(&image, 4);
            image.write(vec![(IVec::from(&[1]), None)]);
            assert_eq!(image.at_risk(), 3);
            assert_eq!(keys(&image), [2, 3, 4]);
            let left = image.after_crash(&mut SmallRng::seed_from_u64(seed));
            let found = keys(&left);
            let possible: [&[u8]; 4] = [&[1, 2], &[1, 2, 3], &[1, 2, 3, 4], &[2, 3, 4]];
            assert!(possible.contains(&found.as_slice()), "{found:?}");
            lengths.insert(found);
            put(&image, 9);
            assert!(!keys(&left).contains(&9), "the old image still writes");
        }
        assert_eq!(lengths.len(), 4, "some crash is never drawn");
    }

    #[test]
    fn ranges_are_read_from_both_ends_and_by_prefix() {
        let image = Image::default();
        for key in [[1, 1], [1, 255], [2, 0], [255, 3]] {
            image.write(vec![(IVec::from(&key), Some(IVec::from(&key)))]);
        }
        let first = |iter: Iter| iter.map(|(key, _)| key.to_vec()).collect::<Vec<_>>();
        assert_eq!(first(image.scan_prefix(&[1])), [[1, 1], [1, 255]]);
        assert_eq!(first(image.scan_prefix(&[255])), [[255, 3]]);
        let mut both = image.range::<&[u8]>(..);
        assert_eq!(both.next().map(|(key, _)| key.to_vec()), Some(vec![1, 1]));
        assert_eq!(
            both.next_back().map(|(key, _)| key.to_vec()),
            Some(vec![255, 3])
        );
        assert_eq!(both.count(), 2);
        let (low, high): (&[u8], &[u8]) = (&[2], &[1]);
        assert_eq!(image.range(low..high).count(), 0);
    }
}
