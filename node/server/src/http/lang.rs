//! `POST /lang/{language}`: the body is the program, the answer is what it printed.

use std::future::ready;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::Frame;
use http_body_util::StreamBody;
use quorun_executor::Stream as Std;
use quorun_ledger::{JobId, Output};

use super::gate::{self, Entry};
use super::openapi::words;
use super::problem::{Kind, Problem};
use super::query::{Asked, Parameters};
use super::submission::{JobRequest, SOURCE_SETTING, empty_source, idempotency};
use super::{App, body, languages, path, view};
use crate::access::Caller;
use crate::follow::{Followed, Until};
use crate::jobs::{Details, Error};
use crate::pressure::{Client, Held};
use crate::resume::Heard;

/// The longest that the answer is waited for: the client may also ask for the job later.
const PATIENCE: Duration = Duration::from_secs(600);

const JOB_ID: &str = "quorun-job-id";
const VERDICT: &str = "quorun-verdict";
const EXIT_CODE: &str = "quorun-exit-code";
const CPU_MS: &str = "quorun-cpu-ms";
const WALL_MS: &str = "quorun-wall-ms";
const MEMORY_KB: &str = "quorun-memory-kb";
const NODE: &str = "quorun-node";
const ERROR: &str = "quorun-error";
/// What comes behind a streamed body.
const TRAILERS: &str = "quorun-verdict, quorun-exit-code, quorun-cpu-ms, quorun-wall-ms, quorun-memory-kb, quorun-node, quorun-error";

/// The query.
#[derive(Debug)]
pub struct Params {
    stdin: Option<String>,
    stream: bool,
}

/// What the query says.
pub fn read(query: Asked) -> Result<Params, Problem> {
    let parameters = Parameters::new(query)?;
    Ok(Params {
        stdin: parameters.one("stdin")?.map(ToOwned::to_owned),
        stream: parameters.flag("stream")?.unwrap_or(false),
    })
}

/// Run a program
#[utoipa::path(
    post, path = "/lang/{language}", operation_id = "run_program", tag = "run",
    description = "The body is the program, in UTF-8. The answer is what it printed to stdout; if it printed nothing there, its stderr; if it did not even run, why not. The status is 200 whatever the program did; the headers say how it ended.\n\nWith `stream=true` the answer comes as it is printed, and all headers but `Quorun-Job-Id` come as trailers behind it (send `TE: trailers`). A trailer `Quorun-Error` in the place of `Quorun-Verdict` says that the stream ended without the whole output, because another attempt took over after some of it was sent.",
    params(
        ("language" = String, Path, description = "Name or alias of the language"),
        ("stdin" = Option<String>, Query, description = "What the program reads"),
        ("stream" = Option<bool>, Query, description = "Have the answer as it is printed"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[ -~]+$",
            description = "Makes a retry safe; printable ASCII"),
    ),
    request_body(description = "The program", content(
        (String = "text/plain", example = json!("print(6 * 7)")),
        (words::Program = "application/octet-stream", example = json!("print(6 * 7)")),
    )),
    responses((status = 200, description = "What it printed", body = String, content_type = "text/plain",
        headers(
                ("Quorun-Job-Id" = uuid::Uuid, description = "The job"),
                ("Quorun-Verdict" = Option<words::Verdict>, description = "How it ended"),
                ("Quorun-Exit-Code" = Option<i32>, description = "The program's exit code; absent when a signal ended it"),
                ("Quorun-Cpu-Ms" = Option<u64>, description = "CPU time of the run"),
                ("Quorun-Wall-Ms" = Option<u64>, description = "Wall-clock time of the run"),
                ("Quorun-Memory-Kb" = Option<u64>, description = "Memory of the run"),
                ("Quorun-Node" = Option<u64>, description = "The node that ran it"),
            ), example = json!("42\n"))),
    extensions(("x-problems" = json!([
        "unknown-language", "empty-source", "not-utf8", "language-disabled", "language-not-ready", "language-unavailable", "idempotency-conflict",
        "owner-busy", "queue-full", "disk-full", "no-quorum", "unconfirmed", "node-failing", "node-ending", "not-finished",
    ]))),
)]
pub async fn run(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    Extension(caller): Extension<Caller>,
    language: Result<Path<String>, PathRejection>,
    query: Asked,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let params = read(query)?;
    let language = path(language)?;
    let rules = app.rules();
    let name = rules.language(&language)?.name.clone();
    let limit = app.config.ceilings.source_bytes;
    let (entry, body) = gate::enter(&app, (client, &caller), &headers, body, limit, true).await?;
    let Entry { mut place, waits } = entry;
    let source = body::read(&headers, body, limit)
        .await
        .map_err(|problem| problem.set_by(SOURCE_SETTING))?;
    place.body_is(source.len());
    if source.is_empty() {
        return Err(empty_source());
    }
    let source = String::from_utf8(source.into()).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Problem::new(
            Kind::NotUtf8,
            format!(
                "the source is not UTF-8: byte {place} is wrong; send bytes as files[].content_base64 to /v1/jobs"
            ),
        )
        .with("field", "source")
        .with("value", place)
    })?;
    let key = idempotency(&headers, || {
        let mut asked = serde_json::json!({ "language": name, "source": source });
        if let Some(stdin) = &params.stdin {
            asked["stdin"] = stdin.as_str().into();
        }
        asked
    })?;
    let spec = rules.check(JobRequest {
        language,
        source: Some(source),
        stdin: params.stdin,
        ..JobRequest::default()
    })?;
    let mut accepted = match app.jobs.submit(place, spec, key).await {
        Ok(accepted) => accepted,
        Err(error) => return Err(languages::refusal(&app, error).await),
    };
    let job = accepted.job;
    if params.stream {
        return Ok(streamed(&app, job, waits));
    }
    let waited = tokio::select! {
        waited = app.jobs.finish(&mut accepted, Instant::now() + PATIENCE) => waited?,
        () = app.last_moment() => {
            return Err(Problem::new(Kind::NodeEnding,
                format!("job {job} was accepted and goes on; ask another node for it at /v1/jobs/{job}"),
            )
            .with("job", job.to_string())
            .retry());
        }
    };
    match waited {
        Some(details) => Ok(answer(&details)),
        None => Err(Problem::new(Kind::NotFinished,
            format!("job {job} was accepted but has not finished in {PATIENCE:?}; ask for it at /v1/jobs/{job}"),
        )
        .with("job", job.to_string())),
    }
}

