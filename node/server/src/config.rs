//! Configuration: command line, then environment, then file, then default; checked once, as a whole.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use quorun_consensus::{ClusterId, Member};
use quorun_executor::{Kind, Options};
use quorun_ledger::{Language, Limits, NodeId, QueueBound};
use rustls::RootCertStore;
use serde::Deserialize;

use crate::access::config::{Access, named};
use crate::callbacks;
use crate::http::largest_body;
use crate::join::Place;
use crate::languages;
use crate::pressure::Bounds;

/// What executes jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutorKind {
    /// Containers of the Docker engine whose socket the node can reach.
    Docker,
    /// Plain processes on this machine. They are NOT isolated: only for trusted programs and tests.
    Process,
    /// Nothing: every job ends at once, accepted and without output. Only for measuring (`quorun bench noop`).
    #[value(hide = true)]
    Noop,
}

impl ExecutorKind {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Process => "process",
            Self::Noop => "noop",
        }
    }
}

/// Whether the engine is told to pull images that it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// Whoever looks after the node puts the images there.
    Never,
    /// What is missing is pulled.
    Missing,
}

impl From<ExecutorKind> for Kind {
    fn from(kind: ExecutorKind) -> Self {
        match kind {
            ExecutorKind::Docker => Self::Docker,
            ExecutorKind::Process => Self::Process,
            ExecutorKind::Noop => Self::Noop,
        }
    }
}

