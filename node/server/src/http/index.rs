//! `GET /`: what this is, and where everything else is, for whoever comes without knowing.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Uri, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::json::Json;
use super::{App, address};
use crate::VERSION;

/// What this is, and where the rest is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Index {
    /// `Quorun`.
    name: &'static str,
    /// That of this node's program.
    version: &'static str,
    /// This API, for people.
    docs: &'static str,
    /// This API, for programs.
    openapi: &'static str,
    /// What each type of problem means.
    errors: &'static str,
    /// Whether the process runs.
    health: &'static str,
    /// Whether the node can take requests and work.
    readiness: &'static str,
}

const INDEX: Index = Index {
    name: "Quorun",
    version: VERSION,
    docs: "/docs",
    openapi: "/openapi.json",
    errors: "/errors",
    health: "/healthz",
    readiness: "/readyz",
};

/// Ask what this is
#[utoipa::path(
    get, path = "/", operation_id = "get_index", tag = "description",
    description = "And where the rest is: as text, or as JSON for whoever names `application/json` in `Accept`.",
    responses((status = 200, description = "What this is", content(
        (Index = "application/json", example = json!({
            "name": "Quorun", "version": "0.1.0", "docs": "/docs", "openapi": "/openapi.json", "errors": "/errors",
            "health": "/healthz", "readiness": "/readyz",
        })),
        (String = "text/plain", example = json!("Quorun 0.1.0 runs other people's code.\n")),
    ))),
)]
pub async fn show(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let mut response = if prefers_json(&headers) {
        Json(INDEX).into_response()
    } else {
        let address = address::asked_by(&uri, &headers, app.config.access.certificate.is_some());
        text(&address).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn text(address: &str) -> String {
    let Index {
        name,
        version,
        docs,
        openapi,
        errors,
        health,
        readiness,
    } = INDEX;
    format!(
        "{name} {version} runs other people's code.\n\n  \
         curl --data-binary 'print(6 * 7)' {address}/lang/python\n\n\
         {docs:14} this API, for people\n\
         {openapi:14} this API, for programs\n\
         {errors:14} what each type of error means\n\
         {health:14} whether this process runs\n\
         {readiness:14} whether this node can take requests and work\n"
    )
}

/// Whether JSON is named among what the answer may be, and no text is named that would do better.
fn prefers_json(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).iter();
    let (mut json, mut text) = (0.0_f32, 0.0_f32);
    for range in lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
    {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
        let weight = weight.unwrap_or(1.0);
        match kind.as_str() {
            "application/json" => json = json.max(weight),
            "text/plain" | "text/html" | "text/*" => text = text.max(weight),
            _ => {}
        }
    }
    json > text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_names_json_gets_it() {
        for (accept, json) in [
            (&[][..], false),
            (&["*/*"], false),
            (&["application/json"], true),
            (&["Application/JSON; charset=utf-8"], true),
            (&["application/json, text/plain, */*"], false),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], false),
            (&["text/plain;q=0.5, application/json;q=0.6"], true),
            (&["text/plain", "application/json"], false),
            (&["application/json;q=0"], false),
            (&["application/json;q=none"], true),
            (&[",;,;q=1", ";"], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in accept {
                headers.append(header::ACCEPT, line.parse().unwrap());
            }
            assert_eq!(prefers_json(&headers), json, "{accept:?}");
        }
    }

    #[test]
    fn the_text_names_what_the_json_names() {
        let said = text("http://host:1");
        let json = serde_json::to_value(INDEX).unwrap();
        for value in json.as_object().unwrap().values() {
            assert!(said.contains(value.as_str().unwrap()), "{value}");
        }
        assert!(said.contains(" http://host:1/lang/python\n"));
    }
}
