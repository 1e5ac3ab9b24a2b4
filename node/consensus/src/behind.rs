//! Batches that are gathered in memory before sled is given them.
//!
//! A batch costs sled two writes of its file, with a wait for each, and each wakes all of sled's threads; and while it takes
//! one over, nobody else writes, in either database. The ledger does not need that for every batch: the log has on disk
//! what they say. So they are kept in memory, where every reader sees them at once, and a thread hands them over a little
//! later, many as one batch of sled. After a crash the database shows the end of one of the original batches, as before;
//! only that some more of them are to be done again.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use sled::IVec;

/// For so long a batch waits for others.
const LINGER: Duration = Duration::from_millis(100);
/// With so much nothing is waited for any more, bytes. sled lets nobody else write while it takes a batch over.
const ENOUGH: usize = 256 << 10;
/// With so much nothing more is taken until some of it has been handed over, bytes.
const TOO_MUCH: usize = 8 << 20;
/// What a pair takes beside its key and value, nearly, bytes.
const OVERHEAD: usize = 64;

/// Keys and their new values; `None` where they are removed.
type Writes = BTreeMap<IVec, Option<IVec>>;

/// A database, and what it has not been given yet.
pub(crate) struct Behind {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    db: sled::Db,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What has come since the thread has last taken something.
    fresh: Writes,
    fresh_bytes: usize,
    /// What the thread is handing over.
    leaving: Option<Arc<Writes>>,
    /// How often it has done so.
    handed_over: u64,
    /// Somebody waits for it.
    wanted: bool,
    closed: bool,
    failure: Option<String>,
}

impl State {
    fn find(&self, key: &[u8]) -> Option<&Option<IVec>> {
        let leaving = || self.leaving.as_ref().and_then(|leaving| leaving.get(key));
        self.fresh.get(key).or_else(leaving)
    }

    /// The first write in a range, or the last one.
    fn edge(&self, range: &Range, back: bool) -> Option<(IVec, Option<IVec>)> {
        let of = |writes: &Writes| {
            let mut found = writes.range::<[u8], _>(range.as_slices());
            let found = if back {
                found.next_back()
            } else {
                found.next()
            };
            found.map(|(key, value)| (key.clone(), value.clone()))
        };
        let fresh = of(&self.fresh);
        let leaving = self.leaving.as_ref().and_then(|leaving| of(leaving));
        match (fresh, leaving) {
            (Some(fresh), Some(leaving)) => {
                let leaving_first = if back {
                    leaving.0 > fresh.0
                } else {
                    leaving.0 < fresh.0
                };
                Some(if leaving_first { leaving } else { fresh })
            }
            (fresh, leaving) => fresh.or(leaving),
        }
    }

    fn check(&self) -> io::Result<()> {
        match &self.failure {
            Some(failure) => Err(io::Error::other(failure.clone())),
            None => Ok(()),
        }
    }
}

impl Behind {
    pub(crate) fn new(db: sled::Db, name: &str) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            db,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread = thread::Builder::new().name(name.to_owned()).spawn({
            let shared = shared.clone();
            move || shared.run()
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(crate) fn db(&self) -> &sled::Db {
        &self.shared.db
    }

    pub(crate) fn get(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        if let Some(value) = self.shared.state.lock().find(key) {
            return Ok(value.clone());
        }
        // What was handed over meanwhile is there.
        self.shared.db.get(key)
    }

    /// Takes writes, all of them or, after a crash, none.
    pub(crate) fn write(
        &self,
        writes: impl IntoIterator<Item = (IVec, Option<IVec>)>,
    ) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        while state.fresh_bytes >= TOO_MUCH && state.failure.is_none() {
            self.shared.changed.wait(&mut state);
        }
        state.check()?;
        let (empty, little) = (state.fresh.is_empty(), state.fresh_bytes < ENOUGH);
        for (key, value) in writes {
            // What is replaced stays counted: it is little, and only makes the thread a little early.
            state.fresh_bytes += key.len() + value.as_ref().map_or(0, |v| v.len()) + OVERHEAD;
            state.fresh.insert(key, value);
        }
        if empty || (little && state.fresh_bytes >= ENOUGH) {
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    /// Returns when sled has been given everything that was written before the call.
    pub(crate) fn hand_over(&self) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let groups = u64::from(state.leaving.is_some()) + u64::from(!state.fresh.is_empty());
        let until = state.handed_over + groups;
        if !state.fresh.is_empty() {
            state.wanted = true;
            self.shared.changed.notify_all();
        }
        while state.handed_over < until && state.failure.is_none() {
            self.shared.changed.wait(&mut state);
        }
        state.check()
    }

    pub(crate) fn range<K: AsRef<[u8]>>(&self, range: &impl RangeBounds<K>) -> Iter {
        let own = |bound: Bound<&K>| match bound {
            Bound::Included(key) => Bound::Included(IVec::from(key.as_ref())),
            Bound::Excluded(key) => Bound::Excluded(IVec::from(key.as_ref())),
            Bound::Unbounded => Bound::Unbounded,
        };
        Iter {
            shared: self.shared.clone(),
            range: Range {
                from: own(range.start_bound()),
                to: own(range.end_bound()),
            },
            forward: None,
        }
    }

    pub(crate) fn scan_prefix(&self, prefix: &[u8]) -> Iter {
        // The first key behind all that begin with it: the last byte that can be is one higher.
        let kept = prefix.iter().rposition(|byte| *byte < u8::MAX);
        let to = kept.map_or(Bound::Unbounded, |last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bound::Excluded(end)
        });
        self.range::<Vec<u8>>(&(Bound::Included(prefix.to_vec()), to))
    }
}

impl Drop for Behind {
    /// Hands over what there still is.
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_all();
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the thread that writes the ledger has panicked");
        }
    }
}

