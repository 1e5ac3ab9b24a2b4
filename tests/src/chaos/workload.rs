//! What clients do meanwhile: jobs that arrive at a fixed rate whatever the cluster does, round all nodes, with retries
//! under the same key, cancellations, and reads that are checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::field::Field;
use super::history::{Invariant, Program};
use crate::client::{Answer, Client};

/// How long a client waits for one node: one that hangs is as good as one that is gone.
const PATIENCE: Duration = Duration::from_secs(4);
/// Pause before the next node is asked.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a submission is sent before its outcome is left unknown.
const TRIES: usize = 6;
/// How many clients there are at most at one time.
const CLIENTS: usize = 3000;

/// Every program writes down when it begins and when it ends, where nobody but the test looks.
const HEAD: &str = r#"echo "b $NAME $$ $EPOCHREALTIME $PWD" >> "$WITNESS""#;
const TAIL: &str = r#"echo "e $NAME $$ $EPOCHREALTIME $PWD" >> "$WITNESS""#;

/// The size of what [`Program::Large`] prints before its name.
const LARGE: usize = 64 * 1024;

/// How many jobs come, and what they are; all of it follows from the seed.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Of the run.
    pub seed: u64,
    /// Jobs in a second.
    pub rate: f64,
    /// No more than so many.
    pub jobs: u64,
    /// Half of the programs take long.
    pub long: bool,
    /// The file that programs write to.
    pub witness: PathBuf,
}

/// The name and the key of a job.
#[must_use]
pub fn name(job: u64) -> String {
    format!("job-{job}")
}

impl Workload {
    fn random(&self, job: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed ^ job.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The program of a job.
    #[must_use]
    pub fn program(&self, job: u64) -> Program {
        if self.long && job.is_multiple_of(2) {
            return Program::Long;
        }
        match self.random(job).u32(..1000) {
            0..3 => Program::Sleep,
            3..4 => Program::Long,
            4..6 => Program::Endless,
            6..16 => Program::Large,
            16..66 => Program::Fails,
            _ => Program::Echo,
        }
    }

    /// What is submitted.
    #[must_use]
    pub fn body(&self, job: u64) -> Value {
        body(&name(job), self.program(job), &self.witness)
    }

    /// Submits until it is stopped or all jobs have been, and returns how many there are. Waits for its clients.
    pub async fn run(&self, field: &Arc<Field>, stop: &AtomicBool) -> u64 {
        let room = Arc::new(Semaphore::new(CLIENTS));
        let mut clients = JoinSet::new();
        let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / self.rate));
        // What could not be sent in time is sent as soon as it can be: the clients do not wait for the cluster.
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut job = 0;
        while job < self.jobs && !stop.load(Ordering::Relaxed) {
            tick.tick().await;
            let place = match room.clone().try_acquire_owned() {
                Ok(place) => place,
                Err(_) => {
                    field.history.tally(|tally| tally.late += 1);
                    let Ok(place) = room.clone().acquire_owned().await else {
                        break;
                    };
                    place
                }
            };
            let (this, field) = (self.clone(), Arc::clone(field));
            clients.spawn(async move {
                Box::pin(this.client(&field, job)).await;
                drop(place);
            });
            while clients.try_join_next().is_some() {}
            job += 1;
        }
        while clients.join_next().await.is_some() {}
        job
    }

    /// One client with one job.
    async fn client(&self, field: &Field, job: u64) {
        let mut random = self.random(job);
        let program = self.program(job);
        field.history.submitting(job, program);
        let ids = field.ids();
        let start = usize::try_from(job).unwrap_or(0);
        let mut sent_to = ids[start % ids.len()];
        let mut answered = None;
        for turn in 0..TRIES {
            sent_to = ids[(start + turn) % ids.len()];
            answered = submit(field, sent_to, job, &self.body(job)).await;
            if answered.is_some() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        let other = |random: &mut fastrand::Rng| {
            let others: Vec<_> = ids.iter().filter(|id| **id != sent_to).collect();
            **random.choice(&others).unwrap_or(&&sent_to)
        };
        let Some(id) = answered else {
            field.history.tally(|tally| tally.unknown += 1);
            return;
        };
        if random.u8(..100) < 20 {
            read(field, other(&mut random), job, &id, "").await;
        }
        if random.u8(..100) < 20 {
            let _ = submit(field, other(&mut random), job, &self.body(job)).await;
        }
        if random.u8(..100) < 10 || (program == Program::Sleep && random.bool()) {
            cancel(field, other(&mut random), job, &id).await;
        }
        if random.u8(..100) < 15 {
            for _ in 0..4 {
                if read(field, other(&mut random), job, &id, "?wait=3").await == Some(true) {
                    break;
                }
            }
            // Once more, for what it never may become.
            read(field, other(&mut random), job, &id, "").await;
        }
    }
}

