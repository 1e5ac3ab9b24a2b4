//! Telling receivers that jobs have finished: the loop on the leader that sends what the ledger says is due.
//!
//! What is due, and how often it was tried, stands in the ledger; here is only what is under way. So a new leader begins
//! where the old one was, and sends once more what the old one had not yet reported: a receiver may hear of a job twice,
//! never not at all as long as it answers one of the attempts. Receivers are kept apart by their host: one that is slow or
//! dead has its own few places, and its deliveries wait for each other only.

mod sender;
mod sign;
mod target;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use quorun_consensus::Handle;
use quorun_ledger::{
    Command, Completion, Delivery, DeliveryAttempt, DeliveryState, Due, Job, JobId, JobState, Reply,
};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::http::job_json;
use crate::jobs::Details;
use crate::ledger::{self, ReadFailed};
use crate::scheduler::now_ms;
pub use sender::Sender;
pub use target::is_public;

/// Deliveries under way at one time.
const AT_ONCE: usize = 256;
/// Those to one host.
const AT_ONCE_TO_ONE: usize = 4;
/// What their jobs may hold all together, KiB: they are in memory while they are sent.
const KIB_AT_ONCE: usize = 64 << 10;
/// Deliveries that are looked at in one turn; the next turn goes on behind them, so that those to a host that takes none hide
/// no others.
const LOOK: usize = 20_000;
/// Deliveries to one host that wait in memory, and to all of them; the others are found again in a later turn.
const WAITING_FOR_ONE: usize = 1_000;
const WAITING: usize = 100_000;
/// Pause between two looks, unless something becomes due before.
const EVERY: Duration = Duration::from_secs(1);
/// Pause behind a look for each delivery that it found.
const REST: Duration = Duration::from_micros(50);
/// How long the report of an attempt may take.
const REPORT: Duration = Duration::from_secs(10);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
/// A job with a callback is kept for at least so long: until its delivery has been tried as often as it may be, which takes
/// some two hours at the most.
pub const KEPT: Duration = Duration::from_secs(3 * 60 * 60);

/// What the loop works with.
pub struct Callbacks {
    /// The cluster.
    pub consensus: Handle,
    /// What sends.
    pub sender: Sender,
    /// Told when something has become due.
    pub news: Arc<Notify>,
    /// The pause after the first attempt; each further one is three times as long.
    pub backoff: Duration,
}

/// What waits here to be sent, and what is under way.
#[derive(Default)]
struct Hand {
    /// Everything that is in `hosts` or under way.
    taken: HashSet<JobId>,
    hosts: HashMap<String, Host>,
    /// Hosts that something can be sent to, in turn.
    ready: VecDeque<String>,
    sending: usize,
}

/// A delivery that is no longer under way.
struct Sent {
    job: JobId,
    host: String,
    /// In what time it is to be sent again, if it is.
    again: Option<Duration>,
}

#[derive(Default)]
struct Host {
    waiting: VecDeque<JobId>,
    sending: usize,
    /// It stands among those that are ready.
    ready: bool,
}

