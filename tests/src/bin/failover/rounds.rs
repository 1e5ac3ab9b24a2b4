//! What is done to the cluster, and the figures that it gives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use quorun_tests::{Cluster, LONG, Witness};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::load::{Failure, Load};

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// Jobs that are there when a worker is killed.
const JOBS: usize = 6;

/// Times of one kind.
#[derive(Clone, Debug)]
pub struct Figures {
    name: &'static str,
    values: Vec<Duration>,
    /// What else is to be said.
    notes: BTreeMap<String, usize>,
}

impl Figures {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            values: Vec::new(),
            notes: BTreeMap::new(),
        }
    }

    fn note(&mut self, what: impl Into<String>, count: usize) {
        *self.notes.entry(what.into()).or_default() += count;
    }

    /// The value that so many percent of all do not exceed, milliseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        let value = sorted.get(rank - 1).copied().unwrap_or_default();
        value.as_secs_f64() * 1_000.0
    }

    pub fn header() -> String {
        format!(
            "{:<48}{:>9}{:>6}{:>5}{:>8}{:>8}{:>8}{:>8}",
            "milliseconds", "times", "busy", "n", "p50", "p90", "p99", "max"
        )
    }

    pub fn line(&self, times: &str, busy: u32) -> String {
        let mut line = format!(
            "{:<48}{times:>9}{busy:>6}{:>5}",
            self.name,
            self.values.len()
        );
        if !self.values.is_empty() {
            for percent in [50, 90, 99, 100] {
                line += &format!("{:>8.0}", self.percentile(percent));
            }
        }
        for (what, count) in &self.notes {
            line += &format!("  {what}: {count}");
        }
        line
    }

    pub fn json(&self) -> Value {
        let mut values: Vec<f64> = self
            .values
            .iter()
            .map(|value| value.as_secs_f64() * 1_000.0)
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        json!({
            "name": self.name,
            "p50_ms": self.percentile(50),
            "p90_ms": self.percentile(90),
            "p99_ms": self.percentile(99),
            "max_ms": self.percentile(100),
            "values_ms": values,
            "notes": self.notes,
        })
    }
}

fn told(round: usize, text: &str) {
    eprintln!("round {round}: {text}");
}

async fn term(cluster: &Cluster) -> u64 {
    cluster.any().cluster().await["term"].as_u64().unwrap_or(0)
}

/// kill -9 of the leader.
pub async fn kill(cluster: &mut Cluster, load: &Load, rounds: usize) -> Vec<Figures> {
    let mut first = Figures::new("leader killed: to the next accepted submission");
    let mut all = Figures::new("leader killed: until every client was heard");
    let mut slowest = Figures::new("leader killed: the slowest submission");
    for round in 1..=rounds {
        let leader = cluster.leader().await;
        load.everybody(Instant::now()).await;
        let before = term(cluster).await;
        let killed = Instant::now();
        cluster.node(leader).kill();
        let (heard, everybody) = load.everybody(killed).await;
        first.values.push(heard - killed);
        all.values.push(everybody - killed);
        slowest.values.push(load.slowest(killed, everybody));
        let terms = term(cluster).await - before;
        if terms > 1 {
            first.note("elections in vain", usize::try_from(terms - 1).unwrap_or(0));
        }
        count(&mut all, load, killed);
        told(round, &format!("{:?}, terms {terms}", heard - killed));
        cluster.node(leader).restart().await;
    }
    vec![first, all, slowest]
}

/// What clients were told that is no acceptance.
fn count(figures: &mut Figures, load: &Load, since: Instant) {
    for (failure, (times, example)) in load.failures(since) {
        let name = match failure {
            Failure::Refused => "refused".to_owned(),
            Failure::Broken => "broken".to_owned(),
            Failure::Status(status) => status.to_string(),
        };
        if failure != Failure::Refused {
            eprintln!("{name}, {times} times: {example}");
        }
        figures.note(name, times);
    }
}

/// The leadership moves to a follower, as an operator moves it.
pub async fn move_leader(
    cluster: &mut Cluster,
    load: &Load,
    rounds: usize,
) -> Result<Vec<Figures>, String> {
    let mut silence = Figures::new("leader moved: longest time without acceptance");
    let mut slowest = Figures::new("leader moved: the slowest submission");
    for round in 1..=rounds {
        let leader = cluster.leader().await;
        let followers: Vec<u64> = cluster
            .ids()
            .into_iter()
            .filter(|id| *id != leader)
            .collect();
        let to = followers[round % followers.len()];
        load.everybody(Instant::now()).await;
        let from = Instant::now();
        let body = json!({ "node": to });
        let answer = cluster.any().post_json("/v1/cluster/leader", &body).await;
        if !answer.status.is_success() {
            return Err(format!("the leader is not moved: {}", answer.text()));
        }
        let moved = Instant::now();
        let (_, heard) = load.everybody(moved).await;
        silence.values.push(load.silence(from, heard));
        slowest.values.push(load.slowest(from, heard));
        count(&mut slowest, load, from);
        told(round, &format!("{:?}", silence.values.last()));
        let now = cluster.leader().await;
        if now != to {
            silence.note("went elsewhere", 1);
        }
    }
    Ok(vec![silence, slowest])
}

