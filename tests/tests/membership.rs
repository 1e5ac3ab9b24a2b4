//! Nodes join, are replaced and removed, the leadership moves, and nobody who is served by the cluster notices.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use quorun_tests::{Client, Cluster, Plan, Tokens, Witness, eventually, say};
use reqwest::Method;
use serde_json::{Value, json};

fn ids(status: &Value, role: &str) -> BTreeSet<u64> {
    let nodes = status["nodes"].as_array().expect("nodes");
    nodes
        .iter()
        .filter(|node| node["role"] == role)
        .map(|node| node["id"].as_u64().expect("an id"))
        .collect()
}

/// Waits until every node that runs knows exactly these voters and learners.
async fn members(cluster: &Cluster, voters: &[u64], learners: &[u64]) {
    let voters: BTreeSet<u64> = voters.iter().copied().collect();
    let learners: BTreeSet<u64> = learners.iter().copied().collect();
    eventually(
        &format!("{voters:?} vote and {learners:?} learn"),
        async || {
            for client in cluster.clients() {
                let status = client.cluster().await;
                if ids(&status, "voter") != voters
                    || ids(&status, "learner") != learners
                    || status["voters_changing"] == true
                {
                    return Err(format!("{}: {}", client.url(), status["nodes"]));
                }
            }
            Ok(())
        },
    )
    .await;
}

/// Waits until a node has executed something.
async fn works(cluster: &Cluster, node: u64) {
    eventually(&format!("node {node} executes something"), async || {
        let job = json!({ "language": "bash", "source": "true" });
        let done = cluster.any().run(&job).await;
        if done["node"] == node {
            Ok(())
        } else {
            Err(done["node"].to_string())
        }
    })
    .await;
}