/// Everything that can be set for a node: as an option, as `QUORUN_…` in the environment, or as a key of the file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// This node's id, a number from 1; it must be one of --peers and is never given to another node
    #[arg(long, env = "QUORUN_ID", value_name = "N")]
    pub id: Option<NodeId>,
    /// All nodes of the cluster, the same on every node: 1=host:7000,2=host:7000,3=host:7000
    #[arg(long, env = "QUORUN_PEERS", value_name = "LIST")]
    pub peers: Option<String>,
    /// Join a running cluster instead of forming one: URLs of any of its nodes, as http://host:8080,http://other:8080. The
    /// node gets its id from the cluster; needs --peer. Once it has joined, its data folder says where it belongs
    #[arg(long, env = "QUORUN_JOIN", value_name = "URLS")]
    pub join: Option<String>,
    /// Where clients are listened to [default: 127.0.0.1:8080]
    #[arg(long, env = "QUORUN_HTTP", value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Where peers are listened to [default: this node's address in --peers]
    #[arg(long, env = "QUORUN_PEER", value_name = "ADDR")]
    pub peer: Option<SocketAddr>,
    /// host:port under which the other nodes reach this one's peer port; with --join [default: --peer]
    #[arg(long, env = "QUORUN_ADVERTISE_PEER", value_name = "HOST:PORT")]
    pub advertise_peer: Option<String>,
    /// host:port under which other machines reach this node's HTTP port [default: derived from --http and --peers]
    #[arg(long, env = "QUORUN_ADVERTISE_HTTP", value_name = "HOST:PORT")]
    pub advertise_http: Option<String>,
    /// Folder for the log and the ledger; belongs to this node alone [default: ./data]
    #[arg(long, env = "QUORUN_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// What executes jobs [default: docker]
    #[arg(long, env = "QUORUN_EXECUTOR", value_enum)]
    pub executor: Option<ExecutorKind>,
    /// Jobs executed at one time [default: the number of cores, at least 2]
    #[arg(long, env = "QUORUN_SLOTS", value_name = "N")]
    pub slots: Option<u32>,
    /// Languages, in the form of sandbox/image/languages.toml [default: the built-in ones]
    #[arg(long, env = "QUORUN_LANGUAGES", value_name = "FILE")]
    pub languages: Option<PathBuf>,
    /// Whether images of languages that the engine does not have are pulled; those of the built-in languages never are
    /// [default: missing]
    #[arg(long, env = "QUORUN_PULL", value_enum)]
    pub pull: Option<PullPolicy>,
    /// Name of the cluster; part of what nodes check before they talk to each other [default: quorun]
    #[arg(long, env = "QUORUN_CLUSTER", value_name = "NAME")]
    pub cluster: Option<String>,
    /// Silence after which a node is declared lost, milliseconds [default: 2000]
    #[arg(long, env = "QUORUN_NODE_TIMEOUT_MS", value_name = "MS")]
    pub node_timeout_ms: Option<u64>,
    /// Silence after which a voter gives its vote to a learner that lives, seconds [default: 300]
    #[arg(long, env = "QUORUN_REPLACE_VOTER_S", value_name = "S")]
    pub replace_voter_s: Option<u64>,
    /// Raft heartbeat, milliseconds [default: 75, or half of --election-ms if that is less]
    #[arg(long, env = "QUORUN_HEARTBEAT_MS", value_name = "MS")]
    pub heartbeat_ms: Option<u64>,
    /// Shortest silence of the leader before an election, milliseconds; the longest is twice that [default: 150]
    #[arg(long, env = "QUORUN_ELECTION_MS", value_name = "MS")]
    pub election_ms: Option<u64>,
    /// Log entries between two snapshots of the ledger [default: 20000]
    #[arg(long, env = "QUORUN_SNAPSHOT_AFTER", value_name = "N")]
    pub snapshot_after: Option<u64>,
    /// Jobs after which a sandbox is replaced; 1 gives every job a fresh one [default: 100]
    #[arg(long, env = "QUORUN_MAX_JOBS_PER_SANDBOX", value_name = "N")]
    pub max_jobs_per_sandbox: Option<u32>,
    /// Start an interpreter ahead of the next job, in the languages that name how (zygote); docker only [default: false]
    #[arg(long, env = "QUORUN_ZYGOTES", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub zygotes: Option<bool>,
    /// Compiled programs are kept up to this size, MiB, so that the same source is compiled once; 0 keeps none [default: 256]
    #[arg(long, env = "QUORUN_ARTEFACT_CACHE_MB", value_name = "MB")]
    pub artefact_cache_mb: Option<u64>,
    /// The engine's runtime that sandboxes run in, such as runsc [default: the engine's own default]
    #[arg(long, env = "QUORUN_RUNTIME", value_name = "NAME")]
    pub runtime: Option<String>,
    /// Largest source, all files together, KiB; at most 1024 [default: 64]
    #[arg(long, env = "QUORUN_MAX_SOURCE_KB", value_name = "KB")]
    pub max_source_kb: Option<u64>,
    /// Largest stdin, KiB [default: 1024]
    #[arg(long, env = "QUORUN_MAX_STDIN_KB", value_name = "KB")]
    pub max_stdin_kb: Option<u64>,
    /// Stdin and expected output of all test cases of a job together, KiB [default: 4096]
    #[arg(long, env = "QUORUN_MAX_TESTS_KB", value_name = "KB")]
    pub max_tests_kb: Option<u64>,
    /// Most CPU time that a job may have, milliseconds [default: 20000]
    #[arg(long, env = "QUORUN_MAX_CPU_MS", value_name = "MS")]
    pub max_cpu_ms: Option<u64>,
    /// Most wall-clock time that a job may have, milliseconds [default: 60000]
    #[arg(long, env = "QUORUN_MAX_WALL_MS", value_name = "MS")]
    pub max_wall_ms: Option<u64>,
    /// Most memory that a job may have, MiB [default: 2048]
    #[arg(long, env = "QUORUN_MAX_MEMORY_MB", value_name = "MB")]
    pub max_memory_mb: Option<u64>,
    /// Most processes and threads that a job may have at one time [default: 512]
    #[arg(long, env = "QUORUN_MAX_PROCESSES", value_name = "N")]
    pub max_processes: Option<u32>,
    /// Most output that a job may have kept, of each stream, KiB [default: 4096]
    #[arg(long, env = "QUORUN_MAX_OUTPUT_KB", value_name = "KB")]
    pub max_output_kb: Option<u64>,
    /// Most files that a process of a job may have open [default: 4096]
    #[arg(long, env = "QUORUN_MAX_OPEN_FILES", value_name = "N")]
    pub max_open_files: Option<u32>,
    /// Largest file that a job may write, KiB [default: 1048576]
    #[arg(long, env = "QUORUN_MAX_FILE_KB", value_name = "KB")]
    pub max_file_kb: Option<u64>,
    /// Largest stack that a job may have, KiB [default: 1048576]
    #[arg(long, env = "QUORUN_MAX_STACK_KB", value_name = "KB")]
    pub max_stack_kb: Option<u64>,
    /// Jobs that may wait before new ones are turned away [default: 100000]
    #[arg(long, env = "QUORUN_MAX_QUEUE", value_name = "N")]
    pub max_queue: Option<u64>,
    /// What the waiting jobs may hold before new ones are turned away, MiB [default: 1024]
    #[arg(long, env = "QUORUN_MAX_QUEUE_MB", value_name = "MB")]
    pub max_queue_mb: Option<u64>,
    /// Open connections of clients; one too many gets 503 [default: 10000]
    #[arg(long, env = "QUORUN_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<u64>,
    /// Open connections of one client address; one too many gets 429 [default: 5000]
    #[arg(long, env = "QUORUN_MAX_CLIENT_CONNECTIONS", value_name = "N")]
    pub max_client_connections: Option<u64>,
    /// Requests that wait for a job or follow one; one too many gets 503 [default: 8000]
    #[arg(long, env = "QUORUN_MAX_WAITING", value_name = "N")]
    pub max_waiting: Option<u64>,
    /// Such requests of one client address; one too many gets 429 [default: 4000]
    #[arg(long, env = "QUORUN_MAX_CLIENT_WAITING", value_name = "N")]
    pub max_client_waiting: Option<u64>,
    /// Bodies of submissions that are in memory at one time, MiB; what does not fit gets 503 [default: 256]
    #[arg(long, env = "QUORUN_MAX_BODY_MB", value_name = "MB")]
    pub max_body_mb: Option<u64>,
    /// Connections on which no request is under way are closed after this, seconds [default: 60]
    #[arg(long, env = "QUORUN_IDLE_S", value_name = "S")]
    pub idle_s: Option<u64>,
    /// API tokens: a TOML file with the hash, the name and the role of each; read anew when it changes, and on SIGHUP
    #[arg(long, env = "QUORUN_TOKENS", value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Let --http be reached from other machines although there are no --tokens: anybody may do everything [default: false]
    #[arg(long, env = "QUORUN_OPEN", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub open: Option<bool>,
    /// Show /metrics to whoever asks, also where there are --tokens [default: false]
    #[arg(long, env = "QUORUN_OPEN_METRICS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub open_metrics: Option<bool>,
    /// Origins of web pages that may use the API, with commas between, such as https://judge.example; "*" is all, with
    /// --tokens only
    #[arg(long, env = "QUORUN_CORS_ORIGIN", value_name = "LIST")]
    pub cors_origin: Option<String>,
    /// TLS for clients: the certificate and those between it and its CA, PEM; read anew when it changes, and on SIGHUP
    #[arg(long, env = "QUORUN_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// TLS for clients: the key of the certificate, PEM
    #[arg(long, env = "QUORUN_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// What the nodes know each other by: a file with a secret of 32 characters at least. Of several, one a line, this node
    /// uses the first and takes all
    #[arg(long, env = "QUORUN_CLUSTER_SECRET_FILE", value_name = "FILE")]
    pub cluster_secret_file: Option<PathBuf>,
    /// Draw the secret if the file is not there [default: false]
    #[arg(long, env = "QUORUN_CLUSTER_SECRET_CREATE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub cluster_secret_create: Option<bool>,
    /// Also take calls of nodes that have no secret: while a cluster gets its first one, node by node [default: false]
    #[arg(long, env = "QUORUN_CLUSTER_SECRET_OPTIONAL", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub cluster_secret_optional: Option<bool>,
    /// TLS between the nodes: this node's certificate, PEM, for the name quorun-node
    #[arg(long, env = "QUORUN_PEER_TLS_CERT", value_name = "FILE")]
    pub peer_tls_cert: Option<PathBuf>,
    /// TLS between the nodes: the key of that certificate, PEM
    #[arg(long, env = "QUORUN_PEER_TLS_KEY", value_name = "FILE")]
    pub peer_tls_key: Option<PathBuf>,
    /// TLS between the nodes: the cluster's own CA, PEM; whoever has a certificate of it is a node
    #[arg(long, env = "QUORUN_PEER_TLS_CA", value_name = "FILE")]
    pub peer_tls_ca: Option<PathBuf>,
    /// Finished jobs are kept this long, seconds [default: 86400]
    #[arg(long, env = "QUORUN_RETENTION_S", value_name = "S")]
    pub retention_s: Option<u64>,
    /// Finished jobs are kept up to this size, MiB; the oldest go first [default: 1024]
    #[arg(long, env = "QUORUN_RETENTION_MB", value_name = "MB")]
    pub retention_mb: Option<u64>,
    /// With less free on the disk of --data, MiB, this node takes no more work; 0 leaves that unwatched [default: 256]
    #[arg(long, env = "QUORUN_MIN_FREE_MB", value_name = "MB")]
    pub min_free_mb: Option<u64>,
    /// Let callbacks of jobs go to addresses that are not on the public internet
    #[arg(long, env = "QUORUN_CALLBACK_ALLOW_PRIVATE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub callback_allow_private: Option<bool>,
    /// Further CAs whose certificates receivers of callbacks may have, besides those that browsers trust: a file, PEM
    #[arg(long, env = "QUORUN_CALLBACK_CA_FILE", value_name = "FILE")]
    pub callback_ca_file: Option<PathBuf>,
    /// Pause after the first failed attempt of a callback, milliseconds (only for tests)
    #[arg(
        long,
        env = "QUORUN_CALLBACK_BACKOFF_MS",
        hide = true,
        value_name = "MS"
    )]
    pub callback_backoff_ms: Option<u64>,
    /// A file that says how many MiB are free, instead of the file system (only for tests)
    #[arg(long, env = "QUORUN_FREE_MB_FILE", hide = true, value_name = "FILE")]
    pub free_mb_file: Option<PathBuf>,
    /// Peer addresses that are dialled elsewhere, HOST:PORT=HOST:PORT,... (only for tests)
    #[arg(long, env = "QUORUN_DIAL_OVERRIDE", hide = true, value_name = "LIST")]
    pub dial_override: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,quorun_executor=debug [default: info]
    #[arg(long, env = "QUORUN_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Log as JSON, one object a line
    #[arg(long, env = "QUORUN_LOG_JSON", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub log_json: Option<bool>,
}

