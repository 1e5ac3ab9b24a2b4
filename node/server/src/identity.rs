//! Whose data folder this is: which cluster, which node, and how often it has started.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::join::Place;

const FILE: &str = "identity.json";
const LOCK: &str = "lock";

#[derive(Serialize, Deserialize)]
struct Record {
    /// Format of this file.
    version: u32,
    cluster: String,
    /// Empty for a node that has joined a running cluster.
    peers: String,
    id: u64,
    /// Counts the starts of the node.
    incarnation: u64,
}

/// A data folder that belongs to this process until it ends.
#[derive(Debug)]
pub struct Folder {
    /// Held as long as the process lives; the kernel lets go of it whatever happens.
    _lock: File,
    dir: PathBuf,
}

/// Takes a data folder for this process.
///
/// # Errors
/// When another process has it, or it cannot be made.
pub fn lock(dir: &Path) -> anyhow::Result<Folder> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("make the data folder {}", dir.display()))?;
    let lock_path = dir.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .with_context(|| format!("open {}", lock_path.display()))?;
    if lock.try_lock().is_err() {
        bail!(
            "the data folder {} is in use by another process; every node needs a folder of its own (--data)",
            dir.display()
        );
    }
    Ok(Folder {
        _lock: lock,
        dir: dir.to_owned(),
    })
}

/// The place of a node that has joined a running cluster with this folder; `None` in a fresh folder.
///
/// # Errors
/// When the folder belongs to a node that was started with a list of peers, or the record cannot be read.
pub fn joined(folder: &Folder) -> anyhow::Result<Option<Place>> {
    let path = folder.dir.join(FILE);
    let Some(record) = read(&path)? else {
        return Ok(None);
    };
    if !record.peers.is_empty() {
        bail!(
            "the data folder {} belongs to node {}, which was started with --peers {}; start it so again, or join with an empty --data folder",
            folder.dir.display(),
            record.id,
            record.peers
        );
    }
    let cluster = record
        .cluster
        .parse()
        .with_context(|| format!("{} has a cluster that is none", path.display()))?;
    let id = record.id;
    Ok(Some(Place { id, cluster }))
}

/// Makes the folder that of the node of `config`, and counts its start: from 1.
///
/// # Errors
/// When it belongs to another cluster or node, or when it cannot be written.
pub fn claim(folder: &Folder, config: &Config) -> anyhow::Result<u64> {
    let dir = &folder.dir;
    let path = dir.join(FILE);
    let cluster = config.cluster.to_string();
    let incarnation = match read(&path)? {
        Some(record) if record.peers.is_empty() && !config.peers.is_empty() => bail!(
            "the data folder {} belongs to node {}, which has joined a running cluster; start it with --join, and without --peers and --id",
            dir.display(),
            record.id
        ),
        Some(record) => {
            if record.cluster != cluster && record.peers == config.peers {
                bail!(
                    "the data folder {} belongs to another cluster: it was made with another --cluster name; use the old name, or another --data folder",
                    dir.display()
                );
            }
            if record.cluster != cluster {
                bail!(
                    "the data folder {} belongs to another cluster: it was made with --peers {}, and this node was started with --peers {} (or another --cluster); use the old list, or another --data folder",
                    dir.display(),
                    record.peers,
                    config.peers
                );
            }
            if record.id != config.id {
                bail!(
                    "the data folder {} belongs to node {}, and this node was started with --id {}; use the folder of node {}, or --id {}",
                    dir.display(),
                    record.id,
                    config.id,
                    config.id,
                    record.id
                );
            }
            record.incarnation.checked_add(1).with_context(|| {
                format!(
                    "{} has an incarnation that cannot be counted on",
                    path.display()
                )
            })?
        }
        None => {
            // An incarnation must never come twice, so a folder that has lost its count cannot be used.
            if let Some(left) = ["log", "ledger", "log.watermark"]
                .map(|name| dir.join(name))
                .iter()
                .find(|part| part.exists())
            {
                bail!(
                    "the data folder {} has {} but no {FILE}: part of it was lost; restore the file, or use an empty --data folder for a node with a new id",
                    dir.display(),
                    left.display()
                );
            }
            1
        }
    };
    write(
        dir,
        &path,
        &Record {
            version: 1,
            cluster,
            peers: config.peers.clone(),
            id: config.id,
            incarnation,
        },
    )?;
    Ok(incarnation)
}

