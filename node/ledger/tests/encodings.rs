//! The bytes of everything that the ledger keeps or sends: `golden/written.txt` has what this version writes,
//! `golden/read.txt` what earlier versions have written and how it must be read for ever.
//!
//! A difference in `written.txt` is a change of format. On purpose, it takes three steps: `UPDATE_GOLDENFILES=1 cargo test
//! -p quorun-ledger --test encodings`; the former bytes go into `read.txt` as a block of their own; and the nodes of a
//! running cluster must still compute the same ledger while some of them have the former version.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::error::Error;
use std::fmt::{Debug, Write as _};

use bytes::Bytes;
use common::{
    Ledger, complete, id, language, node_up, result, spec, submit, submit_of, submit_with,
};
use quorun_ledger::codec::{decode, encode};
use quorun_ledger::view::KeyRecord;
use quorun_ledger::{
    Admission, Ages, BY_OWNER, BY_RECORDS, Batch, Callback, Checker, CheckerProgram, Command,
    Compile, Completion, Counters, Definition, Delivery, DeliveryAttempt, DeliveryState, Entry,
    IdempotencyKey, Job, JobResult, JobSpec, Judged, Language, Limits, Node, Outcome, Output,
    OutputFile, Owner, OwnerLoad, Pinned, Priority, QueueBound, Rejection, Reply, Score, Secret,
    Settings, SourceFile, StepLimits, Submission, Taken, Terminal, TestCase, TestResult, Tolerance,
    Verdict, Weights, keys,
};
use serde::de::DeserializeOwned;

fn play(name: &str) {
    let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    goldenscript::run(&mut Bench, path).unwrap();
}

#[test]
fn what_is_written_is_what_was_agreed() {
    play("written");
}

#[test]
fn what_was_written_is_read() {
    play("read");
}

/// `encode NAME` shows a sample's bytes, `keys` all keys, `decode KIND BYTES...` what bytes are read as.
struct Bench;

impl goldenscript::Runner for Bench {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        line: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut args = line.consume_args();
        let output = match line.name.as_str() {
            "encode" => hex(&sample(args.next_pos().ok_or("no name")?)?),
            "keys" => all_keys(),
            "decode" => {
                let kind = args.next_pos().ok_or("no kind")?;
                let bytes: String = std::iter::from_fn(|| args.next_pos()).collect();
                read(kind, &unhex(&bytes)?)?
            }
            other => return Err(format!("there is no {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

/// Thirty-two bytes a line.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
    }
    text
}

fn unhex(text: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return Err("not pairs of digits".into());
    }
    (0..text.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(&text[at..at + 2], 16)?))
        .collect()
}

/// Decodes, and encodes again: what this version reads it must be able to write.
fn shown<T: DeserializeOwned + serde::Serialize + Debug>(
    bytes: &[u8],
) -> Result<String, Box<dyn Error>> {
    let value: T = decode(bytes).map_err(|error| {
        // What else there is changes with every new command.
        let text = error.to_string();
        text.split(", expected one of")
            .next()
            .unwrap_or_default()
            .to_owned()
    })?;
    Ok(compared(&value, &encode(&value), bytes))
}

/// A value, and whether it is written today as it was read.
fn compared(value: &impl Debug, today: &[u8], read: &[u8]) -> String {
    let same = if today == read {
        "written the same"
    } else {
        "written anew"
    };
    format!("{value:#?}\n{same}")
}

fn read(kind: &str, bytes: &[u8]) -> Result<String, Box<dyn Error>> {
    match kind {
        "batch" => shown::<Batch>(bytes),
        "command" => shown::<Command>(bytes),
        "reply" => shown::<Reply>(bytes),
        "job" => shown::<Job>(bytes),
        "spec" => shown::<JobSpec>(bytes),
        "output" => shown::<Output>(bytes),
        "node" => shown::<Node>(bytes),
        "key" => shown::<KeyRecord>(bytes),
        "owner-load" => shown::<OwnerLoad>(bytes),
        "counters" => {
            let counters = Counters::decode(bytes)?;
            Ok(compared(&counters, &counters.encode(), bytes))
        }
        "admission" => shown::<Admission>(bytes),
        "settings" => shown::<Settings>(bytes),
        "delivery" => shown::<Delivery>(bytes),
        "language" => shown::<Entry>(bytes),
        other => Err(format!("there is no kind {other}").into()),
    }
}

