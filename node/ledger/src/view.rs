//! Questions to the ledger.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::callback::Delivery;
use crate::codec::{self, DecodeError};
use crate::hash::StateHash;
use crate::job::{Job, JobId, JobSpec, JobState, Output, Verdict};
use crate::keys;
use crate::language::Entry;
use crate::node::{Admission, Node, NodeId};
use crate::owner::OwnerLoad;
use crate::priority::{Level, Priority, Turns, Waiting};
use crate::rounds::{Rounds, Turn};
use crate::settings::Settings;
use crate::store::{Store, StoreError};
use crate::weight::Weights;

/// The figures that the ledger keeps about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The ledger's time, Unix milliseconds; never goes back.
    pub time_ms: u64,
    /// The place in the normal level that the next job put back gets, counting down.
    pub front: u64,
    /// The place in the normal level that the next new job gets, counting up.
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
    /// The level before the normal one.
    #[serde(default, skip_serializing_if = "Level::is_unused")]
    pub high: Level,
    /// The level behind it.
    #[serde(default, skip_serializing_if = "Level::is_unused")]
    pub low: Level,
    /// Whose turn it is.
    #[serde(default, skip_serializing_if = "Turns::is_unused")]
    pub turns: Turns,
    /// What waits of each language; those of which nothing waits are not there. What an earlier version has queued is not
    /// counted here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub languages: BTreeMap<String, Waiting>,
    /// How far finished jobs are kept in the order of age.
    #[serde(default, skip_serializing_if = "Ages::is_unkept")]
    pub ages: Ages,
    /// By what jobs are weighed.
    #[serde(default, skip_serializing_if = "Weights::is_payload")]
    pub weights: Weights,
    /// What finished jobs weigh that are still to be delivered, bytes; only those that stand in an order of their own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub undelivered_bytes: u64,
    /// The last rules that were begun by a command ([`RULES`](crate::RULES)); 0 where those are from before this was said. A program
    /// that knows only former ones must not go on with this ledger: it would come to another one than the other nodes.
    #[serde(default, skip_serializing_if = "is_none_begun")]
    pub rules: u32,
    /// Whose turn it is within each level, in the order of the levels.
    #[serde(default, skip_serializing_if = "Rounds::are_unused")]
    pub rounds: [Rounds; 3],
    /// Jobs that were purged a moment ago.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub purged: u64,
    /// Over all records but this one.
    pub hash: StateHash,
}

/// Which finished jobs stand in the order of age. Earlier versions do not keep it, so a command begins it, and those that had
/// finished before are taken into it a part at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ages {
    /// None.
    #[default]
    Unkept,
    /// All that have finished since it was begun, and of the others those that were looked at.
    Begun {
        /// The last job that was looked at, in the order of ids.
        seen: JobId,
        /// The last one that there was at the beginning.
        last: JobId,
    },
    /// All.
    Kept,
}

impl Ages {
    #[allow(clippy::trivially_copy_pass_by_ref)] // for serde
    fn is_unkept(&self) -> bool {
        *self == Self::Unkept
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // for serde
const fn is_none_begun(rules: &u32) -> bool {
    *rules == 0
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
            high: Level::default(),
            low: Level::default(),
            turns: Turns::default(),
            languages: BTreeMap::new(),
            ages: Ages::Unkept,
            weights: Weights::Payload,
            undelivered_bytes: 0,
            rules: 0,
            rounds: [Rounds::default(); 3],
            purged: 0,
            hash: StateHash::default(),
        }
    }
}

