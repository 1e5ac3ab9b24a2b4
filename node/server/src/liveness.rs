//! Who is alive: what the workers tell the leader, and what the leader tells everybody.
//!
//! All of it is soft state. A leader believes only what it has heard since it began to lead, and gives every node one
//! timeout before it declares it lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorun_ledger::{Node, NodeId};
use quorun_proto::v1::{NodeReport, PeerReport};
use tokio::sync::Notify;
use tokio::time::Instant;

#[derive(Debug, Default)]
struct State {
    /// Since when this node leads; `None` while it does not.
    leading_since: Option<Instant>,
    /// What was heard since then.
    heard: BTreeMap<NodeId, (Instant, NodeReport)>,
    /// When a node's record last changed: a node that has just announced itself has a timeout to be heard.
    announced: BTreeMap<NodeId, Instant>,
    /// When the leader has told something last, and what, for nodes that do not lead.
    told: Option<(Instant, Vec<PeerReport>)>,
}

/// What this node knows of the others' lives.
#[derive(Clone, Debug)]
pub struct Liveness {
    timeout: Duration,
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
}

/// What a leader concludes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Nodes that may be given work.
    pub eligible: BTreeSet<NodeId>,
    /// Nodes, with their incarnation, that have been silent for too long.
    pub lost: Vec<(NodeId, u64)>,
}

