//! The levels of the queue, and whose turn it is when several of them wait.
//!
//! Each level is a queue of its own, in which the owners have their turns ([`crate::rounds`]), and what is put back goes to the front of its level. Of the
//! levels that wait, high gets sixteen turns for four of normal and one of low, so that a high job passes everything that
//! is below it, and yet nobody starves: whoever is first in the low level waits for some twenty jobs of the others, however
//! many come after it.
//!
//! Turns are kept as self-clocked fair queueing keeps them: the first job of each level has a tag, the tag of what its level
//! was served last plus the level's stride; the smallest tag is next, and the clock is the tag of who was served last. A
//! level that has been empty comes back at the clock, not at its old tag, and so does one that nobody could run for a while:
//! turns that were not wanted are not saved up. Where only one level waits nothing is kept at all, so a cluster whose jobs
//! are all normal has the queue that it had before there were levels.

use serde::{Deserialize, Serialize};

use crate::keys;

/// Which level of the queue a job waits in.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before the others.
    High,
    /// What a job has that does not say otherwise.
    #[default]
    Normal,
    /// When the others leave room, and in one of twenty-one turns.
    Low,
}

impl Priority {
    /// All levels, the first to be served first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The word used in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// The level of a word of the API.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|priority| priority.as_str() == name)
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // for serde
    pub(crate) const fn is_normal(&self) -> bool {
        matches!(self, Self::Normal)
    }

    /// What a turn costs a level: the less, the more turns it has.
    const fn stride(self) -> u64 {
        match self {
            Self::High => 1,
            Self::Normal => 4,
            Self::Low => 16,
        }
    }

    /// The places of a level: each has a third of the orders, about a middle of its own, so that places before and after the
    /// middle never reach those of another level. The normal level has the middle that the whole queue had before.
    const fn middle(self) -> u64 {
        match self {
            Self::High => 1 << 62,
            Self::Normal => 1 << 63,
            Self::Low => 3 << 62,
        }
    }

    /// The first order of the level.
    #[must_use]
    pub const fn first_order(self) -> u64 {
        match self {
            Self::High => 0,
            Self::Normal => 3 << 61,
            Self::Low => 5 << 61,
        }
    }

    /// The level of an order.
    #[must_use]
    pub const fn of_order(order: u64) -> Self {
        if order < Self::Normal.first_order() {
            Self::High
        } else if order < Self::Low.first_order() {
            Self::Normal
        } else {
            Self::Low
        }
    }

    /// The places of a language in this level.
    #[must_use]
    pub fn places(self, language: &str) -> keys::Range {
        let to = match self {
            Self::High => keys::queued(language, Self::Normal.first_order()),
            Self::Normal => keys::queued(language, Self::Low.first_order()),
            Self::Low => keys::after_language(language),
        };
        (keys::queued(language, self.first_order()), to)
    }
}

/// Jobs that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// How many.
    pub jobs: u64,
    /// What they weigh, bytes.
    pub bytes: u64,
}

impl Waiting {
    pub(crate) const fn add(&mut self, weight: u64) {
        self.jobs += 1;
        self.bytes += weight;
    }

    /// Saturating: what was queued by an earlier version was not counted here.
    pub(crate) const fn take(&mut self, weight: u64) {
        self.jobs = self.jobs.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(weight);
    }

    /// Saturating for the same reason.
    pub(crate) const fn weighed_anew(&mut self, old: u64, new: u64) {
        self.bytes = self.bytes.saturating_sub(old) + new;
    }
}

/// A level other than the normal one, whose figures are those of the whole queue less these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// Places given away before the middle.
    front: u64,
    /// Places given away from the middle on.
    back: u64,
    /// What waits in it.
    pub waiting: Waiting,
}

impl Level {
    /// The place before all others of the level.
    pub(crate) const fn before(&mut self, priority: Priority) -> u64 {
        self.front += 1;
        priority.middle() - self.front
    }

    /// The place behind all others of the level.
    pub(crate) const fn behind(&mut self, priority: Priority) -> u64 {
        let order = self.next(priority);
        self.back += 1;
        order
    }

    /// The place that the next job would get.
    pub(crate) const fn next(&self, priority: Priority) -> u64 {
        priority.middle() + self.back
    }

    /// For serde.
    pub(crate) fn is_unused(&self) -> bool {
        *self == Self::default()
    }
}

/// Whose turn it is. Numbers only grow, by sixteen a job at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turns {
    /// The clock: the tag of whoever was served last.
    now: u64,
    /// For each level the tag of what it was served last.
    served: [u64; 3],
}

impl Turns {
    /// The tag of a level's job that has `ahead` jobs of the same level before it.
    const fn tag(&self, level: Priority, ahead: u64) -> u64 {
        let stride = level.stride();
        self.served[level as usize].saturating_add(stride.saturating_mul(ahead.saturating_add(1)))
    }

    /// A job enters a level that was empty.
    pub(crate) fn enters(&mut self, level: Priority) {
        let served = &mut self.served[level as usize];
        *served = (*served).max(self.now);
    }

    /// A job leaves its level for a node; `others` are the levels that wait beside its own.
    pub(crate) fn served(&mut self, level: Priority, others: impl Iterator<Item = Priority>) {
        let mut others = others.peekable();
        if others.peek().is_none() {
            return;
        }
        let tag = self.tag(level, 0);
        self.served[level as usize] = tag;
        self.now = self.now.max(tag);
        for other in others {
            // Whoever was passed over although it was its turn, nobody could run: it is next, but once.
            if self.tag(other, 0) < self.now {
                self.served[other as usize] = self.now.saturating_sub(other.stride());
            }
        }
    }

    /// Which of these levels is next.
    pub(crate) fn next(&self, levels: impl Iterator<Item = Priority>) -> Option<Priority> {
        levels.min_by_key(|level| (self.tag(*level, 0), *level))
    }

    /// How many of the jobs that wait in another level have their turn before a job of `level` with `ahead` jobs of its own
    /// level before it.
    #[must_use]
    pub fn passed_by(&self, level: Priority, ahead: u64, other: Priority, waiting: u64) -> u64 {
        let tag = self.tag(level, ahead);
        // Of equal tags the higher level is first.
        let until = if other < level {
            tag
        } else {
            tag.saturating_sub(1)
        };
        let turns = until.saturating_sub(self.served[other as usize]) / other.stride();
        turns.min(waiting)
    }

    /// For serde.
    pub(crate) fn is_unused(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_has_one_level() {
        let (mut high, mut low) = (Level::default(), Level::default());
        assert_eq!(Priority::of_order(0), Priority::High);
        assert_eq!(
            Priority::of_order(high.before(Priority::High)),
            Priority::High
        );
        assert_eq!(
            Priority::of_order(high.behind(Priority::High)),
            Priority::High
        );
        for order in [
            (1 << 63) - 1,
            1 << 63,
            (1 << 63) - (1 << 60),
            (1 << 63) + (1 << 60),
        ] {
            assert_eq!(Priority::of_order(order), Priority::Normal);
        }
        assert_eq!(Priority::of_order(low.before(Priority::Low)), Priority::Low);
        assert_eq!(Priority::of_order(low.behind(Priority::Low)), Priority::Low);
        assert_eq!(Priority::of_order(u64::MAX), Priority::Low);
        for priority in Priority::ALL {
            let order = priority.first_order();
            assert_eq!(Priority::of_order(order), priority);
            assert_eq!(Priority::named(priority.as_str()), Some(priority));
        }
        assert_eq!(Priority::named("High"), None);
    }
}
