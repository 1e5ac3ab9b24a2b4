//! `GET /v1/cluster`: the nodes, the queue, and how far this node's copy of the ledger is.

use std::collections::{BTreeMap, HashMap};

use axum::extract::State;
use quorun_ledger::{Node, NodeId};
use quorun_proto::v1::PeerReport;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::App;
use super::json::Json;
use super::openapi::words;
use super::problem::Problem;
use crate::jobs::Error;
use crate::ledger;

/// The cluster as a node sees it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Cluster {
    cluster_id: String,
    /// The node that answers.
    node: u64,
    /// The node that leads; null if there is none, or the one that answers is out of touch with it.
    #[schema(required = true)]
    leader: Option<u64>,
    /// The term of Raft.
    term: u64,
    /// The set of voters is being changed.
    voters_changing: bool,
    nodes: Vec<ClusterNode>,
    queue: Held,
    /// Jobs that run.
    running: u64,
    finished: Held,
    /// Reports of attempts that were no longer current, which changed nothing.
    fenced: u64,
    /// How far this node's copy of the ledger is.
    applied_index: u64,
    /// Two nodes with the same index have the same hash.
    state_hash: String,
}

/// Jobs, and what they hold.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobsHeld)]
pub struct Held {
    jobs: u64,
    bytes: u64,
}

/// A member of the cluster. What is not known of it is null.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClusterNode {
    id: u64,
    /// Where clients reach it.
    #[schema(required = true)]
    http: Option<String>,
    /// Where the other nodes reach it.
    peer: String,
    #[schema(value_type = words::Role)]
    role: &'static str,
    /// It was heard of lately.
    alive: bool,
    /// It executes jobs.
    ready: bool,
    /// Why it does not.
    #[schema(required = true)]
    reason: Option<String>,
    /// It is given no more work.
    draining: bool,
    /// It was declared lost.
    lost: bool,
    /// Jobs that it runs at one time.
    #[schema(required = true)]
    slots: Option<u32>,
    /// Jobs that it runs.
    #[schema(required = true)]
    busy: Option<u32>,
    /// Its sandboxes.
    #[schema(required = true, value_type = Option<SandboxesShape>)]
    sandboxes: Option<Value>,
    #[schema(required = true)]
    applied_index: Option<u64>,
    /// Its program's.
    #[schema(required = true)]
    version: Option<String>,
}

/// Sandboxes of a node: how many there are now, and how many were thrown away since it started.
#[derive(ToSchema)]
#[schema(as = Sandboxes)]
#[expect(dead_code, reason = "describes what `sandboxes` makes")]
struct SandboxesShape {
    #[schema(nullable = false)]
    warm: Option<u64>,
    #[schema(nullable = false)]
    busy: Option<u64>,
    #[schema(nullable = false)]
    starting: Option<u64>,
    #[schema(nullable = false)]
    discarded: Option<u64>,
    /// The same by reason.
    discarded_by: BTreeMap<String, u64>,
    /// Programs that have begun in an interpreter that was started ahead, with `--zygotes`.
    #[schema(nullable = false)]
    zygotes: Option<u64>,
}

/// Look at the cluster
#[utoipa::path(
    get, path = "/v1/cluster", operation_id = "get_cluster", tag = "cluster",
    description = "The nodes, the leader, the queue, and how far this node's copy of the ledger is.",
    responses((status = 200, description = "The cluster", body = Cluster, example = json!({
        "cluster_id": "01900000-0000-7000-8000-000000000000", "node": 1, "leader": 1, "term": 3, "voters_changing": false,
        "nodes": [{
            "id": 1, "http": "127.0.0.1:8080", "peer": "127.0.0.1:7000", "role": "voter", "alive": true, "ready": true,
            "reason": null, "draining": false, "lost": false, "slots": 2, "busy": 0,
            "sandboxes": { "warm": 2, "busy": 0, "starting": 0, "discarded": 3, "discarded_by": { "worn": 3 } },
            "applied_index": 117, "version": "0.1.0",
        }],
        "queue": { "jobs": 0, "bytes": 0 }, "running": 0, "finished": { "jobs": 12, "bytes": 9120 }, "fenced": 0,
        "applied_index": 117, "state_hash": "6f1ed002ab5595859014ebf0951522d9",
    }))),
    extensions(("x-problems" = json!(["no-quorum", "node-failing"]))),
)]
pub async fn status(State(app): State<App>) -> Result<Json<Cluster>, Problem> {
    let (nodes, counters) =
        ledger::read(&app.consensus, |view| Ok((view.nodes()?, view.counters()?)))
            .await
            .map_err(Error::from)?;
    let consensus = app.consensus.clone();
    let (applied, hash) = tokio::task::spawn_blocking(move || consensus.state())
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(Error::Stopped)?;
    let status = app.consensus.status().borrow().clone();
    let known: BTreeMap<NodeId, Node> = nodes.into_iter().map(|n| (n.id, n)).collect();
    let reports: BTreeMap<NodeId, PeerReport> = app
        .liveness
        .peers()
        .into_iter()
        .filter_map(|peer| peer.report.as_ref().map(|r| r.id).map(|id| (id, peer)))
        .collect();
    let shown = status.members.iter().map(|(id, member)| {
        let node = known.get(id);
        let peer = reports.get(id);
        let report = peer.and_then(|p| p.report.as_ref());
        ClusterNode {
            id: *id,
            http: node.map(|n| n.http.clone()),
            peer: member.peer.clone(),
            role: if status.voters.contains(id) {
                "voter"
            } else {
                "learner"
            },
            alive: *id == app.config.id || peer.is_some_and(|p| p.alive),
            ready: report.is_some_and(|r| r.ready),
            reason: report
                .map(|r| r.not_ready_reason.clone())
                .filter(|r| !r.is_empty()),
            draining: node.is_some_and(|n| n.draining),
            lost: node.is_some_and(|n| n.lost),
            slots: node.map(|n| n.slots),
            busy: node.map(|n| n.busy),
            sandboxes: report.map(|r| sandboxes(&r.sandboxes)),
            applied_index: report.map(|r| r.applied_index),
            version: node.map(|n| n.version.clone()),
        }
    });
    Ok(Json(Cluster {
        cluster_id: app.config.cluster.to_string(),
        node: app.config.id,
        leader: status.leader.filter(|_| app.liveness.in_touch()),
        term: status.term,
        voters_changing: status.changing,
        nodes: shown.collect(),
        queue: Held {
            jobs: counters.queued,
            bytes: counters.queued_bytes,
        },
        running: counters.running,
        finished: Held {
            jobs: counters.finished,
            bytes: counters.finished_bytes,
        },
        fenced: counters.fenced,
        applied_index: applied,
        state_hash: hash.to_string(),
    }))
}

/// The counts of a report, with `discarded.REASON` put below `discarded_by`.
fn sandboxes(counts: &HashMap<String, u64>) -> Value {
    let mut shown = Map::new();
    let mut by = Map::new();
    for (name, count) in counts {
        match name.strip_prefix("discarded.") {
            Some(reason) => by.insert(reason.to_owned(), (*count).into()),
            None => shown.insert(name.clone(), (*count).into()),
        };
    }
    shown.insert("discarded_by".to_owned(), by.into());
    shown.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reasons_stand_below_the_total() {
        let counts = [("warm", 2), ("discarded", 3), ("discarded.worn", 3)];
        let counts = counts.map(|(name, count)| (name.to_owned(), count));
        let shown = sandboxes(&HashMap::from(counts));
        let expected = json!({ "warm": 2, "discarded": 3, "discarded_by": { "worn": 3 } });
        assert_eq!(shown, expected);
    }
}
