//! What clients do with jobs: `/lang`, `/v1/jobs`, and the command line.

#[path = "jobs/attach.rs"]
mod attach;
#[path = "jobs/cli.rs"]
mod cli;
#[path = "jobs/cli_ends.rs"]
mod cli_ends;
#[path = "jobs/cli_input.rs"]
mod cli_input;
#[path = "jobs/live.rs"]
mod live;

use std::io::Write;
use std::process::{Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorun_tests::raw::Exchange;
use quorun_tests::{Client, Cluster, Executor, Plan, Witness, eventually, program};
use reqwest::Method;
use serde_json::{Value, json};

#[path = "jobs/callbacks.rs"]
mod callbacks;
#[path = "jobs/judging.rs"]
mod judging;
#[path = "jobs/many.rs"]
mod many;
#[path = "jobs/openapi.rs"]
mod openapi;
#[path = "jobs/walk.rs"]
mod walk;

/// Prints, waits until the file that it reads the name of is there, and prints again.
const TWO_PARTS: &str = "
import os, sys, time
gate = sys.stdin.readline().strip()
print('first', flush=True)
while not os.path.exists(gate):
    time.sleep(0.01)
print('second')
sys.exit(3)
";

fn job(language: &str, source: &str) -> Value {
    json!({ "language": language, "source": source })
}

/// A job that may take as long as a busy machine needs.
fn patient(mut job: Value) -> Value {
    job["limits"]["cpu_ms"] = 20_000.into();
    job["limits"]["wall_ms"] = 60_000.into();
    job
}

async fn keyed(client: &Client, key: &str, job: &Value) -> quorun_tests::Answer {
    let request = client
        .request(Method::POST, "/v1/jobs")
        .header("Idempotency-Key", key)
        .json(job);
    client.send(request).await
}

fn ids(list: &Value) -> Vec<String> {
    list["jobs"]
        .as_array()
        .expect("jobs")
        .iter()
        .map(|job| job["id"].as_str().expect("an id").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lang_answers_with_stdout_and_the_figures() {
    let cluster = Cluster::of_processes().await;
    for client in cluster.clients() {
        let answer = client.lang("python", "print(sum(range(10)))").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.text(), "45\n");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(answer.header("quorun-verdict"), "accepted");
        assert_eq!(answer.header("quorun-exit-code"), "0");
        for name in ["cpu-ms", "wall-ms", "memory-kb", "node"] {
            let value = answer.header(&format!("quorun-{name}")).to_owned();
            assert!(value.parse::<u64>().is_ok(), "{name}: {value:?}");
        }
        assert_ne!(answer.header("quorun-memory-kb"), "0");
        let job = client.job(answer.header("quorun-job-id")).await;
        assert_eq!(job["stdout"], "45\n");
        assert_eq!(job["language"], "python");
        assert_eq!(
            job["node"].to_string(),
            answer.header("quorun-node"),
            "{job}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lang_takes_aliases_stdin_and_a_key() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();
    let program = "print(input()[::-1])";
    let request = client
        .request(Method::POST, "/lang/PY?stdin=abc%20def")
        .header("Idempotency-Key", "lang")
        .body(program);
    let first = client.send(request).await;
    assert_eq!(first.text(), "fed cba\n");
    let other = cluster.client(3);
    let request = other
        .request(Method::POST, "/lang/python?stdin=abc%20def")
        .header("Idempotency-Key", "lang")
        .body(program);
    let again = other.send(request).await;
    assert_eq!(again.text(), "fed cba\n");
    assert_eq!(
        again.header("quorun-job-id"),
        first.header("quorun-job-id"),
        "the alias is the same language"
    );
    // What is decided for all jobs may have changed since: it is the same request.
    let settings = json!({ "retention_s": 3600 });
    let request = client.request(Method::PUT, "/v1/cluster/settings");
    client.send(request.json(&settings)).await.expect(200);
    let request = other
        .request(Method::POST, "/v1/jobs?wait=60")
        .header("Idempotency-Key", "lang")
        .json(&json!({ "source": program, "language": "python", "stdin": "abc def" }));
    let again = other.send(request).await.expect(200);
    assert_eq!(again["id"], first.header("quorun-job-id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lang_shows_what_there_is_when_stdout_is_empty() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();

    let answer = client.lang("bash", "echo oops >&2; exit 7").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), "oops\n");
    assert_eq!(answer.header("quorun-verdict"), "runtime_error");
    assert_eq!(answer.header("quorun-exit-code"), "7");

    let answer = client.lang("bash", "echo out; echo err >&2").await;
    assert_eq!(answer.text(), "out\n", "stderr only when stdout is empty");

    let answer = client.lang("c", "int main(void) { return missing; }").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("quorun-verdict"), "compile_error");
    assert!(answer.text().contains("missing"), "{}", answer.text());

    let answer = client.lang("bash", "true").await;
    assert_eq!(answer.text(), "", "nothing was printed, nothing went wrong");
    assert_eq!(answer.header("quorun-verdict"), "accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_live_through_every_node_and_ends_with_trailers() {
    let cluster = Cluster::of_processes().await;
    for client in cluster.clients() {
        let witness = Witness::new();
        let path = format!(
            "/lang/python?stream=true&stdin={}%0A",
            witness.gate().display()
        );
        let mut exchange = Exchange::post(client.address(), &path, TWO_PARTS).await;
        let (status, head) = exchange.head().await;
        assert_eq!(status, 200);
        assert!(head.contains_key("quorun-job-id"), "{head:?}");
        assert!(!head.contains_key("quorun-verdict"), "{head:?}");
        // The program cannot end before the gate is open, and that happens after its first words have arrived.
        assert_eq!(exchange.chunks_until("first\n").await, "first\n");
        witness.open_gate();
        let (rest, trailers) = exchange.rest().await;
        assert_eq!(rest, "second\n");
        assert_eq!(trailers["quorun-verdict"], "runtime_error", "{trailers:?}");
        assert_eq!(trailers["quorun-exit-code"], "3");
        for name in ["cpu-ms", "wall-ms", "memory-kb", "node"] {
            let value = &trailers[&format!("quorun-{name}")];
            assert!(value.parse::<u64>().is_ok(), "{name}: {value:?}");
        }
        assert!(!trailers.contains_key("quorun-error"), "{trailers:?}");
        let job = client.job(&head["quorun-job-id"]).await;
        assert_eq!(job["stdout"], "first\nsecond\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_a_job_from_its_beginning_to_its_end() {
    let cluster = Cluster::of_processes().await;
    for client in cluster.clients() {
        let witness = Witness::new();
        let mut job = patient(job("python", TWO_PARTS));
        job["stdin"] = format!("{}\n", witness.gate().display()).into();
        let id = client.submit(&job).await;
        let path = format!("/v1/jobs/{id}/events");
        let mut exchange = Exchange::get(client.address(), &path).await;
        let (status, head) = exchange.head().await;
        assert_eq!(status, 200);
        assert_eq!(head["content-type"], "text/event-stream");
        let mut text = exchange.chunks_until("first").await;
        witness.open_gate();
        text.push_str(&exchange.rest().await.0);

        let events: Vec<(String, Value)> = text
            .split("\n\n")
            .filter_map(|block| {
                let field = |name: &str| {
                    block
                        .lines()
                        .find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
                };
                let data = serde_json::from_str(field("data")?).expect("an event's data");
                Some((field("event")?.to_owned(), data))
            })
            .collect();
        let (name, finished) = events.last().expect("an event");
        assert_eq!(name, "finished", "{text}");
        assert_eq!(finished, &client.job(&id).await);
        assert_eq!(finished["stdout"], "first\nsecond\n");
        let running = events
            .iter()
            .find(|(name, data)| name == "state" && data["state"] == "running")
            .unwrap_or_else(|| panic!("{text}"));
        assert_eq!(running.1["attempt"], 1);
        assert_eq!(running.1["node"], finished["node"]);
        let mut printed = String::new();
        for (_, data) in events.iter().filter(|(name, _)| name == "output") {
            assert_eq!(data["stream"], "stdout");
            assert_eq!(data["attempt"], 1);
            assert_eq!(data["offset"], printed.len(), "{text}");
            printed.push_str(data["text"].as_str().expect("text"));
        }
        assert_eq!(printed, "first\nsecond\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_on_every_node_at_once() {
    let cluster = Cluster::of_processes().await;
    let clients = cluster.clients();
    for round in 0..30 {
        let node = clients[round % clients.len()];
        let id = node.submit(&job("bash", "echo there")).await;
        for client in &clients {
            // One look, without waiting: a read that is not linearizable would now and then not find it.
            let seen = client.get(&format!("/v1/jobs/{id}")).await;
            assert_eq!(seen.status, 200, "round {round}: {}", seen.text());
            let listed = client.get("/v1/jobs?limit=1").await.expect(200);
            assert_eq!(ids(&listed), [id.as_str()], "round {round}");
        }
        clients[(round + 1) % clients.len()].finished(&id).await;
    }
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_read_is_answered_from_the_nodes_own_copy() {
    let cluster = Cluster::of_processes().await;
    let id = cluster.client(1).submit(&job("bash", "echo stale")).await;
    cluster.client(1).finished(&id).await;
    for client in cluster.clients() {
        let path = format!("/v1/jobs/{id}?consistency=stale");
        let found = eventually("the node has its copy", async || {
            let answer = client.get(&path).await;
            match answer.status.as_u16() {
                200 if answer.json()["state"] == "finished" => Ok(answer.json()),
                200 | 404 => Err(answer.text()),
                _ => panic!("{}", answer.text()),
            }
        })
        .await;
        assert_eq!(found["stdout"], "stale\n");
        let list = client.get("/v1/jobs?consistency=stale").await.expect(200);
        assert_eq!(ids(&list), [id.as_str()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_answers_with_the_end_or_when_the_time_is_up() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();
    let answer = client
        .post_json("/v1/jobs?wait=60", &patient(job("bash", "echo done")))
        .await;
    let done = answer.expect(200);
    assert_eq!(done["state"], "finished");
    assert_eq!(done["stdout"], "done\n");
    assert_eq!(
        answer.header("location"),
        format!("/v1/jobs/{}", done["id"].as_str().expect("an id"))
    );

    let witness = Witness::new();
    let answer = client
        .post_json("/v1/jobs?wait=0.2", &witness.gated("waits"))
        .await;
    let accepted = answer.expect(202);
    assert_ne!(accepted["state"], "finished");
    let location = answer.header("location").to_owned();
    let running = client
        .get(&format!("{location}?wait=0.1"))
        .await
        .expect(200);
    assert_ne!(running["state"], "finished");
    for absent in ["verdict", "exit_code", "finished_at"] {
        assert_eq!(running[absent], Value::Null, "{running}");
    }
    witness.open_gate();
    let done = client.get(&format!("{location}?wait=60")).await.expect(200);
    assert_eq!(done["verdict"], "accepted", "{done}");
    assert!(done["finished_at"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_filter_and_go_on_where_they_ended() {
    let cluster = Cluster::of_processes().await;
    let clients = cluster.clients();
    let mut newest_first = Vec::new();
    for n in 0..5 {
        let mut one = job("bash", "echo listed");
        one["labels"] = json!(["even", "odd"].get(n % 2).into_iter().collect::<Vec<_>>());
        let id = clients[n % clients.len()].submit(&one).await;
        cluster.any().finished(&id).await;
        newest_first.insert(0, id);
    }
    let python = clients[0].submit(&job("python", "print(1)")).await;
    clients[0].finished(&python).await;

    for client in clients {
        let list = async |query: &str| client.get(&format!("/v1/jobs?{query}")).await.expect(200);
        assert_eq!(ids(&list("language=bash").await), newest_first);
        assert_eq!(ids(&list("language=sh").await), newest_first, "an alias");
        assert_eq!(ids(&list("language=python").await), [python.as_str()]);
        let odd = [newest_first[1].clone(), newest_first[3].clone()];
        assert_eq!(ids(&list("label=odd").await), odd);
        assert_eq!(ids(&list("label=odd&language=python").await), [""; 0]);
        assert_eq!(ids(&list("state=finished").await).len(), 6);
        assert_eq!(ids(&list("state=queued").await), [""; 0]);

        let mut paged = Vec::new();
        let mut query = "language=bash&limit=2".to_owned();
        loop {
            let page = list(&query).await;
            let page_ids = ids(&page);
            assert!(page_ids.len() <= 2, "{page}");
            paged.extend(page_ids);
            let Some(cursor) = page["next_cursor"].as_str() else {
                break;
            };
            query = format!("language=bash&limit=2&cursor={cursor}");
        }
        assert_eq!(paged, newest_first);
        let summary = &list("limit=1").await["jobs"][0];
        assert_eq!(summary["verdict"], "accepted");
        assert_eq!(summary.get("stdout"), None, "lists have no output");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_job_can_be_cancelled() {
    let plan = Plan::new(Executor::Process).slots(1);
    let cluster = Cluster::start(plan).await;
    let (client, other) = (cluster.client(1), cluster.client(2));
    let witness = Witness::new();
    let mut running = Vec::new();
    for n in 0..3 {
        let name = format!("occupies-{n}");
        running.push(client.submit(&witness.gated(&name)).await);
        witness.began(&name, 1).await;
    }
    let queued = client.submit(&witness.gated("never")).await;
    let list = other.get("/v1/jobs?state=queued").await.expect(200);
    assert_eq!(ids(&list), [queued.as_str()]);
    assert_eq!(other.cluster().await["queue"]["jobs"], 1);

    let cancelled = other
        .delete(&format!("/v1/jobs/{queued}"))
        .await
        .expect(200);
    assert_eq!(cancelled["state"], "finished");
    assert_eq!(cancelled["verdict"], "cancelled");
    assert_eq!(cancelled["attempts"], 0);
    witness.open_gate();
    for id in &running {
        let done = client.finished(id).await;
        assert_eq!(done["verdict"], "accepted", "{done}");
    }
    // Whatever is queued behind it has had its turn: the cancelled one has not.
    let last = client.run(&witness.gated("last")).await;
    assert_eq!(last["verdict"], "accepted");
    assert_eq!(witness.executions_of("never"), []);
    cluster.all_show(&[cancelled]).await;
    let again = client.delete(&format!("/v1/jobs/{queued}")).await;
    assert_eq!(again.problem(409, "already-finished")["job"], queued);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_can_be_cancelled_through_any_node() {
    let cluster = Cluster::of_processes().await;
    for client in cluster.clients() {
        let witness = Witness::new();
        let id = client.submit(&witness.gated("cancelled")).await;
        let execution = witness.began("cancelled", 1).await.remove(0);
        assert!(execution.lives());
        let cancelled = client.delete(&format!("/v1/jobs/{id}")).await.expect(200);
        assert_eq!(cancelled["verdict"], "cancelled");
        assert_eq!(cancelled["state"], "finished");
        eventually("the program is ended", async || {
            if execution.lives() {
                Err("it lives")
            } else {
                Ok(())
            }
        })
        .await;
        // The gate opens for nobody: the result is what it was.
        witness.open_gate();
        cluster.all_show(std::slice::from_ref(&cancelled)).await;
    }
    eventually("no slot is taken any more", async || {
        let status = cluster.any().cluster().await;
        let nodes = status["nodes"].as_array().expect("nodes");
        if nodes.iter().all(|node| node["busy"] == 0) {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arguments_environment_and_stdin_reach_the_program() {
    let cluster = Cluster::of_processes().await;
    let bytes = [0_u8, 159, 146, 150, 10];
    let main = "
import os, sys
from parts.other import word
print(word, sys.argv[1:], os.environ['MODE'], open('data.bin', 'rb').read() == sys.stdin.buffer.read())
";
    let job = patient(json!({
        "language": "python",
        "files": [
            { "name": "parts/other.py", "content": "word = 'imported'" },
            { "name": "start.py", "content": main },
            { "name": "data.bin", "content_base64": BASE64.encode(bytes) },
        ],
        "entrypoint": "start.py",
        "args": ["one", "two words"],
        "env": { "MODE": "höhe=1" },
        "stdin_base64": BASE64.encode(bytes),
    }));
    for client in cluster.clients() {
        let done = client.run(&job).await;
        assert_eq!(
            done["stdout"], "imported ['one', 'two words'] höhe=1 True\n",
            "{done}"
        );
    }

    let mut echo = patient(self::job("bash", "cat"));
    echo["stdin"] = "text in\n".into();
    assert_eq!(cluster.any().run(&echo).await["stdout"], "text in\n");

    let mut raw = patient(self::job("bash", "cat"));
    raw["stdin_base64"] = BASE64.encode(bytes).into();
    let done = cluster.any().run(&raw).await;
    assert_eq!(done["stdout_base64"], BASE64.encode(bytes), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_joins_the_first_job_through_any_node() {
    let cluster = Cluster::of_processes().await;
    let witness = Witness::new();
    let job = witness.gated("once");
    let first = keyed(cluster.client(1), "k1", &job).await.expect(202);
    let id = first["id"].clone();
    // While it runs, and after it has finished.
    for client in cluster.clients() {
        assert_eq!(keyed(client, "k1", &job).await.expect(202)["id"], id);
    }
    witness.open_gate();
    cluster.any().finished(id.as_str().expect("an id")).await;
    for client in cluster.clients() {
        let joined = keyed(client, "k1", &job).await;
        assert_eq!(joined.json()["id"], id);
        let mut other = job.clone();
        other["args"] = json!(["another"]);
        let conflict = keyed(client, "k1", &other).await;
        assert_eq!(conflict.problem(409, "idempotency-conflict")["job"], id);
    }
    assert_eq!(witness.executions_of("once").len(), 1);
    let unrelated = keyed(cluster.any(), "k2", &job).await.expect(202);
    assert_ne!(unrelated["id"], id);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_with_one_key_are_one_job() {
    let cluster = Cluster::of_processes().await;
    let witness = Witness::new();
    let job = witness.one_second("together");
    let clients = cluster.clients();
    let posts = (0..30).map(|n| {
        let client = clients[n % clients.len()];
        let job = &job;
        async move { keyed(client, "same", job).await.expect(202)["id"].clone() }
    });
    let mut seen = futures::future::join_all(posts).await;
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:?}");
    let done = clients[1].finished(seen[0].as_str().expect("an id")).await;
    assert_eq!(done["stdout"], "together\n");
    assert_eq!(
        witness.executions_of("together").len() as u64,
        done["attempts"].as_u64().expect("attempts")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_has_its_verdict() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();

    let done = client.run(&job("bash", "echo fine; echo note >&2")).await;
    assert_eq!(done["verdict"], "accepted");
    assert_eq!(done["exit_code"], 0);
    assert_eq!(
        (&done["stdout"], &done["stderr"]),
        (&json!("fine\n"), &json!("note\n"))
    );
    assert_eq!(done["signal"], Value::Null);
    assert_eq!(done["attempts"], 1);

    let done = client.run(&job("python", "raise SystemExit(9)")).await;
    assert_eq!(done["verdict"], "runtime_error");
    assert_eq!(done["exit_code"], 9);

    let done = client.run(&job("bash", "kill -SEGV $$")).await;
    assert_eq!(done["verdict"], "runtime_error");
    assert_eq!(done["signal"], 11, "{done}");
    assert_eq!(done["exit_code"], Value::Null);

    let done = client.run(&job("c", "int main(void) { return 0 }")).await;
    assert_eq!(done["verdict"], "compile_error");
    let errors = done["compile"]["stderr"]
        .as_str()
        .expect("the compiler's words");
    assert!(errors.contains("expected"), "{done}");
    assert_eq!(done["compile"]["exit_code"], 1);
    assert_eq!(done["exit_code"], Value::Null);

    let mut sleeps = job("bash", "echo before; sleep 1000");
    sleeps["limits"] = json!({ "wall_ms": 1000 });
    let done = client.run(&sleeps).await;
    assert_eq!(done["verdict"], "time_limit", "{done}");
    assert_eq!(
        done["stdout"], "before\n",
        "what was printed before is kept"
    );
    assert!(done["wall_ms"].as_u64() >= Some(1000), "{done}");

    let mut burns = job("python", "while True: pass");
    burns["limits"] = json!({ "cpu_ms": 300, "wall_ms": 60_000 });
    let done = client.run(&burns).await;
    assert_eq!(done["verdict"], "time_limit", "{done}");
    assert!(done["cpu_ms"].as_u64() >= Some(300), "{done}");

    let mut hoards = job(
        "python",
        "import time\nx = bytearray(300 << 20)\nfor n in range(0, len(x), 4096): x[n] = 1\ntime.sleep(50)",
    );
    hoards["limits"] = json!({ "memory_kb": 65_536, "cpu_ms": 20_000, "wall_ms": 60_000 });
    let done = client.run(&hoards).await;
    assert_eq!(done["verdict"], "memory_limit", "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_compiler_gets_the_job_s_own_arguments() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();
    let mut greets = patient(job(
        "c",
        "#include <stdio.h>\nint main(void) { puts(GREETING); return 0; }",
    ));
    let done = client.run(&greets).await;
    assert_eq!(done["verdict"], "compile_error", "{done}");
    assert_eq!(done.get("compile_args"), None, "{done}");
    for greeting in ["hello", "good morning"] {
        let args = json!([format!("-DGREETING=\"{greeting}\""), "-O0"]);
        greets["compile_args"] = args.clone();
        let done = client.run(&greets).await;
        assert_eq!(done["verdict"], "accepted", "{done}");
        assert_eq!(done["stdout"], format!("{greeting}\n"));
        // They come back, at every node.
        assert_eq!(done["compile_args"], args, "{done}");
        let id = done["id"].as_str().expect("an id");
        for client in cluster.clients() {
            let job = client.get(&format!("/v1/jobs/{id}")).await.expect(200);
            assert_eq!(job["compile_args"], args, "{job}");
        }
    }
    // In a batch as well, all or none.
    greets["compile_args"] = json!(["-DGREETING=\"batch\""]);
    let batch = json!({ "jobs": [greets, job("bash", "echo batch")], "atomic": true });
    let answer = client.post_json("/v1/jobs/batch?wait=60", &batch).await;
    let answer = answer.expect(200);
    for item in answer["jobs"].as_array().expect("jobs") {
        assert_eq!(item["job"]["verdict"], "accepted", "{answer}");
    }
    // What the compiler makes of them is the job's affair.
    greets["compile_args"] = json!(["--no-such-option"]);
    let done = client.run(&greets).await;
    assert_eq!(done["verdict"], "compile_error", "{done}");
    greets["compile_args"] = json!(["-DGREETING=\"x\"", "-fsyntax-only"]);
    let done = client.run(&greets).await;
    assert_eq!(done["verdict"], "runtime_error", "{done}");

    for (language, args, field) in [
        ("python", json!(["-g"]), "compile_args"),
        ("c", json!("-g"), "compile_args"),
        ("c", json!(vec!["-g"; 257]), "compile_args"),
        ("c", json!(["-g", "x".repeat(4097)]), "compile_args[1]"),
        ("c", json!(["-g\0"]), "compile_args[0]"),
    ] {
        let mut wrong = job(language, "x");
        wrong["compile_args"] = args;
        let problem = client.post_json("/v1/jobs", &wrong).await.expect(422);
        assert_eq!(problem["field"], field, "{problem}");
    }
    // An empty list asks for nothing.
    let mut plain = job("python", "print(1)");
    plain["compile_args"] = json!([]);
    assert_eq!(client.run(&plain).await["verdict"], "accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_over_its_cap_is_cut_and_flagged() {
    let cluster = Cluster::of_processes().await;
    let mut prints = patient(job(
        "python",
        "import sys\nsys.stdout.write('x' * 3000)\nsys.stderr.write('y' * 500)\nsys.exit(5)",
    ));
    prints["limits"]["output_kb"] = 1.into();
    let done = cluster.any().run(&prints).await;
    assert_eq!(done["stdout"], "x".repeat(1024));
    assert_eq!(done["stderr"], "y".repeat(500));
    assert_eq!(
        done["truncated"],
        json!({ "stdout": true, "stderr": false })
    );
    assert_eq!(done["exit_code"], 5, "the program keeps its exit code");
    assert_eq!(done["verdict"], "runtime_error");

    let mut floods = patient(job(
        "bash",
        "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyy; done",
    ));
    floods["limits"]["output_kb"] = 1.into();
    let done = cluster.any().run(&floods).await;
    assert_eq!(done["verdict"], "output_limit", "{done}");
    assert_eq!(done["stdout"].as_str().map(str::len), Some(1024));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_without_knowing_is_told_where_everything_is() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();
    let index = client.get("/").await;
    assert_eq!(index.status, 200);
    assert_eq!(index.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(index.header("vary"), "accept");
    let text = index.text();
    // The address by which it was asked, so that the example runs as it stands.
    assert!(
        text.contains(&format!(" {}/lang/python\n", client.url())),
        "{text}"
    );
    let request = client.request(Method::GET, "/");
    let request = request.header("accept", "application/json");
    let json = client.send(request).await.expect(200);
    assert_eq!(json["name"], "Quorun");
    for place in ["docs", "openapi", "errors", "health", "readiness"] {
        let place = json[place].as_str().expect("a path");
        assert!(text.contains(place), "{text}");
        assert_eq!(client.get(place).await.status, 200, "{place}");
    }

    let docs = client.get("/docs").await;
    assert!(
        docs.text()
            .contains(&format!("&#39;{}/lang/python", client.url()))
    );
    let tag = docs.header("etag").to_owned();
    let known = |host: &str| {
        let request = client.request(Method::GET, "/docs").header("host", host);
        client.send(request.header("if-none-match", &tag))
    };
    let own = client.url().trim_start_matches("http://");
    assert_eq!(known(own).await.status, 304);
    // `localhost` is this machine as well, and another address.
    let other = known("localhost:1").await;
    assert_eq!(other.status, 200);
    assert!(other.text().contains("&#39;http://localhost:1/lang/python"));
    let document = client.get("/openapi.json").await.expect(200);
    assert_eq!(document["servers"][0]["url"], "/");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_ends_its_line() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.any();
    let id = client.submit(&job("bash", "echo")).await;
    client.finished(&id).await;
    let job = format!("/v1/jobs/{id}");
    for path in [
        "/v1/jobs",
        "/v1/queue",
        "/v1/languages",
        "/v1/languages/bash",
        "/v1/cluster",
        "/v1/cluster/settings",
        "/readyz",
        "/openapi.json",
        &job,
        // And what is wrong.
        "/v1/jobs/none",
        "/nowhere",
        "/v1/jobs?colour=red",
    ] {
        let answer = client.get(path).await;
        let text = answer.text();
        assert!(
            text.ends_with("}\n") && !text.ends_with("\n\n"),
            "{path}: {text}"
        );
        let kind = answer.header("content-type");
        assert!(
            kind.starts_with("application/") && kind.ends_with("json"),
            "{kind}"
        );
        let length = answer.header("content-length");
        assert_eq!(length, text.len().to_string(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_languages_are_listed_with_their_limits() {
    let cluster = Cluster::of_processes().await;
    let list = cluster.any().get("/v1/languages").await.expect(200);
    let languages = list["languages"].as_array().expect("languages");
    assert_eq!(languages.len(), 12);
    let python = languages
        .iter()
        .find(|language| language["name"] == "python")
        .expect("python");
    assert_eq!(python["limits"]["cpu_ms"], 2000);
    assert_eq!(python["limits"]["wall_ms"], 5000);
    assert_eq!(python["compiled"], false);
}

async fn quorun(args: &[&str]) -> Output {
    let mut command = program::command();
    command.args(args).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().expect("run quorun"))
        .await
        .expect("the thread that waits")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn quorun_run_prints_and_exits_as_the_program_does() {
    let cluster = Cluster::of_processes().await;
    let url = cluster.client(2).url();
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        let mut file = std::fs::File::create(&path).expect("a file");
        file.write_all(content.as_bytes()).expect("write");
        path.display().to_string()
    };
    let program = file(
        "program.py",
        "import sys\nprint(input(), sys.argv[1:])\nprint('bad', file=sys.stderr)\nsys.exit(42)",
    );
    let stdin = file("input.txt", "typed\n");
    let done = quorun(&[
        "run", &program, "--stdin", &stdin, "--url", url, "--", "a", "-b",
    ])
    .await;
    assert_eq!(text(&done.stdout), "typed ['a', '-b']\n");
    assert_eq!(text(&done.stderr), "bad\n");
    assert_eq!(done.status.code(), Some(42));

    let script = file("script", "echo hello");
    let done = quorun(&["run", &script, "--lang", "sh", "--url", url]).await;
    assert_eq!(
        (text(&done.stdout).as_str(), done.status.code()),
        ("hello\n", Some(0))
    );
    let done = quorun(&["run", &script, "--url", url]).await;
    assert!(text(&done.stderr).contains("--lang"), "{done:?}");
    assert_eq!(done.status.code(), Some(2));

    let broken = file("broken.c", "int main(void) { return missing; }");
    let done = quorun(&["run", &broken, "--url", url]).await;
    assert!(text(&done.stderr).contains("missing"), "{done:?}");
    assert_ne!(done.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_status_and_health_say_how_it_is() {
    let mut cluster = Cluster::of_processes().await;
    let url = cluster.client(1).url().to_owned();
    let leader = cluster.leader().await;
    let status = quorun(&["cluster", "status", "--url", &url]).await;
    assert!(status.status.success(), "{status:?}");
    let shown = text(&status.stdout);
    for id in cluster.ids() {
        let row = shown
            .lines()
            .find(|line| line.starts_with(&format!("{id} ")))
            .unwrap_or_else(|| panic!("{shown}"));
        assert_eq!(row.contains("leader"), id == leader, "{shown}");
        assert!(row.contains("0/2"), "{shown}");
        assert!(row.contains(cluster.client(id).address()), "{shown}");
    }
    let raw = quorun(&["cluster", "status", "--json", "--url", &url]).await;
    let raw: Value = serde_json::from_slice(&raw.stdout).expect("JSON");
    assert_eq!(raw["leader"], leader);
    assert_eq!(raw["nodes"].as_array().map(Vec::len), Some(3));

    let health = quorun(&["health", "--url", &url]).await;
    assert_eq!(health.status.code(), Some(0), "{health:?}");
    cluster.node(2).kill();
    cluster.node(3).kill();
    eventually("the node that is left says that it is alone", async || {
        let health = quorun(&["health", "--url", &url]).await;
        let said = text(&health.stdout);
        let alone = said.contains("there is no leader") || said.contains("not reach a majority");
        if health.status.code() == Some(1) && alone {
            Ok(())
        } else {
            Err(format!("{health:?}"))
        }
    })
    .await;
    cluster.node(1).kill();
    let health = quorun(&["health", "--url", &url]).await;
    assert_eq!(health.status.code(), Some(1), "{health:?}");
    assert!(text(&health.stderr).contains("no answer"), "{health:?}");
}