impl Counters {
    /// The bytes of the record. A program that does not know that rules have a number must not go on with a ledger in which
    /// some have begun, so it must not be able to read this.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        if self.rules > 0 {
            codec::encode_ruled(self)
        } else {
            codec::encode(self)
        }
    }

    /// Reads what [`encode`](Self::encode) has written.
    ///
    /// # Errors
    /// When the bytes are not counters in a version that this program knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode_ruled(bytes)
    }

    /// What waits in a level.
    #[must_use]
    pub const fn waiting(&self, level: Priority) -> Waiting {
        let (high, low) = (self.high.waiting, self.low.waiting);
        match level {
            Priority::High => high,
            Priority::Low => low,
            Priority::Normal => Waiting {
                jobs: self.queued.saturating_sub(high.jobs + low.jobs),
                bytes: self.queued_bytes.saturating_sub(high.bytes + low.bytes),
            },
        }
    }

    /// How many jobs have their turn before one that enters a level now and has so many before it there.
    fn ahead_of_new(&self, level: Priority, in_level: u64) -> u64 {
        let mut turns = self.turns;
        if self.waiting(level).jobs == 0 {
            turns.enters(level);
        }
        in_level + self.ahead_elsewhere(&turns, level, in_level)
    }

    /// The turns within a level.
    #[must_use]
    pub const fn rounds(&self, level: Priority) -> &Rounds {
        &self.rounds[level as usize]
    }

    pub(crate) const fn rounds_mut(&mut self, level: Priority) -> &mut Rounds {
        &mut self.rounds[level as usize]
    }

    /// Lets owners have their turns within the levels: from now on whoever comes gets a place of a round.
    pub(crate) fn begin_rounds(&mut self) {
        for level in Priority::ALL {
            let next = match self.level_mut(level) {
                Some(other) => other.next(level),
                None => self.back,
            };
            self.rounds[level as usize] = Rounds::beginning(next);
        }
    }

    /// The key of a job's place in the queue.
    #[must_use]
    pub fn queued(&self, job: &Job, order: u64) -> Vec<u8> {
        if self.rounds(job.priority).have(order) {
            keys::queued_in_round(&job.needs(), order, job.id)
        } else {
            keys::queued(&job.needs(), order)
        }
    }

    /// How many jobs of other levels have their turn before one with so many before it in its own.
    pub(crate) fn ahead_elsewhere(&self, turns: &Turns, level: Priority, in_level: u64) -> u64 {
        let others = Priority::ALL.into_iter().filter(|other| *other != level);
        others
            .map(|other| {
                // A level that is empty gets no turns.
                let waiting = self.waiting(other).jobs;
                turns.passed_by(level, in_level, other, waiting)
            })
            .sum()
    }

    /// The levels in which something waits.
    pub(crate) fn waiting_levels(&self) -> impl Iterator<Item = Priority> {
        let waits = Priority::ALL.map(|level| (level, self.waiting(level).jobs > 0));
        waits
            .into_iter()
            .filter_map(|(level, waits)| waits.then_some(level))
    }

    const fn level_mut(&mut self, level: Priority) -> Option<&mut Level> {
        match level {
            Priority::High => Some(&mut self.high),
            Priority::Normal => None,
            Priority::Low => Some(&mut self.low),
        }
    }

    /// Gives away the place before all others of a level.
    pub(crate) fn place_before(&mut self, priority: Priority) -> u64 {
        if let Some(level) = self.level_mut(priority) {
            return level.before(priority);
        }
        self.front -= 1;
        self.front + 1
    }

    /// Gives away the place behind all others of a level.
    pub(crate) fn place_behind(&mut self, priority: Priority) -> u64 {
        if let Some(level) = self.level_mut(priority) {
            return level.behind(priority);
        }
        self.back += 1;
        self.back - 1
    }

    pub(crate) fn enters_queue(&mut self, language: &str, priority: Priority, weight: u64) {
        if self.waiting(priority).jobs == 0 {
            self.turns.enters(priority);
        }
        self.queued += 1;
        self.queued_bytes += weight;
        if let Some(level) = self.level_mut(priority) {
            level.waiting.add(weight);
        }
        match self.languages.get_mut(language) {
            Some(waiting) => waiting.add(weight),
            None => {
                let mut waiting = Waiting::default();
                waiting.add(weight);
                self.languages.insert(language.to_owned(), waiting);
            }
        }
    }

    pub(crate) fn leaves_queue(&mut self, language: &str, priority: Priority, weight: u64) {
        self.queued -= 1;
        self.queued_bytes -= weight;
        if let Some(level) = self.level_mut(priority) {
            level.waiting.take(weight);
        }
        if let Some(waiting) = self.languages.get_mut(language) {
            waiting.take(weight);
            if waiting.jobs == 0 {
                self.languages.remove(language);
            }
        }
        if self.queued == 0 {
            // Whatever was not counted is gone.
            self.languages.clear();
        }
    }

    /// A job that waits has got another weight.
    pub(crate) fn weighed_anew(&mut self, language: &str, priority: Priority, old: u64, new: u64) {
        self.queued_bytes = (self.queued_bytes - old) + new;
        if let Some(level) = self.level_mut(priority) {
            level.waiting.weighed_anew(old, new);
        }
        if let Some(waiting) = self.languages.get_mut(language) {
            waiting.weighed_anew(old, new);
        }
    }

    /// A job of a level, which has left the queue, was given to a node.
    pub(crate) fn served(&mut self, priority: Priority) {
        let mut turns = self.turns;
        turns.served(
            priority,
            self.waiting_levels().filter(|level| *level != priority),
        );
        self.turns = turns;
    }
}