impl Liveness {
    /// Knows nothing yet; `timeout` is the silence after which a node is lost.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            state: Arc::default(),
            news: Arc::default(),
        }
    }

    /// This node begins, or ceases, to lead.
    pub fn leading(&self, leading: bool) {
        let mut state = self.lock();
        match (leading, state.leading_since) {
            (true, None) => {
                state.leading_since = Some(Instant::now());
                state.heard.clear();
            }
            (false, Some(_)) => {
                state.leading_since = None;
                state.heard.clear();
            }
            _ => {}
        }
    }

    /// The ledger's record of a node has changed.
    pub fn node_changed(&self, node: NodeId) {
        self.lock().announced.insert(node, Instant::now());
    }

    /// A worker has reported; the answer is what the leader knows of all of them.
    pub fn heard(&self, report: NodeReport) -> Vec<PeerReport> {
        let mut state = self.lock();
        let changed = state.heard.get(&report.id).is_none_or(|(_, old)| {
            (old.ready, old.incarnation) != (report.ready, report.incarnation)
        });
        state.heard.insert(report.id, (Instant::now(), report));
        let reports = self.reports(&state);
        drop(state);
        if changed {
            self.news.notify_one();
        }
        reports
    }

    /// The leader's answer to this node's own report.
    pub fn told(&self, peers: Vec<PeerReport>) {
        self.lock().told = Some((Instant::now(), peers));
    }

    /// Whether this node leads, or the leader has answered it within the timeout. A node that is cut off remembers a
    /// leader that may be long gone.
    #[must_use]
    pub fn in_touch(&self) -> bool {
        let state = self.lock();
        state.leading_since.is_some() || self.fresh(&state)
    }

    fn fresh(&self, state: &State) -> bool {
        state
            .told
            .as_ref()
            .is_some_and(|(at, _)| at.elapsed() < self.timeout)
    }

    /// Leader only: whether a node has been heard of within the timeout.
    #[must_use]
    pub fn is_heard(&self, node: NodeId) -> bool {
        let state = self.lock();
        let heard = state.heard.get(&node);
        state.leading_since.is_some() && heard.is_some_and(|(at, _)| at.elapsed() < self.timeout)
    }

    /// Leader only: whether a node has said that its disk has little room.
    #[must_use]
    pub fn disk_low(&self, node: NodeId) -> bool {
        let state = self.lock();
        let heard = state.heard.get(&node);
        heard.is_some_and(|(_, report)| report.disk_low)
    }

    /// Leader only: whether every node of the ledger that is not lost runs a program that knows these rules. One that was lost
    /// meanwhile, and does not know them, stops at the first command or counters that it cannot read.
    #[must_use]
    pub fn all_know(&self, nodes: &[Node], rules: u32) -> bool {
        let state = self.lock();
        let knows = |node: &Node| {
            let heard = state.heard.get(&node.id);
            heard.is_some_and(|(_, report)| {
                report.incarnation == node.incarnation && report.rules >= rules
            })
        };
        state.leading_since.is_some() && nodes.iter().filter(|node| !node.lost).all(knows)
    }

    /// For how long a node has been silent, as far as this node can say since it leads; `None` when it does not.
    #[must_use]
    pub fn silence(&self, node: NodeId) -> Option<Duration> {
        let state = self.lock();
        let since = state.leading_since?;
        let heard = state.heard.get(&node).map(|(at, _)| *at);
        Some(heard.unwrap_or(since).elapsed())
    }

    /// Waits until a report brings something new.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What is known of every node, from own hearing if this node leads, else as the leader told; nobody is known to be
    /// alive once the leader has fallen silent.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerReport> {
        let state = self.lock();
        if state.leading_since.is_some() {
            return self.reports(&state);
        }
        let fresh = self.fresh(&state);
        let told = state.told.as_ref().map(|(_, peers)| peers.clone());
        let mut peers = told.unwrap_or_default();
        for peer in &mut peers {
            peer.alive &= fresh;
        }
        peers
    }

    /// What follows for the nodes of the ledger, `None` while this node does not lead.
    #[must_use]
    pub fn judge(&self, nodes: &[Node]) -> Option<Judgement> {
        let state = self.lock();
        let since = state.leading_since?;
        let mut judgement = Judgement::default();
        for node in nodes.iter().filter(|node| !node.lost) {
            let heard = state.heard.get(&node.id);
            let last = heard.map_or(since, |(at, _)| *at);
            let last = state
                .announced
                .get(&node.id)
                .map_or(last, |at| last.max(*at));
            if last.elapsed() >= self.timeout {
                judgement.lost.push((node.id, node.incarnation));
            } else if heard.is_some_and(|(_, r)| r.ready && r.incarnation == node.incarnation) {
                judgement.eligible.insert(node.id);
            }
        }
        Some(judgement)
    }

    fn reports(&self, state: &State) -> Vec<PeerReport> {
        state
            .heard
            .values()
            .map(|(at, report)| {
                let ago = at.elapsed();
                PeerReport {
                    report: Some(report.clone()),
                    alive: ago < self.timeout,
                    heard_ms_ago: u64::try_from(ago.as_millis()).unwrap_or(u64::MAX),
                }
            })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: NodeId) -> Node {
        Node {
            id,
            incarnation: 1,
            http: String::new(),
            slots: 2,
            busy: 0,
            languages: BTreeSet::new(),
            version: String::new(),
            draining: false,
            lost: false,
        }
    }

    fn report(id: NodeId, incarnation: u64, ready: bool) -> NodeReport {
        NodeReport {
            id,
            incarnation,
            ready,
            ..NodeReport::default()
        }
    }

    #[test]
    fn only_what_was_heard_since_leading_counts() {
        let liveness = Liveness::new(Duration::from_secs(3600));
        liveness.heard(report(1, 1, true));
        assert_eq!(liveness.judge(&[node(1)]), None, "does not lead");
        liveness.leading(true);
        let judged = liveness
            .judge(&[node(1), node(2), node(3), node(4)])
            .unwrap();
        assert_eq!(judged, Judgement::default(), "unheard, but not lost yet");
        liveness.heard(report(1, 1, true));
        liveness.heard(report(2, 1, false));
        liveness.heard(report(3, 2, true));
        let judged = liveness
            .judge(&[node(1), node(2), node(3), node(4)])
            .unwrap();
        assert_eq!(
            judged.eligible,
            [1].into(),
            "2 is not ready, 3 has not announced itself"
        );
        assert!(judged.lost.is_empty());
    }

    #[test]
    fn what_a_leader_told_holds_until_it_falls_silent() {
        let told = vec![PeerReport {
            report: Some(report(1, 1, true)),
            alive: true,
            heard_ms_ago: 0,
        }];
        let liveness = Liveness::new(Duration::from_secs(3600));
        assert!(!liveness.in_touch(), "nobody has said anything yet");
        liveness.told(told.clone());
        assert!(liveness.in_touch());
        assert!(liveness.peers()[0].alive);
        let forgetful = Liveness::new(Duration::ZERO);
        forgetful.told(told);
        assert!(!forgetful.in_touch());
        assert!(!forgetful.peers()[0].alive);
        forgetful.leading(true);
        assert!(forgetful.in_touch(), "it is the leader itself");
    }

    #[test]
    fn a_node_that_has_just_announced_itself_is_not_lost() {
        let timeout = Duration::from_millis(50);
        let liveness = Liveness::new(timeout);
        liveness.leading(true);
        liveness.heard(report(1, 1, true));
        let began = Instant::now();
        while liveness.judge(&[node(1)]).unwrap().lost.is_empty() {
            assert!(began.elapsed() < Duration::from_secs(60), "never lost");
            std::thread::yield_now();
        }
        liveness.node_changed(1);
        let judged = liveness.judge(&[node(1)]).unwrap();
        assert!(judged.lost.is_empty() || began.elapsed() > timeout * 2);
    }

    #[test]
    fn rules_are_known_when_every_node_that_lives_has_said_so() {
        let liveness = Liveness::new(Duration::from_secs(3600));
        let hear = |id, incarnation, rules| {
            liveness.heard(NodeReport {
                rules,
                ..report(id, incarnation, true)
            });
        };
        hear(1, 1, 1);
        assert!(!liveness.all_know(&[node(1)], 1), "does not lead");
        liveness.leading(true);
        hear(1, 1, 1);
        assert!(liveness.all_know(&[node(1)], 1));
        assert!(!liveness.all_know(&[node(1)], 2));
        let mut nodes = [node(1), node(2)];
        assert!(!liveness.all_know(&nodes, 1), "2 was not heard");
        hear(2, 1, 0);
        assert!(!liveness.all_know(&nodes, 1), "2 does not know them");
        hear(2, 2, 1);
        assert!(!liveness.all_know(&nodes, 1), "2 is not announced");
        nodes[1].incarnation = 2;
        assert!(liveness.all_know(&nodes, 1));
        hear(2, 2, 0);
        nodes[1].lost = true;
        assert!(liveness.all_know(&nodes, 1), "2 is lost");
    }

    #[test]
    fn silence_is_loss() {
        let liveness = Liveness::new(Duration::ZERO);
        liveness.leading(true);
        liveness.heard(report(1, 1, true));
        let judged = liveness.judge(&[node(1), node(2)]).unwrap();
        assert_eq!(judged.lost, [(1, 1), (2, 1)]);
        let gone = Node {
            lost: true,
            ..node(2)
        };
        assert_eq!(
            liveness.judge(&[gone]).unwrap(),
            Judgement::default(),
            "is not lost twice"
        );
    }
}
