//! Several jobs by their ids: wait for them, cancel them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use http::HeaderMap;
use quorun_ledger::JobId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::openapi::schema::OneOfBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::few::Few;
use super::jobs::MAX_WAIT_S;
use super::json::Json;
use super::openapi::words;
use super::problem::Problem;
use super::{App, body, gate, view};
use crate::access::Caller;
use crate::jobs::{Error, Until};
use crate::pressure::Client;

/// Jobs that one request may name.
pub const MAX_IDS: usize = 1000;
/// The largest body that names so many.
const MAX_BODY: usize = 64 * 1024;

/// Jobs to be waited for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = WaitForJobs)]
struct WaitRequest {
    /// Their ids.
    #[schema(value_type = Vec<uuid::Uuid>, min_items = 1, max_items = 1000)]
    ids: Few<String, MAX_IDS>,
    #[serde(default)]
    #[schema(value_type = Option<words::Until>)]
    until: Option<String>,
    /// How long, seconds: 300 at most, and if it is not said.
    #[serde(default)]
    #[schema(minimum = 0)]
    timeout_s: Option<f64>,
}

impl WaitRequest {
    /// Which jobs are waited for, until when, and for how long.
    fn check(&self) -> Result<(Vec<JobId>, Until, Duration), Problem> {
        let ids = ids(&self.ids.0)?;
        let seconds = self.timeout_s.unwrap_or(MAX_WAIT_S as f64);
        if !seconds.is_finite() || seconds < 0.0 {
            return Err(Problem::invalid(
                "timeout_s",
                format!(
                    "timeout_s is {seconds}; it should be a number of seconds, not less than 0"
                ),
            )
            .with("value", seconds)
            .with("limit", 0));
        }
        let patience = Duration::from_secs_f64(seconds.min(MAX_WAIT_S as f64));
        let until = match self.until.as_deref() {
            None | Some("all") => Until::All,
            Some("any") => Until::Any,
            Some(other) => {
                return Err(Problem::no_such("until", other, "all (the default) or any"));
            }
        };
        Ok((ids, until, patience))
    }
}

/// Jobs to be cancelled.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CancelJobs)]
struct CancelRequest {
    /// Their ids.
    #[schema(value_type = Vec<uuid::Uuid>, min_items = 1, max_items = 1000)]
    ids: Few<String, MAX_IDS>,
}

/// How the jobs stand that were waited for.
#[derive(Debug, Serialize, ToSchema)]
pub struct Waited {
    /// Whether what was waited for has come.
    done: bool,
    /// Each as a list shows it, in their order.
    #[schema(value_type = Vec<WaitedItem>)]
    jobs: Vec<Value>,
}

/// A job, or why there is none; describes what `wait` makes.
pub struct WaitedItem;

impl PartialSchema for WaitedItem {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new()
            .item(Ref::from_schema_name(view::SummaryShape::name()))
            .item(Ref::from_schema_name(MissingJob::name()))
            .description(Some("A job, or why there is none"))
            .into()
    }
}

impl ToSchema for WaitedItem {
    fn name() -> Cow<'static, str> {
        "WaitedJob".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((MissingJob::name().into(), MissingJob::schema()));
        MissingJob::schemas(schemas);
    }
}

/// A job that is not there.
#[derive(Debug, Serialize, ToSchema)]
pub struct MissingJob {
    /// Its id.
    #[schema(format = Uuid)]
    id: String,
    /// That there is none.
    #[schema(value_type = super::openapi::ProblemShape)]
    problem: Value,
}

/// What became of the jobs that were to be cancelled.
#[derive(Debug, Serialize, ToSchema)]
pub struct CancelledJobs {
    /// How many were cancelled.
    cancelled: u32,
    /// What became of each, in their order.
    jobs: Vec<CancelledJob>,
}

/// What became of one job.
#[derive(Debug, Serialize, ToSchema)]
pub struct CancelledJob {
    /// Its id.
    #[schema(format = Uuid)]
    id: String,
    /// What cancelling it by itself would have been answered.
    status: u16,
    /// Why it was not cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<super::openapi::ProblemShape>, nullable = false)]
    problem: Option<Value>,
}

