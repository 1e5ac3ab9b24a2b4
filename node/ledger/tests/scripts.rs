//! The ledger's behaviour as scripts that can be read: `scripts/*.txt` hold commands, and below each block what they were
//! answered, what happened, and what the ledger then holds. After every command the invariants are looked at.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p quorun-ledger --test scripts` writes the answers anew; the change is then to be
//! read as one reads code.
//!
//! ```text
//! later 500 | earlier 500            the leader's clock goes on or back, milliseconds
//! bound jobs=2 bytes=100             what the queue may hold; anything when bare
//! eligible 1 2                       whom the leader believes able to take work; nobody when bare
//! up n1 slots=2 incarnation=1 languages="python,c"
//! lost n1 incarnation=1
//! drain n1 | undrain n1
//! submit j1 lang=python key=k1 request=a attempts=3 keep=60000 size=8 owner=a level=high callback=http://host/
//! assign j1 n1
//! complete j1 attempt=1 node=1 text=hello verdict=accepted
//! release j1 attempt=1 node=1 reason="no engine"
//! cancel j1 | purge j1
//! order | reweigh | begin rules=3
//! tried j1 attempt=1 status=200
//! expire limit=10 bytes=1000
//! admit address floor=3 | remove n1
//! define zig image=x aliases=a,b run=r disabled=true expected=3
//! disable zig expected=3 | enable zig | forget zig
//! submit j1 lang=zig definition=1    a job that carries this definition
//! configure keep=5 bytes=6 replace=7
//! place                              an empty batch: the bare scheduling decision
//! dump                               everything that the ledger holds
//! ```
//!
//! A command is a batch of its own, unless it stands between `batch` and `apply`. `(command)` says nothing. `[twice]` after
//! a command applies it two times, as a proposer does that was not told what came of the first time.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::str::FromStr;

use bytes::Bytes;
use common::witness::{Witness, submitted};
use common::{Ledger, id, language, node_up, result, spec};
use goldenscript::{ArgumentConsumer, Context};
use quorun_ledger::{
    Ages, Applied, Callback, Command, Definition, DeliveryAttempt, IdempotencyKey, JobFilter,
    JobId, NodeId, Owner, Pinned, Priority, QueueBound, RULES, Settings, Verdict, Weights, keys,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// One test for each script.
macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            play(stringify!($name));
        })*

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

scripts!(
    ages,
    attempts,
    cancel,
    drain,
    fencing,
    incarnations,
    keys_and_retries,
    languages,
    languages_set,
    life,
    membership,
    placement,
    purge,
    queue_bound,
    release,
    repeated,
    requeue,
    retention,
    settings,
    time,
    turns,
    weights,
);

fn play(name: &str) {
    let path = format!("{}/tests/scripts/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    goldenscript::run(&mut Stage::default(), path).unwrap();
}

#[test]
fn every_script_is_played() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");
    let found: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let played: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, played);
}

/// A ledger that is played to.
#[derive(Default)]
struct Stage {
    ledger: Ledger,
    witness: Witness,
    /// Commands since `batch`.
    collected: Option<Vec<Command>>,
}

impl goldenscript::Runner for Stage {
    type Command = goldenscript::Command;

    fn run(&mut self, line: &goldenscript::Command, context: &Context) -> Outcome<String> {
        let mut args = line.consume_args();
        let mut output = String::new();
        match line.name.as_str() {
            "later" | "earlier" => {
                let by: u64 = positional(&mut args, "milliseconds")?.parse()?;
                let now = self.ledger.time_ms;
                self.ledger.time_ms = if line.name == "later" {
                    now + by
                } else {
                    now - by
                };
            }
            "eligible" => {
                self.ledger.eligible = std::iter::from_fn(|| args.next_pos())
                    .map(NodeId::from_str)
                    .collect::<Result<_, _>>()?;
            }
            "bound" => {
                let jobs = option(&mut args, "jobs", u64::MAX)?;
                let bytes = option(&mut args, "bytes", u64::MAX)?;
                self.ledger.queue = Some(QueueBound { jobs, bytes });
            }
            "batch" => self.collected = Some(Vec::new()),
            "apply" => {
                let commands = self.collected.take().ok_or("apply without batch")?;
                output = self.apply(commands);
            }
            "place" => output = self.apply(Vec::new()),
            "dump" => output = self.dump()?,
            name => {
                let command = command(name, &mut args)?;
                let times = if context.tags.contains("twice") { 2 } else { 1 };
                for _ in 0..times {
                    match &mut self.collected {
                        Some(collected) => collected.push(command.clone()),
                        None => output += &self.apply(vec![command.clone()]),
                    }
                }
            }
        }
        args.reject_next()?;
        Ok(output)
    }

