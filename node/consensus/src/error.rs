//! What can go wrong, by who has to act on it.

use std::path::PathBuf;

use quorun_ledger::StoreError;

/// Why consensus could not be started, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options contradict each other.
    #[error("consensus options: {0}")]
    Options(String),
    /// The data folder was written by another node or for another cluster.
    #[error(
        "the data folder {path} belongs to {found}, but this is {expected}: start the node with its own folder, or with an empty one",
        path = path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Who wrote it.
        found: String,
        /// Who was started.
        expected: String,
    },
    /// The log does not hold what it held when it was acknowledged. The node could break promises if it voted.
    #[error(
        "the log {path} has lost what was written to it ({what}): do not start this node with it again; move the data folder away and let a node with a new id join the cluster in its place",
        path = path.display()
    )]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// The disk, or what lies on it, failed. The process must end.
    #[error("storage: {0}")]
    Storage(String),
    /// The peer port cannot be served.
    #[error("peer port: {0}")]
    Listen(std::io::Error),
    /// Only the leader can do this, and this node does not lead.
    #[error("this node does not lead the cluster")]
    NotLeader,
    /// It was tried and did not come about in time.
    #[error("{0}")]
    Failed(String),
    /// Consensus has been shut down.
    #[error("consensus has been shut down")]
    Stopped,
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Storage(error.to_string())
    }
}

/// Why a command has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No answer in time: the command may still be applied. Proposing it again is harmless.
    #[error("no answer in time; the command may still be applied")]
    Unknown,
    /// It was never handed to a leader: it is not applied.
    #[error("no leader was reached in time; the command was not proposed")]
    Unavailable,
    /// This node's consensus has ended.
    #[error("consensus has been shut down")]
    Stopped,
}

/// Why a read is not known to be up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader confirmed the position of the log in time, or this node has not yet applied up to there.
    #[error("not known to be up to date in time")]
    Unavailable,
    /// This node's consensus has ended.
    #[error("consensus has been shut down")]
    Stopped,
}
