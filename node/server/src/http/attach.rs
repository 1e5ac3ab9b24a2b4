//! `GET /v1/jobs/{id}/attach`: a WebSocket on which somebody talks to the program of an interactive job.
//!
//! The subprotocol is `quorun.attach.v1`. Every message is binary, and its first byte says what the rest is, as with
//! Kubernetes' attach: from the client 0 stdin, 4 the size of the terminal (`{"rows", "columns"}`), 5 a signal
//! (`{"signal": "INT"}`), 255 and then 0 the end of stdin; to the client 1 stdout, 2 stderr, 3 the state of the job
//! (`{"state", …}`, at its end with the whole `job`).
//!
//! What the client sends goes to the node that runs the program and waits there, on its way, and at last in the client,
//! while the program does not read. What the program prints comes as from `events`; a client that does not read holds up
//! nobody.

use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, Path, State};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, Stream, StreamExt};
use http::{HeaderMap, header};
use quorun_executor::Stream as Std;
use quorun_ledger::{JobId, JobState, NodeId, Verdict};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite;

use self::channel::{CLOSE, SIGNAL, SIZE, STATE, STDERR, STDIN, STDOUT};
use super::interactive::TerminalRequest;
use super::problem::{Kind, Problem};
use super::query::Asked;
use super::{App, events, gate, job_id, path, view};
use crate::console::Said;
use crate::follow::{Followed, Told, Until};
use crate::jobs::Error;
use crate::pressure::Client;
use crate::resume::Heard;
use crate::talk::Lost;

/// The subprotocol.
const PROTOCOL: &str = "quorun.attach.v1";
/// The longest message of a client, with its first byte.
const MAX_MESSAGE: usize = (64 << 10) + 1;
/// What a client may have said before it can be passed on, messages.
const MESSAGES: usize = 16;
/// How often a client is asked whether it is there.
const PING: Duration = Duration::from_secs(15);
/// How long it may be silent.
const SILENCE: Duration = Duration::from_secs(45);
/// How long the last words to a client may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The first byte of each message of `quorun.attach.v1`, for both ends.
pub mod channel {
    /// What the program reads.
    pub const STDIN: u8 = 0;
    /// What it prints.
    pub const STDOUT: u8 = 1;
    /// What it prints to its stderr.
    pub const STDERR: u8 = 2;
    /// How the job stands.
    pub const STATE: u8 = 3;
    /// How large the terminal is.
    pub const SIZE: u8 = 4;
    /// A signal for the program.
    pub const SIGNAL: u8 = 5;
    /// The end of the channel that the next byte names.
    pub const CLOSE: u8 = 255;
}

/// Codes of RFC 6455, and of the registry that it began.
const NORMAL: u16 = 1000;
const UNSUPPORTED: u16 = 1003;
const POLICY: u16 = 1008;
const TOO_BIG: u16 = 1009;
const FAILED: u16 = 1011;
const NODE_ENDS: u16 = 1012;
const TRY_AGAIN: u16 = 1013;

/// Talk to a job's program
#[utoipa::path(
    get, path = "/v1/jobs/{id}/attach", operation_id = "attach_to_job", tag = "live",
    description = "A WebSocket with the subprotocol `quorun.attach.v1`, for a job that was submitted with `interactive`. Every message is binary, and its first byte says what the rest is. From the client: 0 stdin, 4 the size of the terminal (`{\"rows\", \"columns\"}`), 5 a signal (`{\"signal\": \"INT\"}`), 255 and then 0 the end of stdin. To the client: 1 stdout, 2 stderr, 3 the state of the job (`{\"state\", …}`, at its end with the whole `job`).",
    params(
        ("id" = String, Path, format = Uuid, description = "The job"),
        ("last_event_id" = Option<String>, Query, description = "Where to go on: the id of the last event that came"),
        ("Last-Event-ID" = Option<String>, Header, description = "Where to go on: the id of the last event that came"),
    ),
    responses((status = 101, description = "The WebSocket is open")),
    extensions(("x-problems" = json!(["unknown-job", "not-a-websocket", "not-interactive", "no-quorum", "node-failing"]))),
)]
pub async fn attach(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<Client>,
    id: Result<Path<String>, PathRejection>,
    query: Asked,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let id = job_id(&path(id)?)?;
    let query = events::read(query)?;
    let last = query.last_event_id(&headers);
    let upgrade = upgrade.map_err(|error| not_a_websocket(&error.body_text()))?;
    let offered = headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL);
    let upgrade = upgrade
        .protocols([PROTOCOL])
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE);
    if offered && upgrade.selected_protocol().is_none() {
        return Err(not_a_websocket(&format!(
            "none of the subprotocols that were offered is {PROTOCOL}"
        )));
    }
    app.jobs.get(id, false).await?;
    if app.jobs.is_interactive(id).await? == Some(false) {
        return Err(Problem::new(Kind::NotInteractive,
            format!(
                "job {id} was submitted without \"interactive\": true; follow it at /v1/jobs/{id}/events"
            ),
        )
        .with("job", id.to_string()));
    }
    let waits = gate::wait(&app, client)?;
    let heard = Heard::from_id(last.as_deref());
    Ok(upgrade
        .on_upgrade(move |socket| async move {
            serve(app, id, heard, socket).await;
            drop(waits);
        })
        .into_response())
}