macro_rules! overlay {
    ($over:expr, $under:expr, $($field:ident),+ $(,)?) => {
        Settings { $($field: $over.$field.or($under.$field)),+ }
    };
}

impl Settings {
    /// These settings, and where they say nothing, those of `under`.
    fn over(self, under: Self) -> Self {
        overlay!(
            self,
            under,
            id,
            peers,
            join,
            http,
            peer,
            advertise_peer,
            advertise_http,
            data,
            executor,
            slots,
            languages,
            pull,
            cluster,
            node_timeout_ms,
            replace_voter_s,
            heartbeat_ms,
            election_ms,
            snapshot_after,
            max_jobs_per_sandbox,
            zygotes,
            artefact_cache_mb,
            runtime,
            max_source_kb,
            max_stdin_kb,
            max_tests_kb,
            max_cpu_ms,
            max_wall_ms,
            max_memory_mb,
            max_processes,
            max_output_kb,
            max_open_files,
            max_file_kb,
            max_stack_kb,
            max_queue,
            max_queue_mb,
            max_connections,
            max_client_connections,
            max_waiting,
            max_client_waiting,
            max_body_mb,
            idle_s,
            tokens,
            open,
            open_metrics,
            cors_origin,
            tls_cert,
            tls_key,
            cluster_secret_file,
            cluster_secret_create,
            cluster_secret_optional,
            peer_tls_cert,
            peer_tls_key,
            peer_tls_ca,
            retention_s,
            retention_mb,
            min_free_mb,
            callback_allow_private,
            callback_ca_file,
            callback_backoff_ms,
            free_mb_file,
            dial_override,
            log,
            log_json,
        )
    }

