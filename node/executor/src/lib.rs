//! Where jobs run: sandboxes, made ahead of need, used again and again, thrown away on any doubt.
//!
//! A sandbox is a container (or, without isolation, a child process) in which the warden waits for jobs; see
//! [`quorun_warden::protocol`] for what is said to it. This is the only crate that knows the container engine.
//!
//! [`start`] gives an [`Executor`], the handle through which jobs are run, and a future that keeps the engine's health and
//! the pool in order; it must be polled as long as the handle is used.

mod artefacts;
mod check;
mod docker;
mod engine;
mod executor;
#[cfg(test)]
mod fake;
mod images;
mod input;
mod judge;
mod live;
mod noop;
mod options;
mod pool;
mod process;
mod program;
mod runs;
mod sandbox;
mod task;
mod verdict;
mod warden;

pub use executor::{Error, Executor, Health, Unavailable, Watched, start};
pub use images::{Image, Presence};
pub use input::Interaction;
pub use options::{Kind, Labels, Options};
pub use task::{CHECKER_FILES, CaseEnded, Chunk, Stream, Task, largest_file_kb};
