//! What the benchmark has found, in a form that is shown as text, JSON and HTML.

pub mod html;
pub mod json;
pub mod lines;
mod svg;
pub mod text;

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::record::{Figures, Second, Times};
use super::verify::Verified;

/// A figure that stands at the top.
#[derive(Clone, Debug)]
pub struct Headline {
    /// What it is.
    pub name: String,
    /// The figure with its unit.
    pub value: String,
    /// Whether it is as it must be; `None` if there is nothing that it must be.
    pub good: Option<bool>,
}

/// A table.
#[derive(Clone, Debug)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Names of the columns; the first one is that of the rows' names.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
    /// What has to be known to read it.
    pub note: String,
}

/// How something was set, as it is shown.
#[derive(Clone, Debug)]
pub struct Setting(String);

impl From<String> for Setting {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Setting {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<u64> for Setting {
    fn from(number: u64) -> Self {
        Self(number.to_string())
    }
}

/// Everything that was found.
#[derive(Debug)]
pub struct Report {
    /// Name of the benchmark.
    pub mode: &'static str,
    /// What it is called.
    pub title: String,
    /// When it was made.
    pub at: SystemTime,
    /// How it was set.
    pub settings: Vec<(String, String)>,
    /// The figures at the top.
    pub headlines: Vec<Headline>,
    /// What the reader has to know.
    pub notes: Vec<String>,
    /// What a benchmark is about, beside or instead of a load.
    pub tables: Vec<Table>,
    /// What may be of interest as well.
    pub more_tables: Vec<Table>,
    /// The same for programs.
    pub extra: Map<String, Value>,
    /// The load.
    pub figures: Option<Figures>,
    /// What was found afterwards.
    pub verified: Option<Verified>,
    failed: bool,
}

impl Report {
    /// An empty one.
    pub fn new(mode: &'static str, title: impl Into<String>) -> Self {
        Self {
            mode,
            title: title.into(),
            at: SystemTime::now(),
            settings: Vec::new(),
            headlines: Vec::new(),
            notes: Vec::new(),
            tables: Vec::new(),
            more_tables: Vec::new(),
            extra: Map::new(),
            figures: None,
            verified: None,
            failed: false,
        }
    }

    /// Notes how the benchmark was set.
    pub fn set(&mut self, name: &str, value: impl Into<Setting>) {
        self.settings.push((name.to_owned(), value.into().0));
    }

    /// Adds what the reader has to know.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds a figure for the top.
    pub fn headline(&mut self, name: &str, value: impl Into<String>, good: Option<bool>) {
        self.headlines.push(Headline {
            name: name.to_owned(),
            value: value.into(),
            good,
        });
        self.failed |= good == Some(false);
    }

    /// Adds what a load has given.
    pub fn load(&mut self, figures: Figures, verified: Option<Verified>) {
        let counts = figures.counts;
        let rate = if counts.accepted > 0 {
            "accepted per second"
        } else {
            "jobs per second"
        };
        self.headline(rate, format!("{:.1}", per_second(&figures)), None);
        for (name, part) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
            self.headline(name, format!("{} ms", digits(figures.total.ms(part))), None);
        }
        self.headline(
            "max",
            format!("{} ms", digits(figures.total.max_ms())),
            None,
        );
        self.headline("wrong", counts.wrong.to_string(), Some(counts.wrong == 0));
        if counts.gave_up > 0 {
            self.headline("without an answer", counts.gave_up.to_string(), Some(false));
        }
        if counts.overflow > 0 {
            self.headline("due and not sent", counts.overflow.to_string(), None);
            self.note(format!(
                "{} jobs were due and NOT SENT, because too many were open (--max-open); the latencies are of the others",
                counts.overflow
            ));
        }
        if counts.refused > 0 {
            self.headline("turned away", counts.refused.to_string(), None);
        }
        if let Some(verified) = &verified {
            let Verified {
                lost,
                twice,
                changed,
                ..
            } = verified;
            self.headline(
                "lost / twice / changed",
                format!("{lost} / {twice} / {changed}"),
                Some(verified.holds()),
            );
        }
        let late = figures.late.ms(0.99);
        if figures.late.len() > 0 && late > 5.0 {
            self.note(format!(
                "the jobs themselves were sent late (p99 {} ms): this program did not get the processor in time",
                digits(late)
            ));
        }
        self.figures = Some(figures);
        self.verified = verified;
    }

    /// Whether everything was as it must be.
    pub fn passed(&self) -> bool {
        !self.failed
    }
}

/// Jobs per second that ended, over the part that is measured.
pub fn per_second(figures: &Figures) -> f64 {
    let seconds = figures.span.as_secs_f64();
    if seconds > 0.0 {
        figures.measured as f64 / seconds
    } else {
        0.0
    }
}

/// A figure with three digits or so.
pub fn digits(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.places$}")
}

/// The parts of a distribution that tables have.
pub const PARTS: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// The times of a load by what they are, with words for it.
pub fn distributions(figures: &Figures) -> Vec<(&'static str, &'static str, &Times)> {
    let all = [
        (
            "total",
            "from its planned arrival to its checked result",
            &figures.total,
        ),
        (
            "queue",
            "accepted until given to a node (the cluster's clock, whole ms)",
            &figures.queue,
        ),
        (
            "run",
            "the program, as the sandbox measured it (whole ms)",
            &figures.wall,
        ),
        ("cpu", "its CPU time (whole ms)", &figures.cpu),
        (
            "late",
            "planned arrival until it was sent: this program's own delay",
            &figures.late,
        ),
    ];
    all.into_iter()
        .filter(|(_, _, times)| times.len() > 0)
        .collect()
}

