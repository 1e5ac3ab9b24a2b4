//! Starting and ending.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::Stream;
use quorun_ledger::NodeId;
use quorun_proto::v1::consensus_server::ConsensusServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::server::{Connected, TcpIncoming};

use crate::blocking::blocking;
use crate::clock::Clocks;
use crate::confirm::Confirmer;
use crate::error::Error;
use crate::handle::{Handle, Notice, Shared, fail, failure};
use crate::ledger_store::{LedgerStore, StateMachine};
use crate::log_store::{Location, LogStore};
use crate::metrics::Metrics;
use crate::network::{self, Connections, MAX_MESSAGE, Peers, Service};
use crate::options::Options;
use crate::recall::{Marks, Recall};
use crate::status::{Progress, Status};
use crate::transfers::Transfers;
use crate::types::Raft;
use crate::{proposer, raft_runtime, read, status, transfers};

/// Threads for Raft and the peer port. One would mean fewer changes of thread, but whatever holds it up holds up Raft.
const WORKERS: usize = 2;
/// How long what is still running at the end is waited for.
const LAST_WAIT: Duration = Duration::from_secs(2);
const PING_EVERY: Duration = Duration::from_secs(5);
/// Calls under way on one connection at one time: far more than there are, the usual limit being too low for streams.
const MAX_STREAMS: u32 = 16_384;

/// Opens the stores, starts Raft on threads of its own, and serves the peer port there: the Consensus service and the
/// services that `extra` makes, all of them behind the check of cluster and node.
///
/// The node takes part by itself if it belongs to a cluster, once the others have said what they know of it
/// ([`Options::incarnation`]); a new one waits for [`Handle::bootstrap`], or to be added.
///
/// # Errors
/// When the stores cannot be opened or belong to another node, the options are wrong, or the port cannot be served.
pub async fn start<F>(
    options: Options,
    listener: std::net::TcpListener,
    extra: F,
    eligible: watch::Receiver<BTreeSet<NodeId>>,
) -> Result<(Handle, mpsc::UnboundedReceiver<Notice>), Error>
where
    F: FnOnce(&Handle) -> Routes + Send + 'static,
{
    let (tell, told) = oneshot::channel();
    thread::Builder::new()
        .name(format!("consensus-{}", options.id))
        .spawn(move || run(options, listener, extra, eligible, tell))
        .map_err(|error| Error::Failed(format!("start a thread: {error}")))?;
    told.await.unwrap_or_else(|_| {
        Err(Error::Failed(
            "consensus has panicked at its start".to_owned(),
        ))
    })
}

type Started = Result<(Handle, mpsc::UnboundedReceiver<Notice>), Error>;

/// The main thread of consensus: holds its runtime.
fn run<F>(
    options: Options,
    listener: std::net::TcpListener,
    extra: F,
    eligible: watch::Receiver<BTreeSet<NodeId>>,
    tell: oneshot::Sender<Started>,
) where
    F: FnOnce(&Handle) -> Routes + Send + 'static,
{
    let heartbeat = options.heartbeat;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .on_thread_start(move || raft_runtime::tick_rarely(heartbeat))
        .thread_name(format!("raft-{}", options.id))
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            // Whoever started it may have gone.
            let _ = tell.send(Err(Error::Failed(format!("start threads: {error}"))));
            return;
        }
    };
    // Goes away behind everything else.
    let (alive, ended) = watch::channel(());
    let stores = runtime.block_on(async {
        let handle = runtime.handle().clone();
        let launched = async {
            let incoming = incoming(listener).map_err(Error::Listen)?;
            launch(options, incoming, extra, eligible, handle, ended).await
        };
        match launched.await {
            Ok((node, handle, notices)) => {
                let handed_over = tell.send(Ok((handle, notices)));
                if handed_over.is_ok() {
                    node.serve().await
                } else {
                    node.end().await
                }
            }
            Err(error) => {
                // Whoever started it may have gone.
                let _ = tell.send(Err(error));
                None
            }
        }
    });
    runtime.shutdown_timeout(LAST_WAIT);
    if let Some((log, ledger)) = stores {
        log.close();
        ledger.close();
    }
    drop(alive);
}

/// A running node.
pub(crate) struct Running {
    id: NodeId,
    raft: Raft,
    log: LogStore,
    ledger: LedgerStore,
    shutdown: watch::Receiver<bool>,
    server: tokio::task::JoinHandle<()>,
}

fn incoming(listener: std::net::TcpListener) -> std::io::Result<TcpIncoming> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    Ok(TcpIncoming::from(listener).with_nodelay(Some(true)))
}

