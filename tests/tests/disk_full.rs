//! Disks run full: first there is little room, then none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quorun_tests::{Client, Cluster, Executor, LONG, Plan, Shim, eventually, fleet};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// How many clients there are.
const CLIENTS: usize = 6;
/// Jobs that have to end under each circumstance.
const SOME: usize = 30;
/// A node has so much room left when its disk runs full, bytes: it happens in the middle of something.
const ROOM: u32 = 20_000;

/// Clients that submit one job behind the other, each with a key of its own, and go to another node when one fails.
struct Load {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    ends: Arc<Mutex<BTreeMap<String, Value>>>,
}

impl Load {
    fn on(cluster: &Cluster) -> Self {
        let mut load = Self {
            tasks: JoinSet::new(),
            stop: Arc::default(),
            count: Arc::default(),
            ends: Arc::default(),
        };
        let nodes: Vec<Client> = cluster.clients().into_iter().cloned().collect();
        for client in 0..CLIENTS {
            let (stop, count, ends) = (load.stop.clone(), load.count.clone(), load.ends.clone());
            let nodes = nodes.clone();
            load.tasks.spawn(async move {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("job-{client}-{n}");
                    let job = json!({ "language": "bash", "source": format!("echo {name}") });
                    let deadline = Instant::now() + LONG;
                    let end = fleet::finish(&nodes, client, &name, &job, deadline).await;
                    let end = end.unwrap_or_else(|error| panic!("{name}: {error}"));
                    let mut ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
                    ends.insert(name, end);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        load
    }

    /// Waits until some more jobs have ended.
    async fn goes_on(&self, circumstance: &str) {
        let wanted = self.count.load(Ordering::Relaxed) + SOME;
        let what = format!("{SOME} more jobs end {circumstance}");
        eventually(&what, async || {
            let count = self.count.load(Ordering::Relaxed);
            if count >= wanted {
                Ok(())
            } else {
                Err(format!("{count} of {wanted}"))
            }
        })
        .await;
    }

    /// Ends the load. Returns how all jobs have ended, as their submitters were told it.
    async fn end(self) -> BTreeMap<String, Value> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        std::mem::take(&mut *self.ends.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn a_follower(cluster: &Cluster) -> u64 {
    let leader = cluster.leader().await;
    let mut ids = cluster.ids().into_iter();
    ids.find(|id| *id != leader).expect("a follower")
}

/// The disk of a node runs full: it ends and says why, the others go on, and it comes back when there is room.
async fn runs_full(cluster: &mut Cluster, id: u64, shim: &Shim, load: &Load) {
    shim.disk_full_after(ROOM);
    let status = cluster.node(id).ends().await;
    assert!(!status.success(), "node {id}: {status}");
    assert!(shim.faults() > 0, "it has met the full disk");
    let log = cluster.node(id).log();
    let last = log.lines().last().unwrap_or_default();
    assert!(
        last.to_lowercase().contains("no space left"),
        "node {id} says why it ends: {last}"
    );
    load.goes_on("without the node whose disk is full").await;
    shim.clear();
    cluster.node(id).restart().await;
    load.goes_on("with all nodes again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_full_ends_and_nothing_is_lost() {
    let mut cluster = Cluster::start(Plan::new(Executor::Process)).await;
    let mut shims = BTreeMap::new();
    for id in cluster.ids() {
        let data = cluster.node(id).data().to_owned();
        let shim = Shim::new(&data.with_extension("shim"), &data);
        cluster.node(id).settings().env.extend(shim.env());
        cluster.node(id).restart().await;
        shims.insert(id, shim);
    }
    let load = Load::on(&cluster);
    load.goes_on("at first").await;

    let follower = a_follower(&cluster).await;
    runs_full(&mut cluster, follower, &shims[&follower], &load).await;
    let leader = cluster.leader().await;
    runs_full(&mut cluster, leader, &shims[&leader], &load).await;

    let ends = load.end().await;
    for (name, job) in &ends {
        assert_eq!(job["verdict"], "accepted", "{job}");
        assert_eq!(job["stdout"], format!("{name}\n"), "{job}");
    }
    let jobs: Vec<Value> = ends.into_values().collect();
    let ids: BTreeSet<_> = jobs.iter().map(|job| job["id"].to_string()).collect();
    assert_eq!(ids.len(), jobs.len(), "a job of its own for each");
    cluster.agree().await;
    cluster.all_show(&jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_little_room_takes_no_work_until_there_is_more() {
    let mut cluster = Cluster::of_processes().await;
    let id = a_follower(&cluster).await;
    let other = cluster.leader().await;
    let free = cluster.node(id).data().with_extension("free");
    let say = |mib: u32| std::fs::write(&free, mib.to_string()).expect("say what is free");
    say(300);
    let path = free.to_str().expect("a path in UTF-8").to_owned();
    let args = ["--free-mb-file".to_owned(), path];
    cluster.node(id).settings().args.extend(args);
    cluster.node(id).restart().await;
    cluster.all_work().await;

    say(100);
    let reason = "the disk of the data folder has only 100 MiB left";
    eventually(
        "the node is not ready and says why",
        async || match cluster.node(id).ready().await {
            Err(answer) if answer.contains(reason) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    let job = json!({ "language": "bash", "source": "true" });
    for answer in [
        cluster.client(id).post_json("/v1/jobs", &job).await,
        cluster.client(id).lang("bash", "true").await,
    ] {
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
        assert_eq!(answer.problem(503, "disk-full")["left_mib"], 100);
    }
    eventually("the node gets no more jobs", async || {
        for _ in 0..6 {
            let done = cluster.client(other).run(&job).await;
            assert_eq!(done["verdict"], "accepted", "{done}");
            if done["node"] == id {
                return Err("it got one");
            }
        }
        Ok(())
    })
    .await;

    say(256);
    cluster.ready().await;
    cluster.all_work().await;
    let done = cluster.client(id).run(&job).await;
    assert_eq!(done["verdict"], "accepted", "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_little_room_hands_over_to_a_voter_that_has_room() {
    let mut cluster = Cluster::of_processes().await;
    let ids = cluster.ids();
    let mut files = BTreeMap::new();
    for id in &ids {
        let free = cluster.node(*id).data().with_extension("free");
        std::fs::write(&free, "300").expect("say what is free");
        let path = free.to_str().expect("a path in UTF-8").to_owned();
        let args = ["--free-mb-file".to_owned(), path];
        cluster.node(*id).settings().args.extend(args);
        cluster.node(*id).restart().await;
        files.insert(*id, free);
    }
    cluster.all_work().await;
    let say = |id: u64, mib: &str| std::fs::write(&files[&id], mib).expect("say what is free");

    // One after the other runs full, and each time another one leads, until only one has room.
    let mut full = BTreeSet::new();
    while full.len() + 1 < ids.len() {
        let leader = cluster.leader().await;
        assert!(!full.contains(&leader), "{leader} leads without room");
        say(leader, "100");
        full.insert(leader);
        eventually("a node that has room leads", async || {
            let now = cluster.leader().await;
            if full.contains(&now) {
                return Err(format!("{now} leads, and {full:?} have no room"));
            }
            Ok(())
        })
        .await;
        let job = json!({ "language": "bash", "source": "true" });
        let done = cluster.client(cluster.leader().await).run(&job).await;
        assert_eq!(done["verdict"], "accepted", "{done}");
    }

    // Nobody is better than anybody else any more: the leader keeps on.
    let last = cluster.leader().await;
    say(last, "100");
    eventually(
        "the last one has seen that it has no room",
        async || match cluster.node(last).ready().await {
            Err(answer) if answer.contains("MiB left") => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    let term = cluster.any().cluster().await["term"].clone();
    // First the leader itself: otherwise it would hand over to the first one that has room again.
    say(last, "300");
    eventually("the leader is ready again", async || {
        cluster.node(last).ready().await.map(drop)
    })
    .await;
    for id in &ids {
        say(*id, "300");
    }
    cluster.ready().await;
    cluster.all_work().await;
    let now = cluster.any().cluster().await;
    assert_eq!(now["leader"], last, "{now}");
    assert_eq!(now["term"], term, "nobody else was elected: {now}");
}