/// A job that writes down its executions and has a known end.
#[must_use]
pub fn body(name: &str, program: Program, witness: &Path) -> Value {
    let source = match program {
        Program::Echo => format!("{HEAD}\n{TAIL}\necho \"$NAME $$\"\n"),
        Program::Sleep => format!("{HEAD}\nsleep 2\n{TAIL}\necho \"$NAME $$\"\n"),
        Program::Long => format!("{HEAD}\nsleep 8\n{TAIL}\necho \"$NAME $$\"\n"),
        Program::Large => format!("{HEAD}\n{TAIL}\nprintf '%{LARGE}s%s\\n' '' \"$NAME $$\"\n"),
        Program::Fails => format!("{HEAD}\n{TAIL}\necho \"$NAME $$\"\nexit 3\n"),
        Program::Endless => format!("{HEAD}\nwhile :; do :; done\n"),
    };
    let limits = if program == Program::Endless {
        json!({ "cpu_ms": 300, "wall_ms": 60_000 })
    } else {
        // As much as can be asked for: the machine may be busy.
        json!({ "cpu_ms": 20_000, "wall_ms": 60_000 })
    };
    json!({
        "language": "bash",
        "source": source,
        "env": { "WITNESS": witness, "NAME": name },
        "labels": [name],
        "limits": limits,
    })
}

/// Whether a finished job ended as its program does, or in a way that the cluster may give it. Returns the process whose
/// output it has.
///
/// # Errors
/// What is wrong with it.
pub fn check(
    name: &str,
    program: Program,
    cancelled: bool,
    shown: &Value,
) -> Result<Option<u32>, String> {
    let verdict = shown["verdict"].as_str().unwrap_or_default();
    let wrong = |what: &str| Err(format!("{what}: {}", short(shown)));
    if shown["state"] != "finished" {
        return wrong("it is not finished");
    }
    if cancelled && verdict != "cancelled" {
        return wrong("its cancellation was confirmed, but it was not cancelled");
    }
    match verdict {
        "cancelled" => return Ok(None),
        "internal_error" => {
            let used_up = shown["message"]
                .as_str()
                .is_some_and(|message| message.starts_with("gave up after "));
            return if used_up {
                Ok(None)
            } else {
                wrong("an internal error")
            };
        }
        _ => {}
    }
    let (expected, exit_code) = match program {
        Program::Fails => ("runtime_error", json!(3)),
        Program::Endless => ("time_limit", Value::Null),
        Program::Echo | Program::Sleep | Program::Long | Program::Large => ("accepted", json!(0)),
    };
    if verdict != expected {
        return wrong("it ended in another way than its program does");
    }
    let stdout = shown["stdout"].as_str().unwrap_or_default();
    if program == Program::Endless {
        return if stdout.is_empty() {
            Ok(None)
        } else {
            wrong("it printed what its program does not")
        };
    }
    if shown["exit_code"] != exit_code {
        return wrong("its exit code is another");
    }
    let blanks = if program == Program::Large { LARGE } else { 0 };
    let pid = stdout
        .strip_prefix(&" ".repeat(blanks))
        .and_then(|rest| rest.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|rest| rest.strip_suffix('\n')?.parse().ok());
    match pid {
        Some(pid) => Ok(Some(pid)),
        None => wrong("it printed what its program does not"),
    }
}

