//! `/v1/jobs`: submit one, look at it, cancel it.

use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use quorun_ledger::JobState;

use super::gate::{self, Entry};
use super::json::Json;
use super::judged::Show;
use super::openapi::words;
use super::problem::Problem;
use super::query::{Asked, Parameters};
use super::submission::{JSON_SETTINGS, JobRequest, idempotency};
use super::view::Encoding;
use super::{App, body, job_id, languages, path, view};
use crate::access::Caller;
use crate::jobs::{Details, Error};
use crate::pressure::Client;

/// The longest `?wait=`, seconds.
pub const MAX_WAIT_S: u64 = 300;

/// Submit a job
#[utoipa::path(
    post, path = "/v1/jobs", operation_id = "submit_job", tag = "jobs",
    description = "Once it was answered, the job will be finished whatever single node dies. With an `Idempotency-Key` a retry is safe: the same request with the same key, at any node, joins the first job.",
    params(
        ("wait" = Option<f64>, Query, minimum = 0,
            description = "Wait so many seconds for the end of the job; 300 if more is asked for"),
        ("encoding" = Option<words::EncodingWord>, Query, description = "How bytes stand in the answer"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[ -~]+$",
            description = "Makes a retry safe; printable ASCII"),
    ),
    request_body(content = JobRequest, examples(
        ("run" = (summary = "A program with its input", value = json!({
            "language": "python", "source": "print(input()[::-1])", "stdin": "olleh", "limits": { "cpu_ms": 1000 },
            "labels": ["first"],
        }))),
        ("judge" = (summary = "A program that is judged", value = json!({
            "language": "python", "source": "a, b = map(int, input().split())\nprint(a + b)",
            "tests": [
                { "name": "small", "stdin": "1 2\n", "expected": "3\n" },
                { "name": "large", "stdin": "1000000 2000000\n", "expected": "3000000\n", "weight": 3, "hidden": true },
            ],
            "checker": "tokens",
        }))),
        ("files" = (summary = "Several files, and one that comes back", value = json!({
            "language": "bash",
            "files": [{ "name": "main.sh", "content": ". ./lib.sh\ngreet > out.txt" }, { "name": "lib.sh", "content": "greet() { echo hello; }" }],
            "entrypoint": "main.sh", "outputs": ["out.txt"],
        }))),
    )),
    responses(
        (status = 202, description = "Accepted; with `wait`, the time is up", body = view::JobShape,
            headers(("Location" = String, description = "Where the job is")), example = json!(view::example_of_queued())),
        (status = 200, description = "With `wait`: the job has finished", body = view::JobShape,
            headers(("Location" = String, description = "Where the job is")), example = json!(view::example())),
    ),
    extensions(("x-problems" = json!([
        "unknown-language", "language-disabled", "language-not-ready", "language-unavailable", "empty-source", "idempotency-conflict", "owner-busy", "queue-full",
        "disk-full", "no-quorum", "unconfirmed", "node-failing",
    ]))),
)]
pub async fn submit(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    Extension(caller): Extension<Caller>,
    query: Asked,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let parameters = Parameters::new(query)?;
    let patience = wait(parameters.one("wait")?)?;
    let show = Show {
        encoding: encoding(parameters.one("encoding")?)?,
        cases: None,
    };
    let rules = app.rules();
    let limit = rules.json_body_limit();
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
    let request: JobRequest = body::json(&bytes)?;
    let key = idempotency(&headers, || rules.asked(&bytes))?;
    drop(bytes);
    let spec = rules.check(request)?;
    let mut accepted = match app.jobs.submit(place, spec, key).await {
        Ok(accepted) => accepted,
        Err(error) => return Err(languages::refusal(&app, error).await),
    };
    if let Some(patience) = patience {
        let finished = app.jobs.finish(&mut accepted, Instant::now() + patience);
        if let Some(details) = unless_ending(&app, finished).await? {
            return Ok(answer(StatusCode::OK, &details, &show));
        }
    }
    let details = app.jobs.accepted(&mut accepted).await?;
    Ok(answer(StatusCode::ACCEPTED, &details, &show))
}

/// The job once it has finished; `None` when the time is up, or when this node is about to end: the client can go on
/// waiting at another one.
pub async fn unless_ending(
    app: &App,
    finished: impl Future<Output = Result<Option<Details>, Error>>,
) -> Result<Option<Details>, Problem> {
    tokio::select! {
        details = finished => Ok(details?),
        () = app.closing.cancelled() => Ok(None),
    }
}

