//! The harness for tests that need whole nodes.
//!
//! A [`Cluster`] is made of real `quorun serve` processes on ports and in folders of their own; they end with it, however
//! the test ends. Tests wait for what they need with [`eventually`] and never for a time: a deadline is only what a test
//! takes for "never", and it is far away, because the machine may be busy with something else.
//!
//! - `QUORUN_BIN`: the program under test; otherwise it is built by cargo, in the profile of the tests.
//! - `QUORUN_OLD_BIN`: an older version, for the test of the rolling upgrade; without it that test says that it is skipped.
//! - `QUORUN_REQUIRE_ENGINE=1`: tests that need a container engine fail without one, instead of saying that they are
//!   skipped.
//! - `QUORUN_REQUIRE_PYTHON=1`: the same for tests that need Python with packages.
//! - `QUORUN_REQUIRE_NPM=1`: the same for tests that need node with npm and packages.
//! - `QUORUN_KEEP=1`: data folders and logs of the nodes stay where they are.

pub mod ca;
pub mod chaos;
pub mod client;
pub mod cluster;
pub mod engine;
pub mod events;
pub mod figures;
pub mod fleet;
pub mod mix;
pub mod node;
mod packages;
pub mod ports;
pub mod program;
pub mod proxy;
pub mod python;
pub mod raw;
pub mod shim;
pub mod tokens;
pub mod turn;
pub mod typescript;
pub mod wait;
pub mod witness;

pub use ca::Ca;
pub use client::{Answer, Client};
pub use cluster::{Cluster, Plan};
pub use engine::Engine;
pub use figures::Figures;
pub use node::{Executor, Node};
pub use python::Python;
pub use shim::Shim;
pub use tokens::Tokens;
pub use typescript::TypeScript;
pub use wait::{LONG, eventually, say, within};
pub use witness::Witness;
