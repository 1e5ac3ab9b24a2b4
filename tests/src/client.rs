//! A client of one node.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

use crate::{Figures, LONG};

/// The content type of every error.
const PROBLEM: &str = "application/problem+json";

/// What a node answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}, {}", self.text()))
    }

    /// A header's text; empty when it is missing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The JSON of an answer that must have this status.
    ///
    /// # Panics
    /// When it has another.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self.json()
    }

    /// The members of an error as RFC 9457 has it; `kind` is the last part of its type.
    ///
    /// # Panics
    /// When the answer is anything else.
    pub fn problem(&self, status: u16, kind: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.header("content-type"), PROBLEM, "{}", self.text());
        let body = self.json();
        assert_eq!(body["type"], format!("urn:quorun:error:{kind}"), "{body}");
        assert_eq!(body["status"], status, "{body}");
        for member in ["title", "detail"] {
            let text = body[member].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{member} is empty: {body}");
        }
        let help = format!("</errors/{kind}>; rel=\"help\"");
        assert_eq!(self.header("link"), help, "{body}");
        is_documented(kind, &body);
        body
    }
}

/// That a problem is as the page about its type says.
fn is_documented(kind: &str, body: &Value) {
    let page = include_str!("../../docs/errors.md");
    let (status, title) = (&body["status"], body["title"].as_str().unwrap_or_default());
    let row = format!("| [`{kind}`](#{kind}) | {status} | {title} |");
    assert!(page.contains(&row), "docs/errors.md has no {row}");
    let (_, section) = page
        .split_once(&format!("\n## {kind}\n"))
        .expect("a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    for member in body.as_object().into_iter().flat_map(|body| body.keys()) {
        let usual = ["type", "title", "status", "detail"].contains(&member.as_str());
        let documented = section.contains(&format!("\n| `{member}` | "));
        assert!(
            usual || documented,
            "{member} is not in docs/errors.md#{kind}: {body}"
        );
    }
}

/// Talks to one node.
#[derive(Clone, Debug)]
pub struct Client {
    url: String,
    http: reqwest::Client,
    patience: Duration,
    token: Option<String>,
}

impl Client {
    /// A client of the node at `url`.
    ///
    /// # Panics
    /// When there cannot be a client.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("an HTTP client");
        Self {
            url: url.trim_end_matches('/').to_owned(),
            http,
            patience: LONG,
            token: None,
        }
    }

    /// The same client, which gives a request up after this time.
    #[must_use]
    pub fn patience(&self, patience: Duration) -> Self {
        Self {
            patience,
            ..self.clone()
        }
    }

    /// The same client, which says who it is by this token.
    #[must_use]
    pub fn bearing(&self, token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..self.clone()
        }
    }

    /// The node's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `host:port` of the node.
    #[must_use]
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// A request to be completed by the caller.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .timeout(self.patience);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// When the node did not answer.
    pub async fn try_send(request: RequestBuilder) -> Result<Answer, reqwest::Error> {
        let response = request.send().await?;
        Ok(Answer {
            status: response.status(),
            headers: response.headers().clone(),
            body: response.bytes().await?.to_vec(),
        })
    }

    /// Sends a request to a node that must answer.
    ///
    /// # Panics
    /// When it does not.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        Self::try_send(request)
            .await
            .unwrap_or_else(|error| panic!("{} did not answer: {error:?}", self.url))
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// POST of any bytes.
    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.send(self.request(Method::POST, path).body(body)).await
    }

    /// POST of JSON.
    pub async fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Posts a program to `/lang/{language}`.
    pub async fn lang(&self, language: &str, program: &str) -> Answer {
        let path = format!("/lang/{language}");
        self.post(&path, program.to_owned()).await
    }

    /// Posts a job that must be accepted, and does not wait for it.
    ///
    /// # Panics
    /// When it is not accepted.
    pub async fn submit(&self, job: &Value) -> String {
        let body = self.post_json("/v1/jobs", job).await.expect(202);
        body["id"].as_str().expect("a job's id").to_owned()
    }

    /// Posts a job that must be accepted, and waits for its end.
    ///
    /// # Panics
    /// When it is not accepted, or does not end.
    pub async fn run(&self, job: &Value) -> Value {
        let id = self.submit(job).await;
        self.finished(&id).await
    }

    /// The job as this node shows it.
    ///
    /// # Panics
    /// When this node does not know it.
    pub async fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).await.expect(200)
    }

    /// The job, once it has finished.
    ///
    /// # Panics
    /// When it does not finish.
    pub async fn finished(&self, id: &str) -> Value {
        let path = format!("/v1/jobs/{id}?wait={}", LONG.as_secs() / 2);
        for _ in 0..2 {
            let job = self.get(&path).await.expect(200);
            if job["state"] == "finished" {
                return job;
            }
        }
        panic!("job {id} does not finish: {}", self.job(id).await);
    }

    /// What this node shows at `/metrics`.
    ///
    /// # Panics
    /// When it shows nothing, or what it shows is not Prometheus' text format.
    pub async fn figures(&self) -> Figures {
        let answer = self.get("/metrics").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let kind = answer.header("content-type");
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        Figures::parse(&answer.text()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The cluster as this node shows it.
    ///
    /// # Panics
    /// When it does not.
    pub async fn cluster(&self) -> Value {
        self.get("/v1/cluster").await.expect(200)
    }
}
