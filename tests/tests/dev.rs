//! `quorun dev`: a whole cluster with one command.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use quorun_tests::turn::Turn;
use quorun_tests::{Client, Tokens, eventually, node, ports, program};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How far above a node's HTTP port its peer port is.
const PEERS_ABOVE: u16 = 10_000;

/// A running `quorun dev`.
struct Dev {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    http: u16,
    folder: tempfile::TempDir,
    _turn: Turn,
}

impl Dev {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(more: &[&str]) -> Self {
        let turn = Turn::take().await;
        let http = ports::free(3, &[PEERS_ABOVE]);
        // Where it puts its own temporary folder.
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = program::command();
        command
            .env("PATH", node::PATH)
            .env("TMPDIR", folder.path())
            .args(["dev", "--executor", "process", "--nodes", "3"])
            .args(["--http", &http.to_string()])
            .args(more);
        let mut child = Command::from(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start quorun dev");
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
        let heard = Arc::clone(&said);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                eprintln!("dev: {line}");
                heard.lock().expect("the lines").push(line);
            }
        });
        Self {
            child,
            said,
            http,
            folder,
            _turn: turn,
        }
    }

    fn client(&self, id: u16) -> Client {
        Client::new(&format!("http://127.0.0.1:{}", self.http + id - 1))
    }

    /// The newest pid that it has printed for each node.
    fn pids(&self) -> Vec<i32> {
        let said = self.said.lock().expect("the lines");
        (1..=3)
            .filter_map(|id| {
                let start = format!("node {id}  http://127.0.0.1:{}  pid ", self.http + id - 1);
                said.iter()
                    .rev()
                    .find_map(|line| line.strip_prefix(&start)?.parse().ok())
            })
            .collect()
    }

    /// The pids of all three nodes, once they stand there.
    async fn all_pids(&self) -> Vec<i32> {
        eventually("it says which processes the nodes are", async || {
            let pids = self.pids();
            if pids.len() == 3 {
                Ok(pids)
            } else {
                Err(format!("{pids:?}"))
            }
        })
        .await
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs").cast_signed();
        send(pid, signal);
    }

    async fn all_end(&mut self, pids: &[i32]) {
        for pid in pids {
            eventually("the nodes end with it", async || {
                if lives(*pid) {
                    Err(format!("{pid} lives"))
                } else {
                    Ok(())
                }
            })
            .await;
        }
    }
}

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("send a signal");
}

fn lives(pid: i32) -> bool {
    test_kill_process(Pid::from_raw(pid).expect("a pid")).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_comes_up_runs_jobs_restarts_a_killed_node_and_ends_with_ctrl_c() {
    let mut dev = Dev::start().await;
    let before = dev.all_pids().await;
    for id in 1..=3 {
        // It says so when all are ready, not before.
        assert_eq!(dev.client(id).get("/readyz").await.status, 200);
        let answer = dev.client(id).lang("python", "print(6*7)").await;
        assert_eq!(answer.text(), "42\n", "{:?}", answer.headers);
    }
    let kept = dev
        .client(1)
        .run(&json!({ "language": "bash", "source": "echo kept" }))
        .await;

    send(before[1], Signal::KILL);
    let after = eventually("the killed node is started again", async || {
        let pids = dev.pids();
        if pids[1] != before[1] {
            Ok(pids)
        } else {
            Err("not yet")
        }
    })
    .await;
    assert_eq!(
        (before[0], before[2]),
        (after[0], after[2]),
        "only that one"
    );
    let client = dev.client(2);
    eventually("it is ready again", async || {
        let ready = client.request(reqwest::Method::GET, "/readyz");
        match Client::try_send(ready).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.text()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    let id = kept["id"].as_str().expect("an id");
    assert_eq!(client.job(id).await, kept, "with what it had");

    dev.signal(Signal::INT);
    let status = dev.child.wait().await.expect("wait for it");
    assert!(status.success(), "{status}");
    dev.all_end(&after).await;
    let left: Vec<_> = std::fs::read_dir(dev.folder.path())
        .expect("its folder")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_outlives_it_even_when_it_is_killed() {
    let mut dev = Dev::start().await;
    let pids = dev.all_pids().await;
    dev.signal(Signal::KILL);
    dev.child.wait().await.expect("wait for it");
    dev.all_end(&pids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_nodes_take_tokens_and_other_options() {
    let tokens = Tokens::new();
    let admin = tokens.draw("root", "admin", &[]);
    let file = tokens.file().display().to_string();
    let options = [
        "--tokens",
        &file,
        "--callback-allow-private",
        "--",
        "--max-source-kb=1",
    ];
    let mut dev = Dev::start_with(&options).await;
    let pids = dev.all_pids().await;
    let client = dev.client(2);
    let stranger = client.lang("bash", "echo no").await;
    stranger.problem(401, "no-token");
    let post = async |body: serde_json::Value| {
        let request = client
            .request(reqwest::Method::POST, "/v1/jobs?wait=60")
            .bearer_auth(&admin)
            .json(&body);
        client.send(request).await
    };
    // Only a node that lets callbacks go to private addresses accepts this one.
    let done = post(json!({
        "language": "bash", "source": "echo yes", "callback": { "url": "http://127.0.0.1:1/" },
    }));
    assert_eq!(done.await.expect(200)["stdout"], "yes\n");
    let long = post(json!({ "language": "bash", "source": "#".repeat(2000) })).await;
    long.problem(413, "too-large");
    let said = dev.said.lock().expect("the lines").join("\n");
    assert!(said.contains("Authorization: Bearer"), "{said}");
    dev.signal(Signal::INT);
    dev.child.wait().await.expect("wait for it");
    dev.all_end(&pids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_option_is_said_once_and_no_node_is_started() {
    for (wrong, words) in [
        (&["--tokens", "/is/not/there"][..], "/is/not/there"),
        (&["--", "--slots", "0"], "--slots 0"),
        (&["--", "--nonsense"], "--nonsense"),
        (&["--", "--id", "7"], "--id"),
        (&["--nodes", "9"], "--nodes 9"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = program::command();
        command
            .env("TMPDIR", folder.path())
            .args(["dev", "--executor", "process"])
            .args(wrong);
        let output = Command::from(command).output().await.expect("run quorun");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains(words) && said.lines().count() == 1,
            "{wrong:?}: {said}"
        );
        assert_eq!(output.stdout, b"", "{output:?}");
        let left = std::fs::read_dir(folder.path()).expect("its folder");
        assert_eq!(left.count(), 0, "{wrong:?}");
    }
}