impl Callbacks {
    /// Runs until the node ends.
    pub async fn run(self) {
        let this = Arc::new(self);
        let mut status = this.consensus.status();
        let mut hand = Hand::default();
        let mut sending: JoinSet<Sent> = JoinSet::new();
        let weight = Arc::new(Semaphore::new(KIB_AT_ONCE));
        let mut next = Instant::now();
        let mut rest = next;
        // The last that was looked at, while there is more behind it.
        let mut seen = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = this.news.notified() => {
                    if Instant::now() < rest {
                        next = next.min(rest);
                        continue;
                    }
                }
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(sent) = sending.join_next() => {
                    if let Ok(Sent { job, host, again }) = sent {
                        hand.sent(job, &host);
                        if let Some(again) = again {
                            next = next.min(Instant::now() + again);
                        }
                    }
                    // What waits for this host's place goes first; the ledger need not be asked for it.
                    this.send(&mut hand, &mut sending, &weight);
                    continue;
                }
            }
            next = Instant::now() + EVERY;
            if !status.borrow_and_update().leading {
                hand.put_down();
                seen = None;
                continue;
            }
            match this.look(seen.clone()).await {
                Ok((due, then)) => {
                    seen = due.last().filter(|_| due.len() == LOOK).cloned();
                    // The more there is to look at, the less often.
                    rest = Instant::now()
                        + REST.saturating_mul(u32::try_from(due.len()).unwrap_or(u32::MAX));
                    for Due { job, host, .. } in due {
                        hand.take(job, host);
                    }
                    if let Some(then) = then {
                        next = next.min(Instant::now() + then);
                    }
                }
                Err(error) => warn!(%error, "what is due could not be read"),
            }
            this.send(&mut hand, &mut sending, &weight);
        }
    }

    /// What is due behind what has been seen, and how long until there is more.
    async fn look(&self, seen: Option<Due>) -> Result<(Vec<Due>, Option<Duration>), ReadFailed> {
        // Deliveries are stamped with the ledger's time, which is not that of this node's own clock.
        let now = self.consensus.time_ms();
        ledger::read(&self.consensus, move |view| {
            let now = now.max(view.counters()?.time_ms);
            let due = view.due(seen.as_ref(), now, LOOK)?;
            let then = match view.next_due()? {
                Some(at) if at > now => Some(Duration::from_millis(at - now)),
                _ => None,
            };
            Ok((due, then))
        })
        .await
    }

    fn send(
        self: &Arc<Self>,
        hand: &mut Hand,
        sending: &mut JoinSet<Sent>,
        weight: &Arc<Semaphore>,
    ) {
        for (job, host) in hand.next() {
            let (this, weight) = (Arc::clone(self), Arc::clone(weight));
            sending.spawn(async move {
                // Whatever happens, the place is free again.
                let delivered = std::panic::AssertUnwindSafe(this.deliver(job, &weight));
                let again = match delivered.catch_unwind().await {
                    Ok(Ok(again)) => again,
                    Ok(Err(error)) => {
                        warn!(%job, %error, "a delivery could not be read");
                        None
                    }
                    Err(_) => {
                        warn!(%job, "a delivery ended with a bug of this node");
                        None
                    }
                };
                Sent { job, host, again }
            });
        }
    }

    /// Sends one delivery and reports how it went; says in what time it is to be sent again, if it is.
    async fn deliver(&self, id: JobId, weight: &Semaphore) -> Result<Option<Duration>, ReadFailed> {
        let Some(job) = ledger::read(&self.consensus, move |view| view.job(id)).await? else {
            return Ok(None);
        };
        // Its output is in memory from here on, once as it is and once as text.
        let kib = u32::try_from(job.weight / 512 + 1).unwrap_or(u32::MAX);
        let kib = kib.min(u32::try_from(KIB_AT_ONCE).unwrap_or(u32::MAX));
        let Ok(_room) = weight.acquire_many(kib).await else {
            return Ok(None);
        };
        let read = ledger::read(&self.consensus, move |view| {
            let delivery = view.delivery(id)?;
            let callback = view.spec(id)?.and_then(|spec| spec.callback);
            Ok((delivery, callback, view.output(id)?.unwrap_or_default()))
        });
        let (delivery, callback, output) = read.await?;
        let (Some(delivery), Some(callback)) = (delivery, callback) else {
            return Ok(None);
        };
        if delivery.state != DeliveryState::Pending || job.state != JobState::Finished {
            return Ok(None);
        }
        let attempt = u32::try_from(delivery.attempts.len() + 1).unwrap_or(u32::MAX);
        let body = body(job, output, delivery);
        let sent = self.sender.send(&callback, id, attempt, body).await;
        let retry_ms = match &sent {
            Err(error) if error.is_final() => None,
            _ => Some(pause_ms(self.backoff, attempt, fastrand::f64())),
        };
        let outcome = DeliveryAttempt {
            at_ms: now_ms(),
            status: sent.as_ref().ok().copied(),
            error: match &sent {
                Ok(status) if !(200..300).contains(status) => {
                    Some(format!("the receiver answered {status}"))
                }
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            },
        };
        let delivered = outcome.delivered();
        let (status, error) = (outcome.status, outcome.error.clone());
        let command = Command::CallbackTried {
            job: id,
            attempt,
            outcome,
            retry_ms,
        };
        let reply = self
            .consensus
            .propose(command, Instant::now() + REPORT)
            .await;
        match reply {
            Ok(Reply::Completed(Completion::Committed)) => {
                info!(job = %id, attempt, delivered, status, error, "callback tried");
            }
            // Another leader has reported the same attempt, or whoever leads next sends it again.
            other => info!(job = %id, attempt, ?other, "the attempt of a callback was not counted"),
        }
        Ok(retry_ms.filter(|_| !delivered).map(Duration::from_millis))
    }
}

/// The finished job, as `GET /v1/jobs/{id}` shows it.
fn body(job: Job, output: quorun_ledger::Output, delivery: Delivery) -> Vec<u8> {
    let details = Details {
        job,
        output,
        waits: None,
        callback: Some(delivery),
    };
    job_json(&details).to_string().into_bytes()
}

/// The pause behind an attempt: three times as long each time, within bounds, and a little more or less than that, so that
/// what failed together does not come again together. `chance` is from 0 to 1.
fn pause_ms(backoff: Duration, attempt: u32, chance: f64) -> u64 {
    let times = 3_u32.saturating_pow(attempt.saturating_sub(1));
    let pause = backoff.saturating_mul(times).min(LONGEST_PAUSE);
    let pause = pause.mul_f64(0.8 + 0.4 * chance);
    u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)
}

impl Hand {
    /// Takes a delivery to its host's others, unless it is there already, or too many are.
    fn take(&mut self, job: JobId, host: String) {
        let waiting = self.hosts.get(&host).map_or(0, |host| host.waiting.len());
        if waiting >= WAITING_FOR_ONE || self.taken.len() >= WAITING || !self.taken.insert(job) {
            return;
        }
        let all = self.hosts.entry(host.clone()).or_default();
        all.waiting.push_back(job);
        self.offer(host);
    }

