//! Each rule of the ledger, one behaviour a test.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::{Ledger, complete, id, node_up, result, spec, submit};
use quorun_ledger::{
    Command, Completion, Event, IdempotencyKey, JobFilter, JobSpec, JobState, Owner, OwnerLoad,
    QueueBound, Rejection, Reply, Verdict,
};

fn with_key(n: u8, key: &str, fingerprint: u8) -> Command {
    Command::Submit {
        id: id(n),
        spec: spec("python"),
        key: Some(IdempotencyKey {
            key: key.to_owned(),
            fingerprint: [fingerprint; 16],
        }),
    }
}

fn node_of(ledger: &Ledger, n: u8) -> Option<u64> {
    ledger.view().job(id(n)).unwrap().unwrap().node
}

fn state_of(ledger: &Ledger, n: u8) -> JobState {
    ledger.view().job(id(n)).unwrap().unwrap().state
}

#[test]
fn one_entry_accepts_and_assigns() {
    let mut ledger = Ledger::default();
    ledger.run(node_up(1, 1, 2));
    let (reply, events) = ledger.run(submit(1));
    assert_eq!(
        reply,
        Reply::Submitted {
            job: id(1),
            joined: false
        }
    );
    assert!(events.contains(&Event::Assigned {
        job: id(1),
        attempt: 1,
        node: 1,
        incarnation: 1
    }));
}

#[test]
fn a_job_without_a_free_slot_waits_for_the_result_that_frees_one() {
    let mut ledger = Ledger::default();
    ledger.run(node_up(1, 1, 1));
    ledger.batch(vec![submit(1), submit(2)]);
    assert_eq!(state_of(&ledger, 2), JobState::Queued);
    let (reply, _) = ledger.run(complete(1, 1, 1, "one"));
    assert_eq!(reply, Reply::Completed(Completion::Committed));
    assert_eq!(state_of(&ledger, 2), JobState::Running, "in the same batch");
}

#[test]
fn the_least_busy_node_gets_the_job_and_ties_go_round() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![node_up(1, 1, 2), node_up(2, 1, 2), node_up(3, 1, 4)]);
    ledger.batch((1..=3).map(submit).collect());
    let mut first: Vec<_> = (1..=3).filter_map(|n| node_of(&ledger, n)).collect();
    first.sort_unstable();
    assert_eq!(first, [1, 2, 3], "equal nodes take turns");
    // 1 and 2 are half busy, 3 a quarter.
    ledger.run(submit(4));
    assert_eq!(node_of(&ledger, 4), Some(3));
}

#[test]
fn only_eligible_nodes_that_know_the_language_are_given_work() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![node_up(1, 1, 2), node_up(2, 1, 2)]);
    ledger.eligible = [2].into();
    ledger.run(submit(1));
    assert_eq!(node_of(&ledger, 1), Some(2));
    ledger.run(Command::Submit {
        id: id(2),
        spec: spec("cobol"),
        key: None,
    });
    ledger.run(submit(3));
    assert_eq!(state_of(&ledger, 2), JobState::Queued, "nobody knows it");
    assert_eq!(
        state_of(&ledger, 3),
        JobState::Running,
        "and it holds nobody up"
    );
}

#[test]
fn a_key_joins_the_first_job_and_refuses_another_request() {
    let mut ledger = Ledger::default();
    ledger.run(with_key(1, "k", 7));
    let (reply, _) = ledger.run(with_key(2, "k", 7));
    assert_eq!(
        reply,
        Reply::Submitted {
            job: id(1),
            joined: true
        }
    );
    let (reply, _) = ledger.run(with_key(3, "k", 8));
    assert_eq!(
        reply,
        Reply::Rejected(Rejection::KeyConflict { job: id(1) })
    );
    assert!(ledger.view().job(id(2)).unwrap().is_none());
    assert_eq!(ledger.view().counters().unwrap().queued, 1);
}

#[test]
fn a_proposal_that_comes_twice_makes_one_job() {
    let mut ledger = Ledger::default();
    ledger.run(with_key(1, "k", 7));
    let (reply, _) = ledger.run(with_key(1, "k", 7));
    assert_eq!(
        reply,
        Reply::Submitted {
            job: id(1),
            joined: true
        }
    );
}

