//! Each rule of the ledger, one behaviour a test.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::witness::check_hash;
use common::{Ledger, complete, id, node_up, result, spec, submit};
use quorun_ledger::{
    Callback, Command, Completion, DeliveryAttempt, DeliveryState, Event, IdempotencyKey,
    JobFilter, JobId, JobSpec, JobState, Owner, OwnerLoad, Priority, QueueBound, Rejection, Reply,
    Secret, Submission, Taken, Verdict, Weights, keys,
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

/// A proposal can come once more after everything about its job was forgotten, because who made it stood still for long. The slot of a
/// cancelled job whose worker hangs is still there then.
#[test]
fn an_id_that_comes_again_finds_the_slot_of_its_cancelled_job() {
    let mut ledger = Ledger::default();
    ledger.run(node_up(1, 1, 4));
    ledger.run(submit(1));
    ledger.run(Command::Cancel { job: id(1) });
    ledger.time_ms += 60_000;
    let (reply, _) = ledger.run(Command::Expire {
        limit: 10,
        keep_bytes: u64::MAX,
    });
    assert_eq!(reply, Reply::Expired { jobs: 1 });
    check_hash(&ledger.store);
    ledger.run(submit(1));
    assert_eq!(state_of(&ledger, 1), JobState::Running);
    check_hash(&ledger.store);
    ledger.run(complete(1, 1, 1, "x"));
    assert_eq!(state_of(&ledger, 1), JobState::Finished);
    check_hash(&ledger.store);
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

fn submission(command: Command) -> Submission {
    let Command::Submit { id, spec, key } = command else {
        panic!("not a submission")
    };
    Submission { id, spec, key }
}

fn all(commands: impl IntoIterator<Item = Command>) -> Command {
    Command::SubmitAll {
        jobs: commands.into_iter().map(submission).collect(),
    }
}

#[test]
fn who_would_leave_arguments_for_the_compiler_out_does_not_know_the_command() {
    let job = |number: u8, compile_args: &[&str]| {
        let mut job = submission(submit(number));
        job.spec.compile_args = compile_args.iter().map(|arg| (*arg).to_owned()).collect();
        job
    };
    let plain = Command::submit_all(vec![job(1, &[]), job(2, &[])]);
    assert_eq!(plain.name(), "submit_all");
    let compiled = Command::submit_all(vec![job(3, &[]), job(4, &["-g"])]);
    assert_eq!(compiled.name(), "submit_compiled");
    let mut ledger = Ledger::default();
    for (command, first) in [(plain, 1), (compiled, 3)] {
        let taken = |number| Taken {
            job: id(number),
            joined: false,
        };
        let jobs = vec![taken(first), taken(first + 1)];
        assert_eq!(ledger.run(command).0, Reply::SubmittedAll { jobs });
    }
    let says = |number| ledger.view().job(id(number)).unwrap().unwrap().compile_args;
    assert_eq!([1, 2, 3, 4].map(says), [false, false, false, true]);
    let kept = ledger.view().spec(id(4)).unwrap().unwrap();
    assert_eq!(kept.compile_args, ["-g"]);
}

#[test]
fn several_jobs_of_an_owner_are_taken_together_or_not_at_all() {
    let mut ledger = Ledger::default();
    ledger.run(owned(1, "a", Some("k")));
    let before = ledger.store.clone();
    // With the one that there is, one too many; the others' jobs go with it, and what is refused leaves no trace.
    let too_many = all([
        owned(2, "b", Some("k")),
        owned(3, "a", None),
        owned(4, "a", None),
        owned(5, "a", Some("l")),
    ]);
    let busy = Reply::Rejected(Rejection::OwnerBusy { jobs: 1, limit: 3 });
    assert_eq!(ledger.run(too_many).0, busy);
    let records = |store: &quorun_ledger::MemoryStore| -> Vec<_> {
        let kept = store.iter().filter(|(key, _)| key[..] != *keys::COUNTERS);
        kept.map(|(key, value)| (key.to_vec(), value.to_vec()))
            .collect()
    };
    assert_eq!(records(&ledger.store), records(&before));
    // What is joined takes no room, and a key is looked up among its owner's.
    let fits = all([
        owned(2, "b", Some("k")),
        owned(3, "a", Some("k")),
        owned(4, "a", Some("l")),
        owned(5, "a", Some("m")),
    ]);
    let (reply, _) = ledger.run(fits);
    let taken = |job, joined| Taken {
        job: id(job),
        joined,
    };
    let jobs = vec![
        taken(2, false),
        taken(1, true),
        taken(4, false),
        taken(5, false),
    ];
    assert_eq!(reply, Reply::SubmittedAll { jobs });
    let load = |owner: &str| ledger.view().owner_load(owner).unwrap().unfinished;
    assert_eq!((load("a"), load("b")), (3, 1));
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
fn the_jobs_of_one_owner_are_listed_by_time_and_in_both_directions() {
    const HOUR: u64 = 60 * 60 * 1000;
    let at = |hours: u64, n: u8| {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&(hours * HOUR).to_be_bytes()[2..]);
        bytes[15] = n;
        JobId::from_slice(&bytes).unwrap()
    };
    let mut ledger = Ledger::default();
    let mut of_a = Vec::new();
    for hours in 1..=20 {
        ledger.time_ms = hours * HOUR;
        for (n, owner) in ["a", "b"].into_iter().enumerate() {
            let id = at(hours, u8::try_from(n).unwrap());
            let mut command = submission(owned(0, owner, None));
            command.id = id;
            command.spec.owner.as_mut().unwrap().max_jobs = None;
            if owner == "a" {
                of_a.push(id);
            }
            ledger.run(Command::SubmitAll {
                jobs: vec![command],
            });
        }
    }
    let mut filter = JobFilter {
        owner: Some("a".to_owned()),
        from_ms: Some(8 * HOUR),
        until_ms: Some(12 * HOUR),
        ..JobFilter::default()
    };
    // A scan of so few shows that neither the other's jobs nor those of other times are looked at.
    let list = |filter: &JobFilter| {
        let mut behind = None;
        let mut ids = Vec::new();
        let mut looks = 0;
        loop {
            let page = ledger.view().jobs(filter, behind, 2, 1).unwrap();
            ids.extend(page.jobs.iter().map(|job| job.id));
            looks += 1;
            behind = page.next;
            if behind.is_none() {
                return (ids, looks);
            }
        }
    };
    let wanted = of_a[7..11].to_vec();
    let mut newest = wanted.clone();
    newest.reverse();
    let (ids, looks) = list(&filter);
    assert_eq!(ids, newest);
    assert!(looks <= 8, "{looks} looks for four jobs");
    filter.oldest_first = true;
    let (ids, looks) = list(&filter);
    assert_eq!(ids, wanted);
    assert!(looks <= 8, "{looks} looks for four jobs");
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
        states: [JobState::Finished].into(),
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

#[test]
fn of_twenty_one_turns_high_has_sixteen_and_low_one() {
    let mut ledger = Ledger::default();
    let levels = [Priority::Low, Priority::Normal, Priority::High];
    let commands = (0..90).map(|n| common::submit_with(id(n), levels[usize::from(n) % 3]));
    ledger.batch(commands.collect());
    // What was put back goes to the front of its own level, and to no other.
    ledger.batch(vec![node_up(1, 1, 1)]);
    let (job, _) = ledger.view().attempts(1).unwrap()[0];
    assert_eq!(job, id(2), "the first of the high ones");
    ledger.batch(vec![Command::NodeLost {
        node: 1,
        incarnation: 1,
    }]);
    let mut served = Vec::new();
    for turn in 0..63 {
        ledger.batch(vec![node_up(1, turn + 2, 1)]);
        let (job, attempt) = ledger.view().attempts(1).unwrap()[0];
        if turn == 0 {
            assert_eq!((job, attempt), (id(2), 2), "put back before all others");
        }
        served.push(ledger.view().job(job).unwrap().unwrap().priority);
        ledger.batch(vec![Command::Cancel { job }]);
    }
    for level in [
        (Priority::High, 16),
        (Priority::Normal, 4),
        (Priority::Low, 1),
    ] {
        let count = served[..21]
            .iter()
            .filter(|served| **served == level.0)
            .count();
        assert_eq!(count, level.1, "{:?}: {served:?}", level.0);
    }
    assert_eq!(served[0], Priority::High);
}

#[test]
fn a_level_that_nobody_can_run_holds_nobody_up_and_saves_no_turns() {
    let mut ledger = Ledger::default();
    ledger.run(node_up(1, 1, 1));
    let of = |n: u8, language: &str, priority| Command::Submit {
        id: id(n),
        spec: JobSpec {
            priority,
            ..common::spec(language)
        },
        key: None,
    };
    ledger.batch((0..20).map(|n| of(n, "cobol", Priority::High)).collect());
    ledger.batch((20..60).map(|n| of(n, "python", Priority::Low)).collect());
    ledger.batch(
        (60..100)
            .map(|n| of(n, "python", Priority::Normal))
            .collect(),
    );
    let end = |ledger: &mut Ledger| {
        let (job, attempt) = ledger.view().attempts(1).unwrap()[0];
        ledger.run(Command::Complete {
            job,
            attempt,
            node: 1,
            result: result(""),
        });
        ledger.view().attempts(1).unwrap()[0].0
    };
    for _ in 0..20 {
        assert!(end(&mut ledger) >= id(20));
    }
    // Now somebody can: high is first, but normal is not held up for the twenty turns that high did not take.
    ledger.run(Command::NodeUp {
        node: 1,
        incarnation: 1,
        http: String::new(),
        slots: 1,
        languages: ["python".to_owned(), "cobol".to_owned()].into(),
        version: String::new(),
    });
    let turns: Vec<_> = (0..7).map(|_| end(&mut ledger)).collect();
    assert!(turns[0] < id(20), "{turns:?}");
    assert!(turns.iter().any(|job| *job >= id(60)), "{turns:?}");
}

#[test]
fn a_queue_from_before_there_were_levels_is_served_as_it_was() {
    let mut ledger = Ledger::default();
    ledger.batch((1..=3).map(submit).collect());
    let counters = ledger.view().counters().unwrap();
    assert_eq!(counters.languages["python"].jobs, 3);
    // As an earlier version has left it.
    let mut old = std::collections::BTreeMap::new();
    let counters = quorun_ledger::Counters {
        languages: std::collections::BTreeMap::new(),
        ..counters
    };
    let key = quorun_ledger::keys::COUNTERS.to_vec();
    old.insert(key, Some(quorun_ledger::codec::encode(&counters).into()));
    ledger.store.commit(old);
    ledger.batch(vec![common::submit_with(id(4), Priority::High)]);
    ledger.run(node_up(1, 1, 4));
    let counters = ledger.view().counters().unwrap();
    assert_eq!((counters.queued, counters.running), (0, 4));
    assert!(counters.languages.is_empty());
}

/// Programs from before rules had a number would leave that out, and go on by their own rules with a ledger that a snapshot
/// has brought them: no command that they do not know need be behind it.
#[test]
fn a_program_that_knows_no_numbers_of_rules_cannot_read_a_ledger_that_has_one() {
    use quorun_ledger::{Counters, Store as _, codec};
    let mut ledger = Ledger::default();
    let version = |ledger: &Ledger| {
        let bytes = ledger.store.get(quorun_ledger::keys::COUNTERS).unwrap();
        bytes.unwrap()[0]
    };
    ledger.run(submit(1));
    assert_eq!(version(&ledger), codec::VERSION);
    ledger.run(Command::OrderByAge { limit: 9 });
    ledger.run(Command::OrderByAge { limit: 9 });
    assert_eq!(version(&ledger), codec::VERSION, "those know this");
    ledger.run(Command::Reweigh { limit: 9 });
    assert_eq!(version(&ledger), codec::RULED);
    ledger.run(submit(2));
    assert_eq!(version(&ledger), codec::RULED);
    let counters = ledger.view().counters().unwrap();
    assert_eq!(
        (counters.rules, counters.queued),
        (quorun_ledger::BY_RECORDS, 2)
    );
    // Ledgers that a program in between has written.
    let read = Counters::decode(&codec::encode(&counters)).unwrap();
    assert_eq!(read, counters);
}

#[test]
fn lists_are_narrowed_and_turned_round() {
    let mut ledger = Ledger::default();
    for n in 1..=6_u8 {
        // As the accepting node draws them: the time first.
        let mut bytes = [0; 16];
        let time = 1_700_000_000_000 + u64::from(n) * 7_200_000;
        bytes[..6].copy_from_slice(&time.to_be_bytes()[2..]);
        ledger.time_ms = time;
        let mut spec = common::spec(if n % 2 == 0 { "c" } else { "python" });
        spec.labels = vec![format!("n{n}"), "all".to_owned()];
        ledger.run(Command::Submit {
            id: quorun_ledger::JobId::from_slice(&bytes).unwrap(),
            spec,
            key: None,
        });
    }
    let numbers = |filter: &quorun_ledger::JobFilter| -> Vec<String> {
        let mut numbers = Vec::new();
        let mut behind = None;
        loop {
            let page = ledger.view().jobs(filter, behind, 2, 3).unwrap();
            numbers.extend(page.jobs.iter().map(|job| job.labels[0].clone()));
            behind = page.next;
            if behind.is_none() {
                return numbers;
            }
        }
    };
    let all = quorun_ledger::JobFilter::default();
    assert_eq!(numbers(&all), ["n6", "n5", "n4", "n3", "n2", "n1"]);
    let oldest = quorun_ledger::JobFilter {
        oldest_first: true,
        ..all.clone()
    };
    assert_eq!(numbers(&oldest), ["n1", "n2", "n3", "n4", "n5", "n6"]);
    let between = quorun_ledger::JobFilter {
        from_ms: Some(1_700_000_000_000 + 2 * 7_200_000),
        until_ms: Some(1_700_000_000_000 + 5 * 7_200_000),
        ..oldest
    };
    assert_eq!(numbers(&between), ["n2", "n3", "n4"]);
    let labels = quorun_ledger::JobFilter {
        labels: ["all".to_owned(), "n3".to_owned()].into(),
        ..all.clone()
    };
    assert_eq!(numbers(&labels), ["n3"]);
    let c = quorun_ledger::JobFilter {
        languages: ["c".to_owned()].into(),
        states: [JobState::Queued, JobState::Running].into(),
        ..all.clone()
    };
    assert_eq!(numbers(&c), ["n6", "n4", "n2"]);
    for nothing in [
        quorun_ledger::JobFilter {
            verdicts: [Verdict::Accepted].into(),
            ..all.clone()
        },
        quorun_ledger::JobFilter {
            nodes: [1].into(),
            ..all.clone()
        },
        quorun_ledger::JobFilter {
            priorities: [Priority::High].into(),
            ..all
        },
    ] {
        assert!(numbers(&nothing).is_empty());
    }
}

#[test]
fn a_delivery_is_tried_until_it_is_received_or_was_tried_often_enough() {
    let with_callback = |n: u8| Command::Submit {
        id: id(n),
        spec: JobSpec {
            callback: Some(Callback {
                url: format!("https://host{n}:8443/path?query"),
                secret: Some(Secret::new("hidden".to_owned())),
                ..Callback::default()
            }),
            ..common::spec("python")
        },
        key: None,
    };
    let tried = |n: u8, attempt, status, retry_ms| Command::CallbackTried {
        job: id(n),
        attempt,
        outcome: DeliveryAttempt {
            at_ms: 5,
            status,
            error: None,
        },
        retry_ms,
    };
    let committed = Reply::Completed(Completion::Committed);
    let fenced = Reply::Completed(Completion::Fenced);
    let mut ledger = Ledger::default();
    assert!(!format!("{:?}", with_callback(1)).contains("hidden"));
    ledger.batch(vec![with_callback(1), with_callback(2), with_callback(3)]);
    let state = |ledger: &Ledger, n| ledger.view().delivery(id(n)).unwrap().unwrap().state;
    let due = |ledger: &Ledger, until| -> Vec<_> {
        let due = ledger.view().due(None, until, 10).unwrap();
        // Whoever looks at one at a time comes to all of them.
        let mut seen = None;
        for one in &due {
            let next = ledger.view().due(seen.as_ref(), until, 1).unwrap();
            assert_eq!(next, std::slice::from_ref(one));
            seen = Some(one.clone());
        }
        due.into_iter().map(|due| (due.job, due.host)).collect()
    };
    assert_eq!(state(&ledger, 1), DeliveryState::Waiting);
    assert_eq!(ledger.run(tried(1, 1, Some(200), None)).0, fenced);
    for n in 1..=3 {
        let (_, events) = ledger.run(Command::Cancel { job: id(n) });
        assert!(events.contains(&Event::CallbackDue { job: id(n) }));
    }
    let now = ledger.time_ms;
    assert_eq!(due(&ledger, now - 1), []);
    let host = |n: u8| (id(n), format!("host{n}:8443"));
    assert_eq!(due(&ledger, now), [host(1), host(2), host(3)]);

    // Received at once; what comes twice, or late, changes nothing.
    assert_eq!(ledger.run(tried(1, 1, Some(204), Some(9))).0, committed);
    assert_eq!(state(&ledger, 1), DeliveryState::Delivered);
    for attempt in [1, 2] {
        assert_eq!(ledger.run(tried(1, attempt, Some(500), Some(9))).0, fenced);
    }
    // Later than the ledger's time, as often as may be.
    for attempt in 1..=8 {
        assert_eq!(state(&ledger, 2), DeliveryState::Pending);
        assert_eq!(ledger.run(tried(2, attempt + 1, None, Some(9))).0, fenced);
        assert_eq!(
            ledger.run(tried(2, attempt, None, Some(1_000))).0,
            committed
        );
        assert_eq!(due(&ledger, now + 999), [host(3)]);
    }
    assert_eq!(state(&ledger, 2), DeliveryState::Failed);
    assert_eq!(due(&ledger, u64::MAX), [host(3)]);
    assert_eq!(
        ledger
            .view()
            .delivery(id(2))
            .unwrap()
            .unwrap()
            .attempts
            .len(),
        8
    );
    // No other attempt would do better.
    assert_eq!(ledger.view().next_due().unwrap(), Some(now));
    assert_eq!(ledger.run(tried(3, 1, None, None)).0, committed);
    assert_eq!(state(&ledger, 3), DeliveryState::Failed);
    assert_eq!(ledger.view().next_due().unwrap(), None);
}

#[test]
fn a_delivery_is_sent_again_on_demand() {
    let mut ledger = Ledger::default();
    let callback = Some(Callback {
        url: "https://host/".to_owned(),
        ..Callback::default()
    });
    let submission = |n: u8, callback| Command::Submit {
        id: id(n),
        spec: JobSpec {
            callback,
            ..common::spec("python")
        },
        key: None,
    };
    ledger.batch(vec![submission(1, callback), submission(2, None)]);
    for limit in [0, 9, 9] {
        ledger.run(Command::OrderByAge { limit });
        ledger.run(Command::Reweigh { limit });
    }
    assert_eq!(ledger.view().counters().unwrap().weights, Weights::Records);
    let again = |n: u8| Command::CallbackAgain { job: id(n) };
    let mut attempt = 0;
    let mut tried = |status| {
        attempt += 1;
        Command::CallbackTried {
            job: id(1),
            attempt,
            outcome: DeliveryAttempt {
                at_ms: 5,
                status,
                error: None,
            },
            retry_ms: Some(1_000),
        }
    };
    let nothing = Reply::Rejected(Rejection::NotDeliverable);
    assert_eq!(ledger.run(again(1)).0, nothing, "it has not finished");
    ledger.batch(vec![
        Command::Cancel { job: id(1) },
        Command::Cancel { job: id(2) },
    ]);
    assert_eq!(ledger.run(again(2)).0, nothing, "it has no callback");
    let unknown = Reply::Rejected(Rejection::UnknownJob);
    assert_eq!(ledger.run(again(3)).0, unknown);
    let due = |ledger: &Ledger| ledger.view().next_due().unwrap();
    let undelivered = |ledger: &Ledger| {
        let counters = ledger.view().counters().unwrap();
        assert_eq!(
            counters.undelivered_bytes > 0,
            !ledger.view().oldest_undelivered(9).unwrap().is_empty()
        );
        counters.undelivered_bytes > 0
    };

    // One that was received; what is asked for twice is the same.
    ledger.run(tried(Some(200)));
    assert_eq!((due(&ledger), undelivered(&ledger)), (None, false));
    ledger.time_ms += 10;
    for _ in 0..2 {
        let (reply, events) = ledger.run(again(1));
        assert_eq!(reply, Reply::CallbackDue);
        assert!(events.contains(&Event::CallbackDue { job: id(1) }));
        let now = ledger.time_ms;
        assert_eq!((due(&ledger), undelivered(&ledger)), (Some(now), true));
    }
    // One that is to be sent later is sent now.
    ledger.run(tried(Some(500)));
    assert_eq!(due(&ledger), Some(ledger.time_ms + 1_000));
    ledger.run(again(1));
    assert_eq!(due(&ledger), Some(ledger.time_ms));
    // One that was given up: once for each demand, and not for ever.
    for _ in 2..8 {
        ledger.run(tried(None));
    }
    let delivery = |ledger: &Ledger| ledger.view().delivery(id(1)).unwrap().unwrap();
    for attempts in 8..64 {
        let before = delivery(&ledger);
        assert_eq!(before.state, DeliveryState::Failed);
        assert_eq!(before.attempts.len(), attempts);
        assert_eq!((due(&ledger), undelivered(&ledger)), (None, false));
        assert_eq!(ledger.run(again(1)).0, Reply::CallbackDue);
        assert!(undelivered(&ledger));
        ledger.run(tried(None));
    }
    assert_eq!(ledger.run(again(1)).0, nothing);
    assert_eq!(delivery(&ledger).attempts.len(), 64);
}

#[test]
fn a_delivery_is_gone_with_its_job() {
    let mut ledger = Ledger::default();
    let spec = JobSpec {
        callback: Some(Callback {
            url: "http://host/".to_owned(),
            ..Callback::default()
        }),
        ..common::spec("python")
    };
    ledger.run(Command::Submit {
        id: id(1),
        spec,
        key: None,
    });
    ledger.run(Command::Cancel { job: id(1) });
    ledger.time_ms += 60_000;
    ledger.run(Command::Expire {
        limit: 1,
        keep_bytes: u64::MAX,
    });
    assert_eq!(ledger.view().due(None, u64::MAX, 10).unwrap(), []);
    let left: Vec<_> = ledger.store.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(left, [quorun_ledger::keys::COUNTERS]);
}

/// As short as a job can be, but for what an owner may write on it.
fn labelled(n: u32) -> Submission {
    let mut bytes = [0; 16];
    bytes[12..].copy_from_slice(&n.to_be_bytes());
    Submission {
        id: JobId::from_slice(&bytes).unwrap(),
        spec: JobSpec {
            labels: (0..16)
                .map(|label| format!("label-{label:02}-{}", "x".repeat(50)))
                .collect(),
            ..spec("python")
        },
        key: Some(IdempotencyKey {
            key: format!("{n:064}"),
            fingerprint: [0; 16],
        }),
    }
}

fn held(ledger: &Ledger) -> u64 {
    let bytes = ledger
        .store
        .iter()
        .map(|(key, value)| key.len() + value.len());
    bytes.sum::<usize>() as u64
}

#[test]
fn many_small_jobs_with_many_labels_are_bounded_by_what_they_hold() {
    const BOUND: u64 = 4 << 20;
    let mut ledger = Ledger::default();
    ledger.run(Command::OrderByAge { limit: 1 });
    ledger.run(Command::Reweigh { limit: 1 });
    ledger.queue = Some(QueueBound {
        jobs: 100_000,
        bytes: BOUND,
    });
    let submit = |n| {
        let Submission { id, spec, key } = labelled(n);
        Command::Submit { id, spec, key }
    };
    let replies = ledger.batch((0..10_000).map(submit).collect()).replies;
    let accepted = replies
        .iter()
        .filter(|reply| matches!(reply, Reply::Submitted { .. }));
    let accepted = accepted.count() as u64;
    let heavy = |reply: &Reply| matches!(reply, Reply::Rejected(Rejection::QueueHeavy { .. }));
    assert!(replies[replies.len() - 1..].iter().all(heavy));
    let queued = held(&ledger);
    assert!(queued <= BOUND, "{accepted} jobs that wait hold {queued}");
    assert!(
        queued > BOUND * 8 / 10,
        "and are not counted for much more: {queued}"
    );
    // By their payload all of them would weigh a few kilobytes.
    assert!(accepted * labelled(0).spec.weight() < BOUND / 50);
    // The same of those that have finished.
    ledger.queue = None;
    ledger.batch((0..10_000).map(submit).collect());
    let cancel = |n| Command::Cancel {
        job: labelled(n).id,
    };
    ledger.batch((0..10_000).map(cancel).collect());
    assert_eq!(ledger.view().counters().unwrap().finished, 10_000);
    assert!(held(&ledger) > 4 * BOUND);
    ledger.run(Command::ExpireOldest {
        limit: 10_000,
        finished_ms: u64::MAX,
        keep_bytes: BOUND,
    });
    let kept = held(&ledger);
    assert!(kept <= BOUND, "finished jobs hold {kept}");
    assert!(
        kept > BOUND * 8 / 10,
        "and are not counted for much more: {kept}"
    );
}

#[test]
fn what_is_heavy_is_weighed_anew_a_few_at_a_time() {
    let mut ledger = Ledger::default();
    for n in 0..6 {
        let spec = JobSpec {
            stdin: vec![0; 3 << 20].into(),
            ..spec("python")
        };
        let (id, key) = (id(n), None);
        ledger.batch(vec![Command::Submit { id, spec, key }]);
    }
    ledger.run(Command::OrderByAge { limit: 10 });
    let replies: Vec<_> = (0..4)
        .map(|_| ledger.run(Command::Reweigh { limit: 100 }).0)
        .collect();
    let jobs = [2, 2, 2, 0].map(|jobs| Reply::Reweighed { jobs });
    assert_eq!(replies, jobs);
    assert_eq!(ledger.view().counters().unwrap().weights, Weights::Records);
}

/// A store that counts what is asked of it.
struct Counted<'a> {
    store: &'a quorun_ledger::MemoryStore,
    reads: std::cell::Cell<u32>,
}

impl Counted<'_> {
    fn one_more(&self) {
        self.reads.set(self.reads.get() + 1);
    }
}

impl quorun_ledger::Store for &Counted<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, quorun_ledger::StoreError> {
        self.one_more();
        self.store.get(key)
    }

    fn first(
        &self,
        from: &[u8],
        to: &[u8],
    ) -> Result<Option<quorun_ledger::store::Pair>, quorun_ledger::StoreError> {
        self.one_more();
        self.store.first(from, to)
    }

    fn last(
        &self,
        from: &[u8],
        to: &[u8],
    ) -> Result<Option<quorun_ledger::store::Pair>, quorun_ledger::StoreError> {
        self.one_more();
        self.store.last(from, to)
    }
}

