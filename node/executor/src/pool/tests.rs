//! The pool with an engine that is none.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::*;
use crate::fake::Fake;

fn pool(fake: &Fake, slots: usize, max_jobs: u32) -> Pool {
    let plan = Plan {
        capacity: 2 * slots,
        slots,
        max_jobs,
        makers: 2,
        kinds: vec![key(0)],
    };
    Pool::new(Engine::Fake(fake.clone()), plan)
}

fn key(number: u8) -> Key {
    Key {
        image: "image".to_owned(),
        memory_kb: number.into(),
    }
}

fn owner(number: u8) -> Owner {
    let name = number.to_string();
    Owner::of(Some(name.as_str()).filter(|_| number > 0))
}

/// Lets everything that can go on go on. What the fake engine does takes a few turns.
async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// The upkeep, as the executor does it.
async fn settle(pool: &Pool, now: Instant) {
    for _ in 0..20 {
        pool.tend(now);
        turns(20).await;
    }
}

fn starts(pool: &Pool, kind: u8, whose: u8) -> JoinHandle<Result<Lease, MakeError>> {
    let pool = pool.clone();
    tokio::spawn(async move { pool.acquire(&key(kind), &owner(whose)).await })
}

#[tokio::test]
async fn a_job_takes_what_becomes_free_before_what_it_ordered() {
    let fake = Fake::new(false);
    let pool = pool(&fake, 2, 100);
    fake.allow(1);
    let mut first = starts(&pool, 0, 0).await.unwrap().unwrap();
    first.count_job();
    let second = starts(&pool, 0, 0);
    turns(10).await;
    assert_eq!(pool.counts()["starting"], 1, "it has ordered one");
    let id = first.id().to_owned();
    first.keep();
    let second = second.await.unwrap().unwrap();
    assert_eq!(second.id(), id);
    // What it ordered is not lost.
    fake.allow(1);
    turns(20).await;
    assert_eq!(pool.counts()["warm"], 1);
    second.keep();
    assert!(pool.stock().is_at_rest());
    assert_eq!(pool.counts()["discarded"], 0);
    pool.close().await;
    assert_eq!(fake.alive(), 0);
}

#[tokio::test]
async fn a_job_that_goes_away_leaves_what_it_ordered() {
    let fake = Fake::new(false);
    let pool = pool(&fake, 2, 100);
    let job = starts(&pool, 0, 1);
    turns(10).await;
    job.abort();
    assert!(job.await.unwrap_err().is_cancelled());
    fake.allow(1);
    turns(20).await;
    assert_eq!(pool.counts()["warm"], 1);
    assert_eq!(fake.alive_of(&key(0)), 1);
    // It is there for anybody.
    let lease = pool.acquire(&key(0), &owner(0)).await.unwrap();
    lease.keep();
    assert!(pool.stock().is_at_rest());
    pool.close().await;
}

#[tokio::test]
async fn a_job_hears_that_nothing_can_be_made() {
    let fake = Fake::new(true);
    fake.fail(true);
    let pool = pool(&fake, 2, 100);
    assert!(pool.acquire(&key(1), &owner(0)).await.is_err());
    assert!(pool.stock().is_at_rest());
    fake.fail(false);
    let lease = pool.acquire(&key(1), &owner(0)).await.unwrap();
    lease.discard(Discard::Unclean);
    assert_eq!(pool.counts()["discarded.unclean"], 1);
    pool.close().await;
    assert_eq!((fake.made(), fake.removed()), (1, 1));
}

#[tokio::test]
async fn those_who_wait_for_room_get_it() {
    let fake = Fake::new(true);
    let pool = pool(&fake, 1, 100);
    let first = pool.acquire(&key(1), &owner(0)).await.unwrap();
    let second = pool.acquire(&key(2), &owner(0)).await.unwrap();
    let third = starts(&pool, 3, 0);
    turns(20).await;
    assert!(!third.is_finished());
    first.keep();
    third.await.unwrap().unwrap().keep();
    second.keep();
    assert_eq!(pool.counts()["discarded.evicted"], 1);
    pool.close().await;
    assert_eq!(fake.alive(), 0);
}

