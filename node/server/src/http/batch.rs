//! `POST /v1/jobs/batch`: many submissions in one request, all of them or each by itself.

use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use futures::future::join_all;
use http::{HeaderMap, StatusCode};
use quorun_ledger::{IdempotencyKey, Job, JobSpec};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::few::Few;
use super::gate::{self, Entry};
use super::jobs::wait;
use super::json::Json;
use super::problem::{Kind, Problem};
use super::query::{Asked, Parameters};
use super::submission::{JSON_SETTINGS, JobRequest, Rules, idempotency};
use super::{App, body, languages, view};
use crate::access::Caller;
use crate::jobs::{Accepted, Error, key_of_item};
use crate::pressure::Client;

/// Jobs of one batch.
pub const MAX_JOBS: usize = 1000;
/// What the jobs of an atomic batch may hold all together, bytes: they are one entry of the log, and one message between
/// peers.
const MAX_ATOMIC_BYTES: u64 = 16 << 20;
/// Wrong items that an error names one by one.
const MAX_NAMED: usize = 100;

/// Jobs to be run.
// They are read one by one, so that each can be wrong by itself.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Batch)]
struct BatchRequest {
    #[schema(value_type = Vec<JobRequest>, min_items = 1, max_items = 1000)]
    jobs: Few<Box<RawValue>, MAX_JOBS>,
    /// All of them are accepted, or none.
    #[serde(default)]
    atomic: bool,
}

/// What became of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchAnswer {
    /// How many jobs were accepted.
    accepted: usize,
    /// How many were not.
    refused: usize,
    /// What became of each, in their order.
    jobs: Vec<BatchItem>,
}

/// What became of one job of a batch: the `job`, or the `problem`.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchItem {
    /// What the job would have been answered by itself.
    status: u16,
    /// Without its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<view::SummaryShape>, nullable = false)]
    job: Option<Map<String, Value>>,
    /// Why it was not accepted; its `field` begins with `jobs[N]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<super::openapi::ProblemShape>, nullable = false)]
    problem: Option<Value>,
}

type Item = Result<(JobSpec, Option<IdempotencyKey>), Problem>;

/// Submit many jobs
#[utoipa::path(
    post, path = "/v1/jobs/batch", operation_id = "submit_batch", tag = "many",
    description = "Each of the jobs as `submit_job` takes it. With `atomic` all of them are accepted in one entry of the log, or none is: then the answer is a problem.",
    params(
        ("wait" = Option<f64>, Query, minimum = 0,
            description = "Wait so many seconds for the end of the jobs; 300 if more is asked for"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[ -~]+$",
            description = "Makes a retry of the whole batch safe; printable ASCII"),
    ),
    request_body(content = BatchRequest, example = json!({
        "jobs": [{ "language": "python", "source": "print(1)" }, { "language": "bash", "source": "echo 2" }], "atomic": false,
    })),
    responses((status = 200, description = "What became of each", body = BatchAnswer, example = json!({
        "accepted": 1, "refused": 0, "jobs": [{ "status": 202, "job": view::example_in_list() }],
    }))),
    extensions(("x-problems" = json!([
        "invalid-batch", "idempotency-conflict", "owner-busy", "queue-full", "language-not-ready", "language-unavailable", "language-disabled", "disk-full",
        "no-quorum", "unconfirmed", "node-failing",
    ]))),
)]
pub async fn submit(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    Extension(caller): Extension<Caller>,
    query: Asked,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BatchAnswer>, Problem> {
    let parameters = Parameters::new(query)?;
    let patience = wait(parameters.one("wait")?)?;
    let limit = app.rules().json_body_limit();
    let waits = patience.is_some();
    let (entry, body) = gate::enter(&app, (client, &caller), &headers, body, limit, waits).await?;
    let Entry {
        mut place,
        waits: _waits,
    } = entry;
    let bytes = body::read(&headers, body, limit)
        .await
        .map_err(|problem| problem.set_by(JSON_SETTINGS))?;
    place.body_is(bytes.len());
    let (items, atomic) = read(&app.rules(), &headers, &bytes)?;
    drop(bytes);
    place.jobs_are(items.len() as u64);
    let submitted = if atomic {
        let jobs = all_sound(items)?;
        match app.jobs.submit_all(place, jobs).await {
            Ok(jobs) => jobs.into_iter().map(Ok).collect(),
            Err(error) => return Err(languages::refusal(&app, error).await),
        }
    } else {
        one_by_one(&app, place, items).await?
    };
    let patience = patience.unwrap_or_default();
    let jobs = join_all(submitted.into_iter().map(|item| show(&app, item, patience))).await;
    let accepted = jobs.iter().filter(|item| item.job.is_some()).count();
    Ok(Json(BatchAnswer {
        accepted,
        refused: jobs.len() - accepted,
        jobs,
    }))
}

/// The items of a batch, and whether it is atomic.
fn read(
    rules: &Rules<'_>,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<(Vec<Item>, bool), Problem> {
    let request: BatchRequest = body::json(bytes)?;
    let Few(jobs) = request.jobs;
    if jobs.is_empty() {
        let problem = Problem::invalid("jobs", "jobs is empty; send at least one job");
        return Err(problem.with("value", 0).with("limit", 1));
    }
    Ok((items(rules, headers, jobs)?, request.atomic))
}

/// Checks each item, and gives it a key of its own if the batch has one.
fn items(
    rules: &Rules<'_>,
    headers: &HeaderMap,
    jobs: Vec<Box<RawValue>>,
) -> Result<Vec<Item>, Problem> {
    // The key of the batch is wrong for all of it, whatever its items are.
    idempotency(headers, || Value::Null)?;
    // Digest of the whole: a key that comes with another batch is a mistake, also where some of its items are the same.
    let mut whole = blake3::Hasher::new();
    let mut items: Vec<Item> = Vec::with_capacity(jobs.len());
    for (n, raw) in jobs.into_iter().enumerate() {
        let place = format!("jobs[{n}]");
        let item = body::json::<JobRequest>(raw.get().as_bytes())
            .and_then(|request| rules.check(request))
            .and_then(|spec| {
                let key = idempotency(headers, || rules.asked(raw.get().as_bytes()))?;
                Ok((spec, key))
            });
        match &item {
            Ok((_, Some(key))) => whole.update(&key.fingerprint),
            Ok((_, None)) => &mut whole,
            Err(_) => whole.update(raw.get().as_bytes()),
        };
        items.push(item.map_err(|problem| problem.of_part(&place)));
    }
    let whole = whole.finalize();
    for (n, item) in items.iter_mut().enumerate() {
        if let Ok((_, Some(key))) = item {
            key.key = key_of_item(&key.key, n);
            let mut own = blake3::Hasher::new();
            own.update(&key.fingerprint);
            own.update(whole.as_bytes());
            key.fingerprint
                .copy_from_slice(&own.finalize().as_bytes()[..16]);
        }
    }
    Ok(items)
}

/// The jobs of an atomic batch, unless one of them is wrong.
fn all_sound(items: Vec<Item>) -> Result<Vec<(JobSpec, Option<IdempotencyKey>)>, Problem> {
    let mut jobs = Vec::with_capacity(items.len());
    let mut wrong = Vec::new();
    for item in items {
        match item {
            Ok(job) => jobs.push(job),
            Err(problem) => wrong.push(problem),
        }
    }
    if !wrong.is_empty() {
        let count = wrong.len();
        let all = count + jobs.len();
        let named: Vec<Value> = wrong.iter().take(MAX_NAMED).map(Problem::to_json).collect();
        return Err(Problem::new(Kind::InvalidBatch,
            format!("{count} of {all} jobs are not valid, so none was accepted; errors says what is wrong with each (the first {MAX_NAMED})"),
        )
        .with("field", "jobs")
        .with("value", count)
        .with("errors", named));
    }
    let bytes: u64 = jobs.iter().map(|(spec, _)| spec.weight()).sum();
    if bytes > MAX_ATOMIC_BYTES {
        return Err(Problem::too_large("batch", MAX_ATOMIC_BYTES).with("value", bytes));
    }
    Ok(jobs)
}

/// Submits each sound item by itself.
async fn one_by_one(
    app: &App,
    place: crate::jobs::Place,
    items: Vec<Item>,
) -> Result<Vec<Result<Accepted, Problem>>, Problem> {
    let mut sound = Vec::with_capacity(items.len());
    let mut wrong: Vec<Option<Problem>> = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Ok(job) => {
                sound.push(job);
                wrong.push(None);
            }
            Err(problem) => wrong.push(Some(problem)),
        }
    }
    let mut submitted = app.jobs.submit_each(place, sound).await?.into_iter();
    let mut all = Vec::with_capacity(wrong.len());
    for (n, problem) in wrong.into_iter().enumerate() {
        all.push(match problem {
            Some(problem) => Err(problem),
            None => match submitted.next().unwrap_or(Err(Error::Stopped)) {
                Ok(accepted) => Ok(accepted),
                Err(error) => {
                    let problem = languages::refusal(app, error).await;
                    Err(problem.of_part(&format!("jobs[{n}]")))
                }
            },
        });
    }
    Ok(all)
}

