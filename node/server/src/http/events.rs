//! `GET /v1/jobs/{id}/events`: a job as server-sent events, from its state now to its end.
//!
//! `state`: `{state, attempt, node}`. `output`: `{attempt, stream, offset, text}`, with `base64` in the place of `text`
//! where the bytes are not UTF-8. `test`: `{attempt, index, verdict, …}`. `replaced`: `{attempt, by}`, when what was sent
//! of an attempt is void because another one has taken over. `finished`: the job, as `GET /v1/jobs/{id}` has it. `error`:
//! the problem. `shown`: `{attempt}`, for whoever wanted no more than there is. Nothing comes after the last three.
//!
//! Each event but `error` has an id, which says how far the stream has come. A client that sends the last one it got goes
//! on from there, at any node.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use quorun_executor::Stream as Std;
use quorun_ledger::{JobState, TestResult};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::judged;
use super::openapi::words;
use super::problem::Problem;
use super::query::{Asked, Parameters};
use super::{App, gate, job_id, path, view};
use crate::follow::{Followed, Told, Until};
use crate::jobs::Error;
use crate::pressure::Client;
use crate::resume::{Heard, Position};

/// How often something is sent, so that nobody on the way takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Where a client says what it got last.
const LAST_EVENT_ID: &str = "last-event-id";

/// The query.
#[derive(Debug)]
pub struct Params {
    last_event_id: Option<String>,
    /// Whether the stream goes on with what is still to come; it does unless this says no.
    follow: Option<bool>,
}

/// The data of an event `state`: how far the job is.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `shown` makes")]
pub struct StateEvent {
    state: words::JobState,
    attempt: u32,
    #[schema(required = true)]
    node: Option<u64>,
}

/// The data of an event `output`: what was printed. `base64` stands in the place of `text` where the bytes are not UTF-8.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `shown` makes")]
pub struct OutputEvent {
    attempt: u32,
    stream: words::Stream,
    /// Of its first byte in the stream.
    offset: u64,
    #[schema(nullable = false)]
    text: Option<String>,
    #[schema(nullable = false, content_encoding = "base64")]
    base64: Option<String>,
}

/// The data of an event `test`: how a test case ended.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `case` makes")]
pub struct TestEvent {
    attempt: u32,
    /// Of the test case, from 0.
    index: u32,
    #[schema(required = true)]
    name: Option<String>,
    verdict: words::Verdict,
    score: f64,
    hidden: bool,
    #[schema(required = true)]
    exit_code: Option<i32>,
    #[schema(required = true)]
    signal: Option<i32>,
    #[schema(required = true)]
    message: Option<String>,
    cpu_ms: u64,
    wall_ms: u64,
    memory_kb: u64,
}

/// The data of an event `replaced`: what was sent of an attempt is void, because another one has taken over.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `shown` makes")]
pub struct ReplacedEvent {
    #[schema(required = true)]
    attempt: Option<u32>,
    by: u32,
}

/// The data of an event `shown`: with `follow=false`, all has been sent that there is of a job that goes on.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `shown` makes")]
pub struct ShownEvent {
    /// The current one; 0 before the first.
    attempt: u32,
}

