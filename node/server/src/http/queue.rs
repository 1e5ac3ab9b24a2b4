//! `GET /v1/queue`: what waits, for how long, and how fast it goes.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use quorun_ledger::{Priority, Waiting};
use serde_json::{Map, Value, json};

use super::App;
use super::jobs::stale;
use super::problem::Problem;
use super::query::Parameters;
use crate::insight::WINDOW_S;
use crate::jobs::wait_estimate;
use crate::scheduler::now_ms;

/// Shows the queue.
pub async fn show(
    State(app): State<App>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let parameters = Parameters::new(query, &["consistency"])?;
    let stale = stale(parameters.one("consistency")?)?;
    let queue = app.jobs.queue(stale).await?;
    let counters = &queue.counters;
    let now = now_ms();
    let mut levels = Map::new();
    for level in Priority::ALL {
        let waiting = counters.waiting(level);
        let oldest = queue.oldest[level as usize];
        let ahead = counters.ahead_of_new(level);
        let mut shown = figures(waiting);
        shown.insert(
            "oldest_wait_ms".to_owned(),
            oldest.map(|submitted| now.saturating_sub(submitted)).into(),
        );
        shown.insert("ahead".to_owned(), ahead.into());
        // Nobody who finds a free slot waits.
        let estimate = if ahead == 0 && queue.free > 0 {
            Some(Duration::ZERO)
        } else {
            wait_estimate(ahead, queue.rates)
        };
        shown.insert("wait_estimate_ms".to_owned(), ms(estimate));
        levels.insert(level.as_str().to_owned(), Value::Object(shown));
    }
    let languages: BTreeMap<&str, Value> = counters
        .languages
        .iter()
        .map(|(name, waiting)| (name.as_str(), Value::Object(figures(*waiting))))
        .collect();
    let bound = app.config.ceilings.queue;
    let per_s = |rate: f64| (rate * 100.0).round() / 100.0;
    Ok(Json(json!({
        "jobs": counters.queued,
        "bytes": counters.queued_bytes,
        "limit": { "jobs": bound.jobs, "bytes": bound.bytes },
        "running": counters.running,
        "slots": { "all": queue.slots, "free": queue.free },
        "priorities": levels,
        "languages": languages,
        "throughput": {
            "started_per_s": per_s(queue.rates.started),
            "finished_per_s": per_s(queue.rates.finished),
            "over_s": WINDOW_S,
        },
    })))
}

fn figures(waiting: Waiting) -> Map<String, Value> {
    let mut shown = Map::new();
    shown.insert("jobs".to_owned(), waiting.jobs.into());
    shown.insert("bytes".to_owned(), waiting.bytes.into());
    shown
}

/// Whole milliseconds.
pub fn ms(duration: Option<Duration>) -> Value {
    duration.map_or(Value::Null, |duration| {
        u64::try_from(duration.as_millis())
            .unwrap_or(u64::MAX)
            .into()
    })
}
