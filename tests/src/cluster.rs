//! Several nodes that form a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::engine::Sweep;
use crate::node::{Executor, Join, Node, Settings};
use crate::turn::Turn;
use crate::{LONG, eventually, ports};

/// How often a cluster is started when others take its ports.
const STARTS: u32 = 5;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    nodes: u16,
    slots: u32,
    executor: Executor,
    args: Vec<String>,
    env: Vec<(String, String)>,
    name: String,
    program: Option<PathBuf>,
    token: Option<String>,
}

impl Plan {
    /// Three nodes with two slots each.
    #[must_use]
    pub fn new(executor: Executor) -> Self {
        // The name becomes part of the cluster's id, and that of the labels of its containers.
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.as_nanos());
        Self {
            nodes: 3,
            slots: 2,
            executor,
            args: Vec::new(),
            env: Vec::new(),
            program: None,
            token: None,
            name: format!("test-{}-{now:x}", std::process::id()),
        }
    }

    /// So many nodes.
    #[must_use]
    pub const fn nodes(mut self, nodes: u16) -> Self {
        self.nodes = nodes;
        self
    }

    /// So many jobs at one time on each node.
    #[must_use]
    pub const fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Another program than the one under test, such as an older version.
    #[must_use]
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// One more option for every node.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// One more variable for every node.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The harness says by this token who it is; all nodes need to know it.
    #[must_use]
    pub fn bearing(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// The nodes, none of them started, on ports that are free.
    fn lay_out(&self, folder: &TempDir) -> BTreeMap<u64, Node> {
        let first = ports::free(2 * self.nodes, &[]);
        let peers: Vec<_> = (0..self.nodes)
            .map(|n| format!("{}=127.0.0.1:{}", n + 1, first + self.nodes + n))
            .collect();
        (0..self.nodes)
            .map(|n| {
                let id = u64::from(n) + 1;
                let settings = Settings {
                    id,
                    peers: peers.join(","),
                    join: None,
                    http: first + n,
                    cluster: self.name.clone(),
                    executor: self.executor,
                    slots: self.slots,
                    data: folder.path().join(format!("node{id}")),
                    program: self.program.clone(),
                    args: self.args.clone(),
                    env: self.env.clone(),
                    token: self.token.clone(),
                };
                let log = folder.path().join(format!("node{id}.log"));
                (id, Node::new(settings, log))
            })
            .collect()
    }
}

/// A cluster of processes. All of it ends and is removed with this value.
#[derive(Debug)]
pub struct Cluster {
    nodes: BTreeMap<u64, Node>,
    folder: Option<TempDir>,
    sweep: Option<Sweep>,
    _turn: Turn,
}

impl Cluster {
    /// Three nodes with the process executor, ready.
    pub async fn of_processes() -> Self {
        Self::start(Plan::new(Executor::Process)).await
    }

    /// A cluster whose nodes are all ready.
    pub async fn start(plan: Plan) -> Self {
        let mut cluster = Self::start_unready(plan).await;
        cluster.ready().await;
        cluster
    }

