//! What is decided about a request from its head, before its body is read.

use std::time::{Duration, Instant};

use axum::body::Body;
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::BodyExt;

use super::App;
use super::problem::Problem;
use crate::access::Caller;
use crate::jobs::Place;
use crate::pressure::{Client, Held, Thing};

/// A body of a refused request that is no larger is read and thrown away, so that the connection can be used again; with a
/// larger one the connection is closed.
const SMALL: u64 = 16 << 10;
/// How long that may take.
const SMALL_TIME: Duration = Duration::from_secs(1);

/// What a submission has been granted.
pub struct Entry {
    /// Its place on the way to the queue, with the room for its body.
    pub place: Place,
    /// Its place among those who wait, if it is going to.
    pub waits: Option<Held>,
}

/// Lets a submission in, whose body may have `limit` bytes, or says why not.
pub async fn enter(
    app: &App,
    (client, caller): (Client, &Caller),
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    waits: bool,
) -> Result<(Entry, Body), Problem> {
    let began = Instant::now();
    match grant(app, (client, caller), headers, limit, waits, began).await {
        Ok(entry) => Ok((entry, body)),
        Err(problem) => Err(turn_away(problem, headers, body).await),
    }
}

async fn grant(
    app: &App,
    (client, caller): (Client, &Caller),
    headers: &HeaderMap,
    limit: usize,
    waits: bool,
    began: Instant,
) -> Result<Entry, Problem> {
    let announced = length(headers);
    // What is too large is refused for that, by whoever reads it.
    let bytes = announced.map_or(limit as u64, |length| length.min(limit as u64));
    let waits = if waits {
        Some(wait(app, client)?)
    } else {
        None
    };
    let body = app
        .pressure
        .take(client, Thing::BodyBytes, bytes)
        .inspect_err(|full| app.metrics.refused(full))?;
    let key = headers.get("idempotency-key").and_then(|k| k.to_str().ok());
    let owner = (caller.owner(), caller.max_priority());
    let place = app
        .jobs
        .admit(began, owner, key, announced.map_or(0, |_| bytes), body);
    Ok(Entry {
        place: place.await?,
        waits,
    })
}

/// A place among those who wait for a job, or follow one.
pub fn wait(app: &App, client: Client) -> Result<Held, Problem> {
    let held = app.pressure.take(client, Thing::Waiting, 1);
    Ok(held.inspect_err(|full| app.metrics.refused(full))?)
}

/// The length of the body, if the client says it.
fn length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Refuses a request whose body has not been read.
pub async fn turn_away(problem: Problem, headers: &HeaderMap, mut body: Body) -> Problem {
    if body.is_end_stream() {
        return problem;
    }
    let asks_first = headers.contains_key(header::EXPECT);
    if asks_first || length(headers).is_none_or(|length| length > SMALL) {
        return problem.close();
    }
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    match tokio::time::timeout(SMALL_TIME, rest).await {
        Ok(()) => problem,
        Err(_) => problem.close(),
    }
}