#[test]
fn a_result_of_an_older_attempt_is_fenced() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![node_up(1, 1, 1), submit(1)]);
    ledger.run(Command::NodeLost {
        node: 1,
        incarnation: 1,
    });
    ledger.run(node_up(2, 1, 1));
    assert_eq!(node_of(&ledger, 1), Some(2));
    let (reply, _) = ledger.run(complete(1, 1, 1, "late"));
    assert_eq!(reply, Reply::Completed(Completion::Fenced));
    let (reply, _) = ledger.run(complete(1, 2, 2, "right"));
    assert_eq!(reply, Reply::Completed(Completion::Committed));
    let output = ledger.view().output(id(1)).unwrap().unwrap();
    assert_eq!(&output.stdout[..], b"right");
}

#[test]
fn a_result_reported_twice_is_committed_once_and_answered_alike() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![node_up(1, 1, 1), submit(1)]);
    for _ in 0..2 {
        let (reply, _) = ledger.run(complete(1, 1, 1, "one"));
        assert_eq!(reply, Reply::Completed(Completion::Committed));
    }
    assert_eq!(ledger.view().counters().unwrap().finished, 1);
    assert_eq!(ledger.view().node(1).unwrap().unwrap().busy, 0);
}

#[test]
fn a_lost_nodes_jobs_go_to_the_front_oldest_first() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![node_up(1, 1, 2), submit(1), submit(2), submit(3)]);
    let (reply, events) = ledger.run(Command::NodeLost {
        node: 1,
        incarnation: 1,
    });
    assert_eq!(reply, Reply::Node { requeued: 2 });
    assert!(events.contains(&Event::Revoked {
        job: id(1),
        attempt: 1,
        node: 1
    }));
    let mut order = Vec::new();
    for incarnation in 1..=3 {
        // A node with one slot takes exactly one job at a time.
        let (_, events) = ledger.run(node_up(10 + incarnation, 1, 1));
        ledger.eligible.insert(10 + incarnation);
        let applied = ledger.batch(Vec::new());
        order.extend(
            events
                .into_iter()
                .chain(applied.events)
                .filter_map(|e| match e {
                    Event::Assigned { job, .. } => Some(job),
                    _ => None,
                }),
        );
    }
    assert_eq!(order, [id(1), id(2), id(3)]);
}

#[test]
fn attempts_are_limited() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![node_up(1, 1, 1), submit(1)]);
    for incarnation in 2..=4 {
        ledger.run(node_up(1, incarnation, 1));
    }
    let job = ledger.view().job(id(1)).unwrap().unwrap();
    let outcome = job.outcome.unwrap();
    assert_eq!(outcome.verdict, Verdict::InternalError);
    assert!(
        outcome.message.unwrap().contains("3 of 3 attempts"),
        "the message says so"
    );
    assert_eq!(ledger.view().node(1).unwrap().unwrap().busy, 0);
}

#[test]
fn a_new_incarnation_requeues_and_an_old_one_is_refused() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![node_up(1, 5, 1), submit(1)]);
    let (reply, _) = ledger.run(node_up(1, 6, 1));
    assert_eq!(reply, Reply::Node { requeued: 1 });
    assert_eq!(ledger.view().job(id(1)).unwrap().unwrap().attempt, 2);
    let (reply, _) = ledger.run(node_up(1, 5, 1));
    assert_eq!(
        reply,
        Reply::Rejected(Rejection::StaleIncarnation { current: 6 })
    );
    let (reply, _) = ledger.run(Command::NodeLost {
        node: 1,
        incarnation: 5,
    });
    assert_eq!(
        reply,
        Reply::Rejected(Rejection::StaleIncarnation { current: 6 })
    );
}

#[test]
fn a_lost_node_gets_no_work_until_it_announces_itself_again() {
    let mut ledger = Ledger::default();
    ledger.run(node_up(1, 1, 1));
    ledger.run(Command::NodeLost {
        node: 1,
        incarnation: 1,
    });
    ledger.run(submit(1));
    assert_eq!(state_of(&ledger, 1), JobState::Queued);
    ledger.run(node_up(1, 1, 1));
    assert_eq!(state_of(&ledger, 1), JobState::Running);
}