fn read(path: &Path) -> anyhow::Result<Option<Record>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let record: Record = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what a node wrote", path.display()))?;
    if record.version != 1 {
        bail!(
            "{} has version {}, and this program reads only 1",
            path.display(),
            record.version
        );
    }
    Ok(Some(record))
}

/// Replaces the file so that a crash leaves the old one or the new one, and the count is on the disk before it is used:
/// an incarnation must never come twice.
fn write(dir: &Path, path: &PathBuf, record: &Record) -> anyhow::Result<()> {
    let new = dir.join(format!("{FILE}.new"));
    let put = || -> std::io::Result<()> {
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(dir)?.sync_all()
    };
    put().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn config(dir: &Path, id: u64, peers: &str) -> Config {
        Config::new(Settings {
            id: Some(id),
            peers: Some(peers.to_owned()),
            data: Some(dir.to_owned()),
            ..Settings::default()
        })
        .unwrap()
    }

    fn claim(config: &Config) -> anyhow::Result<u64> {
        super::claim(&lock(&config.data)?, config)
    }

    #[test]
    fn every_start_counts_and_foreign_folders_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let own = config(dir.path(), 1, "1=a:1,2=b:2");
        assert_eq!(claim(&own).unwrap(), 1);
        assert_eq!(claim(&own).unwrap(), 2);
        let error = claim(&config(dir.path(), 2, "1=a:1,2=b:2")).unwrap_err();
        assert!(error.to_string().contains("belongs to node 1"), "{error}");
        let error = claim(&config(dir.path(), 1, "1=a:1,2=b:3")).unwrap_err();
        assert!(error.to_string().contains("another cluster"), "{error}");
        let error = joined(&lock(dir.path()).unwrap()).unwrap_err();
        assert!(error.to_string().contains("with --peers"), "{error}");
    }

    #[test]
    fn a_place_that_was_given_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(Settings {
            join: Some("http://a:1".to_owned()),
            peer: Some("127.0.0.1:7".parse().unwrap()),
            data: Some(dir.path().to_owned()),
            ..Settings::default()
        })
        .unwrap();
        let folder = lock(dir.path()).unwrap();
        assert_eq!(joined(&folder).unwrap(), None);
        let place = Place {
            id: 7,
            cluster: quorun_consensus::ClusterId([5; 16]),
        };
        config.settle(place);
        assert_eq!(super::claim(&folder, &config).unwrap(), 1);
        assert_eq!(joined(&folder).unwrap(), Some(place));
        drop(folder);
        let error = claim(&self::config(dir.path(), 7, "7=a:1")).unwrap_err();
        assert!(error.to_string().contains("with --join"), "{error}");
    }

    #[test]
    fn a_folder_that_has_lost_its_count_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let own = config(dir.path(), 1, "1=a:1");
        claim(&own).unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        assert_eq!(claim(&own).unwrap(), 2);
        let path = dir.path().join(FILE);
        let most = std::fs::read_to_string(&path).unwrap().replace(
            "\"incarnation\": 2",
            &format!("\"incarnation\": {}", u64::MAX),
        );
        std::fs::write(&path, most).unwrap();
        let error = claim(&own).unwrap_err();
        assert!(error.to_string().contains("cannot be counted"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = claim(&own).unwrap_err();
        assert!(
            error.to_string().contains("but no identity.json"),
            "{error}"
        );
    }

    #[test]
    fn one_process_has_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let own = config(dir.path(), 1, "1=a:1");
        let held = lock(&own.data).unwrap();
        let error = claim(&own).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        drop(held);
        assert!(claim(&own).is_ok());
    }
}
