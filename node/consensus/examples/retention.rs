//! Whether disk and memory stay flat while jobs go through a node for ever.
//!
//! `cargo run --release -p quorun-consensus --example retention -- [--jobs N] [--keep N] [--source BYTES]`
//!
//! Jobs are submitted and ended by proposals to a node, without being executed, and expired as the scheduler does it, so
//! that about `--keep` of them are there at any time. After each tenth of `--jobs` a line says what the folder and the
//! process take.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod growth;

use growth::{Jobs, Pauses, memory, mib, millis, size};
use quorun_ledger::{Command, Reply};
use std::time::Instant;

/// How many jobs are under way at one time.
const AT_ONCE: u64 = 256;
/// How many the scheduler expires with one command.
const EXPIRE: u32 = 500;

#[tokio::main]
async fn main() {
    let (mut jobs, mut keep, mut source) = (400_000, 20_000, 200);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().and_then(|value| value.parse().ok());
        let value = value.unwrap_or_else(|| panic!("{name} needs a number"));
        match name.as_str() {
            "--jobs" => jobs = value,
            "--keep" => keep = value,
            "--source" => source = value,
            _ => panic!("{name}: see the head of this program"),
        }
    }
    growth::log();
    let folder = tempfile::Builder::new()
        .prefix("quorun-retention-")
        .tempdir()
        .unwrap();
    let ports = growth::ports(1);
    let data = folder.path().join("node1");
    let (handle, notices) = growth::node(1, &[(1, ports[0])], data.clone(), 20_000).await;
    handle.bootstrap().await.unwrap();
    let leader = growth::led(std::slice::from_ref(&handle)).await;
    growth::announce(&leader).await;
    growth::propose(&leader, Command::OrderByAge { limit: 1 })
        .await
        .unwrap();
    let pauses = Pauses::listen(notices);
    let load = Jobs::new(usize::try_from(source).unwrap());
    println!("| jobs | kept | log/ | ledger/ | memory | jobs a second | longest pause |");
    println!("| --: | --: | --: | --: | --: | --: | --: |");
    let mut keep_bytes = u64::MAX;
    for _ in 0..10 {
        let begun = Instant::now();
        let end = load.begun() + jobs / 10;
        while load.begun() < end {
            load.many(&leader, AT_ONCE * 4, AT_ONCE).await;
            let counters = leader.view().counters().unwrap();
            if counters.finished > keep && keep_bytes == u64::MAX {
                keep_bytes = counters.finished_bytes;
            }
            loop {
                let command = Command::ExpireOldest {
                    limit: EXPIRE,
                    finished_ms: u64::MAX,
                    keep_bytes,
                };
                match growth::propose(&leader, command).await {
                    Some(Reply::Expired { jobs }) if jobs == EXPIRE => {}
                    _ => break,
                }
            }
        }
        let (now, _) = memory();
        println!(
            "| {} | {} | {} | {} | {} | {:.0} | {} |",
            load.begun(),
            leader.view().counters().unwrap().finished,
            mib(size(&data.join("log"))),
            mib(size(&data.join("ledger"))),
            mib(now),
            (jobs / 10) as f64 / begun.elapsed().as_secs_f64(),
            millis(pauses.longest(begun, Instant::now())),
        );
    }
    handle.shutdown().await;
}
