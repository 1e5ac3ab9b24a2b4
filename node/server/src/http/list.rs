//! `GET /v1/jobs`: lists, and `DELETE /v1/jobs`: cancels what a filter admits.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use quorun_ledger::{JobFilter, JobState, Priority, Verdict};
use serde_json::{Value, json};

use super::jobs::stale;
use super::problem::Problem;
use super::query::Parameters;
use super::submission::Rules;
use super::{App, cursor, view};
use crate::access::Caller;

/// Jobs on one page of a list.
const PAGE: usize = 50;
/// The largest page.
const MAX_PAGE: usize = 500;
/// Jobs that one request cancels at most.
const MAX_CANCELLED: usize = 1000;
/// What a list may be narrowed by.
const FILTERS: [&str; 8] = [
    "state",
    "language",
    "label",
    "verdict",
    "node",
    "priority",
    "submitted_after",
    "submitted_before",
];
/// Labels that a filter may name: no job has more.
const MAX_LABELS: usize = 16;

type Asked = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// Lists jobs.
pub async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    query: Asked,
) -> Result<Json<Value>, Problem> {
    let mut known = FILTERS.to_vec();
    known.extend(["order", "limit", "cursor", "consistency"]);
    let parameters = Parameters::new(query, &known)?;
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
    let jobs: Vec<_> = page.jobs.iter().map(view::summary).collect();
    let next = page.next.map(|id| cursor::behind(id, &filter));
    Ok(Json(json!({ "jobs": jobs, "next_cursor": next })))
}

/// Cancels the jobs that a filter admits and that have not finished, a bounded number of them.
pub async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    query: Asked,
) -> Result<Json<Value>, Problem> {
    let mut known = FILTERS.to_vec();
    known.extend(["limit", "cursor"]);
    known.retain(|name| *name != "verdict");
    let parameters = Parameters::new(query, &known)?;
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
    let next = swept.next.map(|id| cursor::behind(id, &filter));
    Ok(Json(json!({
        "cancelled": swept.cancelled,
        "finished_before": swept.finished_before,
        "next_cursor": next,
    })))
}

/// What a query asks for.
fn filter(rules: &Rules<'_>, parameters: &Parameters) -> Result<JobFilter, Problem> {
    let mut filter = JobFilter {
        states: parameters.set("state", "queued, running or finished", state)?,
        verdicts: parameters.set(
            "verdict",
            "one of accepted, wrong_answer, compile_error, runtime_error, time_limit, memory_limit, output_limit, cancelled and internal_error",
            verdict,
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

fn verdict(name: &str) -> Option<Verdict> {
    [
        Verdict::Accepted,
        Verdict::WrongAnswer,
        Verdict::CompileError,
        Verdict::RuntimeError,
        Verdict::TimeLimit,
        Verdict::MemoryLimit,
        Verdict::OutputLimit,
        Verdict::Cancelled,
        Verdict::InternalError,
    ]
    .into_iter()
    .find(|verdict| verdict.as_str() == name)
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
        let parameters = Parameters::new(Query::try_from_uri(query), NAMES)?;
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
