//! What sandboxes there are, and every decision about them. No engine, no clock, no waiting: all of that is the pool's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::demand::{Peak, WINDOW};
use super::discard::Discard;
use crate::engine::{Key, Made};

/// How long a sandbox that is one too many stays after its last job.
const IDLE: Duration = Duration::from_secs(60);

/// How long a sandbox of one owner stays after its last job. Only that owner can use it, but may well come back.
const IDLE_KEYED: Duration = WINDOW;

/// Pauses between attempts to make a sandbox ahead of need that fails.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// How many sandboxes, and of which kind.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Sandboxes in all.
    pub(crate) capacity: usize,
    /// Jobs at one time: the most sandboxes of one kind that are kept warm.
    pub(crate) slots: usize,
    /// Jobs that one serves.
    pub(crate) max_jobs: u32,
    /// Made ahead of need at one time.
    pub(crate) makers: usize,
    /// At least one of each is kept warm; the first is the most wanted.
    pub(crate) kinds: Vec<Key>,
}

impl Plan {
    /// Sandboxes in all, for so many jobs at one time and kinds that are kept warm: beside those in use there is room for as
    /// many as all slots can need of another kind.
    pub(crate) fn capacity(slots: usize, kinds: usize) -> usize {
        slots + slots.max(kinds)
    }

    /// How many of a kind are kept whether they are used or not.
    fn least(&self, key: &Key) -> usize {
        usize::from(self.kinds.contains(key))
    }
}

/// Whose jobs a sandbox serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Those without a key.
    Shared,
    /// Those with this one.
    Keyed(String),
}

impl Owner {
    /// The owner of the jobs with this isolation key.
    pub(crate) fn of(key: Option<&str>) -> Self {
        key.map_or(Self::Shared, |key| Self::Keyed(key.to_owned()))
    }

    fn is_keyed(&self) -> bool {
        matches!(self, Self::Keyed(_))
    }
}

/// A sandbox of the pool.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) key: Key,
    pub(crate) made: Made,
    /// Whose job it has, or has had; nobody's while it is fresh.
    owner: Option<Owner>,
    jobs: u32,
    /// It serves its last job.
    worn: bool,
    /// After this job it will not be there for everybody: it is worn, or an owner's.
    leaving: bool,
    /// Its job counts as demand for sandboxes that are there for everybody.
    counted: bool,
    idle_since: Instant,
}

impl Sandbox {
    fn new(key: Key, made: Made, now: Instant) -> Self {
        Self {
            key,
            made,
            owner: None,
            jobs: 0,
            worn: false,
            leaving: false,
            counted: false,
            idle_since: now,
        }
    }

    /// Whether its job goes on to count as demand.
    pub(crate) fn is_counted(&self) -> bool {
        self.counted
    }

    /// The job that waited for it goes on to count as demand.
    pub(crate) fn count_as_demand(&mut self) {
        self.counted = true;
    }

    fn is_keyed(&self) -> bool {
        self.owner.as_ref().is_some_and(Owner::is_keyed)
    }
}

/// What is known of the sandboxes with one key.
#[derive(Debug, Default)]
struct Kind {
    /// With a job, or being cleaned after one.
    busy: usize,
    /// Of those that are busy: will not be there for everybody afterwards. Their successors are made meanwhile.
    leaving: usize,
    /// Being made.
    making: usize,
    /// Jobs that wait for one and have not ordered one.
    waiting: usize,
    /// Jobs that have one that was, or could have been, there for everybody, or wait for one.
    jobs: usize,
    /// Successors that are not there yet.
    owed: usize,
    /// Jobs, and those that have ended whose successors are not there yet.
    peak: Peak,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    pause: Duration,
    until: Instant,
}

/// A sandbox that is made because a job waits for it.
#[derive(Debug)]
struct Order {
    key: Key,
    owner: Owner,
}

/// What to do for a job that wants a sandbox.
#[derive(Debug)]
pub(crate) enum Decision {
    /// It has one.
    Take(Box<Sandbox>),
    /// One has to be made for it, under this order.
    Make(u64),
    /// It waits until something has changed.
    Wait,
}

/// How much an idle sandbox is worth, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// Only its owner can use it.
    Keyed,
    /// There are more of its kind than were lately needed.
    Surplus,
    /// Lately needed, but not of a kind that is always kept.
    Needed,
    /// Of a kind that is always kept.
    Kept,
}