/// Wait for many jobs
#[utoipa::path(
    post, path = "/v1/jobs/wait", operation_id = "wait_for_jobs", tag = "many",
    description = "Waits, at any node, until all of the jobs have finished, or any of them, or the time is up. A job that is not there is not waited for.",
    request_body(content = WaitRequest, example = json!({
        "ids": ["01900000-0000-7000-8000-000000000000"], "until": "all", "timeout_s": 0.5,
    })),
    responses((status = 200, description = "How they stand", body = Waited,
        example = json!({ "done": true, "jobs": [view::example_in_list()] }))),
    extensions(("x-problems" = json!(["no-quorum", "node-failing"]))),
)]
pub async fn wait(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Waited>, Problem> {
    let _waits = gate::wait(&app, client)?;
    let bytes = body::read(&headers, body, MAX_BODY).await?;
    let (ids, until, patience) = body::json::<WaitRequest>(&bytes)?.check()?;
    let deadline = Instant::now() + patience;
    let waited = app
        .jobs
        .wait_for(ids, caller.only(), until, deadline, app.closing.cancelled())
        .await?;
    let shown = waited.jobs.iter().map(|(id, job)| match job {
        Some(job) => Value::Object(view::summary(job)),
        None => json!(MissingJob {
            id: id.to_string(),
            problem: Problem::from(Error::NotFound(*id)).to_json(),
        }),
    });
    Ok(Json(Waited {
        done: waited.done,
        jobs: shown.collect(),
    }))
}

/// Cancel many jobs
#[utoipa::path(
    post, path = "/v1/jobs/cancel", operation_id = "cancel_jobs", tag = "many",
    request_body(content = CancelRequest, example = json!({ "ids": ["01900000-0000-7000-8000-000000000000"] })),
    responses((status = 200, description = "What became of each", body = CancelledJobs,
        example = json!({ "cancelled": 1, "jobs": [{ "id": "01900000-0000-7000-8000-000000000000", "status": 200 }] }))),
    extensions(("x-problems" = json!(["no-quorum", "unconfirmed", "node-failing"]))),
)]
pub async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CancelledJobs>, Problem> {
    let bytes = body::read(&headers, body, MAX_BODY).await?;
    let request: CancelRequest = body::json(&bytes)?;
    let ids = ids(&request.ids.0)?;
    let mut cancelled = 0_u32;
    let mut shown = Vec::with_capacity(ids.len());
    for (id, outcome) in app.jobs.cancel_all(ids, caller.only()).await? {
        let problem = outcome.err().map(Problem::from);
        cancelled += u32::from(problem.is_none());
        shown.push(CancelledJob {
            id: id.to_string(),
            status: problem.as_ref().map_or(200, |p| p.status().as_u16()),
            problem: problem.map(|problem| problem.to_json()),
        });
    }
    Ok(Json(CancelledJobs {
        cancelled,
        jobs: shown,
    }))
}

/// The jobs that a list of ids names, each once.
fn ids(texts: &[String]) -> Result<Vec<JobId>, Problem> {
    if texts.is_empty() {
        let problem = Problem::invalid("ids", "ids is empty; name at least one job");
        return Err(problem.with("value", 0).with("limit", 1));
    }
    let mut seen = HashSet::with_capacity(texts.len());
    let mut ids = Vec::with_capacity(texts.len());
    for (n, text) in texts.iter().enumerate() {
        let id: JobId = text.parse().map_err(|_| {
            let field = format!("ids[{n}]");
            let detail = format!(
                "{field} is not a job id; ids look like 01900000-0000-7000-8000-000000000000"
            );
            Problem::invalid(&field, detail).with("value", text.as_str())
        })?;
        if seen.insert(id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fuzz;
    use super::*;

    const ID: &str = "01900000-0000-7000-8000-000000000000";

    proptest! {
        #[test]
        fn any_request_about_many_jobs_is_read_or_refused_in_words(
            wait in fuzz::bodies(&json!({ "ids": [ID, ID], "until": "any", "timeout_s": 1.5 }), fuzz::NAMES),
            cancel in fuzz::bodies(&json!({ "ids": [ID] }), fuzz::NAMES),
        ) {
            match body::json::<WaitRequest>(&wait).and_then(|request| request.check()) {
                Ok((ids, _, patience)) => {
                    prop_assert!((1..=MAX_IDS).contains(&ids.len()));
                    prop_assert!(patience <= Duration::from_secs(MAX_WAIT_S));
                }
                Err(problem) => fuzz::is_a_good_answer(&problem),
            }
            match body::json::<CancelRequest>(&cancel).and_then(|request| ids(&request.ids.0)) {
                Ok(ids) => prop_assert!((1..=MAX_IDS).contains(&ids.len())),
                Err(problem) => fuzz::is_a_good_answer(&problem),
            }
        }
    }
}
