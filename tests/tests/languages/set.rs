//! Languages that are set, disabled and removed while the cluster runs.

use std::collections::BTreeSet;

use quorun_tests::{Answer, Client, Cluster, Engine, Executor, Plan, Witness, eventually, program};
use reqwest::Method;
use serde_json::{Value, json};

/// A language whose programs are shell scripts, and that says with which version of it they were run.
fn shell(greeting: &str) -> Value {
    json!({
        "image": "any:1",
        "title": "A shell",
        "aliases": ["shout"],
        "source": "main.sh",
        "run": ["bash", "{source}"],
        "env": { "GREETING": greeting },
        "extensions": ["sh2"],
        "limits": { "wall_ms": 60_000, "cpu_ms": 10_000 },
        "version_command": ["bash", "-c", "echo; echo version of $GREETING"],
        "example": "echo $GREETING",
    })
}

async fn change(client: &Client, method: Method, path: &str, body: &Value) -> Answer {
    client.send(client.request(method, path).json(body)).await
}

async fn put(client: &Client, name: &str, body: &Value) -> Answer {
    let path = format!("/v1/languages/{name}?wait=60");
    change(client, Method::PUT, &path, body).await
}

async fn disable(client: &Client, name: &str, disabled: bool) -> Answer {
    let body = json!({ "disabled": disabled });
    let path = format!("/v1/languages/{name}");
    change(client, Method::PATCH, &path, &body).await
}

fn job(language: &str, source: &str) -> Value {
    json!({ "language": language, "source": source })
}

