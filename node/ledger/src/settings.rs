//! Settings of the whole cluster, kept in the ledger so that every node follows the same ones whoever leads.

use serde::{Deserialize, Serialize};

/// What holds for the cluster. What is not set is decided by each node's own configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How long finished jobs are kept unless their submission says otherwise, milliseconds; for jobs that are
    /// submitted from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<u64>,
    /// What finished jobs may hold all together, bytes; those that finished first go first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<u64>,
    /// Silence after which a voter gives its vote to a learner that lives, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_voter_ms: Option<u64>,
}
