//! Room on the disk of the data folder.
//!
//! A node whose disk is full has to end: it can no longer keep what it acknowledges. So that it does not come to that, a
//! node that has little room left takes no more work and no more submissions, and what has been accepted has the rest. If it
//! leads, it hands over to a voter that has room ([`roster`](crate::roster)).
//! When there is room again it goes on by itself.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

/// How often one looks.
const EVERY: Duration = Duration::from_secs(1);

/// That there is little room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk of the data folder has only {left_mib} MiB left; free some, or lower --min-free-mb"
)]
pub struct Low {
    /// What is left.
    pub left_mib: u64,
}

/// What this node knows of the room on its disk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DiskSpace {
    low: watch::Receiver<Option<Low>>,
}

impl DiskSpace {
    /// Whether there is little room.
    #[must_use]
    pub fn low(&self) -> Option<Low> {
        *self.low.borrow()
    }

    /// Waits until that has changed; for ever, if nobody looks any more.
    pub async fn changed(&mut self) {
        if self.low.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Looks after the room on a disk.
pub struct Guard {
    /// What has to be free, MiB; 0 is nothing.
    reserve_mib: u64,
    source: Source,
    low: watch::Sender<Option<Low>>,
}

/// Who says how much room there is.
enum Source {
    /// The file system that this folder is in.
    FileSystem(PathBuf),
    /// A file with the number of free MiB, so that tests can say it.
    File(PathBuf),
}

impl Guard {
    /// Looks once; [`run`](Self::run) goes on with it.
    pub fn new(data: &Path, reserve_mib: u64, told_by: Option<&Path>) -> (Self, DiskSpace) {
        let source = match told_by {
            Some(file) => Source::File(file.to_owned()),
            None => Source::FileSystem(data.to_owned()),
        };
        let (low, watched) = watch::channel(None);
        let guard = Self {
            reserve_mib,
            source,
            low,
        };
        guard.look();
        (guard, DiskSpace { low: watched })
    }

    /// Looks again and again.
    pub async fn run(self) {
        if self.reserve_mib == 0 {
            return std::future::pending().await;
        }
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.look();
        }
    }

    fn look(&self) {
        if self.reserve_mib == 0 {
            return;
        }
        let left_mib = match self.source.free_mib() {
            Ok(left) => left,
            Err(error) => {
                // A disk that has failed is noticed where it is written to.
                warn!(%error, "the room on the disk is not known");
                return;
            }
        };
        let now = (left_mib < self.reserve_mib).then_some(Low { left_mib });
        self.low.send_if_modified(|low| {
            if low.is_some() != now.is_some() {
                match now {
                    Some(low) => warn!("this node takes no work: {low}"),
                    None => info!(left_mib, "there is room on the disk again"),
                }
            }
            let changed = *low != now;
            *low = now;
            changed
        });
    }
}

impl Source {
    fn free_mib(&self) -> io::Result<u64> {
        match self {
            Self::FileSystem(folder) => {
                let found = rustix::fs::statvfs(folder)?;
                // What is kept for the superuser does not count: a node should not need to be one.
                Ok(found.f_bavail.saturating_mul(found.f_frsize) >> 20)
            }
            Self::File(path) => {
                let text = std::fs::read_to_string(path)?;
                text.trim()
                    .parse()
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_low_below_the_reserve_and_no_longer_above() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("free");
        std::fs::write(&file, "99\n").unwrap();
        let (guard, space) = Guard::new(folder.path(), 100, Some(&file));
        assert_eq!(space.low(), Some(Low { left_mib: 99 }));
        // What cannot be read changes nothing.
        std::fs::write(&file, "").unwrap();
        guard.look();
        assert_eq!(space.low(), Some(Low { left_mib: 99 }));
        std::fs::write(&file, "100").unwrap();
        guard.look();
        assert_eq!(space.low(), None);
        std::fs::write(&file, "0").unwrap();
        let (_, off) = Guard::new(folder.path(), 0, Some(&file));
        assert_eq!(off.low(), None);
    }

    #[test]
    fn the_file_system_says_what_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let real = Source::FileSystem(folder.path().to_owned());
        let free = real.free_mib().unwrap();
        assert!(free > 0, "{free}");
        let (_, space) = Guard::new(folder.path(), u64::MAX, None);
        assert!(space.low().is_some());
        let nowhere = Source::FileSystem(PathBuf::from("/nowhere/at/all"));
        nowhere.free_mib().unwrap_err();
    }
}