/// Waits until a node sees the language at this version; 0 also for one that is not there.
async fn sees(client: &Client, name: &str, version: u64) {
    eventually(&format!("version {version} of {name}"), async || {
        let seen = client.get(&format!("/v1/languages/{name}")).await;
        let seen = if seen.status == 404 {
            0
        } else {
            seen.expect(200)["version"].as_u64().unwrap_or(0)
        };
        if seen == version { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_defined_used_defined_anew_disabled_and_removed() {
    let mut cluster = Cluster::of_processes().await;
    let made = put(cluster.client(1), "shell2", &shell("first")).await;
    let tag = made.header("etag").to_owned();
    let shown = made.expect(201);
    assert_eq!(tag, format!("\"{}\"", shown["version"]));
    assert_eq!(shown["ready"], true, "{shown}");
    assert_eq!(shown["offered"], true, "{shown}");
    assert_eq!(shown["origin"], "cluster", "{shown}");
    assert_eq!(shown["limits"]["wall_ms"], 60_000, "{shown}");
    let states: Vec<_> = shown["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["state"])
        .collect();
    assert_eq!(states, ["present"; 3], "{shown}");
    let version = shown["version"].as_u64().unwrap();

    for client in cluster.clients() {
        sees(client, "shell2", version).await;
        let done = client.run(&job("SHOUT", "echo $GREETING from $0")).await;
        assert_eq!(done["stdout"], "first from main.sh\n", "{done}");
        assert_eq!(done["language"], "shell2", "{done}");
        let one = client.get("/v1/languages/shout").await.expect(200);
        assert_eq!(one["installed_version"], "version of first", "{one}");
    }

    // The same again is no change; another one is.
    let same = put(cluster.client(2), "shell2", &shell("first"))
        .await
        .expect(200);
    assert_eq!(same["version"], version);
    let other = put(cluster.client(2), "shell2", &shell("second"))
        .await
        .expect(200);
    let second = other["version"].as_u64().unwrap();
    assert!(second > version && other["ready"] == true, "{other}");
    for client in cluster.clients() {
        sees(client, "shell2", second).await;
        assert_eq!(
            client.lang("shout", "echo $GREETING").await.text(),
            "second\n"
        );
    }

    // Who has looked at the first one does not overwrite the second.
    let stale = cluster
        .client(3)
        .request(Method::PUT, "/v1/languages/shell2");
    let stale = stale.header("If-Match", &tag).json(&shell("third"));
    let problem = cluster
        .client(3)
        .send(stale)
        .await
        .problem(412, "language-changed");
    assert_eq!(problem["version"], second, "{problem}");
    let new = cluster
        .client(3)
        .request(Method::PUT, "/v1/languages/shell2");
    let new = new.header("If-None-Match", "*").json(&shell("third"));
    cluster
        .client(3)
        .send(new)
        .await
        .problem(412, "language-changed");

    // Disabled: no submission, but the retry of one that was accepted.
    let keyed = |client: &Client| {
        let request = client.request(Method::POST, "/v1/jobs?wait=60");
        request
            .header("Idempotency-Key", "kept")
            .json(&job("shell2", "echo kept"))
    };
    let kept = cluster
        .client(1)
        .send(keyed(cluster.client(1)))
        .await
        .expect(200);
    let off = disable(cluster.client(2), "shout", true).await.expect(200);
    assert_eq!(
        (&off["disabled"], &off["offered"]),
        (&json!(true), &json!(false))
    );
    let off = off["version"].as_u64().unwrap();
    for client in cluster.clients() {
        sees(client, "shell2", off).await;
        let refused = client.post_json("/v1/jobs", &job("shell2", "echo 1")).await;
        assert_eq!(
            refused.problem(422, "language-disabled")["language"],
            "shell2"
        );
        client
            .lang("shout", "echo 1")
            .await
            .problem(422, "language-disabled");
        let again = client.send(keyed(client)).await.expect(200);
        assert_eq!(again["id"], kept["id"], "{again}");
    }
    let on = disable(cluster.client(3), "shell2", false)
        .await
        .expect(200);
    assert_eq!(on["disabled"], false);

    // All nodes know it after all of them were stopped, and who was killed too.
    cluster.restart_all().await;
    for client in cluster.clients() {
        sees(client, "shell2", on["version"].as_u64().unwrap()).await;
    }
    eventually("the language is offered again", async || {
        let answer = cluster.any().lang("shell2", "echo $GREETING").await;
        if answer.status == 200 {
            assert_eq!(answer.text(), "second\n");
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;

    let gone = cluster.client(1).delete("/v1/languages/shell2").await;
    assert_eq!(gone.status, 204, "{}", gone.text());
    for client in cluster.clients() {
        sees(client, "shell2", 0).await;
        client
            .lang("shout", "echo 1")
            .await
            .problem(404, "unknown-language");
    }
    let again = cluster.client(2).delete("/v1/languages/shell2").await;
    again.problem(404, "unknown-language");
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_run_as_it_was_accepted() {
    let plan = Plan::new(Executor::Process).nodes(1).slots(1);
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();
    put(client, "shell2", &shell("first")).await.expect(201);
    let witness = Witness::new();
    let holding = client.submit(&witness.gated("holding")).await;
    witness.began("holding", 1).await;
    let first = client.submit(&job("shell2", "echo $GREETING")).await;
    put(client, "shell2", &shell("second")).await.expect(200);
    let second = client.submit(&job("shell2", "echo $GREETING")).await;
    disable(client, "shell2", true).await.expect(200);
    assert_eq!(client.delete("/v1/languages/shell2").await.status, 204);
    // One of the nodes' files too: what was accepted before is run as the file says.
    let file = client.submit(&job("bash", "echo $GREETING as bash")).await;
    put(
        client,
        "bash",
        &json!({ "image": "any:1", "source": "x", "run": ["false"] }),
    )
    .await
    .expect(200);
    witness.open_gate();
    for (id, said) in [
        (&first, "first\n"),
        (&second, "second\n"),
        (&file, "as bash\n"),
    ] {
        let done = client.finished(id).await;
        assert_eq!(done["stdout"], said, "{done}");
        assert_eq!(done["verdict"], "accepted", "{done}");
    }
    client.finished(&holding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_and_cannot_run_any_more_ends_and_says_why() {
    // The command of the language, which goes away while a job waits for it.
    let folder = tempfile::tempdir().expect("a folder");
    let tool = folder.path().join("tool");
    std::os::unix::fs::symlink("/bin/sh", &tool).expect("a command");
    let plan = Plan::new(Executor::Process).nodes(1).slots(1);
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();
    let language = json!({ "image": "any:1", "source": "x", "run": [tool, "{source}"] });
    put(client, "fleeting", &language).await.expect(201);
    let witness = Witness::new();
    let holding = client.submit(&witness.gated("holding")).await;
    witness.began("holding", 1).await;
    let waiting = client.submit(&job("fleeting", "echo hello")).await;
    std::fs::remove_file(&tool).expect("remove the command");
    assert_eq!(client.delete("/v1/languages/fleeting").await.status, 204);
    witness.open_gate();
    let done = client.finished(&waiting).await;
    assert_eq!(done["verdict"], "internal_error", "{done}");
    let message = done["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("fleeting") && message.contains("tool"),
        "{done}"
    );
    client.finished(&holding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_the_files_is_replaced_disabled_and_comes_back() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();
    let of_file = client.get("/v1/languages/sh").await.expect(200);
    assert_eq!(
        (&of_file["name"], &of_file["origin"]),
        (&json!("bash"), &json!("file"))
    );
    assert_eq!(of_file["version"], 0);
    client
        .delete("/v1/languages/bash")
        .await
        .problem(409, "language-of-file");

    let off = disable(client, "bash", true).await.expect(200);
    assert_eq!(
        (&off["disabled"], &off["origin"]),
        (&json!(true), &json!("file"))
    );
    for client in cluster.clients() {
        sees(client, "bash", off["version"].as_u64().unwrap()).await;
        client
            .lang("bash", "echo 1")
            .await
            .problem(422, "language-disabled");
    }
    let back = client.delete("/v1/languages/bash").await.expect(200);
    assert_eq!(
        (&back["disabled"], &back["version"]),
        (&json!(false), &json!(0))
    );
    assert_eq!(client.lang("bash", "echo 1").await.text(), "1\n");

    // Its own, with other aliases: those of the file are gone as long as it is there.
    let own = put(client, "bash", &shell("own")).await.expect(200);
    assert_eq!(own["origin"], "cluster");
    assert_eq!(client.lang("bash", "echo $GREETING").await.text(), "own\n");
    client
        .lang("sh", "echo 1")
        .await
        .problem(404, "unknown-language");
    let back = client.delete("/v1/languages/bash").await.expect(200);
    assert_eq!(back["origin"], "file");
    assert_eq!(client.lang("sh", "echo $GREETING.").await.text(), ".\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_no_node_can_run_is_not_offered_and_says_why() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();
    let mut language = shell("never");
    language["run"] = json!(["there-is-no-such-command", "{source}"]);
    let set = put(client, "nowhere", &language).await.expect(201);
    assert_eq!(
        (&set["ready"], &set["offered"]),
        (&json!(false), &json!(false))
    );
    for node in set["nodes"].as_array().expect("nodes") {
        assert_eq!(node["state"], "failed", "{set}");
        let reason = node["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("there-is-no-such-command"), "{set}");
    }
    for client in cluster.clients() {
        sees(client, "nowhere", set["version"].as_u64().unwrap()).await;
        let nowhere = job("nowhere", "1");
        // What the nodes have said is told for a moment, also what they said before they knew of it.
        let refused = eventually("all have said that they cannot", async || {
            let answer = client.post_json("/v1/jobs", &nowhere).await;
            if answer.status == 503 {
                assert_eq!(answer.header("retry-after"), "1");
                return Err(answer.problem(503, "language-not-ready"));
            }
            Ok(answer)
        });
        let refused = refused.await;
        // Nothing is to be waited for.
        assert_eq!(refused.headers.get("retry-after"), None);
        let problem = refused.problem(422, "language-unavailable");
        assert_eq!(problem["language"], "nowhere");
        let nodes = problem["nodes"].as_array().expect("nodes");
        let named: Vec<_> = nodes
            .iter()
            .filter_map(|node| node["node"].as_u64())
            .collect();
        assert_eq!(named, [1, 2, 3], "{problem}");
        for node in nodes {
            let reason = node["reason"].as_str().unwrap_or_default();
            assert!(reason.contains("there-is-no-such-command"), "{problem}");
        }
        let answer = client.lang("nowhere", "1").await;
        answer.problem(422, "language-unavailable");
        for atomic in [false, true] {
            let jobs = json!([job("nowhere", "1"), job("nowhere", "2")]);
            let batch = json!({ "jobs": jobs, "atomic": atomic });
            let answer = client.post_json("/v1/jobs/batch", &batch).await;
            let problem = if atomic {
                answer.problem(422, "language-unavailable")
            } else {
                answer.expect(200)["jobs"][1]["problem"].clone()
            };
            assert_eq!(problem["type"], "urn:quorun:error:language-unavailable");
        }
    }
    let list = client.get("/v1/jobs?state=queued").await.expect(200);
    assert_eq!(list["jobs"], json!([]), "nothing waits in silence");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_definition_is_said_by_field() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let client = cluster.any();
    let with = |field: &str, value: Value| {
        let mut body = shell("x");
        body[field] = value;
        body
    };
    let wrong = [
        ("image", json!(7)),
        ("image", json!("../containers/json")),
        ("image", json!("a".repeat(300))),
        ("source", json!("../x")),
        ("source", json!("")),
        ("run", json!([])),
        ("run", json!(["bash", "{compile_args}"])),
        ("compile", json!(["{compile_args}", "{source}"])),
        ("compile", json!(["cc", "-x{compile_args}", "{source}"])),
        ("compile", json!(["cc", "{compile_args}", "{compile_args}"])),
        ("run", json!("bash x")),
        ("run", json!(vec!["x"; 65])),
        ("run", json!(["x".repeat(5000)])),
        ("compile", json!([])),
        ("compile", json!(["a\u{0}"])),
        ("version_command", json!([""])),
        ("aliases", json!(["UPPER"])),
        ("aliases", json!(["a@1"])),
        ("aliases", json!(vec!["x"; 17])),
        ("title", json!("t".repeat(300))),
        ("extensions", json!([".py"])),
        ("env", json!([])),
        ("env.A=B", json!(null)),
        ("limits.cpu_ms", json!(0)),
        ("limits.memory_kb", json!(u64::MAX)),
        ("limits.processes", json!(5_000_000_000_u64)),
        ("limits.wall_ms", json!(-1)),
        ("limits.wall_ms", json!("5")),
        ("compile_limits.cpu_ms", json!(900_000)),
        ("example", json!("e".repeat(20_000))),
        ("disabled", json!("yes")),
        ("pin", json!(1)),
        ("name", json!("other")),
    ];
    for (field, value) in wrong {
        let body = match field.split_once('.') {
            Some(("env", name)) => with("env", json!({ name: "x" })),
            Some((outer, inner)) => with(outer, json!({ inner: value.clone() })),
            None => with(field, value.clone()),
        };
        let answer = put(client, "wrong", &body).await;
        let problem = answer.problem(422, "invalid-request");
        let named = problem["field"].as_str().unwrap_or_default();
        assert!(named.starts_with(field), "{field} = {value}: {problem}");
    }
    let unknown = put(client, "wrong", &with("colour", json!("red"))).await;
    let unknown = unknown.problem(422, "invalid-request");
    assert!(
        unknown["detail"].to_string().contains("colour"),
        "{unknown}"
    );
    for missing in ["image", "source", "run"] {
        let mut body = shell("x");
        body.as_object_mut().expect("an object").remove(missing);
        let problem = put(client, "wrong", &body)
            .await
            .problem(422, "invalid-request");
        assert!(problem["detail"].to_string().contains(missing), "{problem}");
    }
    for name in ["UPPER", "a%20b", "a%401", "..", &"n".repeat(41), "%00"] {
        // What the client's library makes of dots is no name of ours.
        let answer = put(client, name, &shell("x")).await;
        assert!(
            [404, 405, 422].contains(&answer.status.as_u16()),
            "{name}: {}",
            answer.text()
        );
    }
    let large = with("example", json!("e".repeat(400_000)));
    put(client, "wrong", &large).await.problem(413, "too-large");
    let request = client.request(Method::PUT, "/v1/languages/wrong");
    client
        .send(request.body("{"))
        .await
        .problem(400, "not-json");
    for path in ["/v1/languages/wrong?wait=x", "/v1/languages/wrong?wate=1"] {
        let answer = change(client, Method::PUT, path, &shell("x")).await;
        answer.problem(422, "invalid-request");
    }
    for tag in ["3", "W/\"3\"", "\"x\""] {
        let request = client.request(Method::PUT, "/v1/languages/wrong");
        let request = request.header("If-Match", tag).json(&shell("x"));
        client.send(request).await.problem(422, "invalid-request");
    }
    for body in [
        json!({}),
        json!({ "disabled": 1 }),
        json!({ "disabled": true, "image": "x" }),
    ] {
        let answer = change(client, Method::PATCH, "/v1/languages/bash", &body).await;
        answer.problem(422, "invalid-request");
    }
    disable(client, "wrong", true)
        .await
        .problem(404, "unknown-language");

    // No name of another one, of the file or of the cluster.
    let taken = put(client, "wrong", &with("aliases", json!(["py"]))).await;
    assert_eq!(taken.problem(409, "name-taken")["language"], "python");
    put(client, "py", &with("aliases", json!([])))
        .await
        .problem(409, "name-taken");
    put(client, "right", &with("aliases", json!(["mine"])))
        .await
        .expect(201);
    let taken = put(client, "wrong", &with("aliases", json!(["mine"]))).await;
    assert_eq!(taken.problem(409, "name-taken")["language"], "right");
    client
        .get("/v1/languages/wrong")
        .await
        .problem(404, "unknown-language");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_sets_disables_and_removes() {
    let cluster = Cluster::of_processes().await;
    let url = cluster.any().url().to_owned();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("shell2.toml");
    let text = "image = 'any:1'\nsource = 'x'\nrun = ['bash', '{source}']\nversion_command = ['bash', '--version']\n";
    std::fs::write(&file, text).expect("write");
    let quorun = async |args: &[&str]| {
        let mut command = program::command();
        command.arg("languages").args(args).args(["--url", &url]);
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output.await.expect("joined").expect("quorun");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.code(), text)
    };
    let file = file.to_str().expect("a path");
    let (code, said) = quorun(&["set", "shell2", file]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("is offered") && said.contains("node 3: present"),
        "{said}"
    );
    assert_eq!(cluster.any().lang("shell2", "echo 1").await.text(), "1\n");
    let (code, said) = quorun(&["disable", "shell2"]).await;
    assert!(code == Some(0) && said.contains("is disabled"), "{said}");
    let (code, said) = quorun(&["enable", "shell2", "--json"]).await;
    let shown: Value = serde_json::from_str(&said).expect("JSON");
    assert!(code == Some(0) && shown["offered"] == true, "{said}");
    let (code, said) = quorun(&["set", "python2", file, "--json"]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = quorun(&["remove", "shell2"]).await;
    assert!(code == Some(0) && said.contains("is removed"), "{said}");
    let (code, said) = quorun(&["remove", "shell2"]).await;
    assert!(code == Some(1) && said.contains("not a language"), "{said}");
    let (code, said) = quorun(&["set", "shell2", "/no/such/file.toml"]).await;
    assert!(
        code == Some(2) && said.contains("/no/such/file.toml"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_the_engine_becomes_a_language_on_every_node() {
    let Some(engine) = Engine::find("an image becomes a language").await else {
        return;
    };
    let image = engine.tagged().await;
    let plan = Plan::new(Executor::Docker).arg("--pull=missing");
    let mut cluster = Cluster::start(plan).await;
    let id = cluster.id().await;
    let client = &cluster.client(1).clone();
    let mut language = shell("contained");
    language["image"] = json!(image);
    language["version_command"] = json!(["bash", "--version"]);
    let set = put(client, "shell2", &language).await.expect(201);
    assert_eq!(set["ready"], true, "{set}");
    let content: BTreeSet<_> = set["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["image_id"].to_string())
        .collect();
    assert_eq!(content.len(), 1, "{set}");
    let shown = client.get("/v1/languages/shell2").await.expect(200);
    let version = shown["installed_version"].as_str().unwrap_or_default();
    assert!(version.starts_with("GNU bash"), "{shown}");

    // More at one time than one node has slots for, until each has had one.
    let version = set["version"].as_u64().unwrap();
    for client in cluster.clients() {
        sees(client, "shell2", version).await;
    }
    let mut nodes = BTreeSet::new();
    while nodes.len() < 3 {
        let mut ids = Vec::new();
        for _ in 0..6 {
            ids.push(
                client
                    .submit(&job("shell2", "sleep 0.2; echo $GREETING"))
                    .await,
            );
        }
        for id in ids {
            let done = client.finished(&id).await;
            assert_eq!(done["stdout"], "contained\n", "{done}");
            nodes.insert(done["node"].as_u64().expect("a node"));
        }
    }
    let of_image = async || {
        let all = engine.containers(&id).await;
        let mine = all.into_iter().filter(|c| c.image.as_ref() == Some(&image));
        mine.count()
    };
    assert!(of_image().await > 0, "its sandboxes are kept warm");

    // An image that is nowhere: the engine's words, and no job that waits.
    let mut nowhere = shell("nowhere");
    nowhere["image"] = json!("localhost:1/quorun/there-is-no-such-image:1");
    nowhere["aliases"] = json!([]);
    let set = put(client, "nowhere", &nowhere).await.expect(201);
    assert_eq!(
        (&set["ready"], &set["offered"]),
        (&json!(false), &json!(false)),
        "{set}"
    );
    for node in set["nodes"].as_array().expect("nodes") {
        assert_eq!(node["state"], "failed", "{set}");
        let reason = node["reason"].as_str().unwrap_or_default();
        assert!(
            reason.contains("pulling it failed") && reason.contains("localhost:1"),
            "{set}"
        );
    }
    let refused = client.post_json("/v1/jobs", &job("nowhere", "1")).await;
    refused.problem(422, "language-unavailable");

    // A node that comes back knows both.
    cluster.node(2).kill();
    cluster.node(2).restart().await;
    let back = cluster.client(2);
    sees(back, "shell2", version).await;
    eventually("the node that came back has the image", async || {
        let shown = back.get("/v1/languages/shell2").await.expect(200);
        let state = &shown["nodes"][1];
        if state["node"] == 2 && state["state"] == "present" {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    })
    .await;

    disable(client, "shell2", true).await.expect(200);
    client
        .lang("shell2", "echo 1")
        .await
        .problem(422, "language-disabled");
    assert_eq!(client.delete("/v1/languages/shell2").await.status, 204);
    eventually(
        "the sandboxes of a language that is gone are given up",
        async || match of_image().await {
            0 => Ok(()),
            count => Err(count),
        },
    )
    .await;
    cluster.stop().await;
    engine.untag(&image).await;
}
