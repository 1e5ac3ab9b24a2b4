//! Whose turn it is within a level of the queue: the owners' in turn.
//!
//! A job that waits has a place, and places are served in their order. They are given out in rounds, as self-clocked fair
//! queueing gives out its tags: a job's place is in the round after the one that is being served, or after that of its
//! owner's last job in the level, whichever is later. So each round has one job of every owner that waits, and an owner
//! that has a thousand jobs has a place in a thousand rounds, and delays the first job of another one by one job. Within a
//! round those are first who had nothing waiting, and of equals the job with the smaller id, which is the older one.
//!
//! What an owner has had counts for nothing once none of its jobs waits in the level: turns that were not wanted are not
//! saved up, and nothing has to be kept of owners that are not there. Jobs without an owner are one owner's, and where there
//! is only one, rounds are first come, first served.
//!
//! What is put back goes before all rounds, as do the jobs that waited when rounds began: their places, which are the
//! only ones with their number, end where those of the rounds begin.

use serde::{Deserialize, Serialize};

/// The turns of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rounds {
    /// The first place of a round; 0 as long as there are none.
    begin: u64,
    /// The time of the level: the place of what was served last in its turn, and less where others were passed over.
    now: u64,
    /// Jobs that wait in rounds.
    jobs: u64,
    /// Owners whose these are; all without an owner are one.
    owners: u64,
    /// How those stand.
    pub(crate) nobody: Turn,
}

/// How an owner stands in a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Jobs that wait in rounds.
    pub jobs: u64,
    /// The place that its last job got; 0 when none waits.
    pub last: u64,
}

impl Turn {
    /// For serde.
    pub(crate) fn are_unused(turns: &[Self; 3]) -> bool {
        *turns == [Self::default(); 3]
    }
}

/// A round has two kinds of places: the even ones of those who had nothing waiting, and the odd ones of the others.
const fn round(place: u64) -> u64 {
    place >> 1
}

impl Rounds {
    /// Rounds that begin at a place, or right behind it.
    pub(crate) const fn beginning(place: u64) -> Self {
        let begin = place.next_multiple_of(2);
        Self {
            begin,
            now: begin,
            jobs: 0,
            owners: 0,
            nobody: Turn { jobs: 0, last: 0 },
        }
    }

    /// Whether a place is one of a round.
    #[must_use]
    pub const fn have(&self, place: u64) -> bool {
        self.begin > 0 && place >= self.begin
    }

    /// Whether places are given out in rounds.
    #[must_use]
    pub const fn have_begun(&self) -> bool {
        self.begin > 0
    }

    /// Where the places of the rounds begin.
    pub(crate) const fn begin(&self) -> u64 {
        self.begin
    }

    /// Jobs that wait in rounds.
    #[must_use]
    pub const fn jobs(&self) -> u64 {
        self.jobs
    }

    /// Owners whose these are.
    #[must_use]
    pub const fn owners(&self) -> u64 {
        self.owners
    }

    /// The place that the next job of an owner gets.
    #[must_use]
    pub fn next(&self, owner: Turn) -> u64 {
        if owner.jobs == 0 {
            (self.now | 1) + 1
        } else {
            (self.now.max(owner.last) | 1) + 2
        }
    }

    /// Gives an owner's job its place.
    pub(crate) fn enters(&mut self, owner: &mut Turn) -> u64 {
        let place = self.next(*owner);
        self.owners += u64::from(owner.jobs == 0);
        self.jobs += 1;
        owner.jobs += 1;
        owner.last = place;
        place
    }

    /// An owner's job leaves its place.
    pub(crate) const fn leaves(&mut self, owner: &mut Turn) {
        self.jobs = self.jobs.saturating_sub(1);
        owner.jobs = owner.jobs.saturating_sub(1);
        if owner.jobs == 0 {
            owner.last = 0;
            self.owners = self.owners.saturating_sub(1);
        }
    }

