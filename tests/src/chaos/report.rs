//! What came of a run, in words and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Settings;
use super::faults::Done;
use super::history::{Tally, Violation};
use super::invariants::{Executed, Settled};
use super::plan::Kind;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What it was made of.
    pub settings: Settings,
    /// How long faults came.
    pub harmed: Duration,
    /// Jobs that clients wanted to submit.
    pub jobs: u64,
    /// Jobs that were acknowledged.
    pub acknowledged: usize,
    /// The clients' figures.
    pub tally: Tally,
    /// States looked at, and how many of them were compared with another node's.
    pub samples: (u64, u64),
    /// From each kill of a leader to the next accepted job.
    pub gaps: Vec<Duration>,
    /// All faults.
    pub faults: Vec<Done>,
    /// The end.
    pub settled: Settled,
    /// What was executed.
    pub executed: Executed,
    /// The most memory of a node, KiB.
    pub rss_kb: u64,
    /// The most disk of a node, KiB.
    pub disk_kb: u64,
    /// Warnings and errors in the logs.
    pub loud: BTreeMap<String, u64>,
    /// What must not be.
    pub violations: Vec<Violation>,
}

/// The time from each kill of a leader to the first acknowledgement of a request that was sent after it.
#[must_use]
pub fn gaps(faults: &[Done], accepted: &[(Instant, Instant)]) -> Vec<Duration> {
    let kills = faults
        .iter()
        .filter(|done| done.step.kind == Kind::KillLeader && done.seen.is_ok());
    kills
        .filter_map(|done| {
            let struck = done.struck?;
            let after = accepted.iter().filter(|(sent, _)| *sent >= struck);
            let next = after.map(|(_, answered)| *answered).min()?;
            Some(next - struck)
        })
        .collect()
}

