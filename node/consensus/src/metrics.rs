//! What consensus measures of itself: where the time of a proposal goes on this node, and what its ledger holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorun_ledger::{Counters, StoreError};
use quorun_metrics::Histogram;

use crate::clock::{ClockReport, Clocks};
use crate::ledger_store::LedgerStore;

/// The figures of a node since its start.
#[derive(Debug)]
pub struct Metrics {
    /// From the call of the leader until its answer: what lies between is the leader's.
    pub forward: Histogram,
    /// Commands of a batch that this node wrote into its log as the leader.
    pub batch_commands: Histogram,
    /// The size of such a batch.
    pub batch_bytes: Histogram,
    /// From handing such a batch to Raft until it is committed.
    pub commit: Histogram,
    /// From there until it has been applied and its replies are there.
    pub reply: Histogram,
    /// One write of the log, the sync of the file and of the watermark included.
    pub append: Arc<Histogram>,
    /// Applying a group of entries.
    pub apply: Histogram,
    /// Entries of such a group.
    pub apply_entries: Histogram,
    /// What the ledger holds.
    pub figures: Figures,
    pub(crate) clocks: Arc<Clocks>,
}

impl Metrics {
    /// Nothing has been measured but what the log has.
    pub(crate) fn new(append: Arc<Histogram>, clocks: Arc<Clocks>) -> Self {
        Self {
            forward: Histogram::of_times(),
            batch_commands: Histogram::of_amounts(),
            batch_bytes: Histogram::of_amounts(),
            commit: Histogram::of_times(),
            reply: Histogram::of_times(),
            append,
            apply: Histogram::of_times(),
            apply_entries: Histogram::of_amounts(),
            figures: Figures::default(),
            clocks,
        }
    }

    /// How the clocks stand.
    #[must_use]
    pub fn clocks(&self) -> ClockReport {
        self.clocks.report()
    }

    /// Takes over what the ledger says.
    pub(crate) fn follow(&self, ledger: &LedgerStore) -> Result<(), StoreError> {
        let now = ledger.view().counters()?;
        self.clocks.shown(now.time_ms);
        self.figures.follow(&now);
        Ok(())
    }
}

/// The counters of the local ledger, to be read without touching it. Each is true for itself; two of them may be from
/// before and behind the same entry.
#[derive(Debug, Default)]
pub struct Figures {
    queued: AtomicU64,
    queued_bytes: AtomicU64,
    running: AtomicU64,
    finished: AtomicU64,
    finished_bytes: AtomicU64,
    fenced: AtomicU64,
}

impl Figures {
    /// Jobs that wait.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    /// What they weigh, bytes.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    /// Jobs that have a current attempt.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    /// Jobs that have their result.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    /// What they weigh, bytes.
    #[must_use]
    pub fn finished_bytes(&self) -> u64 {
        self.finished_bytes.load(Ordering::Relaxed)
    }

    /// Reports of attempts that were no longer current.
    #[must_use]
    pub fn fenced(&self) -> u64 {
        self.fenced.load(Ordering::Relaxed)
    }

    fn follow(&self, now: &Counters) {
        for (figure, value) in [
            (&self.queued, now.queued),
            (&self.queued_bytes, now.queued_bytes),
            (&self.running, now.running),
            (&self.finished, now.finished),
            (&self.finished_bytes, now.finished_bytes),
            (&self.fenced, now.fenced),
        ] {
            figure.store(value, Ordering::Relaxed);
        }
    }
}
