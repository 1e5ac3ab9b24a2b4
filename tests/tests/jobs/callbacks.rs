//! Callbacks: a receiver of the test's own is told of jobs that have finished.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use quorun_tests::{Ca, Client, Cluster, Executor, Plan, Tokens, eventually};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::job;

/// What a receiver does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Status(u16),
    /// Sends the sender elsewhere on the same host.
    Redirect,
    /// Says nothing and hangs up.
    HangUp,
    /// Says nothing, and waits.
    Nothing,
    /// Says yes, and goes on talking.
    Endless,
    /// Says yes, and does not end what it began to say.
    Half,
}

/// A request as it was received.
#[derive(Clone, Debug)]
struct Received {
    head: String,
    body: String,
}

impl Received {
    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().skip(1);
        lines
            .find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then_some(value)
            })
            .unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Inner {
    received: Vec<Received>,
    /// For the first requests; the last of them for all others.
    answers: Vec<Answer>,
}

/// Listens on loopback as long as it lives.
#[derive(Debug)]
struct Receiver {
    inner: Arc<Mutex<Inner>>,
    port: u16,
    listens: tokio::task::JoinHandle<()>,
}

impl Receiver {
    async fn new(answers: &[Answer]) -> Self {
        Self::at("127.0.0.1", answers, None).await
    }

    /// One that shows a certificate of a CA, for `localhost`.
    async fn of(ca: &Ca, answers: &[Answer]) -> Self {
        let (certificate, key) = ca.issue("receiver", "localhost");
        let tls = acceptor(&certificate, &key);
        Self::at("127.0.0.1", answers, Some(tls)).await
    }

    async fn at(address: &str, answers: &[Answer], tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((address, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let inner = Arc::new(Mutex::new(Inner {
            received: Vec::new(),
            answers: answers.to_vec(),
        }));
        let shared = Arc::clone(&inner);
        let listens = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => receive(stream, shared).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                receive(stream, shared).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            inner,
            port,
            listens,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook?a=b", self.port)
    }

    fn received(&self) -> Vec<Received> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.received.clone()
    }

    fn answer_from_now_on(&self, answer: Answer) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.answers = vec![answer];
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.listens.abort();
    }
}

fn acceptor(certificate: &Path, key: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(certificate).expect("a file");
    let chain = chain.collect::<Result<_, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate and its key");
    TlsAcceptor::from(Arc::new(config))
}

async fn receive(mut stream: impl AsyncRead + AsyncWrite + Unpin, inner: Arc<Mutex<Inner>>) {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(count @ 1..) => bytes.extend_from_slice(&part[..count]),
            _ => return,
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let received = Received {
            head,
            body: String::new(),
        };
        let length = received
            .header("content-length")
            .parse::<usize>()
            .unwrap_or(0);
        bytes.drain(..end + 4);
        break (received.head, length);
    };
    while bytes.len() < length {
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(count @ 1..) => bytes.extend_from_slice(&part[..count]),
            _ => return,
        }
    }
    let answer = {
        let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
        let place = inner.received.len().min(inner.answers.len() - 1);
        let body = String::from_utf8_lossy(&bytes).into_owned();
        inner.received.push(Received { head, body });
        inner.answers[place]
    };
    let text = match answer {
        Answer::Status(status) => {
            format!("HTTP/1.1 {status} Status\r\nContent-Length: 2\r\n\r\nok")
        }
        Answer::Redirect => {
            "HTTP/1.1 307 Elsewhere\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".to_owned()
        }
        Answer::HangUp => return,
        Answer::Nothing => {
            std::future::pending::<()>().await;
            return;
        }
        Answer::Endless => "HTTP/1.1 200 Status\r\n\r\n".to_owned(),
        Answer::Half => "HTTP/1.1 200 Status\r\nContent-Length: 10\r\n\r\nx".to_owned(),
    };
    if stream.write_all(text.as_bytes()).await.is_err() {
        return;
    }
    // Whoever goes on listening is told more for ever.
    while answer == Answer::Endless && stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    if answer == Answer::Half {
        std::future::pending::<()>().await;
    }
    let _ = stream.shutdown().await;
}

fn plan(nodes: u16) -> Plan {
    let plan = Plan::new(Executor::Process).nodes(nodes);
    plan.arg("--callback-backoff-ms=1")
}

