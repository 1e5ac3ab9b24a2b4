//! More than the cluster can take: what is too much is refused in time and says so, and what was accepted ends well.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorun_tests::raw::Exchange;
use quorun_tests::{Answer, Client, Cluster, Executor, Plan, Witness, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// What every refusal has; returns the last part of its type.
fn refusal(answer: &Answer) -> String {
    let status = answer.status.as_u16();
    assert!([429, 503].contains(&status), "{status}: {}", answer.text());
    let body = answer.json();
    let kind = body["type"].as_str().unwrap_or_default();
    let kind = kind.trim_start_matches("urn:quorun:error:").to_owned();
    let _shape = answer.problem(status, &kind);
    let after = answer.header("retry-after").parse::<u32>();
    assert!(
        after.is_ok_and(|seconds| seconds > 0),
        "{:?}",
        answer.headers
    );
    if ["queue-full", "client-busy", "node-busy"].contains(&kind.as_str()) {
        let (value, limit) = (body["value"].as_u64(), body["limit"].as_u64());
        assert!(value.is_some() && limit.is_some(), "{body}");
    }
    kind
}

async fn post(client: &Client, job: &Value) -> Answer {
    client.post_json("/v1/jobs", job).await
}

/// Submissions that come through all nodes at once: no node alone sees how full the queue gets.
#[tokio::test(flavor = "multi_thread")]
async fn the_bound_of_the_queue_holds_exactly_under_a_burst_through_all_nodes() {
    const QUEUE: usize = 20;
    const SLOTS: usize = 3;
    let plan = Plan::new(Executor::Process).slots(1);
    let cluster = Cluster::start(plan.arg(format!("--max-queue={QUEUE}"))).await;
    cluster.all_work().await;
    let witness = Witness::new();
    let clients: Vec<Client> = cluster.clients().into_iter().cloned().collect();
    let mut accepted = BTreeSet::new();
    for (n, client) in clients.iter().enumerate() {
        let name = format!("runs-{n}");
        accepted.insert(client.submit(&witness.gated(&name)).await);
        witness.began(&name, 1).await;
    }
    let mut burst = JoinSet::new();
    for n in 0..150 {
        let client = clients[n % clients.len()].clone();
        let job = witness.gated(&format!("burst-{n}"));
        burst.spawn(async move { post(&client, &job).await });
    }
    while let Some(answer) = burst.join_next().await {
        let answer = answer.expect("an answer");
        if answer.status == 202 {
            let id = answer.json()["id"].as_str().expect("an id").to_owned();
            accepted.insert(id);
        } else {
            assert_eq!(refusal(&answer), "queue-full");
        }
    }
    // The slots are taken, and the rest waits.
    assert_eq!(accepted.len(), SLOTS + QUEUE);
    cluster.agree().await;
    for client in &clients {
        assert_eq!(client.cluster().await["queue"]["jobs"], QUEUE);
    }
    witness.open_gate();
    for id in &accepted {
        let job = clients[0].finished(id).await;
        assert_eq!(job["verdict"], "accepted", "{job}");
    }
    assert_eq!(witness.executions().len(), accepted.len());
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_what_was_accepted_joins_it_however_full_the_queue_is() {
    let plan = Plan::new(Executor::Process).slots(1).arg("--max-queue=1");
    let cluster = Cluster::start(plan.nodes(1)).await;
    let client = cluster.any();
    let witness = Witness::new();
    client.submit(&witness.gated("runs")).await;
    witness.began("runs", 1).await;
    let keyed = async |name: &str, key: &str| {
        let request = client.request(Method::POST, "/v1/jobs");
        let request = request.header("Idempotency-Key", key);
        client.send(request.json(&witness.gated(name))).await
    };
    let first = keyed("waits", "one").await.expect(202);
    assert_eq!(refusal(&keyed("other", "two").await), "queue-full");
    assert_eq!(keyed("waits", "one").await.expect(202)["id"], first["id"]);
    // Also where only the ledger knows it.
    let changed = keyed("changed", "one").await;
    assert_eq!(
        changed.problem(409, "idempotency-conflict")["job"],
        first["id"]
    );
    witness.open_gate();
    let id = first["id"].as_str().expect("an id");
    assert_eq!(client.finished(id).await["verdict"], "accepted");
    let later = keyed("other", "two").await.expect(202);
    let id = later["id"].as_str().expect("an id");
    assert_eq!(client.finished(id).await["verdict"], "accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_jobs_may_hold_so_many_bytes() {
    let plan = Plan::new(Executor::Process).nodes(1).slots(1);
    let cluster = Cluster::start(plan.arg("--max-queue-mb=1")).await;
    let client = cluster.any();
    let witness = Witness::new();
    client.submit(&witness.gated("runs")).await;
    witness.began("runs", 1).await;
    let heavy = |bytes: usize| {
        let mut job = witness.gated("heavy");
        job["stdin"] = "x".repeat(bytes).into();
        job
    };
    let id = client.submit(&heavy(600 << 10)).await;
    let refused = post(client, &heavy(600 << 10)).await;
    assert_eq!(refusal(&refused), "queue-full");
    assert_eq!(refused.json()["field"], "queue.bytes");
    assert_eq!(refused.json()["limit"], 1 << 20);
    let light = client.submit(&heavy(100 << 10)).await;
    witness.open_gate();
    for id in [id, light] {
        assert_eq!(client.finished(&id).await["verdict"], "accepted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_cannot_take_the_memory() {
    let plan = Plan::new(Executor::Process).nodes(1);
    let cluster = Cluster::start(plan.arg("--max-body-mb=64")).await;
    let client = cluster.any();
    // In JSON each of these bytes takes six.
    let job = json!({
        "language": "bash", "source": "head -c 3000000 /dev/zero", "limits": { "output_kb": 4096 },
    });
    let id = client.submit(&job).await;
    client.finished(&id).await;
    let look = format!(
        "GET /v1/jobs/{id} HTTP/1.1\r\nHost: {}\r\n\r\n",
        client.address()
    );
    let mut unread = Vec::new();
    for _ in 0..4 {
        let mut exchange = Exchange::send(client.address(), look.as_bytes()).await;
        assert_eq!(exchange.head().await.0, 200);
        unread.push(exchange);
    }
    let refused = client.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!(refusal(&refused), "client-busy");
    assert_eq!(refused.json()["field"], "body_bytes");
    drop(unread);
    eventually("the room is free again", async || {
        let answer = client.get(&format!("/v1/jobs/{id}")).await;
        let status = answer.status.as_u16();
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;
    let done = client.post_json("/v1/jobs?wait=60", &job).await.expect(200);
    assert_eq!(done["stdout"].as_str().map(str::len), Some(3_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_announced_does_not_fill_the_queue() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let client = cluster.any();
    let announced = head_only(client, "/v1/jobs", 1 << 40).await;
    eventually("the announcement is looked at", async || {
        let bytes = client.figures().await.sum("quorun_body_bytes", &[]);
        if bytes > 0.0 { Ok(()) } else { Err(bytes) }
    })
    .await;
    assert_eq!(client.lang("bash", "echo in").await.text(), "in\n");
    drop(announced);
}

/// A head without its body, whose answer is there although nothing more is sent.
async fn head_only(client: &Client, path: &str, length: usize) -> Exchange {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n",
        client.address()
    );
    Exchange::send(client.address(), request.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_cannot_take_the_memory() {
    let plan = Plan::new(Executor::Process).nodes(1);
    let cluster = Cluster::start(plan.arg("--max-body-mb=20").arg("--max-tests-kb=1")).await;
    let client = cluster.any();
    let bytes = async || client.figures().await.sum("quorun_body_bytes", &[]);
    // Nine of them fit into what one address may have.
    let mut open = Vec::new();
    for n in 1..=9 {
        open.push(head_only(client, "/v1/jobs", 1 << 20).await);
        eventually("the body has its room", async || {
            let now = bytes().await;
            if now >= f64::from(n << 20) {
                Ok(())
            } else {
                Err(now)
            }
        })
        .await;
    }
    let mut refused = head_only(client, "/v1/jobs", 3 << 20).await;
    let (status, fields) = refused.head().await;
    assert_eq!((status, fields["connection"].as_str()), (429, "close"));
    assert_eq!(fields["retry-after"], "1");
    // Also with a client that sends all of it before it looks for the answer.
    let all = client.post("/v1/jobs", vec![b' '; 3 << 20]).await;
    assert_eq!(refusal(&all), "client-busy");
    assert_eq!(all.json()["field"], "body_bytes");
    // What is small still gets through.
    let small = client.lang("bash", "echo small").await;
    assert_eq!(small.text(), "small\n");
    drop(open);
    eventually("the room is free again", async || {
        let now = bytes().await;
        if now < 1.0 { Ok(()) } else { Err(now) }
    })
    .await;
    let answer = client.post("/v1/jobs", vec![b' '; 3 << 20]).await;
    let _shape = answer.problem(400, "not-json");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_wait_are_bounded_and_leave_the_others_alone() {
    let plan = Plan::new(Executor::Process).nodes(1).slots(1);
    let plan = plan.arg("--max-waiting=5").arg("--max-client-waiting=3");
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();
    let witness = Witness::new();
    let id = client.submit(&witness.gated("long")).await;
    let mut waits = JoinSet::new();
    for _ in 0..3 {
        let (client, id) = (client.clone(), id.clone());
        waits.spawn(async move { client.finished(&id).await });
    }
    eventually("three wait", async || {
        let now = client.figures().await.sum("quorun_waiting_clients", &[]);
        if now > 2.5 { Ok(()) } else { Err(now) }
    })
    .await;
    let path = format!("/v1/jobs/{id}?wait=30");
    for answer in [
        client.get(&path).await,
        client.get(&format!("/v1/jobs/{id}/events")).await,
        client.lang("bash", "echo no").await,
        client
            .post_json(
                "/v1/jobs?wait=1",
                &json!({ "language": "bash", "source": "true" }),
            )
            .await,
    ] {
        assert_eq!(refusal(&answer), "client-busy");
        assert_eq!(
            (&answer.json()["limit"], &answer.json()["value"]),
            (&json!(3), &json!(4))
        );
    }
    // Nobody has to wait for an answer to these.
    client.job(&id).await;
    let other = client.submit(&witness.gated("other")).await;
    let refused = client.figures().await;
    let reasons = [("reason", "client_waiting")];
    assert!(refused.sum("quorun_refused_total", &reasons) > 3.5);
    witness.open_gate();
    while let Some(job) = waits.join_next().await {
        assert_eq!(job.expect("an answer")["verdict"], "accepted");
    }
    assert_eq!(client.finished(&other).await["verdict"], "accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_one_too_many_is_told_so() {
    let plan = Plan::new(Executor::Process).nodes(1);
    let cluster = Cluster::start(plan.arg("--max-connections=40")).await;
    let client = cluster.any();
    let open = async || client.figures().await.sum("quorun_connections", &[]);
    let mut held = Vec::new();
    let mut refused = None;
    // Each stays open behind its answer.
    let request = format!(
        "GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n",
        client.address()
    );
    for _ in 0..80 {
        let mut exchange = Exchange::send(client.address(), request.as_bytes()).await;
        let (status, fields) = exchange.head().await;
        if status == 503 {
            refused = Some(fields);
            break;
        }
        assert_eq!(status, 200);
        held.push(exchange);
    }
    let fields = refused.expect("a connection too many");
    assert_eq!(fields["content-type"], "application/problem+json");
    assert_eq!(
        (
            fields["connection"].as_str(),
            fields["retry-after"].as_str()
        ),
        ("close", "1")
    );
    drop(held);
    eventually("connections are free again", async || {
        let now = open().await;
        if now < 30.0 { Ok(()) } else { Err(now) }
    })
    .await;
    assert_eq!(client.lang("bash", "echo again").await.text(), "again\n");
}

/// Many more clients than there is room for, through all nodes, each with the next job as soon as it has the answer.
#[tokio::test(flavor = "multi_thread")]
async fn under_ten_times_the_load_the_leader_stays_and_all_that_was_accepted_ends() {
    const CLIENTS: usize = 60;
    const TRIES: usize = 1_500;
    const QUEUE: usize = 30;
    /// Far more than a node needs, and far less than it would have if it kept what it refuses.
    const MEMORY: f64 = 512e6;
    let plan = Plan::new(Executor::Process).slots(1);
    // The machine may be busy: elections are not what is looked at.
    let plan = plan
        .arg("--election-ms=3000")
        .arg("--node-timeout-ms=20000");
    let cluster = Cluster::start(plan.arg(format!("--max-queue={QUEUE}"))).await;
    cluster.all_work().await;
    let leader = cluster.leader().await;
    let term = cluster.any().cluster().await["term"].clone();
    let clients: Vec<Client> = cluster.clients().into_iter().cloned().collect();
    let next = Arc::new(AtomicUsize::new(0));
    let mut load = JoinSet::new();
    for n in 0..CLIENTS {
        let (client, next) = (clients[n % clients.len()].clone(), Arc::clone(&next));
        load.spawn(async move {
            let (mut accepted, mut refused) = (Vec::new(), 0);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= TRIES {
                    return (accepted, refused);
                }
                // Every tenth is a heavy one.
                let stdin = if number.is_multiple_of(10) {
                    500 << 10
                } else {
                    10
                };
                let job = json!({
                    "language": "bash",
                    "source": format!("echo {number}; wc -c"),
                    "stdin": "x".repeat(stdin),
                    "limits": { "cpu_ms": 20_000, "wall_ms": 60_000 },
                });
                let answer = post(&client, &job).await;
                if answer.status == 202 {
                    let id = answer.json()["id"].as_str().expect("an id").to_owned();
                    accepted.push((id, format!("{number}\n{stdin}\n")));
                } else {
                    refusal(&answer);
                    refused += 1;
                }
            }
        });
    }
    let (mut accepted, mut refused) = (Vec::new(), 0);
    while let Some(done) = load.join_next().await {
        let (ids, not) = done.expect("a client");
        accepted.extend(ids);
        refused += not;
    }
    assert_eq!(accepted.len() + refused, TRIES);
    assert!(refused > QUEUE, "{refused} of {TRIES} refused: no overload");
    for (id, printed) in &accepted {
        let job = clients[0].finished(id).await;
        assert_eq!(job["verdict"], "accepted", "{job}");
        assert_eq!(job["stdout"], *printed, "{job}");
    }
    assert_eq!(cluster.leader().await, leader);
    assert_eq!(cluster.any().cluster().await["term"], term, "an election");
    for client in &clients {
        let figures = client.figures().await;
        assert!(figures.memory() < MEMORY, "{}", figures.memory());
        assert!(figures.sum("quorun_body_bytes", &[]) < 1.0);
    }
    cluster.agree().await;
}
