//! Errors for clients: RFC 9457 problem details, each with what is wrong and what would be right.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value};

use crate::jobs;
use crate::pressure::{Full, Thing, Whose};

/// An error answer.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    members: Map<String, Value>,
    retry_after: Option<u64>,
    close: bool,
}

impl Problem {
    /// A problem of a kind (the last part of its `type`), with what is wrong in this case.
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        let mut members = Map::new();
        members.insert("detail".to_owned(), Value::String(detail.into()));
        Self {
            status,
            kind,
            title,
            members,
            retry_after: None,
            close: false,
        }
    }

    /// Something in the request is not as it should be; the field is named.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid-request",
            "The request is not valid",
            detail,
        )
        .with("field", field)
    }

    /// A number is over what is allowed.
    pub fn over_limit(field: &str, value: u64, limit: u64) -> Self {
        Self::invalid(
            field,
            format!("{field} is {value}; at most {limit} is allowed"),
        )
        .with("value", value)
        .with("limit", limit)
    }

    /// The body, or a part of it, is too large.
    pub fn too_large(field: &str, limit: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The request is too large",
            format!("the {field} is larger than {limit} bytes, which is the most that this cluster accepts"),
        )
        .with("field", field)
        .with("limit", limit)
    }

    /// Adds a member.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// The field is part of another one: its name gets what stands before it, also in the detail.
    pub fn within(mut self, prefix: &str) -> Self {
        if let Some(Value::String(field)) = self.members.get("field").cloned() {
            let whole = format!("{prefix}{field}");
            if let Some(Value::String(detail)) = self.members.get_mut("detail") {
                *detail = detail.replace(&field, &whole);
            }
            self.members.insert("field".to_owned(), whole.into());
        } else {
            self.members
                .insert("field".to_owned(), format!("{prefix}language").into());
        }
        self
    }

    /// Closes the connection behind the answer, so that the rest of the request is not read.
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    /// The status of its answer.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The same of a part of the request: the field is one of that part.
    pub fn of_part(mut self, part: &str) -> Self {
        let field = match self.members.get("field").and_then(Value::as_str) {
            None | Some("body" | "Idempotency-Key") => part.to_owned(),
            Some(field) => format!("{part}.{field}"),
        };
        self.members.insert("field".to_owned(), field.into());
        if let Some(Value::String(detail)) = self.members.get_mut("detail") {
            *detail = format!("{part}: {detail}");
        }
        self
    }

    /// The body of its answer.
    pub fn to_json(&self) -> Value {
        let mut body = Map::new();
        body.insert(
            "type".to_owned(),
            format!("urn:quorun:error:{}", self.kind).into(),
        );
        body.insert("title".to_owned(), self.title.into());
        body.insert("status".to_owned(), self.status.as_u16().into());
        body.extend(self.members.clone());
        Value::Object(body)
    }

    /// Tells the client to try again soon.
    pub fn retry(self) -> Self {
        self.retry_after(1)
    }

    /// Tells the client to try again after so many seconds.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        headers.insert(
            HeaderName::from_static("x-content-type-options"),
            HeaderValue::from_static("nosniff"),
        );
        response
    }
}

impl From<Full> for Problem {
    fn from(full: Full) -> Self {
        let (field, what) = match full.thing {
            Thing::Connections => ("connections", "open connections"),
            Thing::Waiting => ("waiting", "requests that wait for a job"),
            Thing::BodyBytes => ("body_bytes", "bytes of request bodies under way"),
        };
        let Full {
            value,
            limit,
            retry_s,
            ..
        } = full;
        let problem = match full.whose {
            Whose::Client => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "client-busy",
                "This client has too much under way",
                format!(
                    "this address would have {value} {what} at this node, and may have {limit}; let some of them end first"
                ),
            ),
            Whose::Node => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "node-busy",
                "This node has too much under way",
                format!(
                    "this node would have {value} {what}, and may have {limit}; try again, or another node"
                ),
            ),
        };
        problem
            .with("field", field)
            .with("value", value)
            .with("limit", limit)
            .retry_after(retry_s)
    }
}

impl From<jobs::Error> for Problem {
    fn from(error: jobs::Error) -> Self {
        let detail = error.to_string();
        match error {
            jobs::Error::KeyConflict { job } => Self::new(
                StatusCode::CONFLICT,
                "idempotency-conflict",
                "The Idempotency-Key was used for another request",
                format!("{detail}; use a new key for a new request"),
            )
            .with("job", job.to_string()),
            jobs::Error::QueueFull {
                jobs,
                limit,
                retry_s,
            } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "queue-full",
                "Too many jobs are waiting",
                if jobs < limit {
                    format!("{jobs} jobs are waiting and {limit} may, so that these do not fit in as a whole")
                } else {
                    detail
                },
            )
            .with("field", "queue.jobs")
            .with("value", jobs)
            .with("limit", limit)
            .retry_after(retry_s),
            jobs::Error::QueueHeavy {
                bytes,
                limit,
                retry_s,
            } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "queue-full",
                "The waiting jobs hold too much",
                detail,
            )
            .with("field", "queue.bytes")
            .with("value", bytes)
            .with("limit", limit)
            .retry_after(retry_s),
            jobs::Error::OwnerBusy(busy) => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "owner-busy",
                "The owner of this token has too much under way",
                detail,
            )
            .with("field", busy.field)
            .with("value", busy.value)
            .with("limit", busy.limit)
            .retry_after(busy.retry_s),
            jobs::Error::DiskFull(low) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "disk-full",
                "This node has too little room on its disk",
                format!("{detail}; other nodes may still take jobs"),
            )
            .with("left_mib", low.left_mib)
            .retry(),
            jobs::Error::LanguageDisabled(language) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "language-disabled",
                "The language is disabled",
                format!("{detail}: it takes no jobs until an admin enables it"),
            )
            .with("field", "language")
            .with("language", language),
            jobs::Error::LanguageNotReady(language) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "language-not-ready",
                "No node can run the language yet",
                format!("{detail}; /v1/languages/{language} says how it stands on each node"),
            )
            .with("field", "language")
            .with("language", language)
            .retry(),
            jobs::Error::NotFound(job) => Self::new(
                StatusCode::NOT_FOUND,
                "unknown-job",
                "There is no such job",
                detail,
            )
            .with("job", job.to_string()),
            jobs::Error::AlreadyFinished(job) => Self::new(
                StatusCode::CONFLICT,
                "already-finished",
                "The job has already finished",
                format!("{detail}, and a result never changes"),
            )
            .with("job", job.to_string()),
            jobs::Error::NoLeader | jobs::Error::Stopped => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no-quorum",
                "The cluster has no leader that this node can reach",
                format!("{detail}; try again, at any node"),
            )
            .retry(),
            jobs::Error::Unknown { job } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unconfirmed",
                "The cluster did not confirm the request in time",
                format!(
                    "{detail}: look for job {job}, or send the request again with the same Idempotency-Key"
                ),
            )
            .with("job", job.to_string())
            .retry(),
            jobs::Error::Ledger(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "node-failing",
                "This node cannot read its ledger",
                format!("{detail}; try another node"),
            )
            .retry(),
        }
    }
}
