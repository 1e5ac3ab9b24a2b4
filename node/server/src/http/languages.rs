//! `/v1/languages`: what can be run, on which nodes, and within which limits. Reading is for everybody; setting, disabling
//! and removing is for admins, and stands in `languages_set`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use http::{HeaderValue, header};
use quorun_ledger::{Limits, NodeId};
use quorun_proto::v1::{Blank, LanguageReport};
use serde::Serialize;
use serde_json::{Value, json};
use tonic::Code;
use utoipa::ToSchema;

use super::json::Json;
use super::openapi::words;
use super::problem::{Kind, Problem};
use super::{App, path, view};
use crate::catalogue::{Known, Snapshot};
use crate::jobs::Error;

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
/// What they have said a moment ago, and when they were asked and had answered.
pub type Heard = tokio::sync::Mutex<Option<(Instant, Instant, Everybody)>>;

/// Asks all nodes that are not lost, unless that was done a moment ago; `fresh`: unless it was begun since this was called.
pub async fn everybody(app: &App, fresh: bool) -> Everybody {
    let called = Instant::now();
    let mut heard = app.peers_languages.lock().await;
    // A node that hangs takes longer than this is fresh: it counts from the end, or each of many would ask again.
    if let Some((began, ended, said)) = &*heard
        && (*began >= called || !fresh && ended.elapsed() < FRESH)
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
    *heard = Some((began, Instant::now(), Arc::clone(&said)));
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

/// Why a submission was not taken. Where no node can run its language, the nodes are asked whether that may soon change: a
/// client that tries again for as long as it is told to must not do so for ever.
pub async fn refusal(app: &App, error: Error) -> Problem {
    if let Error::LanguageNotReady(language) = &error {
        let said = everybody(app, false).await;
        let current = app.catalogue.current();
        let known = current.all().find(|k| k.language.name == *language);
        // A node that is only away for a while may bring it back.
        let known = known.filter(|known| !current.may_come_back(&known.needs()));
        if let Some(problem) = known.and_then(|known| unavailable(known, &said)) {
            return problem;
        }
    }
    error.into()
}

/// That no node has a language, if every node that lives has said so: none has it, gets it, or has yet to look.
fn unavailable(known: &Known, said: &BTreeMap<NodeId, Said>) -> Option<Problem> {
    let name = known.language.name.as_str();
    let nodes = on_nodes(known, said);
    if nodes.is_empty() || nodes.iter().any(|node| node["state"] != "failed") {
        return None;
    }
    let reasons = nodes.iter().map(|node| {
        let reason = node["reason"].as_str().unwrap_or("it does not say why");
        format!("node {}: {reason}", node["node"])
    });
    let reasons: Vec<String> = reasons.collect();
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|node| json!({ "node": node["node"], "reason": node["reason"] }))
        .collect();
    Some(
        Problem::new(
            Kind::LanguageUnavailable,
            format!("no node has the language {name}: {}", reasons.join("; ")),
        )
        .with("field", "language")
        .with("language", name)
        .with("nodes", nodes),
    )
}

/// A language.
#[derive(ToSchema)]
#[schema(as = Language)]
#[expect(dead_code, reason = "describes what `shown` makes")]
pub struct LanguageShape {
    name: String,
    aliases: Vec<String>,
    title: String,
    extensions: Vec<String>,
    origin: words::Origin,
    /// Counts the changes, and is the `ETag`; 0 is a language that is as the files say.
    version: u64,
    #[schema(required = true, format = DateTime)]
    changed_at: Option<String>,
    /// It takes no submissions.
    disabled: bool,
    /// It takes submissions: it is not disabled, and a node that lives can run it.
    offered: bool,
    /// What `version_command` said, on any of the nodes.
    #[schema(required = true)]
    installed_version: Option<String>,
    image: String,
    /// The image by its digest, if it is pinned.
    #[schema(required = true)]
    image_digest: Option<String>,
    /// The file name that a single source gets.
    source: String,
    #[schema(required = true)]
    compile: Option<Vec<String>>,
    run: Vec<String>,
    env: BTreeMap<String, String>,
    zygote: BTreeMap<String, String>,
    #[schema(required = true)]
    version_command: Option<Vec<String>>,
    /// It has a compile step.
    compiled: bool,
    /// What a job gets that asks for nothing.
    limits: LanguageLimitsShape,
    #[schema(required = true)]
    compile_limits: Option<StepLimitsShape>,
    /// A program in it.
    example: String,
    /// How it stands on each node that lives.
    nodes: Vec<LanguageNodeShape>,
    /// Of the answer to a change: whether all nodes have it.
    #[schema(nullable = false)]
    ready: Option<bool>,
}