/// Opens the stores, starts Raft on this runtime, and serves the connections that come in.
pub(crate) async fn launch<F, I, IO>(
    options: Options,
    incoming: I,
    extra: F,
    eligible: watch::Receiver<BTreeSet<NodeId>>,
    runtime: tokio::runtime::Handle,
    ended: watch::Receiver<()>,
) -> Result<(Running, Handle, mpsc::UnboundedReceiver<Notice>), Error>
where
    F: FnOnce(&Handle) -> Routes,
    I: Stream<Item = std::io::Result<IO>> + Send + 'static,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let config = Arc::new(options.raft()?);
    for member in options.members.values() {
        Peers::check_address(&member.peer)?;
    }
    let mut server = tonic::transport::Server::builder();
    if let Some(tls) = &options.access.tls {
        Peers::check_certificates(tls)?;
        server = server
            .tls_config(tls.server())
            .map_err(|error| network::of_certificates(&error))?;
    }
    let location = Location {
        data_dir: options.data_dir.clone(),
        cluster: options.cluster,
        node: options.id,
    };
    let (mut log, ledger) = blocking(move || {
        let log = LogStore::open(&location)?;
        let range = log.range();
        let opened = LedgerStore::open(&location.data_dir, Some(range)).and_then(|ledger| {
            match ledger.check_not_ahead(range) {
                Ok(()) => Ok(ledger),
                Err(error) => {
                    ledger.close();
                    Err(error)
                }
            }
        });
        match opened {
            Ok(ledger) => Ok((log, ledger)),
            Err(error) => {
                log.close();
                Err(error)
            }
        }
    })
    .await
    .unwrap_or_else(|error| Err(Error::Storage(error.to_string())))?;
    let clocks = Arc::new(Clocks::new(options.id));
    let metrics = Arc::new(Metrics::new(log.appends(), clocks.clone()));
    if let Err(error) = metrics.follow(&ledger) {
        log.close();
        ledger.close();
        return Err(Error::Storage(error.to_string()));
    }
    log.guard_purges(Arc::new(ledger.clone()));

    let (notify, mut notices) = mpsc::unbounded_channel();
    let (fatal_tx, fatal) = watch::channel(None);
    let peers = Arc::new(Peers::new(
        options.cluster,
        options.id,
        runtime,
        options.dial,
        options.access.clone(),
    ));
    let transfers = Transfers::default();
    // Before Raft, which begins with applying what the ledger does not have on disk.
    tokio::spawn(ledger.clone().keep_small());
    let raft = Raft::build(
        options.id,
        config,
        Connections {
            peers: peers.clone(),
            transfers: transfers.clone(),
            clocks: clocks.clone(),
        },
        log.clone(),
        StateMachine::new(ledger.clone(), log.durable(), notify.clone())
            .telling(fatal_tx.clone())
            .measured(metrics.clone()),
    )
    .await;
    let raft = match raft {
        Ok(raft) => raft,
        Err(fatal) => {
            log.close();
            ledger.close();
            return Err(Error::Storage(fatal.to_string()));
        }
    };

    // What the log had beyond the runs of the ledger has been applied by now, most of it not for the first time.
    let mut resumed = false;
    while notices.try_recv().is_ok() {
        resumed = true;
    }
    if resumed {
        // Its receiver is here.
        let _ = notify.send(Notice::Resumed);
    }

    let incarnation = options.incarnation;
    // Who does not look at what was confirmed does not ask the others either.
    #[cfg(feature = "bugs")]
    let incarnation = incarnation.filter(|_| !quorun_ledger::bugs::Bug::SkipWatermark.is_on());
    let recall = incarnation.map(|incarnation| {
        let mut members = options.members.clone();
        members.extend(ledger.members());
        Recall {
            id: options.id,
            incarnation,
            data_dir: options.data_dir.clone(),
            log: log.range(),
            members,
            peers: peers.clone(),
        }
    });
    let marks = Marks::default();
    let forgotten = fatal_tx.clone();
    let (status_tx, status) = watch::channel(Status::default());
    tokio::spawn(watch_store(log.failure(), fatal_tx.clone()));
    tokio::spawn(watch_store(ledger.failure(), fatal_tx.clone()));
    tokio::spawn({
        let (ledger, fatal) = (ledger.clone(), fatal_tx.clone());
        async move {
            match ledger.check_in_background().await {
                Ok(true) => tracing::info!("the ledger's records are what was written"),
                Ok(false) => {}
                Err(error) => {
                    fatal.send_replace(Some(format!("the ledger is damaged: {error}")));
                }
            }
        }
    });
    let (progress_tx, progress) = watch::channel(Progress::default());
    tokio::spawn(transfers::run(
        raft.clone(),
        progress,
        transfers,
        log.clone(),
        ledger.clone(),
        options.snapshot_after,
        options.log_kept,
    ));
    tokio::spawn(status::run(
        raft.clone(),
        ledger.applied(),
        options.election_max,
        status_tx,
        progress_tx,
        fatal_tx,
    ));
    let (proposer, proposing) = proposer::proposer(proposer::Parts {
        id: options.id,
        raft: raft.clone(),
        peers: peers.clone(),
        status: status.clone(),
        eligible,
        queue: options.queue,
        metrics: metrics.clone(),
        patience: 2 * options.election_max,
    });
    tokio::spawn(proposing);
    let confirmer = Confirmer {
        id: options.id,
        raft: raft.clone(),
        peers: peers.clone(),
        log: log.clone(),
    };
    let (reader, reading) = read::reader(
        read::Parts {
            id: options.id,
            raft: raft.clone(),
            confirmer: confirmer.clone(),
            peers: peers.clone(),
            status: status.clone(),
            patience: 2 * options.election_max,
        },
        ledger.applied(),
    );
    tokio::spawn(reading);

    let (shutdown_tx, shutdown) = watch::channel(false);
    let handle = Handle {
        shared: Arc::new(Shared {
            id: options.id,
            members: options.members,
            raft: raft.clone(),
            ledger: ledger.clone(),
            peers,
            proposer: proposer.clone(),
            reader,
            status,
            fatal,
            shutdown: shutdown_tx,
            ended,
            election: options.election_max,
            marks: marks.clone(),
            metrics,
        }),
    };
    let service = ConsensusServer::new(Service::new(
        raft.clone(),
        proposer,
        ledger.clone(),
        marks,
        confirmer,
        clocks,
        &options.data_dir,
    ))
    .max_decoding_message_size(MAX_MESSAGE)
    .max_encoding_message_size(MAX_MESSAGE);
    let routes = extra(&handle).add_service(service);
    let server = server
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keepalive_interval(Some(PING_EVERY))
        .max_concurrent_streams(Some(MAX_STREAMS))
        .layer(InterceptorLayer::new(network::check(
            options.cluster,
            options.id,
            options.access.secrets,
        )))
        .add_routes(routes);
    let id = options.id;
    let server = tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming(incoming).await {
            tracing::error!(node = id, %error, "the peer port is no longer served");
        }
    });
    match recall {
        None => raft.run(),
        Some(recall) => {
            let raft = raft.clone();
            tokio::spawn(async move {
                match recall.run().await {
                    Ok(()) => raft.run(),
                    Err(error) => drop(forgotten.send_replace(Some(error.to_string()))),
                }
            });
        }
    }
    tracing::info!(node = id, cluster = %options.cluster, "consensus started");
    let node = Running {
        id,
        raft,
        log,
        ledger,
        shutdown,
        server,
    };
    Ok((node, handle, notices))
}