fn follower(cluster: &Cluster, leader: u64) -> u64 {
    let mut ids = cluster.ids().into_iter();
    ids.find(|id| *id != leader).expect("another node")
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_join_and_five_of_them_vote() {
    let mut cluster = Cluster::of_processes().await;
    let before = cluster
        .any()
        .run(&json!({ "language": "bash", "source": "echo before" }))
        .await;
    assert_eq!(cluster.join().await, 4);
    members(&cluster, &[1, 2, 3], &[4]).await;
    works(&cluster, 4).await;
    assert_eq!(cluster.join().await, 5);
    members(&cluster, &[1, 2, 3, 4, 5], &[]).await;
    assert_eq!(cluster.join().await, 6);
    members(&cluster, &[1, 2, 3, 4, 5], &[6]).await;
    works(&cluster, 6).await;
    cluster.agree().await;
    cluster.all_show(&[before]).await;

    // Their folders say where they belong, and the members that they have asked need not be there.
    for id in [4, 6] {
        cluster.node(id).kill();
        if let Some(join) = &mut cluster.node(id).settings().join {
            join.urls = "http://127.0.0.1:9".to_owned();
        }
        cluster.node(id).restart().await;
    }
    members(&cluster, &[1, 2, 3, 4, 5], &[6]).await;
    // Two of five may go, the leader among them.
    let leader = cluster.leader().await;
    let other = follower(&cluster, leader);
    cluster.node(leader).kill();
    cluster.node(other).kill();
    let rest = cluster.ids().into_iter();
    let rest: Vec<u64> = rest.filter(|id| ![leader, other].contains(id)).collect();
    let job = json!({ "language": "bash", "source": "echo after" });
    let after = cluster.client(rest[0]).run(&job).await;
    assert_eq!(after["stdout"], "after\n");
    cluster.restart_all().await;
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_hands_its_work_over_and_never_comes_back() {
    let mut cluster = Cluster::of_processes().await;
    cluster.join().await;
    members(&cluster, &[1, 2, 3], &[4]).await;
    let leader = cluster.leader().await;
    let witness = Witness::new();
    let gone = follower(&cluster, leader);
    let (mut jobs, mut held) = (Vec::new(), false);
    while !held {
        let name = format!("job-{}", jobs.len());
        let id = cluster.client(leader).submit(&witness.gated(&name)).await;
        witness.began(&name, 1).await;
        held = cluster.client(leader).job(&id).await["node"] == gone;
        jobs.push(id);
    }
    let path = format!("/v1/cluster/nodes/{gone}");
    let removed = cluster.client(leader).delete(&path).await.expect(200);
    assert_eq!(removed["removed"], true, "{removed}");
    let status = cluster.node(gone).ends().await;
    assert!(!status.success());
    let log = cluster.node(gone).log();
    assert!(log.contains("was removed from the cluster"), "{log}");
    let mut voters: Vec<u64> = vec![1, 2, 3, 4];
    voters.retain(|id| *id != gone);
    members(&cluster, &voters, &[]).await;
    witness.open_gate();
    for id in &jobs {
        assert_eq!(
            cluster.client(leader).finished(id).await["verdict"],
            "accepted"
        );
    }

    cluster.node(gone).start();
    assert!(!cluster.node(gone).ends().await.success(), "it is refused");
    members(&cluster, &voters, &[]).await;
    assert_eq!(cluster.client(leader).delete(&path).await.status, 404);

    // The leader can go as well: another one takes over first.
    let path = format!("/v1/cluster/nodes/{leader}");
    let other = cluster.client(follower(&cluster, leader)).clone();
    let other = if follower(&cluster, leader) == gone {
        cluster.client(4).clone()
    } else {
        other
    };
    let _ = other.delete(&path).await.expect(200);
    assert!(!cluster.node(leader).ends().await.success());
    voters.retain(|id| *id != leader);
    members(&cluster, &voters, &[]).await;
    assert_eq!(cluster.join().await, 5);
    voters.push(5);
    members(&cluster, &voters, &[]).await;
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_removal_takes_the_majority_away() {
    let mut cluster = Cluster::of_processes().await;
    let leader = cluster.leader().await;
    let dead = follower(&cluster, leader);
    let mut rest = cluster.ids().into_iter();
    let alive = rest.find(|id| ![leader, dead].contains(id));
    let alive = alive.expect("a third node");
    cluster.node(dead).kill();
    let path = format!("/v1/cluster/nodes/{alive}");
    let client = cluster.client(leader).clone();
    eventually("the dead node is known to be dead", async || {
        let answer = client.cluster().await;
        let nodes = answer["nodes"].as_array().expect("nodes");
        if nodes.iter().any(|node| node["alive"] == false) {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
    let refused = client.delete(&path).await;
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert_eq!(refused.json()["type"], "urn:quorun:error:no-majority-left");
    // The dead one itself can go.
    let path = format!("/v1/cluster/nodes/{dead}");
    let _ = client.delete(&path).await.expect(200);
    members(&cluster, &[leader.min(alive), leader.max(alive)], &[]).await;
    for (path, status) in [
        ("/v1/cluster/nodes/99", 404),
        ("/v1/cluster/nodes/x", 404),
        ("/v1/cluster/nodes/0", 404),
    ] {
        assert_eq!(client.delete(path).await.status, status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_never_come_can_be_removed() {
    let cluster = Cluster::of_processes().await;
    // Held, and served by nobody: whoever was to come does not.
    let never = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = never.local_addr().expect("its address").to_string();
    let request = json!({ "peer": address });
    let mut last = 3;
    for admitting in cluster.ids() {
        for removing in cluster.ids() {
            let admitted = cluster.client(admitting);
            let admitted = admitted.post_json("/v1/cluster/nodes", &request).await;
            let id = admitted.expect(201)["id"].as_u64().expect("an id");
            assert!(id > last, "{id} was given before");
            last = id;
            // At once, whether it is a member by now or not.
            let path = format!("/v1/cluster/nodes/{id}");
            let removed = cluster.client(removing).delete(&path).await.expect(200);
            assert_eq!(removed["id"], id, "{removed}");
        }
    }
    members(&cluster, &[1, 2, 3], &[]).await;
    let path = format!("/v1/cluster/nodes/{last}");
    assert_eq!(cluster.any().delete(&path).await.status, 404);
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_lost_its_data_comes_back_as_a_new_one() {
    let mut cluster = Cluster::of_processes().await;
    let leader = cluster.leader().await;
    let broken = follower(&cluster, leader);
    let job = json!({ "language": "bash", "source": "echo kept" });
    let kept = cluster.client(leader).run(&job).await;
    cluster.agree().await;
    cluster.node(broken).kill();
    let data = cluster.node(broken).data().to_owned();
    let database = data.join("log/db");
    let file = std::fs::OpenOptions::new().write(true).open(&database);
    file.expect("the log")
        .set_len(0)
        .expect("cut the log short");
    cluster.node(broken).start();
    assert!(!cluster.node(broken).ends().await.success());
    let log = cluster.node(broken).log();
    assert!(log.contains("has lost what was written to it"), "{log}");

    // What the message says: move the folder away, and join from the same address.
    std::fs::rename(&data, data.with_extension("damaged")).expect("move the folder away");
    let mut settings = cluster.joining();
    let old = cluster.node(broken).settings().clone();
    let address = old
        .peers
        .split(',')
        .nth(usize::try_from(broken).expect("small") - 1);
    let port = address.and_then(|address| address.rsplit_once(':')?.1.parse().ok());
    if let Some(join) = &mut settings.join {
        join.peer = port.expect("a port");
    }
    settings.http = old.http;
    settings.data = data;
    cluster.forget(broken);
    let id = cluster.start_joining(settings).await;
    assert_eq!(id, 4);
    let voters: Vec<u64> = [1, 2, 3, 4].into_iter().filter(|v| *v != broken).collect();
    members(&cluster, &voters, &[]).await;
    works(&cluster, id).await;
    cluster.agree().await;
    cluster.all_show(&[kept]).await;

    // Nobody takes the address of a node that is alive.
    let request = json!({ "peer": format!("127.0.0.1:{}", port.expect("a port")) });
    let refused = cluster.any().post_json("/v1/cluster/nodes", &request).await;
    assert_eq!(refused.status, 409, "{}", refused.text());
}

/// Copies a folder as a backup would.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.expect("start cp").success());
}

/// The node does not start with the folder that it has now, and says that others know more of it.
async fn is_refused(cluster: &mut Cluster, node: u64, words: &str) {
    cluster.node(node).start();
    assert!(!cluster.node(node).ends().await.success());
    let log = cluster.node(node).log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains(words), "{last}");
    assert!(last.contains("move the data folder away"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_others_know_to_be_older_is_refused() {
    let mut cluster = Cluster::of_processes().await;
    let job = json!({ "language": "bash", "source": "true" });
    cluster.any().run(&job).await;
    let leader = cluster.leader().await;
    let node = follower(&cluster, leader);
    let data = cluster.node(node).data().to_owned();
    let (old, backup) = (data.with_extension("old"), data.with_extension("backup"));

    // From an earlier start.
    cluster.node(node).stop().await;
    copy(&data, &old);
    cluster.node(node).restart().await;
    // From this start, and what was done since is missing.
    cluster.agree().await;
    cluster.node(node).pause();
    copy(&data, &backup);
    cluster.node(node).resume();
    let mut jobs = Vec::new();
    for _ in 0..10 {
        jobs.push(cluster.client(leader).run(&job).await);
    }
    cluster.agree().await;
    let client = cluster.client(leader).clone();
    eventually("the leader knows how far the node is", async || {
        let status = client.cluster().await;
        let nodes = status["nodes"].as_array().expect("nodes");
        let known = nodes.iter().find(|known| known["id"] == node).cloned();
        let known = known.and_then(|known| known["applied_index"].as_u64());
        let applied = status["applied_index"].as_u64();
        if known.is_some() && known >= applied.map(|index| index - 1) {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    cluster.node(node).kill();
    let right = data.with_extension("right");
    std::fs::rename(&data, &right).expect("move the folder away");

    copy(&old, &data);
    is_refused(&mut cluster, node, "knows of start").await;
    std::fs::remove_dir_all(&data).expect("remove the copy");
    copy(&backup, &data);
    is_refused(&mut cluster, node, "its log ends after").await;
    std::fs::remove_dir_all(&data).expect("remove the copy");
    // And an empty folder for an old id.
    is_refused(&mut cluster, node, "knows of start").await;
    std::fs::remove_dir_all(&data).expect("remove the empty folder");

    assert_eq!(
        cluster.client(leader).run(&job).await["verdict"],
        "accepted"
    );
    std::fs::rename(&right, &data).expect("put the folder back");
    cluster.node(node).restart().await;
    cluster.agree().await;
    cluster.all_show(&jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_voter_gives_its_vote_to_a_learner() {
    let mut cluster = Cluster::of_processes().await;
    cluster.join().await;
    let leader = cluster.leader().await;
    members(&cluster, &[1, 2, 3], &[4]).await;
    let put = |client: &Client, body: Value| {
        client
            .request(Method::PUT, "/v1/cluster/settings")
            .json(&body)
    };
    let client = cluster.client(4).clone();
    let answer = client
        .send(put(&client, json!({ "replace_voter_s": 1 })))
        .await;
    assert_eq!(answer.expect(200)["effective"]["replace_voter_s"], 1);
    let dead = follower(&cluster, leader);
    cluster.node(dead).kill();
    let voters: Vec<u64> = (1..=4).filter(|id| *id != dead).collect();
    members(&cluster, &voters, &[dead]).await;
    cluster.node(dead).restart().await;
    members(&cluster, &voters, &[dead]).await;
    works(&cluster, dead).await;
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leadership_goes_where_it_is_asked_to() {
    let mut cluster = Cluster::of_processes().await;
    let learner = cluster.join().await;
    members(&cluster, &[1, 2, 3], &[4]).await;
    for to in [2, 3, 1, 2] {
        // Also from nodes that do not lead.
        let request = json!({ "node": to });
        let client = cluster.client(1).clone();
        eventually("the leadership moves", async || {
            let moved = client.post_json("/v1/cluster/leader", &request).await;
            if moved.status == 200 && moved.json()["leader"] == to {
                Ok(())
            } else {
                Err(moved.text())
            }
        })
        .await;
        assert_eq!(cluster.leader().await, to);
    }
    let client = cluster.client(learner).clone();
    let refused = client
        .post_json("/v1/cluster/leader", &json!({ "node": learner }))
        .await;
    assert_eq!(refused.status, 409, "{}", refused.text());
    let refused = client
        .post_json("/v1/cluster/leader", &json!({ "node": 9 }))
        .await;
    assert_eq!(refused.status, 404, "{}", refused.text());
    let refused = client
        .post_json("/v1/cluster/leader", &json!({ "nod": 1 }))
        .await;
    assert_eq!(refused.status, 422, "{}", refused.text());

    // A leader that drains leads no longer, and gets no work until it is to.
    let path = format!("/v1/cluster/nodes/{}/drain", 2);
    let _ = client.post(&path, "").await.expect(200);
    let running: Vec<u64> = cluster.ids();
    eventually("another node leads", async || {
        match cluster.leader().await {
            2 => Err("node 2 still leads".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    for _ in 0..2 * running.len() {
        let job = json!({ "language": "bash", "source": "true" });
        assert_ne!(client.run(&job).await["node"], 2);
    }
    let request = json!({ "draining": false });
    let _ = client.post_json(&path, &request).await.expect(200);
    works(&cluster, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_hold_for_the_whole_cluster() {
    let cluster = Cluster::of_processes().await;
    let client = cluster.client(2).clone();
    let put = async |body: Value| {
        let request = client.request(Method::PUT, "/v1/cluster/settings");
        client.send(request.json(&body)).await
    };
    for (wrong, field) in [
        (json!({ "retention_mb": 0 }), "retention_mb"),
        (json!({ "replace_voter_s": 0 }), "replace_voter_s"),
        (json!({ "retention_s": u64::MAX }), "retention_s"),
        (json!({ "retention_s": -1 }), "retention_s"),
        (json!({ "retention_m": 1 }), "retention_m"),
    ] {
        let refused = put(wrong.clone()).await;
        assert_eq!(refused.status, 422, "{wrong}: {}", refused.text());
        assert!(refused.text().contains(field), "{}", refused.text());
    }
    let _ = put(json!({ "retention_s": 0 })).await.expect(200);
    eventually("node 3 knows the settings", async || {
        let settings = cluster
            .client(3)
            .get("/v1/cluster/settings")
            .await
            .expect(200);
        if settings["effective"]["retention_s"] == 0 {
            Ok(())
        } else {
            Err(settings.to_string())
        }
    })
    .await;
    let job = json!({ "language": "bash", "source": "true" });
    let id = cluster.client(3).submit(&job).await;
    let path = format!("/v1/jobs/{id}");
    eventually("the job expires on every node", async || {
        for client in cluster.clients() {
            let answer = client.get(&path).await;
            if answer.status != 404 {
                return Err(answer.text());
            }
        }
        Ok(())
    })
    .await;
    let back = put(json!({})).await.expect(200);
    assert_eq!(back["effective"]["retention_s"], 86_400, "{back}");
}

/// Submits small jobs one after the other, each to the next node, until it is told to stop. A node that takes no
/// connection is passed over; whatever else goes wrong is a failed request.
async fn load(clients: Vec<Client>, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) -> Vec<String> {
    let mut failed = Vec::new();
    for n in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let text = format!("echo {n}");
        let client = &clients[n % clients.len()];
        let request = client.request(Method::POST, "/lang/bash").body(text);
        match Client::try_send(request).await {
            Ok(answer) if answer.status == 200 && answer.text() == format!("{n}\n") => {
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => failed.push(format!("{} {}", answer.status, answer.text())),
            Err(error) if error.is_connect() => {}
            Err(error) => failed.push(format!("{error:?}")),
        }
    }
    failed
}

/// Restarts one node after the other while clients of two owners go on, with the program under test.
async fn restart_one_by_one(plan: impl FnOnce(Plan) -> Plan) {
    // It may have to be built, which is not to happen while a node is down.
    let _ = quorun_tests::program::quorun();
    let tokens = Tokens::new();
    let owners = ["a", "b"].map(|name| tokens.draw(name, "submit", &[]));
    let admin = tokens.draw("root", "admin", &[]);
    let plan = plan(tokens.plan().bearing(&admin));
    let mut cluster = Cluster::start(plan.slots(4)).await;
    cluster.all_work().await;
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let loads: Vec<_> = (0..4)
        .map(|n| {
            let of_owner = |client: &Client| client.bearing(&owners[n % 2]);
            let clients = cluster.clients().into_iter().map(of_owner).collect();
            tokio::spawn(load(clients, stop.clone(), done.clone()))
        })
        .collect();
    for id in cluster.ids() {
        let before = done.load(Ordering::Relaxed);
        eventually("the load goes on", async || {
            let now = done.load(Ordering::Relaxed);
            if now > before + 20 { Ok(()) } else { Err(now) }
        })
        .await;
        cluster.node(id).stop().await;
        cluster.node(id).settings().program = None;
        cluster.node(id).restart().await;
    }
    // Also while they begin to go by the last rules.
    cluster.last_rules().await;
    let before = done.load(Ordering::Relaxed);
    eventually("the load goes on", async || {
        let now = done.load(Ordering::Relaxed);
        if now > before + 20 { Ok(()) } else { Err(now) }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        let failed = load.await.expect("a client");
        assert!(failed.is_empty(), "{failed:#?}");
    }
    // Once all know the last rules they go by them, also for what there was before: a small job weighs hundreds of bytes.
    eventually("all jobs are weighed by their records", async || {
        let held = cluster.any().cluster().await["finished"].clone();
        let figure = |name: &str| held[name].as_u64().expect("a figure");
        if figure("bytes") > 500 * figure("jobs") {
            Ok(())
        } else {
            Err(held)
        }
    })
    .await;
    cluster.agree().await;
    say(&format!(
        "{} requests while all nodes were restarted",
        done.load(Ordering::Relaxed)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_no_request() {
    restart_one_by_one(|plan| plan).await;
}

/// From an older version, which `QUORUN_OLD_BIN` names.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_upgrade_under_load_fails_no_request() {
    let Some(old) = std::env::var_os("QUORUN_OLD_BIN") else {
        say(
            "SKIPPED a_rolling_upgrade_under_load_fails_no_request: QUORUN_OLD_BIN names no older program",
        );
        return;
    };
    restart_one_by_one(|plan| plan.program(old.into())).await;
}
