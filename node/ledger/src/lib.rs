//! The ledger: what a job is, the commands that change it, and what each command does.
//!
//! The ledger is the replicated state machine of Quorun. Every node holds a copy and changes it only by applying the
//! [`Batch`]es of the Raft log in their order, so whatever happens in here must depend on nothing but the batch and the
//! state before it: no clock (the leader stamps the time into the batch), no randomness (ids are drawn by the node that
//! accepts a job), no I/O (state is read through a [`Store`], and writes are handed back to the caller), no threads.
//! `clippy.toml` of this crate forbids the usual ways out.
//!
//! THE LIFE OF A JOB. [`Command::Submit`] makes a job and queues it. Every batch ends with placement: as long as a job
//! is queued and a node that the leader calls eligible has a free slot, the job at the front goes to the least-busy
//! such node as its next attempt. [`Command::Complete`] ends the job if it comes from the current attempt, and is
//! fenced otherwise. [`Command::NodeLost`] and a [`Command::NodeUp`] with a new incarnation put what the node was
//! running back to the front of the queue. A job whose attempts are used up ends with `internal_error`.
//!
//! WHERE THINGS ARE. [`job`], [`judging`], [`priority`], [`rounds`], [`node`], [`owner`], [`language`] and [`settings`] are the words; [`command`] is what goes in and [`event`] what
//! comes out; `rules` has one file for each kind of command; [`keys`] is the layout of the records, [`store`] the
//! trait beneath and the transaction above it, [`emptied`] what both skip; [`weight`] is what a job counts for; [`view`] answers questions.

#[cfg(feature = "bugs")]
pub mod bugs;
pub mod callback;
pub mod codec;
pub mod command;
pub mod emptied;
pub mod event;
pub mod hash;
pub mod job;
pub mod judging;
pub mod keys;
pub mod language;
pub mod node;
pub mod owner;
pub mod priority;
pub mod rounds;
mod rules;
pub mod settings;
pub mod store;
pub mod transaction;
pub mod view;
pub mod weight;

pub use callback::{Callback, Delivery, DeliveryAttempt, DeliveryState, Secret};
pub use command::{
    Batch, Command, Completion, IdempotencyKey, QueueBound, Rejection, Reply, Submission, Taken,
};
pub use emptied::Emptied;
pub use event::Event;
pub use hash::StateHash;
pub use job::{
    Compile, Job, JobId, JobResult, JobSpec, JobState, Limits, Outcome, Output, SourceFile,
    StepLimits, Terminal, Verdict,
};
pub use judging::{
    Checker, CheckerProgram, Judged, OutputFile, Score, TestCase, TestResult, Tolerance,
};
pub use language::{Definition, Entry, Language, Pinned};
pub use node::{Admission, Node, NodeId};
pub use owner::{Owner, OwnerLoad};
pub use priority::{Priority, Waiting};
pub use rounds::{Rounds, Turn};
pub use rules::{BY_AGE, BY_OWNER, BY_RECORDS, CANCELLED, MAX_LANGUAGES, PURGED_MS, RULES};
pub use settings::Settings;
pub use store::{MemoryStore, Store, StoreError};
pub use transaction::{Applied, Heads, Transaction, Writes};
pub use view::{Ages, Counters, Due, JobFilter, JobPage, Place, View};
pub use weight::Weights;
