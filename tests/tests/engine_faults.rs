//! The engine of one node dies or hangs: its jobs go to other nodes, it takes no more, and it comes back by itself.
//!
//! Each node reaches the machine's engine through a socket of the test's own, which can be cut or held up.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorun_tests::{Cluster, Engine, Executor, Plan, eventually};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const ENGINE: &str = "/var/run/docker.sock";

/// How the way to the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// Nothing is passed on, and nothing is refused.
    Stuck,
    /// Connections break, and new ones are not taken.
    Cut,
}

/// A socket that leads to the engine, as long as it is let.
struct Socket {
    path: PathBuf,
    way: Arc<watch::Sender<Way>>,
    _task: JoinSet<()>,
}

impl Socket {
    fn new(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let way = Arc::new(watch::Sender::new(Way::Open));
        let mut task = JoinSet::new();
        task.spawn(serve(listener, way.clone()));
        Self {
            path: path.to_owned(),
            way,
            _task: task,
        }
    }

    fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    fn url(&self) -> String {
        format!("unix://{}", self.path.display())
    }
}

async fn serve(listener: UnixListener, way: Arc<watch::Sender<Way>>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let way = way.subscribe();
        connections.spawn(async move {
            if *way.borrow() == Way::Cut {
                return;
            }
            let Ok(far) = UnixStream::connect(ENGINE).await else {
                return;
            };
            let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
            let passing = async {
                tokio::join!(
                    pass(from_near, to_far, way.clone()),
                    pass(from_far, to_near, way.clone())
                );
            };
            let mut cut = way.clone();
            tokio::select! {
                () = passing => {}
                _ = cut.wait_for(|way| *way == Way::Cut) => {}
            }
        });
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if way.wait_for(|way| *way == Way::Open).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            break;
        }
    }
    // One side may have said all that it has to say while the other still talks.
    let _ = to.shutdown().await;
}

fn job(name: &str) -> Value {
    json!({ "language": "bash", "source": format!("sleep 2; echo {name}") })
}

async fn an_engine_fails(test: &str, how: Way) {
    if Engine::find(test).await.is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let sockets: Vec<Socket> = (1..=3)
        .map(|n| Socket::new(&folder.path().join(format!("engine{n}.sock"))))
        .collect();
    let mut cluster = Cluster::start_unready(Plan::new(Executor::Docker)).await;
    cluster.ready().await;
    // Each node anew, with its own way to the engine.
    for (id, socket) in (1..).zip(&sockets) {
        let way = ("DOCKER_HOST".to_owned(), socket.url());
        cluster.node(id).settings().env.push(way);
        cluster.node(id).stop().await;
        cluster.node(id).restart().await;
    }
    cluster.all_work().await;

    let leader = cluster.leader().await;
    let victim = if leader == 1 { 2 } else { 1 };
    let socket = &sockets[usize::try_from(victim).expect("small") - 1];
    let client = cluster.client(leader).clone();
    let mut jobs: Vec<(String, String)> = Vec::new();
    let mut on_victim = None;
    while on_victim.is_none() {
        let name = format!("job-{}", jobs.len());
        let id = client.submit(&job(&name)).await;
        eventually("the job is begun", async || {
            let seen = client.job(&id).await;
            match seen["state"].as_str() {
                Some("queued") => Err(seen.to_string()),
                Some("running") if seen["node"] == victim => {
                    on_victim = Some(id.clone());
                    Ok(())
                }
                _ => Ok(()),
            }
        })
        .await;
        jobs.push((name, id));
    }
    socket.set(how);
    for (name, id) in &jobs {
        let done = client.finished(id).await;
        assert_eq!(done["verdict"], "accepted", "{done}");
        assert_eq!(done["stdout"], format!("{name}\n"), "{done}");
        if Some(id) == on_victim.as_ref() {
            assert_ne!(done["node"], victim, "{done}");
            assert_eq!(done["attempts"], 2, "{done}");
        }
    }
    eventually("the node says that it takes no work", async || {
        let answer = cluster.client(victim).get("/readyz").await;
        if answer.status == 503 && answer.text().contains("engine") {
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;
    for n in 0..6 {
        let done = client.run(&job(&format!("after-{n}"))).await;
        assert_eq!(done["verdict"], "accepted", "{done}");
        assert_ne!(done["node"], victim, "{done}");
    }
    socket.set(Way::Open);
    cluster.ready().await;
    eventually("the node works again", async || {
        let done = client.run(&job("again")).await;
        if done["node"] == victim && done["verdict"] == "accepted" {
            Ok(())
        } else {
            Err(done.to_string())
        }
    })
    .await;
    cluster.agree().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_engine_takes_only_its_own_node_out() {
    an_engine_fails("a_dead_engine_takes_only_its_own_node_out", Way::Cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_takes_only_its_own_node_out() {
    an_engine_fails(
        "an_engine_that_hangs_takes_only_its_own_node_out",
        Way::Stuck,
    )
    .await;
}
