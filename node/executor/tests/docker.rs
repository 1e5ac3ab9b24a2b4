//! Jobs in containers of a real engine. Without one these tests say so and do nothing, unless QUORUN_REQUIRE_ENGINE is 1.

#![allow(clippy::unwrap_used)]

#[macro_use]
#[path = "suite/judging.rs"]
mod judging;
#[macro_use]
mod suite;
mod common;

use std::process::Command;
use std::sync::{Arc, Mutex};

use common::engine::{containers, docker, engine, static_image, with_options};
use quorun_executor::{Executor, Health, Kind};

fn with<F>(test: impl FnOnce(Executor) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    with_options(|_| {}, test);
}

suite!(with);
judging!(with);

#[test]
fn a_sandbox_may_do_nothing_that_it_need_not() {
    let labels = Arc::new(Mutex::new(None));
    let seen = labels.clone();
    with_options(
        move |options| *seen.lock().unwrap() = Some(options.labels.clone()),
        move |executor| async move {
            let labels = labels.lock().unwrap().clone().unwrap();
            common::sandboxes(&executor, |counts| counts["warm"] == 1).await;
            let id = containers(&labels).pop().unwrap();
            let field = |format: &str| docker(&["inspect", "--format", format, &id]);
            assert_eq!(field("{{.HostConfig.Privileged}}"), "false");
            assert_eq!(field("{{.HostConfig.NetworkMode}}"), "none");
            assert_eq!(field("{{.HostConfig.IpcMode}}"), "none");
            assert_eq!(field("{{.HostConfig.PidMode}}"), "");
            assert_eq!(field("{{.HostConfig.ReadonlyRootfs}}"), "true");
            assert_eq!(field("{{.HostConfig.CapDrop}}"), "[ALL]");
            assert_eq!(field("{{.HostConfig.CapAdd}}"), "[SETUID SETGID KILL]");
            assert_eq!(
                field("{{.HostConfig.SecurityOpt}}"),
                "[no-new-privileges:true]"
            );
            assert_eq!(field("{{.HostConfig.LogConfig.Type}}"), "none");
            assert_eq!(field("{{.HostConfig.RestartPolicy.Name}}"), "no");
            assert_eq!(field("{{.HostConfig.Binds}}"), "[]");
            assert_eq!(field("{{len .HostConfig.Devices}}"), "0");
            assert_eq!(
                field("{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}};{{end}}"),
                "volume /.quorun false;"
            );
            assert_eq!(
                field("{{.HostConfig.Memory}}"),
                field("{{.HostConfig.MemorySwap}}")
            );
            assert_ne!(field("{{.HostConfig.PidsLimit}}"), "0");
            assert_ne!(field("{{.HostConfig.NanoCpus}}"), "0");
            assert_eq!(
                field("{{index .Config.Labels \"quorun.incarnation\"}}"),
                "7"
            );
        },
    );
}

