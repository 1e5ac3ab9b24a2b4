//! The `quorun` program: a node of the cluster, and the command line to talk to one.
//!
//! A node is made of loops that share handles: `node` puts them together. `http` takes requests and hands them to
//! `jobs`, which proposes to the consensus and waits for the ledger; `scheduler` runs on the leader and decides who may
//! be given work; `worker` executes what the ledger assigns to this node; `membership` announces this node and reports
//! that it lives and that its disk has room (`disk_space`), `join` is how a new one comes to a running cluster, `roster` decides on the leader who belongs and who votes, `liveness` keeps what is heard of the others. News of the ledger comes through one dispatcher in
//! `node` to the worker and to the `watchers`; live output goes from the worker through `output` to the followers in
//! `follow`, across nodes by way of `peer_service`; `resume` is how a follower goes on where it was cut off. What is said to a program that runs goes by way of `talk` to the `console` of its node.
//! `catalogue` has the languages, of the file and of the ledger, and `images` what of them this node can run.
//! `access` is who may do what, `pace` when those who were turned away should come again. `pressure` is how much a node takes on at one time, `metrics` what it
//! shows of all of this.

mod access;
mod callbacks;
mod catalogue;
mod cli;
mod config;
mod console;
mod disk_space;
mod follow;
mod http;
mod identity;
mod images;
mod insight;
mod jobs;
mod join;
mod languages;
mod ledger;
mod liveness;
mod membership;
mod metrics;
mod node;
mod output;
mod pace;
mod peer_service;
mod pressure;
mod process;
mod resume;
mod roster;
mod scheduler;
mod settings;
#[cfg(test)]
mod simulation;
mod steps;
mod talk;
mod telemetry;
mod watchers;
mod worker;

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Much of what a job needs is asked for on one thread and given back on another, which took glibc's allocator a quarter of a
/// node's time under load (docs/decisions/0025). `.cargo/config.toml` has its settings.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
