//! The layout of the ledger's records: one ordered key space, one letter for each table.
//!
//! | letter | key after it | value |
//! | --- | --- | --- |
//! | `a` | node, job | number of the attempt that holds a slot of the node |
//! | `c` | | [`Counters`](crate::view::Counters), not part of the state hash |
//! | `d` | node | empty: nodes that were removed for ever |
//! | `e` | time, job | empty: finished jobs by the time at which they may be expired; purged ones by the time at which that may be forgotten |
//! | `f` | time, job | empty: finished jobs by the time at which they finished, as far as [`Ages`](crate::view::Ages) says |
//! | `g` | | how often the entries of languages have been changed |
//! | `g` | language | [`Entry`](crate::language::Entry) of a language that is set in the ledger |
//! | `h` | job | [`Delivery`](crate::callback::Delivery) of the job's end to whoever wants to be told |
//! | `i` | idempotency key; before it 0, owner, 0 where the job has one | the job that has it, and the request's fingerprint |
//! | `j` | job | [`Job`](crate::job::Job) |
//! | `k` | time, job | empty: of those in the order of age the ones that are still to be delivered; they do not stand in `f` |
//! | `m` | node | [`Admission`](crate::node::Admission) of a node that was let in |
//! | `n` | node | [`Node`](crate::node::Node) |
//! | `o` | job | [`Output`](crate::job::Output) |
//! | `p` | | [`Settings`](crate::settings::Settings) of the cluster |
//! | `q` | what a node needs, 0, order; behind it the job where the order is one of [`Rounds`](crate::rounds::Rounds) | the queued job; what is needed is a language, see [`needed`](crate::language::needed), and the order says the level, [`Priority`](crate::priority::Priority) |
//! | `s` | job | [`JobSpec`](crate::job::JobSpec) |
//! | `u` | owner, 0, job | empty: the jobs of each owner |
//! | `v` | owner | [`OwnerLoad`](crate::owner::OwnerLoad) of an owner with unfinished jobs |
//! | `w` | time, job | the receiver's host: deliveries that are to be sent, by when |
//! | `x` | job | empty: jobs that were purged a moment ago |
//!
//! Numbers are big-endian, so that keys sort as they do. All tables start with a letter below `z`; keys from `z` on
//! belong to whoever keeps the records.

use crate::job::JobId;
use crate::node::NodeId;

/// The key of the counters.
pub const COUNTERS: &[u8] = b"c";
/// The key of the cluster's settings.
pub const SETTINGS: &[u8] = b"p";
/// The key of the number of changes of languages.
pub const LANGUAGE_CHANGES: &[u8] = b"g";
/// The first byte that no key of the ledger starts with; what is from here on belongs to the keeper of the records.
pub const END: u8 = b'z';

fn key(table: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|p| p.len()).sum::<usize>());
    key.push(table);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// A half-open range of keys: the first that belongs to it, and the first that no longer does.
pub type Range = (Vec<u8>, Vec<u8>);

fn table(letter: u8) -> Range {
    (vec![letter], vec![letter + 1])
}

/// A job's record.
#[must_use]
pub fn job(id: JobId) -> Vec<u8> {
    key(b'j', &[id.as_bytes()])
}

/// All jobs, oldest first.
#[must_use]
pub fn jobs() -> Range {
    table(b'j')
}

/// The first key of a job whose id was drawn at a time, Unix milliseconds, or later. Ids begin with 48 bits of it.
#[must_use]
pub fn jobs_from(time_ms: u64) -> Vec<u8> {
    key(b'j', &[&time_of_id(time_ms)])
}

/// The 48 bits of a time with which ids of that time begin.
fn time_of_id(time_ms: u64) -> [u8; 6] {
    let [_, _, time @ ..] = time_ms.min((1 << 48) - 1).to_be_bytes();
    time
}

/// What was submitted.
#[must_use]
pub fn spec(id: JobId) -> Vec<u8> {
    key(b's', &[id.as_bytes()])
}

/// What was printed.
#[must_use]
pub fn output(id: JobId) -> Vec<u8> {
    key(b'o', &[id.as_bytes()])
}

/// The entry of a language.
#[must_use]
pub fn language(name: &str) -> Vec<u8> {
    key(b'g', &[name.as_bytes()])
}

/// All entries of languages, by name.
#[must_use]
pub fn languages() -> Range {
    // Behind the number of changes; names are not empty.
    (vec![b'g', 0], vec![b'g' + 1])
}

/// The name in a key of a language.
#[must_use]
pub fn name_of_language(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.get(1..)?).ok()
}

/// A node's record.
#[must_use]
pub fn node(id: NodeId) -> Vec<u8> {
    key(b'n', &[&id.to_be_bytes()])
}

/// All nodes.
#[must_use]
pub fn nodes() -> Range {
    table(b'n')
}

/// A node that was let in.
#[must_use]
pub fn admission(id: NodeId) -> Vec<u8> {
    key(b'm', &[&id.to_be_bytes()])
}

/// All nodes that were let in and not removed.
#[must_use]
pub fn admissions() -> Range {
    table(b'm')
}

/// A node that was removed.
#[must_use]
pub fn removed(id: NodeId) -> Vec<u8> {
    key(b'd', &[&id.to_be_bytes()])
}

/// All nodes that were removed.
#[must_use]
pub fn removals() -> Range {
    table(b'd')
}

/// The node of a key that ends with one.
#[must_use]
pub fn node_of(key: &[u8]) -> Option<NodeId> {
    Some(NodeId::from_be_bytes(key.get(1..)?.try_into().ok()?))
}

/// The attempt of a job that holds a slot of a node.
#[must_use]
pub fn attempt(node: NodeId, job: JobId) -> Vec<u8> {
    key(b'a', &[&node.to_be_bytes(), job.as_bytes()])
}

