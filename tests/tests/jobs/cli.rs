//! The command line, as the real program.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use quorun_tests::{Cluster, Executor, LONG, Plan, Witness, eventually, node, program};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// The program, with nothing of this test's own surroundings.
pub(super) fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = program::command();
    command
        .args(args)
        .env("HOME", home)
        .env("PATH", node::PATH)
        .env_remove("XDG_CONFIG_HOME")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    command
}

pub(super) async fn quorun(home: &Path, args: &[&str]) -> Output {
    command(home, args).output().await.expect("run quorun")
}

pub(super) fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(super) fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(super) fn write(path: &Path, text: &str) -> String {
    let mut file = std::fs::File::create(path).expect("a file");
    file.write_all(text.as_bytes()).expect("write");
    path.display().to_string()
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().expect("it runs").cast_signed();
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("send a signal");
}

pub(super) fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_shown_and_cancelled() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let client = cluster.any();
    let home = tempfile::tempdir().expect("a folder");
    let home = home.path();
    let witness = Witness::new();
    let url = client.url();

    let mut mine = json!({ "language": "bash", "source": "echo out; echo err >&2" });
    mine["labels"] = json!(["mine", "a b&c"]);
    let done = client.run(&mine).await["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let mut job = witness.gated("waits");
    job["source"] = format!("echo begin; {}", job["source"].as_str().expect("source")).into();
    let runs = client.submit(&job).await;
    witness.began("waits", 1).await;

    let listed = quorun(home, &["jobs", "--url", url]).await;
    assert!(listed.status.success(), "{listed:?}");
    let lines: Vec<String> = out(&listed).lines().map(ToOwned::to_owned).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[1].starts_with(&runs) && lines[1].contains("running"),
        "{lines:?}"
    );
    assert!(
        lines[2].starts_with(&done) && lines[2].contains("accepted"),
        "{lines:?}"
    );
    let listed = quorun(
        home,
        &[
            "jobs", "--url", url, "--label", "a b&c", "--state", "finished", "--lang", "sh",
            "--json",
        ],
    )
    .await;
    let listed = json_of(&listed);
    assert_eq!(listed["jobs"][0]["id"], done.as_str(), "{listed}");
    assert_eq!(listed["jobs"][1], Value::Null, "{listed}");
    let wrong = quorun(home, &["jobs", "--url", url, "--state", "gone"]).await;
    assert_eq!(wrong.status.code(), Some(2));
    assert!(err(&wrong).contains("queued, running"), "{wrong:?}");
    let ended = async |verdict: &str| {
        let args = ["jobs", "--json", "--url", url, "--verdict", verdict];
        let listed = json_of(&quorun(home, &args).await);
        let jobs = listed["jobs"].as_array().expect("jobs").clone();
        jobs.iter().map(|job| job["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ended("accepted,time_limit").await, [done.as_str()]);
    assert_eq!(ended("cancelled").await, [""; 0]);

    let shown = quorun(home, &["logs", &done, "--url", url]).await;
    assert_eq!(
        (out(&shown).as_str(), err(&shown).as_str()),
        ("out\n", "err\n")
    );
    // What there is of a job that runs; it goes on.
    let shown = quorun(home, &["logs", &runs, "--url", url]).await;
    assert_eq!(
        (out(&shown).as_str(), shown.status.code()),
        ("begin\n", Some(0))
    );
    let lines = quorun(home, &["logs", &runs, "--json", "--url", url]).await;
    let last: Value =
        serde_json::from_str(out(&lines).lines().last().expect("a line")).expect("a line of JSON");
    assert_eq!(last["event"], "shown", "{last}");
    let lines = quorun(home, &["logs", &done, "--json", "--url", url]).await;
    let events: Vec<Value> = out(&lines)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    assert_eq!(events.last().expect("an event")["event"], "finished");
    assert_eq!(
        events.last().expect("an event")["data"]["id"],
        done.as_str()
    );

    let mut follows = command(home, &["logs", "-f", &runs, "--url", url])
        .spawn()
        .expect("start");
    let mut printed = BufReader::new(follows.stdout.take().expect("its stdout"));
    let mut line = String::new();
    printed.read_line(&mut line).await.expect("a line");
    assert_eq!(line, "begin\n");
    let cancelled = quorun(home, &["cancel", &runs, "--url", url]).await;
    assert!(cancelled.status.success(), "{cancelled:?}");
    assert!(out(&cancelled).contains(&runs));
    let followed = follows.wait_with_output().await.expect("its end");
    assert_eq!(followed.status.code(), Some(125), "{followed:?}");
    let cancelled = format!("job {runs} was cancelled");
    assert!(err(&followed).contains(&cancelled), "{followed:?}");
    assert_eq!(client.job(&runs).await["verdict"], "cancelled");

    let again = quorun(home, &["cancel", &runs, &done, "--url", url]).await;
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(
        err(&again).matches("already finished").count(),
        2,
        "{again:?}"
    );
    let no_id = quorun(home, &["cancel", "../cluster", "--url", url]).await;
    assert_eq!(no_id.status.code(), Some(2), "{no_id:?}");
    let unknown = "01900000-0000-7000-8000-000000000000";
    let unknown = quorun(home, &["logs", unknown, "--url", url]).await;
    assert_eq!(unknown.status.code(), Some(125));
    assert!(err(&unknown).contains("there is no job"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn languages_and_completions_are_shown() {
    let cluster = Cluster::start(Plan::new(Executor::Noop).nodes(1)).await;
    let url = cluster.any().url();
    let home = tempfile::tempdir().expect("a folder");
    let home = home.path();
    let shown = quorun(home, &["languages", "--url", url]).await;
    let python = out(&shown);
    let python = python.lines().find(|line| line.starts_with("python "));
    let python: Vec<_> = python.expect("python").split_whitespace().collect();
    assert_eq!(&python[..3], ["python", "yes", "Python"], "{shown:?}");
    let shown = json_of(&quorun(home, &["languages", "--json", "--url", url]).await);
    assert_eq!(shown, cluster.any().get("/v1/languages").await.json());
    let disabled = quorun(home, &["languages", "disable", "ruby", "--url", url]).await;
    assert!(disabled.status.success(), "{disabled:?}");
    let shown = out(&quorun(home, &["languages", "--url", url]).await);
    let ruby = shown.lines().find(|line| line.starts_with("ruby "));
    assert!(ruby.expect("ruby").contains("  no: disabled  "), "{shown}");
    let settings = quorun(home, &["cluster", "settings", "--json", "--url", url]).await;
    assert!(json_of(&settings)["effective"]["retention_s"].is_u64());
    for shell in ["bash", "zsh", "fish"] {
        let script = quorun(home, &["completions", shell]).await;
        assert!(script.status.success(), "{script:?}");
        assert!(out(&script).contains("languages"), "{shell}");
    }
    let wrong = quorun(home, &["completions", "tcsh"]).await;
    assert_eq!(wrong.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_found_by_flag_environment_or_file() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let url = cluster.any().url();
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let program = write(&home.join("p.sh"), "echo found");
    let dead = "http://127.0.0.1:1";
    let run = ["run", program.as_str()];

    let done = quorun(home, &[&run[..], &["--url", dead, "--url", url]].concat()).await;
    assert_eq!(out(&done), "found\n", "{done:?}");
    let done = command(home, &run)
        .env("QUORUN_URL", format!("{dead},{url}"))
        .output()
        .await
        .expect("run quorun");
    assert_eq!(out(&done), "found\n", "{done:?}");
    let config = home.join(".config/quorun");
    std::fs::create_dir_all(&config).expect("a folder");
    write(
        &config.join("config.toml"),
        &format!("url = [\"{dead}\", \"{url}\"]\ntoken = \"t\"\n"),
    );
    let done = quorun(home, &run).await;
    assert_eq!(out(&done), "found\n", "{done:?}");
    let other = write(&home.join("other.toml"), &format!("url = \"{dead}\"\n"));
    let done = quorun(home, &[&run[..], &["--client-config", &other]].concat()).await;
    assert_eq!(done.status.code(), Some(125), "{done:?}");
    assert!(
        err(&done).contains("no answer from http://127.0.0.1:1"),
        "{done:?}"
    );
    for wrong in ["url = 7\n", "urls = []\n", "url ="] {
        write(&home.join("other.toml"), wrong);
        let done = quorun(home, &[&run[..], &["--client-config", &other]].concat()).await;
        assert_eq!(done.status.code(), Some(2), "{wrong}: {done:?}");
        assert!(err(&done).contains("other.toml"), "{wrong}: {done:?}");
    }
    // An error of the API is shown in its own words.
    let done = quorun(
        home,
        &[&run[..], &["--limit", "cpu_ms=99999999999"]].concat(),
    )
    .await;
    assert_eq!(done.status.code(), Some(2));
    assert!(
        err(&done).contains("limits.cpu_ms is 99999999999"),
        "{done:?}"
    );
    let done = quorun(home, &[&run[..], &["--limit", "cpu_ms=x"]].concat()).await;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_files_variables_and_labels_reach_the_job() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let url = cluster.any().url();
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let main = write(
        &home.join("main.py"),
        "import os, words\nprint(words.word, os.environ['MODE'])\n",
    );
    let words = write(&home.join("words.py"), "word = 'hello'\n");
    let args = [
        "run",
        &main,
        &words,
        "--env",
        "MODE=a=b",
        "--label",
        "mine",
        "--json",
        "--url",
        url,
        "--limit",
        "wall_ms=20000",
    ];
    let done = quorun(home, &args).await;
    let job = json_of(&done);
    assert_eq!(job["stdout"], "hello a=b\n", "{job}");
    assert_eq!(job["labels"], json!(["mine"]));
    assert_eq!(done.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_cancels_the_job() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let client = cluster.any();
    let folder = tempfile::tempdir().expect("a folder");
    let program = write(&folder.path().join("p.sh"), "echo begin; sleep 600");
    for (sent, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let args = [
            "run",
            &program,
            "--limit",
            "wall_ms=60000",
            "--url",
            client.url(),
        ];
        let mut child = command(folder.path(), &args).spawn().expect("start");
        let mut printed = BufReader::new(child.stdout.take().expect("its stdout"));
        let mut line = String::new();
        printed.read_line(&mut line).await.expect("a line");
        assert_eq!(line, "begin\n");
        signal(&child, sent);
        let status = child.wait().await.expect("its end");
        assert_eq!(status.code(), Some(code), "{status}");
        let newest = client.get("/v1/jobs?limit=1").await.json();
        assert_eq!(newest["jobs"][0]["verdict"], "cancelled", "{newest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_at_another_node_when_its_own_is_killed() {
    let mut cluster = Cluster::of_processes().await;
    let folder = tempfile::tempdir().expect("a folder");
    let gate = folder.path().join("gate");
    let program = write(
        &folder.path().join("p.sh"),
        &format!(
            "echo begin; while [ ! -e {} ]; do sleep 0.05; done; echo end",
            gate.display()
        ),
    );
    let watched = cluster.leader().await;
    let other = if watched == 1 { 2 } else { 1 };
    let urls = [watched, other].map(|id| cluster.client(id).url().to_owned());
    let args = [
        "run",
        &program,
        "--limit",
        "wall_ms=60000",
        "--url",
        &urls[0],
        "--url",
        &urls[1],
    ];
    // Until one runs elsewhere than on the node that is asked.
    loop {
        let mut child = command(folder.path(), &args).spawn().expect("start");
        let mut printed = BufReader::new(child.stdout.take().expect("its stdout"));
        let mut line = String::new();
        printed.read_line(&mut line).await.expect("a line");
        assert_eq!(line, "begin\n");
        let newest = cluster.client(other).get("/v1/jobs?limit=1").await.json();
        if newest["jobs"][0]["node"] == watched {
            let id = newest["jobs"][0]["id"].as_str().expect("an id").to_owned();
            cluster
                .client(other)
                .delete(&format!("/v1/jobs/{id}"))
                .await;
            continue;
        }
        cluster.node(watched).kill();
        eventually("the others have a leader", async || {
            let status = cluster.client(other).cluster().await;
            let leader = status["leader"].as_u64();
            leader
                .filter(|l| *l != watched)
                .ok_or_else(|| status.to_string())
        })
        .await;
        std::fs::write(&gate, "").expect("open the gate");
        let mut rest = String::new();
        printed.read_to_string(&mut rest).await.expect("the rest");
        assert_eq!(rest, "end\n");
        let done = child.wait_with_output().await.expect("its end");
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        break;
    }
}

/// Says what it hears, and what signal it gets.
const ECHO: &str = "
import os, sys
print('ready', os.isatty(0), flush=True)
while True:
    try:
        line = sys.stdin.readline()
        if not line:
            sys.exit(7)
        print('got', line.strip(), flush=True)
    except KeyboardInterrupt:
        print('interrupted', flush=True)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_talked_to_from_a_pipe() {
    let cluster = Cluster::of_processes().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = write(&folder.path().join("p.py"), ECHO);
    let urls: Vec<_> = cluster
        .clients()
        .iter()
        .map(|c| c.url().to_owned())
        .collect();
    let args = ["run", "-i", &program, "--url", &urls.join(",")];
    let mut child = command(folder.path(), &args)
        .stdin(Stdio::piped())
        .spawn()
        .expect("start");
    let mut to = child.stdin.take().expect("its stdin");
    let mut lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
    let mut next = async || lines.next_line().await.expect("read").unwrap_or_default();
    assert_eq!(next().await, "ready False");
    to.write_all(b"one\n").await.expect("write");
    assert_eq!(next().await, "got one");
    signal(&child, Signal::INT);
    assert_eq!(next().await, "interrupted");
    to.write_all(b"two\n").await.expect("write");
    assert_eq!(next().await, "got two");
    drop(to);
    assert_eq!(child.wait().await.expect("its end").code(), Some(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_has_this_terminal() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let source = "import os; s = os.get_terminal_size(); print(s.lines, s.columns, flush=True)";
    let program = write(&folder.path().join("p.py"), &format!("{source}\n{ECHO}"));
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags).expect("a terminal");
    rustix::pty::unlockpt(&ours).expect("unlock it");
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags).expect("its other end");
    let size = Winsize {
        ws_row: 21,
        ws_col: 77,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&ours, size).expect("its size");
    let before = rustix::termios::tcgetattr(&theirs).expect("how it is set");
    let end = || Stdio::from(theirs.try_clone().expect("a copy"));
    let mut child = command(
        folder.path(),
        &["run", "-i", &program, "--url", cluster.any().url()],
    )
    .stdin(end())
    .stdout(end())
    .stderr(end())
    .spawn()
    .expect("start");
    let reader = std::fs::File::from(ours.try_clone().expect("a copy"));
    let (tell, mut shown) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let (mut reader, mut buffer) = (reader, [0; 1024]);
        while let Ok(length @ 1..) = std::io::Read::read(&mut reader, &mut buffer) {
            let _ = tell.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    });
    let mut all = String::new();
    let mut until = async |text: &str| {
        while !all.contains(text) {
            let more = tokio::time::timeout(LONG, shown.recv()).await;
            let more = more.unwrap_or_else(|_| panic!("no {text:?} in {all:?}"));
            all.push_str(&more.expect("more"));
        }
    };
    let mut keys = std::fs::File::from(ours);
    until("21 77\r\n").await;
    until("ready True\r\n").await;
    // Return and control-C are keys like others; what they do is done at the other end.
    keys.write_all(b"typed\r").expect("type");
    until("got typed\r\n").await;
    keys.write_all(&[3]).expect("type");
    until("interrupted\r\n").await;
    keys.write_all(&[4]).expect("type");
    assert_eq!(child.wait().await.expect("its end").code(), Some(7));
    let after = rustix::termios::tcgetattr(&theirs).expect("how it is set");
    assert_eq!(before.local_modes, after.local_modes, "as it was before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_runs_the_program_again() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p.sh");
    let program = write(&path, "echo one");
    let args = ["run", "--watch", &program, "--url", cluster.any().url()];
    let mut child = command(folder.path(), &args).spawn().expect("start");
    let mut out = BufReader::new(child.stdout.take().expect("its stdout")).lines();
    let mut err = BufReader::new(child.stderr.take().expect("its stderr")).lines();
    let mut next = async || out.next_line().await.expect("read").unwrap_or_default();
    let mut said = async |text: &str| {
        while !err
            .next_line()
            .await
            .expect("read")
            .expect("a line")
            .contains(text)
        {}
    };
    assert_eq!(next().await, "one");
    said("ended with 0; waiting for a change").await;
    write(&path, "echo two; sleep 600");
    assert_eq!(next().await, "two");
    // This one is not waited for: the job is cancelled, and a file that was replaced is seen as well.
    let other = write(&folder.path().join("other"), "echo three; exit 3");
    std::fs::rename(other, &path).expect("rename");
    assert_eq!(next().await, "three");
    said("ended with 3; waiting for a change").await;
    let listed = cluster.any().get("/v1/jobs").await.json();
    let verdicts: Vec<_> = listed["jobs"]
        .as_array()
        .expect("jobs")
        .iter()
        .map(|job| job["verdict"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(
        verdicts,
        ["runtime_error", "cancelled", "accepted"],
        "{listed}"
    );
    signal(&child, Signal::INT);
    assert_eq!(child.wait().await.expect("its end").code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn test_cases_that_are_none_are_said_so_before_anything_is_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = write(&folder.path().join("p.sh"), "true");
    for (name, text) in [
        ("a.json", "[]"),
        ("a.json", "{\"tests\": 1}"),
        ("a.toml", "tests ="),
        ("a.json", "{\"test\": []}"),
    ] {
        let cases = write(&folder.path().join(name), text);
        let args = [
            "run",
            "--lang",
            "bash",
            "--tests",
            &cases,
            &program,
            "--url",
            "http://127.0.0.1:1",
        ];
        let done = quorun(folder.path(), &args).await;
        assert_eq!(done.status.code(), Some(2), "{text}: {done:?}");
        assert!(err(&done).contains(name), "{text}: {done:?}");
    }
    for both in [["-i", "--watch"], ["-i", "--json"], ["--tests", "--stdin"]] {
        let done = quorun(folder.path(), &[&["run", &program][..], &both].concat()).await;
        assert_eq!(done.status.code(), Some(2), "{both:?}: {done:?}");
    }
}
