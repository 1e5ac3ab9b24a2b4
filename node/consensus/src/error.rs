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
    /// The log, or what depends on it, does not hold what it held when it was acknowledged. The node could break promises
    /// if it voted.
    #[error(
        "{path} has lost what was written to it ({what}): do not start this node with it again; move the data folder away and let a node with a new id join the cluster in its place",
        path = path.display()
    )]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// The data folder was written by a newer program.
    #[error("{path} has {newer}: start the node with the program that wrote it, or a newer one", path = path.display())]
    Newer {
        /// The file or folder.
        path: PathBuf,
        /// Which format it has.
        newer: NewerFormat,
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

/// Something on disk has a format that only a newer program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("format {found}, but this program reads only {known}")]
pub struct NewerFormat {
    /// Its version.
    pub found: u8,
    /// The version that this program reads.
    pub known: u8,
}

impl NewerFormat {
    /// As an error of the disk, from which [`Self::of`] takes it out again.
    pub(crate) fn error(found: u8, known: u8) -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::Unsupported, Self { found, known })
    }

    /// What such an error says.
    pub(crate) fn of(error: &std::io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
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