/// A job number that ids are made of, for more jobs than [`id`] knows.
fn numbered(number: u64) -> JobId {
    JobId::from_slice(&u128::from(number).to_be_bytes()).unwrap()
}

/// Runs commands in one batch, and says how often the store was asked.
fn reads(ledger: &mut Ledger, commands: Vec<Command>) -> (quorun_ledger::Applied, u32) {
    let counted = Counted {
        store: &ledger.store,
        reads: std::cell::Cell::default(),
    };
    let mut tx = quorun_ledger::Transaction::begin(&counted).unwrap();
    let applied = tx
        .apply(quorun_ledger::Batch {
            time_ms: ledger.time_ms,
            eligible: ledger.eligible.clone(),
            queue: None,
            commands,
        })
        .unwrap();
    let writes = tx.finish().unwrap();
    let reads = counted.reads.get();
    ledger.store.commit(writes);
    (applied, reads)
}

#[test]
fn however_many_jobs_an_owner_has_anothers_is_next_and_costs_the_same() {
    let cost_behind = |many: u64, owners: u64| {
        let mut ledger = Ledger::default();
        ledger.begin_rules();
        ledger.run(node_up(1, 1, 1));
        let names: Vec<String> = (0..owners).map(|n| format!("many{n}")).collect();
        let owner = |n: u64| names[usize::try_from(n % owners).unwrap()].as_str();
        let submit = |n| common::submit_of(numbered(n), Some(owner(n)), Priority::Normal);
        ledger.batch((0..many).map(submit).collect());
        let complete = |job| Command::Complete {
            job,
            attempt: 1,
            node: 1,
            result: result(""),
        };
        ledger.run(complete(numbered(0)));
        let one = numbered(many + 1);
        let command = common::submit_of(one, Some("one"), Priority::Normal);
        let (_, to_submit) = reads(&mut ledger, vec![command]);
        let counted = Counted {
            store: &ledger.store,
            reads: std::cell::Cell::default(),
        };
        let view = quorun_ledger::View::new(&counted);
        let job = view.job(one).unwrap().unwrap();
        let place = view.place(&job).unwrap().unwrap();
        assert!(place.ahead < owners + 1, "{place:?}");
        let ahead = view.ahead_of_new(Some("other")).unwrap();
        assert!(ahead[Priority::Normal as usize] <= owners + 1, "{ahead:?}");
        let to_look = counted.reads.get();
        // The others have one turn each at most.
        let (mut running, mut to_take) = (numbered(1), 0);
        for turn in 0..=owners {
            let (applied, cost) = reads(&mut ledger, vec![complete(running)]);
            to_take = to_take.max(cost);
            let assigned = |event: &Event| match event {
                Event::Assigned { job, .. } => Some(*job),
                _ => None,
            };
            running = applied.events.iter().find_map(assigned).unwrap();
            if running == one {
                return (to_submit, to_look, to_take);
            }
            assert!(turn < owners, "still not");
        }
        unreachable!("it is returned or panicked before");
    };
    let few = cost_behind(10, 1);
    assert_eq!(few, cost_behind(100_000, 1));
    assert_eq!(few, cost_behind(5_000, 50));
}

