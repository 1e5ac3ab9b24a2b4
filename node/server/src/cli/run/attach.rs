//! `quorun run --interactive`: this terminal is the program's; and any run whose stdin does not end soon.
//!
//! What is read goes to the program through a WebSocket, and what it prints comes back. When the node that is asked goes
//! away, another one is asked for what comes behind what was seen; what was typed in the last moment may be lost then.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{Sink, SinkExt, StreamExt};
use http::{Method, header};
use rustix::termios::{OptionalActions, Termios};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::either::Either;

use super::super::client::{Client, is_secure};
use super::super::errors::{NoAnswer, Refused};
use super::input::Keys;
use super::write;
use crate::http::attach::channel::{CLOSE, SIGNAL, SIZE, STATE, STDERR, STDIN, STDOUT};

/// The subprotocol.
const PROTOCOL: &str = "quorun.attach.v1";
/// How long no node may answer: a program is left alone no longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a node is asked again.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a conversation may take if nobody says otherwise, where the cluster lets it.
pub const WALL_MS: u64 = 600_000;

/// What an interactive submission has more: a terminal, if this program has one.
pub fn add_to(request: &mut Value) {
    request["interactive"] = true.into();
    if on_a_terminal()
        && let Some((rows, columns)) = size()
    {
        request["terminal"] = json!({ "rows": rows, "columns": columns });
    }
}

fn on_a_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// The size of this terminal, as far as the program may know it.
fn size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    Some((size.ws_row.clamp(1, 1000), size.ws_col.clamp(1, 1000)))
}

/// A terminal that passes on every key as it is; as it was before at the end.
struct Raw(Termios);

impl Raw {
    fn begin() -> Option<Self> {
        if !on_a_terminal() {
            return None;
        }
        let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let stdin = rustix::stdio::stdin();
        let _ = rustix::termios::tcsetattr(stdin, OptionalActions::Now, &self.0);
    }
}

/// What has been seen of the program.
#[derive(Default)]
struct Seen {
    attempt: u64,
    printed: [u64; 2],
}

type Socket = WebSocketStream<Either<TcpStream, TlsStream<TcpStream>>>;

/// What is said to the program, whatever connection it goes by.
struct Said {
    keys: Keys,
    interrupt: Signal,
    terminate: Signal,
    resized: Signal,
    /// Some of this program's stdin was passed on.
    spoke: bool,
    /// The end of it was.
    ended: bool,
    /// Signals to this program.
    signals: u32,
    /// Those that came while something else was sent.
    owed: VecDeque<Message>,
}

impl Said {
    fn begin(keys: Keys) -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            keys,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            resized: listen(SignalKind::window_change())?,
            spoke: false,
            ended: false,
            signals: 0,
            owed: VecDeque::new(),
        })
    }

    /// The next thing to say.
    async fn next(&mut self) -> anyhow::Result<Message> {
        if let Some(owed) = self.owed.pop_front() {
            return Ok(owed);
        }
        loop {
            tokio::select! {
                keys = self.keys.next(), if !self.ended => {
                    self.spoke = true;
                    return Ok(match keys {
                        Some(keys) => frame(STDIN, &keys),
                        None => {
                            self.ended = true;
                            frame(CLOSE, &[STDIN])
                        }
                    });
                }
                _ = self.interrupt.recv() => return self.signal("INT"),
                _ = self.terminate.recv() => return self.signal("TERM"),
                _ = self.resized.recv() => {
                    if let Some((rows, columns)) = size() {
                        let size = json!({ "rows": rows, "columns": columns });
                        return Ok(frame(SIZE, size.to_string().as_bytes()));
                    }
                }
            }
        }
    }

    /// Hears signals while something is being sent: a program that does not read may hold that up for as long as it runs.
    async fn hear_signals(&mut self) -> anyhow::Error {
        loop {
            let name = tokio::select! {
                _ = self.interrupt.recv() => "INT",
                _ = self.terminate.recv() => "TERM",
            };
            match self.signal(name) {
                Ok(message) => self.owed.push_back(message),
                Err(error) => return error,
            }
        }
    }

    /// The program may handle a signal and go on; at the third one, this program does not wait for it any more.
    fn signal(&mut self, name: &str) -> anyhow::Result<Message> {
        self.signals += 1;
        if self.signals > 2 {
            bail!("interrupted before the program had ended");
        }
        let signal = json!({ "signal": name });
        Ok(frame(SIGNAL, signal.to_string().as_bytes()))
    }

    /// Says everything by a connection, until that breaks; returns why it has.
    async fn all(
        &mut self,
        mut sink: impl Sink<Message, Error = tungstenite::Error> + Unpin,
    ) -> anyhow::Result<String> {
        loop {
            let message = self.next().await?;
            let sent = tokio::select! {
                sent = sink.send(message) => sent,
                error = self.hear_signals() => return Err(error),
            };
            if let Err(error) = sent {
                return Ok(error.to_string());
            }
        }
    }
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(1 + data.len());
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(bytes.into())
}

