//! How the C library hands out memory, and gives it back.
//!
//! glibc gives each of many threads an arena of its own, up to eight for each processor, and every arena keeps what was
//! freed in it. Of the memory of a node under load two thirds were such leftovers, and its applies waited for more of it.
//! With two arenas a node is smaller and faster. Large buffers (a merge of the ledger, a batch, an output) leave holes in
//! an arena that small things then lie around: glibc takes larger and larger ones from there once the first was freed. With
//! a fixed bound they are mapped, and go back to the system at once (docs/benchmarks.md, growth).

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What glibc reads when a process starts, and not later; the bound is the one that it begins with, bytes.
const TUNABLES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=131072",
);
/// Somebody who has set one of these has thought of it.
const TOLD: [&str; 3] = [TUNABLES.0, "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_"];

/// Has this process start again with its settings, unless somebody has made some. Returns where there is nothing to do,
/// or where it cannot be done: the node then takes more memory.
pub fn tune() {
    let told = TOLD.iter().any(|name| env::var_os(name).is_some());
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
    let (name, value) = TUNABLES;
    let error = again.args(arguments).env(name, value).exec();
    eprintln!("quorun: set {name}={value} to save memory; it could not be set by itself: {error}");
}
