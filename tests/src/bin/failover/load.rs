//! Clients that submit jobs one after the other and write down when each was accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorun_tests::{Client, Cluster, LONG, within};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// How long one request may take: a node that hangs is as good as one that is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before the next node is asked.
const RETRY: Duration = Duration::from_millis(5);
/// Pause between two looks at the record.
const LOOK: Duration = Duration::from_millis(5);

/// A submission that was accepted.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub client: usize,
    /// When it was first sent; it may have taken several requests.
    pub sent: Instant,
    pub done: Instant,
    pub job: String,
}

/// Why a request has not led to an answer of 2xx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nobody listened: the node was down, the request was never sent.
    Refused,
    /// The connection ended, or nothing came, after the request had been sent.
    Broken,
    /// An answer with another status.
    Status(u16),
}

#[derive(Debug, Default)]
struct Record {
    accepted: Vec<Accepted>,
    failed: Vec<(Instant, Failure, String)>,
}

/// Clients at work, each with a node that it asks first. They end with this value.
#[derive(Debug)]
pub struct Load {
    record: Arc<Mutex<Record>>,
    label: String,
    clients: usize,
    tasks: JoinSet<()>,
}

impl Load {
    /// So many clients begin; each pauses between two submissions.
    pub fn begin(cluster: &Cluster, clients: usize, pause: Duration) -> Self {
        let nodes: Vec<Client> = cluster.clients().into_iter().cloned().collect();
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
        let label = format!("load-{:x}", since.map_or(0, |time| time.as_nanos()));
        let record = Arc::new(Mutex::new(Record::default()));
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let (nodes, label, record) = (nodes.clone(), label.clone(), record.clone());
            tasks.spawn(async move {
                for n in 0.. {
                    submit(client, n, &nodes, &label, &record).await;
                    tokio::time::sleep(pause).await;
                }
            });
        }
        Self {
            record,
            label,
            clients,
            tasks,
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&write(&self.record))
    }

    /// Waits until every client has had something accepted that it sent after `since`; when the first and when the last
    /// had it.
    pub async fn everybody(&self, since: Instant) -> (Instant, Instant) {
        let deadline = Instant::now() + LONG;
        loop {
            let firsts = self.firsts(since);
            if firsts.len() == self.clients {
                let first = firsts.values().min().copied().unwrap_or(since);
                let last = firsts.values().max().copied().unwrap_or(since);
                return (first, last);
            }
            assert!(
                Instant::now() < deadline,
                "only {} of {} clients were heard: {:?}",
                firsts.len(),
                self.clients,
                self.failures(since)
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    fn firsts(&self, since: Instant) -> BTreeMap<usize, Instant> {
        let mut firsts = BTreeMap::new();
        self.read(|record| {
            let sent = record.accepted.iter().rev();
            // What was accepted before then was not sent after it.
            for one in sent
                .take_while(|one| one.done >= since)
                .filter(|one| one.sent >= since)
            {
                firsts
                    .entry(one.client)
                    .and_modify(|first: &mut Instant| *first = one.done.min(*first))
                    .or_insert(one.done);
            }
        });
        firsts
    }

    /// The longest time in which nothing was accepted, between the last acceptance before `from` and the first one after
    /// `to`.
    pub fn silence(&self, from: Instant, to: Instant) -> Duration {
        let mut times: Vec<Instant> =
            self.read(|record| record.accepted.iter().map(|one| one.done).collect());
        times.sort_unstable();
        let begin = times.partition_point(|time| *time < from).saturating_sub(1);
        let end = (times.partition_point(|time| *time <= to) + 1).min(times.len());
        let pairs = times[begin..end].windows(2);
        pairs
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or_default()
    }

    /// How long the slowest submission took of those that were under way between these times.
    pub fn slowest(&self, from: Instant, to: Instant) -> Duration {
        self.read(|record| {
            let under_way = |one: &&Accepted| one.done >= from && one.sent <= to;
            let took = |one: &Accepted| one.done - one.sent;
            let all = record.accepted.iter().filter(under_way);
            all.map(took).max().unwrap_or_default()
        })
    }

    /// What went wrong since then, how often, and an example of each.
    pub fn failures(&self, since: Instant) -> BTreeMap<Failure, (usize, String)> {
        let mut failures: BTreeMap<Failure, (usize, String)> = BTreeMap::new();
        self.read(|record| {
            for (_, failure, said) in record.failed.iter().filter(|(at, ..)| *at >= since) {
                failures
                    .entry(*failure)
                    .or_insert_with(|| (0, said.clone()))
                    .0 += 1;
            }
        });
        failures
    }

    /// Stops, waits until everything that was accepted has ended, and says how many jobs that are.
    ///
    /// # Errors
    /// When one is lost, there twice, or ended in another way than its program does.
    pub async fn settle(mut self, cluster: &Cluster) -> Result<usize, String> {
        self.tasks.shutdown().await;
        let wanted: Vec<String> =
            self.read(|record| record.accepted.iter().map(|one| one.job.clone()).collect());
        let mut found = BTreeMap::new();
        within(4 * LONG, "every job has ended", async || {
            found = self.listed(cluster.any()).await?;
            match found
                .values()
                .filter(|job| job["state"] != "finished")
                .count()
            {
                0 => Ok(()),
                left => Err(format!("{left} jobs have not")),
            }
        })
        .await;
        let accepted: BTreeSet<_> = wanted.iter().collect();
        if accepted.len() != wanted.len() {
            return Err("two submissions were told the same job".to_owned());
        }
        for id in &wanted {
            match found.get(id) {
                None => return Err(format!("job {id} was accepted and is lost")),
                Some(job) if job["verdict"] != "accepted" => return Err(job.to_string()),
                Some(_) => {}
            }
        }
        // Each client may have been stopped between a submission and its answer.
        match found.len().checked_sub(wanted.len()) {
            Some(more) if more <= self.clients => Ok(wanted.len()),
            _ => Err(format!(
                "{} jobs are there, {} were accepted",
                found.len(),
                wanted.len()
            )),
        }
    }

    async fn listed(&self, node: &Client) -> Result<BTreeMap<String, Value>, String> {
        let first = format!("/v1/jobs?label={}&limit=500", self.label);
        let mut path = first.clone();
        let mut found = BTreeMap::new();
        loop {
            let answer = node.get(&path).await;
            if answer.status != 200 {
                return Err(answer.text());
            }
            let page = answer.json();
            for job in page["jobs"].as_array().into_iter().flatten() {
                found.insert(
                    job["id"].as_str().unwrap_or_default().to_owned(),
                    job.clone(),
                );
            }
            match page["next_cursor"].as_str() {
                Some(cursor) => path = format!("{first}&cursor={cursor}"),
                None => return Ok(found),
            }
        }
    }
}

/// One submission: with a key of its own, asking the nodes in turn until one accepts it.
async fn submit(client: usize, n: usize, nodes: &[Client], label: &str, record: &Mutex<Record>) {
    let job = json!({ "language": "bash", "source": ":", "labels": [label] });
    let key = format!("{label}-{client}-{n}");
    let sent = Instant::now();
    for turn in client.. {
        let node = nodes[turn % nodes.len()].patience(PATIENCE);
        let request = node
            .request(Method::POST, "/v1/jobs")
            .header("Idempotency-Key", &key)
            .json(&job);
        let answer = Client::try_send(request).await;
        let done = Instant::now();
        let (failure, said) = match answer {
            Ok(answer) if answer.status.is_success() => {
                let job = answer.json()["id"].as_str().unwrap_or_default().to_owned();
                let accepted = Accepted {
                    client,
                    sent,
                    done,
                    job,
                };
                write(record).accepted.push(accepted);
                return;
            }
            Ok(answer) => (Failure::Status(answer.status.as_u16()), answer.text()),
            Err(error) if error.is_connect() => (Failure::Refused, error.to_string()),
            Err(error) => (Failure::Broken, format!("{error:?}")),
        };
        write(record).failed.push((done, failure, said));
        tokio::time::sleep(RETRY).await;
    }
}

fn write(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}
