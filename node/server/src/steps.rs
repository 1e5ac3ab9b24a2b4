//! Steps of the ledger's time: when it is put right, it may jump forward, and what had finished a moment before is then as old
//! as the step is long. Nothing is removed until that is over for all who have just finished.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::scheduler::KEPT_AT_LEAST;

/// What a leader has seen of the ledger's time.
#[derive(Debug, Default)]
pub struct Steps {
    /// What it was, and when.
    seen: Option<(Instant, u64)>,
    /// Until when nothing is removed.
    until: Option<Instant>,
}

impl Steps {
    /// Another node leads: what it has seen is not known here.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether a first look at the time is still to come.
    pub const fn is_new(&self) -> bool {
        self.seen.is_none()
    }

    /// The ledger's time is this now, Unix milliseconds. The first time is that of the last batch, whoever has written it: if
    /// nothing was written for long, that counts as a step as well, which does no harm.
    pub fn saw(&mut self, now: Instant, time_ms: u64) {
        let Some((at, before)) = self.seen.replace((now, time_ms)) else {
            return;
        };
        let passed = now.saturating_duration_since(at);
        let step = Duration::from_millis(time_ms.saturating_sub(before)).saturating_sub(passed);
        if step > KEPT_AT_LEAST {
            info!(
                ?step,
                "the ledger's time has made a step; nothing is removed for a while"
            );
            self.until = Some(now + KEPT_AT_LEAST);
        }
    }

    /// Whether what is over its time may be removed.
    pub fn are_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGUN: u64 = 1_000_000_000;

    #[test]
    fn nothing_is_removed_behind_a_step_until_it_is_old_without_it() {
        let (began, mut steps) = (Instant::now(), Steps::default());
        let after = |seconds: u64| began + Duration::from_secs(seconds);
        assert!(steps.is_new());
        // As time goes, and a little more or less.
        for second in 0..100 {
            steps.saw(after(second), BEGUN + second * 1_001 + second % 2 * 900);
            assert!(steps.are_over(after(second)), "{second}");
        }
        // Half as fast, and then for long not at all.
        steps.saw(after(200), BEGUN + 150_000);
        steps.saw(after(300), BEGUN + 150_000);
        assert!(steps.are_over(after(300)));
        // Up to what every job is kept for, a step is none.
        steps.saw(after(301), BEGUN + 150_000 + 31_000);
        assert!(steps.are_over(after(301)));
        steps.saw(after(302), BEGUN + 3_600_000);
        assert!(!steps.are_over(after(302)));
        steps.saw(after(331), BEGUN + 3_629_000);
        assert!(!steps.are_over(after(331)));
        steps.saw(after(332), BEGUN + 3_630_000);
        assert!(steps.are_over(after(332)));
    }

    #[test]
    fn a_new_leader_sees_a_step_since_the_last_batch() {
        let (began, mut steps) = (Instant::now(), Steps::default());
        steps.saw(began, BEGUN);
        steps.saw(began, BEGUN + 3_600_000);
        assert!(!steps.are_over(began + KEPT_AT_LEAST / 2));
        assert!(steps.are_over(began + KEPT_AT_LEAST));
        steps.forget();
        assert!(steps.is_new() && steps.are_over(began));
    }
}
