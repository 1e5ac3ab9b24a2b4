//! The pool: sandboxes that wait for jobs, and how many of them there are.
//!
//! - [`stock`] knows what there is and decides; it is plain data
//! - [`demand`] remembers how many were needed lately
//! - [`lease`] is what a job has of it; if it is dropped without a word, its sandbox is thrown away
//! - [`discard`] says why sandboxes are thrown away
//!
//! Making and removing happens in tasks of the pool, never in that of a job: a job that is given up in the middle leaves
//! no half-made container behind.

mod demand;
mod discard;
mod lease;
mod stock;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::discard::Discard;
pub(crate) use self::lease::Lease;
use self::lease::{Delivery, Wish};
use self::stock::{Decision, Sandbox, Stock};
pub(crate) use self::stock::{Owner, Plan};
use crate::engine::{Engine, Key, Made, MakeError};

/// The pool; a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    engine: Engine,
    plan: RwLock<Arc<Plan>>,
    stock: Mutex<Stock>,
    /// Something changed that somebody may wait for.
    changed: Notify,
    /// The upkeep has something to do.
    work: Notify,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// What comes of a sandbox that a job has ordered.
type Ordered = oneshot::Receiver<Result<Delivery, MakeError>>;

impl Pool {
    pub(crate) fn new(engine: Engine, plan: Plan) -> Self {
        let stock = Stock::new(&plan, Instant::now());
        Self {
            shared: Arc::new(Shared {
                engine,
                plan: RwLock::new(Arc::new(plan)),
                stock: Mutex::new(stock),
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

    /// How many sandboxes, and of which kinds, as it is now.
    fn plan(&self) -> Arc<Plan> {
        let plan = self.shared.plan.read();
        Arc::clone(&plan.unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on these kinds are kept warm. What is idle of those that no longer are goes at once.
    pub(crate) fn keep(&self, kinds: Vec<Key>) {
        let old = self.plan();
        if old.kinds == kinds {
            return;
        }
        let new = Arc::new(Plan {
            capacity: Plan::capacity(old.slots, kinds.len()),
            kinds,
            ..*old
        });
        let mut gone = Vec::new();
        {
            let mut stock = self.stock();
            for key in old.kinds.iter().filter(|key| !new.kinds.contains(key)) {
                stock.give_up(key, &mut gone);
            }
            // While nobody decides by the old one.
            *self
                .shared
                .plan
                .write()
                .unwrap_or_else(PoisonError::into_inner) = new;
        }
        self.remove_all(gone);
        self.shared.changed.notify_waiters();
        self.shared.work.notify_one();
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        // Nothing panics while it holds the lock; if something did, the counts may be off by one, which is no danger.
        self.shared
            .stock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox for a job of this owner: a warm one if there is one. May be dropped while it waits.
    pub(crate) async fn acquire(&self, key: &Key, owner: &Owner) -> Result<Lease, MakeError> {
        let mut wish = Wish::new(self, key);
        let mut ordered: Option<Ordered> = None;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if self.shared.closing.is_cancelled() {
                return Err(MakeError::Unreachable("the node is shutting down".into()));
            }
            let mut gone = Vec::new();
            let decision = {
                let mut stock = self.stock();
                let plan = self.plan();
                let now = Instant::now();
                let has_ordered = wish.order.is_some();
                let decision = stock.decide(key, owner, has_ordered, &plan, now, &mut gone);
                match &decision {
                    Decision::Take(sandbox) => wish.counted = sandbox.is_counted(),
                    Decision::Make(order) => wish.order = Some(*order),
                    Decision::Wait => {}
                }
                decision
            };
            self.remove_all(gone);
            match decision {
                Decision::Take(sandbox) => {
                    // Should it have been a kept one, another is made while this one is in use.
                    self.shared.work.notify_one();
                    return Ok(self.lease(*sandbox));
                }
                Decision::Make(order) => ordered = Some(self.make_to_order(key, order)),
                Decision::Wait => {}
            }
            let delivered = async {
                match &mut ordered {
                    Some(ordered) => ordered.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                delivered = delivered => {
                    let mut delivery = delivered.unwrap_or_else(|_| Err(given_up()))?;
                    let Some(mut lease) = delivery.0.take() else {
                        return Err(given_up());
                    };
                    lease.count_as_demand();
                    wish.counted = true;
                    return Ok(lease);
                }
                // It may be that one has become free before the one that was ordered is there.
                () = changed => {}
            }
        }
    }

    fn lease(&self, sandbox: Sandbox) -> Lease {
        Lease {
            sandbox: Some(sandbox),
            pool: self.clone(),
        }
    }

    /// Makes a sandbox for a job that waits for it. Should the job not take it, the pool keeps the sandbox.
    fn make_to_order(&self, key: &Key, order: u64) -> Ordered {
        let (sender, receiver) = oneshot::channel();
        self.make(key.clone(), Some((order, sender)));
        receiver
    }

    /// Makes a sandbox that the stock has counted as being made.
    fn make(&self, key: Key, order: Option<(u64, oneshot::Sender<Result<Delivery, MakeError>>)>) {
        let pool = self.clone();
        let (order, sender) = order.unzip();
        self.shared.tasks.spawn(async move {
            let answer = match pool.shared.engine.make(&key).await {
                Ok(made) => {
                    let sandbox = pool.stock().made(&key, order, made, Instant::now());
                    sandbox.map(|sandbox| Ok(Delivery(Some(pool.lease(sandbox)))))
                }
                Err(error) => {
                    let mut stock = pool.stock();
                    let new = !stock.is_failing(&key);
                    if stock.not_made(&key, order, Instant::now()) {
                        Some(Err(error))
                    } else {
                        if new {
                            tracing::warn!(key.image, key.memory_kb, "{error}");
                        }
                        None
                    }
                }
            };
            if let (Some(answer), Some(sender)) = (answer, sender) {
                // What is not taken goes back into the stock as it is dropped.
                let _ = sender.send(answer);
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

    fn remove_all(&self, gone: Vec<Made>) {
        for made in gone {
            self.remove(made);
        }
    }

    /// Runs something to its end, whatever becomes of the job that it belongs to; a shutdown waits for it.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.shared.tasks.spawn(work);
    }

    /// Looks after the pool once: throws away what has ended or is not needed, makes what is missing.
    pub(crate) fn tend(&self, now: Instant) {
        let mut gone = Vec::new();
        let mut missing = Vec::new();
        if !self.shared.closing.is_cancelled() {
            let mut stock = self.stock();
            let plan = self.plan();
            let plan = &*plan;
            stock.shrink(plan, now, &mut gone);
            while let Some(key) = stock.grow(plan, now, &mut gone) {
                missing.push(key);
            }
            stock.settle(plan, now);
        }
        self.remove_all(gone);
        for key in missing {
            self.make(key, None);
        }
        if self.shared.engine.has_leftovers() {
            let pool = self.clone();
            self.spawn(async move { pool.shared.engine.sweep().await });
        }
    }

    /// Whether the end has begun.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.closing.is_cancelled()
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
        self.stock().forgive();
        self.shared.work.notify_one();
    }

    /// How many sandboxes there are, by state, and, since the start, how many were discarded, in all and by reason.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.stock().counts()
    }

    /// Removes every sandbox, and waits until they are gone.
    pub(crate) async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.changed.notify_waiters();
        let idle = self.stock().clear();
        self.remove_all(idle);
        // What is busy goes at once, by its labels, and its jobs notice.
        self.shared.engine.remove_all().await;
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        // What was being made meanwhile.
        let late = self.stock().clear();
        for made in late {
            self.shared.engine.remove(made).await;
        }
        self.shared.engine.remove_all().await;
    }
}

fn given_up() -> MakeError {
    MakeError::Other("making it was given up".into())
}