    /// A job at a place was given to a node because it was its turn; `first` is the first place of the level that is taken.
    /// Where that is another one, which no node with room can run now, time goes on by a round at most: somebody whose jobs in
    /// one language wait in a thousand rounds must not have those who come afterwards wait for all of them because of one
    /// behind them in another language.
    pub(crate) fn served(&mut self, place: u64, first: u64) {
        if self.have(place) {
            let next_round = self.now + 2;
            let time = if first < place {
                place.min(next_round)
            } else {
                place
            };
            self.now = self.now.max(time);
        }
    }

    /// How many jobs of the rounds go before one at a place, at most, if nothing else comes; `first` is the first place of
    /// a round that is taken, and `own` are the jobs of the same owner that may go before it.
    #[must_use]
    pub fn ahead(&self, place: u64, first: u64, owner: Turn, own: u64) -> u64 {
        let rounds = round(place).saturating_sub(round(first));
        // Whoever had something waiting may be passed in its own round by each of the others. Whoever had not has none of
        // those before it that have a place in the round before.
        let of_each = if place.is_multiple_of(2) {
            rounds.max(1)
        } else {
            rounds + 1
        };
        let others = self.owners.saturating_sub(u64::from(owner.jobs > 0));
        let of_others = others.saturating_mul(of_each);
        own.min(rounds) + of_others.min(self.jobs.saturating_sub(owner.jobs))
    }

    /// For serde.
    pub(crate) fn are_unused(levels: &[Self; 3]) -> bool {
        *levels == [Self::default(); 3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_has_one_place_behind_the_other() {
        let mut rounds = Rounds::beginning(7);
        let mut owner = Turn::default();
        let mut last = 0;
        for n in 0..10 {
            let place = rounds.enters(&mut owner);
            assert!(rounds.have(place) && place > last);
            last = place;
            if n % 3 == 2 {
                rounds.served(place, place);
                for _ in 0..owner.jobs {
                    rounds.leaves(&mut owner);
                }
                assert_eq!(owner, Turn::default());
                assert_eq!((rounds.jobs(), rounds.owners()), (0, 0));
            }
        }
    }

    #[test]
    fn who_comes_has_a_place_in_the_next_round() {
        let mut rounds = Rounds::beginning(0x8000);
        let (mut many, mut one) = (Turn::default(), Turn::default());
        let first = rounds.enters(&mut many);
        let rest: Vec<_> = (0..99).map(|_| rounds.enters(&mut many)).collect();
        let place = rounds.enters(&mut one);
        assert!(place <= first && place < rest[0]);
        assert_eq!((rounds.jobs(), rounds.owners()), (101, 2));
        rounds.served(first, first);
        rounds.leaves(&mut many);
        rounds.served(place, place);
        rounds.leaves(&mut one);
        let again = rounds.enters(&mut one);
        assert!(again > place && again < rest[0], "{again} of {rest:?}");
        assert_eq!(rounds.ahead(again, rest[0], one, 0), 1);
        assert_eq!(rounds.ahead(rest[98], rest[0], many, 98), 99);
    }

    #[test]
    fn whoever_is_served_past_others_does_not_take_time_along() {
        let mut rounds = Rounds::beginning(0x8000);
        let (mut many, mut one) = (Turn::default(), Turn::default());
        let places: Vec<_> = (0..100).map(|_| rounds.enters(&mut many)).collect();
        // The others cannot be run now.
        rounds.served(places[99], places[0]);
        rounds.leaves(&mut many);
        let place = rounds.enters(&mut one);
        assert!(place < places[2], "{place} of {places:?}");
        // Nor does it stand still: what is stuck holds up nobody's turns for ever.
        let before = rounds.next(Turn::default());
        rounds.served(places[98], places[0]);
        assert!(rounds.next(Turn::default()) > before);
    }

    #[test]
    fn before_rounds_begin_there_is_no_place_of_theirs() {
        let none = Rounds::default();
        assert!(!none.have(0) && !none.have(u64::MAX) && !none.have_begun());
        let begun = Rounds::beginning(4);
        assert!(begun.have(4) && !begun.have(3));
    }
}