/// How a connection ended.
enum Ended {
    /// The program has, in this state.
    Program(Value),
    /// The node has gone, or asks to try another one.
    Again(String),
}

/// How a program is talked to.
pub struct Conversation {
    /// What it reads.
    pub keys: Keys,
    /// It is data, and not what somebody types: with a hole in it, its result would be wrong without a word.
    pub flows: bool,
    /// What it says is not printed.
    pub silent: bool,
}

/// Passes on what is read, and prints what the program says, until it has ended. Returns the job without what it printed.
///
/// # Errors
/// When the job cannot be reached any more; when a part of what it should read may be lost, the job is cancelled.
pub async fn talk(client: &Client, id: &str, with: Conversation) -> anyhow::Result<Value> {
    let raw = Raw::begin();
    let mut said = Said::begin(with.keys)?;
    let shows = !with.silent;
    let mut seen = Seen::default();
    let mut silent = Instant::now();
    let mut before = false;
    let state = loop {
        let reason = match connect(client, id, &seen).await {
            Ok(mut socket) => {
                if before && with.flows && said.spoke {
                    let path = format!("/v1/jobs/{id}");
                    let cancelled = client.ask(Method::DELETE, &path, None).await;
                    let words = match cancelled {
                        Ok(_) => "it was cancelled".to_owned(),
                        Err(error) => format!("it could not be cancelled: {error:#}"),
                    };
                    bail!(
                        "the node that passed stdin on to job {id} has gone, and some of that may be lost; {words}. Input from a file (--stdin FILE) goes with the job"
                    );
                }
                if before {
                    // Its node may have gone with it.
                    if said.ended {
                        said.owed.push_back(frame(CLOSE, &[STDIN]));
                    }
                    let note = "quorun: the node has gone; what was typed last may be lost\r\n";
                    write(true, note.as_bytes())?;
                }
                before = true;
                match converse(&mut socket, &mut said, &mut seen, raw.is_some(), shows).await? {
                    Ended::Program(state) => break state,
                    Ended::Again(reason) => {
                        silent = Instant::now();
                        reason
                    }
                }
            }
            Err(NotConnected::Final(error)) => return Err(error),
            Err(NotConnected::Again(reason)) => reason,
        };
        if silent.elapsed() > PATIENCE {
            let words = format!("job {id} cannot be reached any more: {reason}");
            return Err(NoAnswer(words).into());
        }
        client.next_node();
        tokio::time::sleep(PAUSE).await;
    };
    drop(raw);
    Ok(state["job"].clone())
}

/// Why there is no connection.
enum NotConnected {
    Final(anyhow::Error),
    Again(String),
}

