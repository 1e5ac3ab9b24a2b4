//! What must hold, looked at during the run and at its end.
//!
//! | | what | where it is looked at |
//! | --- | --- | --- |
//! | I1 | an acknowledged job has exactly one result in the end | [`settled`] |
//! | I2 | the same key is the same job | every acknowledgement; [`settled`] |
//! | I3 | a result never changes, and is the same on all nodes | every read; [`settled`] |
//! | I4 | attempts only grow; nothing is executed that was no attempt | every read; [`executions`] |
//! | I5 | two attempts do not overlap for long | [`executions`] |
//! | I6 | what was acknowledged is seen, and nothing goes back | every read |
//! | I7, I9 | the same index is the same state, on all nodes and for ever | [`watch`] |
//! | I8 | who is cut off acknowledges nothing | the faults that cut |
//! | I10 | all of it settles; nothing is logged that should not be | [`settled`], [`logs`] |
//! | I11 | memory and disk are bounded | [`watch`] |
//! | I12 | a node whose disk forgot something does not take part | the faults that damage |

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use futures::StreamExt;
use reqwest::Method;
use serde_json::Value;

use super::faults::Done;
use super::field::Field;
use super::history::{History, Invariant, Program, digest};
use super::workload::{self, Workload, name, short};
use crate::client::Client;

/// The longest time in which nothing more ends and not all is settled, on a machine that is busy.
const SETTLED: Duration = Duration::from_secs(60);
/// Requests under way at one time when everything is looked at.
const READERS: usize = 32;
/// Generous bounds: what grows for ever reaches them.
const MAX_RSS_KB: u64 = 800 * 1024;
const MAX_DISK_KB: u64 = 8 * 1024 * 1024;
/// Silence after which a node is lost, and the time until its executions are ended.
const FENCE: Duration = Duration::from_secs(4);

/// The largest figures that were seen.
#[derive(Debug, Default)]
pub struct Usage {
    /// Memory of a node, KiB.
    pub rss_kb: AtomicU64,
    /// Disk of a node, KiB.
    pub disk_kb: AtomicU64,
}

/// Looks at the nodes' states and at what they use, for as long as it is let.
pub async fn watch(field: Arc<Field>, usage: Arc<Usage>) {
    let mut round = 0_u64;
    loop {
        let ids = field.ids();
        let shown = futures::future::join_all(ids.iter().map(|id| field.shows(*id))).await;
        for (id, shown) in ids.iter().zip(shown) {
            let Some(shown) = shown else { continue };
            if let (Some(index), Some(hash)) = (
                shown["applied_index"].as_u64(),
                shown["state_hash"].as_str(),
            ) {
                field.history.state(*id, index, hash);
            }
        }
        for id in &ids {
            let pid = field.node(*id).pid();
            let rss = pid.map_or(0, rss_kb);
            usage.rss_kb.fetch_max(rss, Ordering::Relaxed);
            if rss > MAX_RSS_KB {
                let what = format!("node {id} holds {rss} KiB of memory");
                field.history.violated(Invariant::I11, what);
            }
        }
        if round.is_multiple_of(50) {
            let folders: Vec<_> = ids
                .iter()
                .map(|id| field.node(*id).data().to_owned())
                .collect();
            let sizes = tokio::task::spawn_blocking(move || {
                folders.iter().map(|path| size_kb(path)).collect::<Vec<_>>()
            });
            for (id, size) in ids.iter().zip(sizes.await.unwrap_or_default()) {
                usage.disk_kb.fetch_max(size, Ordering::Relaxed);
                if size > MAX_DISK_KB {
                    let what = format!("node {id} holds {size} KiB of disk");
                    field.history.violated(Invariant::I11, what);
                }
            }
        }
        round += 1;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

fn rss_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

fn size_kb(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut size = 0;
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => size += size_kb(&entry.path()),
            Ok(meta) => size += meta.blocks() / 2,
            Err(_) => {}
        }
    }
    size
}

