//! Sandboxes are containers: how they are made, how jobs are spread over them, and what becomes of them.

use std::collections::{BTreeMap, BTreeSet};

use quorun_tests::engine::ContainerSummary;
use quorun_tests::{Cluster, Engine, Executor, Plan, eventually};
use serde_json::{Value, json};

/// A cluster whose sandboxes are containers, or nothing where there is no engine.
async fn cluster(test: &str, plan: Plan) -> Option<(Engine, Cluster)> {
    let engine = Engine::find(test).await?;
    Some((engine, Cluster::start(plan).await))
}

fn docker() -> Plan {
    Plan::new(Executor::Docker)
}

/// A program with all the time that can be asked for.
fn patient(language: &str, source: &str) -> Value {
    json!({
        "language": language,
        "source": source,
        "limits": { "cpu_ms": 20_000, "wall_ms": 60_000 },
    })
}

/// The node that a container belongs to.
fn node_of(container: &ContainerSummary) -> Option<String> {
    container.labels.as_ref()?.get("quorun.node").cloned()
}

/// The running containers of one process of a node.
async fn sandboxes_of(engine: &Engine, cluster: &str, node: u64, incarnation: u64) -> Vec<String> {
    let mut found = engine.sandboxes(cluster).await;
    found.retain(|container| {
        let labels = container.labels.clone().unwrap_or_default();
        labels.get("quorun.node") == Some(&node.to_string())
            && labels.get("quorun.incarnation") == Some(&incarnation.to_string())
    });
    found.into_iter().filter_map(|found| found.id).collect()
}