/// Every field set.
fn full_spec() -> JobSpec {
    JobSpec {
        language: "python".to_owned(),
        definition: None,
        files: vec![
            SourceFile {
                name: "main.py".to_owned(),
                content: Bytes::from_static(b"print(1)\n"),
            },
            SourceFile {
                name: "lib/data".to_owned(),
                content: Bytes::from_static(&[0, 255, 10]),
            },
        ],
        entrypoint: "main.py".to_owned(),
        stdin: Bytes::from_static(b"in"),
        tests: vec![
            TestCase::default(),
            TestCase {
                stdin: Bytes::from_static(b"1"),
                expected: Some(Bytes::from_static(b"2")),
                ..TestCase::default()
            },
        ],
        stop_on_failure: true,
        args: vec!["-x".to_owned()],
        env: [("LANG".to_owned(), "C".to_owned())].into(),
        limits: Limits {
            cpu_ms: 1,
            wall_ms: 2,
            memory_kb: 3,
            processes: 4,
            output_kb: 5,
            open_files: 6,
            file_kb: Some(7),
            stack_kb: 8,
        },
        labels: vec!["label".to_owned()],
        isolation_key: Some("tenant".to_owned()),
        owner: None, // `owned` has one
        retention_ms: 9,
        max_attempts: 10,
        priority: Priority::Low,
        callback: Some(Callback {
            url: "https://host/path".to_owned(),
            headers: [("x-name".to_owned(), Secret::new("value".to_owned()))].into(),
            secret: Some(Secret::new("secret".to_owned())),
        }),
        interactive: true,
        terminal: Some(Terminal {
            rows: 24,
            columns: 80,
        }),
        ..JobSpec::default()
    }
}

fn full_result() -> JobResult {
    let outcome = Outcome {
        verdict: Verdict::TimeLimit,
        exit_code: Some(-1),
        signal: Some(9),
        cpu_us: 1,
        wall_us: 1 << 40,
        memory_kb: 3,
        message: Some("over the CPU time".to_owned()),
        judged: None,
    };
    JobResult {
        outcome: outcome.clone(),
        output: Output {
            stdout: Bytes::from_static(b"out"),
            stderr: Bytes::from_static(b"err"),
            stdout_truncated: true,
            stderr_truncated: true,
            compile: Some(Compile {
                exit_code: Some(0),
                signal: Some(11),
                stdout: Bytes::from_static(b"o"),
                stderr: Bytes::from_static(b"e"),
                truncated: true,
                cpu_us: 1,
                wall_us: 2,
                memory_kb: 3,
                cached: true,
            }),
            tests: vec![TestResult {
                outcome,
                stdout: Bytes::from_static(b"a"),
                stderr: Bytes::from_static(b"b"),
                stdout_truncated: true,
                stderr_truncated: true,
                name: None,
                hidden: false,
                score: None,
                checker: None,
            }],
            attempt_us: Some(5),
            ..Output::default()
        },
    }
}

/// Everything about judging set.
fn judged_spec() -> JobSpec {
    let program = CheckerProgram {
        language: "c".to_owned(),
        files: vec![SourceFile {
            name: "check.c".to_owned(),
            content: Bytes::from_static(b"int main;"),
        }],
        entrypoint: "check.c".to_owned(),
        limits: full_spec().limits,
    };
    JobSpec {
        tests: vec![TestCase {
            stdin: Bytes::from_static(b"1"),
            expected: Some(Bytes::from_static(b"2")),
            name: Some("case".to_owned()),
            weight: 3,
            hidden: true,
            cpu_ms: Some(4),
            wall_ms: Some(5),
        }],
        checker: Checker::Program(Box::new(program)),
        outputs: vec!["a/b".to_owned()],
        ..spec("python")
    }
}

/// With arguments for the compiler.
fn compiled_spec() -> JobSpec {
    JobSpec {
        compile_args: vec!["-O0".to_owned(), "-lpthread".to_owned()],
        ..spec("c")
    }
}

fn checked_by(checker: Checker) -> JobSpec {
    JobSpec {
        checker,
        ..spec("c")
    }
}

