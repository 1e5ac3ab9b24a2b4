//! A read at a leader that others have deposed, and that finds old acknowledgements waiting.
//!
//! The leader is cut off, as when it is paused, after the others have taken an entry and before their acknowledgements have
//! reached it. They elect another leader, which acknowledges a job. Then somebody wants to read at the first one, and the old
//! acknowledgements arrive. With the first of them the entry is committed, and the leader sends on that it is, without
//! any entry. The second one is for the same end of the log: openraft takes it for the answer to what it has just sent,
//! and so for a proof that it still leads. `quorun_consensus`' confirmation does not. The scenario is run with and
//! without it, so that it is known to bring the stale read out.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use quorun_consensus::simulation;
use quorun_ledger::JobId;
use tokio::sync::oneshot;
use turmoil::Sim;
use uuid::Uuid;

use super::ONE_AT_A_TIME;
use super::client::Request;
use super::cluster::{self, Node, PORT};
use super::history::Seen;

/// How long a message between the first leader and the others takes: long enough for acknowledgements to be met on their way.
const LATENCY: Duration = Duration::from_millis(120);
/// Longer than anything here takes, in simulated time.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the first leader has nothing but the old acknowledgements. A read is tried for longer.
const ALONE: Duration = Duration::from_millis(500);

/// What a read at the deposed leader came to.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// It was answered, without the job.
    Stale,
    /// It was not answered before the leader heard from the others.
    Silent,
    /// It was answered with the job.
    Fresh,
}

struct Scenario<'a> {
    sim: Sim<'a>,
    nodes: Vec<Rc<Node>>,
}

impl Scenario<'_> {
    fn step(&mut self) {
        self.sim.step().unwrap();
        let violations = simulation::violations();
        assert!(violations.is_empty(), "{violations:?}");
    }

    /// Goes on until something is there.
    fn until<T>(&mut self, what: &str, mut found: impl FnMut(&[Rc<Node>]) -> Option<T>) -> T {
        let deadline = self.sim.elapsed() + PATIENCE;
        loop {
            if let Some(found) = found(&self.nodes) {
                return found;
            }
            assert!(self.sim.elapsed() < deadline, "waited in vain for {what}");
            self.step();
        }
    }

    /// Submits through a node, again and again, until it is acknowledged.
    fn submit(&mut self, node: usize, number: u128) -> JobId {
        loop {
            let (reply, mut replied) = oneshot::channel();
            self.nodes[node].ask(Request::Submit {
                id: JobId::new(Uuid::from_u128(number)),
                key: number.to_string(),
                weight: 10,
                reply,
            });
            let answered = self.until("an answer", |_| match replied.try_recv() {
                Ok(job) => Some(Some(job)),
                Err(oneshot::error::TryRecvError::Empty) => None,
                Err(oneshot::error::TryRecvError::Closed) => Some(None),
            });
            if let Some(job) = answered {
                return job;
            }
        }
    }

    fn read(&self, node: usize, job: JobId) -> oneshot::Receiver<Option<Seen>> {
        let (reply, replied) = oneshot::channel();
        self.nodes[node].ask(Request::Read { job, reply });
        replied
    }

    /// Lets through what one node has answered to another one, and nothing else. Returns how many messages that are.
    fn deliver_answers(&mut self, from: usize, to: usize) -> usize {
        let [from, to] = [from, to].map(|node| self.sim.lookup(self.nodes[node].name()));
        let mut count = 0;
        self.sim.links(|links| {
            for message in links.flatten() {
                let (source, target) = message.pair();
                if (source.ip(), source.port(), target.ip()) == (from, PORT, to) {
                    message.deliver();
                    count += 1;
                }
            }
        });
        count
    }

    fn last_log(&self, node: usize) -> u64 {
        self.nodes[node].last_log()
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }
}