#[test]
fn cancelling_ends_the_job_and_keeps_the_slot_until_the_worker_has_stopped() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![node_up(1, 1, 1), submit(1), submit(2)]);
    let (reply, events) = ledger.run(Command::Cancel { job: id(1) });
    assert_eq!(reply, Reply::Cancelled);
    assert!(events.contains(&Event::Revoked {
        job: id(1),
        attempt: 1,
        node: 1
    }));
    assert_eq!(state_of(&ledger, 2), JobState::Queued, "the slot is taken");
    let (reply, _) = ledger.run(complete(1, 1, 1, "too late"));
    assert_eq!(reply, Reply::Completed(Completion::Fenced));
    assert_eq!(state_of(&ledger, 2), JobState::Running);
    let job = ledger.view().job(id(1)).unwrap().unwrap();
    assert_eq!(job.outcome.unwrap().verdict, Verdict::Cancelled);
    let (reply, _) = ledger.run(Command::Cancel { job: id(1) });
    assert_eq!(reply, Reply::Rejected(Rejection::AlreadyFinished));
}

#[test]
fn a_queued_job_is_cancelled_out_of_the_queue() {
    let mut ledger = Ledger::default();
    ledger.run(submit(1));
    ledger.run(Command::Cancel { job: id(1) });
    let counters = ledger.view().counters().unwrap();
    assert_eq!((counters.queued, counters.finished), (0, 1));
    ledger.run(node_up(1, 1, 1));
    assert_eq!(state_of(&ledger, 1), JobState::Finished);
}

#[test]
fn an_attempt_given_back_goes_to_another_node() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![node_up(1, 1, 1), node_up(2, 1, 1), submit(1)]);
    let first = node_of(&ledger, 1).unwrap();
    ledger.eligible.remove(&first);
    ledger.run(Command::Release {
        job: id(1),
        attempt: 1,
        node: first,
        reason: "no engine".to_owned(),
    });
    let job = ledger.view().job(id(1)).unwrap().unwrap();
    assert_eq!((job.attempt, job.node), (2, Some(3 - first)));
}

#[test]
fn a_named_job_is_assigned_to_a_named_node() {
    let mut ledger = Ledger::default();
    ledger.eligible.clear();
    ledger.batch(vec![node_up(1, 1, 1), submit(1), submit(2)]);
    let (reply, _) = ledger.run(Command::Assign {
        job: id(2),
        node: 1,
    });
    assert_eq!(reply, Reply::Assigned { attempt: 1 });
    let (reply, _) = ledger.run(Command::Assign {
        job: id(1),
        node: 1,
    });
    assert_eq!(reply, Reply::Rejected(Rejection::NoRoom));
    let (reply, _) = ledger.run(Command::Assign {
        job: id(2),
        node: 1,
    });
    assert_eq!(reply, Reply::Rejected(Rejection::NotQueued));
}

#[test]
fn a_draining_node_finishes_what_it_has_and_gets_nothing_new() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![node_up(1, 1, 2), submit(1)]);
    ledger.run(Command::Drain {
        node: 1,
        draining: true,
    });
    ledger.run(submit(2));
    assert_eq!(state_of(&ledger, 2), JobState::Queued);
    let (reply, _) = ledger.run(complete(1, 1, 1, "one"));
    assert_eq!(reply, Reply::Completed(Completion::Committed));
    assert_eq!(state_of(&ledger, 2), JobState::Queued);
    ledger.run(Command::Drain {
        node: 1,
        draining: false,
    });
    assert_eq!(state_of(&ledger, 2), JobState::Running);
}