    /// A cluster whose processes run and have their ports; nobody has looked whether they are ready.
    ///
    /// # Panics
    /// When the nodes do not stay.
    pub async fn start_unready(plan: Plan) -> Self {
        let turn = Turn::take().await;
        let folder = tempfile::Builder::new()
            .prefix("quorun-test-")
            .tempdir()
            .expect("a folder for the nodes");
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            folder: None,
            sweep: None,
            _turn: turn,
        };
        for _ in 0..STARTS {
            cluster.nodes = plan.lay_out(&folder);
            for node in cluster.nodes.values_mut() {
                node.start();
            }
            if cluster.answers().await {
                cluster.folder = Some(folder);
                if plan.executor == Executor::Docker {
                    cluster.sweep = Some(Sweep::of(&cluster.id().await));
                }
                return cluster;
            }
            eprintln!("a port was taken in the meantime, starting the nodes on others");
            cluster.nodes.clear();
            for entry in std::fs::read_dir(folder.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                let _ = std::fs::remove_dir_all(entry.path());
                let _ = std::fs::remove_file(entry.path());
            }
        }
        panic!("no cluster in {STARTS} starts: others take the ports");
    }

    /// Waits until every process answers; `false` when one has ended because a port was taken.
    async fn answers(&mut self) -> bool {
        for node in self.nodes.values_mut() {
            let alive = eventually("a node answers", async || {
                match node.ready().await {
                    Ok(()) => Ok(true),
                    Err(reason) if reason.contains("cannot listen") => Ok(false),
                    // Not ready, but there.
                    Err(reason) if reason.starts_with('{') => Ok(true),
                    Err(reason) => Err(reason),
                }
            })
            .await;
            if !alive {
                return false;
            }
        }
        true
    }

    /// One more node, that joins the cluster and is ready. Returns its id.
    pub async fn join(&mut self) -> u64 {
        let settings = self.joining();
        self.start_joining(settings).await
    }

    /// What a node is started with that joins this cluster.
    ///
    /// # Panics
    /// When the cluster has no nodes.
    #[must_use]
    pub fn joining(&mut self) -> Settings {
        let first = ports::free(2, &[]);
        let urls: Vec<_> = self
            .clients()
            .iter()
            .map(|client| client.url().to_owned())
            .collect();
        let model = self.nodes.values_mut().next().expect("a node").settings();
        let mut settings = model.clone();
        let folder = self.folder.as_ref().expect("a folder").path();
        settings.join = Some(Join {
            urls: urls.join(","),
            peer: first + 1,
        });
        settings.http = first;
        settings.data = folder.join(format!("joined-{first}"));
        settings
    }

    /// A node with these settings that gets its id from the cluster. Returns that, when the node is ready.
    pub async fn start_joining(&mut self, settings: Settings) -> u64 {
        let log = settings.data.with_extension("log");
        let mut node = Node::new(settings, log);
        node.start();
        let id = eventually("the cluster gives the new node an id", async || {
            if let Some(status) = node.ended() {
                node.show_log();
                panic!("the new node has ended: {status}");
            }
            let request = node.client().request(reqwest::Method::GET, "/v1/cluster");
            let answer = Client::try_send(request).await.map_err(|e| e.to_string())?;
            answer.json()["node"].as_u64().ok_or_else(|| answer.text())
        })
        .await;
        node.settings().id = id;
        self.nodes.insert(id, node);
        let node = self.node(id);
        let what = format!("node {id} is ready");
        eventually(&what, async || node.ready().await).await;
        id
    }

    /// Takes a node that has ended for ever out of the test.
    pub fn forget(&mut self, id: u64) {
        self.nodes.remove(&id);
    }

    /// Waits until every node that runs is ready.
    pub async fn ready(&mut self) {
        for node in self.nodes.values_mut().filter(|node| node.runs()) {
            let what = format!("node {} is ready", node.id());
            eventually(&what, async || node.ready().await).await;
        }
    }

    /// Waits until every node that runs has executed something: a node may be ready a moment before the leader knows it.
    pub async fn all_work(&self) {
        let mut idle: BTreeSet<u64> = self
            .nodes
            .values()
            .filter(|node| node.runs())
            .map(Node::id)
            .collect();
        eventually("every node has executed something", async || {
            let job = serde_json::json!({ "language": "bash", "source": "true" });
            let done = self.any().run(&job).await;
            if let Some(node) = done["node"].as_u64() {
                idle.remove(&node);
            }
            if idle.is_empty() {
                Ok(())
            } else {
                Err(format!("{idle:?} have not"))
            }
        })
        .await;
    }

    /// Waits until the cluster goes by the last rules of the ledger, which it does some seconds after all nodes know them:
    /// a finished job can be removed then.
    pub async fn last_rules(&self) {
        let job = serde_json::json!({ "language": "bash", "source": "true" });
        let id = self.any().submit(&job).await;
        self.any().finished(&id).await;
        let path = format!("/v1/jobs/{id}?purge=true");
        eventually("a finished job can be removed", async || {
            let answer = self.any().delete(&path).await;
            match answer.status.as_u16() {
                204 => Ok(()),
                _ => Err(answer.text()),
            }
        })
        .await;
    }

    /// The ids of all nodes.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// A node.
    ///
    /// # Panics
    /// When there is no such node.
    #[must_use]
    pub fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of the cluster")
    }

    /// All nodes.
    pub fn nodes(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.values_mut()
    }

    /// A client of a node.
    ///
    /// # Panics
    /// When there is no such node.
    #[must_use]
    pub fn client(&self, id: u64) -> &Client {
        self.nodes.get(&id).expect("a node of the cluster").client()
    }

    /// Clients of all nodes that run.
    #[must_use]
    pub fn clients(&self) -> Vec<&Client> {
        self.nodes
            .values()
            .filter(|node| node.runs())
            .map(Node::client)
            .collect()
    }

    /// A client of some node that runs.
    ///
    /// # Panics
    /// When none runs.
    #[must_use]
    pub fn any(&self) -> &Client {
        self.clients().first().copied().expect("a node that runs")
    }

    /// The node that leads, once all nodes that run agree on one of them.
    pub async fn leader(&self) -> u64 {
        eventually("the nodes agree on a leader", async || {
            let mut leaders = Vec::new();
            for client in self.clients() {
                leaders.push(client.cluster().await["leader"].as_u64());
            }
            match leaders.first() {
                Some(Some(id))
                    if leaders.iter().all(|other| *other == Some(*id))
                        && self.nodes.get(id).is_some_and(Node::runs) =>
                {
                    Ok(*id)
                }
                _ => Err(format!("{leaders:?}")),
            }
        })
        .await
    }

    /// The cluster's id, as the labels of its containers have it.
    ///
    /// # Panics
    /// When no node says it.
    pub async fn id(&self) -> String {
        let cluster = self.any().cluster().await;
        cluster["cluster_id"]
            .as_str()
            .expect("the cluster's id")
            .to_owned()
    }

    /// Waits until all nodes that run have applied the same entries, and holds them to the promise that they then have
    /// the same state.
    ///
    /// # Panics
    /// When two nodes have applied the same entries and have another state.
    pub async fn agree(&self) {
        eventually("all nodes have applied the same", async || {
            let mut states = Vec::new();
            for client in self.clients() {
                let cluster = client.cluster().await;
                let index = cluster["applied_index"].as_u64().expect("applied_index");
                let hash = cluster["state_hash"]
                    .as_str()
                    .expect("state_hash")
                    .to_owned();
                states.push((index, hash));
            }
            for (index, hash) in &states {
                for (other_index, other_hash) in &states {
                    assert!(
                        index != other_index || hash == other_hash,
                        "same index, other state: {states:?}"
                    );
                }
            }
            if states.windows(2).all(|pair| pair[0] == pair[1]) {
                Ok(())
            } else {
                Err(format!("{states:?}"))
            }
        })
        .await;
    }

    /// Every node that runs shows exactly these jobs under their ids.
    ///
    /// # Panics
    /// When one does not.
    pub async fn all_show(&self, jobs: &[Value]) {
        for client in self.clients() {
            for job in jobs {
                let id = job["id"].as_str().expect("a job's id");
                assert_eq!(&client.job(id).await, job, "job {id} at {}", client.url());
            }
        }
    }

    /// Ends all nodes as an operator would.
    ///
    /// # Panics
    /// When one does not end well.
    pub async fn stop(&mut self) {
        for node in self.nodes.values().filter(|node| node.runs()) {
            node.signal(rustix::process::Signal::TERM);
        }
        for node in self.nodes.values_mut().filter(|node| node.runs()) {
            let status = node.ends().await;
            assert!(
                status.success(),
                "node {} after SIGTERM: {status}",
                node.id()
            );
        }
    }

    /// SIGKILL to all nodes at once.
    pub fn kill_all(&mut self) {
        for node in self.nodes.values().filter(|node| node.runs()) {
            node.signal(rustix::process::Signal::KILL);
        }
        for node in self.nodes.values_mut() {
            node.kill();
        }
    }

    /// Starts all nodes that do not run, and waits until all are ready.
    pub async fn restart_all(&mut self) {
        for node in self.nodes.values_mut().filter(|node| !node.runs()) {
            node.start();
        }
        let deadline = Instant::now() + LONG;
        for node in self.nodes.values_mut() {
            let id = node.id();
            loop {
                match node.ready().await {
                    Ok(()) => break,
                    Err(_) if !node.runs() => node.start(),
                    Err(last) => {
                        assert!(Instant::now() < deadline, "node {id} is not ready: {last}");
                    }
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        self.kill_all();
        if failed {
            for node in self.nodes.values() {
                node.show_log();
            }
        }
        // Now that nobody makes new ones.
        drop(self.sweep.take());
        let Some(folder) = self.folder.take() else {
            return;
        };
        if std::env::var_os("QUORUN_KEEP").is_some() {
            eprintln!("the nodes' folders are kept in {}", folder.keep().display());
            return;
        }
        // The sandboxes of nodes that were killed take a moment to end, and write until then.
        let path = folder.keep();
        for _ in 0..100 {
            if std::fs::remove_dir_all(&path).is_ok() || !path.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
