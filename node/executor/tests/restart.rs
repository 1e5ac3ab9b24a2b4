//! An engine that ends and is started again, under an executor that lives on.
//!
//! The engine is one of the test's own, so that nobody else's containers come to harm: it takes root and `dockerd`. Without
//! them the test says so and does nothing, unless QUORUN_REQUIRE_ENGINE is 1.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::engine::{containers, docker, static_image};
use quorun_executor::{Executor, Health, Kind};

const IMAGE: &str = "quorun-test-static:own";

/// What is missing for an engine of our own.
fn missing() -> Option<String> {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return Some("root".to_owned());
    }
    let found = |name: &str| {
        let output = Command::new(name).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    let missing = ["dockerd", "containerd", "docker", "gcc", "unshare"]
        .into_iter()
        .find(|name| !found(name));
    if let Some(missing) = missing {
        return Some(missing.to_owned());
    }
    let own_network = Command::new("unshare").args(["--net", "true"]).status();
    (!own_network.unwrap().success()).then(|| "the right to have a network of its own".to_owned())
}

/// The engine's files. Whatever is left of it ends with this value, however the test went.
struct Own {
    folder: tempfile::TempDir,
}

impl Own {
    fn cgroup(folder: &Path) -> String {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        format!("/quorun-{}", name.trim_start_matches('.'))
    }