    fn end_script(&mut self) -> Outcome<()> {
        match self.collected {
            Some(_) => Err("batch without apply".into()),
            None => Ok(()),
        }
    }
}

impl Stage {
    fn apply(&mut self, commands: Vec<Command>) -> String {
        let jobs = submitted(&commands);
        let applied = self.ledger.batch(commands);
        self.witness.check(&jobs, &applied, &self.ledger.store);
        told(&applied)
    }

    fn dump(&self) -> Outcome<String> {
        let view = self.ledger.view();
        let mut text = String::new();
        let mut jobs = view
            .jobs(&JobFilter::default(), None, usize::MAX, usize::MAX)?
            .jobs;
        jobs.sort_by_key(|job| (job.order, job.id));
        for job in jobs {
            write!(text, "{}: {}", short(job.id), job.state.as_str())?;
            write!(text, ", attempt {}/{}", job.attempt, job.max_attempts)?;
            if let Some(node) = job.node {
                write!(text, " on n{node}")?;
            }
            if let Some(outcome) = job.outcome {
                write!(text, ", {}", outcome.verdict.as_str())?;
                if let Some(message) = outcome.message {
                    write!(text, " ({message})")?;
                }
                let output = view.output(job.id)?.ok_or("finished without an output")?;
                write!(text, " {:?}", String::from_utf8_lossy(&output.stdout))?;
            }
            let times = [
                ("submitted", Some(job.submitted_ms)),
                ("started", job.started_ms),
                ("finished", job.finished_ms),
            ];
            for (what, time) in times {
                if let Some(time) = time {
                    write!(text, ", {what} {time}")?;
                }
            }
            if let Some(key) = job.key {
                write!(text, ", key {key}")?;
            }
            writeln!(text)?;
        }
        for node in view.nodes()? {
            write!(text, "n{}: incarnation {}", node.id, node.incarnation)?;
            write!(text, ", busy {}/{}", node.busy, node.slots)?;
            for (job, attempt) in view.attempts(node.id)? {
                write!(text, " {}#{attempt}", short(job))?;
            }
            if node.draining {
                write!(text, ", draining")?;
            }
            if node.lost {
                write!(text, ", lost")?;
            }
            writeln!(text)?;
        }
        for (node, admission) in view.admissions()? {
            writeln!(text, "n{node}: admitted at {}", admission.peer)?;
        }
        for node in view.removed()? {
            writeln!(text, "n{node}: removed")?;
        }
        for (name, entry) in view.languages()? {
            write!(text, "language {name}: version {}", entry.version)?;
            write!(text, ", changed {}", entry.changed_ms)?;
            if entry.disabled {
                write!(text, ", disabled")?;
            }
            if let Some(Definition {
                version,
                image,
                language,
            }) = entry.definition
            {
                write!(text, ", definition {version}: image {image}")?;
                write!(
                    text,
                    ", aliases {:?}, run {:?}",
                    language.aliases, language.run
                )?;
            }
            writeln!(text)?;
        }
        // What waits for a language of the nodes' files waits for its name.
        for (needed, job) in view.needed()? {
            if needed.contains('@') {
                writeln!(text, "waits for {needed}: {}", short(job))?;
            }
        }
        let settings = view.settings()?;
        if settings != Settings::default() {
            writeln!(text, "{settings:?}")?;
        }
        for (key, _) in self.ledger.store.iter().filter(|(key, _)| key[0] == b'i') {
            let key = String::from_utf8_lossy(&key[1..]);
            let record = view.key(None, &key)?.ok_or("a key without a record")?;
            writeln!(text, "key {key}: {}", short(record.job))?;
        }
        for (key, _) in self.ledger.store.iter().filter(|(key, _)| key[0] == b'x') {
            let job = JobId::from_slice(&key[1..]).ok_or("a malformed key")?;
            writeln!(text, "purged: {}", short(job))?;
        }
        for (what, range) in [("expires", keys::expiries()), ("finished", keys::ages())] {
            for (key, _) in self.ledger.store.iter() {
                if (&range.0[..]..&range.1[..]).contains(&&key[..]) {
                    let (time, job) = keys::parts_of_expiry(key).ok_or("a malformed key")?;
                    writeln!(text, "{what} {time}: {}", short(job))?;
                }
            }
        }
        let counters = view.counters()?;
        match counters.ages {
            Ages::Unkept => {}
            Ages::Begun { seen, last } => {
                writeln!(
                    text,
                    "in order of age up to {} of {}",
                    short(seen),
                    short(last)
                )?;
            }
            Ages::Kept => writeln!(text, "in order of age")?,
        }
        match counters.weights {
            Weights::Payload => {}
            Weights::Begun { seen, last } => {
                writeln!(
                    text,
                    "weighed by records up to {} of {}",
                    short(seen),
                    short(last)
                )?;
            }
            Weights::Records => writeln!(text, "weighed by records")?,
        }
        writeln!(
            text,
            "queued {} ({} bytes), running {}, finished {} ({} bytes), time {}",
            counters.queued,
            counters.queued_bytes,
            counters.running,
            counters.finished,
            counters.finished_bytes,
            counters.time_ms,
        )?;
        Ok(text)
    }
}

