//! How this node stands in the cluster, for everybody who wants to know.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{Instant as _, RaftMetrics, ServerState};
use quorun_ledger::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::handle::fail;
use crate::options::Member;
use crate::types::{Raft, TypeConfig, next_index};

/// How this node stands in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// This node leads.
    pub leading: bool,
    /// The term of its vote.
    pub term: u64,
    /// The last entry of its log; 0 also when there is none. That it has changed is not announced.
    pub last_log_index: u64,
    /// The last entry that its ledger shows; 0 also when there is none. That it has changed is not announced.
    pub applied_index: u64,
    /// The last entry that its log no longer holds; 0 also when it holds all. That it has changed is not announced.
    pub purged_index: u64,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// The voters are being changed: `voters` are those of before and after together.
    pub changing: bool,
    /// Who follows without a vote.
    pub learners: BTreeSet<NodeId>,
    /// Voters and learners.
    pub members: BTreeMap<NodeId, Member>,
    /// This node has joined a cluster.
    pub initialized: bool,
    /// Leader only: a majority has acknowledged it within its lease, so that it takes proposals.
    pub quorum: bool,
}

/// What changes with entries and snapshots: how far the log, the ledger and the followers are. Raft's metrics change with
/// every heartbeat as well, and whoever listens to them is woken as often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The index behind the last entry.
    pub(crate) end: u64,
    /// The index behind the last entry that was applied.
    pub(crate) applied: u64,
    /// The index behind the last entry that the newest snapshot covers.
    pub(crate) covered: u64,
    /// Leader only: the index behind what each node has of the log.
    pub(crate) matched: BTreeMap<NodeId, u64>,
}

impl Progress {
    pub(crate) fn of(metrics: &RaftMetrics<TypeConfig>) -> Self {
        let matched = metrics.replication.iter().flatten();
        Self {
            end: metrics.last_log_index.map_or(0, |index| index + 1),
            applied: next_index(metrics.last_applied.as_ref()),
            covered: next_index(metrics.snapshot.as_ref()),
            matched: matched
                .map(|(id, matched)| (*id, next_index(matched.as_ref())))
                .collect(),
        }
    }
}

/// Keeps the status and the progress up to date, and says when Raft has ended.
pub(crate) async fn run(
    raft: Raft,
    mut applied: watch::Receiver<u64>,
    lease: Duration,
    status: watch::Sender<Status>,
    progress: watch::Sender<Progress>,
    fatal: watch::Sender<Option<String>>,
) {
    let mut metrics = raft.metrics();
    loop {
        let (now, lapse, ended) = {
            let metrics = metrics.borrow_and_update();
            let far = Progress::of(&metrics);
            progress.send_if_modified(|current| {
                let changed = *current != far;
                if changed {
                    *current = far;
                }
                changed
            });
            let applied = *applied.borrow_and_update();
            let (now, lapse) = read(&metrics, applied, lease);
            let ended = metrics
                .running_state
                .as_ref()
                .err()
                .map(ToString::to_string);
            (now, lapse, ended)
        };
        status.send_if_modified(|current| {
            // These figures change with the entries; nobody is woken for them.
            current.last_log_index = now.last_log_index;
            current.applied_index = now.applied_index;
            current.purged_index = now.purged_index;
            let changed = *current != now;
            if changed {
                *current = now;
            }
            changed
        });
        if let Some(ended) = ended {
            fail(&fatal, || ended);
            return;
        }
        let lapsed = async {
            match lapse {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() {
                // It says why it ends, unless it has panicked; nobody must take the node for a living one then.
                fail(&fatal, || "raft has ended without saying why".to_owned());
                return;
            },
            changed = applied.changed() => if changed.is_err() { return },
            () = lapsed => {}
        }
    }
}

/// The status, and when it changes by itself.
fn read(
    metrics: &RaftMetrics<TypeConfig>,
    applied: u64,
    lease: Duration,
) -> (Status, Option<Instant>) {
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<_> = membership.voter_ids().collect();
    let leading =
        metrics.state == ServerState::Leader && metrics.current_leader == Some(metrics.id);
    let alone = voters.len() == 1 && voters.contains(&metrics.id);
    let acknowledged = metrics.last_quorum_acked.as_ref().map(|at| at.elapsed());
    let left = acknowledged.and_then(|age| lease.checked_sub(age));
    let status = Status {
        leader: metrics.current_leader,
        leading,
        term: metrics.current_term,
        last_log_index: metrics.last_log_index.unwrap_or(0),
        applied_index: next_index(metrics.last_applied.as_ref())
            .max(applied)
            .saturating_sub(1),
        purged_index: metrics.purged.as_ref().map_or(0, |id| id.index),
        initialized: !voters.is_empty(),
        changing: membership.get_joint_config().len() > 1,
        voters,
        learners: membership.learner_ids().collect(),
        members: membership
            .nodes()
            .map(|(id, member)| (*id, member.clone()))
            .collect(),
        quorum: leading && (alone || left.is_some()),
    };
    let lapse = left
        .filter(|_| leading && !alone)
        .map(|left| Instant::now() + left + Duration::from_millis(1));
    (status, lapse)
}
