//! Consensus: the ledger of a node, kept the same on all nodes by Raft (openraft), whose log is kept on disk (sled). The only
//! crate that knows either of them.
//!
//! WRITING. A [`Command`](quorun_ledger::Command) that is proposed anywhere goes to the leader's `proposer`, which packs
//! what has come into a [`Batch`](quorun_ledger::Batch), one entry of the log. Raft sends it to the others; once a
//! majority has it on disk (`log_store`) it is committed, and every node applies it (`ledger_store`). The reply comes
//! from the leader's ledger; the events go to every node's [`Notice`]s.
//!
//! READING. [`Handle::view`] shows the local ledger, which may be a little behind. After [`Handle::linearize`] it shows
//! everything that was committed before (`read`).
//!
//! STARTING. Before a node takes part, it asks the others what they know of it: a disk may have forgotten without a
//! trace (`recall`).
//!
//! TIME. A batch carries the time that most voters agree on, not that of the leader's own clock (`clock`).
//!
//! FAILING. A leader that dies is replaced after an election; proposals and reads under way are tried again until their
//! deadline, whose expiry means *unknown*. A disk that fails ends consensus ([`Handle::stopped`]), and the process with
//! it. A log that has lost what it acknowledged is noticed at the next start ([`Error::Damaged`]): the node does not
//! vote with it. A ledger that is damaged is made anew from a snapshot and the log.
//!
//! RUNNING. Raft has threads of its own, so that nothing else on the node can keep it from its heartbeats. The disk is
//! written by threads of its own as well, and entries are applied to the ledger outside the asynchronous threads.
//!
//! MEMBERS come and go by entries of the log that the leader writes (`members`).
//!
//! SNAPSHOTS are built after every so many entries, unless a follower is being brought up with one (`transfers`).
//!
//! `network` is how the nodes talk, `wire` the form in which, `status` what a node knows of its own standing,
//! `metrics` what it measures.

mod blocking;
#[cfg(feature = "bugs")]
mod bugs;
mod clock;
mod confirm;
mod disk;
mod error;
mod files;
mod handle;
mod ledger_store;
mod log_store;
mod members;
pub mod metrics;
mod network;
mod node;
mod options;
mod proposer;
mod raft_runtime;
mod read;
mod recall;
#[cfg(feature = "simulation")]
pub mod simulation;
mod status;
#[cfg(test)]
mod suite;
mod transfers;
mod types;
mod wire;

pub use clock::ClockReport;
pub use error::{Error, NewerFormat, ProposeError, ReadError};
pub use handle::{Handle, Notice};
pub use ledger_store::LedgerStore;
pub use metrics::Metrics;
pub use network::{
    Identity, PEER_CERTIFICATE_NAME, PeerAccess, PeerClient, PeerTls, PeerTransport, Secrets,
};
pub use node::start;
pub use options::{ClusterId, InvalidClusterId, Member, Options};
pub use status::Status;
