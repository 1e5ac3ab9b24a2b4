//! Every order in which things can go wrong, within bounds: a model of clients, workers, a leader that errs about who
//! lives, and a network that delays, repeats and loses what they propose, over the ledger's own rules. Nothing of the
//! ledger is modelled: each step is a batch applied to a [`MemoryStore`], and a state of the model holds its records.
//!
//! In the model:
//! - a client submits a job with a key and never learns whether that was heard; another node submits it anew, with an id
//!   of its own. A second job has no key.
//! - a worker executes what it was assigned and reports the result. A report may come at any later time, and twice: its
//!   worker may have crashed or been declared lost since.
//! - a worker crashes and starts again as a new incarnation. It is declared lost, whether it is or not; if it lives it
//!   finds out, and announces itself again. An announcement may come twice as well.
//! - a job may be cancelled.
//!
//! The checker walks through every state that these can lead to and looks at the properties in each. Models with a fault
//! show that the properties can be violated: each fault must be found.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use common::{begin_rules, complete, id, node_up, spec};
use quorun_ledger::{
    Applied, Batch, Command, Completion, Event, IdempotencyKey, JobFilter, JobId, JobState,
    MemoryStore, NodeId, Reply, Transaction, Verdict, View,
};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// What is left out of the rules, in a wrapper around them, so that a property must be violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A result is taken as if it were from the current attempt.
    StaleResults,
    /// The second submission is sent without its key.
    LostKey,
    /// A worker that starts again says that it is the same incarnation.
    SameIncarnation,
}

/// What the model does, and how often things may go wrong.
struct Cluster {
    nodes: NodeId,
    /// Attempts that a job has.
    attempts: u32,
    /// The job with the key is submitted a second time.
    retry: bool,
    /// Jobs beside the one with the key.
    others: u8,
    crashes: u8,
    losses: u8,
    repeats: u8,
    cancels: u8,
    fault: Fault,
}