/// All sandboxes.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    /// The one that was used last at the end.
    idle: Vec<Sandbox>,
    kinds: BTreeMap<Key, Kind>,
    orders: BTreeMap<u64, Order>,
    next_order: u64,
    discarded: BTreeMap<Discard, u64>,
    /// What each image was when a sandbox was last made of it.
    images: BTreeMap<String, String>,
}

impl Stock {
    /// Nothing is there yet. The first kind counts as used by every slot: a burst of jobs may well be what a fresh node
    /// was started for.
    pub(crate) fn new(plan: &Plan, now: Instant) -> Self {
        let mut stock = Self::default();
        if let Some(first) = plan.kinds.first() {
            let peak = &mut stock.kind(first).peak;
            peak.note(now, plan.slots);
            peak.note(now, 0);
        }
        stock
    }

    fn kind(&mut self, key: &Key) -> &mut Kind {
        self.kinds.entry(key.clone()).or_default()
    }

    /// Notes what of a kind is needed now. To be called after every change of it.
    fn note(&mut self, key: &Key, now: Instant) {
        let kind = self.kind(key);
        // What is owed for jobs that still run is counted with them.
        let needed = kind.jobs + kind.owed.saturating_sub(kind.leaving);
        kind.peak.note(now, needed);
    }

    fn total(&self) -> usize {
        let others: usize = self.kinds.values().map(|k| k.busy + k.making).sum();
        self.idle.len() + others
    }

    fn ordered(&self, key: &Key) -> usize {
        self.orders.values().filter(|o| o.key == *key).count()
    }

    /// Being made, and nobody's yet.
    fn ahead(&self, key: &Key) -> usize {
        let making = self.kinds.get(key).map_or(0, |kind| kind.making);
        making.saturating_sub(self.ordered(key))
    }

    /// How many of a kind are there for everybody, or will be when what runs has ended.
    fn available(&self, key: &Key) -> usize {
        let idle = self.idle.iter().filter(|s| s.key == *key && !s.is_keyed());
        let keyed = self.orders.values();
        let keyed = keyed.filter(|o| o.key == *key && o.owner.is_keyed());
        let (others, lost) = self.kinds.get(key).map_or((0, 0), |kind| {
            (kind.busy + kind.making, kind.leaving + keyed.count())
        });
        (idle.count() + others).saturating_sub(lost)
    }

    /// How many of a kind should be available.
    fn target(&self, key: &Key, plan: &Plan, now: Instant) -> usize {
        let peak = self.kinds.get(key).map_or(0, |kind| kind.peak.get(now));
        peak.min(plan.slots).max(plan.least(key))
    }

    /// A job wants a sandbox; it [decides](Self::decide) until it has one or goes [away](Self::leave).
    pub(crate) fn arrive(&mut self, key: &Key, now: Instant) {
        let kind = self.kind(key);
        kind.waiting += 1;
        kind.jobs += 1;
        self.note(key, now);
    }

    /// What a job does that has arrived. What had to give way for it, or has turned out dead, is added to `gone`.
    pub(crate) fn decide(
        &mut self,
        key: &Key,
        owner: &Owner,
        ordered: bool,
        plan: &Plan,
        now: Instant,
        gone: &mut Vec<Made>,
    ) -> Decision {
        while let Some(index) = self.best(key, owner) {
            let mut sandbox = self.idle.remove(index);
            if !sandbox.made.link.is_alive() {
                self.count(Discard::Ended);
                gone.push(sandbox.made);
                continue;
            }
            let was_for_all = !sandbox.is_keyed();
            self.lend(&mut sandbox, owner);
            sandbox.counted = was_for_all;
            let kind = self.kind(key);
            if sandbox.leaving && was_for_all {
                kind.owed += 1;
            }
            return Decision::Take(Box::new(sandbox));
        }
        let waiting = self.kinds.get(key).map_or(0, |kind| kind.waiting);
        if ordered || self.ahead(key) >= waiting {
            return Decision::Wait;
        }
        if self.total() >= plan.capacity && !self.evict(Worth::Kept, plan, now, gone) {
            return Decision::Wait;
        }
        let order = self.next_order;
        self.next_order += 1;
        self.orders.insert(
            order,
            Order {
                key: key.clone(),
                owner: owner.clone(),
            },
        );
        let kind = self.kind(key);
        kind.making += 1;
        kind.waiting = kind.waiting.saturating_sub(1);
        Decision::Make(order)
    }

