//! Talking to a cluster: to the node that answered last, and to the others when it does not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use super::errors::{NoAnswer, Refused};
use crate::access::tls::certificates;

/// What makes a request one that may be sent again.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Where systems keep the CAs that they trust.
const SYSTEM_CAS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// By what a node knows this client, and this client a node. A token comes from the environment or from a file, never from
/// the command line, which all users of a machine can read.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    token: Option<HeaderValue>,
    ca: Option<PathBuf>,
}

impl Credentials {
    /// A token, if there is one, and the file of the CA that nodes are trusted by; those of the system if there is none.
    ///
    /// # Errors
    /// When it cannot be a token.
    pub fn new(token: Option<&str>, ca: Option<PathBuf>) -> anyhow::Result<Self> {
        let token = token
            .map(|token| {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .ok()
                    .filter(|_| token.bytes().all(|byte| byte.is_ascii_graphic()))
                    .context("the token has characters that no token has; is it one line?")?;
                value.set_sensitive(true);
                anyhow::Ok(value)
            })
            .transpose()?;
        Ok(Self { token, ca })
    }

    /// The header that says who this client is.
    pub const fn authorization(&self) -> Option<&HeaderValue> {
        self.token.as_ref()
    }

    /// What nodes are trusted by.
    fn tls(&self, secure: bool) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let system = SYSTEM_CAS.iter().map(Path::new).find(|path| path.exists());
        if secure && let Some(path) = self.ca.as_deref().or(system) {
            for certificate in certificates("--ca-file", path)? {
                // Some that systems have are not for this.
                let added = roots.add(certificate);
                if self.ca.is_some() {
                    added.with_context(|| format!("--ca-file {}", path.display()))?;
                }
            }
        }
        ensure!(
            !secure || !roots.is_empty(),
            "for https, give --ca-file FILE: the CA of the node's certificate, PEM"
        );
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choose the versions of TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

/// A client of one or several nodes of a cluster.
#[derive(Clone, Debug)]
pub struct Client {
    bases: Arc<[String]>,
    /// Which of them is asked first.
    current: Arc<AtomicUsize>,
    token: Option<HeaderValue>,
    hyper: Hyper<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// What nodes with https are trusted by.
    tls: Arc<ClientConfig>,
}

/// An answer whose body has not been read.
pub type Answer = Response<hyper::body::Incoming>;

impl Client {
    /// A client of the node at `url`, with the token that the environment names.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        Self::of(&[url.to_owned()], &super::target::of_environment()?)
    }

    /// A client of the nodes at these URLs, with a token for all of them.
    pub fn of(urls: &[String], credentials: &Credentials) -> anyhow::Result<Self> {
        ensure!(!urls.is_empty(), "no URL of a node was given");
        let bases: Vec<String> = urls.iter().map(|url| base(url)).collect::<Result<_, _>>()?;
        let secure = bases.iter().any(|base| is_secure(base));
        let tls = credentials.tls(secure)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            bases: bases.into(),
            current: Arc::default(),
            token: credentials.token.clone(),
            hyper: Hyper::builder(TokioExecutor::new()).build(connector),
            tls: Arc::new(tls),
        })
    }

    /// The node that is asked first.
    pub fn base(&self) -> &str {
        &self.bases[self.current.load(Ordering::Relaxed) % self.bases.len()]
    }

    /// Asks another node first from now on, if there is another.
    pub fn next_node(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    /// The header that says who asks, if somebody does.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.token.as_ref()
    }

    /// What nodes with https are trusted by.
    pub const fn tls(&self) -> &Arc<ClientConfig> {
        &self.tls
    }

    /// Sends a request; the answer's body has not been read.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        self.send_with(method, path, body, &[]).await
    }

    /// As [`send`](Self::send), with more headers. A node that cannot be reached, or has no time, is passed over; one that
    /// may have heard a request that must not be repeated is not.
    pub async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(HeaderName, &str)],
    ) -> anyhow::Result<Answer> {
        let repeatable = method == Method::GET
            || method == Method::DELETE
            || headers.iter().any(|(name, _)| *name == IDEMPOTENCY_KEY);
        let body: Bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let mut last = None;
        for _ in 0..self.bases.len() {
            let base = self.base().to_owned();
            let request = self.request(&method, &format!("{base}{path}"), &body, headers)?;
            match self.hyper.request(request).await {
                Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE && repeatable => {
                    last = Some(Ok(answer));
                }
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    let heard = !error.is_connect();
                    let words = format!("no answer from {base}; is a node running there?");
                    let error = anyhow::Error::new(error).context(NoAnswer(words));
                    if heard && !repeatable {
                        return Err(error);
                    }
                    // What a node said is worth more than that another one said nothing.
                    last = last.or(Some(Err(error)));
                }
            }
            self.next_node();
        }
        last.unwrap_or_else(|| bail!("no node was asked"))
    }

    fn request(
        &self,
        method: &Method,
        url: &str,
        body: &Bytes,
        headers: &[(HeaderName, &str)],
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(body.clone()))
            .context("make the request")
    }

    /// Sends a request and reads its answer as JSON, whatever its status.
    pub async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        read(self.send(method, path, body).await?).await
    }

    /// Sends a request that must succeed, and reads its answer as JSON. A problem becomes an error.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        good(self.send(method, path, body).await?).await
    }
}

