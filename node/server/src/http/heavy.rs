//! Large answers: they take memory until the client has read them, so they are counted like bodies that arrive, handed over
//! piece by piece, and given up when the client takes nothing of them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::{Buf as _, Bytes};
use http::Method;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, sleep_until};

use super::App;
use super::listener::UNREAD;
use super::problem::Problem;
use crate::pressure::{Client, Held};

/// An answer that is smaller is no matter.
const LARGE: u64 = 256 << 10;
/// What is handed over at one time, bytes. It is copied, so that what is left can be given up.
const PIECE: usize = 64 << 10;

/// Counts what is large of the answers to requests. Where somebody only looks, what is too much is refused; what was done is
/// told in any case, because a refusal would say that it was not.
pub async fn count(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    request: Request,
    next: Next,
) -> Response {
    let looks = request.method() == Method::GET;
    let (parts, body) = next.run(request).await.into_parts();
    let size = body.size_hint().exact().unwrap_or(0);
    if size < LARGE {
        return Response::from_parts(parts, body);
    }
    let held = match app.pressure.take_answer(client, size) {
        Ok(held) => Some(held),
        Err(full) if looks => {
            app.metrics.refused(&full);
            return Problem::from(full).into_response();
        }
        Err(_) => None,
    };
    // It is there as a whole: nothing is waited for.
    match body.collect().await {
        Ok(whole) => {
            let answer = Answer::new(whole.to_bytes(), held, UNREAD);
            Response::from_parts(parts, Body::new(answer))
        }
        Err(error) => {
            let broken = futures::stream::once(async { Err::<Bytes, _>(error) });
            Response::from_parts(parts, Body::from_stream(broken))
        }
    }
}

/// What is left of an answer.
struct Rest {
    bytes: Bytes,
    /// When some of it was taken.
    moved: Instant,
    given_up: bool,
    held: Option<Held>,
}

/// An answer on its way.
struct Answer(Arc<Mutex<Rest>>);

fn lock(rest: &Mutex<Rest>) -> MutexGuard<'_, Rest> {
    rest.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Answer {
    fn new(bytes: Bytes, held: Option<Held>, unread: Duration) -> Self {
        let rest = Arc::new(Mutex::new(Rest {
            bytes,
            moved: Instant::now(),
            given_up: false,
            held,
        }));
        tokio::spawn(watch(Arc::downgrade(&rest), unread));
        Self(rest)
    }
}

/// Gives an answer up of which nothing was taken for so long. A connection that nobody reads ends by itself; that of HTTP/2 is
/// read while the window of one of its streams stays shut, and whoever sends it does not ask for more meanwhile, so it cannot
/// find out by itself.
async fn watch(rest: Weak<Mutex<Rest>>, unread: Duration) {
    loop {
        let due = {
            let Some(rest) = rest.upgrade() else { return };
            let mut rest = lock(&rest);
            let due = rest.moved + unread;
            if due <= Instant::now() {
                rest.bytes = Bytes::new();
                rest.held = None;
                rest.given_up = true;
                return;
            }
            due
        };
        sleep_until(due).await;
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut rest = lock(&self.0);
        if rest.given_up {
            let why = "the client has taken nothing of its answer for too long";
            return Poll::Ready(Some(Err(axum::Error::new(why))));
        }
        if rest.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let length = rest.bytes.len().min(PIECE);
        let piece = Bytes::copy_from_slice(&rest.bytes[..length]);
        rest.bytes.advance(length);
        rest.moved = Instant::now();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let rest = lock(&self.0);
        rest.bytes.is_empty() && !rest.given_up
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(lock(&self.0).bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_comes_whole_in_pieces() {
        let whole: Bytes = (0..200_001)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        let mut answer = Answer::new(whole.clone(), None, UNREAD);
        assert_eq!(answer.size_hint().exact(), Some(200_001));
        let mut there = Vec::new();
        while let Some(frame) = answer.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE);
            there.extend_from_slice(&piece);
        }
        assert!(there == whole);
        assert!(answer.is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_which_nothing_is_taken_is_given_up() {
        let mut answer = Answer::new(vec![0; 3 * PIECE].into(), None, UNREAD);
        tokio::time::sleep(UNREAD / 2).await;
        assert!(answer.frame().await.unwrap().is_ok());
        // From the last piece on.
        tokio::time::sleep(UNREAD * 3 / 4).await;
        assert!(answer.frame().await.unwrap().is_ok());
        tokio::time::sleep(UNREAD * 2).await;
        assert!(lock(&answer.0).bytes.is_empty());
        assert!(!answer.is_end_stream());
        assert!(answer.frame().await.unwrap().is_err());
    }
}
