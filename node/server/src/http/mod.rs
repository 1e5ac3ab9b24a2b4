//! What clients see. One file for each surface; `problem` and `submission` are what they share.

mod body;
mod cluster;
mod events;
mod health;
mod jobs;
mod lang;
mod languages;
mod problem;
mod submission;
mod view;

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, Request};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http::{Method, StatusCode, Uri};
use quorun_consensus::Handle;
use quorun_ledger::Language;
use tower_http::catch_panic::CatchPanicLayer;

use crate::config::Config;
use crate::jobs::Jobs;
use crate::liveness::Liveness;
use crate::membership::Membership;
use problem::Problem;
use submission::Rules;

/// What the handlers know.
#[derive(Clone)]
pub struct App {
    /// The node's configuration.
    pub config: Arc<Config>,
    /// The languages.
    pub languages: Arc<Vec<Language>>,
    /// The jobs.
    pub jobs: Jobs,
    /// The cluster.
    pub consensus: Handle,
    /// This node among the others.
    pub membership: Membership,
    /// Who is alive.
    pub liveness: Liveness,
}

impl App {
    fn rules(&self) -> Rules<'_> {
        Rules {
            languages: &self.languages,
            ceilings: &self.config.ceilings,
            retention: self.config.retention,
        }
    }
}

/// All routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/lang/{language}", post(lang::run))
        .route("/v1/jobs", post(jobs::submit).get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::get).delete(jobs::cancel))
        .route("/v1/jobs/{id}/events", get(events::events))
        .route("/v1/languages", get(languages::list))
        .route("/v1/cluster", get(cluster::status))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        // The handlers read bodies themselves, within bounds of their own.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(|_| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Quorun has a bug",
                "the request could not be handled; the node's log has the place",
            )
            .into_response()
        }))
        .with_state(app)
}

async fn unknown_path(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "unknown-path",
        "There is nothing here",
        format!(
            "{} is not a path of this API; programs are posted to /lang/{{language}} or /v1/jobs",
            uri.path()
        ),
    )
}

async fn wrong_method(method: Method, request: Request) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong-method",
        "The path does not take this method",
        format!(
            "{} does not take {method}; the Allow header says what it takes",
            request.uri().path()
        ),
    )
}

/// The part of a path that stands for something.
fn path(parsed: Result<Path<String>, PathRejection>) -> Result<String, Problem> {
    parsed.map(|Path(part)| part).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "malformed-path",
            "The path is malformed",
            format!("a part of the path cannot be read: {}", error.body_text()),
        )
    })
}

/// The job that a path names.
fn job_id(text: &str) -> Result<quorun_ledger::JobId, Problem> {
    text.parse().map_err(|_| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknown-job",
            "There is no such job",
            format!(
                "\"{text}\" is not a job id; ids look like 01900000-0000-7000-8000-000000000000"
            ),
        )
        .with("job", text)
    })
}