impl Shared {
    /// What the thread does.
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            while state.fresh.is_empty() {
                if state.closed {
                    return;
                }
                self.changed.wait(&mut state);
            }
            self.linger(&mut state);
            state.wanted = false;
            state.fresh_bytes = 0;
            let leaving = Arc::new(std::mem::take(&mut state.fresh));
            state.leaving = Some(leaving.clone());
            let written = MutexGuard::unlocked(&mut state, || self.apply(&leaving));
            match written {
                Ok(()) => {
                    state.leaving = None;
                    state.handed_over += 1;
                }
                Err(error) => state.failure = Some(error.to_string()),
            }
            self.changed.notify_all();
            if state.failure.is_some() {
                return;
            }
        }
    }

    fn linger(&self, state: &mut MutexGuard<'_, State>) {
        let until = Instant::now() + LINGER;
        while !state.wanted && !state.closed && state.fresh_bytes < ENOUGH {
            if self.changed.wait_until(state, until).timed_out() {
                return;
            }
        }
    }

    /// sled panics where it finds damage; to whoever waits that is an error like the others.
    fn apply(&self, writes: &Writes) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        catch_unwind(AssertUnwindSafe(|| self.db.apply_batch(batch)))
            .map_err(|_| io::Error::other("sled has panicked"))?
            .map_err(crate::disk::to_io)
    }
}

#[derive(Clone, Debug)]
struct Range {
    from: Bound<IVec>,
    to: Bound<IVec>,
}

impl Range {
    fn is_empty(&self) -> bool {
        match (&self.from, &self.to) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to))
            | (Bound::Excluded(from), Bound::Included(to)) => from >= to,
        }
    }

    fn as_slices(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (
            self.from.as_ref().map(|key| &key[..]),
            self.to.as_ref().map(|key| &key[..]),
        )
    }
}

/// Pairs in the order of their keys, as they are at each step.
pub(crate) struct Iter {
    shared: Arc<Shared>,
    /// What is still to come.
    range: Range,
    forward: Option<Forward>,
}

/// sled's pairs from the front, the next of them, and how often something had been handed over when it was asked: it may
/// not see what was handed over since.
type Forward = (sled::Iter, Option<(IVec, IVec)>, u64);

impl Iter {
    fn sled(&self) -> sled::Iter {
        let range = (self.range.from.clone(), self.range.to.clone());
        self.shared.db.range::<IVec, _>(range)
    }

    /// The next pair of sled, left where it is.
    fn peek(&mut self, handed_over: u64) -> sled::Result<Option<(IVec, IVec)>> {
        if self.forward.as_ref().is_none_or(|f| f.2 != handed_over) {
            let mut pairs = self.sled();
            let next = pairs.next().transpose()?;
            self.forward = Some((pairs, next, handed_over));
        }
        let next = self.forward.as_ref().and_then(|f| f.1.clone());
        // It was asked before something was taken from the back.
        let left = self.range.as_slices();
        Ok(next.filter(|(key, _)| RangeBounds::<[u8]>::contains(&left, &key[..])))
    }

