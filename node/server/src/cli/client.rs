//! Talking to a node.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use crate::access::tls::certificates;

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
    /// Reads them. Files that are not given are those of `QUORUN_TOKEN_FILE` and `QUORUN_CA_FILE`; without a file, the token
    /// is that of `QUORUN_TOKEN`.
    ///
    /// # Errors
    /// When the file cannot be read, or what is in it cannot be a token.
    pub fn read(token_file: Option<&Path>, ca: Option<&Path>) -> anyhow::Result<Self> {
        let named = |given: Option<&Path>, variable: &str| {
            given
                .map(Path::to_owned)
                .or_else(|| std::env::var_os(variable).map(PathBuf::from))
                .filter(|path| !path.as_os_str().is_empty())
        };
        let text = match named(token_file, "QUORUN_TOKEN_FILE") {
            Some(path) => std::fs::read_to_string(&path)
                .with_context(|| format!("read the token from {}", path.display()))?,
            None => match std::env::var_os("QUORUN_TOKEN") {
                Some(token) => token
                    .into_string()
                    .ok()
                    .context("QUORUN_TOKEN is not text")?,
                None => String::new(),
            },
        };
        let token = match text.trim() {
            "" => None,
            token => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .ok()
                    .filter(|_| token.bytes().all(|byte| byte.is_ascii_graphic()))
                    .context("the token has characters that no token has; is it one line?")?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            token,
            ca: named(ca, "QUORUN_CA_FILE"),
        })
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

/// A client of one node.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    token: Option<HeaderValue>,
    hyper: Hyper<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Client {
    /// A client of the node at `url`, with the token that the environment names.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        Self::with(url, &Credentials::read(None, None)?)
    }

    /// A client of the node at `url`.
    pub fn with(url: &str, credentials: &Credentials) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| {
            format!("--url \"{url}\" is not a URL; for example http://127.0.0.1:8080")
        })?;
        let secure = uri.scheme_str() == Some("https");
        if !(secure || uri.scheme_str() == Some("http")) || uri.authority().is_none() {
            bail!(
                "--url \"{url}\" should begin with http:// or https:// and a host, for example http://127.0.0.1:8080"
            );
        }
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(credentials.tls(secure)?)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            base: url.trim_end_matches('/').to_owned(),
            token: credentials.token.clone(),
            hyper: Hyper::builder(TokioExecutor::new()).build(connector),
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
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
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
