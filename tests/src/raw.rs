//! HTTP/1.1 by hand, for what no client library shows: when a chunk arrives, what comes behind the body, and a
//! connection that breaks at a place of the test's choice.

use std::collections::BTreeMap;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A connection with one request under way.
#[derive(Debug)]
pub struct Exchange {
    stream: BufReader<TcpStream>,
}

/// Header fields, by their names in lower case.
pub type Fields = BTreeMap<String, String>;

impl Exchange {
    /// Connects and sends these bytes.
    ///
    /// # Panics
    /// When the connection breaks; so for every call here.
    pub async fn send(address: &str, bytes: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        stream.write_all(bytes).await.expect("send");
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Sends a whole POST whose answer may have trailers.
    pub async fn post(address: &str, path: &str, body: &str) -> Self {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nTE: trailers\r\nConnection: close, TE\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Self::send(address, request.as_bytes()).await
    }

    /// Sends a whole GET.
    pub async fn get(address: &str, path: &str) -> Self {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        Self::send(address, request.as_bytes()).await
    }

    /// Reads the status and the header.
    ///
    /// # Panics
    /// When the answer is not HTTP.
    pub async fn head(&mut self) -> (u16, Fields) {
        let line = self.line().await;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {line:?}"));
        (status, self.fields().await)
    }

    /// Reads the next chunk of a chunked body, or the trailers behind the last.
    ///
    /// # Panics
    /// When the body is not chunked.
    pub async fn chunk(&mut self) -> Result<String, Fields> {
        let line = self.line().await;
        let size = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16)
            .unwrap_or_else(|_| panic!("not the size of a chunk: {line:?}"));
        if size == 0 {
            return Err(self.fields().await);
        }
        let mut data = vec![0; size + 2];
        self.stream.read_exact(&mut data).await.expect("a chunk");
        data.truncate(size);
        Ok(String::from_utf8_lossy(&data).into_owned())
    }

    /// Reads chunks until they hold `text`, and returns what they held.
    ///
    /// # Panics
    /// When the body ends before.
    pub async fn chunks_until(&mut self, text: &str) -> String {
        let mut all = String::new();
        while !all.contains(text) {
            match self.chunk().await {
                Ok(data) => all.push_str(&data),
                Err(trailers) => panic!("the body has ended: {all:?} {trailers:?}"),
            }
        }
        all
    }

    /// Reads the rest of the body, and the trailers.
    pub async fn rest(&mut self) -> (String, Fields) {
        let mut all = String::new();
        loop {
            match self.chunk().await {
                Ok(data) => all.push_str(&data),
                Err(trailers) => return (all, trailers),
            }
        }
    }

    /// Waits until the other side has closed the connection, whatever it sends before.
    pub async fn ends(&mut self) {
        let mut rest = Vec::new();
        // A connection that is reset has ended as well.
        let _ = self.stream.read_to_end(&mut rest).await;
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .await
            .expect("read a line of the answer");
        line.trim_end().to_owned()
    }

    async fn fields(&mut self) -> Fields {
        let mut fields = Fields::new();
        loop {
            let line = self.line().await;
            match line.split_once(':') {
                Some((name, value)) => {
                    fields.insert(name.to_ascii_lowercase(), value.trim().to_owned());
                }
                None => return fields,
            }
        }
    }
}
