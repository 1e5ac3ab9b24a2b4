//! Merging: few runs, and in them little that newer ones hide.
//!
//! Each overlay that has become one adds a run. Where a run is less than twice as large as all that are newer together, it is merged with
//! them, so that there are about as many runs as the ledger's size has binary digits above that of one, and each pair is
//! written once for each doubling (the binomial transform of Bentley and Saxe, 1980). What a run hides by its removals
//! counts as if it were there. Removals end where the oldest run is merged; so what was removed takes about half as much as
//! what is there, at most, before its space is given back.
//!
//! It is done beside everything else, on a thread that gives way to all others.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::layers::Runs;
use super::manifest;
use super::run::{Run, RunWriter};
use super::{LedgerStore, chunks};

/// The first of the runs that are to be merged, which are all from there on; `None`: they are few enough. Of each the
/// size is told, and what it hides.
fn first_to_merge(runs: &[(u64, u64)]) -> Option<usize> {
    let mut newer = 0;
    let mut first = None;
    for (number, (size, hidden)) in runs.iter().enumerate().rev() {
        if number + 1 < runs.len() && *size < 2 * newer {
            first = Some(number);
        }
        newer += size + hidden;
    }
    first
}

/// What came of a look at whether runs are to be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// Some were, and others may have to be.
    Some,
    /// They are few enough.
    Enough,
    /// Something else comes first: the node ends, a snapshot is to be installed, or there is no room for both the old and
    /// the new. They stay as they are until there is another run.
    Later,
}

impl LedgerStore {
    /// Merges runs as long as there are too many.
    pub(super) fn merge_in_background(&self) {
        #[cfg(feature = "simulation")]
        if crate::simulation::active() {
            self.merge_all();
            return;
        }
        if self.inner.merging.swap(true, Ordering::AcqRel) {
            // Whoever merges looks again.
            self.inner.merge_again.store(true, Ordering::Release);
            return;
        }
        let store = self.clone();
        let started = std::thread::Builder::new()
            .name("ledger-merge".to_owned())
            .spawn(move || {
                loop {
                    store.inner.merge_again.store(false, Ordering::Release);
                    let looked = catch_unwind(AssertUnwindSafe(|| store.merge_all()));
                    if looked.is_err() {
                        store.failed("the merging of the ledger's runs has panicked".to_owned());
                    }
                    store.inner.merging.store(false, Ordering::Release);
                    let again = store.inner.merge_again.load(Ordering::Acquire)
                        && !store.inner.merging.swap(true, Ordering::AcqRel);
                    if !again {
                        return;
                    }
                }
            });
        if let Err(error) = started {
            tracing::warn!(%error, "no thread to merge the runs of the ledger; they are merged behind the next snapshot");
            self.inner.merging.store(false, Ordering::Release);
        }
    }

    fn merge_all(&self) {
        loop {
            match self.merge() {
                Ok(Merged::Some) => {}
                Ok(Merged::Enough | Merged::Later) => return,
                Err(error) => {
                    self.failed(format!("the ledger's runs cannot be merged: {error}"));
                    return;
                }
            }
        }
    }

    /// Whether something comes before the merging.
    fn merging_waits(&self) -> bool {
        self.is_closed() || self.inner.installing.load(Ordering::Acquire)
    }

