//! Places that are shared out: so many for each of those who want one, however many they are.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many places for each.
#[derive(Debug)]
pub struct Places<K> {
    each: u32,
    /// Of those who have a place, or wait for one.
    wanted: Mutex<HashMap<K, Arc<Semaphore>>>,
}

impl<K: Eq + Hash> Places<K> {
    /// So many for each.
    pub fn new(each: u32) -> Self {
        Self {
            each,
            wanted: Mutex::default(),
        }
    }

    /// Waits for some of somebody's places, for all of them at the most. They are taken until what is returned is dropped;
    /// `None` does not happen.
    pub async fn take(&self, whose: K, places: u32) -> Option<OwnedSemaphorePermit> {
        let own = {
            let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever has a place, or waits for one, holds on to it.
            wanted.retain(|_, places| Arc::strong_count(places) > 1);
            let each = usize::try_from(self.each).unwrap_or(Semaphore::MAX_PERMITS);
            let own = wanted.entry(whose);
            Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(each))))
        };
        own.acquire_many_owned(places.min(self.each)).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn each_has_its_own_and_what_nobody_has_is_forgotten() {
        let places = Places::new(2);
        let first = places.take("a", 1).await.unwrap();
        let second = places.take("a", 1).await.unwrap();
        assert!(places.take("a", 1).now_or_never().is_none());
        let other = places.take("b", 9).await.unwrap();
        assert_eq!(other.num_permits(), 2, "as many as there are");
        let mut third = Box::pin(places.take("a", 1));
        assert!((&mut third).now_or_never().is_none());
        drop((first, other));
        let third = third.now_or_never().unwrap();
        drop(places.take("c", 1).await);
        let known = |places: &Places<&str>| places.wanted.lock().unwrap().len();
        assert_eq!(known(&places), 2, "a, which has places, and c");
        drop((second, third));
        drop(places.take("c", 1).await);
        assert_eq!(known(&places), 1);
    }
}
