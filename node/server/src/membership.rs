//! This node among the others: it announces itself, reports that it lives, and finds out at its start whether it has
//! been given the right list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorun_consensus::{Handle, ProposeError};
use quorun_executor::{Executor, Health};
use quorun_ledger::{Command, Node, NodeId, Rejection, Reply};
use quorun_proto::v1::{HeartbeatRequest, HelloRequest, NodeReport};
use tokio::sync::{Notify, watch};
use tonic::Code;
use tracing::{debug, error, info, warn};

use crate::config::Config;
use crate::disk_space::DiskSpace;
use crate::ledger;
use crate::liveness::Liveness;

/// How long one proposal of an announcement may take before it is proposed again.
const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(5);
/// How long one question to a peer may take.
const PEER_DEADLINE: Duration = Duration::from_secs(2);
/// Pause before a peer that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(250);
/// How long a removed node waits to be put out of the consensus.
const PUT_OUT: Duration = Duration::from_secs(30);
/// How long a node tries to reach itself under its own address.
const SELF_DEADLINE: Duration = Duration::from_secs(5);

/// Why a node must not run.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Another process answers under this node's address.
    #[error(
        "another process answers as node {id} at {address}: two nodes were started with --id {id}, or --peers gives this node's address to another one"
    )]
    Twice {
        /// The id.
        id: NodeId,
        /// Where the other one answers.
        address: String,
    },
    /// Most of the peers belong to another cluster.
    #[error(
        "the peers refuse this node: {reason}; all nodes must be started with the same --peers and --cluster (this one has --peers {peers})"
    )]
    Foreign {
        /// What the last of them said.
        reason: String,
        /// This node's list.
        peers: String,
    },
    /// The node was removed from the cluster.
    #[error(
        "node {id} was removed from the cluster, and its id is not used again: move its data folder away, and start it with --join to come back as a new node"
    )]
    Removed {
        /// The id.
        id: NodeId,
    },
    /// A newer process of this node has announced itself.
    #[error(
        "incarnation {current} of node {id} has announced itself since: another process runs as this node"
    )]
    Replaced {
        /// The id.
        id: NodeId,
        /// The newest incarnation.
        current: u64,
    },
}

/// This node's place in the cluster.
#[derive(Clone)]
pub struct Membership {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    incarnation: u64,
    consensus: Handle,
    executor: Executor,
    liveness: Liveness,
    disk: DiskSpace,
    draining: watch::Sender<bool>,
    /// Announced and not declared lost since.
    announced: watch::Sender<bool>,
    announce: Notify,
    /// A node's record has changed.
    news: Notify,
    /// The ledger says that this node was removed.
    removed: watch::Sender<bool>,
    /// The leader says that this node is not a member.
    outside: watch::Sender<bool>,
    /// What this node can run.
    runnable: watch::Receiver<BTreeSet<String>>,
    /// Lost nodes, with the incarnation whose sandboxes have been looked for on this node's engine.
    swept: Mutex<BTreeMap<NodeId, u64>>,
}

impl Membership {
    /// Nothing is announced yet.
    #[must_use]
    pub fn new(
        config: Config,
        incarnation: u64,
        consensus: Handle,
        executor: Executor,
        liveness: Liveness,
        disk: DiskSpace,
        runnable: watch::Receiver<BTreeSet<String>>,
    ) -> Self {
        let announce = Notify::new();
        announce.notify_one();
        Self {
            inner: Arc::new(Inner {
                config,
                incarnation,
                consensus,
                executor,
                liveness,
                disk,
                draining: watch::Sender::new(false),
                announced: watch::Sender::new(false),
                announce,
                news: Notify::new(),
                removed: watch::Sender::new(false),
                outside: watch::Sender::new(false),
                runnable,
                swept: Mutex::default(),
            }),
        }
    }

