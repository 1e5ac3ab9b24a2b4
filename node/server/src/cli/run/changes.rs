//! `quorun run --watch`: again whenever a file has changed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// How long nothing may happen before a change counts as complete: editors write in several steps.
const QUIET: Duration = Duration::from_millis(100);

/// The changes of some files.
pub struct Changes {
    changed: mpsc::UnboundedReceiver<()>,
    _watcher: RecommendedWatcher,
}

impl Changes {
    /// Watches files. Their folders are watched, because many editors put a new file in the place of the old one.
    pub fn of<'a>(files: impl Iterator<Item = &'a Path>) -> anyhow::Result<Self> {
        let files: Vec<PathBuf> = files
            .map(|file| {
                std::path::absolute(file).with_context(|| format!("watch {}", file.display()))
            })
            .collect::<Result<_, _>>()?;
        let (tell, changed) = mpsc::unbounded_channel();
        let names = files.clone();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let Ok(event) = event else { return };
                let writes = !event.kind.is_access();
                if writes && event.paths.iter().any(|path| names.contains(path)) {
                    // Nobody waits for it any more at the end.
                    let _ = tell.send(());
                }
            })
            .context("watch files")?;
        let mut folders: Vec<&Path> = files.iter().filter_map(|file| file.parent()).collect();
        folders.sort_unstable();
        folders.dedup();
        for folder in folders {
            watcher
                .watch(folder, RecursiveMode::NonRecursive)
                .with_context(|| format!("watch {}", folder.display()))?;
        }
        Ok(Self {
            changed,
            _watcher: watcher,
        })
    }

    /// Returns when something has changed and nothing more changes. May be dropped and called again.
    pub async fn next(&mut self) {
        if self.changed.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        while let Ok(Some(())) = tokio::time::timeout(QUIET, self.changed.recv()).await {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_written_or_replaced_has_changed_and_another_has_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.py");
        std::fs::write(&file, "1").unwrap();
        let mut changes = Changes::of([file.as_path()].into_iter()).unwrap();
        std::fs::write(folder.path().join("other"), "1").unwrap();
        std::fs::write(&file, "2").unwrap();
        let patience = Duration::from_secs(30);
        tokio::time::timeout(patience, changes.next())
            .await
            .unwrap();
        let new = folder.path().join("new");
        std::fs::write(&new, "3").unwrap();
        std::fs::rename(&new, &file).unwrap();
        tokio::time::timeout(patience, changes.next())
            .await
            .unwrap();
        assert!(changes.changed.try_recv().is_err());
    }
}
