//! Questions to the ledger.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::hash::StateHash;
use crate::job::{Job, JobId, JobSpec, JobState, Output};
use crate::keys;
use crate::language::Entry;
use crate::node::{Admission, Node, NodeId};
use crate::settings::Settings;
use crate::store::{Store, StoreError};

/// The figures that the ledger keeps about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The ledger's time, Unix milliseconds; never goes back.
    pub time_ms: u64,
    /// The place in the queue that the next job put back gets, counting down.
    pub front: u64,
    /// The place in the queue that the next new job gets, counting up.
    pub back: u64,
    /// The node that was assigned a job last; ties go on from here.
    pub turn: NodeId,
    /// Jobs that wait.
    pub queued: u64,
    /// What they weigh, bytes.
    pub queued_bytes: u64,
    /// Jobs that have a current attempt.
    pub running: u64,
    /// Jobs that have their result.
    pub finished: u64,
    /// What they weigh, bytes.
    pub finished_bytes: u64,
    /// Reports of workers that came from an attempt that was no longer current, and changed nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fenced: u64,
    /// Over all records but this one.
    pub hash: StateHash,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // for serde
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Default for Counters {
    fn default() -> Self {
        // The middle: room for as many places before the first job as after it.
        const MIDDLE: u64 = 1 << 63;
        Self {
            time_ms: 0,
            front: MIDDLE - 1,
            back: MIDDLE,
            turn: 0,
            queued: 0,
            queued_bytes: 0,
            running: 0,
            finished: 0,
            finished_bytes: 0,
            fenced: 0,
            hash: StateHash::default(),
        }
    }
}

/// Which job has an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The job.
    pub job: JobId,
    /// Digest of the request that it came with.
    pub fingerprint: [u8; 16],
}

/// Which jobs a list is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Only jobs in this state.
    pub state: Option<JobState>,
    /// Only jobs of this language.
    pub language: Option<String>,
    /// Only jobs with this label.
    pub label: Option<String>,
}

impl JobFilter {
    fn admits(&self, job: &Job) -> bool {
        self.state.is_none_or(|state| job.state == state)
            && self.language.as_ref().is_none_or(|l| job.language == *l)
            && self.label.as_ref().is_none_or(|l| job.labels.contains(l))
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobPage {
    /// The jobs, newest first.
    pub jobs: Vec<Job>,
    /// Where to go on: only jobs older than this one follow.
    pub next: Option<JobId>,
}

/// The read side of a ledger.
#[derive(Clone, Copy, Debug)]
pub struct View<S> {
    store: S,
}

impl<S: Store> View<S> {
    /// Reads the ledger kept in `store`.
    pub const fn new(store: S) -> Self {
        Self { store }
    }

    pub(crate) fn read<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.store
            .get(key)?
            .map(|bytes| decode(key, &bytes))
            .transpose()
    }

    /// The ledger's figures.
    ///
    /// # Errors
    /// When the store cannot be read; so for every call here.
    pub fn counters(&self) -> Result<Counters, StoreError> {
        Ok(self.read(keys::COUNTERS)?.unwrap_or_default())
    }

    /// A job's record.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.read(&keys::job(id))
    }