/// Where a job stands in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The jobs that have their turn before it if nothing else comes, at most.
    pub ahead: u64,
    /// Those of its own level.
    pub in_level: u64,
}

/// Which job has an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The job.
    pub job: JobId,
    /// Digest of the request that it came with.
    pub fingerprint: [u8; 16],
}

/// Which jobs a list is to hold. What is not said admits all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFilter {
    /// Only jobs of this owner. These are looked up by themselves, however many others there are.
    #[serde(default)]
    pub owner: Option<String>,
    /// Only jobs in one of these states; in any if there are none.
    #[serde(default)]
    pub states: BTreeSet<JobState>,
    /// Only jobs of one of these languages.
    #[serde(default)]
    pub languages: BTreeSet<String>,
    /// Only jobs that have all of these labels.
    #[serde(default)]
    pub labels: BTreeSet<String>,
    /// Only jobs with one of these verdicts.
    #[serde(default)]
    pub verdicts: BTreeSet<Verdict>,
    /// Only jobs whose current or last attempt is, or was, on one of these nodes.
    #[serde(default)]
    pub nodes: BTreeSet<NodeId>,
    /// Only jobs of one of these levels.
    #[serde(default)]
    pub priorities: BTreeSet<Priority>,
    /// Only jobs that were submitted then or later, Unix milliseconds.
    #[serde(default)]
    pub from_ms: Option<u64>,
    /// Only jobs that were submitted earlier.
    #[serde(default)]
    pub until_ms: Option<u64>,
    /// The oldest first; else the newest.
    #[serde(default)]
    pub oldest_first: bool,
}

impl JobFilter {
    fn admits(&self, job: &Job) -> bool {
        fn one_of<T: Ord>(wanted: &BTreeSet<T>, value: Option<&T>) -> bool {
            wanted.is_empty() || value.is_some_and(|value| wanted.contains(value))
        }
        let verdict = job.outcome.as_ref().map(|outcome| outcome.verdict);
        one_of(&self.states, Some(&job.state))
            && one_of(&self.languages, Some(&job.language))
            && self.labels.iter().all(|label| job.labels.contains(label))
            && one_of(&self.verdicts, verdict.as_ref())
            && one_of(&self.nodes, job.node.as_ref())
            && one_of(&self.priorities, Some(&job.priority))
            && self.from_ms.is_none_or(|from| job.submitted_ms >= from)
            && self.until_ms.is_none_or(|until| job.submitted_ms < until)
    }

