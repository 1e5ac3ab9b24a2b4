//! A few hundred requests with something wrong in each: every answer is a good one, and the node goes on. What reads them is
//! tried out far more widely where it stands, in `node/server/src/http`; this is the whole way through a real node.

use fastrand::Rng;
use quorun_tests::Client;
use reqwest::Method;
use serde_json::{Value, json};

use super::one_node;

const REQUESTS: u32 = 600;
/// More than any refusal needs, bytes.
const LARGE: usize = 8192;
const ID: &str = "01900000-0000-7000-8000-000000000000";

/// Every call that reads a body, with one that is sound but of no consequence.
fn sound() -> Vec<(Method, &'static str, Value)> {
    let job = json!({
        "language": "bash", "source": "true", "args": ["a"], "env": { "A": "1" }, "labels": ["l"],
        "limits": { "cpu_ms": 100, "wall_ms": 1000 }, "priority": "low", "retention_s": 1,
        "tests": [{ "stdin": "", "expected": "", "weight": 1 }], "checker": { "type": "floats", "absolute": 0.5 },
        "callback": { "url": "http://127.0.0.1/", "headers": { "A": "b" }, "secret": "12345678" },
    });
    let talk = json!({ "language": "bash", "files": [{ "name": "a", "content_base64": "eA==" }], "outputs": ["b"],
        "interactive": true, "terminal": { "rows": 0, "columns": 80 } });
    let language = json!({ "image": "a:1", "source": "a", "run": ["a b", "{source}"], "limits": { "cpu_ms": 0 } });
    vec![
        (Method::POST, "/v1/jobs", job.clone()),
        (Method::POST, "/v1/jobs", talk.clone()),
        (
            Method::POST,
            "/v1/jobs/batch",
            json!({ "jobs": [job, talk], "atomic": true }),
        ),
        (
            Method::POST,
            "/v1/jobs/wait",
            json!({ "ids": [ID], "until": "all", "timeout_s": 0 }),
        ),
        (Method::POST, "/v1/jobs/cancel", json!({ "ids": [ID, ID] })),
        (Method::PUT, "/v1/languages/fuzzed", language),
        (
            Method::PATCH,
            "/v1/languages/fuzzed",
            json!({ "disabled": true }),
        ),
        (
            Method::POST,
            "/v1/cluster/nodes",
            json!({ "peer": "nowhere", "http": "" }),
        ),
        (
            Method::POST,
            "/v1/cluster/nodes/9/drain",
            json!({ "draining": true }),
        ),
        (Method::POST, "/v1/cluster/leader", json!({ "node": 9 })),
        (
            Method::PUT,
            "/v1/cluster/settings",
            json!({ "retention_s": 3600, "replace_voter_s": 0 }),
        ),
    ]
}

/// What is put into the place of something else.
fn odd(rng: &mut Rng) -> String {
    let pieces = [
        "null",
        "true",
        "-1",
        "0",
        "1e400",
        "18446744073709551616",
        "0.5",
        "\"\"",
        "\"\\ud800\"",
        "\"\\u0000\"",
        "\"../a\"",
        "\"\u{202e}\u{1f4a9}\"",
        "[]",
        "{}",
        "[[]]",
        "{\"a\":1}",
        "\"cobol\"",
        "NaN",
        "'a'",
        "",
        "\u{feff}1",
    ];
    match rng.u8(..16) {
        0 => "[".repeat(rng.usize(1..100_000)),
        1 => "{\"a\":".repeat(rng.usize(1..20_000)),
        2 => "9".repeat(rng.usize(1..5_000)),
        3 => format!("\"{}\"", "é".repeat(rng.usize(1..50_000))),
        _ => pieces[rng.usize(..pieces.len())].to_owned(),
    }
}

/// The texts of all values in it.
fn parts(value: &Value) -> Vec<String> {
    let inner: Vec<String> = match value {
        Value::Object(members) => members.values().flat_map(parts).collect(),
        Value::Array(items) => items.iter().flat_map(parts).collect(),
        _ => Vec::new(),
    };
    std::iter::once(value.to_string()).chain(inner).collect()
}

fn wrong(rng: &mut Rng, sound: &Value) -> Vec<u8> {
    let text = sound.to_string();
    match rng.u8(..8) {
        0 => odd(rng).into_bytes(),
        1 => format!("{{{}:{},{}", Value::from("sauce"), odd(rng), &text[1..]).into_bytes(),
        2 => {
            let mut bytes = text.into_bytes();
            bytes.truncate(rng.usize(..bytes.len()));
            bytes
        }
        3 => {
            let mut bytes = text.into_bytes();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            bytes
        }
        // The same member twice.
        4 => format!("{},{}", &text[..text.len() - 1], &text[1..]).into_bytes(),
        _ => {
            let parts = parts(sound);
            let part = &parts[rng.usize(1..parts.len())];
            text.replacen(part, &odd(rng), 1).into_bytes()
        }
    }
}

