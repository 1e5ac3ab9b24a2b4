//! Nodes die, hang and come back; what was accepted is done, once, and everybody agrees on how.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use quorun_tests::{Client, Cluster, Executor, LONG, Plan, Shim, Witness, eventually, fleet, mix};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// A job and its end, as its submitter was told it.
type Ended = (String, Value);

/// Posts jobs round all nodes, each with a key of its own, and hands over each end when it comes.
fn post_all(cluster: &Cluster, jobs: Vec<(String, Value)>) -> mpsc::UnboundedReceiver<Ended> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let clients: Vec<Client> = cluster.clients().into_iter().cloned().collect();
    let deadline = Instant::now() + 2 * LONG;
    for (n, (name, job)) in jobs.into_iter().enumerate() {
        let (sender, clients) = (sender.clone(), clients.clone());
        tokio::spawn(async move {
            let key = format!("key-{name}");
            let end = fleet::finish(&clients, n, &key, &job, deadline).await;
            let end = end.unwrap_or_else(|error| json!({ "error": error }));
            let _ = sender.send((name, end));
        });
    }
    receiver
}

/// Receives ends until there are `count` of them.
async fn receive(
    ends: &mut mpsc::UnboundedReceiver<Ended>,
    all: &mut BTreeMap<String, Value>,
    count: usize,
) {
    while all.len() < count {
        let (name, job) = ends.recv().await.expect("another end");
        assert_eq!(job.get("error"), None, "{name}: {job}");
        assert!(all.insert(name, job).is_none(), "one end for each");
    }
}

fn attempts(job: &Value) -> usize {
    let attempts = job["attempts"].as_u64().expect("attempts");
    usize::try_from(attempts).expect("a small number")
}

/// Each name is one job, ended as it should, and was executed no more often than it says.
fn all_right(ends: &BTreeMap<String, Value>, witness: &Witness) {
    let ids: BTreeSet<_> = ends.values().map(|job| job["id"].to_string()).collect();
    assert_eq!(ids.len(), ends.len(), "a job of its own for each");
    for (name, job) in ends {
        assert_eq!(job["verdict"], "accepted", "{job}");
        assert_eq!(job["stdout"], format!("{name}\n"), "{job}");
        let executed = witness.executions_of(name).len();
        assert!(
            (1..=attempts(job)).contains(&executed),
            "{name} was executed {executed} times: {job}"
        );
    }
}

/// Runs gated jobs until one of them is on a node that does not lead, and returns its name, id and node. The others
/// run until the gate opens.
async fn on_a_follower(cluster: &Cluster, witness: &Witness) -> (String, String, u64) {
    let leader = cluster.leader().await;
    for n in 0.. {
        let name = format!("gated-{n}");
        let id = cluster.client(leader).submit(&witness.gated(&name)).await;
        witness.began(&name, 1).await;
        let node = cluster.client(leader).job(&id).await["node"].as_u64();
        if let Some(node) = node.filter(|node| *node != leader) {
            return (name, id, node);
        }
    }
    unreachable!("the loop has no end");
}