/// What is known of the end.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// Jobs that were acknowledged and have a result.
    pub finished: u64,
    /// Acknowledged and not there.
    pub lost: u64,
    /// Keys with two jobs.
    pub twice: u64,
    /// Results that are not the same everywhere, or not what the program does.
    pub changed: u64,
    /// Acknowledged and without a result.
    pub stuck: u64,
    /// Submissions whose outcome was not known and now is.
    pub resolved: u64,
    /// Jobs that ended because all their attempts were lost.
    pub given_up: u64,
    /// How long it took until all nodes agreed that all is done.
    pub took: Duration,
    /// Attempts of each job.
    pub attempts: HashMap<u64, u64>,
    /// Verdicts of each job that is there.
    pub verdicts: HashMap<u64, String>,
    /// The process whose result was taken, and the node that the ledger names.
    pub results: HashMap<u64, (u32, u64)>,
}

/// Looks at everything once the faults are over.
pub async fn settled(field: &Arc<Field>, workload: &Workload) -> Settled {
    let history = &field.history;
    let began = Instant::now();
    let mut settled = Settled::default();

    // What is not known is asked for again.
    let ids = field.ids();
    let unknown = history
        .jobs()
        .into_iter()
        .filter(|(_, record)| !record.acknowledged);
    let retries = unknown.map(|(job, _)| {
        let (body, ids) = (workload.body(job), &ids);
        async move {
            for turn in 0..20 {
                let node = ids[turn % ids.len()];
                if workload::submit(field, node, job, &body).await.is_some() {
                    return (job, true);
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            (job, false)
        }
    });
    let mut retries = futures::stream::iter(retries).buffer_unordered(READERS);
    while let Some((job, accepted)) = retries.next().await {
        if accepted {
            settled.resolved += 1;
        } else {
            let what = format!("job {job} is not accepted after the faults");
            history.violated(Invariant::I10, what);
        }
    }
    drop(retries);

    // Everything ends, and everybody agrees.
    let mut deadline = Instant::now() + SETTLED;
    let mut most = 0;
    let agreed = loop {
        let shown = futures::future::join_all(ids.iter().map(|id| field.shows(*id))).await;
        let shown: Vec<Value> = shown.into_iter().flatten().collect();
        let same = |field: &str| {
            shown
                .windows(2)
                .all(|pair| pair[0][field] == pair[1][field])
        };
        let done = |shown: &Value| shown["queue"]["jobs"] == 0 && shown["running"] == 0;
        let all = shown.len() == ids.len()
            && [
                "leader",
                "term",
                "applied_index",
                "state_hash",
                "cluster_id",
            ]
            .iter()
            .all(|field| same(field))
            && shown[0]["leader"].is_u64();
        if all && shown.iter().all(done) {
            break true;
        }
        // As long as jobs end, there is only much to do.
        let finished = shown.iter().filter_map(|s| s["finished"]["jobs"].as_u64());
        let finished = finished.max().unwrap_or_default();
        if finished > most {
            most = finished;
            deadline = Instant::now() + SETTLED;
        }
        if Instant::now() >= deadline {
            let states: Vec<_> = shown
                .iter()
                .map(|s| {
                    let (queued, running) = (&s["queue"]["jobs"], &s["running"]);
                    format!(
                        "node {}: leader {} term {} applied {} hash {} queued {queued} running {running}",
                        s["node"], s["leader"], s["term"], s["applied_index"], s["state_hash"],
                    )
                })
                .collect();
            let what = format!(
                "not settled {SETTLED:?} after the faults: {}",
                states.join("; ")
            );
            history.violated(Invariant::I10, what);
            break false;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    settled.took = began.elapsed();

    // A new job works at every node.
    for id in field.ids() {
        let body = workload::body("probe", Program::Echo, &workload.witness);
        let client = field.client(id, Duration::from_secs(30));
        let request = client.request(Method::POST, "/v1/jobs?wait=20").json(&body);
        match Client::try_send(request).await {
            Ok(answer) if answer.status == 200 && answer.json()["verdict"] == "accepted" => {}
            Ok(answer) => {
                let what = format!("a new job at node {id} after the faults: {}", answer.text());
                history.violated(Invariant::I10, what);
            }
            Err(error) => {
                let what = format!("a new job at node {id} after the faults: {error}");
                history.violated(Invariant::I10, what);
            }
        }
    }

    look_at_all(field, agreed, &mut settled).await;
    compare_lists(field, &mut settled).await;
    settled
}

/// Every acknowledged job is there, has finished, and ended as its program does.
async fn look_at_all(field: &Arc<Field>, agreed: bool, settled: &mut Settled) {
    let history = &field.history;
    let ids = field.ids();
    let known = history.jobs();
    let acknowledged = known.into_iter().filter_map(|(job, record)| {
        let id = record.id.clone().filter(|_| record.acknowledged)?;
        Some((job, record, id))
    });
    let looks = acknowledged.map(|(job, record, id)| {
        let at = ids[usize::try_from(job).unwrap_or(0) % ids.len()];
        let client = field.client(at, Duration::from_secs(30));
        async move {
            let floor = field.history.floor(job);
            let mut last = Err("never asked".to_owned());
            for _ in 0..5 {
                let request = client.request(Method::GET, &format!("/v1/jobs/{id}"));
                last = match Client::try_send(request).await {
                    Ok(answer) if matches!(answer.status.as_u16(), 200 | 404) => Ok(answer),
                    Ok(answer) => Err(answer.text()),
                    Err(error) => Err(error.to_string()),
                };
                if last.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            (job, record, id, floor, at, last)
        }
    });
    let mut looks = futures::stream::iter(looks).buffer_unordered(READERS);
    while let Some((job, record, id, floor, at, answer)) = looks.next().await {
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                history.violated(Invariant::I10, format!("job {job} cannot be read: {why}"));
                continue;
            }
        };
        if answer.status == 404 {
            settled.lost += 1;
            let what = format!("job {job} was acknowledged as {id} and is LOST at node {at}");
            history.violated(Invariant::I1, what);
            continue;
        }
        let shown = answer.json();
        history.read(job, floor, &shown, &format!("node {at}, in the end"));
        if shown["state"] != "finished" {
            settled.stuck += 1;
            if agreed {
                let what = format!("job {job} is STUCK: {}", short(&shown));
                history.violated(Invariant::I1, what);
            }
            continue;
        }
        settled.finished += 1;
        let attempts = shown["attempts"].as_u64().unwrap_or_default();
        settled.attempts.insert(job, attempts);
        let verdict = shown["verdict"].as_str().unwrap_or_default().to_owned();
        if verdict == "internal_error" {
            settled.given_up += 1;
        }
        settled.verdicts.insert(job, verdict);
        match workload::check(&name(job), record.program, record.cancelled, &shown) {
            Ok(Some(pid)) => {
                let node = shown["node"].as_u64().unwrap_or_default();
                settled.results.insert(job, (pid, node));
            }
            Ok(None) => {}
            Err(what) => {
                settled.changed += 1;
                history.violated(Invariant::I3, format!("job {job}: {what}"));
            }
        }
    }
}

/// All nodes hold the same jobs, and no name has two.
async fn compare_lists(field: &Arc<Field>, settled: &mut Settled) {
    let history = &field.history;
    let mut first: Option<(u64, BTreeMap<String, u64>)> = None;
    for id in field.ids() {
        let mut jobs = BTreeMap::new();
        let mut names: HashMap<String, String> = HashMap::new();
        let mut cursor = String::new();
        let client = field.client(id, Duration::from_secs(60));
        loop {
            let path = format!("/v1/jobs?limit=500&consistency=stale{cursor}");
            let answer = match Client::try_send(client.request(Method::GET, &path)).await {
                Ok(answer) if answer.status == 200 => answer,
                other => {
                    history.violated(
                        Invariant::I10,
                        format!("node {id} lists no jobs: {other:?}"),
                    );
                    return;
                }
            };
            let page = answer.json();
            for job in page["jobs"].as_array().into_iter().flatten() {
                let job_id = job["id"].as_str().unwrap_or_default().to_owned();
                let label = job["labels"][0].as_str().unwrap_or_default();
                if label != "probe"
                    && let Some(other) = names.insert(label.to_owned(), job_id.clone())
                {
                    settled.twice += 1;
                    let what = format!("{label} is there TWICE at node {id}: {other} and {job_id}");
                    history.violated(Invariant::I2, what);
                }
                jobs.insert(job_id, digest(job));
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        match &first {
            None => first = Some((id, jobs)),
            Some((other, known)) => {
                let different: Vec<_> = known
                    .iter()
                    .filter(|(job, digest)| jobs.get(*job) != Some(digest))
                    .map(|(job, _)| job)
                    .chain(jobs.keys().filter(|job| !known.contains_key(*job)))
                    .collect();
                if !different.is_empty() {
                    settled.changed += different.len() as u64;
                    let few = &different[..different.len().min(5)];
                    let what = format!(
                        "nodes {other} and {id} show {} jobs differently: {few:?}",
                        different.len()
                    );
                    history.violated(Invariant::I3, what);
                }
            }
        }
    }
}

/// One execution, as the program itself has written it down.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// Of which job.
    pub job: u64,
    /// Where: the place.
    pub node: u64,
    /// The process.
    pub pid: u32,
    /// Unix seconds.
    pub began: f64,
    /// Unix seconds; not there if it was ended.
    pub ended: Option<f64>,
}

/// Reads what the programs have written.
#[must_use]
pub fn read_executions(text: &str) -> Vec<Execution> {
    let mut all: Vec<Execution> = Vec::new();
    let mut open: HashMap<(u64, u64, &str), usize> = HashMap::new();
    for line in text.lines() {
        let mut words = line.splitn(5, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (mark, name, pid, time, folder) = (word(), word(), word(), word(), word());
        let Some(job) = name.strip_prefix("job-").and_then(|n| n.parse().ok()) else {
            continue;
        };
        let node = folder
            .split('/')
            .find_map(|part| part.strip_prefix("node")?.parse().ok())
            .unwrap_or(0);
        let Ok(time) = time.parse::<f64>() else {
            continue;
        };
        if mark == "b" {
            open.insert((job, node, pid), all.len());
            all.push(Execution {
                job,
                node,
                pid: pid.parse().unwrap_or_default(),
                began: time,
                ended: None,
            });
        } else if let Some(at) = open.remove(&(job, node, pid)) {
            all[at].ended = Some(time);
        }
    }
    all
}

/// Figures of the executions.
#[derive(Clone, Debug, Default)]
pub struct Executed {
    /// All of them.
    pub executions: u64,
    /// Jobs that were executed more than once.
    pub again: u64,
    /// Pairs of executions of one job that ran at the same time.
    pub overlaps: u64,
    /// From the death of the node that executed a job to the begin of its next execution.
    pub reassigned: Vec<Duration>,
}

fn unix(at: Instant) -> f64 {
    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
    now.as_secs_f64() - at.elapsed().as_secs_f64()
}

/// Holds what was executed against what the ledger says and against the faults.
///
/// `names` are all ids that the nodes of a place have had.
pub fn executions(
    history: &History,
    text: &str,
    settled: &Settled,
    faults: &[Done],
    names: &BTreeMap<u64, Vec<u64>>,
) -> Executed {
    let all = read_executions(text);
    let mut of: BTreeMap<u64, Vec<Execution>> = BTreeMap::new();
    for execution in &all {
        of.entry(execution.job).or_default().push(execution.clone());
    }
    let mut executed = Executed {
        executions: all.len() as u64,
        ..Executed::default()
    };
    let struck: Vec<(f64, f64, &Done)> = faults
        .iter()
        .filter_map(|done| Some((unix(done.struck?), unix(done.ended), done)))
        .collect();
    for (job, runs) in &of {
        let Some(attempts) = settled.attempts.get(job) else {
            continue;
        };
        if runs.len() as u64 > *attempts {
            let what = format!(
                "job {job} was executed {} times: {runs:?}, with {attempts} attempts",
                runs.len()
            );
            history.violated(Invariant::I4, what);
        }
        if runs.len() > 1 {
            executed.again += 1;
        }
        let mut runs = runs.clone();
        runs.sort_by(|a, b| a.began.total_cmp(&b.began));
        for pair in runs.windows(2) {
            let (one, next) = (&pair[0], &pair[1]);
            if let Some(end) = one.ended.filter(|end| *end > next.began) {
                executed.overlaps += 1;
                let overlap = end - next.began;
                let excused = struck.iter().any(|(from, to, done)| {
                    // A node may also begin late what others have begun since.
                    let touched = [one.node, next.node].map(|node| done.nodes.contains(&node));
                    touched.contains(&true) && *from <= end && *to + 30.0 >= next.began
                });
                if overlap > FENCE.as_secs_f64() && !excused {
                    let what =
                        format!("two executions of job {job} overlap by {overlap:.1} s: {runs:?}");
                    history.violated(Invariant::I5, what);
                }
            }
            let killed = struck.iter().find(|(at, _, done)| {
                done.step.kind.kills()
                    && done.nodes.contains(&one.node)
                    && one.began <= *at
                    && *at <= next.began
                    && one.ended.is_none_or(|end| end <= *at)
            });
            if let Some((at, _, _)) = killed {
                executed
                    .reassigned
                    .push(Duration::from_secs_f64((next.began - at).max(0.0)));
            }
        }
    }
    for (job, (pid, node)) in &settled.results {
        // The attempt that was taken was the current one, so it ran on the node that had that.
        let runs = of.get(job).map_or(&[][..], Vec::as_slice);
        let taken = runs.iter().any(|run| {
            let names = names.get(&run.node).map_or(&[][..], Vec::as_slice);
            run.pid == *pid && names.contains(node)
        });
        if !taken {
            let what = format!(
                "the result of job {job} is from process {pid}, which was not the attempt of node {node}: {runs:?}"
            );
            history.violated(Invariant::I4, what);
        }
    }
    for (job, verdict) in &settled.verdicts {
        let ran = of.contains_key(job);
        if !ran && !matches!(verdict.as_str(), "cancelled" | "internal_error") {
            let what = format!("job {job} has the verdict {verdict} and was never executed");
            history.violated(Invariant::I4, what);
        }
    }
    executed
}

/// What nodes may say loudly while they are being harmed, and why.
const ALLOWED: &[(&str, &str)] = &[
    (
        "does NOT isolate",
        "what the process executor says at every start",
    ),
    (
        "is not among this machine's commands",
        "a machine does not have all languages",
    ),
    (
        "quorun::scheduler: node lost",
        "nodes are killed, paused and cut off",
    ),
    (
        "writing the log is slow",
        "disks are slow, and the machine is busy",
    ),
    ("No space left on device", "a disk was full"),
    ("StorageFull", "a disk was full"),
    ("RaftCore stopped", "a peer called a node that was ending"),
    ("this node has a bug", "somebody has switched it on"),
    (
        "not admitted yet",
        "a new node comes before the old one is known to be dead",
    ),
    (
        "raft_inner: failed to ",
        "a peer called a node that was ending",
    ),
    ("failed to send HeartbeatProgress", "a node was ending"),
    (
        "was cancelled while execute state machine command",
        "a node was ending",
    ),
    (
        "ERROR openraft::",
        "what openraft meets on a node that ends or is deposed; whatever that breaks is seen by the other checks",
    ),
    (
        "step error: has to forward request to",
        "a leader was deposed while it changed the membership",
    ),
    (
        "IOFlushed error: the log's writer has failed before",
        "a disk was full",
    ),
    (
        "sled-0.34.7/src/",
        "sled panics on a file that was damaged; the node ends",
    ),
    ("sled::config: ", "a file was damaged"),
    ("sled::pagecache", "a file was damaged, or its disk full"),
    (
        "a peer does not accept this node peer=",
        "a node has started again that has not yet heard which one is in the place of another; a list that is really wrong ends it",
    ),
    (
        "background task failed",
        "the process was ending, and what it did with files was given up",
    ),
    (
        "report not committed yet",
        "there was no leader for some seconds",
    ),
    (
        "reason=\"the node was told to end\"",
        "a node was stopped while it executed",
    ),
    (
        "reason=\"the node is shutting down\"",
        "a node ended while it executed",
    ),
    (
        "giving back what is still running",
        "a node was stopped while it executed",
    ),
    (
        "the others were not told that this node drains",
        "a node was stopped without a leader",
    ),
    (
        "clock is not what most voters say",
        "the clock of a node that led was wrong",
    ),
    (
        "time is ahead of the clocks",
        "half of the voters that lived had a wrong clock",
    ),
    (
        "remotely-reset pending-accept streams reached limit",
        "what was called while a node was paused was called off before it looked",
    ),
];

/// Counts the warnings and errors of a log; those that are not expected are violations.
pub fn logs(history: &History, id: u64, log: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let mut strange: BTreeMap<String, (u64, &str)> = BTreeMap::new();
    for line in log.lines() {
        let level = ["WARN", "ERROR"]
            .into_iter()
            .find(|level| line.split_whitespace().take(3).any(|word| word == *level));
        let panicked = line.contains("panicked at");
        if level.is_none() && !panicked {
            continue;
        }
        if line.contains("the fence is broken") {
            history.violated(Invariant::I4, format!("node {id}: {line}"));
            continue;
        }
        let allowed = ALLOWED.iter().find(|(pattern, _)| line.contains(pattern));
        let level = level.unwrap_or("PANIC");
        if let Some((pattern, _)) = allowed {
            *counts.entry(format!("{level} {pattern}")).or_default() += 1;
        } else {
            let text = line.split_once(level).map_or(line, |(_, text)| text);
            // Figures differ from line to line.
            let text: String = text
                .chars()
                .filter(|c| !c.is_ascii_digit())
                .take(90)
                .collect();
            strange
                .entry(format!("{level}{text}"))
                .or_insert((0, line))
                .0 += 1;
        }
    }
    for (text, (count, line)) in strange {
        let what =
            format!("node {id} has logged {count} times what nobody expects, such as: {line}");
        history.violated(Invariant::I10, what);
        counts.insert(text, count);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_read_from_what_programs_write() {
        let text = "b job-1 10 100.5 /tmp/x/node2/sandboxes/1/box\n\
                    b job-1 11 101.5 /tmp/x/node3/sandboxes/1/box\n\
                    e job-1 10 104.5 /tmp/x/node2/sandboxes/1/box\n\
                    b probe 9 1.0 /tmp/x/node3/sandboxes/1/box\n";
        let all = read_executions(text);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].node, all[0].ended), (2, Some(104.5)));
        assert_eq!((all[1].node, all[1].ended), (3, None));
    }

    #[test]
    fn what_was_executed_is_held_against_the_ledger() {
        let text = "b job-1 10 100.0 /x/node2/b\nb job-1 11 101.0 /x/node3/b\ne job-1 10 109.0 /x/node2/b\n";
        let settled = Settled {
            attempts: HashMap::from([(1, 1)]),
            verdicts: HashMap::from([(1, "accepted".to_owned()), (2, "accepted".to_owned())]),
            ..Settled::default()
        };
        let violated = |settled: &Settled| {
            let history = History::default();
            let names = BTreeMap::from([(2, vec![2]), (3, vec![3])]);
            let executed = executions(&history, text, settled, &[], &names);
            assert_eq!((executed.again, executed.overlaps), (1, 1));
            let all = history.violations();
            all.iter().map(|v| v.invariant).collect::<Vec<_>>()
        };
        use Invariant::{I4, I5};
        assert_eq!(violated(&settled), [I4, I5, I4]);
        let with = |pid, node| Settled {
            attempts: HashMap::from([(1, 2)]),
            results: HashMap::from([(1, (pid, node))]),
            ..Settled::default()
        };
        assert_eq!(violated(&with(11, 3)), [I5]);
        assert_eq!(violated(&with(10, 3)), [I5, I4], "of another attempt");
    }

    #[test]
    fn a_loud_log_is_a_violation() {
        let history = History::default();
        logs(&history, 1, "2026-01-01T00:00:00Z  INFO quorun: fine");
        assert!(history.violations().is_empty());
        logs(&history, 1, "2026-01-01T00:00:00Z ERROR quorun: not fine");
        logs(&history, 1, "thread 'x' panicked at y.rs:1");
        assert_eq!(history.violations().len(), 2);
    }
}
