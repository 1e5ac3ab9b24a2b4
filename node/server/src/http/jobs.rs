//! `/v1/jobs`: submit, look, list, cancel.

use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use quorun_ledger::{JobFilter, JobId, JobState};
use serde::Deserialize;
use serde_json::{Value, json};

use super::gate::{self, Entry};
use super::interactive;
use super::problem::Problem;
use super::submission::{JobRequest, idempotency};
use super::{App, body, job_id, path, view};
use crate::jobs::{Details, Error};
use crate::pressure::Client;

/// The longest `?wait=`, seconds.
const MAX_WAIT_S: u64 = 300;
/// Jobs on one page of a list.
const PAGE: usize = 50;
/// The largest page.
const MAX_PAGE: usize = 500;

/// The query of a submission.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubmitParams {
    wait: Option<String>,
}

/// The query of a look at one job.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetParams {
    consistency: Option<String>,
    wait: Option<String>,
}

/// The query of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListParams {
    state: Option<String>,
    language: Option<String>,
    label: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
    consistency: Option<String>,
}

fn params<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    query
        .map(|Query(params)| params)
        .map_err(|error| Problem::invalid("query", error.body_text()))
}

/// Submits a job.
pub async fn submit(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    query: Result<Query<SubmitParams>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let patience = wait(params(query)?.wait.as_deref())?;
    let rules = app.rules();
    let limit = rules.json_body_limit();
    let waits = patience.is_some();
    let (entry, body) = gate::enter(&app, client, &headers, body, limit, waits).await?;
    let Entry {
        mut place,
        waits: _waits,
    } = entry;
    let bytes = body::read(&headers, body, limit).await?;
    place.body_is(bytes.len());
    let request: JobRequest = body::json(&bytes)?;
    drop(bytes);
    let spec = rules.check(request)?;
    interactive::check(&spec)?;
    let key = idempotency(&headers, &spec)?;
    let mut accepted = app.jobs.submit(place, spec, key).await?;
    if let Some(patience) = patience {
        let finished = app.jobs.finish(&mut accepted, Instant::now() + patience);
        if let Some(details) = unless_ending(&app, finished).await? {
            return Ok(answer(StatusCode::OK, &details));
        }
    }
    let details = app.jobs.accepted(&mut accepted).await?;
    Ok(answer(StatusCode::ACCEPTED, &details))
}

/// The job once it has finished; `None` when the time is up, or when this node is about to end: the client can go on
/// waiting at another one.
async fn unless_ending(
    app: &App,
    finished: impl Future<Output = Result<Option<Details>, Error>>,
) -> Result<Option<Details>, Problem> {
    tokio::select! {
        details = finished => Ok(details?),
        () = app.closing.cancelled() => Ok(None),
    }
}

/// How a job stands; with `wait`, once it has finished or the time is up.
pub async fn get(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<GetParams>, QueryRejection>,
) -> Result<Response, Problem> {
    let params = params(query)?;
    let id = job_id(&path(id)?)?;
    let stale = stale(params.consistency.as_deref())?;
    let patience = wait(params.wait.as_deref())?;
    let mut details = app.jobs.get(id, stale).await?;
    if let Some(patience) = patience
        && details.job.state != JobState::Finished
    {
        let _waits = gate::wait(&app, client)?;
        let finished = app.jobs.wait(id, Instant::now() + patience);
        details = match unless_ending(&app, finished).await? {
            Some(details) => details,
            None => app.jobs.get(id, stale).await?,
        };
    }
    Ok(Json(view::details(&details)).into_response())
}

/// Lists jobs.
pub async fn list(
    State(app): State<App>,
    query: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let params = params(query)?;
    let stale = stale(params.consistency.as_deref())?;
    let state = match params.state.as_deref() {
        None => None,
        Some("queued") => Some(JobState::Queued),
        Some("running") => Some(JobState::Running),
        Some("finished") => Some(JobState::Finished),
        Some(other) => {
            return Err(Problem::invalid(
                "state",
                format!("state is \"{other}\"; it should be queued, running or finished"),
            ));
        }
    };
    let language = match params.language {
        None => None,
        Some(name) => Some(app.rules().language(&name)?.name.clone()),
    };
    let limit = match params.limit.as_deref() {
        None => PAGE,
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| (1..=MAX_PAGE).contains(n))
            .ok_or_else(|| {
                Problem::invalid(
                    "limit",
                    format!("limit is \"{text}\"; it should be 1 to {MAX_PAGE}"),
                )
            })?,
    };
    let cursor: Option<JobId> = match params.cursor.as_deref() {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            Problem::invalid(
                "cursor",
                format!("cursor is \"{text}\"; it should be the next_cursor of an earlier answer"),
            )
        })?),
    };
    let filter = JobFilter {
        state,
        language,
        label: params.label,
    };
    let page = app.jobs.list(filter, cursor, limit, stale).await?;
    let jobs: Vec<_> = page.jobs.iter().map(view::summary).collect();
    let next = page.next.map(|id| id.to_string());
    Ok(Json(json!({ "jobs": jobs, "next_cursor": next })))
}

/// Cancels a job.
pub async fn cancel(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let details = app.jobs.cancel(job_id(&path(id)?)?).await?;
    Ok(Json(view::details(&details)))
}

fn answer(status: StatusCode, details: &Details) -> Response {
    let mut response = (status, Json(view::details(details))).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/jobs/{}", details.job.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn wait(text: Option<&str>) -> Result<Option<Duration>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|s| s.is_finite() && *s >= 0.0)
        .ok_or_else(|| {
            Problem::invalid(
                "wait",
                format!("wait is \"{text}\"; it should be a number of seconds"),
            )
        })?;
    // A longer wait than the longest is not an error: the answer then says that the job has not finished.
    Ok(Some(Duration::from_secs_f64(
        seconds.min(MAX_WAIT_S as f64),
    )))
}

fn stale(text: Option<&str>) -> Result<bool, Problem> {
    match text {
        None | Some("linearizable") => Ok(false),
        Some("stale") => Ok(true),
        Some(other) => Err(Problem::invalid(
            "consistency",
            format!("consistency is \"{other}\"; it should be linearizable (the default) or stale"),
        )),
    }
}
