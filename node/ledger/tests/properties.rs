//! Whatever is proposed, in whatever order: no job is lost, no result changes, no node exceeds its slots, and equal
//! logs give equal ledgers.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::witness::{Witness, submitted};
use std::collections::{BTreeMap, BTreeSet};

use common::{Ledger, complete, id, node_up, spec, submit_of, submit_with};
use proptest::prelude::*;
use quorun_ledger::{
    Batch, Callback, Command, DeliveryAttempt, Event, IdempotencyKey, JobId, JobSpec, MemoryStore,
    NodeId, Owner, Priority, QueueBound, RULES, Reply, Submission, Transaction, View, Weights,
    codec,
};

const NODES: NodeId = 4;
const JOBS: u8 = 24;

/// Two owners, one of whom has bounds that are soon reached; most jobs are nobody's.
fn owner() -> impl Strategy<Value = Option<Owner>> {
    let owner = |name: &str, max_jobs, queue_percent| {
        Some(Owner {
            name: name.to_owned(),
            max_jobs,
            queue_percent,
        })
    };
    prop_oneof![
        2 => Just(None),
        1 => Just(owner("a", None, None)),
        1 => (1..4_u64, 20..60_u8).prop_map(move |(jobs, part)| owner("ab", Some(jobs), Some(part))),
    ]
}

fn priority() -> impl Strategy<Value = Priority> {
    prop::sample::select(Priority::ALL.to_vec())
}

fn submission() -> impl Strategy<Value = Submission> {
    let language = prop::sample::select(vec!["python", "c", "cobol"]);
    let key = prop::option::of(0..4_u8);
    (0..JOBS, key, language, priority(), owner()).prop_map(|(n, key, language, priority, owner)| {
        Submission {
            id: id(n),
            spec: JobSpec {
                priority,
                owner,
                callback: (n % 2 == 0).then(|| Callback {
                    url: format!("http://host{n}/"),
                    ..Callback::default()
                }),
                ..spec(language)
            },
            key: key.map(|k| IdempotencyKey {
                key: k.to_string(),
                fingerprint: [k % 2; 16],
            }),
        }
    })
}

/// What can be proposed. Numbers are small so that they meet.
fn command() -> impl Strategy<Value = Command> {
    let job = 0..JOBS;
    let node = 1..=NODES;
    let attempt = 1..=4_u32;
    prop_oneof![
        6 => submission().prop_map(|Submission { id, spec, key }| Command::Submit { id, spec, key }),
        2 => prop::collection::vec(submission(), 1..4).prop_map(|jobs| Command::SubmitAll { jobs }),
        8 => (job.clone(), attempt.clone(), node.clone(), 0..3_u8)
            .prop_map(|(n, attempt, node, text)| complete(n, attempt, node, &text.to_string())),
        2 => (job.clone(), attempt, node.clone()).prop_map(|(n, attempt, node)| Command::Release {
            job: id(n), attempt, node, reason: "no engine".to_owned(),
        }),
        1 => (job.clone(), node.clone()).prop_map(|(n, node)| Command::Assign { job: id(n), node }),
        4 => (job.clone(), 1..10_u32, prop::option::of(prop::sample::select(vec![200, 500])), prop::option::of(0..90_000_u64))
            .prop_map(|(n, attempt, status, retry_ms)| Command::CallbackTried {
                job: id(n),
                attempt,
                outcome: DeliveryAttempt { at_ms: 7, status, error: Some("e".repeat(300)) },
                retry_ms,
            }),
        1 => job.clone().prop_map(|n| Command::CallbackAgain { job: id(n) }),
        1 => job.prop_map(|n| Command::Cancel { job: id(n) }),
        2 => (node.clone(), 1..4_u64, 1..4_u32).prop_map(|(n, i, s)| node_up(n, i, s)),
        1 => (node.clone(), 1..4_u64).prop_map(|(node, incarnation)| Command::NodeLost { node, incarnation }),
        1 => (node, any::<bool>()).prop_map(|(node, draining)| Command::Drain { node, draining }),
        1 => (0..3_u32, prop::option::of(0..40_u64)).prop_map(|(limit, keep)| Command::Expire {
            limit, keep_bytes: keep.unwrap_or(u64::MAX),
        }),
        1 => (0..40_u32).prop_map(|limit| Command::OrderByAge { limit }),
        1 => (0..6_u32).prop_map(|limit| Command::Reweigh { limit }),
        1 => (0..=RULES).prop_map(|rules| Command::Begin { rules }),
        1 => (0..JOBS).prop_map(|n| Command::Purge { job: id(n) }),
        1 => (0..3_u32, 0..200_000_u64, 0..40_u64).prop_map(|(limit, finished_ms, keep_bytes)| {
            Command::ExpireOldest { limit, finished_ms, keep_bytes }
        }),
    ]
}

