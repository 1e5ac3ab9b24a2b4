//! One cluster at a time.

use std::fs::{File, OpenOptions};

use crate::program;

/// Held while a cluster runs. A lock on a file, so that it holds between the threads of one test program and between
/// the processes of a test runner alike; the kernel lets go of it whatever happens.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits until no other cluster of these tests runs.
    ///
    /// # Panics
    /// When there cannot be a lock.
    pub async fn take() -> Self {
        let path = program::profile_dir().join("quorun-tests.lock");
        let lock = tokio::task::spawn_blocking(move || {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            file.lock().map(|()| file)
        });
        let lock = lock
            .await
            .expect("the thread that waits for the turn")
            .expect("the lock that makes clusters take turns");
        Self { _lock: lock }
    }
}
