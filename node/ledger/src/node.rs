//! What the ledger knows of a node.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The id of a node, from its command line or from its admission; never 0 and never used again for another node.
pub type NodeId = u64;

/// A node that was let into the cluster, as opposed to one that it began with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// host:port of its peer port.
    pub peer: String,
    /// host:port of its HTTP port; empty when not known.
    pub http: String,
}

/// A node as the ledger sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The node's id.
    pub id: NodeId,
    /// Counts the starts of the node's process; what an older incarnation ran is void.
    pub incarnation: u64,
    /// host:port of its HTTP port, as others reach it.
    pub http: String,
    /// How many jobs it executes at one time.
    pub slots: u32,
    /// Attempts that hold a slot.
    pub busy: u32,
    /// Languages it can run, as [`needed`](crate::language::needed) names them.
    pub languages: BTreeSet<String>,
    /// Version of its program.
    pub version: String,
    /// It gets no new assignments.
    #[serde(default)]
    pub draining: bool,
    /// The leader has declared it lost; it gets no assignments until it announces itself again.
    #[serde(default)]
    pub lost: bool,
}

impl Node {
    /// Whether the node may be given one more attempt, liveness aside.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.lost && !self.draining && self.busy < self.slots
    }
}