    /// The idle sandbox for a job: the owner's own before a fresh one, and of those the one used last, whose memory is the
    /// most likely to be in the processor's caches.
    fn best(&self, key: &Key, owner: &Owner) -> Option<usize> {
        let last = |owner: Option<&Owner>| {
            self.idle
                .iter()
                .rposition(|s| s.key == *key && s.owner.as_ref() == owner)
        };
        last(Some(owner)).or_else(|| last(None))
    }

    /// Gives a sandbox to a job.
    fn lend(&mut self, sandbox: &mut Sandbox, owner: &Owner) {
        sandbox.owner = Some(owner.clone());
        sandbox.leaving = owner.is_keyed();
        let leaving = usize::from(sandbox.leaving);
        let kind = self.kind(&sandbox.key);
        kind.busy += 1;
        kind.leaving += leaving;
    }

    /// A job that had arrived has a sandbox, or has gone away.
    pub(crate) fn leave(
        &mut self,
        key: &Key,
        order: Option<u64>,
        counted: bool,
        plan: &Plan,
        now: Instant,
    ) {
        match order {
            // What is being made for it is nobody's then.
            Some(order) => drop(self.orders.remove(&order)),
            None => {
                let kind = self.kind(key);
                kind.waiting = kind.waiting.saturating_sub(1);
            }
        }
        if counted {
            return self.note(key, now);
        }
        let idle = self.idle.iter().any(|sandbox| sandbox.key == *key);
        let kind = self.kind(key);
        kind.jobs = kind.jobs.saturating_sub(1);
        self.note(key, now);
        let kind = self.kind(key);
        if !idle && kind.busy + kind.making == 0 && plan.least(key) == 0 {
            // A mistyped image is not to be tried again and again because jobs have asked for it.
            kind.peak.forget();
        }
    }

    /// A sandbox has been made. It comes back if the job that ordered it still waits.
    pub(crate) fn made(
        &mut self,
        key: &Key,
        order: Option<u64>,
        made: Made,
        now: Instant,
    ) -> Option<Sandbox> {
        let order = order.and_then(|order| self.orders.remove(&order));
        let kind = self.kind(key);
        kind.making = kind.making.saturating_sub(1);
        kind.failing = None;
        if let Some(id) = &made.image_id {
            self.images.insert(key.image.clone(), id.clone());
        }
        let mut sandbox = Sandbox::new(key.clone(), made, now);
        if let Some(order) = order {
            self.lend(&mut sandbox, &order.owner);
            return Some(sandbox);
        }
        let kind = self.kind(key);
        kind.owed = kind.owed.saturating_sub(1);
        self.idle.push(sandbox);
        self.note(key, now);
        None
    }

    /// A sandbox could not be made. Says whether a job waits to hear of it.
    pub(crate) fn not_made(&mut self, key: &Key, order: Option<u64>, now: Instant) -> bool {
        let ordered = order.and_then(|order| self.orders.remove(&order)).is_some();
        let kind = self.kind(key);
        kind.making = kind.making.saturating_sub(1);
        if !ordered {
            kind.owed = kind.owed.saturating_sub(1);
            let failing = kind.failing.get_or_insert(Failing {
                pause: RETRY_FIRST,
                until: now,
            });
            failing.until = now + failing.pause;
            failing.pause = (failing.pause * 2).min(RETRY_MOST);
        }
        self.note(key, now);
        ordered
    }

    /// Whether making a kind ahead of need has failed lately.
    pub(crate) fn is_failing(&self, key: &Key) -> bool {
        self.kinds.get(key).is_some_and(|k| k.failing.is_some())
    }

    /// What failed may be tried again at once.
    pub(crate) fn forgive(&mut self) {
        for kind in self.kinds.values_mut() {
            kind.failing = None;
        }
    }

    /// A job is about to run in a sandbox that it has.
    pub(crate) fn count_job(&mut self, sandbox: &mut Sandbox, plan: &Plan, now: Instant) {
        sandbox.jobs += 1;
        sandbox.worn |= sandbox.jobs >= plan.max_jobs;
        if sandbox.worn && !sandbox.leaving {
            sandbox.leaving = true;
            let kind = self.kind(&sandbox.key);
            kind.leaving += 1;
            kind.owed += 1;
            self.note(&sandbox.key, now);
        }
    }

    /// A job gives its sandbox back, clean. It comes back if it is to be removed.
    pub(crate) fn give_back(&mut self, mut sandbox: Sandbox, now: Instant) -> Option<Sandbox> {
        if sandbox.worn {
            return Some(sandbox);
        }
        self.returned(&mut sandbox, now);
        if sandbox.jobs == 0 {
            sandbox.owner = None;
        }
        sandbox.idle_since = now;
        self.idle.push(sandbox);
        None
    }