    /// The processes of the engine and of its containers: those that name its folder, and those in its cgroup.
    fn processes(&self) -> Vec<String> {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let cgroup = Self::cgroup(self.folder.path());
        let own = std::process::id().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            if id == own || !id.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&read("cmdline")).into_owned();
            let groups = String::from_utf8_lossy(&read("cgroup")).into_owned();
            if arguments.contains(&folder) || groups.contains(&cgroup) {
                found.push(id);
            }
        }
        found
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let began = Instant::now();
        // What ends may have started something a moment before.
        loop {
            let processes = self.processes();
            if processes.is_empty() || began.elapsed() > common::PATIENCE {
                break;
            }
            for id in processes {
                let _ = Command::new("kill").args(["-9", &id]).output();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let folder = self.folder.path().to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let places: Vec<_> = places.filter(|place| place.starts_with(&folder)).collect();
        for place in places.iter().rev() {
            let _ = Command::new("umount").args(["-l", place]).output();
        }
        // A group can be removed when it has no groups and no processes; there is one in each hierarchy.
        let name = Self::cgroup(self.folder.path());
        let name = name.trim_start_matches('/');
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
        let hierarchies = hierarchies.flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let group = hierarchy.join(name);
            for inner in std::fs::read_dir(&group).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(inner.path());
            }
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// Starts what the engine keeps its containers with. As on most machines it is a service of its own, and containers live
/// on in it while the engine is away.
fn start_containerd(folder: &Path) -> Child {
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = {:?}\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
        path("root"),
        path("state"),
        path("containerd.sock"),
        path("opt"),
    );
    std::fs::write(folder.join("containerd.toml"), config).unwrap();
    let child = Command::new("containerd")
        .args(["--config", &path("containerd.toml")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !folder.join("containerd.sock").exists() {
        assert!(
            began.elapsed() < common::PATIENCE,
            "containerd does not start"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

/// Starts the engine and waits until it answers.
fn start(folder: &Path) -> Child {
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    // In a network of its own: an engine without a bridge removes the one that it finds.
    let mut engine = Command::new("unshare");
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .unwrap();
    engine
        .args(["--net", "dockerd"])
        .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
        .args(["--pidfile", &path("pid"), "--config-file", &path("config")])
        .args(["--containerd", &path("containerd.sock")])
        .args(["-H", &format!("unix://{}", path("engine.sock"))])
        .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
        .args(["--cgroup-parent", &Own::cgroup(folder)])
        .args(["--bridge=none", "--iptables=false", "--ip-forward=false"])
        .args(["--ip-masq=false", "--userland-proxy=false"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    std::fs::write(folder.join("config"), "{}").unwrap();
    let mut engine = engine.spawn().unwrap();
    let began = Instant::now();
    loop {
        let asked = Command::new("docker").arg("version").output().unwrap();
        if asked.status.success() {
            return engine;
        }
        let ended = engine.try_wait().unwrap();
        assert!(
            ended.is_none() && began.elapsed() < common::PATIENCE,
            "the engine does not start ({ended:?}): {}",
            std::fs::read_to_string(folder.join("log")).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn stop(engine: &mut Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &engine.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    engine.wait().unwrap();
}

/// The engine's address comes from the environment, which a test must not change for others: it runs in a process of its
/// own.
#[test]
fn an_engine_that_is_restarted() {
    if let Some(missing) = missing() {
        assert!(
            std::env::var("QUORUN_REQUIRE_ENGINE").as_deref() != Ok("1"),
            "QUORUN_REQUIRE_ENGINE is 1, but an engine of its own takes {missing}"
        );
        eprintln!("SKIPPED: an engine of its own takes {missing}");
        return;
    }
    let own = Own {
        folder: tempfile::Builder::new()
            .prefix("engine-")
            .tempdir()
            .unwrap(),
    };
    let socket = own.folder.path().join("engine.sock");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inner_engine_that_is_restarted"])
        .args(["--ignored", "--nocapture"])
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(own.processes(), [""; 0], "left behind");
}

#[test]
#[ignore = "run by an_engine_that_is_restarted, in a process of its own"]
fn inner_engine_that_is_restarted() {
    let Some(folder) = std::env::var("DOCKER_HOST").ok().and_then(|host| {
        let socket = PathBuf::from(host.strip_prefix("unix://")?);
        let own = socket.ends_with("engine.sock");
        own.then(|| socket.parent().map(Path::to_path_buf))?
    }) else {
        return;
    };
    let mut containerd = start_containerd(&folder);
    let mut engine = start(&folder);
    static_image(IMAGE);
    let mut options = common::options(Kind::Docker, folder.join("node"));
    options.slots = 2;
    options.images = vec![(IMAGE.to_owned(), 64 << 10)];
    let labels = options.labels.clone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (executor, upkeep) = quorun_executor::start(options).unwrap();
        let upkeep = tokio::spawn(upkeep);
        common::ready(&executor).await;
        runs(&executor).await;
        for signal in ["-TERM", "-KILL"] {
            common::sandboxes(&executor, |counts| counts["warm"] == 2).await;
            let before: BTreeSet<_> = containers(&labels).into_iter().collect();
            assert_eq!(before.len(), 2);
            stop(&mut engine, signal);
            let mut health = executor.health();
            let away = health.wait_for(|health| matches!(health, Health::NotReady { .. }));
            tokio::time::timeout(common::PATIENCE, away)
                .await
                .unwrap()
                .unwrap();
            engine = start(&folder);
            common::ready(&executor).await;
            runs(&executor).await;
            gone(|| {
                let now: BTreeSet<_> = containers(&labels).into_iter().collect();
                now.intersection(&before).count() == 0
            })
            .await;
        }
        executor.shutdown().await;
        upkeep.await.unwrap();
    });
    assert_eq!(docker(&["ps", "-aq"]), "", "left behind");
    stop(&mut engine, "-TERM");
    stop(&mut containerd, "-TERM");
}

async fn runs(executor: &Executor) {
    let mut language = common::language("static", None, &["/hello"]);
    language.image = IMAGE.to_owned();
    let mut task = common::task(language, "");
    task.spec.limits.memory_kb = 64 << 10;
    common::assert_prints(&common::run(executor, task).await, b"hi\n");
}

/// Waits until the engine has removed what it should. Polls, because nothing tells of it.
async fn gone(is_gone: impl Fn() -> bool) {
    let wait = async {
        while !is_gone() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(common::PATIENCE, wait)
        .await
        .expect("what was there before is gone");
}
