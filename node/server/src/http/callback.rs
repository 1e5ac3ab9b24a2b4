//! `callback` of a job: who is to be told that it has finished, and how that went.

use std::collections::BTreeMap;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use http::{HeaderName, HeaderValue, StatusCode, Uri};
use quorun_ledger::callback::MAX_ON_DEMAND;
use quorun_ledger::{Callback, Delivery, JobState, Secret};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use url::{Host, Url};
use utoipa::ToSchema;

use super::few::FewNamed;
use super::json::Json;
use super::openapi::words;
use super::problem::{Kind, Problem, cut};
use super::view::{self, time};
use super::{App, job_id, path};
use crate::callbacks;
use crate::jobs::{Details, Error};

const MAX_URL: usize = 2048;
const MAX_HEADERS: usize = 16;
const MAX_NAME: usize = 64;
const MAX_VALUE: usize = 1024;
const MIN_SECRET: usize = 8;
const MAX_SECRET: usize = 256;

/// Headers that are the connection's or the cluster's own business.
const RESERVED: [&str; 18] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "http2-settings",
    "forwarded",
    "via",
    "date",
];

/// Who is to be told that a job has finished.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Callback)]
pub struct CallbackRequest {
    /// Where to: `http` or `https`, on the public internet, without user name and password.
    #[schema(max_length = 2048, format = "uri")]
    url: String,
    #[serde(default)]
    #[schema(schema_with = words::callback_headers)]
    headers: FewNamed<String, MAX_HEADERS>,
    /// What deliveries are signed with; no control characters.
    #[serde(default)]
    #[schema(min_length = 8, max_length = 256)]
    secret: Option<String>,
}

impl CallbackRequest {
    /// Turns a request into a callback.
    pub fn check(self, allow_private: bool) -> Result<Callback, Problem> {
        let url = url(&self.url, allow_private)?;
        let mut headers = BTreeMap::new();
        for (name, value) in self.headers.0 {
            let field = format!("callback.headers.{name}");
            let name = header_name(&field, &name)?;
            if value.len() > MAX_VALUE
                || HeaderValue::from_str(&value).is_err()
                || !value.is_ascii()
            {
                return Err(Problem::invalid(
                    &field,
                    format!("{field} should have at most {MAX_VALUE} printable ASCII characters"),
                )
                .with("limit", MAX_VALUE));
            }
            if headers.insert(name, Secret::new(value)).is_some() {
                let detail = format!("{field} is there twice, with other letters large");
                return Err(Problem::invalid(&field, detail));
            }
        }
        if let Some(secret) = &self.secret
            && (!(MIN_SECRET..=MAX_SECRET).contains(&secret.len())
                || secret.contains(char::is_control))
        {
            return Err(Problem::invalid(
                "callback.secret",
                format!(
                    "callback.secret should have {MIN_SECRET} to {MAX_SECRET} bytes and no control characters"
                ),
            )
            .with(
                "limit",
                if secret.len() < MIN_SECRET {
                    MIN_SECRET
                } else {
                    MAX_SECRET
                },
            ));
        }
        Ok(Callback {
            url,
            headers,
            secret: self.secret.map(Secret::new),
        })
    }
}

/// The URL in its usual form.
fn url(text: &str, allow_private: bool) -> Result<String, Problem> {
    let wrong = |what: &str| Problem::invalid("callback.url", format!("callback.url {what}"));
    if text.len() > MAX_URL {
        return Err(Problem::too_long(
            "callback.url",
            text.len(),
            MAX_URL,
            "bytes",
        ));
    }
    let mut url = Url::parse(text).map_err(|error| {
        wrong(&format!(
            "is not a URL: {error}; it looks like https://host/path"
        ))
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong(&format!(
            "has the scheme {}; it should be http or https",
            cut(url.scheme(), 20)
        )));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "has a user name or a password in it; send them as a header in callback.headers",
        ));
    }
    let literal = match url.host() {
        Some(Host::Ipv4(address)) => Some(address.into()),
        Some(Host::Ipv6(address)) => Some(address.into()),
        Some(Host::Domain(_)) => None,
        None => return Err(wrong("has no host")),
    };
    if literal.is_some_and(|address| !allow_private && !callbacks::is_public(address)) {
        return Err(wrong(
            "is not on the public internet; --callback-allow-private of the nodes allows others",
        ));
    }
    if url.port() == Some(0) {
        return Err(wrong("has the port 0"));
    }
    url.set_fragment(None);
    // Escapes make it longer.
    if url.as_str().len() > 3 * MAX_URL || url.as_str().parse::<Uri>().is_err() {
        return Err(wrong("is too long"));
    }
    Ok(url.into())
}

fn header_name(field: &str, name: &str) -> Result<String, Problem> {
    let name = name.to_ascii_lowercase();
    let reserved = RESERVED.contains(&name.as_str()) || name.starts_with("quorun-");
    if reserved {
        return Err(Problem::invalid(
            field,
            format!(
                "{field} is a header that Quorun sets itself, or that belongs to the connection"
            ),
        )
        .with("value", name));
    }
    if name.len() > MAX_NAME || HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(Problem::invalid(
            field,
            format!(
                "{field} is not the name of a header; it should be a token of at most {MAX_NAME} characters"
            ),
        )
        .with("value", name)
        .with("limit", MAX_NAME));
    }
    Ok(name)
}