/// Points of a distribution, dense where it is rare: the part below, and milliseconds. As far as there are figures for.
pub fn curve(times: &Times) -> Vec<(f64, f64)> {
    /// Points for each power of ten.
    const STEPS: u32 = 20;
    if times.len() == 0 {
        return Vec::new();
    }
    let decades = (times.len() as f64).log10();
    let mut points = Vec::new();
    for step in 0.. {
        let x = f64::from(step) / f64::from(STEPS);
        if x > decades {
            break;
        }
        let part = 1.0 - 10f64.powf(-x);
        points.push((part, times.ms(part)));
    }
    points.push((1.0 - 10f64.powf(-decades), times.max_ms()));
    points
}

/// Seconds put together, so that there are no more than so many: throughput is the mean, latencies and the queue the highest.
pub fn condensed(seconds: &[Second], most: usize) -> (usize, Vec<Second>) {
    let width = seconds.len().div_ceil(most).max(1);
    let together = |chunk: &[Second]| {
        let mut sum = Second::default();
        for second in chunk {
            sum.correct += second.correct;
            sum.wrong += second.wrong;
            sum.errors += second.errors;
            sum.p50_ms = sum.p50_ms.max(second.p50_ms);
            sum.p99_ms = sum.p99_ms.max(second.p99_ms);
            sum.max_ms = sum.max_ms.max(second.max_ms);
            sum.queued = sum.queued.max(second.queued);
        }
        sum
    };
    (width, seconds.chunks(width).map(together).collect())
}

#[cfg(test)]
pub mod tests {
    use std::time::Duration;

    use super::super::client::{Finished, Outcome, Sent};
    use super::super::mix::{Expected, Jobs};
    use super::super::record::Record;
    use super::*;

    /// A load of 1000 jobs over 50 s, 10 ms to 1 s each, of which one is wrong; with a mark.
    pub fn report() -> Report {
        let record = Record::new(Duration::ZERO);
        let mix = "hello=3,random=1,endless=1".parse().unwrap();
        let jobs = Jobs::new(mix, 1, "run".into());
        for number in 0..1000 {
            let job = jobs.job(number);
            let planned = record.begin() + Duration::from_millis(number * 50);
            let done = planned + Duration::from_millis(10 + number * 99 / 100);
            let (verdict, stdout) = match &job.expected {
                Expected::Stdout(text) => ("accepted", text.to_string()),
                Expected::Verdict(verdict) => (*verdict, String::new()),
            };
            let mut errors = std::collections::BTreeMap::new();
            if number == 7 {
                errors.insert(
                    "503 no-quorum".to_owned(),
                    (2, "<node> & \"leader\"".to_owned()),
                );
            }
            let finished = Finished {
                id: uuid::Uuid::now_v7(),
                verdict: verdict.to_owned(),
                stdout: if number == 500 {
                    "</script>".to_owned()
                } else {
                    stdout
                },
                attempts: 1,
                queue_ms: Some(number % 7),
                wall_ms: 10 + number % 5,
                cpu_ms: 9,
                ..Finished::default()
            };
            let sent = Sent {
                outcome: Outcome::Finished(finished),
                accepted_by: None,
                errors,
            };
            record.job(&job, planned, planned, done, sent);
        }
        record.event("leader <node 1> killed");
        let mut report = Report::new("run", "Load");
        report.set("mix", "a & b");
        let verified = Verified {
            accepted: 1000,
            listed: 1000,
            looked_up: 1000,
            ..Verified::default()
        };
        report.load(record.figures(), Some(verified));
        report.tables.push(Table {
            title: "Rounds".into(),
            columns: vec!["round".into(), "ratio".into()],
            rows: vec![vec!["1".into(), "0.9".into()]],
            note: "less is better".into(),
        });
        report
    }

    #[test]
    fn a_wrong_answer_fails_the_run_and_a_right_run_passes() {
        assert!(!report().passed());
        let mut right = Report::new("run", "Load");
        right.load(Record::new(Duration::ZERO).figures(), None);
        assert!(right.passed());
    }

    #[test]
    fn a_curve_goes_as_far_as_its_figures_and_no_further() {
        let figures = report().figures.unwrap();
        let curve = curve(&figures.total);
        let (last, ms) = *curve.last().unwrap();
        assert!((last - (1.0 - 1.0 / figures.total.len() as f64)).abs() < 1e-9);
        assert!((ms - figures.total.max_ms()).abs() < 1e-9);
        assert!(
            curve
                .windows(2)
                .all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1)
        );
        assert!(super::curve(&Times::new()).is_empty());
    }

    #[test]
    fn seconds_that_are_put_together_lose_nothing() {
        let seconds: Vec<_> = (0..1300)
            .map(|n| Second {
                correct: n,
                p99_ms: n as f64,
                ..Second::default()
            })
            .collect();
        let (width, few) = condensed(&seconds, 600);
        assert_eq!((width, few.len()), (3, 434));
        let sum = |seconds: &[Second]| seconds.iter().map(|s| s.correct).sum::<u64>();
        assert_eq!(sum(&few), sum(&seconds));
        assert!((few[0].p99_ms - 2.0).abs() < 1e-9);
    }
}
