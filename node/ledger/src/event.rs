//! What comes out of the ledger beside the replies: what every node learns as it applies the log.

use crate::job::JobId;
use crate::node::NodeId;

/// Something that happened in the ledger, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A job entered the queue: submitted, or put back.
    Queued {
        /// The job.
        job: JobId,
    },
    /// A job was given to a node.
    Assigned {
        /// The job.
        job: JobId,
        /// Number of the attempt.
        attempt: u32,
        /// Who runs it.
        node: NodeId,
        /// Which process of the node.
        incarnation: u64,
    },
    /// An attempt is no longer wanted: cancelled, or its node was declared lost.
    Revoked {
        /// The job.
        job: JobId,
        /// The attempt that is void.
        attempt: u32,
        /// Who was running it.
        node: NodeId,
    },
    /// A job has its result.
    Finished {
        /// The job.
        job: JobId,
    },
    /// Somebody is to be told that a job has finished.
    CallbackDue {
        /// The job.
        job: JobId,
    },
    /// A node announced itself, was lost, changed its willingness, was let in, or was removed.
    NodeChanged {
        /// The node.
        node: NodeId,
    },
    /// The languages that are set in the ledger are others.
    LanguagesChanged,
    /// The settings of the cluster are others.
    SettingsChanged,
}
