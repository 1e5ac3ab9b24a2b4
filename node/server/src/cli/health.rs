//! `quorun health`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use http::{Method, StatusCode};

use super::errors::NoAnswer;
use super::target::Target;

/// How long a node may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ask a node how it is.
#[derive(Args, Debug)]
pub struct HealthArgs {
    #[command(flatten)]
    target: Target,
}

/// Exits with 0 if the node is ready; prints why not otherwise.
pub async fn health(args: HealthArgs) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    let answer = client.json(Method::GET, "/readyz", None);
    let (status, body) = tokio::time::timeout(PATIENCE, answer)
        .await
        .with_context(|| NoAnswer(format!("no answer within {PATIENCE:?}")))??;
    println!("{body}");
    Ok(if status == StatusCode::OK {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
