//! What is shown while the load runs: a line that changes at a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::record::{Record, Standing};

/// Pause between two looks at the record, at a terminal.
const EVERY: Duration = Duration::from_millis(250);
/// The same where lines stay.
const EVERY_PLAIN: Duration = Duration::from_secs(5);

/// How far a load is.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// When no more jobs are planned.
    pub at: Option<Instant>,
    /// How many jobs there are.
    pub jobs: Option<u64>,
}

/// What is said of a standing.
fn words(standing: &Standing) -> String {
    let mut text = format!(
        "{} jobs  {}/s  p50 {:.1} ms  p99 {:.1} ms  {} wrong",
        standing.ended, standing.per_second, standing.p50_ms, standing.p99_ms, standing.wrong
    );
    if standing.errors > 0 {
        text.push_str(&format!("  {} errors", standing.errors));
    }
    if standing.overflow > 0 {
        text.push_str(&format!("  {} NOT SENT", standing.overflow));
    }
    text
}

/// The part that is done, in thousandths.
fn part(goal: Goal, begin: Instant, now: Instant, ended: u64) -> u64 {
    let by_jobs = goal
        .jobs
        .filter(|jobs| *jobs > 0)
        .map(|jobs| ended.saturating_mul(1000) / jobs);
    let by_time = goal.at.map(|at| {
        let all = at.saturating_duration_since(begin).as_millis().max(1);
        let done = now.saturating_duration_since(begin).as_millis();
        u64::try_from(done * 1000 / all).unwrap_or(1000)
    });
    by_jobs.max(by_time).unwrap_or(0).min(1000)
}

/// Shows the record until it is dropped.
pub async fn show(record: Record, goal: Goal) -> std::convert::Infallible {
    let terminal = std::io::stderr().is_terminal();
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:24} {percent:>3}%  {elapsed}  {wide_msg}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("━╸ "));
    }
    // Clears the line also when this is dropped in the middle.
    let bar = Bar(bar);
    let mut tick = tokio::time::interval(if terminal { EVERY } else { EVERY_PLAIN });
    tick.tick().await;
    loop {
        tick.tick().await;
        let standing = record.standing();
        if terminal {
            let now = Instant::now();
            bar.0
                .set_position(part(goal, record.begin(), now, standing.ended));
            bar.0.set_message(words(&standing));
        } else {
            let elapsed = record.begin().elapsed().as_secs();
            eprintln!("{elapsed:>5} s  {}", words(&standing));
        }
    }
}

struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_further_counts_and_nothing_is_more_than_all() {
        let begin = Instant::now();
        let at = |s| begin + Duration::from_secs(s);
        let goal = |jobs, time: Option<u64>| Goal {
            jobs,
            at: time.map(at),
        };
        assert_eq!(part(goal(Some(100), None), begin, at(1), 25), 250);
        assert_eq!(part(goal(None, Some(10)), begin, at(1), 25), 100);
        assert_eq!(part(goal(Some(100), Some(10)), begin, at(9), 25), 900);
        assert_eq!(part(goal(Some(0), Some(0)), begin, at(9), 25), 1000);
        assert_eq!(part(goal(None, None), begin, at(9), 25), 0);
    }

    #[test]
    fn jobs_that_were_not_sent_are_said_loudly() {
        let standing = Standing {
            overflow: 3,
            ..Standing::default()
        };
        assert!(words(&standing).contains("3 NOT SENT"));
    }
}
