//! The time that a leader gives to its batches.
//!
//! By the ledger's time jobs expire, deliveries are tried again and everything is dated, and it never goes back. So no
//! single node may decide it: a leader whose clock is an hour ahead would have an hour's jobs removed, for ever. Every
//! answer of Raft carries the clock of its sender, that to a candidate too, so a leader knows from its first moment what
//! most of the voters think. Their median is what it goes by; of two in the middle the earlier one, because time that is
//! late can be made up for.
//!
//! How the ledger's time then moves:
//! - it is never before the median, so it jumps forward after the whole cluster was off;
//! - where it is ahead of the median (a wrong clock of former days, an earlier version, a few milliseconds between two
//!   nodes), it goes half as fast until that has caught up, so that nothing that waits for a time waits for ever;
//! - where the clocks of most voters are not known (their programs are older), it goes on by itself, as fast as time goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use quorun_ledger::NodeId;
use tokio::time::Instant;

/// A clock that was not heard of for so long says nothing any more.
const FRESH: Duration = Duration::from_secs(10);
/// What may lie between clocks, or the ledger's time and the clocks, before somebody has to look at it.
const TOLERATED: Duration = Duration::from_secs(5);
/// How often that is said.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What a node knows of the clocks.
#[derive(Debug)]
pub(crate) struct Clocks {
    id: NodeId,
    state: Mutex<State>,
}

/// How the clocks stand on a node, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockReport {
    /// The ledger's time, Unix milliseconds, as of the last batch that this node has applied or written.
    pub ledger_ms: u64,
    /// How far this node's clock is ahead of what most voters say, milliseconds, as far as it knew when it led last.
    pub ahead_ms: i64,
}

#[derive(Debug, Default)]
struct State {
    /// What the others' clocks said, and when that was heard.
    heard: BTreeMap<NodeId, Reading>,
    /// The ledger's time, and when it was that.
    ledger: Option<Reading>,
    ahead_ms: i64,
    said: Option<Instant>,
}

/// A time since 1970, and the moment at which it was that.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    time: Duration,
}

impl Reading {
    /// What it is by now.
    fn by(&self, now: Instant) -> Duration {
        self.time + now.saturating_duration_since(self.at)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How far one time is ahead of another, milliseconds.
fn ahead(time: Duration, of: Duration) -> i64 {
    let distance = |more: Duration, less: Duration| {
        i64::try_from(more.saturating_sub(less).as_millis()).unwrap_or(i64::MAX)
    };
    distance(time, of) - distance(of, time)
}

impl Clocks {
    /// Has heard nobody yet.
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            id,
            state: Mutex::default(),
        }
    }

    /// This node's own clock, Unix milliseconds. A clock before 1970 counts as 1970.
    pub(crate) fn own_ms(&self) -> u64 {
        #[cfg(feature = "simulation")]
        if let Some(now) = crate::simulation::now_ms(self.id) {
            return now;
        }
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, millis)
    }

    /// What a peer's clock says at this moment; 0 where its program does not say.
    pub(crate) fn heard(&self, node: NodeId, clock_ms: u64) {
        if clock_ms > 0 {
            let reading = Reading {
                at: Instant::now(),
                time: Duration::from_millis(clock_ms),
            };
            self.state.lock().heard.insert(node, reading);
        }
    }

    /// The ledger shows this time, Unix milliseconds.
    pub(crate) fn shown(&self, ledger_ms: u64) {
        let time = Duration::from_millis(ledger_ms);
        let mut state = self.state.lock();
        // What this node has written itself comes back later than it was written.
        if ledger_ms > 0 && state.ledger.is_none_or(|known| known.time < time) {
            let at = Instant::now();
            state.ledger = Some(Reading { at, time });
        }
    }

    /// The time for a batch that this node writes as the leader, Unix milliseconds.
    pub(crate) fn stamp(&self, voters: &BTreeSet<NodeId>) -> u64 {
        let (own, now) = (Duration::from_millis(self.own_ms()), Instant::now());
        let mut state = self.state.lock();
        let agreed = state.agreed(self.id, own, voters, now);
        let next = next(state.ledger, agreed, own, now);
        if let Some(agreed) = agreed {
            state.ahead_ms = ahead(own, agreed);
            self.say(&mut state, agreed, next, now);
        }
        // A part of a millisecond counts as well: batches may be written faster than that.
        state.ledger = Some(Reading {
            at: now,
            time: next,
        });
        millis(next)
    }

    /// What a batch would be stamped with now, if this node led.
    pub(crate) fn now_ms(&self, voters: &BTreeSet<NodeId>) -> u64 {
        let (own, now) = (Duration::from_millis(self.own_ms()), Instant::now());
        let state = self.state.lock();
        let agreed = state.agreed(self.id, own, voters, now);
        millis(next(state.ledger, agreed, own, now))
    }

    /// How the clocks stand.
    pub(crate) fn report(&self) -> ClockReport {
        let state = self.state.lock();
        ClockReport {
            ledger_ms: state.ledger.map_or(0, |ledger| millis(ledger.time)),
            ahead_ms: state.ahead_ms,
        }
    }

    /// What somebody has to look at.
    fn say(&self, state: &mut State, agreed: Duration, next: Duration, now: Instant) {
        let tolerated = i64::try_from(TOLERATED.as_millis()).unwrap_or(i64::MAX);
        let (own_ahead, time_ahead) = (state.ahead_ms, ahead(next, agreed));
        if own_ahead.abs() <= tolerated && time_ahead <= tolerated {
            return;
        }
        if state.said.is_some_and(|said| now < said + SAID_EVERY) {
            return;
        }
        state.said = Some(now);
        if own_ahead.abs() > tolerated {
            tracing::warn!(
                node = self.id,
                ahead_ms = own_ahead,
                "this node's clock is not what most voters say, and is not gone by"
            );
        }
        if time_ahead > tolerated {
            tracing::warn!(
                node = self.id,
                ahead_ms = time_ahead,
                "the ledger's time is ahead of the clocks, and goes half as fast until they have caught up"
            );
        }
    }
}