#[test]
fn a_job_has_no_rights_and_a_user_of_its_own() {
    with(|executor| async move {
        let source = "id -u; id -G; \
            grep -E '^(CapEff|CapPrm|CapInh|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'; \
            cat /proc/self/oom_score_adj; ulimit -c; \
            cat /proc/1/environ /proc/1/cmdline >/dev/null 2>&1 && cat /proc/1/environ && echo read; \
            ls /proc/1/fd 2>/dev/null; \
            kill -9 1 2>/dev/null && echo killed; \
            touch /x /.quorun/x /etc/x 2>/dev/null && echo written; \
            ls /sys/class/net; exit 0";
        let result = common::run(&executor, common::task(common::bash(), source)).await;
        let text = String::from_utf8(result.output.stdout.to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let uid: u32 = lines[0].parse().unwrap();
        assert!(uid >= 10_000, "{text}");
        assert_eq!(lines[1], lines[0]);
        assert_eq!(
            lines[2..],
            [
                "CapInh:0000000000000000",
                "CapPrm:0000000000000000",
                "CapEff:0000000000000000",
                "CapAmb:0000000000000000",
                "NoNewPrivs:1",
                "Seccomp:2",
                "1000",
                "0",
                "lo",
            ],
            "{text}"
        );
        let next = common::run(&executor, common::task(common::bash(), "id -u")).await;
        assert_ne!(next.output.stdout, format!("{uid}\n"));
    });
}

#[test]
fn a_terminal_leads_to_no_other_and_is_gone_with_its_program() {
    with(|executor| async move {
        let source = "import fcntl, os, termios, time\n\
            def tries(what, call):\n  try:\n    call()\n    print(what, 'done', flush=True)\n\
            \x20 except OSError as error:\n    print(what, error.errno, flush=True)\n\
            tries('another', lambda: os.open('/dev/ptmx', os.O_RDWR))\n\
            tries('by name', lambda: os.open(os.ttyname(0), os.O_RDWR))\n\
            tries('own', lambda: os.open('/dev/tty', os.O_RDWR))\n\
            tries('settings', lambda: termios.tcsetattr(0, termios.TCSANOW, termios.tcgetattr(0)))\n\
            try:\n  fcntl.ioctl(0, termios.TIOCSTI, b'x')\nexcept OSError:\n  pass\n\
            if os.fork() == 0:\n  os.setsid()\n  time.sleep(600)\n";
        let (output, mut chunks) = mpsc::channel(4);
        let (_to_stdin, stdin) = mpsc::channel(1);
        let (_to_signals, signals) = mpsc::channel(1);
        let interaction = quorun_executor::Interaction {
            stdin,
            signals,
            sizes: common::no_size(),
        };
        let mut task = common::task(common::python(), source);
        task.spec.terminal = Some(quorun_ledger::job::Terminal {
            rows: 24,
            columns: 80,
        });
        let reads = async { while chunks.recv().await.is_some() {} };
        let job = executor.execute_interactive(task, output, interaction, CancellationToken::new());
        let (result, ()) = tokio::join!(job, reads);
        let result = result.unwrap();
        let shown = String::from_utf8_lossy(&result.output.stdout);
        for line in [
            "another 13\r\n",
            "by name 13\r\n",
            "own done\r\n",
            "settings done\r\n",
        ] {
            assert!(shown.contains(line), "{line:?} in {shown:?}");
        }
        // What kept the terminal open has not kept the program.
        assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
        let source = "ls /dev/pts; ls /proc/*/exe 2>/dev/null | grep -c python; tty; exit 0";
        let next = common::run(&executor, common::task(common::bash(), source)).await;
        common::assert_prints(&next, b"ptmx\n0\nnot a tty\n");
    });
}

#[test]
fn pools_of_processes_work_and_leave_nothing() {
    with(|executor| async move {
        let source = "import concurrent.futures, multiprocessing, os\n\
            from multiprocessing.shared_memory import SharedMemory\n\
            with concurrent.futures.ProcessPoolExecutor(2) as pool:\n  one = list(pool.map(abs, [-1, -2]))\n\
            queue = multiprocessing.Queue()\nqueue.put(3)\n\
            left = SharedMemory(create=True, size=100, name='left')\nleft.buf[0] = 1\n\
            print(one, queue.get(), os.path.exists('/dev/shm/left'), flush=True)\nos._exit(0)\n";
        let result = common::run(&executor, common::task(common::python(), source)).await;
        common::assert_prints(&result, b"[1, 2] 3 True\n");
        let next = common::run(&executor, common::task(common::bash(), "ls -A /dev/shm")).await;
        common::assert_prints(&next, b"");
        assert_eq!(executor.sandboxes()["discarded"], 0);
    });
}

#[test]
fn what_sockets_hold_in_flight_is_free_for_the_next_job() {
    with(|executor| async move {
        // Two sockets, each on its way over the other, with two thirds of the memory: no process needs to hold them.
        let source = "import array, os, socket\n\
            ends = socket.socketpair()\nfiles = [os.memfd_create('x') for _ in range(2)]\n\
            for file in files:\n  for _ in range(80): os.write(file, bytes(1 << 20))\n\
            for end in ends: end.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,\n  \
              array.array('i', files + [one.fileno() for one in ends]))])\n\
            print('in flight')\n";
        for _ in 0..6 {
            let result = common::run(&executor, common::task(common::python(), source)).await;
            common::assert_prints(&result, b"in flight\n");
        }
        assert_eq!(executor.sandboxes()["discarded"], 0);
    });
}

#[test]
fn full_folders_do_not_break_a_sandbox() {
    with(|executor| async move {
        let source = "cat /dev/zero > a; cat /dev/zero > $TMPDIR/b; cat /dev/zero > $TMPDIR/c; \
                      [ -s a ] && [ -s $TMPDIR/b ] && exit 5";
        let result = common::run(&executor, common::task(common::bash(), source)).await;
        assert_eq!(result.outcome.exit_code, Some(5), "{result:?}");
        let next = common::run(&executor, common::task(common::bash(), "ls -A . $TMPDIR")).await;
        common::assert_prints(&next, b".:\nmain\n\n/tmp:\n");
    });
}

#[test]
fn a_sandbox_that_somebody_removed_is_not_missed() {
    let labels = Arc::new(Mutex::new(None));
    let seen = labels.clone();
    with_options(
        move |options| *seen.lock().unwrap() = Some(options.labels.clone()),
        move |executor| async move {
            let labels = labels.lock().unwrap().clone().unwrap();
            common::sandboxes(&executor, |counts| counts["warm"] == 1).await;
            for id in containers(&labels) {
                docker(&["rm", "-f", &id]);
            }
            let result = common::run(&executor, common::task(common::bash(), "echo on")).await;
            common::assert_prints(&result, b"on\n");
        },
    );
}

#[test]
fn a_job_whose_sandbox_is_removed_runs_again_and_its_output_is_not_repeated() {
    let labels = Arc::new(Mutex::new(None));
    let seen = labels.clone();
    with_options(
        move |options| *seen.lock().unwrap() = Some(options.labels.clone()),
        move |executor| async move {
            let labels = labels.lock().unwrap().clone().unwrap();
            let (output, mut chunks) = mpsc::channel(4);
            // Long enough for its sandbox to be taken away meanwhile.
            let task = common::task(common::bash(), "echo started; sleep 5; echo ended");
            let job = executor.execute(task, output, CancellationToken::new());
            let remove = async {
                let mut seen = chunks.recv().await.unwrap().data.to_vec();
                for id in containers(&labels) {
                    docker(&["rm", "-f", &id]);
                }
                while let Some(chunk) = chunks.recv().await {
                    assert_eq!(chunk.offset, seen.len() as u64);
                    seen.extend_from_slice(&chunk.data);
                }
                seen
            };
            let (result, seen) = tokio::join!(job, remove);
            common::assert_prints(&result.unwrap(), b"started\nended\n");
            assert_eq!(seen, b"started\nended\n");
            assert!(executor.sandboxes()["discarded"] >= 1);
        },
    );
}

#[test]
fn a_missing_image_is_named_and_the_executor_goes_on() {
    with(|executor| async move {
        let mut task = common::task(common::bash(), "echo on");
        task.language.image = "quorun/no-such-image:1".into();
        let result = common::run(&executor, task).await;
        assert_eq!(result.outcome.verdict, Verdict::InternalError);
        let message = result.outcome.message.unwrap();
        assert!(message.contains("quorun/no-such-image:1"), "{message}");
        assert!(message.contains("docker pull"), "{message}");
        let next = common::run(&executor, common::task(common::bash(), "echo on")).await;
        common::assert_prints(&next, b"on\n");
    });
}

#[test]
fn a_sandbox_is_replaced_after_its_jobs() {
    with_options(
        |options| options.max_jobs_per_sandbox = 1,
        |executor| async move {
            for served in 1..=3 {
                let result = common::run(&executor, common::task(common::bash(), "echo on")).await;
                common::assert_prints(&result, b"on\n");
                common::sandboxes(&executor, |counts| {
                    counts["discarded"] == served && counts["warm"] == 1
                })
                .await;
            }
        },
    );
}

#[test]
fn what_an_older_incarnation_left_is_removed() {
    let labels = Arc::new(Mutex::new(None));
    let seen = labels.clone();
    let left = Arc::new(Mutex::new(String::new()));
    let orphan = left.clone();
    with_options(
        move |options| {
            *seen.lock().unwrap() = Some(options.labels.clone());
            let label = |name: &str, value: &str| format!("quorun.{name}={value}");
            *orphan.lock().unwrap() = docker(&[
                "create",
                "--network=none",
                "--label",
                &label("cluster", &options.labels.cluster),
                "--label",
                &label("node", &options.labels.node.to_string()),
                "--label",
                &label("incarnation", "6"),
                common::IMAGE,
                "true",
            ]);
        },
        move |executor| async move {
            let labels = labels.lock().unwrap().clone().unwrap();
            let orphan = left.lock().unwrap().clone();
            assert!(!orphan.is_empty());
            common::sandboxes(&executor, |counts| counts["warm"] == 1).await;
            assert!(!containers(&labels).contains(&orphan));
        },
    );
}

#[test]
fn an_image_of_nothing_but_one_static_program_will_do() {
    let image = format!("quorun-test-static:{}", std::process::id());
    let name = image.clone();
    with_options(
        move |options| {
            static_image(&name);
            options.images = vec![(name, 64 << 10)];
        },
        {
            let image = image.clone();
            move |executor| async move {
                let mut language = common::language("static", None, &["/hello"]);
                language.image = image;
                let mut task = common::task(language, "");
                task.spec.limits.memory_kb = 64 << 10;
                common::assert_prints(&common::run(&executor, task).await, b"hi\n");
            }
        },
    );
    if engine() {
        docker(&["rmi", &image]);
    }
}

#[test]
fn three_nodes_may_start_at_once() {
    if !engine() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let nodes = (0..3).map(|_| {
            let options = common::options(Kind::Docker, folder.path().to_path_buf());
            let labels = options.labels.clone();
            async move {
                let (executor, upkeep) = quorun_executor::start(options).unwrap();
                let upkeep = tokio::spawn(upkeep);
                common::ready(&executor).await;
                let result = common::run(&executor, common::task(common::bash(), "echo on")).await;
                common::assert_prints(&result, b"on\n");
                executor.shutdown().await;
                upkeep.await.unwrap();
                assert!(containers(&labels).is_empty());
            }
        });
        futures::future::join_all(nodes).await;
    });
}

