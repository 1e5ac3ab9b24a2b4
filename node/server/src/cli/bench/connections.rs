//! Connections to a node: one for each request that is under way, over HTTP/1.1, or a few that all requests share, over
//! HTTP/2.

use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::client::Lost;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// A request as it is sent.
pub type Message = Request<Full<Bytes>>;

type Tried = Result<Response<Incoming>, TrySendError<Message>>;

/// A connection that one request after the other goes over.
pub type Own = http1::SendRequest<Full<Bytes>>;
/// A connection that several requests are under way on; clones are the same one.
type Shared = http2::SendRequest<Full<Bytes>>;

/// What there is to one node.
#[derive(Debug)]
pub struct Connections {
    /// Host and port.
    address: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Those on which nothing is under way.
    Own(Mutex<Vec<Own>>),
    Shared {
        places: Vec<tokio::sync::Mutex<Option<Shared>>>,
        next: AtomicUsize,
    },
}

impl Connections {
    /// To the node at this host and port: so many that are shared, or none.
    pub fn new(address: String, shared: Option<usize>) -> Self {
        let kind = match shared {
            None => Kind::Own(Mutex::default()),
            Some(count) => Kind::Shared {
                places: (0..count.max(1)).map(|_| Default::default()).collect(),
                next: AtomicUsize::default(),
            },
        };
        Self { address, kind }
    }

    /// Host and port.
    #[cfg(test)]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether requests have to name scheme and host, as HTTP/2 wants it, and not the path alone.
    pub fn absolute(&self) -> bool {
        matches!(self.kind, Kind::Shared { .. })
    }

    /// Sends a request and waits for the head of its answer. The connection comes with it: it is to be
    /// [kept](Self::keep) when the answer has been read. What a node has closed meanwhile, and has seen nothing of the
    /// request, is no error: there is another connection.
    pub async fn send(&self, request: Message) -> Result<(Response<Incoming>, Option<Own>), Lost> {
        match &self.kind {
            Kind::Own(idle) => self.send_alone(idle, request).await,
            Kind::Shared { places, next } => {
                let place = &places[next.fetch_add(1, Ordering::Relaxed) % places.len()];
                let response = self.send_shared(place, request).await?;
                Ok((response, None))
            }
        }
    }

    /// Keeps a connection for the next request.
    pub fn keep(&self, connection: Option<Own>) {
        if let (Kind::Own(idle), Some(connection)) = (&self.kind, connection)
            && !connection.is_closed()
        {
            locked(idle).push(connection);
        }
    }

    async fn send_alone(
        &self,
        idle: &Mutex<Vec<Own>>,
        mut request: Message,
    ) -> Result<(Response<Incoming>, Option<Own>), Lost> {
        loop {
            let (mut connection, kept) = match kept(idle).await {
                Some(connection) => (connection, true),
                None => (self.connect_alone().await?, false),
            };
            let tried = connection.try_send_request(request).await;
            match self.sent(tried, kept)? {
                Ok(response) => return Ok((response, Some(connection))),
                Err(unsent) => request = unsent,
            }
        }
    }

    async fn send_shared(
        &self,
        place: &tokio::sync::Mutex<Option<Shared>>,
        mut request: Message,
    ) -> Result<Response<Incoming>, Lost> {
        loop {
            let (mut connection, kept) = {
                // Held while the connection is made: the others want the same one.
                let mut place = place.lock().await;
                match place.as_ref().filter(|connection| !connection.is_closed()) {
                    Some(connection) => (connection.clone(), true),
                    None => {
                        let made = self.connect_shared().await?;
                        (place.insert(made).clone(), false)
                    }
                }
            };
            if let Err(error) = connection.ready().await {
                if kept {
                    continue;
                }
                return Err(self.broken(&error));
            }
            let tried = connection.try_send_request(request).await;
            match self.sent(tried, kept)? {
                Ok(response) => return Ok(response),
                Err(unsent) => request = unsent,
            }
        }
    }

    /// The answer; or the request, if it has to be sent over another connection.
    fn sent(&self, tried: Tried, kept: bool) -> Result<Result<Response<Incoming>, Message>, Lost> {
        match tried {
            Ok(response) => Ok(Ok(response)),
            // The node had closed a kept connection, and has seen nothing of this.
            Err(mut error) => match error.take_message().filter(|_| kept) {
                Some(unsent) => Ok(Err(unsent)),
                None => Err(self.broken(error.error())),
            },
        }
    }

    /// That a connection has ended after a request may have been sent.
    pub fn broken(&self, error: &hyper::Error) -> Lost {
        Lost::Broken(format!("{}: {error}", self.address))
    }

    async fn connect_alone(&self) -> Result<Own, Lost> {
        let shaken = http1::handshake(TokioIo::new(self.connect().await?)).await;
        let (sender, connection) = shaken.map_err(|error| self.failed(&error))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connect_shared(&self) -> Result<Shared, Lost> {
        let stream = TokioIo::new(self.connect().await?);
        let shaken = http2::handshake(TokioExecutor::new(), stream).await;
        let (sender, connection) = shaken.map_err(|error| self.failed(&error))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connect(&self) -> Result<TcpStream, Lost> {
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(&self.address))
            .await
            .map_err(|_| self.failed(&"the connection was not made in time"))?
            .map_err(|error| self.failed(&error))?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    fn failed(&self, error: &dyn Display) -> Lost {
        Lost::NotSent(format!("{}: {error}", self.address))
    }
}

/// The connection that was used last, if it is still good.
async fn kept(idle: &Mutex<Vec<Own>>) -> Option<Own> {
    loop {
        let mut connection = locked(idle).pop()?;
        // One that has just brought an answer takes a moment until it can take the next request.
        if connection.ready().await.is_ok() {
            return Some(connection);
        }
    }
}

fn locked(idle: &Mutex<Vec<Own>>) -> MutexGuard<'_, Vec<Own>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
