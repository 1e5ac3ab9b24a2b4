//! Appends: how entries and heartbeats go to a peer.
//!
//! openraft asks for a stream in two ways. Replication has one for as long as it leads, and sends on it what there is to
//! send. A heartbeat is a stream of a single request; such ones travel on a [`Line`] that stays open from one to the
//! next, because a call of its own costs both sides several times what the message does.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt};
use openraft::RPCTypes;
use openraft::base::{BoxFuture, BoxStream};
use openraft::network::{NetStreamAppend, RPCOption};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use parking_lot::Mutex;
use quorun_ledger::NodeId;
use quorun_proto::{QUIET_KEY, v1};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::client::{CONNECT, Connection, ConsensusClient, RaftRpcError, unreachable_peer};
use crate::clock::Clocks;
use crate::types::{LogId, Raft, TypeConfig};
use crate::wire;

/// How long a follower may take to answer an append: its disk may be slow.
const APPEND_PATIENCE: Duration = Duration::from_secs(2);

/// The requests of a stream, for as long as their [`Holder`] is there.
///
/// A call hands its requests to the connection, which may still ask for more when the caller has long given up. openraft's
/// requests are made from what the next call is about to send, under a lock that this call would have to wait for, and
/// from entries that may be purged as soon as no call is under way. So they end with the call, whoever has them.
struct Requests<S>(Arc<Mutex<Option<S>>>);

/// Ends the [`Requests`] when it is dropped.
struct Holder<S>(Arc<Mutex<Option<S>>>);

fn held<S>(requests: S) -> (Holder<S>, Requests<S>) {
    let requests = Arc::new(Mutex::new(Some(requests)));
    (Holder(requests.clone()), Requests(requests))
}

impl<S: Stream + Unpin> Stream for Requests<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        match &mut *self.0.lock() {
            Some(requests) => requests.poll_next_unpin(cx),
            None => Poll::Ready(None),
        }
    }
}

impl<S> Drop for Holder<S> {
    fn drop(&mut self) {
        let requests = self.0.lock().take();
        drop(requests);
    }
}

/// What was sent of a stream, and is to be answered.
#[derive(Debug, Default)]
struct Sent {
    count: AtomicU64,
    more: Notify,
    /// The peer leaves out the replies to what is quiet.
    quiet_known: AtomicBool,
}

/// Makes messages of the requests of one stream, in their order.
struct Messages {
    sent: Arc<Sent>,
    /// The last entry that this stream has brought.
    brought: Option<LogId>,
}

impl Messages {
    fn of(&mut self, request: &AppendEntriesRequest<TypeConfig>) -> v1::AppendRequest {
        let mut message = wire::append_request_to(request);
        match request.entries.last() {
            Some(last) => self.brought = Some(last.log_id),
            // Such a request only says what is committed. That the peer has what is in front of it is said by the
            // reply to that.
            None => {
                message.quiet = self.brought.is_some()
                    && self.brought == request.prev_log_id
                    && self.sent.quiet_known.load(Ordering::Acquire);
            }
        }
        if !message.quiet {
            self.sent.count.fetch_add(1, Ordering::AcqRel);
            self.sent.more.notify_one();
        }
        message
    }
}

/// The receiving side of a stream of appends.
struct Replies<S> {
    replies: Streaming<v1::AppendReply>,
    received: u64,
    sent: Arc<Sent>,
    from: NodeId,
    clocks: Arc<Clocks>,
    /// None when nothing more is to be sent or received.
    requests: Option<Holder<S>>,
}

impl<S> Replies<S> {
    /// The next reply. Waits for as long as it takes while there is nothing to be answered, and no longer than a
    /// follower may take when there is.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, Option<Status>>> {
        self.requests.as_ref()?;
        let deadline = tokio::time::sleep(APPEND_PATIENCE);
        tokio::pin!(deadline);
        loop {
            let outstanding = self.sent.count.load(Ordering::Acquire) > self.received;
            tokio::select! {
                reply = self.replies.message() => {
                    self.received += 1;
                    let result = match reply {
                        Ok(Some(reply)) => {
                            self.clocks.heard(self.from, reply.clock_ms);
                            wire::append_reply_from(reply).map_err(|error| Some(error.into()))
                        }
                        Ok(None) => return None,
                        Err(status) => Err(Some(status)),
                    };
                    if !matches!(result, Ok(Ok(_))) {
                        self.requests = None;
                    }
                    return Some(result);
                }
                () = &mut deadline, if outstanding => {
                    self.requests = None;
                    return Some(Err(None));
                }
                () = self.sent.more.notified(), if !outstanding => {
                    deadline.as_mut().reset(tokio::time::Instant::now() + APPEND_PATIENCE);
                }
            }
        }
    }
}