/// A store that can no longer be kept ends consensus even while nobody writes.
async fn watch_store(
    mut failures: watch::Receiver<Option<String>>,
    fatal: watch::Sender<Option<String>>,
) {
    if let Some(failed) = failure(&mut failures).await {
        fail(&fatal, || failed);
    }
}

impl Running {
    /// Returns when consensus is to end, with the stores that are then to be closed.
    pub(crate) async fn serve(mut self) -> Option<(LogStore, LedgerStore)> {
        // An error means that nobody holds the handle any more.
        let _ = self.shutdown.wait_for(|shutdown| *shutdown).await;
        self.end().await
    }

    async fn end(self) -> Option<(LogStore, LedgerStore)> {
        self.server.abort();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(node = self.id, %error, "raft has not ended as it should");
        }
        tracing::info!(node = self.id, "consensus ended");
        Some((self.log, self.ledger))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quorun_ledger::Command;
    use tokio::time::Instant;

    use super::*;
    use crate::options::{ClusterId, Member};

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn alone(data_dir: &std::path::Path) -> Handle {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let member = Member {
            peer: listener.local_addr().unwrap().to_string(),
            http: String::new(),
        };
        let members = BTreeMap::from([(1, member)]);
        let options = Options::new(1, ClusterId([3; 16]), members, data_dir.to_owned());
        let (_, eligible) = watch::channel(BTreeSet::new());
        let (handle, _) = start(options, listener, |_| Routes::default(), eligible)
            .await
            .unwrap();
        handle.bootstrap().await.unwrap();
        let mut status = handle.status();
        let leading = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.leading));
        leading.await.unwrap().unwrap();
        handle
    }

    #[tokio::test]
    async fn a_ledger_that_fails_ends_consensus_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let handle = alone(dir.path()).await;
        handle.shared.ledger.close();
        let proposing = handle.clone();
        let proposed = tokio::spawn(async move {
            let drain = Command::Drain {
                node: 1,
                draining: true,
            };
            proposing.propose(drain, Instant::now() + PATIENCE).await
        });
        let error = tokio::time::timeout(PATIENCE, handle.stopped())
            .await
            .unwrap();
        assert!(matches!(error, Error::Storage(_)), "{error}");
        assert!(
            error.to_string().contains("the ledger is closed"),
            "{error}"
        );
        proposed.await.unwrap().unwrap_err();
        handle.shutdown().await;
    }

    #[tokio::test]
    async fn options_that_cannot_work_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let good = Options::new(
            1,
            ClusterId([3; 16]),
            BTreeMap::new(),
            dir.path().to_owned(),
        );
        let mut slow = good.clone();
        slow.heartbeat = slow.election_min;
        let mut nowhere = good;
        let member = Member {
            peer: "not an address".to_owned(),
            http: String::new(),
        };
        nowhere.members.insert(2, member);
        for wrong in [slow, nowhere] {
            let (_, eligible) = watch::channel(BTreeSet::new());
            let error = start(wrong, listener(), |_| Routes::default(), eligible).await;
            assert!(matches!(error, Err(Error::Options(_))), "{error:?}");
        }
    }
}
