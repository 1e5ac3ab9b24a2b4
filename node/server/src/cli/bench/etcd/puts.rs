//! Puts over gRPC: the few messages of `etcdserverpb` that they take, connections, and the load.
//!
//! As the client of submissions does, this one speaks over connections of its own and does no more for a put than it
//! must: it shares the machine with the cluster that it measures.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::super::client::{Outcome, Sent};
use super::super::loops::Send1;
use super::super::mix::{Expected, Prepared, Program};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// Connections to each node if nothing is said: what serves etcd best. With 256 clients and etcd 3.4 on the machine of
/// two cores, in turns of 3 s (`bench accept --local --etcd etcd --duration 3s --warmup 1s --etcd-connections N`, a build
/// without optimization, so that only their order says something), puts per second were
///
/// | to each node | | | |
/// | --: | --: | --: | --: |
/// | 1 | 5976 | 6383 | 4828 |
/// | 4 | 4109 | 4327 | 3495 |
/// | 8 | 4342 | 4907 | 3295 |
/// | 16 | 4280 | 4293 | 3083 |
/// | 32 | 3262 | 3154 | 3078 |
/// | 86, one for each client | 3028 | 1956 | 2330 |
///
/// and the processor time of a put goes up with them: what comes over one connection is read, and answered, together. With 2 it was
/// less than with 1 in three of four more turns.
pub const CONNECTIONS: usize = 1;
const PUT: PathAndQuery = PathAndQuery::from_static("/etcdserverpb.KV/Put");
const RANGE: PathAndQuery = PathAndQuery::from_static("/etcdserverpb.KV/Range");

/// `etcdserverpb.PutRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `etcdserverpb.ResponseHeader`.
#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(int64, tag = "3")]
    revision: i64,
}

/// `etcdserverpb.PutResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

/// `etcdserverpb.RangeRequest`. It is linearizable if it does not say otherwise.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    /// The first key that does not belong to it.
    #[prost(bytes = "bytes", tag = "2")]
    range_end: Bytes,
    #[prost(bool, tag = "9")]
    count_only: bool,
}

/// `etcdserverpb.RangeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(int64, tag = "4")]
    count: i64,
}

impl RangeRequest {
    /// How many keys begin with this; all of them if it is empty.
    fn count(prefix: &str) -> Self {
        let mut end = prefix.as_bytes().to_vec();
        match end.last_mut() {
            // A character of a string is never the last byte that there is.
            Some(last) => *last = last.saturating_add(1),
            // etcd's way to say "to the end", and an empty key is none.
            None => end.push(0),
        }
        let key = match prefix {
            "" => Bytes::from_static(&[0]),
            prefix => Bytes::copy_from_slice(prefix.as_bytes()),
        };
        Self {
            key,
            range_end: end.into(),
            count_only: true,
        }
    }
}

/// One connection over HTTP/2, as gRPC needs it.
#[derive(Clone, Debug)]
struct Http2(SendRequest<Body>);

impl Service<http::Request<Body>> for Http2 {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A connection to a node. Several requests may be under way on it; clones are the same connection.
#[derive(Clone, Debug)]
pub struct Connection(Grpc<Http2>);

impl Connection {
    /// Connects to a host and port.
    pub async fn open(address: &str) -> anyhow::Result<Self> {
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address))
            .await
            .with_context(|| format!("connect to {address} within {CONNECT:?}"))?
            .with_context(|| format!("connect to {address}"))?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await
            .with_context(|| format!("speak HTTP/2 with {address}"))?;
        tokio::spawn(connection);
        let origin = format!("http://{address}").parse().context("an address")?;
        Ok(Self(Grpc::with_origin(Http2(sender), origin)))
    }

    async fn call<Q, A>(&mut self, path: PathAndQuery, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.0.unary(Request::new(message), path, codec).await?;
        Ok(answer.into_inner())
    }

    async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Status> {
        let answer: PutResponse = self.call(PUT, PutRequest { key, value }).await?;
        // Each put makes a revision.
        match answer.header {
            Some(header) if header.revision > 0 => Ok(()),
            _ => Err(Status::internal("the answer has no revision")),
        }
    }

    /// How many keys begin with this, as a majority knows it.
    pub async fn count(&mut self, prefix: &str) -> anyhow::Result<u64> {
        let answer: RangeResponse = self.call(RANGE, RangeRequest::count(prefix)).await?;
        u64::try_from(answer.count).context("a count below 0")
    }
}

/// Puts of values of one size under keys of their own, round the nodes.
///
/// The first put that fails ends the load: what follows would be no measure.
#[derive(Debug)]
pub struct Puts {
    /// Of each node.
    connections: Vec<Vec<Connection>>,
    /// All keys begin with it.
    prefix: String,
    value: Bytes,
    patience: Duration,
    failed: CancellationToken,
}