/// The engine's address comes from the environment, which a test must not change for others: it runs in a process of its
/// own.
#[test]
fn an_engine_that_is_away_and_comes_back() {
    if !engine() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inner_engine_that_is_away_and_comes_back"])
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
}

#[test]
#[ignore = "run by an_engine_that_is_away_and_comes_back, in a process of its own"]
fn inner_engine_that_is_away_and_comes_back() {
    let Some(socket) = std::env::var("DOCKER_HOST")
        .ok()
        .and_then(|host| host.strip_prefix("unix://").map(std::path::PathBuf::from))
        .filter(|socket| socket.ends_with("engine.sock"))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let options = common::options(Kind::Docker, folder.path().to_path_buf());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (executor, upkeep) = quorun_executor::start(options).unwrap();
        let upkeep = tokio::spawn(upkeep);
        let mut health = executor.health();
        let away = |health: &Health| {
            matches!(health, Health::NotReady { reason } if reason.contains("cannot be reached"))
        };
        let wait = async {
            health.wait_for(away).await.unwrap();
            let (output, _) = mpsc::channel(1);
            let task = common::task(common::bash(), "echo on");
            let refused = executor
                .execute(task.clone(), output, CancellationToken::new())
                .await
                .unwrap_err();
            assert!(refused.reason.contains("cannot be reached"), "{refused}");
            std::os::unix::fs::symlink("/var/run/docker.sock", &socket).unwrap();
            health
                .wait_for(|health| *health == Health::Ready)
                .await
                .unwrap();
            common::assert_prints(&common::run(&executor, task.clone()).await, b"on\n");
            std::fs::remove_file(&socket).unwrap();
            health.wait_for(away).await.unwrap();
            std::os::unix::fs::symlink("/var/run/docker.sock", &socket).unwrap();
            health
                .wait_for(|health| *health == Health::Ready)
                .await
                .unwrap();
            common::assert_prints(&common::run(&executor, task).await, b"on\n");
        };
        tokio::time::timeout(common::PATIENCE, wait).await.unwrap();
        executor.shutdown().await;
        upkeep.await.unwrap();
    });
}