    /// This node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.inner.config.id
    }

    /// Whether the ledger knows this process as alive.
    #[must_use]
    pub fn announced(&self) -> bool {
        *self.inner.announced.borrow()
    }

    /// Whether this node is about to end.
    #[must_use]
    pub fn draining(&self) -> bool {
        *self.inner.draining.borrow()
    }

    /// Whether there is little room where this node's data is.
    #[must_use]
    pub fn disk_low(&self) -> bool {
        self.inner.disk.low().is_some()
    }

    /// From now on this node reports that it takes no work.
    pub fn drain(&self) {
        self.inner.draining.send_replace(true);
    }

    /// The ledger's record of a node has changed. If it is this one and it was declared lost, it announces itself again; if
    /// it is another one that was, what it left on an engine that it shares with this one is removed.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn node_changed(&self, node: NodeId) -> Result<(), ledger::ReadFailed> {
        self.inner.liveness.node_changed(node);
        self.inner.news.notify_one();
        let record = ledger::read(&self.inner.consensus, move |view| view.node(node)).await?;
        if node != self.inner.config.id {
            if let Some(record) = record {
                self.sweep_if_lost(&record);
            }
            return Ok(());
        }
        let current = record.is_some_and(|r| r.incarnation == self.inner.incarnation && !r.lost);
        self.inner.announced.send_replace(current);
        if !current {
            // Whatever was known before: by the time an event is looked at, the record may have changed more than once.
            self.inner.announce.notify_one();
        }
        Ok(())
    }

    /// The ledger was replaced as a whole: what [`node_changed`](Self::node_changed) does, for all nodes.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn all_changed(&self) -> Result<(), ledger::ReadFailed> {
        let nodes = ledger::read(&self.inner.consensus, |view| view.nodes()).await?;
        for node in &nodes {
            if node.id != self.inner.config.id {
                self.sweep_if_lost(node);
            }
        }
        self.node_changed(self.inner.config.id).await
    }

    /// Removes what another node has left on this node's engine, once each time that it is lost. All nodes do so: who of
    /// them shares an engine with it, nobody knows.
    fn sweep_if_lost(&self, node: &Node) {
        let Node {
            id,
            incarnation,
            lost,
            ..
        } = *node;
        let mut swept = self
            .inner
            .swept
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !lost {
            swept.remove(&id);
            return;
        }
        if swept.insert(id, incarnation) == Some(incarnation) {
            return;
        }
        drop(swept);
        let executor = self.inner.executor.clone();
        // An engine may be slow, and what the ledger says next must not wait for it.
        tokio::spawn(async move { executor.remove_orphans_of(id, incarnation).await });
    }

    /// Waits until a node's record has changed.
    pub async fn news(&self) {
        self.inner.news.notified().await;
    }

    /// Waits until this node, which the ledger has removed, no longer belongs to the consensus: until then its vote may
    /// be needed for its own removal.
    async fn put_out(&self) {
        self.inner.removed.send_replace(true);
        let mut outside = self.inner.outside.subscribe();
        if tokio::time::timeout(PUT_OUT, outside.wait_for(|outside| *outside))
            .await
            .is_err()
        {
            warn!("this node was removed, but nobody has confirmed it");
        }
    }

    /// Announces this node whenever that is due, until another process has taken its place or it was removed.
    pub async fn announce(&self) -> Refusal {
        let inner = &self.inner;
        let mut runnable = inner.runnable.clone();
        loop {
            tokio::select! {
                () = inner.announce.notified() => {}
                // The same announcement with other languages; what runs is not touched by it.
                Ok(()) = runnable.changed() => {}
            }
            loop {
                let languages = runnable.borrow_and_update().clone();
                let command = Command::NodeUp {
                    node: inner.config.id,
                    incarnation: inner.incarnation,
                    http: inner.config.advertise_http.clone(),
                    slots: inner.config.slots,
                    languages,
                    version: crate::VERSION.to_owned(),
                };
                let deadline = Instant::now() + ANNOUNCE_DEADLINE;
                match inner.consensus.propose(command, deadline.into()).await {
                    Ok(Reply::Rejected(Rejection::StaleIncarnation { current })) => {
                        return Refusal::Replaced {
                            id: inner.config.id,
                            current,
                        };
                    }
                    Ok(Reply::Rejected(Rejection::NodeRemoved)) => {
                        self.put_out().await;
                        return Refusal::Removed {
                            id: inner.config.id,
                        };
                    }
                    Ok(reply) => {
                        info!(incarnation = inner.incarnation, ?reply, "node announced");
                        break;
                    }
                    Err(ProposeError::Stopped) => return std::future::pending().await,
                    Err(error) => debug!(%error, "node not announced yet"),
                }
            }
        }
    }

    /// Reports to the leader that this node lives, whenever the time has come or the leader or the health has changed.
    pub async fn report(&self) {
        let mut status = self.inner.consensus.status();
        let mut health = self.inner.executor.health();
        let mut draining = self.inner.draining.subscribe();
        let mut disk = self.inner.disk.clone();
        let mut tick = tokio::time::interval(self.inner.config.node_timeout / 5);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leader = None;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = status.borrow_and_update().leader;
                    if now == leader {
                        continue;
                    }
                    leader = now;
                }
                Ok(()) = health.changed() => {}
                Ok(()) = draining.changed() => {}
                () = disk.changed() => {}
            }
            let patience = PEER_DEADLINE.min(self.inner.config.node_timeout / 2);
            self.report_now(patience).await;
            if !self.announced() && leader.is_some() {
                // Nothing that made an announcement necessary may be overlooked for ever.
                self.inner.announce.notify_one();
            }
        }
    }

    /// Reports once, to whoever leads now.
    pub async fn report_now(&self, patience: Duration) {
        let report = self.own_report();
        let (leading, leader) = {
            let status = self.inner.consensus.status();
            let status = status.borrow();
            (status.leading, status.leader)
        };
        if leading {
            self.inner.liveness.heard(report);
            return;
        }
        let Some(mut client) = leader.and_then(|id| self.inner.consensus.peer(id)) else {
            return;
        };
        let request = HeartbeatRequest {
            report: Some(report),
        };
        let mut status = self.inner.consensus.status();
        let answered = tokio::select! {
            answered = tokio::time::timeout(patience, client.heartbeat(request)) => answered,
            // The old leader may have been cut off, and the new one has to hear of this node in time.
            Ok(_) = status.wait_for(|now| now.leader.is_some() && now.leader != leader) => return,
        };
        match answered {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                if reply.is_leader {
                    for known in reply.peers.iter().filter_map(|peer| peer.report.as_ref()) {
                        self.inner.consensus.remember(known.id, known.applied_index);
                    }
                    self.inner.liveness.told(reply.peers);
                }
            }
            Ok(Err(status)) => {
                if status.code() == Code::PermissionDenied && *self.inner.removed.borrow() {
                    self.inner.outside.send_replace(true);
                }
                debug!(code = ?status.code(), message = status.message(), "report not delivered");
            }
            Err(_) => debug!("report not delivered in time"),
        }
    }

    /// What this node says of itself.
    #[must_use]
    pub fn own_report(&self) -> NodeReport {
        let inner = &self.inner;
        let low = inner.disk.low();
        let reason = match &*inner.executor.health().borrow() {
            _ if *inner.draining.borrow() => Some("draining".to_owned()),
            Health::Ready if low.is_some() => low.map(|low| low.to_string()),
            Health::Ready => None,
            Health::NotReady { reason } => Some(reason.clone()),
        };
        let applied = inner.consensus.status().borrow().applied_index;
        NodeReport {
            id: inner.config.id,
            incarnation: inner.incarnation,
            ready: reason.is_none(),
            not_ready_reason: reason.unwrap_or_default(),
            sandboxes: inner.executor.sandboxes().into_iter().collect(),
            version: crate::VERSION.to_owned(),
            applied_index: applied,
            disk_low: low.is_some(),
            rules: quorun_ledger::RULES,
        }
    }

    /// Makes sure that it is this process that answers under this node's address.
    ///
    /// # Errors
    /// When another process does.
    pub async fn meet_self(&self, process: &str) -> Result<(), Refusal> {
        let config = &self.inner.config;
        let address = config.advertise_peer.clone();
        let started = Instant::now();
        while started.elapsed() < SELF_DEADLINE {
            match self.hello(config.id, process).await {
                Some(Ok(other)) if other == process => return Ok(()),
                Some(Ok(_)) => {
                    return Err(Refusal::Twice {
                        id: config.id,
                        address,
                    });
                }
                Some(Err(status)) if status.code() == Code::FailedPrecondition => {
                    return Err(Refusal::Twice {
                        id: config.id,
                        address,
                    });
                }
                _ => tokio::time::sleep(RETRY).await,
            }
        }
        warn!(
            address,
            "this node does not reach itself under the address that the others have; is it right?"
        );
        Ok(())
    }

    /// Says hello to every peer that is still one until each has answered. Ends with a refusal when more of them call this
    /// node foreign than belong to its cluster, itself counted; never ends otherwise.
    pub async fn meet_peers(&self, process: &str) -> Refusal {
        let config = &self.inner.config;
        let mut waiting: BTreeSet<NodeId> = config
            .members
            .keys()
            .copied()
            .filter(|id| *id != config.id)
            .collect();
        // Once there is a cluster, the list is only what it began with: where a node of the list was, another may be now.
        let mut status = self.inner.consensus.status();
        let _ = tokio::time::timeout(SELF_DEADLINE, status.wait_for(|now| now.initialized)).await;
        let (mut friends, mut strangers) = (1, 0);
        let mut without_proof = BTreeSet::new();
        while !waiting.is_empty() {
            for id in waiting.clone() {
                let gone = {
                    let now = status.borrow();
                    now.initialized && !now.members.contains_key(&id)
                };
                if gone {
                    waiting.remove(&id);
                    continue;
                }
                match self.hello(id, process).await {
                    Some(Ok(_)) => {
                        friends += 1;
                        waiting.remove(&id);
                    }
                    // It may get the secret, or the right one, while this node runs: said once, and asked again.
                    Some(Err(status))
                        if status.code() == Code::Unauthenticated && without_proof.insert(id) =>
                    {
                        error!(
                            peer = id,
                            reason = status.message(),
                            "a peer does not take the calls of this node"
                        );
                    }
                    Some(Err(status)) if status.code() == Code::FailedPrecondition => {
                        strangers += 1;
                        waiting.remove(&id);
                        error!(
                            peer = id,
                            reason = status.message(),
                            "a peer does not accept this node"
                        );
                        if strangers > friends {
                            return Refusal::Foreign {
                                reason: status.message().to_owned(),
                                peers: config.peers.clone(),
                            };
                        }
                    }
                    _ => {}
                }
            }
            if !waiting.is_empty() {
                tokio::time::sleep(RETRY).await;
            }
        }
        std::future::pending().await
    }

    /// The process that answers as a node; `None` when nobody does.
    async fn hello(&self, id: NodeId, process: &str) -> Option<Result<String, tonic::Status>> {
        let mut client = self.inner.consensus.peer(id)?;
        let request = HelloRequest {
            id: self.inner.config.id,
            process: process.to_owned(),
            peers: self.inner.config.peers.clone(),
        };
        let answer = tokio::time::timeout(PEER_DEADLINE, client.hello(request)).await;
        Some(answer.ok()?.map(|reply| reply.into_inner().process))
    }
}
