//! The cluster under test: its nodes, the network between them, and who of them is somebody's business at the moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::history::{History, Invariant};
use crate::client::Client;
use crate::node::{Executor, Join, Node, Settings};
use crate::proxy::Network;
use crate::shim::Shim;
use crate::turn::Turn;
use crate::{LONG, ports, say};

/// How long a node may take to show its state before it counts as one that does not answer.
const GLANCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// What the cluster is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    /// How many nodes.
    pub nodes: u16,
    /// Jobs at one time on each.
    pub slots: u32,
    /// Whose power can fail.
    pub kept: Kept,
    /// More options for every node.
    pub args: Vec<String>,
    /// More variables for every node.
    pub env: Vec<(String, String)>,
}

/// Of which nodes it is kept what a power loss takes back: that takes memory and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Of none.
    None,
    /// Of the last one.
    One,
    /// Of all.
    All,
}

/// A cluster whose nodes and links can be harmed.
#[derive(Debug)]
pub struct Field {
    nodes: BTreeMap<u64, Mutex<Node>>,
    clients: BTreeMap<u64, Client>,
    shims: BTreeMap<u64, Shim>,
    /// The ways between the nodes.
    pub network: Network,
    /// What was seen.
    pub history: Arc<History>,
    /// Nodes that a fault has in its hands.
    taken: Mutex<BTreeSet<u64>>,
    /// The ids that the nodes of the places have in the cluster: a new node in an old place has a new one.
    names: Mutex<BTreeMap<u64, Vec<u64>>>,
    peers: BTreeMap<u64, u16>,
    folder: Option<TempDir>,
    _turn: Turn,
}

