//! Clusters of nodes in this process, talking over loopback.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorun_consensus::{ClusterId, Error, Handle, Member, Notice, Options, PeerAccess, Status};
use quorun_ledger::{
    Command, Completion, JobId, JobResult, JobSpec, Limits, NodeId, Outcome, Output, Reply,
    SourceFile, StateHash, Verdict,
};
use quorun_proto::v1;
use quorun_proto::v1::peer_server::{Peer, PeerServer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tonic::service::Routes;
use tonic::{Request, Response};

/// Nothing here takes so long, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const CLUSTER: ClusterId = ClusterId([0xc1; 16]);

pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// A job id that is its number.
pub fn job(number: u64) -> JobId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    JobId::from_slice(&bytes).unwrap()
}

/// Bytes that do not become fewer when they are compressed.
fn noise(seed: u64, size: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..))
        .take(size)
        .collect()
}

pub fn submit(number: u64, size: usize) -> Command {
    Command::Submit {
        id: job(number),
        spec: JobSpec {
            language: "python".to_owned(),
            files: vec![SourceFile {
                name: "main.py".to_owned(),
                content: noise(number, size),
            }],
            entrypoint: "main.py".to_owned(),
            limits: Limits {
                cpu_ms: 1_000,
                wall_ms: 2_000,
                memory_kb: 65_536,
                processes: 8,
                output_kb: 64,
                ..Limits::default()
            },
            retention_ms: 60_000,
            max_attempts: 3,
            ..JobSpec::default()
        },
        key: None,
    }
}

pub fn node_up(node: NodeId, incarnation: u64) -> Command {
    Command::NodeUp {
        node,
        incarnation,
        http: format!("node-{node}:8080"),
        slots: 2,
        languages: BTreeSet::from(["python".to_owned()]),
        version: "test".to_owned(),
    }
}

pub fn complete(number: u64, attempt: u32, node: NodeId) -> Command {
    Command::Complete {
        job: job(number),
        attempt,
        node,
        result: JobResult {
            outcome: Outcome::without_run(Verdict::Accepted, "done"),
            output: Output::default(),
        },
    }
}

pub const COMMITTED: Reply = Reply::Completed(Completion::Committed);

/// A node that can be stopped and started again with its folder and its port.
pub struct Node {
    pub id: NodeId,
    pub handle: Handle,
    pub notices: mpsc::UnboundedReceiver<Notice>,
    pub eligible: watch::Sender<BTreeSet<NodeId>>,
}

impl Node {
    pub fn status(&self) -> Status {
        self.handle.status().borrow().clone()
    }

    /// Looks again and again: not every change of the status is announced.
    pub async fn until(&self, what: &str, mut condition: impl FnMut(&Status) -> bool) -> Status {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let status = self.status();
                if condition(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        match waited.await {
            Ok(status) => status,
            Err(_) => panic!(
                "node {} waits in vain for {what}: {:?}",
                self.id,
                self.status()
            ),
        }
    }

    pub fn state(&self) -> (u64, StateHash) {
        self.handle.state().unwrap()
    }
}

/// An address of loopback that no outgoing connection uses, so that a node which comes back finds its port free.
fn own_address() -> IpAddr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 1, low, COUNT.fetch_add(1, Ordering::Relaxed)).into()
}

/// A Peer service that only says hello.
struct Hello(Handle, NodeId);

#[tonic::async_trait]
impl Peer for Hello {
    async fn languages(
        &self,
        _: Request<v1::Blank>,
    ) -> Result<Response<v1::LanguagesReply>, tonic::Status> {
        Err(tonic::Status::unimplemented("languages"))
    }

    type WatchStream = tokio_stream::Empty<Result<v1::WatchReply, tonic::Status>>;

    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, tonic::Status> {
        Ok(Response::new(v1::HelloReply {
            id: self.1,
            process: request.into_inner().process,
            initialized: self.0.status().borrow().initialized,
        }))
    }

    async fn heartbeat(
        &self,
        _: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, tonic::Status> {
        Err(tonic::Status::unimplemented("heartbeat"))
    }

    async fn move_leader(
        &self,
        _: Request<v1::MoveLeaderRequest>,
    ) -> Result<Response<v1::MoveLeaderReply>, tonic::Status> {
        Err(tonic::Status::unimplemented("move_leader"))
    }

    async fn watch(
        &self,
        _: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("watch"))
    }

    async fn attach(
        &self,
        _: Request<tonic::Streaming<v1::AttachRequest>>,
    ) -> Result<Response<v1::AttachReply>, tonic::Status> {
        Err(tonic::Status::unimplemented("attach"))
    }
}

/// A link to an address that carries no more than it is told to.
pub struct Link {
    pub address: String,
    /// The bytes that may pass.
    bytes: Arc<Semaphore>,
}

impl Link {
    /// At first it carries everything.
    pub async fn to(target: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let link = Self {
            address,
            bytes: Arc::new(Semaphore::new(0)),
        };
        link.open();
        let given = link.bytes.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (target, bytes) = (target.clone(), given.clone());
                tokio::spawn(async move {
                    // Who is not there is not reached.
                    let Ok(far) = tokio::net::TcpStream::connect(target).await else {
                        return;
                    };
                    let (mut near_read, mut near_write) = near.into_split();
                    let (mut far_read, mut far_write) = far.into_split();
                    tokio::select! {
                        () = as_allowed(&mut near_read, &mut far_write, &bytes) => {}
                        _ = tokio::io::copy(&mut far_read, &mut near_write) => {}
                    }
                });
            }
        });
        link
    }

    /// From now on it carries what [`allow`](Self::allow) says.
    pub fn close(&self) {
        self.bytes.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn open(&self) {
        self.bytes.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// What lets some more bytes pass.
    pub fn allow(&self) -> impl Fn(usize) + Send + 'static {
        let bytes = self.bytes.clone();
        move |more| bytes.add_permits(more)
    }
}

