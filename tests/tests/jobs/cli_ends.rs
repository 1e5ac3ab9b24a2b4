//! The command line says how it went: to people in words, to programs in JSON, and to shells by its exit code.

use quorun_tests::{Cluster, Executor, Plan, Witness};
use serde_json::{Value, json};

use super::cli::{err, out, quorun, write};
use super::patient;

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:1";
/// A job that there is not.
const NO_JOB: &str = "01900000-0000-7000-8000-000000000000";

#[tokio::test(flavor = "multi_thread")]
async fn logs_say_how_a_job_ended_and_exit_as_it_did() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let client = cluster.any();
    let home = tempfile::tempdir().expect("a folder");
    let logs = async |id: &str| {
        let shown = quorun(home.path(), &["logs", id, "--url", client.url()]).await;
        (
            out(&shown),
            err(&shown),
            shown.status.code().expect("a code"),
        )
    };
    let ended = async |job: Value| {
        let job = client.run(&job).await;
        logs(job["id"].as_str().expect("an id")).await
    };
    let bash = |source: &str| patient(json!({ "language": "bash", "source": source }));

    let broken = json!({ "language": "c", "source": "int main(void) { return missing; }" });
    let (printed, said, code) = ended(patient(broken)).await;
    assert_eq!((printed.as_str(), code), ("", 1), "{said}");
    assert!(said.contains("missing"), "what the compiler said: {said}");
    assert!(said.contains("quorun: compile_error"), "{said}");

    let (printed, said, code) = ended(bash("echo out; echo err >&2; exit 42")).await;
    assert_eq!(
        (printed.as_str(), said.as_str(), code),
        ("out\n", "err\n", 42)
    );
    let (_, said, code) = ended(bash("exit 3")).await;
    assert!(
        code == 3 && said.contains("ended with exit code 3 and printed nothing"),
        "{said}"
    );
    let (_, said, code) = ended(bash("kill -SEGV $$")).await;
    assert!(code == 139 && said.contains("SIGSEGV"), "{code}: {said}");
    let mut slow = bash("sleep 600");
    slow["limits"]["wall_ms"] = 300.into();
    let (_, said, code) = ended(slow).await;
    assert!(code == 124 && said.contains("time_limit"), "{code}: {said}");

    let witness = Witness::new();
    let id = client.submit(&witness.gated("waits")).await;
    witness.began("waits", 1).await;
    let (_, said, code) = logs(&id).await;
    assert!(
        code == 0 && said.contains("is running and has printed nothing yet"),
        "{code}: {said}"
    );
    client.delete(&format!("/v1/jobs/{id}")).await.expect(200);
    let (printed, said, code) = logs(&id).await;
    assert!(
        code == 125 && said.contains(&format!("job {id} was cancelled")),
        "{code}: {said}"
    );
    assert_eq!(printed, "");

    let judged = json!({
        "language": "bash", "source": "cat", "checker": "exact",
        "tests": [{ "name": "same", "stdin": "a", "expected": "a" }, { "stdin": "b", "expected": "c" }],
    });
    let (printed, said, code) = ended(patient(judged)).await;
    assert_eq!(code, 1, "{said}");
    assert!(printed.contains("1 of 2 accepted; score 0.5"), "{printed}");
    assert!(said.contains("test 1 (same): accepted"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_cases_are_shown_with_their_names_the_score_and_what_they_wrote_on_stderr() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let url = cluster.any().url();
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let source =
        "read a b\n[ $a -lt 100 ] || { echo \"too large: $a\" >&2; exit 1; }\necho $((a + b))\n";
    let program = write(&home.join("sum.sh"), source);
    let cases = json!([
        { "name": "small", "stdin": "1 2\n", "expected": "3\n" },
        { "name": "large", "stdin": "1000 2000\n", "expected": "3000\n", "weight": 3 },
    ]);
    let cases = write(&home.join("cases.json"), &cases.to_string());
    let args = ["run", &program, "--tests", &cases, "--url", url];
    let done = quorun(home, &args).await;
    let (printed, said) = (out(&done), err(&done));
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(said.contains("test 1 (small): accepted"), "{said}");
    assert!(said.contains("test 2 (large): runtime_error"), "{said}");
    assert!(
        said.contains("test 2 (large) wrote on stderr:\n  too large: 1000\n"),
        "{said}"
    );
    let rows: Vec<Vec<&str>> = printed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(&rows[0][..4], ["test", "name", "verdict", "score"]);
    assert_eq!(&rows[1][..4], ["1", "small", "accepted", "1.0"]);
    assert_eq!(&rows[2][..4], ["2", "large", "runtime_error", "0.0"]);
    assert!(
        printed.ends_with("1 of 2 accepted; score 0.25\n"),
        "{printed}"
    );
    // A job without cases has no score.
    let plain = write(&home.join("plain.sh"), "true");
    let plain = quorun(home, &["run", &plain, "--url", url]).await;
    assert_eq!(plain.status.code(), Some(0), "{plain:?}");
    let listed = quorun(home, &["jobs", "--url", url]).await;
    let listed = out(&listed);
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].contains("score"), "{listed}");
    assert!(!lines[1].contains("/2)"), "{listed}");
    assert!(lines[2].contains("0.25 (1/2)"), "{listed}");

    let broken = write(&home.join("broken.c"), "int main(void) { return missing; }");
    let args = ["run", &broken, "--tests", &cases, "--url", url];
    let done = quorun(home, &args).await;
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(err(&done).contains("missing"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_json_an_error_is_json_in_every_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let program = write(&home.join("p.sh"), "true");
    let language = write(&home.join("l.toml"), "image = 'any:1'");
    let problem = async |args: &[&str], code: i32| -> Value {
        let done = quorun(home, args).await;
        assert_eq!(done.status.code(), Some(code), "{args:?}: {done:?}");
        assert_eq!(out(&done), "", "{args:?}");
        let said = err(&done);
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
    };
    let program = program.as_str();
    let commands: [(&[&str], i32); 16] = [
        (&["run", program], 125),
        (&["run", "--lang", "bash", program], 125),
        (&["logs", NO_JOB], 125),
        (&["logs", "-f", NO_JOB], 125),
        (&["jobs"], 1),
        (&["cancel", NO_JOB], 1),
        (&["health"], 1),
        (&["languages"], 1),
        (&["languages", "set", "lua", &language], 1),
        (&["languages", "disable", "lua"], 1),
        (&["languages", "remove", "lua"], 1),
        (&["cluster", "status"], 1),
        (&["cluster", "add", "a:1"], 1),
        (&["cluster", "drain", "1"], 1),
        (&["cluster", "move-leader"], 1),
        (&["cluster", "settings"], 1),
    ];
    for (args, code) in commands {
        let args = [args, &["--json", "--url", NOBODY]].concat();
        let said = problem(&args, code).await;
        assert_eq!(said["type"], "urn:quorun:cli:no-answer", "{args:?}: {said}");
        let detail = said["detail"].as_str().expect("a detail");
        assert!(detail.contains(NOBODY), "{args:?}: {said}");
    }

    // What is wrong with the command line itself, also where it cannot be read.
    let wrong: [&[&str]; 8] = [
        &["jobs", "--json", "--state", "gone"],
        &["jobs", "--json", "--verdict", "good"],
        &["jobs", "--json", "--nonsense"],
        &["jobs", "--json", "--url", "127.0.0.1"],
        &["run", "--json"],
        &["run", "--json", "/is/not/there.py"],
        &["cancel", "--json", "../cluster"],
        &["cluster", "drain", "--json", "x"],
    ];
    for args in wrong {
        let said = problem(args, 2).await;
        assert_eq!(said["type"], "urn:quorun:cli:usage", "{args:?}: {said}");
        assert!(said["detail"].is_string(), "{args:?}: {said}");
    }

    // What a node says is as the node has said it.
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let url = cluster.any().url();
    let empty = write(&home.join("empty.sh"), "");
    let refused: [(&[&str], i32, &str); 7] = [
        (&["logs", NO_JOB], 125, "unknown-job"),
        (&["run", "--lang", "cobol", program], 2, "unknown-language"),
        (
            &["run", program, "--limit", "cpu_ms=999999999"],
            2,
            "invalid-request",
        ),
        (&["run", &empty], 2, "empty-source"),
        (&["jobs", "--lang", "cobol"], 2, "unknown-language"),
        (&["languages", "remove", "python"], 1, "language-of-file"),
        (&["cluster", "drain", "9"], 1, "unknown-node"),
    ];
    for (args, code, slug) in refused {
        let args = [args, &["--json", "--url", url]].concat();
        let said = problem(&args, code).await;
        let kind = format!("urn:quorun:error:{slug}");
        assert_eq!(said["type"], kind.as_str(), "{args:?}: {said}");
        assert!(said["status"].is_u64(), "{args:?}: {said}");
    }
    let removed = quorun(home, &["languages", "remove", "python", "--url", url]).await;
    assert!(
        err(&removed).ends_with("quorun languages disable python\n"),
        "{removed:?}"
    );
    // As text, a wrong command line shows how it is used.
    let done = quorun(home, &["jobs", "--state", "gone"]).await;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(err(&done).contains("possible values"), "{done:?}");
}