fn scenario(seed: u64, confirmed: bool) -> Read {
    let _entered = simulation::enter(seed);
    if !confirmed {
        simulation::unconfirmed_reads();
    }
    let dir = cluster::folder().unwrap();
    let (sim, nodes, history) = cluster::hosts(seed, 3, 1_000, dir.path());
    let mut run = Scenario { sim, nodes };
    let leads = |nodes: &[Rc<Node>]| nodes.iter().position(|node| node.leads().is_some());
    let first = run.until("a leader", leads);
    run.submit(first, 1);
    let others: Vec<usize> = (0..3).filter(|node| *node != first).collect();
    for other in &others {
        let (a, b) = (run.nodes[first].name(), run.nodes[*other].name());
        run.sim.set_link_latency(a, b, LATENCY);
    }
    run.until("equal logs", |nodes| {
        let ends: BTreeSet<u64> = nodes.iter().map(|node| node.last_log()).collect();
        (ends.len() == 1).then_some(())
    });

    let end = run.last_log(first);
    let (reply, mut never_told) = oneshot::channel();
    run.nodes[first].ask(Request::Submit {
        id: JobId::new(Uuid::from_u128(3)),
        key: "3".to_owned(),
        weight: 10,
        reply,
    });
    run.until("the entry on the others", |nodes| {
        let there = |other: &usize| nodes[*other].last_log() > end;
        others.iter().all(there).then_some(())
    });
    // They sync it, and acknowledge it.
    run.steps(10);
    assert!(
        never_told.try_recv().is_err(),
        "{seed}: it was acknowledged too soon"
    );
    for other in &others {
        let (a, b) = (run.nodes[first].name(), run.nodes[*other].name());
        run.sim.hold(a, b);
    }
    let second = run.until("another leader", |nodes| {
        others
            .iter()
            .copied()
            .find(|node| nodes[*node].leads().is_some())
    });
    let job = run.submit(second, 2);

    let mut reading = run.read(first, job);
    // The read has to be under way before the old acknowledgements come.
    run.steps(5);
    assert!(
        reading.try_recv().is_err(),
        "{seed}: nobody can have confirmed anything"
    );
    for other in &others {
        let delivered = run.deliver_answers(*other, first);
        assert!(delivered > 0, "{seed}: no answer was on its way");
        run.steps(5);
    }
    let alone = run.sim.elapsed() + ALONE;
    while run.sim.elapsed() < alone {
        run.step();
        match reading.try_recv() {
            Ok(None) => return Read::Stale,
            Ok(Some(_)) => return Read::Fresh,
            Err(_) => {}
        }
    }

    for other in &others {
        let (a, b) = (run.nodes[first].name(), run.nodes[*other].name());
        run.sim.release(a, b);
    }
    // It is as good as any other node again.
    let found = loop {
        let mut reading = run.read(first, job);
        let answered = run.until("an answer", |_| match reading.try_recv() {
            Ok(found) => Some(Some(found)),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(None),
        });
        if let Some(found) = answered {
            break found;
        }
    };
    assert!(
        found.is_some(),
        "{seed}: {job} was acknowledged, but is not there"
    );
    let history = history.borrow();
    assert!(
        history.violations().is_empty(),
        "{:?}",
        history.violations()
    );
    Read::Silent
}

/// Seeds with which the scenario is known to bring the stale read out are looked for among so many.
const SEEDS: std::ops::Range<u64> = 0..60;
/// So many of them are found.
const FOUND: usize = 2;

/// Without the confirmation there are seeds with which the read is stale, and with it none of those is. When none is found,
/// openraft may have been mended, or the scenario proves nothing any more.
#[test]
fn a_deposed_leader_does_not_take_old_acknowledgements_for_new_ones() {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let stale: Vec<u64> = SEEDS
        .filter(|seed| scenario(*seed, false) == Read::Stale)
        .take(FOUND)
        .collect();
    eprintln!("stale without confirmation: {stale:?}");
    assert!(!stale.is_empty(), "nothing is proved");
    for seed in stale {
        assert_ne!(scenario(seed, true), Read::Stale, "{seed}");
    }
}
