//! Talking to a node.

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// A client of one node.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    hyper: Hyper<HttpConnector, Full<Bytes>>,
}

impl Client {
    /// A client of the node at `url`.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| {
            format!("--url \"{url}\" is not a URL; for example http://127.0.0.1:8080")
        })?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            bail!(
                "--url \"{url}\" should begin with http:// and a host, for example http://127.0.0.1:8080"
            );
        }
        Ok(Self {
            base: url.trim_end_matches('/').to_owned(),
            hyper: Hyper::builder(TokioExecutor::new()).build_http(),
        })
    }

    /// Sends a request; the answer's body has not been read.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Response<hyper::body::Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        let mut bytes = Bytes::new();
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json");
            bytes = body.to_string().into();
        }
        let request = request.body(Full::new(bytes)).context("make the request")?;
        self.hyper
            .request(request)
            .await
            .with_context(|| format!("no answer from {}; is a node running there?", self.base))
    }

    /// Sends a request and reads its answer as JSON. A problem becomes an error.
    pub async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let bytes = response
            .into_body()
            .collect()
            .await
            .context("read the answer")?
            .to_bytes();
        let value: Value = serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "{} answered {status} and no JSON; is it a node of Quorun?",
                self.base
            )
        })?;
        Ok((status, value))
    }
}

/// The text of a problem.
pub fn problem(value: &Value) -> String {
    value
        .get("detail")
        .or_else(|| value.get("title"))
        .and_then(Value::as_str)
        .map_or_else(|| value.to_string(), ToOwned::to_owned)
}
