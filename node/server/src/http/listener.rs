//! Connections of clients: how many there may be, and how they end.
//!
//! A connection that is one too many is told so and closed; what its client sends is looked at only as far as the end of
//! the head. A connection that is closed before its client has sent all that it wants to send, because the request was
//! answered from its head alone, goes on being read for a moment and thrown away: else the client's system would throw
//! away the answer. A client that does not take its answer holds it only for so long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep, timeout};
use tracing::debug;

use super::problem::Problem;
use crate::metrics::Metrics;
use crate::pressure::{Client, Full, Held, Pressure, Thing};

/// How long what a client still sends is thrown away, once it has its answer.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it.
const LINGER_BYTES: usize = 64 << 20;
/// How long the head of a request is waited for that will be turned away.
const HEAD: Duration = Duration::from_secs(1);
/// How large it may be.
const HEAD_BYTES: usize = 16 << 10;
/// How long an answer is kept for a client that takes nothing of it.
pub const UNREAD: Duration = Duration::from_secs(60);
/// Connections that are being turned away at one time; more are closed without a word.
const TURNED_AWAY: usize = 256;

/// Takes connections, within the bounds of the node.
pub struct Clients {
    listener: TcpListener,
    pressure: Pressure,
    metrics: Metrics,
    /// They speak TLS, so that nothing can be said to one that is turned away.
    secure: bool,
    turned_away: Arc<Semaphore>,
}

impl Clients {
    /// Takes them from a listener.
    pub fn new(listener: TcpListener, pressure: Pressure, metrics: Metrics, secure: bool) -> Self {
        Self {
            listener,
            pressure,
            metrics,
            secure,
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY)),
        }
    }
}

impl Clients {
    /// The next connection that fits.
    pub async fn accept(&mut self) -> (Connection, Client) {
        loop {
            // axum's way logs what goes wrong, and waits when there are no descriptors left.
            let listener = &mut self.listener;
            let (stream, address) = axum::serve::Listener::accept(listener).await;
            // Small answers must not wait for the acknowledgement of the one before.
            let _ = stream.set_nodelay(true);
            let client = Client::from(address);
            match self.pressure.take(client, Thing::Connections, 1) {
                Ok(held) => return (Connection::new(stream, held), client),
                Err(full) => {
                    self.metrics.refused(&full);
                    debug!(%address, ?full, "a connection was turned away");
                    if !self.secure
                        && let Ok(permit) = Arc::clone(&self.turned_away).try_acquire_owned()
                    {
                        tokio::spawn(async move {
                            // Whether the client has heard it or not, it is over.
                            let _ = turn_away(stream, full).await;
                            drop(permit);
                        });
                    }
                }
            }
        }
    }
}

/// Answers a connection that is one too many, and closes it.
async fn turn_away(mut stream: TcpStream, full: Full) -> io::Result<()> {
    let mut head = Vec::new();
    let arrives = async {
        while head.len() < HEAD_BYTES && !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    // A client that has not said anything by then is told all the same.
    if let Ok(arrived) = timeout(HEAD, arrives).await {
        arrived?;
    }
    let answer = Problem::from(full).close().into_http("");
    stream.write_all(&answer).await?;
    stream.shutdown().await?;
    let mut scratch = [0; 4096];
    let rest = async {
        let mut left = LINGER_BYTES;
        while left > 0 {
            match stream.read(&mut scratch).await {
                Ok(0) | Err(_) => return,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
    };
    // Whether the client has seen the end or not, it is over.
    let _ = timeout(LINGER, rest).await;
    Ok(())
}

/// A client's connection.
pub struct Connection {
    stream: TcpStream,
    closing: Closing,
    /// Runs while the client takes nothing of what it is sent.
    stalled: Option<Pin<Box<Sleep>>>,
    _held: Held,
}

/// How far the end of a connection has come.
enum Closing {
    Open,
    /// Nothing is sent any more; what still comes is thrown away.
    Lingers {
        until: Pin<Box<Sleep>>,
        left: usize,
    },
    Over,
}

impl Connection {
    const fn new(stream: TcpStream, held: Held) -> Self {
        Self {
            stream,
            closing: Closing::Open,
            stalled: None,
            _held: held,
        }
    }
}

impl Connection {
    /// Gives a write up that the client has kept waiting for too long.
    fn unless_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(UNREAD)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_stalled(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.unless_stalled(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.closing {
                Closing::Open => {
                    ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                    this.closing = Closing::Lingers {
                        until: Box::pin(sleep(LINGER)),
                        left: LINGER_BYTES,
                    };
                }
                Closing::Lingers { until, left } => {
                    let mut scratch = [0; 4096];
                    let mut buffer = ReadBuf::new(&mut scratch);
                    let over = match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                        Poll::Ready(Ok(())) => {
                            let read = buffer.filled().len();
                            *left = left.saturating_sub(read);
                            read == 0 || *left == 0
                        }
                        Poll::Ready(Err(_)) => true,
                        Poll::Pending => {
                            ready!(until.as_mut().poll(cx));
                            true
                        }
                    };
                    if over || until.as_mut().poll(cx).is_ready() {
                        this.closing = Closing::Over;
                    }
                }
                Closing::Over => return Poll::Ready(Ok(())),
            }
        }
    }
}
