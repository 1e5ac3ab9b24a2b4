//! `GET /v1/jobs`: lists, and `DELETE /v1/jobs`: cancels what a filter admits.

use axum::Extension;
use axum::extract::State;
use quorun_ledger::{JobFilter, JobState, Priority, Verdict};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::jobs::stale;
use super::json::Json;
use super::openapi::words;
use super::problem::Problem;
use super::query::{Asked, Parameters};
use super::submission::Rules;
use super::{App, cursor, view};
use crate::access::Caller;

/// Jobs on one page of a list.
const PAGE: usize = 50;
/// The largest page.
pub const MAX_PAGE: usize = 500;
/// Jobs that one request cancels at most.
pub const MAX_CANCELLED: usize = 1000;
/// Labels that a filter may name: no job has more.
const MAX_LABELS: usize = 16;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobList {
    #[schema(value_type = Vec<view::SummaryShape>)]
    jobs: Vec<Map<String, Value>>,
    /// Where to go on; null at the end.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// What became of the jobs that a filter admits.
#[derive(Debug, Serialize, ToSchema)]
pub struct CancelledByFilter {
    /// How many were cancelled.
    cancelled: u32,
    /// How many ended before they could be.
    finished_before: u32,
    /// Where to go on, where there may be more.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List jobs
#[utoipa::path(
    get, path = "/v1/jobs", operation_id = "list_jobs", tag = "jobs",
    description = "Without what they printed, the newest first. A page looks at no more than 10,000 jobs, so it may be short, even empty, and have a cursor. A cursor belongs to its filter and order.",
    params(
        ("state" = Option<Vec<words::JobState>>, Query, style = Form, explode = false, description = "Jobs in one of these states"),
        ("language" = Option<Vec<String>>, Query, style = Form, explode = false, description = "Jobs in one of these languages"),
        ("label" = Option<Vec<String>>, Query, max_items = 16, description = "Jobs that have all of these labels"),
        ("verdict" = Option<Vec<words::Verdict>>, Query, style = Form, explode = false, description = "Jobs that ended in one of these ways"),
        ("node" = Option<Vec<u64>>, Query, style = Form, explode = false, description = "Jobs of one of these nodes"),
        ("priority" = Option<Vec<words::Priority>>, Query, style = Form, explode = false, description = "Jobs of one of these priorities"),
        ("submitted_after" = Option<String>, Query, format = DateTime, description = "Jobs that were submitted then or later, in UTC"),
        ("submitted_before" = Option<String>, Query, format = DateTime, description = "Jobs that were submitted earlier, in UTC"),
        ("order" = Option<words::Order>, Query, description = "Which end comes first"),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 500, description = "Jobs on the page; 50 if not said"),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
        ("consistency" = Option<words::Consistency>, Query, description = "Whose copy of the ledger is read"),
    ),
    responses((status = 200, description = "A page", body = JobList,
        example = json!({ "jobs": [view::example_in_list()], "next_cursor": null }))),
    extensions(("x-problems" = json!(["unknown-language", "no-quorum", "node-failing"]))),
)]
pub async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    query: Asked,
) -> Result<Json<JobList>, Problem> {
    let parameters = Parameters::new(query)?;
    let stale = stale(parameters.one("consistency")?)?;
    let mut filter = filter(&app.rules(), &parameters)?;
    filter.owner = caller.only().map(ToOwned::to_owned);
    filter.oldest_first = match parameters.one("order")? {
        None | Some("newest") => false,
        Some("oldest") => true,
        Some(other) => {
            let should = "newest (the default) or oldest";
            return Err(Problem::no_such("order", other, should));
        }
    };
    let limit = limit(&parameters, PAGE, MAX_PAGE)?;
    let behind = match parameters.one("cursor")? {
        None => None,
        Some(text) => Some(cursor::read(text, &filter)?),
    };
    let page = app.jobs.list(filter.clone(), behind, limit, stale).await?;
    Ok(Json(JobList {
        jobs: page.jobs.iter().map(view::summary).collect(),
        next_cursor: page.next.map(|id| cursor::behind(id, &filter)),
    }))
}