#[test]
fn what_one_node_alone_can_run_does_not_put_others_behind_all_that_waits() {
    let mut ledger = Ledger::default();
    ledger.begin_rules();
    let able = |node, language: &str| {
        let mut up = node_up(node, 1, 1);
        if let Command::NodeUp { languages, .. } = &mut up {
            *languages = [language.to_owned()].into();
        }
        up
    };
    let submit = |n, owner, language: &str| {
        let mut command = common::submit_of(id(n), Some(owner), Priority::Normal);
        if let Command::Submit { spec, .. } = &mut command {
            language.clone_into(&mut spec.language);
        }
        command
    };
    ledger.run(able(1, "c"));
    // Node 1 has the first of them. One that another node can run comes behind the others.
    ledger.batch((0..100).map(|n| submit(n, "many", "c")).collect());
    ledger.run(submit(100, "many", "python"));
    let (_, events) = ledger.run(able(2, "python"));
    let gone = |event: &Event| matches!(event, Event::Assigned { job, .. } if *job == id(100));
    assert!(events.iter().any(gone), "{events:?}");
    // Whoever comes now has the same turn as if that had not been there.
    ledger.run(submit(101, "one", "c"));
    for n in 0..3 {
        if !ledger.view().attempts(1).unwrap().contains(&(id(101), 1)) {
            ledger.run(complete(n, 1, 1, ""));
        }
    }
    assert_eq!(ledger.view().attempts(1).unwrap(), [(id(101), 1)]);
}

