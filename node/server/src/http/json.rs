//! JSON as it is answered: with the end of a line behind it, so that what a terminal shows next begins a line of its own.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde::Serialize;

use super::problem::{Kind, Problem};

/// An answer in JSON, in the place of axum's own.
#[derive(Debug)]
pub struct Json<T>(pub T);

/// A value as the body of an answer.
pub fn line(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match line(&self.0) {
            Ok(line) => {
                let json = HeaderValue::from_static("application/json");
                ([(header::CONTENT_TYPE, json)], line).into_response()
            }
            // Only for what JSON has no words for, of which an answer has none.
            Err(error) => Problem::new(
                Kind::Internal,
                format!("the answer could not be written as JSON: {error}"),
            )
            .into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::*;

    async fn body(response: Response) -> Vec<u8> {
        response
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .to_vec()
    }

    #[tokio::test]
    async fn every_answer_ends_its_line() {
        let answer = Json(json!({ "a": [1, "b\n"] })).into_response();
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert_eq!(body(answer).await, b"{\"a\":[1,\"b\\n\"]}\n");
        let problem = || Problem::invalid("a", "a is missing");
        let answer = problem().into_response();
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let of_problem = body(answer).await;
        assert!(of_problem.ends_with(b"}\n"));
        // Also where it is written by hand, with the right length.
        let whole = String::from_utf8(problem().into_http("")).unwrap();
        let (head, body) = whole.split_once("\r\n\r\n").unwrap();
        assert_eq!(body.as_bytes(), of_problem);
        let length = format!("content-length: {}", body.len());
        assert!(head.split("\r\n").any(|line| line == length), "{head}");
    }
}
