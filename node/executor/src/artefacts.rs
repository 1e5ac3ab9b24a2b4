//! Compiled programs, kept by what they were compiled from, so that the same source need not be compiled twice.
//!
//! An artefact is the archive of the box that the warden took after the compile step, before anything of the program ran,
//! together with what the compiler said. Its key is a hash over everything that the compile step can depend on. It lies
//! in a file of the node's data folder that begins with a hash of the rest: a file that was damaged, or that is somebody
//! else's, is not believed. No sandbox ever sees the folder. The oldest by use go when the bound is reached; losing the
//! whole folder costs nothing but time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use bytes::Bytes;
use quorun_ledger::codec;
use quorun_ledger::job::Compile;
use quorun_warden::protocol::VERSION;

use crate::task::{self, Task};

/// The first bytes of an artefact's file: what it is, and the version of its form.
const MAGIC: &[u8; 8] = b"QRNART01";

/// How long the hash behind the magic is.
const HASH: usize = blake3::OUT_LEN;

/// Where what the compiler said ends and the archive begins: a length (u32, big endian) comes first.
const LENGTH: usize = 4;

/// What an artefact was made from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key([u8; HASH]);

impl Key {
    /// The key of a task's artefact in the image with this id.
    pub(crate) fn of(task: &Task, image_id: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("quorun artefact 2026-11");
        // Every part with its length, so that no two lists of parts look alike.
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        let Task { language, spec, .. } = task;
        // The form of the archive is the protocol's.
        part(&VERSION.to_be_bytes());
        part(image_id.as_bytes());
        // Nobody learns from the compiler's speed what others have submitted.
        part(spec.owner_name().unwrap_or_default().as_bytes());
        part(spec.isolation_key.as_deref().unwrap_or_default().as_bytes());
        let command = language.compile_command(&spec.entrypoint, &spec.files, &spec.compile_args);
        let command = command.unwrap_or_default();
        part(&(command.len() as u64).to_be_bytes());
        for word in &command {
            part(word.as_bytes());
        }
        part(&(language.env.len() as u64).to_be_bytes());
        for (name, value) in &language.env {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        for file in &spec.files {
            part(file.name.as_bytes());
            part(&file.content);
        }
        Self(*hasher.finalize().as_bytes())
    }

    fn file_name(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    fn from_file_name(name: &str) -> Option<Self> {
        let hash = blake3::Hash::from_hex(name).ok()?;
        Some(Self(*hash.as_bytes()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file_name()[..16])
    }
}

/// A compiled program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artefact {
    /// What the compiler did, and said.
    pub(crate) compile: Compile,
    /// The box after the compile step.
    pub(crate) archive: Bytes,
}

/// The artefacts of this node; a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct Artefacts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    /// Bytes of all files together.
    capacity: u64,
    index: Mutex<Index>,
}

/// What is there, in the order of its last use.
#[derive(Debug, Default)]
struct Index {
    entries: BTreeMap<Key, Entry>,
    order: BTreeMap<u64, Key>,
    next: u64,
    bytes: u64,
    /// Numbers the files that are being written.
    unfinished: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
}

impl Artefacts {
    /// Opens the folder and finds what an earlier process left in it. With a capacity of 0 nothing is kept.
    pub(crate) fn open(folder: PathBuf, capacity: u64) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let key = entry.file_name().to_str().and_then(Key::from_file_name);
            let metadata = entry.metadata()?;
            match key {
                Some(key) if metadata.is_file() => {
                    found.push((metadata.modified()?, key, metadata.len()));
                }
                // What was being written when a process ended.
                _ => discard(&entry.path()),
            }
        }
        found.sort();
        let mut index = Index::default();
        for (_, key, bytes) in found {
            index.insert(key, bytes);
        }
        let artefacts = Self {
            shared: Arc::new(Shared {
                folder,
                capacity,
                index: Mutex::new(index),
            }),
        };
        artefacts.shrink();
        Ok(artefacts)
    }

    /// Whether anything is kept at all.
    pub(crate) fn is_on(&self) -> bool {
        self.shared.capacity > 0
    }

    /// The artefact with this key, if there is one and it is what was put there.
    pub(crate) async fn get(&self, key: Key) -> Option<Artefact> {
        if !self.shared.index().touch(key) {
            return None;
        }
        let artefacts = self.clone();
        tokio::task::spawn_blocking(move || artefacts.read(key))
            .await
            .ok()?
    }

    fn read(&self, key: Key) -> Option<Artefact> {
        let path = self.shared.path(key);
        let result = std::fs::read(&path).and_then(|bytes| {
            decode(&Bytes::from(bytes)).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "its hash is not that of its content",
                )
            })
        });
        match result {
            Ok(artefact) => Some(artefact),
            Err(error) => {
                tracing::warn!(path = %path.display(), "an artefact cannot be used: {error}");
                self.shared.index().remove(key);
                discard(&path);
                None
            }
        }
    }

    /// Keeps an artefact. Failing to is no failure of the job.
    pub(crate) async fn put(&self, key: Key, artefact: Artefact) {
        let artefacts = self.clone();
        let written = tokio::task::spawn_blocking(move || artefacts.write(key, &artefact)).await;
        if let Ok(Err(error)) = written {
            let folder = self.shared.folder.display();
            tracing::warn!(%folder, "an artefact could not be kept: {error}");
        }
    }

    fn write(&self, key: Key, artefact: &Artefact) -> io::Result<()> {
        let bytes = encode(artefact);
        let length = bytes.len() as u64;
        // One that would drive out all others is not worth it.
        if length > self.shared.capacity / 2 {
            return Ok(());
        }
        let path = self.shared.path(key);
        let unfinished = {
            let mut index = self.shared.index();
            index.unfinished += 1;
            path.with_extension(format!("{}.new", index.unfinished))
        };
        // Not synced: what a crash leaves of it is noticed by its hash.
        std::fs::write(&unfinished, bytes)
            .and_then(|()| std::fs::rename(&unfinished, &path))
            .inspect_err(|_| discard(&unfinished))?;
        self.shared.index().insert(key, length);
        self.shrink();
        Ok(())
    }

    /// Lets the oldest go until the rest is within the bound.
    fn shrink(&self) {
        let capacity = self.shared.capacity;
        loop {
            let mut index = self.shared.index();
            if index.bytes <= capacity {
                return;
            }
            let Some(key) = index.order.values().next().copied() else {
                return;
            };
            index.remove(key);
            // Under the lock: a new one with the same key must not be what is removed.
            discard(&self.shared.path(key));
        }
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, key: Key) -> PathBuf {
        self.folder.join(key.file_name())
    }
}

