//! The client of the load: kept connections to several nodes, and one job from its submission to its end.
//!
//! It speaks HTTP over [connections](super::connections) of its own and keeps no more of an answer than is checked: it shares
//! the machine with the cluster that it measures.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;

use super::connections::{Connections, Message};
use super::mix::Prepared;
use crate::cli::client::Credentials;
use crate::cli::target;

/// How long one request waits for a job, seconds.
const WAIT_S: u64 = 60;
/// What an answer may take beyond that.
const SLACK: Duration = Duration::from_secs(15);
/// Pause before another node is asked: at first, and at most.
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// There was no connection: the request was not sent.
    NotSent(String),
    /// The connection ended after the request may have been sent.
    Broken(String),
    /// There was no answer in time.
    Late(String),
}

impl Lost {
    /// What counts as the same.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NotSent(_) => "no connection",
            Self::Broken(_) => "connection broke",
            Self::Late(_) => "no answer in time",
        }
    }

    /// What was said.
    pub fn text(&self) -> &str {
        match self {
            Self::NotSent(text) | Self::Broken(text) | Self::Late(text) => text,
        }
    }
}

/// An answer of a node.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// `Retry-After`, seconds.
    pub retry_after: Option<u64>,
    /// Its body.
    pub body: Bytes,
}

/// What of a problem counts.
#[derive(Debug, Default, Deserialize)]
struct Problem {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    detail: String,
}

impl Answer {
    /// Status and kind of a problem: what counts as the same; and what it says.
    pub fn problem(&self) -> (String, String) {
        let problem: Problem = serde_json::from_slice(&self.body).unwrap_or_default();
        let kind = problem.kind.rsplit(':').next().unwrap_or_default();
        (
            format!("{} {kind}", self.status.as_u16())
                .trim_end()
                .to_owned(),
            problem.detail,
        )
    }
}

/// One node.
#[derive(Debug)]
struct Node {
    url: String,
    authority: Authority,
    token: Option<HeaderValue>,
    connections: Connections,
}

/// The nodes that are asked.
#[derive(Debug)]
pub struct Nodes {
    nodes: Vec<Node>,
}

impl Nodes {
    /// Nodes at these URLs, each request under way with a connection of its own.
    pub fn new(urls: &[String]) -> anyhow::Result<Self> {
        Self::sharing(urls, None)
    }

    /// Nodes at these URLs; requests share so many connections to each, if it is said how many.
    pub fn sharing(urls: &[String], shared: Option<usize>) -> anyhow::Result<Self> {
        let credentials = target::of_environment()?;
        let nodes: anyhow::Result<Vec<Node>> = urls
            .iter()
            .map(|url| Node::new(url, shared, &credentials))
            .collect();
        let nodes = nodes?;
        if nodes.is_empty() {
            bail!("no --url; for example http://127.0.0.1:8080");
        }
        Ok(Self { nodes })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The URL of one.
    pub fn url(&self, node: usize) -> &str {
        &self.nodes[node % self.nodes.len()].url
    }

    /// Sends a request to a node and reads its answer.
    pub async fn send(
        &self,
        node: usize,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Bytes,
        patience: Duration,
    ) -> Result<Answer, Lost> {
        let node = &self.nodes[node % self.nodes.len()];
        let request = node
            .request(method, path, key, body)
            .map_err(|error| Lost::NotSent(error.to_string()))?;
        tokio::time::timeout(patience, node.send(request))
            .await
            .unwrap_or_else(|_| Err(Lost::Late(format!("{}: {patience:?} are over", node.url))))
    }

    /// A GET whose answer must be a success; other nodes are tried.
    pub async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// A request that must succeed at some node, and may be sent to several.
    pub async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let mut last = String::new();
        for turn in 0..3 * self.len() {
            let sent = self.send(turn, method.clone(), path, None, body.clone(), SLACK);
            match sent.await {
                Ok(answer) if answer.status.is_success() => {
                    return serde_json::from_slice(&answer.body).with_context(|| {
                        format!("{path} at {}: not what was expected", self.url(turn))
                    });
                }
                Ok(answer) if answer.status != StatusCode::SERVICE_UNAVAILABLE => {
                    let (kind, detail) = answer.problem();
                    bail!("{method} {path} at {}: {kind}: {detail}", self.url(turn));
                }
                Ok(answer) => last = answer.problem().1,
                Err(lost) => lost.text().clone_into(&mut last),
            }
            tokio::time::sleep(LONGEST_PAUSE).await;
        }
        bail!("{method} {path}: no node answered; the last one: {last}")
    }
}

