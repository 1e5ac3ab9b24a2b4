//! `GET /v1/languages`: what can be run, and within which limits.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use quorun_ledger::Limits;

use super::App;

/// Lists the languages.
pub async fn list(State(app): State<App>) -> Json<Value> {
    let most = &app.config.ceilings.limits;
    let languages: Vec<Value> = app
        .languages
        .iter()
        .map(|language| {
            json!({
                "name": language.name,
                "aliases": language.aliases,
                "title": language.title,
                "extensions": language.extensions,
                "image": language.image,
                "source": language.source,
                "compiled": language.compile.is_some(),
                "limits": limits(&language.limits, most),
                "compile_limits": language.compile.as_ref().map(|_| language.compile_limits),
                "example": language.example,
            })
        })
        .collect();
    Json(json!({ "languages": languages }))
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