/// Look at a job
#[utoipa::path(
    get, path = "/v1/jobs/{id}", operation_id = "get_job", tag = "jobs",
    description = "With `wait`, once it has finished, the time is up, or the node is about to end (then ask another one).",
    params(
        ("id" = String, Path, format = Uuid, description = "The job"),
        ("consistency" = Option<words::Consistency>, Query, description = "Whose copy of the ledger is read"),
        ("wait" = Option<f64>, Query, minimum = 0,
            description = "Wait so many seconds for the end of the job; 300 if more is asked for"),
        ("encoding" = Option<words::EncodingWord>, Query, description = "How bytes stand in the answer"),
        ("include" = Option<words::Include>, Query, description = "Show test cases whole"),
    ),
    responses((status = 200, description = "The job", body = view::JobShape, example = json!(view::example()))),
    extensions(("x-problems" = json!(["unknown-job", "no-quorum", "node-failing"]))),
)]
pub async fn get(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    id: Result<Path<String>, PathRejection>,
    query: Asked,
) -> Result<Response, Problem> {
    let parameters = Parameters::new(query)?;
    let id = job_id(&path(id)?)?;
    let stale = stale(parameters.one("consistency")?)?;
    let patience = wait(parameters.one("wait")?)?;
    let mut show = Show {
        encoding: encoding(parameters.one("encoding")?)?,
        cases: None,
    };
    let with_cases = includes_tests(parameters.one("include")?)?;
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
    if with_cases {
        show.cases = Some(app.jobs.cases(id).await?);
    }
    Ok(Json(view::details_as(&details, &show)).into_response())
}

fn answer(status: StatusCode, details: &Details, show: &Show) -> Response {
    let mut response = (status, Json(view::details_as(details, show))).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/jobs/{}", details.job.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// How long a client waits, if it does.
pub fn wait(text: Option<&str>) -> Result<Option<Duration>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|s| s.is_finite() && *s >= 0.0)
        .ok_or_else(|| Problem::no_such("wait", text, "a number of seconds"))?;
    // A longer wait than the longest is not an error: the answer then says that the job has not finished.
    Ok(Some(Duration::from_secs_f64(
        seconds.min(MAX_WAIT_S as f64),
    )))
}

fn encoding(text: Option<&str>) -> Result<Encoding, Problem> {
    match text {
        None | Some("text") => Ok(Encoding::Text),
        Some("base64") => Ok(Encoding::Base64),
        Some(other) => Err(Problem::no_such(
            "encoding",
            other,
            "text (the default) or base64",
        )),
    }
}

/// Whether the answer is to have the test cases as they were submitted.
fn includes_tests(text: Option<&str>) -> Result<bool, Problem> {
    match text {
        None => Ok(false),
        Some("tests") => Ok(true),
        Some(other) => Err(Problem::no_such("include", other, "tests, or left out")),
    }
}

/// Whether this node's own copy will do.
pub fn stale(text: Option<&str>) -> Result<bool, Problem> {
    match text {
        None | Some("linearizable") => Ok(false),
        Some("stale") => Ok(true),
        Some(other) => Err(Problem::no_such(
            "consistency",
            other,
            "linearizable (the default) or stale",
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use axum::extract::Query;

    use super::super::{events, fuzz, lang};
    use super::*;

    fn submission(query: &http::Uri) -> Result<(), Problem> {
        let parameters = Parameters::new(Query::try_from_uri(query))?;
        wait(parameters.one("wait")?)?;
        encoding(parameters.one("encoding")?).map(drop)
    }

    fn look(query: &http::Uri) -> Result<(), Problem> {
        let parameters = Parameters::new(Query::try_from_uri(query))?;
        stale(parameters.one("consistency")?)?;
        wait(parameters.one("wait")?)?;
        encoding(parameters.one("encoding")?)?;
        includes_tests(parameters.one("include")?).map(drop)
    }

    proptest! {
        #[test]
        fn any_query_and_last_event_is_read_or_refused_in_words(
            query in fuzz::queries(&["wait", "encoding", "consistency", "include", "stdin", "stream", "last_event_id", "follow"]),
            headers in fuzz::headers(&["last-event-id"]),
        ) {
            let last = events::read(Query::try_from_uri(&query)).map(|query| query.last_event_id(&headers));
            if let Ok(last) = &last {
                // Whatever it is, a stream begins somewhere.
                let _ = crate::resume::Heard::from_id(last.as_deref());
            }
            let read = [
                submission(&query),
                look(&query),
                lang::read(Query::try_from_uri(&query)).map(drop),
                last.map(drop),
            ];
            for problem in read.into_iter().filter_map(Result::err) {
                fuzz::is_a_good_answer(&problem);
            }
        }
    }
}