    fn step(&mut self, back: bool) -> Option<sled::Result<(IVec, IVec)>> {
        while !self.range.is_empty() {
            let (pending, handed_over) = {
                let state = self.shared.state.lock();
                (state.edge(&self.range, back), state.handed_over)
            };
            let stored = if back {
                self.sled().next_back().transpose()
            } else {
                self.peek(handed_over)
            };
            let stored = match stored {
                Ok(stored) => stored,
                Err(error) => return Some(Err(error)),
            };
            let first = |a: &IVec, b: &IVec| if back { a > b } else { a < b };
            let (key, value) = match (pending, stored) {
                (None, None) => return None,
                (Some(pending), None) => pending,
                (None, Some((key, value))) => (key, Some(value)),
                (Some(pending), Some(stored)) if first(&stored.0, &pending.0) => {
                    (stored.0, Some(stored.1))
                }
                (Some(pending), Some(_)) => pending,
            };
            if back {
                self.range.to = Bound::Excluded(key.clone());
            } else {
                self.range.from = Bound::Excluded(key.clone());
                if let Some((pairs, next, _)) = &mut self.forward
                    && next.as_ref().is_some_and(|(stored, _)| *stored == key)
                {
                    *next = match pairs.next().transpose() {
                        Ok(next) => next,
                        Err(error) => return Some(Err(error)),
                    };
                }
            }
            if let Some(value) = value {
                return Some(Ok((key, value)));
            }
        }
        None
    }
}

impl Iterator for Iter {
    type Item = sled::Result<(IVec, IVec)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(false)
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> Behind {
        let db = sled::Config::new().path(path).open().unwrap();
        Behind::new(db, "behind").unwrap()
    }

    fn key(number: u8) -> IVec {
        IVec::from(&[b'k', number])
    }

    fn pairs(found: impl Iterator<Item = sled::Result<(IVec, IVec)>>) -> Vec<(IVec, IVec)> {
        found.map(Result::unwrap).collect()
    }

    /// Whatever has been handed over, what is read is what was written.
    #[test]
    fn it_reads_as_a_map_would() {
        let dir = tempfile::tempdir().unwrap();
        let behind = open(dir.path());
        let mut map = BTreeMap::new();
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..400_u32 {
            let writes: Vec<_> = (0..random.usize(1..6))
                .map(|_| {
                    let value = (random.u8(0..3) > 0).then(|| IVec::from(&round.to_be_bytes()));
                    (key(random.u8(0..40)), value)
                })
                .collect();
            for (key, value) in &writes {
                match value {
                    Some(value) => map.insert(key.clone(), value.clone()),
                    None => map.remove(key),
                };
            }
            behind.write(writes).unwrap();
            if random.u8(0..8) == 0 {
                behind.hand_over().unwrap();
            }
            let some = key(random.u8(0..40));
            assert_eq!(behind.get(&some).unwrap().as_ref(), map.get(&some));
            let (from, to) = (key(random.u8(0..20)), key(random.u8(20..41)));
            let range = (Bound::Excluded(from), Bound::Included(to));
            let expected: Vec<_> = map.range(range.clone()).collect();
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            assert_eq!(pairs(behind.range(&range)), expected);
            let mut backwards = pairs(behind.range(&range).rev());
            backwards.reverse();
            assert_eq!(backwards, expected);
            // From both ends, and with something handed over on the way.
            let mut both = behind.range(&range);
            let (mut front, mut back) = (Vec::new(), Vec::new());
            loop {
                if random.u8(0..20) == 0 {
                    behind.hand_over().unwrap();
                }
                let next = if random.bool() {
                    (both.next(), &mut front)
                } else {
                    (both.next_back(), &mut back)
                };
                match next {
                    (Some(pair), taken) => taken.push(pair.unwrap()),
                    (None, _) => break,
                }
            }
            front.extend(back.into_iter().rev());
            assert_eq!(front, expected);
            assert_eq!(behind.scan_prefix(b"k").count(), map.len());
            assert_eq!(behind.scan_prefix(b"l").count(), 0);
        }
        drop(behind);
        let behind = open(dir.path());
        assert_eq!(
            pairs(behind.scan_prefix(b"k")),
            map.into_iter().collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_range_that_holds_nothing_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let behind = open(dir.path());
        behind.write([(key(1), Some(key(1)))]).unwrap();
        for range in [
            (Bound::Excluded(key(1)), Bound::Excluded(key(1))),
            (Bound::Included(key(2)), Bound::Included(key(1))),
            (Bound::Excluded(key(1)), Bound::Included(key(1))),
        ] {
            assert_eq!(behind.range(&range).count(), 0);
            assert_eq!(behind.range(&range).rev().count(), 0);
        }
        let all = behind.scan_prefix(&[]);
        assert_eq!(all.count(), 1);
        behind
            .write([(IVec::from(&[255, 255]), Some(key(1)))])
            .unwrap();
        assert_eq!(behind.scan_prefix(&[255]).count(), 1);
    }
}
