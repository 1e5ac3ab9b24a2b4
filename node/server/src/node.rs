//! A node: all its parts, from start to end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use quorun_consensus::{Handle, Member, Notice};
use quorun_executor::{Executor, Labels, Options};
use quorun_ledger::{Command, Event, NodeId};
use quorun_proto::v1::peer_server::PeerServer;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{debug, info, warn};

use crate::access::config::is_loopback;
use crate::callbacks::{Callbacks, Sender};
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::console::Consoles;
use crate::disk_space;
use crate::http::{self, App, Clients, Known, Server};
use crate::identity;
use crate::images::Images;
use crate::insight::{Counted, Throughput};
use crate::jobs::Jobs;
use crate::join;
use crate::liveness::Liveness;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::output::Outputs;
use crate::peer_service::PeerService;
use crate::pressure::Pressure;
use crate::roster::Roster;
use crate::scheduler::Scheduler;
use crate::settings::{ClusterSettings, Effective};
use crate::watchers::Watchers;
use crate::worker::Worker;

/// How long a node that was told to end waits for what it executes.
const DRAIN: Duration = Duration::from_secs(16);
/// How long it then waits until the rest has been given back to the others.
const HAND_BACK: Duration = Duration::from_secs(3);
/// How long it then waits for its last answers to reach the clients: as long as they may take, and a little.
const LAST_ANSWERS: Duration = Duration::from_secs(8);
/// Runs a node until it is told to end.
///
/// # Errors
/// When it cannot start, must not run, or its storage has failed.
pub async fn run(mut config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let calls = http::Routes::new();
    let folder = identity::lock(&config.data)?;
    let peer_listener = listen(config.peer, "peers", "--peer")?;
    let http_listener = listen(config.http, "clients", "--http")?;
    http_listener
        .set_nonblocking(true)
        .context("prepare the HTTP listener")?;
    if !config.join.is_empty() {
        let place = match identity::joined(&folder)? {
            Some(place) => place,
            None => join::join(&config, &config.join, &stop).await?,
        };
        config.settle(place);
    }
    #[cfg(feature = "bugs")]
    switch_bug_on()?;
    let incarnation = identity::claim(&folder, &config)?;
    info!(
        node = config.id,
        incarnation,
        cluster = %config.cluster,
        peers = config.peers,
        data = %config.data.display(),
        slots = config.slots,
        version = crate::VERSION,
        "node starts"
    );
    if config.access.peers.secrets.is_empty()
        && config.access.peers.tls.is_none()
        && !is_loopback(config.peer.ip())
    {
        warn!(
            address = %config.peer,
            "whoever reaches the peer port can take part in the cluster: give all nodes a --cluster-secret-file, or --peer-tls-…"
        );
    }
    let (executor, upkeep) = start_executor(&config, incarnation)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(upkeep);
    let told_by = config.free_mib_file.as_deref();
    let (guard, disk) = disk_space::Guard::new(&config.data, config.min_free_mib, told_by);
    tasks.spawn(guard.run());
    if let Some(tokens) = config.access.tokens.clone() {
        tasks.spawn(tokens.follow());
    }
    if let Some(certificate) = config.access.certificate.clone() {
        tasks.spawn(certificate.follow());
    }

    let process = uuid::Uuid::now_v7().to_string();
    let liveness = Liveness::new(config.node_timeout);
    let outputs = Outputs::default();
    let consoles = Consoles::default();
    let watchers = Watchers::default();
    let (eligible, eligible_now) = watch::channel(BTreeSet::new());
    let options = quorun_consensus::Options {
        id: config.id,
        cluster: config.cluster,
        members: known_members(&config),
        data_dir: config.data.clone(),
        heartbeat: config.heartbeat,
        election_min: config.election,
        election_max: config.election * 2,
        snapshot_after: config.snapshot_after,
        log_kept: quorun_consensus::Options::LOG_KEPT,
        incarnation: Some(incarnation),
        queue: Some(config.ceilings.queue),
        access: config.access.peers.clone(),
        dial: config.dial.clone(),
    };
    let told_images = Arc::new(OnceLock::new());
    let service = {
        let (id, process, liveness) = (config.id, process.clone(), liveness.clone());
        let (outputs, watchers) = (outputs.clone(), watchers.clone());
        let consoles = consoles.clone();
        let images = Arc::clone(&told_images);
        move |consensus: &Handle| {
            Routes::new(PeerServer::new(PeerService {
                id,
                process,
                liveness,
                outputs,
                consoles,
                watchers,
                consensus: consensus.clone(),
                images,
            }))
        }
    };
    let (consensus, notices) =
        quorun_consensus::start(options, peer_listener, service, eligible_now)
            .await
            .context("start the consensus")?;

    let catalogue = Catalogue::new(config.languages.clone());
    catalogue.changed(&consensus).await?;
    let images = Images::new(
        config.id,
        consensus.clone(),
        executor.clone(),
        catalogue.clone(),
        config.pulls,
    );
    let _ = told_images.set(images.clone());
    tasks.spawn(images.clone().run());
    let membership = Membership::new(
        config.clone(),
        incarnation,
        consensus.clone(),
        executor.clone(),
        liveness.clone(),
        disk.clone(),
        images.runnable(),
    );
    membership.meet_self(&process).await?;
    let settings = ClusterSettings::new(Effective::own(&config));
    settings.changed(&consensus).await?;

    let metrics = Metrics::default();
    let throughput = Throughput::default();
    let worker = Worker::new(
        (config.id, incarnation),
        consensus.clone(),
        executor.clone(),
        (outputs.clone(), consoles.clone()),
        membership.clone(),
        (catalogue.clone(), images.clone()),
        metrics.clone(),
    );
    let scheduler = Scheduler {
        consensus: consensus.clone(),
        liveness: liveness.clone(),
        eligible,
        node_timeout: config.node_timeout,
        settings: settings.clone(),
    };
    tasks.spawn(scheduler.run());
    let roster = Roster {
        consensus: consensus.clone(),
        liveness: liveness.clone(),
        membership: membership.clone(),
        settings: settings.clone(),
    };
    tasks.spawn(roster.run());
    let due = Arc::new(Notify::new());
    let callbacks = Callbacks {
        consensus: consensus.clone(),
        sender: Sender::new(
            config.callback_allow_private,
            Arc::clone(&config.callback_roots),
            metrics.callbacks.clone(),
        )?,
        news: Arc::clone(&due),
        backoff: config.callback_backoff,
        figures: metrics.callbacks.clone(),
    };
    tasks.spawn(callbacks.run());
    tasks.spawn(dispatch(
        notices,
        worker.clone(),
        watchers.clone(),
        membership.clone(),
        (settings.clone(), consensus.clone()),
        (metrics.clone(), throughput.clone(), due),
        catalogue.clone(),
    ));
    let reporting = membership.clone();
    tasks.spawn(async move { reporting.report().await });

    let jobs = Jobs::new(
        config.id,
        consensus.clone(),
        watchers,
        (outputs, consoles),
        config.ceilings.queue,
        disk,
        (metrics.clone(), throughput, catalogue.clone()),
    );
    let mut bounds = config.bounds;
    bounds.connections = crate::process::room_for(bounds.connections);
    let forms = config.join.is_empty();
    let closing = CancellationToken::new();
    let app = App::from(Known {
        catalogue,
        images,
        peers_languages: Default::default(),
        jobs,
        consensus: consensus.clone(),
        membership: membership.clone(),
        liveness,
        settings,
        executor: executor.clone(),
        pressure: Pressure::new(bounds),
        metrics,
        closing: closing.clone(),
        config,
    });
    let http_done = serve_http((calls, app), http_listener, closing.clone())?;

    let refusal = tokio::select! {
        () = stop.cancelled() => None,
        error = consensus.stopped() => Some(anyhow!(error).context("the consensus has ended")),
        refusal = membership.announce() => Some(refusal.into()),
        refusal = membership.meet_peers(&process) => Some(refusal.into()),
        Err(error) = form(&consensus, forms) => Some(error),
    };
    let result = match refusal {
        None => {
            leave(&membership, &worker, &consensus).await;
            Ok(())
        }
        Some(error) => Err(error),
    };
    closing.cancel();
    if tokio::time::timeout(LAST_ANSWERS, http_done).await.is_err() {
        debug!("clients were still being answered when the node ended");
    }
    executor.shutdown().await;
    consensus.shutdown().await;
    tasks.shutdown().await;
    drop(folder);
    info!("node has ended");
    result
}

