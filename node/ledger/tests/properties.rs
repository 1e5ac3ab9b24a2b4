//! Whatever is proposed, in whatever order: no job is lost, no result changes, no node exceeds its slots, and equal
//! logs give equal ledgers.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::witness::{Witness, submitted};
use common::{Ledger, complete, id, node_up, spec};
use proptest::prelude::*;
use quorun_ledger::{
    Batch, Command, IdempotencyKey, MemoryStore, NodeId, QueueBound, Transaction, View,
};

const NODES: NodeId = 4;
const JOBS: u8 = 24;

/// What can be proposed. Numbers are small so that they meet.
fn command() -> impl Strategy<Value = Command> {
    let job = 0..JOBS;
    let node = 1..=NODES;
    let attempt = 1..=4_u32;
    prop_oneof![
        6 => (job.clone(), prop::option::of(0..4_u8), prop::sample::select(vec!["python", "c", "cobol"]))
            .prop_map(|(n, key, language)| Command::Submit {
                id: id(n),
                spec: spec(language),
                key: key.map(|k| IdempotencyKey { key: k.to_string(), fingerprint: [k % 2; 16] }),
            }),
        8 => (job.clone(), attempt.clone(), node.clone(), 0..3_u8)
            .prop_map(|(n, attempt, node, text)| complete(n, attempt, node, &text.to_string())),
        2 => (job.clone(), attempt, node.clone()).prop_map(|(n, attempt, node)| Command::Release {
            job: id(n), attempt, node, reason: "no engine".to_owned(),
        }),
        1 => (job.clone(), node.clone()).prop_map(|(n, node)| Command::Assign { job: id(n), node }),
        1 => job.prop_map(|n| Command::Cancel { job: id(n) }),
        2 => (node.clone(), 1..4_u64, 1..4_u32).prop_map(|(n, i, s)| node_up(n, i, s)),
        1 => (node.clone(), 1..4_u64).prop_map(|(node, incarnation)| Command::NodeLost { node, incarnation }),
        1 => (node, any::<bool>()).prop_map(|(node, draining)| Command::Drain { node, draining }),
        1 => (0..3_u32, prop::option::of(0..40_u64)).prop_map(|(limit, keep)| Command::Expire {
            limit, keep_bytes: keep.unwrap_or(u64::MAX),
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

fn log() -> impl Strategy<Value = Vec<Batch>> {
    prop::collection::vec(batch(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_job_is_lost_and_no_result_changes(log in log()) {
        let mut ledger = Ledger::default();
        let mut witness = Witness::default();
        for batch in log {
            ledger.time_ms = batch.time_ms;
            ledger.eligible = batch.eligible;
            ledger.queue = batch.queue;
            // Ids are drawn once: nobody submits one anew after the job has come to its end.
            let commands: Vec<_> = batch.commands.into_iter().filter(|command| {
                !matches!(command, Command::Submit { id, .. } if witness.ended.contains(id))
            }).collect();
            let submitted = submitted(&commands);
            let applied = ledger.batch(commands);
            witness.check(&submitted, &applied, &ledger.store);
        }
    }

    #[test]
    fn equal_logs_give_equal_ledgers(log in log(), cuts in prop::collection::vec(1..7_usize, 60)) {
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
    fn everything_ends_once_there_are_nodes(log in log()) {
        let mut ledger = Ledger::default();
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