    /// A sandbox that a job has is to be removed.
    pub(crate) fn discard(&mut self, mut sandbox: Sandbox, reason: Discard, now: Instant) -> Made {
        self.returned(&mut sandbox, now);
        self.count(reason);
        sandbox.made
    }

    fn returned(&mut self, sandbox: &mut Sandbox, now: Instant) {
        let kind = self.kind(&sandbox.key);
        kind.busy = kind.busy.saturating_sub(1);
        if std::mem::take(&mut sandbox.leaving) {
            kind.leaving = kind.leaving.saturating_sub(1);
        }
        if std::mem::take(&mut sandbox.counted) {
            kind.jobs = kind.jobs.saturating_sub(1);
        }
        self.note(&sandbox.key, now);
    }

    fn count(&mut self, reason: Discard) {
        *self.discarded.entry(reason).or_default() += 1;
    }

    /// Makes room for another sandbox, if there is an idle one that is worth this at most.
    fn evict(&mut self, most: Worth, plan: &Plan, now: Instant, gone: &mut Vec<Made>) -> bool {
        let worth = |(index, sandbox): (usize, &Sandbox)| {
            let worth = if sandbox.is_keyed() {
                Worth::Keyed
            } else if self.available(&sandbox.key) > self.target(&sandbox.key, plan, now) {
                Worth::Surplus
            } else if plan.least(&sandbox.key) == 0 {
                Worth::Needed
            } else {
                Worth::Kept
            };
            (worth, index)
        };
        // Of those that are worth the same, the one that has been idle longest.
        match self.idle.iter().enumerate().map(worth).min() {
            Some((worth, index)) if worth <= most => {
                gone.push(self.idle.remove(index).made);
                self.count(Discard::Evicted);
                true
            }
            _ => false,
        }
    }

    /// Removes what has ended, or has been one too many for a while.
    pub(crate) fn shrink(&mut self, plan: &Plan, now: Instant, gone: &mut Vec<Made>) {
        let mut index = 0;
        // From the one that has been idle longest.
        while index < self.idle.len() {
            let sandbox = &mut self.idle[index];
            let alive = sandbox.made.link.is_alive();
            let idle = now.saturating_duration_since(sandbox.idle_since);
            let sandbox = &self.idle[index];
            let newest = self.images.get(&sandbox.key.image);
            let outdated = matches!(
                (newest, &sandbox.made.image_id),
                (Some(newest), Some(image)) if newest != image
            );
            let reason = if !alive {
                Some(Discard::Ended)
            } else if outdated {
                Some(Discard::Outdated)
            } else if sandbox.is_keyed() {
                (idle >= IDLE_KEYED).then_some(Discard::Idle)
            } else {
                let surplus =
                    || self.available(&sandbox.key) > self.target(&sandbox.key, plan, now);
                (idle >= IDLE && surplus()).then_some(Discard::Idle)
            };
            match reason {
                Some(reason) => {
                    gone.push(self.idle.remove(index).made);
                    self.count(reason);
                }
                None => index += 1,
            }
        }
    }

    /// The next key of which a sandbox is to be made ahead of need; it counts as being made.
    pub(crate) fn grow(&mut self, plan: &Plan, now: Instant, gone: &mut Vec<Made>) -> Option<Key> {
        let ahead: usize = self.kinds.keys().map(|key| self.ahead(key)).sum();
        if ahead >= plan.makers {
            return None;
        }
        let others = self.kinds.keys().filter(|key| plan.least(key) == 0);
        let keys: Vec<&Key> = plan.kinds.iter().chain(others).collect();
        let lacks = |least: &dyn Fn(&Key) -> usize| {
            keys.iter()
                .find(|key| {
                    let kind = self.kinds.get(**key);
                    let failing = kind.and_then(|kind| kind.failing.as_ref());
                    failing.is_none_or(|failing| failing.until <= now)
                        && self.available(key) < least(key)
                })
                .map(|key| (*key).clone())
        };
        // One of each that is always kept comes first, and may take the place of one that is not. What was lately needed
        // may not: two kinds that fight for one place would have sandboxes made for nothing.
        let (key, gives_way) = match lacks(&|key| plan.least(key)) {
            Some(key) => (key, Worth::Needed),
            None => (lacks(&|key| self.target(key, plan, now))?, Worth::Surplus),
        };
        if self.total() >= plan.capacity && !self.evict(gives_way, plan, now, gone) {
            return None;
        }
        self.kind(&key).making += 1;
        Some(key)
    }

