//! Somebody talks to a program while it runs.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use quorun_tests::raw::Exchange;
use quorun_tests::{Client, Cluster, Executor, LONG, Plan};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

const PROTOCOL: &str = "quorun.attach.v1";

/// A connection to a program.
struct Attached {
    socket: WebSocketStream<TcpStream>,
    stdout: String,
    stderr: String,
    states: Vec<Value>,
    close: Option<(u16, String)>,
}

impl Attached {
    async fn try_open(client: &Client, id: &str) -> Result<Self, tungstenite::Error> {
        let url = format!("ws://{}/v1/jobs/{id}/attach", client.address());
        let mut request = url.into_client_request().expect("a request");
        let protocol = PROTOCOL.parse().expect("a header");
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        let stream = TcpStream::connect(client.address()).await?;
        let (socket, answer) = tokio_tungstenite::client_async(request, stream).await?;
        assert_eq!(answer.headers()["sec-websocket-protocol"], PROTOCOL);
        Ok(Self {
            socket,
            stdout: String::new(),
            stderr: String::new(),
            states: Vec::new(),
            close: None,
        })
    }

    async fn open(client: &Client, id: &str) -> Self {
        Self::try_open(client, id).await.expect("attached")
    }

    async fn send(&mut self, channel: u8, data: &[u8]) {
        let message = [&[channel], data].concat();
        self.socket
            .send(Message::Binary(message.into()))
            .await
            .expect("send");
    }

    async fn signal(&mut self, name: &str) {
        self.send(5, json!({ "signal": name }).to_string().as_bytes())
            .await;
    }

    async fn eof(&mut self) {
        self.send(255, &[0]).await;
    }

    /// Takes one message; `false` when there are no more.
    async fn take(&mut self) -> bool {
        match self.socket.next().await {
            Some(Ok(Message::Binary(data))) => {
                let text = String::from_utf8_lossy(&data[1..]).into_owned();
                match data[0] {
                    1 => self.stdout.push_str(&text),
                    2 => self.stderr.push_str(&text),
                    3 => self
                        .states
                        .push(serde_json::from_str(&text).expect("a state")),
                    other => panic!("channel {other}"),
                }
                true
            }
            Some(Ok(Message::Close(close))) => {
                self.close = close.map(|close| (close.code.into(), close.reason.to_string()));
                true
            }
            Some(Ok(_)) => true,
            Some(Err(_)) | None => false,
        }
    }

    async fn until(&mut self, text: &str) {
        soon(&format!("the program prints {text:?}"), async {
            while !self.stdout.contains(text) {
                assert!(
                    self.take().await,
                    "it ends: {:?} {:?}",
                    self.stdout,
                    self.close
                );
            }
        })
        .await;
    }

    /// To its end: the last state, and the code of the close.
    async fn end(&mut self) -> (Value, u16) {
        soon("the program ends", async { while self.take().await {} }).await;
        let last = self.states.last().cloned().unwrap_or_default();
        let (code, _) = self.close.clone().unwrap_or_default();
        (last, code)
    }
}

/// What must happen, and soon.
async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONG, happens).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {LONG:?}"),
    }
}

/// A job that somebody may talk to.
fn interactive(language: &str, source: &str) -> Value {
    json!({
        "language": language,
        "source": source,
        "interactive": true,
        "limits": { "cpu_ms": 20_000, "wall_ms": 60_000 },
    })
}

const ECHO: &str = "
import sys
print('ready', flush=True)
for line in sys.stdin:
    print('got', line.strip(), flush=True)
print('over', file=sys.stderr)
sys.exit(7)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_talked_to_through_every_node() {
    let cluster = Cluster::of_processes().await;
    let submitter = cluster.client(1);
    for client in cluster.clients() {
        // Until one runs on another node than the one that is asked.
        while !talk_through(client, submitter).await {}
    }
}

