//! Several jobs by their ids: wait for them, cancel them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::{Extension, Json};
use http::HeaderMap;
use quorun_ledger::JobId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::jobs::MAX_WAIT_S;
use super::problem::Problem;
use super::{App, body, gate, view};
use crate::access::Caller;
use crate::jobs::{Error, Until};
use crate::pressure::Client;

/// Jobs that one request may name.
const MAX_IDS: usize = 1000;
/// The largest body that names so many.
const MAX_BODY: usize = 64 * 1024;

/// The body of `POST /v1/jobs/wait`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitRequest {
    ids: Vec<String>,
    #[serde(default)]
    until: Option<String>,
    #[serde(default)]
    timeout_s: Option<f64>,
}

impl WaitRequest {
    /// Which jobs are waited for, until when, and for how long.
    fn check(&self) -> Result<(Vec<JobId>, Until, Duration), Problem> {
        let ids = ids(&self.ids)?;
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

/// The body of `POST /v1/jobs/cancel`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelRequest {
    ids: Vec<String>,
}

/// Waits for all, or for any, of several jobs.
pub async fn wait(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let _waits = gate::wait(&app, client)?;
    let bytes = body::read(&headers, body, MAX_BODY).await?;
    let (ids, until, patience) = body::json::<WaitRequest>(&bytes)?.check()?;
    let deadline = Instant::now() + patience;
    let waited = app
        .jobs
        .wait_for(ids, caller.only(), until, deadline, app.closing.cancelled())
        .await?;
    let shown: Vec<Value> = waited
        .jobs
        .iter()
        .map(|(id, job)| match job {
            Some(job) => Value::Object(view::summary(job)),
            None => json!({ "id": id.to_string(), "problem": Problem::from(Error::NotFound(*id)).to_json() }),
        })
        .collect();
    Ok(Json(json!({ "done": waited.done, "jobs": shown })))
}

/// Cancels several jobs; each says what became of it.
pub async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let bytes = body::read(&headers, body, MAX_BODY).await?;
    let request: CancelRequest = body::json(&bytes)?;
    let ids = ids(&request.ids)?;
    let mut cancelled = 0_u32;
    let mut shown = Vec::with_capacity(ids.len());
    for (id, outcome) in app.jobs.cancel_all(ids, caller.only()).await? {
        let id = id.to_string();
        shown.push(match outcome {
            Ok(()) => {
                cancelled += 1;
                json!({ "id": id, "status": 200 })
            }
            Err(error) => {
                let problem = Problem::from(error);
                json!({ "id": id, "status": problem.status().as_u16(), "problem": problem.to_json() })
            }
        });
    }
    Ok(Json(json!({ "cancelled": cancelled, "jobs": shown })))
}

/// The jobs that a list of ids names, each once.
fn ids(texts: &[String]) -> Result<Vec<JobId>, Problem> {
    if texts.is_empty() {
        let problem = Problem::invalid("ids", "ids is empty; name at least one job");
        return Err(problem.with("value", 0).with("limit", 1));
    }
    if texts.len() > MAX_IDS {
        let count = texts.len() as u64;
        return Err(Problem::over_limit("ids", count, MAX_IDS as u64));
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
            match body::json::<CancelRequest>(&cancel).and_then(|request| ids(&request.ids)) {
                Ok(ids) => prop_assert!((1..=MAX_IDS).contains(&ids.len())),
                Err(problem) => fuzz::is_a_good_answer(&problem),
            }
        }
    }
}