/// Replies and events; whatever is new in them is seen, because nothing is picked out.
fn told(applied: &Applied) -> String {
    let mut text = String::new();
    for reply in &applied.replies {
        let _ = writeln!(text, "{reply:?}");
    }
    for event in &applied.events {
        let _ = writeln!(text, "  {event:?}");
    }
    for n in 1..=9 {
        text = text.replace(&id(n).to_string(), &format!("j{n}"));
    }
    text
}

fn short(job: JobId) -> String {
    format!("j{}", job.as_bytes()[15])
}

fn positional<'a>(args: &mut ArgumentConsumer<'a>, what: &str) -> Outcome<&'a str> {
    Ok(args.next_pos().ok_or_else(|| format!("no {what} given"))?)
}

/// A number with its letter before it, as in `j1`.
fn name<T: FromStr<Err: Error + 'static>>(
    args: &mut ArgumentConsumer<'_>,
    letter: char,
) -> Outcome<T> {
    let text = positional(args, "name")?;
    let number = text
        .strip_prefix(letter)
        .ok_or_else(|| format!("{text} does not begin with {letter}"))?;
    Ok(number.parse()?)
}

fn job(args: &mut ArgumentConsumer<'_>) -> Outcome<JobId> {
    Ok(id(name(args, 'j')?))
}

/// The value of `key=value`, or what it is by default.
fn option<T: FromStr<Err: Error + 'static>>(
    args: &mut ArgumentConsumer<'_>,
    key: &str,
    default: T,
) -> Outcome<T> {
    Ok(args.take_key(key).map_or(Ok(default), str::parse)?)
}

