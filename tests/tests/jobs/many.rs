//! Many jobs at once: priorities and the queue, batches, lists, waiting for several, cancelling several.

use std::collections::BTreeSet;

use quorun_tests::{Answer, Client, Cluster, Executor, Plan, Witness};
use reqwest::Method;
use serde_json::{Value, json};

use super::{ids, job};

fn id_of(job: &Value) -> String {
    job["id"].as_str().expect("an id").to_owned()
}

fn with(mut job: Value, field: &str, value: impl Into<Value>) -> Value {
    job[field] = value.into();
    job
}

async fn batch(client: &Client, key: Option<&str>, path: &str, body: &Value) -> Answer {
    let mut request = client.request(Method::POST, path).json(body);
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    client.send(request).await
}

/// One node with one slot, which is taken.
async fn busy(witness: &Witness) -> (Cluster, String) {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1).slots(1)).await;
    let first = cluster.any().submit(&witness.gated("first")).await;
    witness.began("first", 1).await;
    (cluster, first)
}

#[tokio::test(flavor = "multi_thread")]
async fn high_goes_before_low_and_the_queue_says_who_is_next() {
    let witness = Witness::new();
    let (cluster, first) = busy(&witness).await;
    let client = cluster.any();
    let mut jobs = Vec::new();
    for (n, priority) in ["low", "normal", "normal", "high"].iter().enumerate() {
        let gated = witness.gated(&format!("{priority}-{n}"));
        jobs.push(client.submit(&with(gated, "priority", *priority)).await);
    }
    let mut places = Vec::new();
    for id in &jobs {
        let job = client.job(id).await;
        assert_eq!(job["timings"]["queued_ms"], Value::Null, "{job}");
        places.push(job["queue_position"].as_u64().expect("a position"));
    }
    assert_eq!(places, [4, 2, 3, 1]);
    let queue = client.get("/v1/queue").await.expect(200);
    assert_eq!(queue["jobs"], 4, "{queue}");
    assert_eq!(queue["running"], 1);
    assert_eq!(queue["slots"], json!({ "all": 1, "free": 0 }));
    let level = |name: &str| &queue["priorities"][name];
    let count = |name: &str| level(name)["jobs"].as_u64().expect("jobs");
    assert_eq!(["high", "normal", "low"].map(count), [1, 2, 1], "{queue}");
    let ahead = |name: &str| level(name)["ahead"].as_u64().expect("ahead");
    assert_eq!(["high", "normal", "low"].map(ahead), [1, 3, 4], "{queue}");
    let languages = queue["languages"].as_object().expect("languages");
    let counted: u64 = languages.values().filter_map(|l| l["jobs"].as_u64()).sum();
    assert_eq!(counted, 4, "{queue}");
    assert_eq!(languages.len(), 1);
    assert!(level("low")["oldest_wait_ms"].as_u64().is_some(), "{queue}");
    assert_eq!(
        queue["bytes"],
        languages.values().next().expect("one")["bytes"]
    );

    witness.open_gate();
    for id in jobs.iter().chain([&first]) {
        let job = client.finished(id).await;
        assert_eq!(job["verdict"], "accepted", "{job}");
        assert_eq!(job.get("queue_position"), None);
        let timing = |name: &str| job["timings"][name].as_u64().expect("a figure");
        let parts = ["queued_ms", "attempt_ms", "commit_ms"].map(timing);
        assert!(parts.iter().sum::<u64>() <= timing("total_ms") + 1, "{job}");
        assert!(timing("run_ms") <= timing("attempt_ms") + 1, "{job}");
        assert_eq!(job["timings"]["compile_ms"], Value::Null);
    }
    let order: Vec<String> = witness
        .executions()
        .iter()
        .map(|execution| execution.name.clone())
        .collect();
    assert_eq!(order, ["first", "high-3", "normal-1", "normal-2", "low-0"]);
    let queue = client.get("/v1/queue?consistency=stale").await.expect(200);
    assert_eq!((&queue["jobs"], &queue["bytes"]), (&json!(0), &json!(0)));
    assert_eq!(queue["languages"], json!({}));
    let started = queue["throughput"]["started_per_s"].as_f64();
    assert!(started.is_some_and(|rate| rate > 0.0), "{queue}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_answered_item_by_item() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();
    let items = json!({ "jobs": [
        job("bash", "echo one"),
        { "language": "bash", "source": "echo two", "limits": { "cpu_ms": 0 } },
        job("klingon", "Qapla'"),
        { "language": "bash", "source": 5 },
        "not a job",
        { "language": "bash", "source": "echo three", "priority": "high", "colour": "red" },
        with(job("bash", "echo four"), "priority", "low"),
    ] });
    let answer = batch(client, None, "/v1/jobs/batch?wait=60", &items).await;
    let answer = answer.expect(200);
    assert_eq!(
        (&answer["accepted"], &answer["refused"]),
        (&json!(2), &json!(5))
    );
    let statuses: Vec<_> = (0..7)
        .map(|n| answer["jobs"][n]["status"].as_u64().expect("a status"))
        .collect();
    assert_eq!(statuses, [200, 422, 404, 422, 422, 422, 200], "{answer}");
    let field = |n: usize| answer["jobs"][n]["problem"]["field"].clone();
    assert_eq!(field(1), "jobs[1].limits.cpu_ms");
    assert_eq!(field(3), "jobs[3].source");
    assert_eq!(field(4), "jobs[4]");
    assert_eq!(field(5), "jobs[5].colour");
    let kind = &answer["jobs"][2]["problem"]["type"];
    assert_eq!(kind, "urn:quorun:error:unknown-language");
    let id = id_of(&answer["jobs"][6]["job"]);
    let shown = cluster.client(3).finished(&id).await;
    assert_eq!(
        (&shown["stdout"], &shown["priority"]),
        (&json!("four\n"), &json!("low"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_atomic_batch_is_taken_whole_or_not_at_all_and_a_retry_joins_it() {
    let witness = Witness::new();
    let plan = Plan::new(Executor::Process).slots(1).arg("--max-queue=4");
    let cluster = Cluster::start(plan).await;
    cluster.all_work().await;
    let client = cluster.any();
    let before = ids(&client.get("/v1/jobs").await.expect(200));
    let wrong = json!({ "atomic": true, "jobs": [
        job("bash", "true"),
        with(job("bash", "true"), "retention_s", -1),
        with(job("bash", "true"), "labels", json!([""])),
    ] });
    let answer = batch(client, None, "/v1/jobs/batch", &wrong).await;
    let problem = answer.problem(422, "invalid-batch");
    let fields: Vec<_> = problem["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| error["field"].clone())
        .collect();
    assert_eq!(fields, ["jobs[1].retention_s", "jobs[2].labels[0]"]);
    let list = client.get("/v1/jobs").await.expect(200);
    assert_eq!(ids(&list), before, "nothing of it was taken");

    let gated = |names: [&str; 3]| {
        let jobs = names.map(|name| with(witness.gated(name), "labels", json!(["batch"])));
        json!({ "atomic": true, "jobs": jobs })
    };
    let jobs = gated(["a", "b", "c"]);
    let answer = batch(client, Some("all"), "/v1/jobs/batch", &jobs)
        .await
        .expect(200);
    let accepted = ids(
        &json!({ "jobs": answer["jobs"].as_array().expect("jobs").iter().map(|item| item["job"].clone()).collect::<Vec<_>>() }),
    );
    assert_eq!(accepted.iter().collect::<BTreeSet<_>>().len(), 3);
    for other in cluster.clients() {
        let again = batch(other, Some("all"), "/v1/jobs/batch", &jobs)
            .await
            .expect(200);
        for (n, id) in accepted.iter().enumerate() {
            assert_eq!(again["jobs"][n]["job"]["id"], **id, "{again}");
        }
    }
    // Another batch with the same key, even where some of its items are the same.
    let changed = gated(["a", "b", "other"]);
    let answer = batch(client, Some("all"), "/v1/jobs/batch", &changed).await;
    answer.problem(409, "idempotency-conflict");
    // The three run, so that four may wait: of six none is taken, of four all are.
    for name in ["a", "b", "c"] {
        witness.began(name, 1).await;
    }
    let many = |count: usize| {
        let jobs: Vec<_> = (0..count)
            .map(|n| witness.gated(&format!("{count}-{n}")))
            .collect();
        json!({ "atomic": true, "jobs": jobs })
    };
    let answer = batch(client, None, "/v1/jobs/batch", &many(6)).await;
    assert_eq!(answer.problem(429, "queue-full")["limit"], 4);
    assert_eq!(client.cluster().await["queue"]["jobs"], 0);
    batch(client, None, "/v1/jobs/batch", &many(4))
        .await
        .expect(200);
    assert_eq!(client.get("/v1/queue").await.expect(200)["jobs"], 4);
    // A retry is joined all the same.
    let again = batch(client, Some("all"), "/v1/jobs/batch", &jobs)
        .await
        .expect(200);
    assert_eq!(again["jobs"][0]["job"]["id"], *accepted[0], "{again}");
    // One by one, those that have room would be taken; there is none.
    let each = with(many(2), "atomic", false);
    let answer = batch(client, None, "/v1/jobs/batch", &each).await;
    answer.problem(429, "queue-full");
    witness.open_gate();
    for id in &accepted {
        assert_eq!(client.finished(id).await["verdict"], "accepted");
    }
    // With a key, what was taken is joined, one by one as well.
    let each = with(gated(["a", "b", "c"]), "atomic", false);
    let again = batch(client, Some("all"), "/v1/jobs/batch?wait=1", &each)
        .await
        .expect(200);
    assert_eq!(again["jobs"][1]["job"]["id"], *accepted[1], "{again}");
    assert_eq!(again["jobs"][1]["status"], 200);
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_filters_and_cursors_of_their_own() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let client = cluster.any();
    let mut all = Vec::new();
    for n in 0..6 {
        let program = if n % 3 == 0 { "exit 1" } else { "true" };
        let mut submitted = job("bash", program);
        submitted["labels"] = json!(["all", format!("n{n}"), format!("half-{}", n % 2)]);
        submitted["priority"] = json!(if n < 2 { "high" } else { "normal" });
        all.push(client.submit(&submitted).await);
    }
    for id in &all {
        client.finished(id).await;
    }
    let list = async |query: &str| -> Vec<usize> {
        let list = client.get(&format!("/v1/jobs?{query}")).await.expect(200);
        let place = |id| {
            all.iter()
                .position(|known| *known == id)
                .expect("a known job")
        };
        ids(&list).into_iter().map(place).collect()
    };
    assert_eq!(list("").await, [5, 4, 3, 2, 1, 0]);
    assert_eq!(list("order=oldest&limit=2").await, [0, 1]);
    assert_eq!(list("label=all&label=half-1").await, [5, 3, 1]);
    assert_eq!(list("verdict=runtime_error").await, [3, 0]);
    assert_eq!(
        list("verdict=runtime_error,accepted&priority=high").await,
        [1, 0]
    );
    assert_eq!(list("state=queued,running").await, [0; 0]);
    assert_eq!(
        list("state=queued&state=finished&language=sh,python&label=n4").await,
        [4]
    );
    assert_eq!(list("node=1&label=n2").await, [2]);
    assert_eq!(list("node=2").await, [0; 0]);
    let submitted = |job: &Value| job["submitted_at"].as_str().expect("a time").to_owned();
    let third = submitted(&client.job(&all[2]).await);
    let from = list(&format!("submitted_after={third}&order=oldest")).await;
    let until = list(&format!("submitted_before={third}&order=oldest")).await;
    assert!(from.contains(&2) && from.contains(&5), "{from:?}");
    assert!(!until.contains(&2), "{until:?}");
    assert_eq!([until, from].concat(), [0, 1, 2, 3, 4, 5]);

    // Page by page, in both directions.
    for (order, expected) in [("newest", [5, 3, 1]), ("oldest", [1, 3, 5])] {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("label=half-1&order={order}&limit=1{cursor}");
            seen.extend(list(&path).await);
            let page = client.get(&format!("/v1/jobs?{path}")).await.expect(200);
            let Some(next) = page["next_cursor"].as_str() else {
                break;
            };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen, expected);
    }
    let page = client.get("/v1/jobs?label=all&limit=2").await.expect(200);
    let cursor = page["next_cursor"].as_str().expect("a cursor");
    assert_eq!(
        list(&format!("label=all&limit=9&cursor={cursor}")).await,
        [3, 2, 1, 0]
    );
    for (query, field) in [
        (format!("label=other&cursor={cursor}"), "cursor"),
        (format!("cursor={cursor}"), "cursor"),
        (format!("label=all&order=oldest&cursor={cursor}"), "cursor"),
        (format!("label=all&cursor={}", &cursor[1..]), "cursor"),
        (format!("cursor={}", all[0]), "cursor"),
        ("cursor=".to_owned(), "cursor"),
        ("cursor=a&cursor=b".to_owned(), "cursor"),
        ("state=done".to_owned(), "state"),
        ("state=".to_owned(), "state"),
        ("verdict=ok".to_owned(), "verdict"),
        ("priority=1".to_owned(), "priority"),
        ("node=-1".to_owned(), "node"),
        ("order=random".to_owned(), "order"),
        ("limit=0".to_owned(), "limit"),
        ("limit=501".to_owned(), "limit"),
        ("limit=1&limit=2".to_owned(), "limit"),
        ("label=".to_owned(), "label"),
        ("submitted_after=yesterday".to_owned(), "submitted_after"),
        (
            "submitted_before=1960-01-01T00:00:00Z".to_owned(),
            "submitted_before",
        ),
        (
            "submitted_after=2026-01-02T00:00:00Z&submitted_before=2026-01-01T00:00:00Z".to_owned(),
            "submitted_before",
        ),
        ("colour=red".to_owned(), "colour"),
        ("consistency=maybe".to_owned(), "consistency"),
        ("label=a&".repeat(101), "query"),
        ((0..17).map(|n| format!("label={n}&")).collect(), "label"),
    ] {
        let answer = client.get(&format!("/v1/jobs?{query}")).await;
        assert_eq!(
            answer.problem(422, "invalid-request")["field"],
            field,
            "{query}"
        );
    }
    let answer = client.get("/v1/jobs?language=klingon").await;
    answer.problem(404, "unknown-language");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_several_jobs_at_any_node() {
    let cluster = Cluster::of_processes().await;
    let witness = Witness::new();
    let client = cluster.any();
    let slow = client.submit(&witness.gated("slow")).await;
    let fast = client.run(&job("bash", "echo fast")).await;
    let fast = id_of(&fast);
    let gone = "01900000-0000-7000-8000-000000000000";
    for other in cluster.clients() {
        let wait = async |body: Value| other.post_json("/v1/jobs/wait", &body).await;
        let any = json!({ "ids": [slow, gone, fast], "until": "any" });
        let answer = wait(any).await.expect(200);
        assert_eq!(answer["done"], true, "{answer}");
        assert_eq!(ids(&answer), [&slow, gone, &fast]);
        assert_ne!(answer["jobs"][0]["state"], "finished");
        assert_eq!(
            answer["jobs"][1]["problem"]["type"],
            "urn:quorun:error:unknown-job"
        );
        assert_eq!(answer["jobs"][2]["verdict"], "accepted");
        let all = json!({ "ids": [slow, fast, slow], "timeout_s": 0.05 });
        let answer = wait(all).await.expect(200);
        assert_eq!(
            (&answer["done"], ids(&answer).len()),
            (&json!(false), 2),
            "{answer}"
        );
    }
    let waiter = cluster.client(2).clone();
    let body = json!({ "ids": [slow, fast], "until": "all", "timeout_s": 60 });
    let waiting = tokio::spawn(async move { waiter.post_json("/v1/jobs/wait", &body).await });
    witness.began("slow", 1).await;
    witness.open_gate();
    let answer = waiting.await.expect("an answer").expect(200);
    assert_eq!(answer["done"], true, "{answer}");
    assert_eq!(answer["jobs"][0]["state"], "finished");

    let many: Vec<_> = (0..1001).map(|_| gone).collect();
    for (body, field) in [
        (json!({ "ids": [] }), "ids"),
        (json!({ "ids": many }), "ids"),
        (json!({ "ids": ["x"] }), "ids[0]"),
        (json!({ "ids": [7] }), "ids[0]"),
        (json!({ "ids": gone }), "ids"),
        (json!({}), "ids"),
        (json!({ "ids": [gone], "until": "some" }), "until"),
        (json!({ "ids": [gone], "until": 1 }), "until"),
        (json!({ "ids": [gone], "timeout_s": -1 }), "timeout_s"),
        (json!({ "ids": [gone], "timeout_s": "1" }), "timeout_s"),
        (json!({ "ids": [gone], "colour": 1 }), "colour"),
    ] {
        let answer = client.post_json("/v1/jobs/wait", &body).await;
        assert_eq!(
            answer.problem(422, "invalid-request")["field"],
            field,
            "{body}"
        );
    }
    let long = "x".repeat(70_000);
    let answer = client
        .post_json("/v1/jobs/wait", &json!({ "ids": [long] }))
        .await;
    answer.problem(413, "too-large");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_cancelled_by_label_and_by_id() {
    let witness = Witness::new();
    let (cluster, first) = busy(&witness).await;
    let client = cluster.any();
    let labelled = async |name: &str, labels: Value| {
        client
            .submit(&with(witness.gated(name), "labels", labels))
            .await
    };
    let mut contest = Vec::new();
    for n in 0..5 {
        contest.push(labelled(&format!("contest-{n}"), json!(["contest", "all"])).await);
    }
    let other = labelled("other", json!(["all"])).await;
    for (query, field) in [
        ("", "query"),
        ("?limit=3", "query"),
        ("?state=finished", "state"),
        ("?label=contest&verdict=accepted", "verdict"),
        ("?label=contest&limit=1001", "limit"),
        ("?label=contest&cursor=x", "cursor"),
    ] {
        let answer = client.delete(&format!("/v1/jobs{query}")).await;
        assert_eq!(
            answer.problem(422, "invalid-request")["field"],
            field,
            "{query}"
        );
    }
    let path = "/v1/jobs?label=contest&label=all&limit=3";
    let answer = client.delete(path).await.expect(200);
    assert_eq!(answer["cancelled"], 3, "{answer}");
    let cursor = answer["next_cursor"].as_str().expect("a cursor");
    let answer = client
        .delete(&format!("{path}&cursor={cursor}"))
        .await
        .expect(200);
    assert_eq!(
        (&answer["cancelled"], &answer["next_cursor"]),
        (&json!(2), &Value::Null)
    );
    for id in &contest {
        assert_eq!(client.job(id).await["verdict"], "cancelled");
    }
    assert_eq!(client.job(&other).await["state"], "queued");

    // By their ids: one waits, one runs, one has ended, one never was.
    let gone = "01900000-0000-7000-8000-000000000000";
    let named = json!({ "ids": [other, first, contest[0], gone] });
    let answer = client
        .post_json("/v1/jobs/cancel", &named)
        .await
        .expect(200);
    assert_eq!(answer["cancelled"], 2, "{answer}");
    let statuses: Vec<_> = (0..4)
        .map(|n| answer["jobs"][n]["status"].clone())
        .collect();
    assert_eq!(statuses, [200, 200, 409, 404]);
    for id in [&other, &first] {
        assert_eq!(client.finished(id).await["verdict"], "cancelled");
    }
    for (body, field) in [
        (json!({ "ids": [] }), "ids"),
        (json!({ "ids": ["x"] }), "ids[0]"),
        (json!({ "labels": ["x"] }), "labels"),
    ] {
        let answer = client.post_json("/v1/jobs/cancel", &body).await;
        assert_eq!(
            answer.problem(422, "invalid-request")["field"],
            field,
            "{body}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_batch_or_a_priority_is_said() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let client = cluster.any();
    for value in [
        json!("urgent"),
        json!("High"),
        json!(5),
        json!(""),
        json!(["high"]),
    ] {
        let answer = client
            .post_json(
                "/v1/jobs",
                &with(job("bash", "true"), "priority", value.clone()),
            )
            .await;
        let field = answer.problem(422, "invalid-request")["field"].clone();
        assert_eq!(field, "priority", "{value}");
    }
    let many: Vec<_> = (0..1001).map(|_| job("bash", "true")).collect();
    for (body, field) in [
        (json!({ "jobs": [] }), "jobs"),
        (json!({ "jobs": many }), "jobs"),
        (json!({ "jobs": job("bash", "true") }), "jobs"),
        (json!({}), "jobs"),
        (json!({ "jobs": [], "atomic": "yes" }), "atomic"),
        (json!({ "jobs": [], "colour": 1 }), "colour"),
    ] {
        let answer = client.post_json("/v1/jobs/batch", &body).await;
        assert_eq!(
            answer.problem(422, "invalid-request")["field"],
            field,
            "{body}"
        );
    }
    let deep = format!(
        "{{\"jobs\":[{}{}]}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let answer = client.post("/v1/jobs/batch", deep).await;
    assert!(
        [200, 400].contains(&answer.status.as_u16()),
        "{}",
        answer.text()
    );
    for text in ["", "{", "{\"jobs\":[}", "[]", "{\"jobs\":[{]}"] {
        let answer = client.post("/v1/jobs/batch", text).await;
        assert!(
            [400, 422].contains(&answer.status.as_u16()),
            "{text}: {}",
            answer.text()
        );
    }
    let answer = client
        .post_json("/v1/jobs/batch?wait=x", &json!({ "jobs": [] }))
        .await;
    assert_eq!(answer.problem(422, "invalid-request")["field"], "wait");
    let answer = client
        .post_json("/v1/jobs/batch?wait=1&wait=1", &json!({ "jobs": [] }))
        .await;
    assert_eq!(answer.problem(422, "invalid-request")["field"], "wait");
    let request = client.request(Method::POST, "/v1/jobs/batch");
    let request = request.header("Idempotency-Key", "k".repeat(256));
    let body = json!({ "jobs": [job("bash", "true")] });
    let answer = client.send(request.json(&body)).await;
    let field = answer.problem(422, "invalid-request")["field"].clone();
    assert_eq!(field, "Idempotency-Key");
    let answer = client.get("/v1/queue?colour=red").await;
    answer.problem(422, "invalid-request");
}