/// The JSON of an answer that must be a good one. A problem becomes an error.
pub async fn good(answer: Answer) -> anyhow::Result<Value> {
    let (status, body) = read(answer).await?;
    if !status.is_success() {
        return Err(Refused::new(status, body).into());
    }
    Ok(body)
}

/// The JSON of an answer.
pub async fn read(answer: Answer) -> anyhow::Result<(StatusCode, Value)> {
    let status = answer.status();
    let bytes = answer
        .into_body()
        .collect()
        .await
        .context("read the answer")?
        .to_bytes();
    let value: Value = serde_json::from_slice(&bytes)
        .with_context(|| format!("{status} and no JSON; was that a node of Quorun?"))?;
    Ok((status, value))
}

fn base(url: &str) -> anyhow::Result<String> {
    let uri: Uri = url.parse().with_context(|| {
        format!("--url \"{url}\" is not a URL; for example http://127.0.0.1:8080")
    })?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.authority().is_none() {
        bail!(
            "--url \"{url}\" should begin with http:// or https:// and a host, for example http://127.0.0.1:8080"
        );
    }
    Ok(url.trim_end_matches('/').to_owned())
}

/// Whether a node is spoken to in TLS.
pub fn is_secure(base: &str) -> bool {
    base.parse::<Uri>()
        .is_ok_and(|uri| uri.scheme_str() == Some("https"))
}

/// The text of a problem, and the field that it is about.
pub fn problem(value: &Value) -> String {
    let text = value
        .get("detail")
        .or_else(|| value.get("title"))
        .and_then(Value::as_str)
        .map_or_else(|| value.to_string(), ToOwned::to_owned);
    match value.get("field").and_then(Value::as_str) {
        Some(field) if !text.contains(field) => format!("{text} (field: {field})"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_is_shown_with_its_field() {
        let shown = |value| problem(&value);
        assert_eq!(
            shown(json!({"detail": "no", "field": "x.y"})),
            "no (field: x.y)"
        );
        assert_eq!(
            shown(json!({"detail": "x.y is 1", "field": "x.y"})),
            "x.y is 1"
        );
        assert_eq!(shown(json!({"title": "Bad"})), "Bad");
        assert_eq!(shown(json!([1])), "[1]");
    }

    #[test]
    fn urls_and_tokens_are_looked_at_before_they_are_used() {
        for bad in ["", "127.0.0.1:80", "http://", "ftp://x", "http://a b"] {
            assert!(Client::new(bad).is_err(), "{bad}");
        }
        let urls = ["http://a/".to_owned(), "http://b".to_owned()];
        assert!(Credentials::new(Some("a\nb"), None).is_err());
        assert!(Credentials::new(Some("a b"), None).is_err());
        assert!(Client::of(&[], &Credentials::default()).is_err());
        let missing = Credentials::new(None, Some("/is/not/there".into())).unwrap();
        assert!(Client::of(&["https://x".to_owned()], &missing).is_err());
        Client::of(&urls, &missing).unwrap();
        let credentials = Credentials::new(Some("hush-hush"), None).unwrap();
        let client = Client::of(&urls, &credentials).unwrap();
        assert_eq!(client.base(), "http://a");
        client.next_node();
        assert_eq!(client.base(), "http://b");
        assert!(!format!("{client:?}").contains("hush-hush"));
    }
}
