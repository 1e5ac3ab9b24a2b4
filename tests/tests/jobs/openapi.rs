//! The API does what its document says: schemathesis holds a running node to it, and so does a client that was generated
//! from it.

use std::process::{Command, Output};
use std::time::Duration;

use quorun_tests::{Client, Cluster, Executor, Plan, Python, Tokens, TypeScript};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::walk;

/// A command that must end well; what it said is shown otherwise.
async fn done(mut command: Command, what: &str) -> Output {
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("a thread")
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Whoever calls everything also drains the node, and a node that drains runs nothing, so that its clients wait. This gives
/// it work again, as long as it is polled.
async fn give_work_again(admin: &Client) {
    loop {
        // The answer does not matter: the next one is soon.
        let request = admin.request(reqwest::Method::POST, "/v1/cluster/nodes/1/drain");
        let _ = Client::try_send(request.json(&json!({ "draining": false }))).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_nothing() {
    let Some(python) = Python::find("schemathesis_finds_nothing") else {
        return;
    };
    let folder = TempDir::new().expect("a folder");
    let file = Tokens::new();
    let tokens = [
        file.draw("root", "admin", &[]),
        file.draw("course", "submit", &[]),
        file.draw("course", "read", &[]),
    ];
    // One voter cannot be removed, nor can it hand the leadership over: those calls are harmless here. Nothing is executed,
    // because the programs are whatever comes to schemathesis' mind.
    let plan = Plan::new(Executor::Noop).nodes(1);
    let plan = plan.arg(format!("--tokens={}", file.file().display()));
    let mut cluster = Cluster::start(plan).await;
    let admin = cluster.any().bearing(&tokens[0]);
    let url = format!("{}/openapi.json", admin.url());
    for (n, token) in tokens.iter().enumerate() {
        let mut command = python.command(&["-m", "schemathesis.cli"]);
        command
            // It keeps what it has found where it is.
            .current_dir(folder.path())
            .env("SCHEMATHESIS_HOOKS", Python::scripts().join("hooks.py"))
            .arg("--config-file")
            .arg(Python::scripts().join("schemathesis.toml"))
            .args(["run", &url, "--no-color", "--seed", "20260101"])
            .args(["--header", &format!("Authorization: Bearer {token}")]);
        // What the other roles may not do is refused the same way whatever it looks like.
        if n == 0 {
            command.args(["--phases", "examples,coverage,fuzzing,stateful"]);
            command.args(["--max-examples", "8"]);
        } else {
            command.args(["--phases", "examples,fuzzing", "--max-examples", "2"]);
        }
        tokio::select! {
            output = done(command, "schemathesis") => {
                let said = String::from_utf8_lossy(&output.stdout);
                // All but the one that the document itself comes from.
                let all = format!("Tested: {}\n", walk::calls().len() - 1);
                assert!(said.contains(&all), "not every call was made: {said}");
            }
            () = give_work_again(&admin) => {}
        }
    }
    let node = cluster.nodes().next().expect("the node");
    let log = node.log();
    assert!(!log.contains("panicked"), "a handler has panicked");
    admin.get("/readyz").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_client_runs_jobs() {
    let Some(python) = Python::find("a_generated_client_runs_jobs") else {
        return;
    };
    let folder = TempDir::new().expect("a folder");
    let tokens = Tokens::new();
    let token = tokens.draw("course", "submit", &[]);
    let cluster = Cluster::start(tokens.plan().nodes(1)).await;
    let url = cluster.any().url();
    let mut generator = python.command(&["-m", "openapi_python_client", "generate"]);
    generator
        .args(["--meta", "none", "--url", &format!("{url}/openapi.json")])
        .arg("--output-path")
        .arg(folder.path().join("quorun_client"));
    let said = done(generator, "openapi-python-client").await.stderr;
    let said = String::from_utf8_lossy(&said);
    // A program can be sent as text or as bytes, and the generator knows only of bytes.
    let warnings: Vec<_> = said.lines().filter(|l| l.starts_with("WARNING")).collect();
    assert_eq!(
        warnings,
        ["WARNING parsing POST /lang/{language} within run."],
        "{said}"
    );
    let mut client = python.command(&[]);
    client
        .env("PYTHONPATH", folder.path())
        .arg(Python::scripts().join("client.py"))
        .args([url, &token]);
    let output = done(client, "the client").await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_typescript_is_compiled_and_runs_a_job() {
    let Some(typescript) = TypeScript::find("the_example_in_typescript") else {
        return;
    };
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/clients.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let (_, rest) = page.split_once("```typescript\n").expect("the example");
    let (example, _) = rest.split_once("```").expect("the end of the example");
    let tokens = Tokens::new();
    let token = tokens.draw("course", "submit", &[]);
    let cluster = Cluster::start(tokens.plan().nodes(1)).await;
    let url = cluster.any().url();
    assert_eq!(example.matches("http://127.0.0.1:8080").count(), 1);
    let example = example.replace("http://127.0.0.1:8080", url);

    let folder = TempDir::new().expect("a folder");
    typescript.lay_out(folder.path());
    let document = format!("{url}/openapi.json");
    let mut generator = typescript.command("openapi-typescript", &[&document, "-o", "quorun.ts"]);
    generator.current_dir(folder.path());
    done(generator, "openapi-typescript").await;
    let compile = |text: &str| {
        std::fs::write(folder.path().join("example.ts"), text).expect("write");
        // As the page has it, but for where the result goes.
        let args =
            "--strict --module nodenext --target es2022 --types node --outDir made example.ts";
        let args: Vec<_> = args.split(' ').collect();
        let mut compiler = typescript.command("tsc", &args);
        compiler.current_dir(folder.path());
        compiler
    };
    done(compile(&example), "tsc").await;
    let mut client = Command::new("node");
    client
        .arg(folder.path().join("made/example.js"))
        .env("QUORUN_TOKEN", &token);
    let output = done(client, "the client").await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "accepted hello world\n\n");
    // The same with a token that is none: the error has its type.
    let mut stranger = Command::new("node");
    stranger
        .arg(folder.path().join("made/example.js"))
        .env("QUORUN_TOKEN", "quorun_unknown");
    let output = stranger.output().expect("node");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("urn:quorun:error:unknown-token"), "{said}");
    assert!(!output.status.success());
    // What the document does not have does not come through the compiler.
    for (right, wrong) in [
        ("stdin:", "input:"),
        ("language: \"bash\"", "language: 5"),
        ("job.verdict", "job.judgement"),
        ("\"/v1/jobs\"", "\"/v1/job\""),
    ] {
        let changed = example.replace(right, wrong);
        assert_ne!(changed, example, "{right} is not in the example");
        let output = compile(&changed).output().expect("tsc");
        assert!(!output.status.success(), "{wrong} was taken");
    }
}

/// Programs of all kinds, so that their answers have everything that an answer can have.
fn programs() -> Vec<Value> {
    vec![
        json!({ "language": "bash", "source": "echo out; echo err >&2; printf '\\377'", "labels": ["a"],
            "callback": { "url": "https://example.com/hook" } }),
        json!({ "language": "bash", "source": "kill -9 $$", "priority": "high", "isolation_key": "k" }),
        json!({ "language": "bash", "source": "echo 1,2 > a.csv; printf '\\0\\377' > b.bin",
            "outputs": ["a.csv", "b.bin", "none"] }),
        json!({ "language": "bash", "source": "read a; echo $a", "checker": "tokens", "tests": [
            { "stdin": "1", "expected": "1" }, { "name": "n", "stdin_base64": "/w==", "hidden": true, "weight": 2,
                "limits": { "cpu_ms": 500 } },
        ] }),
        json!({ "language": "bash", "source": "sleep 100", "tests": [{}, {}], "stop_on_failure": true,
            "limits": { "wall_ms": 50 } }),
        json!({ "language": "c", "source": "int main(void) { return CODE; }", "compile_args": ["-DCODE=3"] }),
        json!({ "language": "c", "source": "no" }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_about_programs_that_ran_are_as_the_document_says() {
    let Some(python) = Python::find("answers_about_programs_that_ran_are_as_the_document_says")
    else {
        return;
    };
    let plan = Plan::new(Executor::Process).nodes(1);
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();
    let mut answers = Vec::new();
    let queued = json!({ "language": "bash", "source": "sleep 0.3" });
    for _ in 0..4 {
        let job = client.post_json("/v1/jobs", &queued).await.expect(202);
        answers.push(("Job", job));
    }
    for job in programs() {
        let id = client.submit(&job).await;
        client.finished(&id).await;
        for query in ["", "?include=tests", "?encoding=base64&include=tests"] {
            let path = format!("/v1/jobs/{id}{query}");
            answers.push(("Job", client.get(&path).await.expect(200)));
        }
        for event in client
            .get(&format!("/v1/jobs/{id}/events"))
            .await
            .text()
            .split("\n\n")
        {
            let line = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            let schema = match line("event: ") {
                Some("state") => "StateEvent",
                Some("output") => "OutputEvent",
                Some("test") => "TestEvent",
                Some("finished") => "Job",
                _ => continue,
            };
            let data = line("data: ").expect("data");
            answers.push((schema, serde_json::from_str(data).expect("JSON")));
        }
    }
    for (schema, path) in [
        ("JobList", "/v1/jobs"),
        ("LanguageList", "/v1/languages"),
        ("Language", "/v1/languages/bash"),
        ("Queue", "/v1/queue"),
        ("Cluster", "/v1/cluster"),
        ("ClusterSettings", "/v1/cluster/settings"),
        ("Readiness", "/readyz"),
    ] {
        answers.push((schema, client.get(path).await.expect(200)));
    }
    let seen: std::collections::BTreeSet<_> = answers.iter().map(|answer| answer.0).collect();
    assert_eq!(seen.len(), 11, "{seen:?}");
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("answers.json");
    std::fs::write(&file, json!(answers).to_string()).expect("write the answers");
    let mut validator = python.command(&[]);
    validator
        .arg(Python::scripts().join("answers.py"))
        .arg(format!("{}/openapi.json", client.url()))
        .arg(file);
    let output = done(validator, "the answers").await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, format!("{} answers\n", answers.len()));
}
