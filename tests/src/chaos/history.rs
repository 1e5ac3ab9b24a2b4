//! What clients and watchers have seen, in the order in which they saw it.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::say;

/// What must hold; see `invariants`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// An acknowledged job has exactly one result in the end.
    I1,
    /// The same key is the same job.
    I2,
    /// A result never changes, and is the same on all nodes.
    I3,
    /// Attempts only grow, and nothing is executed that was no attempt.
    I4,
    /// Two attempts of one job do not run at the same time beyond the time it takes to notice a lost node.
    I5,
    /// What was acknowledged is seen by every later read, and no read goes back.
    I6,
    /// The same entries applied are the same state.
    I7,
    /// Who is cut off from the majority acknowledges nothing.
    I8,
    /// What was committed stays: the state at an index never becomes another.
    I9,
    /// Without faults, all of it settles in bounded time and works.
    I10,
    /// Memory and disk are bounded.
    I11,
    /// A node whose disk forgot something does not take part.
    I12,
    /// No answer of a kind that no client deserves.
    Answers,
    /// No process ends by itself without a reason.
    Processes,
    /// The planned faults have happened.
    Faults,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Prints its name.
    Echo,
    /// Takes two seconds.
    Sleep,
    /// Takes eight seconds.
    Long,
    /// Prints 64 KiB.
    Large,
    /// Exits with 3.
    Fails,
    /// Is ended by its limit.
    Endless,
}

/// How far a job is, so that a later state is greater: 2 for each attempt, and 1 more while it waits for the next.
pub type Rank = u64;

/// One job, as its submitter knows it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which program.
    pub program: Program,
    /// The id, once an answer has told it.
    pub id: Option<String>,
    /// Whether a node has answered 2xx.
    pub acknowledged: bool,
    /// A node has confirmed that it was cancelled.
    pub cancelled: bool,
    /// The state that a read has shown that was over, with its digest once it has finished.
    seen: Rank,
    result: Option<u64>,
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What it goes against.
    pub invariant: Invariant,
    /// What was seen.
    pub what: String,
    /// When, from the beginning.
    pub at: Duration,
}

/// Figures of the clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests that were sent to submit something.
    pub requests: u64,
    /// Acknowledgements of jobs that had been acknowledged before, or whose first answer was lost.
    pub joined: u64,
    /// Submissions that no node has answered in time; resolved in the end.
    pub unknown: u64,
    /// Refused with 429 or 503.
    pub refused: u64,
    /// Requests whose answer did not come.
    pub unanswered: u64,
    /// Reads that were checked.
    pub reads: u64,
    /// Confirmed cancellations.
    pub cancelled: u64,
    /// Submissions that came later than planned because too many were under way.
    pub late: u64,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: BTreeMap<u64, Record>,
    violations: Vec<Violation>,
    tally: Tally,
    /// When an acknowledged request was sent, and when it was answered.
    accepted: Vec<(Instant, Instant)>,
    /// The state at an index, and who was the first to show it.
    states: BTreeMap<u64, (String, u64)>,
    samples: u64,
    compared: u64,
}

/// All that was seen.
#[derive(Debug)]
pub struct History {
    began: Instant,
    inner: Mutex<Inner>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            inner: Mutex::default(),
        }
    }
}

/// More violations are only kept for the report.
const SHOWN: usize = 30;

impl History {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the beginning.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Something that must not be was seen.
    pub fn violated(&self, invariant: Invariant, what: impl Into<String>) {
        let violation = Violation {
            invariant,
            what: what.into(),
            at: self.now(),
        };
        let mut inner = self.lock();
        if inner.violations.len() < SHOWN {
            say(&format!(
                "{:8.2}s VIOLATED {invariant}: {}",
                violation.at.as_secs_f64(),
                violation.what
            ));
        }
        inner.violations.push(violation);
    }

    /// Everything that must not be.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// A job is about to be submitted.
    pub fn submitting(&self, job: u64, program: Program) {
        let record = Record {
            program,
            id: None,
            acknowledged: false,
            cancelled: false,
            seen: 0,
            result: None,
        };
        self.lock().jobs.insert(job, record);
    }

    /// A node has answered a submission with 2xx. Returns whether that was the first time.
    pub fn acknowledged(&self, job: u64, id: &str, sent: Instant) -> bool {
        let mut inner = self.lock();
        inner.accepted.push((sent, Instant::now()));
        let Some(record) = inner.jobs.get_mut(&job) else {
            return false;
        };
        let first = !record.acknowledged;
        record.acknowledged = true;
        let other = match &record.id {
            None => {
                record.id = Some(id.to_owned());
                None
            }
            Some(known) if known != id => Some(known.clone()),
            Some(_) => None,
        };
        if !first {
            inner.tally.joined += 1;
        }
        drop(inner);
        if let Some(other) = other {
            let what = format!("the key of job {job} was answered with {other}, then with {id}");
            self.violated(Invariant::I2, what);
        }
        first
    }

