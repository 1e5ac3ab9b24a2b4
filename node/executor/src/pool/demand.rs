//! How many sandboxes of a kind were needed at one time, lately.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What one entry of the memory covers.
const MINUTE: Duration = Duration::from_secs(60);

/// How long a peak is remembered at least; at most, one minute more.
pub(crate) const WINDOW: Duration = Duration::from_secs(300);

/// The most that were needed at one time.
#[derive(Debug, Default)]
pub(crate) struct Peak {
    level: usize,
    /// When a minute began, and the most in it. Minutes in which nothing changed are not there: what was needed then is
    /// in the next one that is, or still needed.
    minutes: VecDeque<(Instant, usize)>,
}

impl Peak {
    /// From now on so many are needed.
    pub(crate) fn note(&mut self, now: Instant, level: usize) {
        let most = self.level.max(level);
        self.level = level;
        match self.minutes.back_mut() {
            Some((began, peak)) if now < *began + MINUTE => *peak = level.max(*peak),
            _ => self.minutes.push_back((now, most)),
        }
        while let Some((began, _)) = self.minutes.front()
            && *began + MINUTE + WINDOW <= now
        {
            self.minutes.pop_front();
        }
    }

    /// The peak as it is remembered now.
    pub(crate) fn get(&self, now: Instant) -> usize {
        self.minutes
            .iter()
            .filter(|(began, _)| now < *began + MINUTE + WINDOW)
            .map(|(_, peak)| *peak)
            .fold(self.level, usize::max)
    }

    /// Forgets what is past.
    pub(crate) fn forget(&mut self) {
        self.minutes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_peak_is_remembered_for_five_minutes_and_forgotten_after_six() {
        let start = Instant::now();
        let mut peak = Peak::default();
        peak.note(start, 3);
        peak.note(start + seconds(1), 0);
        assert_eq!(peak.get(start + seconds(1)), 3);
        assert_eq!(peak.get(start + seconds(301)), 3);
        assert_eq!(peak.get(start + seconds(361)), 0);
    }

    #[test]
    fn what_is_needed_all_the_time_does_not_get_old() {
        let start = Instant::now();
        let mut peak = Peak::default();
        peak.note(start, 2);
        assert_eq!(peak.get(start + seconds(10_000)), 2);
        // It was needed until now.
        peak.note(start + seconds(10_000), 0);
        assert_eq!(peak.get(start + seconds(10_300)), 2);
        assert_eq!(peak.get(start + seconds(10_360)), 0);
    }

    #[test]
    fn smaller_peaks_come_into_view_as_larger_ones_go() {
        let start = Instant::now();
        let mut peak = Peak::default();
        for (at, level) in [(0, 5), (10, 0), (120, 2), (130, 0)] {
            peak.note(start + seconds(at), level);
        }
        assert_eq!(peak.get(start + seconds(350)), 5);
        assert_eq!(peak.get(start + seconds(370)), 2);
        assert_eq!(peak.get(start + seconds(500)), 0);
    }

    #[test]
    fn its_memory_is_bounded() {
        let start = Instant::now();
        let mut peak = Peak::default();
        for second in 0..100_000 {
            peak.note(start + seconds(second), usize::from(second % 2 == 0));
        }
        assert!(peak.minutes.len() <= 7, "{}", peak.minutes.len());
    }

    #[test]
    fn what_is_forgotten_is_only_what_is_past() {
        let start = Instant::now();
        let mut peak = Peak::default();
        peak.note(start, 4);
        peak.note(start, 1);
        peak.forget();
        assert_eq!(peak.get(start), 1);
    }
}
