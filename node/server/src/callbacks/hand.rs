//! What the leader has in hand: deliveries that wait here to be sent, and those under way. Owners have their turns, and each
//! owner's hosts theirs.
//!
//! Whatever one owner has, the others keep some room: with `n` of them here, none may have more than one part of `n + 1`, of
//! what is sent at one time and of what waits in memory, so that one part is free for whoever comes next. Within an owner a
//! host has its own few places: one that is slow or dead delays only what goes to it.

use std::collections::{HashMap, HashSet, VecDeque};

use quorun_ledger::JobId;

/// Deliveries under way at one time.
pub const AT_ONCE: usize = 256;
/// Those of one owner to one host.
pub const AT_ONCE_TO_ONE: usize = 4;
/// Deliveries of an owner to one host that wait in memory, and those of all; the others are found again in a later turn.
const WAITING_FOR_ONE: usize = 1_000;
const WAITING: usize = 100_000;

/// Whose job it is; nobody's in particular where the cluster has no tokens.
pub type Owner = Option<String>;

/// A delivery that may be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The job whose end it tells.
    pub job: JobId,
    /// Whose it is.
    pub owner: Owner,
    /// To which host it goes.
    pub host: String,
}

/// Everything that is here.
#[derive(Debug, Default)]
pub struct Hand {
    taken: HashSet<JobId>,
    owners: HashMap<Owner, Lane>,
    /// Owners of which something could be sent, in turn.
    turns: VecDeque<Owner>,
    sending: usize,
}

/// What one owner has here.
#[derive(Debug, Default)]
struct Lane {
    hosts: HashMap<String, Host>,
    /// Hosts that something can be sent to, in turn.
    turns: VecDeque<String>,
    waiting: usize,
    sending: usize,
    /// It stands among the owners that have turns.
    in_turn: bool,
}

#[derive(Debug, Default)]
struct Host {
    waiting: VecDeque<JobId>,
    sending: usize,
    /// It stands among those that have turns.
    in_turn: bool,
}

impl Hand {
    /// Whether a delivery waits here, or is under way.
    pub fn has(&self, job: &JobId) -> bool {
        self.taken.contains(job)
    }

    /// How many are under way.
    pub const fn sending(&self) -> usize {
        self.sending
    }

    /// What each of so many owners may have of a number.
    fn share(of: usize, owners: usize) -> usize {
        (of / (owners + 1)).max(1)
    }

    /// Takes a delivery to its owner's others, unless it is there already, or too many are.
    pub fn take(&mut self, job: JobId, owner: Owner, host: String) {
        let owners = self.owners.len() + usize::from(!self.owners.contains_key(&owner));
        let share = Self::share(WAITING, owners);
        if let Some(lane) = self.owners.get(&owner)
            && (lane.waiting >= share
                || lane
                    .hosts
                    .get(&host)
                    .is_some_and(|host| host.waiting.len() >= WAITING_FOR_ONE))
        {
            return;
        }
        if !self.taken.insert(job) {
            return;
        }
        let lane = self.owners.entry(owner.clone()).or_default();
        lane.waiting += 1;
        lane.hosts
            .entry(host.clone())
            .or_default()
            .waiting
            .push_back(job);
        lane.offer(host);
        self.offer(owner);
    }

    /// Puts an owner behind the others that have turns, if something of it can be sent.
    fn offer(&mut self, name: Owner) {
        if let Some(lane) = self.owners.get_mut(&name)
            && !lane.in_turn
            && !lane.turns.is_empty()
        {
            lane.in_turn = true;
            self.turns.push_back(name);
        }
    }

