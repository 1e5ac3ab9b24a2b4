//! What was seen from outside, and what must hold of it.
//!
//! | invariant | where |
//! | --- | --- |
//! | a term has one leader | [`History::leads`] |
//! | all nodes apply the same log, each batch in the term of the leader that stamped it | `quorun_consensus::simulation` |
//! | equal index, equal hash of the ledger | [`History::stands`] |
//! | what a node has applied does not go back while it runs | [`History::stands`] |
//! | an acknowledged job, and a result that some node shows, is in every linearizable read that begins later | [`History::read`] |
//! | retries with one key are one job | [`History::acknowledged`] |
//! | a result never changes, and is of an attempt that was executed | [`History::finished`] |
//! | the attempts of a job are numbered upwards, each is given to one process and executed once | [`History::assigned`], [`History::executed`] |
//! | a node starts again with what it has | [`cluster`](super::cluster) |
//! | nobody is called again and again without a pause | [`cluster`](super::cluster) |
//! | in the end everything acknowledged is finished, and all ledgers are the same | [`cluster`](super::cluster) |

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use quorun_ledger::{Job, JobId, JobState, NodeId, StateHash, Verdict};

/// A job with what it printed.
pub(super) type Seen = (Job, String);

/// A result, as far as it must not change.
type Outcome = (u32, Option<NodeId>, Verdict, String);

/// Everything that was seen.
#[derive(Debug, Default)]
pub(super) struct History {
    leaders: BTreeMap<u64, NodeId>,
    hashes: BTreeMap<u64, StateHash>,
    /// By node and incarnation.
    applied: BTreeMap<(NodeId, u64), u64>,
    /// By key.
    pub(super) jobs: BTreeMap<String, JobId>,
    results: BTreeMap<JobId, Outcome>,
    assigned: BTreeMap<(JobId, u32), (NodeId, u64)>,
    /// The newest attempt that a process has heard of.
    newest: BTreeMap<(NodeId, u64, JobId), u32>,
    executed: BTreeMap<(JobId, u32), (NodeId, u64)>,
    /// What the programs printed, outside of the cluster.
    printed: BTreeMap<(JobId, u32), String>,
    violations: Vec<String>,
    /// Reads that were answered.
    pub(super) reads: usize,
}

/// Shared by all that see something. A simulation has one thread.
pub(super) type Shared = Rc<RefCell<History>>;

impl History {
    pub(super) fn wrong(&mut self, what: String) {
        tracing::error!(what, "violation");
        self.violations.push(what);
    }

    pub(super) fn violations(&self) -> &[String] {
        &self.violations
    }

    /// How many terms had a leader.
    pub(super) fn terms(&self) -> usize {
        self.leaders.len()
    }

    pub(super) fn attempts(&self) -> usize {
        self.executed.len()
    }

    /// A node says that it leads.
    pub(super) fn leads(&mut self, term: u64, node: NodeId) {
        let leader = *self.leaders.entry(term).or_insert(node);
        if leader != node {
            self.wrong(format!("term {term} has two leaders: {leader} and {node}"));
        }
    }

    /// A node has applied so much, and its ledger has this hash.
    pub(super) fn stands(&mut self, process: (NodeId, u64), index: u64, hash: StateHash) {
        let known = *self.hashes.entry(index).or_insert(hash);
        if known != hash {
            self.wrong(format!(
                "at entry {index} the ledger of {process:?} is {hash}, but another was {known}"
            ));
        }
        let before = self.applied.insert(process, index).unwrap_or(0);
        if before > index {
            self.wrong(format!("{process:?} went back from {before} to {index}"));
        }
    }

    /// A client was told that its submission was taken.
    pub(super) fn acknowledged(&mut self, key: &str, job: JobId) {
        let first = *self.jobs.entry(key.to_owned()).or_insert(job);
        if first != job {
            self.wrong(format!("{key} was taken as {first} and as {job}"));
        }
    }

    /// Some node shows the job's result.
    pub(super) fn has_result(&self, job: JobId) -> bool {
        self.results.contains_key(&job)
    }

    /// A linearizable read of a job that had been acknowledged before, and perhaps `had_result` when the read began.
    pub(super) fn read(&mut self, job: JobId, had_result: bool, found: Option<&Seen>) {
        self.reads += 1;
        match found {
            None => self.wrong(format!("{job} was acknowledged, but is not there")),
            Some((job, stdout)) if job.state == JobState::Finished => self.finished(job, stdout),
            Some((job, _)) if had_result => {
                self.wrong(format!("{} had finished, but is {:?}", job.id, job.state));
            }
            Some(_) => {}
        }
    }

    /// A job that has its result, as some node shows it.
    pub(super) fn finished(&mut self, job: &Job, stdout: &str) {
        let id = job.id;
        let Some(outcome) = &job.outcome else {
            self.wrong(format!("{id} has finished without an outcome"));
            return;
        };
        let seen = (job.attempt, job.node, outcome.verdict, stdout.to_owned());
        let first = self.results.entry(id).or_insert_with(|| seen.clone());
        if *first != seen {
            let first = first.clone();
            self.wrong(format!("the result of {id} was {first:?} and is {seen:?}"));
        }
        match outcome.verdict {
            Verdict::Cancelled => {}
            Verdict::Accepted => {
                if self.printed.get(&(id, job.attempt)).map(String::as_str) != Some(stdout) {
                    self.wrong(format!(
                        "attempt {} of {id} has not printed {stdout:?}",
                        job.attempt
                    ));
                }
            }
            other => self.wrong(format!("{id} ended with {other:?}: {:?}", outcome.message)),
        }
    }

    /// A process was told of an attempt.
    pub(super) fn assigned(
        &mut self,
        process: (NodeId, u64),
        job: JobId,
        attempt: u32,
        to: (NodeId, u64),
    ) {
        let first = *self.assigned.entry((job, attempt)).or_insert(to);
        if first != to {
            self.wrong(format!(
                "attempt {attempt} of {job} was given to {first:?} and to {to:?}"
            ));
        }
        let key = (process.0, process.1, job);
        let before = self.newest.insert(key, attempt).unwrap_or(0);
        if before >= attempt {
            self.wrong(format!(
                "{process:?} heard of attempt {attempt} of {job} after attempt {before}"
            ));
        }
    }

    /// A process has executed an attempt to its end.
    pub(super) fn executed(
        &mut self,
        process: (NodeId, u64),
        job: JobId,
        attempt: u32,
        printed: String,
    ) {
        if let Some(first) = self.executed.insert((job, attempt), process) {
            self.wrong(format!(
                "attempt {attempt} of {job} was executed by {first:?} and by {process:?}"
            ));
        }
        self.printed.insert((job, attempt), printed);
    }
}