    /// Puts a host behind the others that are ready, if something can be sent to it.
    fn offer(&mut self, name: String) {
        if let Some(host) = self.hosts.get_mut(&name)
            && !host.ready
            && host.sending < AT_ONCE_TO_ONE
            && !host.waiting.is_empty()
        {
            host.ready = true;
            self.ready.push_back(name);
        }
    }

    /// What may be sent now, one for each host in turn; it counts as under way.
    fn next(&mut self) -> Vec<(JobId, String)> {
        let mut next = Vec::new();
        while self.sending < AT_ONCE
            && let Some(name) = self.ready.pop_front()
        {
            let Some(host) = self.hosts.get_mut(&name) else {
                continue;
            };
            host.ready = false;
            if let Some(job) = host.waiting.pop_front() {
                host.sending += 1;
                self.sending += 1;
                next.push((job, name.clone()));
            }
            self.offer(name);
        }
        next
    }

    /// A delivery is no longer under way. If it is due again, or still, the ledger says so.
    fn sent(&mut self, job: JobId, name: &str) {
        self.taken.remove(&job);
        self.sending -= 1;
        if let Some(host) = self.hosts.get_mut(name) {
            host.sending -= 1;
            if host.sending == 0 && host.waiting.is_empty() {
                self.hosts.remove(name);
            }
        }
        self.offer(name.to_owned());
    }

    /// Another node leads: what is not under way is its business.
    fn put_down(&mut self) {
        for host in self.hosts.values_mut() {
            host.ready = false;
            for job in host.waiting.drain(..) {
                self.taken.remove(&job);
            }
        }
        self.ready.clear();
        self.hosts.retain(|_, host| host.sending > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u64) -> JobId {
        JobId::from_slice(&u128::from(number).to_be_bytes()).unwrap()
    }

    #[test]
    fn a_host_that_takes_none_leaves_the_places_of_the_others() {
        let mut hand = Hand::default();
        for number in 0..1000 {
            hand.take(job(number), "dead".to_owned());
        }
        hand.take(job(0), "dead".to_owned());
        for number in 1000..1010 {
            hand.take(job(number), format!("host{number}"));
        }
        let first = hand.next();
        let dead = first.iter().filter(|(_, host)| host == "dead").count();
        assert_eq!((first.len(), dead), (10 + AT_ONCE_TO_ONE, AT_ONCE_TO_ONE));
        assert!(hand.next().is_empty());
        for (job, host) in first.iter().filter(|(_, host)| host != "dead") {
            hand.sent(*job, host);
        }
        assert!(hand.next().is_empty(), "the dead host has no more places");
        assert_eq!(hand.hosts.len(), 1);
        // It is taken anew once it is due again.
        let (again, host) = first.iter().find(|(_, host)| host != "dead").unwrap();
        hand.take(*again, host.clone());
        assert_eq!(hand.next().len(), 1);
        hand.put_down();
        assert_eq!(hand.taken.len(), AT_ONCE_TO_ONE + 1);
        for number in 2000..3000 {
            hand.take(job(number), format!("host{number}"));
        }
        hand.next();
        assert_eq!(hand.sending, AT_ONCE);
    }

    #[test]
    fn each_host_has_its_turn_and_none_fills_the_memory() {
        let mut hand = Hand::default();
        for number in 0..10_000 {
            hand.take(job(number), "dead".to_owned());
        }
        assert_eq!(hand.taken.len(), WAITING_FOR_ONE);
        // More hosts that take a long time than there are places.
        for number in 0..1_000 {
            hand.take(job(20_000 + number), format!("slow{number}"));
        }
        let mut told = HashSet::new();
        for _ in 0..8 {
            let now = hand.next();
            told.extend(now.iter().map(|(_, host)| host.clone()));
            for (job, host) in now {
                hand.sent(job, &host);
            }
        }
        assert_eq!(told.len(), 1_001);
        for number in 0..2 * WAITING {
            let number = number as u64;
            hand.take(job(100_000 + number), format!("other{number}"));
        }
        assert_eq!(hand.taken.len(), WAITING);
    }

    #[test]
    fn pauses_grow_within_bounds() {
        let second = Duration::from_secs(1);
        assert_eq!(pause_ms(second, 1, 0.5), 1_000);
        assert_eq!(pause_ms(second, 3, 0.5), 9_000);
        assert_eq!(
            (pause_ms(second, 1, 0.0), pause_ms(second, 1, 1.0)),
            (800, 1_200)
        );
        assert_eq!(pause_ms(second, 40, 1.0), 72 * 60 * 1_000);
        // All of them together are over before the job may go.
        let all: u64 = (1..8)
            .map(|n| pause_ms(Duration::from_secs(5), n, 1.0))
            .sum();
        assert!(
            Duration::from_millis(all) < KEPT - Duration::from_secs(600),
            "{all} ms"
        );
    }
}