#[test]
fn finished_jobs_expire_by_age_and_by_bytes_and_free_their_key() {
    let mut ledger = Ledger::default();
    ledger.run(node_up(1, 1, 4));
    ledger.batch(vec![with_key(1, "a", 1), with_key(2, "b", 2), submit(3)]);
    for n in 1..=2 {
        ledger.time_ms += 10;
        ledger.run(complete(n, 1, 1, "x"));
    }
    let expire = |keep_bytes| Command::Expire {
        limit: 10,
        keep_bytes,
    };
    let (reply, _) = ledger.run(expire(u64::MAX));
    assert_eq!(reply, Reply::Expired { jobs: 0 }, "too young");
    ledger.time_ms = 1_010 + 60_000;
    let (reply, _) = ledger.run(expire(u64::MAX));
    assert_eq!(reply, Reply::Expired { jobs: 1 }, "the first is old enough");
    assert!(ledger.view().job(id(1)).unwrap().is_none());
    assert!(ledger.view().key(None, "a").unwrap().is_none());
    let (reply, _) = ledger.run(expire(0));
    assert_eq!(
        reply,
        Reply::Expired { jobs: 1 },
        "the second for its bytes"
    );
    assert_eq!(
        state_of(&ledger, 3),
        JobState::Running,
        "what has not finished never expires"
    );
    let counters = ledger.view().counters().unwrap();
    assert_eq!((counters.finished, counters.finished_bytes), (0, 0));
}

#[test]
fn time_never_goes_back() {
    let mut ledger = Ledger {
        time_ms: 9_000,
        ..Ledger::default()
    };
    ledger.run(submit(1));
    ledger.time_ms = 2_000;
    ledger.run(submit(2));
    let job = ledger.view().job(id(2)).unwrap().unwrap();
    assert_eq!(job.submitted_ms, 9_000);
}

fn owned(n: u8, owner: &str, key: Option<&str>) -> Command {
    Command::Submit {
        id: id(n),
        spec: JobSpec {
            owner: Some(Owner {
                name: owner.to_owned(),
                max_jobs: Some(3),
                queue_percent: None,
            }),
            ..spec("python")
        },
        key: key.map(|key| IdempotencyKey {
            key: key.to_owned(),
            fingerprint: [1; 16],
        }),
    }
}

#[test]
fn an_owner_may_have_so_many_unfinished_jobs_and_no_more() {
    let mut ledger = Ledger::default();
    ledger.run(node_up(1, 1, 1));
    ledger.batch((1..=3).map(|n| owned(n, "a", None)).collect());
    let busy = Reply::Rejected(Rejection::OwnerBusy { jobs: 3, limit: 3 });
    assert_eq!(ledger.run(owned(4, "a", None)).0, busy);
    assert!(ledger.view().job(id(4)).unwrap().is_none());
    // Another owner has its own number, and a retry is no new job.
    let taken = |job, joined| Reply::Submitted { job, joined };
    assert_eq!(ledger.run(owned(5, "b", None)).0, taken(id(5), false));
    assert_eq!(ledger.run(owned(3, "a", None)).0, taken(id(3), true));
    // One that waits, one that runs: either end makes room.
    ledger.run(Command::Cancel { job: id(3) });
    assert_eq!(ledger.run(owned(6, "a", None)).0, taken(id(6), false));
    ledger.run(complete(1, 1, 1, "x"));
    assert_eq!(ledger.run(owned(7, "a", None)).0, taken(id(7), false));
    assert_eq!(ledger.run(owned(8, "a", None)).0, busy);
}

#[test]
fn an_owner_may_have_a_part_of_the_queue() {
    let mut ledger = Ledger {
        queue: Some(QueueBound {
            jobs: 20,
            bytes: 10_000,
        }),
        ..Ledger::default()
    };
    let sharing = |n: u8, owner: &str| Command::Submit {
        id: id(n),
        spec: JobSpec {
            owner: Some(Owner {
                name: owner.to_owned(),
                max_jobs: None,
                queue_percent: Some(10),
            }),
            ..spec("python")
        },
        key: None,
    };
    ledger.batch(vec![sharing(1, "a"), sharing(2, "a")]);
    let full = Reply::Rejected(Rejection::OwnerQueueFull { jobs: 2, limit: 2 });
    assert_eq!(ledger.run(sharing(3, "a")).0, full);
    assert!(matches!(
        ledger.run(sharing(4, "b")).0,
        Reply::Submitted { .. }
    ));
    // A job that was given to a node waits no more.
    ledger.run(node_up(1, 1, 1));
    assert!(matches!(
        ledger.run(sharing(5, "a")).0,
        Reply::Submitted { .. }
    ));
}