    /// Forgets what is no longer of use. To be called when nothing [grows](Self::grow).
    pub(crate) fn settle(&mut self, plan: &Plan, now: Instant) {
        let keys: Vec<Key> = self.kinds.keys().cloned().collect();
        for key in keys {
            // A successor that nobody is going to make is not owed any more.
            let hopeless = self.total() >= plan.capacity || self.is_failing(&key);
            let target = if hopeless {
                0
            } else {
                self.target(&key, plan, now)
            };
            let coming = self.ahead(&key) + target.saturating_sub(self.available(&key));
            let kind = self.kind(&key);
            kind.owed = kind.owed.min(coming);
            self.note(&key, now);
            let kind = self.kind(&key);
            let unused = kind.busy + kind.making + kind.waiting + kind.jobs + kind.owed == 0
                && kind.peak.get(now) == 0;
            if unused && plan.least(&key) == 0 {
                self.kinds.remove(&key);
            }
        }
        let (kinds, idle) = (&self.kinds, &self.idle);
        self.images.retain(|image, _| {
            let mut keys = kinds.keys().chain(idle.iter().map(|s| &s.key));
            keys.any(|key| key.image == *image)
        });
    }

    /// A kind is not kept any more: what is idle of it goes, and that it was needed is forgotten.
    pub(crate) fn give_up(&mut self, key: &Key, gone: &mut Vec<Made>) {
        if let Some(kind) = self.kinds.get_mut(key) {
            kind.peak.forget();
            kind.failing = None;
        }
        let (idle, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.idle)
            .into_iter()
            .partition(|sandbox| sandbox.key == *key);
        self.idle = kept;
        for sandbox in idle {
            self.count(Discard::Evicted);
            gone.push(sandbox.made);
        }
    }

    /// All idle ones, to be removed because everything ends.
    pub(crate) fn clear(&mut self) -> Vec<Made> {
        self.idle.drain(..).map(|sandbox| sandbox.made).collect()
    }

    /// How many there are, by state, and how many were discarded since the start, by reason.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let sum = |count: fn(&Kind) -> usize| self.kinds.values().map(count).sum::<usize>() as u64;
        let mut counts = BTreeMap::from([
            ("warm".to_owned(), self.idle.len() as u64),
            ("busy".to_owned(), sum(|kind| kind.busy)),
            ("starting".to_owned(), sum(|kind| kind.making)),
            ("discarded".to_owned(), self.discarded.values().sum()),
        ]);
        for reason in Discard::ALL {
            let count = self.discarded.get(&reason).copied().unwrap_or(0);
            counts.insert(format!("discarded.{}", reason.as_str()), count);
        }
        counts
    }
}

