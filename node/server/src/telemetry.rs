//! Logs.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// What is logged when nothing is said. openraft and the transport say much at `info` that only their authors need.
const DEFAULT: &str = "info,openraft=warn,h2=warn,hyper=warn,tower=warn,bollard=warn,sled=warn";

/// Starts logging to stderr.
///
/// # Errors
/// When the filter is not one.
pub fn init(filter: Option<&str>, json: bool) -> anyhow::Result<()> {
    let filter = match filter {
        None => EnvFilter::new(DEFAULT),
        Some(text) => EnvFilter::try_new(text).with_context(|| {
            format!(
                "--log \"{text}\" is not a filter; for example info, or info,quorun_executor=debug"
            )
        })?,
    };
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
