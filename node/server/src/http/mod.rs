//! What clients see. One file for each surface; `listener` takes the connections, `gate` decides what is
//! let in before its body is read, `serve` holds connections to their deadlines, `access` knows who sends a request, `problem` and `submission` are what they share.

mod access;
mod address;
pub mod attach;
mod batch;
mod body;
mod callback;
mod cluster;
mod cursor;
mod errors;
mod events;
mod few;
#[cfg(test)]
mod fuzz;
mod gate;
mod health;
mod heavy;
mod index;
mod interactive;
mod job_end;
mod jobs;
mod json;
mod judged;
mod judging;
mod kinds;
mod lang;
mod languages;
mod languages_set;
mod list;
mod listener;
mod malformed;
mod many;
mod members;
mod metrics;
mod openapi;
mod problem;
mod query;
mod queue;
mod serve;
mod submission;
mod view;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use quorun_consensus::Handle;
use quorun_executor::Executor;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::images::Images;
use crate::jobs::Jobs;
use crate::liveness::Liveness;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::pressure::Pressure;
use crate::settings::ClusterSettings;
use problem::{Kind, Problem, quoted};
use submission::Rules;

pub use listener::Clients;
pub use openapi::printed as openapi_json;
pub use serve::Server;
pub use submission::largest_body;
pub use view::details as job_json;

/// How long a client that waits for the end of a job goes on waiting when its node is about to end.
const LAST_MOMENT: Duration = Duration::from_secs(6);

/// What the handlers know. Cheap to clone: every layer of every request does so.
#[derive(Clone)]
pub struct App(Arc<Known>);

/// The parts of it.
pub struct Known {
    /// The node's configuration.
    pub config: Config,
    /// The languages.
    pub catalogue: Catalogue,
    /// What this node can run of them.
    pub images: Images,
    /// What the others have said of them a moment ago.
    pub peers_languages: languages::Heard,
    /// The jobs.
    pub jobs: Jobs,
    /// The cluster.
    pub consensus: Handle,
    /// This node among the others.
    pub membership: Membership,
    /// Who is alive.
    pub liveness: Liveness,
    /// What holds for the whole cluster.
    pub settings: ClusterSettings,
    /// What executes jobs here.
    pub executor: Executor,
    /// What this node has taken on.
    pub pressure: Pressure,
    /// What it counts.
    pub metrics: Metrics,
    /// Cancelled when this node is about to end: whoever waits for a job is told to ask elsewhere.
    pub closing: CancellationToken,
}

impl Deref for App {
    type Target = Known;

    fn deref(&self) -> &Known {
        &self.0
    }
}

impl From<Known> for App {
    fn from(known: Known) -> Self {
        Self(Arc::new(known))
    }
}

impl App {
    fn rules(&self) -> Rules<'_> {
        Rules {
            languages: self.catalogue.current(),
            ceilings: &self.config.ceilings,
            retention: self.settings.current().retention,
            private_callbacks: self.config.callback_allow_private,
        }
    }

    /// Returns when this node is about to end and a client that still waits must be told something.
    async fn last_moment(&self) {
        self.closing.cancelled().await;
        tokio::time::sleep(LAST_MOMENT).await;
    }
}

/// All routes, each made from the description of its call.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(lang::run))
        .routes(routes!(jobs::submit, list::list, list::cancel))
        .routes(routes!(jobs::get, job_end::delete))
        .routes(routes!(queue::show))
        .routes(routes!(batch::submit))
        .routes(routes!(many::wait))
        .routes(routes!(many::cancel))
        .routes(routes!(callback::again))
        .routes(routes!(events::events))
        .routes(routes!(attach::attach))
        .routes(routes!(languages::list))
        .routes(routes!(
            languages::get,
            languages_set::put,
            languages_set::patch,
            languages_set::remove
        ))
        .routes(routes!(cluster::status))
        .routes(routes!(members::admit))
        .routes(routes!(members::remove))
        .routes(routes!(members::drain))
        .routes(routes!(members::move_leader))
        .routes(routes!(members::settings, members::configure))
        .routes(routes!(index::show))
        .routes(routes!(errors::all))
        .routes(routes!(errors::one))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(metrics::show))
        .routes(routes!(openapi::json))
        .routes(routes!(openapi::docs))
}

/// The routes without what they know. The descriptions that they are made from take a megabyte for a moment: whoever makes
/// them before everything else has it used again, and not kept for nothing.
pub struct Routes {
    router: Router<App>,
    takes: query::Takes,
}

impl Routes {
    /// All of them.
    #[must_use]
    pub fn new() -> Self {
        let (router, mut document) = routes().split_for_parts();
        let takes = query::Takes::described(&mut document);
        Self { router, takes }
    }
}

/// What answers clients.
pub fn router(routes: Routes, app: App) -> Router {
    let takes = Arc::new(routes.takes);
    // One stack of layers, from the outermost to the innermost: each call of `Router::layer` would box every route once more, for
    // each request anew.
    let layers = ServiceBuilder::new()
        .layer(middleware::from_fn_with_state(app.clone(), metrics::count))
        .layer(middleware::map_response_with_state(
            app.clone(),
            close_when_draining,
        ))
        .layer(option_layer(access::pages(&app.config.access.origins)))
        .layer(middleware::from_fn_with_state(app.clone(), access::admit))
        .layer(middleware::from_fn_with_state(app.clone(), heavy::count))
        .layer(CatchPanicLayer::custom(|_| {
            Problem::new(
                Kind::Internal,
                "the request could not be handled; the node's log has the place",
            )
            .into_response()
        }))
        .layer(middleware::from_fn_with_state(takes, query::known))
        // The handlers read bodies themselves, within bounds of their own.
        .layer(DefaultBodyLimit::disable());
    routes
        .router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(layers)
        .with_state(app)
}

/// A node that drains keeps no connection open: its clients are better served elsewhere.
async fn close_when_draining(State(app): State<App>, mut response: Response) -> Response {
    // A WebSocket is no connection of HTTP any more, and is told in its own words.
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if app.membership.draining() && !upgraded {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

async fn unknown_path(uri: Uri) -> Problem {
    Problem::new(
        Kind::UnknownPath,
        format!(
            "{} is not a path of this API; programs are posted to /lang/{{language}} or /v1/jobs",
            uri.path()
        ),
    )
}

async fn wrong_method(method: Method, request: Request) -> Problem {
    Problem::new(
        Kind::WrongMethod,
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
            Kind::MalformedPath,
            format!("a part of the path cannot be read: {}", error.body_text()),
        )
        .with("field", "path")
    })
}

/// The job that a path names.
fn job_id(text: &str) -> Result<quorun_ledger::JobId, Problem> {
    text.parse().map_err(|_| {
        Problem::new(
            Kind::UnknownJob,
            format!(
                "{} is not a job id; ids look like 01900000-0000-7000-8000-000000000000",
                quoted(text)
            ),
        )
        .with("job", text)
    })
}