fn floats() -> Checker {
    Checker::Floats {
        absolute: Tolerance::new(0.5).unwrap(),
        relative: Tolerance::new(0.0).unwrap(),
    }
}

fn judged_complete() -> Command {
    let full = full_result();
    let mut test = full.output.tests[0].clone();
    test.name = Some("case".to_owned());
    test.hidden = true;
    test.score = Some(Score::from_millionths(250_000));
    test.checker = Some("nearly".to_owned());
    let judged = Judged {
        passed: 1,
        total: 2,
        score: Score::from_millionths(625_000),
    };
    let file = |content: &'static [u8], missing: Option<&str>| OutputFile {
        name: "a/b".to_owned(),
        size: 9,
        content: Bytes::from_static(content),
        truncated: !content.is_empty(),
        missing: missing.map(ToOwned::to_owned),
    };
    Command::Complete {
        job: id(1),
        attempt: 2,
        node: 3,
        result: JobResult {
            outcome: Outcome {
                judged: Some(judged),
                ..full.outcome
            },
            output: Output {
                tests: vec![test],
                files: vec![file(b"x", None), file(b"", Some("a link"))],
                ..Output::default()
            },
        },
    }
}

/// Every field set.
fn full_definition() -> Definition {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Definition {
        version: 7,
        image: "zig:0.15".to_owned(),
        language: Language {
            name: "zig".to_owned(),
            aliases: words(&["z"]),
            title: "Zig".to_owned(),
            image: "zig@sha256:00".to_owned(),
            source: "main.zig".to_owned(),
            compile: Some(words(&["zig", "build-exe", "{source}"])),
            run: words(&["./main"]),
            env: [("A".to_owned(), "1".to_owned())].into(),
            zygote: [("B".to_owned(), "2".to_owned())].into(),
            extensions: words(&["zig"]),
            limits: full_spec().limits,
            compile_limits: StepLimits {
                cpu_ms: 1,
                wall_ms: 2,
            },
            example: "hello".to_owned(),
            version_command: Some(words(&["zig", "version"])),
        },
    }
}

fn full_attempt() -> DeliveryAttempt {
    DeliveryAttempt {
        at_ms: 1,
        status: Some(500),
        error: Some("the receiver answered 500".to_owned()),
    }
}

fn full_settings() -> Settings {
    Settings {
        retention_ms: Some(1),
        retention_bytes: Some(2),
        replace_voter_ms: Some(3),
    }
}

fn full_submit() -> Command {
    Command::Submit {
        id: id(1),
        spec: full_spec(),
        key: Some(IdempotencyKey {
            key: "k".to_owned(),
            fingerprint: [7; 16],
        }),
    }
}

/// The same, of an owner with bounds.
fn owned_submit() -> Command {
    Command::Submit {
        id: id(1),
        spec: JobSpec {
            owner: Some(Owner {
                name: "o".to_owned(),
                max_jobs: Some(300),
                queue_percent: Some(10),
            }),
            ..spec("python")
        },
        key: Some(IdempotencyKey {
            key: "k".to_owned(),
            fingerprint: [7; 16],
        }),
    }
}

fn full_complete() -> Command {
    Command::Complete {
        job: id(1),
        attempt: 2,
        node: 3,
        result: full_result(),
    }
}

/// A ledger whose job 1 has everything that a record can have: finished in its second attempt on node 2; job 2 waits.
fn lived() -> Ledger {
    let mut ledger = Ledger::default();
    ledger.run(node_up(1, 1, 1));
    ledger.run(full_submit());
    ledger.run(Command::NodeLost {
        node: 1,
        incarnation: 1,
    });
    ledger.run(node_up(2, 4, 2));
    ledger.time_ms += 5;
    let end = Command::Complete {
        job: id(1),
        attempt: 2,
        node: 2,
        result: full_result(),
    };
    ledger.run(end);
    ledger.run(Command::Drain {
        node: 1,
        draining: true,
    });
    ledger.run(submit(3));
    ledger.eligible.clear();
    ledger.run(submit(2));
    ledger
}