#[tokio::test]
async fn what_is_given_back_while_everything_ends_goes_too() {
    let fake = Fake::new(true);
    let pool = pool(&fake, 2, 100);
    let lease = pool.acquire(&key(0), &owner(0)).await.unwrap();
    pool.close().await;
    assert!(pool.acquire(&key(0), &owner(0)).await.is_err());
    lease.keep();
    assert_eq!(pool.counts()["warm"], 0);
    assert_eq!(fake.alive(), 0);
}

/// Something that happens to a pool.
#[derive(Clone, Debug)]
enum Happens {
    Arrives { kind: u8, whose: u8 },
    GoesAway(usize),
    Runs(usize),
    GivesBack(usize),
    Discards(usize),
    Drops(usize),
    Ends(usize),
    Fails(bool),
    Allows(usize),
    Passes(u64),
    Turns(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    let nth = 0..8_usize;
    prop_oneof![
        8 => (0..4_u8, 0..4_u8).prop_map(|(kind, whose)| Happens::Arrives { kind, whose }),
        1 => nth.clone().prop_map(Happens::GoesAway),
        4 => nth.clone().prop_map(Happens::Runs),
        5 => nth.clone().prop_map(Happens::GivesBack),
        1 => nth.clone().prop_map(Happens::Discards),
        1 => nth.clone().prop_map(Happens::Drops),
        1 => nth.prop_map(Happens::Ends),
        1 => any::<bool>().prop_map(Happens::Fails),
        4 => (1..6_usize).prop_map(Happens::Allows),
        2 => (0..200_u64).prop_map(Happens::Passes),
        8 => (1..12_usize).prop_map(Happens::Turns),
    ]
}

/// A pool, those who use it, and what must be true of them.
struct World {
    fake: Fake,
    pool: Pool,
    now: Instant,
    waiting: Vec<(u8, JoinHandle<Result<Lease, MakeError>>)>,
    running: Vec<(u8, Lease)>,
    /// Who has had a job in which sandbox.
    owners: BTreeMap<String, u8>,
}

impl World {
    async fn apply(&mut self, happens: Happens) {
        let pick = |nth: usize, count: usize| (count > 0).then(|| nth % count);
        match happens {
            Happens::Arrives { kind, whose } => {
                self.waiting.push((whose, starts(&self.pool, kind, whose)));
            }
            Happens::GoesAway(nth) => {
                if let Some(nth) = pick(nth, self.waiting.len()) {
                    let (_, job) = self.waiting.remove(nth);
                    job.abort();
                    // It may just have got one, which is dropped with it.
                    drop(job.await);
                }
            }
            Happens::Runs(nth) => {
                if let Some(nth) = pick(nth, self.running.len()) {
                    let (whose, lease) = &mut self.running[nth];
                    lease.count_job();
                    let before = self.owners.insert(lease.id().to_owned(), *whose);
                    assert!(
                        before.is_none_or(|before| before == *whose),
                        "{before:?} and {whose} met in {}",
                        lease.id()
                    );
                }
            }
            Happens::GivesBack(nth) => {
                if let Some(nth) = pick(nth, self.running.len()) {
                    self.running.remove(nth).1.keep();
                }
            }
            Happens::Discards(nth) => {
                if let Some(nth) = pick(nth, self.running.len()) {
                    self.running.remove(nth).1.discard(Discard::Unclean);
                }
            }
            Happens::Drops(nth) => {
                if let Some(nth) = pick(nth, self.running.len()) {
                    drop(self.running.remove(nth));
                }
            }
            Happens::Ends(nth) => self.fake.end(nth),
            Happens::Fails(failing) => self.fake.fail(failing),
            Happens::Allows(count) => self.fake.allow(count),
            Happens::Passes(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.pool.tend(self.now);
            }
            Happens::Turns(count) => turns(count).await,
        }
        self.collect().await;
        self.check();
    }

    /// Those who have waited and got something.
    async fn collect(&mut self) {
        for (whose, job) in std::mem::take(&mut self.waiting) {
            if !job.is_finished() {
                self.waiting.push((whose, job));
            } else if let Ok(lease) = job.await.unwrap() {
                self.running.push((whose, lease));
            }
        }
    }