/// Forms the cluster, if it is not there yet. Not before the peers have said what they know of this node, which may take
/// as long as they are not there.
async fn form(consensus: &Handle, forms: bool) -> anyhow::Result<()> {
    if forms {
        consensus.bootstrap().await.context("form the cluster")?;
    }
    std::future::pending().await
}

/// The members that the consensus begins with; of a node that joins only itself, which it does not form a cluster of.
fn known_members(config: &Config) -> BTreeMap<NodeId, Member> {
    if config.join.is_empty() {
        return config.members.clone();
    }
    let own = Member {
        peer: config.advertise_peer.clone(),
        http: config.advertise_http.clone(),
    };
    BTreeMap::from([(config.id, own)])
}

/// Switches on what `QUORUN_BUG` names.
#[cfg(feature = "bugs")]
fn switch_bug_on() -> anyhow::Result<()> {
    let Ok(name) = std::env::var("QUORUN_BUG") else {
        return Ok(());
    };
    let bug = quorun_ledger::bugs::Bug::named(&name)
        .with_context(|| format!("QUORUN_BUG: there is no bug named {name}"))?;
    bug.switch_on();
    tracing::error!(bug = name, "this node has a bug");
    Ok(())
}

fn listen(address: SocketAddr, whom: &str, option: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| {
        format!("cannot listen for {whom} on {address}; is another node running there, or should {option} be another address?")
    })
}