fn sample(name: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    if let Some(command) = sample_command(name) {
        return Ok(encode(&command));
    }
    if let Some(reply) = sample_reply(name) {
        return Ok(encode(&reply));
    }
    let ledger = lived();
    let view = ledger.view();
    Ok(match name {
        "batch" => encode(&Batch {
            time_ms: 1 << 40,
            eligible: [1, 300].into(),
            queue: None,
            commands: vec![submit(1), Command::Cancel { job: id(2) }],
        }),
        "empty-batch" => encode(&Batch {
            time_ms: 0,
            eligible: [].into(),
            queue: None,
            commands: Vec::new(),
        }),
        "bounded-batch" => encode(&Batch {
            time_ms: 0,
            eligible: [].into(),
            queue: Some(QueueBound {
                jobs: 100,
                bytes: 1 << 30,
            }),
            commands: Vec::new(),
        }),
        "job" => encode(&view.job(id(1))?),
        "queued-job" => encode(&view.job(id(2))?),
        "running-job" => encode(&view.job(id(3))?),
        "spec" => encode(&full_spec()),
        "plain-spec" => encode(&spec("c")),
        "judged-spec" => encode(&judged_spec()),
        "exact-spec" => encode(&checked_by(Checker::Exact)),
        "tokens-spec" => encode(&checked_by(Checker::Tokens)),
        "floats-spec" => encode(&checked_by(floats())),
        "compiled-spec" => encode(&compiled_spec()),
        "compiled-job" => {
            let mut ledger = Ledger::default();
            ledger.run(sample_command("submit-compiled").ok_or("no such command")?);
            encode(&ledger.view().job(id(1))?)
        }
        "output" => encode(&full_result().output),
        "plain-output" => encode(&result("x").output),
        "node" => encode(&view.node(1)?),
        "key" => encode(&view.key(None, "k")?),
        "admission" => encode(&Admission {
            peer: "a:1".to_owned(),
            http: "a:2".to_owned(),
        }),
        "owned-job" => {
            let mut ledger = Ledger::default();
            ledger.run(owned_submit());
            encode(&ledger.view().job(id(1))?)
        }
        "owner-load" => encode(&OwnerLoad {
            unfinished: 3,
            queued: 2,
            queued_bytes: 1 << 20,
            ..OwnerLoad::default()
        }),
        "owner-turns" => encode(&with_turns().view().owner_load("o")?),
        "rounds" => with_turns().view().counters()?.encode(),
        "settings" => encode(&full_settings()),
        "delivery" => encode(&Delivery {
            url: "https://host/path".to_owned(),
            state: DeliveryState::Pending,
            due_ms: Some(1),
            attempts: vec![full_attempt()],
        }),
        "counters" => view.counters()?.encode(),
        "levels" => encode(&levels()?),
        "begun-ages" => encode(&Counters {
            ages: Ages::Begun {
                seen: id(1),
                last: id(2),
            },
            ..Counters::default()
        }),
        "kept-ages" => encode(&Counters {
            ages: Ages::Kept,
            ..Counters::default()
        }),
        "begun-weights" => Counters {
            weights: Weights::Begun {
                seen: id(1),
                last: id(2),
            },
            undelivered_bytes: 300,
            rules: BY_RECORDS,
            ..Counters::default()
        }
        .encode(),
        "records-weights" => Counters {
            weights: Weights::Records,
            rules: BY_RECORDS,
            ..Counters::default()
        }
        .encode(),
        "pinned-spec" => encode(&JobSpec {
            definition: Some(Box::new(Pinned::new(&full_definition()))),
            ..spec("zig")
        }),
        "pinned-job" => {
            let mut ledger = Ledger::default();
            let spec = JobSpec {
                definition: Some(Box::new(Pinned::new(&full_definition()))),
                ..spec("zig")
            };
            ledger.run(Command::Submit {
                id: id(1),
                spec,
                key: None,
            });
            encode(&ledger.view().job(id(1))?)
        }
        "language" => encode(&Entry {
            version: 8,
            changed_ms: 1 << 40,
            disabled: true,
            definition: Some(full_definition()),
        }),
        "plain-language" => encode(&Entry {
            version: 8,
            changed_ms: 9,
            disabled: false,
            definition: None,
        }),
        other => return Err(format!("there is no sample {other}").into()),
    })
}

