//! What is wrong with a request, a command line or a machine is said, and harms nobody.

#[path = "bad_input/fuzz.rs"]
mod fuzz;
#[path = "bad_input/hostile.rs"]
mod hostile;
#[path = "bad_input/kinds.rs"]
mod kinds;

use std::path::Path;
use std::process::Stdio;

use quorun_tests::node::{Node, Settings};
use quorun_tests::raw::Exchange;
use quorun_tests::turn::Turn;
use quorun_tests::{Client, Cluster, Engine, Executor, Plan, Witness, eventually, ports};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

/// One node is enough to say no.
async fn one_node() -> Cluster {
    Cluster::start(Plan::new(Executor::Process).nodes(1)).await
}

async fn post(client: &Client, job: &Value) -> quorun_tests::Answer {
    client.post_json("/v1/jobs", job).await
}

/// The node took no harm: it runs the next job, and it took none of those before.
async fn unharmed(client: &Client) {
    let list = client.get("/v1/jobs").await.expect(200);
    assert_eq!(list["jobs"], json!([]), "nothing was accepted");
    let done = client
        .run(&json!({ "language": "bash", "source": "echo unharmed" }))
        .await;
    assert_eq!(done["stdout"], "unharmed\n", "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_language_is_404_and_lists_the_known_ones() {
    let cluster = one_node().await;
    let client = cluster.any();
    let answers = [
        client.lang("cobol", "x").await,
        post(client, &json!({ "language": "cobol", "source": "x" })).await,
        client.get("/v1/jobs?language=cobol").await,
    ];
    for answer in answers {
        let problem = answer.problem(404, "unknown-language");
        let known = problem["languages"].as_array().expect("the known ones");
        assert!(known.contains(&"python".into()), "{problem}");
        assert_eq!(known.len(), 12);
        assert!(problem["detail"].as_str().expect("text").contains("cobol"));
    }
    unharmed(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_program_is_refused() {
    let cluster = one_node().await;
    let client = cluster.any();
    let answers = [
        client.lang("python", "").await,
        post(client, &json!({ "language": "python", "source": "" })).await,
        post(
            client,
            &json!({ "language": "python", "files": [{ "name": "a.py", "content": "" }] }),
        )
        .await,
    ];
    for answer in answers {
        assert_eq!(answer.problem(400, "empty-source")["field"], "source");
    }
    let missing = post(client, &json!({ "language": "python" })).await;
    assert_eq!(missing.problem(422, "invalid-request")["field"], "source");
    let none = post(client, &json!({ "language": "python", "files": [] })).await;
    assert_eq!(none.problem(422, "invalid-request")["field"], "files");
    let empty_body = client.post("/v1/jobs", "").await;
    let _ = empty_body.problem(400, "not-json");
    unharmed(client).await;
}

/// The calls of the API, each with the parameters that it takes.
fn calls() -> Vec<(Method, String, Vec<String>)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let text = std::fs::read_to_string(file).expect("the document");
    let document: Value = serde_json::from_str(&text).expect("the document");
    let mut calls = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, call) in item.as_object().expect("calls") {
            let method = method.to_uppercase().parse().expect("a method");
            let parameters = call["parameters"].as_array().into_iter().flatten();
            let of_query = parameters.filter(|parameter| parameter["in"] == "query");
            let names = of_query.filter_map(|parameter| parameter["name"].as_str());
            calls.push((method, path.clone(), names.map(ToOwned::to_owned).collect()));
        }
    }
    assert!(calls.len() > 30, "{calls:?}");
    calls
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_names_a_parameter_that_it_does_not_take() {
    let cluster = one_node().await;
    let client = cluster.any();
    for (method, path, takes) in calls() {
        let at = path
            .replace("{id}", "01900000-0000-7000-8000-000000000000")
            .replace("{language}", "python")
            .replace("{name}", "python")
            .replace("{type}", "queue-full");
        let request = client.request(method.clone(), &format!("{at}?colour=red&stale=1"));
        let answer = client.send(request).await;
        if !path.starts_with("/v1/") && !path.starts_with("/lang/") {
            // What asks there has parameters of its own.
            assert_eq!(answer.status, 200, "{method} {path}");
            continue;
        }
        let problem = answer.problem(422, "invalid-request");
        assert_eq!(problem["field"], "colour", "{method} {path}: {problem}");
        assert_says(&problem, &format!("`colour`; {method} {path} takes "));
        for name in &takes {
            assert_says(&problem, name);
        }
        if takes.is_empty() {
            assert_says(&problem, "takes none");
        }
    }
    // Before anything else is looked at, and with what is behind it thrown away.
    let source = "x".repeat(1 << 20);
    let answer = client.post("/lang/nothing?sdtin=1", source).await;
    let problem = answer.problem(422, "invalid-request");
    assert_eq!(problem["field"], "sdtin");
    assert_says(&problem, "takes stdin, stream");
    for (query, field) in [
        ("stream=maybe", "stream"),
        ("stdin=1&stdin=2", "stdin"),
        ("=1", "query"),
        ("%FF=1", "\u{fffd}"),
    ] {
        let answer = client.post(&format!("/lang/bash?{query}"), "echo").await;
        let problem = answer.problem(422, "invalid-request");
        assert_eq!(problem["field"], field, "{query}: {problem}");
    }
    // What is empty is no parameter.
    client.get("/v1/queue?").await.expect(200);
    unharmed(client).await;
}

/// That the detail of a problem has these words.
fn assert_says(problem: &Value, words: &str) {
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.contains(words), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_413() {
    let plan = Plan::new(Executor::Process).nodes(1);
    let plan = plan
        .arg("--max-source-kb=1")
        .arg("--max-stdin-kb=1")
        .arg("--max-tests-kb=1");
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();

    let comment = format!("# {}", "x".repeat(1024));
    let answer = client.lang("python", &comment).await;
    let problem = answer.problem(413, "too-large");
    assert_eq!(
        (&problem["field"], &problem["limit"]),
        (&json!("body"), &json!(1024))
    );
    assert_says(&problem, "--max-source-kb");

    // Without an announced length it shows only while it is read.
    let chunks = vec![comment.clone(); 3];
    let chunks = futures::stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>));
    let request = client
        .request(Method::POST, "/lang/python")
        .body(reqwest::Body::wrap_stream(chunks));
    let _ = client.send(request).await.problem(413, "too-large");

    let source = post(client, &json!({ "language": "python", "source": comment })).await;
    let problem = source.problem(413, "too-large");
    assert_eq!(problem["field"], "source");
    assert_says(&problem, "--max-source-kb");
    let half = "#".repeat(600);
    let together = json!({ "language": "python", "files": [
        { "name": "a.py", "content": half }, { "name": "b.py", "content": half },
    ] });
    let files = post(client, &together).await;
    let problem = files.problem(413, "too-large");
    assert_eq!(problem["field"], "files");
    assert_says(&problem, "--max-source-kb");
    let stdin = post(
        client,
        &json!({ "language": "python", "source": "1", "stdin": comment }),
    )
    .await;
    let problem = stdin.problem(413, "too-large");
    assert_eq!(problem["field"], "stdin");
    assert_says(&problem, "--max-stdin-kb");
    let body = client.post("/v1/jobs", " ".repeat(1 << 20)).await;
    let problem = body.problem(413, "too-large");
    assert_eq!(problem["field"], "body");
    assert_says(&problem, "--max-tests-kb");

    let full = format!("echo full #{}", "x".repeat(1024 - 11));
    assert_eq!(full.len(), 1024);
    let list = client.get("/v1/jobs").await.expect(200);
    assert_eq!(list["jobs"], json!([]), "nothing was accepted");
    assert_eq!(client.lang("bash", &full).await.text(), "full\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_utf8_is_refused_where_text_is_required() {
    let cluster = one_node().await;
    let client = cluster.any();
    let bytes: &[u8] = b"print('\xff')";
    let problem = client
        .post("/lang/python", bytes)
        .await
        .problem(400, "not-utf8");
    assert_eq!(problem["field"], "source");
    let detail = problem["detail"].as_str().expect("text");
    assert!(detail.contains("byte 7"), "{detail}");
    assert!(detail.contains("content_base64"), "{detail}");
    let mut body = br#"{"language":"python","source":""#.to_vec();
    body.extend_from_slice(bytes);
    body.extend_from_slice(br#""}"#);
    let _ = client.post("/v1/jobs", body).await.problem(400, "not-json");
    unharmed(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_does_not_parse_is_400() {
    let cluster = one_node().await;
    let client = cluster.any();
    for body in [
        "print(1)",
        r#"{"language":"python","source":"1""#,
        r#"{"language":"python","source":"1"} x"#,
        "",
    ] {
        let _ = client.post("/v1/jobs", body).await.problem(400, "not-json");
    }
    unharmed(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_of_another_shape_is_422_and_names_the_field() {
    let cluster = one_node().await;
    let client = cluster.any();
    let cases = [
        (json!([]), "body"),
        (json!({ "source": "1" }), "language"),
        (json!({ "language": 3, "source": "1" }), "language"),
        (json!({ "language": "python", "source": ["1"] }), "source"),
        (
            json!({ "language": "python", "source": "1", "args": "x" }),
            "args",
        ),
        (
            json!({ "language": "python", "source": "1", "args": ["a", 2] }),
            "args[1]",
        ),
        (
            json!({ "language": "python", "source": "1", "env": { "A": 1 } }),
            "env.A",
        ),
        (
            json!({ "language": "python", "source": "1", "limits": { "cpu_ms": "much" } }),
            "limits.cpu_ms",
        ),
        (
            json!({ "language": "python", "source": "1", "limits": { "cpu_ms": -1 } }),
            "limits.cpu_ms",
        ),
        (
            json!({ "language": "python", "files": [{ "name": "a.py", "content": 1 }] }),
            "files[0].content",
        ),
    ];
    for (body, field) in cases {
        let problem = post(client, &body).await.problem(422, "invalid-request");
        assert_eq!(problem["field"], field, "{body}: {problem}");
    }
    let unknown = post(
        client,
        &json!({ "language": "python", "source": "1", "sauce": 1 }),
    )
    .await;
    let problem = unknown.problem(422, "invalid-request");
    assert_eq!(problem["field"], "sauce", "{problem}");
    assert!(problem["detail"].to_string().contains("sauce"), "{problem}");
    unharmed(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_cannot_be_are_422_and_name_the_field() {
    let cluster = one_node().await;
    let client = cluster.any();
    let with = |name: &str, value: Value| {
        let mut job = json!({ "language": "python", "source": "1" });
        job[name] = value;
        job
    };
    let file =
        |name: &str| json!({ "language": "python", "files": [{ "name": name, "content": "1" }] });
    let cases = [
        (with("files", json!([])), "source"),
        (with("entrypoint", json!("other.py")), "entrypoint"),
        (with("stdin_base64", json!("???")), "stdin_base64"),
        (with("env", json!({ "A=B": "1" })), "env.A=B"),
        (with("args", json!(["a\u{0}b"])), "args[0]"),
        (with("args", json!(vec!["a"; 257])), "args"),
        (with("labels", json!([""])), "labels[0]"),
        (with("isolation_key", json!("")), "isolation_key"),
        (
            with("isolation_key", json!("k".repeat(129))),
            "isolation_key",
        ),
        (with("isolation_key", json!("ké")), "isolation_key"),
        (with("isolation_key", json!("a\nb")), "isolation_key"),
        (with("isolation_key", json!(7)), "isolation_key"),
        (with("retention_s", json!(1_u64 << 40)), "retention_s"),
        (file("../evil.py"), "files[0].name"),
        (file("/etc/passwd"), "files[0].name"),
        (file(""), "files[0].name"),
        (
            json!({ "language": "python", "files": [{ "name": "a.py" }] }),
            "files[0]",
        ),
        (
            json!({ "language": "python", "files": [
                { "name": "a.py", "content": "1" }, { "name": "a.py", "content": "2" },
            ] }),
            "files[1].name",
        ),
    ];
    for (body, field) in cases {
        let problem = post(client, &body).await.problem(422, "invalid-request");
        assert_eq!(problem["field"], field, "{body}: {problem}");
    }
    // Of what is too much only the number is kept, however much it is.
    let names =
        |count: usize| -> Value { (0..count).map(|n| (n.to_string(), json!(""))).collect() };
    let file = json!({ "name": "a.py", "content": "1" });
    let no_source = |files: Value| json!({ "language": "python", "files": files });
    let tests = json!({ "language": "python", "source": "1", "tests": vec![json!({}); 90_000] });
    for (body, field, value, limit) in [
        (with("args", json!(vec![""; 100_000])), "args", 100_000, 256),
        (with("labels", json!(vec!["a"; 17])), "labels", 17, 16),
        (with("outputs", json!(vec!["a"; 17])), "outputs", 17, 16),
        (with("env", names(65)), "env", 65, 64),
        (no_source(json!(vec![file; 101])), "files", 101, 100),
        (tests, "tests", 90_000, 1000),
        (
            with(
                "callback",
                json!({ "url": "https://a.example/", "headers": names(17) }),
            ),
            "callback.headers",
            17,
            16,
        ),
    ] {
        let problem = post(client, &body).await.problem(422, "invalid-request");
        let said = ["field", "value", "limit"].map(|member| problem[member].clone());
        assert_eq!(
            said,
            [json!(field), json!(value), json!(limit)],
            "{problem}"
        );
    }
    for (query, field) in [
        ("state=done", "state"),
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("cursor=x", "cursor"),
        ("consistency=maybe", "consistency"),
        ("colour=red", "colour"),
    ] {
        let answer = client.get(&format!("/v1/jobs?{query}")).await;
        let problem = answer.problem(422, "invalid-request");
        assert_eq!(problem["field"], field, "{query}: {problem}");
    }
    let job = with("labels", json!([]));
    let answer = client.post_json("/v1/jobs?wait=soon", &job).await;
    assert_eq!(answer.problem(422, "invalid-request")["field"], "wait");
    let request = client.request(Method::POST, "/v1/jobs").json(&job);
    let long = client
        .send(request.header("Idempotency-Key", "k".repeat(256)))
        .await;
    assert_eq!(
        long.problem(422, "invalid-request")["field"],
        "Idempotency-Key"
    );
    unharmed(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_over_the_maximum_are_422_with_the_maximum() {
    let cluster = one_node().await;
    let client = cluster.any();
    for (name, most) in [
        ("cpu_ms", 20_000_u64),
        ("wall_ms", 60_000),
        ("memory_kb", 2 * 1024 * 1024),
        ("processes", 512),
        ("output_kb", 4096),
        ("open_files", 4096),
        ("file_kb", 1024 * 1024),
        ("stack_kb", 1024 * 1024),
    ] {
        let job =
            |value: u64| json!({ "language": "bash", "source": "echo", "limits": { name: value } });
        let problem = post(client, &job(most + 1))
            .await
            .problem(422, "invalid-request");
        assert_eq!(problem["field"], format!("limits.{name}"));
        assert_eq!(problem["value"], most + 1);
        assert_eq!(problem["limit"], most);
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains(&most.to_string()), "{detail}");
        let least = post(client, &job(0)).await.problem(422, "invalid-request");
        assert_eq!(least["field"], format!("limits.{name}"));
        assert_eq!(least["value"], 0);
    }
    // Nothing could start with these.
    for (name, value, least) in [
        ("memory_kb", 1024_u64, 16 * 1024_u64),
        ("open_files", 3, 32),
        ("stack_kb", 8, 128),
    ] {
        let job = json!({ "language": "bash", "source": "echo", "limits": { name: value } });
        let problem = post(client, &job).await.problem(422, "invalid-request");
        assert_eq!(problem["field"], format!("limits.{name}"));
        assert_eq!(problem["limit"], least, "{problem}");
    }
    unharmed(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn maxima_from_the_configuration_hold_for_requests_and_languages() {
    let plan = Plan::new(Executor::Process)
        .nodes(1)
        .arg("--max-cpu-ms=1500")
        .arg("--max-memory-mb=128")
        .arg("--max-processes=20")
        .arg("--max-open-files=100")
        .arg("--max-file-kb=50")
        .env("QUORUN_MAX_WALL_MS", "4000")
        .env("QUORUN_MAX_OUTPUT_KB", "10")
        .env("QUORUN_MAX_STACK_KB", "2048");
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();
    let most = json!({
        "cpu_ms": 1500, "wall_ms": 4000, "memory_kb": 128 * 1024, "processes": 20, "output_kb": 10,
        "open_files": 100, "file_kb": 50, "stack_kb": 2048,
    });
    for (name, most) in most.as_object().expect("an object") {
        let value = most.as_u64().expect("a number") + 1;
        let job = json!({ "language": "bash", "source": "echo", "limits": { name: value } });
        let problem = post(client, &job).await.problem(422, "invalid-request");
        assert_eq!(problem["field"], format!("limits.{name}"));
        assert_eq!(problem["value"], value);
        assert_eq!(&problem["limit"], most);
    }
    // All of these are less than what the languages have for themselves.
    let languages = client.get("/v1/languages").await.expect(200);
    for language in languages["languages"].as_array().expect("a list") {
        assert_eq!(language["limits"], most, "{language}");
    }
    let source = "ulimit -n; ulimit -f; ulimit -s";
    let run = async |limits: Value| {
        let job = json!({ "language": "bash", "source": source, "limits": limits });
        client.run(&job).await["stdout"].clone()
    };
    assert_eq!(run(json!({})).await, "100\n50\n2048\n");
    let less = json!({ "open_files": 32, "file_kb": 1, "stack_kb": 128 });
    assert_eq!(run(less).await, "32\n1\n128\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_job_is_404() {
    let cluster = one_node().await;
    let client = cluster.any();
    for id in ["01900000-0000-7000-8000-000000000000", "nonsense"] {
        let path = format!("/v1/jobs/{id}");
        for answer in [
            client.get(&path).await,
            client.get(&format!("{path}?consistency=stale")).await,
            client.get(&format!("{path}?wait=1")).await,
            client.get(&format!("{path}/events")).await,
            client.delete(&path).await,
        ] {
            assert_eq!(answer.problem(404, "unknown-job")["job"], id);
        }
    }
    let _ = client.get("/v2/jobs").await.problem(404, "unknown-path");
    unharmed(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_method_is_405_and_says_the_right_one() {
    let cluster = one_node().await;
    let client = cluster.any();
    for (method, path, right) in [
        (Method::GET, "/lang/python", "POST"),
        (Method::PUT, "/v1/jobs", "POST"),
        (Method::POST, "/v1/jobs/x", "DELETE"),
        (Method::DELETE, "/v1/cluster", "GET"),
    ] {
        let answer = client.send(client.request(method, path)).await;
        let problem = answer.problem(405, "wrong-method");
        let allow = answer.header("allow");
        assert!(allow.contains(right), "{path} allows {allow}: {problem}");
    }
    unharmed(client).await;
}

/// Settings of nodes that are not part of a cluster of the harness.
struct Lone {
    folder: TempDir,
    first: u16,
    _turn: Turn,
}

impl Lone {
    async fn new() -> Self {
        Self {
            _turn: Turn::take().await,
            folder: tempfile::tempdir().expect("a folder"),
            first: ports::free(6, &[]),
        }
    }

    /// Node `id` of three, at its place.
    fn settings(&self, id: u16) -> Settings {
        Settings {
            id: id.into(),
            join: None,
            program: None,
            peers: self.peers(),
            http: self.first + id - 1,
            cluster: "lone".to_owned(),
            executor: Executor::Process,
            slots: 1,
            data: self.folder.path().join(format!("data{id}")),
            args: Vec::new(),
            env: Vec::new(),
            token: None,
        }
    }

    fn peers(&self) -> String {
        let at = |n: u16| format!("{n}=127.0.0.1:{}", self.first + 2 + n);
        [at(1), at(2), at(3)].join(",")
    }

    fn start(&self, name: &str, settings: Settings) -> Node {
        let mut node = Node::new(settings, self.folder.path().join(format!("{name}.log")));
        node.start();
        node
    }
}

/// The node ends by itself, not well, and its last words say why.
async fn refuses(mut node: Node, code: i32, words: &[&str]) {
    let status = node.ends().await;
    let log = node.log();
    assert_eq!(status.code(), Some(code), "{log}");
    let last = log.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("quorun: "), "{log}");
    for word in words {
        assert!(last.contains(word), "{word:?} is not in {last:?}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

/// The process listens.
async fn answers(node: &mut Node) {
    eventually("the node answers", async || match node.ready().await {
        Err(reason) if !reason.starts_with('{') => Err(reason),
        _ => Ok(()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_wrong_is_one_line_and_exit_code_2() {
    let lone = Lone::new().await;
    let with = |change: &dyn Fn(&mut Settings)| {
        let mut settings = lone.settings(1);
        change(&mut settings);
        settings
    };
    let cases: [(Settings, &str); 7] = [
        (with(&|s| s.id = 7), "--id 7 is not in --peers"),
        (
            with(&|s| s.peers = "1=a:1,1=b:2".into()),
            "node 1 is there twice",
        ),
        (with(&|s| s.peers = "127.0.0.1:1".into()), "ID=HOST:PORT"),
        (with(&|s| s.slots = 5000), "--slots 5000 is out of range"),
        (
            with(&|s| s.args = vec!["--election-ms=50".into(), "--heartbeat-ms=40".into()]),
            "--election-ms 50",
        ),
        (
            with(&|s| s.args = vec!["--max-stack-kb=1".into()]),
            "--max-stack-kb 1 is out of range",
        ),
        (
            with(&|s| s.args = vec!["--languages=/nowhere.toml".into()]),
            "/nowhere.toml",
        ),
    ];
    for (settings, words) in cases {
        let node = lone.start(&words.replace(['/', ' '], "_"), settings);
        refuses(node, 2, &[words]).await;
    }
    let file = lone.folder.path().join("quorun.toml");
    std::fs::write(&file, "slotz = 3\n").expect("write");
    let mut settings = lone.settings(1);
    settings.args = vec![format!("--config={}", file.display())];
    let mut node = lone.start("file", settings);
    assert_eq!(node.ends().await.code(), Some(2), "{}", node.log());
    assert!(node.log().contains("slotz"), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_with_the_same_id_are_noticed() {
    let lone = Lone::new().await;
    let mut first = lone.start("first", lone.settings(1));
    answers(&mut first).await;

    let mut same_address = lone.settings(1);
    same_address.data = lone.folder.path().join("second");
    same_address.http = lone.first + 2;
    let peer = format!("127.0.0.1:{}", lone.first + 3);
    let node = lone.start("same-address", same_address.clone());
    refuses(node, 1, &["cannot listen for peers", &peer]).await;

    // It listens elsewhere, so only the answer under its own address gives it away.
    let mut hidden = same_address.clone();
    let elsewhere = ports::free(1, &[]);
    hidden.args = vec![format!("--peer=127.0.0.1:{elsewhere}")];
    let node = lone.start("hidden", hidden);
    refuses(node, 1, &["two nodes were started with --id 1", &peer]).await;

    let mut same_folder = lone.settings(1);
    same_folder.http = lone.first + 2;
    let node = lone.start("same-folder", same_folder);
    refuses(node, 1, &["in use by another process", "data1"]).await;

    assert!(first.ended().is_none(), "the first one goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_peer_list_is_told_so_and_ends() {
    let lone = Lone::new().await;
    let mut first = lone.start("first", lone.settings(1));
    let mut second = lone.start("second", lone.settings(2));
    for node in [&mut first, &mut second] {
        eventually("two of three are ready", async || node.ready().await).await;
    }
    let mut wrong = lone.settings(3);
    let third = format!("3=127.0.0.1:{}", lone.first + 5);
    let moved = format!("3=localhost:{}", lone.first + 5);
    wrong.peers = wrong.peers.replace(&third, &moved);
    wrong.data = lone.folder.path().join("wrong");
    let node = lone.start("wrong", wrong);
    refuses(
        node,
        1,
        &["the peers refuse this node", "the same --peers", &moved],
    )
    .await;
    let mut named = lone.settings(3);
    named.data = lone.folder.path().join("named");
    named.cluster = "another".to_owned();
    let node = lone.start("named", named);
    refuses(node, 1, &["the peers refuse this node", "--cluster"]).await;
    // The others are as they were, and the right one is welcome.
    let mut third = lone.start("third", lone.settings(3));
    for node in [&mut first, &mut second, &mut third] {
        eventually("all three are ready", async || node.ready().await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_of_another_cluster_or_node_is_refused() {
    let lone = Lone::new().await;
    let mut first = lone.start("first", lone.settings(1));
    answers(&mut first).await;
    first.stop().await;
    let files = |dir: &Path| {
        let text = std::fs::read_to_string(dir.join("identity.json"));
        text.expect("the folder says whose it is")
    };
    let before = files(first.data());

    let mut another_id = lone.settings(2);
    another_id.data = first.data().to_path_buf();
    let node = lone.start("another-id", another_id);
    refuses(node, 1, &["belongs to node 1", "--id 2", "data1"]).await;

    let mut another_name = lone.settings(1);
    another_name.cluster = "another".to_owned();
    let node = lone.start("another-name", another_name);
    refuses(node, 1, &["belongs to another cluster", "data1"]).await;

    let mut another_list = lone.settings(1);
    another_list.peers = another_list.peers.replace("127.0.0.1", "localhost");
    let node = lone.start("another-list", another_list);
    refuses(node, 1, &["belongs to another cluster", &lone.peers()]).await;

    assert_eq!(
        files(first.data()),
        before,
        "the refused ones wrote nothing"
    );
    first.start();
    answers(&mut first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_engine_a_node_starts_says_so_and_takes_no_work() {
    let nowhere = "unix:///nowhere/docker.sock";
    let plan = Plan::new(Executor::Docker)
        .nodes(3)
        .env("DOCKER_HOST", nowhere);
    let mut cluster = Cluster::start_unready(plan).await;
    let leader = cluster.leader().await;
    for client in cluster.clients() {
        assert_eq!(client.get("/healthz").await.status, 200);
        eventually("the node says that its engine is missing", async || {
            let ready = client.get("/readyz").await.expect(503);
            let reasons = ready["reasons"].to_string();
            if reasons.contains("engine cannot be reached")
                && ready["reasons"].as_array().map(Vec::len) == Some(1)
            {
                Ok(())
            } else {
                Err(reasons)
            }
        })
        .await;
    }
    let client = cluster.client(leader);
    let id = client
        .submit(&json!({ "language": "bash", "source": "echo later" }))
        .await;
    eventually("the cluster shows that nobody takes work", async || {
        let status = client.cluster().await;
        let nodes = status["nodes"].as_array().expect("nodes");
        let idle = nodes
            .iter()
            .all(|node| node["alive"] == true && node["ready"] == false && node["busy"] == 0);
        if idle && nodes.len() == 3 {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    let job = client.job(&id).await;
    assert_eq!(
        (&job["state"], &job["attempts"]),
        (&json!("queued"), &json!(0))
    );

    // What was accepted is done as soon as somebody can.
    let able = cluster
        .ids()
        .into_iter()
        .find(|id| *id != leader)
        .expect("another");
    cluster.node(able).stop().await;
    cluster.node(able).settings().executor = Executor::Process;
    cluster.node(able).restart().await;
    let done = cluster.client(leader).finished(&id).await;
    assert_eq!(done["stdout"], "later\n", "{done}");
    assert_eq!(done["node"], able);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_language_whose_image_is_missing_takes_no_jobs_and_the_node_stays() {
    let Some(_engine) = Engine::find("a_job_whose_image_is_missing").await else {
        return;
    };
    let standard = include_str!("../../sandbox/image/languages.toml");
    let image = "quorun/there-is-no-such-image:1";
    let missing = format!(
        "{standard}\n[[language]]\nname = \"nowhere\"\nimage = \"{image}\"\nsource = \"x\"\nrun = [\"true\"]\nexample = \"x\"\n"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("languages.toml");
    std::fs::write(&file, missing).expect("write");
    let plan = Plan::new(Executor::Docker)
        .nodes(1)
        .arg("--pull=never")
        .arg(format!("--languages={}", file.display()));
    let mut cluster = Cluster::start(plan).await;
    let client = cluster.any();
    // Until the node has looked for the image, a job is accepted and ends with its name as the reason.
    eventually("the language is not offered", async || {
        let job = json!({ "language": "nowhere", "source": "x" });
        let answer = client.post_json("/v1/jobs?wait=60", &job).await;
        if answer.status == 503 {
            return Err(answer.problem(503, "language-not-ready"));
        }
        if answer.status == 422 {
            let problem = answer.problem(422, "language-unavailable");
            assert_says(&problem, image);
            return Ok(());
        }
        let done = answer.expect(200);
        assert_eq!(done["verdict"], "internal_error", "{done}");
        assert!(done["message"].to_string().contains(image), "{done}");
        Err(done)
    })
    .await;
    let shown = client.get("/v1/languages/nowhere").await.expect(200);
    assert_eq!(shown["offered"], false, "{shown}");
    let reason = shown["nodes"][0]["reason"].to_string();
    assert!(reason.contains("quorun/there-is-no-such-image"), "{shown}");
    assert_eq!(client.get("/readyz").await.status, 200);
    let good = client
        .run(&json!({ "language": "bash", "source": "echo good", "limits": { "wall_ms": 60_000 } }))
        .await;
    assert_eq!(good["stdout"], "good\n", "{good}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_disconnects_does_not_take_its_job_along() {
    let cluster = Cluster::of_processes().await;
    for client in cluster.clients() {
        for path in ["/v1/jobs?wait=60", "/v1/jobs"] {
            let witness = Witness::new();
            let mut job = witness.gated("left");
            let label = format!("{}{path}", client.address());
            job["labels"] = json!([label]);
            let exchange = Exchange::post(client.address(), path, &job.to_string()).await;
            witness.began("left", 1).await;
            drop(exchange);
            witness.open_gate();
            let request = client
                .request(Method::GET, "/v1/jobs")
                .query(&[("label", &label)]);
            let list = client.send(request).await.expect(200);
            let id = list["jobs"][0]["id"].as_str().expect("the job").to_owned();
            let done = cluster.client(1).finished(&id).await;
            assert_eq!(done["verdict"], "accepted", "{done}");
            assert_eq!(witness.executions_of("left").len(), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_a_stream_does_not_take_its_job_along() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();
    let witness = Witness::new();
    let program = format!(
        "echo begun; while [ ! -e '{}' ]; do sleep 0.05; done; echo ended",
        witness.gate().display()
    );
    let mut exchange = Exchange::post(client.address(), "/lang/bash?stream=true", &program).await;
    let (_, head) = exchange.head().await;
    exchange.chunks_until("begun").await;
    drop(exchange);
    witness.open_gate();
    let done = client.finished(&head["quorun-job-id"]).await;
    assert_eq!(done["stdout"], "begun\nended\n", "{done}");
    assert_eq!(done["verdict"], "accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_no_job() {
    let cluster = one_node().await;
    let client = cluster.any();
    let request = format!(
        "POST /lang/bash HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000\r\n\r\necho half",
        client.address()
    );
    for _ in 0..10 {
        drop(Exchange::send(client.address(), request.as_bytes()).await);
    }
    unharmed(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_jobs_than_may_wait_are_turned_away_with_429() {
    let plan = Plan::new(Executor::Process).nodes(1).slots(1);
    let cluster = Cluster::start(plan.arg("--max-queue=2")).await;
    let client = cluster.any();
    let witness = Witness::new();
    let mut accepted = vec![client.submit(&witness.gated("runs")).await];
    witness.began("runs", 1).await;
    for n in 0..2 {
        accepted.push(client.submit(&witness.gated(&format!("waits-{n}"))).await);
    }
    let full = post(client, &witness.gated("too-many")).await;
    let problem = full.problem(429, "queue-full");
    assert_eq!(
        (&problem["value"], &problem["limit"]),
        (&json!(2), &json!(2))
    );
    let after = full.header("retry-after").parse::<u32>();
    assert!(after.is_ok_and(|seconds| seconds > 0), "{:?}", full.headers);
    witness.open_gate();
    for id in accepted {
        assert_eq!(client.finished(&id).await["verdict"], "accepted");
    }
    let done = client.run(&witness.gated("again")).await;
    assert_eq!(done["verdict"], "accepted");
    assert!(witness.executions_of("too-many").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_is_wrong_says_what_would_be_right() {
    let run = async |args: &[&str]| {
        let mut command = quorun_tests::program::command();
        command.args(args).stdin(Stdio::null());
        let output = command.output().expect("run quorun");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), stderr)
    };
    let (code, said) = run(&["dev", "--nodes", "9"]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--nodes 9 is out of range; 1 to 5"), "{said}");
    let (code, said) = run(&["serve", "--executor", "magic"]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("docker") && said.contains("process"),
        "{said}"
    );
    let (code, said) = run(&["serve"]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--id is missing"), "{said}");
    let lone = ["serve", "--id", "1", "--peers", "1=127.0.0.1:1"];
    let (code, said) = run(&[&lone[..], &["--http", "0.0.0.0:0"]].concat()).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--open"), "{said}");
    let (code, said) = run(&[&lone[..], &["--cors-origin", "*"]].concat()).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("needs --tokens"), "{said}");
    let (code, said) = run(&["token", "new", "--name", "a b", "--role", "read"]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("letters, digits"), "{said}");
    let (code, said) = run(&["health", "--url", "localhost"]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("http://127.0.0.1:8080"), "{said}");
}
