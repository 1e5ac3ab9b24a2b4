//! The command line.

mod arenas;
mod bench;
pub mod client;
mod cluster;
mod dev;
mod health;
mod languages_set;
mod local;
mod run;
mod serve;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Exit code for a command line or configuration that is not right.
const USAGE: u8 = 2;

/// Run other people's code on a small cluster of identical nodes.
///
/// Start a cluster on this machine with `quorun dev`, then run a program with `quorun run FILE`, or post it:
/// curl --data-binary @hello.py http://127.0.0.1:8080/lang/python
#[derive(Debug, Parser)]
#[command(name = "quorun", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node of a cluster
    Serve(Box<serve::ServeArgs>),
    /// Run a whole cluster on this machine, for a first look and for development
    Dev(dev::DevArgs),
    /// Run a program on a cluster: print what it prints, exit as it exits
    Run(run::RunArgs),
    /// Look at a cluster, and change it
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Change the languages of a running cluster
    #[command(subcommand)]
    Languages(languages_set::LanguagesCommand),
    Bench(Box<bench::BenchArgs>),
    /// Exit with 0 if a node can take requests and work, with 1 otherwise
    Health(health::HealthArgs),
}

/// Which node to talk to.
#[derive(Args, Clone, Debug)]
struct Target {
    /// Any node of the cluster
    #[arg(
        long,
        env = "QUORUN_URL",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL"
    )]
    url: String,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::Serve(_)) {
        arenas::make_few();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("quorun: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::serve(*args).await,
            Command::Dev(args) => dev::dev(args).await,
            Command::Run(args) => run::run(args).await,
            Command::Cluster(command) => cluster::cluster(command).await,
            Command::Languages(command) => languages_set::languages(command).await,
            Command::Bench(args) => bench::bench(*args).await,
            Command::Health(args) => health::health(args).await,
        }
    });
    // What is still blocked in a read of the disk must not hold the end up.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("quorun: {error:#}");
            if error.is::<UsageError>() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// What the user gave is not right.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Marks an error as the user's, so that the program ends with exit code 2.
fn usage(error: &anyhow::Error) -> anyhow::Error {
    UsageError(format!("{error:#}")).into()
}