    /// Lays these settings over those of a file.
    ///
    /// # Errors
    /// When the file cannot be read or holds a key that is not a setting.
    pub fn with_file(self, file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = file else { return Ok(self) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the configuration file {}", path.display()))?;
        let under: Self = toml::from_str(&text)
            .with_context(|| format!("the configuration file {}", path.display()))?;
        Ok(self.over(under))
    }
}

/// What a submission may ask for at most.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// All files together, bytes.
    pub source_bytes: usize,
    /// Stdin, bytes.
    pub stdin_bytes: usize,
    /// Stdin and expected output of all test cases together, bytes.
    pub tests_bytes: usize,
    /// The limits of the run step; [`LEAST`] is the other end.
    pub limits: Limits,
    /// Jobs that may wait, and what they may hold.
    pub queue: QueueBound,
}

impl Ceilings {
    /// The largest JSON that a submission can be, bytes.
    #[must_use]
    pub const fn largest_json(&self) -> usize {
        largest_json(self.source_bytes, self.stdin_bytes, self.tests_bytes)
    }
}

/// Two programs (the checker may be one) and stdin, however they are written. Test cases count as text with an escape for
/// every byte or as base64: what has many control characters must come as base64, so that not everybody may send
/// six times as much.
const fn largest_json(source: usize, stdin: usize, tests: usize) -> usize {
    largest_body(2 * source + stdin) + 2 * tests
}

/// The longest name of a host, as DNS has it.
const MAX_HOST: usize = 253;

/// The longest time that a setting can hold: ten years, seconds.
pub const LONGEST_S: u64 = 10 * 365 * 24 * 60 * 60;
/// The least and the most that finished jobs can be allowed to hold, MiB.
pub const KEPT_MB: RangeInclusive<u64> = 1..=1 << 30;
/// What a program needs at least; a smaller limit can only be a mistake. The memory is for the warden, the folders and an
/// interpreter; with fewer open files or less stack, some of the standard image's interpreters do not even start.
pub const LEAST: Limits = Limits {
    cpu_ms: 1,
    wall_ms: 1,
    memory_kb: 16 << 10,
    processes: 1,
    output_kb: 1,
    open_files: 32,
    file_kb: Some(1),
    stack_kb: 128,
};

/// How high the ceilings can be set. Processes: what a whole sandbox may have, and a little less. Output: five texts of
/// this size (two streams, two steps, and all files that are wanted back) are one entry of the log and must fit into a message between peers. The others only
/// keep a slip of the pen from being taken for a number.
const HIGHEST: Limits = Limits {
    cpu_ms: 24 * 60 * 60 * 1000,
    wall_ms: 24 * 60 * 60 * 1000,
    memory_kb: 1 << 30,
    processes: 1000,
    output_kb: 4 << 10,
    open_files: 1 << 20,
    file_kb: Some(1 << 30),
    stack_kb: 1 << 30,
};

/// The ceilings of the run step's limits.
fn most(settings: &Settings) -> anyhow::Result<Limits> {
    fn within<T: Copy + PartialOrd + std::fmt::Display>(
        option: &str,
        value: Option<T>,
        default: T,
        least: T,
        highest: T,
    ) -> anyhow::Result<T> {
        let value = value.unwrap_or(default);
        ensure!(
            least <= value && value <= highest,
            "{option} {value} is out of range; {least} to {highest}"
        );
        Ok(value)
    }
    let (least, highest) = (LEAST, HIGHEST);
    Ok(Limits {
        cpu_ms: within(
            "--max-cpu-ms",
            settings.max_cpu_ms,
            20_000,
            least.cpu_ms,
            highest.cpu_ms,
        )?,
        wall_ms: within(
            "--max-wall-ms",
            settings.max_wall_ms,
            60_000,
            least.wall_ms,
            highest.wall_ms,
        )?,
        memory_kb: 1024
            * within(
                "--max-memory-mb",
                settings.max_memory_mb,
                2048,
                least.memory_kb / 1024,
                highest.memory_kb / 1024,
            )?,
        processes: within(
            "--max-processes",
            settings.max_processes,
            512,
            least.processes,
            highest.processes,
        )?,
        output_kb: within(
            "--max-output-kb",
            settings.max_output_kb,
            4 << 10,
            least.output_kb,
            highest.output_kb,
        )?,
        open_files: within(
            "--max-open-files",
            settings.max_open_files,
            4096,
            least.open_files,
            highest.open_files,
        )?,
        file_kb: Some(within(
            "--max-file-kb",
            settings.max_file_kb,
            1 << 20,
            least.file_kb.unwrap_or(1),
            highest.file_kb.unwrap_or(u64::MAX),
        )?),
        stack_kb: within(
            "--max-stack-kb",
            settings.max_stack_kb,
            1 << 20,
            least.stack_kb,
            highest.stack_kb,
        )?,
    })
}

/// How much is taken on at one time, when a submission may have so many bytes.
fn bounds(settings: &Settings, largest: usize) -> anyhow::Result<Bounds> {
    let at_least = |option: &str, value: Option<u64>, default: u64, least: u64| {
        let value = value.unwrap_or(default);
        ensure!(
            value >= least,
            "{option} {value} is too small; at least {least}"
        );
        Ok(value)
    };
    // One address may have half of it, and that must be enough for the largest submission, however it is written.
    let least = (2 * largest as u64).div_ceil(1 << 20);
    let body_mb = at_least("--max-body-mb", settings.max_body_mb, 256.max(least), least)?;
    Ok(Bounds {
        connections: at_least("--max-connections", settings.max_connections, 10_000, 1)?,
        client_connections: at_least(
            "--max-client-connections",
            settings.max_client_connections,
            5_000,
            1,
        )?,
        waiting: at_least("--max-waiting", settings.max_waiting, 8_000, 1)?,
        client_waiting: at_least(
            "--max-client-waiting",
            settings.max_client_waiting,
            4_000,
            1,
        )?,
        body_bytes: body_mb.saturating_mul(1 << 20),
    })
}

