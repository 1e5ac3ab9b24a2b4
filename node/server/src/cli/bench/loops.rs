//! The two ways to put load on a cluster.
//!
//! *Closed*: so many clients, each of which sends its next job when the last one has ended. A slow cluster is asked less.
//! *Open*: jobs come at a fixed rate, whatever the cluster does. Each has a planned arrival, and its latency counts from
//! there, so that a pause of the cluster, or of this program, is in the latency of every job that should have come
//! meanwhile ("coordinated omission" is what happens otherwise).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::{Nodes, Outcome, Sent, Wanted, submit};
use super::mix::{Jobs, Prepared};
use super::record::Record;

/// Arrivals that wait between the clock and the sender: more than a day of them never do.
const ARRIVALS: usize = 1 << 16;
/// The longest sleep of the clock, so that it sees the end.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
/// The longest pause of a client that was turned away.
const LONGEST_REFUSAL: Duration = Duration::from_secs(1);

/// When a load ends.
#[derive(Clone, Debug)]
pub struct End {
    /// No job is planned from then on.
    pub at: Option<Instant>,
    /// No more jobs than these.
    pub jobs: Option<u64>,
    /// It was asked to end.
    pub asked: CancellationToken,
}

impl End {
    fn over(&self, now: Instant, number: u64) -> bool {
        self.asked.is_cancelled()
            || self.at.is_some_and(|at| now >= at)
            || self.jobs.is_some_and(|jobs| number >= jobs)
    }
}

/// Sends one job.
pub trait Send1: Send + Sync + 'static {
    /// Sends it, and waits for what is wanted of it.
    fn send(&self, number: u64) -> impl Future<Output = (Prepared, Sent)> + Send;
}

/// Sends jobs to nodes, round robin.
#[derive(Clone, Debug)]
pub struct Sender {
    /// Where to.
    pub nodes: Arc<Nodes>,
    /// What.
    pub jobs: Arc<Jobs>,
    /// Wait for their end.
    pub end: bool,
    /// How long one may take.
    pub patience: Duration,
}

impl Send1 for Sender {
    async fn send(&self, number: u64) -> (Prepared, Sent) {
        let job = self.jobs.job(number);
        let first = usize::try_from(number % self.nodes.len() as u64).unwrap_or(0);
        let wanted = Wanted {
            first,
            end: self.end,
            patience: self.patience,
        };
        let key = self.jobs.key(number);
        let sent = submit(&self.nodes, &job, &key, wanted).await;
        (job, sent)
    }
}

