//! An engine for tests of the pool: its sandboxes are names, and it fails when it is told to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::DuplexStream;
use tokio::sync::Semaphore;

use crate::engine::{Key, Made, MakeError};
use crate::sandbox::Link;

/// The engine; a cheap handle, so that a test can look into the one that the pool has.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// Those that are there, each with the far end of its stream.
    alive: Mutex<BTreeMap<u64, (Key, DuplexStream)>>,
    made: AtomicU64,
    removed: AtomicU64,
    failing: AtomicBool,
    /// One permit is taken by each sandbox that is made.
    permits: Semaphore,
}

impl Fake {
    /// An engine that makes what it is asked for, or, when not `eager`, as many as it is [allowed](Self::allow).
    pub(crate) fn new(eager: bool) -> Self {
        Self {
            state: Arc::new(State {
                alive: Mutex::default(),
                made: AtomicU64::new(0),
                removed: AtomicU64::new(0),
                failing: AtomicBool::new(false),
                permits: Semaphore::new(if eager { Semaphore::MAX_PERMITS } else { 0 }),
            }),
        }
    }

    /// So many more may be made.
    pub(crate) fn allow(&self, count: usize) {
        self.state.permits.add_permits(count);
    }

    /// From now on making fails, or does not.
    pub(crate) fn fail(&self, failing: bool) {
        self.state.failing.store(failing, Ordering::Relaxed);
    }

    /// How many there are.
    pub(crate) fn alive(&self) -> u64 {
        self.state.alive.lock().unwrap().len() as u64
    }

    /// How many of a kind there are.
    pub(crate) fn alive_of(&self, key: &Key) -> usize {
        let alive = self.state.alive.lock().unwrap();
        alive.values().filter(|(known, _)| known == key).count()
    }

    /// How many were made.
    pub(crate) fn made(&self) -> u64 {
        self.state.made.load(Ordering::Relaxed)
    }

    /// How many were removed.
    pub(crate) fn removed(&self) -> u64 {
        self.state.removed.load(Ordering::Relaxed)
    }

    /// A sandbox ends by itself; it still has to be removed.
    pub(crate) fn end(&self, nth: usize) {
        let mut alive = self.state.alive.lock().unwrap();
        let count = alive.len().max(1);
        if let Some((_, stream)) = alive.values_mut().nth(nth % count) {
            *stream = tokio::io::duplex(1).0;
        }
    }

    pub(crate) async fn make(&self, key: &Key) -> Result<Made, MakeError> {
        if let Ok(permit) = self.state.permits.acquire().await {
            permit.forget();
        }
        tokio::task::yield_now().await;
        if self.state.failing.load(Ordering::Relaxed) {
            return Err(MakeError::Other("told to fail".into()));
        }
        let number = self.state.made.fetch_add(1, Ordering::Relaxed);
        let (near, far) = tokio::io::duplex(64);
        let (reader, writer) = tokio::io::split(near);
        let mut alive = self.state.alive.lock().unwrap();
        alive.insert(number, (key.clone(), far));
        Ok(Made {
            id: number.to_string(),
            image_id: None,
            link: Link::new(reader, writer),
            child: None,
        })
    }

    pub(crate) async fn remove(&self, made: Made) {
        tokio::task::yield_now().await;
        let number = made.id.parse().unwrap();
        let found = self.state.alive.lock().unwrap().remove(&number);
        // After everything was removed at once, what is removed singly has gone already.
        if found.is_some() {
            self.state.removed.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn remove_all(&self) {
        let mut alive = self.state.alive.lock().unwrap();
        let count = alive.len() as u64;
        alive.clear();
        self.state.removed.fetch_add(count, Ordering::Relaxed);
    }
}