/// A node's configuration, complete and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node; 0 until a node that joins has got its id.
    pub id: NodeId,
    /// The list as it was given, in canonical form; the same on every node. Empty for a node that joins.
    pub peers: String,
    /// The nodes of the list.
    pub members: BTreeMap<NodeId, Member>,
    /// URLs of members, for a node that joins.
    pub join: Vec<String>,
    /// Follows from the cluster's name and the list; told by the cluster to a node that joins.
    pub cluster: ClusterId,
    /// Where clients are listened to.
    pub http: SocketAddr,
    /// Where peers are listened to.
    pub peer: SocketAddr,
    /// How others reach the peer port.
    pub advertise_peer: String,
    /// How others reach the HTTP port.
    pub advertise_http: String,
    /// This node's folder.
    pub data: PathBuf,
    /// What executes jobs.
    pub executor: ExecutorKind,
    /// Jobs at one time.
    pub slots: u32,
    /// The languages, by name.
    pub languages: Vec<Language>,
    /// Whether images of the ledger's languages are pulled, and those of the file's.
    pub pulls: (bool, bool),
    /// Silence after which a node is lost.
    pub node_timeout: Duration,
    /// Silence after which a voter is replaced.
    pub replace_voter: Duration,
    /// Raft heartbeat.
    pub heartbeat: Duration,
    /// Shortest election timeout.
    pub election: Duration,
    /// Entries between snapshots.
    pub snapshot_after: u64,
    /// Jobs after which a sandbox is replaced.
    pub max_jobs_per_sandbox: u32,
    /// Interpreters are started ahead of their programs.
    pub zygotes: bool,
    /// Bytes of compiled programs that are kept.
    pub artefact_bytes: u64,
    /// The engine's runtime for sandboxes; its default if `None`.
    pub runtime: Option<String>,
    /// What a submission may ask for.
    pub ceilings: Ceilings,
    /// How much is taken on at one time.
    pub bounds: Bounds,
    /// Who may do what.
    pub access: Access,
    /// How long finished jobs are kept.
    pub retention: Duration,
    /// How many bytes finished jobs may hold.
    pub retention_bytes: u64,
    /// What has to be free on the disk of the data folder, MiB; 0 is nothing.
    pub min_free_mib: u64,
    /// Callbacks may go to addresses that are not on the public internet.
    pub callback_allow_private: bool,
    /// Whose certificates receivers of callbacks may have.
    pub callback_roots: Arc<RootCertStore>,
    /// The pause after a callback's first attempt.
    pub callback_backoff: Duration,
    /// A file that says what is free, instead of the file system.
    pub free_mib_file: Option<PathBuf>,
    /// Peer addresses that are dialled elsewhere.
    pub dial: BTreeMap<String, String>,
}

