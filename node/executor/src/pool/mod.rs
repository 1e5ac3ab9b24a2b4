//! The pool: sandboxes that wait for jobs, and how many of them there are.
//!
//! Making and removing happens in tasks of the pool, never in that of a job: a job that is given up in the middle leaves
//! no half-made container behind. What a job holds is a [`Lease`]; if it is dropped without a word, its sandbox is thrown
//! away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::{Engine, Key, Made, MakeError};
use crate::sandbox::Link;

/// How long a sandbox that nobody asked to keep warm stays after its last job.
const IDLE: Duration = Duration::from_secs(60);

/// How many sandboxes are made ahead of need at one time: more would slow each other, and the jobs, down.
const AHEAD: usize = 2;

/// Pauses between attempts to make a sandbox ahead of need that fails.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// How many sandboxes, and of which kind.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Sandboxes in all.
    pub(crate) capacity: usize,
    /// Jobs that one serves.
    pub(crate) max_jobs: u32,
    /// Kept warm, in this order.
    pub(crate) warm: Vec<(Key, usize)>,
}

/// The pool; a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    engine: Engine,
    plan: Plan,
    state: Mutex<State>,
    /// Something changed that somebody may wait for.
    changed: Notify,
    /// The upkeep has something to do.
    work: Notify,
    tasks: TaskTracker,
    closing: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Sandbox>,
    /// Per key: with a job, or being cleaned after one.
    busy: BTreeMap<Key, usize>,
    /// Per key: of those that are busy, with the last job that they serve. Their successors are made meanwhile.
    worn: BTreeMap<Key, usize>,
    /// Per key: being made for the pool; jobs may wait for these.
    ahead: BTreeMap<Key, usize>,
    /// Per key: being made for a job.
    to_order: BTreeMap<Key, usize>,
    /// Per key: jobs that wait for one that is made ahead.
    waiting: BTreeMap<Key, usize>,
    failing: BTreeMap<Key, Failing>,
    discarded: u64,
}

#[derive(Debug)]
struct Failing {
    pause: Duration,
    until: Instant,
}

/// A sandbox of the pool.
#[derive(Debug)]
struct Sandbox {
    key: Key,
    made: Made,
    jobs: u32,
    /// It serves its last job.
    worn: bool,
    idle_since: Instant,
}

/// A sandbox in the hands of a job.
#[derive(Debug)]
pub(crate) struct Lease {
    sandbox: Option<Sandbox>,
    pool: Pool,
}

/// What to do for somebody who wants a sandbox.
enum Decision {
    Take(Sandbox),
    Make { evicted: Option<Sandbox> },
    WaitForWarm,
    WaitForRoom,
}