/// Owners that have had turns, and wait; and a job that was purged.
fn with_turns() -> Ledger {
    let mut ledger = Ledger::default();
    ledger.run(submit(1));
    ledger.begin_rules();
    ledger.run(node_up(1, 1, 2));
    for n in 2..=7 {
        let owner = (n % 2 == 0).then_some("o");
        ledger.run(submit_of(id(n), owner, Priority::Normal));
    }
    ledger.run(submit_of(id(8), Some("o"), Priority::Low));
    ledger.run(Command::Cancel { job: id(7) });
    ledger.run(Command::Purge { job: id(7) });
    ledger
}

/// Jobs in every level, and turns taken.
fn levels() -> Result<Counters, Box<dyn Error>> {
    let mut ledger = Ledger::default();
    let levels = [Priority::Low, Priority::Normal, Priority::High];
    let submit = |n: u8| submit_with(id(n), levels[usize::from(n) % 3]);
    ledger.batch((1..=9).map(submit).collect());
    ledger.run(node_up(1, 1, 2));
    Ok(ledger.view().counters()?)
}

fn sample_command(name: &str) -> Option<Command> {
    Some(match name {
        "submit" => full_submit(),
        "owned-submit" => owned_submit(),
        "plain-submit" => submit(1),
        "submit-all" => Command::SubmitAll {
            jobs: vec![
                Submission {
                    id: id(1),
                    spec: full_spec(),
                    key: Some(IdempotencyKey {
                        key: "k".to_owned(),
                        fingerprint: [7; 16],
                    }),
                },
                Submission {
                    id: id(2),
                    spec: spec("c"),
                    key: None,
                },
            ],
        },
        "submit-compiled" => Command::submit_all(vec![Submission {
            id: id(1),
            spec: compiled_spec(),
            key: None,
        }]),
        "callback-tried" => Command::CallbackTried {
            job: id(1),
            attempt: 2,
            outcome: full_attempt(),
            retry_ms: Some(3),
        },
        "callback-again" => Command::CallbackAgain { job: id(1) },
        "assign" => Command::Assign {
            job: id(1),
            node: 2,
        },
        "complete" => full_complete(),
        "judged-complete" => judged_complete(),
        "plain-complete" => complete(1, 1, 1, "x"),
        "release" => Command::Release {
            job: id(1),
            attempt: 1,
            node: 2,
            reason: "no engine".to_owned(),
        },
        "cancel" => Command::Cancel { job: id(1) },
        "up" => node_up(1, 2, 3),
        "lost" => Command::NodeLost {
            node: 1,
            incarnation: 2,
        },
        "drain" => Command::Drain {
            node: 1,
            draining: true,
        },
        "admit" => Command::Admit {
            peer: "a:1".to_owned(),
            http: "a:2".to_owned(),
            floor: 3,
        },
        "remove" => Command::Remove { node: 1 },
        "configure" => Command::Configure {
            settings: full_settings(),
        },
        "plain-configure" => Command::Configure {
            settings: Settings::default(),
        },
        "set-language" => Command::SetLanguage {
            image: "zig:0.15".to_owned(),
            language: Box::new(full_definition().language),
            disabled: true,
            expected: Some(3),
        },
        "plain-set-language" => Command::SetLanguage {
            image: "x".to_owned(),
            language: Box::new(language("x")),
            disabled: false,
            expected: None,
        },
        "disable-language" => Command::DisableLanguage {
            name: "x".to_owned(),
            disabled: true,
            expected: Some(0),
        },
        "remove-language" => Command::RemoveLanguage {
            name: "x".to_owned(),
            expected: None,
        },
        "expire" => Command::Expire {
            limit: 1,
            keep_bytes: u64::MAX,
        },
        "order-by-age" => Command::OrderByAge { limit: 300 },
        "reweigh" => Command::Reweigh { limit: 300 },
        "begin" => Command::Begin { rules: BY_OWNER },
        "purge" => Command::Purge { job: id(1) },
        "expire-oldest" => Command::ExpireOldest {
            limit: 300,
            finished_ms: 1 << 40,
            keep_bytes: 1 << 30,
        },
        _ => return None,
    })
}

