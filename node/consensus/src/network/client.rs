//! Calls to the peers, on behalf of openraft and of everybody else on this node.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use openraft::RPCTypes;
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
};
use openraft::raft::{
    SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use quorun_ledger::NodeId;
use quorun_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use super::MAX_MESSAGE;
use super::access::{PeerAccess, PeerTls};
use super::append::Line;
use super::check::Identity;
use crate::blocking::blocking;
use crate::clock::Clocks;
use crate::error::Error;
use crate::ledger_store::{SnapshotFile, SnapshotReader};
use crate::options::{ClusterId, Member};
use crate::transfers::Transfers;
use crate::types::{Snapshot, TypeConfig, Vote};
use crate::wire;

pub(super) const CONNECT: Duration = Duration::from_millis(500);
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_PATIENCE: Duration = Duration::from_secs(2);
/// The same where snapshots travel: its pings wait behind what is on its way, up to [`STREAM_WINDOW`] on a slow link.
const SNAPSHOT_PING_PATIENCE: Duration = Duration::from_secs(30);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A snapshot travels in pieces of this size.
const CHUNK: usize = 256 * 1024;
/// How many of them may be on their way.
const CHUNKS: usize = 4;

/// A connection to a peer that says who is calling.
pub type PeerTransport = InterceptedService<Channel, Identity>;
/// Calls to the Peer service of a node.
pub type PeerClient = v1::peer_client::PeerClient<PeerTransport>;
pub(crate) type ConsensusClient = v1::consensus_client::ConsensusClient<PeerTransport>;

/// What a connection is for. Whatever else the nodes tell each other must not keep Raft waiting, and streams that nobody
/// reads use up what a connection may have under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Consensus,
    /// On the same connection, heartbeats would wait behind a snapshot.
    Snapshot,
    Peer,
}

/// The connections to the peers: one each for every [`Lane`], made when it is first used, and made again whenever it
/// was lost.
#[derive(Debug)]
pub(crate) struct Peers {
    cluster: ClusterId,
    id: NodeId,
    runtime: tokio::runtime::Handle,
    /// See [`Options::dial`](crate::Options::dial).
    dial: BTreeMap<String, String>,
    access: PeerAccess,
    channels: Mutex<BTreeMap<(NodeId, Lane), (String, Channel)>>,
}

impl Peers {
    pub(crate) fn new(
        cluster: ClusterId,
        id: NodeId,
        runtime: tokio::runtime::Handle,
        dial: BTreeMap<String, String>,
        access: PeerAccess,
    ) -> Self {
        Self {
            cluster,
            id,
            runtime,
            dial,
            access,
            channels: Mutex::new(BTreeMap::new()),
        }
    }

    /// That an address can be dialled at all.
    pub(crate) fn check_address(address: &str) -> Result<(), Error> {
        endpoint(Lane::Consensus, address, None).map(drop)
    }

    /// That calls can be made with these certificates at all.
    pub(crate) fn check_certificates(tls: &PeerTls) -> Result<(), Error> {
        endpoint(Lane::Consensus, "localhost:1", Some(tls)).map(drop)
    }

    fn transport(&self, lane: Lane, target: NodeId, address: &str) -> Result<PeerTransport, Error> {
        let identity = Identity::new(self.cluster, self.id, target, &self.access.secrets);
        let address = self.dial.get(address).map_or(address, String::as_str);
        let mut channels = self.channels.lock();
        let channel = match channels.get(&(target, lane)) {
            Some((known, channel)) if known == address => channel.clone(),
            _ => {
                // The connection lives on consensus' own runtime, whoever asks for it first.
                let _entered = self.runtime.enter();
                let channel = connect_lazy(&endpoint(lane, address, self.access.tls.as_ref())?);
                channels.insert((target, lane), (address.to_owned(), channel.clone()));
                channel
            }
        };
        Ok(InterceptedService::new(channel, identity))
    }

    pub(crate) fn consensus(
        &self,
        target: NodeId,
        address: &str,
    ) -> Result<ConsensusClient, Error> {
        self.consensus_in(Lane::Consensus, target, address)
    }