/// The executions that are still there are none but these.
async fn only_lives(witness: &Witness, name: &str, pids: &[i32]) {
    eventually("executions of dead nodes are dead", async || {
        let mut living = witness.executions_of(name);
        living.retain(|execution| execution.lives());
        if living.iter().all(|execution| pids.contains(&execution.pid)) {
            Ok(())
        } else {
            Err(format!("{living:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_with_a_hundred_jobs_in_flight() {
    let mut cluster = Cluster::start(Plan::new(Executor::Process).slots(4)).await;
    let witness = Witness::new();
    let leader = cluster.leader().await;
    let jobs = (0..100).map(|n| {
        let name = format!("job-{n}");
        let job = witness.one_second(&name);
        (name, job)
    });
    let mut ends = post_all(&cluster, jobs.collect());
    let mut all = BTreeMap::new();
    receive(&mut ends, &mut all, 15).await;
    cluster.node(leader).kill();
    receive(&mut ends, &mut all, 100).await;
    all_right(&all, &witness);

    let jobs: Vec<Value> = all.values().cloned().collect();
    assert!(
        jobs.iter().any(|job| attempts(job) > 1),
        "the leader was executing when it was killed"
    );
    cluster.agree().await;
    cluster.all_show(&jobs).await;
    assert_ne!(cluster.leader().await, leader);

    cluster.node(leader).restart().await;
    cluster.agree().await;
    cluster.all_show(&jobs).await;
    for client in cluster.clients() {
        let status = client.cluster().await;
        assert_eq!(status["finished"]["jobs"], 100, "no job twice: {status}");
        assert_eq!(status["queue"]["jobs"], 0);
        assert_eq!(status["running"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_twice_under_a_mixed_load() {
    let mut cluster = Cluster::of_processes().await;
    let names: Vec<_> = (0..120).map(|n| format!("mixed-{n}")).collect();
    let jobs = names
        .iter()
        .enumerate()
        .map(|(n, name)| (name.clone(), mix::job(n, name)));
    let mut ends = post_all(&cluster, jobs.collect());
    let mut all = BTreeMap::new();
    for killed_at in [40, 80] {
        receive(&mut ends, &mut all, killed_at).await;
        let leader = cluster.leader().await;
        cluster.node(leader).kill();
        cluster.node(leader).restart().await;
    }
    receive(&mut ends, &mut all, names.len()).await;
    for (n, name) in names.iter().enumerate() {
        mix::check(n, name, &all[name]).unwrap_or_else(|error| panic!("{error}"));
    }
    cluster.agree().await;
    let jobs: Vec<Value> = all.into_values().collect();
    cluster.all_show(&jobs).await;
    assert_eq!(
        cluster.any().cluster().await["finished"]["jobs"],
        names.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed_in_the_middle_of_a_job() {
    let mut cluster = Cluster::of_processes().await;
    let witness = Witness::new();
    let (name, id, worker) = on_a_follower(&cluster, &witness).await;
    let first = witness.began(&name, 1).await.remove(0);
    cluster.node(worker).kill();
    let executions = witness.began(&name, 2).await;
    only_lives(&witness, &name, &[executions[1].pid]).await;
    assert!(!first.lives());
    let running = cluster.any().job(&id).await;
    assert_eq!(running["state"], "running", "{running}");
    assert_ne!(running["node"], worker, "{running}");

    // The dead one comes back before the job has ended: it has nothing to say about it.
    cluster.node(worker).restart().await;
    witness.open_gate();
    let done = cluster.any().finished(&id).await;
    assert_eq!(done["verdict"], "accepted", "{done}");
    let executions = witness.executions_of(&name);
    assert_eq!(executions.len(), attempts(&done), "{done}");
    let last = executions.last().expect("an execution");
    assert_eq!(done["stdout"], format!("{name} by {}\n", last.pid));
    assert!(attempts(&done) >= 2, "{done}");
    cluster.agree().await;
    cluster.all_show(&[done]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_killed_at_once_with_jobs_queued_and_running() {
    let mut cluster = Cluster::start(Plan::new(Executor::Process).slots(1)).await;
    let before = Witness::new();
    before.open_gate();
    let mut finished = Vec::new();
    for n in 0..3 {
        let job = before.gated(&format!("before-{n}"));
        finished.push(cluster.client(n + 1).run(&job).await);
    }
    let witness = Witness::new();
    let mut jobs = Vec::new();
    for n in 0..9_u64 {
        let name = format!("job-{n}");
        let id = cluster
            .client(n % 3 + 1)
            .submit(&witness.gated(&name))
            .await;
        jobs.push((name, id));
    }
    let running = eventually("three run", async || {
        let names: BTreeSet<_> = witness.executions().into_iter().map(|e| e.name).collect();
        if names.len() == 3 {
            Ok(names)
        } else {
            Err(format!("{names:?}"))
        }
    })
    .await;
    cluster.kill_all();
    for name in &running {
        only_lives(&witness, name, &[]).await;
    }
    cluster.restart_all().await;
    cluster.all_show(&finished).await;
    witness.open_gate();
    let mut ends = Vec::new();
    for (n, (name, id)) in jobs.iter().enumerate() {
        let done = cluster.client(n as u64 % 3 + 1).finished(id).await;
        assert_eq!(done["verdict"], "accepted", "{done}");
        let executions = witness.executions_of(name);
        let printed = done["stdout"].as_str().expect("stdout").to_owned();
        let by = executions.last().expect("an execution").pid;
        assert_eq!(printed, format!("{name} by {by}\n"), "{executions:?}");
        assert!(executions.len() <= attempts(&done), "{done} {executions:?}");
        assert!(attempts(&done) > 1 || !running.contains(name), "{done}");
        ends.push(done);
    }
    cluster.agree().await;
    cluster.all_show(&ends).await;
    cluster.all_show(&finished).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_all_were_killed_is_done() {
    let mut cluster = Cluster::start(Plan::new(Executor::Process).slots(1)).await;
    let (sender, mut acknowledged) = mpsc::unbounded_channel();
    for (n, client) in cluster.clients().into_iter().enumerate() {
        for stream in 0..4 {
            let (client, sender) = (client.clone(), sender.clone());
            tokio::spawn(async move {
                for count in 0.. {
                    let name = format!("{n}-{stream}-{count}");
                    let job = json!({ "language": "bash", "source": "echo $1", "args": [name] });
                    let request = client.request(Method::POST, "/v1/jobs").json(&job);
                    match Client::try_send(request).await {
                        Ok(answer) if answer.status == 202 => {
                            let id = answer.json()["id"].as_str().expect("an id").to_owned();
                            if sender.send((name, id)).is_err() {
                                return;
                            }
                        }
                        // The node is gone: so is this submitter.
                        _ => return,
                    }
                }
            });
        }
    }
    drop(sender);
    let mut all = Vec::new();
    while all.len() < 60 {
        all.push(acknowledged.recv().await.expect("an acknowledgement"));
    }
    cluster.kill_all();
    while let Some(one) = acknowledged.recv().await {
        all.push(one);
    }
    cluster.restart_all().await;
    let mut ends = Vec::new();
    for (n, (name, id)) in all.iter().enumerate() {
        let done = cluster.client(n as u64 % 3 + 1).finished(id).await;
        assert_eq!(done["stdout"], format!("{name}\n"), "{done}");
        ends.push(done);
    }
    cluster.agree().await;
    cluster.all_show(&ends).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_worker_is_lost_and_its_late_result_is_fenced() {
    let mut cluster = Cluster::of_processes().await;
    let witness = Witness::new();
    let (name, id, worker) = on_a_follower(&cluster, &witness).await;
    let first = witness.began(&name, 1).await.remove(0);
    cluster.node(worker).pause();
    let leader = cluster
        .ids()
        .into_iter()
        .find(|id| *id != worker)
        .expect("another node");
    let client = cluster.client(leader).clone();
    says_lost(&client, worker, true).await;
    witness.began(&name, 2).await;
    assert!(first.lives(), "nobody has told the first execution to end");
    // Now both end, the first one while its node is paused.
    witness.open_gate();
    let done = client.finished(&id).await;
    let executions = witness.executions_of(&name);
    let last = executions.last().expect("an execution").pid;
    assert_ne!(last, first.pid);
    assert_eq!(done["stdout"], format!("{name} by {last}\n"), "{done}");
    assert!(attempts(&done) >= 2, "{done}");
    only_lives(&witness, &name, &[]).await;

    cluster.node(worker).resume();
    let node = cluster.node(worker);
    eventually("the late result is fenced", async || {
        if node.log().contains("the report was fenced") {
            Ok(())
        } else {
            Err("not yet")
        }
    })
    .await;
    cluster.ready().await;
    cluster.agree().await;
    cluster.all_show(&[done]).await;

    // It works again.
    let again = Witness::new();
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(client.submit(&again.gated(&format!("again-{n}"))).await);
    }
    eventually("the node that was paused has work again", async || {
        for id in &ids {
            if client.job(id).await["node"] == worker {
                return Ok(());
            }
        }
        Err("nothing is on it")
    })
    .await;
    again.open_gate();
    for id in &ids {
        assert_eq!(client.finished(id).await["verdict"], "accepted");
    }
}

/// Waits until the cluster, as `client` sees it, says that a node is lost, or that it is not.
async fn says_lost(client: &Client, node: u64, lost: bool) {
    eventually("the cluster says whether the node is lost", async || {
        let status = client.cluster().await;
        let nodes = status["nodes"].as_array().expect("nodes");
        let said = nodes
            .iter()
            .any(|known| known["id"] == node && known["lost"] == lost);
        if said {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_lost_again_and_again_always_comes_back() {
    let mut cluster = Cluster::of_processes().await;
    let leader = cluster.leader().await;
    let paused = cluster
        .ids()
        .into_iter()
        .find(|id| *id != leader)
        .expect("a follower");
    let client = cluster.client(leader).clone();
    for _ in 0..3 {
        cluster.node(paused).pause();
        says_lost(&client, paused, true).await;
        // It has hardly announced itself when it is lost once more: it may see both at once.
        cluster.node(paused).resume();
        says_lost(&client, paused, false).await;
        cluster.node(paused).pause();
        says_lost(&client, paused, true).await;
        cluster.node(paused).resume();
        says_lost(&client, paused, false).await;
    }
    cluster.ready().await;
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_leader_is_replaced_and_follows_when_it_goes_on() {
    let mut cluster = Cluster::of_processes().await;
    let old = cluster.leader().await;
    cluster.node(old).pause();
    let client = cluster
        .ids()
        .into_iter()
        .find(|id| *id != old)
        .map(|id| cluster.client(id).clone())
        .expect("another node");
    let new = eventually("another one leads", async || {
        let leader = client.cluster().await["leader"].as_u64();
        leader.filter(|id| *id != old).ok_or(format!("{leader:?}"))
    })
    .await;
    let jobs = (0..10)
        .map(|n| json!({ "language": "bash", "source": "echo $1", "args": [n.to_string()] }));
    let mut ends = Vec::new();
    for (n, job) in jobs.enumerate() {
        let clients = [cluster.client(new).clone(), client.clone()];
        let key = format!("during-{n}");
        let done = fleet::finish(&clients, n, &key, &job, Instant::now() + LONG)
            .await
            .expect("two of three are enough");
        assert_eq!(done["stdout"], format!("{n}\n"), "{done}");
        ends.push(done);
    }
    cluster.node(old).resume();
    cluster.ready().await;
    cluster.leader().await;
    cluster.agree().await;
    cluster.all_show(&ends).await;
    let done = cluster
        .client(old)
        .run(&json!({ "language": "bash", "source": "echo through the old one" }))
        .await;
    assert_eq!(done["stdout"], "through the old one\n");
}

/// Kills all but one, which then takes nothing, says so, and shows what it has to whoever can do with that.
async fn alone(cluster: &mut Cluster, survivor: u64) {
    let witness = Witness::new();
    let waiting = cluster
        .client(survivor)
        .submit(&witness.gated(&format!("before-{survivor}")))
        .await;
    cluster.agree().await;
    for id in cluster.ids() {
        if id != survivor {
            cluster.node(id).kill();
        }
    }
    let client = cluster.client(survivor).clone();
    eventually("the node says that it is alone", async || {
        let ready = client.get("/readyz").await;
        let reasons = ready.json()["reasons"].to_string();
        let says =
            reasons.contains("there is no leader") || reasons.contains("not reach a majority");
        if ready.status == 503 && says {
            Ok(())
        } else {
            Err(ready.text())
        }
    })
    .await;
    assert_eq!(
        client.get("/healthz").await.status,
        200,
        "the process is well"
    );

    let refused = json!({ "language": "bash", "source": "echo refused", "labels": ["refused"] });
    let waiting_path = format!("/v1/jobs/{waiting}");
    let answers = tokio::join!(
        client.post_json("/v1/jobs", &refused),
        client.post_json("/v1/jobs?wait=60", &refused),
        client.lang("bash", "echo refused"),
        client.get("/v1/jobs"),
        client.delete(&waiting_path),
        client.get("/v1/jobs/01900000-0000-7000-8000-000000000000"),
    );
    let answers = [
        answers.0, answers.1, answers.2, answers.3, answers.4, answers.5,
    ];
    for answer in answers {
        let _ = answer.problem(503, "no-quorum");
        let after = answer.header("retry-after").parse::<u32>();
        assert!(
            after.is_ok_and(|seconds| seconds > 0),
            "{:?}",
            answer.headers
        );
    }
    let stale = client
        .get(&format!("/v1/jobs/{waiting}?consistency=stale"))
        .await
        .expect(200);
    assert_ne!(stale["state"], "finished");

    witness.open_gate();
    cluster.restart_all().await;
    let done = client.finished(&waiting).await;
    assert_eq!(done["verdict"], "accepted", "{done}");
    cluster.agree().await;
    for client in cluster.clients() {
        let list = client.get("/v1/jobs?label=refused").await.expect(200);
        assert_eq!(list["jobs"], json!([]), "it said that nothing was changed");
        assert_eq!(client.job(&waiting).await, done);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_left_alone_takes_nothing_and_says_so() {
    let mut cluster = Cluster::of_processes().await;
    let leader = cluster.leader().await;
    alone(&mut cluster, leader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_left_alone_takes_nothing_and_says_so() {
    let mut cluster = Cluster::of_processes().await;
    let leader = cluster.leader().await;
    let follower = cluster.ids().into_iter().find(|id| *id != leader);
    alone(&mut cluster, follower.expect("a follower")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_told_to_end_finishes_what_it_runs() {
    let mut cluster = Cluster::of_processes().await;
    for id in cluster.ids() {
        let witness = Witness::new();
        let mut jobs = Vec::new();
        // Two on every node: at least one is on this one, which in one of the rounds is the leader.
        for n in 0..6 {
            let name = format!("round-{id}-{n}");
            jobs.push(cluster.client(id).submit(&witness.gated(&name)).await);
            witness.began(&name, 1).await;
        }
        let node = cluster.node(id);
        let drained = |log: &str| log.matches("node drains").count();
        let before = drained(&node.log());
        node.signal(rustix::process::Signal::TERM);
        eventually("the node drains", async || {
            if drained(&node.log()) > before {
                Ok(())
            } else {
                Err("not yet")
            }
        })
        .await;
        witness.open_gate();
        let status = node.ends().await;
        assert!(status.success(), "{status}");
        let other = cluster.any().clone();
        for job in &jobs {
            let done = other.finished(job).await;
            assert_eq!(done["verdict"], "accepted", "{done}");
            assert_eq!(attempts(&done), 1, "it was not done again: {done}");
        }
        assert_eq!(witness.executions().len(), 6);
        cluster.node(id).restart().await;
    }
    cluster.agree().await;
}

/// A figure of a node's metrics.
async fn figure(client: &Client, name: &str) -> i64 {
    let answer = client.get("/metrics").await;
    let text = answer.text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is not in {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_clock_does_not_move_the_ledgers_time() {
    const MINUTE: i64 = 60_000;
    let mut cluster = Cluster::start(Plan::new(Executor::Process)).await;
    let mut shims = BTreeMap::new();
    for id in cluster.ids() {
        let data = cluster.node(id).data().to_owned();
        let shim = Shim::new(&data.with_extension("shim"), &data);
        cluster.node(id).settings().env.extend(shim.env());
        cluster.node(id).restart().await;
        shims.insert(id, shim);
    }
    let job = json!({ "language": "bash", "source": "true" });
    for wrong in [60 * MINUTE, -60 * MINUTE] {
        let mut leader = 0;
        eventually("the clock of the leader is seen to be wrong", async || {
            leader = cluster.leader().await;
            for (id, shim) in &shims {
                shim.clock_offset_ms(if *id == leader { wrong } else { 0 });
            }
            // It has to date something.
            cluster.client(leader).run(&job).await;
            let ahead = figure(cluster.client(leader), "quorun_clock_ahead_ms").await;
            if (ahead - wrong).abs() < MINUTE {
                Ok(())
            } else {
                Err(format!("node {leader} says {ahead}"))
            }
        })
        .await;
        for client in cluster.clients() {
            client.run(&job).await;
            let time = figure(client, "quorun_ledger_time_ms").await;
            let now = SystemTime::UNIX_EPOCH
                .elapsed()
                .expect("a time")
                .as_millis();
            let off = time - i64::try_from(now).expect("not so far");
            assert!(off.abs() < MINUTE, "the ledger's time is off by {off} ms");
        }
        let log = cluster.node(leader).log();
        let said = "clock is not what most voters say";
        assert!(log.contains(said), "node {leader} says it: {log}");
    }
    for shim in shims.values() {
        shim.clear();
    }
    cluster.agree().await;
}