/// A job without what makes it long.
#[must_use]
pub fn short(shown: &Value) -> String {
    let text = shown.to_string();
    let end = (0..=text.len().min(600))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or(0)].to_owned()
}

/// Answers that a client deserves when the cluster cannot do what it was asked: it is told to come again.
fn may_be(answer: &Answer) -> bool {
    matches!(answer.status.as_u16(), 429 | 503)
}

fn unexpected(field: &Field, what: &str, answer: &Answer) {
    let what = format!(
        "{what} was answered with {}: {}",
        answer.status,
        answer.text()
    );
    field.history.violated(Invariant::Answers, what);
}

/// Submits a job at a node. Returns its id if the node has acknowledged it.
pub async fn submit(field: &Field, node: u64, job: u64, body: &Value) -> Option<String> {
    let client = field.client(node, PATIENCE);
    let sent = Instant::now();
    let request = client
        .request(Method::POST, "/v1/jobs")
        .header("Idempotency-Key", name(job))
        .json(body);
    field.history.tally(|tally| tally.requests += 1);
    match Client::try_send(request).await {
        Ok(answer) if answer.status == 202 => {
            let shown = answer.json();
            let id = shown["id"].as_str().unwrap_or_default().to_owned();
            field.history.acknowledged(job, &id, sent);
            Some(id)
        }
        Ok(answer) if may_be(&answer) => {
            field.history.tally(|tally| tally.refused += 1);
            None
        }
        Ok(answer) => {
            unexpected(field, &format!("job {job} at node {node}"), &answer);
            None
        }
        Err(_) => {
            field.history.tally(|tally| tally.unanswered += 1);
            None
        }
    }
}

/// Reads a job that was acknowledged. Whether it has finished, if the node answered.
pub async fn read(field: &Field, node: u64, job: u64, id: &str, query: &str) -> Option<bool> {
    let floor = field.history.floor(job);
    let client = field.client(node, PATIENCE);
    let request = client.request(Method::GET, &format!("/v1/jobs/{id}{query}"));
    match Client::try_send(request).await {
        Ok(answer) if answer.status == 200 => {
            let shown = answer.json();
            field
                .history
                .read(job, floor, &shown, &format!("node {node}"));
            Some(shown["state"] == "finished")
        }
        Ok(answer) if answer.status == 404 => {
            let what =
                format!("job {job} was acknowledged as {id}, and node {node} has not got it");
            field.history.violated(Invariant::I6, what);
            None
        }
        Ok(answer) if may_be(&answer) => None,
        Ok(answer) => {
            unexpected(
                field,
                &format!("a look at job {job} at node {node}"),
                &answer,
            );
            None
        }
        Err(_) => None,
    }
}

async fn cancel(field: &Field, node: u64, job: u64, id: &str) {
    let floor = field.history.floor(job);
    let client = field.client(node, PATIENCE);
    let request = client.request(Method::DELETE, &format!("/v1/jobs/{id}"));
    match Client::try_send(request).await {
        Ok(answer) if answer.status == 200 => {
            let shown = answer.json();
            if shown["verdict"] == "cancelled" {
                field.history.cancelled(job);
            }
            field
                .history
                .read(job, floor, &shown, &format!("node {node}"));
        }
        Ok(answer) if answer.status == 404 => {
            let what =
                format!("job {job} was acknowledged as {id}, and node {node} has not got it");
            field.history.violated(Invariant::I6, what);
        }
        // It has finished before; or it is not known whether it was.
        Ok(answer) if answer.status == 409 || may_be(&answer) => {}
        Ok(answer) => unexpected(
            field,
            &format!("cancelling job {job} at node {node}"),
            &answer,
        ),
        Err(_) => {}
    }
}