/// So many clients, until the end; returns when their last jobs have ended.
pub async fn closed(sender: Arc<impl Send1>, clients: usize, end: &End, record: &Record) {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (sender, next, record, end) =
            (sender.clone(), next.clone(), record.clone(), end.clone());
        tasks.spawn(async move {
            loop {
                let planned = Instant::now();
                let number = next.fetch_add(1, Ordering::Relaxed);
                if end.over(planned, number) {
                    return;
                }
                let (job, sent) = sender.send(number).await;
                let pause = match &sent.outcome {
                    Outcome::Refused { retry_after } => Some((*retry_after).min(LONGEST_REFUSAL)),
                    _ => None,
                };
                record.job(&job, planned, planned, Instant::now(), sent);
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// When the jobs of an open loop are due.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    begin: Instant,
    rate: f64,
}

impl Schedule {
    /// So many a second, the first one at once.
    pub fn new(begin: Instant, rate: f64) -> Self {
        Self { begin, rate }
    }

    /// When this job is due. Not a sum of pauses: an error would add up.
    pub fn planned(&self, number: u64) -> Instant {
        self.begin + Duration::from_secs_f64(number as f64 / self.rate)
    }
}

/// Jobs at a fixed rate, until the end. At most `most` are open at one time: what is due beyond that is not sent, and
/// counted. Returns when the last job that was sent has ended.
pub async fn open(
    sender: Arc<impl Send1>,
    schedule: Schedule,
    most: usize,
    end: &End,
    record: &Record,
) {
    let (arrivals, mut due) = mpsc::channel(ARRIVALS);
    let clock = {
        let end = end.clone();
        // A thread of its own: timers of the runtime have a grain of a millisecond, and wait for their turn.
        std::thread::spawn(move || tick(schedule, &end, &arrivals))
    };
    let open = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            arrival = due.recv() => {
                let Some((number, planned)) = arrival else { break };
                if open.load(Ordering::Acquire) >= most {
                    record.overflow();
                    continue;
                }
                open.fetch_add(1, Ordering::AcqRel);
                let (sender, open, record) = (sender.clone(), open.clone(), record.clone());
                tasks.spawn(async move {
                    let sent_at = Instant::now();
                    let (job, sent) = sender.send(number).await;
                    // Before the record, so that whoever sees the record sees the place that has become free.
                    open.fetch_sub(1, Ordering::AcqRel);
                    record.job(&job, planned, sent_at, Instant::now(), sent);
                });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
    let _ = tokio::task::spawn_blocking(move || clock.join()).await;
}

/// Tells when jobs are due, until the end.
fn tick(schedule: Schedule, end: &End, arrivals: &mpsc::Sender<(u64, Instant)>) {
    for number in 0.. {
        let planned = schedule.planned(number);
        loop {
            let now = Instant::now();
            if end.over(planned.max(now), number) {
                return;
            }
            let left = planned.saturating_duration_since(now);
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(LONGEST_SLEEP));
        }
        if arrivals.blocking_send((number, planned)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::sync::watch;

    use super::super::client::Finished;
    use super::super::mix::{Mix, Program};
    use super::*;

    /// A cluster that answers rightly, once it is let to.
    struct Gate {
        jobs: Jobs,
        opened: watch::Receiver<bool>,
        begun: AtomicUsize,
    }

    impl Gate {
        fn new(opened: watch::Receiver<bool>) -> Arc<Self> {
            Arc::new(Self {
                jobs: Jobs::new(Mix::only(Program::Hello), 1, "run".into()),
                opened,
                begun: AtomicUsize::new(0),
            })
        }
    }

    impl Send1 for Gate {
        async fn send(&self, number: u64) -> (Prepared, Sent) {
            self.begun.fetch_add(1, Ordering::AcqRel);
            let _ = self.opened.clone().wait_for(|opened| *opened).await;
            let finished = Finished {
                verdict: "accepted".to_owned(),
                stdout: "hello\n".to_owned(),
                attempts: 1,
                ..Finished::default()
            };
            let sent = Sent {
                outcome: Outcome::Finished(finished),
                accepted_by: None,
                errors: BTreeMap::new(),
            };
            (self.jobs.job(number), sent)
        }
    }

    fn end(jobs: u64) -> End {
        End {
            at: None,
            jobs: Some(jobs),
            asked: CancellationToken::new(),
        }
    }

    #[test]
    fn arrivals_do_not_drift() {
        let begin = Instant::now();
        let schedule = Schedule::new(begin, 300.0);
        assert_eq!(schedule.planned(0), begin);
        let hour = schedule.planned(300 * 3600) - begin;
        assert!(hour.abs_diff(Duration::from_secs(3600)) < Duration::from_micros(1));
    }

    /// A cluster that stops for a while: what was due meanwhile is either open and as late as it was kept waiting, or
    /// not sent and counted. Nothing is missing.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_pause_of_the_cluster_is_in_the_latency_of_all_that_was_due() {
        let (let_go, opened) = watch::channel(false);
        let gate = Gate::new(opened);
        let record = Record::new(Duration::ZERO);
        let schedule = Schedule::new(record.begin(), 1000.0);
        let (sender, writer) = (gate.clone(), record.clone());
        let run = tokio::spawn(async move { open(sender, schedule, 8, &end(20), &writer).await });
        // All 20 are due, 8 of them are open.
        while record.figures().counts.overflow < 12 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(gate.begun.load(Ordering::Acquire), 8);
        let held_until = Instant::now();
        let_go.send_replace(true);
        run.await.unwrap();
        let figures = record.figures();
        let counts = figures.counts;
        assert_eq!((counts.sent, counts.correct, counts.overflow), (8, 8, 12));
        // The first 8 were due within 8 ms, and none could end before the pause did.
        let least = held_until - schedule.planned(7);
        assert!(
            figures.total.min_ms() >= least.as_secs_f64() * 999.0,
            "{} ms, at least {least:?}",
            figures.total.min_ms()
        );
        assert!(figures.total.max_ms() >= figures.late.max_ms());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_open_loop_sends_every_job_when_it_can() {
        let (_, opened) = watch::channel(true);
        let record = Record::new(Duration::ZERO);
        let schedule = Schedule::new(record.begin(), 10_000.0);
        open(Gate::new(opened), schedule, 1000, &end(500), &record).await;
        let counts = record.figures().counts;
        assert_eq!(
            (counts.sent, counts.correct, counts.overflow),
            (500, 500, 0)
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_closed_loop_has_no_more_jobs_open_than_clients() {
        let (let_go, opened) = watch::channel(false);
        let gate = Gate::new(opened);
        let record = Record::new(Duration::ZERO);
        let (sender, writer) = (gate.clone(), record.clone());
        let run = tokio::spawn(async move { closed(sender, 3, &end(10), &writer).await });
        while gate.begun.load(Ordering::Acquire) < 3 {
            tokio::task::yield_now().await;
        }
        let_go.send_replace(true);
        run.await.unwrap();
        assert_eq!(gate.begun.load(Ordering::Acquire), 10);
        assert_eq!(record.figures().counts.correct, 10);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn both_loops_end_when_they_are_asked_to() {
        let (_, opened) = watch::channel(true);
        let record = Record::new(Duration::ZERO);
        let end = End {
            at: None,
            jobs: None,
            asked: CancellationToken::new(),
        };
        end.asked.cancel();
        closed(Gate::new(opened.clone()), 4, &end, &record).await;
        let schedule = Schedule::new(record.begin(), 0.001);
        open(Gate::new(opened), schedule, 4, &end, &record).await;
        assert_eq!(record.figures().counts.sent, 0);
    }
}
