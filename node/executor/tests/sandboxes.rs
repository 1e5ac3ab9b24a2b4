//! The pool on a real engine: how many sandboxes there are, whose they are, what they are made with, and who removes them.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::engine::{containers, docker, engine, with_labels, with_options};
use quorun_executor::{Health, Kind};
use quorun_ledger::job::Verdict;

/// Prints what no two sandboxes have in common.
const WHICH: &str = "cksum < /proc/self/mountinfo";

#[test]
fn jobs_of_different_keys_never_meet() {
    with_options(
        |options| options.slots = 2,
        |executor| async move {
            let jobs = (0..24).map(|number| {
                let executor = executor.clone();
                async move {
                    let owner = ["", "one", "two"][number % 3];
                    let mut task = common::task(common::bash(), WHICH);
                    task.spec.isolation_key = Some(owner.to_owned()).filter(|o| !o.is_empty());
                    let result = common::run(&executor, task).await;
                    assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
                    (result.output.stdout, owner)
                }
            });
            // As a node does: no more at one time than there are slots.
            let ran: Vec<_> = {
                use futures::StreamExt;
                futures::stream::iter(jobs).buffered(2).collect().await
            };
            let mut owners = BTreeMap::new();
            for (sandbox, owner) in &ran {
                let known = owners.entry(sandbox).or_insert(owner);
                assert_eq!(*known, owner, "two owners in one sandbox");
            }
            let mut jobs: BTreeMap<_, u32> = BTreeMap::new();
            for (sandbox, _) in &ran {
                *jobs.entry(sandbox).or_default() += 1;
            }
            assert!(owners.len() >= 3, "{owners:?}");
            assert!(jobs.values().any(|n| *n > 1), "none served twice: {jobs:?}");
        },
    );
}

#[test]
fn sandboxes_touch_no_network() {
    with_labels(
        |options| {
            options.slots = 24;
            options.images = vec![(common::IMAGE.to_owned(), 64 << 10)];
        },
        |executor, labels| async move {
            let result = common::run(&executor, {
                let mut task = common::task(common::bash(), "ls /sys/class/net");
                task.spec.limits.memory_kb = 64 << 10;
                task
            });
            common::assert_prints(&result.await, b"lo\n");
            common::sandboxes(&executor, |counts| counts["warm"] == 24).await;
            let ids = containers(&labels);
            assert_eq!(ids.len(), 24);
            let networks = "{{.HostConfig.NetworkMode}} {{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}";
            let mut arguments = vec!["inspect", "--format", networks];
            arguments.extend(ids.iter().map(String::as_str));
            for line in docker(&arguments).lines() {
                // Engines list the network "none", or no network.
                assert!(["none none", "none"].contains(&line.trim()), "{line}");
            }
            let bridge = "{{range $id, $_ := .Containers}}{{$id}} {{end}}";
            let endpoints = docker(&["network", "inspect", "bridge", "--format", bridge]);
            for id in &ids {
                assert!(!endpoints.contains(id.as_str()), "{id} is on the bridge");
            }
        },
    );
}

#[test]
fn a_runtime_that_the_engine_does_not_have_is_refused_with_those_that_it_has() {
    if !engine() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = common::options(Kind::Docker, folder.path().to_path_buf());
    options.runtime = Some("no-such-runtime".to_owned());
    let known = docker(&[
        "info",
        "--format",
        "{{range $name, $_ := .Runtimes}}{{$name}} {{end}}",
    ]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (executor, upkeep) = quorun_executor::start(options).unwrap();
        let upkeep = tokio::spawn(upkeep);
        let mut health = executor.health();
        let refused = |health: &Health| matches!(health, Health::NotReady { reason } if reason.contains("no-such-runtime"));
        let wait = health.wait_for(refused);
        let health = tokio::time::timeout(common::PATIENCE, wait)
            .await
            .unwrap()
            .unwrap()
            .clone();
        let Health::NotReady { reason } = health else {
            unreachable!("it was waited for")
        };
        assert!(known.split_whitespace().count() >= 1);
        for name in known.split_whitespace() {
            assert!(reason.contains(name), "{reason} does not name {name}");
        }
        executor.shutdown().await;
        upkeep.await.unwrap();
    });
}

#[test]
fn a_runtime_can_be_chosen() {
    if !engine() {
        return;
    }
    let known = docker(&[
        "info",
        "--format",
        "{{range $name, $_ := .Runtimes}}{{$name}} {{end}}",
    ]);
    for name in ["runc", "io.containerd.runc.v2"] {
        if !known.split_whitespace().any(|k| k == name) {
            continue;
        }
        with_labels(
            |options| options.runtime = Some(name.to_owned()),
            move |executor, labels| async move {
                let result = common::run(&executor, common::task(common::bash(), "echo on")).await;
                common::assert_prints(&result, b"on\n");
                let id = containers(&labels).pop().unwrap();
                let used = docker(&["inspect", "--format", "{{.HostConfig.Runtime}}", &id]);
                assert_eq!(used, name);
            },
        );
    }
}

#[test]
fn empty_files_do_not_fill_the_memory() {
    with_options(
        |options| options.images = vec![(common::IMAGE.to_owned(), 64 << 10)],
        |executor| async move {
            for folder in ["/box", "/tmp"] {
                let source = format!(
                    "cd {folder}; n=0; while : 2>/dev/null > $n; do n=$((n+1)); done; echo $n"
                );
                let mut task = common::task(common::bash(), source);
                task.spec.limits.memory_kb = 64 << 10;
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
                let made = String::from_utf8_lossy(&result.output.stdout)
                    .trim()
                    .to_owned();
                let made: u64 = made.parse().unwrap();
                assert!((1000..=4096).contains(&made), "{made}");
            }
        },
    );
}

#[test]
fn what_a_lost_peer_left_is_removed_up_to_its_incarnation() {
    with_labels(
        |_| {},
        |executor, own| async move {
            common::sandboxes(&executor, |counts| counts["warm"] == 1).await;
            let peer = own.node + 1_000_000;
            let left = |node: u64, incarnation: u64| {
                let labels = [
                    format!("quorun.cluster={}", own.cluster),
                    format!("quorun.node={node}"),
                    format!("quorun.incarnation={incarnation}"),
                ];
                let mut arguments = vec!["create", "--network=none"];
                for label in &labels {
                    arguments.extend(["--label", label]);
                }
                arguments.extend([common::IMAGE, "true"]);
                docker(&arguments)
            };
            let (old, last, newer) = (left(peer, 3), left(peer, 4), left(peer, 5));
            let other = left(peer + 1, 4);
            let mut labels = own.clone();
            labels.node = peer;
            executor.remove_orphans_of(peer, 4).await;
            assert_eq!(containers(&labels), [newer.as_str()], "not {old}, {last}");
            // Twice does no harm, and its own are not a peer's.
            executor.remove_orphans_of(peer, 4).await;
            let before = containers(&own);
            executor.remove_orphans_of(own.node, own.incarnation).await;
            assert_eq!(containers(&own), before);
            docker(&["rm", &newer, &other]);
        },
    );
}