/// A stream of appends that stays open, for requests that come one by one.
#[derive(Debug)]
pub(super) struct Line {
    requests: mpsc::Sender<v1::AppendRequest>,
    replies: Streaming<v1::AppendReply>,
}

impl Line {
    /// Opens one, with its first request. The peer has to take the call in time.
    async fn open(
        mut client: ConsensusClient,
        first: v1::AppendRequest,
        patience: Duration,
    ) -> Result<Self, Missed> {
        let (requests, outgoing) = mpsc::channel(1);
        let first = futures::stream::once(std::future::ready(first));
        let call = client.stream_append(first.chain(ReceiverStream::new(outgoing)));
        let replies = tokio::time::timeout(patience, call)
            .await
            .map_err(|_| Missed::InTime(patience))??
            .into_inner();
        Ok(Self { requests, replies })
    }

    /// Sends another request; its reply is the next one.
    async fn send(&mut self, request: v1::AppendRequest) -> Result<(), Missed> {
        let sent = self.requests.send(request).await;
        sent.map_err(|_| Missed::ended())
    }

    async fn reply(&mut self) -> Result<v1::AppendReply, Missed> {
        tokio::time::timeout(APPEND_PATIENCE, self.replies.message())
            .await
            .map_err(|_| Missed::InTime(APPEND_PATIENCE))??
            .ok_or_else(Missed::ended)
    }
}

/// Why there is no reply.
#[derive(Debug)]
enum Missed {
    InTime(Duration),
    Broken(Status),
}

impl Missed {
    fn ended() -> Self {
        Self::Broken(Status::unavailable("the stream has ended"))
    }
}

impl From<Status> for Missed {
    fn from(status: Status) -> Self {
        Self::Broken(status)
    }
}

impl Connection {
    /// Sends one request and waits for what is said to it. Whoever gives up waiting drops the line with its reply.
    async fn append_one(
        &mut self,
        request: &AppendEntriesRequest<TypeConfig>,
        patience: Duration,
    ) -> Result<StreamAppendResult<TypeConfig>, RaftRpcError> {
        let missed = |this: &Self, missed| match missed {
            Missed::InTime(patience) => this.timeout(RPCTypes::AppendEntries, patience),
            Missed::Broken(status) => unreachable_peer(&status),
        };
        let message = wire::append_request_to(request);
        let (line, reply) = match self.ask_again(&message).await {
            Ok(Some(answered)) => answered,
            Ok(None) => {
                let mut line = Line::open(self.client()?, message, patience)
                    .await
                    .map_err(|why| missed(self, why))?;
                let reply = line.reply().await.map_err(|why| missed(self, why))?;
                (line, reply)
            }
            Err(why) => return Err(missed(self, why)),
        };
        self.clocks.heard(self.target, reply.clock_ms);
        let result =
            wire::append_reply_from(reply).map_err(|error| unreachable_peer(&error.into()))?;
        // Behind a refusal the peer ends the stream.
        if result.is_ok() {
            self.line = Some(line);
        }
        Ok(result)
    }

    /// Asks on the line that was used last; `None` if there is none any more. It may have ended since, with the process at its
    /// other end, and then a new one is what is asked for. Appends may come twice.
    async fn ask_again(
        &mut self,
        message: &v1::AppendRequest,
    ) -> Result<Option<(Line, v1::AppendReply)>, Missed> {
        let Some(mut line) = self.line.take() else {
            return Ok(None);
        };
        let answered = match line.send(message.clone()).await {
            Ok(()) => line.reply().await,
            Err(why) => Err(why),
        };
        match answered {
            Ok(reply) => Ok(Some((line, reply))),
            Err(Missed::Broken(_)) => Ok(None),
            Err(late) => Err(late),
        }
    }
}

