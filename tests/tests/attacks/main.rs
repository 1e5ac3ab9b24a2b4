//! Programs that try to get out of their sandbox, to take more than they are given, to spoil it for the job that comes
//! after them, or to learn something of the one before.
//!
//! They run in containers of a real engine, through the executor alone: no node, no ledger. Every attack ends with a
//! verdict, and after every attack an ordinary job runs in the same sandbox and finds it as if it were new (see
//! [`fixture::Sandbox::attack`]).
//!
//! Without an engine these tests say so and do nothing, unless `QUORUN_REQUIRE_ENGINE` is 1.

#![cfg(target_os = "linux")]

/// Interpreters are started when they are needed; `attacks_zygotes` has them wait.
const ZYGOTES: bool = false;

mod fixture;

mod compilers;
mod endless;
mod ends;
mod exhaustion;
mod files;
mod kernel;
mod leftovers;
mod network;
mod outputs;
mod secrets;
mod warden;