/// Paths and queries that nobody means.
fn path(rng: &mut Rng) -> String {
    let calls = [
        "/v1/jobs",
        "/v1/queue",
        "/v1/jobs/{}",
        "/v1/jobs/{}/events",
        "/v1/jobs/{}/attach",
        "/lang/{}",
        "/v1/languages/{}",
        "/v1/cluster/nodes/{}",
        "/errors/{}",
        "/{}",
    ];
    let words = [
        ID,
        "%ff",
        "%00",
        "..%2f..",
        "a%20b",
        "%F0%9F%92%A9",
        "-1",
        "0",
        "99999999999999999999",
        "python",
    ];
    let names = [
        "wait",
        "state",
        "limit",
        "cursor",
        "label",
        "node",
        "consistency",
        "encoding",
        "include",
        "stream",
        "last_event_id",
        "submitted_after",
        "order",
        "colour",
        "%ff",
    ];
    let word = words[rng.usize(..words.len())];
    let mut path = calls[rng.usize(..calls.len())].replace("{}", word);
    for n in 0..rng.usize(..4) {
        path.push(if n == 0 { '?' } else { '&' });
        path += names[rng.usize(..names.len())];
        path.push('=');
        path += words[rng.usize(..words.len())];
    }
    path
}

/// One request, and what to say of it if its answer is not a good one.
fn request(rng: &mut Rng, client: &Client) -> (reqwest::RequestBuilder, String) {
    let mut calls = sound();
    let (request, said) = if rng.u8(..4) == 0 {
        let methods = [Method::GET, Method::POST, Method::PATCH, Method::HEAD];
        let method = methods[rng.usize(..methods.len())].clone();
        let path = path(rng);
        (
            client.request(method.clone(), &path),
            format!("{method} {path}"),
        )
    } else {
        let (method, path, sound) = calls.swap_remove(rng.usize(..calls.len()));
        let body = wrong(rng, &sound);
        let shown: String = String::from_utf8_lossy(&body).chars().take(2000).collect();
        let said = format!("{method} {path} {shown}");
        (client.request(method, path).body(body), said)
    };
    let headers = [
        "idempotency-key",
        "if-match",
        "last-event-id",
        "content-encoding",
        "x-forwarded-for",
    ];
    let request = match rng.u8(..6) {
        0 => {
            let value: Vec<u8> = (0..rng.usize(..300)).map(|_| rng.u8(32..127)).collect();
            request.header(headers[rng.usize(..headers.len())], value)
        }
        1 => request.header(headers[rng.usize(..headers.len())], "\"1\""),
        _ => request,
    };
    (request, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_asked_the_answer_is_a_good_one_and_the_node_goes_on() {
    let cluster = one_node().await;
    let client = cluster.any();
    let seed = std::env::var("QUORUN_FUZZ_SEED").ok();
    let seed = seed.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("a seed"));
    let mut rng = Rng::with_seed(seed);
    let mut refused = 0;
    for n in 0..REQUESTS {
        let (request, said) = request(&mut rng, client);
        let answer = client.send(request).await;
        let said = format!("QUORUN_FUZZ_SEED={seed}, request {n}: {said}");
        let status = answer.status.as_u16();
        assert!(status < 500, "{said}: {status} {}", answer.text());
        if status < 400 {
            continue;
        }
        refused += 1;
        let kind = answer.header("content-type");
        assert_eq!(kind, "application/problem+json", "{said}: {status}");
        // The answer to HEAD has no body.
        if !said.contains(": HEAD ") {
            let problem = answer.json();
            assert_eq!(problem["status"], status, "{said}: {problem}");
            assert!(problem["detail"].is_string(), "{said}: {problem}");
            if status == 422 {
                assert!(problem["field"].is_string(), "{said}: {problem}");
            }
            assert!(answer.body.len() < LARGE, "{said}: {problem}");
        }
    }
    assert!(refused > REQUESTS / 2, "{refused} were refused");
    let done = client
        .run(&json!({ "language": "bash", "source": "echo unharmed" }))
        .await;
    assert_eq!(done["stdout"], "unharmed\n", "{done}");
}