/// Cancel the jobs that a filter admits
#[utoipa::path(
    delete, path = "/v1/jobs", operation_id = "cancel_jobs_by_filter", tag = "jobs",
    description = "At least one filter is needed. Cancels what is queued or running, the oldest first, at most `limit` jobs; with a `next_cursor` in the answer there may be more.",
    params(
        ("state" = Option<Vec<words::JobState>>, Query, style = Form, explode = false, description = "Jobs in one of these states"),
        ("language" = Option<Vec<String>>, Query, style = Form, explode = false, description = "Jobs in one of these languages"),
        ("label" = Option<Vec<String>>, Query, max_items = 16, description = "Jobs that have all of these labels"),
        ("node" = Option<Vec<u64>>, Query, style = Form, explode = false, description = "Jobs of one of these nodes"),
        ("priority" = Option<Vec<words::Priority>>, Query, style = Form, explode = false, description = "Jobs of one of these priorities"),
        ("submitted_after" = Option<String>, Query, format = DateTime, description = "Jobs that were submitted then or later, in UTC"),
        ("submitted_before" = Option<String>, Query, format = DateTime, description = "Jobs that were submitted earlier, in UTC"),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "Jobs that are cancelled at most; 1000 if not said"),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the answer before"),
    ),
    responses((status = 200, description = "What became of them", body = CancelledByFilter,
        example = json!({ "cancelled": 17, "finished_before": 0, "next_cursor": null }))),
    extensions(("x-problems" = json!(["unknown-language", "no-quorum", "unconfirmed", "node-failing"]))),
)]
pub async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    query: Asked,
) -> Result<Json<CancelledByFilter>, Problem> {
    let parameters = Parameters::new(query)?;
    let mut filter = filter(&app.rules(), &parameters)?;
    if filter == JobFilter::default() {
        return Err(Problem::invalid(
            "query",
            "without a filter every job would be cancelled; name a label, or another of state, language, node, priority, submitted_after and submitted_before",
        ));
    }
    if filter.states.contains(&JobState::Finished) {
        return Err(Problem::invalid(
            "state",
            "state is \"finished\"; what has finished cannot be cancelled, so state should be queued or running",
        )
        .with("value", JobState::Finished.as_str()));
    }
    if filter.states.is_empty() {
        filter.states = [JobState::Queued, JobState::Running].into();
    }
    filter.owner = caller.only().map(ToOwned::to_owned);
    // So that the next request goes on where this one ends, and not with what has come since.
    filter.oldest_first = true;
    let limit = limit(&parameters, MAX_CANCELLED, MAX_CANCELLED)?;
    let behind = match parameters.one("cursor")? {
        None => None,
        Some(text) => Some(cursor::read(text, &filter)?),
    };
    let swept = app.jobs.sweep(filter.clone(), behind, limit).await?;
    Ok(Json(CancelledByFilter {
        cancelled: swept.cancelled,
        finished_before: swept.finished_before,
        next_cursor: swept.next.map(|id| cursor::behind(id, &filter)),
    }))
}

/// What a query asks for.
fn filter(rules: &Rules<'_>, parameters: &Parameters) -> Result<JobFilter, Problem> {
    let mut filter = JobFilter {
        states: parameters.set("state", "queued, running or finished", state)?,
        verdicts: parameters.set(
            "verdict",
            "one of accepted, wrong_answer, compile_error, runtime_error, time_limit, memory_limit, output_limit, cancelled and internal_error",
            Verdict::named,
        )?,
        nodes: parameters.set("node", "the number of a node", |text| text.parse().ok())?,
        priorities: parameters.set("priority", "high, normal or low", Priority::named)?,
        labels: parameters.all("label").map(ToOwned::to_owned).collect(),
        from_ms: time(parameters, "submitted_after")?,
        until_ms: time(parameters, "submitted_before")?,
        ..JobFilter::default()
    };
    let labels = filter.labels.len() as u64;
    if filter.labels.len() > MAX_LABELS {
        return Err(Problem::over_limit("label", labels, MAX_LABELS as u64));
    }
    if filter.labels.contains("") {
        return Err(
            Problem::invalid("label", "label is empty; no job has such a label").with("value", ""),
        );
    }
    for name in parameters
        .all("language")
        .flat_map(|names| names.split(','))
    {
        filter.languages.insert(rules.language(name)?.name.clone());
    }
    if let (Some(from), Some(until)) = (filter.from_ms, filter.until_ms)
        && from >= until
    {
        return Err(Problem::invalid(
            "submitted_before",
            "submitted_before is not later than submitted_after, so no job can be in between",
        )
        .with("value", parameters.one("submitted_before")?));
    }
    Ok(filter)
}

fn state(name: &str) -> Option<JobState> {
    [JobState::Queued, JobState::Running, JobState::Finished]
        .into_iter()
        .find(|state| state.as_str() == name)
}

fn time(parameters: &Parameters, name: &str) -> Result<Option<u64>, Problem> {
    let Some(text) = parameters.one(name)? else {
        return Ok(None);
    };
    humantime::parse_rfc3339(text)
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .map(Some)
        .ok_or_else(|| {
            let should = "a time in UTC such as 2026-01-01T00:00:00Z";
            Problem::no_such(name, text, should)
        })
}

fn limit(parameters: &Parameters, default: usize, most: usize) -> Result<usize, Problem> {
    let Some(text) = parameters.one("limit")? else {
        return Ok(default);
    };
    text.parse()
        .ok()
        .filter(|limit| (1..=most).contains(limit))
        .ok_or_else(|| Problem::no_such("limit", text, &format!("1 to {most}")).with("limit", most))
}

#[cfg(test)]
mod tests {
    use axum::extract::Query;
    use proptest::prelude::*;

    use super::super::fuzz;
    use super::*;

    const NAMES: &[&str] = &[
        "state",
        "language",
        "label",
        "verdict",
        "node",
        "priority",
        "submitted_after",
        "submitted_before",
        "limit",
        "cursor",
    ];

    fn read(query: &http::Uri) -> Result<(), Problem> {
        let parameters = Parameters::new(Query::try_from_uri(query))?;
        let filter = filter(&fuzz::rules(), &parameters)?;
        limit(&parameters, PAGE, MAX_PAGE)?;
        if let Some(cursor) = parameters.one("cursor")? {
            cursor::read(cursor, &filter)?;
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_filter_is_read_or_refused_in_words(query in fuzz::queries(NAMES)) {
            if let Err(problem) = read(&query) {
                fuzz::is_a_good_answer(&problem);
            }
        }
    }
}
