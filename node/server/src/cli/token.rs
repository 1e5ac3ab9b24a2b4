//! `quorun token`.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;

use super::usage;
use crate::access::tokens::{self, Role, Table};

/// Make API tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Draw a token: it is printed once and kept nowhere; the nodes' file of tokens (quorun serve --tokens) gets its hash
    New {
        /// Whose it is: letters, digits, dots, underscores and hyphens. An owner may have several tokens
        #[arg(long, value_name = "NAME")]
        name: String,
        /// What its bearer may do: look at the owner's jobs; submit and cancel them too; or everything
        #[arg(long, value_enum, value_name = "ROLE")]
        role: Role,
        /// Requests that it may make at each node, a second [default: any number]
        #[arg(long, value_name = "N")]
        requests_per_s: Option<u32>,
        /// Requests that may come at once after a pause [default: --requests-per-s]
        #[arg(long, value_name = "N", requires = "requests_per_s")]
        burst: Option<u32>,
        /// Jobs without a result that the owner may have in the cluster [default: any number]
        #[arg(long, value_name = "N")]
        max_jobs: Option<u64>,
        /// The part of the queue that the owner's waiting jobs may take, percent [default: all of it]
        #[arg(long, value_name = "PERCENT")]
        queue_percent: Option<u8>,
        /// The highest priority that the owner's jobs have, whatever they ask for [default: high]
        #[arg(long, value_name = "PRIORITY", value_parser = ["high", "normal", "low"])]
        max_priority: Option<String>,
        /// Add the entry to this file, and print nothing but the token
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Does what the command says.
pub fn token(command: TokenCommand) -> anyhow::Result<ExitCode> {
    let TokenCommand::New {
        name,
        role,
        requests_per_s,
        burst,
        max_jobs,
        queue_percent,
        max_priority,
        file,
    } = command;
    let drawn = tokens::draw()?;
    let mut entry = format!(
        "[[token]]\nname = \"{name}\"\nrole = \"{}\"\nsha256 = \"{}\"\n",
        role.name(),
        drawn.sha256
    );
    let numbers = [
        ("requests_per_s", requests_per_s.map(u64::from)),
        ("burst", burst.map(u64::from)),
        ("max_jobs", max_jobs),
        ("queue_percent", queue_percent.map(u64::from)),
    ];
    for (key, value) in numbers {
        if let Some(value) = value {
            entry += &format!("{key} = {value}\n");
        }
    }
    if let Some(priority) = max_priority {
        entry += &format!("max_priority = \"{priority}\"\n");
    }
    // What a node would refuse is refused here. The name is looked at by itself: it could be more than a name in TOML.
    tokens::check_name(&name)
        .and_then(|()| Table::parse(&entry, &Table::default()))
        .map_err(|error| usage(&error))?;
    match file {
        Some(path) => {
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&path)
                .with_context(|| format!("open {}", path.display()))?;
            // In one write, so that a node does not read half of it.
            file.write_all(format!("\n{entry}").as_bytes())
                .with_context(|| format!("write {}", path.display()))?;
            println!("{}", drawn.token);
        }
        None => {
            println!("{}\n", drawn.token);
            println!(
                "It is not shown again. For the file that the nodes are given with --tokens:\n"
            );
            print!("{entry}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