fn command(kind: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<Command> {
    Ok(match kind {
        "submit" => submit(args)?,
        "assign" => Command::Assign {
            job: job(args)?,
            node: name(args, 'n')?,
        },
        "complete" => {
            let mut result = result(args.take_key("text").unwrap_or_default());
            result.outcome.verdict = verdict(args.take_key("verdict").unwrap_or("accepted"))?;
            Command::Complete {
                job: job(args)?,
                attempt: option(args, "attempt", 1)?,
                node: option(args, "node", 1)?,
                result,
            }
        }
        "release" => Command::Release {
            job: job(args)?,
            attempt: option(args, "attempt", 1)?,
            node: option(args, "node", 1)?,
            reason: args.take_key("reason").unwrap_or("no engine").to_owned(),
        },
        "cancel" => Command::Cancel { job: job(args)? },
        "purge" => Command::Purge { job: job(args)? },
        "begin" => Command::Begin {
            rules: option(args, "rules", RULES)?,
        },
        "tried" => Command::CallbackTried {
            job: job(args)?,
            attempt: option(args, "attempt", 1)?,
            outcome: DeliveryAttempt {
                at_ms: 1,
                status: args.take_key("status").map(str::parse).transpose()?,
                error: None,
            },
            retry_ms: None,
        },
        "up" => up(args)?,
        "lost" => Command::NodeLost {
            node: name(args, 'n')?,
            incarnation: option(args, "incarnation", 1)?,
        },
        "drain" | "undrain" => Command::Drain {
            node: name(args, 'n')?,
            draining: kind == "drain",
        },
        "admit" => Command::Admit {
            floor: option(args, "floor", 0)?,
            peer: positional(args, "address")?.to_owned(),
            http: String::new(),
        },
        "remove" => Command::Remove {
            node: name(args, 'n')?,
        },
        "configure" => Command::Configure {
            settings: Settings {
                retention_ms: args.take_key("keep").map(str::parse).transpose()?,
                retention_bytes: args.take_key("bytes").map(str::parse).transpose()?,
                replace_voter_ms: args.take_key("replace").map(str::parse).transpose()?,
            },
        },
        "define" => {
            let mut language = language(positional(args, "name")?);
            let aliases = args.take_key("aliases").unwrap_or_default();
            language.aliases = aliases.split_terminator(',').map(str::to_owned).collect();
            language.run = vec![args.take_key("run").unwrap_or("run").to_owned()];
            Command::SetLanguage {
                image: args.take_key("image").unwrap_or("image").to_owned(),
                language: Box::new(language),
                disabled: option(args, "disabled", false)?,
                expected: args.take_key("expected").map(str::parse).transpose()?,
            }
        }
        "disable" | "enable" => Command::DisableLanguage {
            name: positional(args, "name")?.to_owned(),
            disabled: kind == "disable",
            expected: args.take_key("expected").map(str::parse).transpose()?,
        },
        "forget" => Command::RemoveLanguage {
            name: positional(args, "name")?.to_owned(),
            expected: args.take_key("expected").map(str::parse).transpose()?,
        },
        "expire" => Command::Expire {
            limit: option(args, "limit", 1_000)?,
            keep_bytes: option(args, "bytes", u64::MAX)?,
        },
        "order" => Command::OrderByAge {
            limit: option(args, "limit", 1_000)?,
        },
        "reweigh" => Command::Reweigh {
            limit: option(args, "limit", 1_000)?,
        },
        "oldest" => Command::ExpireOldest {
            limit: option(args, "limit", 1_000)?,
            finished_ms: option(args, "finished", u64::MAX)?,
            keep_bytes: option(args, "bytes", 0)?,
        },
        other => return Err(format!("there is no command {other}").into()),
    })
}

fn submit(args: &mut ArgumentConsumer<'_>) -> Outcome<Command> {
    let mut spec = spec(args.take_key("lang").unwrap_or("python"));
    spec.definition = args.take_key("definition").map(pinned).transpose()?;
    spec.max_attempts = option(args, "attempts", spec.max_attempts)?;
    spec.retention_ms = option(args, "keep", spec.retention_ms)?;
    spec.stdin = Bytes::from(vec![b'x'; option(args, "size", 0)?]);
    spec.owner = args.take_key("owner").map(|name| Owner {
        name: name.to_owned(),
        ..Owner::default()
    });
    spec.callback = args.take_key("callback").map(|url| Callback {
        url: url.to_owned(),
        ..Callback::default()
    });
    if let Some(level) = args.take_key("level") {
        spec.priority = Priority::named(level).ok_or("no such level")?;
    }
    let request = args.take_key("request").unwrap_or("a");
    let digit = *request.as_bytes().first().ok_or("an empty request")?;
    let key = args.take_key("key").map(|key| IdempotencyKey {
        key: key.to_owned(),
        fingerprint: [digit; 16],
    });
    let id = job(args)?;
    Ok(Command::Submit { id, spec, key })
}

fn pinned(version: &str) -> Outcome<Box<Pinned>> {
    Ok(Box::new(Pinned {
        version: version.parse()?,
        language: language("carried"),
    }))
}

fn up(args: &mut ArgumentConsumer<'_>) -> Outcome<Command> {
    let incarnation = option(args, "incarnation", 1)?;
    let slots = option(args, "slots", 1)?;
    let known = args.take_key("languages").unwrap_or("python,c");
    let mut command = node_up(name(args, 'n')?, incarnation, slots);
    if let Command::NodeUp { languages, .. } = &mut command {
        *languages = known.split(',').map(str::to_owned).collect();
    }
    Ok(command)
}

fn verdict(text: &str) -> Outcome<Verdict> {
    let all = [
        Verdict::Accepted,
        Verdict::RuntimeError,
        Verdict::TimeLimit,
        Verdict::InternalError,
    ];
    let found = all.into_iter().find(|verdict| verdict.as_str() == text);
    Ok(found.ok_or_else(|| format!("no verdict {text}"))?)
}