impl Config {
    /// Checks settings and fills in the defaults.
    ///
    /// # Errors
    /// One clear line about the first setting that is missing or wrong.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        let most = most(&settings)?;
        let http = settings
            .http
            .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
        let access = Access::new(&settings, http)?;
        let place = if settings.join.is_some() {
            Origin::joining(&settings)?
        } else {
            Origin::listed(&settings)?
        };
        let (own_host, _) = split_host_port(&place.advertise_peer)?;
        let own_host = own_host.to_owned();
        let slots = settings.slots.unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().map_or(2, usize::from);
            u32::try_from(cores).unwrap_or(u32::MAX).max(2)
        });
        ensure!(
            (1..=1024).contains(&slots),
            "--slots {slots} is out of range; 1 to 1024 jobs can run at one time"
        );
        let source_kb = settings.max_source_kb.unwrap_or(64);
        ensure!(
            (1..=1024).contains(&source_kb),
            "--max-source-kb {source_kb} is out of range; 1 to 1024 KiB"
        );
        let stdin_kb = settings.max_stdin_kb.unwrap_or(1024);
        ensure!(
            stdin_kb <= 16 * 1024,
            "--max-stdin-kb {stdin_kb} is out of range; at most 16384 KiB"
        );
        let tests_kb = settings.max_tests_kb.unwrap_or(4096);
        ensure!(
            tests_kb <= 16 * 1024,
            "--max-tests-kb {tests_kb} is out of range; at most 16384 KiB"
        );
        let largest = largest_json(kib(source_kb), kib(stdin_kb), kib(tests_kb));
        let bounds = bounds(&settings, largest)?;
        let election = settings.election_ms.unwrap_or(150);
        let heartbeat = settings.heartbeat_ms.unwrap_or(75.min(election / 2));
        ensure!(
            heartbeat >= 10 && election >= 2 * heartbeat,
            "--election-ms {election} must be at least twice --heartbeat-ms {heartbeat}, which must be at least 10"
        );
        let node_timeout = settings.node_timeout_ms.unwrap_or(2_000);
        ensure!(
            node_timeout >= 200,
            "--node-timeout-ms {node_timeout} is too short; at least 200"
        );
        let executor = settings.executor.unwrap_or(ExecutorKind::Docker);
        // An empty value is what a compose file gives for a variable that is not set.
        let runtime = settings.runtime.filter(|name| !name.is_empty());
        ensure!(
            runtime.is_none() || executor == ExecutorKind::Docker,
            "--runtime is for --executor docker; the {} executor has none",
            executor.name()
        );
        let replace_voter = settings.replace_voter_s.unwrap_or(300);
        ensure!(
            (1..=LONGEST_S).contains(&replace_voter),
            "--replace-voter-s {replace_voter} is out of range; 1 to {LONGEST_S}"
        );
        ensure!(
            settings.retention_s.is_none_or(|s| s <= LONGEST_S),
            "--retention-s is out of range; at most {LONGEST_S}, which is ten years"
        );
        ensure!(
            settings.retention_mb.is_none_or(|mb| KEPT_MB.contains(&mb)),
            "--retention-mb is out of range; {} to {}",
            KEPT_MB.start(),
            KEPT_MB.end()
        );
        Ok(Self {
            id: place.id,
            cluster: place.cluster,
            peers: place.peers,
            members: place.members,
            join: place.join,
            http,
            peer: place.peer,
            advertise_peer: place.advertise_peer,
            advertise_http: settings
                .advertise_http
                .unwrap_or_else(|| advertised(http, &own_host)),
            data: settings.data.unwrap_or_else(|| PathBuf::from("data")),
            executor,
            slots,
            pulls: {
                let pulls = settings.pull != Some(PullPolicy::Never);
                (pulls, pulls && settings.languages.is_some())
            },
            languages: languages::load(settings.languages.as_deref(), &most)?,
            node_timeout: Duration::from_millis(node_timeout),
            replace_voter: Duration::from_secs(replace_voter),
            heartbeat: Duration::from_millis(heartbeat),
            election: Duration::from_millis(election),
            snapshot_after: settings.snapshot_after.unwrap_or(20_000).max(10),
            max_jobs_per_sandbox: settings.max_jobs_per_sandbox.unwrap_or(100).max(1),
            zygotes: settings.zygotes.unwrap_or(false),
            artefact_bytes: settings
                .artefact_cache_mb
                .map_or(Options::ARTEFACT_BYTES, |mb| mb.saturating_mul(1 << 20)),
            runtime,
            ceilings: Ceilings {
                source_bytes: kib(source_kb),
                stdin_bytes: kib(stdin_kb),
                tests_bytes: kib(tests_kb),
                limits: most,
                queue: QueueBound {
                    jobs: settings.max_queue.unwrap_or(100_000),
                    bytes: settings
                        .max_queue_mb
                        .map_or(1 << 30, |mb| mb.saturating_mul(1 << 20)),
                },
            },
            bounds,
            access,
            retention: Duration::from_secs(settings.retention_s.unwrap_or(24 * 60 * 60)),
            retention_bytes: settings.retention_mb.unwrap_or(1024) * 1024 * 1024,
            min_free_mib: settings.min_free_mb.unwrap_or(256),
            callback_allow_private: settings.callback_allow_private.unwrap_or(false),
            callback_roots: Arc::new(callbacks::trusted(named(
                settings.callback_ca_file.as_deref(),
            ))?),
            callback_backoff: Duration::from_millis(
                settings.callback_backoff_ms.unwrap_or(5_000).max(1),
            ),
            free_mib_file: settings.free_mb_file,
            dial: parse_dial(settings.dial_override.as_deref().unwrap_or_default())?,
        })
    }

    /// Takes the place that the cluster has given to a node that joins.
    pub fn settle(&mut self, place: Place) {
        self.id = place.id;
        self.cluster = place.cluster;
    }
}

/// Where a node comes from: a list that it is in, or a cluster that it joins.
struct Origin {
    id: NodeId,
    cluster: ClusterId,
    peers: String,
    members: BTreeMap<NodeId, Member>,
    join: Vec<String>,
    peer: SocketAddr,
    advertise_peer: String,
}

impl Origin {
    fn listed(settings: &Settings) -> anyhow::Result<Self> {
        let id = settings
            .id
            .context("--id is missing: this node's number in --peers, for example --id 1")?;
        let list = settings.peers.as_deref().context(
            "--peers is missing: all nodes of the cluster, for example 1=host1:7000,2=host2:7000,3=host3:7000; or --join, to join a cluster that runs",
        )?;
        let members = parse_peers(list)?;
        let own = members.get(&id).with_context(|| {
            let ids: Vec<_> = members.keys().map(ToString::to_string).collect();
            format!(
                "--id {id} is not in --peers, which has {}; every node must be in the list, unless it joins a cluster that runs (--join)",
                ids.join(", ")
            )
        })?;
        ensure!(
            settings.advertise_peer.is_none(),
            "--advertise-peer is for --join; the nodes of --peers are reached at the addresses of the list"
        );
        let advertise_peer = own.peer.clone();
        let (own_host, own_port) = split_host_port(&advertise_peer)?;
        let peers = canonical(&members);
        let name = settings.cluster.as_deref().unwrap_or("quorun");
        Ok(Self {
            id,
            cluster: cluster_id(name, &peers),
            peer: settings
                .peer
                .unwrap_or_else(|| default_listen(own_host, own_port)),
            peers,
            members,
            join: Vec::new(),
            advertise_peer,
        })
    }