impl Node {
    fn new(url: &str, shared: Option<usize>, credentials: &Credentials) -> anyhow::Result<Self> {
        let example = "for example http://127.0.0.1:8080";
        let uri: Uri = url
            .parse()
            .with_context(|| format!("--url \"{url}\" is not a URL; {example}"))?;
        let authority = uri
            .authority()
            .filter(|_| uri.scheme_str() == Some("http"))
            .with_context(|| {
                format!("--url \"{url}\" should begin with http:// and a host, {example}")
            })?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            connections: Connections::new(format!("{}:{port}", authority.host()), shared),
            authority: authority.clone(),
            token: credentials.authorization().cloned(),
        })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Bytes,
    ) -> Result<Message, http::Error> {
        let mut request = Request::builder().method(method);
        request = if self.connections.absolute() {
            let uri = Uri::builder()
                .scheme(Scheme::HTTP)
                .authority(self.authority.clone())
                .path_and_query(path);
            request.uri(uri.build()?)
        } else {
            request
                .uri(path)
                .header(header::HOST, self.authority.as_str())
        };
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        request.body(Full::new(body))
    }

    async fn send(&self, request: Message) -> Result<Answer, Lost> {
        let (response, connection) = self.connections.send(request).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await;
        let body = body.map_err(|error| self.connections.broken(&error))?;
        self.connections.keep(connection);
        let retry_after = parts.headers.get(header::RETRY_AFTER);
        Ok(Answer {
            status: parts.status,
            retry_after: retry_after.and_then(|v| v.to_str().ok()?.parse().ok()),
            body: body.to_bytes(),
        })
    }
}

/// A job as a node shows it.
#[derive(Debug, Default, Deserialize)]
pub struct JobView {
    /// Its id.
    #[serde(default)]
    pub id: uuid::Uuid,
    #[serde(default)]
    state: String,
    #[serde(default)]
    verdict: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    attempts: u32,
    #[serde(default)]
    cpu_ms: Option<u64>,
    #[serde(default)]
    wall_ms: Option<u64>,
    #[serde(default)]
    submitted_at: Option<String>,
    #[serde(default)]
    started_at: Option<String>,
    #[serde(default)]
    labels: Vec<String>,
}

impl JobView {
    /// Its labels.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Whether it waits for a slot.
    pub fn is_queued(&self) -> bool {
        self.state == "queued"
    }

    /// How it ended, once it has.
    pub fn finished(self) -> Option<Finished> {
        if self.state != "finished" {
            return None;
        }
        let time = |text: Option<String>| humantime::parse_rfc3339(&text?).ok();
        let queue_ms = match (time(self.submitted_at), time(self.started_at)) {
            (Some(submitted), Some(started)) => Some(between(submitted, started)),
            _ => None,
        };
        Some(Finished {
            id: self.id,
            verdict: self.verdict.unwrap_or_default(),
            message: self.message,
            stdout: self.stdout,
            attempts: self.attempts,
            queue_ms,
            wall_ms: self.wall_ms.unwrap_or(0),
            cpu_ms: self.cpu_ms.unwrap_or(0),
        })
    }
}

fn between(from: SystemTime, to: SystemTime) -> u64 {
    let between = to.duration_since(from).unwrap_or_default();
    u64::try_from(between.as_millis()).unwrap_or(u64::MAX)
}

/// How a job has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// Its id.
    pub id: uuid::Uuid,
    /// Its verdict.
    pub verdict: String,
    /// What Quorun says of it.
    pub message: Option<String>,
    /// What it printed.
    pub stdout: String,
    /// How often it was tried.
    pub attempts: u32,
    /// From its acceptance until it was given to a node.
    pub queue_ms: Option<u64>,
    /// How long the program ran.
    pub wall_ms: u64,
    /// How much CPU time it took.
    pub cpu_ms: u64,
}

