//! What is written down while the load runs: histograms, a timeline, errors, and every accepted job.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::client::{Finished, Outcome, Sent};
use super::mix::{Prepared, Program};

/// Wrong answers that are shown.
const EXAMPLES: usize = 5;
/// Digits that a histogram keeps.
const DIGITS: u8 = 3;
/// The longest time that a histogram can hold, microseconds: a day.
const LONGEST_US: u64 = 24 * 60 * 60 * 1_000_000;

/// Times, as a histogram of microseconds.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Times {
    /// None yet.
    pub fn new() -> Self {
        // The bounds are right, so that this cannot fail; should it ever, a histogram that grows by itself does as well.
        let histogram = Histogram::new_with_bounds(1, LONGEST_US, DIGITS);
        Self(
            histogram.unwrap_or_else(|_| Histogram::new(DIGITS).unwrap_or_else(|_| unreachable!())),
        )
    }

    /// One more.
    pub fn note(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(LONGEST_US);
        self.0.saturating_record(us.max(1));
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Milliseconds below which this part of them lies; 0 if there are none.
    pub fn ms(&self, part: f64) -> f64 {
        match self.0.len() {
            0 => 0.0,
            _ => self.0.value_at_quantile(part) as f64 / 1e3,
        }
    }

    /// The least, milliseconds.
    pub fn min_ms(&self) -> f64 {
        match self.0.len() {
            0 => 0.0,
            _ => self.0.min() as f64 / 1e3,
        }
    }

    /// The mean, milliseconds.
    pub fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e3
    }

    /// The longest, milliseconds.
    pub fn max_ms(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    fn clear(&mut self) {
        self.0.reset();
    }
}

/// One second of the run.
#[derive(Clone, Debug, Default)]
pub struct Second {
    /// Jobs that ended as they should.
    pub correct: u64,
    /// Jobs that did not.
    pub wrong: u64,
    /// Requests that went wrong, whatever came of their jobs.
    pub errors: u64,
    /// Latency of the jobs that ended in it, milliseconds.
    pub p50_ms: f64,
    /// The same.
    pub p99_ms: f64,
    /// The same.
    pub max_ms: f64,
    /// Jobs that waited for a slot, if it is known.
    pub queued: Option<u64>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, since the beginning.
    pub at: Duration,
    /// What, for people.
    pub what: String,
}

/// A job that was accepted, for the end.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Its number in the load.
    pub number: u64,
    /// Its id.
    pub id: uuid::Uuid,
    /// What it ended as when it was told first; `None` if that was not waited for.
    pub digest: Option<u64>,
}

/// How many jobs went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs that were sent.
    pub sent: u64,
    /// Of those, jobs of the warm-up: checked, but in no figure.
    pub warm: u64,
    /// Jobs that ended as they should.
    pub correct: u64,
    /// Jobs that ended in another way.
    pub wrong: u64,
    /// Jobs that were accepted and not waited for.
    pub accepted: u64,
    /// Jobs that were turned away (429).
    pub refused: u64,
    /// Jobs of which no answer told how they went.
    pub gave_up: u64,
    /// Jobs that were due and not sent, because too many were open.
    pub overflow: u64,
    /// Jobs that took more than one attempt.
    pub retried: u64,
}

/// Figures of one program.
#[derive(Clone, Debug)]
pub struct OfProgram {
    /// Jobs that ended, after the warm-up.
    pub count: u64,
    /// Of all jobs, those with a wrong answer.
    pub wrong: u64,
    /// From the planned arrival to the answer.
    pub total: Times,
    /// How long it ran.
    pub wall: Times,
}

/// Everything that was written down.
#[derive(Clone, Debug)]
pub struct Figures {
    /// How many jobs went which way.
    pub counts: Counts,
    /// Jobs after the warm-up that ended as they should, and when the last one did.
    pub measured: u64,
    /// From the planned arrival to the answer.
    pub total: Times,
    /// From the planned arrival to sending.
    pub late: Times,
    /// From the acceptance until a node had the job, as the cluster says it.
    pub queue: Times,
    /// How long the program ran, as the cluster says it.
    pub wall: Times,
    /// Its CPU time, as the cluster says it.
    pub cpu: Times,
    /// By program, in the order of [`Program::ALL`].
    pub programs: Vec<OfProgram>,
    /// Errors by kind: how many, and an example.
    pub errors: BTreeMap<String, (u64, String)>,
    /// Examples of wrong answers.
    pub examples: Vec<String>,
    /// Every accepted job.
    pub accepted: Vec<Accepted>,
    /// Numbers of jobs of which it is not known whether they were accepted.
    pub unknown: Vec<u64>,
    /// Second by second, from the beginning of the warm-up.
    pub seconds: Vec<Second>,
    /// What happened.
    pub events: Vec<Event>,
    /// How long the part took that is measured.
    pub span: Duration,
    /// How long the warm-up was.
    pub warmup: Duration,
}

