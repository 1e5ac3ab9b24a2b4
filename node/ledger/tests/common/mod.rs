//! A ledger in memory and the words to drive it.

#![allow(dead_code)] // every suite uses its own part
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

pub mod witness;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorun_ledger::{
    Applied, BY_OWNER, Batch, Command, Event, JobId, JobResult, JobSpec, Language, Limits,
    MemoryStore, NodeId, Outcome, Output, Owner, Priority, QueueBound, RULES, Reply, SourceFile,
    StepLimits, Transaction, Verdict, View,
};

pub struct Ledger {
    pub store: MemoryStore,
    pub time_ms: u64,
    pub eligible: BTreeSet<NodeId>,
    pub queue: Option<QueueBound>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            store: MemoryStore::default(),
            time_ms: 1_000,
            eligible: (1..=9).collect(),
            queue: None,
        }
    }
}

impl Ledger {
    pub fn batch(&mut self, commands: Vec<Command>) -> Applied {
        let mut tx = Transaction::begin(&self.store).unwrap();
        let applied = tx
            .apply(Batch {
                time_ms: self.time_ms,
                eligible: self.eligible.clone(),
                queue: self.queue,
                commands,
            })
            .unwrap();
        let writes = tx.finish().unwrap();
        self.store.commit(writes);
        applied
    }

    pub fn run(&mut self, command: Command) -> (Reply, Vec<Event>) {
        let mut applied = self.batch(vec![command]);
        (applied.replies.remove(0), applied.events)
    }

    pub fn view(&self) -> View<&MemoryStore> {
        View::new(&self.store)
    }

    /// Goes by the last rules from now on, one after the other.
    pub fn begin_rules(&mut self) {
        for commands in begin_rules() {
            self.batch(commands);
        }
        assert_eq!(self.view().counters().unwrap().rules, RULES);
    }
}

/// The commands by which a ledger comes to the last rules.
pub fn begin_rules() -> [Vec<Command>; 3] {
    let limit = u32::MAX;
    let (order, reweigh) = (Command::OrderByAge { limit }, Command::Reweigh { limit });
    [
        vec![order.clone(), order],
        vec![reweigh.clone(), reweigh],
        vec![Command::Begin { rules: BY_OWNER }],
    ]
}

pub fn id(n: u8) -> JobId {
    let mut bytes = [0; 16];
    bytes[15] = n;
    JobId::from_slice(&bytes).unwrap()
}

/// As little of a language as can be.
pub fn language(name: &str) -> Language {
    Language {
        name: name.to_owned(),
        aliases: Vec::new(),
        title: String::new(),
        image: "image".to_owned(),
        source: "main".to_owned(),
        compile: None,
        run: vec!["run".to_owned()],
        env: BTreeMap::new(),
        zygote: BTreeMap::new(),
        extensions: Vec::new(),
        limits: Limits::default(),
        compile_limits: StepLimits {
            cpu_ms: 1,
            wall_ms: 1,
        },
        example: String::new(),
        version_command: None,
    }
}

pub fn spec(language: &str) -> JobSpec {
    JobSpec {
        language: language.to_owned(),
        definition: None,
        files: vec![SourceFile {
            name: "main".to_owned(),
            content: Bytes::from_static(b"print(1)"),
        }],
        entrypoint: "main".to_owned(),
        stdin: Bytes::new(),
        tests: Vec::new(),
        interactive: false,
        terminal: None,
        stop_on_failure: false,
        args: Vec::new(),
        env: BTreeMap::new(),
        limits: Limits {
            cpu_ms: 2_000,
            wall_ms: 5_000,
            memory_kb: 262_144,
            processes: 64,
            output_kb: 400,
            ..Limits::default()
        },
        labels: Vec::new(),
        isolation_key: None,
        owner: None,
        retention_ms: 60_000,
        max_attempts: 3,
        ..JobSpec::default()
    }
}

pub fn submit(n: u8) -> Command {
    Command::Submit {
        id: id(n),
        spec: spec("python"),
        key: None,
    }
}

pub fn submit_with(id: JobId, priority: Priority) -> Command {
    Command::Submit {
        id,
        spec: JobSpec {
            priority,
            ..spec("python")
        },
        key: None,
    }
}

pub fn node_up(node: NodeId, incarnation: u64, slots: u32) -> Command {
    Command::NodeUp {
        node,
        incarnation,
        http: format!("127.0.0.1:{}", 8080 + node),
        slots,
        languages: ["python".to_owned(), "c".to_owned()].into(),
        version: "test".to_owned(),
    }
}

pub fn result(text: &str) -> JobResult {
    JobResult {
        outcome: Outcome {
            verdict: Verdict::Accepted,
            exit_code: Some(0),
            signal: None,
            cpu_us: 10,
            wall_us: 20,
            memory_kb: 30,
            message: None,
            judged: None,
        },
        output: Output {
            stdout: Bytes::copy_from_slice(text.as_bytes()),
            ..Output::default()
        },
    }
}

pub fn complete(n: u8, attempt: u32, node: NodeId, text: &str) -> Command {
    Command::Complete {
        job: id(n),
        attempt,
        node,
        result: result(text),
    }
}

/// A job of an owner, or of nobody in particular.
pub fn submit_of(id: JobId, owner: Option<&str>, priority: Priority) -> Command {
    let owner = owner.map(|name| Owner {
        name: name.to_owned(),
        ..Owner::default()
    });
    Command::Submit {
        id,
        spec: JobSpec {
            owner,
            priority,
            ..spec("python")
        },
        key: None,
    }
}
