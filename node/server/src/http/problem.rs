//! Errors for clients: RFC 9457 problem details, each with what is wrong and what would be right. Which there are stands in
//! [`kinds`](super::kinds).
//!
//! `type` is a name that never changes, and no address. A client that wants to know more finds it at the node itself: the
//! answer has a `Link` with the relation `help` to the page about its type. It is not a member of the body, because a body
//! is the same whichever node it came from and whatever stands before that node, while a link is relative to where it was
//! asked for; and because programs that read bodies have no use for it.

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value};

use super::json::Json;
pub use super::kinds::Kind;
use super::kinds::PAGES;
use crate::jobs;
use crate::pressure::{Full, Thing, Whose};

/// What is quoted of a client's own words, characters: enough to know them again.
const QUOTED: usize = 100;
/// The longest name of a field, characters: names of clients can be in it.
const FIELD: usize = 200;
/// What is kept of a detail's beginning, and of its end, characters: both say something when what stands between is a
/// client's own words.
const DETAIL: (usize, usize) = (200, 600);

/// An error answer.
#[derive(Debug)]
pub struct Problem {
    kind: Kind,
    members: Map<String, Value>,
    retry_after: Option<u64>,
    close: bool,
}

impl Problem {
    /// A problem of a kind, with what is wrong in this case.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let mut problem = Self {
            kind,
            members: Map::new(),
            retry_after: None,
            close: false,
        };
        problem.put("detail", detail.into().into());
        problem
    }

    /// Something in the request is not as it should be; the field is named.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        Self::new(Kind::InvalidRequest, detail).with("field", field)
    }

    /// A word is not one of those that may stand there.
    pub fn no_such(field: &str, value: &str, should: &str) -> Self {
        let quoted = cut(value, QUOTED);
        Self::invalid(
            field,
            format!("{field} is \"{quoted}\"; it should be {should}"),
        )
        .with("value", value)
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

    /// A text, or a list, has more than is allowed.
    pub fn too_long(field: &str, value: usize, limit: usize, of: &str) -> Self {
        Self::invalid(
            field,
            format!("{field} has {value} {of}; at most {limit} are allowed"),
        )
        .with("value", value)
        .with("limit", limit)
    }

    /// The body, or a part of it, is too large.
    pub fn too_large(field: &str, limit: u64) -> Self {
        Self::new(
            Kind::TooLarge,
            format!(
                "{field} is larger than {limit} bytes, which is the most that this cluster accepts"
            ),
        )
        .with("field", field)
        .with("limit", limit)
    }

    /// Says which settings of the nodes bound what is too large, if that is the problem.
    pub fn set_by(mut self, settings: &str) -> Self {
        if self.kind == Kind::TooLarge {
            let detail = self.text("detail").unwrap_or_default();
            let detail = format!("{detail} ({settings})");
            self.put("detail", detail.into());
        }
        self
    }

    /// Adds a member. Words of the client are cut off where they are long.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        debug_assert!(
            self.kind.has(name),
            "{name} is not among the members of {:?}",
            self.kind
        );
        self.put(name, value.into());
        self
    }

    fn put(&mut self, name: &str, value: Value) {
        let value = match value {
            Value::String(text) => Value::String(match name {
                "detail" => without_middle(text, DETAIL),
                "field" => cut(&text, FIELD).into_owned(),
                _ => cut(&text, QUOTED).into_owned(),
            }),
            value => value,
        };
        self.members.insert(name.to_owned(), value);
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.members.get(name).and_then(Value::as_str)
    }

    /// The field is part of another one: its name gets what stands before it, also where the detail begins with it.
    pub fn within(mut self, prefix: &str) -> Self {
        let field = self.text("field").unwrap_or("language").to_owned();
        let detail = self.text("detail").unwrap_or_default();
        if detail.starts_with(&field) {
            let detail = format!("{prefix}{detail}");
            self.put("detail", detail.into());
        }
        self.put("field", format!("{prefix}{field}").into());
        self
    }

    /// Closes the connection behind the answer, so that the rest of the request is not read.
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    /// The status of its answer.
    pub const fn status(&self) -> StatusCode {
        self.kind.described().status
    }

    /// The same of a part of the request: the field is one of that part.
    pub fn of_part(mut self, part: &str) -> Self {
        let field = match self.text("field") {
            None | Some("body" | "Idempotency-Key") => part.to_owned(),
            Some(field) => format!("{part}.{field}"),
        };
        let detail = format!("{part}: {}", self.text("detail").unwrap_or_default());
        // Any kind can be that of a part.
        self.put("field", field.into());
        self.put("detail", detail.into());
        self
    }

    /// The body of its answer.
    pub fn to_json(&self) -> Value {
        let mut body = Map::new();
        body.insert("type".to_owned(), self.kind.uri().into());
        body.insert("title".to_owned(), self.kind.described().title.into());
        body.insert("status".to_owned(), self.status().as_u16().into());
        body.extend(self.members.clone());
        Value::Object(body)
    }

    /// Tells the client to try again soon.
    pub fn retry(self) -> Self {
        self.retry_after(1)
    }

    /// Tells the client to try again after so many seconds.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        debug_assert!(self.kind.described().retry, "{:?}", self.kind);
        self.retry_after = Some(seconds);
        self
    }
}

