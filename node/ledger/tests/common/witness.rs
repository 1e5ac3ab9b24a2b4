//! Invariants of the ledger, looked at after every batch.

use std::collections::{BTreeMap, BTreeSet};

use quorun_ledger::{
    Applied, Command, Event, Job, JobId, JobState, MemoryStore, NodeId, Output, Reply, StateHash,
    View, keys,
};

/// For each command the job that it submits, if it submits one.
pub fn submitted(commands: &[Command]) -> Vec<Option<JobId>> {
    commands
        .iter()
        .map(|command| match command {
            Command::Submit { id, .. } => Some(*id),
            _ => None,
        })
        .collect()
}

/// What has to stay true from batch to batch.
#[derive(Default)]
pub struct Witness {
    /// Answered as submitted.
    pub accepted: BTreeSet<JobId>,
    /// Announced as finished; only these may be gone.
    pub ended: BTreeSet<JobId>,
    finished: BTreeMap<JobId, (Job, Output)>,
}

impl Witness {
    /// Takes in what a batch of commands did; `store` is what came of it.
    ///
    /// # Panics
    /// When something is not as it has to be.
    pub fn check(&mut self, submitted: &[Option<JobId>], applied: &Applied, store: &MemoryStore) {
        for (id, reply) in submitted.iter().zip(&applied.replies) {
            if let (Some(id), Reply::Submitted { job, joined }) = (id, reply) {
                assert!(*joined || job == id);
                self.accepted.insert(*job);
            }
        }
        let ended = applied.events.iter().filter_map(|event| match event {
            Event::Finished { job } => Some(*job),
            _ => None,
        });
        self.ended.extend(ended);
        self.look(store);
    }

    fn look(&mut self, store: &MemoryStore) {
        let view = View::new(store);
        let nodes = view.nodes().unwrap();
        let mut held: BTreeMap<JobId, Vec<(NodeId, u32)>> = BTreeMap::new();
        for node in &nodes {
            let attempts = view.attempts(node.id).unwrap();
            assert_eq!(node.busy as usize, attempts.len(), "busy counts attempts");
            assert!(node.busy <= node.slots, "{node:?} exceeds its slots");
            assert!(!node.lost || attempts.is_empty(), "a lost node holds work");
            for (job, attempt) in attempts {
                held.entry(job).or_default().push((node.id, attempt));
            }
        }
        let (mut queued, mut running, mut finished, mut finished_bytes) = (0, 0, 0, 0);
        for id in &self.accepted {
            let Some(job) = view.job(*id).unwrap() else {
                assert!(
                    self.ended.contains(id),
                    "job {id} was lost before it had a result"
                );
                assert!(view.spec(*id).unwrap().is_none(), "left behind: spec");
                assert!(view.output(*id).unwrap().is_none(), "left behind: output");
                continue;
            };
            assert!(job.attempt <= job.max_attempts);
            assert!(view.spec(*id).unwrap().is_some());
            let current = job.node.map(|node| (node, job.attempt));
            match job.state {
                JobState::Queued => {
                    queued += 1;
                    let place = keys::queued(&job.needs(), job.order.unwrap());
                    assert!(store.iter().any(|(key, _)| key[..] == place[..]));
                    assert!(!held.contains_key(id), "queued, but {:?}", held[id]);
                }
                JobState::Running => {
                    running += 1;
                    assert_eq!(held.get(id), Some(&vec![current.unwrap()]));
                }
                JobState::Finished => {
                    finished += 1;
                    finished_bytes += job.weight;
                    assert!(job.outcome.is_some());
                    let output = view.output(*id).unwrap().unwrap();
                    let expiry = keys::expiry(job.expires_ms().unwrap(), *id);
                    assert!(store.iter().any(|(key, _)| key[..] == expiry[..]));
                    let now = (job, output);
                    let then = self.finished.entry(*id).or_insert_with(|| now.clone());
                    assert_eq!(*then, now, "a result changed");
                }
            }
        }
        let counters = view.counters().unwrap();
        assert_eq!(counters.queued, queued);
        assert_eq!(counters.running, running);
        assert_eq!(counters.finished, finished);
        assert_eq!(counters.finished_bytes, finished_bytes);
        let places = store.iter().filter(|(key, _)| key[0] == b'q').count();
        assert_eq!(places as u64, queued, "one place for each queued job");
        let mut hash = StateHash::default();
        for (key, value) in store.iter().filter(|(key, _)| key[..] != *keys::COUNTERS) {
            hash.add(key, value);
        }
        assert_eq!(counters.hash, hash, "the hash is over all records");
    }
}