/// Whether the program ran on another node than the one that it was talked to through.
async fn talk_through(client: &Client, submitter: &Client) -> bool {
    let id = submitter.submit(&interactive("python", ECHO)).await;
    let mut attached = Attached::open(client, &id).await;
    attached.until("ready\n").await;
    for word in ["one", "two", "three"] {
        // The next is said only when the one before was answered.
        attached.send(0, format!("{word}\n").as_bytes()).await;
        attached.until(&format!("got {word}\n")).await;
    }
    attached.eof().await;
    let (last, code) = attached.end().await;
    assert_eq!(code, 1000, "{:?}", attached.close);
    assert_eq!(last["state"], "finished", "{last}");
    assert_eq!(last["verdict"], "runtime_error", "{last}");
    assert_eq!(last["exit_code"], 7, "{last}");
    assert_eq!(attached.stderr, "over\n");
    let job = submitter.job(&id).await;
    assert_eq!(job["stdout"], attached.stdout.as_str());
    assert_eq!(last["job"]["id"], id.as_str());
    let running = attached
        .states
        .iter()
        .find(|state| state["state"] == "running");
    let running = running.unwrap_or_else(|| panic!("{:?}", attached.states));
    let elsewhere = client.cluster().await["node"] != running["node"];
    // Whoever comes late sees all of it, and the end.
    let mut late = Attached::open(client, &id).await;
    let (last, code) = late.end().await;
    assert_eq!((last["exit_code"].as_i64(), code), (Some(7), 1000));
    assert_eq!(late.stdout, attached.stdout);
    elsewhere
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_program_and_two_may_talk() {
    let cluster = Cluster::of_processes().await;
    let source = "
import sys
print('ready', flush=True)
while True:
    try:
        line = sys.stdin.readline()
        if not line:
            sys.exit(3)
        print('got', line.strip(), flush=True)
    except KeyboardInterrupt:
        print('interrupted', flush=True)
";
    let id = cluster
        .client(1)
        .submit(&interactive("python", source))
        .await;
    let mut one = Attached::open(cluster.client(1), &id).await;
    let mut two = Attached::open(cluster.client(2), &id).await;
    one.until("ready\n").await;
    two.until("ready\n").await;
    one.send(0, b"from one\n").await;
    two.until("got from one\n").await;
    two.send(0, b"from two\n").await;
    one.until("got from two\n").await;
    two.signal("INT").await;
    one.until("interrupted\n").await;
    drop(two);
    // The program is not left alone, so its stdin is still open.
    one.send(0, b"still here\n").await;
    one.until("got still here\n").await;
    one.signal("KILL").await;
    let (last, code) = one.end().await;
    assert_eq!((last["signal"].as_i64(), code), (Some(9), 1000), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_on_a_terminal_sees_its_size_and_control_c() {
    let cluster = Cluster::of_processes().await;
    let source = r#"
import os, signal, sys
def size(number=None, frame=None):
    size = os.get_terminal_size()
    os.write(1, b'%dx%d\n' % (size.lines, size.columns))
signal.signal(signal.SIGWINCH, size)
assert os.isatty(0) and os.isatty(1) and os.isatty(2)
open('/dev/tty').close()
size()
try:
    while True:
        line = sys.stdin.readline()
        if not line:
            print('end of input', flush=True)
except KeyboardInterrupt:
    print('interrupted', flush=True)
    sys.exit(5)
"#;
    let mut job = interactive("python", source);
    job["terminal"] = json!({ "rows": 33, "columns": 99 });
    for client in cluster.clients() {
        let id = client.submit(&job).await;
        let mut attached = Attached::open(client, &id).await;
        attached.until("33x99\r\n").await;
        let size = json!({ "rows": 50, "columns": 120 });
        attached.send(4, size.to_string().as_bytes()).await;
        attached.until("50x120\r\n").await;
        attached.send(0, b"typed\n").await;
        // A terminal shows what is typed.
        attached.until("typed\r\n").await;
        attached.eof().await;
        attached.until("end of input\r\n").await;
        // What a terminal makes of it, not what the client does. Its stdin has ended only once.
        attached.signal("INT").await;
        attached.until("interrupted\r\n").await;
        let (last, code) = attached.end().await;
        assert_eq!(
            (last["exit_code"].as_i64(), code),
            (Some(5), 1000),
            "{last}"
        );
        assert_eq!(attached.stderr, "");
    }
    let mut job = interactive(
        "bash",
        "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done",
    );
    job["terminal"] = json!({ "rows": 1, "columns": 1000 });
    let client = cluster.any();
    let id = client.submit(&job).await;
    let mut attached = Attached::open(client, &id).await;
    attached.until("ready\r\n").await;
    attached.send(0, &[3]).await;
    attached.until("caught\r\n").await;
    assert_eq!(attached.end().await.0["exit_code"], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_nobody_talks_to_is_told_so_and_what_came_with_the_job_comes_first() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let client = cluster.any();
    let mut job = interactive("bash", "cat; echo end");
    job["stdin"] = "given\n".into();
    let id = client.submit(&job).await;
    let mut attached = Attached::open(client, &id).await;
    attached.until("given\n").await;
    attached.send(0, b"said\n").await;
    attached.until("said\n").await;
    // Gone, and not back in time: the end of stdin.
    drop(attached);
    let done = client.finished(&id).await;
    assert_eq!(done["stdout"], "given\nsaid\nend\n", "{done}");
    assert_eq!(done["verdict"], "accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_ends_with_its_node_and_says_so() {
    let mut cluster = Cluster::of_processes().await;
    let leader = cluster.leader().await;
    let client = cluster.client(leader).clone();
    loop {
        let id = client.submit(&interactive("python", ECHO)).await;
        let mut attached = Attached::open(&client, &id).await;
        attached.until("ready\n").await;
        let node = client.job(&id).await["node"].as_u64().expect("a node");
        if node == leader {
            attached.eof().await;
            attached.end().await;
            continue;
        }
        cluster.node(node).kill();
        let (last, code) = attached.end().await;
        assert_eq!(code, 1011, "{:?}", attached.close);
        assert_eq!(last["verdict"], "internal_error", "{last}");
        assert_eq!(last["job"]["attempts"], 1, "{last}");
        let message = last["message"].as_str().unwrap_or_default();
        assert!(message.contains("1 of 1 attempts"), "{message}");
        break;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_writes_more_than_is_read_waits_and_nobody_else() {
    let cluster = Cluster::of_processes().await;
    let source = "
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
print('ready', flush=True)
time.sleep(600)
";
    for client in cluster.clients() {
        let id = cluster
            .client(1)
            .submit(&interactive("python", source))
            .await;
        let mut attached = Attached::open(client, &id).await;
        attached.until("ready\n").await;
        let mut other = Attached::open(cluster.client(1), &id).await;
        other.until("ready\n").await;
        let piece = Bytes::from([&[0], &[b'x'; 60_000][..]].concat());
        let mut sent = 0;
        // At some time the client's own system takes no more.
        while let Ok(result) = tokio::time::timeout(
            std::time::Duration::from_secs(1),
            attached.socket.send(Message::Binary(piece.clone())),
        )
        .await
        {
            result.expect("send");
            sent += piece.len();
            assert!(sent < 64 << 20, "nobody waits");
        }
        // The other one still has the program's ear.
        other.signal("TERM").await;
        let (last, _) = other.end().await;
        assert_eq!(last["exit_code"], 4, "{last}");
        let (last, code) = attached.end().await;
        assert_eq!(
            (last["exit_code"].as_i64(), code),
            (Some(4), 1000),
            "{last}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_conversation_is_refused() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let client = cluster.any();
    let id = client.submit(&interactive("python", ECHO)).await;
    let path = format!("/v1/jobs/{id}/attach");

    // Before it is a WebSocket.
    client.get(&path).await.problem(400, "not-a-websocket");
    let plain = client
        .run(&json!({ "language": "bash", "source": "true" }))
        .await;
    let plain = plain["id"].as_str().expect("an id");
    let refused = |id: &str| {
        let id = id.to_owned();
        async move {
            match Attached::try_open(client, &id).await {
                Err(tungstenite::Error::Http(answer)) => {
                    let body = answer.body().clone().unwrap_or_default();
                    let body: Value = serde_json::from_slice(&body).expect("JSON");
                    (
                        answer.status().as_u16(),
                        body["type"].as_str().unwrap_or_default().to_owned(),
                    )
                }
                other => panic!("{:?}", other.map(|_| ())),
            }
        }
    };
    let kind = |kind: &str| format!("urn:quorun:error:{kind}");
    assert_eq!(refused(plain).await, (409, kind("not-interactive")));
    let unknown = "01900000-0000-7000-8000-000000000000";
    assert_eq!(refused(unknown).await, (404, kind("unknown-job")));
    assert_eq!(refused("what").await, (404, kind("unknown-job")));
    let upgrade = |more: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
        )
    };
    for (more, status) in [
        ("Sec-WebSocket-Protocol: other.v1, another\r\n", 400),
        ("Sec-WebSocket-Protocol: other, quorun.attach.v1\r\n", 101),
        ("", 101),
    ] {
        let mut exchange = Exchange::send(client.address(), upgrade(more).as_bytes()).await;
        assert_eq!(exchange.head().await.0, status, "{more}");
    }
    let old = upgrade("").replace("Version: 13", "Version: 8");
    let mut exchange = Exchange::send(client.address(), old.as_bytes()).await;
    assert_eq!(exchange.head().await.0, 400);

    // Afterwards.
    let long = [&[0][..], &[b'x'; 65_537]].concat();
    for (message, code) in [
        (Message::Text("ls".into()), 1003),
        (Message::Binary(Bytes::new()), 1008),
        (Message::Binary(vec![9].into()), 1008),
        (Message::Binary(vec![255, 1].into()), 1008),
        (
            Message::Binary(b"\x05{\"signal\":\"HUP\"}".to_vec().into()),
            1008,
        ),
        (
            Message::Binary(b"\x04{\"rows\":0,\"columns\":80}".to_vec().into()),
            1008,
        ),
        (Message::Binary(long.into()), 1009),
    ] {
        let shown = format!("{:.40}", format!("{message:?}"));
        let mut attached = Attached::open(client, &id).await;
        attached.socket.send(message).await.expect("send");
        let (_, closed) = attached.end().await;
        assert_eq!(closed, code, "{shown}: {:?}", attached.close);
    }
    // Bytes that are no frames: unmasked, reserved bits, an endless length.
    for bytes in [
        &b"\x82\x01\x00"[..],
        b"\xf2\x81\0\0\0\0\0",
        b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
    ] {
        let request = [upgrade("").as_bytes(), bytes].concat();
        let mut exchange = Exchange::send(client.address(), &request).await;
        assert_eq!(exchange.head().await.0, 101);
        exchange.ends().await;
    }
    // The program has not noticed any of it.
    let mut attached = Attached::open(client, &id).await;
    attached.until("ready\n").await;
    attached.send(0, b"still\n").await;
    attached.until("got still\n").await;
    attached.eof().await;
    assert_eq!(attached.end().await.0["exit_code"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_submission_says_of_a_conversation_is_checked() {
    let cluster = Cluster::start(Plan::new(Executor::Noop).nodes(1)).await;
    let client = cluster.any();
    let size = |rows: Value, columns: Value| json!({ "rows": rows, "columns": columns });
    for (interactive, terminal, field) in [
        (json!(1), json!(null), "interactive"),
        (json!("yes"), json!(null), "interactive"),
        (json!(false), size(json!(24), json!(80)), "terminal"),
        (json!(null), json!(null), "interactive"),
        (json!(true), json!(true), "terminal"),
        (json!(true), json!({}), "terminal.rows"),
        (json!(true), json!({ "rows": 24 }), "terminal.columns"),
        (
            json!(true),
            json!({ "rows": 24, "columns": 80, "depth": 1 }),
            "terminal.depth",
        ),
        (json!(true), size(json!(0), json!(80)), "terminal.rows"),
        (
            json!(true),
            size(json!(24), json!(1001)),
            "terminal.columns",
        ),
        (
            json!(true),
            size(json!(u64::MAX), json!(80)),
            "terminal.rows",
        ),
        (json!(true), size(json!(-1), json!(80)), "terminal.rows"),
        (json!(true), size(json!("24"), json!(80)), "terminal.rows"),
        (json!(true), size(json!(24.5), json!(80)), "terminal.rows"),
    ] {
        let job = json!({
            "language": "bash", "source": "true", "interactive": interactive, "terminal": terminal,
        });
        let problem = client
            .post_json("/v1/jobs", &job)
            .await
            .problem(422, "invalid-request");
        assert_eq!(problem["field"], field, "{job}: {problem}");
    }
    let job = json!({
        "language": "bash", "source": "true", "interactive": true, "terminal": size(json!(1), json!(1000)),
    });
    client.submit(&job).await;
}