fn not_a_websocket(reason: &str) -> Problem {
    Problem::new(
        Kind::NotAWebSocket,
        format!("the request does not open a WebSocket with the subprotocol {PROTOCOL}: {reason}"),
    )
}

/// Why a connection ends.
#[derive(Debug, PartialEq, Eq)]
struct End {
    code: u16,
    reason: String,
}

impl End {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        // A close frame has room for so much.
        while reason.len() > 120 {
            reason.pop();
        }
        Self { code, reason }
    }
}

async fn serve(app: App, job: JobId, heard: Heard, socket: WebSocket) {
    let (mut sink, mut source) = socket.split();
    let (to_talk, said) = mpsc::channel(MESSAGES);
    let (runs, place) = watch::channel(None);
    let followed = app.jobs.follow(job, heard, Until::End);
    // They wait for each other only through the channels: a program's answers go out while somebody still speaks.
    let end = {
        let shows = show(&mut sink, Box::pin(followed), &runs);
        let hears = hear(&mut source, &to_talk);
        let talks = talk(&app, job, place, said);
        tokio::select! {
            end = shows => end,
            end = hears => end,
            end = talks => Some(end),
            () = app.closing.cancelled() => {
                Some(End::new(NODE_ENDS, "this node is about to end; attach through another one"))
            }
        }
    };
    // The client has gone, or has said that it goes.
    let Some(End { code, reason }) = end else {
        return;
    };
    let close = Message::Close(Some(CloseFrame {
        code,
        reason: reason.into(),
    }));
    let last_words = async {
        let _ = sink.send(close).await;
        // Until the client has seen it: otherwise its system could throw away what was sent before.
        while let Some(Ok(_)) = source.next().await {}
    };
    let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
}

type Sink = SplitSink<WebSocket, Message>;

/// Shows the client what the program prints, to its end. `None` when the client has gone.
async fn show(
    sink: &mut Sink,
    mut followed: impl Stream<Item = Result<Told, Error>> + Unpin,
    runs: &watch::Sender<Option<(NodeId, u32)>>,
) -> Option<End> {
    let mut ping = tokio::time::interval(PING);
    loop {
        let told = tokio::select! {
            told = followed.next() => told,
            _ = ping.tick() => {
                sink.send(Message::Ping(Bytes::new())).await.ok()?;
                continue;
            }
        };
        let followed = match told {
            Some(Ok((followed, _))) => followed,
            Some(Err(error)) => return Some(End::new(TRY_AGAIN, error.to_string())),
            None => return Some(End::new(FAILED, "the job was lost sight of")),
        };
        match followed {
            Followed::State {
                state,
                attempt,
                node,
            } => {
                if let (JobState::Running, Some(node)) = (state, node) {
                    // Told again it is no other attempt, and whoever talks to it goes on.
                    runs.send_if_modified(|known| {
                        let before = known.replace((node, attempt));
                        before != *known
                    });
                }
                let shown = json!({ "state": state.as_str(), "attempt": attempt, "node": node });
                // The end is shown with the whole job.
                if state != JobState::Finished {
                    sink.send(frame(STATE, shown.to_string().as_bytes()))
                        .await
                        .ok()?;
                }
            }
            Followed::Output { stream, data, .. } => {
                let channel = match stream {
                    Std::Stdout => STDOUT,
                    Std::Stderr => STDERR,
                };
                sink.send(frame(channel, &data)).await.ok()?;
            }
            Followed::Replaced(replaced) => {
                let shown = json!({
                    "state": "replaced", "attempt": replaced.attempt, "by": replaced.by
                });
                sink.send(frame(STATE, shown.to_string().as_bytes()))
                    .await
                    .ok()?;
            }
            Followed::Case { .. } | Followed::Shown { .. } => {}
            Followed::Finished(details) => {
                let verdict = details.job.outcome.as_ref().map(|outcome| outcome.verdict);
                let shown = finished(&view::details(&details));
                sink.send(frame(STATE, shown.to_string().as_bytes()))
                    .await
                    .ok()?;
                return Some(match verdict {
                    Some(Verdict::InternalError) => {
                        End::new(FAILED, "the program could not be run to its end")
                    }
                    _ => End::new(NORMAL, "the program has ended"),
                });
            }
        }
    }
}