    fn joining(settings: &Settings) -> anyhow::Result<Self> {
        let given = [
            ("--id", settings.id.is_some()),
            ("--peers", settings.peers.is_some()),
            ("--cluster", settings.cluster.is_some()),
        ];
        for (option, is_given) in given {
            ensure!(
                !is_given,
                "{option} and --join do not go together: a node that joins gets its id and its cluster from the members"
            );
        }
        let urls = settings.join.as_deref().unwrap_or_default();
        let join: Vec<String> = urls
            .split(',')
            .map(str::trim)
            .filter(|url| !url.is_empty())
            .map(ToOwned::to_owned)
            .collect();
        ensure!(
            !join.is_empty(),
            "--join is empty; it should be URLs of the cluster's nodes, for example http://host1:8080"
        );
        for url in &join {
            ensure!(
                ["http://", "https://"].iter().any(|scheme| url
                    .strip_prefix(scheme)
                    .is_some_and(|rest| !rest.is_empty())),
                "--join: \"{url}\" should be the URL of a node, for example http://host1:8080"
            );
        }
        let peer = settings.peer.context(
            "--peer is missing: where this node listens to its peers, for example 0.0.0.0:7000",
        )?;
        let advertise_peer = match &settings.advertise_peer {
            Some(address) => address.clone(),
            None if peer.ip().is_unspecified() => bail!(
                "--advertise-peer is missing: HOST:PORT under which the other nodes reach {peer}"
            ),
            None => peer.to_string(),
        };
        split_host_port(&advertise_peer)?;
        Ok(Self {
            id: 0,
            cluster: ClusterId([0; 16]),
            peers: String::new(),
            members: BTreeMap::new(),
            join,
            peer,
            advertise_peer,
        })
    }
}

fn kib(kb: u64) -> usize {
    usize::try_from(kb * 1024).unwrap_or(usize::MAX)
}

/// Reads `1=host:port,2=host:port`.
fn parse_peers(list: &str) -> anyhow::Result<BTreeMap<NodeId, Member>> {
    let mut members = BTreeMap::new();
    for part in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (id, address) = part.split_once('=').with_context(|| {
            format!("--peers: \"{part}\" should be ID=HOST:PORT, for example 1=host1:7000")
        })?;
        let number: NodeId = id
            .trim()
            .parse()
            .ok()
            .filter(|n| *n > 0)
            .with_context(|| format!("--peers: \"{id}\" should be a number from 1"))?;
        let address = address.trim();
        split_host_port(address).context("--peers")?;
        let member = Member {
            peer: address.to_owned(),
            http: String::new(),
        };
        if members.insert(number, member).is_some() {
            bail!("--peers: node {number} is there twice");
        }
        let twice = members
            .iter()
            .find(|(n, m)| **n != number && m.peer == address);
        if let Some((other, _)) = twice {
            bail!("--peers: nodes {other} and {number} have the same address {address}");
        }
    }
    ensure!(!members.is_empty(), "--peers is empty");
    ensure!(
        members.len() <= 5,
        "--peers has {} nodes; at most five vote, more join a running cluster",
        members.len()
    );
    Ok(members)
}

/// Reads `host:port=host:port,host:port=host:port`.
fn parse_dial(list: &str) -> anyhow::Result<BTreeMap<String, String>> {
    list.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (address, instead) = part.split_once('=').with_context(|| {
                format!("--dial-override: \"{part}\" should be HOST:PORT=HOST:PORT")
            })?;
            Ok((address.to_owned(), instead.to_owned()))
        })
        .collect()
}

fn canonical(members: &BTreeMap<NodeId, Member>) -> String {
    let parts: Vec<_> = members
        .iter()
        .map(|(id, member)| format!("{id}={}", member.peer))
        .collect();
    parts.join(",")
}

fn cluster_id(name: &str, peers: &str) -> ClusterId {
    let digest = blake3::hash(format!("quorun cluster\n{name}\n{peers}").as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&digest.as_bytes()[..16]);
    ClusterId(id)
}

/// Host and port of `HOST:PORT`.
pub fn split_host_port(address: &str) -> anyhow::Result<(&str, u16)> {
    let (host, port) = address
        .rsplit_once(':')
        .with_context(|| format!("\"{address}\" should be HOST:PORT"))?;
    let port = port
        .parse()
        .ok()
        .filter(|p| *p > 0)
        .with_context(|| format!("\"{address}\" has no port number from 1 to 65535"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ensure!(!host.is_empty(), "\"{address}\" has no host");
    let is_host = host.len() <= MAX_HOST
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte));
    ensure!(
        is_host,
        "\"{address}\" has a host that is no name and no address"
    );
    Ok((host, port))
}

/// A loopback or literal address of the list is listened on as it is; a name may resolve to something else inside a
/// container, so there every interface is.
fn default_listen(host: &str, port: u16) -> SocketAddr {
    let ip = match host.parse::<IpAddr>() {
        Ok(ip) => ip,
        Err(_) if host == "localhost" => Ipv4Addr::LOCALHOST.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, port)
}

