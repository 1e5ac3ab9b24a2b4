//! Whether chaos finds bugs: real ones are switched on in a program that was built with them, each under the faults that
//! bring it out, and the run must fail for the right reason. The same run without the bug must pass.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::say;

/// How one bug is brought out.
struct Scenario {
    /// Its name in `QUORUN_BUG`.
    bug: &'static str,
    /// What is switched on in the run that must pass.
    control: Option<&'static str>,
    /// What it breaks: at least one of these must be seen.
    breaks: &'static [&'static str],
    /// The run.
    args: &'static [&'static str],
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        bug: "ack_before_sync",
        control: None,
        // What was forgotten is missed, or done again. Not every failure comes between an answer and its sync.
        breaks: &["I1", "I2", "I3", "I4", "I6", "I9"],
        args: &[
            "--faults",
            "power-loss-all",
            "--minutes",
            "1.2",
            "--rate",
            "40",
            "--pause-ms",
            "4000",
        ],
    },
    Scenario {
        bug: "stale_attempt",
        control: None,
        breaks: &["I4"],
        args: &[
            "--faults",
            "pause-follower",
            "--minutes",
            "2",
            "--rate",
            "1.4",
            "--pause-ms",
            "4000",
            "--long",
        ],
    },
    Scenario {
        bug: "skip_watermark",
        control: None,
        breaks: &["I12"],
        args: &["--faults", "stale-log", "--minutes", "0.3", "--rate", "20"],
    },
    Scenario {
        bug: "assign_without_fence",
        // The leader is as slow as with the bug, which does no harm behind the fence.
        control: Some("slow_assign"),
        breaks: &["I4"],
        args: &[
            "--faults",
            "move-leader",
            "--minutes",
            "0.7",
            "--rate",
            "20",
            "--pause-ms",
            "300",
        ],
    },
];

/// Runs every scenario with its bug and without, or only that of one bug. Whether all came out as they should.
///
/// # Errors
/// When the program cannot be built or run, or there is no such bug.
pub fn all(only: Option<&str>) -> Result<bool, String> {
    let chosen = SCENARIOS
        .iter()
        .filter(|scenario| only.is_none_or(|bug| bug == scenario.bug));
    let program = build()?;
    let mut sound = true;
    let mut lines = Vec::new();
    for scenario in chosen {
        let control = run(scenario, scenario.control, &program)?;
        let passed = control["passed"] == true;
        let with = run(scenario, Some(scenario.bug), &program)?;
        let broken = broken(&with);
        let found = scenario.breaks.iter().any(|name| broken.contains(*name));
        sound &= passed && found;
        let first = with["violations"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|violation| {
                scenario
                    .breaks
                    .contains(&violation["invariant"].as_str().unwrap_or_default())
            });
        let first = first.map_or("", |violation| {
            violation["what"].as_str().unwrap_or_default()
        });
        lines.push(format!(
            "{:<22} {} by {broken:?}; without it the run {}\n{:<22} {}",
            scenario.bug,
            if found { "FOUND" } else { "NOT FOUND" },
            if passed { "passes" } else { "FAILS" },
            "",
            first.chars().take(300).collect::<String>(),
        ));
    }
    if lines.is_empty() {
        return Err(format!(
            "there is no bug named {}",
            only.unwrap_or_default()
        ));
    }
    for line in lines {
        say(&line);
    }
    Ok(sound)
}

fn broken(report: &Value) -> BTreeSet<String> {
    let violations = report["violations"].as_array().into_iter().flatten();
    violations
        .filter_map(|violation| Some(violation["invariant"].as_str()?.to_owned()))
        .collect()
}

/// The program with the bugs in it, in a target folder of its own, so that nobody takes it for another.
fn build() -> Result<PathBuf, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = workspace.join("target").join("bugs");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(&workspace)
        .args(["build", "--package", "quorun-server", "--bin", "quorun"])
        .args(["--features", "bugs", "--target-dir"])
        .arg(&target)
        .status()
        .map_err(|error| format!("start cargo: {error}"))?;
    if !status.success() {
        return Err(format!("building quorun with its bugs: {status}"));
    }
    let program = target.join("debug").join("quorun");
    program
        .canonicalize()
        .map_err(|error| format!("{}: {error}", program.display()))
}

/// One run, in a process of its own because the program under test is the process's. Returns its report.
fn run(scenario: &Scenario, bug: Option<&str>, program: &Path) -> Result<Value, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let json = folder.path().join("report.json");
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(&own);
    command
        .env("QUORUN_BIN", program)
        .args(["--seed", "7", "--nodes", "3"])
        .args(scenario.args)
        .args(["--until", &scenario.breaks.join(",")])
        .arg("--json")
        .arg(&json)
        .stdout(Stdio::null());
    if let Some(bug) = bug {
        command.args(["--env", &format!("QUORUN_BUG={bug}")]);
    }
    say(&format!(
        "--- {} with {}",
        scenario.bug,
        bug.unwrap_or("no bug")
    ));
    let status = command
        .status()
        .map_err(|error| format!("start {own:?} again: {error}"))?;
    let text = std::fs::read_to_string(&json).map_err(|error| {
        format!(
            "a run of {} has left no report ({status}): {error}",
            scenario.bug
        )
    })?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}
