//! Reading request bodies within their bounds.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize as _;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value;
use serde_json::value::RawValue;
use serde_path_to_error::Segment;

use super::few;
use super::problem::{Kind, Problem, cut};

/// What is read of a body that was refused, and how long: a client that sends all of its body before it looks for the
/// answer would otherwise find the connection broken, and not learn why.
const DISCARD_BYTES: usize = 16 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// How long a body may take to arrive: a client must not hold memory for as long as it likes.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Reads a body of at most `limit` bytes. What is larger is refused, and never kept in memory.
pub async fn read(headers: &HeaderMap, mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large = |size: Option<u64>| {
        let problem = Problem::too_large("body", limit as u64);
        match size {
            Some(size) => problem.with("value", size),
            None => problem,
        }
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        // A client that asks first sends nothing once it has its answer.
        if !headers.contains_key(header::EXPECT) {
            discard(body).await;
        }
        return Err(too_large(announced));
    }
    let encoding = headers.get(header::CONTENT_ENCODING);
    if let Some(encoding) = encoding.filter(|encoding| *encoding != "identity") {
        return Err(Problem::new(
            Kind::EncodedBody,
            "the body has a Content-Encoding; send it as it is",
        )
        .with("field", header::CONTENT_ENCODING.as_str())
        .with("value", String::from_utf8_lossy(encoding.as_bytes())));
    }
    let arriving = Limited::new(&mut body, limit).collect();
    let Ok(arrived) = tokio::time::timeout(BODY_TIME, arriving).await else {
        return Err(Problem::new(
            Kind::SlowBody,
            format!("the body took longer than {BODY_TIME:?}"),
        )
        .with("field", "body")
        .with("limit", BODY_TIME.as_secs()));
    };
    match arrived {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            discard(body).await;
            Err(too_large(None))
        }
        Err(error) => Err(Problem::new(
            Kind::IncompleteBody,
            format!("the body broke off: {error}"),
        )
        .with("field", "body")),
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
        return match serde_json::from_slice::<IgnoredAny>(bytes) {
            Ok(_) => Err(Problem::invalid("body", "the body should be a JSON object")),
            Err(error) => Err(not_json(&error)),
        };
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        if error.inner().is_data() {
            of_another_shape(bytes, &error)
        } else {
            not_json(error.inner())
        }
    })?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

/// What is in these, or in what somebody took for them, may be meant for nobody's eyes, and is not sent back.
const SECRET: [&str; 3] = ["callback", "env", "zygote"];

fn of_another_shape(
    bytes: &[u8],
    error: &serde_path_to_error::Error<serde_json::Error>,
) -> Problem {
    let (path, message) = (error.path(), error.inner().to_string());
    let named = |what: &str| {
        let name = message.strip_prefix(what)?.split('`').nth(1)?;
        Some(name.to_owned())
    };
    let mut field = path.to_string();
    let of_field = ["missing field ", "duplicate field "]
        .iter()
        .find_map(|what| named(what));
    let absent = of_field.is_some() || message.starts_with("unknown field ");
    if let Some(name) = of_field
        && path
            .iter()
            .next_back()
            .is_none_or(|last| !is_key(last, &name))
    {
        field = match field.as_str() {
            "." => name,
            _ => format!("{field}.{name}"),
        };
    }
    // A field without a name is as good as none.
    if matches!(field.as_str(), "." | "") {
        field = "body".to_owned();
    }
    if let Some((count, most)) = few::too_many(&message) {
        return Problem::too_long(&field, count, most, "items");
    }
    let root = path.iter().next();
    let secret = root.is_some_and(|root| SECRET.iter().any(|name| is_key(root, name)));
    let said = match message.rsplit_once(", expected ") {
        Some((_, expected)) if secret && !absent => format!("invalid type, expected {expected}"),
        _ => message.clone(),
    };
    let problem = Problem::invalid(&field, format!("{}: {said}", cut(&field, 200)));
    match value_at(bytes, path) {
        Some(value) if !secret && !absent => problem.with("value", value),
        _ => problem,
    }
}

fn is_key(segment: &Segment, name: &str) -> bool {
    matches!(segment, Segment::Map { key } if key == name)
}

/// The value at a place of a JSON text, if it is one that can be shown: no list, and no object.
fn value_at(bytes: &[u8], path: &serde_path_to_error::Path) -> Option<Value> {
    let path: Vec<&Segment> = path.iter().collect();
    let mut found = None;
    let look = Look {
        path: &path,
        found: &mut found,
    };
    // It ends with an error where it has found what it looks for: the rest is of no interest.
    let _ = look.deserialize(&mut serde_json::Deserializer::from_slice(bytes));
    found.filter(|value| !value.is_array() && !value.is_object())
}

/// Looks for one value without keeping the others.
struct Look<'a> {
    path: &'a [&'a Segment],
    found: &'a mut Option<Value>,
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.path.is_empty() {
            let raw = <&RawValue>::deserialize(deserializer)?.get();
            if !raw.starts_with(['[', '{']) {
                *self.found = serde_json::from_str(raw).ok();
            }
            return Ok(());
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the path leads through")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((first, path)) = self.path.split_first() else {
            return Ok(());
        };
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if is_key(first, &key) {
                let found = self.found;
                return map.next_value_seed(Look { path, found });
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((Segment::Seq { index }, path)) = self.path.split_first() else {
            return Ok(());
        };
        for _ in 0..*index {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        let found = self.found;
        list.next_element_seed(Look { path, found })?;
        Ok(())
    }
}

fn not_json(error: &serde_json::Error) -> Problem {
    Problem::new(
        Kind::NotJson,
        format!("the body cannot be parsed as JSON in UTF-8: {error}"),
    )
    .with("field", "body")
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};

    use super::*;

    fn body(chunks: Vec<Result<&'static str, std::io::Error>>, ends: bool) -> Body {
        let chunks = stream::iter(chunks);
        if ends {
            Body::from_stream(chunks)
        } else {
            Body::from_stream(chunks.chain(stream::pending()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_arrives_whole_in_time_and_within_bounds() {
        let whole = read(&HeaderMap::new(), body(vec![Ok("ab"), Ok("c")], true), 3).await;
        assert_eq!(whole.unwrap(), "abc");
        let broken = std::io::Error::other("broken");
        for (body, kind) in [
            (body(vec![Ok("abcd")], true), Kind::TooLarge),
            (body(vec![Ok("ab"), Ok("cd")], false), Kind::TooLarge),
            (body(vec![Ok("ab")], false), Kind::SlowBody),
            (
                body(vec![Ok("ab"), Err(broken)], true),
                Kind::IncompleteBody,
            ),
        ] {
            let problem = read(&HeaderMap::new(), body, 3).await.unwrap_err();
            assert_eq!(problem.to_json()["type"], kind.uri());
            assert_eq!(problem.to_json()["field"], "body");
        }
    }
}
