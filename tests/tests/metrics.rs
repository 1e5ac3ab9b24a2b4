//! What a node shows of itself at `/metrics`.

use quorun_tests::{Cluster, Figures, eventually};
use serde_json::json;

/// Each part of a job's way has its own histogram, on the node where it happens.
const EVERYWHERE: [&str; 2] = ["append", "apply"];

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_well_formed_and_move_with_a_job() {
    let cluster = Cluster::of_processes().await;
    cluster.all_work().await;
    let leader = cluster.leader().await;
    let follower = cluster
        .ids()
        .into_iter()
        .find(|id| *id != leader)
        .expect("a node that does not lead");
    let all = async || {
        let mut all = Vec::new();
        for id in cluster.ids() {
            all.push((id, cluster.client(id).figures().await));
        }
        all
    };
    let of = |all: &[(u64, Figures)], wanted: u64| -> Figures {
        let found = all.iter().find(|(id, _)| *id == wanted);
        found.expect("its figures").1.clone()
    };
    let before = all().await;
    let client = cluster.client(follower);
    let answer = client.lang("bash", "echo measured").await;
    assert_eq!(answer.text(), "measured\n");
    let executed: u64 = answer.header("quorun-node").parse().expect("a node");
    let invalid = client
        .post_json("/v1/jobs", &json!({ "language": "bash" }))
        .await;
    let _shape = invalid.problem(422, "invalid-request");

    // The histograms of an end are written behind the answer.
    eventually(
        "all phases of the job are seen where they happen",
        async || {
            let now = all().await;
            let grew =
                |id: u64, phase: &str| of(&now, id).phase(phase) > of(&before, id).phase(phase);
            let mut missing = Vec::new();
            for (id, _) in &now {
                missing.extend(EVERYWHERE.map(|phase| (*id, phase)));
            }
            missing.extend(["http", "forward", "notify"].map(|phase| (follower, phase)));
            missing.extend(["commit", "reply"].map(|phase| (leader, phase)));
            missing
                .extend(["start", "sandbox", "program", "result"].map(|phase| (executed, phase)));
            missing.retain(|(id, phase)| !grew(*id, phase));
            if missing.is_empty() {
                Ok(())
            } else {
                Err(format!("{missing:?}"))
            }
        },
    )
    .await;

    let now = all().await;
    let (seen, was) = (of(&now, follower), of(&before, follower));
    let more = |name: &str, labels: &[(&str, &str)]| seen.sum(name, labels) - was.sum(name, labels);
    let same = |left: f64, right: f64| (left - right).abs() < 1e-9;
    assert!(same(more("quorun_jobs_accepted_total", &[]), 1.0));
    let lang = [
        ("method", "POST"),
        ("route", "/lang/{language}"),
        ("status", "200"),
    ];
    assert!(same(more("quorun_http_requests_total", &lang), 1.0));
    assert!(same(
        more("quorun_http_request_seconds_count", &lang[..2]),
        1.0
    ));
    let invalid = [("route", "/v1/jobs"), ("status", "422")];
    assert!(same(more("quorun_http_requests_total", &invalid), 1.0));
    let ran = |figures: &Figures| {
        figures.sum("quorun_attempts_finished_total", &[("verdict", "accepted")])
    };
    assert!(ran(&of(&now, executed)) > ran(&of(&before, executed)));
    let batches = |figures: &Figures| figures.sum("quorun_batch_commands_count", &[]);
    assert!(batches(&of(&now, leader)) > batches(&of(&before, leader)));
    for (id, figures) in &now {
        let one = |name: &str| figures.sum(name, &[]);
        assert!(same(one("quorun_node_id"), *id as f64));
        assert!(same(one("quorun_raft_leader_id"), leader as f64));
        assert!(same(one("quorun_raft_leading"), f64::from(*id == leader)));
        assert!(one("quorun_ledger_applied_index") > 0.0);
        assert!(same(one("quorun_slots"), 2.0));
        assert!(figures.sum("quorun_ledger_jobs", &[("state", "finished")]) >= 4.0);
        assert!(figures.memory() > 1e6, "{}", figures.memory());
        assert!(one("process_open_fds") > 5.0);
        assert!(one("quorun_connections") >= 1.0);
    }
}