impl NetStreamAppend<TypeConfig> for Connection {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RaftRpcError>>, RaftRpcError>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            // openraft waits between two tries inside of this stream, before it hands out a request. A call to a peer
            // that is down ends before anything is asked of the stream: without a request in hand, it would be tried
            // again at once, thousands of times a second.
            let Some(first) = input.next().await else {
                let nothing: BoxStream<'s, _> = Box::pin(futures::stream::empty());
                return Ok(nothing);
            };
            let patience = option.soft_ttl().max(CONNECT);
            let second = input.next().now_or_never();
            if let Some(None) = second {
                let result = self.append_one(&first, patience).await?;
                let result: BoxStream<'s, _> =
                    Box::pin(futures::stream::once(std::future::ready(Ok(result))));
                return Ok(result);
            }
            let in_hand = [Some(first), second.flatten()];
            let input = futures::stream::iter(in_hand.into_iter().flatten()).chain(input);
            let (holder, input) = held(input);
            let mut client = self.client()?;
            let sent = Arc::new(Sent::default());
            let mut messages = Messages {
                sent: sent.clone(),
                brought: None,
            };
            let requests = input.map(move |request| messages.of(&request));
            let replies = tokio::time::timeout(patience, client.stream_append(requests))
                .await
                .map_err(|_| self.timeout(RPCTypes::AppendEntries, patience))?
                .map_err(|status| unreachable_peer(&status))?;
            let quiet_known = replies.metadata().contains_key(QUIET_KEY);
            sent.quiet_known.store(quiet_known, Ordering::Release);
            let replies = Replies {
                replies: replies.into_inner(),
                received: 0,
                sent,
                from: self.target,
                clocks: self.clocks.clone(),
                requests: Some(holder),
            };
            let this = &*self;
            let results = futures::stream::unfold(replies, move |mut replies| async move {
                let result = replies.next().await?.map_err(|status| match status {
                    Some(status) => unreachable_peer(&status),
                    None => this.timeout(RPCTypes::AppendEntries, APPEND_PATIENCE),
                });
                Some((result, replies))
            });
            let results: BoxStream<'s, _> = Box::pin(results);
            Ok(results)
        })
    }
}

/// What a node says to a stream of appends.
pub(super) type AppendReplies = Pin<Box<dyn Stream<Item = Result<v1::AppendReply, Status>> + Send>>;

