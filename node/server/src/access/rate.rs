//! How many requests a token may make: a bucket that fills with time, one for each token on each node.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a bucket is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Requests for each second, in the long run.
    pub per_second: u32,
    /// Requests that may come at once, after a pause.
    pub burst: u32,
}

impl Policy {
    /// The time in which an empty bucket fills, whole seconds.
    #[must_use]
    pub fn window_s(&self) -> u64 {
        u64::from(self.burst)
            .div_ceil(u64::from(self.per_second.max(1)))
            .max(1)
    }
}

/// How a bucket stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Requests that are still in it.
    pub left: u32,
    /// When it will be full again, whole seconds.
    pub full_in_s: u64,
}

/// A bucket of requests.
#[derive(Debug)]
pub struct Bucket {
    policy: Policy,
    /// When it will be full: further away than the time that a whole bucket takes to fill it never is.
    full_at: Mutex<Instant>,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            full_at: Mutex::new(Instant::now()),
        }
    }

    /// What it is like.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Takes one request out of it.
    ///
    /// # Errors
    /// When it is empty: the time until there is one again.
    pub fn take(&self, now: Instant) -> Result<Standing, Duration> {
        let each = Duration::from_secs(1) / self.policy.per_second.max(1);
        let whole = each * self.policy.burst.max(1);
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = full_at.saturating_duration_since(now) + each;
        if missing > whole {
            return Err(missing - whole);
        }
        *full_at = now + missing;
        let left = (whole - missing).as_nanos() / each.as_nanos().max(1);
        Ok(Standing {
            left: u32::try_from(left).unwrap_or(u32::MAX),
            full_in_s: seconds(missing),
        })
    }
}

/// Whole seconds, rounded up, and at least one: what `Retry-After` can say.
#[must_use]
pub fn seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_gives_what_it_holds_and_fills_with_time() {
        let bucket = Bucket::new(Policy {
            per_second: 2,
            burst: 3,
        });
        let now = Instant::now();
        let left: Vec<_> = (0..3).map(|_| bucket.take(now).unwrap().left).collect();
        assert_eq!(left, [2, 1, 0]);
        assert_eq!(bucket.take(now).unwrap_err(), Duration::from_millis(500));
        let later = now + Duration::from_millis(500);
        assert_eq!(
            bucket.take(later).unwrap(),
            Standing {
                left: 0,
                full_in_s: 2
            }
        );
        let much_later = now + Duration::from_secs(60);
        assert_eq!(
            bucket.take(much_later).unwrap().left,
            2,
            "not more than full"
        );
    }

    #[test]
    fn times_are_whole_seconds_and_never_none() {
        for (time, expected) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (2500, 3)] {
            assert_eq!(seconds(Duration::from_millis(time)), expected);
        }
        let slow = Policy {
            per_second: 3,
            burst: 10,
        };
        assert_eq!(slow.window_s(), 4);
    }

    proptest! {
        /// Whatever the times between them: in any span no more pass than the burst and what flows in.
        #[test]
        fn no_more_pass_than_may(
            per_second in 1..50_u32,
            burst in 1..50_u32,
            gaps in prop::collection::vec(0..400_u64, 1..200),
        ) {
            let bucket = Bucket::new(Policy { per_second, burst });
            let start = Instant::now();
            let mut now = start;
            let mut passed = 0_u64;
            for gap in gaps {
                now += Duration::from_millis(gap);
                match bucket.take(now) {
                    Ok(standing) => {
                        passed += 1;
                        prop_assert!(standing.left < burst);
                    }
                    Err(wait) => {
                        prop_assert!(bucket.take(now + wait).is_ok(), "the time it says is enough");
                        passed += 1;
                        now += wait;
                    }
                }
                let flowed = (now - start).as_millis() as u64 * u64::from(per_second) / 1000;
                prop_assert!(passed <= u64::from(burst) + flowed + 1);
            }
        }
    }
}
