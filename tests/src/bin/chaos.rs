//! Harms a cluster of real processes in every way there is, while clients go on, and checks that nothing that was
//! promised is broken.
//!
//! ```text
//! cargo run -p quorun-tests --bin chaos -- --seed 7 --minutes 2 --nodes 3
//! cargo run -p quorun-tests --bin chaos -- --validate
//! ```
//!
//! The second command shows that the first finds bugs: it switches real ones on.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use quorun_tests::chaos::plan::{Kind, Plan};
use quorun_tests::chaos::{self, Settings, validate};
use quorun_tests::say;

/// Harms a cluster of processes while clients go on, and checks that nothing that was promised is broken.
#[derive(Debug, Parser)]
struct Args {
    /// The plan of faults and the jobs follow from it [default: drawn from the time]
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults come
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=5))]
    nodes: u16,
    /// Which faults, by name; + before the first adds to the usual ones [default: the usual ones]
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// No more jobs than this
    #[arg(long, default_value_t = u64::MAX)]
    jobs: u64,
    /// Jobs in a second
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// The time from one fault to the next, on average, milliseconds
    #[arg(long, default_value_t = 1500)]
    pause_ms: u64,
    /// Half of the programs take long, and so do pauses
    #[arg(long)]
    long: bool,
    /// One more option for every node; may be given again
    #[arg(long, allow_hyphen_values = true)]
    arg: Vec<String>,
    /// One more variable for every node, NAME=VALUE; may be given again
    #[arg(long)]
    env: Vec<String>,
    /// End as soon as one of these invariants is seen to be broken, such as I12
    #[arg(long, value_delimiter = ',')]
    until: Vec<String>,
    /// Write what came of it to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Leave the nodes' folders and logs where they are
    #[arg(long)]
    keep: bool,
    /// Only print the plan
    #[arg(long)]
    plan: bool,
    /// Instead of a run: build the program with bugs that can be switched on, and see whether each of them is found
    #[arg(long)]
    validate: bool,
    /// Only this bug
    #[arg(long, requires = "validate")]
    bug: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if args.validate {
        return match validate::all(args.bug.as_deref()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("chaos: {error}");
                ExitCode::from(2)
            }
        };
    }
    let settings = match settings(&args) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("chaos: {error}");
            return ExitCode::from(2);
        }
    };
    if args.plan {
        let Settings {
            seed,
            length,
            pause,
            ..
        } = settings;
        for step in Plan::new(seed, &settings.kinds, settings.nodes, length, pause).steps {
            println!("{:8.2}s {}", step.at.as_secs_f64(), step.kind.name());
        }
        return ExitCode::SUCCESS;
    }
    say(&format!("seed {}", settings.seed));
    let report = chaos::run(&settings).await;
    println!("{}", report.table());
    if let Some(path) = &args.json
        && let Err(error) = std::fs::write(path, format!("{:#}\n", report.json()))
    {
        eprintln!("chaos: {}: {error}", path.display());
        return ExitCode::from(2);
    }
    if report.passed() {
        println!("PASSED");
        ExitCode::SUCCESS
    } else {
        println!("FAILED\nREPRODUCE: {}", report.reproduce());
        ExitCode::FAILURE
    }
}

fn settings(args: &Args) -> Result<Settings, String> {
    let mut kinds: Vec<Kind> = Vec::new();
    let mut names = args.faults.iter().map(String::as_str).peekable();
    let added = names.peek().is_none_or(|first| first.starts_with('+'));
    if added {
        kinds = Plan::usual();
    }
    for name in names {
        let kind: Kind = name.trim_start_matches('+').parse()?;
        if kind == Kind::Bridge && args.nodes < 5 {
            return Err("a bridge needs --nodes 5".to_owned());
        }
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut env = Vec::new();
    for pair in &args.env {
        let (name, value) = pair.split_once('=').ok_or("--env should be NAME=VALUE")?;
        env.push((name.to_owned(), value.to_owned()));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(Settings {
        seed: args
            .seed
            .unwrap_or_else(|| now.map_or(0, |now| u64::from(now.subsec_nanos()) ^ now.as_secs())),
        length: Duration::from_secs_f64(args.minutes * 60.0),
        nodes: args.nodes,
        kinds,
        pause: Duration::from_millis(args.pause_ms),
        rate: args.rate,
        jobs: args.jobs,
        long: args.long,
        args: args.arg.clone(),
        env,
        until: args.until.clone(),
        keep: args.keep,
    })
}
