//! What openraft counts its own figures with (sizes of batches, times between stages), in the place of the published
//! crate of this name.
//!
//! The published one makes tables for sixteen scales when it is first used, of which openraft uses one: 25 MB, half of
//! the memory of an idle node. This has what openraft 0.10.0-alpha.37 calls, and a bucket for each power of two:
//! Quorun does not show these figures, it has histograms of its own (`quorun-metrics`).

use std::fmt;
use std::marker::PhantomData;

/// Zero, and one for each number of bits.
const BUCKETS: usize = 1 + u64::BITS as usize;

/// How often values lay between which powers of two.
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    kind: PhantomData<fn() -> T>,
}

/// The values below which parts of all observations lie; each is the largest value of the bucket in which it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many observations there are; the others are 0 where there are none.
    pub samples: u64,
    /// A thousandth of all.
    pub p0_1: u64,
    /// A hundredth.
    pub p1: u64,
    /// A twentieth.
    pub p5: u64,
    /// A tenth.
    pub p10: u64,
    /// Half.
    pub p50: u64,
    /// Nine tenths.
    pub p90: u64,
    /// 99 of a hundred.
    pub p99: u64,
    /// 999 of a thousand.
    pub p99_9: u64,
}

impl<T> Histogram<T> {
    /// One without observations.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            kind: PhantomData,
        }
    }

    /// Adds an observation.
    pub const fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Adds so many observations of the same value.
    pub const fn record_n(&mut self, value: u64, times: u64) {
        let bits = u64::BITS - value.leading_zeros();
        self.counts[bits as usize] += times;
    }

    /// How many observations there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sums up what was observed.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.total();
        PercentileStats {
            samples,
            p0_1: self.below(samples, 1),
            p1: self.below(samples, 10),
            p5: self.below(samples, 50),
            p10: self.below(samples, 100),
            p50: self.below(samples, 500),
            p90: self.below(samples, 900),
            p99: self.below(samples, 990),
            p99_9: self.below(samples, 999),
        }
    }

    /// The largest value of the first bucket up to which there are so many thousandths of all.
    fn below(&self, samples: u64, thousandths: u128) -> u64 {
        let wanted = (u128::from(samples) * thousandths).div_ceil(1000);
        let mut seen = 0;
        for (bits, count) in (0_u32..).zip(self.counts) {
            seen += u128::from(count);
            if seen >= wanted && seen > 0 {
                return u64::MAX.checked_shr(u64::BITS - bits).unwrap_or(0);
            }
        }
        0
    }
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            samples,
            p50,
            p99,
            p99_9,
            ..
        } = self;
        write!(f, "{samples} (p50 {p50}, p99 {p99}, p99.9 {p99_9})")
    }
}

// Not derived, because that would ask the same of the kind.
impl<T> Clone for Histogram<T> {
    fn clone(&self) -> Self {
        Self {
            counts: self.counts,
            kind: PhantomData,
        }
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> PartialEq for Histogram<T> {
    fn eq(&self, other: &Self) -> bool {
        self.counts == other.counts
    }
}

impl<T> Eq for Histogram<T> {}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.percentile_stats(), f)
    }
}

/// Histograms under each other, as text.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart {
    lines: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "openraft passes it so")]
    pub fn add<T>(mut self, name: impl Into<String>, histogram: Histogram<T>) -> Self {
        self.lines.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, stats) in &self.lines {
            writeln!(f, "{name}: {stats}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_again_by_their_part_of_all() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats(), PercentileStats::default());
        for value in 0..1000 {
            histogram.record(value);
        }
        histogram.record(u64::MAX);
        let stats = histogram.clone().percentile_stats();
        assert_eq!(stats.samples, 1001);
        assert_eq!(stats.p0_1, 1, "0 and 1 are the first two");
        assert_eq!(stats.p1, 15);
        assert_eq!(stats.p50, 511);
        assert_eq!(stats.p99_9, 1023);
        assert_eq!(histogram.below(1001, 1000), u64::MAX);
        let chart = AsciiChart::new().add("stage", histogram);
        assert_eq!(
            chart.to_string(),
            "stage: 1001 (p50 511, p99 1023, p99.9 1023)\n"
        );
    }
}