    /// What may be sent now, one of each owner in turn; it counts as under way.
    pub fn next(&mut self) -> Vec<Turn> {
        let share = Self::share(AT_ONCE, self.owners.len());
        let mut next = Vec::new();
        // Owners in a row that have their share under way: when all have, there is nothing to be done.
        let mut full = 0;
        while self.sending < AT_ONCE
            && full < self.turns.len()
            && let Some(owner) = self.turns.pop_front()
        {
            let Some(lane) = self.owners.get_mut(&owner) else {
                continue;
            };
            if lane.sending >= share {
                full += 1;
                self.turns.push_back(owner);
                continue;
            }
            full = 0;
            lane.in_turn = false;
            if let Some((job, host)) = lane.next() {
                self.sending += 1;
                next.push(Turn {
                    job,
                    owner: owner.clone(),
                    host,
                });
            }
            self.offer(owner);
        }
        next
    }

    /// A delivery is no longer under way. If it is due again, or still, the ledger says so.
    pub fn sent(&mut self, turn: &Turn) {
        self.taken.remove(&turn.job);
        self.sending -= 1;
        if let Some(lane) = self.owners.get_mut(&turn.owner) {
            lane.sent(&turn.host);
            if lane.hosts.is_empty() {
                self.owners.remove(&turn.owner);
            }
        }
        self.offer(turn.owner.clone());
    }

    /// Another node leads: what is not under way is its business.
    pub fn put_down(&mut self) {
        for lane in self.owners.values_mut() {
            lane.in_turn = false;
            lane.waiting = 0;
            lane.turns.clear();
            for host in lane.hosts.values_mut() {
                host.in_turn = false;
                for job in host.waiting.drain(..) {
                    self.taken.remove(&job);
                }
            }
            lane.hosts.retain(|_, host| host.sending > 0);
        }
        self.turns.clear();
        self.owners.retain(|_, lane| lane.sending > 0);
    }
}

impl Lane {
    /// Puts a host behind the others that have turns, if something can be sent to it.
    fn offer(&mut self, name: String) {
        if let Some(host) = self.hosts.get_mut(&name)
            && !host.in_turn
            && host.sending < AT_ONCE_TO_ONE
            && !host.waiting.is_empty()
        {
            host.in_turn = true;
            self.turns.push_back(name);
        }
    }

    /// The next delivery, of the host whose turn it is.
    fn next(&mut self) -> Option<(JobId, String)> {
        let name = self.turns.pop_front()?;
        let host = self.hosts.get_mut(&name)?;
        host.in_turn = false;
        let job = host.waiting.pop_front()?;
        host.sending += 1;
        self.waiting -= 1;
        self.sending += 1;
        self.offer(name.clone());
        Some((job, name))
    }

