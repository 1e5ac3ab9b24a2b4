//! Clients that mean harm: requests in which two ends could see different things, heads without an end, and connections
//! that do nothing.

use std::time::{Duration, Instant};

use quorun_tests::{Client, Cluster, Executor, LONG, Plan, eventually};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{one_node, unharmed};

/// Sends bytes, and reads whatever comes until the node closes the connection, which it must do in time.
async fn until_closed(client: &Client, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(client.address()).await.expect("connect");
    // The node may have heard enough before it has heard all.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await;
    // A reset is an end as well.
    let _ = read.expect("the node closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answer: &str) -> Vec<u16> {
    answer
        .split("HTTP/1.1 ")
        .skip(1)
        .filter_map(|rest| rest.get(..3)?.parse().ok())
        .collect()
}

/// What must never be executed: a job that was smuggled in behind, or in, another request.
fn smuggled() -> String {
    let program = "echo smuggled";
    format!(
        "POST /lang/bash HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{program}",
        program.len()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_two_ends_could_read_differently_is_refused_and_nothing_behind_it_is_done() {
    let cluster = one_node().await;
    let client = cluster.any();
    let second = smuggled();
    let length = second.len();
    let head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n";
    for (what, request) in [
        (
            "two lengths",
            format!("{head}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{second}"),
        ),
        (
            "a list of lengths",
            format!("{head}Content-Length: 0, {length}\r\n\r\n{second}"),
        ),
        (
            "a length with a sign",
            format!("{head}Content-Length: +0\r\n\r\n{second}"),
        ),
        (
            "a negative length",
            format!("{head}Content-Length: -1\r\n\r\n{second}"),
        ),
        (
            "a length that no number holds",
            format!("{head}Content-Length: 18446744073709551616\r\n\r\n{second}"),
        ),
        (
            "an encoding that does not end in chunks",
            format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{second}"),
        ),
        (
            "an encoding that nobody knows",
            format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{second}"),
        ),
        (
            "chunks in HTTP/1.0",
            format!(
                "POST /v1/jobs HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}"
            ),
        ),
        (
            "a space before the colon",
            format!("{head}Content-Length : {length}\r\n\r\n{second}"),
        ),
        (
            "a folded header",
            format!("{head}X: a\r\n Content-Length: {length}\r\n\r\n{second}"),
        ),
        (
            "a bare CR in a header",
            format!("{head}X: a\rContent-Length: {length}\r\n\r\n{second}"),
        ),
        (
            "a NUL in a header",
            format!("{head}X: a\0b\r\nContent-Length: 0\r\n\r\n{second}"),
        ),
        (
            "a header without a name",
            format!("{head}: {length}\r\n\r\n{second}"),
        ),
        (
            "a header without a colon",
            format!("{head}Content-Length\r\n\r\n{second}"),
        ),
        (
            "another protocol's version",
            format!("POST /v1/jobs HTTP/9.9\r\nHost: localhost\r\n\r\n{second}"),
        ),
        (
            "no request at all",
            format!("\x16\x03\x01\x02\0\x01{second}"),
        ),
    ] {
        let answer = until_closed(client, request.as_bytes()).await;
        assert_eq!(statuses(&answer), [400], "{what}: {answer}");
        let kind = "\"urn:quorun:error:malformed-request\"";
        assert!(answer.contains(kind), "{what}: {answer}");
        assert!(
            answer.contains("content-type: application/problem+json"),
            "{what}: {answer}"
        );
    }
    unharmed(client).await;
}

/// What HTTP lets a server accept, but not go on behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_a_length_and_chunks_ends_with_its_chunks_and_is_the_last() {
    let cluster = one_node().await;
    let client = cluster.any();
    let second = smuggled();
    for order in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        let request =
            format!("POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n{order}\r\n0\r\n\r\n{second}");
        let answer = until_closed(client, request.as_bytes()).await;
        assert_eq!(statuses(&answer), [400], "{answer}");
        assert!(answer.contains("urn:quorun:error:not-json"), "{answer}");
    }
    // A body whose chunks are no chunks is no body, and what follows no request.
    for chunks in [
        "x\r\n",
        "-1\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff0\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX0\r\n\r\n",
    ] {
        let request = format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{second}"
        );
        let answer = until_closed(client, request.as_bytes()).await;
        assert_eq!(statuses(&answer), [400], "{chunks:?}: {answer}");
        assert!(answer.contains("incomplete-body"), "{chunks:?}: {answer}");
    }
    // An extension of a chunk means nothing, and without end it is refused.
    let endless = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;{}",
        "x".repeat(1 << 20)
    );
    let answer = until_closed(client, endless.as_bytes()).await;
    assert_eq!(statuses(&answer), [400], "{answer}");
    unharmed(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_bounds() {
    let cluster = one_node().await;
    let client = cluster.any();
    let many: String = (0..2_000).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (what, request, expected) in [
        (
            "a long path",
            format!(
                "GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
                "a".repeat(66_000)
            ),
            [414, 431],
        ),
        (
            "a path without end",
            format!("GET /{}", "a".repeat(1 << 20)),
            [414, 431],
        ),
        (
            "a long header",
            format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(1 << 20)),
            [431, 431],
        ),
        (
            "many headers",
            format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
            [431, 431],
        ),
    ] {
        let answer = until_closed(client, request.as_bytes()).await;
        let statuses = statuses(&answer);
        assert!(
            statuses.len() == 1 && expected.contains(&statuses[0]),
            "{what}: {answer}"
        );
        let kind = match statuses[0] {
            414 => "address-too-long",
            _ => "head-too-large",
        };
        assert!(
            answer.contains(&format!("error:{kind}\"")),
            "{what}: {answer}"
        );
    }
    // A long query is not more than a long query.
    let path = format!("/v1/jobs?label={}", "a".repeat(30_000));
    client.get(&path).await.expect(200);
    unharmed(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_nested_without_end_is_refused() {
    let cluster = one_node().await;
    let client = cluster.any();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!(
            "{{\"language\":\"bash\",\"source\":\"x\",\"labels\":{}1{}}}",
            open.repeat(20_000),
            close.repeat(20_000)
        );
        for body in [deep.clone(), deep[44..].to_owned()] {
            let answer = client.post("/v1/jobs", body).await;
            let status = answer.status.as_u16();
            assert!([400, 422].contains(&status), "{status}: {}", answer.text());
        }
    }
    // What does not come to its end, and what does and is no object.
    let open = "[".repeat(200_000);
    let answer = client.post("/v1/jobs", open.clone()).await;
    let _ = answer.problem(400, "not-json");
    let answer = client.post("/v1/jobs", open + &"]".repeat(200_000)).await;
    assert_eq!(answer.problem(422, "invalid-request")["field"], "body");
    unharmed(client).await;
}

/// Connections that say nothing, a part of a head, or nothing more after an answer: all of them are closed, and none
/// before its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_on_which_nothing_happens_is_closed_after_a_while() {
    const IDLE: Duration = Duration::from_secs(2);
    let plan = Plan::new(Executor::Process).nodes(1).arg("--idle-s=2");
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();
    let address = client.address();
    let silent = until_closed(client, b"");
    let half = until_closed(client, b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-");
    let preface = until_closed(client, b"PRI * HTT");
    let http2 = until_closed(client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let kept = until_closed(client, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // One byte at a time is not faster than no byte at all.
    let drops = async {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let began = Instant::now();
        let mut scratch = [0; 512];
        loop {
            assert!(began.elapsed() < LONG, "a head may take for ever");
            if stream.write_all(b"G").await.is_err() {
                return;
            }
            let read = stream.read(&mut scratch);
            let read = tokio::time::timeout(Duration::from_millis(100), read);
            if matches!(read.await, Ok(Ok(0) | Err(_))) {
                return;
            }
        }
    };
    let began = Instant::now();
    let (.., kept, ()) = tokio::join!(silent, half, preface, http2, kept, drops);
    assert_eq!(statuses(&kept), [200]);
    assert!(began.elapsed() >= IDLE, "closed before its time");
    // Who waits for an answer is not idle.
    let job = json!({ "language": "bash", "source": "sleep 4; echo slept" });
    let answer = client.post_json("/v1/jobs?wait=30", &job).await.expect(200);
    assert_eq!(answer["stdout"], "slept\n");
}

/// As many idle connections as the machine lets this test have, up to ten thousand: the node goes on, and takes others
/// when they are gone.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_do_no_harm() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: most,
        maximum: most,
    };
    // Without it there are fewer.
    let _ = setrlimit(Resource::Nofile, raised);
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = usize::try_from(files.saturating_sub(1_000).min(10_000)).unwrap_or(10_000);
    let plan = Plan::new(Executor::Process).nodes(1);
    let plan = plan
        .arg("--max-connections=20000")
        .arg("--max-client-connections=20000")
        .arg("--idle-s=600");
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();
    let mut held = Vec::with_capacity(count);
    for n in 0..count {
        let mut stream = TcpStream::connect(client.address()).await.expect("connect");
        if n % 2 == 0 {
            stream
                .write_all(b"GET /healthz HTTP/1.1\r\n")
                .await
                .expect("half a head");
        }
        held.push(stream);
    }
    let open = async || client.figures().await.sum("quorun_connections", &[]);
    eventually("the node has all of them", async || {
        let now = open().await;
        if now >= count as f64 {
            Ok(())
        } else {
            Err(now)
        }
    })
    .await;
    assert_eq!(client.lang("bash", "echo there").await.text(), "there\n");
    // Far more than a connection needs, and far less than would fell a machine.
    let memory = client.figures().await.memory();
    assert!(memory < 100e6 + count as f64 * 40e3, "{memory} bytes");
    drop(held);
    eventually("they are gone", async || {
        let now = open().await;
        if now < 50.0 { Ok(()) } else { Err(now) }
    })
    .await;
    assert_eq!(client.lang("bash", "echo still").await.text(), "still\n");
}

/// Frames of HTTP/2, by hand.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len())
        .expect("a small frame")
        .to_be_bytes()[1..]
        .to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A head of HTTP/2 that is GET /healthz: the static table has all but the path and the authority.
fn get_healthz() -> Vec<u8> {
    let mut head = vec![0x82, 0x86, 0x04, 8];
    head.extend(b"/healthz");
    head.extend([0x01, 1]);
    head.extend(b"x");
    head
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn http2() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_http2_end_their_connection_and_nothing_else() {
    // A node that keeps up with a flood closes its connection when it is over.
    let plan = Plan::new(Executor::Process).nodes(1).arg("--idle-s=3");
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();
    // Requests that are taken back at once, over and over.
    let mut resets = http2();
    for n in 0..20_000_u32 {
        let stream = 2 * n + 1;
        let flags = END_STREAM | END_HEADERS;
        resets.extend(frame(HEADERS, flags, stream, &get_healthz()));
        resets.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    until_closed(client, &resets).await;
    // A head that never ends.
    let mut endless = http2();
    endless.extend(frame(HEADERS, END_STREAM, 1, &get_healthz()));
    for _ in 0..2_000 {
        // A header that is not kept in any table: no name of the client's own is ever the same.
        let mut more = vec![0x00, 1, b'x', 0x7f, 0xe1, 0x7d];
        more.extend([b'y'; 16_224]);
        more.truncate(16_000);
        endless.extend(frame(CONTINUATION, 0, 1, &more));
    }
    until_closed(client, &endless).await;
    // A continuation of nothing.
    let mut stray = http2();
    stray.extend(frame(CONTINUATION, END_HEADERS, 1, &get_healthz()));
    until_closed(client, &stray).await;
    let memory = client.figures().await.memory();
    assert!(memory < 300e6, "{memory} bytes");
    unharmed(client).await;
}
