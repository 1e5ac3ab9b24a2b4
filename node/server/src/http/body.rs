//! Reading request bodies within their bounds.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// What is read of a body that was refused, and how long: a client that sends all of its body before it looks for the
/// answer would otherwise find the connection broken, and not learn why.
const DISCARD_BYTES: usize = 16 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// How long a body may take to arrive: a client must not hold memory for as long as it likes.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Reads a body of at most `limit` bytes. What is larger is refused, and never kept in memory.
pub async fn read(headers: &HeaderMap, mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::too_large("body", limit as u64);
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        // A client that asks first sends nothing once it has its answer.
        if !headers.contains_key(header::EXPECT) {
            discard(body).await;
        }
        return Err(too_large());
    }
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "encoded-body",
            "The body is compressed",
            "the body has a Content-Encoding; send it as it is",
        ));
    }
    let arriving = Limited::new(&mut body, limit).collect();
    let Ok(arrived) = tokio::time::timeout(BODY_TIME, arriving).await else {
        return Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "slow-body",
            "The body did not arrive in time",
            format!("the body took longer than {BODY_TIME:?}"),
        ));
    };
    match arrived {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            discard(body).await;
            Err(too_large())
        }
        Err(error) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "incomplete-body",
            "The body did not arrive whole",
            error.to_string(),
        )),
    }
}

/// Reads the rest of a body away, within bounds.
async fn discard(mut body: Body) {
    let rest = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > DISCARD_BYTES {
                return;
            }
        }
    };
    // Whether the rest has come or the time is up, the answer is the same.
    let _ = tokio::time::timeout(DISCARD_TIME, rest).await;
}

/// Reads a JSON object. What is not JSON is 400, what is JSON of another shape is 422 with the field named.
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // serde would also take an array with the fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
            Ok(_) => Err(Problem::invalid("body", "the body should be a JSON object")),
            Err(error) => Err(not_json(&error)),
        };
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() {
            let field = if path == "." { "body".to_owned() } else { path };
            Problem::invalid(&field, format!("{field}: {inner}"))
        } else {
            not_json(&inner)
        }
    })?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "not-json",
        "The body is not JSON",
        format!("the body cannot be parsed as JSON in UTF-8: {error}"),
    )
}
