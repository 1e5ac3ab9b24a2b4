//! `GET /v1/languages`: what can be run, and within which limits.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;

/// Lists the languages.
pub async fn list(State(app): State<App>) -> Json<Value> {
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
                "limits": language.limits,
                "compile_limits": language.compile.as_ref().map(|_| language.compile_limits),
                "example": language.example,
            })
        })
        .collect();
    Json(json!({ "languages": languages }))
}
