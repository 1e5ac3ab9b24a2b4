//! Sends one delivery: connects to an address that was looked at, follows nowhere, and does not listen for long.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use quorun_ledger::{Callback, JobId};
use rustls::{ClientConfig, RootCertStore};
use tower_service::Service;
use url::{Host, Url};

use super::figures::Figures;
use super::hand::Owner;
use super::lookup::{Lookups, NotFound};
use super::sign;
use crate::access::tls::certificates;
use crate::scheduler::now_ms;

/// How long connecting to one address may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a whole attempt may take once there is an address.
const WHOLE: Duration = Duration::from_secs(10);
/// What is read of an answer, bytes, and how long: nothing in it matters.
const ANSWER: usize = 4096;
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL has an address to which nothing may be sent.
    #[error(
        "the receiver's address is not on the public internet; --callback-allow-private allows others"
    )]
    Refused,
    /// The URL or a header cannot be used.
    #[error("the request cannot be made")]
    Malformed,
    /// There is no address. A name server can be wrong for a moment, also when it names an address that may not be.
    #[error("could not connect: {0}")]
    NotFound(#[from] NotFound),
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

/// Whose certificates receivers may have: those of the CAs that browsers trust, and those of a file.
///
/// # Errors
/// When the file cannot be read, or holds none.
pub fn trusted(file: Option<&Path>) -> anyhow::Result<RootCertStore> {
    const OPTION: &str = "--callback-ca-file";
    let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    let Some(file) = file else { return Ok(roots) };
    for certificate in certificates(OPTION, file)? {
        roots
            .add(certificate)
            .with_context(|| format!("{OPTION}: a certificate of {}", file.display()))?;
    }
    Ok(roots)
}

/// Where a delivery goes: its URL, and the addresses that were looked at.
#[derive(Debug)]
pub struct Receiver {
    pub(super) url: Url,
    addresses: Vec<SocketAddr>,
}

/// Sends deliveries. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sender {
    tls: Arc<ClientConfig>,
    lookups: Lookups,
}

impl Sender {
    /// A sender to public addresses, and to private ones if that is allowed.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        allow_private: bool,
        roots: Arc<RootCertStore>,
        figures: Figures,
    ) -> anyhow::Result<Self> {
        Self::with(Lookups::new(allow_private, figures), roots)
    }

    /// One that looks names up in this way.
    pub(super) fn with(lookups: Lookups, roots: Arc<RootCertStore>) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("set up TLS for callbacks")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            tls: Arc::new(tls),
            lookups,
        })
    }

    /// Finds out where a delivery goes. This may take a while: what a job holds need not be in memory meanwhile.
    ///
    /// # Errors
    /// When there is no address, or none to which anything may be sent.
    pub async fn find(&self, url: &str, owner: &Owner) -> Result<Receiver, Error> {
        let url = Url::parse(url).map_err(|_| Error::Malformed)?;
        let addresses = self.addresses(&url, owner).await?;
        Ok(Receiver { url, addresses })
    }

    /// Where a URL leads: the addresses of its name, or the one that it has, to which the client goes by itself.
    async fn addresses(&self, url: &Url, owner: &Owner) -> Result<Vec<SocketAddr>, Error> {
        let literal = match url.host() {
            Some(Host::Ipv4(address)) => address.into(),
            Some(Host::Ipv6(address)) => address.into(),
            Some(Host::Domain(name)) => return Ok(self.lookups.find(owner, name).await?),
            None => return Err(Error::Malformed),
        };
        if !self.lookups.may_be(literal) {
            return Err(Error::Refused);
        }
        Ok(vec![SocketAddr::new(literal, 0)])
    }

    /// A client that goes to one of these addresses, whatever name it is asked for. It keeps no connection: that would go on
    /// to an address that was looked at long ago.
    fn client(
        &self,
        addresses: Vec<SocketAddr>,
    ) -> Client<HttpsConnector<HttpConnector<Found>>, Full<Bytes>> {
        let mut http = HttpConnector::new_with_resolver(Found(addresses));
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT));
        let https = HttpsConnector::from((http, Arc::clone(&self.tls)));
        Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(https)
    }

    /// Sends a body to whom a callback names and who was found, and returns the status of the answer.
    pub async fn send(
        &self,
        Receiver { url, addresses }: Receiver,
        callback: &Callback,
        job: JobId,
        attempt: u32,
        body: Vec<u8>,
    ) -> Result<u16, Error> {
        let request = request(&url, callback, job, attempt, body).ok_or(Error::Malformed)?;
        let answer = tokio::time::timeout(WHOLE, self.client(addresses).request(request))
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

/// The addresses that were found and looked at.
#[derive(Clone, Debug)]
struct Found(Vec<SocketAddr>);

impl Service<Name> for Found {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        ready(Ok(self.0.clone().into_iter()))
    }
}

/// What went wrong, in words that hold nothing of the request.
fn failed(error: &hyper_util::client::legacy::Error) -> Error {
    let mut cause = error.source();
    let mut words = error.to_string();
    while let Some(inner) = cause {
        words = inner.to_string();
        cause = inner.source();
    }
    if error.is_connect() {
        words = format!("could not connect: {words}");
    }
    Error::Failed(words)
}
