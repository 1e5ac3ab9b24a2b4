//! Logs.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// What is logged when nothing is said.
const DEFAULT: &str = "info";
/// Behind a bare level: openraft and the transport say much at `info` that only their authors need, and openraft warns
/// of every call to a node that is down.
const QUIET: &str =
    "openraft=error,h2=warn,hyper=warn,hyper_util=warn,tower=warn,bollard=warn,sled=warn";

/// The last words were said. Read and set under the lock of stderr.
static ENDED: AtomicBool = AtomicBool::new(false);

/// stderr, until the last words.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr().lock();
        if ENDED.load(Ordering::Relaxed) {
            return Ok(bytes.len());
        }
        stderr.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Says on stderr why the program ends, as its last line: whatever still runs while it ends is no longer heard.
pub fn last_words(text: &str) {
    let mut stderr = io::stderr().lock();
    ENDED.store(true, Ordering::Relaxed);
    // Where nobody can read it, the exit code has to do.
    let _ = writeln!(stderr, "quorun: {text}");
}

/// Starts logging to stderr.
///
/// # Errors
/// When the filter is not one.
pub fn init(filter: Option<&str>, json: bool) -> anyhow::Result<()> {
    let text = filter.unwrap_or(DEFAULT);
    let bare_level = !text.contains(['=', ',']);
    let full = if bare_level {
        format!("{text},{QUIET}")
    } else {
        text.to_owned()
    };
    let filter = EnvFilter::try_new(full).with_context(|| {
        format!("--log \"{text}\" is not a filter; for example info, or info,quorun_executor=debug")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
    Ok(())
}