/// The job at its end. What it printed has been sent.
fn finished(job: &Value) -> Value {
    let mut job = job.clone();
    if let Some(job) = job.as_object_mut() {
        for printed in ["stdout", "stderr", "stdout_base64", "stderr_base64"] {
            job.remove(printed);
        }
    }
    json!({
        "state": "finished",
        "verdict": job["verdict"],
        "exit_code": job["exit_code"],
        "signal": job["signal"],
        "message": job["message"],
        "job": job,
    })
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(1 + data.len());
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

/// Hears what the client says. `None` when it has gone.
async fn hear(source: &mut SplitStream<WebSocket>, to_talk: &mpsc::Sender<Said>) -> Option<End> {
    loop {
        let Ok(message) = tokio::time::timeout(SILENCE, source.next()).await else {
            return Some(End::new(
                POLICY,
                "nothing was heard, not even the answer to a ping",
            ));
        };
        let message = match message? {
            Ok(message) => message,
            Err(error) => return wrong(error),
        };
        match message {
            Message::Binary(data) => match parse(data) {
                Ok(Some(said)) => to_talk.send(said).await.ok()?,
                Ok(None) => {}
                Err(end) => return Some(end),
            },
            Message::Text(_) => {
                return Some(End::new(
                    UNSUPPORTED,
                    "a text message; all messages are binary, and their first byte says what they are",
                ));
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return None,
        }
    }
}

/// What to say of something that cannot be read.
fn wrong(error: axum::Error) -> Option<End> {
    match error.into_inner().downcast_ref::<tungstenite::Error>() {
        Some(tungstenite::Error::Capacity(_)) => Some(End::new(
            TOO_BIG,
            format!("a message may have {MAX_MESSAGE} bytes"),
        )),
        Some(tungstenite::Error::Utf8(_)) => Some(End::new(UNSUPPORTED, "text that is not UTF-8")),
        Some(tungstenite::Error::Protocol(error)) => Some(End::new(1002, error.to_string())),
        _ => None,
    }
}

/// The body of a size or a signal.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signal {
    signal: String,
}

/// What a message says; nothing, if it is stdin without a byte.
fn parse(mut message: Bytes) -> Result<Option<Said>, End> {
    let wrong = |reason: String| End::new(POLICY, reason);
    if message.is_empty() {
        return Err(wrong(
            "an empty message; the first byte says what it is".to_owned(),
        ));
    }
    let channel = message.split_to(1)[0];
    let said = match channel {
        STDIN if message.is_empty() => return Ok(None),
        STDIN => Said::Stdin(message),
        SIZE => {
            let asked: TerminalRequest = serde_json::from_slice(&message)
                .map_err(|error| wrong(format!("the size of the terminal: {error}")))?;
            let size = asked.size("terminal");
            Said::Size(size.map_err(|_| wrong("rows and columns are 1 to 1000".to_owned()))?)
        }
        SIGNAL => {
            let asked: Signal = serde_json::from_slice(&message)
                .map_err(|error| wrong(format!("a signal: {error}")))?;
            Said::Signal(match asked.signal.as_str() {
                "INT" => 2,
                "KILL" => 9,
                "TERM" => 15,
                _ => return Err(wrong("a signal is INT, TERM or KILL".to_owned())),
            })
        }
        CLOSE if *message == [STDIN] => Said::Eof,
        CLOSE => return Err(wrong("only channel 0, stdin, can be closed".to_owned())),
        other => return Err(wrong(format!("nothing is sent on channel {other}"))),
    };
    Ok(Some(said))
}

/// Passes on what the client says, once the program runs. Ends only when that can no longer be done.
async fn talk(
    app: &App,
    job: JobId,
    mut place: watch::Receiver<Option<(NodeId, u32)>>,
    mut said: mpsc::Receiver<Said>,
) -> End {
    loop {
        let Some((node, attempt)) = *place.borrow_and_update() else {
            // Held by `serve`, which ends this first.
            let _ = place.changed().await;
            continue;
        };
        let passed = async {
            let mut talk = app.jobs.talk(node, (job, attempt)).await?;
            loop {
                tokio::select! {
                    what = said.recv() => match what {
                        Some(what) => talk.say(what).await?,
                        None => return std::future::pending().await,
                    },
                    over = talk.over() => {
                        over?;
                        return Ok(());
                    }
                }
            }
        };
        let passed: Result<(), Lost> = tokio::select! {
            passed = passed => passed,
            // The attempt has been replaced.
            _ = place.changed() => continue,
        };
        match passed {
            // Over: what is said from now on is lost, as what is said to a program that has ended.
            Ok(()) => loop {
                tokio::select! {
                    _ = said.recv() => {}
                    _ = place.changed() => break,
                }
            },
            Err(lost) => {
                // When its node has died there will soon be news of the job, which says more.
                tokio::time::sleep(NEWS).await;
                return End::new(TRY_AGAIN, format!("{lost}; attach again"));
            }
        }
    }
}

/// How long news of a job is waited for when there is no way to its node: longer than it takes to find a node dead.
const NEWS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fuzz;
    use super::*;

    fn parsed(bytes: &[u8]) -> Result<Option<Said>, u16> {
        parse(Bytes::copy_from_slice(bytes)).map_err(|end| end.code)
    }

    #[test]
    fn messages_say_what_they_are_meant_to() {
        assert_eq!(parsed(b"\0ls\n"), Ok(Some(Said::Stdin("ls\n".into()))));
        assert_eq!(parsed(b"\0"), Ok(None));
        assert_eq!(parsed(b"\xff\0"), Ok(Some(Said::Eof)));
        assert_eq!(
            parsed(b"\x05{\"signal\":\"TERM\"}"),
            Ok(Some(Said::Signal(15)))
        );
        assert_eq!(
            parsed(b"\x04{\"rows\":50,\"columns\":120}"),
            Ok(Some(Said::Size(quorun_ledger::Terminal {
                rows: 50,
                columns: 120
            })))
        );
        for bad in [
            &b""[..],
            b"\x01out",
            b"\x03{}",
            b"\x06",
            b"\xff",
            b"\xff\x01",
            b"\xff\0\0",
            b"\x05{\"signal\":\"HUP\"}",
            b"\x05{\"signal\":9}",
            b"\x05{\"signal\":\"INT\",\"pid\":1}",
            b"\x05INT",
            b"\x04{\"rows\":0,\"columns\":1}",
            b"\x04{\"rows\":1,\"columns\":1001}",
            b"\x04{\"rows\":-1,\"columns\":1}",
            b"\x04{\"rows\":1}",
        ] {
            assert_eq!(parsed(bad), Err(POLICY), "{bad:?}");
        }
    }

    /// What a message can have behind its first byte.
    fn rests() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any::<Vec<u8>>(),
            "[{}\":a-zA-Z0-9,]{0,60}".prop_map(String::into_bytes),
            fuzz::bodies(&json!({ "rows": 24, "columns": 80 }), fuzz::NAMES),
            fuzz::bodies(&json!({ "signal": "INT" }), fuzz::NAMES),
        ]
    }

    proptest! {
        #[test]
        fn any_message_is_understood_or_refused(
            channel in prop_oneof![any::<u8>(), Just(SIZE), Just(SIGNAL), Just(CLOSE)],
            rest in rests(),
        ) {
            let mut message = vec![channel];
            message.extend(&rest);
            match parse(message.into()) {
                Ok(said) => prop_assert!(matches!(channel, STDIN | SIZE | SIGNAL | CLOSE), "{said:?}"),
                Err(end) => prop_assert!(end.code == POLICY && end.reason.len() <= 120),
            }
        }
    }
}