impl Pool {
    pub(crate) fn new(engine: Engine, plan: Plan) -> Self {
        Self {
            shared: Arc::new(Shared {
                engine,
                plan,
                state: Mutex::default(),
                changed: Notify::new(),
                work: Notify::new(),
                tasks: TaskTracker::new(),
                closing: CancellationToken::new(),
            }),
        }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something did, the counts may be off by one, which is no danger.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox for this key: a warm one if there is one. May be dropped while it waits.
    pub(crate) async fn acquire(&self, key: &Key) -> Result<Lease, MakeError> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if self.shared.closing.is_cancelled() {
                return Err(MakeError::Unreachable("the node is shutting down".into()));
            }
            let decision = self.state().decide(key, self.shared.plan.capacity);
            match decision {
                Decision::Take(mut sandbox) => {
                    let lease = if sandbox.made.link.is_alive() {
                        return Ok(self.lease(sandbox));
                    } else {
                        self.lease(sandbox)
                    };
                    lease.discard("it has ended");
                }
                Decision::Make { evicted } => {
                    if let Some(sandbox) = evicted {
                        self.remove(sandbox.made);
                    }
                    return self.make_to_order(key).await;
                }
                Decision::WaitForWarm => {
                    let _waiting = Waiting::new(self, key);
                    changed.await;
                }
                Decision::WaitForRoom => changed.await,
            }
        }
    }

    fn lease(&self, sandbox: Sandbox) -> Lease {
        Lease {
            sandbox: Some(sandbox),
            pool: self.clone(),
        }
    }

    /// Makes a sandbox for a job that waits for it. Should the job go away meanwhile, the pool keeps the sandbox.
    async fn make_to_order(&self, key: &Key) -> Result<Lease, MakeError> {
        let (sender, receiver) = oneshot::channel();
        let (pool, key) = (self.clone(), key.clone());
        self.shared.tasks.spawn(async move {
            let result = pool.shared.engine.make(&key).await;
            {
                let mut state = pool.state();
                decrease(&mut state.to_order, &key);
                if result.is_ok() {
                    *state.busy.entry(key.clone()).or_default() += 1;
                }
            }
            let result = result.map(|made| pool.lease(Sandbox::new(key, made)));
            if let Err(Ok(lease)) = sender.send(result) {
                lease.keep();
            }
            pool.shared.changed.notify_waiters();
        });
        receiver
            .await
            .unwrap_or_else(|_| Err(MakeError::Other("making it was given up".into())))
    }

    /// Makes a sandbox ahead of need. The caller has counted it in `ahead`.
    fn make_ahead(&self, key: Key) {
        let pool = self.clone();
        self.shared.tasks.spawn(async move {
            let result = pool.shared.engine.make(&key).await;
            {
                let mut state = pool.state();
                decrease(&mut state.ahead, &key);
                match result {
                    Ok(made) => {
                        state.failing.remove(&key);
                        state.idle.push(Sandbox::new(key, made));
                    }
                    Err(error) => {
                        let failing = state.failing.entry(key.clone()).or_insert_with(|| {
                            tracing::warn!(key.image, key.memory_kb, "{error}");
                            Failing {
                                pause: RETRY_FIRST,
                                until: Instant::now(),
                            }
                        });
                        failing.until = Instant::now() + failing.pause;
                        failing.pause = (failing.pause * 2).min(RETRY_MOST);
                    }
                }
            }
            pool.shared.changed.notify_waiters();
            pool.shared.work.notify_one();
        });
    }

    fn remove(&self, made: Made) {
        let pool = self.clone();
        self.shared.tasks.spawn(async move {
            pool.shared.engine.remove(made).await;
        });
    }

    /// Runs something to its end, whatever becomes of the job that it belongs to; a shutdown waits for it.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.shared.tasks.spawn(work);
    }

    /// Looks after the pool once: throws away what has ended or is idle for long, makes what is missing.
    pub(crate) fn tend(&self) {
        let mut gone = Vec::new();
        let mut missing = Vec::new();
        {
            let mut state = self.state();
            let now = Instant::now();
            let plan = &self.shared.plan;
            for mut sandbox in std::mem::take(&mut state.idle) {
                let wanted = plan.warm.iter().any(|(key, _)| *key == sandbox.key);
                let expired = !wanted && now.duration_since(sandbox.idle_since) > IDLE;
                if expired || !sandbox.made.link.is_alive() {
                    state.discarded += 1;
                    gone.push(sandbox.made);
                } else {
                    state.idle.push(sandbox);
                }
            }
            if !self.shared.closing.is_cancelled() {
                while let Some(key) = state.missing(plan, now) {
                    *state.ahead.entry(key.clone()).or_default() += 1;
                    missing.push(key);
                }
            }
        }
        for made in gone {
            self.remove(made);
        }
        for key in missing {
            self.make_ahead(key);
        }
    }

    /// Waits for the end.
    pub(crate) async fn closed(&self) {
        self.shared.closing.cancelled().await;
    }

    /// Waits until [`tend`](Self::tend) has something to do.
    pub(crate) async fn work(&self) {
        self.shared.work.notified().await;
    }

    /// The engine is back: what failed before may be tried at once.
    pub(crate) fn forgive(&self) {
        self.state().failing.clear();
        self.shared.work.notify_one();
    }

    /// How many sandboxes there are, by state; `discarded` counts since the start.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let state = self.state();
        let sum = |counts: &BTreeMap<Key, usize>| counts.values().sum::<usize>() as u64;
        BTreeMap::from([
            ("warm".to_owned(), state.idle.len() as u64),
            ("busy".to_owned(), sum(&state.busy)),
            (
                "starting".to_owned(),
                sum(&state.ahead) + sum(&state.to_order),
            ),
            ("discarded".to_owned(), state.discarded),
        ])
    }

    /// Removes every sandbox, and waits until they are gone.
    pub(crate) async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.changed.notify_waiters();
        let idle = std::mem::take(&mut self.state().idle);
        for sandbox in idle {
            self.remove(sandbox.made);
        }
        // What is busy goes at once, by its labels, and its jobs notice.
        self.shared.engine.remove_all().await;
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        // What was being made meanwhile.
        let late = std::mem::take(&mut self.state().idle);
        for sandbox in late {
            self.shared.engine.remove(sandbox.made).await;
        }
        self.shared.engine.remove_all().await;
    }
}

impl State {
    fn total(&self) -> usize {
        self.idle.len()
            + [&self.busy, &self.ahead, &self.to_order]
                .iter()
                .flat_map(|counts| counts.values())
                .sum::<usize>()
    }

    /// How many of a kind there are, or will be when what runs has ended.
    fn of(&self, key: &Key) -> usize {
        let all = self
            .idle
            .iter()
            .filter(|sandbox| sandbox.key == *key)
            .count()
            + [&self.busy, &self.ahead, &self.to_order]
                .iter()
                .filter_map(|counts| counts.get(key))
                .sum::<usize>();
        all.saturating_sub(self.worn.get(key).copied().unwrap_or(0))
    }

