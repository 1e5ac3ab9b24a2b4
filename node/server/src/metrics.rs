//! What a node shows at `/metrics`: all names and what they mean, and the figures that are the server's own.
//!
//! Every figure is of this node, and since its start. What the ledger says is the same on all nodes that have applied as
//! much: its names begin with `quorun_ledger_`, and are not to be added up over the nodes; all others are.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use quorun_consensus::{Handle, Status};
use quorun_executor::Executor;
use quorun_ledger::{Completion, Node, NodeId, Verdict};
use quorun_metrics::Histogram;

use crate::callbacks::figures::Figures as Callbacks;
use crate::jobs::Error;
use crate::pressure::{Full, Pressure, Thing, Whose};
use crate::process::{self, Process};

/// The routes that are counted; everything else is `other`.
pub const ROUTES: [(&str, &str); 34] = [
    ("POST", "/lang/{language}"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs/{id}"),
    ("GET", "/v1/jobs"),
    ("DELETE", "/v1/jobs/{id}"),
    ("DELETE", "/v1/jobs"),
    ("GET", "/v1/jobs/{id}/events"),
    ("GET", "/v1/jobs/{id}/attach"),
    ("POST", "/v1/jobs/{id}/callback"),
    ("POST", "/v1/jobs/batch"),
    ("POST", "/v1/jobs/wait"),
    ("POST", "/v1/jobs/cancel"),
    ("GET", "/v1/queue"),
    ("GET", "/v1/languages"),
    ("GET", "/v1/languages/{name}"),
    ("PUT", "/v1/languages/{name}"),
    ("PATCH", "/v1/languages/{name}"),
    ("DELETE", "/v1/languages/{name}"),
    ("GET", "/v1/cluster"),
    ("POST", "/v1/cluster/nodes"),
    ("DELETE", "/v1/cluster/nodes/{id}"),
    ("POST", "/v1/cluster/nodes/{id}/drain"),
    ("POST", "/v1/cluster/leader"),
    ("GET", "/v1/cluster/settings"),
    ("PUT", "/v1/cluster/settings"),
    ("GET", "/errors"),
    ("GET", "/errors/{type}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/"),
    ("", "other"),
];
/// The last of them.
const OTHER: usize = ROUTES.len() - 1;
const FIRST_STATUS: u16 = 100;
const STATUSES: usize = 500;

/// Why submissions, waits and connections are turned away.
const REASONS: [&str; 11] = [
    "client_connections",
    "node_connections",
    "client_waiting",
    "node_waiting",
    "client_body_bytes",
    "node_body_bytes",
    "queue_jobs",
    "queue_bytes",
    "disk",
    "no_leader",
    "unconfirmed",
];

/// What the server of a node counts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

impl std::ops::Deref for Metrics {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

/// The figures.
#[derive(Debug)]
pub struct Inner {
    /// A submission, from its head until it is proposed.
    pub http: Histogram,
    /// An attempt of this node, from the ledger's showing it until it is handed to the executor.
    pub start: Histogram,
    /// A program's own wall-clock time.
    pub program: Histogram,
    /// From the end of an attempt until its result is committed.
    pub result: Histogram,
    /// From the ledger's showing a job's end until a client that waits for it here is answered.
    pub notify: Histogram,
    /// Callbacks that this node sends.
    pub callbacks: Callbacks,
    accepted: AtomicU64,
    joined: AtomicU64,
    refused: [AtomicU64; REASONS.len()],
    attempts: [AtomicU64; Verdict::ALL.len()],
    fenced: AtomicU64,
    given_back: AtomicU64,
    retries: AtomicU64,
    finishes: AtomicU64,
    requests: Vec<Requests>,
}

/// The requests of one route.
#[derive(Debug)]
struct Requests {
    time: Histogram,
    /// One for each status.
    counts: Box<[AtomicU64]>,
}

impl Default for Metrics {
    fn default() -> Self {
        let requests = || Requests {
            time: Histogram::of_times(),
            counts: (0..STATUSES).map(|_| AtomicU64::new(0)).collect(),
        };
        Self {
            inner: Arc::new(Inner {
                http: Histogram::of_times(),
                start: Histogram::of_times(),
                program: Histogram::of_times(),
                result: Histogram::of_times(),
                notify: Histogram::of_times(),
                callbacks: Callbacks::default(),
                accepted: AtomicU64::new(0),
                joined: AtomicU64::new(0),
                refused: Default::default(),
                attempts: Default::default(),
                fenced: AtomicU64::new(0),
                given_back: AtomicU64::new(0),
                retries: AtomicU64::new(0),
                finishes: AtomicU64::new(0),
                requests: ROUTES.iter().map(|_| requests()).collect(),
            }),
        }
    }
}

fn one_more(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl Inner {
    /// A request was answered, as far as the head of its answer.
    pub fn answered(
        &self,
        method: &Method,
        route: Option<&str>,
        status: StatusCode,
        took: Duration,
    ) {
        let known = route.and_then(|route| {
            let known = (method.as_str(), route);
            ROUTES.iter().position(|route| *route == known)
        });
        let requests = &self.requests[known.unwrap_or(OTHER)];
        requests.time.took(took);
        let place = usize::from(status.as_u16().saturating_sub(FIRST_STATUS));
        if let Some(count) = requests.counts.get(place) {
            one_more(count);
        }
    }

    /// A submission was accepted, or joined an earlier one.
    pub fn accepted(&self, joined: bool) {
        one_more(if joined { &self.joined } else { &self.accepted });
    }

    /// Something was turned away because this node has too much.
    pub fn refused(&self, full: &Full) {
        let place = 2 * full.thing as usize + usize::from(full.whose == Whose::Node);
        one_more(&self.refused[place]);
    }

    /// A submission was not taken.
    pub fn not_taken(&self, error: &Error) {
        let place = match error {
            Error::QueueFull { .. } => 6,
            Error::QueueHeavy { .. } => 7,
            Error::DiskFull(_) => 8,
            Error::NoLeader => 9,
            Error::Unknown { .. } => 10,
            _ => return,
        };
        one_more(&self.refused[place]);
    }

    /// An attempt of this node has ended, and its report has been answered.
    pub fn ended(&self, verdict: Verdict, completion: Option<Completion>) {
        if completion == Some(Completion::Fenced) {
            return one_more(&self.fenced);
        }
        if let Some(place) = Verdict::ALL.iter().position(|known| *known == verdict) {
            one_more(&self.attempts[place]);
        }
    }

    /// This node could not run an attempt.
    pub fn given_back(&self) {
        one_more(&self.given_back);
    }

    /// The ledger shows a further attempt of a job.
    pub fn retried(&self) {
        one_more(&self.retries);
    }

    /// A job has got its result, anywhere in the cluster.
    pub fn finished(&self) {
        one_more(&self.finishes);
    }

    /// How many jobs this node has seen finish.
    #[must_use]
    pub fn finishes(&self) -> u64 {
        self.finishes.load(Ordering::Relaxed)
    }
}

/// Everything that is shown, at one moment.
#[derive(Debug)]
pub struct Shown {
    /// The server's own figures.
    pub metrics: Metrics,
    /// What the node has taken on.
    pub pressure: Pressure,
    /// The consensus, with its figures.
    pub consensus: Handle,
    /// The sandboxes.
    pub executor: Executor,
    /// This node.
    pub id: NodeId,
    /// How it stands.
    pub status: Status,
    /// Its record in the ledger, if it is there.
    pub node: Option<Node>,
    /// Deliveries that are to be sent, as far as they were counted.
    pub callbacks_pending: u64,
    /// For how long the first of them has been due, seconds.
    pub callbacks_overdue_s: u64,
}

impl Shown {
    /// All of it in Prometheus' text format.
    ///
    /// # Errors
    /// Never: writing to memory does not fail.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

type Written = Result<(), fmt::Error>;

/// Writes families of figures, one after the other.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        write: impl FnOnce(MetricEncoder<'_>) -> Written,
    ) -> Written {
        write(self.0.encode_descriptor(name, help, None, kind)?)
    }

    /// The name is shown with `_total` behind it.
    fn counter(&mut self, name: &str, help: &str, value: u64) -> Written {
        self.family(name, help, MetricType::Counter, |mut family| {
            count(&mut family, value)
        })
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> Written {
        self.family(name, help, MetricType::Gauge, |mut family| {
            family.encode_gauge(&value)
        })
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> Written {
        self.family(name, help, MetricType::Histogram, |mut family| {
            distribution(&mut family, histogram)
        })
    }

    /// One figure for each value of a label.
    fn by<'v>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        label: &'static str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> Written {
        self.family(name, help, kind, |mut family| {
            for (value, figure) in values {
                let labels = [(label, value)];
                let mut one = family.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => count(&mut one, figure)?,
                    _ => one.encode_gauge(&figure)?,
                }
            }
            Ok(())
        })
    }
}

fn count(encoder: &mut MetricEncoder<'_>, value: u64) -> Written {
    encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn distribution(encoder: &mut MetricEncoder<'_>, histogram: &Histogram) -> Written {
    let read = histogram.read();
    encoder.encode_histogram::<NoLabelSet>(read.sum, read.count, &read.buckets, None)
}

fn labelled<L: EncodeLabelSet>(
    family: &mut MetricEncoder<'_>,
    labels: &L,
    histogram: &Histogram,
) -> Written {
    distribution(&mut family.encode_family(labels)?, histogram)
}

fn now(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

impl Collector for Shown {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Written {
        let mut page = Page(encoder);
        self.phases(&mut page)?;
        self.jobs(&mut page)?;
        self.callbacks(&mut page)?;
        self.ledger(&mut page)?;
        self.clocks(&mut page)?;
        self.consensus(&mut page)?;
        self.sandboxes(&mut page)?;
        self.requests(&mut page)?;
        if let Some(process) = process::look() {
            process_of(&process, &mut page)?;
        }
        Ok(())
    }
}

impl Shown {
    /// Where the milliseconds of a job go.
    fn phases(&self, page: &mut Page<'_>) -> Written {
        let consensus = self.consensus.metrics();
        let phases = [
            ("http", &self.metrics.http),
            ("forward", &consensus.forward),
            ("append", &*consensus.append),
            ("commit", &consensus.commit),
            ("apply", &consensus.apply),
            ("reply", &consensus.reply),
            ("start", &self.metrics.start),
            ("sandbox", self.executor.waits()),
            ("program", &self.metrics.program),
            ("result", &self.metrics.result),
            ("notify", &self.metrics.notify),
        ];
        page.family(
            "quorun_job_phase_seconds",
            "Where the time of a job goes, each part where it is spent: \
             http: reading and checking a submission; \
             forward: the call of the leader, with all that it does; \
             append: one write of the log, synced; \
             commit: from handing a batch to Raft until a majority has it (leader); \
             apply: applying a group of entries; \
             reply: from the commit of a batch until its replies are there (leader); \
             start: from an assignment in the ledger to the executor; \
             sandbox: waiting for a sandbox; \
             program: the program itself; \
             result: from its end until its result is committed; \
             notify: from a job's end in the ledger until a waiting client is answered",
            MetricType::Histogram,
            |mut family| {
                for (phase, histogram) in phases {
                    labelled(&mut family, &[("phase", phase)], histogram)?;
                }
                Ok(())
            },
        )
    }

    /// What this node did with jobs.
    fn jobs(&self, page: &mut Page<'_>) -> Written {
        let metrics = &self.metrics;
        page.counter(
            "quorun_jobs_accepted",
            "Jobs that this node accepted from clients",
            now(&metrics.accepted),
        )?;
        page.counter(
            "quorun_jobs_joined",
            "Submissions to this node that joined an earlier job by their key",
            now(&metrics.joined),
        )?;
        page.by(
            (
                "quorun_refused",
                "What this node turned away, by what there was too much of",
                MetricType::Counter,
            ),
            "reason",
            REASONS.into_iter().zip(metrics.refused.iter().map(now)),
        )?;
        page.by(
            (
                "quorun_attempts_finished",
                "Attempts of this node whose result was committed",
                MetricType::Counter,
            ),
            "verdict",
            Verdict::ALL
                .map(Verdict::as_str)
                .into_iter()
                .zip(metrics.attempts.iter().map(now)),
        )?;
        page.counter(
            "quorun_attempts_fenced",
            "Attempts of this node whose result came too late",
            now(&metrics.fenced),
        )?;
        page.counter(
            "quorun_attempts_given_back",
            "Attempts that this node could not run and gave back",
            now(&metrics.given_back),
        )?;
        let pressure = &self.pressure;
        page.gauge(
            "quorun_waiting_clients",
            "Requests that wait for a job, or follow one",
            pressure.now(Thing::Waiting),
        )?;
        page.gauge(
            "quorun_connections",
            "Open connections of clients",
            pressure.now(Thing::Connections),
        )?;
        page.gauge(
            "quorun_body_bytes",
            "Bodies of submissions that the cluster does not have yet",
            pressure.now(Thing::BodyBytes),
        )?;
        let node = self.node.as_ref();
        page.gauge(
            "quorun_slots",
            "Attempts that this node executes at one time at most",
            node.map_or(0, |n| n.slots.into()),
        )?;
        page.gauge(
            "quorun_slots_busy",
            "Attempts that hold a slot of this node",
            node.map_or(0, |n| n.busy.into()),
        )
    }

    /// What is told to receivers, and by this node as long as it leads.
    fn callbacks(&self, page: &mut Page<'_>) -> Written {
        let sent = &self.metrics.callbacks;
        page.by(
            (
                "quorun_callback_attempts",
                "Attempts of this node to deliver a callback: the receiver has it, will be asked again, or was asked for the last time",
                MetricType::Counter,
            ),
            "outcome",
            sent.attempts(),
        )?;
        page.gauge(
            "quorun_callbacks_under_way",
            "Callbacks that this node sends at this moment",
            sent.under_way(),
        )?;
        page.by(
            (
                "quorun_callback_lookups",
                "Names of receivers that this node looked up: there was an address, there was none, or no answer in time",
                MetricType::Counter,
            ),
            "outcome",
            sent.lookups(),
        )?;
        page.gauge(
            "quorun_callback_lookup_threads",
            "Threads of this node that look a name up, also where nobody waits for the answer any more",
            sent.threads(),
        )?;
        page.gauge(
            "quorun_ledger_callbacks_pending",
            "Callbacks of finished jobs that are to be sent, for the first time or again; 20000 are that many or more",
            self.callbacks_pending,
        )?;
        page.gauge(
            "quorun_ledger_callbacks_overdue_seconds",
            "For how long the callback has been due that should have been sent first; 0 if none is due",
            self.callbacks_overdue_s,
        )
    }

    /// What the ledger says.
    fn ledger(&self, page: &mut Page<'_>) -> Written {
        let figures = &self.consensus.metrics().figures;
        page.by(
            (
                "quorun_ledger_jobs",
                "Jobs in the ledger",
                MetricType::Gauge,
            ),
            "state",
            [
                ("queued", figures.queued()),
                ("running", figures.running()),
                ("finished", figures.finished()),
            ],
        )?;
        page.by(
            ("quorun_ledger_bytes", "What jobs in the ledger weigh: sources and inputs, and of finished ones the output", MetricType::Gauge),
            "state",
            [("queued", figures.queued_bytes()), ("finished", figures.finished_bytes())],
        )?;
        page.counter(
            "quorun_ledger_fenced",
            "Results of attempts that were no longer current, since the cluster was formed",
            figures.fenced(),
        )?;
        page.counter(
            "quorun_ledger_retries",
            "Second and later attempts that the ledger has shown since this node's start",
            now(&self.metrics.retries),
        )?;
        page.gauge(
            "quorun_ledger_applied_index",
            "The last entry of the log that this node's ledger shows",
            self.status.applied_index,
        )
    }

    /// The ledger's time, and how this node's clock stands to it.
    fn clocks(&self, page: &mut Page<'_>) -> Written {
        let report = self.consensus.metrics().clocks();
        page.gauge(
            "quorun_ledger_time_ms",
            "The ledger's time, Unix milliseconds, as of the last batch that this node knows",
            report.ledger_ms,
        )?;
        let leading = self.status.leading;
        page.family(
            "quorun_clock_ahead_ms",
            "How far the clock of the node that leads is ahead of what most voters say; 0 on the others",
            MetricType::Gauge,
            |mut family| family.encode_gauge(&if leading { report.ahead_ms } else { 0 }),
        )
    }

    /// How the node stands among the others.
    fn consensus(&self, page: &mut Page<'_>) -> Written {
        let (status, metrics) = (&self.status, self.consensus.metrics());
        page.gauge("quorun_node_id", "This node", self.id)?;
        page.gauge(
            "quorun_raft_leader_id",
            "The node that leads, as far as this one knows; 0 for none",
            status.leader.unwrap_or(0),
        )?;
        page.gauge(
            "quorun_raft_leading",
            "1 on the node that leads and reaches a majority",
            u64::from(status.leading && status.quorum),
        )?;
        page.gauge(
            "quorun_raft_term",
            "The term of this node's vote",
            status.term,
        )?;
        page.gauge(
            "quorun_raft_last_log_index",
            "The last entry of this node's log",
            status.last_log_index,
        )?;
        page.gauge(
            "quorun_raft_voters",
            "Nodes that vote",
            status.voters.len() as u64,
        )?;
        page.gauge(
            "quorun_raft_members",
            "Nodes that belong to the cluster",
            status.members.len() as u64,
        )?;
        page.histogram(
            "quorun_batch_commands",
            "Commands in a batch that this node wrote as the leader",
            &metrics.batch_commands,
        )?;
        page.histogram(
            "quorun_batch_bytes",
            "Size of such a batch",
            &metrics.batch_bytes,
        )?;
        page.histogram(
            "quorun_apply_entries",
            "Entries of the log that were applied as one",
            &metrics.apply_entries,
        )
    }

    fn sandboxes(&self, page: &mut Page<'_>) -> Written {
        let counts = self.executor.sandboxes();
        let states = ["warm", "busy", "starting"];
        page.by(
            (
                "quorun_sandboxes",
                "Sandboxes of this node",
                MetricType::Gauge,
            ),
            "state",
            states.map(|state| (state, counts.get(state).copied().unwrap_or(0))),
        )?;
        page.by(
            (
                "quorun_sandboxes_discarded",
                "Sandboxes that were thrown away",
                MetricType::Counter,
            ),
            "reason",
            counts
                .iter()
                .filter_map(|(name, count)| Some((name.strip_prefix("discarded.")?, *count))),
        )
    }

    fn requests(&self, page: &mut Page<'_>) -> Written {
        let requests = || ROUTES.iter().zip(&self.metrics.requests);
        page.family(
            "quorun_http_requests",
            "Answered requests",
            MetricType::Counter,
            |mut family| {
                for ((method, route), requests) in requests() {
                    for (status, number) in (FIRST_STATUS..).zip(requests.counts.iter().map(now)) {
                        if number > 0 {
                            let labels = [
                                ("method", *method),
                                ("route", *route),
                                ("status", &status.to_string()),
                            ];
                            count(&mut family.encode_family(&labels)?, number)?;
                        }
                    }
                }
                Ok(())
            },
        )?;
        page.family(
            "quorun_http_request_seconds",
            "From the head of a request to the head of its answer; routes that were asked for",
            MetricType::Histogram,
            |mut family| {
                for ((method, route), requests) in requests() {
                    if requests.time.read().count > 0 {
                        let labels = [("method", *method), ("route", *route)];
                        labelled(&mut family, &labels, &requests.time)?;
                    }
                }
                Ok(())
            },
        )
    }
}

/// The usual names, as other programs have them.
fn process_of(process: &Process, page: &mut Page<'_>) -> Written {
    page.gauge(
        "process_resident_memory_bytes",
        "Memory of the process",
        process.resident_bytes,
    )?;
    page.gauge(
        "process_virtual_memory_bytes",
        "Address space of the process",
        process.virtual_bytes,
    )?;
    page.gauge(
        "process_open_fds",
        "Open files and connections",
        process.open_files,
    )?;
    page.gauge(
        "process_max_fds",
        "How many there may be",
        process.most_files,
    )?;
    page.gauge("process_threads", "Threads of the process", process.threads)?;
    page.family(
        "process_cpu_seconds",
        "CPU time of the process",
        MetricType::Counter,
        |mut family| family.encode_counter::<NoLabelSet, _, u64>(&process.cpu_seconds, None),
    )?;
    page.family(
        "process_start_time_seconds",
        "When the process began, since 1970",
        MetricType::Gauge,
        |mut family| family.encode_gauge(&process.started),
    )
}
