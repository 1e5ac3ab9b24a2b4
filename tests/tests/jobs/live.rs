//! A job is watched through any node, whatever node dies.

use quorun_tests::events::{Event, Events};
use quorun_tests::raw::Exchange;
use quorun_tests::{Client, Cluster, Executor, Plan, Witness, eventually};
use reqwest::Method;
use serde_json::{Value, json};

/// Prints, waits at the gate, and prints again: stdout and stderr, and who it is.
const TWO_PARTS: &str = r#"
echo "$$ $NAME" >> "$WITNESS"
echo "first by $$"
echo "warned by $$" >&2
while [ ! -e "$GATE" ]; do sleep 0.05; done
echo "second by $$"
"#;

/// What a client has put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    attempt: u64,
    stdout: String,
    stderr: String,
    id: Option<String>,
}

impl Seen {
    /// Takes an event, and does not let pass a gap, a repetition, or another attempt without a word of it.
    fn take(&mut self, event: &Event) {
        self.id.clone_from(&event.id);
        let data = &event.data;
        match event.name.as_str() {
            "output" => {
                let attempt = data["attempt"].as_u64().expect("an attempt");
                if self.attempt == 0 {
                    self.attempt = attempt;
                }
                assert_eq!(attempt, self.attempt, "{event:?} after {self:?}");
                let text = data["text"].as_str().expect("text");
                let printed = match data["stream"].as_str() {
                    Some("stdout") => &mut self.stdout,
                    _ => &mut self.stderr,
                };
                assert_eq!(data["offset"], printed.len(), "{event:?}");
                printed.push_str(text);
            }
            "replaced" => {
                assert_eq!(data["attempt"], self.attempt, "{event:?} after {self:?}");
                *self = Self {
                    attempt: data["by"].as_u64().expect("an attempt"),
                    id: event.id.clone(),
                    ..Self::default()
                };
            }
            _ => {}
        }
    }

    async fn follow(&mut self, events: &mut Events, until: impl Fn(&Self) -> bool) {
        while !until(self) {
            let event = events.next().await;
            let event = event.unwrap_or_else(|| panic!("the stream ends: {self:?}"));
            self.take(&event);
        }
    }

    fn has_begun(&self) -> bool {
        self.stdout.starts_with("first by ") && self.stderr.starts_with("warned by ")
    }
}

/// A job that prints, and waits for the gate to print more.
fn two_parts(witness: &Witness, name: &str) -> Value {
    let mut job = witness.gated(name);
    job["source"] = TWO_PARTS.into();
    job
}