/// A quantile of durations, by rank.
#[must_use]
pub fn quantile(all: &[Duration], q: f64) -> Duration {
    let mut sorted = all.to_vec();
    sorted.sort();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let rank = ((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(rank).copied().unwrap_or_default()
}

fn three(all: &[Duration]) -> String {
    if all.is_empty() {
        return "none".to_owned();
    }
    let ms = |q| quantile(all, q).as_millis();
    format!(
        "p50 {} ms, p99 {} ms, max {} ms ({} times)",
        ms(0.5),
        ms(0.99),
        ms(1.0),
        all.len()
    )
}

fn figures(all: &[Duration]) -> Value {
    let ms = |q| u64::try_from(quantile(all, q).as_millis()).unwrap_or(u64::MAX);
    json!({ "count": all.len(), "p50_ms": ms(0.5), "p99_ms": ms(0.99), "max_ms": ms(1.0) })
}

impl Report {
    /// Whether everything held, and everything that was planned has happened.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.violations.is_empty()
    }

    /// How often each kind was begun, and how often it was seen to happen.
    #[must_use]
    pub fn kinds(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let mut kinds = BTreeMap::new();
        for done in &self.faults {
            let (begun, seen): &mut (u64, u64) = kinds.entry(done.step.kind.name()).or_default();
            *begun += 1;
            *seen += u64::from(done.seen.is_ok());
        }
        kinds
    }

    /// The command that does it again.
    #[must_use]
    pub fn reproduce(&self) -> String {
        let Settings {
            seed,
            length,
            nodes,
            kinds,
            pause,
            rate,
            ..
        } = &self.settings;
        let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
        format!(
            "cargo run -p quorun-tests --bin chaos -- --seed {seed} --minutes {} --nodes {nodes} --rate {rate} --pause-ms {} --faults {}",
            length.as_secs_f64() / 60.0,
            pause.as_millis(),
            names.join(",")
        )
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<34} {value}");
        };
        let Tally {
            requests,
            joined,
            unknown,
            refused,
            unanswered,
            reads,
            cancelled,
            late,
        } = self.tally;
        let end = &self.settled;
        line("seed", self.settings.seed.to_string());
        line("nodes", self.settings.nodes.to_string());
        line("faults came for", format!("{:.0?}", self.harmed));
        for (kind, (begun, seen)) in self.kinds() {
            line(&format!("  {kind}"), format!("{begun} begun, {seen} seen"));
        }
        line("faults", format!("{} seen", self.seen()));
        line("leader kills", self.leader_kills().to_string());
        line("jobs submitted", self.jobs.to_string());
        line("jobs acknowledged", self.acknowledged.to_string());
        line("  finished", end.finished.to_string());
        line("  LOST", end.lost.to_string());
        line("  TWICE", end.twice.to_string());
        line("  CHANGED", end.changed.to_string());
        line("  STUCK", end.stuck.to_string());
        line("  given up after all attempts", end.given_up.to_string());
        line(
            "unknown, and resolved in the end",
            format!("{unknown}, {}", end.resolved),
        );
        line(
            "requests to submit",
            format!(
                "{requests}: {refused} refused with 429 or 503, {unanswered} unanswered, {joined} joined"
            ),
        );
        line("reads checked", reads.to_string());
        line("cancellations confirmed", cancelled.to_string());
        line("submissions held up", late.to_string());
        line(
            "states looked at, compared",
            format!("{}, {}", self.samples.0, self.samples.1),
        );
        line("executions", self.executed.executions.to_string());
        line("  jobs executed again", self.executed.again.to_string());
        line(
            "  overlapping executions",
            self.executed.overlaps.to_string(),
        );
        line("leader kill to next accepted job", three(&self.gaps));
        line(
            "node's death to next execution",
            three(&self.executed.reassigned),
        );
        line("settled within", format!("{:.1?}", end.took));
        line(
            "largest memory of a node",
            format!("{} MiB", self.rss_kb / 1024),
        );
        line(
            "largest disk of a node",
            format!("{} MiB", self.disk_kb / 1024),
        );
        for (what, count) in &self.loud {
            line("  logged", format!("{count} x {what}"));
        }
        line("violations", self.violations.len().to_string());
        for violation in self.violations.iter().take(20) {
            let at = violation.at.as_secs_f64();
            line(
                &format!("  {}", violation.invariant),
                format!("at {at:.2}s: {}", violation.what),
            );
        }
        text
    }

    /// Faults that were seen to happen.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.faults.iter().filter(|done| done.seen.is_ok()).count()
    }

    /// Leaders that were killed for being the leader.
    #[must_use]
    pub fn leader_kills(&self) -> u64 {
        self.kinds()
            .get(Kind::KillLeader.name())
            .map_or(0, |(_, seen)| *seen)
    }

    /// All of it for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let kinds: BTreeMap<_, _> = self
            .kinds()
            .into_iter()
            .map(|(kind, (begun, seen))| (kind, json!({ "begun": begun, "seen": seen })))
            .collect();
        let violations: Vec<_> = self
            .violations
            .iter()
            .map(|violation| {
                json!({
                    "invariant": violation.invariant.to_string(),
                    "at_s": violation.at.as_secs_f64(),
                    "what": violation.what,
                })
            })
            .collect();
        let end = &self.settled;
        json!({
            "seed": self.settings.seed,
            "nodes": self.settings.nodes,
            "seconds": self.harmed.as_secs_f64(),
            "rate": self.settings.rate,
            "faults": kinds,
            "faults_seen": self.seen(),
            "leader_kills": self.leader_kills(),
            "jobs": {
                "submitted": self.jobs,
                "acknowledged": self.acknowledged,
                "finished": end.finished,
                "lost": end.lost,
                "twice": end.twice,
                "changed": end.changed,
                "stuck": end.stuck,
                "given_up": end.given_up,
                "unknown": self.tally.unknown,
                "resolved": end.resolved,
                "cancelled": self.tally.cancelled,
            },
            "requests": {
                "sent": self.tally.requests,
                "refused": self.tally.refused,
                "unanswered": self.tally.unanswered,
                "joined": self.tally.joined,
                "reads": self.tally.reads,
                "held_up": self.tally.late,
            },
            "states": { "looked_at": self.samples.0, "compared": self.samples.1 },
            "executions": {
                "all": self.executed.executions,
                "jobs_again": self.executed.again,
                "overlaps": self.executed.overlaps,
            },
            "leader_kill_to_accepted": figures(&self.gaps),
            "death_to_next_execution": figures(&self.executed.reassigned),
            "settled_s": end.took.as_secs_f64(),
            "max_rss_kb": self.rss_kb,
            "max_disk_kb": self.disk_kb,
            "logged": self.loud,
            "passed": self.passed(),
            "violations": violations,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_rank() {
        let all: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&all, 0.5).as_millis(), 50);
        assert_eq!(quantile(&all, 0.99).as_millis(), 99);
        assert_eq!(quantile(&all, 1.0).as_millis(), 100);
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }
}
