//! Serving connections: HTTP/1.1 and HTTP/2, in TLS or not, each within its deadlines.
//!
//! What a client can hold up, and for how long: a TLS handshake, [`HANDSHAKE`]; a connection on which no request is under
//! way, whether its client says nothing or says a head one byte at a time, [`Server::idle`] and a little; a body, see `body`;
//! and an answer that the client does not read, see `listener`. A connection that has come to one of these deadlines is
//! told so as far as its protocol can, and dropped soon after.
//!
//! HTTP/2 lets a client begin much with few bytes. How much may be under way, how large a head may be, and how many
//! streams may be reset before they were answered is bounded here; a client that goes beyond has its connection ended.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;
use tracing::{debug, trace};

use super::listener::{Clients, Connection};
use super::malformed::Worded;
use crate::access::tls::Certificate;
use crate::pressure::Client;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may take to end when it was told to.
const GRACE: Duration = Duration::from_secs(3);
/// The largest head of an HTTP/1.1 request, about: line and headers.
const HEAD_BYTES: usize = 64 << 10;
/// Headers of a request.
const HEADERS: usize = 100;
/// Requests under way on one connection of HTTP/2.
const STREAMS: u32 = 256;
/// Streams that a client may have reset before they were looked at.
const RESET_STREAMS: usize = 64;
/// Streams that were ended because of an error of the client, before the connection is.
const FAULTY_STREAMS: usize = 256;
/// How often a client of HTTP/2 is asked whether it is still there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_PATIENCE: Duration = Duration::from_secs(20);

/// What serves clients.
pub struct Server {
    /// Takes their connections.
    pub clients: Clients,
    /// Answers their requests.
    pub router: Router,
    /// What they are shown, if they speak TLS.
    pub certificate: Option<Certificate>,
    /// How long a connection is kept on which no request is under way.
    pub idle: Duration,
}

impl Server {
    /// Serves until `closing`, then lets what is under way come to its end.
    pub async fn run(mut self, closing: CancellationToken) {
        let builder = builder(self.idle);
        let connections = TaskTracker::new();
        loop {
            let (connection, client) = tokio::select! {
                accepted = self.clients.accept() => accepted,
                () = closing.cancelled() => break,
            };
            let serving = Serving {
                client,
                builder: builder.clone(),
                router: self.router.clone(),
                idle: self.idle,
                closing: closing.clone(),
            };
            let tls = self.certificate.as_ref().map(Certificate::now);
            connections.spawn(async move {
                match tls {
                    None => serving.run(Either::Left(connection)).await,
                    Some(tls) => {
                        let shaken = TlsAcceptor::from(tls).accept(connection);
                        match timeout(HANDSHAKE, shaken).await {
                            Ok(Ok(stream)) => serving.run(Either::Right(stream)).await,
                            Ok(Err(error)) => debug!(%error, "no TLS with a client"),
                            Err(_) => debug!("a client took too long for TLS"),
                        }
                    }
                }
            });
        }
        drop(self.clients);
        connections.close();
        connections.wait().await;
    }
}

fn builder(idle: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES as u32)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(FAULTY_STREAMS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE);
    builder
}

/// How one connection is served.
struct Serving {
    client: Client,
    builder: Builder<TokioExecutor>,
    router: Router,
    idle: Duration,
    closing: CancellationToken,
}

type Stream = Either<Connection, tokio_rustls::server::TlsStream<Connection>>;

impl Serving {
    async fn run(self, stream: Stream) {
        let activity = Activity::default();
        let service = service_fn(|request: Request<Incoming>| {
            let under_way = activity.begins();
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(self.client));
            let mut router = self.router.clone();
            async move {
                let response = router.call(request).await?;
                Ok::<_, Infallible>(response.map(|body| Answer {
                    body,
                    _under_way: under_way,
                }))
            }
        });
        let now = activity.clone();
        let stream = Worded::new(stream, move || now.now().0 == 0);
        let connection = self
            .builder
            .serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = self.closing.cancelled() => None,
            () = activity.idle_for(self.idle) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                // What is under way is not cut off, however long it takes; an end that only the client delays is.
                tokio::select! {
                    ended = connection => ended,
                    () = activity.idle_for(GRACE) => return,
                }
            }
        };
        if let Err(error) = ended {
            trace!(%error, "a connection ended");
        }
    }
}

/// Whether requests are under way on a connection, and since when none are.
#[derive(Clone)]
struct Activity(Arc<ActivityInner>);

struct ActivityInner {
    /// How many there are, and when that last changed.
    requests: Mutex<(usize, Instant)>,
    ended: Notify,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(ActivityInner {
            requests: Mutex::new((0, Instant::now())),
            ended: Notify::new(),
        }))
    }
}

impl Activity {
    fn change(&self, how: impl FnOnce(usize) -> usize) {
        let mut requests = self
            .0
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *requests = (how(requests.0), Instant::now());
    }

    fn now(&self) -> (usize, Instant) {
        *self
            .0
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn begins(&self) -> UnderWay {
        self.change(|count| count + 1);
        UnderWay(self.clone())
    }

    /// Returns when no request has been under way for so long, from now or from when the last one ended.
    async fn idle_for(&self, time: Duration) {
        let began = Instant::now();
        loop {
            let (count, since) = self.now();
            if count > 0 {
                self.0.ended.notified().await;
                continue;
            }
            let until = since.max(began) + time;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until.into()).await;
        }
    }
}

/// A request that is under way until its answer was sent or given up.
struct UnderWay(Activity);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.change(|count| count.saturating_sub(1));
        self.0.0.ended.notify_one();
    }
}

/// The body of an answer; its request is under way as long as it is there.
struct Answer {
    body: Body,
    _under_way: UnderWay,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_idle_when_its_last_request_has_ended_a_while_ago() {
        const TIME: Duration = Duration::from_millis(30);
        let activity = Activity::default();
        let one = activity.begins();
        let two = activity.begins();
        let waiting = tokio::spawn({
            let activity = activity.clone();
            async move {
                activity.idle_for(TIME).await;
                Instant::now()
            }
        });
        drop(one);
        assert_eq!(activity.now().0, 1);
        drop(two);
        let ended = activity.now().1;
        assert!(waiting.await.unwrap() >= ended + TIME);
        assert!(
            timeout(Duration::ZERO, activity.idle_for(TIME))
                .await
                .is_err()
        );
    }
}
