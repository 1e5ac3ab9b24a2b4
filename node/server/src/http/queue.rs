//! `GET /v1/queue`: what waits, for how long, and how fast it goes.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use quorun_ledger::{Priority, Waiting};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::App;
use super::jobs::stale;
use super::json::Json;
use super::openapi::words;
use super::problem::Problem;
use super::query::{Asked, Parameters};
use crate::access::Caller;
use crate::insight::WINDOW_S;
use crate::jobs::wait_estimate;
use crate::scheduler::now_ms;

/// The queue.
#[derive(Debug, Serialize, ToSchema)]
pub struct Queue {
    /// Jobs that wait.
    jobs: u64,
    /// What they hold.
    bytes: u64,
    limit: QueueLimit,
    /// Jobs that run.
    running: u64,
    slots: Slots,
    priorities: Levels,
    /// What waits of each language that has something waiting.
    #[schema(value_type = BTreeMap<String, Figures>)]
    languages: BTreeMap<String, Figures>,
    throughput: Throughput,
}

/// How much may wait.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueLimit {
    jobs: u64,
    bytes: u64,
}

/// Jobs that can run at one time, on the nodes that take some.
#[derive(Debug, Serialize, ToSchema)]
pub struct Slots {
    all: u64,
    free: u64,
}

/// Each level of the queue.
#[derive(Debug, Serialize, ToSchema)]
pub struct Levels {
    high: Level,
    normal: Level,
    low: Level,
}

/// One level of the queue.
#[derive(Debug, Serialize, ToSchema)]
pub struct Level {
    /// Jobs that wait in it.
    jobs: u64,
    /// What they hold.
    bytes: u64,
    /// How long its first job has waited; null if there is none.
    #[schema(required = true)]
    oldest_wait_ms: Option<u64>,
    /// How many would go before a job of yours that entered it now, at most.
    ahead: u64,
    /// How long that one would wait; null if that is not known.
    #[schema(required = true)]
    wait_estimate_ms: Option<u64>,
}

/// Jobs that wait, and what they hold.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QueueFigures)]
pub struct Figures {
    jobs: u64,
    bytes: u64,
}

/// How fast it goes, as this node has seen it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Throughput {
    started_per_s: f64,
    finished_per_s: f64,
    /// Over how many seconds.
    over_s: u64,
}

/// Look at the queue
#[utoipa::path(
    get, path = "/v1/queue", operation_id = "get_queue", tag = "jobs",
    description = "What waits, for how long, and how fast it goes.",
    params(("consistency" = Option<words::Consistency>, Query, description = "Whose copy of the ledger is read")),
    responses((status = 200, description = "The queue", body = Queue, example = json!({
        "jobs": 1, "bytes": 90, "limit": { "jobs": 100_000, "bytes": 1_073_741_824 }, "running": 6,
        "slots": { "all": 6, "free": 0 },
        "priorities": {
            "high": { "jobs": 1, "bytes": 90, "oldest_wait_ms": 12, "ahead": 1, "wait_estimate_ms": 90 },
            "normal": { "jobs": 0, "bytes": 0, "oldest_wait_ms": null, "ahead": 1, "wait_estimate_ms": 90 },
            "low": { "jobs": 0, "bytes": 0, "oldest_wait_ms": null, "ahead": 1, "wait_estimate_ms": 90 },
        },
        "languages": { "python": { "jobs": 1, "bytes": 90 } },
        "throughput": { "started_per_s": 22.4, "finished_per_s": 22.1, "over_s": 60 },
    }))),
    extensions(("x-problems" = json!(["no-quorum", "node-failing"]))),
)]
pub async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    query: Asked,
) -> Result<Json<Queue>, Problem> {
    let parameters = Parameters::new(query)?;
    let stale = stale(parameters.one("consistency")?)?;
    let owner = caller.owner().map(|owner| owner.name);
    let queue = app.jobs.queue(owner, stale).await?;
    let counters = &queue.counters;
    let now = now_ms();
    let level = |level: Priority| {
        let Waiting { jobs, bytes } = counters.waiting(level);
        let oldest = queue.oldest[level as usize];
        let ahead = queue.ahead[level as usize];
        // Nobody who finds a free slot waits.
        let estimate = if ahead == 0 && queue.free > 0 {
            Some(Duration::ZERO)
        } else {
            wait_estimate(ahead, queue.rates)
        };
        Level {
            jobs,
            bytes,
            oldest_wait_ms: oldest.map(|submitted| now.saturating_sub(submitted)),
            ahead,
            wait_estimate_ms: estimate.map(whole_ms),
        }
    };
    let languages = counters.languages.iter().map(|(name, waiting)| {
        let Waiting { jobs, bytes } = *waiting;
        (name.clone(), Figures { jobs, bytes })
    });
    let bound = app.config.ceilings.queue;
    let per_s = |rate: f64| (rate * 100.0).round() / 100.0;
    Ok(Json(Queue {
        jobs: counters.queued,
        bytes: counters.queued_bytes,
        limit: QueueLimit {
            jobs: bound.jobs,
            bytes: bound.bytes,
        },
        running: counters.running,
        slots: Slots {
            all: queue.slots,
            free: queue.free,
        },
        priorities: Levels {
            high: level(Priority::High),
            normal: level(Priority::Normal),
            low: level(Priority::Low),
        },
        languages: languages.collect(),
        throughput: Throughput {
            started_per_s: per_s(queue.rates.started),
            finished_per_s: per_s(queue.rates.finished),
            over_s: WINDOW_S,
        },
    }))
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whole milliseconds.
pub fn ms(duration: Option<Duration>) -> Value {
    duration.map(whole_ms).into()
}