/// The side that appends.
pub(super) fn answer(
    raft: &Raft,
    clocks: &Arc<Clocks>,
    request: Request<Streaming<v1::AppendRequest>>,
) -> Response<AppendReplies> {
    // Of the requests that openraft has and has not answered, which are quiet.
    let under_way = Arc::new(Mutex::new(VecDeque::new()));
    let asked = under_way.clone();
    // A message that cannot be read ends the stream; its sender starts another one.
    let requests = request.into_inner().scan((), move |(), message| {
        let message = message
            .map_err(|status| tracing::debug!(%status, "a stream of appends has broken"))
            .ok();
        let quiet = message.as_ref().is_some_and(|message| message.quiet);
        let request = message.and_then(|message| {
            wire::append_request_from(message)
                .map_err(|error| tracing::warn!(%error, "a malformed append"))
                .ok()
        });
        if request.is_some() {
            asked.lock().push_back(quiet);
        }
        std::future::ready(request)
    });
    let clocks = Arc::clone(clocks);
    let replies = raft.stream_append(requests).filter_map(move |result| {
        let quiet = under_way.lock().pop_front().unwrap_or(false);
        let reply = match result {
            Ok(Ok(_)) if quiet => None,
            Ok(result) => Some(Ok(wire::append_reply_to(&result, clocks.own_ms()))),
            Err(fatal) => Some(Err(super::service::stopped(&fatal))),
        };
        std::future::ready(reply)
    });
    let replies: AppendReplies = Box::pin(replies);
    let mut response = Response::new(replies);
    let known = MetadataValue::from_static("1");
    response.metadata_mut().insert(QUIET_KEY, known);
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use std::collections::BTreeMap;

    use openraft::errors::RPCError;
    use openraft::network::RaftNetworkFactory;

    use super::*;
    use crate::network::access::PeerAccess;
    use crate::network::client::{Connections, Peers};
    use crate::options::{ClusterId, Member};
    use crate::transfers::Transfers;
    use crate::types::Vote;

    async fn connection_to(address: String) -> Connection {
        let runtime = tokio::runtime::Handle::current();
        let peers = Arc::new(Peers::new(
            ClusterId([1; 16]),
            1,
            runtime,
            BTreeMap::new(),
            PeerAccess::default(),
        ));
        let member = Member {
            peer: address,
            http: String::new(),
        };
        let transfers = Transfers::default();
        let clocks = Arc::new(Clocks::new(1));
        let mut connections = Connections {
            peers,
            transfers,
            clocks,
        };
        connections.new_client(2, &member).await
    }

    fn request() -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            leader_commit: None,
            entries: Vec::new(),
        }
    }

    fn id(index: u64) -> LogId {
        wire::log_id_from(v1::LogId { term: 1, index })
    }

    /// What only says that entries are committed is quiet, when the same stream has brought them and the peer knows
    /// the word.
    #[test]
    fn what_stands_on_entries_of_the_same_stream_is_quiet() {
        let sent = Arc::new(Sent::default());
        let mut messages = Messages {
            sent: sent.clone(),
            brought: None,
        };
        let commit = |index| AppendEntriesRequest {
            prev_log_id: Some(id(index)),
            ..request()
        };
        let entries = |index| AppendEntriesRequest {
            entries: vec![openraft::entry::RaftEntry::new_blank(id(index))],
            ..commit(index - 1)
        };
        assert!(!messages.of(&entries(4)).quiet);
        assert!(!messages.of(&commit(4)).quiet, "the peer may not know it");
        sent.quiet_known.store(true, Ordering::Release);
        assert!(messages.of(&commit(4)).quiet);
        assert!(!messages.of(&entries(5)).quiet);
        assert!(!messages.of(&commit(4)).quiet, "not what was brought last");
        assert!(messages.of(&commit(5)).quiet);
        assert_eq!(sent.count.load(Ordering::Acquire), 4, "to be answered");
        let mut fresh = Messages {
            sent,
            brought: None,
        };
        assert!(!fresh.of(&commit(5)).quiet, "a probe is to be answered");
    }

    /// A peer that says to each append that it matches, or has something else, and counts the streams.
    #[derive(Clone, Default)]
    struct Peer {
        streams: Arc<AtomicU64>,
        asked: Arc<AtomicU64>,
        refuses: Arc<AtomicBool>,
    }

    impl Peer {
        /// Serves it in a runtime of its own, with which its connections end.
        fn serve(&self, listener: std::net::TcpListener) -> tokio::runtime::Runtime {
            listener.set_nonblocking(true).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let service = v1::consensus_server::ConsensusServer::new(self.clone());
            runtime.spawn(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(incoming)
                    .await
            });
            runtime
        }
    }

    fn unused<T>() -> Result<Response<T>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    #[tonic::async_trait]
    impl v1::consensus_server::Consensus for Peer {
        type StreamAppendStream = AppendReplies;

        async fn stream_append(
            &self,
            request: Request<Streaming<v1::AppendRequest>>,
        ) -> Result<Response<AppendReplies>, Status> {
            self.streams.fetch_add(1, Ordering::AcqRel);
            let peer = self.clone();
            let replies = request.into_inner().map(move |_| {
                peer.asked.fetch_add(1, Ordering::AcqRel);
                let result = if peer.refuses.load(Ordering::Acquire) {
                    Err(openraft::raft::StreamAppendError::Conflict(id(9)))
                } else {
                    Ok(None)
                };
                Ok(wire::append_reply_to(&result, 1))
            });
            Ok(Response::new(Box::pin(replies)))
        }

        async fn vote(
            &self,
            _: Request<v1::VoteRequest>,
        ) -> Result<Response<v1::VoteReply>, Status> {
            unused()
        }

        async fn install_snapshot(
            &self,
            _: Request<Streaming<v1::SnapshotChunk>>,
        ) -> Result<Response<v1::SnapshotReply>, Status> {
            unused()
        }

        async fn transfer_leader(
            &self,
            _: Request<v1::TransferLeaderRequest>,
        ) -> Result<Response<v1::TransferLeaderReply>, Status> {
            unused()
        }

        async fn propose(
            &self,
            _: Request<v1::ProposeRequest>,
        ) -> Result<Response<v1::ProposeReply>, Status> {
            unused()
        }

        async fn confirm_term(
            &self,
            _: Request<v1::ConfirmTermRequest>,
        ) -> Result<Response<v1::ConfirmTermReply>, Status> {
            unused()
        }

        async fn recall(
            &self,
            _: Request<v1::RecallRequest>,
        ) -> Result<Response<v1::RecallReply>, Status> {
            unused()
        }

        async fn read_index(
            &self,
            _: Request<v1::ReadIndexRequest>,
        ) -> Result<Response<v1::ReadIndexReply>, Status> {
            unused()
        }
    }

    /// A heartbeat, as openraft sends it.
    async fn beat(
        connection: &mut Connection,
    ) -> Result<Vec<StreamAppendResult<TypeConfig>>, RaftRpcError> {
        let one = Box::pin(futures::stream::once(async { request() }));
        let option = RPCOption::new(Duration::from_secs(10));
        let results = connection.stream_append(one, option).await?;
        let results: Vec<_> = results.collect().await;
        results.into_iter().collect()
    }

    #[tokio::test]
    async fn heartbeats_share_a_stream_until_it_ends() {
        let peer = Peer::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = peer.serve(listener);
        let mut connection = connection_to(address.to_string()).await;
        for _ in 0..3 {
            assert_eq!(beat(&mut connection).await.unwrap(), [Ok(None)]);
        }
        assert_eq!(peer.streams.load(Ordering::Acquire), 1);
        assert_eq!(peer.asked.load(Ordering::Acquire), 3);

        peer.refuses.store(true, Ordering::Release);
        let refused = beat(&mut connection).await.unwrap();
        assert!(refused.len() == 1 && refused[0].is_err(), "{refused:?}");
        peer.refuses.store(false, Ordering::Release);
        assert_eq!(beat(&mut connection).await.unwrap(), [Ok(None)]);
        assert_eq!(
            peer.streams.load(Ordering::Acquire),
            2,
            "another one behind a refusal"
        );

        // The process at the other end is replaced by another one: the next heartbeat reaches that.
        served.shutdown_background();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let listener = loop {
            // The old one may not be closed yet.
            match std::net::TcpListener::bind(address) {
                Ok(listener) => break listener,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        };
        let successor = Peer::default();
        let served = successor.serve(listener);
        while beat(&mut connection).await.is_err() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "never reached again"
            );
        }
        assert_eq!(successor.streams.load(Ordering::Acquire), 1);
        served.shutdown_background();
    }

    /// A peer takes the connection and then says nothing: the call is given up, and with it the requests, although the
    /// connection still has them.
    #[tokio::test]
    async fn nothing_is_asked_for_any_more_when_a_call_was_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connection = connection_to(listener.local_addr().unwrap().to_string()).await;
        let there = Arc::new(());
        let asked = Arc::downgrade(&there);
        let requests = futures::stream::unfold((there, true), |(there, first)| async move {
            if !first {
                std::future::pending::<()>().await;
            }
            Some((request(), (there, false)))
        });
        let option = RPCOption::new(Duration::from_millis(100));
        let requests = Box::pin(requests);
        let called = connection.stream_append(requests, option).await;
        assert!(matches!(called, Err(RPCError::Timeout(_))));
        let (mut silent, _) = listener.accept().await.unwrap();
        assert!(asked.upgrade().is_none(), "the requests are still there");
        // What reached the peer was a call: its preface, at least.
        let mut preface = [0; 14];
        tokio::io::AsyncReadExt::read_exact(&mut silent, &mut preface)
            .await
            .unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0");
    }

    /// openraft waits between two tries when it is asked for a request. So it has to be asked, also when nobody listens:
    /// otherwise it tries again at once.
    #[tokio::test]
    async fn a_peer_that_is_down_is_called_with_a_request_in_hand() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut connection = connection_to(address).await;
        let asked = Arc::new(AtomicBool::new(false));
        let seen = asked.clone();
        let requests = futures::stream::once(Box::pin(async move {
            seen.store(true, Ordering::Release);
            request()
        }));
        let option = RPCOption::new(Duration::from_secs(10));
        let called = connection.stream_append(requests, option).await;
        assert!(matches!(called, Err(RPCError::Unreachable(_))));
        assert!(asked.load(Ordering::Acquire));
    }
}