/// All attempts that hold a slot of a node.
#[must_use]
pub fn attempts(node: NodeId) -> Range {
    let from = key(b'a', &[&node.to_be_bytes()]);
    let to = match node.checked_add(1) {
        Some(next) => key(b'a', &[&next.to_be_bytes()]),
        None => vec![b'b'],
    };
    (from, to)
}

/// The job at the end of an [`attempt`] key.
#[must_use]
pub fn job_of_attempt(key: &[u8]) -> Option<JobId> {
    key.get(9..).and_then(JobId::from_slice)
}

/// The delivery of a job's end.
#[must_use]
pub fn delivery(job: JobId) -> Vec<u8> {
    key(b'h', &[job.as_bytes()])
}

/// A delivery that is to be sent, in the order of its time.
#[must_use]
pub fn due(time_ms: u64, job: JobId) -> Vec<u8> {
    key(b'w', &[&time_ms.to_be_bytes(), job.as_bytes()])
}

/// All deliveries that are to be sent.
#[must_use]
pub fn dues() -> Range {
    table(b'w')
}

/// An idempotency key. Each owner has its own, and so have those without an owner: no key begins with the byte 0.
#[must_use]
pub fn idempotency(owner: Option<&str>, value: &str) -> Vec<u8> {
    match owner {
        None => key(b'i', &[value.as_bytes()]),
        Some(owner) => key(b'i', &[&[0], owner.as_bytes(), &[0], value.as_bytes()]),
    }
}

/// That a job is an owner's.
#[must_use]
pub fn owned(owner: &str, job: JobId) -> Vec<u8> {
    key(b'u', &[owner.as_bytes(), &[0], job.as_bytes()])
}

/// All jobs of an owner, oldest first.
#[must_use]
pub fn owned_by(owner: &str) -> Range {
    let name = owner.as_bytes();
    (key(b'u', &[name, &[0]]), key(b'u', &[name, &[1]]))
}

/// The first key of an owner's job whose id was drawn at a time, Unix milliseconds, or later.
#[must_use]
pub fn owned_from(owner: &str, time_ms: u64) -> Vec<u8> {
    key(b'u', &[owner.as_bytes(), &[0], &time_of_id(time_ms)])
}

/// The job at the end of an [`owned`] key.
#[must_use]
pub fn job_of_owned(key: &[u8]) -> Option<JobId> {
    JobId::from_slice(key.get(key.len().checked_sub(16)?..)?)
}

/// What an owner has that is not finished.
#[must_use]
pub fn owner_load(owner: &str) -> Vec<u8> {
    key(b'v', &[owner.as_bytes()])
}

/// A place in the queue.
#[must_use]
pub fn queued(language: &str, order: u64) -> Vec<u8> {
    key(b'q', &[language.as_bytes(), &[0], &order.to_be_bytes()])
}

/// A place of a round in the queue: several jobs may have the same order.
#[must_use]
pub fn queued_in_round(language: &str, order: u64, job: JobId) -> Vec<u8> {
    let order = order.to_be_bytes();
    key(b'q', &[language.as_bytes(), &[0], &order, job.as_bytes()])
}

/// The whole queue: by language, then by order.
#[must_use]
pub fn queue() -> Range {
    table(b'q')
}

/// Language and order of a [`queued`] key, or of a [`queued_in_round`] one.
#[must_use]
pub fn parts_of_queued(key: &[u8]) -> Option<(&str, u64)> {
    let body = key.get(1..)?;
    // No language has this byte in its name.
    let end = body.iter().position(|byte| *byte == 0)?;
    let (name, place) = body.split_at(end);
    let (order, job) = place.get(1..)?.split_first_chunk()?;
    if !matches!(job.len(), 0 | 16) {
        return None;
    }
    Some((std::str::from_utf8(name).ok()?, u64::from_be_bytes(*order)))
}

/// The first key after all places of a language.
#[must_use]
pub fn after_language(language: &str) -> Vec<u8> {
    key(b'q', &[language.as_bytes(), &[1]])
}

/// A finished job in the order of expiry.
#[must_use]
pub fn expiry(time_ms: u64, job: JobId) -> Vec<u8> {
    key(b'e', &[&time_ms.to_be_bytes(), job.as_bytes()])
}

/// All finished jobs in the order of expiry.
#[must_use]
pub fn expiries() -> Range {
    table(b'e')
}

/// That a job was purged a moment ago.
#[must_use]
pub fn purged(job: JobId) -> Vec<u8> {
    key(b'x', &[job.as_bytes()])
}

/// A finished job in the order of age.
#[must_use]
pub fn age(finished_ms: u64, job: JobId) -> Vec<u8> {
    key(b'f', &[&finished_ms.to_be_bytes(), job.as_bytes()])
}

/// All finished jobs in the order of age, the oldest first.
#[must_use]
pub fn ages() -> Range {
    table(b'f')
}

/// A finished job in the order of age of those that are still to be delivered.
#[must_use]
pub fn undelivered(finished_ms: u64, job: JobId) -> Vec<u8> {
    key(b'k', &[&finished_ms.to_be_bytes(), job.as_bytes()])
}

/// All finished jobs that are still to be delivered, the oldest first.
#[must_use]
pub fn all_undelivered() -> Range {
    table(b'k')
}

/// Time and job of an [`expiry`] key, an [`age`] or [`undelivered`] one, or a [`due`] one.
#[must_use]
pub fn parts_of_expiry(key: &[u8]) -> Option<(u64, JobId)> {
    let time = u64::from_be_bytes(key.get(1..9)?.try_into().ok()?);
    Some((time, JobId::from_slice(key.get(9..)?)?))
}