    /// The jobs that may be meant. Ids begin with the time of their drawing by the clock of the node that took the job, and
    /// the time of the submission is the leader's: what lies further from the wanted time than any two clocks do, is not
    /// looked at.
    fn range(&self) -> keys::Range {
        let owner = self.owner.as_deref();
        let (mut from, mut to) = owner.map_or_else(keys::jobs, keys::owned_by);
        let drawn = |time_ms| {
            owner.map_or_else(
                || keys::jobs_from(time_ms),
                |owner| keys::owned_from(owner, time_ms),
            )
        };
        if let Some(wanted) = self.from_ms {
            from = drawn(wanted.saturating_sub(CLOCKS_MS));
        }
        if let Some(wanted) = self.until_ms {
            to = drawn(wanted.saturating_add(CLOCKS_MS));
        }
        (from, to)
    }
}

/// How far the clocks of two nodes may lie apart before a list by time misses jobs.
const CLOCKS_MS: u64 = 60 * 60 * 1000;

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobPage {
    /// The jobs, in the order that was asked for.
    pub jobs: Vec<Job>,
    /// Where to go on: only jobs behind this one follow.
    pub next: Option<JobId>,
}

/// A delivery that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// The job whose end it tells.
    pub job: JobId,
    /// The host of its receiver.
    pub host: String,
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
        let key = keys::COUNTERS;
        match self.store.get(key)? {
            Some(bytes) => Counters::decode(&bytes).map_err(|source| of_record(key, source)),
            None => Ok(Counters::default()),
        }
    }

    /// A job's record.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.read(&keys::job(id))
    }

    /// Whether a job was purged a moment ago.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn was_purged(&self, id: JobId) -> Result<bool, StoreError> {
        Ok(self.store.get(&keys::purged(id))?.is_some())
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

    /// The delivery of a job's end, if somebody wants to be told.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn delivery(&self, id: JobId) -> Result<Option<Delivery>, StoreError> {
        self.read(&keys::delivery(id))
    }

    /// Deliveries that are to be sent by a time, in the order of their times: the first of them up to a number, or of those
    /// that come behind one of them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn due(
        &self,
        behind: Option<&Due>,
        until_ms: u64,
        limit: usize,
    ) -> Result<Vec<Due>, StoreError> {
        let (mut from, to) = keys::dues();
        if let Some(behind) = behind {
            from = keys::due(behind.at_ms, behind.job);
            from.push(0);
        }
        self.pairs((from, to))
            .map(|pair| {
                let (key, value) = pair?;
                let (at_ms, job) = keys::parts_of_expiry(&key).ok_or_else(|| malformed(&key))?;
                let host = decode(&key, &value)?;
                Ok(Due { at_ms, job, host })
            })
            .take_while(|due: &Result<Due, _>| {
                due.as_ref().map_or(true, |due| due.at_ms <= until_ms)
            })
            .take(limit)
            .collect()
    }

    /// When the next delivery is to be sent, Unix milliseconds.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next_due(&self) -> Result<Option<u64>, StoreError> {
        let (from, to) = keys::dues();
        self.store
            .first(&from, &to)?
            .map(|(key, _)| keys::parts_of_expiry(&key).ok_or_else(|| malformed(&key)))
            .transpose()
            .map(|parts| parts.map(|(time, _)| time))
    }

    /// The job that has an idempotency key of an owner, or of nobody in particular.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn key(&self, owner: Option<&str>, key: &str) -> Result<Option<KeyRecord>, StoreError> {
        self.read(&keys::idempotency(owner, key))
    }

    /// What an owner has that is not finished.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn owner_load(&self, owner: &str) -> Result<OwnerLoad, StoreError> {
        Ok(self.read(&keys::owner_load(owner))?.unwrap_or_default())
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

    /// When the finished jobs that may be expired by a time have finished, Unix milliseconds: the first of them in the order of
    /// expiry, up to a number. That a job was purged may be forgotten as well; of such a one it is 0.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next_expiries(&self, until_ms: u64, limit: usize) -> Result<Vec<u64>, StoreError> {
        let mut finished = Vec::new();
        for pair in self.pairs(keys::expiries()).take(limit) {
            let (key, _) = pair?;
            let (expires, id) = keys::parts_of_expiry(&key).ok_or_else(|| malformed(&key))?;
            if expires > until_ms {
                break;
            }
            let job = self.job(id)?;
            if job.is_none() && !self.was_purged(id)? {
                return Err(StoreError::Inconsistent(format!(
                    "job {id} is to expire but is not there"
                )));
            }
            finished.push(job.and_then(|job| job.finished_ms).unwrap_or(0));
        }
        Ok(finished)
    }

    /// When the oldest finished jobs have finished, Unix milliseconds: the first of them, up to a number. Only what stands in the
    /// order of age, see [`Ages`], and is not among [`oldest_undelivered`](Self::oldest_undelivered).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn oldest(&self, limit: usize) -> Result<Vec<u64>, StoreError> {
        self.times(keys::ages(), limit)
    }

    /// The same for those that are still to be delivered.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn oldest_undelivered(&self, limit: usize) -> Result<Vec<u64>, StoreError> {
        self.times(keys::all_undelivered(), limit)
    }

    fn times(&self, range: keys::Range, limit: usize) -> Result<Vec<u64>, StoreError> {
        self.pairs(range)
            .take(limit)
            .map(|pair| {
                let (key, _) = pair?;
                let (finished, _) = keys::parts_of_expiry(&key).ok_or_else(|| malformed(&key))?;
                Ok(finished)
            })
            .collect()
    }

    /// Where a queued job stands; `None` for a job that is not queued. Counted from what is kept, without a look at the
    /// jobs before it: in its own level from its place and the first one that is taken there, so that places that became
    /// free in between count as jobs, but never more than wait; in the others from whose turn it is. Of other owners' jobs as
    /// many are counted as may have a turn before it, see [`Rounds::ahead`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn place(&self, job: &Job) -> Result<Option<Place>, StoreError> {
        let Some(order) = job.order else {
            return Ok(None);
        };
        let counters = self.counters()?;
        let level = job.priority;
        let rounds = counters.rounds(level);
        let waiting = counters.waiting(level).jobs;
        let in_level = if rounds.have(order) {
            let turn = self.turn(&counters, job.owner.as_deref(), level)?;
            let first = self.first_taken(level, rounds.begin())?.unwrap_or(order);
            let own = turn.jobs.saturating_sub(1);
            waiting.saturating_sub(rounds.jobs()) + rounds.ahead(order, first, turn, own)
        } else {
            let first = self.first_taken(level, level.first_order())?;
            order - first.unwrap_or(order).min(order)
        };
        let in_level = in_level.min(waiting.saturating_sub(1));
        let elsewhere = counters.ahead_elsewhere(&counters.turns, level, in_level);
        Ok(Some(Place {
            ahead: in_level + elsewhere,
            in_level,
        }))
    }

    /// How many jobs would have their turn before one of an owner that entered each level now, at most: in the order of
    /// the levels.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn ahead_of_new(&self, owner: Option<&str>) -> Result<[u64; 3], StoreError> {
        let counters = self.counters()?;
        let mut ahead = [0; 3];
        for level in Priority::ALL {
            let rounds = counters.rounds(level);
            let waiting = counters.waiting(level).jobs;
            let in_level = if rounds.have_begun() {
                let turn = self.turn(&counters, owner, level)?;
                let place = rounds.next(turn);
                let first = self.first_taken(level, rounds.begin())?.unwrap_or(place);
                let before = waiting.saturating_sub(rounds.jobs());
                before + rounds.ahead(place, first, turn, turn.jobs)
            } else {
                waiting
            };
            ahead[level as usize] = counters.ahead_of_new(level, in_level);
        }
        Ok(ahead)
    }

    /// How an owner stands in a level.
    fn turn(
        &self,
        counters: &Counters,
        owner: Option<&str>,
        level: Priority,
    ) -> Result<Turn, StoreError> {
        Ok(match owner {
            None => counters.rounds(level).nobody,
            Some(owner) => self.owner_load(owner)?.turns[level as usize],
        })
    }

    /// The first place of a level that is taken, of those from one on.
    fn first_taken(&self, level: Priority, from: u64) -> Result<Option<u64>, StoreError> {
        let mut first = None;
        self.each_language(|view, language| {
            let (_, to) = level.places(language);
            let from = keys::queued(language, from);
            if let Some((key, _)) = view.store.first(&from, &to)? {
                let (_, order) = keys::parts_of_queued(&key).ok_or_else(|| malformed(&key))?;
                first = Some(first.map_or(order, |first: u64| first.min(order)));
            }
            Ok(())
        })?;
        Ok(first)
    }

    /// For each level, when the oldest of the first jobs of each language was submitted, Unix milliseconds: in a level the
    /// first of a language is its oldest, unless it was put back.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn oldest_waiting(&self) -> Result<[Option<u64>; 3], StoreError> {
        let mut oldest: [Option<u64>; 3] = [None; 3];
        self.each_language(|view, language| {
            for level in Priority::ALL {
                let (from, to) = level.places(language);
                let Some((key, value)) = view.store.first(&from, &to)? else {
                    continue;
                };
                if let Some(job) = view.job(decode(&key, &value)?)? {
                    let oldest = &mut oldest[level as usize];
                    let known = oldest.unwrap_or(u64::MAX);
                    *oldest = Some(known.min(job.submitted_ms));
                }
            }
            Ok(())
        })?;
        Ok(oldest)
    }

    /// Calls for each language of which something waits.
    fn each_language(
        &self,
        mut call: impl FnMut(&Self, &str) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let (mut from, to) = keys::queue();
        while let Some((key, _)) = self.store.first(&from, &to)? {
            let (language, _) = keys::parts_of_queued(&key).ok_or_else(|| malformed(&key))?;
            call(self, language)?;
            from = keys::after_language(language);
        }
        Ok(())
    }

    /// Jobs that a filter admits, in its order, those behind `behind`. Looks at no more than `scan` records, so that a filter
    /// that admits little cannot hold a reader for long; the page then ends early and says where to go on.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn jobs(
        &self,
        filter: &JobFilter,
        behind: Option<JobId>,
        limit: usize,
        scan: usize,
    ) -> Result<JobPage, StoreError> {
        let owner = filter.owner.as_deref();
        let place = |job| owner.map_or_else(|| keys::job(job), |owner| keys::owned(owner, job));
        let (mut from, mut to) = filter.range();
        if let Some(behind) = behind {
            let mut key = place(behind);
            if filter.oldest_first {
                key.push(0);
                from = from.max(key);
            } else {
                to = to.min(key);
            }
        }
        let mut page = JobPage {
            jobs: Vec::new(),
            next: None,
        };
        for _ in 0..scan {
            let next = if filter.oldest_first {
                self.store.first(&from, &to)?
            } else {
                self.store.last(&from, &to)?
            };
            let Some((key, value)) = next else {
                page.next = None;
                return Ok(page);
            };
            let (id, job): (JobId, Option<Job>) = match owner {
                None => {
                    let job: Job = decode(&key, &value)?;
                    (job.id, Some(job))
                }
                // One that was removed a moment ago is not there any more.
                Some(_) => {
                    let id = keys::job_of_owned(&key).ok_or_else(|| malformed(&key))?;
                    (id, self.job(id)?)
                }
            };
            page.next = Some(id);
            if let Some(job) = job.filter(|job| filter.admits(job)) {
                page.jobs.push(job);
                if page.jobs.len() == limit {
                    break;
                }
            }
            if filter.oldest_first {
                from = key.to_vec();
                from.push(0);
            } else {
                to = key.to_vec();
            }
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
    codec::decode(bytes).map_err(|source| of_record(key, source))
}

fn of_record(key: &[u8], source: DecodeError) -> StoreError {
    StoreError::Decode {
        key: key.escape_ascii().to_string(),
        source,
    }
}

pub(crate) fn malformed(key: &[u8]) -> StoreError {
    StoreError::Inconsistent(format!("malformed key {}", key.escape_ascii()))
}