#[cfg(test)]
impl Stock {
    /// Nobody has, awaits or is owed anything.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.orders.is_empty()
            && self
                .kinds
                .values()
                .all(|k| k.busy + k.leaving + k.making + k.waiting + k.jobs == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Link;

    /// A stock with a clock of its own, whose engine makes what it is told to.
    struct World {
        stock: Stock,
        plan: Plan,
        now: Instant,
        made: usize,
        removed: usize,
        streams: Vec<tokio::io::DuplexStream>,
        image: &'static str,
    }

    fn kind(name: &str) -> Key {
        Key {
            image: name.to_owned(),
            memory_kb: 1,
        }
    }

    fn owner(name: &str) -> Owner {
        Owner::of(Some(name).filter(|name| !name.is_empty()))
    }

    impl World {
        fn new(slots: usize, kinds: &[&str], max_jobs: u32) -> Self {
            let plan = Plan {
                capacity: slots + slots.max(kinds.len()),
                slots,
                max_jobs,
                makers: 2,
                kinds: kinds.iter().map(|name| kind(name)).collect(),
            };
            let now = Instant::now();
            Self {
                stock: Stock::new(&plan, now),
                plan,
                now,
                made: 0,
                removed: 0,
                streams: Vec::new(),
                image: "first",
            }
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }

        /// What is to be made now.
        fn tend(&mut self) -> Vec<Key> {
            let mut gone = Vec::new();
            self.stock.shrink(&self.plan, self.now, &mut gone);
            let mut missing = Vec::new();
            while let Some(key) = self.stock.grow(&self.plan, self.now, &mut gone) {
                missing.push(key);
            }
            self.stock.settle(&self.plan, self.now);
            self.removed += gone.len();
            missing
        }

        fn make(&mut self, key: &Key, order: Option<u64>) -> Option<Sandbox> {
            let (near, far) = tokio::io::duplex(1);
            self.streams.push(far);
            let (reader, writer) = tokio::io::split(near);
            self.made += 1;
            let made = Made {
                id: self.made.to_string(),
                image_id: Some(self.image.to_owned()),
                link: Link::new(reader, writer),
                child: None,
            };
            let sandbox = self.stock.made(key, order, made, self.now);
            assert!(self.stock.total() <= self.plan.capacity);
            sandbox
        }

        /// Looks after everything until there is nothing to do.
        fn rest(&mut self) {
            loop {
                let missing = self.tend();
                if missing.is_empty() {
                    return;
                }
                for key in missing {
                    assert!(self.make(&key, None).is_none());
                }
            }
        }

        /// A second at a time, as on a node.
        fn live(&mut self, seconds: u64) {
            for _ in 0..seconds {
                self.pass(1);
                self.rest();
            }
        }

        /// What a job gets at once; otherwise, whether it has ordered one.
        fn ask(&mut self, name: &str, whose: &str) -> Result<Sandbox, Option<u64>> {
            let (key, owner) = (kind(name), owner(whose));
            self.stock.arrive(&key, self.now);
            let mut gone = Vec::new();
            let (stock, plan) = (&mut self.stock, &self.plan);
            let decision = stock.decide(&key, &owner, false, plan, self.now, &mut gone);
            self.removed += gone.len();
            match decision {
                Decision::Take(sandbox) => {
                    stock.leave(&key, None, sandbox.is_counted(), plan, self.now);
                    let mut sandbox = *sandbox;
                    stock.count_job(&mut sandbox, plan, self.now);
                    Ok(sandbox)
                }
                Decision::Make(order) => Err(Some(order)),
                Decision::Wait => Err(None),
            }
        }

        /// A sandbox with a job in it, made if it has to be.
        fn start(&mut self, name: &str, whose: &str) -> Sandbox {
            let key = kind(name);
            let mut sandbox = match self.ask(name, whose) {
                Ok(sandbox) => return sandbox,
                Err(order) => {
                    assert!(order.is_some(), "there is room");
                    let mut sandbox = self.make(&key, order).unwrap();
                    sandbox.count_as_demand();
                    self.stock.leave(&key, order, true, &self.plan, self.now);
                    sandbox
                }
            };
            self.stock.count_job(&mut sandbox, &self.plan, self.now);
            sandbox
        }

        fn end(&mut self, sandbox: Sandbox) {
            if let Some(worn) = self.stock.give_back(sandbox, self.now) {
                self.stock.discard(worn, Discard::Worn, self.now);
                self.removed += 1;
            }
        }

        fn run(&mut self, name: &str, whose: &str) -> String {
            let sandbox = self.start(name, whose);
            let id = sandbox.made.id.clone();
            self.end(sandbox);
            self.rest();
            id
        }

        fn idle(&self, name: &str) -> usize {
            let key = kind(name);
            self.stock.idle.iter().filter(|s| s.key == key).count()
        }
    }

    #[test]
    fn a_fresh_node_is_ready_for_a_burst_and_an_idle_one_is_small() {
        let mut world = World::new(4, &["a", "b"], 100);
        world.rest();
        assert_eq!((world.idle("a"), world.idle("b")), (4, 1));
        world.live(290);
        assert_eq!((world.idle("a"), world.idle("b")), (4, 1));
        world.live(200);
        assert_eq!((world.idle("a"), world.idle("b")), (1, 1));
    }

    #[test]
    fn one_of_each_comes_before_more_of_the_first() {
        let mut world = World::new(4, &["a", "b"], 100);
        assert_eq!(world.tend(), [kind("a"), kind("b")], "two at a time");
    }

    #[test]
    fn what_was_used_at_one_time_stays_warm_for_five_minutes() {
        let mut world = World::new(4, &["a"], 100);
        world.rest();
        world.live(1000);
        assert_eq!(world.idle("a"), 1);
        let jobs: Vec<_> = (0..3).map(|_| world.start("a", "")).collect();
        jobs.into_iter().for_each(|job| world.end(job));
        world.live(300);
        assert_eq!(world.idle("a"), 3);
        world.live(130);
        assert_eq!(world.idle("a"), 1);
        assert_eq!(world.stock.counts()["discarded.idle"], 5);
    }

    #[test]
    fn one_after_the_other_needs_one() {
        let mut world = World::new(4, &["a"], 100);
        world.live(1000);
        let made = world.made;
        for _ in 0..50 {
            world.run("a", "");
        }
        assert_eq!((world.idle("a"), world.made), (1, made));
    }

    #[test]
    fn what_ends_is_replaced_up_to_the_demand() {
        let mut world = World::new(3, &["a"], 100);
        world.rest();
        world.streams.clear();
        world.rest();
        assert_eq!((world.idle("a"), world.made), (3, 6));
        assert_eq!(world.stock.counts()["discarded.ended"], 3);
    }

    #[test]
    fn an_image_that_has_changed_is_followed() {
        let mut world = World::new(3, &["a"], 100);
        world.rest();
        world.image = "second";
        let jobs: Vec<_> = (0..4).map(|_| world.start("a", "")).collect();
        world.rest();
        jobs.into_iter().for_each(|job| world.end(job));
        world.rest();
        let ids = world.stock.idle.iter().map(|s| s.made.image_id.clone());
        assert!(ids.clone().count() >= 3 && ids.flatten().all(|id| id == "second"));
        assert_eq!(world.stock.counts()["discarded.outdated"], 3);
    }

    #[test]
    fn a_kind_that_nobody_configured_is_kept_while_it_is_used() {
        let mut world = World::new(2, &["a"], 100);
        world.live(1000);
        world.run("x", "");
        world.streams.clear();
        world.rest();
        assert_eq!((world.idle("a"), world.idle("x")), (1, 1), "made again");
        world.live(500);
        assert_eq!((world.idle("a"), world.idle("x")), (1, 0));
        assert!(!world.stock.kinds.contains_key(&kind("x")), "forgotten");
    }

    #[test]
    fn kinds_that_do_not_all_fit_do_not_fight() {
        let mut world = World::new(2, &["a", "b"], 100);
        world.live(1000);
        for n in 0..20 {
            world.run(&format!("x{}", n % 5), "");
        }
        let made = world.made;
        world.live(100);
        assert_eq!(world.made, made, "nothing is made without a job");
        assert!(world.idle("a") >= 1 && world.idle("b") >= 1, "kept");
    }

    #[test]
    fn an_image_that_cannot_be_had_is_not_tried_without_a_job() {
        let mut world = World::new(2, &["a"], 100);
        world.rest();
        let key = kind("mistyped");
        let order = world.ask("mistyped", "").unwrap_err();
        assert!(order.is_some());
        let waits = world.stock.not_made(&key, order, world.now);
        assert!(waits, "the job is told");
        world
            .stock
            .leave(&key, order, false, &world.plan, world.now);
        for _ in 0..100 {
            world.pass(1);
            assert_eq!(world.tend(), []);
        }
    }

    #[test]
    fn a_configured_image_that_cannot_be_had_is_tried_less_and_less_often() {
        let mut world = World::new(1, &["a"], 100);
        let mut tries = 0;
        for _ in 0..600 {
            world.pass(1);
            for key in world.tend() {
                tries += 1;
                let waits = world.stock.not_made(&key, None, world.now);
                assert!(!waits);
            }
        }
        assert!((10..20).contains(&tries), "{tries}");
        world.stock.forgive();
        world.rest();
        assert_eq!(world.idle("a"), 1);
    }

    #[test]
    fn the_successor_of_a_worn_one_is_made_while_its_last_job_runs() {
        let mut world = World::new(1, &["a"], 1);
        world.rest();
        let job = world.start("a", "");
        assert_eq!(world.tend(), [kind("a")]);
        world.make(&kind("a"), None);
        let next = world.ask("a", "");
        assert!(next.is_ok(), "while the first one still runs");
        world.end(job);
    }

    #[test]
    fn spares_grow_where_jobs_come_faster_than_successors() {
        let mut world = World::new(4, &["a"], 1);
        world.live(1000);
        assert_eq!(world.idle("a"), 1);
        // Far between: one is enough.
        for _ in 0..3 {
            world.run("a", "");
            world.pass(10);
        }
        assert_eq!(world.idle("a"), 1);
        // The second comes before the first one's successor is there.
        let first = world.start("a", "");
        let coming = world.tend();
        world.end(first);
        world.stock.arrive(&kind("a"), world.now);
        for key in coming {
            world.make(&key, None);
        }
        let (key, owner) = (kind("a"), Owner::Shared);
        let (stock, plan) = (&mut world.stock, &world.plan);
        let taken = stock.decide(&key, &owner, false, plan, world.now, &mut Vec::new());
        let Decision::Take(mut second) = taken else {
            panic!("{taken:?}")
        };
        stock.leave(&key, None, true, plan, world.now);
        stock.count_job(&mut second, plan, world.now);
        world.end(*second);
        world.rest();
        assert_eq!(world.idle("a"), 2);
    }

    #[test]
    fn a_sandbox_serves_one_owner() {
        let mut world = World::new(4, &["a"], 100);
        world.rest();
        let first = world.run("a", "one");
        assert_eq!(world.run("a", "one"), first, "its own");
        let second = world.run("a", "two");
        assert_ne!(second, first);
        let shared = world.run("a", "");
        assert!(shared != first && shared != second);
        assert_eq!(world.run("a", ""), shared, "before a fresh one");
        for (whose, id) in [("one", &first), ("two", &second), ("", &shared)] {
            assert_eq!(world.run("a", whose), *id, "{whose}");
        }
        // A job without a key never gets an owner's, even if there is nothing else.
        let all: Vec<_> = (0..4).map(|_| world.start("a", "")).collect();
        let ids: Vec<_> = all.iter().map(|s| s.made.id.clone()).collect();
        assert!(!ids.contains(&first) && !ids.contains(&second), "{ids:?}");
    }

    #[test]
    fn one_that_has_served_everybody_is_no_owners() {
        let mut world = World::new(1, &["a"], 100);
        world.rest();
        let shared = world.run("a", "");
        assert_ne!(world.run("a", "one"), shared);
    }

    #[test]
    fn a_job_that_never_ran_leaves_its_sandbox_fresh() {
        let mut world = World::new(1, &["a"], 100);
        world.rest();
        let key = kind("a");
        world.stock.arrive(&key, world.now);
        let one = owner("one");
        let (stock, plan) = (&mut world.stock, &world.plan);
        let taken = stock.decide(&key, &one, false, plan, world.now, &mut Vec::new());
        let Decision::Take(sandbox) = taken else {
            panic!("{taken:?}")
        };
        let id = sandbox.made.id.clone();
        stock.leave(&key, None, true, plan, world.now);
        assert!(stock.give_back(*sandbox, world.now).is_none());
        assert_eq!(world.run("a", ""), id);
        assert!(world.stock.is_at_rest());
    }

    #[test]
    fn those_of_owners_do_not_count_as_warm() {
        let mut world = World::new(2, &["a"], 100);
        world.live(1000);
        assert_eq!(world.idle("a"), 1);
        let job = world.start("a", "one");
        assert_eq!(world.tend(), [kind("a")], "a successor for everybody");
        world.make(&kind("a"), None);
        world.end(job);
        world.rest();
        assert_eq!(world.idle("a"), 2);
        world.live(200);
        assert_eq!(world.idle("a"), 2, "its owner may come back");
        world.live(300);
        assert_eq!(world.idle("a"), 1);
    }

    #[test]
    fn those_of_other_owners_make_room() {
        let mut world = World::new(1, &["a"], 100);
        world.rest();
        let first = world.run("a", "one");
        // One of an owner and a fresh one: that is all there is room for.
        assert_eq!((world.idle("a"), world.plan.capacity), (2, 2));
        let second = world.run("a", "two");
        assert_ne!(second, first);
        assert_eq!(world.idle("a"), 2);
        assert!(world.stock.counts()["discarded.evicted"] >= 1);
        assert_ne!(world.run("a", "one"), first, "it had to go");
    }

    #[test]
    fn owners_that_take_turns_keep_their_sandboxes_where_there_is_room() {
        let mut world = World::new(3, &["a"], 100);
        world.live(1000);
        for _ in 0..3 {
            world.run("a", "one");
            world.run("a", "two");
        }
        let made = world.made;
        for _ in 0..50 {
            world.run("a", "one");
            world.run("a", "two");
        }
        assert_eq!(world.made, made);
    }

    #[test]
    fn a_job_waits_for_what_is_coming_before_it_orders() {
        let mut world = World::new(2, &["a"], 100);
        assert_eq!(world.tend().len(), 2);
        assert!(matches!(world.ask("a", ""), Err(None)));
        assert!(matches!(world.ask("a", ""), Err(None)));
        assert!(matches!(world.ask("a", ""), Err(Some(_))), "only two come");
    }

    #[test]
    fn a_full_house_makes_wait() {
        let mut world = World::new(1, &["a"], 100);
        let held = [world.start("x", ""), world.start("y", "")];
        assert!(matches!(world.ask("a", ""), Err(None)));
        held.into_iter().for_each(|job| world.end(job));
        assert!(matches!(world.ask("a", ""), Err(Some(_))), "one gives way");
        assert_eq!(world.removed, 1);
    }
}