#[test]
fn a_program_stops_at_rules_that_it_does_not_know() {
    let mut ledger = Ledger::default();
    ledger.begin_rules();
    let mut tx = quorun_ledger::Transaction::begin(&ledger.store).unwrap();
    let begun = tx.apply(quorun_ledger::Batch {
        time_ms: 0,
        eligible: [].into(),
        queue: None,
        commands: vec![Command::Begin {
            rules: quorun_ledger::RULES + 1,
        }],
    });
    let error = begun.unwrap_err().to_string();
    assert!(error.contains("a newer one is needed"), "{error}");
}

#[test]
fn what_an_owner_cancels_gives_it_no_turns_and_takes_none_from_it() {
    let mut ledger = Ledger::default();
    ledger.begin_rules();
    ledger.eligible.clear();
    let of = |n: u8, owner| common::submit_of(id(n), Some(owner), Priority::Normal);
    ledger.batch((1..=20).map(|n| of(n, "a")).collect());
    ledger.batch((21..=40).map(|n| of(n, "b")).collect());
    // All of them: what comes then is as if there had been none.
    ledger.batch((1..=20).map(|n| Command::Cancel { job: id(n) }).collect());
    ledger.batch((41..=42).map(|n| of(n, "a")).collect());
    ledger.eligible.insert(1);
    ledger.run(node_up(1, 1, 4));
    let running = ledger.view().attempts(1).unwrap();
    let running: Vec<_> = running.into_iter().map(|(job, _)| job).collect();
    assert_eq!(running, [id(21), id(22), id(41), id(42)]);
}

#[test]
fn what_comes_late_does_not_bring_former_rules_back() {
    let mut ledger = Ledger::default();
    ledger.begin_rules();
    ledger.run(submit(1));
    let before = ledger.view().counters().unwrap();
    for commands in common::begin_rules() {
        ledger.batch(commands);
    }
    assert_eq!(ledger.view().counters().unwrap(), before);
}