impl Finished {
    /// What must never change of it.
    pub fn digest(&self) -> u64 {
        let text = format!("{}\n{}", self.verdict, self.stdout);
        let hash = blake3::hash(text.as_bytes());
        hash.as_bytes()
            .iter()
            .take(8)
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }
}

/// How a submission went.
#[derive(Debug)]
pub enum Outcome {
    /// The job has ended.
    Finished(Finished),
    /// The job was accepted, and that was all that was wanted.
    Accepted(uuid::Uuid),
    /// Every node asked had too much to do (429); it did not take the job.
    Refused {
        /// When to come again.
        retry_after: Duration,
    },
    /// There was no answer that says how the job went.
    GaveUp {
        /// The job, if it is known that it was accepted.
        job: Option<uuid::Uuid>,
    },
}

/// What happened to a submission, beside how it went.
#[derive(Debug)]
pub struct Sent {
    /// How it went.
    pub outcome: Outcome,
    /// When the request was sent whose answer said that the job is accepted.
    pub accepted_by: Option<Instant>,
    /// What went wrong on the way, with an example of each.
    pub errors: BTreeMap<String, (u64, String)>,
}

/// What is wanted of a submission.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The node that is asked first.
    pub first: usize,
    /// Wait for the job's end.
    pub end: bool,
    /// How long it may take in all.
    pub patience: Duration,
}