    fn sent(&mut self, name: &str) {
        self.sending -= 1;
        if let Some(host) = self.hosts.get_mut(name) {
            host.sending -= 1;
            if host.sending == 0 && host.waiting.is_empty() {
                self.hosts.remove(name);
            }
        }
        self.offer(name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: usize) -> JobId {
        JobId::from_slice(&(number as u128).to_be_bytes()).unwrap()
    }

    fn owner(name: &str) -> Owner {
        Some(name.to_owned())
    }

    /// How many of them are of an owner.
    fn of(turns: &[Turn], name: &str) -> usize {
        let owner = owner(name);
        turns.iter().filter(|turn| turn.owner == owner).count()
    }

    #[test]
    fn a_host_that_takes_none_leaves_the_places_of_the_others() {
        let mut hand = Hand::default();
        for number in 0..1000 {
            hand.take(job(number), None, "dead".to_owned());
        }
        hand.take(job(0), None, "dead".to_owned());
        for number in 1000..1010 {
            hand.take(job(number), None, format!("host{number}"));
        }
        let first = hand.next();
        let dead = |turn: &&Turn| turn.host == "dead";
        assert_eq!(first.len(), 10 + AT_ONCE_TO_ONE);
        assert_eq!(first.iter().filter(dead).count(), AT_ONCE_TO_ONE);
        assert!(hand.next().is_empty());
        for turn in first.iter().filter(|turn| !dead(turn)) {
            hand.sent(turn);
        }
        assert!(hand.next().is_empty(), "the dead host has no more places");
        assert_eq!(hand.owners[&None].hosts.len(), 1);
        // It is taken anew once it is due again.
        let again = first.iter().find(|turn| !dead(turn)).unwrap();
        hand.take(again.job, None, again.host.clone());
        assert_eq!(hand.next(), std::slice::from_ref(again));
        hand.put_down();
        assert_eq!(hand.taken.len(), AT_ONCE_TO_ONE + 1);
        for number in 2000..3000 {
            hand.take(job(number), None, format!("host{number}"));
        }
        hand.next();
        assert_eq!(hand.sending, AT_ONCE / 2, "what one owner may have");
        let under_way: Vec<_> = first.iter().filter(dead).chain([again]).collect();
        for turn in under_way {
            hand.sent(turn);
        }
        assert_eq!(hand.sending, AT_ONCE / 2 - AT_ONCE_TO_ONE - 1);
    }

    #[test]
    fn each_host_has_its_turn_and_none_fills_the_memory() {
        let mut hand = Hand::default();
        for number in 0..10_000 {
            hand.take(job(number), None, "dead".to_owned());
        }
        assert_eq!(hand.taken.len(), WAITING_FOR_ONE);
        // More hosts that take a long time than there are places.
        for number in 0..1_000 {
            hand.take(job(20_000 + number), None, format!("slow{number}"));
        }
        let mut told = HashSet::new();
        for _ in 0..16 {
            let now = hand.next();
            told.extend(now.iter().map(|turn| turn.host.clone()));
            for turn in &now {
                hand.sent(turn);
            }
        }
        assert_eq!(told.len(), 1_001);
        for number in 0..2 * WAITING {
            hand.take(job(100_000 + number), None, format!("other{number}"));
        }
        assert_eq!(hand.taken.len(), WAITING / 2);
    }

    #[test]
    fn an_owner_with_very_many_hosts_delays_no_other() {
        let mut hand = Hand::default();
        for number in 0..20_000 {
            hand.take(job(number), owner("greedy"), format!("slow{number}"));
        }
        let greedy = hand.next();
        assert_eq!((greedy.len(), hand.next().len()), (AT_ONCE / 2, 0));
        // None of those ends, and still the others are told at once.
        for number in 0..100 {
            let name = format!("modest{}", number % 4);
            hand.take(job(100_000 + number), owner(&name), "host".to_owned());
        }
        let modest = hand.next();
        assert_eq!(of(&modest, "greedy"), 0);
        for number in 0..4 {
            assert_eq!(of(&modest, &format!("modest{number}")), AT_ONCE_TO_ONE);
        }
        // One after the other: each is told as often as the greedy one, whatever waits.
        for turn in greedy.iter().chain(&modest) {
            hand.sent(turn);
        }
        let mut sent = greedy.len() + modest.len();
        let mut now = hand.next();
        assert_eq!(of(&now[..5], "greedy"), 1, "{:?}", &now[..5]);
        // All that was taken is sent at some time.
        while !now.is_empty() {
            sent += now.len();
            for turn in &now {
                hand.sent(turn);
            }
            now = hand.next();
        }
        assert_eq!(sent, 20_000 + 100);
    }

    #[test]
    fn whoever_comes_finds_room_whatever_the_others_have() {
        let mut hand = Hand::default();
        let mut number = 0;
        let mut under_way: Vec<Turn> = Vec::new();
        for came in 0..20 {
            let name = format!("owner{came}");
            for _ in 0..40_000 {
                number += 1;
                hand.take(job(number), owner(&name), format!("host{number}"));
            }
            let lane = &hand.owners[&owner(&name)];
            assert!(lane.waiting > 0, "{name} has nothing in memory");
            under_way.extend(hand.next());
            assert!(hand.sending <= AT_ONCE);
            // What is under way ends at some time, and then nobody has more than its share.
            let share = AT_ONCE / (came + 2);
            for turn in std::mem::take(&mut under_way) {
                hand.sent(&turn);
            }
            under_way = hand.next();
            for other in 0..=came {
                let has = of(&under_way, &format!("owner{other}"));
                assert_eq!(has, share, "owner{other} of {came}");
            }
        }
        assert!(hand.taken.len() < 4 * WAITING, "{}", hand.taken.len());
    }
}
