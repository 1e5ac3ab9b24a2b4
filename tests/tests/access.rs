//! Who may do what: tokens, roles and owners at the API, secrets and certificates between the nodes, TLS for clients.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use quorun_tests::{Ca, Client, Cluster, Executor, Plan, Tokens, Witness, eventually, program};
use reqwest::Method;
use rustix::process::Signal;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::task::JoinSet;

fn hello() -> Value {
    json!({ "language": "bash", "source": "echo hello" })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_it_may_and_nothing_else() {
    let tokens = Tokens::new();
    let read = tokens.draw("course", "read", &[]);
    let submit = tokens.draw("course", "submit", &[]);
    let admin = tokens.draw("root", "admin", &[]);
    let cluster = Cluster::start(tokens.plan().nodes(1)).await;
    let nobody = cluster.any();
    let job = nobody.bearing(&submit).submit(&hello()).await;
    nobody.bearing(&submit).finished(&job).await;
    let of_job = format!("/v1/jobs/{job}");
    let events = format!("{of_job}/events");
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    // What each of nobody, read, submit and admin is answered.
    for (method, path, expected) in [
        (&get, "/healthz", [200, 200, 200, 200]),
        (&get, "/readyz", [200, 200, 200, 200]),
        (&get, "/openapi.json", [200, 200, 200, 200]),
        (&get, "/docs", [200, 200, 200, 200]),
        (&get, "/metrics", [401, 200, 200, 200]),
        (&get, "/v1/languages", [401, 200, 200, 200]),
        (&get, "/v1/cluster", [401, 200, 200, 200]),
        (&get, "/v1/languages/bash", [401, 200, 200, 200]),
        (&Method::PUT, "/v1/languages/bash", [401, 403, 403, 400]),
        (&Method::PATCH, "/v1/languages/bash", [401, 403, 403, 400]),
        (&delete, "/v1/languages/bash", [401, 403, 403, 409]),
        (&get, "/v1/jobs", [401, 200, 200, 200]),
        (&get, of_job.as_str(), [401, 200, 200, 200]),
        (&get, events.as_str(), [401, 200, 200, 200]),
        (&get, "/v1/queue", [401, 200, 200, 200]),
        (&post, "/v1/jobs/wait", [401, 400, 400, 400]),
        (&post, "/v1/jobs/batch", [401, 403, 400, 400]),
        (&post, "/v1/jobs/cancel", [401, 403, 400, 400]),
        (&delete, "/v1/jobs", [401, 403, 422, 422]),
        (&delete, of_job.as_str(), [401, 403, 409, 409]),
        (&post, "/lang/bash", [401, 403, 400, 400]),
        (&post, "/v1/jobs", [401, 403, 400, 400]),
        (&get, "/v1/cluster/settings", [401, 403, 403, 200]),
        (&post, "/v1/cluster/leader", [401, 403, 403, 409]),
        (&delete, "/v1/cluster/nodes/7", [401, 403, 403, 404]),
        (&post, "/v1/cluster/nodes", [401, 403, 403, 400]),
        (&get, "/nothing/here", [401, 404, 404, 404]),
    ] {
        let callers = [
            nobody.clone(),
            nobody.bearing(&read),
            nobody.bearing(&submit),
            nobody.bearing(&admin),
        ];
        for (caller, expected) in callers.iter().zip(expected) {
            let answer = caller.send(caller.request(method.clone(), path)).await;
            let shown = answer.text();
            assert_eq!(answer.status.as_u16(), expected, "{method} {path}: {shown}");
            let challenge = answer.header("www-authenticate");
            match expected {
                401 => {
                    let _ = answer.problem(401, "no-token");
                    assert_eq!(challenge, "Bearer");
                }
                403 => {
                    let _ = answer.problem(403, "not-allowed");
                    assert!(challenge.contains("insufficient_scope"), "{challenge}");
                }
                _ => assert_eq!(challenge, ""),
            }
        }
    }
    for wrong in [
        "quorun_wrong".to_owned(),
        "x".repeat(50_000),
        format!("{submit} "),
        format!("{submit}é"),
    ] {
        let request = nobody.request(Method::GET, "/v1/jobs");
        let header = reqwest::header::HeaderValue::from_bytes(format!("Bearer {wrong}").as_bytes());
        let answer = nobody
            .send(request.header("Authorization", header.expect("a header")))
            .await;
        if wrong.trim() == submit {
            assert_eq!(answer.status, 200, "blanks around it are no part of it");
            continue;
        }
        let problem = answer.problem(401, "unknown-token");
        assert!(!problem.to_string().contains(&wrong), "{problem}");
        let challenge = answer.header("www-authenticate");
        assert_eq!(challenge, "Bearer error=\"invalid_token\"");
    }
    let list = nobody.bearing(&admin).get("/v1/jobs").await.expect(200);
    assert_eq!(list["jobs"].as_array().map(Vec::len), Some(1), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_do_not_see_each_other_through_any_node_and_an_admin_sees_all() {
    let tokens = Tokens::new();
    let a = tokens.draw("a", "submit", &[]);
    let b = tokens.draw("b", "submit", &[]);
    let admin = tokens.draw("root", "admin", &[]);
    let cluster = Cluster::start(tokens.plan()).await;
    let through = |node: u64, token: &str| cluster.client(node).bearing(token);
    let keyed = async |node: u64, token: &str| {
        let client = through(node, token);
        let request = client.request(Method::POST, "/v1/jobs");
        let request = request.header("Idempotency-Key", "k").json(&hello());
        let body = client.send(request).await.expect(202);
        body["id"].as_str().expect("an id").to_owned()
    };
    let of_a = keyed(1, &a).await;
    let of_b = keyed(2, &b).await;
    assert_ne!(of_a, of_b, "a key is its owner's alone");
    assert_eq!(keyed(3, &a).await, of_a);
    assert_eq!(through(3, &a).finished(&of_a).await["owner"], "a");
    through(3, &b).finished(&of_b).await;

    let unknown = "01900000-0000-7000-8000-000000000000";
    for node in 1..=3 {
        let stranger = through(node, &b);
        for (method, rest) in [
            (Method::GET, ""),
            (Method::GET, "?wait=5"),
            (Method::GET, "?consistency=stale"),
            (Method::GET, "/events"),
            (Method::DELETE, ""),
            (Method::GET, "?nonsense=1"),
            (Method::GET, "?consistency=%73tale"),
        ] {
            let ask = async |id: &str| {
                let path = format!("/v1/jobs/{id}{rest}");
                let answer = stranger.send(stranger.request(method.clone(), &path)).await;
                let problem = answer.problem(404, "unknown-job");
                let headers: BTreeSet<_> = answer.headers.keys().map(ToString::to_string).collect();
                (problem.to_string().replace(id, "ID"), headers)
            };
            // Nothing tells what is another's from what is not there.
            assert_eq!(ask(&of_a).await, ask(unknown).await, "{method} {rest}");
        }
        // However an id is written, it is the same job.
        let bare = of_a.replace('-', "");
        let encoded: String = of_a.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for written in [
            bare,
            encoded,
            of_a.to_uppercase(),
            format!("urn:uuid:{of_a}"),
            format!("%7b{of_a}%7d"),
        ] {
            for rest in ["", "/events"] {
                let path = format!("/v1/jobs/{written}{rest}");
                let _ = stranger.get(&path).await.problem(404, "unknown-job");
            }
            let path = format!("/v1/jobs/{written}");
            let _ = stranger.delete(&path).await.problem(404, "unknown-job");
            through(node, &a).get(&path).await.expect(200);
        }
        let ids = async |token: &str| {
            let list = through(node, token).get("/v1/jobs").await.expect(200);
            let jobs = list["jobs"].as_array().cloned().unwrap_or_default();
            jobs.iter()
                .map(|job| job["id"].as_str().unwrap_or_default().to_owned())
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(ids(&a).await, [of_a.clone()].into());
        assert_eq!(ids(&b).await, [of_b.clone()].into());
        assert_eq!(ids(&admin).await, [of_a.clone(), of_b.clone()].into());
        let seen = through(node, &admin).job(&of_a).await;
        assert_eq!(seen["owner"], "a");
    }
    // A cursor of somebody else's list leads nowhere.
    let page = through(1, &b).get("/v1/jobs?limit=1").await.expect(200);
    let cursor = page["next_cursor"].as_str().expect("a cursor");
    let path = format!("/v1/jobs?limit=1&cursor={cursor}");
    through(2, &b).get(&path).await.expect(200);
    for other in [&a, &admin] {
        let problem = through(1, other).get(&path).await;
        let problem = problem.problem(422, "invalid-request");
        assert_eq!(problem["field"], "cursor");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_many_jobs_is_about_ones_own_alone() {
    let tokens = Tokens::new();
    let a = tokens.draw("owner-a", "submit", &[]);
    let b = tokens.draw("owner-b", "submit", &["--max-jobs", "3"]);
    let read = tokens.draw("owner-b", "read", &[]);
    let cluster = Cluster::start(tokens.plan().slots(1)).await;
    let (a, b, read) = (
        cluster.client(1).bearing(&a),
        cluster.client(2).bearing(&b),
        cluster.client(3).bearing(&read),
    );
    let witness = Witness::new();
    let gated = |name: &str| {
        let mut job = witness.gated(name);
        job["labels"] = json!(["shared"]);
        job
    };
    let batch = async |client: &Client, key: &str, names: &[&str]| {
        let jobs: Vec<Value> = names.iter().map(|name| gated(name)).collect();
        let request = client.request(Method::POST, "/v1/jobs/batch");
        let request = request.header("Idempotency-Key", key);
        let body = json!({ "atomic": true, "jobs": jobs });
        client.send(request.json(&body)).await
    };
    let ids_of = |body: &Value| -> Vec<String> {
        let jobs = body["jobs"].as_array().expect("jobs");
        jobs.iter()
            .map(|item| item["job"]["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    let of_a = ids_of(&batch(&a, "k", &["a-0", "a-1"]).await.expect(200));
    // All that an owner may have, or nothing; and the same key is another's own.
    let answer = batch(&b, "k", &["b-0", "b-1", "b-2", "b-3"]).await;
    let problem = answer.problem(429, "owner-busy");
    assert_eq!(
        (&problem["field"], &problem["value"], &problem["limit"]),
        (&json!("jobs"), &json!(0), &json!(3)),
    );
    let empty = b.get("/v1/jobs").await.expect(200);
    assert_eq!(empty["jobs"], json!([]), "none of them was taken");
    let of_b = ids_of(&batch(&b, "k", &["b-0", "b-1", "b-2"]).await.expect(200));
    // A retry is no new job, though there is no room for one.
    let again = ids_of(&batch(&b, "k", &["b-0", "b-1", "b-2"]).await.expect(200));
    assert_eq!(again, of_b);
    let _ = batch(&b, "l", &["b-4"]).await.problem(429, "owner-busy");
    let _ = batch(&read, "m", &["b-5"])
        .await
        .problem(403, "not-allowed");

    // What another has is as little there as what nobody has.
    let unknown = "01900000-0000-7000-8000-000000000000".to_owned();
    let strange: Vec<&String> = of_a.iter().chain([&unknown]).collect();
    for client in [&b, &read] {
        let body = json!({ "ids": strange, "until": "all", "timeout_s": 60 });
        let waited = client.post_json("/v1/jobs/wait", &body).await.expect(200);
        for (id, item) in strange.iter().zip(waited["jobs"].as_array().expect("jobs")) {
            let shown = item.to_string().replace(id.as_str(), "ID");
            let expected = waited["jobs"][2].to_string().replace(&unknown, "ID");
            assert_eq!(shown, expected);
        }
    }
    let body = json!({ "ids": strange });
    let cancelled = b.post_json("/v1/jobs/cancel", &body).await.expect(200);
    assert_eq!(cancelled["cancelled"], 0, "{cancelled}");
    for (id, item) in strange
        .iter()
        .zip(cancelled["jobs"].as_array().expect("jobs"))
    {
        let shown = item.to_string().replace(id.as_str(), "ID");
        let expected = cancelled["jobs"][2].to_string().replace(&unknown, "ID");
        assert_eq!(shown, expected);
    }
    let answer = read
        .post_json("/v1/jobs/cancel", &json!({ "ids": of_b }))
        .await;
    let _ = answer.problem(403, "not-allowed");
    let path = format!("/v1/jobs/{}/attach", of_a[0]);
    let _ = b.get(&path).await.problem(404, "unknown-job");

    // The queue is everybody's, and names nobody.
    let queue = read.get("/v1/queue").await.expect(200);
    let counted = queue["jobs"].as_u64().zip(queue["running"].as_u64());
    assert_eq!(counted.map(|(waiting, running)| waiting + running), Some(5));
    assert!(!queue.to_string().contains("owner-"), "{queue}");

    // Lists in both directions and by time are over one's own.
    let listed = async |client: &Client, query: &str| {
        let path = format!("/v1/jobs?label=shared{query}");
        let list = client.get(&path).await.expect(200);
        let jobs = list["jobs"].as_array().cloned().unwrap_or_default();
        jobs.iter()
            .map(|job| job["id"].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    let mut newest = of_b.clone();
    newest.reverse();
    assert_eq!(listed(&read, "").await, newest);
    assert_eq!(listed(&b, "&order=oldest").await, of_b);
    let since = "&order=oldest&submitted_after=2020-01-01T00:00:00Z";
    assert_eq!(listed(&a, since).await, of_a);
    let before = "&submitted_before=2020-01-01T00:00:00Z";
    assert_eq!(listed(&a, before).await, Vec::<String>::new());

    // Cancelling by label touches one's own.
    let answer = read.delete("/v1/jobs?label=shared").await;
    let _ = answer.problem(403, "not-allowed");
    let swept = b.delete("/v1/jobs?label=shared").await.expect(200);
    assert_eq!(swept["cancelled"], 3, "{swept}");
    witness.open_gate();
    for id in &of_a {
        assert_eq!(a.finished(id).await["verdict"], "accepted");
    }
    for id in &of_b {
        assert_eq!(read.finished(id).await["verdict"], "cancelled");
    }
}

/// When a job was begun.
fn started(job: &Value) -> &str {
    job["started_at"].as_str().expect("a time")
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_have_their_turns_however_many_jobs_another_has() {
    let tokens = Tokens::new();
    let many = tokens.draw("many", "submit", &[]);
    let few = tokens.draw("few", "submit", &[]);
    let admin = tokens.draw("root", "admin", &[]);
    let plan = tokens.plan().nodes(1).slots(1).bearing(&admin);
    let cluster = Cluster::start(plan).await;
    cluster.last_rules().await;
    let [many, few] = [many, few].map(|token| cluster.any().bearing(&token));
    let witness = Witness::new();
    let first = many.submit(&witness.gated("first")).await;
    witness.began("first", 1).await;
    let mut jobs = Vec::new();
    for n in 0..20 {
        jobs.push(many.submit(&witness.gated(&format!("many-{n}"))).await);
    }
    // What each is told that a job of its own would have before it.
    let queue = async |client: &Client| {
        let queue = client.get("/v1/queue").await.expect(200);
        queue["priorities"]["normal"]["ahead"].clone()
    };
    assert_eq!(queue(&many).await, 20);
    assert_eq!(queue(&few).await, 1);
    let one = few.submit(&witness.gated("one")).await;
    assert_eq!(few.job(&one).await["queue_position"], 2);
    let last = &jobs[19];
    assert_eq!(many.job(last).await["queue_position"], 21);
    witness.open_gate();
    let one = few.finished(&one).await;
    many.finished(&first).await;
    let mut before = 0;
    for job in &jobs {
        let job = many.finished(job).await;
        before += usize::from(started(&job) < started(&one));
    }
    assert!(before <= 1, "{before} of the others went before it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_job_is_removed_by_its_owner_or_an_admin() {
    let tokens = Tokens::new();
    let [a, b] = ["a", "b"].map(|name| tokens.draw(name, "submit", &[]));
    let read = tokens.draw("a", "read", &[]);
    let admin = tokens.draw("root", "admin", &[]);
    let cluster = Cluster::start(tokens.plan().bearing(&admin)).await;
    cluster.last_rules().await;
    let [a, b, read] = [a, b, read].map(|token| cluster.client(2).bearing(&token));
    let witness = Witness::new();
    let running = a.submit(&witness.gated("running")).await;
    witness.began("running", 1).await;
    let purge = |job: &str| format!("/v1/jobs/{job}?purge=true");
    let problem = a.delete(&purge(&running)).await.problem(409, "unfinished");
    assert_eq!(problem["job"], running);
    witness.open_gate();
    a.finished(&running).await;
    cluster.agree().await;
    let before = cluster.any().cluster().await["finished"].clone();

    let _ = b.delete(&purge(&running)).await.problem(404, "unknown-job");
    let _ = read
        .delete(&purge(&running))
        .await
        .problem(403, "not-allowed");
    for wrong in ["purge=yes", "purge=true&purge=true", "force=true"] {
        let answer = a.delete(&format!("/v1/jobs/{running}?{wrong}")).await;
        let _ = answer.problem(422, "invalid-request");
    }
    let still = a.delete(&format!("/v1/jobs/{running}?purge=false")).await;
    let _ = still.problem(409, "already-finished");
    assert_eq!(a.delete(&purge(&running)).await.status, 204);
    for client in cluster.clients() {
        let path = format!("/v1/jobs/{running}");
        let _ = client.get(&path).await.problem(404, "unknown-job");
        let _ = client
            .get(&format!("{path}/events"))
            .await
            .problem(404, "unknown-job");
    }
    let list = a.get("/v1/jobs").await.expect(200);
    assert_eq!(list["jobs"], json!([]));
    let _ = a.delete(&purge(&running)).await.problem(404, "unknown-job");
    let _ = cluster
        .any()
        .delete(&purge(&running))
        .await
        .problem(404, "unknown-job");
    cluster.agree().await;
    let after = cluster.any().cluster().await["finished"].clone();
    let figure = |finished: &Value, name: &str| finished[name].as_u64().expect("a figure");
    assert_eq!(figure(&after, "jobs") + 1, figure(&before, "jobs"));
    assert!(figure(&after, "bytes") < figure(&before, "bytes"));

    // Its key is free again; and an admin may remove everybody's.
    let keyed = async || {
        let request = b.request(Method::POST, "/v1/jobs?wait=60");
        let request = request.header("Idempotency-Key", "k").json(&hello());
        let job = b.send(request).await.expect(200);
        job["id"].as_str().expect("an id").to_owned()
    };
    let job = keyed().await;
    assert_eq!(keyed().await, job);
    assert_eq!(cluster.any().delete(&purge(&job)).await.status, 204);
    assert_ne!(keyed().await, job);
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_an_owner_are_bounded_exactly_through_all_nodes_at_once() {
    const MOST: usize = 5;
    let tokens = Tokens::new();
    let bound = MOST.to_string();
    let bounded = tokens.draw("bounded", "submit", &["--max-jobs", &bound]);
    let bounds = ["--queue-percent", "50", "--max-priority", "normal"];
    let other = tokens.draw("other", "submit", &bounds);
    let cluster = Cluster::start(tokens.plan().slots(1)).await;
    let clients: Vec<Client> = cluster.clients().into_iter().cloned().collect();
    let witness = Witness::new();
    let mut burst = JoinSet::new();
    for n in 0..60 {
        let client = clients[n % clients.len()].bearing(&bounded);
        let job = witness.gated(&format!("burst-{n}"));
        burst.spawn(async move { client.post_json("/v1/jobs", &job).await });
    }
    let mut accepted = Vec::new();
    while let Some(answer) = burst.join_next().await {
        let answer = answer.expect("an answer");
        if answer.status == 202 {
            let id = answer.json()["id"].as_str().expect("an id").to_owned();
            accepted.push(id);
            continue;
        }
        let problem = answer.problem(429, "owner-busy");
        assert_eq!(
            (&problem["field"], &problem["limit"]),
            (&json!("jobs"), &json!(MOST))
        );
        let after: u64 = answer.header("retry-after").parse().expect("seconds");
        assert!((1..=30).contains(&after), "{after}");
    }
    assert_eq!(accepted.len(), MOST);
    // The others are not held up.
    let free = clients[0].bearing(&other).submit(&hello()).await;
    witness.open_gate();
    clients[1].bearing(&other).finished(&free).await;
    for id in &accepted {
        let job = clients[2].bearing(&bounded).finished(id).await;
        assert_eq!(job["verdict"], "accepted", "{job}");
    }
    let again = clients[0].bearing(&bounded).run(&hello()).await;
    assert_eq!(again["verdict"], "accepted");

    // No job waits in a higher level than its owner may, in whatever way it comes; lower it may.
    for (token, asked, has) in [
        (&other, "high", "normal"),
        (&other, "low", "low"),
        (&bounded, "high", "high"),
    ] {
        let mut job = hello();
        job["priority"] = json!(asked);
        let client = clients[0].bearing(token);
        let one = client.run(&job).await;
        assert_eq!(one["priority"], has, "{one}");
        let batch = json!({ "jobs": [job] });
        let taken = client.post_json("/v1/jobs/batch", &batch).await.expect(200);
        let id = taken["jobs"][0]["job"]["id"].as_str().expect("an id");
        assert_eq!(client.finished(id).await["priority"], has);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_so_many_requests_and_is_told_how_it_stands() {
    let tokens = Tokens::new();
    let slow = tokens.draw("slow", "read", &["--requests-per-s", "1", "--burst", "3"]);
    let free = tokens.draw("free", "read", &[]);
    let cluster = Cluster::start(tokens.plan().nodes(1)).await;
    let client = cluster.any().bearing(&slow);
    let mut limited = None;
    for n in 0..100 {
        let answer = client.get("/v1/languages").await;
        assert_eq!(answer.header("ratelimit-policy"), "\"requests\";q=3;w=3");
        let standing = answer.header("ratelimit").to_owned();
        if answer.status == 429 {
            limited = Some((n, answer));
            break;
        }
        assert!(standing.starts_with("\"requests\";r="), "{standing}");
    }
    let (passed, answer) = limited.expect("an end to the requests");
    assert!(passed >= 3, "{passed} have passed");
    let problem = answer.problem(429, "rate-limited");
    assert_eq!(problem["limit"], 1, "{problem}");
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.header("ratelimit"), "\"requests\";r=0;t=3");
    // What needs no token is not counted, nor is another's token.
    cluster.any().get("/readyz").await.expect(200);
    let other = cluster.any().bearing(&free).get("/v1/languages").await;
    assert_eq!(
        (other.status.as_u16(), other.header("ratelimit")),
        (200, "")
    );
    eventually("there is one again", async || {
        let answer = client.get("/v1/languages").await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_come_and_go_while_a_node_runs_and_are_never_shown() {
    let tokens = Tokens::new();
    let first = tokens.draw("first", "admin", &[]);
    let mut cluster = Cluster::start(tokens.plan().nodes(1).arg("--log=debug")).await;
    let client = cluster.any().clone();
    let statuses = async |token: &str, expected: u16| {
        eventually("the token is known, or no longer", async || {
            let answer = client.bearing(token).get("/v1/languages").await;
            if answer.status.as_u16() == expected {
                Ok(())
            } else {
                Err(answer.text())
            }
        })
        .await;
    };
    statuses(&first, 200).await;
    // By a change of the file alone.
    let second = tokens.draw("second", "admin", &[]);
    statuses(&second, 200).await;
    statuses(&first, 200).await;
    // A file that is not right changes nothing.
    let text = std::fs::read_to_string(tokens.file()).expect("read");
    std::fs::write(tokens.file(), format!("{text}\n{first}")).expect("write");
    cluster.node(1).signal(Signal::HUP);
    eventually("the node has looked at it", async || {
        let log = cluster.node(1).log();
        if log.contains("the tokens stay as they were") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    statuses(&first, 200).await;
    // One that was taken back.
    let (_, rest) = text.trim_start().split_once("\n\n").expect("two entries");
    std::fs::write(tokens.file(), rest).expect("write");
    cluster.node(1).signal(Signal::HUP);
    statuses(&first, 401).await;
    let job = client.bearing(&second).run(&hello()).await;
    let figures = client.bearing(&second).get("/metrics").await.text();
    let log = cluster.node(1).log();
    let pid = cluster.node(1).pid().expect("a process");
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("its command line");
    let line = String::from_utf8_lossy(&line).into_owned();
    for secret in [&first, &second] {
        let part = &secret[..20];
        for (what, text) in [
            ("the job", job.to_string()),
            ("the figures", figures.clone()),
            ("the log", log.clone()),
            ("the command line", line.clone()),
        ] {
            assert!(!text.contains(part), "{what} shows a token");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_may_use_a_node_if_it_is_listed() {
    let origin = "https://judge.example";
    let plan = Plan::new(Executor::Process).nodes(1);
    let cluster = Cluster::start(plan.arg(format!("--cors-origin={origin}"))).await;
    let client = cluster.any();
    let from = async |method: Method, origin: &str| {
        let request = client.request(method, "/v1/languages");
        let request = request.header("Access-Control-Request-Method", "GET");
        client.send(request.header("Origin", origin)).await
    };
    for method in [Method::OPTIONS, Method::GET] {
        let answer = from(method, origin).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("access-control-allow-origin"), origin);
    }
    let other = "https://evil.example";
    let answer = from(Method::OPTIONS, other).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    let _ = from(Method::GET, other)
        .await
        .problem(403, "foreign-origin");
    // Its own page is not from elsewhere.
    let own = format!("http://{}", client.address());
    assert_eq!(from(Method::GET, &own).await.status, 200);
    // A page that only sends, and does not ask, is not heard either.
    let request = client.request(Method::POST, "/lang/bash").body("echo harm");
    let answer = client.send(request.header("Origin", other)).await;
    let _ = answer.problem(403, "foreign-origin");
    let list = client.get("/v1/jobs").await.expect(200);
    assert_eq!(list["jobs"], json!([]));
}

fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_a_secret_and_certificates_work_together_and_let_nobody_else_in() {
    let ca = Ca::new();
    let (cert, key) = ca.issue("node", "quorun-node");
    let secret = ca.path("secret");
    let plan = Plan::new(Executor::Process)
        .arg(option("peer-tls-cert", &cert))
        .arg(option("peer-tls-key", &key))
        .arg(option("peer-tls-ca", &ca.path("ca.pem")))
        .arg(option("cluster-secret-file", &secret))
        .arg("--cluster-secret-create");
    let mut cluster = Cluster::start(plan).await;
    cluster.all_work().await;
    let joined = cluster.join().await;
    assert_eq!(joined, 4);
    // One with another secret, though with a certificate of the CA: it gets a place, and nobody talks to it.
    let strange = ca.path("strange");
    std::fs::write(&strange, "x".repeat(40)).expect("write");
    let mut settings = cluster.joining();
    let args = settings.args.iter().map(|arg| {
        if arg.starts_with("--cluster-secret-file") {
            option("cluster-secret-file", &strange)
        } else {
            arg.clone()
        }
    });
    settings.args = args.collect();
    let log = settings.data.with_extension("log");
    let mut node = quorun_tests::Node::new(settings, log);
    node.start();
    eventually("the members call it, and are refused", async || {
        let answer = cluster.any().get("/v1/cluster").await.json();
        let members = answer["nodes"].as_array().map_or(0, Vec::len);
        let ready = node.ready().await;
        if members == 5 && ready.as_ref().is_err_and(|why| why.starts_with('{')) {
            Ok(())
        } else {
            Err(format!("{members} members, {ready:?}"))
        }
    })
    .await;
    node.kill();
    // The others go on without it.
    cluster.all_work().await;
    let secret = std::fs::read_to_string(&secret).expect("the secret");
    for node in cluster.nodes() {
        assert!(!node.log().contains(secret.trim()), "a secret was logged");
    }
}

/// A handshake with a node, as a client that knows the CA: the protocol that was agreed on, and the node's certificate.
async fn shake(address: &str, ca: &Path) -> Result<(Option<Vec<u8>>, Vec<u8>), String> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_file(ca).map_err(|error| error.to_string())?;
    roots.add(root).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())?;
    let (_, session) = stream.get_ref();
    let shown = session.peer_certificates().and_then(|all| all.first());
    Ok((
        session.alpn_protocol().map(<[u8]>::to_vec),
        shown.map(|der| der.to_vec()).unwrap_or_default(),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_speak_tls_where_there_is_a_certificate_and_see_the_newest_one() {
    let ca = Ca::new();
    let (cert, key) = ca.issue("http", "localhost");
    let tokens = Tokens::new();
    let admin = tokens.draw("root", "admin", &[]);
    // The harness asks without TLS whether a node is there, so this one is alone.
    let folder = tempfile::tempdir().expect("a folder");
    let _turn = quorun_tests::turn::Turn::take().await;
    let port = quorun_tests::ports::free(2, &[]);
    let settings = quorun_tests::node::Settings {
        id: 1,
        peers: format!("1=127.0.0.1:{}", port + 1),
        join: None,
        http: port,
        cluster: "tls".to_owned(),
        executor: Executor::Process,
        slots: 1,
        data: folder.path().join("data"),
        program: None,
        args: vec![
            option("tls-cert", &cert),
            option("tls-key", &key),
            option("tokens", &tokens.file()),
        ],
        env: Vec::new(),
        token: None,
    };
    let mut node = quorun_tests::Node::new(settings, folder.path().join("log"));
    node.start();
    let run = |args: &[&str]| {
        let output = program::command()
            .args(args)
            .args(["--url", &format!("https://localhost:{port}")])
            .arg(option("ca-file", &ca.path("ca.pem")))
            .env("QUORUN_TOKEN", &admin)
            .output()
            .expect("run quorun");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    eventually("the node is ready", async || {
        let (ready, said) = run(&["health"]);
        if ready { Ok(()) } else { Err(said) }
    })
    .await;
    let (shown, said) = run(&["cluster", "status"]);
    assert!(shown && said.contains("leader"), "{said}");
    let program = folder.path().join("hello.sh");
    std::fs::write(&program, "echo over TLS").expect("write");
    let (ran, said) = run(&["run", &program.display().to_string()]);
    assert!(ran && said.contains("over TLS"), "{said}");

    let address = format!("127.0.0.1:{port}");
    let (protocol, first) = shake(&address, &ca.path("ca.pem")).await.expect("TLS");
    assert_eq!(protocol.as_deref(), Some(&b"h2"[..]));
    shake(&address, &Ca::new().path("ca.pem"))
        .await
        .expect_err("another CA");
    ca.issue("http", "localhost");
    node.signal(Signal::HUP);
    eventually("the new certificate is shown", async || {
        let (_, now) = shake(&address, &ca.path("ca.pem")).await?;
        if now == first {
            Err("the old one".to_owned())
        } else {
            Ok(())
        }
    })
    .await;
    // Without TLS there is nothing to be had.
    let plain = Client::new(&format!("http://{address}"));
    let request = plain.request(Method::GET, "/healthz");
    Client::try_send(request).await.expect_err("no TLS");
    node.stop().await;
}