fn start_executor(
    config: &Config,
    incarnation: u64,
) -> anyhow::Result<(Executor, impl Future<Output = ()> + Send + use<>)> {
    let labels = Labels {
        cluster: config.cluster.to_string(),
        node: config.id,
        incarnation,
    };
    let slots = config.slots as usize;
    let mut options = Options::new(config.executor.into(), slots, labels, config.data.clone());
    options.max_jobs_per_sandbox = config.max_jobs_per_sandbox;
    options.zygotes = config.zygotes;
    options.artefact_bytes = config.artefact_bytes;
    options.runtime.clone_from(&config.runtime);
    // Languages that share an image and a size share its sandboxes. The first in the file are the most wanted.
    for language in &config.languages {
        let sandbox = (language.image.clone(), language.limits.memory_kb);
        if !options.images.contains(&sandbox) {
            options.images.push(sandbox);
        }
    }
    quorun_executor::start(options).context("start the executor")
}

/// Serves HTTP until `closing`, then lets requests under way come to their end.
fn serve_http(
    (calls, app): (http::Routes, App),
    listener: TcpListener,
    closing: CancellationToken,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let address = listener.local_addr().context("the HTTP listener")?;
    let listener = tokio::net::TcpListener::from_std(listener).context("the HTTP listener")?;
    let access = &app.config.access;
    let certificate = access.certificate.clone();
    let (pressure, metrics) = (app.pressure.clone(), app.metrics.clone());
    let secure = certificate.is_some();
    info!(%address, tls = secure, tokens = access.tokens.is_some(), "listening for clients");
    if access.tokens.is_none() && !is_loopback(address.ip()) {
        warn!(
            %address,
            "there are no tokens: whoever reaches this address can run programs and change the cluster (--open)"
        );
    }
    let server = Server {
        clients: Clients::new(listener, pressure, metrics, secure),
        idle: access.idle,
        certificate,
        router: http::router(calls, app),
    };
    Ok(tokio::spawn(server.run(closing)))
}

