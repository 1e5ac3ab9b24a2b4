//! How the C library hands out memory.
//!
//! glibc gives each of many threads an arena of its own, up to eight for each processor, and every arena keeps what was
//! freed in it. Of the memory of a node under load two thirds were such leftovers, and its applies waited for more of it
//! (docs/benchmarks.md, growth). With two arenas a node is smaller and faster.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What glibc reads when a process starts, and not later.
const ARENAS: &str = "MALLOC_ARENA_MAX";
const FEW: &str = "2";

/// Has this process start again with few arenas, unless somebody has said how many. Returns where there is nothing to
/// do, or where it cannot be done: the node then takes more memory.
pub fn make_few() {
    let told = env::var_os(ARENAS).is_some() || env::var_os("GLIBC_TUNABLES").is_some();
    if told || !cfg!(target_env = "gnu") {
        return;
    }
    let Ok(program) = env::current_exe() else {
        return;
    };
    let mut arguments = env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let error = again.args(arguments).env(ARENAS, FEW).exec();
    eprintln!("quorun: set {ARENAS}={FEW} to save memory; it could not be set by itself: {error}");
}