/// SIGTERM to the leader or to a follower, and a start.
pub async fn stop(cluster: &mut Cluster, load: &Load, rounds: usize, leads: bool) -> Vec<Figures> {
    let (name, slow) = if leads {
        (
            "leader stopped: longest time without acceptance",
            "leader stopped: the slowest submission",
        )
    } else {
        (
            "follower stopped: longest time without acceptance",
            "follower stopped: the slowest submission",
        )
    };
    let mut silence = Figures::new(name);
    let mut slowest = Figures::new(slow);
    for round in 1..=rounds {
        let leader = cluster.leader().await;
        let mut ids = cluster.ids();
        ids.retain(|id| (*id == leader) == leads);
        let node = ids[round % ids.len()];
        load.everybody(Instant::now()).await;
        let from = Instant::now();
        cluster.node(node).signal(Signal::TERM);
        let status = cluster.node(node).ends().await;
        if !status.success() {
            silence.note("ended badly", 1);
        }
        let ended = Instant::now();
        let (_, heard) = load.everybody(ended).await;
        silence.values.push(load.silence(from, heard));
        slowest.values.push(load.slowest(from, heard));
        cluster.node(node).restart().await;
        load.everybody(Instant::now()).await;
        count(&mut slowest, load, from);
        told(
            round,
            &format!(
                "{:?}, ended after {:?}",
                silence.values.last(),
                ended - from
            ),
        );
    }
    vec![silence, slowest]
}

/// Nothing is done. Elections are counted by the terms that they take.
pub async fn calm(cluster: &Cluster, load: &Load, time: Duration) -> Vec<Figures> {
    let mut silence = Figures::new("nothing done: longest time without acceptance");
    let before = term(cluster).await;
    let from = Instant::now();
    tokio::time::sleep(time).await;
    let (_, heard) = load.everybody(Instant::now()).await;
    silence.values.push(load.silence(from, heard));
    let terms = term(cluster).await - before;
    silence.note("terms", usize::try_from(terms).unwrap_or(usize::MAX));
    silence.note(
        "seconds",
        usize::try_from(time.as_secs()).unwrap_or(usize::MAX),
    );
    count(&mut silence, load, from);
    vec![silence]
}

/// kill -9 of a follower that executes jobs: until each of them is executed elsewhere, as the programs themselves say.
pub async fn worker(cluster: &mut Cluster, rounds: usize) -> Result<Vec<Figures>, String> {
    let mut figures = Figures::new("worker killed: until its jobs run elsewhere");
    for round in 1..=rounds {
        let witness = Witness::new();
        let leader = cluster.leader().await;
        let mut jobs = BTreeMap::new();
        for n in 0..JOBS {
            let name = format!("job{n}");
            let id = cluster.any().submit(&witness.gated(&name)).await;
            jobs.insert(name, id);
        }
        let mut on: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        for (name, id) in &jobs {
            witness.began(name, 1).await;
            let node = cluster.any().job(id).await["node"].as_u64().unwrap_or(0);
            on.entry(node).or_default().insert(name.clone());
        }
        let Some((&node, names)) = on.iter().find(|(node, _)| **node != leader && **node != 0)
        else {
            return Err(format!("no follower has jobs: {on:?}"));
        };
        let killed = Instant::now();
        cluster.node(node).kill();
        while !names
            .iter()
            .all(|name| witness.executions_of(name).len() > 1)
        {
            if killed.elapsed() > LONG {
                return Err(format!("{names:?} of node {node} do not run again"));
            }
            tokio::time::sleep(LOOK).await;
        }
        figures.values.push(killed.elapsed());
        told(
            round,
            &format!("{:?} for {} jobs", killed.elapsed(), names.len()),
        );
        witness.open_gate();
        for (name, id) in &jobs {
            let job = cluster.any().finished(id).await;
            if job["verdict"] != "accepted" {
                return Err(format!("{name}: {job}"));
            }
            let executed = witness.executions_of(name).len();
            figures.note("executed again", executed - 1);
            let needed = usize::from(names.contains(name));
            figures.note("of these needlessly", executed - 1 - needed);
        }
        cluster.node(node).restart().await;
        // It is there; the leader has to know it as well, or the next jobs all go to the others.
        cluster.all_work().await;
    }
    Ok(vec![figures])
}
