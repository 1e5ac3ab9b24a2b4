//! The pairs of the ledger, from the newest layer to the oldest: the overlay, in memory, which takes all writes; while
//! a run is made of it, the overlay from before, which is frozen; and the sorted runs.
//!
//! A newer layer hides an older one. A key that is removed in the overlay, but may be in an older layer, is kept there as
//! [removed](chunks::removed).

use std::cmp::Ordering;
use std::collections::btree_map;
use std::io;
use std::sync::Arc;

use sled::IVec;

use super::chunks;
use super::overlay::Overlay;
use super::run::{BlockCache, RawPair, Run, RunIter};

/// The runs of the ledger, the newest last, and blocks of theirs that were read lately.
#[derive(Clone, Debug)]
pub(super) struct Runs {
    runs: Arc<Vec<Arc<Run>>>,
    cache: Arc<BlockCache>,
}

impl Runs {
    pub(super) fn new(runs: Vec<Arc<Run>>, cache: Arc<BlockCache>) -> Self {
        Self {
            runs: Arc::new(runs),
            cache,
        }
    }

    /// Others in the place of these.
    pub(super) fn with(&self, runs: Vec<Arc<Run>>) -> Self {
        Self::new(runs, self.cache.clone())
    }

    pub(super) fn list(&self) -> &[Arc<Run>] {
        &self.runs
    }

    fn may_have(&self, key: &[u8]) -> bool {
        self.runs.iter().any(|run| run.may_have(key))
    }

    /// What lies under a key; a removal where it was removed.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<IVec>> {
        for run in self.runs.iter().rev() {
            if let Some(value) = run.get(&self.cache, key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// All pairs of some runs, the newest last, merged; removals among them.
    pub(super) fn merged(runs: &[Arc<Run>]) -> io::Result<Merge<'static>> {
        let iters = runs.iter().rev();
        let iters = iters.map(|run| RunIter::all(run).map(Source::Run));
        Merge::new(iters.collect::<io::Result<_>>()?, Direction::Forward)
    }
}

/// Where the pairs of the ledger lie.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) overlay: Overlay,
    /// The overlay that becomes a run.
    pub(super) frozen: Option<Arc<Overlay>>,
    pub(super) runs: Runs,
}

impl Layers {
    /// The layers in memory, the newest first.
    fn in_memory(&self) -> impl Iterator<Item = &Overlay> {
        std::iter::once(&self.overlay).chain(self.frozen.as_deref())
    }

    /// Whether a layer below the overlay may have something under a key.
    pub(super) fn may_be_below(&self, key: &[u8]) -> bool {
        let frozen = self.frozen.as_ref();
        frozen.is_some_and(|frozen| frozen.get(key).is_some()) || self.runs.may_have(key)
    }

    /// What lies under a key.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<IVec>> {
        let found = self.in_memory().find_map(|overlay| overlay.get(key));
        let found = match found {
            Some(found) => Some(found.clone()),
            None => self.runs.get(key)?,
        };
        Ok(found.filter(|value| !chunks::is_removed(value)))
    }

    fn merge(&self, from: &[u8], to: &[u8], direction: Direction) -> io::Result<Merge<'_>> {
        let overlays = self.in_memory();
        let overlays = overlays.map(|overlay| Ok(Source::Memory(overlay.range(from, to))));
        let runs = self.runs.runs.iter().rev().map(|run| {
            let iter = match direction {
                Direction::Forward => RunIter::forward(run, &self.runs.cache, from, to),
                Direction::Backward => RunIter::backward(run, &self.runs.cache, from, to),
            };
            iter.map(Source::Run)
        });
        let sources = overlays.chain(runs).collect::<io::Result<_>>()?;
        Merge::new(sources, direction)
    }

    /// The first pair in `[from, to)`, and whether removed ones lie before it.
    pub(super) fn first(&self, from: &[u8], to: &[u8]) -> io::Result<(Option<RawPair>, bool)> {
        self.outermost(from, to, Direction::Forward)
    }

    /// The last pair in `[from, to)`, and whether removed ones lie behind it.
    pub(super) fn last(&self, from: &[u8], to: &[u8]) -> io::Result<(Option<RawPair>, bool)> {
        self.outermost(from, to, Direction::Backward)
    }

    fn outermost(
        &self,
        from: &[u8],
        to: &[u8],
        direction: Direction,
    ) -> io::Result<(Option<RawPair>, bool)> {
        if from >= to {
            return Ok((None, false));
        }
        let mut merge = self.merge(from, to, direction)?;
        let mut passed = false;
        while let Some(pair) = merge.next()? {
            if !chunks::is_removed(&pair.1) {
                return Ok((Some(pair), passed));
            }
            passed = true;
        }
        Ok((None, passed))
    }

    /// All pairs, in the order of their keys.
    #[cfg(test)]
    pub(super) fn all(&self) -> io::Result<Vec<RawPair>> {
        let mut merge = self.merge(&[], &[u8::MAX], Direction::Forward)?;
        let mut pairs = Vec::new();
        while let Some(pair) = merge.next()? {
            if !chunks::is_removed(&pair.1) {
                pairs.push(pair);
            }
        }
        Ok(pairs)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

enum Source<'a> {
    Memory(btree_map::Range<'a, IVec, IVec>),
    Run(RunIter),
}

impl Source<'_> {
    fn next(&mut self, direction: Direction) -> io::Result<Option<RawPair>> {
        match (self, direction) {
            (Self::Memory(pairs), Direction::Forward) => Ok(pairs.next().map(owned)),
            (Self::Memory(pairs), Direction::Backward) => Ok(pairs.next_back().map(owned)),
            (Self::Run(iter), Direction::Forward) => iter.next(),
            (Self::Run(iter), Direction::Backward) => iter.next_back(),
        }
    }
}

fn owned((key, value): (&IVec, &IVec)) -> RawPair {
    (key.clone(), value.clone())
}

/// The pairs of several layers, each key once.
pub(super) struct Merge<'a> {
    /// The newest first, each with the pair that it has next.
    sources: Vec<(Source<'a>, Option<RawPair>)>,
    direction: Direction,
}

impl<'a> Merge<'a> {
    fn new(sources: Vec<Source<'a>>, direction: Direction) -> io::Result<Self> {
        let mut started = Vec::with_capacity(sources.len());
        for mut source in sources {
            let next = source.next(direction)?;
            started.push((source, next));
        }
        Ok(Self {
            sources: started,
            direction,
        })
    }

    /// The next key, with the value of the newest layer that has it.
    pub(super) fn next(&mut self) -> io::Result<Option<RawPair>> {
        let mut best: Option<(usize, &IVec)> = None;
        for (number, (_, next)) in self.sources.iter().enumerate() {
            let Some((key, _)) = next else { continue };
            let ahead = match self.direction {
                Direction::Forward => Ordering::Less,
                Direction::Backward => Ordering::Greater,
            };
            if best.is_none_or(|(_, best)| key.cmp(best) == ahead) {
                best = Some((number, key));
            }
        }
        let Some((number, _)) = best else {
            return Ok(None);
        };
        let (source, next) = &mut self.sources[number];
        let found = std::mem::replace(next, source.next(self.direction)?);
        if let Some((key, _)) = &found {
            for (source, next) in &mut self.sources[number + 1..] {
                if next.as_ref().is_some_and(|(other, _)| other == key) {
                    *next = source.next(self.direction)?;
                }
            }
        }
        Ok(found)
    }
}
