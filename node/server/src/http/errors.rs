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

/// Shows all types.
pub async fn all() -> Response {
    markdown(format!("# Errors\n\n{}", kinds::page()))
}

/// Shows one type, by the last part of its name.
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
