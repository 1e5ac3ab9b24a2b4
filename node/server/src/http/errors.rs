//! `GET /errors` and `GET /errors/{type}`: what each type of problem means, and what to do about it, to be read by people.
//! The answers of all problems link to the page of their type.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};

use super::kinds::{self, Kind};
use super::path;
use super::problem::{Problem, quoted};

const MARKDOWN: HeaderValue = HeaderValue::from_static("text/markdown; charset=utf-8");

/// Look at all types of problem
#[utoipa::path(
    get, path = "/errors", operation_id = "list_errors", tag = "description",
    description = "What each type of problem means, and what to do about it, for people. The answers of all problems link to the part of their type.",
    responses((status = 200, description = "The page, in Markdown", body = String, content_type = "text/markdown",
        example = json!("# Errors\n\n| type | status | title |\n"))),
)]
pub async fn all() -> Response {
    markdown(format!("# Errors\n\n{}", kinds::page()))
}

/// Look at a type of problem
#[utoipa::path(
    get, path = "/errors/{type}", operation_id = "get_error", tag = "description",
    params(("type" = String, Path, description = "The last part of its name")),
    responses((status = 200, description = "What it means, and what to do about it, in Markdown", body = String, content_type = "text/markdown",
        example = json!("## queue-full\n"))),
    extensions(("x-problems" = json!(["unknown-path"]))),
)]
pub async fn one(slug: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let slug = path(slug)?;
    let Some(kind) = Kind::of_slug(&slug) else {
        return Err(Problem::new(
            Kind::UnknownPath,
            format!("{} is no type of problem; /errors shows all", quoted(&slug)),
        ));
    };
    Ok(markdown(kind.section()))
}

fn markdown(text: String) -> Response {
    let nosniff = HeaderValue::from_static("nosniff");
    let headers = [
        (header::CONTENT_TYPE, MARKDOWN),
        (header::X_CONTENT_TYPE_OPTIONS, nosniff),
    ];
    (headers, text).into_response()
}