fn sample_reply(name: &str) -> Option<Reply> {
    let rejected = |rejection| Some(Reply::Rejected(rejection));
    Some(match name {
        "submitted" => Reply::Submitted {
            job: id(1),
            joined: true,
        },
        "submitted-all" => Reply::SubmittedAll {
            jobs: vec![Taken {
                job: id(1),
                joined: true,
            }],
        },
        "assigned" => Reply::Assigned { attempt: 1 },
        "committed" => Reply::Completed(Completion::Committed),
        "fenced" => Reply::Completed(Completion::Fenced),
        "cancelled" => Reply::Cancelled,
        "callback-due" => Reply::CallbackDue,
        "node-reply" => Reply::Node { requeued: 1 },
        "admitted" => Reply::Admitted { node: 1 },
        "configured" => Reply::Configured,
        "language-set" => Reply::LanguageSet { version: 1 },
        "language-removed" => Reply::LanguageRemoved,
        "unknown-language" => return rejected(Rejection::UnknownLanguage),
        "language-changed" => return rejected(Rejection::LanguageChanged { version: 1 }),
        "name-taken" => {
            return rejected(Rejection::NameTaken {
                word: "a".to_owned(),
                language: "b".to_owned(),
            });
        }
        "too-many-languages" => return rejected(Rejection::TooManyLanguages { limit: 2 }),
        "expired" => Reply::Expired { jobs: 1 },
        "ordered" => Reply::Ordered { jobs: 300 },
        "reweighed" => Reply::Reweighed { jobs: 300 },
        "begun" => Reply::Begun { rules: BY_OWNER },
        "purged" => Reply::Purged,
        "not-finished" => return rejected(Rejection::NotFinished),
        "undelivered" => return rejected(Rejection::Undelivered),
        "unknown-job" => return rejected(Rejection::UnknownJob),
        "unknown-node" => return rejected(Rejection::UnknownNode),
        "already-finished" => return rejected(Rejection::AlreadyFinished),
        "key-conflict" => return rejected(Rejection::KeyConflict { job: id(1) }),
        "not-queued" => return rejected(Rejection::NotQueued),
        "node-removed" => return rejected(Rejection::NodeRemoved),
        "queue-full" => return rejected(Rejection::QueueFull { jobs: 2, limit: 2 }),
        "queue-heavy" => {
            return rejected(Rejection::QueueHeavy {
                bytes: 300,
                limit: 400,
            });
        }
        "owner-busy" => return rejected(Rejection::OwnerBusy { jobs: 2, limit: 2 }),
        "owner-queue-full" => return rejected(Rejection::OwnerQueueFull { jobs: 2, limit: 2 }),
        "owner-queue-heavy" => {
            return rejected(Rejection::OwnerQueueHeavy {
                bytes: 300,
                limit: 400,
            });
        }
        "not-deliverable" => return rejected(Rejection::NotDeliverable),
        "no-room" => return rejected(Rejection::NoRoom),
        "stale-incarnation" => return rejected(Rejection::StaleIncarnation { current: 1 }),
        _ => return None,
    })
}

fn all_keys() -> String {
    let all = [
        ("admission", keys::admission(258)),
        ("age", keys::age(1 << 40, id(3))),
        ("attempt", keys::attempt(258, id(3))),
        ("counters", keys::COUNTERS.to_vec()),
        ("delivery", keys::delivery(id(3))),
        ("due", keys::due(1 << 40, id(3))),
        ("expiry", keys::expiry(1 << 40, id(3))),
        ("idempotency", keys::idempotency(None, "k")),
        ("idempotency-of-owner", keys::idempotency(Some("o"), "k")),
        ("job", keys::job(id(3))),
        ("language", keys::language("zig")),
        ("language-changes", keys::LANGUAGE_CHANGES.to_vec()),
        ("node", keys::node(258)),
        ("output", keys::output(id(3))),
        ("owned", keys::owned("o", id(3))),
        ("owner-load", keys::owner_load("o")),
        ("purged", keys::purged(id(3))),
        ("queued", keys::queued("c", 1 << 63)),
        (
            "queued-in-round",
            keys::queued_in_round("c", 1 << 63, id(3)),
        ),
        ("removed", keys::removed(258)),
        ("settings", keys::SETTINGS.to_vec()),
        ("spec", keys::spec(id(3))),
        ("undelivered", keys::undelivered(1 << 40, id(3))),
    ];
    all.iter()
        .map(|(name, key)| format!("{name} {}", hex(key)))
        .collect()
}
