//! `GET /v1/jobs/{id}/events`: a job as server-sent events, from its state now to its end.
//!
//! `state`: `{state, attempt, node}`. `output`: `{attempt, stream, offset, text}`, with `base64` in the place of `text`
//! where the bytes are not UTF-8. `replaced`: `{attempt}`, when another attempt has taken over after output was sent.
//! `finished`: the job, as `GET /v1/jobs/{id}` has it. `error`: `{detail}`. Nothing comes after the last three.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures::{Stream, StreamExt};
use quorun_executor::Stream as Std;
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::{App, gate, job_id, path, view};
use crate::follow::Followed;
use crate::jobs::Error;
use crate::pressure::Client;

/// Follows a job.
pub async fn events(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>> + Send>, Problem> {
    let id = job_id(&path(id)?)?;
    // Whether there is such a job is a question to the cluster; from then on this node waits for its own copy.
    app.jobs.get(id, false).await?;
    let waits = gate::wait(&app, client)?;
    let events = app.jobs.follow(id).map(move |item| {
        let _waits = &waits;
        let (name, data) = event(item);
        Ok(Event::default().event(name).data(data.to_string()))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

fn event(item: Result<Followed, Error>) -> (&'static str, Value) {
    match item {
        Ok(Followed::State {
            state,
            attempt,
            node,
        }) => (
            "state",
            json!({ "state": state.as_str(), "attempt": attempt, "node": node }),
        ),
        Ok(Followed::Output {
            attempt,
            stream,
            offset,
            data,
        }) => {
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
        Ok(Followed::Replaced { attempt }) => ("replaced", json!({ "attempt": attempt })),
        Ok(Followed::Finished(details)) => ("finished", view::details(&details)),
        Err(error) => ("error", json!({ "detail": error.to_string() })),
    }
}
