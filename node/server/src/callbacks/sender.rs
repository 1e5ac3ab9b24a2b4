//! Sends one delivery: connects to an address that was looked at, follows nowhere, and does not listen for long.

use std::error::Error as _;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use quorun_ledger::{Callback, JobId};
use url::{Host, Url};

use super::sign;
use super::target::{Refused, Resolver, is_public};
use crate::scheduler::now_ms;

/// How long connecting to one address may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a whole attempt may take.
const WHOLE: Duration = Duration::from_secs(10);
/// What is read of an answer, bytes, and how long: nothing in it matters.
const ANSWER: usize = 4096;
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The receiver is where nothing may be sent to.
    #[error("{Refused}; --callback-allow-private allows others")]
    Refused,
    /// The URL or a header cannot be used.
    #[error("the request cannot be made")]
    Malformed,
    /// It took too long.
    #[error("no answer within {WHOLE:?}")]
    Slow,
    /// The connection failed.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// Whether another attempt can come to nothing else.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Refused | Self::Malformed)
    }
}

/// Sends deliveries. Cheap to clone.
#[derive(Clone)]
pub struct Sender {
    client: Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
    allow_private: bool,
}

impl Sender {
    /// A sender to public addresses, and to private ones if that is allowed.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(allow_private: bool) -> anyhow::Result<Self> {
        let mut http = HttpConnector::new_with_resolver(Resolver::new(allow_private));
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT));
        let provider = rustls::crypto::ring::default_provider();
        let https = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(provider)
            .context("set up TLS for callbacks")?
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        // A connection that is kept would go on to an address that was looked at long ago.
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(https);
        Ok(Self {
            client,
            allow_private,
        })
    }

    /// Sends a body to whom a callback names, and returns the status of the answer.
    pub async fn send(
        &self,
        callback: &Callback,
        job: JobId,
        attempt: u32,
        body: Vec<u8>,
    ) -> Result<u16, Error> {
        let url = Url::parse(&callback.url).map_err(|_| Error::Malformed)?;
        // The resolver is not asked for these.
        let literal = match url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            Some(Host::Domain(_)) => None,
            None => return Err(Error::Malformed),
        };
        if literal.is_some_and(|address| !self.allow_private && !is_public(address)) {
            return Err(Error::Refused);
        }
        let request = request(&url, callback, job, attempt, body).ok_or(Error::Malformed)?;
        let answer = tokio::time::timeout(WHOLE, self.client.request(request))
            .await
            .map_err(|_| Error::Slow)?
            .map_err(|error| failed(&error))?;
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        // So that a receiver is not cut off in the middle of its few words. It has answered, however they end.
        let few_words = async {
            let mut read = 0;
            while read < ANSWER
                && let Some(Ok(frame)) = body.frame().await
            {
                read += frame.data_ref().map_or(0, Bytes::len);
            }
        };
        let _ = tokio::time::timeout(ANSWER_TIME, few_words).await;
        Ok(status)
    }
}

fn request(
    url: &Url,
    callback: &Callback,
    job: JobId,
    attempt: u32,
    body: Vec<u8>,
) -> Option<Request<Full<Bytes>>> {
    let uri: Uri = url.as_str().parse().ok()?;
    let mut request = Request::builder().method(Method::POST).uri(uri).header(
        header::USER_AGENT,
        concat!("quorun/", env!("CARGO_PKG_VERSION")),
    );
    if let Some(secret) = &callback.secret {
        let signature = sign::signature(secret.reveal(), now_ms() / 1000, &body);
        request = request.header("quorun-signature", signature);
    }
    let mut request = request
        .header("quorun-delivery", job.to_string())
        .header("quorun-attempt", attempt)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .ok()?;
    for (name, value) in &callback.headers {
        let name: http::HeaderName = name.parse().ok()?;
        let mut value = HeaderValue::from_str(value.reveal()).ok()?;
        value.set_sensitive(true);
        request.headers_mut().insert(name, value);
    }
    Some(request)
}

/// What went wrong, in words that hold nothing of the request.
fn failed(error: &hyper_util::client::legacy::Error) -> Error {
    let mut cause = error.source();
    let mut words = error.to_string();
    while let Some(inner) = cause {
        // What an io::Error wraps is not among its sources.
        let wrapped = inner
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if inner.is::<Refused>() || wrapped.is_some_and(|inner| inner.is::<Refused>()) {
            return Error::Refused;
        }
        words = inner.to_string();
        cause = inner.source();
    }
    if error.is_connect() {
        words = format!("could not connect: {words}");
    }
    Error::Failed(words)
}
