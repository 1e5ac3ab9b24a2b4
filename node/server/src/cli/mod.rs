//! The command line.

mod bench;
pub mod client;
mod cluster;
mod completions;
mod dev;
mod errors;
mod health;
mod jobs;
mod languages_set;
mod local;
mod openapi;
mod outcome;
mod run;
mod serve;
mod stream;
mod table;
mod target;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code for a command line or configuration that is not right.
const USAGE: u8 = 2;
/// Exit code of what exits as a program does (`quorun run`, `quorun logs`) when Quorun, not the program, is the reason; as
/// `docker run` has it.
const NOT_RUN: u8 = 125;

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
    Run(Box<run::RunArgs>),
    /// List jobs, newest first
    Jobs(jobs::JobsArgs),
    /// Show what a job has printed
    Logs(jobs::LogsArgs),
    /// Cancel jobs
    Cancel(jobs::CancelArgs),
    /// Show what can be run
    Languages(jobs::LanguagesArgs),
    /// Look at a cluster, and change it
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Make API tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    Bench(Box<bench::BenchArgs>),
    /// Exit with 0 if a node can take requests and work, with 1 otherwise
    Health(health::HealthArgs),
    /// Print what the API takes and answers, as OpenAPI 3.1
    Openapi,
    /// Print what makes a shell complete this command line
    Completions(completions::CompletionsArgs),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let json = errors::json_is_asked::<Cli>(std::env::args_os());
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if json && error.use_stderr() => {
            errors::tell(&errors::of_clap(&error), json);
            return ExitCode::from(USAGE);
        }
        Err(error) => error.exit(),
    };
    let failed = match cli.command {
        Command::Run(_) | Command::Logs(_) => NOT_RUN,
        _ => 1,
    };
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
            Command::Run(args) => run::run(*args).await,
            Command::Jobs(args) => jobs::jobs(args).await,
            Command::Logs(args) => jobs::logs(args).await,
            Command::Cancel(args) => jobs::cancel(args).await,
            Command::Languages(args) => jobs::languages(args).await,
            Command::Cluster(command) => cluster::cluster(command).await,
            Command::Token(command) => token::token(command),
            Command::Bench(args) => bench::bench(*args).await,
            Command::Health(args) => health::health(args).await,
            Command::Openapi => openapi::openapi(),
            Command::Completions(args) => completions::completions::<Cli>(&args),
        }
    });
    // What is still blocked in a read of the disk must not hold the end up.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => {
            errors::tell(&error, json);
            ExitCode::from(if errors::is_usage(&error) {
                USAGE
            } else {
                failed
            })
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
