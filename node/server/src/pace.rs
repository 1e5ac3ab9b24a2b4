//! When to come again: what `Retry-After` says to those who were turned away because something is full.
//!
//! To all of them "in a second" would bring all of them back at once. So each is given a time of its own: those who were
//! turned away before come first, and places become free as fast as they lately did. It is a guess; nothing is kept for
//! anybody.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::access::rate::seconds;

/// How long places are counted before their pace is taken anew.
const WINDOW: Duration = Duration::from_secs(2);
/// How far ahead anybody is sent at most: what is full now may soon not be.
const FURTHEST: Duration = Duration::from_secs(30);
/// The pace that is assumed until one was seen, places a second.
const AT_FIRST: f64 = 50.0;
/// The slowest that is reckoned with.
const SLOWEST: f64 = 0.2;

#[derive(Debug)]
struct State {
    /// When counting began, and how many places had become free by then.
    since: Instant,
    freed: u64,
    /// Places a second.
    pace: f64,
    /// When the last who was turned away was told to come.
    last: Instant,
}

/// How fast something becomes free, and who was told to come when.
#[derive(Debug)]
pub struct Pace(Mutex<State>);

impl Default for Pace {
    fn default() -> Self {
        let now = Instant::now();
        Self(Mutex::new(State {
            since: now,
            freed: 0,
            pace: AT_FIRST,
            last: now,
        }))
    }
}

impl Pace {
    /// When one more who is turned away now should come again, whole seconds. `freed` is how many places have become free
    /// since the node started.
    pub fn come_again(&self, freed: u64, now: Instant) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = now.saturating_duration_since(state.since);
        if counted >= WINDOW {
            let seen = freed.saturating_sub(state.freed) as f64 / counted.as_secs_f64();
            // Half of it is what was known before: a moment is no pace.
            state.pace = f64::midpoint(state.pace, seen).max(SLOWEST);
            state.since = now;
            state.freed = freed;
        }
        let each = Duration::from_secs_f64(1.0 / state.pace);
        let next = (state.last.max(now) + each).min(now + FURTHEST);
        state.last = next;
        seconds(next - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn those_who_are_turned_away_together_come_one_after_the_other() {
        let pace = Pace::default();
        let now = Instant::now();
        assert_eq!(pace.come_again(0, now), 1);
        let told: Vec<u64> = (0..200).map(|_| pace.come_again(0, now)).collect();
        assert!(told.is_sorted());
        assert_eq!((told[0], told[199]), (1, 5), "fifty a second");
    }

    #[test]
    fn the_slower_places_become_free_the_later_it_is() {
        let (mut fast, mut slow) = (0, 0);
        let (quick, lame) = (Pace::default(), Pace::default());
        let mut now = Instant::now();
        let mut freed = 0;
        for _ in 0..10 {
            now += 3 * SECOND;
            freed += 300;
            fast = quick.come_again(freed, now);
            slow = lame.come_again(0, now);
        }
        assert_eq!(fast, 1);
        assert!((5..=30).contains(&slow), "{slow}");
    }

    #[test]
    fn nobody_is_sent_away_for_long() {
        let pace = Pace::default();
        let mut now = Instant::now();
        for _ in 0..10_000 {
            assert!(pace.come_again(0, now) <= FURTHEST.as_secs());
        }
        now += FURTHEST;
        assert!(pace.come_again(0, now) <= 5, "what is past is past");
    }
}
