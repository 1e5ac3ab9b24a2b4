//! Files that are read anew while the node runs: on SIGHUP, and when they have changed.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What shows that a file has changed: it was written, or another one has taken its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    written: (i64, i64),
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files
        .iter()
        .map(|file| {
            let found = std::fs::metadata(file).ok()?;
            Some(Stamp {
                inode: found.ino(),
                size: found.size(),
                written: (found.mtime(), found.mtime_nsec()),
            })
        })
        .collect()
}

/// Calls `read` whenever one of the files has changed, and on SIGHUP. A file that is changed while it is read is read
/// once more.
pub async fn whenever_changed(files: Vec<PathBuf>, mut read: impl FnMut()) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => Some(hangup),
        Err(error) => {
            warn!(%error, "SIGHUP is not listened to; files are read anew only when they change");
            None
        }
    };
    let mut known = stamps(&files);
    loop {
        let told = tokio::select! {
            told = async { hangup.as_mut()?.recv().await }, if hangup.is_some() => told.is_some(),
            () = tokio::time::sleep(LOOK) => false,
        };
        let now = stamps(&files);
        if told || now != known {
            known = now;
            read();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_that_was_replaced_is_read_again_and_one_that_stays_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "1").unwrap();
        let reads = Arc::new(AtomicUsize::new(0));
        let counter = reads.clone();
        let files = vec![a.clone(), b.clone()];
        let watching = tokio::spawn(whenever_changed(files, move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        tokio::time::sleep(10 * LOOK).await;
        assert_eq!(reads.load(Ordering::Relaxed), 0);
        std::fs::write(&b, "new").unwrap();
        tokio::time::sleep(10 * LOOK).await;
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        std::fs::rename(&b, &a).unwrap();
        tokio::time::sleep(10 * LOOK).await;
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        watching.abort();
    }
}
