//! All attacks again, where interpreters are started ahead; and attacks on those that wait.
//!
//! Before each attack in Python another job runs, so that an interpreter waits for the attack.

#![cfg(target_os = "linux")]

/// Interpreters are started ahead.
const ZYGOTES: bool = true;

#[path = "../attacks/fixture.rs"]
mod fixture;

#[path = "../attacks/compilers.rs"]
mod compilers;
#[path = "../attacks/endless.rs"]
mod endless;
#[path = "../attacks/ends.rs"]
mod ends;
#[path = "../attacks/exhaustion.rs"]
mod exhaustion;
#[path = "../attacks/files.rs"]
mod files;
#[path = "../attacks/kernel.rs"]
mod kernel;
#[path = "../attacks/leftovers.rs"]
mod leftovers;
#[path = "../attacks/network.rs"]
mod network;
#[path = "../attacks/outputs.rs"]
mod outputs;
#[path = "../attacks/secrets.rs"]
mod secrets;
#[path = "../attacks/warden.rs"]
mod warden;

mod waiting;