impl Index {
    fn insert(&mut self, key: Key, bytes: u64) {
        self.remove(key);
        let used = self.next;
        self.next += 1;
        self.entries.insert(key, Entry { bytes, used });
        self.order.insert(used, key);
        self.bytes += bytes;
    }

    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }

    /// It is used now; says whether it is there.
    fn touch(&mut self, key: Key) -> bool {
        let Some(bytes) = self.entries.get(&key).map(|entry| entry.bytes) else {
            return false;
        };
        self.insert(key, bytes);
        true
    }
}

fn discard(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), "not removed: {error}");
        }
        _ => {}
    }
}

fn encode(artefact: &Artefact) -> Vec<u8> {
    let compile = codec::encode(&artefact.compile);
    // A compiler's output is bounded by the limits of its step.
    let length = u32::try_from(compile.len()).unwrap_or(u32::MAX);
    let mut bytes =
        Vec::with_capacity(MAGIC.len() + HASH + LENGTH + compile.len() + artefact.archive.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[0; HASH]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&compile);
    bytes.extend_from_slice(&artefact.archive);
    let (head, body) = bytes.split_at_mut(MAGIC.len() + HASH);
    head[MAGIC.len()..].copy_from_slice(blake3::hash(body).as_bytes());
    bytes
}

fn decode(bytes: &Bytes) -> Option<Artefact> {
    let body = bytes.strip_prefix(MAGIC.as_slice())?;
    let (hash, body) = body.split_first_chunk::<HASH>()?;
    if blake3::hash(body) != *hash {
        return None;
    }
    let (length, rest) = body.split_first_chunk::<LENGTH>()?;
    let length = u32::from_be_bytes(*length) as usize;
    let compile = codec::decode(rest.get(..length)?).ok()?;
    let archive = bytes.slice_ref(&rest[length..]);
    Some(Artefact { compile, archive })
}

