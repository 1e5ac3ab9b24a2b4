//! `GET /v1/cluster`: the nodes, the queue, and how far this node's copy of the ledger is.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use quorun_ledger::{Node, NodeId};
use quorun_proto::v1::PeerReport;
use serde_json::{Value, json};

use super::App;
use super::problem::Problem;
use crate::jobs::Error;
use crate::ledger;

/// Shows the cluster as this node sees it.
pub async fn status(State(app): State<App>) -> Result<Json<Value>, Problem> {
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
    let shown: Vec<Value> = status
        .members
        .iter()
        .map(|(id, member)| {
            let node = known.get(id);
            let peer = reports.get(id);
            let report = peer.and_then(|p| p.report.as_ref());
            json!({
                "id": id,
                "http": node.map(|n| n.http.clone()),
                "peer": member.peer,
                "role": if status.voters.contains(id) { "voter" } else { "learner" },
                "alive": *id == app.config.id || peer.is_some_and(|p| p.alive),
                "ready": report.is_some_and(|r| r.ready),
                "reason": report.map(|r| r.not_ready_reason.as_str()).filter(|r| !r.is_empty()),
                "draining": node.is_some_and(|n| n.draining),
                "lost": node.is_some_and(|n| n.lost),
                "slots": node.map(|n| n.slots),
                "busy": node.map(|n| n.busy),
                "sandboxes": report.map(|r| r.sandboxes.clone()),
                "applied_index": report.map(|r| r.applied_index),
                "version": node.map(|n| n.version.clone()),
            })
        })
        .collect();
    Ok(Json(json!({
        "cluster_id": app.config.cluster.to_string(),
        "node": app.config.id,
        "leader": status.leader.filter(|_| app.liveness.in_touch()),
        "term": status.term,
        "nodes": shown,
        "queue": { "jobs": counters.queued, "bytes": counters.queued_bytes },
        "running": counters.running,
        "finished": { "jobs": counters.finished, "bytes": counters.finished_bytes },
        "applied_index": applied,
        "state_hash": hash.to_string(),
    })))
}