/// Sends one job, and waits for its end if that is wanted. When a connection is lost or a node is in no state to
/// answer, the next one is asked, with the same key.
pub async fn submit(nodes: &Nodes, job: &Prepared, key: &str, wanted: Wanted) -> Sent {
    let deadline = Instant::now() + wanted.patience;
    let mut known: Option<uuid::Uuid> = None;
    let mut accepted_by = None;
    let mut errors = BTreeMap::new();
    let mut note = |kind: String, text: &str| {
        let (count, _) = errors.entry(kind).or_insert_with(|| (0, text.to_owned()));
        *count += 1;
    };
    let mut node = wanted.first;
    let mut pause = PAUSE;
    let outcome = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break Outcome::GaveUp { job: known };
        }
        let wait_s = left.as_secs().clamp(1, WAIT_S);
        let sent_at = Instant::now();
        let patience = left.min(Duration::from_secs(wait_s) + SLACK);
        let answer = match known {
            None => {
                let path = if wanted.end {
                    format!("/v1/jobs?wait={wait_s}")
                } else {
                    "/v1/jobs".to_owned()
                };
                let body = job.body.clone();
                let sent = nodes.send(node, Method::POST, &path, Some(key), body, patience);
                sent.await
            }
            Some(id) => {
                let path = format!("/v1/jobs/{id}?wait={wait_s}");
                let sent = nodes.send(node, Method::GET, &path, None, Bytes::new(), patience);
                sent.await
            }
        };
        match answer {
            Ok(answer) if answer.status.is_success() => {
                let view: JobView = match serde_json::from_slice(&answer.body) {
                    Ok(view) => view,
                    Err(error) => {
                        note("not a job".to_owned(), &error.to_string());
                        break Outcome::GaveUp { job: known };
                    }
                };
                let id = view.id;
                known = Some(id);
                accepted_by.get_or_insert(sent_at);
                if !wanted.end {
                    break Outcome::Accepted(id);
                }
                if let Some(finished) = view.finished() {
                    break Outcome::Finished(finished);
                }
                // The time of one request is up, or the node is about to end. Another one may know more.
            }
            Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                let (kind, detail) = answer.problem();
                note(kind, &detail);
                let seconds = answer.retry_after.unwrap_or(1);
                break Outcome::Refused {
                    retry_after: Duration::from_secs(seconds),
                };
            }
            Ok(answer) => {
                let (kind, detail) = answer.problem();
                note(kind, &format!("{}: {detail}", nodes.url(node)));
                if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                    break Outcome::GaveUp { job: known };
                }
            }
            Err(lost) => note(lost.kind().to_owned(), lost.text()),
        }
        node += 1;
        if sent_at.elapsed() < Duration::from_secs(1) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    Sent {
        outcome,
        accepted_by,
        errors,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use axum::routing::{get, post};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::super::mix::{Jobs, Mix, Program};
    use super::*;

    /// A node that answers as it is told, and counts its connections.
    async fn node(app: axum::Router) -> (String, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let counted = Arc::clone(&made);
        let listener = axum::serve::ListenerExt::tap_io(listener, move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        (url, made)
    }

    #[tokio::test]
    async fn a_connection_is_kept_until_the_node_closes_it() {
        let app = axum::Router::new().route("/", get(|| async { "1" })).route(
            "/last",
            get(|| async { ([(header::CONNECTION, "close")], "1") }),
        );
        let (url, made) = node(app).await;
        let nodes = Nodes::new(&[url]).unwrap();
        for _ in 0..100 {
            let _: u64 = nodes.get("/").await.unwrap();
        }
        assert_eq!(made.load(Ordering::Relaxed), 1);
        let _: u64 = nodes.get("/last").await.unwrap();
        let _: u64 = nodes.get("/").await.unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }

    /// All of them are under way at one time on the connections that there are; when a node has ended them, others are made.
    #[tokio::test]
    async fn shared_connections_carry_all_requests_and_are_made_again() {
        const AT_ONCE: usize = 20;
        let together = Arc::new(tokio::sync::Barrier::new(AT_ONCE));
        let meet = move |headers: http::HeaderMap, uri: Uri| async move {
            together.wait().await;
            assert!(!headers.contains_key(header::HOST), "{headers:?}");
            uri.authority().map(ToString::to_string).unwrap_or_default()
        };
        let app = axum::Router::new()
            .route("/", get(meet))
            .route("/one", get(|| async { "1" }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        let (end, ended) = tokio::sync::watch::channel(());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let service = hyper_util::service::TowerToHyperService::new(app.clone());
                let mut ended = ended.clone();
                ended.mark_unchanged();
                tokio::spawn(async move {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let serving = builder.serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        served = serving => served.unwrap(),
                        _ = ended.changed() => {}
                    }
                });
            }
        });
        let nodes = Nodes::sharing(&[format!("http://{address}/")], Some(2)).unwrap();
        let sent = (0..AT_ONCE).map(|_| {
            let patience = Duration::from_secs(60);
            nodes.send(0, Method::GET, "/", None, Bytes::new(), patience)
        });
        for answer in futures::future::join_all(sent).await {
            assert_eq!(answer.unwrap().body, address);
        }
        assert_eq!(made.load(Ordering::Relaxed), 2);
        end.send(()).unwrap();
        // Each may be lost once, if it is used before this side knows.
        let _: u64 = nodes.get("/one").await.unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 3);
    }

    /// One node is not there, one has no leader for a while, one answers that it may not; the job comes through, with
    /// the same key everywhere.
    #[tokio::test]
    async fn another_node_is_asked_with_the_same_key() {
        const JOB: &str = r#"{"id":"01900000-0000-7000-8000-000000000001","state":"finished","verdict":"accepted","stdout":"hello\n"}"#;
        let keys = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&keys);
        let app = axum::Router::new().route(
            "/v1/jobs",
            post(move |headers: http::HeaderMap| async move {
                let mut seen = seen.lock().unwrap();
                seen.push(headers["idempotency-key"].clone());
                match seen.len() {
                    1 => (
                        StatusCode::SERVICE_UNAVAILABLE,
                        r#"{"type":"urn:quorun:error:no-quorum"}"#,
                    ),
                    _ => (StatusCode::OK, JOB),
                }
            }),
        );
        let (url, _) = node(app).await;
        // A port that nobody listens on any more.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dead = format!("http://{}", gone.local_addr().unwrap());
        drop(gone);
        let nodes = Nodes::new(&[dead, url]).unwrap();
        let job = Jobs::new(Mix::only(Program::Hello), 1, "run".into()).job(0);
        let wanted = Wanted {
            first: 0,
            end: true,
            patience: Duration::from_secs(60),
        };
        let sent = submit(&nodes, &job, "key-1", wanted).await;
        assert!(matches!(sent.outcome, Outcome::Finished(_)), "{sent:?}");
        let errors: Vec<_> = sent
            .errors
            .iter()
            .map(|(kind, (n, _))| (&**kind, *n))
            .collect();
        assert_eq!(errors, [("503 no-quorum", 1), ("no connection", 2)]);
        assert_eq!(*keys.lock().unwrap(), ["key-1", "key-1"]);
    }

    #[tokio::test]
    async fn what_will_not_get_better_is_not_tried_again() {
        let refuse = |status: StatusCode| {
            axum::Router::new().route("/v1/jobs", post(move || async move { (status, "{}") }))
        };
        let job = Jobs::new(Mix::only(Program::Hello), 1, "run".into()).job(0);
        let wanted = Wanted {
            first: 0,
            end: true,
            patience: Duration::from_secs(60),
        };
        let (url, _) = node(refuse(StatusCode::TOO_MANY_REQUESTS)).await;
        let sent = submit(&Nodes::new(&[url]).unwrap(), &job, "key", wanted).await;
        assert!(matches!(sent.outcome, Outcome::Refused { .. }), "{sent:?}");
        let (url, _) = node(refuse(StatusCode::INTERNAL_SERVER_ERROR)).await;
        let sent = submit(&Nodes::new(&[url]).unwrap(), &job, "key", wanted).await;
        assert!(
            matches!(sent.outcome, Outcome::GaveUp { job: None }),
            "{sent:?}"
        );
        assert_eq!(sent.errors["500"].0, 1);
    }

    #[test]
    fn urls_that_are_none_are_said_to_be() {
        for wrong in [
            "127.0.0.1:8080",
            "https://host",
            "http:///",
            "",
            "http://[::1",
        ] {
            assert!(Nodes::new(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        let nodes = Nodes::new(&["http://[::1]:8080/".to_owned(), "http://host".to_owned()]);
        let nodes = nodes.unwrap();
        assert_eq!(nodes.nodes[0].connections.address(), "[::1]:8080");
        assert_eq!(nodes.nodes[1].connections.address(), "host:80");
        assert_eq!(nodes.url(2), "http://[::1]:8080");
    }

    #[test]
    fn a_job_is_read_with_the_time_that_it_waited() {
        let text = r#"{"id":"01900000-0000-7000-8000-000000000001","language":"python","state":"finished",
            "verdict":"accepted","exit_code":0,"stdout":"hi\n","cpu_ms":3,"wall_ms":4,"attempts":1,
            "submitted_at":"2026-01-01T00:00:00.000Z","started_at":"2026-01-01T00:00:00.025Z","new":[1]}"#;
        let finished = serde_json::from_str::<JobView>(text).unwrap().finished();
        let finished = finished.unwrap();
        assert_eq!(finished.queue_ms, Some(25));
        assert_eq!((finished.wall_ms, finished.cpu_ms), (4, 3));
        let other = Finished {
            stdout: "ho\n".to_owned(),
            ..finished.clone()
        };
        assert_ne!(finished.digest(), other.digest());
        let queued = r#"{"id":"01900000-0000-7000-8000-000000000001","state":"queued"}"#;
        let view: JobView = serde_json::from_str(queued).unwrap();
        assert!(view.is_queued() && view.finished().is_none());
    }

    #[test]
    fn problems_are_counted_by_status_and_kind() {
        let answer = |status, body: &'static str| Answer {
            status,
            retry_after: None,
            body: Bytes::from_static(body.as_bytes()),
        };
        let full = r#"{"type":"urn:quorun:error:queue-full","detail":"100000 wait"}"#;
        let (kind, detail) = answer(StatusCode::TOO_MANY_REQUESTS, full).problem();
        assert_eq!(
            (kind.as_str(), detail.as_str()),
            ("429 queue-full", "100000 wait")
        );
        let (kind, _) = answer(StatusCode::BAD_GATEWAY, "<html>").problem();
        assert_eq!(kind, "502");
    }
}
