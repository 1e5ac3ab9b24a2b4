//! `GET /metrics`: the figures of this node, for Prometheus.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};

use super::App;
use super::problem::Problem;
use crate::jobs::Error;
use crate::ledger;
use crate::metrics::Shown;

/// Callbacks that are to be sent are counted as far as this: it is done anew each time.
const COUNTED: usize = 20_000;
/// The version of the format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Look at this node's figures
#[utoipa::path(
    get, path = "/metrics", operation_id = "get_metrics", tag = "cluster",
    description = "In the text format of Prometheus. With `--open-metrics` it needs no token.",
    responses((status = 200, description = "All figures", body = String, content_type = "text/plain",
        example = json!("# TYPE quorun_applied_index gauge\nquorun_applied_index 117\n"))),
    extensions(("x-problems" = json!(["no-quorum", "node-failing"]))),
)]
pub async fn show(State(app): State<App>) -> Result<Response, Problem> {
    let id = app.config.id;
    // Deliveries are due by the ledger's time, which is not that of this node's own clock.
    let now = app.consensus.time_ms();
    let read = ledger::read(&app.consensus, move |view| {
        let now = now.max(view.counters()?.time_ms);
        let overdue = view.next_due()?.map_or(0, |at| now.saturating_sub(at));
        let pending = view.due(None, u64::MAX, COUNTED)?.len();
        Ok((view.node(id)?, pending, overdue / 1000))
    });
    let (node, pending, overdue_s) = read.await.map_err(Error::from)?;
    let shown = Shown {
        callbacks_pending: pending as u64,
        callbacks_overdue_s: overdue_s,
        metrics: app.metrics.clone(),
        pressure: app.pressure.clone(),
        node,
        status: app.consensus.status().borrow().clone(),
        consensus: app.consensus.clone(),
        executor: app.executor.clone(),
        id,
    };
    // It looks at files of the kernel.
    let text = tokio::task::spawn_blocking(|| shown.text()).await;
    let text = text.ok().and_then(Result::ok).ok_or(Error::Stopped)?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(TEXT)),
        (
            HeaderName::from_static("x-content-type-options"),
            HeaderValue::from_static("nosniff"),
        ),
    ];
    Ok((StatusCode::OK, headers, text).into_response())
}

/// Counts a request and the time until its answer began.
pub async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map(MatchedPath::as_str);
    app.metrics
        .answered(&method, route, response.status(), began.elapsed());
    response
}
