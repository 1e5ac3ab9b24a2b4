//! `quorun bench`: what it says of a cluster that answers rightly. How fast that is, no test says.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
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
        (&["accept", "--etcd", "etcd"], "--etcd etcd needs --local"),
        (&["accept", "--rounds", "2"], "--rounds 2 needs --local"),
        (
            &["accept", "--local", "--rounds", "0"],
            "--rounds 0 is out of range",
        ),
        (
            &["accept", "--local", "--etcd", "etcd", "--rate", "9"],
            "--etcd is for --clients",
        ),
        (
            &["accept", "--local", "--etcd", "/no/etcd"],
            "--etcd /no/etcd cannot be started",
        ),
        (
            &["accept", "--local", "--etcd", "/bin/true"],
            "--etcd /bin/true is not etcd",
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

/// An etcd that is installed on this machine.
fn etcd() -> Option<PathBuf> {
    std::env::split_paths(node::PATH)
        .map(|folder| folder.join("etcd"))
        .find(|program| program.is_file())
}

/// What a benchmark has left behind: files beside its report, and processes that know its folder.
fn left_behind(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).expect("the folder");
    let mut left: Vec<_> = files
        .map(|file| file.expect("a file").file_name().display().to_string())
        .filter(|name| !name.starts_with("bench."))
        .collect();
    for process in std::fs::read_dir("/proc").expect("/proc").flatten() {
        // Another process may end while it is looked at.
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&*folder.to_string_lossy()) {
            left.push(line);
        }
    }
    left
}

/// A round is as long as its jobs, which a test can wait for; how fast they are, it does not say.
const ROUND: [&str; 4] = ["accept", "--local", "--clients=8", "--warmup=0s"];

#[tokio::test(flavor = "multi_thread")]
async fn submissions_beside_puts_of_etcd_are_compared_in_each_round() {
    let Some(etcd) = etcd() else {
        eprintln!("no etcd on this machine: nothing is tested");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let etcd = format!("--etcd={}", etcd.display());
    let more = [&*etcd, "--rounds=2", "--jobs=60", "--etcd-connections=2"];
    let output = bench(&[&ROUND[..], &more].concat(), folder.path()).await;
    assert!(output.status.success(), "{}", output.status);
    let body = figures(folder.path());
    assert_eq!(body["passed"], true);
    assert_eq!(count(&body["verified"]["accepted"]), 120, "{body}");
    assert_eq!(count(&body["verified"]["listed"]), 120, "{body}");
    let puts = &body["etcd"];
    for (name, expected) in [
        ("acknowledged", 120),
        ("counted", 120),
        ("lost", 0),
        ("failed", 0),
    ] {
        assert_eq!(count(&puts[name]), expected, "{name}: {puts}");
    }
    assert!(puts["version"].as_str().is_some_and(|v| v.starts_with('3')));
    let accept = &body["accept"];
    for name in [
        "per_second",
        "etcd_per_second",
        "p3_ratio",
        "p50_ms",
        "etcd_p50_ms",
        "p99_ms",
        "etcd_p99_ms",
        "processor_us",
        "etcd_processor_us",
    ] {
        let of = &accept[name];
        let rounds = of["rounds"].as_array();
        let rounds = rounds.unwrap_or_else(|| panic!("{name} is missing: {accept}"));
        assert_eq!(rounds.len(), 2, "{name}: {of}");
        let figure = |name| of[name].as_f64().expect("a figure");
        assert!(figure("min") <= figure("median"), "{name}: {of}");
        assert!(figure("median") <= figure("max"), "{name}: {of}");
        // So few may take less than a tick of the processors' clock.
        assert!(figure("max") > 0.0 || name.ends_with("_us"), "{name}: {of}");
    }
    let page = page(folder.path());
    for words in ["everything as it must be", "accepted / puts", "round 2"] {
        assert!(page.contains(words), "{words}");
    }
    assert_eq!(left_behind(folder.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_does_not_come_up_is_told_with_its_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let program = elsewhere.path().join("etcd");
    let script = "#!/bin/sh\n\
        [ \"$1\" = --version ] && echo 'etcd Version: 3.9' && exit\n\
        echo 'there is no disk today' >&2\n\
        exit 3\n";
    std::fs::write(&program, script).expect("write a program");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, executable).expect("make it executable");
    let etcd = format!("--etcd={}", program.display());
    let more = [&*etcd, "--nodes=1", "--jobs=8"];
    let output = bench(&[&ROUND[..], &more].concat(), folder.path()).await;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    for words in [
        "node 1 of etcd has ended by itself (exit status: 3)",
        "there is no disk today",
    ] {
        assert!(said.contains(words), "{words} is missing in:\n{said}");
    }
    assert_eq!(left_behind(folder.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_submissions_need_no_etcd() {
    let folder = tempfile::tempdir().expect("a folder");
    let more = ["--rounds=2", "--nodes=1", "--jobs=20"];
    let output = bench(&[&ROUND[..], &more].concat(), folder.path()).await;
    assert!(output.status.success(), "{}", output.status);
    let body = figures(folder.path());
    assert_eq!(count(&body["verified"]["accepted"]), 40, "{body}");
    let rounds = body["accept"]["per_second"]["rounds"].as_array();
    assert_eq!(rounds.map(Vec::len), Some(2), "{body}");
    assert_eq!(
        (&body["etcd"], &body["accept"]["p3_ratio"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(left_behind(folder.path()), [""; 0]);
}
