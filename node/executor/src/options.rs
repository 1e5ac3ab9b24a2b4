//! What an executor is started with.

use std::path::PathBuf;

/// What jobs run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Containers of the local engine.
    Docker,
    /// Child processes of the node. Nothing is isolated.
    Process,
    /// Nothing: every attempt ends at once. Only for measuring what is around the execution.
    Noop,
}

/// Whose sandboxes these are. On an engine that several nodes share, each finds its own by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of the node.
    pub node: u64,
    /// The node's incarnation: grows with every start of the node.
    pub incarnation: u64,
}

/// How an executor is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// What jobs run in.
    pub kind: Kind,
    /// Jobs at one time.
    pub slots: usize,
    /// Whose sandboxes these are.
    pub labels: Labels,
    /// The node's data folder; the process executor works below it.
    pub data_dir: PathBuf,
    /// A sandbox is replaced after this many jobs; 1 gives every job a fresh one.
    pub max_jobs_per_sandbox: u32,
    /// An interpreter is started ahead of the next job, in the languages that can, and waits in its sandbox. In containers
    /// only.
    pub zygotes: bool,
    /// Images with the memory of their sandboxes, KiB: one of each is always kept warm, and of the first, at the start, one
    /// for every slot.
    pub images: Vec<(String, u64)>,
    /// Processors that one sandbox may use; 0 sets no limit.
    pub cpus_per_sandbox: f64,
    /// Compiled programs are kept in the data folder up to this size, bytes; 0 keeps none.
    pub artefact_bytes: u64,
    /// The engine's runtime that sandboxes run in; the engine's default if `None`.
    pub runtime: Option<String>,
    /// Sandboxes that are made ahead of need at one time.
    pub makers: usize,
}

impl Options {
    /// Default of [`max_jobs_per_sandbox`](Self::max_jobs_per_sandbox).
    pub const MAX_JOBS_PER_SANDBOX: u32 = 100;

    /// Default of [`artefact_bytes`](Self::artefact_bytes).
    pub const ARTEFACT_BYTES: u64 = 256 << 20;
    /// Default of [`makers`](Self::makers): with more, none of them is ready sooner.
    pub const MAKERS: usize = 4;

    /// The usual settings for a node.
    #[must_use]
    pub fn new(kind: Kind, slots: usize, labels: Labels, data_dir: PathBuf) -> Self {
        Self {
            kind,
            slots,
            labels,
            data_dir,
            max_jobs_per_sandbox: Self::MAX_JOBS_PER_SANDBOX,
            zygotes: false,
            images: Vec::new(),
            cpus_per_sandbox: 1.0,
            artefact_bytes: Self::ARTEFACT_BYTES,
            runtime: None,
            makers: Self::MAKERS,
        }
    }
}