#[derive(Debug)]
struct Inner {
    figures: Figures,
    /// Latencies of the second that is under way.
    now: Times,
    /// The last answer.
    last: Option<Instant>,
}

/// Where clients write. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Record {
    begin: Instant,
    warmup: Duration,
    inner: Arc<Mutex<Inner>>,
}

/// Where the run stands, for the progress display.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// Jobs that have ended.
    pub ended: u64,
    /// Jobs of the last full second.
    pub per_second: u64,
    /// Median, milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// Wrong answers.
    pub wrong: u64,
    /// Requests that went wrong.
    pub errors: u64,
    /// Jobs not sent.
    pub overflow: u64,
}

impl Record {
    /// A record that begins now. What is planned for the time of the warm-up is checked, but in no figure.
    pub fn new(warmup: Duration) -> Self {
        let of_program = OfProgram {
            count: 0,
            wrong: 0,
            total: Times::new(),
            wall: Times::new(),
        };
        let figures = Figures {
            counts: Counts::default(),
            measured: 0,
            total: Times::new(),
            late: Times::new(),
            queue: Times::new(),
            wall: Times::new(),
            cpu: Times::new(),
            programs: vec![of_program; Program::ALL.len()],
            errors: BTreeMap::new(),
            examples: Vec::new(),
            accepted: Vec::new(),
            unknown: Vec::new(),
            seconds: Vec::new(),
            events: Vec::new(),
            span: Duration::ZERO,
            warmup,
        };
        let inner = Inner {
            figures,
            now: Times::new(),
            last: None,
        };
        Self {
            begin: Instant::now(),
            warmup,
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// When it began.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job was due and is not sent.
    pub fn overflow(&self) {
        self.lock().figures.counts.overflow += 1;
    }

    /// Something happened now.
    pub fn event(&self, what: impl Into<String>) {
        let event = Event {
            at: self.begin.elapsed(),
            what: what.into(),
        };
        self.lock().figures.events.push(event);
    }

    /// So many jobs wait for a slot now.
    pub fn queued(&self, jobs: u64) {
        let mut inner = self.lock();
        inner.go_on(self.begin.elapsed());
        if let Some(second) = inner.figures.seconds.last_mut() {
            second.queued = Some(jobs);
        }
    }

    /// A job that was planned for `planned` and sent at `sent_at` has come to its end at `done`.
    pub fn job(
        &self,
        job: &Prepared,
        planned: Instant,
        sent_at: Instant,
        done: Instant,
        sent: Sent,
    ) {
        let warm = planned < self.begin + self.warmup;
        let mut inner = self.lock();
        // Two that end at one time may come here in the wrong order; a second that is over stays as it is.
        inner.go_on(done.saturating_duration_since(self.begin));
        inner.last = inner.last.max(Some(done));
        let counts = &mut inner.figures.counts;
        counts.sent += 1;
        counts.warm += u64::from(warm);
        // In a closed loop nothing is planned before it is sent.
        if !warm && sent_at != planned {
            inner
                .figures
                .late
                .note(sent_at.saturating_duration_since(planned));
        }
        for (kind, (count, text)) in sent.errors {
            inner.second().errors += count;
            let known = inner.figures.errors.entry(kind);
            known.or_insert_with(|| (0, text)).0 += count;
        }
        let total = done.saturating_duration_since(planned);
        match sent.outcome {
            Outcome::Finished(finished) => inner.finished(job, &finished, total, warm),
            Outcome::Accepted(id) => {
                inner.figures.counts.accepted += 1;
                inner.second().correct += 1;
                let accepted = Accepted {
                    number: job.number,
                    id,
                    digest: None,
                };
                inner.figures.accepted.push(accepted);
                inner.time(job, total, warm);
            }
            Outcome::Refused { .. } => inner.figures.counts.refused += 1,
            Outcome::GaveUp { job: known } => {
                inner.figures.counts.gave_up += 1;
                match known {
                    Some(id) => inner.figures.accepted.push(Accepted {
                        number: job.number,
                        id,
                        digest: None,
                    }),
                    None => inner.figures.unknown.push(job.number),
                }
            }
        }
    }

    /// Jobs that were turned away.
    pub fn refused(&self) -> u64 {
        self.lock().figures.counts.refused
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let mut inner = self.lock();
        inner.go_on(self.begin.elapsed());
        let Figures {
            counts,
            seconds,
            total,
            ..
        } = &inner.figures;
        let before = seconds.len().checked_sub(2).and_then(|n| seconds.get(n));
        Standing {
            ended: counts.correct + counts.wrong + counts.accepted,
            per_second: before.map_or(0, |second| second.correct + second.wrong),
            p50_ms: total.ms(0.5),
            p99_ms: total.ms(0.99),
            wrong: counts.wrong,
            errors: inner.figures.errors.values().map(|(count, _)| count).sum(),
            overflow: counts.overflow,
        }
    }

    /// What has been written down.
    pub fn figures(&self) -> Figures {
        let mut inner = self.lock();
        inner.close();
        let mut figures = inner.figures.clone();
        let measured_from = self.begin + self.warmup;
        figures.span = inner.last.map_or(Duration::ZERO, |last| {
            last.saturating_duration_since(measured_from)
        });
        figures
    }
}

impl Inner {
    /// Comes to the second of this time.
    fn go_on(&mut self, at: Duration) {
        let wanted = usize::try_from(at.as_secs()).unwrap_or(usize::MAX);
        if self.figures.seconds.len() <= wanted {
            self.close();
            self.now.clear();
            self.figures
                .seconds
                .resize_with(wanted.saturating_add(1), Second::default);
        }
    }

    /// Sums up the latencies of the second that is under way.
    fn close(&mut self) {
        let (p50, p99, max) = (self.now.ms(0.5), self.now.ms(0.99), self.now.max_ms());
        if self.now.len() > 0 {
            let second = self.second();
            (second.p50_ms, second.p99_ms, second.max_ms) = (p50, p99, max);
        }
    }

    fn second(&mut self) -> &mut Second {
        let seconds = &mut self.figures.seconds;
        if seconds.is_empty() {
            seconds.push(Second::default());
        }
        let last = seconds.len() - 1;
        &mut seconds[last]
    }

    fn time(&mut self, job: &Prepared, total: Duration, warm: bool) {
        self.now.note(total);
        if !warm {
            self.figures.measured += 1;
            self.figures.total.note(total);
            let program = &mut self.figures.programs[job.program.place()];
            program.count += 1;
            program.total.note(total);
        }
    }

    fn finished(&mut self, job: &Prepared, finished: &Finished, total: Duration, warm: bool) {
        let figures = &mut self.figures;
        figures.accepted.push(Accepted {
            number: job.number,
            id: finished.id,
            digest: Some(finished.digest()),
        });
        figures.counts.retried += u64::from(finished.attempts > 1);
        if let Err(wrong) = job.expected.check(finished) {
            figures.counts.wrong += 1;
            figures.programs[job.program.place()].wrong += 1;
            if figures.examples.len() < EXAMPLES {
                let (number, id, program) = (job.number, finished.id, job.program.name());
                let example = format!("job {number} ({program}, {id}): {wrong}");
                figures.examples.push(example);
            }
            self.second().wrong += 1;
            return;
        }
        figures.counts.correct += 1;
        if !warm {
            let ms = Duration::from_millis;
            if let Some(queue) = finished.queue_ms {
                figures.queue.note(ms(queue));
            }
            figures.wall.note(ms(finished.wall_ms));
            figures.cpu.note(ms(finished.cpu_ms));
            figures.programs[job.program.place()]
                .wall
                .note(ms(finished.wall_ms));
        }
        self.second().correct += 1;
        self.time(job, total, warm);
    }
}

#[cfg(test)]
mod tests {
    use super::super::mix::Jobs;
    use super::*;

    fn finished(stdout: &str) -> Sent {
        let finished = Finished {
            id: uuid::Uuid::now_v7(),
            verdict: "accepted".to_owned(),
            stdout: stdout.to_owned(),
            attempts: 1,
            queue_ms: Some(2),
            wall_ms: 20,
            cpu_ms: 15,
            ..Finished::default()
        };
        of(Outcome::Finished(finished))
    }

    fn of(outcome: Outcome) -> Sent {
        Sent {
            outcome,
            accepted_by: None,
            errors: BTreeMap::new(),
        }
    }

    #[test]
    fn latency_counts_from_the_planned_arrival_and_lateness_apart() {
        let record = Record::new(Duration::ZERO);
        let job = Jobs::new(Mix::only(Program::Hello), 1, "run".into()).job(0);
        let planned = record.begin();
        let sent_at = planned + Duration::from_millis(400);
        let done = sent_at + Duration::from_millis(100);
        record.job(&job, planned, sent_at, done, finished("hello\n"));
        let figures = record.figures();
        assert_eq!(figures.total.ms(1.0).round() as u64, 500);
        assert_eq!(figures.late.ms(1.0).round() as u64, 400);
        assert_eq!(figures.queue.ms(0.5).round() as u64, 2);
        assert_eq!(figures.span, Duration::from_millis(500));
        assert_eq!(figures.seconds[0].correct, 1);
    }

    #[test]
    fn a_warm_up_is_checked_and_in_no_figure() {
        let record = Record::new(Duration::from_secs(1));
        let jobs = Jobs::new(Mix::only(Program::Hello), 1, "run".into());
        let at = |ms| record.begin() + Duration::from_millis(ms);
        record.job(&jobs.job(0), at(0), at(0), at(10), finished("wrong"));
        record.job(&jobs.job(1), at(0), at(0), at(20), finished("hello\n"));
        record.job(
            &jobs.job(2),
            at(1000),
            at(1000),
            at(2500),
            finished("hello\n"),
        );
        let figures = record.figures();
        let expected = Counts {
            sent: 3,
            warm: 2,
            correct: 2,
            wrong: 1,
            ..Counts::default()
        };
        assert_eq!(figures.counts, expected);
        assert_eq!((figures.measured, figures.total.len()), (1, 1));
        assert_eq!(figures.span, Duration::from_millis(1500));
        assert!(
            figures.examples[0].contains("job 0 (hello"),
            "{:?}",
            figures.examples
        );
        let by_second: Vec<_> = figures
            .seconds
            .iter()
            .map(|s| (s.correct, s.wrong))
            .collect();
        assert_eq!(by_second, [(1, 1), (0, 0), (1, 0)]);
        assert_eq!(figures.seconds[0].max_ms.round() as u64, 20);
        assert_eq!(figures.seconds[2].p50_ms.round() as u64, 1500);
        assert_eq!(
            figures.accepted.len(),
            3,
            "all of them are looked up at the end"
        );
    }

    #[test]
    fn jobs_without_an_answer_are_kept_apart_by_what_is_known_of_them() {
        let record = Record::new(Duration::ZERO);
        let jobs = Jobs::new(Mix::only(Program::Hello), 1, "run".into());
        let now = record.begin();
        let mut lost = of(Outcome::GaveUp { job: None });
        lost.errors
            .insert("no connection".into(), (3, "node 1".into()));
        record.job(&jobs.job(0), now, now, now, lost);
        let id = uuid::Uuid::now_v7();
        record.job(
            &jobs.job(1),
            now,
            now,
            now,
            of(Outcome::GaveUp { job: Some(id) }),
        );
        let retry_after = Duration::from_secs(1);
        record.job(
            &jobs.job(2),
            now,
            now,
            now,
            of(Outcome::Refused { retry_after }),
        );
        record.overflow();
        let figures = record.figures();
        assert_eq!(figures.unknown, [0]);
        assert_eq!(figures.accepted[0].id, id);
        assert_eq!(figures.errors["no connection"], (3, "node 1".to_owned()));
        let Counts {
            sent,
            gave_up,
            refused,
            overflow,
            ..
        } = figures.counts;
        assert_eq!((sent, gave_up, refused, overflow), (3, 2, 1, 1));
        assert_eq!(figures.total.len(), 0);
    }

    use super::super::mix::Mix;
}
