//! `quorun bench`: what it says of a cluster that answers rightly. How fast that is, no test says.

use std::path::Path;
use std::process::{Output, Stdio};

use quorun_tests::{Cluster, Executor, Plan, node, program};
use serde_json::Value;
use tokio::process::Command;

/// Every program of the mix, so that each verdict is seen.
const MIX: &str = "hello=8,lines=3,cpu=2,memory=1,random=4,endless=1,compile=1";

async fn bench(arguments: &[&str], folder: &Path) -> Output {
    let mut command = program::command();
    command
        .env("PATH", node::PATH)
        .env("TMPDIR", folder)
        .arg("bench")
        .args(arguments)
        .args(["--json".as_ref(), folder.join("bench.json").as_os_str()])
        .args(["--html".as_ref(), folder.join("bench.html").as_os_str()])
        .stdin(Stdio::null());
    let mut command = Command::from(command);
    let output = command.kill_on_drop(true).output().await;
    let output = output.expect("run quorun bench");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    output
}

fn figures(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("bench.json")).expect("the figures");
    serde_json::from_str(&text).expect("figures in JSON")
}

/// Every element of the page is closed, in the right order, and it needs nothing from elsewhere.
fn page(folder: &Path) -> String {
    let page = std::fs::read_to_string(folder.join("bench.html")).expect("the page");
    let mut open = Vec::new();
    for part in page.split('<').skip(2) {
        let (tag, _) = part.split_once('>').expect("a tag that ends");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().expect("a name"));
        }
    }
    assert!(open.is_empty(), "{open:?}");
    for forbidden in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    page
}

fn count(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no count"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mix_is_answered_rightly_and_every_job_is_found_again() {
    let cluster = Cluster::start(Plan::new(Executor::Process)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let urls: Vec<_> = cluster
        .clients()
        .iter()
        .map(|client| format!("--url={}", client.url()))
        .collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();

    let closed = [
        "--jobs=40",
        "--clients=4",
        "--warmup=0s",
        "--verify",
        "--mix",
        MIX,
    ];
    let output = bench(&[&urls[..], &closed].concat(), folder.path()).await;
    assert!(output.status.success(), "{}", output.status);
    let body = figures(folder.path());
    assert_eq!(body["passed"], true);
    let jobs = &body["jobs"];
    assert_eq!(
        (count(&jobs["sent"]), count(&jobs["correct"])),
        (40, 40),
        "{jobs}"
    );
    assert_eq!(
        (count(&jobs["wrong"]), count(&jobs["without_answer"])),
        (0, 0),
        "{jobs}"
    );
    let verified = &body["verified"];
    assert_eq!(count(&verified["accepted"]), 40, "{verified}");
    assert_eq!(count(&verified["looked_up"]), 40, "{verified}");
    for wrong in ["lost", "twice", "changed"] {
        assert_eq!(count(&verified[wrong]), 0, "{verified}");
    }
    let times = &body["ms"];
    for name in ["total", "queue", "run", "cpu"] {
        for figure in ["min", "mean", "p50", "p90", "p99", "p99.9", "max"] {
            assert!(times[name][figure].is_number(), "{name} {figure}: {times}");
        }
        assert_eq!(count(&times[name]["count"]), 40, "{name}: {times}");
    }
    let timeline = body["timeline"].as_array().expect("a timeline");
    let on_it: u64 = timeline
        .iter()
        .map(|second| count(&second["correct"]))
        .sum();
    assert_eq!(on_it, 40);
    let page = page(folder.path());
    for words in [
        "everything as it must be",
        "Throughput",
        "Latency by percentile",
        "</svg>",
    ] {
        assert!(page.contains(words), "{words}");
    }

    // The open loop: as many as are due, at most two of them open. Each is sent or counted.
    let open = [
        "--jobs=30",
        "--rate=200",
        "--max-open=2",
        "--warmup=0s",
        "--mix=hello",
    ];
    let output = bench(&[&urls[..], &open].concat(), folder.path()).await;
    assert!(output.status.success(), "{}", output.status);
    let body = figures(folder.path());
    let (jobs, late) = (&body["jobs"], &body["ms"]["late"]);
    let (sent, overflow) = (count(&jobs["sent"]), count(&jobs["overflow"]));
    assert_eq!(sent + overflow, 30, "{jobs}");
    assert_eq!(
        (count(&jobs["correct"]), count(&late["count"])),
        (sent, sent),
        "{jobs}"
    );
    assert_eq!(
        overflow > 0,
        String::from_utf8_lossy(&output.stdout).contains("NOT SENT")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_answers_are_shown_and_fail_the_run() {
    // A cluster that executes nothing prints nothing: every answer is wrong.
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::start(Plan::new(Executor::Noop)).await;
    let url = format!("--url={}", cluster.any().url());
    let arguments = [&*url, "--jobs=3", "--warmup=0s", "--mix=hello"];
    let output = bench(&arguments, folder.path()).await;
    assert_eq!(output.status.code(), Some(1));
    let body = figures(folder.path());
    assert_eq!(
        (&body["passed"], count(&body["jobs"]["wrong"])),
        (&false.into(), 3)
    );
    let example = body["wrong_examples"][0].as_str().expect("an example");
    assert!(example.contains("it printed \"\""), "{example}");
    assert!(page(folder.path()).contains("NOT as it must be"));
    // Whoever looks at a job or at a log of such a node is told.
    let done = cluster
        .any()
        .run(&serde_json::json!({ "language": "bash", "source": ":" }))
        .await;
    let message = done["message"].as_str().expect("a message");
    assert!(message.contains("nothing was executed"), "{message}");
    assert!(cluster.node(1).log().contains("executes NOTHING"));

    // Submissions alone, with the nodes drained, and all of it taken back.
    let arguments = ["accept", &*url, "--jobs=50", "--clients=8", "--warmup=0s"];
    let output = bench(&arguments, folder.path()).await;
    assert!(output.status.success(), "{}", output.status);
    let body = figures(folder.path());
    assert_eq!(
        count(&body["jobs"]["accepted_only"]),
        50,
        "{}",
        body["jobs"]
    );
    assert_eq!(
        (count(&body["executed"]), count(&body["not_cancelled"])),
        (0, 0)
    );
    let shown = cluster.any().cluster().await;
    assert_eq!(count(&shown["queue"]["jobs"]), 0, "{shown}");
    let nodes = shown["nodes"].as_array().expect("nodes");
    assert!(
        nodes.iter().all(|node| node["draining"] == false),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_wrongly_is_one_clear_line() {
    for (arguments, words) in [
        (&["--mix", "hallo=1"][..], "there is no program \"hallo\""),
        (&["--clients", "0"], "--clients 0 is out of range"),
        (&["--rate", "inf"], "--rate inf is out of range"),
        (&["--url", "ftp://x"], "should begin with http://"),
        (&["failover", "--nodes", "1"], "at least 3"),
        (
            &["baseline", "--program", "endless"],
            "does not end by itself",
        ),
    ] {
        let mut command = program::command();
        let output = command
            .arg("bench")
            .args(arguments)
            .output()
            .expect("run it");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