    /// A cancellation was confirmed.
    pub fn cancelled(&self, job: u64) {
        let mut inner = self.lock();
        inner.tally.cancelled += 1;
        if let Some(record) = inner.jobs.get_mut(&job) {
            record.cancelled = true;
        }
    }

    /// Changes the figures.
    pub fn tally(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.lock().tally);
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self) -> Tally {
        self.lock().tally
    }

    /// All jobs.
    #[must_use]
    pub fn jobs(&self) -> BTreeMap<u64, Record> {
        self.lock().jobs.clone()
    }

    /// How many jobs were acknowledged.
    #[must_use]
    pub fn acknowledgements(&self) -> usize {
        let inner = self.lock();
        inner.jobs.values().filter(|job| job.acknowledged).count()
    }

    /// The times at which requests were sent that were acknowledged, and those at which they were.
    #[must_use]
    pub fn accepted(&self) -> Vec<(Instant, Instant)> {
        self.lock().accepted.clone()
    }

    /// What a read that begins now must not fall behind.
    #[must_use]
    pub fn floor(&self, job: u64) -> Rank {
        self.lock().jobs.get(&job).map_or(0, |record| record.seen)
    }

    /// A read has shown a job. `floor` is from when it began.
    pub fn read(&self, job: u64, floor: Rank, shown: &Value, whom: &str) {
        let rank = rank(shown);
        let finished = shown["state"] == "finished";
        let digest = digest(shown);
        let mut inner = self.lock();
        inner.tally.reads += 1;
        let Some(record) = inner.jobs.get_mut(&job) else {
            return;
        };
        record.seen = record.seen.max(rank);
        let changed = match record.result {
            Some(known) if finished => known != digest,
            _ => {
                if finished {
                    record.result = Some(digest);
                }
                false
            }
        };
        drop(inner);
        if rank < floor {
            let what = format!("job {job} went back from {floor} to {rank} at {whom}: {shown}");
            self.violated(Invariant::I6, what);
        }
        if changed {
            let what = format!("the result of job {job} has changed at {whom}: {shown}");
            self.violated(Invariant::I3, what);
        }
    }

    /// A node has shown its state.
    pub fn state(&self, node: u64, index: u64, hash: &str) {
        let mut inner = self.lock();
        inner.samples += 1;
        let (first, other) = inner
            .states
            .entry(index)
            .or_insert_with(|| (hash.to_owned(), node));
        let same = first == hash;
        let (first, other) = (first.clone(), *other);
        if other != node {
            inner.compared += 1;
        }
        drop(inner);
        if !same {
            let invariant = if other == node {
                Invariant::I9
            } else {
                Invariant::I7
            };
            let what = format!(
                "at index {index} node {other} has the state {first}, and node {node} has {hash}"
            );
            self.violated(invariant, what);
        }
    }

    /// How many states were looked at, and how many of them were compared with another node's.
    #[must_use]
    pub fn samples(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.samples, inner.compared)
    }
}

/// What of a shown job must never change once it has finished.
#[must_use]
pub fn digest(shown: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    shown.to_string().hash(&mut hasher);
    hasher.finish()
}

fn rank(shown: &Value) -> Rank {
    let attempts = shown["attempts"].as_u64().unwrap_or_default();
    match shown["state"].as_str() {
        Some("finished") => Rank::MAX,
        Some("running") => 2 * attempts,
        _ => 2 * attempts + 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn violated(history: &History) -> Vec<Invariant> {
        let all = history.violations();
        all.iter().map(|violation| violation.invariant).collect()
    }

    #[test]
    fn states_only_go_forward() {
        let history = History::default();
        history.submitting(1, Program::Echo);
        let shown = |state: &str, attempts: u64| json!({ "state": state, "attempts": attempts });
        for next in [
            shown("queued", 0),
            shown("running", 1),
            shown("queued", 1),
            shown("running", 2),
            shown("finished", 2),
            shown("finished", 2),
        ] {
            history.read(1, history.floor(1), &next, "a node");
        }
        assert!(violated(&history).is_empty());
        history.read(1, history.floor(1), &shown("running", 2), "a node");
        assert_eq!(violated(&history), [Invariant::I6]);
        // A read that began before the other ended may show what was before.
        history.read(1, 0, &shown("running", 2), "a node");
        assert_eq!(violated(&history).len(), 1);
        history.read(1, 0, &shown("finished", 3), "a node");
        assert_eq!(violated(&history), [Invariant::I6, Invariant::I3]);
    }

    #[test]
    fn a_key_is_a_job_and_an_index_is_a_state() {
        let history = History::default();
        history.submitting(1, Program::Echo);
        assert!(history.acknowledged(1, "a", Instant::now()));
        assert!(!history.acknowledged(1, "a", Instant::now()));
        history.state(1, 7, "x");
        history.state(2, 7, "x");
        assert!(violated(&history).is_empty());
        history.acknowledged(1, "b", Instant::now());
        history.state(3, 7, "y");
        history.state(1, 7, "z");
        assert_eq!(
            violated(&history),
            [Invariant::I2, Invariant::I7, Invariant::I9]
        );
    }
}
