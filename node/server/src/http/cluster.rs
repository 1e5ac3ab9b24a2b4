//! `GET /v1/cluster`: the nodes, the queue, and how far this node's copy of the ledger is.

use std::collections::{BTreeMap, HashMap};

use axum::Json;
use axum::extract::State;
use quorun_ledger::{Node, NodeId};
use quorun_proto::v1::PeerReport;
use serde_json::{Map, Value, json};

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
                "sandboxes": report.map(|r| sandboxes(&r.sandboxes)),
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
        "voters_changing": status.changing,
        "nodes": shown,
        "queue": { "jobs": counters.queued, "bytes": counters.queued_bytes },
        "running": counters.running,
        "finished": { "jobs": counters.finished, "bytes": counters.finished_bytes },
        "applied_index": applied,
        "state_hash": hash.to_string(),
    })))
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