impl Field {
    /// A cluster that is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start(shape: &Shape, history: Arc<History>) -> Arc<Self> {
        let turn = Turn::take().await;
        let folder = tempfile::Builder::new()
            .prefix("quorun-chaos-")
            .tempdir()
            .expect("a folder for the nodes");
        let first = ports::free(2 * shape.nodes, &[]);
        let peers: BTreeMap<u64, u16> = (0..shape.nodes)
            .map(|n| (u64::from(n) + 1, first + shape.nodes + n))
            .collect();
        let network = Network::between(&peers).await;
        let list: Vec<_> = peers
            .iter()
            .map(|(id, port)| format!("{id}=127.0.0.1:{port}"))
            .collect();
        let mut nodes = BTreeMap::new();
        let mut clients = BTreeMap::new();
        let mut shims = BTreeMap::new();
        for (n, id) in (0..).zip(peers.keys().copied()) {
            let mut args = shape.args.clone();
            args.extend([
                "--dial-override".to_owned(),
                network.dial_override(id, &peers),
            ]);
            let data = folder.path().join(format!("node{id}"));
            let shim = Shim::new(&folder.path().join(format!("node{id}.shim")), &data);
            let mut env = shape.env.clone();
            env.extend(shim.env());
            shims.insert(id, shim);
            let settings = Settings {
                id,
                join: None,
                program: None,
                peers: list.join(","),
                http: first + n,
                cluster: format!("chaos-{}", std::process::id()),
                executor: Executor::Process,
                slots: shape.slots,
                data,
                args,
                env,
                token: None,
            };
            let node = Node::new(settings, folder.path().join(format!("node{id}.log")));
            clients.insert(id, node.client().clone());
            nodes.insert(id, Mutex::new(node));
        }
        let field = Arc::new(Self {
            nodes,
            clients,
            shims,
            network,
            history,
            taken: Mutex::default(),
            names: Mutex::new(peers.keys().map(|id| (*id, vec![*id])).collect()),
            peers,
            folder: Some(folder),
            _turn: turn,
        });
        for id in field.ids() {
            field.node(id).start();
        }
        for id in field.ids() {
            let ready = field.until_ready(id, LONG).await;
            ready.unwrap_or_else(|why| panic!("node {id} is not ready: {why}"));
        }
        let kept = match shape.kept {
            Kept::None => Vec::new(),
            Kept::One => vec![field.tracked()],
            Kept::All => field.ids(),
        };
        for id in kept {
            // Not before, because the shim holds files open that were written and not synced, and the first start has
            // written a program that is to be executed.
            field.node(id).kill();
            field.shim(id).track(true);
            field.node(id).start();
            let ready = field.until_ready(id, LONG).await;
            ready.unwrap_or_else(|why| panic!("node {id} is not ready: {why}"));
        }
        field
    }

    /// Where the nodes' folders and logs are.
    ///
    /// # Panics
    /// Never: the folder is there as long as this is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("the folder").path()
    }

    /// The folder stays when all of this ends.
    pub fn keep(&mut self) -> PathBuf {
        self.folder.take().map(TempDir::keep).unwrap_or_default()
    }

    /// The id that the node of a place has in the cluster.
    #[must_use]
    pub fn name_of(&self, place: u64) -> u64 {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let names = names.get(&place).and_then(|names| names.last());
        names.copied().unwrap_or(place)
    }

    /// All ids that the nodes of each place have had.
    #[must_use]
    pub fn all_names(&self) -> BTreeMap<u64, Vec<u64>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.clone()
    }

    fn place_of(&self, name: u64) -> Option<u64> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = names.iter();
        names
            .find(|(_, known)| known.last() == Some(&name))
            .map(|(place, _)| *place)
    }

    /// Puts a new node with an empty folder into a place whose node has ended for ever. Returns the new node's id in the
    /// cluster, once it is ready and votes.
    ///
    /// # Errors
    /// When it does not get that far.
    pub async fn replace(&self, place: u64, patience: Duration) -> Result<u64, String> {
        let deadline = Instant::now() + patience;
        let old = self.name_of(place);
        let others: Vec<u64> = self.ids().into_iter().filter(|id| *id != place).collect();
        let shown = async |what: &(dyn Fn(&Value) -> bool + Sync), why: &str| loop {
            for other in &others {
                let shown = self.shows(*other).await.unwrap_or_default();
                let mut nodes = shown["nodes"].as_array().into_iter().flatten();
                if nodes.any(what) {
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                return Err(why.to_owned());
            }
            tokio::time::sleep(PAUSE).await;
        };
        // Nobody takes the address of a node that is alive.
        let dead = |node: &Value| node["id"] == old && node["alive"] == false;
        shown(&dead, "the old node is not known to be dead").await?;
        let urls: Vec<_> = others.iter().map(|id| self.clients[id].url()).collect();
        {
            let mut node = self.node(place);
            let data = node.data().to_owned();
            std::fs::remove_dir_all(&data).map_err(|error| error.to_string())?;
            node.settings().join = Some(Join {
                urls: urls.join(","),
                peer: self.peers[&place],
            });
            node.start();
        }
        self.until_ready(place, patience).await?;
        let name = loop {
            let shown = self.shows(place).await.unwrap_or_default();
            match shown["node"].as_u64() {
                Some(name) => break name,
                None if Instant::now() >= deadline => return Err("it has no id".to_owned()),
                None => tokio::time::sleep(PAUSE).await,
            }
        };
        self.names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(place)
            .or_default()
            .push(name);
        let votes = |node: &Value| node["id"] == name && node["role"] == "voter";
        shown(&votes, "the new node does not vote").await?;
        Ok(name)
    }

    /// The places of all nodes, which are their ids at the beginning.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// How many nodes may be lost.
    #[must_use]
    pub fn minority(&self) -> usize {
        (self.nodes.len() - 1) / 2
    }

    /// A node. It must not be held across an await.
    ///
    /// # Panics
    /// When there is none with this id.
    pub fn node(&self, id: u64) -> MutexGuard<'_, Node> {
        let node = self.nodes.get(&id).expect("a node of the cluster");
        node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client of a node, which gives up soon.
    ///
    /// # Panics
    /// When there is none with this id.
    #[must_use]
    pub fn client(&self, id: u64, patience: Duration) -> Client {
        self.clients[&id].patience(patience)
    }

    /// The disk and the clock of a node.
    ///
    /// # Panics
    /// When there is none with this id.
    #[must_use]
    pub fn shim(&self, id: u64) -> &Shim {
        &self.shims[&id]
    }

    /// The node whose power can fail, if it can of one only.
    #[must_use]
    pub fn tracked(&self) -> u64 {
        self.nodes.keys().copied().max().unwrap_or_default()
    }

    /// Takes nodes for a fault; they are given back with the value.
    #[must_use]
    pub fn take(self: &Arc<Self>, ids: impl IntoIterator<Item = u64>) -> Taken {
        let ids: BTreeSet<u64> = ids.into_iter().collect();
        self.lock_taken().extend(&ids);
        Taken {
            field: Arc::clone(self),
            ids,
        }
    }

    /// Takes a node for a fault, unless another fault has it.
    #[must_use]
    pub fn take_free(self: &Arc<Self>, id: u64) -> Option<Taken> {
        self.lock_taken().insert(id).then(|| Taken {
            field: Arc::clone(self),
            ids: BTreeSet::from([id]),
        })
    }

    fn lock_taken(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nodes that no fault has in its hands.
    #[must_use]
    pub fn untouched(&self) -> Vec<u64> {
        let taken = self.lock_taken();
        self.ids()
            .into_iter()
            .filter(|id| !taken.contains(id))
            .collect()
    }

    /// What a node shows of the cluster; `None` when it does not answer soon.
    pub async fn shows(&self, id: u64) -> Option<Value> {
        let client = self.client(id, GLANCE);
        let answer = Client::try_send(client.request(Method::GET, "/v1/cluster")).await;
        let answer = answer.ok().filter(|answer| answer.status == 200)?;
        serde_json::from_slice(&answer.body).ok()
    }

    /// The node that leads, as one of these nodes that is in touch with it shows; waits until there is one.
    ///
    /// # Errors
    /// When there is none for a long time.
    pub async fn leader_among(&self, ids: &[u64], patience: Duration) -> Result<u64, String> {
        let deadline = Instant::now() + patience;
        loop {
            let shown = futures::future::join_all(ids.iter().map(|id| self.shows(*id))).await;
            let newest = shown
                .iter()
                .flatten()
                .max_by_key(|shown| shown["term"].as_u64());
            let leader = newest.and_then(|shown| shown["leader"].as_u64());
            let leader = leader.and_then(|leader| self.place_of(leader));
            if let Some(leader) = leader.filter(|leader| ids.contains(leader)) {
                return Ok(leader);
            }
            if Instant::now() >= deadline {
                return Err(format!("no leader among {ids:?} for {patience:?}"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Starts a node that does not run, if necessary again and again, until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn until_ready(&self, id: u64, patience: Duration) -> Result<(), String> {
        let client = self.client(id, Duration::from_secs(5));
        let deadline = Instant::now() + patience;
        loop {
            let why = match Client::try_send(client.request(Method::GET, "/readyz")).await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => answer.text(),
                Err(error) => error.to_string(),
            };
            {
                let mut node = self.node(id);
                if let Some(status) = node.ended() {
                    let log = node.log();
                    let last = log.lines().last().unwrap_or_default();
                    // A port may be somebody's for a moment.
                    if !last.contains("cannot listen") {
                        return Err(format!("it has ended ({status}): {last}"));
                    }
                    node.start();
                }
            }
            if Instant::now() >= deadline {
                return Err(why);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What each node shows of the cluster, and the last lines that it has logged: for a test that has failed.
    pub async fn account(&self) -> String {
        const LINES: usize = 40;
        let mut account = String::new();
        for id in self.ids() {
            let shown = self.shows(id).await;
            let log = self.node(id).log();
            let lines: Vec<_> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
            account += &format!("node {id} shows {shown:?}, and has logged\n{last}\n");
        }
        account
    }

    /// Waits until a node has ended by itself, and returns the last line that it logged.
    ///
    /// # Errors
    /// When it goes on.
    pub async fn until_ended(&self, id: u64, patience: Duration) -> Result<String, String> {
        let deadline = Instant::now() + patience;
        loop {
            {
                let mut node = self.node(id);
                if node.ended().is_some() {
                    let log = node.log();
                    return Ok(log.lines().last().unwrap_or_default().to_owned());
                }
            }
            if Instant::now() >= deadline {
                return Err(format!("node {id} still runs"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Starts what has ended by itself, and says so: nothing should, but what a fault has in its hands.
    pub async fn supervise(self: Arc<Self>) {
        loop {
            for id in self.untouched() {
                let mut node = self.node(id);
                // Somebody may have taken it since.
                if !self.untouched().contains(&id) {
                    continue;
                }
                if let Some(status) = node.ended() {
                    let log = node.log();
                    let last = log.lines().last().unwrap_or_default();
                    let what = format!("node {id} has ended by itself ({status}): {last}");
                    self.history.violated(Invariant::Processes, what);
                    node.start();
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends all that is paused, cut or down, and waits until every node is ready.
    pub async fn heal(&self, patience: Duration) {
        self.network.heal();
        self.shims.values().for_each(Shim::clear);
        for id in self.ids() {
            let mut node = self.node(id);
            node.ended();
            if node.runs() {
                node.signal(Signal::CONT);
            } else {
                node.start();
            }
        }
        for id in self.ids() {
            if let Err(why) = self.until_ready(id, patience).await {
                let what = format!("node {id} is not ready {patience:?} after the faults: {why}");
                self.history.violated(Invariant::I10, what);
            }
        }
    }

    /// A copy of a node's folder, to be put back later.
    ///
    /// # Panics
    /// When it cannot be copied.
    #[must_use]
    pub fn copy_of(&self, id: u64) -> TempDir {
        let copy = tempfile::Builder::new()
            .prefix("copy-")
            .tempdir_in(self.folder())
            .expect("a folder for a copy");
        copy_all(self.node(id).data(), copy.path()).expect("copy a node's folder");
        copy
    }

    /// Puts a copy of a node's folder back.
    ///
    /// # Panics
    /// When it cannot be put back.
    pub fn put_back(&self, id: u64, copy: &TempDir) {
        let data = self.node(id).data().to_owned();
        std::fs::remove_dir_all(&data).expect("remove a node's folder");
        copy_all(copy.path(), &data).expect("put a node's folder back");
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        for node in self.nodes.values() {
            node.lock().unwrap_or_else(PoisonError::into_inner).kill();
        }
        let Some(folder) = self.folder.take() else {
            return;
        };
        // The sandboxes of nodes that were killed take a moment to end, and write until then.
        let path = folder.keep();
        for _ in 0..100 {
            if std::fs::remove_dir_all(&path).is_ok() || !path.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        say(&format!("{} could not be removed", path.display()));
    }
}

/// Copies a folder; what jobs left in their sandboxes belongs to nobody.
pub fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if entry.file_name() != "sandboxes" {
                copy_all(&entry.path(), &target)?;
            }
        } else if kind.is_file() {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Nodes that a fault has in its hands.
#[derive(Debug)]
pub struct Taken {
    field: Arc<Field>,
    ids: BTreeSet<u64>,
}

impl Taken {
    /// Which.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.ids.iter().copied()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = self.field.lock_taken();
        taken.retain(|id| !self.ids.contains(id));
    }
}