impl Puts {
    /// Connects to the nodes, so often to each.
    pub async fn connect(
        addresses: &[String],
        each: usize,
        bytes: usize,
        patience: Duration,
        failed: CancellationToken,
    ) -> anyhow::Result<Self> {
        ensure!(!addresses.is_empty(), "no nodes of etcd");
        let mut connections = Vec::new();
        for address in addresses {
            let mut of_node = Vec::new();
            for _ in 0..each.max(1) {
                of_node.push(Connection::open(address).await?);
            }
            connections.push(of_node);
        }
        Ok(Self {
            connections,
            prefix: "bench-".to_owned(),
            value: vec![b'.'; bytes].into(),
            patience,
            failed,
        })
    }

    /// How many of the keys are there.
    pub async fn count(&self) -> anyhow::Result<u64> {
        let mut connection = self.connections[0][0].clone();
        let counted = connection.count(&self.prefix);
        tokio::time::timeout(self.patience, counted)
            .await
            .with_context(|| format!("count the keys of etcd within {:?}", self.patience))?
            .context("count the keys of etcd")
    }

    /// The connection for a put: each node in its turn, and of a node each connection.
    fn connection(&self, number: u64) -> &Connection {
        let (node, turn) = place(number, self.connections.len());
        let of_node = &self.connections[node];
        &of_node[turn % of_node.len()]
    }
}

/// The node that a put goes to, and how many it has had before.
fn place(number: u64, nodes: usize) -> (usize, usize) {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    (number % nodes, number / nodes)
}

impl Send1 for Puts {
    async fn send(&self, number: u64) -> (Prepared, Sent) {
        let mut connection = self.connection(number).clone();
        let key = format!("{}{number}", self.prefix);
        let put = connection.put(key.into(), self.value.clone());
        let put = tokio::time::timeout(self.patience, put).await;
        let mut sent = Sent {
            outcome: Outcome::Accepted(uuid::Uuid::from_u128(number.into())),
            accepted_by: None,
            errors: BTreeMap::new(),
        };
        if let Err(error) = put.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            self.failed.cancel();
            sent.outcome = Outcome::GaveUp { job: None };
            let kind = format!("{:?}", error.code());
            sent.errors.insert(kind, (1, words(&error)));
        }
        let prepared = Prepared {
            number,
            program: Program::Hello,
            body: Bytes::new(),
            expected: Expected::Verdict(""),
        };
        (prepared, sent)
    }
}

/// What a failure says, and what it was, for people.
fn words(error: &Status) -> String {
    match (error.code(), error.message()) {
        (code, "") => code.description().to_owned(),
        (Code::Unknown, message) => message.to_owned(),
        (code, message) => format!("{message} ({code:?})"),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn messages_are_etcds() {
        let put = PutRequest {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"vw"),
        };
        assert_eq!(put.encode_to_vec(), b"\x0a\x01k\x12\x02vw");
        let count = RangeRequest::count("a-");
        assert_eq!(count.encode_to_vec(), b"\x0a\x02a-\x12\x02a.\x48\x01");
        // All that there is.
        let all = RangeRequest::count("");
        assert_eq!(all.encode_to_vec(), b"\x0a\x01\0\x12\x01\0\x48\x01");
    }

    /// Of a header that has cluster, member, revision and term, the revision; behind it the count.
    #[test]
    fn answers_are_read() {
        let header = b"\x08\xef\x9b\xa8\xac\xea\xf1\x9e\xf0\x0c\x10\x85\xab\xa9\xb1\xda\xd2\xb5\xdb\x3d\x18\x2a\x20\x02";
        let mut answer = vec![0x0a, u8::try_from(header.len()).unwrap()];
        answer.extend(header);
        let put = PutResponse::decode(&*answer).unwrap();
        assert_eq!(put.header.unwrap().revision, 42);
        assert_eq!(PutResponse::decode(&b""[..]).unwrap().header, None);
        answer.extend(b"\x20\xe8\x07");
        assert_eq!(RangeResponse::decode(&*answer).unwrap().count, 1000);
        assert_eq!(RangeResponse::decode(&b""[..]).unwrap().count, 0);
        assert!(RangeResponse::decode(&b"\x20"[..]).is_err());
    }

    #[test]
    fn puts_go_round_the_nodes() {
        let places: Vec<_> = (0..5).map(|number| place(number, 3)).collect();
        assert_eq!(places, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]);
    }

    #[tokio::test]
    async fn a_node_that_is_not_there_is_an_error() {
        let failed = CancellationToken::new();
        let addresses = ["127.0.0.1:1".to_owned()];
        let connected = Puts::connect(&addresses, 1, 1, Duration::from_secs(1), failed).await;
        let error = connected.unwrap_err();
        assert!(format!("{error:#}").contains("connect to 127.0.0.1:1"));
    }
}
