//! How fast the cluster works of late, as this node sees it: every node applies every entry, so every node can count what
//! begins and what ends. Soft state; a node that has just started knows nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// How far back is looked, seconds.
pub const WINDOW_S: u64 = 60;
const SECONDS: usize = WINDOW_S as usize;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// A job was given to a node.
    Started,
    /// A job has its result.
    Finished,
}

/// Jobs a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Given to a node.
    pub started: f64,
    /// Come to their end.
    pub finished: f64,
}

#[derive(Debug)]
struct Ring {
    began: Instant,
    /// The second, counted from the beginning, that was written last.
    last: u64,
    seconds: [[u32; 2]; SECONDS],
}

/// The last minute, second by second. Cheap to clone and to count in.
#[derive(Clone, Debug)]
pub struct Throughput {
    ring: Arc<Mutex<Ring>>,
}

impl Default for Throughput {
    fn default() -> Self {
        Self {
            ring: Arc::new(Mutex::new(Ring {
                began: Instant::now(),
                last: 0,
                seconds: [[0; 2]; SECONDS],
            })),
        }
    }
}

impl Throughput {
    /// One more.
    pub fn count(&self, what: Counted, now: Instant) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let second = ring.turn_to(now);
        ring.seconds[second][what as usize] += 1;
    }

    /// The rates of the last minute, or of as much of it as this node has seen.
    #[must_use]
    pub fn rates(&self, now: Instant) -> Rates {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.turn_to(now);
        let seen = now.saturating_duration_since(ring.began).as_secs_f64();
        let over = seen.clamp(1.0, WINDOW_S as f64);
        let sum = |what: Counted| {
            let counts = ring.seconds.iter().map(|second| second[what as usize]);
            f64::from(counts.fold(0_u32, u32::saturating_add)) / over
        };
        Rates {
            started: sum(Counted::Started),
            finished: sum(Counted::Finished),
        }
    }
}

impl Ring {
    /// Empties the seconds that have passed since the last call, and says where to count now.
    fn turn_to(&mut self, now: Instant) -> usize {
        let second = now.saturating_duration_since(self.began).as_secs();
        let second = second.max(self.last);
        let passed = (second - self.last).min(WINDOW_S);
        for back in 0..passed {
            self.seconds[((second - back) % WINDOW_S) as usize] = [0; 2];
        }
        self.last = second;
        (second % WINDOW_S) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let throughput = Throughput::default();
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        for _ in 0..60 {
            throughput.count(Counted::Started, at(3));
        }
        throughput.count(Counted::Finished, at(3));
        let rates = throughput.rates(at(100_000));
        assert_eq!(rates, Rates::default());
        for second in 200_000..200_060 {
            throughput.count(Counted::Started, at(second));
            throughput.count(Counted::Started, at(second));
        }
        let rates = throughput.rates(at(200_059));
        assert!((rates.started - 2.0).abs() < 0.001, "{rates:?}");
        assert!(rates.finished < 0.001, "{rates:?}");
    }

    #[test]
    fn a_young_node_divides_by_what_it_has_seen() {
        let throughput = Throughput::default();
        let began = Instant::now();
        for _ in 0..20 {
            throughput.count(Counted::Started, began);
        }
        let rates = throughput.rates(began + Duration::from_secs(10));
        assert!((1.9..=2.0).contains(&rates.started), "{rates:?}");
    }
}