    /// What was submitted.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn spec(&self, id: JobId) -> Result<Option<JobSpec>, StoreError> {
        self.read(&keys::spec(id))
    }

    /// What a finished job printed; `None` also when it never ran.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn output(&self, id: JobId) -> Result<Option<Output>, StoreError> {
        self.read(&keys::output(id))
    }

    /// The job that has an idempotency key.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn key(&self, key: &str) -> Result<Option<KeyRecord>, StoreError> {
        self.read(&keys::idempotency(key))
    }

    /// A node's record.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn node(&self, id: NodeId) -> Result<Option<Node>, StoreError> {
        self.read(&keys::node(id))
    }

    /// All nodes that ever announced themselves and were not removed, by id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.pairs(keys::nodes())
            .map(|pair| pair.and_then(|(key, value)| decode(&key, &value)))
            .collect()
    }

    /// Nodes that were let in and not removed, by id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn admissions(&self) -> Result<Vec<(NodeId, Admission)>, StoreError> {
        self.pairs(keys::admissions())
            .map(|pair| {
                let (key, value) = pair?;
                let node = keys::node_of(&key).ok_or_else(|| malformed(&key))?;
                Ok((node, decode(&key, &value)?))
            })
            .collect()
    }

    /// Nodes that were removed for ever, by id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn removed(&self) -> Result<Vec<NodeId>, StoreError> {
        self.pairs(keys::removals())
            .map(|pair| {
                let (key, _) = pair?;
                keys::node_of(&key).ok_or_else(|| malformed(&key))
            })
            .collect()
    }

    /// Whether a node was removed for ever.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_removed(&self, node: NodeId) -> Result<bool, StoreError> {
        Ok(self.store.get(&keys::removed(node))?.is_some())
    }

    /// The settings of the cluster.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn settings(&self) -> Result<Settings, StoreError> {
        Ok(self.read(keys::SETTINGS)?.unwrap_or_default())
    }

    /// The languages that the ledger says something of, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn languages(&self) -> Result<Vec<(String, Entry)>, StoreError> {
        self.pairs(keys::languages())
            .map(|pair| {
                let (key, value) = pair?;
                let name = keys::name_of_language(&key).ok_or_else(|| malformed(&key))?;
                Ok((name.to_owned(), decode(&key, &value)?))
            })
            .collect()
    }

    /// What the ledger says of a language.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn language(&self, name: &str) -> Result<Option<Entry>, StoreError> {
        self.read(&keys::language(name))
    }

    /// How often languages have been changed; a change has this number as its version.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn language_changes(&self) -> Result<u64, StoreError> {
        Ok(self.read(keys::LANGUAGE_CHANGES)?.unwrap_or(0))
    }

    /// What the jobs of the queue need, see [`needed`](crate::language::needed): each once, with the job that is first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn needed(&self) -> Result<Vec<(String, JobId)>, StoreError> {
        let mut needed = Vec::new();
        let (mut from, to) = keys::queue();
        while let Some((key, value)) = self.store.first(&from, &to)? {
            let (name, _) = keys::parts_of_queued(&key).ok_or_else(|| malformed(&key))?;
            from = keys::after_language(name);
            needed.push((name.to_owned(), decode(&key, &value)?));
        }
        Ok(needed)
    }

    /// The attempts that hold a slot of a node, oldest job first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn attempts(&self, node: NodeId) -> Result<Vec<(JobId, u32)>, StoreError> {
        self.pairs(keys::attempts(node))
            .map(|pair| {
                let (key, value) = pair?;
                let job = keys::job_of_attempt(&key).ok_or_else(|| malformed(&key))?;
                Ok((job, decode(&key, &value)?))
            })
            .collect()
    }

    /// When the next finished job may be expired, Unix milliseconds.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next_expiry(&self) -> Result<Option<u64>, StoreError> {
        let (from, to) = keys::expiries();
        self.store
            .first(&from, &to)?
            .map(|(key, _)| keys::parts_of_expiry(&key).ok_or_else(|| malformed(&key)))
            .transpose()
            .map(|parts| parts.map(|(time, _)| time))
    }

    /// When the finished jobs that may be expired next have finished, Unix milliseconds: the first of them, up to a number.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next_expiries(&self, limit: u32) -> Result<Vec<u64>, StoreError> {
        let (mut from, to) = keys::expiries();
        let mut finished = Vec::new();
        for _ in 0..limit {
            let Some((key, _)) = self.store.first(&from, &to)? else {
                break;
            };
            let (_, id) = keys::parts_of_expiry(&key).ok_or_else(|| malformed(&key))?;
            let job = self.job(id)?.ok_or_else(|| {
                StoreError::Inconsistent(format!("job {id} is to expire but is not there"))
            })?;
            finished.push(job.finished_ms.unwrap_or(0));
            from.clear();
            from.extend_from_slice(&key);
            from.push(0);
        }
        Ok(finished)
    }

    /// Jobs, newest first, those older than `before`. Looks at no more than `scan` records, so that a filter that admits
    /// little cannot hold a reader for long; the page then ends early and says where to go on.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn jobs(
        &self,
        filter: &JobFilter,
        before: Option<JobId>,
        limit: usize,
        scan: usize,
    ) -> Result<JobPage, StoreError> {
        let (from, mut to) = keys::jobs();
        if let Some(before) = before {
            to = keys::job(before);
        }
        let mut page = JobPage {
            jobs: Vec::new(),
            next: None,
        };
        for _ in 0..scan {
            let Some((key, value)) = self.store.last(&from, &to)? else {
                page.next = None;
                return Ok(page);
            };
            let job: Job = decode(&key, &value)?;
            page.next = Some(job.id);
            if filter.admits(&job) {
                page.jobs.push(job);
                if page.jobs.len() == limit {
                    break;
                }
            }
            to = key.to_vec();
        }
        Ok(page)
    }

    fn pairs(
        &self,
        (mut from, to): keys::Range,
    ) -> impl Iterator<Item = Result<crate::store::Pair, StoreError>> + '_ {
        std::iter::from_fn(move || match self.store.first(&from, &to) {
            Ok(Some((key, value))) => {
                from = key.to_vec();
                from.push(0);
                Some(Ok((key, value)))
            }
            Ok(None) => None,
            Err(error) => {
                from.clone_from(&to); // an iterator that failed once has ended
                Some(Err(error))
            }
        })
    }
}

pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    codec::decode(bytes).map_err(|source| StoreError::Decode {
        key: key.escape_ascii().to_string(),
        source,
    })
}

pub(crate) fn malformed(key: &[u8]) -> StoreError {
    StoreError::Inconsistent(format!("malformed key {}", key.escape_ascii()))
}