async fn connect(client: &Client, id: &str, seen: &Seen) -> Result<Socket, NotConnected> {
    let again = |error: &dyn std::fmt::Display| NotConnected::Again(error.to_string());
    let base = client.base();
    let secure = is_secure(base);
    let (scheme, usual_port) = if secure { ("wss", 443) } else { ("ws", 80) };
    let host = base.split_once("://").map_or(base, |(_, host)| host);
    let last = match seen.attempt {
        0 => String::new(),
        attempt => {
            let [stdout, stderr] = seen.printed;
            format!("?last_event_id={attempt}-{stdout}-{stderr}")
        }
    };
    let url = format!("{scheme}://{host}/v1/jobs/{id}/attach{last}");
    let mut request = url
        .into_client_request()
        .map_err(|error| NotConnected::Final(error.into()))?;
    let headers = request.headers_mut();
    headers.insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        header::HeaderValue::from_static(PROTOCOL),
    );
    if let Some(token) = client.authorization() {
        headers.insert(header::AUTHORIZATION, token.clone());
    }
    let authority = request.uri().authority().cloned();
    let (name, port) = match &authority {
        Some(authority) => (
            authority.host().trim_matches(['[', ']']).to_owned(),
            authority.port_u16().unwrap_or(usual_port),
        ),
        None => return Err(again(&"the URL has no host")),
    };
    let stream = TcpStream::connect((name.as_str(), port))
        .await
        .map_err(|error| again(&error))?;
    let _ = stream.set_nodelay(true);
    let stream = if secure {
        let name = ServerName::try_from(name).map_err(|error| NotConnected::Final(error.into()))?;
        let connector = TlsConnector::from(Arc::clone(client.tls()));
        let stream = connector.connect(name, stream).await;
        Either::Right(stream.map_err(|error| again(&error))?)
    } else {
        Either::Left(stream)
    };
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => {
            let status = answer.status();
            let body = answer.body().as_deref().unwrap_or_default();
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            let refused = Refused::new(status, body);
            if status.is_server_error() || status.as_u16() == 429 {
                Err(NotConnected::Again(refused.to_string()))
            } else {
                Err(NotConnected::Final(refused.into()))
            }
        }
        Err(error) => Err(again(&error)),
    }
}

/// Codes of a close that say that the job is not the reason.
const ELSEWHERE: [u16; 3] = [1001, 1012, 1013];

async fn converse(
    socket: &mut Socket,
    said: &mut Said,
    seen: &mut Seen,
    raw: bool,
    shows: bool,
) -> anyhow::Result<Ended> {
    if let Some((rows, columns)) = size().filter(|_| raw) {
        let size = json!({ "rows": rows, "columns": columns });
        let _ = socket.send(frame(SIZE, size.to_string().as_bytes())).await;
    }
    let (sink, mut source) = socket.split();
    // What is said is not waited for: while it waits for the program, the program goes on to print.
    let said = said.all(sink);
    tokio::pin!(said);
    loop {
        let message = tokio::select! {
            message = source.next() => message,
            broken = &mut said => return broken.map(Ended::Again),
        };
        let data = match message {
            Some(Ok(Message::Binary(data))) => data,
            Some(Ok(Message::Close(Some(close)))) if !ELSEWHERE.contains(&close.code.into()) => {
                bail!("the node has ended the connection: {}", close.reason);
            }
            Some(Ok(Message::Close(_))) => return Ok(Ended::Again("the node ends".to_owned())),
            Some(Ok(_)) => continue,
            Some(Err(error)) => return Ok(Ended::Again(error.to_string())),
            None => return Ok(Ended::Again("the node has gone".to_owned())),
        };
        let Some((channel, data)) = data.split_first() else {
            continue;
        };
        match *channel {
            STDOUT => {
                seen.printed[0] += data.len() as u64;
                if shows {
                    write(false, data)?;
                }
            }
            STDERR => {
                seen.printed[1] += data.len() as u64;
                if shows {
                    write(true, data)?;
                }
            }
            STATE => {
                let state: Value = serde_json::from_slice(data).context("the job's state")?;
                if state["state"] == "finished" {
                    return Ok(Ended::Program(state));
                }
                if let Some(attempt) = state["attempt"].as_u64().filter(|a| *a != seen.attempt) {
                    *seen = Seen {
                        attempt,
                        printed: [0; 2],
                    };
                }
            }
            _ => {}
        }
    }
}