impl State {
    /// What most of the voters say that the time is; `None` where the clocks of most of them are not known.
    fn agreed(
        &self,
        id: NodeId,
        own: Duration,
        voters: &BTreeSet<NodeId>,
        now: Instant,
    ) -> Option<Duration> {
        let mut known: Vec<_> = voters
            .iter()
            .filter_map(|voter| {
                if *voter == id {
                    return Some(own);
                }
                let heard = self.heard.get(voter)?;
                let fresh = now.saturating_duration_since(heard.at) <= FRESH;
                fresh.then(|| heard.by(now))
            })
            .collect();
        if known.len() * 2 <= voters.len() {
            return None;
        }
        known.sort_unstable();
        known.get((known.len() - 1) / 2).copied()
    }
}

/// The ledger's time now, by what it was and what the clocks say.
fn next(
    ledger: Option<Reading>,
    agreed: Option<Duration>,
    own: Duration,
    now: Instant,
) -> Duration {
    match (ledger, agreed) {
        (None, agreed) => agreed.unwrap_or(own),
        (Some(ledger), None) => ledger.by(now),
        (Some(ledger), Some(agreed)) if agreed >= ledger.time => agreed,
        (Some(ledger), Some(_)) => ledger.time + now.saturating_duration_since(ledger.at) / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    /// Some day.
    const DAY: Duration = Duration::from_secs(1_700_000_000);

    fn reading(at: Instant, time: Duration) -> Reading {
        Reading { at, time }
    }

    fn agreed_by(own: Duration, others: &[Duration], voters: u64) -> Option<Duration> {
        let now = Instant::now();
        let others = others.iter().enumerate();
        let state = State {
            heard: others
                .map(|(n, time)| (n as u64 + 2, reading(now, *time)))
                .collect(),
            ..State::default()
        };
        state.agreed(1, own, &(1..=voters).collect(), now)
    }

    #[test]
    fn one_wrong_clock_decides_nothing() {
        let (early, late) = (DAY - HOUR, DAY + HOUR);
        for wrong in [early, late] {
            assert_eq!(agreed_by(wrong, &[DAY, DAY], 3), Some(DAY));
            assert_eq!(agreed_by(DAY, &[wrong, DAY], 3), Some(DAY));
            assert_eq!(agreed_by(wrong, &[DAY, DAY], 5), Some(DAY));
            assert_eq!(agreed_by(wrong, &[late, DAY, DAY, early], 5), Some(DAY));
        }
        // Of two the earlier: nothing is to happen before its time.
        assert_eq!(agreed_by(late, &[DAY], 3), Some(DAY));
        assert_eq!(agreed_by(DAY, &[late], 3), Some(DAY));
        assert_eq!(agreed_by(early, &[DAY], 3), Some(early));
        assert_eq!(agreed_by(late, &[DAY, DAY, late], 5), Some(DAY));
        // Alone it has nobody else to ask; without most of the others it does not say.
        assert_eq!(agreed_by(late, &[], 1), Some(late));
        assert_eq!(agreed_by(late, &[], 2), None);
        assert_eq!(agreed_by(late, &[late], 5), None);
    }

    #[test]
    fn only_voters_that_were_heard_lately_count() {
        let now = Instant::now();
        let mut state = State::default();
        state.heard.insert(2, reading(now, DAY));
        state.heard.insert(9, reading(now, DAY + HOUR));
        let voters: BTreeSet<_> = (1..=3).collect();
        let late = DAY + 2 * HOUR;
        assert_eq!(state.agreed(1, late, &voters, now), Some(DAY));
        // Who does not vote is not asked, not even by itself.
        assert_eq!(state.agreed(9, late, &voters, now), None);
        // What was heard goes on, for a while.
        let moment = Duration::from_secs(3);
        let then = state.agreed(1, late, &voters, now + moment);
        assert_eq!(then, Some(DAY + moment));
        assert_eq!(state.agreed(1, late, &voters, now + FRESH * 2), None);
    }

    #[test]
    fn time_goes_by_the_median_and_never_back() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let ledger = |time| Some(reading(now, time));
        let (own, then) = (DAY + 5 * HOUR, now + second);
        // A new ledger; one that was off for a while; one that is a little late.
        assert_eq!(next(None, Some(DAY), own, then), DAY);
        assert_eq!(next(ledger(DAY - HOUR), Some(DAY), own, then), DAY);
        assert_eq!(next(ledger(DAY - second), Some(DAY), own, then), DAY);
        // One that is ahead goes on, but slower; so the clocks catch up.
        let ahead = DAY + HOUR;
        assert_eq!(
            next(ledger(ahead), Some(DAY), own, then),
            ahead + second / 2
        );
        // Nobody knows: it goes on by itself, whatever this node's clock says.
        assert_eq!(next(ledger(DAY), None, own, then), DAY + second);
        assert_eq!(next(ledger(DAY), None, DAY - HOUR, then), DAY + second);
        assert_eq!(next(None, None, own, then), own);
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_is_ahead_is_caught_up_with_however_many_batches_there_are() {
        let clocks = Clocks::new(9);
        let voters: BTreeSet<_> = [1, 2].into();
        clocks.shown(millis(DAY + Duration::from_secs(10)));
        let began = Instant::now();
        let mut last = 0;
        let mut met = None;
        for batch in 0..300_000 {
            if batch % 1_000 == 0 {
                let clock = millis(DAY + began.elapsed());
                clocks.heard(1, clock);
                clocks.heard(2, clock);
            }
            let stamp = clocks.stamp(&voters);
            assert!(stamp >= last, "back from {last} to {stamp}");
            last = stamp;
            if met.is_none() && stamp <= millis(DAY + began.elapsed()) {
                met = Some(began.elapsed());
            }
            tokio::time::advance(Duration::from_micros(100)).await;
        }
        let met = met.expect("never caught up").as_millis();
        assert!((19_900..20_100).contains(&met), "caught up in {met} ms");
        assert!(last.abs_diff(millis(DAY + began.elapsed())) < 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_goes_on_from_what_the_ledger_shows() {
        let clocks = Clocks::new(1);
        let voters: BTreeSet<_> = (1..=3).collect();
        clocks.shown(millis(DAY));
        tokio::time::advance(Duration::from_secs(7)).await;
        // No others were heard, and its own clock is that of the machine.
        assert_eq!(clocks.stamp(&voters), millis(DAY) + 7_000);
        clocks.shown(millis(DAY) + 7_000);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(clocks.now_ms(&voters), millis(DAY) + 8_000);
        assert_eq!(clocks.report().ledger_ms, millis(DAY) + 7_000);
        for other in [2, 3] {
            clocks.heard(other, millis(DAY) + 60_000);
        }
        assert_eq!(clocks.stamp(&voters), millis(DAY) + 60_000);
        assert!(clocks.report().ahead_ms > 0);
        // What says nothing is not a clock of 1970.
        clocks.heard(2, 0);
        assert_eq!(clocks.now_ms(&voters), millis(DAY) + 60_000);
    }
}