fn batch() -> impl Strategy<Value = Batch> {
    (
        0..200_000_u64,
        prop::collection::btree_set(1..=NODES, 0..=4),
        prop::option::of((0..8_u64, 0..100_u64)),
        prop::collection::vec(command(), 0..6),
    )
        .prop_map(|(time_ms, eligible, queue, commands)| Batch {
            time_ms,
            eligible,
            queue: queue.map(|(jobs, bytes)| QueueBound { jobs, bytes }),
            commands,
        })
}

/// Bytes in which some were changed, and that may be cut off.
fn bent(
    mut bytes: Vec<u8>,
    changes: &[(prop::sample::Index, u8)],
    cut: prop::sample::Index,
) -> Vec<u8> {
    for (at, byte) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    let end = cut.index(2 * bytes.len());
    bytes.truncate(end);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Proposals come from peers, and records from a disk: whatever the bytes are, they are read, or refused.
    #[test]
    fn no_bytes_of_a_batch_do_harm(
        batch in batch(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut: prop::sample::Index,
        other in prop::collection::vec(any::<u8>(), 0..60),
        (nested, depth) in (any::<u8>(), 0..5000_usize),
    ) {
        let whole = codec::encode(&batch);
        prop_assert_eq!(&codec::decode::<Batch>(&whole).unwrap(), &batch);
        if let Ok(read) = codec::decode::<Batch>(&bent(whole, &changes, cut)) {
            prop_assert_eq!(codec::decode::<Batch>(&codec::encode(&read)).unwrap(), read);
        }
        let _ = codec::decode::<Batch>(&[&[codec::VERSION], &other[..]].concat());
        let _ = codec::decode::<Batch>(&[&[codec::VERSION], &vec![nested; depth][..]].concat());
    }
}

fn part() -> impl Strategy<Value = Vec<Batch>> {
    prop::collection::vec(batch(), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// The counters are the sums of what the jobs weigh before there are new weights, while they are given, and afterwards; and in
    /// the end no job weighs less than it holds.
    #[test]
    fn weights_are_changed_under_way(before in part(), meanwhile in part(), after in part(), limit in 1..4_u32) {
        let mut ledger = Ledger::default();
        let mut witness = Witness::default();
        let mut play = |batch: Batch, more: Option<Command>| {
            ledger.time_ms = batch.time_ms;
            ledger.eligible = batch.eligible;
            ledger.queue = batch.queue;
            let commands = batch.commands.into_iter().filter(|command| match command {
                Command::Submit { id, .. } => !witness.ended.contains(id),
                Command::SubmitAll { jobs } => !jobs.iter().any(|job| witness.ended.contains(&job.id)),
                Command::OrderByAge { .. } | Command::Reweigh { .. } => false,
                _ => true,
            });
            let commands: Vec<_> = more.into_iter().chain(commands).collect();
            let submitted = submitted(&commands);
            let applied = ledger.batch(commands);
            witness.check(&submitted, &applied, &ledger.store);
            ledger.view().counters().unwrap().weights
        };
        for batch in before {
            prop_assert_eq!(play(batch, None), Weights::Payload);
        }
        let mut more = Some(Command::OrderByAge { limit: u32::MAX });
        for batch in meanwhile {
            let weights = play(batch, more.replace(Command::Reweigh { limit }));
            if weights == Weights::Records {
                more = None;
            }
        }
        let last = Batch { time_ms: 0, eligible: [].into(), queue: None, commands: Vec::new() };
        play(last.clone(), Some(Command::OrderByAge { limit: u32::MAX }));
        play(last, Some(Command::Reweigh { limit: u32::MAX }));
        for batch in after {
            prop_assert_eq!(play(batch, None), Weights::Records);
        }
    }
}

fn log() -> impl Strategy<Value = Vec<Batch>> {
    prop::collection::vec(batch(), 1..60)
}

/// Nobody in particular, and three owners.
const OWNERS: [Option<&str>; 4] = [None, Some("a"), Some("ab"), Some("b")];

/// Ids that do not come in the order of their jobs: the nodes that draw them have clocks of their own.
fn scrambled(number: u64, with: u64) -> JobId {
    let number = (number + 1).wrapping_mul(with | 1);
    JobId::from_slice(&u128::from(number).to_be_bytes()).unwrap()
}

/// Completes all that runs, and gives the free slots to who is next, or to nobody.
fn serve(ledger: &mut Ledger, next: bool) {
    let done = ledger.view().attempts(1).unwrap().into_iter();
    let done = done.map(|(job, attempt)| Command::Complete {
        job,
        attempt,
        node: 1,
        result: common::result(""),
    });
    if !next {
        ledger.eligible.clear();
    }
    ledger.batch(done.collect());
    ledger.eligible.insert(1);
}

/// The jobs that wait, in the order in which a single slot takes them.
fn order_of(mut ledger: Ledger) -> Vec<JobId> {
    serve(&mut ledger, false);
    ledger.eligible.clear();
    let known = ledger.view().node(1).unwrap().unwrap();
    ledger.run(node_up(1, known.incarnation, 1));
    ledger.eligible.insert(1);
    let mut order = Vec::new();
    ledger.batch(Vec::new());
    while let [(job, _)] = ledger.view().attempts(1).unwrap()[..] {
        order.push(job);
        serve(&mut ledger, true);
    }
    let seen: BTreeSet<_> = order.iter().collect();
    assert_eq!(seen.len(), order.len());
    order
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_job_is_lost_and_no_result_changes(log in log(), last_rules: bool) {
        let mut ledger = Ledger::default();
        let mut witness = Witness::default();
        for commands in common::begin_rules().into_iter().filter(|_| last_rules) {
            let applied = ledger.batch(commands);
            witness.check(&[], &applied, &ledger.store);
        }
        for batch in log {
            ledger.time_ms = batch.time_ms;
            ledger.eligible = batch.eligible;
            ledger.queue = batch.queue;
            // Ids are drawn once: nobody submits one anew after the job has come to its end.
            let commands: Vec<_> = batch.commands.into_iter().filter(|command| {
                match command {
                    Command::Submit { id, .. } => !witness.ended.contains(id),
                    Command::SubmitAll { jobs } => {
                        !jobs.iter().any(|job| witness.ended.contains(&job.id))
                    }
                    _ => true,
                }
            }).collect();
            let submitted = submitted(&commands);
            let applied = ledger.batch(commands);
            witness.check(&submitted, &applied, &ledger.store);
        }
    }

    #[test]
    fn equal_logs_give_equal_ledgers(
        mut log in log(),
        cuts in prop::collection::vec(1..7_usize, 63),
        rules_at in prop::option::of(any::<prop::sample::Index>()),
    ) {
        if let Some(at) = rules_at {
            let at = at.index(log.len());
            let batch = |commands| Batch { time_ms: 0, eligible: [].into(), queue: None, commands };
            log.splice(at..at, common::begin_rules().map(batch));
        }
        let mut one_by_one = Ledger::default();
        for batch in &log {
            one_by_one.time_ms = batch.time_ms;
            one_by_one.eligible.clone_from(&batch.eligible);
            one_by_one.queue = batch.queue;
            one_by_one.batch(batch.commands.clone());
        }
        // Another node commits several entries at a time.
        let mut store = MemoryStore::default();
        let mut rest = &log[..];
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            let mut tx = Transaction::begin(&store).unwrap();
            for batch in now {
                tx.apply(batch.clone()).unwrap();
            }
            let writes = tx.finish().unwrap();
            store.commit(writes);
        }
        prop_assert_eq!(
            View::new(&store).counters().unwrap().hash,
            one_by_one.view().counters().unwrap().hash
        );
        prop_assert_eq!(&store, &one_by_one.store);
    }

    /// Any node that stays away long enough is made up for: with nodes enough, everything accepted comes to an end.
    #[test]
    fn everything_ends_once_there_are_nodes(log in log(), last_rules: bool) {
        let mut ledger = Ledger::default();
        if last_rules {
            ledger.begin_rules();
        }
        for batch in log {
            ledger.time_ms = batch.time_ms;
            ledger.eligible = batch.eligible;
            ledger.queue = batch.queue;
            ledger.batch(batch.commands);
        }
        ledger.eligible = (1..=NODES).collect();
        let all: Vec<_> = (1..=NODES).map(|n| Command::NodeUp {
            node: n, incarnation: 99, http: String::new(), slots: 2,
            languages: ["python".to_owned(), "c".to_owned(), "cobol".to_owned()].into(),
            version: String::new(),
        }).collect();
        ledger.batch(all);
        for _ in 0..100 {
            let mut done = Vec::new();
            for node in 1..=NODES {
                for (job, attempt) in ledger.view().attempts(node).unwrap() {
                    done.push(Command::Complete { job, attempt, node, result: common::result("end") });
                }
            }
            if done.is_empty() {
                break;
            }
            ledger.batch(done);
        }
        let counters = ledger.view().counters().unwrap();
        prop_assert_eq!((counters.queued, counters.running), (0, 0));
    }

    /// Within a level first come, first served; and whoever is first in its level is passed by no more jobs of the others
    /// than the turns between two of its own.
    #[test]
    fn nobody_starves(
        steps in prop::collection::vec(prop::option::weighted(0.6, priority()), 1..100),
        rules_at in 0..100_usize,
    ) {
        let mut ledger = Ledger::default();
        ledger.run(node_up(1, 1, 1));
        let mut waiting: BTreeMap<Priority, Vec<JobId>> = BTreeMap::new();
        let mut passed: BTreeMap<Priority, u64> = BTreeMap::new();
        let mut running = None;
        let drain = std::iter::repeat_n(None, steps.len());
        for (number, step) in steps.iter().copied().chain(drain).enumerate() {
            // Where there is one owner, nothing is different with turns between owners, nor while they begin.
            if number == rules_at {
                ledger.begin_rules();
            }
            let command = match (step, running) {
                (Some(priority), _) => {
                    let id = JobId::from_slice(&(number as u128).to_be_bytes()).unwrap();
                    waiting.entry(priority).or_default().push(id);
                    submit_with(id, priority)
                }
                (None, Some(job)) => Command::Complete {
                    job, attempt: 1, node: 1, result: common::result(""),
                },
                (None, None) => continue,
            };
            if matches!(command, Command::Complete { .. }) {
                running = None;
            }
            let (_, events) = ledger.run(command);
            for event in events {
                let Event::Assigned { job, .. } = event else { continue };
                prop_assert_eq!(running.replace(job), None);
                let level = ledger.view().job(job).unwrap().unwrap().priority;
                let queue = waiting.get_mut(&level).unwrap();
                prop_assert_eq!(queue.remove(0), job, "first come, first served in {:?}", level);
                passed.insert(level, 0);
                for (other, queue) in &waiting {
                    if *other == level || queue.is_empty() {
                        continue;
                    }
                    let passed = passed.entry(*other).or_default();
                    *passed += 1;
                    let most = match other { Priority::High => 4, Priority::Normal => 7, Priority::Low => 22 };
                    prop_assert!(*passed <= most, "{other:?} was passed by {passed} jobs");
                }
                for (other, queue) in &waiting {
                    if queue.is_empty() {
                        passed.insert(*other, 0);
                    }
                }
            }
            if number % 8 != 0 {
                continue;
            }
            // What a client is told: never less than what passes the job if nothing else comes.
            let view = ledger.view();
            for job in waiting.values().flatten() {
                let job = view.job(*job).unwrap().unwrap();
                let place = view.place(&job).unwrap().unwrap();
                let all: usize = waiting.values().map(Vec::len).sum();
                prop_assert!(place.ahead < all as u64, "{place:?} of {all}");
                let queue = &waiting[&job.priority];
                let at = queue.iter().position(|id| *id == job.id).unwrap();
                prop_assert_eq!(place.in_level, at as u64);
            }
        }
        prop_assert!(waiting.values().all(Vec::is_empty));
    }

    /// Each owner's jobs come in their order, and between the coming of a job and its turn no other owner has more turns than the
    /// owner itself has jobs before it, that one, and one more; not even that one more where the owner has nothing waiting and ids come in the
    /// order of their jobs.
    #[test]
    fn owners_have_their_turns(
        steps in prop::collection::vec(prop::option::weighted(0.6, 0..4_usize), 1..150),
        scramble in prop::option::of(any::<u64>()),
    ) {
        let mut ledger = Ledger::default();
        ledger.begin_rules();
        ledger.run(node_up(1, 1, 1));
        // For each owner its jobs, how many were before each, and who has passed it how often.
        type Waits = (JobId, u64, [u64; 4]);
        let mut waiting: [Vec<Waits>; 4] = Default::default();
        let mut running = None;
        let drain = std::iter::repeat_n(None, steps.len());
        for (number, step) in steps.iter().copied().chain(drain).enumerate() {
            let command = match (step, running) {
                (Some(owner), _) => {
                    let id = scrambled(number as u64, scramble.unwrap_or(1));
                    let before = waiting[owner].len() as u64;
                    waiting[owner].push((id, before, [0; 4]));
                    submit_of(id, OWNERS[owner], Priority::Normal)
                }
                (None, Some(job)) => Command::Complete {
                    job, attempt: 1, node: 1, result: common::result(""),
                },
                (None, None) => continue,
            };
            if matches!(command, Command::Complete { .. }) {
                running = None;
            }
            let (_, events) = ledger.run(command);
            for event in events {
                let Event::Assigned { job, .. } = event else { continue };
                prop_assert_eq!(running.replace(job), None);
                let owner = waiting.iter().position(|jobs| jobs.first().is_some_and(|(id, ..)| *id == job));
                let owner = owner.expect("the first one of an owner");
                waiting[owner].remove(0);
                for (other, jobs) in waiting.iter_mut().enumerate() {
                    for (_, before, passed) in jobs.iter_mut().filter(|_| other != owner) {
                        passed[owner] += 1;
                        let most = if *before == 0 && scramble.is_none() { 1 } else { *before + 2 };
                        prop_assert!(passed[owner] <= most, "{owner} has passed {other}: {passed:?} of {most}");
                    }
                }
            }
        }
        prop_assert!(waiting.iter().all(Vec::is_empty));
    }

    /// What a client is told of its place is never less than what goes before it if nothing else comes, whatever was there before
    /// the rules, is put back or cancelled; and it is never more than what waits.
    #[test]
    fn a_place_is_never_better_than_it_is_said(
        steps in prop::collection::vec((0..8_u8, 0..4_usize, priority(), any::<prop::sample::Index>()), 1..60),
        rules_at in 0..60_usize,
        scramble in any::<u64>(),
    ) {
        let mut ledger = Ledger::default();
        ledger.run(node_up(1, 1, 2));
        let mut jobs = Vec::new();
        for (number, (kind, owner, priority, which)) in steps.into_iter().enumerate() {
            if number == rules_at {
                ledger.begin_rules();
            }
            match kind {
                0 => {
                    let known = ledger.view().node(1).unwrap().unwrap();
                    ledger.run(node_up(1, known.incarnation + 1, 2));
                }
                1 if !jobs.is_empty() => {
                    let job = jobs[which.index(jobs.len())];
                    ledger.run(Command::Cancel { job });
                }
                2 => serve(&mut ledger, false),
                _ => {
                    let id = scrambled(number as u64, scramble);
                    jobs.push(id);
                    ledger.run(submit_of(id, OWNERS[owner], priority));
                }
            }
        }
        // Jobs that come now, whoever's they are, are as far behind as is said beforehand.
        let newcomer = scrambled(1_000, scramble);
        for owner in OWNERS {
            let ahead = ledger.view().ahead_of_new(owner).unwrap();
            for level in Priority::ALL {
                let mut then = Ledger { store: ledger.store.clone(), ..Ledger::default() };
                then.eligible.clear();
                then.run(submit_of(newcomer, owner, level));
                let said = ahead[level as usize];
                let turn = order_of(then).into_iter().position(|id| id == newcomer);
                prop_assert!(turn.unwrap() as u64 <= said, "{turn:?} is after {said}");
            }
        }
        let order = order_of(Ledger { store: ledger.store.clone(), ..Ledger::default() });
        for (turn, id) in order.iter().enumerate() {
            let job = ledger.view().job(*id).unwrap().unwrap();
            let place = ledger.view().place(&job).unwrap().unwrap();
            prop_assert!(turn as u64 <= place.ahead, "{turn} is after {place:?}");
            prop_assert!(place.ahead < order.len() as u64, "{place:?} of {}", order.len());
        }
    }

    /// All of a batch, or nothing of it.
    #[test]
    fn a_batch_is_taken_whole_or_not_at_all(log in log(), jobs in prop::collection::vec(submission(), 1..6)) {
        let mut ledger = Ledger::default();
        for batch in log {
            ledger.time_ms = batch.time_ms;
            ledger.eligible = batch.eligible;
            ledger.queue = batch.queue;
            ledger.batch(batch.commands);
        }
        ledger.eligible.clear();
        let before = ledger.view().counters().unwrap();
        let store = ledger.store.clone();
        let (reply, _) = ledger.run(Command::SubmitAll { jobs: jobs.clone() });
        let after = ledger.view().counters().unwrap();
        match reply {
            Reply::SubmittedAll { jobs: taken } => {
                prop_assert_eq!(taken.len(), jobs.len());
                let new = taken.iter().filter(|taken| !taken.joined).count() as u64;
                prop_assert_eq!(after.queued, before.queued + new);
                for taken in taken {
                    // Of one that was purged a moment ago it is known that it was taken.
                    let view = ledger.view();
                    let there = view.job(taken.job).unwrap().is_some();
                    prop_assert!(there || view.was_purged(taken.job).unwrap());
                }
                // A repetition of the proposal joins all.
                let (again, _) = ledger.run(Command::SubmitAll { jobs });
                let joined = matches!(&again, Reply::SubmittedAll { jobs } if jobs.iter().all(|taken| taken.joined));
                prop_assert!(joined, "{again:?}");
            }
            Reply::Rejected(_) => {
                prop_assert_eq!(after.hash, before.hash);
                let same = store.iter().filter(|(key, _)| key[..] != *quorun_ledger::keys::COUNTERS)
                    .eq(ledger.store.iter().filter(|(key, _)| key[..] != *quorun_ledger::keys::COUNTERS));
                prop_assert!(same);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

/// A change of a language: which, with which alias or none, disabled, and which version is expected.
#[derive(Clone, Debug)]
enum Change {
    Set(u8, Option<u8>, bool, Option<u64>),
    Disable(u8, bool, Option<u64>),
    Remove(u8, Option<u64>),
}

fn change() -> impl Strategy<Value = Change> {
    let name = 0_u8..5;
    let expected = prop::option::of(0_u64..30);
    let alias = prop::option::of(0_u8..7);
    prop_oneof![
        3 => (name.clone(), alias, any::<bool>(), expected.clone())
            .prop_map(|(name, alias, disabled, expected)| Change::Set(name, alias, disabled, expected)),
        1 => (name.clone(), any::<bool>(), expected.clone())
            .prop_map(|(name, disabled, expected)| Change::Disable(name, disabled, expected)),
        1 => (name, expected).prop_map(|(name, expected)| Change::Remove(name, expected)),
    ]
}

proptest! {
    #[test]
    fn languages_share_no_name_and_never_have_a_version_twice(
        changes in prop::collection::vec(change(), 1..60),
    ) {
        let called = |n: u8| format!("l{n}");
        let mut ledger = common::Ledger::default();
        let mut highest = 0;
        for change in changes {
            let before = ledger.view().languages().unwrap();
            let (name, expected) = match &change {
                Change::Set(n, _, _, expected)
                | Change::Disable(n, _, expected)
                | Change::Remove(n, expected) => (called(*n), *expected),
            };
            let command = match change {
                Change::Set(_, alias, disabled, expected) => {
                    let mut language = common::language(&name);
                    language.aliases = alias.map(called).into_iter().collect();
                    Command::SetLanguage {
                        image: "x".to_owned(),
                        language: Box::new(language),
                        disabled,
                        expected,
                    }
                }
                Change::Disable(_, disabled, expected) => Command::DisableLanguage {
                    name: name.clone(),
                    disabled,
                    expected,
                },
                Change::Remove(_, expected) => Command::RemoveLanguage {
                    name: name.clone(),
                    expected,
                },
            };
            ledger.run(command);
            let after = ledger.view().languages().unwrap();
            let version = |all: &[(String, quorun_ledger::Entry)]| {
                all.iter().find(|(known, _)| *known == name).map_or(0, |(_, entry)| entry.version)
            };
            if before != after {
                let (was, is) = (version(&before), version(&after));
                prop_assert!(expected.is_none_or(|expected| expected == was));
                prop_assert!(is == 0 || is > highest);
                highest = highest.max(is);
                let others = |all: &[(String, quorun_ledger::Entry)]| {
                    all.iter().filter(|(known, _)| *known != name).cloned().collect::<Vec<_>>()
                };
                prop_assert_eq!(others(&before), others(&after));
            }
            let mut names = std::collections::BTreeSet::new();
            for (known, entry) in &after {
                prop_assert!(entry.disabled || entry.definition.is_some());
                let Some(definition) = &entry.definition else { continue };
                prop_assert!(definition.version <= entry.version && definition.version > 0);
                prop_assert_eq!(&definition.language.name, known);
                let words = std::iter::once(known).chain(&definition.language.aliases);
                // One may repeat its own name as an alias.
                let own: std::collections::BTreeSet<_> = words.collect();
                for word in own {
                    prop_assert!(names.insert(word.clone()), "{} is taken twice", word);
                }
            }
        }
    }
}
