//! `quorun serve`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::usage;
use crate::config::{Config, Settings};
use crate::{node, telemetry};

/// Run one node of a cluster.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    settings: Settings,
    /// Settings as TOML; the keys are the long options with _ in the place of -
    #[arg(long, env = "QUORUN_CONFIG", value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// End when standard input does: how `quorun dev` makes sure that no node outlives it
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// Runs a node until SIGTERM or SIGINT.
pub async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let settings = args
        .settings
        .with_file(args.config.as_deref())
        .map_err(|error| usage(&error))?;
    telemetry::init(settings.log.as_deref(), settings.log_json.unwrap_or(false))
        .map_err(|error| usage(&error))?;
    let config = Config::new(settings).map_err(|error| usage(&error))?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM received"),
            _ = interrupt.recv() => info!("SIGINT received"),
            () = stdin_closed(), if args.until_stdin_closes => info!("standard input closed"),
        }
        stopping.cancel();
    });
    node::run(config, stop).await?;
    Ok(ExitCode::SUCCESS)
}

async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut buffer = [0; 64];
    while matches!(stdin.read(&mut buffer).await, Ok(n) if n > 0) {}
}
