//! How fast many sandboxes get warm, and what an idle one costs.
//!
//! ```text
//! cargo run --release -p quorun-executor --example warm -- [--sandboxes 200] [--makers 2] [--image IMAGE] [--memory-kb KB]
//! ```
//!
//! Starts an executor with so many slots and prints when a tenth of the sandboxes and when all of them were warm, what
//! they take of the machine's memory and of their own, and how many of them are on the engine's bridge network.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::Command;
use std::time::{Duration, Instant};

use quorun_executor::{Health, Kind, Labels, Options};

#[tokio::main]
async fn main() {
    let argument = |name: &str, default: &str| {
        let mut arguments = std::env::args().skip_while(|argument| argument != name);
        arguments.nth(1).unwrap_or_else(|| default.to_owned())
    };
    let sandboxes: usize = argument("--sandboxes", "200").parse().unwrap();
    let makers: usize = argument("--makers", &Options::MAKERS.to_string())
        .parse()
        .unwrap();
    let memory_kb: u64 = argument("--memory-kb", "262144").parse().unwrap();
    let image = argument("--image", "quorun/sandbox:0.1.0");
    let folder = std::env::temp_dir().join(format!("quorun-warm-{}", std::process::id()));
    let labels = Labels {
        cluster: format!("warm-{}", std::process::id()),
        node: 1,
        incarnation: 1,
    };
    let cluster = labels.cluster.clone();
    let options = Options {
        images: vec![(image, memory_kb)],
        makers,
        ..Options::new(Kind::Docker, sandboxes, labels, folder.clone())
    };
    let bridge_before = bridge();
    let available_before = available_kb();
    let began = Instant::now();
    let (executor, upkeep) = quorun_executor::start(options).unwrap();
    let upkeep = tokio::spawn(upkeep);
    let mut health = executor.health();
    health
        .wait_for(|health| *health == Health::Ready)
        .await
        .unwrap();
    let mut marks = vec![sandboxes, (sandboxes / 10).max(1)];
    while let Some(mark) = marks.last() {
        if executor.sandboxes()["warm"] >= *mark as u64 {
            println!(
                "{mark:4} warm after {:6.2} s, {makers} at a time",
                began.elapsed().as_secs_f64()
            );
            marks.pop();
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let filter = format!("label=quorun.cluster={cluster}");
    let ids = docker(&["ps", "-q", "--no-trunc", "--filter", &filter]);
    let own: Vec<u64> = ids.lines().filter_map(usage).collect();
    let taken = available_before.saturating_sub(available_kb());
    println!(
        "an idle one: {} KiB of its own memory, {} KiB of the machine's",
        own.iter().sum::<u64>() / 1024 / (own.len() as u64).max(1),
        taken / sandboxes as u64
    );
    let on_bridge = ids.lines().filter(|id| bridge().contains(id)).count();
    println!(
        "endpoints on the bridge: {} before, {} after, {on_bridge} of these",
        bridge_before.split_whitespace().count(),
        bridge().split_whitespace().count()
    );
    let began = Instant::now();
    executor.shutdown().await;
    upkeep.await.unwrap();
    println!("all removed in {:.2} s", began.elapsed().as_secs_f64());
    assert_eq!(
        docker(&["ps", "-aq", "--filter", &filter]),
        "",
        "left behind"
    );
    let _ = std::fs::remove_dir_all(folder);
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn bridge() -> String {
    let ids = "{{range $id, $_ := .Containers}}{{$id}} {{end}}";
    docker(&["network", "inspect", "bridge", "--format", ids])
}

fn available_kb() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    word.unwrap().parse().unwrap()
}

/// What a container's cgroup says that it uses, bytes; where cgroups are depends on the machine.
fn usage(id: &str) -> Option<u64> {
    [
        format!("/sys/fs/cgroup/memory/docker/{id}/memory.usage_in_bytes"),
        format!("/sys/fs/cgroup/docker/{id}/memory.current"),
        format!("/sys/fs/cgroup/system.slice/docker-{id}.scope/memory.current"),
    ]
    .iter()
    .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok())
}
