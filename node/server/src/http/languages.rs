//! `/v1/languages`: what can be run, on which nodes, and within which limits. Reading is for everybody; setting, disabling
//! and removing is for admins, and stands in `languages_set`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use http::{HeaderValue, header};
use quorun_ledger::{Limits, NodeId};
use quorun_proto::v1::{Blank, LanguageReport};
use serde_json::{Value, json};
use tonic::Code;

use super::problem::Problem;
use super::{App, path, view};
use crate::catalogue::{Known, Snapshot};

pub use super::languages_set::{patch, put, remove};

/// How long a node may take to say how the languages stand on it.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the nodes have said is told again for so long, so that many who ask here do not all ask them.
const FRESH: Duration = Duration::from_secs(1);
/// How long an answer waits for a version that nobody has asked for yet.
const VERSION: Duration = Duration::from_secs(10);

/// What a node has said of the languages.
#[derive(Clone, Debug)]
pub enum Said {
    /// How each stands.
    Reports(Vec<LanguageReport>),
    /// Its program is older than languages at run time.
    Older,
    /// Nothing.
    Silent,
}

/// What all nodes that are not lost have said.
pub type Everybody = Arc<BTreeMap<NodeId, Said>>;
/// What they have said a moment ago.
pub type Heard = tokio::sync::Mutex<Option<(Instant, Everybody)>>;

/// Asks all nodes that are not lost, unless that was done a moment ago; `fresh`: unless it was begun since this was called.
pub async fn everybody(app: &App, fresh: bool) -> Everybody {
    let called = Instant::now();
    let mut heard = app.peers_languages.lock().await;
    if let Some((at, said)) = &*heard
        && (*at >= called || !fresh && at.elapsed() < FRESH)
    {
        return Arc::clone(said);
    }
    let began = Instant::now();
    let own = app.config.id;
    let now = app.catalogue.current();
    let others = now.nodes().filter(|id| *id != own);
    let asked = others.map(async |id| (id, ask(app, id).await));
    let mut said: BTreeMap<_, _> = join_all(asked).await.into_iter().collect();
    said.insert(own, Said::Reports(app.images.report()));
    let said = Arc::new(said);
    *heard = Some((began, Arc::clone(&said)));
    said
}

async fn ask(app: &App, id: NodeId) -> Said {
    let Some(mut client) = app.consensus.peer(id) else {
        return Said::Silent;
    };
    match tokio::time::timeout(PATIENCE, client.languages(Blank {})).await {
        Ok(Ok(reply)) => Said::Reports(reply.into_inner().languages),
        Ok(Err(status)) if status.code() == Code::Unimplemented => Said::Older,
        Ok(Err(_)) | Err(_) => Said::Silent,
    }
}

/// Lists the languages.
pub async fn list(State(app): State<App>) -> Json<Value> {
    app.images.ask_versions();
    let said = everybody(&app, false).await;
    let now = app.catalogue.current();
    let languages: Vec<Value> = now
        .all()
        .map(|known| shown(&app, &now, known, &said))
        .collect();
    Json(json!({ "languages": languages }))
}

/// Shows one language, with what its image says of its version.
pub async fn get(
    State(app): State<App>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let name = path(name)?;
    let rules = app.rules();
    let known = rules.known(&name)?;
    // A node that is busy, or cannot run it, leaves it to the others.
    let _ = tokio::time::timeout(VERSION, app.images.version(known)).await;
    let said = everybody(&app, true).await;
    let now = app.catalogue.current();
    let known = now.find(&known.language.name).unwrap_or(known);
    Ok(answer(known, shown(&app, &now, known, &said)))
}

/// An answer with the version of the entry as its tag.
pub fn answer(known: &Known, body: Value) -> Response {
    let mut response = Json(body).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", known.version)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// A language as clients see it.
pub fn shown(app: &App, now: &Snapshot, known: &Known, said: &BTreeMap<NodeId, Said>) -> Value {
    let Known {
        language,
        image,
        definition,
        version,
        changed_ms,
        disabled,
    } = known;
    let most = &app.config.ceilings.limits;
    let nodes = on_nodes(known, said);
    let installed = nodes
        .iter()
        .find_map(|node| node["version"].as_str().map(ToOwned::to_owned));
    json!({
        "name": language.name,
        "aliases": language.aliases,
        "title": language.title,
        "extensions": language.extensions,
        "origin": if definition.is_some() { "cluster" } else { "file" },
        "version": version,
        "changed_at": view::time(*changed_ms),
        "disabled": disabled,
        "offered": now.is_offered(known),
        "installed_version": installed,
        "image": image,
        "image_digest": (language.image != *image).then_some(&language.image),
        "source": language.source,
        "compile": language.compile,
        "run": language.run,
        "env": language.env,
        "zygote": language.zygote,
        "version_command": language.version_command,
        "compiled": language.compile.is_some(),
        "limits": limits(&language.limits, most),
        "compile_limits": language.compile.as_ref().map(|_| language.compile_limits),
        "example": language.example,
        "nodes": nodes,
    })
}

/// How a language stands on each node.
pub fn on_nodes(known: &Known, said: &BTreeMap<NodeId, Said>) -> Vec<Value> {
    let needs = known.needs();
    said.iter()
        .map(|(node, said)| {
            let report = match said {
                Said::Reports(reports) => reports.iter().find(|report| report.needs == needs),
                Said::Older => {
                    return json!({
                        "node": node,
                        "state": "unknown",
                        "reason": "its program is older than this question",
                    });
                }
                Said::Silent => {
                    return json!({
                        "node": node,
                        "state": "unknown",
                        "reason": "it does not answer",
                    });
                }
            };
            let Some(report) = report else {
                return json!({
                    "node": node,
                    "state": "unknown",
                    "reason": "it does not know this definition of the language",
                });
            };
            let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            json!({
                "node": node,
                "state": report.state,
                "reason": some(&report.reason),
                "image_id": some(&report.image_id),
                "version": some(&report.version),
            })
        })
        .collect()
}

/// What a job of the language gets when it asks for nothing: all of it, also what the ledger leaves out because it is usual.
fn limits(own: &Limits, most: &Limits) -> Value {
    let room = quorun_executor::largest_file_kb(own.memory_kb);
    let file_kb = [own.file_kb, most.file_kb]
        .into_iter()
        .flatten()
        .fold(room, u64::min);
    json!({
        "cpu_ms": own.cpu_ms,
        "wall_ms": own.wall_ms,
        "memory_kb": own.memory_kb,
        "processes": own.processes,
        "output_kb": own.output_kb,
        "open_files": own.open_files,
        "file_kb": file_kb,
        "stack_kb": own.stack_kb.min(own.memory_kb),
    })
}