    fn consensus_in(
        &self,
        lane: Lane,
        target: NodeId,
        address: &str,
    ) -> Result<ConsensusClient, Error> {
        let transport = self.transport(lane, target, address)?;
        Ok(ConsensusClient::new(transport)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    pub(crate) fn peer(&self, target: NodeId, address: &str) -> Result<PeerClient, Error> {
        let transport = self.transport(Lane::Peer, target, address)?;
        Ok(PeerClient::new(transport)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }
}

fn endpoint(lane: Lane, address: &str, tls: Option<&PeerTls>) -> Result<Endpoint, Error> {
    let patience = match lane {
        Lane::Consensus | Lane::Peer => PING_PATIENCE,
        Lane::Snapshot => SNAPSHOT_PING_PATIENCE,
    };
    // The name is looked up anew for every connection: a container may come back with another address.
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map(|endpoint| {
            endpoint
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(patience)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
        })
        .map_err(|error| Error::Options(format!("the peer address {address:?}: {error}")))?;
    match tls {
        None => Ok(endpoint),
        Some(tls) => endpoint
            .tls_config(tls.client())
            .map_err(|error| of_certificates(&error)),
    }
}

/// What is wrong with certificates or their key.
pub(crate) fn of_certificates(error: &tonic::transport::Error) -> Error {
    let cause = error.source().map(|cause| format!(": {cause}"));
    Error::Options(format!(
        "the certificates for the peer port cannot be used: {error}{}",
        cause.unwrap_or_default()
    ))
}

fn connect_lazy(endpoint: &Endpoint) -> Channel {
    #[cfg(feature = "simulation")]
    if crate::simulation::active() {
        return crate::simulation::net::connect_lazy(endpoint);
    }
    endpoint.connect_lazy()
}

/// Whether a call failed before anything of it can have reached its target.
pub(crate) fn never_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Makes openraft's connections.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    pub(crate) peers: Arc<Peers>,
    pub(crate) transfers: Transfers,
    pub(crate) clocks: Arc<Clocks>,
}

impl RaftNetworkFactory<TypeConfig> for Connections {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> Connection {
        let client = self.peers.consensus(target, &member.peer);
        if let Err(error) = &client {
            tracing::error!(target_node = target, %error, "a peer cannot be called");
        }
        let snapshots = self
            .peers
            .consensus_in(Lane::Snapshot, target, &member.peer);
        Connection {
            id: self.peers.id,
            target,
            client: client.ok(),
            snapshots: snapshots.ok(),
            transfers: self.transfers.clone(),
            clocks: self.clocks.clone(),
            line: None,
        }
    }
}

/// openraft's connection to one peer.
#[derive(Debug)]
pub(crate) struct Connection {
    id: NodeId,
    pub(super) target: NodeId,
    /// None when the peer's address is not one.
    client: Option<ConsensusClient>,
    /// The same, for snapshots.
    snapshots: Option<ConsensusClient>,
    transfers: Transfers,
    pub(super) clocks: Arc<Clocks>,
    /// What single appends were sent on last.
    pub(super) line: Option<Line>,
}

pub(super) type RaftRpcError = RPCError<TypeConfig>;

/// openraft waits a while before it calls again. Everything that goes wrong is of this kind: a peer that refuses calls
/// is not better called at once.
pub(super) fn unreachable_peer(status: &Status) -> RaftRpcError {
    RPCError::Unreachable(Unreachable::from_string(format!(
        "{:?}: {}",
        status.code(),
        status.message()
    )))
}

fn no_address() -> RaftRpcError {
    unreachable_peer(&Status::unavailable("the peer has no valid address"))
}

impl Connection {
    pub(super) fn client(&self) -> Result<ConsensusClient, RaftRpcError> {
        self.client.clone().ok_or_else(no_address)
    }

    pub(super) fn timeout(&self, action: RPCTypes, timeout: Duration) -> RaftRpcError {
        RPCError::Timeout(Timeout {
            action,
            id: self.id,
            target: self.target,
            timeout,
        })
    }

    async fn call_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RaftRpcError> {
        let mut client = self.client()?;
        let request = v1::VoteRequest {
            vote: Some(wire::vote_to(&request.vote)),
            last_log_id: request.last_log_id.map(wire::log_id_to),
            pre_vote,
            leadership_transfer: request.leadership_transfer,
        };
        let patience = option.soft_ttl();
        let reply = tokio::time::timeout(patience, client.vote(request))
            .await
            .map_err(|_| self.timeout(RPCTypes::Vote, patience))?
            .map_err(|status| unreachable_peer(&status))?
            .into_inner();
        self.clocks.heard(self.target, reply.clock_ms);
        let vote = wire::vote_from(reply.vote).map_err(|error| unreachable_peer(&error.into()))?;
        Ok(VoteResponse::new(
            vote,
            reply.last_log_id.map(wire::log_id_from),
            reply.granted,
        ))
    }
}

impl NetVote<TypeConfig> for Connection {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RaftRpcError> {
        self.call_vote(request, false, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RaftRpcError> {
        self.call_vote(request, true, option).await
    }
}

impl NetSnapshot<TypeConfig> for Connection {
    type SnapshotData = SnapshotFile;

    /// There is no deadline: a connection that is dead is noticed by its pings, and unpacking may take its time.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.snapshots.clone().ok_or_else(no_address)?;
        let transfer = self.transfers.begin(self.target);
        let failed = |error: std::io::Error| {
            StreamingError::Network(NetworkError::from_string(format!(
                "read the snapshot: {error}"
            )))
        };
        let contents = snapshot.snapshot.reader().map_err(failed)?;
        let header = wire::snapshot_header_to(&vote, &snapshot.meta, contents.length());
        let (chunks, outgoing) = mpsc::channel(CHUNKS);
        let reader = tokio::spawn(read_chunks(header, contents, chunks));
        let call = client.install_snapshot(ReceiverStream::new(outgoing));
        let reply = tokio::select! {
            reply = call => reply.map_err(|status| unreachable_peer(&status))?.into_inner(),
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        reader
            .await
            .map_err(std::io::Error::other)
            .and_then(|read| read)
            .map_err(failed)?;
        let vote = wire::vote_from(reply.vote).map_err(|error| unreachable_peer(&error.into()))?;
        transfer.delivered();
        Ok(SnapshotResponse::new(vote))
    }
}

async fn read_chunks(
    header: v1::SnapshotHeader,
    mut contents: SnapshotReader,
    chunks: mpsc::Sender<v1::SnapshotChunk>,
) -> std::io::Result<()> {
    let mut next = v1::SnapshotChunk {
        header: Some(header),
        ..v1::SnapshotChunk::default()
    };
    loop {
        if chunks.send(next).await.is_err() {
            return Ok(()); // the call has ended; what came of it is known there
        }
        let read = blocking(move || {
            let mut data = vec![0; CHUNK];
            let length = contents.read(&mut data)?;
            data.truncate(length);
            std::io::Result::Ok((contents, data))
        });
        let data;
        (contents, data) = read.await??;
        if data.is_empty() {
            return Ok(());
        }
        next = v1::SnapshotChunk {
            header: None,
            crc32: crc32fast::hash(&data),
            data: data.into(),
        };
    }
}

impl NetTransferLeader<TypeConfig> for Connection {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RaftRpcError> {
        let mut client = self.client()?;
        let request = v1::TransferLeaderRequest {
            from_leader: Some(wire::vote_to(request.from_leader())),
            to: *request.to_node_id(),
            last_log_id: request.last_log_id().copied().map(wire::log_id_to),
        };
        let patience = option.soft_ttl();
        let reply = tokio::time::timeout(patience, client.transfer_leader(request))
            .await
            .map_err(|_| self.timeout(RPCTypes::TransferLeader, patience))?
            .map_err(|status| unreachable_peer(&status))?
            .into_inner();
        wire::transfer_reply_from(reply).map_err(|error| unreachable_peer(&error.into()))
    }
}

impl NetBackoff<TypeConfig> for Connection {
    fn backoff(&self) -> Option<Backoff> {
        None // the one of openraft's configuration
    }
}
