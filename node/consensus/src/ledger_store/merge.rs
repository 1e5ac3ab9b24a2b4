//! Merging: few runs, and in them little that newer ones hide.
//!
//! Each snapshot adds a run. Where a run is less than twice as large as all that are newer together, it is merged with
//! them, so that there are about as many runs as the ledger's size has binary digits above that of one, and each pair is
//! written once for each doubling (the binomial transform of Bentley and Saxe, 1980). What a run hides by its removals
//! counts as if it were there. Removals end where the oldest run is merged; so what was removed takes about half as much as
//! what is there, at most, before its space is given back.
//!
//! It is done beside everything else, on a thread that gives way to all others.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::layers::Runs;
use super::manifest;
use super::run::{Run, RunWriter};
use super::{LedgerStore, chunks, closed};

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

impl LedgerStore {
    /// Merges runs as long as there are too many.
    pub(super) fn merge_in_background(&self) {
        #[cfg(feature = "simulation")]
        if crate::simulation::active() {
            self.merge_all();
            return;
        }
        if self.inner.merging.swap(true, Ordering::AcqRel) {
            return; // what there is to do is looked at again when that is done
        }
        let store = self.clone();
        let started = std::thread::Builder::new()
            .name("ledger-merge".to_owned())
            .spawn(move || {
                super::give_way();
                store.merge_all();
                store.inner.merging.store(false, Ordering::Release);
            });
        if let Err(error) = started {
            tracing::warn!(%error, "no thread to merge the runs of the ledger; they are merged behind the next snapshot");
            self.inner.merging.store(false, Ordering::Release);
        }
    }

    fn merge_all(&self) {
        loop {
            match self.merge() {
                Ok(true) => {}
                Ok(false) => return,
                // Only because the node ends, or because all of them are about to be replaced.
                Err(_) if self.is_closed() || self.inner.installing.load(Ordering::Acquire) => {
                    return;
                }
                Err(error) => {
                    self.inner
                        .failure
                        .send_replace(Some(format!("the ledger's runs cannot be merged: {error}")));
                    return;
                }
            }
        }
    }

    /// Merges runs that are too many. Returns whether there were such.
    pub(super) fn merge(&self) -> io::Result<bool> {
        let _only_one = self.inner.merges.lock();
        let runs = self.layers()?.runs;
        let sizes = runs.list().iter();
        let sizes: Vec<_> = sizes.map(|run| (run.size(), run.hidden())).collect();
        let Some(first) = first_to_merge(&sizes) else {
            return Ok(false);
        };
        let old = &runs.list()[first..];
        let number = self.next_number();
        let merged = self.write_merged(old, first == 0, number)?;
        let mut manifest = self.inner.manifest.lock();
        // A snapshot may have added one meanwhile; only here are runs taken away.
        let mut layers = self.layers()?;
        let mut list = layers.runs.list().to_vec();
        list.splice(first..first + old.len(), merged.map(Arc::new));
        manifest.runs = list.iter().map(|run| run.number).collect();
        manifest.write(&self.inner.data_dir)?;
        layers = {
            let mut current = self.inner.current.write();
            let layers = current.layers.as_mut().ok_or_else(closed)?;
            layers.runs = layers.runs.with(list);
            layers.clone()
        };
        drop(manifest);
        for run in old {
            std::fs::remove_file(run.path())?;
        }
        tracing::debug!(
            merged = old.len(),
            runs = layers.runs.list().len(),
            "runs merged"
        );
        Ok(true)
    }

    /// Writes a run that takes the place of some. `None`: nothing is left of them.
    fn write_merged(&self, old: &[Arc<Run>], oldest: bool, number: u64) -> io::Result<Option<Run>> {
        let path = manifest::run(&self.inner.data_dir, number);
        let expected = old.iter().map(|run| run.pairs()).sum();
        let mut writer = RunWriter::create(&path, expected)?;
        let mut merged = Runs::merged(old)?;
        let mut since = 0;
        while let Some((key, value)) = merged.next()? {
            if oldest && chunks::is_removed(&value) {
                continue;
            }
            writer.add(&key, &value)?;
            since += 1;
            if since == 1024 {
                since = 0;
                if self.is_closed() || self.inner.installing.load(Ordering::Acquire) {
                    return Err(closed());
                }
            }
        }
        let before: u64 = old.iter().map(|run| run.size()).sum();
        let hidden: u64 = old.iter().map(|run| run.hidden()).sum();
        // What has gone was hidden by removals of the same runs.
        let hidden = hidden.saturating_sub(before.saturating_sub(writer.size()));
        writer.finish(number, if oldest { 0 } else { hidden })
    }
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