/// How it stands with telling somebody of the job's end.
#[derive(ToSchema)]
#[schema(as = Delivery)]
#[expect(dead_code, reason = "describes what `show` makes")]
pub struct DeliveryShape {
    /// Where to.
    url: String,
    state: words::DeliveryState,
    /// When it is sent next, while it is pending.
    #[schema(required = true, format = DateTime)]
    next_attempt_at: Option<String>,
    /// What was tried.
    attempts: Vec<DeliveryAttemptShape>,
}

/// One attempt to deliver.
#[derive(ToSchema)]
#[schema(as = DeliveryAttempt)]
#[expect(dead_code, reason = "describes what `show` makes")]
pub struct DeliveryAttemptShape {
    /// When it had ended.
    #[schema(required = true, format = DateTime)]
    at: Option<String>,
    /// What was answered, if anything was.
    #[schema(required = true)]
    status: Option<u16>,
    /// Why it failed, if it did.
    #[schema(required = true)]
    error: Option<String>,
}

/// Have a callback sent again
#[utoipa::path(
    post, path = "/v1/jobs/{id}/callback", operation_id = "send_callback", tag = "jobs",
    description = "Now, whether it was received, was given up, or is to be sent later. It is tried once at least, and again as often as is left of 8 attempts; 64 in all.",
    params(("id" = String, Path, format = Uuid, description = "The job")),
    responses((status = 202, description = "It is about to be sent", body = view::JobShape, example = json!(view::example()))),
    extensions(("x-problems" = json!(["unknown-job", "not-deliverable", "no-quorum", "unconfirmed", "node-failing"]))),
)]
pub async fn again(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let id = job_id(&path(id)?)?;
    match app.jobs.tell_again(id).await {
        Ok(details) => Ok((StatusCode::ACCEPTED, Json(view::details(&details)))),
        Err(Error::NotDeliverable(_)) => Err(nothing_to_send(&app.jobs.get(id, false).await?)),
        Err(error) => Err(error.into()),
    }
}

/// Why a job's end cannot be told again.
fn nothing_to_send(details: &Details) -> Problem {
    let id = details.job.id;
    let why = match &details.callback {
        None => "has no callback".to_owned(),
        Some(_) if details.job.state != JobState::Finished => {
            "has not finished; its callback is sent when it has".to_owned()
        }
        Some(delivery) => format!(
            "has a callback that was tried {} times, and may be {MAX_ON_DEMAND} times",
            delivery.attempts.len()
        ),
    };
    Problem::new(Kind::NotDeliverable, format!("job {id} {why}")).with("job", id.to_string())
}

/// How a delivery stands. Nothing of its headers, nor its secret, is there to be shown.
pub fn show(delivery: &Delivery) -> Value {
    let attempts: Vec<Value> = delivery
        .attempts
        .iter()
        .map(|attempt| {
            let mut shown = Map::new();
            shown.insert("at".to_owned(), time(Some(attempt.at_ms)));
            shown.insert("status".to_owned(), json!(attempt.status));
            shown.insert("error".to_owned(), json!(attempt.error));
            Value::Object(shown)
        })
        .collect();
    json!({
        "url": delivery.url,
        "state": delivery.state.as_str(),
        "next_attempt_at": time(delivery.due_ms),
        "attempts": attempts,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(url: &str) -> CallbackRequest {
        CallbackRequest {
            url: url.to_owned(),
            headers: FewNamed::default(),
            secret: None,
        }
    }

    #[test]
    fn targets_in_every_spelling() {
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://0177.0.0.1/",
            "https://[::1]:8443/x",
            "http://[::ffff:10.0.0.1]/",
            "http://169.254.169.254/latest/meta-data",
            "http://１２７.0.0.1/",
            "http:/10.0.0.1/",
            "http:10.0.0.1",
        ] {
            request(url).check(false).unwrap_err();
            request(url).check(true).unwrap();
        }
        for url in [
            "",
            "/path",
            "host",
            "ftp://host/",
            "file:///etc/passwd",
            "gopher://host/",
            "javascript:alert(1)",
            "http://",
            "http://user@host/",
            "http://user:pass@host/",
            "http://host:0/",
            "http://host:65536/",
            "http://ho st/",
            "http://[::1/",
        ] {
            request(url).check(true).unwrap_err();
        }
        assert_eq!(
            request("HTTPS://Host:443/a b#c").check(false).unwrap().url,
            "https://host/a%20b"
        );
    }

    proptest! {
        #[test]
        fn what_is_taken_can_be_sent(
            url in "(https?://)?[a-z0-9.:\\[\\]@/?#% é-]{0,40}|.{0,40}",
            name in "[A-Za-z-]{0,20}|.{0,20}", value in ".{0,20}", secret in prop::option::of(".{0,20}"),
        ) {
            let headers = FewNamed([(name, value)].into());
            if let Ok(callback) = (CallbackRequest { url, headers, secret }).check(true) {
                prop_assert!(callback.url.parse::<Uri>().is_ok());
                let again = request(&callback.url).check(true).unwrap();
                prop_assert_eq!(again.url, callback.url);
                for (name, value) in callback.headers {
                    prop_assert!(HeaderName::from_bytes(name.as_bytes()).is_ok());
                    prop_assert!(HeaderValue::from_str(value.reveal()).is_ok());
                }
            }
        }
    }
}
