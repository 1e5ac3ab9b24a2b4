//! What is counted of callbacks, on the node that sends them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How an attempt to deliver ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The receiver has it.
    Delivered,
    /// It has not, and will be asked again.
    Failed,
    /// It has not, and this was the last time.
    GivenUp,
}

/// How the look-up of a name ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// There are addresses, whether they may be connected to or not.
    Found,
    /// There is none.
    Failed,
    /// It took too long.
    Slow,
}

/// The words of the outcomes, in the order of the counts.
pub const ATTEMPTS: [&str; 3] = ["delivered", "failed", "given_up"];
/// The same of look-ups.
pub const LOOKUPS: [&str; 3] = ["found", "failed", "slow"];

/// The figures. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    attempts: [AtomicU64; ATTEMPTS.len()],
    sending: AtomicU64,
    lookups: [AtomicU64; LOOKUPS.len()],
    looking: AtomicU64,
}

/// A look-up that has not ended.
#[derive(Debug)]
pub struct Looking(Figures);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.inner.looking.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Figures {
    /// An attempt has ended.
    pub fn tried(&self, attempt: Attempt) {
        self.inner.attempts[attempt as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// So many are under way now.
    pub fn sending(&self, now: usize) {
        self.inner.sending.store(now as u64, Ordering::Relaxed);
    }

    /// Somebody has waited for a look-up, and waits no longer.
    pub fn looked_up(&self, lookup: Lookup) {
        self.inner.lookups[lookup as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A look-up begins; it lasts until what is returned is dropped.
    pub fn looking(&self) -> Looking {
        self.inner.looking.fetch_add(1, Ordering::Relaxed);
        Looking(self.clone())
    }

    /// How attempts ended.
    pub fn attempts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        shown(ATTEMPTS, &self.inner.attempts)
    }

    /// How look-ups ended.
    pub fn lookups(&self) -> impl Iterator<Item = (&'static str, u64)> {
        shown(LOOKUPS, &self.inner.lookups)
    }

    /// Deliveries that are under way.
    pub fn under_way(&self) -> u64 {
        self.inner.sending.load(Ordering::Relaxed)
    }

    /// Threads that look names up.
    pub fn threads(&self) -> u64 {
        self.inner.looking.load(Ordering::Relaxed)
    }
}

fn shown<const N: usize>(
    words: [&'static str; N],
    counts: &[AtomicU64; N],
) -> impl Iterator<Item = (&'static str, u64)> {
    let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
    words.into_iter().zip(counts)
}