/// The largest archive that is taken from a sandbox for a task, bytes: it lies in the sandbox's own memory meanwhile.
pub(crate) fn largest(task: &Task) -> u64 {
    const MOST: u64 = 32 << 20;
    MOST.min(task::box_bytes(task.spec.limits.memory_kb) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artefact(length: usize) -> Artefact {
        Artefact {
            compile: Compile {
                exit_code: Some(0),
                stderr: Bytes::from_static(b"warning"),
                ..Compile::default()
            },
            archive: vec![7; length].into(),
        }
    }

    fn key(number: u8) -> Key {
        Key([number; HASH])
    }

    #[tokio::test]
    async fn what_was_put_comes_back_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Artefacts::open(folder.path().join("a"), 1 << 20).unwrap();
        let artefacts = open();
        assert_eq!(artefacts.get(key(1)).await, None);
        artefacts.put(key(1), artefact(1000)).await;
        assert_eq!(artefacts.get(key(1)).await, Some(artefact(1000)));
        assert_eq!(open().get(key(1)).await, Some(artefact(1000)));
        assert_eq!(open().get(key(2)).await, None);
    }

    #[tokio::test]
    async fn what_was_damaged_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let artefacts = Artefacts::open(folder.path().to_path_buf(), 1 << 20).unwrap();
        let path = artefacts.shared.path(key(1));
        let whole = encode(&artefact(100));
        let mut damaged: Vec<Vec<u8>> = [0, 7, 8, 40, 44, 60, whole.len() - 1]
            .iter()
            .map(|at| {
                let mut bytes = whole.clone();
                bytes[*at] ^= 1;
                bytes
            })
            .collect();
        damaged.push(whole[..whole.len() - 1].to_vec());
        damaged.push(Vec::new());
        for bytes in damaged {
            artefacts.put(key(1), artefact(100)).await;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(artefacts.get(key(1)).await, None);
            assert!(!path.exists());
            assert_eq!(artefacts.shared.index().bytes, 0);
        }
    }

    #[tokio::test]
    async fn the_bound_holds_and_the_least_used_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let open = |capacity| Artefacts::open(folder.path().to_path_buf(), capacity).unwrap();
        let one = encode(&artefact(1000)).len() as u64;
        let artefacts = open(3 * one);
        for number in 1..=3 {
            artefacts.put(key(number), artefact(1000)).await;
        }
        assert!(artefacts.get(key(1)).await.is_some());
        artefacts.put(key(4), artefact(1000)).await;
        let mut there = Vec::new();
        for number in 1..=4 {
            there.push(artefacts.get(key(number)).await.is_some());
        }
        assert_eq!(there, [true, false, true, true]);
        // Too large to be worth it.
        artefacts.put(key(5), artefact(2000)).await;
        assert!(artefacts.get(key(5)).await.is_none());
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files(), 3);
        std::fs::write(folder.path().join("rubbish.1.new"), b"x").unwrap();
        drop(open(one));
        assert_eq!(files(), 1);
        drop(open(0));
        assert_eq!(files(), 0);
    }
}
