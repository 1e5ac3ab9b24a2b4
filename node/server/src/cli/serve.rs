//! `quorun serve`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser};
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

/// What `quorun serve` takes, for who starts nodes.
#[derive(Debug, Parser)]
#[command(name = "quorun serve", no_binary_name = true)]
struct Alone {
    #[command(flatten)]
    args: ServeArgs,
}

/// Looks at the arguments of a node, and at the files that they name, as the node itself will.
///
/// # Errors
/// What is wrong with them, as an error of the user's.
pub fn check(arguments: &[OsString]) -> anyhow::Result<Settings> {
    let Alone { args } =
        Alone::try_parse_from(arguments).map_err(|error| super::errors::of_clap(&error))?;
    let settings = args
        .settings
        .with_file(args.config.as_deref())
        .map_err(|error| usage(&error))?;
    Config::new(settings.clone()).map_err(|error| usage(&error))?;
    Ok(settings)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What docker-compose.yaml leaves out: what is another on each node, TLS for clients (its health check speaks none),
    /// what its secret for the cluster makes pointless, and what is for tests only.
    const LEFT_OUT: [&str; 9] = [
        "QUORUN_JOIN",
        "QUORUN_ADVERTISE_PEER",
        "QUORUN_ADVERTISE_HTTP",
        "QUORUN_TLS_CERT",
        "QUORUN_TLS_KEY",
        "QUORUN_CLUSTER_SECRET_OPTIONAL",
        "QUORUN_CALLBACK_BACKOFF_MS",
        "QUORUN_FREE_MB_FILE",
        "QUORUN_DIAL_OVERRIDE",
    ];

    #[test]
    fn the_compose_file_passes_every_setting_on() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docker-compose.yaml");
        let text = std::fs::read_to_string(path).unwrap();
        let passed: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| Some(line.strip_prefix("  ")?.split_once(':')?.0.trim_start()))
            .filter(|name| name.starts_with("QUORUN_"))
            .collect();
        let command = Alone::augment_args(clap::Command::new("quorun"));
        let mut left: BTreeSet<&str> = LEFT_OUT.into();
        for argument in command.get_arguments() {
            let Some(name) = argument.get_env().and_then(|name| name.to_str()) else {
                continue;
            };
            assert!(
                passed.contains(name) != left.remove(name),
                "{name} is passed on, or left out on purpose"
            );
        }
        assert!(left.is_empty(), "no settings: {left:?}");
    }

    #[test]
    fn arguments_of_a_node_are_looked_at_before_it_is_started() {
        let check = |more: &[&str]| {
            let given = ["--id=1", "--peers=1=127.0.0.1:1", "--executor=process"];
            let all: Vec<OsString> = given.iter().chain(more).map(OsString::from).collect();
            check(&all).map_err(|error| {
                assert!(error.is::<super::super::UsageError>());
                format!("{error:#}")
            })
        };
        check(&[]).unwrap();
        for (wrong, words) in [
            (&["--id=2"][..], "--id"),
            (&["--nonsense"], "--nonsense"),
            (&["--slots=0"], "--slots 0"),
            (&["--tokens=/is/not/there"], "/is/not/there"),
        ] {
            let said = check(wrong).unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }
}