/// What became of one item.
async fn show(app: &App, item: Result<Accepted, Problem>, patience: Duration) -> BatchItem {
    let looked = match item {
        Ok(accepted) => look(app, accepted, patience).await,
        Err(problem) => Err(problem),
    };
    match looked {
        Ok((status, job)) => BatchItem {
            status: status.as_u16(),
            job: Some(view::summary(&job)),
            problem: None,
        },
        Err(problem) => BatchItem {
            status: problem.status().as_u16(),
            job: None,
            problem: Some(problem.to_json()),
        },
    }
}

async fn look(
    app: &App,
    mut accepted: Accepted,
    patience: Duration,
) -> Result<(StatusCode, Job), Problem> {
    if !patience.is_zero() {
        let finished = app.jobs.finish(&mut accepted, Instant::now() + patience);
        if let Some(details) = super::jobs::unless_ending(app, finished).await? {
            return Ok((StatusCode::OK, details.job));
        }
    }
    let job = app.jobs.accepted(&mut accepted).await?.job;
    Ok((StatusCode::ACCEPTED, job))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::fuzz;
    use super::*;

    fn sound() -> Value {
        json!({ "jobs": [fuzz::submission(), { "language": "bash", "source": "1" }], "atomic": true })
    }

    proptest! {
        #[test]
        fn any_batch_is_read_or_refused_in_words(
            bytes in fuzz::bodies(&sound(), fuzz::NAMES),
            headers in fuzz::headers(&["idempotency-key"]),
        ) {
            match read(&fuzz::rules(), &headers, &bytes) {
                Ok((items, _)) => {
                    prop_assert!((1..=MAX_JOBS).contains(&items.len()));
                    for problem in items.iter().filter_map(|item| item.as_ref().err()) {
                        fuzz::is_a_good_answer(problem);
                        let field = problem.to_json()["field"].clone();
                        prop_assert!(field.as_str().is_some_and(|f| f.starts_with("jobs[")), "{field}");
                    }
                    if let Err(problem) = all_sound(items) {
                        prop_assert!(problem.status().is_client_error());
                    }
                }
                Err(problem) => fuzz::is_a_good_answer(&problem),
            }
        }
    }
}