    fn check(&self) {
        let counts = self.pool.counts();
        let total = counts["warm"] + counts["busy"] + counts["starting"];
        let capacity = self.pool.plan().capacity as u64;
        assert!(total <= capacity, "{counts:?}");
        let mut ids: Vec<_> = self.running.iter().map(|(_, l)| l.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), self.running.len(), "two jobs have one sandbox");
        assert!(counts["busy"] >= ids.len() as u64);
        let reasons = counts.iter().filter(|(k, _)| k.starts_with("discarded."));
        assert_eq!(reasons.map(|(_, n)| n).sum::<u64>(), counts["discarded"]);
        assert_eq!(self.fake.made(), self.fake.removed() + self.fake.alive());
    }

    async fn end(mut self) {
        self.fake.fail(false);
        self.fake.allow(1000);
        // Everybody gets what they wait for, as long as those who have one give it back.
        while !self.waiting.is_empty() {
            let before = self.waiting.len();
            for _ in 0..1000 {
                turns(5).await;
                self.collect().await;
                if !self.running.is_empty() || self.waiting.len() < before {
                    break;
                }
            }
            let stuck = self.running.is_empty() && self.waiting.len() == before;
            assert!(!stuck, "{before} wait for ever: {:?}", self.pool.counts());
            self.running.drain(..).for_each(|(_, lease)| lease.keep());
        }
        self.running.clear();
        self.now += Duration::from_secs(10);
        self.pool.forgive();
        settle(&self.pool, self.now).await;
        let counts = self.pool.counts();
        assert!(self.pool.stock().is_at_rest(), "{:?}", self.pool.stock());
        assert_eq!(counts["busy"] + counts["starting"], 0);
        assert_eq!(self.fake.alive(), counts["warm"]);
        assert_eq!(self.fake.removed(), counts["discarded"]);
        assert!(self.fake.alive_of(&key(0)) >= 1, "the kind that is kept");
        // Much later there is nothing but that.
        self.now += Duration::from_secs(3600);
        settle(&self.pool, self.now).await;
        assert_eq!(self.pool.counts()["warm"], 1, "{:?}", self.pool.stock());
        self.pool.close().await;
        assert_eq!(self.fake.alive(), 0);
        assert_eq!(self.fake.made(), self.fake.removed());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_nothing_leaks_and_no_owners_meet(
        slots in 1..4_usize,
        max_jobs in prop_oneof![Just(1_u32), Just(3), Just(100)],
        story in prop::collection::vec(happens(), 1..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let fake = Fake::new(false);
            let mut world = World {
                pool: pool(&fake, slots, max_jobs),
                fake,
                now: Instant::now(),
                waiting: Vec::new(),
                running: Vec::new(),
                owners: BTreeMap::new(),
            };
            for event in story {
                world.apply(event).await;
            }
            world.end().await;
        });
    }
}

#[tokio::test]
async fn kinds_come_and_go_at_run_time() {
    let fake = Fake::new(true);
    let pool = pool(&fake, 2, 100);
    let mut now = Instant::now();
    settle(&pool, now).await;
    // The first kind is needed by every slot at the start.
    assert_eq!((fake.alive_of(&key(0)), fake.alive_of(&key(1))), (2, 0));
    pool.keep(vec![key(1), key(2), key(3)]);
    settle(&pool, now).await;
    assert_eq!(fake.alive_of(&key(0)), 0, "given up at once");
    for kind in 1..=3 {
        assert_eq!(fake.alive_of(&key(kind)), 1, "one of each is kept warm");
    }
    // What is in use of a kind that goes is left to its job, and not kept afterwards.
    let lease = pool.acquire(&key(2), &owner(0)).await.unwrap();
    pool.keep(vec![key(3)]);
    settle(&pool, now).await;
    assert_eq!((fake.alive_of(&key(1)), fake.alive_of(&key(2))), (0, 1));
    lease.keep();
    now += Duration::from_secs(600);
    settle(&pool, now).await;
    assert_eq!((fake.alive_of(&key(2)), fake.alive_of(&key(3))), (0, 1));
    // Nor is a job refused whose kind nobody keeps.
    let lease = pool.acquire(&key(7), &owner(0)).await.unwrap();
    lease.keep();
    pool.close().await;
    assert_eq!(fake.alive(), 0);
}