fn advertised(http: SocketAddr, own_host: &str) -> String {
    if http.ip().is_unspecified() {
        format!("{own_host}:{}", http.port())
    } else {
        http.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(id: NodeId, peers: &str) -> Settings {
        Settings {
            id: Some(id),
            peers: Some(peers.to_owned()),
            ..Settings::default()
        }
    }

    fn error(settings: Settings) -> String {
        format!("{:#}", Config::new(settings).unwrap_err())
    }

    #[test]
    fn the_same_list_in_another_order_is_the_same_cluster() {
        let a = Config::new(settings(1, "1=a:7000, 2=b:7000")).unwrap();
        let b = Config::new(settings(2, "2=b:7000,1=a:7000")).unwrap();
        assert_eq!(a.cluster, b.cluster);
        let c = Config::new(settings(2, "2=b:7000,1=a:7001")).unwrap();
        assert_ne!(a.cluster, c.cluster);
    }

    #[test]
    fn wrong_lists_are_one_clear_line() {
        assert!(error(settings(3, "1=a:1,2=b:2")).contains("--id 3 is not in --peers"));
        assert!(error(settings(1, "1=a:1,1=b:2")).contains("node 1 is there twice"));
        assert!(error(settings(1, "1=a:1,2=a:1")).contains("same address a:1"));
        assert!(error(settings(1, "a:1")).contains("should be ID=HOST:PORT"));
        assert!(error(settings(1, "1=a")).contains("should be HOST:PORT"));
        assert!(error(settings(1, "0=a:1")).contains("number from 1"));
        assert!(error(settings(1, "1=a:99999")).contains("no port number"));
        assert!(error(Settings::default()).contains("--id is missing"));
    }

    #[test]
    fn a_node_that_joins_needs_no_list() {
        let joining = || Settings {
            join: Some("http://a:8080, http://b:8080".to_owned()),
            peer: Some("10.0.0.4:7000".parse().unwrap()),
            ..Settings::default()
        };
        let config = Config::new(joining()).unwrap();
        assert_eq!(config.join, ["http://a:8080", "http://b:8080"]);
        assert_eq!(config.advertise_peer, "10.0.0.4:7000");
        assert!(config.members.is_empty());
        for (wrong, words) in [
            (
                Settings {
                    id: Some(4),
                    ..joining()
                },
                "--id and --join",
            ),
            (
                Settings {
                    peers: Some("1=a:1".to_owned()),
                    ..joining()
                },
                "--peers and --join",
            ),
            (
                Settings {
                    join: Some(" ,".to_owned()),
                    ..joining()
                },
                "--join is empty",
            ),
            (
                Settings {
                    join: Some("a:8080".to_owned()),
                    ..joining()
                },
                "http://host1:8080",
            ),
            (
                Settings {
                    peer: None,
                    ..joining()
                },
                "--peer is missing",
            ),
            (
                Settings {
                    peer: Some("0.0.0.0:7000".parse().unwrap()),
                    ..joining()
                },
                "--advertise-peer is missing",
            ),
        ] {
            let error = error(wrong);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_runtime_is_for_containers() {
        let named = |runtime: &str, executor| Settings {
            runtime: Some(runtime.to_owned()),
            executor,
            ..settings(1, "1=a:1")
        };
        let config = Config::new(named("runsc", None)).unwrap();
        assert_eq!(config.runtime.as_deref(), Some("runsc"));
        let config = Config::new(named("", Some(ExecutorKind::Process))).unwrap();
        assert_eq!(config.runtime, None);
        assert!(error(named("runsc", Some(ExecutorKind::Process))).contains("--executor docker"));
    }

    #[test]
    fn addresses_follow_from_the_list() {
        let config = Config::new(settings(1, "1=127.0.0.1:7001")).unwrap();
        assert_eq!(config.peer, "127.0.0.1:7001".parse().unwrap());
        assert_eq!(config.advertise_http, "127.0.0.1:8080");
        let mut named = settings(1, "1=node1:7000");
        named.http = Some("0.0.0.0:8080".parse().unwrap());
        named.open = Some(true);
        let config = Config::new(named).unwrap();
        assert_eq!(config.peer, "0.0.0.0:7000".parse().unwrap());
        assert_eq!(config.advertise_http, "node1:8080");
    }

    #[test]
    fn ceilings_have_their_own_bounds() {
        let with = |change: &dyn Fn(&mut Settings)| {
            let mut settings = settings(1, "1=a:1");
            change(&mut settings);
            settings
        };
        let config = Config::new(settings(1, "1=a:1")).unwrap();
        let usual = config.ceilings.limits;
        assert_eq!((usual.cpu_ms, usual.memory_kb), (20_000, 2 << 20));
        assert_eq!((usual.open_files, usual.stack_kb), (4096, 1 << 20));
        let config = Config::new(with(&|s| s.max_file_kb = Some(5))).unwrap();
        assert_eq!(config.ceilings.limits.file_kb, Some(5));
        for (settings, words) in [
            (with(&|s| s.max_cpu_ms = Some(0)), "--max-cpu-ms 0"),
            (with(&|s| s.max_wall_ms = Some(0)), "--max-wall-ms 0"),
            (with(&|s| s.max_memory_mb = Some(15)), "16 to 1048576"),
            (with(&|s| s.max_processes = Some(2000)), "1 to 1000"),
            (with(&|s| s.max_output_kb = Some(5000)), "1 to 4096"),
            (with(&|s| s.max_open_files = Some(3)), "--max-open-files 3"),
            (with(&|s| s.max_file_kb = Some(0)), "--max-file-kb 0"),
            (with(&|s| s.max_stack_kb = Some(64)), "--max-stack-kb 64"),
        ] {
            let error = error(settings);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn an_option_wins_over_the_file_and_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quorun.toml");
        std::fs::write(&path, "id = 7\nslots = 3\nexecutor = \"process\"\n").unwrap();
        let merged = settings(1, "1=a:1").with_file(Some(&path)).unwrap();
        assert_eq!((merged.id, merged.slots), (Some(1), Some(3)));
        assert_eq!(merged.executor, Some(ExecutorKind::Process));
        std::fs::write(&path, "slotz = 3\n").unwrap();
        let error = settings(1, "1=a:1").with_file(Some(&path)).unwrap_err();
        assert!(format!("{error:#}").contains("slotz"), "{error:#}");
    }
}
