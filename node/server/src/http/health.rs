//! `/healthz`: the process runs. `/readyz`: this node can take requests and work.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde_json::{Value, json};

use super::App;

/// The process runs.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether this node has a leader, has caught up, and executes jobs; and if not, why.
pub async fn readyz(State(app): State<App>) -> (StatusCode, Json<Value>) {
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
    let body = json!({
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "node": app.config.id,
        "leader": status.leader.filter(|_| app.liveness.in_touch()),
        "applied_index": status.applied_index,
    });
    (code, Json(body))
}