/// The beginning of a text, if it is long.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]).into(),
    }
}

/// A text without its middle, if it is long.
fn without_middle(text: String, (beginning, end): (usize, usize)) -> String {
    let Some(left) = text.chars().count().checked_sub(beginning + end + 1) else {
        return text;
    };
    let end = text.chars().skip(beginning + left + 1);
    text.chars()
        .take(beginning)
        .chain(['…'])
        .chain(end)
        .collect()
}

/// A client's own words, as they are quoted to it.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", cut(text, QUOTED))
}

impl Problem {
    /// The whole answer as HTTP/1.1 has it, for where there is nobody who would write it; `more` are lines of its head.
    pub fn into_http(self, more: &str) -> Vec<u8> {
        let body = self.to_json().to_string() + "\n";
        let (parts, _) = self.into_response().into_parts();
        let mut text = format!("HTTP/1.1 {}\r\n{more}", parts.status);
        for (name, value) in &parts.headers {
            // All of them are ours, and text.
            text += &format!("{name}: {}\r\n", value.to_str().unwrap_or_default());
        }
        text += &format!("content-length: {}\r\n\r\n{body}", body.len());
        text.into_bytes()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        let slug = self.kind.described().slug;
        if let Ok(link) = HeaderValue::from_str(&format!("<{PAGES}/{slug}>; rel=\"help\"")) {
            headers.insert(header::LINK, link);
        }
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
            Thing::BodyBytes => ("body_bytes", "bytes of requests and answers under way"),
        };
        let Full {
            value,
            limit,
            retry_s,
            ..
        } = full;
        let problem = match full.whose {
            Whose::Client => Self::new(
                Kind::ClientBusy,
                format!(
                    "this address would have {value} {what} at this node, and may have {limit}; let some of them end first"
                ),
            ),
            Whose::Node => Self::new(
                Kind::NodeBusy,
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
            jobs::Error::KeyConflict { job } => Self::new(Kind::IdempotencyConflict,
                format!("{detail}; use a new key for a new request"),
            )
            .with("field", "Idempotency-Key")
            .with("job", job.to_string()),
            jobs::Error::QueueFull {
                jobs,
                limit,
                retry_s,
            } => Self::new(Kind::QueueFull,
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
            } => Self::new(Kind::QueueFull,
                detail,
            )
            .with("field", "queue.bytes")
            .with("value", bytes)
            .with("limit", limit)
            .retry_after(retry_s),
            jobs::Error::OwnerBusy(busy) => Self::new(Kind::OwnerBusy,
                detail,
            )
            .with("field", busy.field)
            .with("value", busy.value)
            .with("limit", busy.limit)
            .retry_after(busy.retry_s),
            jobs::Error::DiskFull(low) => Self::new(Kind::DiskFull,
                format!("{detail}; other nodes may still take jobs"),
            )
            .with("left_mib", low.left_mib)
            .retry(),
            jobs::Error::LanguageDisabled(language) => Self::new(Kind::LanguageDisabled,
                format!("{detail}: it takes no jobs until an admin enables it"),
            )
            .with("field", "language")
            .with("language", language),
            jobs::Error::LanguageNotReady(language) => Self::new(Kind::LanguageNotReady,
                format!("{detail}; /v1/languages/{language} says how it stands on each node"),
            )
            .with("field", "language")
            .with("language", language)
            .retry(),
            jobs::Error::NotFound(job) => Self::new(Kind::UnknownJob,
                detail,
            )
            .with("job", job.to_string()),
            jobs::Error::AlreadyFinished(job) => Self::new(Kind::AlreadyFinished,
                format!("{detail}, and a result never changes"),
            )
            .with("job", job.to_string()),
            jobs::Error::Unfinished(job) => Self::new(Kind::Unfinished,
                format!("{detail}; cancel it first, or wait for its end"),
            )
            .with("job", job.to_string()),
            jobs::Error::Undelivered(job) => Self::new(Kind::Undelivered,
                format!("{detail}; it can be removed once it is delivered, or has failed for good"),
            )
            .with("job", job.to_string()),
            jobs::Error::OlderNodes => Self::new(Kind::OlderNodes,
                format!("{detail}; upgrade all nodes first, and try again a few seconds after the last one"),
            ),
            jobs::Error::NotDeliverable(job) => Self::new(Kind::NotDeliverable,
                detail,
            )
            .with("job", job.to_string()),
            jobs::Error::NoLeader | jobs::Error::Stopped => Self::new(Kind::NoQuorum,
                format!("{detail}; try again, at any node"),
            )
            .retry(),
            jobs::Error::Unknown { job } => Self::new(Kind::Unconfirmed,
                format!(
                    "{detail}: look for job {job}, or send the request again with the same Idempotency-Key"
                ),
            )
            .with("job", job.to_string())
            .retry(),
            jobs::Error::Ledger(_) => Self::new(Kind::NodeFailing,
                format!("{detail}; try another node"),
            )
            .retry(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_with_jobs_has_its_kind() {
        use jobs::Error;

        let job = quorun_ledger::JobId::from_slice(&[1; 16]).unwrap();
        for (error, kind) in [
            (Error::KeyConflict { job }, Kind::IdempotencyConflict),
            (Error::NotFound(job), Kind::UnknownJob),
            (Error::AlreadyFinished(job), Kind::AlreadyFinished),
            (Error::Unfinished(job), Kind::Unfinished),
            (Error::Undelivered(job), Kind::Undelivered),
            (Error::OlderNodes, Kind::OlderNodes),
            (Error::NotDeliverable(job), Kind::NotDeliverable),
            (Error::NoLeader, Kind::NoQuorum),
            (Error::Stopped, Kind::NoQuorum),
            (Error::Unknown { job }, Kind::Unconfirmed),
            (
                Error::Ledger(crate::ledger::ReadFailed::Stopped),
                Kind::NodeFailing,
            ),
            (
                Error::LanguageDisabled("a".to_owned()),
                Kind::LanguageDisabled,
            ),
            (
                Error::LanguageNotReady("a".to_owned()),
                Kind::LanguageNotReady,
            ),
        ] {
            let problem = Problem::from(error);
            assert_eq!(problem.kind, kind);
            assert_eq!(
                problem.retry_after.is_some(),
                kind.described().retry,
                "{kind:?}"
            );
            let body = problem.to_json();
            assert_eq!(body["type"], kind.uri());
            let mut names = body.as_object().unwrap().keys();
            let usual = ["type", "title", "status", "detail"];
            assert!(names.all(|name| kind.has(name) || usual.contains(&name.as_str())));
        }
    }

    #[test]
    fn what_is_long_is_cut_off() {
        assert_eq!(cut("aéb", 3), "aéb");
        assert_eq!(cut("aéb", 2), "aé…");
        for text in ["", "abcde", "ébcdé"] {
            assert_eq!(without_middle(text.to_owned(), (2, 3)), text);
        }
        assert_eq!(without_middle("éàcdefé".to_owned(), (2, 3)), "éà…efé");
        let problem = Problem::invalid(&"f".repeat(1000), "d".repeat(10_000));
        let body = problem.with("value", "v".repeat(1000)).to_json();
        let length = |name: &str| body[name].as_str().map(|text| text.chars().count());
        assert_eq!(length("detail"), Some(801));
        assert_eq!(length("field"), Some(201));
        assert_eq!(length("value"), Some(101));
    }
}
