//! The Consensus service: what the peers ask of this node.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::raft::{TransferLeaderRequest, VoteRequest};
use quorun_ledger::{Batch, codec};
use quorun_proto::v1;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::append::{self, AppendReplies};
use crate::blocking::blocking;
use crate::clock::Clocks;
use crate::confirm::{Confirmer, Unconfirmed};
use crate::ledger_store::{LedgerStore, Received, SnapshotFile, snapshot_folder};
use crate::proposer::{Proposer, Refusal};
use crate::recall::{self, Marks};
use crate::types::{LogId, Raft, Snapshot, SnapshotMeta, Vote};
use crate::wire;

/// Nobody waits longer for an answer.
const MAX_DEADLINE: Duration = Duration::from_secs(600);

/// What the peers ask of this node.
#[derive(Debug)]
pub(crate) struct Service {
    raft: Raft,
    proposer: Proposer,
    ledger: LedgerStore,
    marks: Marks,
    confirmer: Confirmer,
    clocks: Arc<Clocks>,
    snapshots: PathBuf,
    /// One snapshot is received at a time.
    receiving: Arc<Semaphore>,
    received: AtomicU64,
}

impl Service {
    pub(crate) fn new(
        raft: Raft,
        proposer: Proposer,
        ledger: LedgerStore,
        marks: Marks,
        confirmer: Confirmer,
        clocks: Arc<Clocks>,
        data_dir: &Path,
    ) -> Self {
        Self {
            raft,
            proposer,
            ledger,
            marks,
            confirmer,
            clocks,
            snapshots: snapshot_folder(data_dir),
            receiving: Arc::new(Semaphore::new(1)),
            received: AtomicU64::new(0),
        }
    }

    /// Puts the pieces of a snapshot into a file, and returns when that is on disk.
    async fn receive(
        path: &Path,
        mut chunks: Streaming<v1::SnapshotChunk>,
        bytes: u64,
    ) -> Result<(), Status> {
        let failed = |error: io::Error| Status::internal(format!("keep the snapshot: {error}"));
        let path = path.to_owned();
        let created = blocking(move || File::create(path)).await;
        let mut file = created.and_then(|file| file).map_err(failed)?;
        let mut received = 0;
        while let Some(chunk) = chunks.message().await? {
            if crc32fast::hash(&chunk.data) != chunk.crc32 {
                return Err(Status::data_loss("a chunk whose checksum is wrong"));
            }
            received += chunk.data.len() as u64;
            if received > bytes {
                return Err(Status::invalid_argument("more chunks than were announced"));
            }
            let written = blocking(move || {
                file.write_all(&chunk.data)?;
                io::Result::Ok(file)
            });
            file = written.await.and_then(|file| file).map_err(failed)?;
        }
        if received < bytes {
            return Err(Status::data_loss("fewer chunks than were announced"));
        }
        let synced = blocking(move || file.sync_all()).await;
        synced.and_then(|synced| synced).map_err(failed)
    }

    async fn install(
        &self,
        received: Arc<Received>,
        vote: Vote,
        meta: SnapshotMeta,
    ) -> Result<v1::SnapshotReply, Status> {
        let announced = meta.clone();
        let snapshot = blocking(move || SnapshotFile::open_received(received, &announced))
            .await
            .and_then(|opened| opened)
            .map_err(|error| Status::data_loss(error.to_string()))?;
        let response = self
            .raft
            .install_full_snapshot(vote, Snapshot { meta, snapshot })
            .await
            .map_err(|error| stopped(&error))?;
        Ok(v1::SnapshotReply {
            vote: Some(wire::vote_to(&response.vote)),
        })
    }
}

pub(super) fn stopped(error: &impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this node's consensus has ended: {error}"))
}

#[tonic::async_trait]
impl v1::consensus_server::Consensus for Service {
    type StreamAppendStream = AppendReplies;

    async fn stream_append(
        &self,
        request: Request<Streaming<v1::AppendRequest>>,
    ) -> Result<Response<AppendReplies>, Status> {
        Ok(append::answer(&self.raft, &self.clocks, request))
    }

