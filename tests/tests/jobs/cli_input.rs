//! What a program reads that `quorun run` runs, and where the program itself comes from.

use std::os::fd::OwnedFd;
use std::process::Stdio;

use quorun_tests::{Cluster, Executor, LONG, Plan};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::cli::{command, err, json_of, out, quorun, write};

/// Waits for what comes by itself.
async fn soon<T>(what: &str, comes: impl Future<Output = T>) -> T {
    let came = tokio::time::timeout(LONG, comes).await;
    came.unwrap_or_else(|_| panic!("{what} does not come"))
}

async fn one_node() -> Cluster {
    Cluster::start(Plan::new(Executor::Process).nodes(1)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_or_a_file_on_stdin_is_what_the_program_reads() {
    let cluster = one_node().await;
    let url = cluster.any().url();
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let program = write(&home.join("p.sh"), "cat; echo end");
    let input = write(&home.join("input"), "from a file\n");

    let args = ["run", program.as_str(), "--json", "--url", url];
    let mut child = command(home, &args)
        .stdin(Stdio::piped())
        .spawn()
        .expect("start");
    let mut to = child.stdin.take().expect("its stdin");
    to.write_all(b"from a pipe\n").await.expect("write");
    drop(to);
    let done = child.wait_with_output().await.expect("its end");
    assert_eq!(json_of(&done)["stdout"], "from a pipe\nend\n", "{done:?}");

    let file = std::fs::File::open(&input).expect("a file");
    let done = command(home, &args)
        .stdin(file)
        .output()
        .await
        .expect("its end");
    assert_eq!(json_of(&done)["stdout"], "from a file\nend\n", "{done:?}");
    // An option says otherwise, or nothing is there.
    let file = std::fs::File::open(&program).expect("a file");
    let args = ["run", &program, "--stdin", &input, "--url", url];
    let done = command(home, &args)
        .stdin(file)
        .output()
        .await
        .expect("its end");
    assert_eq!(out(&done), "from a file\nend\n", "{done:?}");
    let done = quorun(home, &["run", &program, "--url", url]).await;
    assert_eq!(out(&done), "end\n", "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_nobody_closes_holds_up_no_program_that_does_not_read_it() {
    let cluster = one_node().await;
    let url = cluster.any().url();
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let program = write(&home.join("p.sh"), "echo done; exit 5");

    let args = ["run", program.as_str(), "--url", url];
    let mut child = command(home, &args)
        .stdin(Stdio::piped())
        .spawn()
        .expect("start");
    let open = child.stdin.take();
    let done = soon("its end", child.wait_with_output())
        .await
        .expect("its end");
    assert_eq!(out(&done), "done\n", "{done:?}");
    assert_eq!(done.status.code(), Some(5), "{done:?}");
    drop(open);

    // Some programs give their children sockets. With --json, the job is there as ever.
    let (theirs, ours) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let child = command(home, &[&args[..], &["--json"]].concat())
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .expect("start");
    let done = soon("its end", child.wait_with_output())
        .await
        .expect("its end");
    let job = json_of(&done);
    assert_eq!(
        (&job["stdout"], &job["exit_code"]),
        (&"done\n".into(), &5.into()),
        "{job}"
    );
    assert_eq!(done.status.code(), Some(5), "{done:?}");
    drop(ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_late_or_is_long_flows_to_the_program_while_it_runs() {
    let cluster = one_node().await;
    let url = cluster.any().url();
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let start = |program: &str| {
        let args = ["run", program, "--url", url];
        let mut command = command(home, &args);
        command.stdin(Stdio::piped());
        command.spawn().expect("start")
    };

    let echo = write(
        &home.join("echo.sh"),
        "while read line; do echo got $line; done; exit 7",
    );
    let mut child = start(&echo);
    let mut to = child.stdin.take().expect("its stdin");
    let mut lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
    for word in ["one", "two"] {
        to.write_all(format!("{word}\n").as_bytes())
            .await
            .expect("write");
        let line = soon("a line", lines.next_line()).await.expect("read");
        assert_eq!(line.as_deref(), Some(format!("got {word}").as_str()));
    }
    drop(to);
    let status = soon("its end", child.wait()).await.expect("its end");
    assert_eq!(status.code(), Some(7));

    // More than a job may carry.
    let count = write(&home.join("count.sh"), "wc -c");
    let mut child = start(&count);
    let mut to = child.stdin.take().expect("its stdin");
    to.write_all(&vec![b'x'; 3 << 20]).await.expect("write");
    drop(to);
    let done = soon("its end", child.wait_with_output())
        .await
        .expect("its end");
    assert_eq!(out(&done).trim(), "3145728", "{done:?}");

    // Without an end, to one that takes a line and prints much, and to one that takes nothing.
    for (n, source) in [
        "head -n 1; seq 100000 | tail -c 400000",
        "seq 100000 | tail -c 400000",
    ]
    .into_iter()
    .enumerate()
    {
        let program = write(&home.join(format!("{n}.sh")), source);
        let mut child = start(&program);
        let mut to = child.stdin.take().expect("its stdin");
        let writer = tokio::spawn(async move {
            let lines = "yes\n".repeat(4096);
            while to.write_all(lines.as_bytes()).await.is_ok() {}
        });
        let done = soon("its end", child.wait_with_output())
            .await
            .expect("its end");
        assert!(out(&done).ends_with("\n100000\n"), "{:?}", err(&done));
        assert_eq!(out(&done).starts_with("yes\n"), n == 0);
        assert_eq!(done.status.code(), Some(0), "{:?}", err(&done));
        soon("nobody reads any more", writer)
            .await
            .expect("the writer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_whose_input_may_have_a_hole_is_cancelled() {
    let mut cluster = Cluster::start(Plan::new(Executor::Process).nodes(3)).await;
    // The input goes by one node, and the program runs on another one.
    let drained = cluster
        .client(1)
        .post("/v1/cluster/nodes/1/drain", "")
        .await;
    let _ = drained.expect(200);
    let urls = [1, 2].map(|n| cluster.client(n).url().to_owned()).join(",");
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let program = write(
        &home.join("echo.sh"),
        "while read line; do echo got $line; done",
    );
    let mut child = command(home, &["run", program.as_str(), "--url", &urls])
        .stdin(Stdio::piped())
        .spawn()
        .expect("start");
    let mut to = child.stdin.take().expect("its stdin");
    let mut lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
    to.write_all(b"one\n").await.expect("write");
    let line = soon("a line", lines.next_line()).await.expect("read");
    assert_eq!(line.as_deref(), Some("got one"));

    cluster.node(1).kill();
    let done = soon("its end", child.wait_with_output())
        .await
        .expect("its end");
    assert_eq!(done.status.code(), Some(125), "{done:?}");
    assert!(err(&done).contains("it was cancelled"), "{done:?}");
    let jobs = cluster.client(2).get("/v1/jobs").await.expect(200);
    assert_eq!(jobs["jobs"][0]["verdict"], "cancelled", "{jobs}");
    drop(to);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dash_stands_for_stdin_once() {
    let cluster = one_node().await;
    let url = cluster.any().url();
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let program = write(&home.join("p.sh"), "cat; echo end");
    let run = async |args: &[&str], stdin: &[u8]| {
        let mut child = command(home, &[&["run", "--url", url][..], args].concat())
            .stdin(Stdio::piped())
            .spawn()
            .expect("start");
        let mut to = child.stdin.take().expect("its stdin");
        // One that refuses its arguments does not read.
        let _ = to.write_all(stdin).await;
        drop(to);
        child.wait_with_output().await.expect("its end")
    };
    let done = run(&[&program, "--stdin", "-"], b"read\n").await;
    assert_eq!(out(&done), "read\nend\n", "{done:?}");
    let done = run(&["-", "--lang", "bash", "--", "x"], b"echo program $1; cat").await;
    assert_eq!(out(&done), "program x\n", "{done:?}");
    let input = write(&home.join("input"), "typed\n");
    let done = run(&["-", "--lang", "bash", "--stdin", &input], b"cat").await;
    assert_eq!(out(&done), "typed\n", "{done:?}");
    let done = run(&["-", "--lang", "bash"], b"\xff").await;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(err(&done).contains("not text in UTF-8"), "{done:?}");

    for (wrong, words) in [
        (
            &["-", "--lang", "bash", "--stdin", "-"][..],
            "cannot both come from stdin",
        ),
        (&["-"], "--lang"),
        (&["-", &program, "--lang", "bash"], "no other file"),
        (&["-", "--lang", "bash", "-i"], "--interactive"),
        (&["-", "--lang", "bash", "--watch"], "--watch"),
        (&[&program, "-i", "--stdin", "-"], "--stdin -"),
    ] {
        let done = run(wrong, b"").await;
        assert_eq!(done.status.code(), Some(2), "{wrong:?}: {done:?}");
        assert!(err(&done).contains(words), "{wrong:?}: {done:?}");
    }
}