    fn decide(&mut self, key: &Key, capacity: usize) -> Decision {
        // The one used last: its memory is the most likely to be in the processor's caches.
        if let Some(index) = self.idle.iter().rposition(|sandbox| sandbox.key == *key) {
            *self.busy.entry(key.clone()).or_default() += 1;
            return Decision::Take(self.idle.remove(index));
        }
        let count = |counts: &BTreeMap<Key, usize>| counts.get(key).copied().unwrap_or(0);
        if count(&self.ahead) > count(&self.waiting) {
            return Decision::WaitForWarm;
        }
        let evicted = if self.total() < capacity {
            None
        } else if self.idle.is_empty() {
            return Decision::WaitForRoom;
        } else {
            // The one that has been idle longest.
            self.discarded += 1;
            Some(self.idle.remove(0))
        };
        *self.to_order.entry(key.clone()).or_default() += 1;
        Decision::Make { evicted }
    }

    /// The next key of which a sandbox should be made ahead of need.
    fn missing(&self, plan: &Plan, now: Instant) -> Option<Key> {
        if self.total() >= plan.capacity || self.ahead.values().sum::<usize>() >= AHEAD {
            return None;
        }
        // One of each first.
        let lacks = |least: fn(usize) -> usize| {
            plan.warm.iter().find(|(key, wanted)| {
                let failing = self.failing.get(key).is_some_and(|f| f.until > now);
                !failing && self.of(key) < least(*wanted)
            })
        };
        lacks(|wanted| wanted.min(1))
            .or_else(|| lacks(|wanted| wanted))
            .map(|(key, _)| key.clone())
    }
}

impl Sandbox {
    fn new(key: Key, made: Made) -> Self {
        Self {
            key,
            made,
            jobs: 0,
            worn: false,
            idle_since: Instant::now(),
        }
    }
}

impl Lease {
    /// The talk with the sandbox's warden.
    pub(crate) fn link(&mut self) -> Option<&mut Link> {
        self.sandbox.as_mut().map(|sandbox| &mut sandbox.made.link)
    }

    /// The sandbox's name at the engine.
    pub(crate) fn id(&self) -> &str {
        self.sandbox
            .as_ref()
            .map_or("", |sandbox| sandbox.made.id.as_str())
    }

    /// A job is about to run in it.
    pub(crate) fn count_job(&mut self) {
        let Some(sandbox) = &mut self.sandbox else {
            return;
        };
        sandbox.jobs += 1;
        if sandbox.jobs >= self.pool.shared.plan.max_jobs {
            sandbox.worn = true;
            let mut state = self.pool.state();
            *state.worn.entry(sandbox.key.clone()).or_default() += 1;
            drop(state);
            self.pool.shared.work.notify_one();
        }
    }

    /// Gives the sandbox back, clean.
    pub(crate) fn keep(mut self) {
        let Some(mut sandbox) = self.sandbox.take() else {
            return;
        };
        let pool = self.pool.clone();
        if sandbox.worn {
            self.sandbox = Some(sandbox);
            return self.discard("it has served its jobs");
        }
        let mut state = pool.state();
        decrease(&mut state.busy, &sandbox.key);
        sandbox.idle_since = Instant::now();
        state.idle.push(sandbox);
        drop(state);
        pool.shared.changed.notify_waiters();
    }

    /// Throws the sandbox away. If it was one of a kind that is kept warm, another is made.
    pub(crate) fn discard(mut self, reason: &str) {
        self.throw_away(reason);
    }

    fn throw_away(&mut self, reason: &str) {
        let Some(sandbox) = self.sandbox.take() else {
            return;
        };
        tracing::debug!(sandbox = sandbox.made.id, reason, "discarding a sandbox");
        {
            let mut state = self.pool.state();
            decrease(&mut state.busy, &sandbox.key);
            if sandbox.worn {
                decrease(&mut state.worn, &sandbox.key);
            }
            state.discarded += 1;
        }
        self.pool.remove(sandbox.made);
        self.pool.shared.changed.notify_waiters();
        self.pool.shared.work.notify_one();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.throw_away("its job was given up");
    }
}

/// Counts a job that waits for a sandbox that is being made ahead of need.
struct Waiting<'a> {
    pool: &'a Pool,
    key: &'a Key,
}

impl<'a> Waiting<'a> {
    fn new(pool: &'a Pool, key: &'a Key) -> Self {
        *pool.state().waiting.entry(key.clone()).or_default() += 1;
        Self { pool, key }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        decrease(&mut self.pool.state().waiting, self.key);
    }
}

fn decrease(counts: &mut BTreeMap<Key, usize>, key: &Key) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}