/// Follow a job
#[utoipa::path(
    get, path = "/v1/jobs/{id}/events", operation_id = "follow_job", tag = "live",
    description = "Server-sent events, from the job's state now to its end. The data of each is JSON: of `state` a `StateEvent`, of `output` an `OutputEvent`, of `test` a `TestEvent`, of `replaced` a `ReplacedEvent`; of `finished` the `Job`, of `shown` a `ShownEvent`, and of `error` an object with a `detail`. Nothing comes after the last three; `shown` comes with `follow=false` only.\n\nEach event but `error` has an id. A client that sends the last one it got goes on behind it, at any node, whatever node has died.",
    params(
        ("id" = String, Path, format = Uuid, description = "The job"),
        ("last_event_id" = Option<String>, Query, description = "The id of the last event that came; the header goes before it"),
        ("follow" = Option<bool>, Query, description = "With `false` the stream ends when all has been sent that there is, with `shown` where the job goes on"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that came"),
    ),
    responses(
        (status = 200, description = "The events", body = String, content_type = "text/event-stream",
            example = json!("event: state\nid: 1-0-0\ndata: {\"attempt\":1,\"node\":2,\"state\":\"running\"}\n\n")),
        (status = 204, description = "The job has ended, and all of its events have come"),
    ),
    extensions(("x-problems" = json!(["unknown-job", "no-quorum", "node-failing"]))),
)]
pub async fn events(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    id: Result<Path<String>, PathRejection>,
    query: Asked,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = job_id(&path(id)?)?;
    let query = read(query)?;
    let until = match query.follow {
        Some(false) => Until::Now,
        None | Some(true) => Until::End,
    };
    let last = query.last_event_id(&headers);
    // Whether there is such a job is a question to the cluster; from then on this node waits for its own copy.
    let details = app.jobs.get(id, false).await?;
    let heard = Heard::from_id(last.as_deref());
    let end = last
        .and_then(|id| id.parse::<Position>().ok())
        .filter(|position| position.ended);
    let job = &details.job;
    if job.state == JobState::Finished && end.is_some_and(|end| end.attempt == job.attempt) {
        // For an EventSource of a browser this is the word not to come again.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let waits = gate::wait(&app, client)?;
    let events = app.jobs.follow(id, heard, until).map(move |item| {
        let _waits = &waits;
        Ok::<_, Infallible>(event(item))
    });
    let mut response = Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    // What stands in between must not keep events until it has many.
    let headers = response.headers_mut();
    headers.insert(
        header::HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    Ok(response)
}

/// What the query says.
pub fn read(query: Asked) -> Result<Params, Problem> {
    let parameters = Parameters::new(query)?;
    Ok(Params {
        last_event_id: parameters.one("last_event_id")?.map(ToOwned::to_owned),
        follow: parameters.flag("follow")?,
    })
}

impl Params {
    /// What the client got last. The header counts: that is what is sent anew by itself. Something that is not text is not
    /// an id, which is settled with the others that are none.
    pub fn last_event_id(self, headers: &HeaderMap) -> Option<String> {
        let sent = headers.get(LAST_EVENT_ID).map(HeaderValue::as_bytes);
        let id = sent
            .map(|id| String::from_utf8_lossy(id).into_owned())
            .or(self.last_event_id);
        id.filter(|id| !id.is_empty())
    }
}

fn event(item: Result<Told, Error>) -> Event {
    let (followed, position) = match item {
        Ok(told) => told,
        Err(error) => {
            let problem = Problem::from(error).to_json();
            return Event::default().event("error").data(problem.to_string());
        }
    };
    let (name, data) = shown(followed);
    Event::default()
        .event(name)
        .id(position.to_string())
        .data(data.to_string())
}

fn shown(followed: Followed) -> (&'static str, Value) {
    match followed {
        Followed::State {
            state,
            attempt,
            node,
        } => (
            "state",
            json!({ "state": state.as_str(), "attempt": attempt, "node": node }),
        ),
        Followed::Output {
            attempt,
            stream,
            offset,
            data,
        } => {
            let mut object = Map::new();
            let name = match stream {
                Std::Stdout => "stdout",
                Std::Stderr => "stderr",
            };
            object.insert("attempt".to_owned(), attempt.into());
            object.insert("stream".to_owned(), name.into());
            object.insert("offset".to_owned(), offset.into());
            view::put_text(&mut object, "text", &data);
            if let Some(bytes) = object.remove("text_base64") {
                object.remove("text");
                object.insert("base64".to_owned(), bytes);
            }
            ("output", Value::Object(object))
        }
        Followed::Case {
            attempt,
            index,
            result,
        } => ("test", case(attempt, index, &result)),
        Followed::Replaced(replaced) => (
            "replaced",
            json!({ "attempt": replaced.attempt, "by": replaced.by }),
        ),
        Followed::Finished(details) => ("finished", view::details(&details)),
        Followed::Shown { attempt } => ("shown", json!({ "attempt": attempt })),
    }
}

/// How a test case ended. What it printed stays in the job: it may be secret.
fn case(attempt: u32, index: u32, result: &TestResult) -> Value {
    let mut object = judged::ended(result);
    object.insert("attempt".to_owned(), attempt.into());
    object.insert("index".to_owned(), index.into());
    Value::Object(object)
}
