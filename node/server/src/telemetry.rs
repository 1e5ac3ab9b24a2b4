//! Logs.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// What is logged when nothing is said.
const DEFAULT: &str = "info";
/// Behind a bare level: openraft and the transport say much at `info` that only their authors need, and openraft warns
/// of every call to a node that is down.
const QUIET: &str =
    "openraft=error,h2=warn,hyper=warn,hyper_util=warn,tower=warn,bollard=warn,sled=warn";

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
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
    Ok(())
}