fn told(url: &str) -> Value {
    let mut job = job("bash", "echo hello");
    job["callback"] = json!({ "url": url });
    job
}

/// The delivery of a job, once it has come to an end.
async fn settled(client: &Client, id: &str) -> Value {
    eventually("the delivery is settled", async || {
        let callback = client.job(id).await["callback"].clone();
        match callback["state"].as_str() {
            Some("delivered" | "failed") => Ok(callback),
            _ => Err(callback),
        }
    })
    .await
}

/// The example of the documentation, run with what was received.
fn verifies(secret: &str, received: &Received) -> bool {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let (_, rest) = page
        .split_once("```python\nimport hashlib")
        .expect("the example");
    let (example, _) = rest.split_once("```").expect("the end of the example");
    let program = format!(
        "import hashlib{example}\nimport sys\nbody = sys.stdin.buffer.read()\nsys.exit(0 if verify(sys.argv[1], sys.argv[2], body) else 1)\n"
    );
    let mut python = Command::new("python3")
        .args(["-c", &program, secret, received.header("quorun-signature")])
        .stdin(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut stdin = python.stdin.take().expect("stdin");
    stdin.write_all(received.body.as_bytes()).expect("the body");
    drop(stdin);
    python.wait().expect("an end").success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_told_once_and_can_tell_by_whom() {
    const SECRET: &str = "a secret of the receiver's";
    let mut cluster = Cluster::start(plan(3).arg("--callback-allow-private")).await;
    let receiver = Receiver::new(&[Answer::Status(204)]).await;
    let client = cluster.any().clone();
    let mut job = told(&receiver.url());
    job["callback"]["secret"] = json!(SECRET);
    job["callback"]["headers"] = json!({ "Authorization": "Bearer hidden-token", "X-Own": "mine" });
    let id = client.submit(&job).await;
    let callback = settled(&client, &id).await;
    assert_eq!(callback["state"], "delivered", "{callback}");
    assert_eq!(callback["url"], receiver.url());
    assert_eq!(callback["attempts"][0]["status"], 204);
    assert_eq!(callback["attempts"].as_array().map(Vec::len), Some(1));

    let received = receiver.received();
    assert_eq!(received.len(), 1);
    let received = &received[0];
    assert!(
        received.head.starts_with("POST /hook?a=b HTTP/1.1"),
        "{}",
        received.head
    );
    assert_eq!(received.header("quorun-delivery"), id);
    assert_eq!(received.header("quorun-attempt"), "1");
    assert_eq!(received.header("authorization"), "Bearer hidden-token");
    assert_eq!(received.header("x-own"), "mine");
    assert_eq!(received.header("content-type"), "application/json");
    let mut body: Value = serde_json::from_str(&received.body).expect("JSON");
    let mut shown = client.finished(&id).await;
    assert_eq!(body["callback"]["state"], "pending");
    for job in [&mut body, &mut shown] {
        job.as_object_mut().expect("an object").remove("callback");
    }
    assert_eq!(body, shown, "the job as GET shows it");

    assert!(verifies(SECRET, received));
    assert!(!verifies("another secret", received));
    let mut changed = received.clone();
    changed.body.push(' ');
    assert!(!verifies(SECRET, &changed));

    // Neither is anywhere to be seen.
    cluster.agree().await;
    let mut seen = vec![client.get("/v1/jobs").await.text()];
    for other in cluster.clients() {
        seen.push(other.get(&format!("/v1/jobs/{id}")).await.text());
    }
    for node in cluster.nodes() {
        seen.push(node.log());
    }
    for text in seen {
        assert!(
            !text.contains(SECRET) && !text.contains("hidden-token"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_fails_is_asked_again_but_not_for_ever() {
    let cluster = Cluster::start(plan(1).arg("--callback-allow-private")).await;
    let client = cluster.any();
    let answers = [
        Answer::Status(500),
        Answer::HangUp,
        Answer::Redirect,
        Answer::Status(404),
        Answer::Endless,
    ];
    let receiver = Receiver::new(&answers).await;
    let id = client.submit(&told(&receiver.url())).await;
    let callback = settled(client, &id).await;
    assert_eq!(callback["state"], "delivered", "{callback}");
    let statuses: Vec<_> = (0..5)
        .map(|n| callback["attempts"][n]["status"].clone())
        .collect();
    assert_eq!(
        statuses,
        [json!(500), Value::Null, json!(307), json!(404), json!(200)]
    );
    assert!(callback["attempts"][1]["error"].is_string(), "{callback}");
    assert_eq!(callback["attempts"][4]["error"], Value::Null);
    assert_eq!(callback["next_attempt_at"], Value::Null);
    let received = receiver.received();
    assert_eq!(received.len(), 5);
    for (n, received) in received.iter().enumerate() {
        assert!(
            received.head.starts_with("POST /hook"),
            "the redirect was followed"
        );
        assert_eq!(received.header("quorun-delivery"), id);
        assert_eq!(received.header("quorun-attempt"), (n + 1).to_string());
        assert_eq!(received.header("quorun-signature"), "");
    }

    // What is said behind the head does not count, whether it ends or not.
    let half = Receiver::new(&[Answer::Half]).await;
    let id = client.submit(&told(&half.url())).await;
    let callback = settled(client, &id).await;
    assert_eq!(callback["state"], "delivered", "{callback}");
    assert_eq!(half.received().len(), 1);

    // Cancelled is finished, too; and eight times is enough.
    let dead = Receiver::new(&[Answer::Status(503)]).await;
    let mut slow = told(&dead.url());
    slow["source"] = json!("sleep 60");
    let id = client.submit(&slow).await;
    assert_eq!(client.job(&id).await["callback"]["state"], "waiting");
    client.delete(&format!("/v1/jobs/{id}")).await.expect(200);
    let callback = settled(client, &id).await;
    assert_eq!(callback["state"], "failed", "{callback}");
    assert_eq!(callback["attempts"].as_array().map(Vec::len), Some(8));
    assert_eq!(dead.received().len(), 8);
    assert!(dead.received()[0].body.contains("\"cancelled\""));

    // All of that is counted; and behind the report of the last attempt, nothing is under way.
    eventually("the figures say so", async || {
        let figures = client.figures().await;
        let attempts = |outcome| {
            let name = "quorun_callback_attempts_total";
            figures.sum(name, &[("outcome", outcome)])
        };
        let counted = ["delivered", "failed", "given_up"].map(attempts);
        let now = [
            "quorun_callbacks_under_way",
            "quorun_ledger_callbacks_pending",
            "quorun_ledger_callbacks_overdue_seconds",
        ]
        .map(|name| figures.sum(name, &[]));
        if (counted, now) == ([2.0, 4.0 + 7.0, 1.0], [0.0; 3]) {
            Ok(())
        } else {
            Err(format!("{counted:?} {now:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_sent_again_on_demand() {
    let tokens = Tokens::new();
    let [own, other, reads, root] = [
        ("course", "submit"),
        ("other", "submit"),
        ("course", "read"),
        ("root", "admin"),
    ]
    .map(|(owner, role)| tokens.draw(owner, role, &[]));
    let plan = tokens.plan().nodes(3).arg("--callback-backoff-ms=1");
    let cluster = Cluster::start(plan.arg("--callback-allow-private")).await;
    let client = |n: u64, token: &str| cluster.client(n).bearing(token);
    let owner = client(1, &own);
    let receiver = Receiver::new(&[Answer::Status(503)]).await;
    let id = owner.submit(&told(&receiver.url())).await;
    let callback = settled(&owner, &id).await;
    assert_eq!(callback["state"], "failed", "{callback}");
    let path = format!("/v1/jobs/{id}/callback");

    // Not by everybody: for others the job is not there.
    let answer = client(2, &other).post(&path, "").await;
    answer.problem(404, "unknown-job");
    let answer = client(2, &reads).post(&path, "").await;
    answer.problem(403, "not-allowed");
    assert_eq!(receiver.received().len(), 8);

    // By its owner and by an admin, at any node; also when it was received.
    receiver.answer_from_now_on(Answer::Status(200));
    for (n, asks) in [(9, client(2, &own)), (10, client(3, &root))] {
        let job = asks.post(&path, "").await.expect(202);
        assert_eq!(job["id"], id.as_str());
        eventually("it is received", async || {
            let callback = owner.job(&id).await["callback"].clone();
            let attempts = callback["attempts"].as_array().map(Vec::len);
            if callback["state"] == "delivered" && attempts == Some(n) {
                Ok(())
            } else {
                Err(callback)
            }
        })
        .await;
        let received = receiver.received();
        assert_eq!(received.len(), n);
        let last = received.last().expect("the last");
        assert_eq!(last.header("quorun-attempt"), n.to_string());
        assert_eq!(last.header("quorun-delivery"), id);
    }

    // What has nothing to be sent says so.
    let plain = owner.submit(&job("bash", "echo")).await;
    owner.finished(&plain).await;
    let mut waits = told(&receiver.url());
    waits["source"] = json!("sleep 60");
    let waits = owner.submit(&waits).await;
    for (id, says) in [(plain, "has no callback"), (waits, "has not finished")] {
        let answer = owner.post(&format!("/v1/jobs/{id}/callback"), "").await;
        let problem = answer.problem(409, "not-deliverable");
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(detail.contains(&id) && detail.contains(says), "{problem}");
    }
    let path = "/v1/jobs/01900000-0000-7000-8000-000000000000/callback";
    let answer = client(1, &root).post(path, "").await;
    answer.problem(404, "unknown-job");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_job_is_not_removed_before_its_receiver_was_told() {
    let cluster = Cluster::start(plan(1).arg("--callback-allow-private")).await;
    cluster.last_rules().await;
    let client = cluster.any();
    let silent = Receiver::new(&[Answer::Nothing]).await;
    let waits = client.submit(&told(&silent.url())).await;
    client.finished(&waits).await;
    let path = format!("/v1/jobs/{waits}?purge=true");
    let problem = client.delete(&path).await.problem(409, "undelivered");
    assert_eq!(problem["job"], waits.as_str());

    let hears = Receiver::new(&[Answer::Status(204)]).await;
    let heard = client.submit(&told(&hears.url())).await;
    settled(client, &heard).await;
    let path = format!("/v1/jobs/{heard}?purge=true");
    assert_eq!(client.delete(&path).await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_outlives_the_leader_that_began_it() {
    let mut cluster = Cluster::start(plan(3).arg("--callback-allow-private")).await;
    let receiver = Receiver::new(&[Answer::Nothing]).await;
    let leader = cluster.leader().await;
    let other = cluster
        .ids()
        .into_iter()
        .find(|id| *id != leader)
        .expect("another");
    let client = cluster.client(other).clone();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.submit(&told(&receiver.url())).await);
    }
    // The leader has begun all of them and waits for an answer when it dies.
    eventually("they are begun", async || {
        let count = receiver.received().len();
        if count == 3 { Ok(()) } else { Err(count) }
    })
    .await;
    cluster.node(leader).kill();
    receiver.answer_from_now_on(Answer::Status(200));
    for id in &ids {
        let callback = settled(&client, id).await;
        assert_eq!(callback["state"], "delivered", "{callback}");
        assert_eq!(
            callback["attempts"].as_array().map(Vec::len),
            Some(1),
            "{callback}"
        );
    }
    cluster.node(leader).restart().await;
    cluster.agree().await;
    for id in &ids {
        let shown: Vec<Value> = {
            let mut shown = Vec::new();
            for client in cluster.clients() {
                let path = format!("/v1/jobs/{id}?consistency=stale");
                shown.push(client.get(&path).await.expect(200)["callback"].clone());
            }
            shown
        };
        assert!(shown.windows(2).all(|two| two[0] == two[1]), "{shown:?}");
        let told = receiver.received();
        let told = told
            .iter()
            .filter(|received| received.header("quorun-delivery") == id);
        assert_eq!(told.count(), 2, "by the dead leader, and by the next one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_on_the_public_internet_is_not_told_unless_allowed() {
    let cluster = Cluster::start(plan(1)).await;
    let client = cluster.any();
    let receiver = Receiver::new(&[Answer::Status(200)]).await;
    // A name is looked up when it is connected to.
    let id = client
        .submit(&told(&format!("http://localhost:{}/", receiver.port)))
        .await;
    let callback = settled(client, &id).await;
    assert_eq!(callback["state"], "failed", "{callback}");
    // It could be another address the next time.
    let attempts = callback["attempts"].as_array().expect("attempts");
    assert_eq!(attempts.len(), 8, "{callback}");
    for attempt in attempts {
        let error = attempt["error"].as_str().expect("an error");
        let says = "localhost has no address on the public internet";
        assert!(error.contains(says), "{error}");
    }
    assert!(receiver.received().is_empty());
    let figures = client.figures().await;
    let found = [("outcome", "found")];
    let lookups = figures.sum("quorun_callback_lookups_total", &found);
    assert!(lookups >= 8.0, "{lookups}");
    for url in [
        receiver.url(),
        "http://127.1/".to_owned(),
        "http://[::1]/".to_owned(),
        "http://[::ffff:127.0.0.1]/".to_owned(),
        "https://169.254.169.254/latest".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "http://0/".to_owned(),
    ] {
        let answer = client.post_json("/v1/jobs", &told(&url)).await;
        let problem = answer.problem(422, "invalid-request");
        assert_eq!(problem["field"], "callback.url", "{url}");
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(detail.contains("--callback-allow-private"), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_receiver_delays_nobody_else() {
    let cluster = Cluster::start(plan(1).slots(4).arg("--callback-allow-private")).await;
    let client = cluster.any();
    let dead = Receiver::new(&[Answer::Nothing]).await;
    let lives = Receiver::new(&[Answer::Status(200)]).await;
    let batch: Vec<_> = (0..30).map(|_| told(&dead.url())).collect();
    let batch = json!({ "jobs": batch });
    let answer = client
        .post_json("/v1/jobs/batch?wait=60", &batch)
        .await
        .expect(200);
    assert_eq!(answer["accepted"], 30, "{answer}");
    let id = client.submit(&told(&lives.url())).await;
    assert_eq!(settled(client, &id).await["state"], "delivered");
    assert!(
        dead.received().len() <= 8,
        "more at one time than one host has places"
    );
    let first = answer["jobs"][0]["job"]["id"].as_str().expect("an id");
    assert_eq!(client.job(first).await["callback"]["state"], "pending");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_with_many_receivers_delays_no_other_owner() {
    const MANY: usize = 180;
    /// What one owner may have under way, whoever else is there.
    const MOST: f64 = 128.0;
    let tokens = Tokens::new();
    let greedy = tokens.draw("greedy", "submit", &[]);
    let modest = tokens.draw("modest", "submit", &[]);
    let plan = tokens.plan().nodes(1).slots(8);
    let plan = plan.arg("--callback-allow-private");
    let cluster = Cluster::start(plan.arg("--callback-backoff-ms=1")).await;
    let (greedy, modest) = (
        cluster.any().bearing(&greedy),
        cluster.any().bearing(&modest),
    );
    // Each of these addresses is a host of its own, and none of them ever answers.
    let silent = Receiver::at("0.0.0.0", &[Answer::Nothing], None).await;
    let lives = Receiver::new(&[Answer::Status(200)]).await;
    let jobs: Vec<_> = (0..MANY)
        .map(|n| {
            let (high, low) = (n / 200 + 1, n % 200 + 1);
            told(&format!("http://127.0.{high}.{low}:{}/", silent.port))
        })
        .collect();
    let batch = json!({ "jobs": jobs });
    let path = "/v1/jobs/batch?wait=120";
    let answer = greedy.post_json(path, &batch).await.expect(200);
    assert_eq!(answer["accepted"], MANY, "{answer}");
    let under_way = async || {
        let figures = modest.figures().await;
        figures.sum("quorun_callbacks_under_way", &[])
    };
    eventually("the greedy owner has what it may have", async || {
        let now = under_way().await;
        if now >= MOST { Ok(()) } else { Err(now) }
    })
    .await;
    let id = modest.submit(&told(&lives.url())).await;
    assert_eq!(settled(&modest, &id).await["state"], "delivered");
    let now = under_way().await;
    // The one that was just told may not be counted out yet.
    assert!(now <= MOST + 1.0, "{now}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_may_have_a_certificate_of_a_ca_that_the_node_was_given() {
    let (own, strange) = (Ca::new(), Ca::new());
    let file = own.path("ca.pem");
    let plan = plan(1).arg("--callback-allow-private");
    let plan = plan.arg(format!("--callback-ca-file={}", file.display()));
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();
    let known = Receiver::of(&own, &[Answer::Status(200)]).await;
    let unknown = Receiver::of(&strange, &[Answer::Status(200)]).await;
    let url = |receiver: &Receiver| format!("https://localhost:{}/hook", receiver.port);
    let id = client.submit(&told(&url(&known))).await;
    let callback = settled(client, &id).await;
    assert_eq!(callback["state"], "delivered", "{callback}");
    assert_eq!(known.received().len(), 1);
    let id = client.submit(&told(&url(&unknown))).await;
    let callback = settled(client, &id).await;
    assert_eq!(callback["state"], "failed", "{callback}");
    let error = callback["attempts"][7]["error"].as_str().expect("an error");
    assert!(error.contains("certificate"), "{error}");
    // The name counts as well as the CA.
    let id = client
        .submit(&told(&format!("https://127.0.0.1:{}/", known.port)))
        .await;
    let callback = settled(client, &id).await;
    assert_eq!(callback["state"], "failed", "{callback}");
    assert_eq!(known.received().len(), 1);
    assert!(unknown.received().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_callback_is_said() {
    let cluster = Cluster::start(plan(1)).await;
    let client = cluster.any();
    let ok = "https://example.com/";
    let headers: serde_json::Map<_, _> = (0..17).map(|n| (format!("x-{n}"), json!("v"))).collect();
    for (callback, field) in [
        (json!("https://example.com/"), "callback"),
        (json!({}), "callback.url"),
        (json!({ "url": 5 }), "callback.url"),
        (json!({ "url": "" }), "callback.url"),
        (json!({ "url": "example.com" }), "callback.url"),
        (json!({ "url": "ftp://example.com/" }), "callback.url"),
        (json!({ "url": "http://" }), "callback.url"),
        (
            json!({ "url": "http://user:pass@example.com/" }),
            "callback.url",
        ),
        (json!({ "url": "http://example.com:0/" }), "callback.url"),
        (
            json!({ "url": format!("http://example.com/{}", "x".repeat(2048)) }),
            "callback.url",
        ),
        (json!({ "url": ok, "colour": 1 }), "callback.colour"),
        (json!({ "url": ok, "secret": "short" }), "callback.secret"),
        (
            json!({ "url": ok, "secret": "x".repeat(257) }),
            "callback.secret",
        ),
        (
            json!({ "url": ok, "secret": "with\na line" }),
            "callback.secret",
        ),
        (json!({ "url": ok, "headers": [] }), "callback.headers"),
        (json!({ "url": ok, "headers": headers }), "callback.headers"),
        (
            json!({ "url": ok, "headers": { "x": 1 } }),
            "callback.headers.x",
        ),
        (
            json!({ "url": ok, "headers": { "": "v" } }),
            "callback.headers.",
        ),
        (
            json!({ "url": ok, "headers": { "a b": "v" } }),
            "callback.headers.a b",
        ),
        (
            json!({ "url": ok, "headers": { "x": "a\r\nb: c" } }),
            "callback.headers.x",
        ),
        (
            json!({ "url": ok, "headers": { "x": "é" } }),
            "callback.headers.x",
        ),
        (
            json!({ "url": ok, "headers": { "x": "v".repeat(1025) } }),
            "callback.headers.x",
        ),
        (
            json!({ "url": ok, "headers": { "Host": "other" } }),
            "callback.headers.Host",
        ),
        (
            json!({ "url": ok, "headers": { "Transfer-Encoding": "chunked" } }),
            "callback.headers.Transfer-Encoding",
        ),
        (
            json!({ "url": ok, "headers": { "content-length": "1" } }),
            "callback.headers.content-length",
        ),
        (
            json!({ "url": ok, "headers": { "Quorun-Signature": "t=1" } }),
            "callback.headers.Quorun-Signature",
        ),
    ] {
        let mut submitted = job("bash", "true");
        submitted["callback"] = callback.clone();
        let answer = client.post_json("/v1/jobs", &submitted).await;
        let problem = answer.problem(422, "invalid-request");
        assert_eq!(problem["field"], field, "{callback}");
        assert!(!answer.text().contains("pass@"), "{}", answer.text());
    }
    let twice = r#"{"language":"bash","source":"true","callback":{"url":"https://example.com/","headers":{"X-A":"1","x-a":"2"}}}"#;
    let answer = client.post("/v1/jobs", twice).await;
    let field = answer.problem(422, "invalid-request")["field"].clone();
    assert_eq!(field, "callback.headers.x-a");
}
