//! `/healthz`: the process runs. `/readyz`: this node can take requests and work.

use axum::extract::State;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::json::Json;

/// How a node stands.
#[derive(Debug, Serialize, ToSchema)]
pub struct Readiness {
    /// It can take requests and work.
    ready: bool,
    /// Why not.
    reasons: Vec<String>,
    /// This node.
    node: u64,
    /// The node that leads; null if there is none, or this node is out of touch with it.
    #[schema(required = true)]
    leader: Option<u64>,
    /// How far this node's copy of the ledger is.
    applied_index: u64,
}

/// Ask whether the process runs
#[utoipa::path(
    get, path = "/healthz", operation_id = "get_health", tag = "cluster",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain", example = json!("ok\n"))),
)]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Ask whether this node can take requests and work
#[utoipa::path(
    get, path = "/readyz", operation_id = "get_readiness", tag = "cluster",
    description = "Whether this node has a leader, has caught up, and executes jobs; and if not, why.",
    responses(
        (status = 200, description = "It can", body = Readiness,
            example = json!({ "ready": true, "reasons": [], "node": 1, "leader": 2, "applied_index": 117 })),
        (status = 503, description = "It cannot", body = Readiness, example = json!({
            "ready": false, "reasons": ["the cluster has not formed yet"], "node": 1, "leader": null, "applied_index": 0,
        })),
    ),
)]
pub async fn readyz(State(app): State<App>) -> (StatusCode, Json<Readiness>) {
    let status = app.consensus.status().borrow().clone();
    let mut reasons = Vec::new();
    if !status.initialized {
        reasons.push("the cluster has not formed yet".to_owned());
    }
    match status.leader {
        None => reasons
            .push("there is no leader: fewer than half of the voters reach each other".to_owned()),
        Some(_) if status.leading && !status.quorum => {
            reasons.push("this node leads, but does not reach a majority".to_owned());
        }
        Some(leader) if !app.liveness.in_touch() => reasons.push(format!(
            "there is no leader that this node reaches; the last one was node {leader}"
        )),
        Some(_) => {}
    }
    if !app.membership.announced() {
        reasons
            .push("this node has not caught up with the ledger, or was declared lost".to_owned());
    }
    let report = app.membership.own_report();
    if !report.ready {
        reasons.push(format!(
            "this node takes no work: {}",
            report.not_ready_reason
        ));
    }
    let code = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = Readiness {
        ready: reasons.is_empty(),
        reasons,
        node: app.config.id,
        leader: status.leader.filter(|_| app.liveness.in_touch()),
        applied_index: status.applied_index,
    };
    (code, Json(body))
}