    /// Merges runs that are too many.
    pub(super) fn merge(&self) -> io::Result<Merged> {
        let _only_one = self.inner.merges.lock();
        let Ok(runs) = self.runs() else {
            return Ok(Merged::Later);
        };
        let sizes = runs.list().iter();
        let sizes: Vec<_> = sizes.map(|run| (run.size(), run.hidden())).collect();
        let Some(first) = first_to_merge(&sizes) else {
            return Ok(Merged::Enough);
        };
        let old = &runs.list()[first..];
        let needed: u64 = old.iter().map(|run| run.bytes).sum();
        if !has_room(&self.inner.data_dir, needed)? {
            tracing::warn!(
                needed,
                "too little room on the disk to merge the runs of the ledger; they are merged when there is more"
            );
            return Ok(Merged::Later);
        }
        let number = self.next_number();
        let merged = match self.write_aside(old, first == 0, number) {
            Ok(Some(merged)) => merged,
            Ok(None) => return Ok(Merged::Later),
            // Nothing is lost: the old ones are there.
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, "the runs of the ledger are merged when there is more room");
                return Ok(Merged::Later);
            }
            Err(error) => return Err(error),
        };
        let left = {
            let mut manifest = self.inner.manifest.lock();
            // A snapshot may have added one meanwhile; only here are runs taken away.
            let Ok(runs) = self.runs() else {
                return Ok(Merged::Later);
            };
            let mut list = runs.list().to_vec();
            list.splice(first..first + old.len(), merged.map(Arc::new));
            let mut changed = manifest.clone();
            changed.runs = list.iter().map(|run| run.number).collect();
            changed.write(&self.inner.data_dir)?;
            *manifest = changed;
            let mut current = self.inner.current.write();
            let Some(layers) = current.layers.as_mut() else {
                return Ok(Merged::Later);
            };
            layers.runs = layers.runs.with(list);
            layers.runs.list().len()
        };
        for run in old {
            super::remove(run.path());
        }
        tracing::debug!(merged = old.len(), runs = left, "runs merged");
        Ok(Merged::Some)
    }

    /// [`Self::write_merged`] on a thread that gives way to all others; what follows it holds locks, and must not.
    fn write_aside(
        &self,
        old: &[Arc<Run>],
        oldest: bool,
        number: u64,
    ) -> io::Result<Option<Option<Run>>> {
        #[cfg(feature = "simulation")]
        if crate::simulation::active() {
            return self.write_merged(old, oldest, number);
        }
        std::thread::scope(|scope| {
            let writing = std::thread::Builder::new()
                .name("ledger-merging".to_owned())
                .spawn_scoped(scope, || {
                    super::give_way();
                    self.write_merged(old, oldest, number)
                })?;
            writing
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a panic")))
        })
    }

    /// Writes a run that takes the place of some; there is none if nothing is left of them. `None`: something else comes
    /// first.
    fn write_merged(
        &self,
        old: &[Arc<Run>],
        oldest: bool,
        number: u64,
    ) -> io::Result<Option<Option<Run>>> {
        let path = manifest::run(&self.inner.data_dir, number);
        let expected = old.iter().map(|run| run.pairs()).sum();
        let mut writer = RunWriter::create(&path, expected)?;
        let mut merged = Runs::merged(old)?;
        let mut looked_at = 0_u64;
        while let Some((key, value)) = merged.next()? {
            looked_at += 1;
            if looked_at.is_multiple_of(1024) && self.merging_waits() {
                return Ok(None);
            }
            if !(oldest && chunks::is_removed(&value)) {
                writer.add(&key, &value)?;
            }
        }
        let before: u64 = old.iter().map(|run| run.size()).sum();
        let hidden: u64 = old.iter().map(|run| run.hidden()).sum();
        // What has gone was hidden by removals of the same runs.
        let hidden = hidden.saturating_sub(before.saturating_sub(writer.size()));
        writer
            .finish(number, if oldest { 0 } else { hidden })
            .map(Some)
    }
}

/// Room that merging leaves to everybody else on the disk, bytes.
const RESERVE: u64 = 512 << 20;

/// Whether the disk has room for so much more.
fn has_room(data_dir: &Path, needed: u64) -> io::Result<bool> {
    let disk = rustix::fs::statvfs(data_dir)?;
    let left = disk.f_bavail.saturating_mul(disk.f_frsize);
    // What is small is merged in any case: it gives back more than it takes.
    Ok(needed < RESERVE / 8 || left > needed.saturating_add(RESERVE))
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(sizes: &[u64]) -> Option<usize> {
        let runs: Vec<_> = sizes.iter().map(|size| (*size, 0)).collect();
        first_to_merge(&runs)
    }

    #[test]
    fn runs_are_merged_when_the_newer_ones_come_near_their_size() {
        assert_eq!(first(&[]), None);
        assert_eq!(first(&[5]), None);
        assert_eq!(first(&[5, 5]), Some(0));
        assert_eq!(first(&[10, 5]), None);
        assert_eq!(first(&[100, 10, 5]), None);
        assert_eq!(first(&[100, 9, 5]), Some(1));
        // The one that is small enough takes all behind it along.
        assert_eq!(first(&[29, 10, 5]), Some(0));
        assert_eq!(first(&[1, 10, 5]), Some(0));
    }

    #[test]
    fn removals_weigh_what_they_hide() {
        assert_eq!(first_to_merge(&[(100, 0), (1, 49)]), None);
        assert_eq!(first_to_merge(&[(100, 0), (1, 50)]), Some(0));
        // What the oldest hides is not there any more.
        assert_eq!(first_to_merge(&[(100, 1_000), (1, 0)]), None);
    }

    #[test]
    fn a_ledger_that_grows_has_few_runs_and_writes_each_pair_a_few_times() {
        let (mut sizes, mut written) = (Vec::new(), 0);
        for _ in 0..1_000 {
            sizes.push(1);
            written += 1;
            while let Some(first) = first(&sizes) {
                let merged = sizes.split_off(first).iter().sum();
                written += merged;
                sizes.push(merged);
            }
            assert!(sizes.len() <= 10, "{sizes:?}");
        }
        assert_eq!(sizes.iter().sum::<u64>(), 1_000);
        assert!(written <= 12 * 1_000, "{written}");
    }
}