    async fn vote(
        &self,
        request: Request<v1::VoteRequest>,
    ) -> Result<Response<v1::VoteReply>, Status> {
        let message = request.into_inner();
        let mut request = VoteRequest::new(
            wire::vote_from(message.vote)?,
            message.last_log_id.map(wire::log_id_from),
        );
        request.leadership_transfer = message.leadership_transfer;
        let response = if message.pre_vote {
            self.raft.pre_vote(request).await
        } else {
            self.raft.vote(request).await
        };
        let response = response.map_err(|error| stopped(&error))?;
        Ok(Response::new(v1::VoteReply {
            vote: Some(wire::vote_to(&response.vote)),
            granted: response.vote_granted,
            last_log_id: response.last_log_id.map(wire::log_id_to),
            clock_ms: self.clocks.own_ms(),
        }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        let Ok(_only_one) = self.receiving.clone().try_acquire_owned() else {
            return Err(Status::resource_exhausted("a snapshot is being received"));
        };
        let mut chunks = request.into_inner();
        let header = chunks.message().await?.and_then(|chunk| chunk.header);
        let header = header.ok_or_else(|| Status::invalid_argument("a snapshot without header"))?;
        let bytes = header.bytes;
        let (vote, meta) = wire::snapshot_header_from(header)?;
        let number = self.received.fetch_add(1, Ordering::Relaxed);
        let received = Received::at(self.snapshots.join(format!("{number}.receiving")));
        tracing::info!(
            last = meta.last_log_id.map_or(0, |id: LogId| id.index),
            bytes,
            "receiving a snapshot"
        );
        Self::receive(received.path(), chunks, bytes).await?;
        self.install(received, vote, meta).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderReply>, Status> {
        let message = request.into_inner();
        let request = TransferLeaderRequest::new(
            wire::vote_from(message.from_leader)?,
            message.to,
            message.last_log_id.map(wire::log_id_from),
        );
        let response = self
            .raft
            .handle_transfer_leader(request)
            .await
            .map_err(|error| stopped(&error))?;
        Ok(Response::new(wire::transfer_reply_to(&response)))
    }

    async fn propose(
        &self,
        request: Request<v1::ProposeRequest>,
    ) -> Result<Response<v1::ProposeReply>, Status> {
        use v1::propose_reply::Result as Outcome;
        let message = request.into_inner();
        let commands = message.commands;
        // They go into the log as they are, and what could not be read there would stop every node. So they are read as
        // they will be: together.
        let together = Batch::encode_with(0, BTreeSet::new(), None, &commands);
        let read = codec::decode::<Batch>(&together)
            .map_err(|error| Status::invalid_argument(format!("a command: {error}")))?;
        if read.commands.len() != commands.len() || codec::encode(&read) != together {
            return Err(Status::invalid_argument(
                "commands with something behind them",
            ));
        }
        let deadline =
            Instant::now() + Duration::from_millis(message.deadline_ms).min(MAX_DEADLINE);
        let result = match self.proposer.propose_here(commands, deadline).await {
            Ok(replies) => Outcome::Replies(v1::Replies {
                replies: replies
                    .iter()
                    .map(|reply| codec::encode(reply).into())
                    .collect(),
            }),
            Err(Refusal::NotLeader(leader)) => Outcome::NotLeader(v1::NotLeader {
                leader: leader.unwrap_or(0),
            }),
            Err(Refusal::Unknown) => Outcome::Unknown("no answer in time".to_owned()),
            Err(Refusal::Stopped) => return Err(stopped(&"shut down")),
        };
        Ok(Response::new(v1::ProposeReply {
            result: Some(result),
        }))
    }

    async fn confirm_term(
        &self,
        request: Request<v1::ConfirmTermRequest>,
    ) -> Result<Response<v1::ConfirmTermReply>, Status> {
        let term = request.into_inner().term;
        let confirmed = self.confirmer.log.voted_term() <= term;
        Ok(Response::new(v1::ConfirmTermReply { confirmed }))
    }

    async fn recall(
        &self,
        request: Request<v1::RecallRequest>,
    ) -> Result<Response<v1::RecallReply>, Status> {
        let node = request.into_inner().node;
        recall::answer(node, &self.raft, &self.ledger, &self.marks)
            .await
            .map(Response::new)
            .map_err(|error| Status::internal(error.to_string()))
    }

    async fn read_index(
        &self,
        request: Request<v1::ReadIndexRequest>,
    ) -> Result<Response<v1::ReadIndexReply>, Status> {
        use v1::read_index_reply::Result as Outcome;
        let patience = Duration::from_millis(request.into_inner().deadline_ms).min(MAX_DEADLINE);
        let result = match self.confirmer.read_index(patience).await {
            Ok(index) => Outcome::Index(index),
            Err(Unconfirmed::NotLeader(leader)) => Outcome::NotLeader(v1::NotLeader {
                leader: leader.unwrap_or(0),
            }),
            Err(Unconfirmed::Unknown(why)) => Outcome::Unknown(why),
            Err(Unconfirmed::Ended(why)) => return Err(stopped(&why)),
        };
        Ok(Response::new(v1::ReadIndexReply {
            result: Some(result),
        }))
    }
}
