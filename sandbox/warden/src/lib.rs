//! The protocol between a node and the warden, the small program that is PID 1 in a sandbox.
//!
//! The library holds the [`protocol`] only: it is what a node links. The program itself (`src/main.rs`) starts a job,
//! limits it, measures it and cleans up after it.

pub mod protocol;
