//! Invariants of the ledger, looked at after every batch.

use std::collections::{BTreeMap, BTreeSet};

use quorun_ledger::callback::MAX_ATTEMPTS;
use quorun_ledger::{
    Ages, Applied, BY_OWNER, Command, DeliveryState, Event, Job, JobId, JobState, MemoryStore,
    NodeId, Output, OwnerLoad, Priority, Reply, StateHash, View, Waiting, Weights, keys, weight,
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
    /// Finished jobs that were in the order of age, and whether it was kept.
    aged: BTreeSet<JobId>,
    ages: Ages,
    /// By what jobs were weighed.
    weights: Weights,
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
        for reply in &applied.replies {
            if let Reply::SubmittedAll { jobs } = reply {
                self.accepted.extend(jobs.iter().map(|taken| taken.job));
            }
        }
        let kept_before = self.ages != Ages::Unkept;
        let ended = applied.events.iter().filter_map(|event| match event {
            Event::Finished { job } => Some(*job),
            _ => None,
        });
        let ended: BTreeSet<_> = ended.collect();
        if kept_before {
            self.aged.extend(&ended);
        }
        self.ended.extend(&ended);
        self.look(store);
        self.look_at_ages(store);
        self.look_at_weights(store);
    }

    /// What a job weighs by its records is what it would weigh if it had come anew, and is never less than what it holds. Those
    /// that are still to be delivered stand in an order of their own.
    fn look_at_weights(&mut self, store: &MemoryStore) {
        let view = View::new(store);
        let counters = view.counters().unwrap();
        let weights = counters.weights;
        match (self.weights, weights) {
            (Weights::Payload, _) | (Weights::Begun { .. }, Weights::Records) => {}
            (
                Weights::Begun { seen, last },
                Weights::Begun {
                    seen: now,
                    last: end,
                },
            ) => {
                assert!(seen <= now && last == end);
            }
            (then, now) => assert_eq!(then, now),
        }
        assert!(weights == Weights::Payload || counters.ages == Ages::Kept);
        self.weights = weights;
        let (mut undelivered, mut undelivered_bytes, mut all) = (BTreeSet::new(), 0, 0);
        for job in self.accepted.iter().filter_map(|id| view.job(*id).unwrap()) {
            let spec = view.spec(job.id).unwrap().unwrap();
            let output = view.output(job.id).unwrap();
            let delivery = view.delivery(job.id).unwrap();
            let by_payload = spec.weight() + output.as_ref().map_or(0, Output::weight);
            let mut by_records = weight::of_submission(&spec, job.key.as_deref());
            if let Some(output) = &output {
                by_records += weight::of_result(job.outcome.as_ref().unwrap(), output);
            }
            let attempts = delivery.iter().flat_map(|delivery| &delivery.attempts);
            by_records += attempts.map(weight::of_attempt).sum::<u64>();
            let pending = delivery.is_some_and(|d| d.state == DeliveryState::Pending);
            let seen = match weights {
                Weights::Payload => {
                    assert_eq!(job.weight, by_payload);
                    false
                }
                Weights::Begun { seen, last } => job.id <= seen || job.id > last,
                Weights::Records => true,
            };
            all += job.weight;
            if seen {
                assert_eq!(job.weight, by_records);
            }
            let key = job.finished_ms.map(|time| keys::undelivered(time, job.id));
            let apart = key
                .as_ref()
                .is_some_and(|key| store.iter().any(|(k, _)| k[..] == key[..]));
            assert!(!apart || pending);
            assert!(apart || !seen || !pending);
            if apart {
                undelivered.extend(key);
                undelivered_bytes += job.weight;
            }
        }
        assert_eq!(counters.undelivered_bytes, undelivered_bytes);
        let apart = store.iter().filter(|(key, _)| key[0] == b'k');
        assert!(apart.map(|(key, _)| key.to_vec()).eq(undelivered));
        if weights == Weights::Records {
            // The mark of a purged job, and a slot whose worker has not let go of its cancelled job, are there without the job.
            let of_nobody = |key: &[u8]| {
                let job = match key[0] {
                    b'a' => keys::job_of_attempt(key),
                    b'e' => keys::parts_of_expiry(key).map(|(_, job)| job),
                    _ => return false,
                };
                view.job(job.unwrap()).unwrap().is_none()
            };
            let of_jobs = store
                .iter()
                .filter(|(key, _)| b"aefhijkoqsuw".contains(&key[0]) && !of_nobody(key));
            let held: usize = of_jobs.map(|(key, value)| key.len() + value.len()).sum();
            assert!(held as u64 <= all, "{held} bytes weigh {all}");
        }
    }

    /// What is kept of the owners is what their jobs say, and nothing else is kept.
    fn look_at_owners(&self, store: &MemoryStore) {
        let view = View::new(store);
        let counters = view.counters().unwrap();
        let mut loads: BTreeMap<String, OwnerLoad> = BTreeMap::new();
        let mut owned = BTreeSet::new();
        for job in self.accepted.iter().filter_map(|id| view.job(*id).unwrap()) {
            let Some(owner) = &job.owner else { continue };
            let spec = view.spec(job.id).unwrap().unwrap();
            assert_eq!(spec.owner.map(|owner| owner.name).as_ref(), Some(owner));
            owned.insert(keys::owned(owner, job.id));
            if let Some(key) = &job.key {
                assert_eq!(view.key(Some(owner), key).unwrap().unwrap().job, job.id);
            }
            if job.state == JobState::Finished {
                continue;
            }
            let load = loads.entry(owner.clone()).or_default();
            load.unfinished += 1;
            if let Some(order) = job.order {
                load.queued += 1;
                load.queued_bytes += job.weight;
                if counters.rounds(job.priority).have(order) {
                    let turn = &mut load.turns[job.priority as usize];
                    turn.jobs += 1;
                    turn.last = turn.last.max(order);
                }
            }
        }
        let kept = |letter: u8| store.iter().filter(move |(key, _)| key[0] == letter);
        assert_eq!(kept(b'u').count(), owned.len());
        assert!(kept(b'u').all(|(key, _)| owned.contains(&key[..])));
        assert_eq!(kept(b'v').count(), loads.len());
        for (owner, load) in &loads {
            let mut kept = view.owner_load(owner).unwrap();
            for (kept, turn) in kept.turns.iter_mut().zip(&load.turns) {
                // The last one may have been cancelled.
                assert!(kept.last >= turn.last && (kept.jobs > 0 || kept.last == 0));
                kept.last = turn.last;
            }
            assert_eq!(kept, *load, "{owner}");
        }
    }

    /// What is kept of the rounds is what the jobs say that wait; no owner has two of them in one round.
    fn look_at_rounds(&self, store: &MemoryStore) {
        let view = View::new(store);
        let counters = view.counters().unwrap();
        for level in Priority::ALL {
            let rounds = counters.rounds(level);
            assert_eq!(rounds.have_begun(), counters.rules >= BY_OWNER);
            let mut of_owners: BTreeMap<Option<String>, BTreeSet<u64>> = BTreeMap::new();
            let mut jobs = 0;
            for job in self.accepted.iter().filter_map(|id| view.job(*id).unwrap()) {
                let order = job.order.filter(|order| rounds.have(*order));
                let Some(order) = order.filter(|_| job.priority == level) else {
                    continue;
                };
                jobs += 1;
                let rounds = of_owners.entry(job.owner).or_default();
                assert!(rounds.insert(order / 2), "two in one round");
            }
            assert_eq!(rounds.jobs(), jobs);
            assert_eq!(rounds.owners(), of_owners.len() as u64);
        }
    }

    /// In the order of age are finished jobs only, with their time; all that have finished since it was begun, whatever was in it
    /// before, what was looked at, and in the end all.
    fn look_at_ages(&mut self, store: &MemoryStore) {
        let view = View::new(store);
        let ages = view.counters().unwrap().ages;
        let kept: BTreeSet<JobId> = store
            .iter()
            .filter(|(key, _)| key[0] == b'f' || key[0] == b'k')
            .map(|(key, _)| {
                let (finished, id) = keys::parts_of_expiry(key).unwrap();
                let job = view.job(id).unwrap().expect("left behind: age");
                assert_eq!(job.state, JobState::Finished);
                assert_eq!(job.finished_ms, Some(finished));
                id
            })
            .collect();
        let all = self.ended.iter().copied();
        let all: BTreeSet<_> = all.filter(|id| view.job(*id).unwrap().is_some()).collect();
        assert!(kept.is_subset(&all));
        self.aged.retain(|id| all.contains(id));
        assert!(self.aged.is_subset(&kept), "left out of the order of age");
        match (self.ages, ages) {
            (Ages::Unkept, _) | (Ages::Begun { .. }, Ages::Kept) => {}
            (
                Ages::Begun { seen, last },
                Ages::Begun {
                    seen: now,
                    last: end,
                },
            ) => {
                assert!(seen <= now && last == end);
            }
            (then, now) => assert_eq!(then, now),
        }
        match ages {
            Ages::Unkept => assert!(kept.is_empty()),
            Ages::Begun { seen, .. } => {
                let looked_at = all.iter().filter(|id| **id <= seen);
                assert!(looked_at.into_iter().all(|id| kept.contains(id)));
            }
            Ages::Kept => assert_eq!(kept, all),
        }
        self.aged = kept;
        self.ages = ages;
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
        let mut levels: BTreeMap<Priority, Waiting> = BTreeMap::new();
        let mut languages: BTreeMap<String, Waiting> = BTreeMap::new();
        let (mut due, mut callbacks) = (BTreeSet::new(), 0);
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
            callbacks += usize::from(job.callback);
            assert!(view.spec(*id).unwrap().is_some());
            let current = job.node.map(|node| (node, job.attempt));
            match job.state {
                JobState::Queued => {
                    queued += 1;
                    let order = job.order.unwrap();
                    assert_eq!(Priority::of_order(order), job.priority);
                    for waiting in [
                        levels.entry(job.priority).or_default(),
                        languages.entry(job.language.clone()).or_default(),
                    ] {
                        waiting.jobs += 1;
                        waiting.bytes += job.weight;
                    }
                    let place = view.counters().unwrap().queued(&job, order);
                    assert_eq!(keys::parts_of_queued(&place), Some((&*job.needs(), order)));
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
                    if job.callback {
                        let delivery = view.delivery(*id).unwrap().unwrap();
                        assert_ne!(delivery.state, DeliveryState::Waiting);
                        assert_eq!(
                            delivery.due_ms.is_some(),
                            delivery.state == DeliveryState::Pending
                        );
                        due.extend(delivery.due_ms.map(|due| keys::due(due, *id)));
                        assert!(delivery.attempts.len() <= MAX_ATTEMPTS);
                    }
                    let expiry = keys::expiry(job.expires_ms().unwrap(), *id);
                    assert!(store.iter().any(|(key, _)| key[..] == expiry[..]));
                    // What it weighs is no part of its result.
                    let now = (Job { weight: 0, ..job }, output);
                    let then = self.finished.entry(*id).or_insert_with(|| now.clone());
                    assert_eq!(*then, now, "a result changed");
                }
            }
        }
        self.look_at_owners(store);
        self.look_at_rounds(store);
        let places = |table: u8| store.iter().filter(move |(key, _)| key[0] == table);
        assert!(places(b'w').map(|(key, _)| key.to_vec()).eq(due));
        let deliveries = places(b'h').count();
        assert_eq!(deliveries, callbacks, "one delivery for each callback");
        let counters = view.counters().unwrap();
        assert_eq!(counters.queued, queued);
        assert_eq!(counters.running, running);
        assert_eq!(counters.finished, finished);
        assert_eq!(counters.finished_bytes, finished_bytes);
        for level in Priority::ALL {
            let waiting = levels.get(&level).copied().unwrap_or_default();
            assert_eq!(counters.waiting(level), waiting, "{level:?}");
        }
        assert_eq!(counters.languages, languages);
        let count = |table: u8| store.iter().filter(|(key, _)| key[0] == table).count() as u64;
        assert_eq!(count(b'q'), queued, "one place for each queued job");
        assert_eq!(count(b'x'), counters.purged);
        // Of what has finished or was purged, each has one place in the order of expiry.
        assert_eq!(count(b'e'), finished + counters.purged);
        for id in &self.accepted {
            let purged = view.was_purged(*id).unwrap();
            assert!(!purged || view.job(*id).unwrap().is_none());
        }
        check_hash(store);
    }
}

/// The hash that the ledger says is that of its records.
pub fn check_hash(store: &MemoryStore) {
    let mut hash = StateHash::default();
    for (key, value) in store.iter().filter(|(key, _)| key[..] != *keys::COUNTERS) {
        hash.add(key, value);
    }
    let said = View::new(store).counters().unwrap().hash;
    assert_eq!(said, hash, "the hash is over all records");
}