async fn as_allowed(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    allowed: &Semaphore,
) {
    let mut bytes = vec![0; 4 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let permits = allowed.acquire_many(u32::try_from(count).unwrap()).await;
        permits.unwrap().forget();
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

pub struct Cluster {
    dir: tempfile::TempDir,
    pub members: BTreeMap<NodeId, Member>,
    listeners: BTreeMap<NodeId, TcpListener>,
    pub nodes: BTreeMap<NodeId, Node>,
    pub snapshot_after: u64,
    pub log_kept: u64,
    /// Addresses that all nodes dial at another address.
    pub dial: BTreeMap<String, String>,
    /// By what the nodes know each other.
    pub access: PeerAccess,
}

pub fn init_logs() {
    use std::sync::Once;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("RUST_LOG").is_some() {
            tracing_subscriber::fmt()
                .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                .with_test_writer()
                .init();
        }
    });
}

impl Cluster {
    /// Reserves ports and folders for nodes that are not started yet.
    pub fn new(size: u64) -> Self {
        init_logs();
        let address = own_address();
        let mut members = BTreeMap::new();
        let mut listeners = BTreeMap::new();
        for id in 1..=size {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let member = Member {
                peer: listener.local_addr().unwrap().to_string(),
                http: format!("node-{id}:8080"),
            };
            members.insert(id, member);
            listeners.insert(id, listener);
        }
        Self {
            dir: tempfile::tempdir().unwrap(),
            members,
            listeners,
            nodes: BTreeMap::new(),
            snapshot_after: 20_000,
            log_kept: Options::LOG_KEPT,
            dial: BTreeMap::new(),
            access: PeerAccess::default(),
        }
    }

    /// A formed cluster with a leader.
    pub async fn formed(size: u64) -> Self {
        let mut cluster = Self::new(size);
        cluster.form().await;
        cluster
    }

    pub async fn form(&mut self) {
        let ids: Vec<_> = self.members.keys().copied().collect();
        for id in ids {
            self.start(id).await;
        }
        for node in self.nodes.values() {
            node.handle.bootstrap().await.unwrap();
        }
        self.leader().await;
    }

    pub fn folder(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn options(&self, id: NodeId) -> Options {
        let mut options = Options::new(id, CLUSTER, self.members.clone(), self.folder(id));
        options.snapshot_after = self.snapshot_after;
        options.log_kept = self.log_kept;
        options.dial = self.dial.clone();
        options.access = self.access.clone();
        options
    }

    pub fn listener(&mut self, id: NodeId) -> TcpListener {
        match self.listeners.remove(&id) {
            Some(listener) => listener,
            None => TcpListener::bind(&self.members[&id].peer).unwrap(),
        }
    }

    pub async fn start(&mut self, id: NodeId) {
        self.try_start(id).await.unwrap();
    }

    pub async fn try_start(&mut self, id: NodeId) -> Result<(), Error> {
        let (eligible, eligible_rx) = watch::channel(BTreeSet::new());
        let listener = self.listener(id);
        let options = self.options(id);
        let extra = move |handle: &Handle| {
            let hello = Hello(handle.clone(), id);
            Routes::new(PeerServer::new(hello))
        };
        let (handle, notices) =
            quorun_consensus::start(options, listener, extra, eligible_rx).await?;
        let node = Node {
            id,
            handle,
            notices,
            eligible,
        };
        self.nodes.insert(id, node);
        Ok(())
    }

    pub async fn stop(&mut self, id: NodeId) {
        let node = self.nodes.remove(&id).unwrap();
        node.handle.shutdown().await;
    }

    /// The node that leads and that all running nodes follow.
    pub async fn leader(&self) -> NodeId {
        let deadline = soon();
        loop {
            let leaders: BTreeSet<_> = self
                .nodes
                .values()
                .map(|node| node.status().leader)
                .collect();
            if let [Some(leader)] = leaders.iter().copied().collect::<Vec<_>>()[..]
                && let Some(node) = self.nodes.get(&leader)
                && node.status().quorum
            {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader: {leaders:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn followers(&self, leader: NodeId) -> Vec<NodeId> {
        self.nodes
            .keys()
            .copied()
            .filter(|id| *id != leader)
            .collect()
    }

    pub async fn propose(&self, id: NodeId, command: Command) -> Reply {
        let proposed = self.nodes[&id].handle.propose(command, soon()).await;
        proposed.unwrap()
    }

    /// Waits until all running nodes have applied the same; returns it.
    pub async fn settled(&self) -> (u64, StateHash) {
        let leader = self.leader().await;
        self.nodes[&leader].handle.linearize(soon()).await.unwrap();
        let target = self.nodes[&leader].state().0;
        let mut states = BTreeSet::new();
        for node in self.nodes.values() {
            node.until("all entries", |status| status.applied_index >= target)
                .await;
            let (index, hash) = node.state();
            states.insert((index, hash.to_string()));
        }
        assert_eq!(states.len(), 1, "{states:?}");
        self.nodes[&leader].state()
    }

    pub async fn end(self) {
        for node in self.nodes.values() {
            node.handle.shutdown().await;
        }
    }
}
