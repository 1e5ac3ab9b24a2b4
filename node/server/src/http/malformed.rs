//! Words for what hyper refuses by itself: a request of HTTP/1.1 that cannot be read never gets as far as a handler, and is
//! answered by hyper with a status and nothing else. Here that answer gets the body that all errors have.
//!
//! It is known by its shape: a status of three, no header that says anything, no body. None of our own answers looks like
//! that, but a program may print it. So it counts only when it begins where nothing else is on its way: no request is
//! under way, and what was written before has been flushed.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::problem::{Kind, Problem};

/// Longer than hyper's answer is, bytes.
const LONGEST: usize = 256;

/// A connection on which hyper's own answers get words.
pub struct Worded<S, F> {
    stream: S,
    /// Whether no request is under way.
    idle: F,
    /// Everything that was written has been flushed.
    flushed: bool,
    /// What is written in the place of hyper's answer, how much of it was, and how long hyper's answer is.
    instead: Option<(Vec<u8>, usize, usize)>,
}

impl<S, F: Fn() -> bool> Worded<S, F> {
    /// Looks at what hyper writes to a connection.
    pub const fn new(stream: S, idle: F) -> Self {
        Self {
            stream,
            idle,
            flushed: true,
            instead: None,
        }
    }
}

impl<S: AsyncWrite + Unpin, F: Fn() -> bool + Unpin> Worded<S, F> {
    /// Writes what stands in the place of hyper's answer, if these bytes are one.
    fn poll_instead(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        if self.instead.is_none() && self.flushed && (self.idle)() {
            self.instead = words_for(bytes).map(|words| (words, 0, bytes.len()));
        }
        let (words, written, length) = self.instead.as_mut()?;
        while *written < words.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &words[*written..]) {
                Poll::Ready(Ok(0)) => {
                    return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into())));
                }
                Poll::Ready(Ok(more)) => *written += more,
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        let length = *length;
        self.instead = None;
        self.flushed = false;
        Some(Poll::Ready(Ok(length)))
    }
}

/// The answer with words, if this is the whole of one that hyper has made.
fn words_for(bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.len() > LONGEST {
        return None;
    }
    let head = std::str::from_utf8(bytes).ok()?.strip_suffix("\r\n\r\n")?;
    let (status, headers) = head.split_once("\r\n")?;
    let kind = match status.strip_prefix("HTTP/1.1 ")?.get(..3)? {
        "400" => Kind::MalformedRequest,
        "414" => Kind::AddressTooLong,
        "431" => Kind::HeadTooLarge,
        _ => return None,
    };
    let mut kept = String::new();
    for header in headers.split("\r\n") {
        let (name, value) = header.split_once(": ")?;
        match (name.to_ascii_lowercase().as_str(), value) {
            ("content-length", "0") | ("connection", "close") => {}
            ("date", _) => kept += &format!("{header}\r\n"),
            _ => return None,
        }
    }
    let detail = match kind {
        Kind::AddressTooLong => "the path and the query together are longer than 65534 bytes",
        Kind::HeadTooLarge => {
            "the head of the request is larger than 64 KiB, or has more than 100 headers"
        }
        _ => "what was sent is not a request of HTTP/1.1; the connection is closed",
    };
    Some(Problem::new(kind, detail).close().into_http(&kept))
}

impl<S: AsyncRead + Unpin, F: Unpin> AsyncRead for Worded<S, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin, F: Fn() -> bool + Unpin> AsyncWrite for Worded<S, F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(written) = self.poll_instead(cx, bytes) {
            return written;
        }
        self.flushed = false;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [one] = bytes
            && let Some(written) = self.poll_instead(cx, one)
        {
            return written;
        }
        self.flushed = false;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // hyper comes here when it has nothing left to write.
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BARE: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n";

    #[test]
    fn only_what_says_nothing_gets_words() {
        let words =
            |text: &str| words_for(text.as_bytes()).map(|words| String::from_utf8(words).unwrap());
        let worded = words(BARE).unwrap();
        let (head, body) = worded.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains("date: Thu, 01 Jan 2026"), "{head}");
        assert!(head.contains("connection: close"), "{head}");
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{head}"
        );
        assert!(
            body.contains("urn:quorun:error:malformed-request"),
            "{body}"
        );
        for (from, to) in [
            ("400", "404"),
            ("content-length: 0", "content-length: 1"),
            ("date", "content-type"),
            ("1.1", "1.0"),
            ("\r\n\r\n", "\r\n"),
            ("\r\n\r\n", "\r\n\r\nmore"),
        ] {
            assert_eq!(words(&BARE.replacen(from, to, 1)), None, "{to}");
        }
    }

    #[tokio::test]
    async fn what_a_program_prints_stays_as_it_is() {
        for (idle, flushed, gets_words) in [
            (true, true, true),
            (false, true, false),
            (true, false, false),
        ] {
            let (here, mut there) = tokio::io::duplex(4096);
            let mut worded = Worded::new(here, move || idle);
            if !flushed {
                worded.write_all(b"the beginning of it\n").await.unwrap();
            }
            worded.write_all(BARE.as_bytes()).await.unwrap();
            drop(worded);
            let mut seen = String::new();
            there.read_to_string(&mut seen).await.unwrap();
            assert_eq!(seen.contains("urn:quorun:error"), gets_words, "{seen}");
            assert_eq!(seen.ends_with(BARE), !gets_words, "{seen}");
        }
    }
}
