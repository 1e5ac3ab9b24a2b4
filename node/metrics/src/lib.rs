//! What the parts of a node measure on a job's way, and what the node then shows at `/metrics`.
//!
//! An observation is two additions to atomics: nothing is allocated, nobody waits for a lock, and no part has to know who
//! reads it. The names under which it is shown are in the server, all in one file.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Upper ends for times, nanoseconds: 1, 2.5 and 5 of each power of ten, from 10 µs to 100 s.
const TIMES: &[u64] = &[
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    25_000_000_000,
    50_000_000_000,
    100_000_000_000,
];

/// Upper ends for counts and sizes: powers of four.
const AMOUNTS: &[u64] = &[
    1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216,
];

/// How often values lay where. Shared by reference; cheap to add to from any thread.
#[derive(Debug)]
pub struct Histogram {
    ends: &'static [u64],
    /// One for each end, and one for what is above all of them.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    /// What one of the shown units is in those that are counted.
    unit: f64,
}

impl Histogram {
    fn new(ends: &'static [u64], unit: f64) -> Self {
        Self {
            ends,
            counts: (0..=ends.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            unit,
        }
    }

    /// Of times; shown in seconds.
    #[must_use]
    pub fn of_times() -> Self {
        Self::new(TIMES, 1e9)
    }

    /// Of counts, or of sizes in bytes.
    #[must_use]
    pub fn of_amounts() -> Self {
        Self::new(AMOUNTS, 1.0)
    }

    /// Adds a count or a size.
    pub fn add(&self, value: u64) {
        let place = self.ends.partition_point(|end| *end < value);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Adds a time.
    pub fn took(&self, time: Duration) {
        self.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds the time since `start`.
    pub fn since(&self, start: Instant) {
        self.took(start.elapsed());
    }

    /// What was added until now. Whatever is added meanwhile is in it or not.
    #[must_use]
    pub fn read(&self) -> Reading {
        let counts: Vec<u64> = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        let ends = self.ends.iter().map(|end| *end as f64 / self.unit);
        Reading {
            sum: self.sum.load(Ordering::Relaxed) as f64 / self.unit,
            count: counts.iter().sum(),
            buckets: ends.chain([f64::INFINITY]).zip(counts).collect(),
        }
    }
}

/// A histogram at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// All values together.
    pub sum: f64,
    /// How many.
    pub count: u64,
    /// How many lay at or below each end, and above the one before it.
    pub buckets: Vec<(f64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_grow() {
        for ends in [TIMES, AMOUNTS] {
            assert!(ends.is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn a_value_lies_at_or_below_its_end() {
        let histogram = Histogram::of_times();
        histogram.took(Duration::ZERO);
        histogram.took(Duration::from_micros(10));
        histogram.took(Duration::from_nanos(10_001));
        histogram.took(Duration::from_secs(1_000));
        let read = histogram.read();
        assert_eq!(read.count, 4);
        assert!((read.sum - 1_000.000_020_001).abs() < 1e-9, "{}", read.sum);
        assert_eq!(read.buckets[0], (0.000_01, 2));
        assert_eq!(read.buckets[1], (0.000_025, 1));
        assert_eq!(read.buckets.last(), Some(&(f64::INFINITY, 1)));
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let histogram = Histogram::of_amounts();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|n| histogram.add(n)));
            }
        });
        let read = histogram.read();
        assert_eq!(read.count, 40_000);
        assert!((read.sum - 4.0 * 49_995_000.0).abs() < 0.5);
    }
}