/// Passes on what the ledger says to those it concerns.
async fn dispatch(
    mut notices: mpsc::UnboundedReceiver<Notice>,
    worker: Worker,
    watchers: Watchers,
    membership: Membership,
    (settings, consensus): (ClusterSettings, Handle),
    (metrics, throughput, due): (Metrics, Throughput, Arc<Notify>),
    catalogue: Catalogue,
) {
    while let Some(notice) = notices.recv().await {
        let result = match notice {
            Notice::Events(events, at) => {
                let mut result = Ok(());
                for event in events {
                    if matches!(event, Event::Assigned { attempt: 2.., .. }) {
                        metrics.retried();
                    }
                    if matches!(event, Event::Finished { .. }) {
                        metrics.finished();
                    }
                    // Not what is replayed after a start.
                    if membership.announced() {
                        match event {
                            Event::Assigned { .. } => throughput.count(Counted::Started, at),
                            Event::Finished { .. } => throughput.count(Counted::Finished, at),
                            _ => {}
                        }
                    }
                    let done = match event {
                        Event::LanguagesChanged => catalogue.changed(&consensus).await,
                        Event::NodeChanged { node } => {
                            let known = membership.node_changed(node).await;
                            known.and(catalogue.changed(&consensus).await)
                        }
                        Event::SettingsChanged => settings.changed(&consensus).await,
                        Event::CallbackDue { .. } => {
                            due.notify_one();
                            Ok(())
                        }
                        event => {
                            event_of(&event, at, &worker, &watchers);
                            Ok(())
                        }
                    };
                    result = result.and(done);
                }
                result
            }
            Notice::Reset | Notice::Resumed => {
                if notice == Notice::Reset {
                    info!("the ledger was replaced by a snapshot");
                }
                let known = membership.all_changed().await;
                let reconciled = worker.reconcile().await;
                // After the worker, so that a watcher that looks finds the attempts.
                watchers.all_changed();
                known
                    .and(reconciled)
                    .and(settings.changed(&consensus).await)
                    .and(catalogue.changed(&consensus).await)
            }
        };
        if let Err(error) = result {
            warn!(%error, "the ledger could not be read after a change");
        }
    }
}

fn event_of(event: &Event, at: Instant, worker: &Worker, watchers: &Watchers) {
    match *event {
        Event::Queued { job } => {
            debug!(%job, "job queued");
            watchers.changed(job);
        }
        Event::Assigned {
            job,
            attempt,
            node,
            incarnation,
        } => {
            debug!(%job, attempt, node, "job assigned");
            // First the worker, so that a watcher that looks finds the attempt.
            worker.assigned(job, attempt, node, incarnation, at);
            watchers.changed(job);
        }
        Event::Revoked { job, attempt, node } => {
            debug!(%job, attempt, node, "attempt revoked");
            worker.revoked(job, attempt, node);
        }
        Event::Finished { job } => {
            debug!(%job, "job finished");
            watchers.finished(job, at);
        }
        // Not a matter of these.
        Event::NodeChanged { .. }
        | Event::LanguagesChanged
        | Event::SettingsChanged
        | Event::CallbackDue { .. } => {}
    }
}

/// Leaves the cluster's work to the others: takes nothing new, finishes what it has, gives the leadership away.
async fn leave(membership: &Membership, worker: &Worker, consensus: &Handle) {
    info!("node drains");
    membership.drain();
    let command = Command::Drain {
        node: membership.id(),
        draining: true,
    };
    let deadline = Instant::now() + Duration::from_secs(2);
    if let Err(error) = consensus.propose(command, deadline.into()).await {
        warn!(%error, "the others were not told that this node drains");
    }
    if tokio::time::timeout(DRAIN, worker.drained()).await.is_err() {
        warn!(
            attempts = worker.busy(),
            "giving back what is still running"
        );
        worker.hand_back();
        let _ = tokio::time::timeout(HAND_BACK, worker.drained()).await;
    }
    let leading = consensus.status().borrow().leading;
    if leading && let Err(error) = consensus.transfer_leadership(None).await {
        debug!(%error, "leadership not handed over");
    }
}
