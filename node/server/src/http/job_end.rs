//! `DELETE /v1/jobs/{id}`: cancel a job, or remove one that has finished.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::json::Json;
use super::problem::Problem;
use super::query::{Asked, Parameters};
use super::{App, job_id, path, view};

/// Cancel or remove a job
#[utoipa::path(
    delete, path = "/v1/jobs/{id}", operation_id = "cancel_job", tag = "jobs",
    description = "Cancels a job that has not finished. With `purge=true`, removes one that has, with all that was submitted and printed, before its retention is over.",
    params(
        ("id" = String, Path, format = Uuid, description = "The job"),
        ("purge" = Option<bool>, Query, description = "Remove a finished job"),
    ),
    responses(
        (status = 200, description = "It is cancelled, or will be as soon as its node has ended it", body = view::JobShape,
            example = json!(view::example_of_queued())),
        (status = 204, description = "With `purge`: it is no longer there"),
    ),
    extensions(("x-problems" = json!([
        "unknown-job", "already-finished", "unfinished", "undelivered", "older-nodes", "no-quorum", "unconfirmed", "node-failing",
    ]))),
)]
pub async fn delete(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
    query: Asked,
) -> Result<Response, Problem> {
    let id = job_id(&path(id)?)?;
    if purges(query)? {
        app.jobs.purge(id).await?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let details = app.jobs.cancel(id).await?;
    Ok(Json(view::details(&details)).into_response())
}

/// Whether a finished job is to be removed.
fn purges(query: Asked) -> Result<bool, Problem> {
    let query = Parameters::new(query)?;
    match query.one("purge")? {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(Problem::no_such(
            "purge",
            other,
            "true, or false (the default)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::Query;
    use proptest::prelude::*;

    use super::super::fuzz;
    use super::*;

    fn read(query: &str) -> Result<bool, Problem> {
        let uri: http::Uri = format!("/?{query}").parse().unwrap();
        purges(Query::try_from_uri(&uri))
    }

    #[test]
    fn only_true_removes_a_job() {
        assert!(!read("").unwrap());
        assert!(!read("purge=false").unwrap());
        assert!(read("purge=true").unwrap());
        for query in ["purge", "purge=1", "purge=true&purge=true"] {
            fuzz::is_a_good_answer(&read(query).unwrap_err());
        }
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused_in_words(query in fuzz::queries(&["purge", "consistency"])) {
            if let Err(problem) = purges(Query::try_from_uri(&query)) {
                fuzz::is_a_good_answer(&problem);
            }
        }
    }
}