/// Limits of a language's programs.
#[derive(ToSchema)]
#[schema(as = LanguageLimits)]
#[expect(dead_code, reason = "describes what `limits` makes")]
pub struct LanguageLimitsShape {
    cpu_ms: u64,
    wall_ms: u64,
    memory_kb: u64,
    processes: u64,
    output_kb: u64,
    open_files: u64,
    file_kb: u64,
    stack_kb: u64,
}

/// Times of a compile step.
#[derive(ToSchema)]
#[schema(as = CompileLimits)]
#[expect(dead_code, reason = "describes what `shown` makes")]
pub struct StepLimitsShape {
    cpu_ms: u64,
    wall_ms: u64,
}

/// How a language stands on a node.
#[derive(ToSchema)]
#[schema(as = LanguageNode)]
#[expect(dead_code, reason = "describes what `on_nodes` makes")]
pub struct LanguageNodeShape {
    node: u64,
    state: words::ImageState,
    /// Why it failed, or how far a pull is.
    reason: Option<String>,
    /// What stands for the content of the image.
    image_id: Option<String>,
    /// What `version_command` said there.
    version: Option<String>,
}

/// All languages.
#[derive(Debug, Serialize, ToSchema)]
pub struct LanguageList {
    #[schema(value_type = Vec<LanguageShape>)]
    languages: Vec<Value>,
}

/// A language, for the document.
pub fn example() -> Value {
    json!({
        "name": "lua", "aliases": ["lua5"], "title": "lua", "extensions": ["lua"], "origin": "cluster", "version": 1,
        "changed_at": "2026-01-01T00:00:00.000Z", "disabled": false, "offered": true, "installed_version": "Lua 5.4.7",
        "image": "nickblah/lua:5.4", "image_digest": null, "source": "main.lua", "compile": null, "run": ["lua", "{source}"],
        "env": {}, "zygote": {}, "version_command": ["lua", "-v"], "compiled": false,
        "limits": { "cpu_ms": 2000, "wall_ms": 5000, "memory_kb": 131_072, "processes": 64, "output_kb": 400,
            "open_files": 256, "file_kb": 65_536, "stack_kb": 65_536 },
        "compile_limits": null, "example": "print(\"hello\")",
        "nodes": [{ "node": 1, "state": "present", "reason": null, "image_id": "sha256:0a1b", "version": "Lua 5.4.7" }],
    })
}

/// The same as the answer to a change.
pub fn example_of_change() -> Value {
    let mut language = example();
    language["ready"] = true.into();
    language
}

/// List the languages
#[utoipa::path(
    get, path = "/v1/languages", operation_id = "list_languages", tag = "languages",
    description = "What can be run, on which nodes, with limits and an example for each.",
    responses((status = 200, description = "All of them", body = LanguageList, example = json!({ "languages": [example()] }))),
)]
pub async fn list(State(app): State<App>) -> Json<LanguageList> {
    app.images.ask_versions();
    let said = everybody(&app, false).await;
    let now = app.catalogue.current();
    let languages = now.all().map(|known| shown(&app, &now, known, &said));
    Json(LanguageList {
        languages: languages.collect(),
    })
}

/// Look at a language
#[utoipa::path(
    get, path = "/v1/languages/{name}", operation_id = "get_language", tag = "languages",
    description = "With what its image says of its version; waits up to 10 s for that if nobody has asked for it before.",
    params(("name" = String, Path, description = "Its name, or an alias")),
    responses((status = 200, description = "The language", body = LanguageShape,
        headers(("ETag" = String, description = "Its version, for `If-Match`")), example = json!(example()))),
    extensions(("x-problems" = json!(["unknown-language"]))),
)]
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
