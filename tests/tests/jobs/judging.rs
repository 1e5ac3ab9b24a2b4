//! Test cases, checkers, scores, and files that come back, through HTTP.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorun_tests::events::Events;
use quorun_tests::{Client, Cluster, Executor, Plan};
use serde_json::{Value, json};

use super::patient;

/// Doubles what it reads.
const DOUBLE: &str = "print(int(input()) * 2)";

async fn one_node() -> Cluster {
    Cluster::start(Plan::new(Executor::Process).nodes(1)).await
}

fn judged(source: &str, tests: Value) -> Value {
    let mut job = patient(json!({ "language": "python", "source": source }));
    job["tests"] = tests;
    job
}

fn verdicts(job: &Value) -> Vec<&str> {
    job["tests"]
        .as_array()
        .expect("tests")
        .iter()
        .map(|test| test["verdict"].as_str().unwrap_or("none"))
        .collect()
}

/// Runs a job and gives what is shown with everything that was submitted.
async fn with_tests(client: &Client, id: &str) -> Value {
    client
        .get(&format!("/v1/jobs/{id}?include=tests"))
        .await
        .expect(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_are_judged_and_scored_by_their_weights() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();
    let tests = json!([
        { "name": "small", "stdin": "1\n", "expected": "2" },
        { "stdin": "2\n", "expected": "5", "weight": 2 },
        { "stdin": "nonsense", "expected": "1", "weight": 0 },
        { "stdin_base64": BASE64.encode("4\n"), "expected_base64": BASE64.encode("8\n"), "weight": 3 },
        { "stdin": "5\n" },
    ]);
    let id = client.submit(&judged(DOUBLE, tests.clone())).await;
    for client in cluster.clients() {
        let job = client.finished(&id).await;
        assert_eq!(job["verdict"], "wrong_answer", "{job}");
        assert_eq!(job["message"], "test 2 of 5");
        assert_eq!(
            verdicts(&job),
            [
                "accepted",
                "wrong_answer",
                "runtime_error",
                "accepted",
                "accepted"
            ]
        );
        assert_eq!(
            (&job["tests_passed"], &job["tests_total"]),
            (&json!(3), &json!(5))
        );
        assert_eq!(job["score"], 0.714_285, "five of seven, rounded down");
        let first = &job["tests"][0];
        assert_eq!(
            (&first["name"], &first["stdout"]),
            (&json!("small"), &json!("2\n"))
        );
        assert_eq!(
            (&first["score"], &first["exit_code"]),
            (&json!(1.0), &json!(0))
        );
        assert_eq!(first["message"], Value::Null);
        assert_eq!(job["tests"][2]["exit_code"], 1);
        assert_eq!(job["tests"][2]["score"], 0.0);
        let trace = job["tests"][2]["stderr"].as_str().expect("stderr");
        assert!(trace.contains("ValueError"), "{trace}");
        assert!(job.to_string().find("expected").is_none(), "{job}");
    }
    // In the list, too.
    let list = client.get("/v1/jobs").await.expect(200);
    assert_eq!(list["jobs"][0]["tests_passed"], 3, "{list}");
    assert!(list["jobs"][0].get("tests").is_none());

    let mut stopping = judged(DOUBLE, tests);
    stopping["stop_on_failure"] = true.into();
    let job = client.run(&stopping).await;
    assert_eq!(verdicts(&job), ["accepted", "wrong_answer"]);
    assert_eq!(
        (&job["tests_passed"], &job["tests_total"], &job["score"]),
        (&json!(1), &json!(5), &json!(0.142_857))
    );
}

/// The test cases of another run of the same job, with the figures of this one.
fn plain_but_figures(job: &Value, other: &Value) -> Value {
    let mut tests = other["tests"].clone();
    for (n, test) in tests.as_array_mut().into_iter().flatten().enumerate() {
        for name in ["cpu_ms", "wall_ms", "memory_kb"] {
            test[name] = job["tests"][n][name].clone();
        }
    }
    tests
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_expected_and_what_is_hidden_come_back_only_when_they_are_asked_for() {
    let cluster = one_node().await;
    let client = cluster.any();
    let tests = json!([
        { "stdin": "1\n", "expected": "the secret", "hidden": true, "name": "first" },
        { "stdin": "2\n", "expected": "4", "limits": { "wall_ms": 59_000 } },
        { "stdin_base64": BASE64.encode([b'3', b'\n', 0xff]), "hidden": true },
    ]);
    let mut job = judged("print('printed', input())", tests);
    job["checker"] = json!({ "type": "program", "language": "bash", "source":
        "echo said $(cat input | tr -d '\\377'); grep -q secret expected && exit 1; exit 0" });
    let id = client.submit(&job).await;
    let plain = client.finished(&id).await;
    let text = plain.to_string();
    assert!(
        !text.contains("secret") && !text.contains("expected"),
        "{text}"
    );
    for (n, hidden) in [(0, true), (1, false), (2, true)] {
        let test = &plain["tests"][n];
        assert_eq!(test["hidden"], hidden);
        for name in ["stdout", "stderr", "truncated"] {
            assert_eq!(test.get(name).is_none(), hidden, "{name}: {test}");
        }
        assert_eq!(test["message"].is_null(), hidden, "{test}");
    }
    assert_eq!(plain["verdict"], "wrong_answer", "{plain}");
    assert_eq!(plain["message"], "test 1 of 3");

    // Nor do events show it, whether they come live or afterwards.
    let live = client.submit(&job).await;
    for id in [&live, &id] {
        let mut events = Events::open(client, id, None).await;
        let mut told = Vec::new();
        while let Some(event) = events.next().await {
            let text = event.data.to_string();
            assert!(!text.contains("secret"), "{text}");
            if event.name == "test" {
                told.push(event.data);
            } else if event.name == "finished" {
                assert_eq!(event.data["tests"], plain_but_figures(&event.data, &plain));
            }
        }
        assert_eq!(told.len(), 3, "{told:?}");
        for (n, test) in told.iter().enumerate() {
            let whole = &plain["tests"][n];
            for name in ["name", "verdict", "score", "hidden", "message"] {
                assert_eq!(test[name], whole[name], "{name}: {test}");
            }
            assert_eq!((&test["index"], &test["attempt"]), (&json!(n), &json!(1)));
            assert!(test.get("stdout").is_none(), "{test}");
        }
    }

    let full = with_tests(client, &id).await;
    let first = &full["tests"][0];
    assert_eq!(
        (&first["stdin"], &first["expected"]),
        (&json!("1\n"), &json!("the secret"))
    );
    assert_eq!(
        (&first["stdout"], &first["message"]),
        (&json!("printed 1\n"), &json!("said 1"))
    );
    assert_eq!(
        full["tests"][1]["limits"],
        json!({ "cpu_ms": null, "wall_ms": 59_000 })
    );
    assert_eq!(full["tests"][1]["weight"], 1);
    assert_eq!(full["tests"][2]["expected"], Value::Null);
    assert_eq!(
        full["tests"][2]["stdin_base64"],
        BASE64.encode([b'3', b'\n', 0xff])
    );
    // The rest is the same.
    assert_eq!(
        (&full["verdict"], &full["score"]),
        (&plain["verdict"], &plain["score"])
    );

    // Before it has run, and for cases that were not run.
    let mut job = judged(DOUBLE, json!([{ "stdin": "x" }, { "stdin": "2" }]));
    job["stop_on_failure"] = true.into();
    let id = client.submit(&job).await;
    client.finished(&id).await;
    let full = with_tests(client, &id).await;
    assert_eq!(verdicts(&full), ["runtime_error", "none"]);
    assert_eq!(full["tests"][1]["stdin"], "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_checker_compares_in_its_way() {
    let cluster = one_node().await;
    let client = cluster.any();
    let program = json!({ "type": "program", "language": "python", "files": [
        { "name": "check.py", "content": "import helper, sys\nsys.exit(helper.code(sys.argv))" },
        { "name": "helper.py", "content": "def code(a):\n  return 0 if open(a[2]).read().lower() == open(a[3]).read() else 43" },
    ], "entrypoint": "check.py", "limits": { "cpu_ms": 20_000, "wall_ms": 30_000 } });
    let floats = json!({ "type": "floats", "absolute": 0.01 });
    for (checker, expected, verdicts_of) in [
        (
            json!("exact"),
            ["A 1.0\n", "A 1.0"],
            ["accepted", "wrong_answer"],
        ),
        (
            json!("lines"),
            ["A 1.0  \n\n", "A  1.0"],
            ["accepted", "wrong_answer"],
        ),
        (
            Value::Null,
            ["A 1.0  \n\n", "A  1.0"],
            ["accepted", "wrong_answer"],
        ),
        (
            json!({ "type": "tokens" }),
            ["A\n1.0", "A 1"],
            ["accepted", "wrong_answer"],
        ),
        (floats, ["A 1.001", "A 1.1"], ["accepted", "wrong_answer"]),
        (
            json!("floats"),
            ["A 1", "a 1"],
            ["accepted", "wrong_answer"],
        ),
        (program, ["a 1.0\n", "a 1\n"], ["accepted", "wrong_answer"]),
    ] {
        let tests = expected.map(|expected| json!({ "expected": expected }));
        let mut job = judged("print('A 1.0')", json!(tests));
        if !checker.is_null() {
            job["checker"] = checker.clone();
        }
        let job = client.run(&job).await;
        assert_eq!(verdicts(&job), verdicts_of, "{checker}: {job}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_base64_everywhere_when_that_is_asked_for() {
    let cluster = one_node().await;
    let client = cluster.any();
    let source = "#include <stdio.h>\n#warning said\n\
        int main(void) { fputs(\"o\\xff\", stdout); fputs(\"err\", stderr);\
        FILE *f = fopen(\"f\", \"w\"); fputs(\"\\xff\", f); fclose(f);\
        f = fopen(\"t\", \"w\"); fputs(\"text\", f); fclose(f); return 0; }\n";
    let mut job = patient(json!({ "language": "c", "source": source }));
    job["outputs"] = json!(["f", "t", "none", "../x"]);
    let refused = client.post_json("/v1/jobs", &job).await;
    assert_eq!(
        refused.problem(422, "invalid-request")["field"],
        "outputs[3]"
    );
    job["outputs"] = json!(["f", "t", "none"]);
    let answer = client
        .post_json("/v1/jobs?wait=60&encoding=base64", &job)
        .await;
    let bytes = answer.expect(200);
    assert_eq!(bytes["verdict"], "accepted", "{bytes}");
    assert_eq!(bytes["stdout_base64"], BASE64.encode(b"o\xff"));
    assert_eq!(bytes["stderr_base64"], BASE64.encode("err"));
    let warned = bytes["compile"]["stderr_base64"].as_str().expect("base64");
    let warned = String::from_utf8(BASE64.decode(warned).expect("base64")).expect("text");
    assert!(warned.contains("said"), "{warned}");
    for name in ["stdout", "stderr"] {
        assert!(bytes.get(name).is_none() && bytes["compile"].get(name).is_none());
    }
    let file = |job: &Value, n: usize| job["files"][n].clone();
    assert_eq!(
        file(&bytes, 1),
        json!({ "name": "t", "missing": null, "size": 4, "truncated": false, "content_base64": BASE64.encode("text") })
    );

    let id = bytes["id"].as_str().expect("an id");
    let text = client.job(id).await;
    assert_eq!(text["stdout_base64"], BASE64.encode(b"o\xff"));
    assert_eq!(
        (&text["stdout"], &text["stderr"]),
        (&json!("o\u{fffd}"), &json!("err"))
    );
    assert_eq!(
        file(&text, 0),
        json!({ "name": "f", "missing": null, "size": 1, "truncated": false, "content_base64": BASE64.encode(b"\xff") })
    );
    assert_eq!(file(&text, 1)["content"], "text");
    let missing = file(&text, 2);
    assert!(
        missing["missing"]
            .as_str()
            .expect("why")
            .contains("no such file")
    );
    assert!(missing.get("size").is_none());

    let tests = json!([{ "stdin": "2", "expected": "4" }]);
    let id = client.submit(&judged(DOUBLE, tests)).await;
    client.finished(&id).await;
    let path = format!("/v1/jobs/{id}?include=tests&encoding=base64");
    let job = client.get(&path).await.expect(200);
    let test = &job["tests"][0];
    assert_eq!(test["stdout_base64"], BASE64.encode("4\n"));
    assert_eq!(test["stdin_base64"], BASE64.encode("2"));
    assert_eq!(test["expected_base64"], BASE64.encode("4"));
    assert!(
        test.get("stdout").is_none() && test.get("expected").is_none(),
        "{test}"
    );
    for (query, field) in [("encoding=hex", "encoding"), ("include=secrets", "include")] {
        let answer = client.get(&format!("/v1/jobs/{id}?{query}")).await;
        assert_eq!(answer.problem(422, "invalid-request")["field"], field);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_tests_checkers_and_outputs_is_said() {
    let plan = Plan::new(Executor::Process).nodes(1);
    let plan = plan
        .arg("--max-stdin-kb=2")
        .arg("--max-tests-kb=3")
        .arg("--max-wall-ms=10000");
    let cluster = Cluster::start(plan).await;
    let client = cluster.any();
    let with = |fields: Value| {
        let mut job = json!({ "language": "python", "source": "1" });
        job.as_object_mut()
            .expect("an object")
            .extend(fields.as_object().expect("fields").clone());
        job
    };
    let test = |fields: Value| with(json!({ "tests": [{}, fields] }));
    let checker = |checker: Value| with(json!({ "tests": [{}], "checker": checker }));
    let program = |fields: Value| {
        let mut object = json!({ "type": "program", "language": "bash", "source": "exit 0" });
        for (name, value) in fields.as_object().expect("fields") {
            match value {
                Value::Null => {
                    object.as_object_mut().expect("an object").remove(name);
                }
                value => object[name] = value.clone(),
            }
        }
        checker(object)
    };
    let large = "x".repeat(2049);
    let half = "x".repeat(2000);
    let half_of_source = "x".repeat(33 << 10);
    for (job, status, kind, field) in [
        (with(json!({ "tests": 3 })), 422, "invalid-request", "tests"),
        (
            with(json!({ "tests": [] })),
            422,
            "invalid-request",
            "tests",
        ),
        (
            with(json!({ "tests": [3] })),
            422,
            "invalid-request",
            "tests[0]",
        ),
        (
            with(json!({ "tests": vec![json!({}); 1001] })),
            422,
            "invalid-request",
            "tests",
        ),
        (
            with(json!({ "tests": vec![json!({}); 1000] })),
            422,
            "invalid-request",
            "tests",
        ), // too long in all
        (
            with(json!({ "tests": [{ "weight": 0 }] })),
            422,
            "invalid-request",
            "tests",
        ),
        (
            with(json!({ "tests": [{}], "stdin": "" })),
            422,
            "invalid-request",
            "stdin",
        ),
        (
            with(json!({ "tests": [{}], "stdin_base64": "" })),
            422,
            "invalid-request",
            "stdin",
        ),
        (
            with(json!({ "stop_on_failure": true })),
            422,
            "invalid-request",
            "stop_on_failure",
        ),
        (
            with(json!({ "tests": [{}], "stop_on_failure": "yes" })),
            422,
            "invalid-request",
            "stop_on_failure",
        ),
        (
            with(json!({ "checker": "lines" })),
            422,
            "invalid-request",
            "checker",
        ),
        (
            with(json!({ "tests": [{}], "outputs": ["a"] })),
            422,
            "invalid-request",
            "outputs",
        ),
        (
            test(json!({ "name": "" })),
            422,
            "invalid-request",
            "tests[1].name",
        ),
        (
            test(json!({ "name": "n".repeat(129) })),
            422,
            "invalid-request",
            "tests[1].name",
        ),
        (
            test(json!({ "name": "a\nb" })),
            422,
            "invalid-request",
            "tests[1].name",
        ),
        (
            test(json!({ "name": 7 })),
            422,
            "invalid-request",
            "tests[1].name",
        ),
        (
            test(json!({ "stdin": "a", "stdin_base64": "" })),
            422,
            "invalid-request",
            "tests[1].stdin",
        ),
        (
            test(json!({ "stdin_base64": "?" })),
            422,
            "invalid-request",
            "tests[1].stdin_base64",
        ),
        (
            test(json!({ "expected_base64": "?" })),
            422,
            "invalid-request",
            "tests[1].expected_base64",
        ),
        (
            test(json!({ "expected": "a", "expected_base64": "" })),
            422,
            "invalid-request",
            "tests[1].expected",
        ),
        (
            test(json!({ "expected": 4 })),
            422,
            "invalid-request",
            "tests[1].expected",
        ),
        (
            test(json!({ "weight": -1 })),
            422,
            "invalid-request",
            "tests[1].weight",
        ),
        (
            test(json!({ "weight": 0.5 })),
            422,
            "invalid-request",
            "tests[1].weight",
        ),
        (
            test(json!({ "weight": 1_000_001 })),
            422,
            "invalid-request",
            "tests[1].weight",
        ),
        (
            test(json!({ "hidden": "no" })),
            422,
            "invalid-request",
            "tests[1].hidden",
        ),
        (
            test(json!({ "hiden": true })),
            422,
            "invalid-request",
            "tests[1].hiden",
        ),
        (
            test(json!({ "limits": { "cpu_ms": 0 } })),
            422,
            "invalid-request",
            "tests[1].limits.cpu_ms",
        ),
        (
            test(json!({ "limits": { "wall_ms": 10_001 } })),
            422,
            "invalid-request",
            "tests[1].limits.wall_ms",
        ),
        (
            test(json!({ "limits": { "memory_kb": 1 } })),
            422,
            "invalid-request",
            "tests[1].limits.memory_kb",
        ),
        (
            test(json!({ "stdin": large })),
            413,
            "too-large",
            "tests[1].stdin",
        ),
        (
            with(json!({ "tests": [{ "stdin": half }, { "expected": half }] })),
            413,
            "too-large",
            "tests",
        ),
        (checker(json!("fuzzy")), 422, "invalid-request", "checker"),
        (
            checker(json!("program")),
            422,
            "invalid-request",
            "checker.language",
        ),
        (checker(json!(7)), 422, "invalid-request", "checker"),
        (checker(json!(["lines"])), 422, "invalid-request", "checker"),
        (checker(json!({})), 422, "invalid-request", "checker.type"),
        (
            checker(json!({ "type": "" })),
            422,
            "invalid-request",
            "checker.type",
        ),
        (
            checker(json!({ "type": "lines", "absolute": 1 })),
            422,
            "invalid-request",
            "checker.absolute",
        ),
        (
            checker(json!({ "type": "tokens", "source": "x" })),
            422,
            "invalid-request",
            "checker.source",
        ),
        (
            checker(json!({ "type": "floats", "absolute": -1 })),
            422,
            "invalid-request",
            "checker.absolute",
        ),
        (
            checker(json!({ "type": "floats", "relative": "1" })),
            422,
            "invalid-request",
            "checker.relative",
        ),
        (
            checker(json!({ "type": "floats", "tolerance": 1 })),
            422,
            "invalid-request",
            "checker.tolerance",
        ),
        (
            program(json!({ "language": "cobol" })),
            404,
            "unknown-language",
            "checker.language",
        ),
        (
            program(json!({ "source": null })),
            422,
            "invalid-request",
            "checker.source",
        ),
        (
            program(json!({ "source": "" })),
            400,
            "empty-source",
            "checker.source",
        ),
        (
            program(json!({ "files": [] })),
            422,
            "invalid-request",
            "checker.source",
        ),
        (
            program(json!({ "source": "x".repeat(65 << 10) })),
            413,
            "too-large",
            "checker.source",
        ),
        (
            program(json!({ "source": null, "files": [
                { "name": "a", "content": half_of_source },
                { "name": "b", "content": half_of_source },
            ] })),
            413,
            "too-large",
            "checker.files",
        ),
        (
            program(json!({ "entrypoint": "b" })),
            422,
            "invalid-request",
            "checker.entrypoint",
        ),
        (
            program(json!({ "limits": { "cpu_ms": 1_u64 << 40 } })),
            422,
            "invalid-request",
            "checker.limits.cpu_ms",
        ),
        (
            program(json!({ "limits": { "cpu": 1 } })),
            422,
            "invalid-request",
            "checker.limits.cpu",
        ),
        (
            program(
                json!({ "source": null, "files": [{ "name": "a", "content": "1" }, { "name": "expected", "content": "" }] }),
            ),
            422,
            "invalid-request",
            "checker.files[1].name",
        ),
        (
            program(json!({ "source": null, "files": [{ "name": "../a", "content": "1" }] })),
            422,
            "invalid-request",
            "checker.files[0].name",
        ),
        (
            with(json!({ "outputs": "a" })),
            422,
            "invalid-request",
            "outputs",
        ),
        (
            with(json!({ "outputs": [""] })),
            422,
            "invalid-request",
            "outputs[0]",
        ),
        (
            with(json!({ "outputs": ["/etc/passwd"] })),
            422,
            "invalid-request",
            "outputs[0]",
        ),
        (
            with(json!({ "outputs": ["a", "a"] })),
            422,
            "invalid-request",
            "outputs[1]",
        ),
        (
            with(json!({ "outputs": ["a\0"] })),
            422,
            "invalid-request",
            "outputs[0]",
        ),
        (
            with(json!({ "outputs": (0..17).map(|n| n.to_string()).collect::<Vec<_>>() })),
            422,
            "invalid-request",
            "outputs",
        ),
    ] {
        let problem = client
            .post_json("/v1/jobs", &job)
            .await
            .problem(status, kind);
        let shown: String = job.to_string().chars().take(200).collect();
        assert_eq!(problem["field"], field, "{shown}: {problem}");
    }
    let list = client.get("/v1/jobs").await.expect(200);
    assert_eq!(list["jobs"], json!([]), "nothing was accepted");
    let sound = json!([{ "expected": "1", "limits": { "wall_ms": 9_000 } }]);
    let job = client
        .run(&with(json!({ "source": "print(1)", "tests": sound })))
        .await;
    assert_eq!(job["tests_passed"], 1, "{job}");
}

/// How a submission of the contest is meant to end, and at which test.
#[derive(Clone, Copy, Debug)]
enum Meant {
    Accepted,
    Wrong(usize),
    Crash(usize),
    Slow(usize),
    NotCompiled,
}

impl Meant {
    const fn of(n: usize) -> Self {
        let at = n * 7 % TESTS;
        match n % 5 {
            0 => Self::Accepted,
            1 => Self::Wrong(at),
            2 => Self::Crash(at),
            3 => Self::Slow(at),
            _ => Self::NotCompiled,
        }
    }

    /// A program that adds, but for one case.
    fn source(self, n: usize) -> String {
        let odd = match self {
            Self::Accepted => String::new(),
            Self::Wrong(at) => format!("if (t == {at}) sum++;"),
            Self::Crash(at) => format!("if (t == {at}) abort();"),
            Self::Slow(at) => format!("if (t == {at}) for (;;);"),
            Self::NotCompiled => "if (t == ) sum++;".to_owned(),
        };
        format!(
            "#include <stdio.h>\n#include <stdlib.h>\n/* {n} */\n\
             int main(void) {{ long t, a, b; if (scanf(\"%ld %ld %ld\", &t, &a, &b) != 3) return 1;\
             long sum = a + b; {odd} printf(\"%ld\\n\", sum); return 0; }}\n"
        )
    }

    fn verdicts(self) -> Vec<&'static str> {
        let (at, odd) = match self {
            Self::Accepted => return vec!["accepted"; TESTS],
            Self::NotCompiled => return Vec::new(),
            Self::Wrong(at) => (at, "wrong_answer"),
            Self::Crash(at) => (at, "runtime_error"),
            Self::Slow(at) => (at, "time_limit"),
        };
        let mut verdicts = vec!["accepted"; TESTS];
        verdicts[at] = odd;
        verdicts
    }
}

/// Test cases of the contest's problem.
const TESTS: usize = 20;

/// A contest: many submissions at one time, each judged on all tests. `QUORUN_CONTEST=200` is the full one.
#[tokio::test(flavor = "multi_thread")]
async fn a_contest_is_judged_right() {
    let submissions: usize = std::env::var("QUORUN_CONTEST")
        .ok()
        .and_then(|number| number.parse().ok())
        .unwrap_or(20);
    let cluster = Cluster::of_processes().await;
    let tests: Vec<_> = (0..TESTS)
        .map(|t| json!({ "stdin": format!("{t} {} {}\n", t * 1000, t * t), "expected": (t * 1000 + t * t).to_string(), "hidden": t > 2 }))
        .collect();
    let began = std::time::Instant::now();
    let mut ids = Vec::new();
    for n in 0..submissions {
        let mut job = json!({ "language": "c", "source": Meant::of(n).source(n), "tests": tests });
        // Only who is meant to be slow runs into it, on a machine that is busy, too.
        let slow = matches!(Meant::of(n), Meant::Slow(_));
        job["limits"] = json!({ "cpu_ms": if slow { 500 } else { 10_000 }, "wall_ms": 60_000 });
        let client = cluster.clients()[n % 3];
        ids.push(client.submit(&job).await);
    }
    for (n, id) in ids.iter().enumerate() {
        let job = cluster.any().finished(id).await;
        let meant = Meant::of(n);
        let wanted = meant.verdicts();
        let passed = wanted
            .iter()
            .filter(|verdict| **verdict == "accepted")
            .count();
        assert_eq!(verdicts(&job), wanted, "{meant:?}: {job}");
        assert_eq!(job["tests_passed"], passed, "{meant:?}: {job}");
        assert_eq!(job["tests_total"], TESTS);
        let first = wanted.iter().find(|verdict| **verdict != "accepted");
        let verdict = match meant {
            Meant::NotCompiled => "compile_error",
            _ => first.copied().unwrap_or("accepted"),
        };
        assert_eq!(job["verdict"], verdict, "{meant:?}: {job}");
        #[allow(clippy::cast_precision_loss)] // small numbers
        let score = passed as f64 / TESTS as f64;
        assert_eq!(job["score"], score, "{meant:?}: {job}");
    }
    println!(
        "{submissions} submissions with {TESTS} tests each in {:.1} s",
        began.elapsed().as_secs_f64()
    );
}

/// A node is chosen for the language of the program that is judged: one that does not have that of the checker gives the
/// job back, and the other one takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_checker_runs_where_its_language_is() {
    let mut cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let standard = include_str!("../../../sandbox/image/languages.toml");
    let more = format!(
        "{standard}\n[[language]]\nname = \"judge\"\nsource = \"judge.sh\"\nrun = [\"bash\", \"{{source}}\"]\nexample = \"true\"\n"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("languages.toml");
    std::fs::write(&file, more).expect("write");
    let mut settings = cluster.joining();
    settings
        .args
        .push(format!("--languages={}", file.display()));
    let able = cluster.start_joining(settings).await;
    cluster.all_work().await;
    let client = cluster.client(able);
    let mut elsewhere = 0;
    for _ in 0..6 {
        let done = client
            .run(&json!({
                "language": "bash", "source": "echo 1", "tests": [{ "expected": "2" }],
                "checker": { "type": "program", "language": "judge", "source": "exit 0" },
            }))
            .await;
        assert_eq!(done["verdict"], "accepted", "{done}");
        assert_eq!(done["node"], able, "{done}");
        elsewhere += u64::from(done["attempts"] != 1);
    }
    assert!(elsewhere > 0, "none was given to the other node first");
}