/// The job with the key, by the id that each of its submissions has drawn.
const FIRST: u8 = 1;
const RETRY: u8 = 2;
/// The first of the jobs without one.
const OTHER: u8 = 3;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Submit { job: u8 },
    Result { job: u8, attempt: u32, node: NodeId },
    Up { node: NodeId, incarnation: u64 },
    Cancel { job: u8 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// What was proposed is applied; `again` if it stays on its way, to be applied once more.
    Apply {
        message: Message,
        again: bool,
    },
    /// A worker has executed what it was assigned.
    Execute {
        node: NodeId,
        job: u8,
        attempt: u32,
    },
    Crash(NodeId),
    Start(NodeId),
    /// The leader declares a node lost.
    Lose(NodeId),
    Cancel(u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Worker {
    incarnation: u64,
    lives: bool,
    /// Assigned to this process and not reported.
    holds: BTreeSet<(u8, u32)>,
}

/// The ledger's records. [`MemoryStore`] has no hash of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Records(MemoryStore);

impl Hash for Records {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (key, value) in self.0.iter() {
            key.hash(state);
            value.hash(state);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    records: Records,
    workers: BTreeMap<NodeId, Worker>,
    under_way: BTreeSet<Message>,
    /// What clients were told that their submissions are.
    told: BTreeMap<u8, JobId>,
    /// How a job had ended when that was first seen: text and verdict.
    ended: BTreeMap<JobId, (Vec<u8>, &'static str)>,
    /// Reports that the ledger has fenced.
    fenced: bool,
    /// A result that was reported twice has been confirmed twice.
    confirmed_twice: bool,
    /// A result was committed that was not from the current attempt.
    stale_result: bool,
    crashes: u8,
    losses: u8,
    repeats: u8,
    cancels: u8,
}

impl State {
    fn view(&self) -> View<&MemoryStore> {
        View::new(&self.records.0)
    }

    fn jobs(&self) -> Vec<quorun_ledger::Job> {
        let all = JobFilter::default();
        self.view().jobs(&all, None, 99, 99).unwrap().jobs
    }

    /// Applies a batch; every node is taken for able to work, since the leader may err.
    fn apply(&mut self, command: Command, nodes: NodeId) -> Applied {
        let mut tx = Transaction::begin(&self.records.0).unwrap();
        let batch = Batch {
            time_ms: 1,
            eligible: (1..=nodes).collect(),
            queue: None,
            commands: vec![command],
        };
        let applied = tx.apply(batch).unwrap();
        let writes = tx.finish().unwrap();
        self.records.0.commit(writes);
        for event in &applied.events {
            self.hear(event);
        }
        applied
    }

    /// What the workers learn, and the one who watches.
    fn hear(&mut self, event: &Event) {
        match event {
            Event::Assigned {
                job,
                attempt,
                node,
                incarnation,
            } => {
                let worker = self.workers.get_mut(node).unwrap();
                // A worker that is down, or a later process, was not meant.
                if worker.lives && worker.incarnation == *incarnation {
                    worker.holds.insert((number(*job), *attempt));
                }
            }
            Event::Finished { job } => {
                let record = self.view().job(*job).unwrap().unwrap();
                let text = self.view().output(*job).unwrap().unwrap().stdout.to_vec();
                let end = (text, record.outcome.unwrap().verdict.as_str());
                self.ended.entry(*job).or_insert(end);
            }
            _ => {}
        }
    }
}

fn number(job: JobId) -> u8 {
    job.as_bytes()[15]
}

impl Cluster {
    fn submission(&self, job: u8) -> Command {
        let mut spec = spec("python");
        spec.max_attempts = self.attempts;
        let lost = job == RETRY && self.fault == Fault::LostKey;
        let key = (job < OTHER && !lost).then(|| IdempotencyKey {
            key: "k".to_owned(),
            fingerprint: [1; 16],
        });
        Command::Submit {
            id: id(job),
            spec,
            key,
        }
    }

    fn deliver(&self, state: &mut State, message: &Message) {
        match *message {
            Message::Submit { job } => {
                let applied = state.apply(self.submission(job), self.nodes);
                if let Reply::Submitted { job: joined, .. } = applied.replies[0] {
                    state.told.insert(job, joined);
                }
            }
            Message::Cancel { job } => {
                state.apply(Command::Cancel { job: id(job) }, self.nodes);
            }
            Message::Up { node, incarnation } => {
                state.apply(node_up(node, incarnation, 1), self.nodes);
            }
            Message::Result { job, attempt, node } => self.report(state, job, attempt, node),
        }
    }

    fn report(&self, state: &mut State, job: u8, attempt: u32, node: NodeId) {
        let before = state.view().job(id(job)).unwrap();
        // What was executed says where and when, so that no two results are alike.
        let mut command = complete(job, attempt, node, &format!("{job} {attempt} {node}"));
        if self.fault == Fault::StaleResults
            && let Command::Complete { attempt, node, .. } = &mut command
            && let Some(now) = &before
        {
            *attempt = now.attempt;
            *node = now.node.unwrap_or(*node);
        }
        let applied = state.apply(command, self.nodes);
        let current = before.as_ref().is_some_and(|job| {
            job.state == JobState::Running && job.attempt == attempt && job.node == Some(node)
        });
        let finished = before.is_some_and(|job| job.state == JobState::Finished);
        match applied.replies[0] {
            Reply::Completed(Completion::Committed) if finished => state.confirmed_twice = true,
            Reply::Completed(Completion::Committed) => state.stale_result |= !current,
            _ => state.fenced = true,
        }
    }
}

impl Model for Cluster {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut state = State {
            records: Records::default(),
            workers: BTreeMap::new(),
            under_way: BTreeSet::new(),
            told: BTreeMap::new(),
            ended: BTreeMap::new(),
            fenced: false,
            confirmed_twice: false,
            stale_result: false,
            crashes: 0,
            losses: 0,
            repeats: 0,
            cancels: 0,
        };
        // As every cluster does in its first seconds.
        for command in begin_rules().into_iter().flatten() {
            state.apply(command, self.nodes);
        }
        for node in 1..=self.nodes {
            let worker = Worker {
                incarnation: 1,
                lives: true,
                holds: BTreeSet::new(),
            };
            state.workers.insert(node, worker);
            state.apply(node_up(node, 1, 1), self.nodes);
        }
        let retry = self.retry.then_some(RETRY);
        for job in [FIRST]
            .into_iter()
            .chain(retry)
            .chain(OTHER..OTHER + self.others)
        {
            state.under_way.insert(Message::Submit { job });
        }
        vec![state]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for message in &state.under_way {
            let message = message.clone();
            if state.repeats < self.repeats {
                steps.push(Step::Apply {
                    message: message.clone(),
                    again: true,
                });
            }
            steps.push(Step::Apply {
                message,
                again: false,
            });
        }
        for (&node, worker) in &state.workers {
            for &(job, attempt) in &worker.holds {
                steps.push(Step::Execute { node, job, attempt });
            }
            if !worker.lives {
                steps.push(Step::Start(node));
            } else if state.crashes < self.crashes {
                steps.push(Step::Crash(node));
            }
            if state.losses < self.losses {
                steps.push(Step::Lose(node));
            }
        }
        if state.cancels < self.cancels {
            steps.extend(state.told.values().map(|job| Step::Cancel(number(*job))));
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Apply { message, again } => {
                if again {
                    state.repeats += 1;
                } else {
                    state.under_way.remove(&message);
                }
                self.deliver(&mut state, &message);
            }
            Step::Execute { node, job, attempt } => {
                let worker = state.workers.get_mut(&node)?;
                worker.holds.remove(&(job, attempt));
                state
                    .under_way
                    .insert(Message::Result { job, attempt, node });
            }
            Step::Crash(node) => {
                state.crashes += 1;
                let worker = state.workers.get_mut(&node)?;
                worker.lives = false;
                worker.holds.clear();
            }
            Step::Start(node) => {
                let worker = state.workers.get_mut(&node)?;
                worker.lives = true;
                if self.fault != Fault::SameIncarnation {
                    worker.incarnation += 1;
                }
                let incarnation = worker.incarnation;
                state.under_way.insert(Message::Up { node, incarnation });
            }
            Step::Lose(node) => {
                state.losses += 1;
                let incarnation = state.view().node(node).unwrap()?.incarnation;
                let command = Command::NodeLost { node, incarnation };
                state.apply(command, self.nodes);
                // It finds itself declared lost. Whether it goes on with what it has makes no difference to the ledger.
                let worker = state.workers.get(&node)?;
                if worker.lives {
                    let incarnation = worker.incarnation;
                    state.under_way.insert(Message::Up { node, incarnation });
                }
            }
            Step::Cancel(job) => {
                state.cancels += 1;
                state.under_way.insert(Message::Cancel { job });
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("a result never changes", |_, state: &State| {
                state.ended.iter().all(|(job, (text, verdict))| {
                    let record = state.view().job(*job).unwrap();
                    let output = state.view().output(*job).unwrap();
                    record.is_some_and(|job| {
                        job.state == JobState::Finished
                            && job
                                .outcome
                                .is_some_and(|end| end.verdict.as_str() == *verdict)
                    }) && output.is_some_and(|output| output.stdout[..] == text[..])
                })
            }),
            Property::always(
                "only the current attempt has a result",
                |_, state: &State| !state.stale_result,
            ),
            Property::always("what was acknowledged is there", |_, state: &State| {
                let there = |job: &JobId| state.view().job(*job).unwrap().is_some();
                state.told.values().all(there)
            }),
            Property::always("a key is one job", |_, state: &State| {
                let keyed = state
                    .jobs()
                    .iter()
                    .filter(|job| number(job.id) < OTHER)
                    .count();
                let told = |job| state.told.get(&job);
                keyed <= 1 && told(FIRST).zip(told(RETRY)).is_none_or(|(a, b)| a == b)
            }),
            Property::always("attempts are limited", |_, state: &State| {
                state
                    .jobs()
                    .iter()
                    .all(|job| job.attempt <= job.max_attempts)
            }),
            Property::always("a node holds no more than its slots", |_, state: &State| {
                state.view().nodes().unwrap().iter().all(|node| {
                    let held = state.view().attempts(node.id).unwrap();
                    node.busy as usize == held.len() && node.busy <= node.slots
                })
            }),
            Property::always("a job is in one place", in_one_place),
            Property::always("nothing is stuck", |cluster: &Self, state: &State| {
                let mut steps = Vec::new();
                cluster.actions(state, &mut steps);
                let goes_on = steps
                    .iter()
                    .any(|step| !matches!(step, Step::Crash(_) | Step::Lose(_) | Step::Cancel(_)));
                goes_on
                    || state
                        .jobs()
                        .iter()
                        .all(|job| job.state == JobState::Finished)
            }),
            Property::sometimes("the second attempt has the result", |_, state: &State| {
                state
                    .ended
                    .values()
                    .any(|(text, _)| text.get(2) == Some(&b'2'))
            }),
            Property::sometimes("a late result is fenced", |_, state: &State| state.fenced),
            Property::sometimes("attempts are used up", |_, state: &State| {
                let given_up = |(_, verdict): &(_, _)| *verdict == Verdict::InternalError.as_str();
                state.ended.values().any(given_up)
            }),
            Property::sometimes("everything is done", |cluster: &Self, state: &State| {
                state.ended.len() == usize::from(cluster.others) + 1
            }),
        ];
        if self.repeats > 0 {
            let confirmed = |_: &Self, state: &State| state.confirmed_twice;
            properties.push(Property::sometimes(
                "a repeated result is confirmed",
                confirmed,
            ));
        }
        if self.retry {
            let first = |_: &Self, state: &State| state.told.get(&FIRST) == Some(&id(RETRY));
            properties.push(Property::sometimes("the retry is first", first));
        }
        properties
    }
}

/// Queued with one place and no holder, running with one holder, or finished with neither; and the counters say so.
fn in_one_place(_: &Cluster, state: &State) -> bool {
    let view = state.view();
    let mut held: BTreeMap<JobId, Vec<(NodeId, u32)>> = BTreeMap::new();
    for node in view.nodes().unwrap() {
        for (job, attempt) in view.attempts(node.id).unwrap() {
            held.entry(job).or_default().push((node.id, attempt));
        }
    }
    let places = state.records.0.iter().filter(|(key, _)| key[0] == b'q');
    let counters = view.counters().unwrap();
    let jobs = state.jobs();
    let count = |state| jobs.iter().filter(|job| job.state == state).count() as u64;
    let right = jobs.iter().all(|job| {
        let holders = held.get(&job.id);
        match job.state {
            JobState::Queued => holders.is_none() && job.order.is_some(),
            JobState::Running => {
                let current = job.node.map(|node| vec![(node, job.attempt)]);
                holders == current.as_ref() && job.order.is_none()
            }
            // A cancelled job's worker has its slot until it reports.
            JobState::Finished => {
                job.order.is_none() && holders.is_none_or(|holders| holders.len() == 1)
            }
        }
    });
    right
        && places.count() as u64 == counters.queued
        && count(JobState::Queued) == counters.queued
        && count(JobState::Running) == counters.running
        && count(JobState::Finished) == counters.finished
}

/// One job, submitted through two nodes; all that can go wrong goes wrong once.
const ONE_JOB: Cluster = Cluster {
    nodes: 2,
    attempts: 2,
    retry: true,
    others: 0,
    crashes: 1,
    losses: 1,
    repeats: 1,
    cancels: 1,
    fault: Fault::None,
};

/// Two jobs that compete for two nodes.
const TWO_JOBS: Cluster = Cluster {
    retry: false,
    others: 1,
    repeats: 0,
    cancels: 0,
    ..ONE_JOB
};

/// Walks through all of it; fails with the steps that lead to the violation of a property.
fn check(name: &str, cluster: Cluster) {
    let checker = cluster.checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} states, {} of them different, {} steps deep",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

/// The steps that lead to the violation of a property, in a model with a fault.
fn found(fault: Fault, property: &'static str) -> Vec<Step> {
    let cluster = Cluster { fault, ..ONE_JOB };
    let checker = cluster
        .checker()
        .finish_when(HasDiscoveries::AnyOf([property].into()))
        .spawn_bfs()
        .join();
    let path = checker
        .discovery(property)
        .unwrap_or_else(|| panic!("with {fault:?} it is not found that {property}"));
    path.into_actions()
}

#[test]
fn one_job_in_whatever_order_things_come() {
    check("one job", ONE_JOB);
}

#[test]
fn two_jobs_in_whatever_order_things_come() {
    check("two jobs", TWO_JOBS);
}

/// Minutes in a release build, and some gigabytes of memory.
#[test]
#[ignore = "long: cargo test --release -p quorun-ledger --test model -- --ignored"]
fn two_jobs_and_a_retry_with_more_faults() {
    let cluster = Cluster {
        attempts: 3,
        retry: true,
        losses: 2,
        repeats: 1,
        ..TWO_JOBS
    };
    check("two jobs and a retry", cluster);
}

#[test]
fn a_stale_result_that_is_taken_is_found() {
    let steps = found(Fault::StaleResults, "only the current attempt has a result");
    let was_lost = |step: &Step| matches!(step, Step::Lose(_) | Step::Crash(_));
    assert!(steps.iter().any(was_lost), "{steps:?}");
}

#[test]
fn a_retry_without_its_key_is_found() {
    found(Fault::LostKey, "a key is one job");
}

#[test]
fn a_worker_that_hides_that_it_started_again_is_found() {
    found(Fault::SameIncarnation, "nothing is stuck");
}