#[test]
fn each_owner_has_keys_of_its_own() {
    let mut ledger = Ledger::default();
    ledger.batch(vec![owned(1, "a", Some("k")), owned(2, "b", Some("k"))]);
    assert_eq!(ledger.run(with_key(3, "k", 1)).0, {
        Reply::Submitted {
            job: id(3),
            joined: false,
        }
    });
    for (n, owner, first) in [(4, "a", 1), (5, "b", 2)] {
        let (reply, _) = ledger.run(owned(n, owner, Some("k")));
        let expected = Reply::Submitted {
            job: id(first),
            joined: true,
        };
        assert_eq!(reply, expected, "{owner}");
    }
}

#[test]
fn the_jobs_of_one_owner_are_found_without_looking_at_the_others() {
    let mut ledger = Ledger::default();
    ledger.run(owned(1, "a", None));
    ledger.batch((2..=40).map(submit).collect());
    ledger.batch(vec![owned(41, "ab", None), owned(42, "a", None)]);
    ledger.batch((43..=60).map(submit).collect());
    let filter = JobFilter {
        owner: Some("a".to_owned()),
        ..JobFilter::default()
    };
    // Two records and the end are all that it takes.
    let page = ledger.view().jobs(&filter, None, 10, 3).unwrap();
    let ids: Vec<_> = page.jobs.iter().map(|job| job.id).collect();
    assert_eq!((ids, page.next), (vec![id(42), id(1)], None));
    let first = ledger.view().jobs(&filter, None, 1, 3).unwrap();
    let rest = ledger.view().jobs(&filter, first.next, 1, 3).unwrap();
    assert_eq!(
        rest.jobs.iter().map(|job| job.id).collect::<Vec<_>>(),
        [id(1)]
    );
    // It goes with the job.
    for n in [1, 42] {
        ledger.run(Command::Cancel { job: id(n) });
    }
    ledger.time_ms += 1_000_000;
    ledger.run(Command::Expire {
        limit: 10,
        keep_bytes: u64::MAX,
    });
    let page = ledger.view().jobs(&filter, None, 10, 3).unwrap();
    assert_eq!(page.jobs, []);
    let load = ledger.view().owner_load("a").unwrap();
    assert_eq!(load, OwnerLoad::default());
}

#[test]
fn lists_go_on_where_they_stopped() {
    let mut ledger = Ledger::default();
    ledger.batch((1..=5).map(submit).collect());
    let filter = quorun_ledger::JobFilter::default();
    let first = ledger.view().jobs(&filter, None, 2, 100).unwrap();
    let ids: Vec<_> = first.jobs.iter().map(|j| j.id).collect();
    assert_eq!(ids, [id(5), id(4)]);
    let rest = ledger.view().jobs(&filter, first.next, 10, 100).unwrap();
    let ids: Vec<_> = rest.jobs.iter().map(|j| j.id).collect();
    assert_eq!(ids, [id(3), id(2), id(1)]);
    assert_eq!(rest.next, None);
    let none = quorun_ledger::JobFilter {
        state: Some(JobState::Finished),
        ..filter
    };
    let bounded = ledger.view().jobs(&none, None, 10, 2).unwrap();
    assert!(bounded.jobs.is_empty());
    assert_eq!(bounded.next, Some(id(4)), "says where it gave up");
}

#[test]
fn commands_survive_their_encoding() {
    let commands = vec![
        with_key(1, "k", 7),
        complete(1, 1, 1, "é\0\u{1f600}"),
        node_up(1, 1, 1),
        Command::Release {
            job: id(1),
            attempt: 1,
            node: 1,
            reason: "r".to_owned(),
        },
    ];
    let bytes = quorun_ledger::codec::encode(&commands);
    let back: Vec<Command> = quorun_ledger::codec::decode(&bytes).unwrap();
    assert_eq!(back, commands);
    assert_eq!(result("a"), result("a"));
}

#[test]
fn records_of_a_newer_version_are_refused() {
    let mut bytes = quorun_ledger::codec::encode(&1_u32);
    bytes[0] = 200;
    let error = quorun_ledger::codec::decode::<u32>(&bytes).unwrap_err();
    assert!(error.to_string().contains("version 200"), "{error}");
}
