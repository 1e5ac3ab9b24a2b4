//! A sandbox in the hands of a job, and a job that waits for one.

use std::time::Instant;

use super::Pool;
use super::discard::Discard;
use super::stock::Sandbox;
use crate::engine::Key;
use crate::sandbox::Link;

/// A sandbox in the hands of a job.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(super) sandbox: Option<Sandbox>,
    pub(super) pool: Pool,
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

    /// What stands for the content of its image, where that is known.
    pub(crate) fn image_id(&self) -> Option<&str> {
        self.sandbox.as_ref()?.made.image_id.as_deref()
    }

    /// The job that waited for it goes on to count as demand.
    pub(super) fn count_as_demand(&mut self) {
        if let Some(sandbox) = &mut self.sandbox {
            sandbox.count_as_demand();
        }
    }

    /// A job is about to run in it.
    pub(crate) fn count_job(&mut self) {
        if let Some(sandbox) = &mut self.sandbox {
            let mut stock = self.pool.stock();
            stock.count_job(sandbox, &self.pool.plan(), Instant::now());
            // Its successor is made while the job runs.
            self.pool.shared.work.notify_one();
        }
    }

    /// Gives the sandbox back, clean.
    pub(crate) fn keep(mut self) {
        let Some(sandbox) = self.sandbox.take() else {
            return;
        };
        if self.pool.shared.closing.is_cancelled() {
            self.sandbox = Some(sandbox);
            return self.discard(Discard::GivenUp);
        }
        let worn = self.pool.stock().give_back(sandbox, Instant::now());
        if worn.is_some() {
            self.sandbox = worn;
            return self.discard(Discard::Worn);
        }
        self.pool.shared.changed.notify_waiters();
    }

    /// Throws the sandbox away. If it was one of a kind that is kept warm, another is made.
    pub(crate) fn discard(mut self, reason: Discard) {
        self.throw_away(reason);
    }

    fn throw_away(&mut self, reason: Discard) {
        let Some(sandbox) = self.sandbox.take() else {
            return;
        };
        tracing::debug!(
            sandbox = sandbox.made.id,
            reason = reason.as_str(),
            "discarding a sandbox"
        );
        let made = self.pool.stock().discard(sandbox, reason, Instant::now());
        self.pool.remove(made);
        self.pool.shared.changed.notify_waiters();
        self.pool.shared.work.notify_one();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.throw_away(Discard::GivenUp);
    }
}

/// A sandbox on its way to the job that ordered it. If the job does not take it, it is as good as before.
#[derive(Debug)]
pub(super) struct Delivery(pub(super) Option<Lease>);

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take() {
            lease.keep();
        }
    }
}

/// A job that wants a sandbox, until it has one or goes away.
#[derive(Debug)]
pub(super) struct Wish<'a> {
    pool: &'a Pool,
    key: &'a Key,
    pub(super) order: Option<u64>,
    /// The job goes on to be counted, with its sandbox.
    pub(super) counted: bool,
}

impl<'a> Wish<'a> {
    pub(super) fn new(pool: &'a Pool, key: &'a Key) -> Self {
        pool.stock().arrive(key, Instant::now());
        Self {
            pool,
            key,
            order: None,
            counted: false,
        }
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        let mut stock = self.pool.stock();
        let plan = self.pool.plan();
        stock.leave(self.key, self.order, self.counted, &plan, Instant::now());
    }
}
