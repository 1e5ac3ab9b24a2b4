//! Types of problems that nothing else provokes, and that there is a test for each.

use std::path::Path;

use quorun_tests::{Cluster, Executor, Plan, Witness, eventually};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

use super::one_node;

/// Those that are provoked where they are made, by tests of the server's own, or not at all.
const ELSEWHERE: [(&str, &str); 7] = [
    (
        "too-many-languages",
        "http/languages_set.rs: it takes 256 of them",
    ),
    ("slow-body", "http/body.rs: it takes 30 s"),
    (
        "older-nodes",
        "http/languages_set.rs: it takes an older program",
    ),
    (
        "unconfirmed",
        "http/problem.rs: it takes a leader that dies at one moment",
    ),
    (
        "node-failing",
        "http/problem.rs: a node with such a disk ends soon after",
    ),
    ("internal", "http/members.rs: it takes a bug"),
    ("not-finished", "nowhere: it takes ten minutes"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_says_of_itself_is_refused_by_its_name() {
    let cluster = one_node().await;
    let client = cluster.any();
    let request = client.request(Method::POST, "/v1/jobs").body("{}");
    let request = request.header("content-encoding", "gzip");
    let problem = client.send(request).await.problem(415, "encoded-body");
    assert_eq!(problem["value"], "gzip", "{problem}");
    for path in ["/v1/jobs/%ff", "/v1/languages/%ff", "/v1/jobs/%ff/events"] {
        let problem = client.get(path).await.problem(400, "malformed-path");
        assert_eq!(problem["field"], "path", "{problem}");
    }
    let page = client.get("/errors").await;
    assert_eq!(page.status, 200);
    assert!(
        page.text().contains("\n## encoded-body\n"),
        "{}",
        page.text()
    );
    let section = client.get("/errors/encoded-body").await.text();
    assert!(section.starts_with("## encoded-body\n"), "{section}");
    client
        .get("/errors/no-such")
        .await
        .problem(404, "unknown-path");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_to_a_cluster_is_said() {
    let cluster = one_node().await;
    let client = cluster.any();
    let post = async |path: &str, body| {
        client
            .post_json(&format!("/v1/cluster/{path}"), &body)
            .await
    };
    let gone = client.delete("/v1/cluster/nodes/9").await;
    assert_eq!(gone.problem(404, "unknown-node")["node"], 9);
    let drained = post("nodes/9/drain", json!({ "draining": true })).await;
    assert_eq!(drained.problem(404, "unknown-node")["node"], 9);
    let led = post("leader", json!({ "node": 9 })).await;
    assert_eq!(led.problem(404, "unknown-node")["node"], 9);
    let shown = client.cluster().await;
    let peer = &shown["nodes"][0]["peer"];
    let again = post("nodes", json!({ "peer": peer })).await;
    assert_eq!(again.problem(409, "node-alive")["node"], 1);
    post("leader", json!({}))
        .await
        .problem(409, "leader-not-moved");
    let address = json!({ "peer": "127.0.0.1:1" });
    let learner = post("nodes", address).await.expect(201)["id"].clone();
    let problem = eventually("the new node is a member, though not a voter", async || {
        let answer = post("leader", json!({ "node": learner })).await;
        match answer.status.as_u16() {
            409 => Ok(answer.problem(409, "not-a-voter")),
            _ => Err(answer.text()),
        }
    })
    .await;
    assert_eq!(problem["node"], learner, "{problem}");
    let removed = client.delete(&format!("/v1/cluster/nodes/{learner}")).await;
    assert!(removed.status.is_success(), "{}", removed.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_at_a_node_that_ends_is_told_where_to_go_on() {
    let plan = Plan::new(Executor::Process).nodes(1).slots(1);
    let mut cluster = Cluster::start(plan).await;
    let client = cluster.any().clone();
    let witness = Witness::new();
    // What runs keeps the other one waiting for longer than the node has patience.
    client.submit(&witness.gated("runs")).await;
    witness.began("runs", 1).await;
    let waiting = tokio::spawn(async move { client.lang("bash", "echo waited").await });
    let client = cluster.any().clone();
    eventually("the other one waits", async || {
        let list = client.get("/v1/jobs?state=queued").await.json();
        if list["jobs"][0]["id"].is_string() {
            Ok(())
        } else {
            Err(list)
        }
    })
    .await;
    cluster.node(1).signal(Signal::TERM);
    let answer = waiting.await.expect("an answer");
    witness.open_gate();
    let problem = answer.problem(503, "node-ending");
    assert!(problem["job"].is_string(), "{problem}");
    assert!(!answer.header("retry-after").is_empty());
}

/// What the tests of whole nodes are written in, all of it.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, text);
        } else if !path.ends_with("bad_input/kinds.rs") {
            *text += &std::fs::read_to_string(path).expect("a source");
        }
    }
}

#[test]
fn every_type_of_problem_is_provoked_by_a_test() {
    let page = include_str!("../../../docs/errors.md");
    // Of this file what stands behind the list.
    let own = include_str!("kinds.rs").split_once("\n];\n");
    let mut text = own.expect("the list").1.to_owned();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"),
        &mut text,
    );
    let kinds: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    assert!(kinds.len() > 40, "{kinds:?}");
    for kind in &kinds {
        let spelt = [
            format!("\"{kind}\""),
            format!("error:{kind}\""),
            format!("error:{kind}\\\""),
        ];
        let here = spelt.iter().any(|spelt| text.contains(spelt));
        let elsewhere = ELSEWHERE.iter().any(|(named, _)| named == kind);
        assert!(
            here != elsewhere,
            "{kind}: no test provokes it, or one does and it need not be listed"
        );
    }
}