/// Runs such jobs until one of them is on a node that neither leads nor is `not`; its id and node.
async fn on_another(cluster: &Cluster, witness: &Witness, not: u64) -> (String, String, u64) {
    for n in 0.. {
        let name = format!("watched-{n}");
        let id = cluster.client(not).submit(&two_parts(witness, &name)).await;
        witness.began(&name, 1).await;
        let node = cluster.client(not).job(&id).await["node"].as_u64();
        if let Some(node) = node.filter(|node| *node != not) {
            return (name, id, node);
        }
    }
    unreachable!("the loop has no end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_watched_while_the_node_that_runs_it_is_killed() {
    let mut cluster = Cluster::of_processes().await;
    let witness = Witness::new();
    let watched = cluster.leader().await;
    let (name, id, worker) = on_another(&cluster, &witness, watched).await;
    let client = cluster.client(watched).clone();
    let mut events = Events::open(&client, &id, None).await;
    let mut seen = Seen::default();
    seen.follow(&mut events, Seen::has_begun).await;
    assert_eq!(seen.attempt, 1);
    let before = seen.clone();

    cluster.node(worker).kill();
    // The same stream tells of the new attempt and of what that one prints, from its beginning.
    seen.follow(&mut events, |seen| seen.attempt == 2 && seen.has_begun())
        .await;
    assert_ne!(seen.stdout, before.stdout, "another process");
    let second = witness.began(&name, 2).await.remove(1);
    assert_eq!(seen.stdout, format!("first by {}\n", second.pid));
    witness.open_gate();
    let mut finished = None;
    while let Some(event) = events.next().await {
        seen.take(&event);
        if event.name == "finished" {
            finished = Some(event.data);
        }
    }
    let finished = finished.expect("the end");
    assert_eq!(finished["attempts"], 2, "{finished}");
    assert_eq!(finished["stdout"], seen.stdout.as_str(), "{finished}");
    assert_eq!(finished["stderr"], seen.stderr.as_str(), "{finished}");

    // Somebody who had gone away before the node died, and asks any node that is left.
    for client in cluster.clients() {
        let mut late = before.clone();
        let mut events = Events::open(client, &id, before.id.as_deref()).await;
        for event in events.rest().await {
            late.take(&event);
        }
        let (stdout, stderr) = (&late.stdout, &late.stderr);
        assert_eq!((stdout, stderr), (&seen.stdout, &seen.stderr));
        assert_eq!(late.attempt, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_taken_up_at_another_node_when_the_watched_one_is_killed() {
    let mut cluster = Cluster::of_processes().await;
    let witness = Witness::new();
    let watched = 1;
    let (_, id, worker) = on_another(&cluster, &witness, watched).await;
    let third = 6 - watched - worker;
    let mut events = Events::open(cluster.client(watched), &id, None).await;
    let mut seen = Seen::default();
    seen.follow(&mut events, Seen::has_begun).await;
    let before = seen.clone();

    cluster.node(watched).kill();
    while let Some(event) = events.next().await {
        seen.take(&event);
    }
    let client = cluster.client(third);
    eventually("the third node knows the job", async || {
        let path = format!("/v1/jobs/{id}");
        let answer = Client::try_send(client.request(Method::GET, &path)).await;
        match answer {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let mut events = Events::open(client, &id, seen.id.as_deref()).await;
    let first = events.next().await.expect("an event");
    assert_eq!(first.name, "state", "{first:?}");
    assert_eq!(first.data["state"], "running", "{first:?}");
    witness.open_gate();
    let mut rest = events.rest().await;
    assert!(
        rest.iter().all(|event| event.name != "replaced"),
        "{rest:?}"
    );
    for event in &rest {
        seen.take(event);
    }
    let finished = rest.pop().expect("the end");
    assert_eq!(finished.name, "finished");
    assert!(seen.stdout.starts_with(&before.stdout), "{seen:?}");
    assert_eq!(finished.data["stdout"], seen.stdout.as_str());
    assert_eq!(finished.data["stderr"], seen.stderr.as_str());
    assert_eq!(finished.data["attempts"], 1);

    // There is nothing behind the end; but from before it, the rest, once.
    for client in [cluster.client(third), cluster.client(worker)] {
        let path = format!("/v1/jobs/{id}/events");
        let request = client.request(Method::GET, &path);
        let end = finished.id.as_deref().expect("an id");
        let answer = client.send(request.header("Last-Event-ID", end)).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (204, ""));
        let mut late = before.clone();
        for event in Events::open(client, &id, before.id.as_deref())
            .await
            .rest()
            .await
        {
            late.take(&event);
        }
        assert_eq!(late.stdout, seen.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_means_nothing_begins_again_and_says_so() {
    let cluster = Cluster::start(Plan::new(Executor::Process).nodes(1)).await;
    let client = cluster.any();
    let job = json!({ "language": "bash", "source": "echo out; echo err >&2" });
    let id = client.run(&job).await["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    for (last, attempt) in [
        ("what", Value::Null),
        ("1-2", Value::Null),
        ("\u{7f}", Value::Null),
        ("99999999999999999999-0-0", Value::Null),
        ("9-1-0", 9.into()),
        ("0-1-0", 0.into()),
    ] {
        let path = format!("/v1/jobs/{id}/events");
        let request = client
            .request(Method::GET, &path)
            .query(&[("last_event_id", last)]);
        let text = client.send(request).await.text();
        let replaced =
            format!("event: replaced\nid: 1-0-0\ndata: {{\"attempt\":{attempt},\"by\":1}}");
        assert!(text.starts_with(&replaced), "{last}: {text}");
        assert!(text.contains("\"text\":\"out\\n\""), "{last}: {text}");
        assert!(
            text.contains("event: finished\nid: 1-4-4-0-end\n"),
            "{text}"
        );
    }
    // The header counts where there are both; and an id goes on in the middle of a line.
    let path = format!("/v1/jobs/{id}/events?last_event_id=what");
    let request = client.request(Method::GET, &path);
    let answer = client.send(request.header("Last-Event-ID", "1-2-4")).await;
    let text = answer.text();
    assert!(!text.contains("replaced"), "{text}");
    assert!(
        text.contains("\"offset\":2,\"stream\":\"stdout\",\"text\":\"t\\n\""),
        "{text}"
    );
    assert_eq!(text.matches("event: output").count(), 1, "{text}");
    let answer = client.get(&format!("/v1/jobs/{id}/events?from=1")).await;
    answer.problem(422, "invalid-request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_answer_ends_with_an_error_only_when_what_it_sent_is_void() {
    let mut cluster = Cluster::of_processes().await;
    let witness = Witness::new();
    let leader = cluster.leader().await;
    let client = cluster.client(leader).clone();
    let gate = witness.gate().display().to_string();
    let waits = format!("while [ ! -e {gate} ]; do sleep 0.05; done; echo end");
    let mut streams = Vec::new();
    // Two on each node: one that has printed, and one that has not.
    for n in 0..6 {
        let program = if n < 3 {
            format!("echo begin; {waits}")
        } else {
            waits.clone()
        };
        let path = "/lang/bash?stream=true";
        let mut exchange = Exchange::post(client.address(), path, &program).await;
        let (status, head) = exchange.head().await;
        assert_eq!(status, 200);
        let id = head["quorun-job-id"].clone();
        let node = eventually("the job runs", async || {
            let job = client.job(&id).await;
            job["node"].as_u64().ok_or_else(|| job.to_string())
        })
        .await;
        if n < 3 {
            assert_eq!(exchange.chunks_until("begin\n").await, "begin\n");
        }
        streams.push((n < 3, node, exchange));
    }
    let worker = (1..=3).find(|id| *id != leader).expect("another node");
    cluster.node(worker).kill();
    // What was lost is known before anything ends: the gate opens only then.
    for (printed, node, exchange) in &mut streams {
        if *printed && *node == worker {
            let (rest, trailers) = exchange.rest().await;
            assert_eq!(rest, "");
            let error = &trailers["quorun-error"];
            assert!(error.contains("attempt 1"), "{error}");
            assert!(!trailers.contains_key("quorun-verdict"), "{trailers:?}");
        }
    }
    witness.open_gate();
    let mut lost = 0;
    for (printed, node, mut exchange) in streams {
        if printed && node == worker {
            lost += 1;
            continue;
        }
        let (rest, trailers) = exchange.rest().await;
        assert_eq!(rest, "end\n", "node {node}");
        assert_eq!(trailers["quorun-verdict"], "accepted", "{trailers:?}");
        assert!(!trailers.contains_key("quorun-error"), "{trailers:?}");
    }
    assert!(lost > 0, "no stream was on the node that was killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_of_a_job_is_shown_to_its_end_and_no_further() {
    /// Prints much, takes its time in between, and waits at the gate.
    const SLOW: &str = r#"
echo "$$ $NAME" >> "$WITNESS"
for part in 1 2; do head -c 100000 /dev/zero | tr '\0' x; sleep 0.7; done
echo end
echo "$$ printed" >> "$WITNESS"
while [ ! -e "$GATE" ]; do sleep 0.05; done
echo behind
"#;
    let cluster = Cluster::start(Plan::new(Executor::Process).slots(1)).await;
    let witness = Witness::new();
    let client = cluster.any();
    let mut job = witness.gated("slow");
    job["source"] = SLOW.into();
    let id = client.submit(&job).await;
    witness.began("printed", 1).await;
    let all = async |client: &Client, id: &str, last: Option<&str>| {
        let mut events = Events::until_now(client, id, last).await;
        let mut seen = Seen::default();
        let mut names = Vec::new();
        while let Some(event) = events.next().await {
            if last.is_none() {
                seen.take(&event);
            }
            names.push(event.name);
        }
        (seen, names)
    };
    // The witness is quicker than what was printed on its way to the node.
    let mut ids = Vec::new();
    for client in cluster.clients() {
        let (seen, names) = eventually("all is there that was printed", async || {
            let (seen, names) = all(client, &id, None).await;
            assert_eq!(names.first().map(String::as_str), Some("state"));
            assert_eq!(names.last().map(String::as_str), Some("shown"));
            if seen.stdout.ends_with("end\n") {
                Ok((seen, names))
            } else {
                Err(format!("{} bytes", seen.stdout.len()))
            }
        })
        .await;
        assert_eq!(seen.stdout.len(), 200_000 + "end\n".len(), "{names:?}");
        ids.extend(seen.id);
    }
    // From there on there is nothing yet.
    for (client, last) in cluster.clients().iter().zip(&ids) {
        let (_, names) = all(client, &id, Some(last)).await;
        assert_eq!(names, ["state", "shown"]);
    }
    // Nor is there of one that waits.
    let mut waiting = Vec::new();
    for n in 0..3 {
        waiting.push(client.submit(&witness.gated(&format!("more{n}"))).await);
    }
    let last = waiting.last().expect("the last");
    assert_eq!(client.job(last).await["state"], "queued");
    let (_, names) = all(client, last, None).await;
    assert_eq!(names, ["state", "shown"]);
    witness.open_gate();
    client.finished(&id).await;
    for (client, last) in cluster.clients().iter().zip(&ids) {
        let (_, names) = all(client, &id, Some(last)).await;
        assert_eq!(names, ["state", "output", "finished"]);
    }
    let path = format!("/v1/jobs/{id}/events?follow=later");
    let problem = client.get(&path).await.problem(422, "invalid-request");
    assert_eq!(problem["field"], "follow", "{problem}");
}