fn answer(details: &Details) -> Response {
    let mut response = shown(details).into_response();
    let headers = response.headers_mut();
    plain_text(headers, details.job.id);
    headers.extend(figures(details));
    response
}

/// What a person at a terminal wants to see: stdout; where there is none, stderr; where the program did not even run,
/// why not.
fn shown(details: &Details) -> Bytes {
    let Output {
        stdout,
        stderr,
        compile,
        ..
    } = &details.output;
    let mut candidates = vec![stdout, stderr];
    if let Some(compile) = compile {
        candidates.extend([&compile.stderr, &compile.stdout]);
    }
    if let Some(text) = candidates.into_iter().find(|text| !text.is_empty()) {
        return text.clone();
    }
    match details.job.outcome.as_ref() {
        Some(outcome) if outcome.exit_code != Some(0) => {
            outcome.message.as_deref().map_or_else(Bytes::new, |kept| {
                Bytes::from(format!("{}\n", view::message(kept)))
            })
        }
        _ => Bytes::new(),
    }
}

fn plain_text(headers: &mut HeaderMap, job: JobId) {
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    put(headers, JOB_ID, &job);
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &impl ToString) {
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

fn figures(details: &Details) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some(outcome) = &details.job.outcome else {
        return headers;
    };
    put(&mut headers, VERDICT, &outcome.verdict.as_str());
    if let Some(code) = outcome.exit_code {
        put(&mut headers, EXIT_CODE, &code);
    }
    put(&mut headers, CPU_MS, &view::ms(outcome.cpu_us));
    put(&mut headers, WALL_MS, &view::ms(outcome.wall_us));
    put(&mut headers, MEMORY_KB, &outcome.memory_kb);
    if let Some(node) = details.job.node {
        put(&mut headers, NODE, &node);
    }
    headers
}

/// The same text as without streaming, as it is printed: stdout live, and behind it what is shown when stdout stayed
/// empty. The figures come as trailers.
fn streamed(app: &App, job: JobId, waits: Option<Held>) -> Response {
    let followed = app.jobs.follow(job, Heard::from_id(None), Until::End);
    let start = (Printed::Nothing, waits);
    let frames = followed
        .scan(start, |(printed, _), item| {
            let over = *printed == Printed::All;
            let frames = (!over).then(|| stream::iter(frames(item.map(|told| told.0), printed)));
            ready(frames)
        })
        .flatten();
    let mut response = Body::new(StreamBody::new(frames)).into_response();
    let headers = response.headers_mut();
    plain_text(headers, job);
    headers.insert(header::TRAILER, HeaderValue::from_static(TRAILERS));
    response
}

type BodyFrame = Result<Frame<Bytes>, std::convert::Infallible>;

/// How much a streamed body has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Printed {
    Nothing,
    Something,
    /// The trailers were sent.
    All,
}

fn frames(item: Result<Followed, Error>, printed: &mut Printed) -> Vec<BodyFrame> {
    let mut frames = Vec::new();
    let mut failure = None;
    match item {
        Ok(Followed::Output {
            stream: Std::Stdout,
            data,
            ..
        }) => {
            *printed = Printed::Something;
            frames.push(Ok(Frame::data(data)));
        }
        Ok(Followed::Finished(details)) => {
            if *printed == Printed::Nothing {
                frames.push(Ok(Frame::data(shown(&details))));
            }
            frames.push(Ok(Frame::trailers(figures(&details))));
            *printed = Printed::All;
        }
        // What was lost was not sent: the next attempt is the first that the client sees.
        Ok(Followed::Replaced(_)) if *printed == Printed::Nothing => {}
        Ok(Followed::Replaced(replaced)) => {
            failure = Some(format!(
                "attempt {} was lost after part of its output was sent; the job goes on as attempt {}",
                replaced.attempt.unwrap_or_default(),
                replaced.by
            ));
        }
        Err(error) => failure = Some(error.to_string()),
        Ok(
            Followed::State { .. }
            | Followed::Output { .. }
            | Followed::Case { .. }
            | Followed::Shown { .. },
        ) => {}
    }
    if let Some(message) = failure {
        let mut trailers = HeaderMap::new();
        put(&mut trailers, ERROR, &message);
        frames.push(Ok(Frame::trailers(trailers)));
        *printed = Printed::All;
    }
    frames
}