/// Ends the nodes as an operator would; they leave nothing behind.
async fn leaves_nothing(engine: &Engine, mut cluster: Cluster) {
    let id = cluster.id().await;
    cluster.stop().await;
    let left = engine.containers(&id).await;
    assert!(left.is_empty(), "left on the engine: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_to_the_least_busy_node() {
    let Some((engine, cluster)) = cluster("jobs_go_to_the_least_busy_node", docker()).await else {
        return;
    };
    cluster.all_work().await;
    // All of them through one node: it must not keep them for itself.
    let client = cluster.client(1);
    let mut jobs = Vec::new();
    for n in 0..6 {
        let id = client
            .submit(&patient("bash", "echo $HOSTNAME; sleep 59"))
            .await;
        jobs.push(id);
        // One more on the node that had least: never two apart.
        let busy = eventually("it was assigned", async || {
            let status = client.cluster().await;
            let nodes = status["nodes"].as_array().expect("nodes");
            let busy: Vec<_> = nodes.iter().filter_map(|n| n["busy"].as_u64()).collect();
            if busy.iter().sum::<u64>() == n + 1 && busy.len() == 3 {
                Ok(busy)
            } else {
                Err(status.to_string())
            }
        })
        .await;
        let (least, most) = (busy.iter().min(), busy.iter().max());
        assert!(most <= least.map(|l| l + 1).as_ref(), "{busy:?}");
    }
    let mut on: BTreeMap<u64, u32> = BTreeMap::new();
    for id in &jobs {
        let job = eventually("it runs", async || {
            let job = client.job(id).await;
            if job["state"] == "running" {
                Ok(job)
            } else {
                Err(job.to_string())
            }
        })
        .await;
        *on.entry(job["node"].as_u64().expect("a node")).or_default() += 1;
    }
    assert_eq!(on, BTreeMap::from([(1, 2), (2, 2), (3, 2)]));
    // The seventh finds no slot and waits.
    let waits = client.submit(&patient("bash", "echo then")).await;
    assert_eq!(client.job(&waits).await["state"], "queued");
    for id in &jobs {
        let cancelled = client.delete(&format!("/v1/jobs/{id}")).await.expect(200);
        assert_eq!(cancelled["verdict"], "cancelled");
    }
    assert_eq!(client.finished(&waits).await["stdout"], "then\n");
    leaves_nothing(&engine, cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_may_do_nothing_that_it_need_not() {
    let test = "a_sandbox_may_do_nothing_that_it_need_not";
    let Some((engine, cluster)) = cluster(test, docker()).await else {
        return;
    };
    let id = cluster.id().await;
    let done = cluster.any().run(&patient("bash", "echo made")).await;
    assert_eq!(done["stdout"], "made\n", "{done}");
    let sandboxes = eventually("every node keeps sandboxes warm", async || {
        let sandboxes = engine.sandboxes(&id).await;
        let nodes: BTreeSet<_> = sandboxes.iter().filter_map(node_of).collect();
        if nodes.len() == 3 {
            Ok(sandboxes)
        } else {
            Err(format!("those of {nodes:?} do"))
        }
    })
    .await;
    let mut inspected = 0;
    for summary in &sandboxes {
        let Some(container) = engine.inspect(summary.id.as_deref().expect("an id")).await else {
            continue; // replaced in the meantime
        };
        let host = container.host_config.expect("a host configuration");
        let config = container.config.expect("a configuration");
        let name = container.name.unwrap_or_default();

        assert_eq!(host.network_mode.as_deref(), Some("none"), "{name}");
        assert_eq!(host.readonly_rootfs, Some(true), "{name}");
        assert_ne!(host.privileged, Some(true), "{name}");
        let dropped = host.cap_drop.unwrap_or_default();
        assert_eq!(dropped, ["ALL"], "{name}");
        let mut added = host.cap_add.unwrap_or_default();
        for capability in &mut added {
            *capability = capability.trim_start_matches("CAP_").to_owned();
        }
        added.sort();
        assert_eq!(added, ["KILL", "SETGID", "SETUID"], "{name}");
        let security = host.security_opt.unwrap_or_default();
        assert!(
            security
                .iter()
                .any(|o| o.starts_with("no-new-privileges") && !o.ends_with("false")),
            "{name}: {security:?}"
        );
        assert!(
            !security.iter().any(|option| option.contains("unconfined")),
            "{name}: {security:?}"
        );
        let memory = host.memory.unwrap_or(0);
        assert!(
            (1 << 24..=(2 << 30) + (64 << 20)).contains(&memory),
            "{name}: {memory}"
        );
        assert_eq!(host.memory_swap, Some(memory), "{name}: no swap");
        let pids = host.pids_limit.unwrap_or(0);
        assert!((1..=4096).contains(&pids), "{name}: {pids}");
        assert!(host.nano_cpus.unwrap_or(0) > 0, "{name}");
        let shares = host.cpu_shares.unwrap_or(0);
        assert!((2..1024).contains(&shares), "{name}: {shares}");
        for (place, options) in host.tmpfs.unwrap_or_default() {
            assert!(
                ["/box", "/tmp", "/dev/shm"].contains(&place.as_str()),
                "{name}: {place}"
            );
            for option in ["size=", "nosuid", "nodev"] {
                assert!(options.contains(option), "{name}: {place} {options}");
            }
        }
        for shared in [
            &host.pid_mode,
            &host.ipc_mode,
            &host.uts_mode,
            &host.userns_mode,
        ] {
            assert_ne!(shared.as_deref(), Some("host"), "{name}");
        }
        assert_eq!(host.binds.unwrap_or_default(), [""; 0], "{name}");
        assert!(host.devices.unwrap_or_default().is_empty(), "{name}");
        let log = host.log_config.and_then(|log| log.typ);
        assert_eq!(log.as_deref(), Some("none"), "{name}");

        let mounts = container.mounts.unwrap_or_default();
        assert_eq!(
            mounts.len(),
            1,
            "{name}: nothing but the warden: {mounts:?}"
        );
        assert_eq!(mounts[0].rw, Some(false), "{name}: {mounts:?}");
        let volume = mounts[0].name.clone().unwrap_or_default();
        assert!(volume.starts_with("quorun-warden-"), "{name}: {mounts:?}");
        assert!(config.volumes.unwrap_or_default().is_empty(), "{name}");

        let labels = config.labels.unwrap_or_default();
        assert_eq!(labels.get("quorun.cluster"), Some(&id), "{name}");
        assert_eq!(
            labels.get("quorun.incarnation").map(String::as_str),
            Some("1")
        );
        inspected += 1;
    }
    assert!(inspected >= 3, "{inspected} sandboxes");
    leaves_nothing(&engine, cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_sees_of_its_sandbox() {
    let test = "what_a_program_sees_of_its_sandbox";
    let Some((engine, cluster)) = cluster(test, docker().nodes(1)).await else {
        return;
    };
    let client = cluster.any();
    let looks = r#"
import os
def attempt(what):
    try:
        what()
        return "can"
    except OSError as error:
        return "cannot"
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
print("root", os.getuid() == 0 or os.getgid() == 0)
print("capabilities", int(status["CapEff"], 16), int(status["CapPrm"], 16), int(status["CapBnd"], 16) & ~0xe0)
print("new privileges", status["NoNewPrivs"].strip())
print("interfaces", [name for name in os.listdir("/sys/class/net") if name != "lo"])
print("write to the root", attempt(lambda: open("/written", "w")))
print("write to the warden", attempt(lambda: open("/.quorun/written", "w")))
print("the engine's socket", os.path.exists("/var/run/docker.sock"))
print("write to the box", attempt(lambda: open("written", "w")), os.getcwd())
print("signal the warden", attempt(lambda: os.kill(1, 9)))
print("secrets", sorted(name for name in os.environ if "QUORUN" in name))
"#;
    let done = client.run(&patient("python", looks)).await;
    assert_eq!(done["verdict"], "accepted", "{done}");
    let expected = "\
root False
capabilities 0 0 0
new privileges 1
interfaces []
write to the root cannot
write to the warden cannot
the engine's socket False
write to the box can /box
signal the warden cannot
secrets []
";
    assert_eq!(done["stdout"], expected, "{done}");
    leaves_nothing(&engine, cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_job_is_left_for_the_next_one_in_its_sandbox() {
    let test = "nothing_of_a_job_is_left_for_the_next_one_in_its_sandbox";
    let plan = docker().nodes(1).slots(1);
    let Some((engine, cluster)) = cluster(test, plan).await else {
        return;
    };
    let client = cluster.any();
    // The time at which PID 1 began names the sandbox.
    let leaves = r#"
cut -d" " -f22 /proc/1/stat
echo secret > /box/left; mkdir -p /tmp/deep/er; echo secret > /tmp/deep/er/left; echo x > /tmp/.hidden
chmod 000 /tmp/deep
(trap "" TERM HUP; setsid sleep 1000 </dev/null >/dev/null 2>&1 &)
"#;
    let looks = r#"
cut -d" " -f22 /proc/1/stat
ls -A /box | grep -v '^main.sh$'
ls -A /tmp
find / -xdev -name left 2>/dev/null
find /dev/shm /dev/mqueue /var/tmp /run -type f 2>/dev/null
grep -l sleep /proc/[0-9]*/comm 2>/dev/null
exit 0
"#;
    let mut same = 0;
    for round in 0..10 {
        let left = client.run(&patient("bash", leaves)).await;
        assert_eq!(left["verdict"], "accepted", "{left}");
        let looked = client.run(&patient("bash", looks)).await;
        let stdout = looked["stdout"].as_str().expect("stdout");
        let (sandbox, rest) = stdout.split_once('\n').expect("a line");
        assert_eq!(rest, "", "round {round}: left over: {looked}");
        if left["stdout"] == format!("{sandbox}\n") {
            same += 1;
        }
    }
    assert!(
        same > 0,
        "no sandbox served two jobs in a row, so nothing was shown"
    );
    leaves_nothing(&engine, cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_in_a_container() {
    let test = "limits_hold_in_a_container";
    let Some((engine, cluster)) = cluster(test, docker().nodes(1)).await else {
        return;
    };
    let client = cluster.any();
    let limited = |language: &str, source: &str, name: &str, value: u64| {
        let mut job = patient(language, source);
        job["limits"][name] = value.into();
        job
    };
    let hoards =
        "x = bytearray(600 << 20)\nfor n in range(0, len(x), 4096): x[n] = 1\nprint('had it')";
    let done = client
        .run(&limited("python", hoards, "memory_kb", 65_536))
        .await;
    assert_eq!(done["verdict"], "memory_limit", "{done}");
    let done = client
        .run(&limited("bash", "while :; do :; done", "cpu_ms", 300))
        .await;
    assert_eq!(done["verdict"], "time_limit", "{done}");
    let done = client
        .run(&limited("bash", "sleep 1000", "wall_ms", 500))
        .await;
    assert_eq!(done["verdict"], "time_limit", "{done}");
    let forks = "for n in $(seq 1 400); do sleep 30 & done 2>/dev/null; echo all";
    let done = client.run(&limited("bash", forks, "processes", 20)).await;
    assert_ne!(done["stdout"], "all\n", "{done}");
    // None of that harms the next one.
    let done = client.run(&patient("bash", "echo well")).await;
    assert_eq!(done["stdout"], "well\n", "{done}");
    leaves_nothing(&engine, cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_node_leaves_is_removed_by_its_next_incarnation() {
    let test = "what_a_killed_node_leaves_is_removed_by_its_next_incarnation";
    // Alone, so that nobody else removes it.
    let Some((engine, mut cluster)) = cluster(test, docker().nodes(1)).await else {
        return;
    };
    let id = cluster.id().await;
    let of = async |incarnation| sandboxes_of(&engine, &id, 1, incarnation).await;
    eventually("it has sandboxes", async || {
        if of(1).await.is_empty() {
            Err("none")
        } else {
            Ok(())
        }
    })
    .await;
    // A sandbox ends with its node's end of its stdin. One whose warden hangs does not, and is an orphan.
    let orphan = engine.orphan(&id, 1, 1).await;
    let foreign = engine.orphan(&id, 9, 1).await;
    cluster.node(1).kill();
    assert!(
        of(1).await.contains(&orphan),
        "nobody is there to remove it"
    );
    cluster.node(1).restart().await;
    eventually("the orphans are gone", async || {
        let left = of(1).await;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
    eventually("there are new sandboxes", async || {
        if of(2).await.is_empty() {
            Err("none")
        } else {
            Ok(())
        }
    })
    .await;
    assert!(engine.inspect(&foreign).await.is_some(), "not its own");
    engine.remove(&foreign).await;
    let done = cluster.client(1).run(&patient("bash", "echo back")).await;
    assert_eq!(done["stdout"], "back\n", "{done}");
    leaves_nothing(&engine, cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_node_leaves_is_removed_by_its_peers() {
    let test = "what_a_lost_node_leaves_is_removed_by_its_peers";
    let Some((engine, mut cluster)) = cluster(test, docker()).await else {
        return;
    };
    let id = cluster.id().await;
    let victim = 2;
    cluster.all_work().await;
    let orphan = engine.orphan(&id, victim, 1).await;
    // Neither what a newer process of that node has, nor what is one's own.
    let newer = engine.orphan(&id, victim, 2).await;
    let own = engine.orphan(&id, 1, 1).await;
    cluster.node(victim).kill();
    eventually("its sandboxes are gone while it is dead", async || {
        let left = sandboxes_of(&engine, &id, victim, 1).await;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "{left:?}, of which {orphan} does not end by itself"
            ))
        }
    })
    .await;
    for kept in [&newer, &own] {
        assert!(engine.inspect(kept).await.is_some(), "{kept}");
    }
    assert!(!sandboxes_of(&engine, &id, 1, 1).await.is_empty());
    engine.remove(&newer).await;
    engine.remove(&own).await;
    let done = cluster.client(1).run(&patient("bash", "echo on")).await;
    assert_eq!(done["stdout"], "on\n", "{done}");
    cluster.node(victim).restart().await;
    leaves_nothing(&engine, cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_only_slow_goes_on_with_new_sandboxes() {
    let test = "a_node_that_was_only_slow_goes_on_with_new_sandboxes";
    let Some((engine, mut cluster)) = cluster(test, docker()).await else {
        return;
    };
    let id = cluster.id().await;
    let leader = cluster.leader().await;
    let slow = if leader == 3 { 2 } else { 3 };
    cluster.all_work().await;
    cluster.node(slow).pause();
    eventually("it is taken for lost, and its sandboxes go", async || {
        let left = sandboxes_of(&engine, &id, slow, 1).await;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
    cluster.node(slow).resume();
    let client = cluster.client(slow);
    eventually("it runs jobs again", async || {
        let done = client.run(&patient("bash", "echo on")).await;
        assert_eq!(done["stdout"], "on\n", "{done}");
        if done["node"] == slow {
            Ok(())
        } else {
            Err(done.to_string())
        }
    })
    .await;
    assert!(!sandboxes_of(&engine, &id, slow, 1).await.is_empty());
    leaves_nothing(&engine, cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_with_keys_share_no_sandbox_and_the_cluster_says_why_sandboxes_went() {
    let test = "jobs_with_keys_share_no_sandbox_and_the_cluster_says_why_sandboxes_went";
    let plan = docker().nodes(1).slots(1).arg("--max-jobs-per-sandbox=2");
    let Some((engine, cluster)) = cluster(test, plan).await else {
        return;
    };
    let client = cluster.any();
    let mut owners = BTreeMap::new();
    for round in 0..4 {
        for owner in [None, Some("one"), Some("two")] {
            let mut job = patient("bash", "cksum < /proc/self/mountinfo");
            job["isolation_key"] = owner.into();
            let done = client.run(&job).await;
            assert_eq!(done["verdict"], "accepted", "{done}");
            let known = owners.entry(done["stdout"].to_string()).or_insert(owner);
            assert_eq!(*known, owner, "round {round}: two owners in one sandbox");
        }
    }
    eventually("it says why", async || {
        let status = client.cluster().await;
        let sandboxes = &status["nodes"][0]["sandboxes"];
        let by = sandboxes["discarded_by"].as_object();
        let total: Option<u64> = by.map(|by| by.values().filter_map(Value::as_u64).sum());
        let gone = sandboxes["discarded_by"]["worn"].as_u64() >= Some(1)
            || sandboxes["discarded_by"]["evicted"].as_u64() >= Some(1);
        if gone && total == sandboxes["discarded"].as_u64() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    leaves_nothing(&engine, cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_loses_nothing_of_what_runs_in_containers() {
    let test = "a_killed_node_loses_nothing_of_what_runs_in_containers";
    let Some((engine, mut cluster)) = cluster(test, docker()).await else {
        return;
    };
    let leader = cluster.leader().await;
    let client = cluster
        .ids()
        .into_iter()
        .find(|id| *id != leader)
        .map(|id| cluster.client(id).clone())
        .expect("another node");
    let mut ids = Vec::new();
    for n in 0..12 {
        let mut job = patient("bash", "sleep 2; echo done $1");
        job["args"] = json!([n.to_string()]);
        ids.push(client.submit(&job).await);
    }
    eventually("the leader executes", async || {
        for id in &ids {
            let job = client.job(id).await;
            if job["state"] == "running" && job["node"] == leader {
                return Ok(());
            }
        }
        Err("nothing is on it")
    })
    .await;
    cluster.node(leader).kill();
    let mut ends = Vec::new();
    for (n, id) in ids.iter().enumerate() {
        let done = client.finished(id).await;
        assert_eq!(done["stdout"], format!("done {n}\n"), "{done}");
        ends.push(done);
    }
    cluster.node(leader).restart().await;
    cluster.agree().await;
    cluster.all_show(&ends).await;
    leaves_nothing(&engine, cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_container_for_every_job_where_that_is_asked_for() {
    let test = "a_fresh_container_for_every_job_where_that_is_asked_for";
    let plan = docker().nodes(1).slots(1).arg("--max-jobs-per-sandbox=1");
    let Some((engine, cluster)) = cluster(test, plan).await else {
        return;
    };
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        let began = patient("bash", "cut -d' ' -f22 /proc/1/stat");
        let done = cluster.any().run(&began).await;
        assert_eq!(done["verdict"], "accepted", "{done}");
        assert!(
            seen.insert(done["stdout"].to_string()),
            "used twice: {done}"
        );
    }
    leaves_nothing(&engine, cluster).await;
}
