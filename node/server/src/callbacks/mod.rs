//! Telling receivers that jobs have finished: the loop on the leader that sends what the ledger says is due.
//!
//! What is due, and how often it was tried, stands in the ledger; here is only what is under way. So a new leader begins
//! where the old one was, and sends once more what the old one had not yet reported: a receiver may hear of a job twice,
//! never not at all as long as it answers one of the attempts. Owners are kept apart, and of each owner the hosts (`hand`):
//! one that is slow or dead has its own few places, and its deliveries wait for each other only.

pub mod figures;
mod hand;
mod lookup;
mod places;
mod sender;
mod sign;
mod target;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use quorun_consensus::Handle;
use quorun_ledger::callback::MAX_ATTEMPTS;
use quorun_ledger::{
    Command, Completion, Delivery, DeliveryAttempt, DeliveryState, Due, Job, JobId, JobState, Reply,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::http::job_json;
use crate::jobs::Details;
use crate::ledger::{self, ReadFailed};
use crate::scheduler::now_ms;
use figures::{Attempt, Figures};
use hand::{Hand, Owner, Turn};
use places::Places;
use sender::Receiver;
pub use sender::{Sender, trusted};
pub use target::is_public;

/// What the jobs of all deliveries under way may hold, KiB, and those of one owner: they are in memory while they are sent.
const KIB_AT_ONCE: u32 = 64 << 10;
const KIB_OF_OWNER: u32 = 32 << 10;
/// Deliveries that are looked at in one turn; the next turn goes on behind them, so that those to a host that takes none hide
/// no others.
const LOOK: usize = 20_000;
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
    /// What is counted.
    pub figures: Figures,
}

/// A delivery that is no longer under way.
struct Sent {
    turn: Turn,
    /// In what time it is to be sent again, if it is.
    again: Option<Duration>,
}

/// Room for the jobs that are in memory.
struct Room {
    all: Semaphore,
    owners: Places<Owner>,
}

impl Room {
    fn new() -> Self {
        Self {
            all: Semaphore::new(KIB_AT_ONCE as usize),
            owners: Places::new(KIB_OF_OWNER),
        }
    }

    /// Finds the receiver of a delivery, and then takes room for its job, in this order: a name that nobody answers for half a
    /// minute would otherwise hold room meanwhile, and a few owners with such names all that there is. What is returned beside
    /// the receiver is the room; `None` does not happen.
    async fn enter(
        &self,
        sender: &Sender,
        url: &str,
        owner: &Owner,
        kib: u32,
    ) -> Result<(Receiver, Option<Held<'_>>), sender::Error> {
        let receiver = sender.find(url, owner).await?;
        let kib = kib.min(KIB_OF_OWNER);
        let of_owner = self.owners.take(owner.clone(), kib).await;
        let of_all = self.all.acquire_many(kib).await.ok();
        let held = of_owner.zip(of_all);
        Ok((receiver, held))
    }
}

/// Room that is taken.
type Held<'a> = (OwnedSemaphorePermit, SemaphorePermit<'a>);

impl Callbacks {
    /// Runs until the node ends.
    pub async fn run(self) {
        let this = Arc::new(self);
        let mut status = this.consensus.status();
        let mut hand = Hand::default();
        let mut sending: JoinSet<Sent> = JoinSet::new();
        let room = Arc::new(Room::new());
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
                    if let Ok(Sent { turn, again }) = sent {
                        hand.sent(&turn);
                        if let Some(again) = again {
                            next = next.min(Instant::now() + again);
                        }
                    }
                    // What waits for this host's place goes first; the ledger need not be asked for it.
                    this.send(&mut hand, &mut sending, &room);
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
                    match this.owned(due, &hand).await {
                        Ok(due) => {
                            for Turn { job, owner, host } in due {
                                hand.take(job, owner, host);
                            }
                        }
                        Err(error) => warn!(%error, "whose the jobs are could not be read"),
                    }
                    if let Some(then) = then {
                        next = next.min(Instant::now() + then);
                    }
                }
                Err(error) => warn!(%error, "what is due could not be read"),
            }
            this.send(&mut hand, &mut sending, &room);
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

    /// Whose those are that are not in hand.
    async fn owned(&self, mut due: Vec<Due>, hand: &Hand) -> Result<Vec<Turn>, ReadFailed> {
        due.retain(|due| !hand.has(&due.job));
        if due.is_empty() {
            return Ok(Vec::new());
        }
        ledger::read(&self.consensus, move |view| {
            let mut turns = Vec::with_capacity(due.len());
            for Due { job, host, .. } in due {
                // One that has expired meanwhile has nothing to tell.
                if let Some(Job { owner, .. }) = view.job(job)? {
                    turns.push(Turn { job, owner, host });
                }
            }
            Ok(turns)
        })
        .await
    }

    fn send(self: &Arc<Self>, hand: &mut Hand, sending: &mut JoinSet<Sent>, room: &Arc<Room>) {
        for turn in hand.next() {
            let (this, room) = (Arc::clone(self), Arc::clone(room));
            sending.spawn(async move {
                let job = turn.job;
                // Whatever happens, the place is free again.
                let delivered = std::panic::AssertUnwindSafe(this.deliver(job, &room));
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
                Sent { turn, again }
            });
        }
        self.figures.sending(hand.sending());
    }

    /// Sends one delivery and reports how it went; says in what time it is to be sent again, if it is.
    async fn deliver(&self, id: JobId, room: &Room) -> Result<Option<Duration>, ReadFailed> {
        let read = ledger::read(&self.consensus, move |view| {
            Ok((view.job(id)?, view.delivery(id)?))
        });
        let (Some(job), Some(delivery)) = read.await? else {
            return Ok(None);
        };
        if job.state != JobState::Finished || delivery.state != DeliveryState::Pending {
            return Ok(None);
        }
        let attempt = number(&delivery);
        // Its output is in memory once there is room, once as it is and once as text.
        let kib = u32::try_from(job.weight / 512 + 1).unwrap_or(u32::MAX);
        let owner = job.owner.clone();
        let sent = match room.enter(&self.sender, &delivery.url, &owner, kib).await {
            Err(error) => Err(error),
            Ok((_, None)) => return Ok(None),
            Ok((receiver, Some(_held))) => {
                let read = ledger::read(&self.consensus, move |view| {
                    let asked = view
                        .spec(id)?
                        .and_then(|spec| Some((spec.callback?, spec.compile_args)));
                    let output = view.output(id)?.unwrap_or_default();
                    Ok((view.delivery(id)?, asked, output))
                });
                let (Some(delivery), Some((callback, compile_args)), output) = read.await? else {
                    return Ok(None);
                };
                // Another node may have led meanwhile, and sent it.
                if delivery.state != DeliveryState::Pending || number(&delivery) != attempt {
                    return Ok(None);
                }
                let body = body(job, output, delivery, compile_args);
                let sent = self.sender.send(receiver, &callback, id, attempt, body);
                sent.await
            }
        };
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
                self.figures.tried(match retry_ms {
                    _ if delivered => Attempt::Delivered,
                    Some(_) if (attempt as usize) < MAX_ATTEMPTS => Attempt::Failed,
                    _ => Attempt::GivenUp,
                });
                info!(job = %id, attempt, delivered, status, error, "callback tried");
            }
            // Another leader has reported the same attempt, or whoever leads next sends it again.
            other => info!(job = %id, attempt, ?other, "the attempt of a callback was not counted"),
        }
        Ok(retry_ms.filter(|_| !delivered).map(Duration::from_millis))
    }
}

/// The number of the attempt that is next.
fn number(delivery: &Delivery) -> u32 {
    u32::try_from(delivery.attempts.len() + 1).unwrap_or(u32::MAX)
}

/// The finished job, as `GET /v1/jobs/{id}` shows it.
fn body(
    job: Job,
    output: quorun_ledger::Output,
    delivery: Delivery,
    compile_args: Vec<String>,
) -> Vec<u8> {
    let details = Details {
        job,
        output,
        waits: None,
        callback: Some(delivery),
        compile_args,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_nobody_answers_take_no_room_from_others() {
        // Opened when the test has seen what it wanted.
        let (open, opened) = std::sync::mpsc::channel::<()>();
        let opened = std::sync::Mutex::new(opened);
        let find = move |name: &str| {
            if name.starts_with("hangs") {
                // Returns when nobody is left who could send.
                let _ = opened.lock().map(|opened| opened.recv());
            }
            Ok(vec![std::net::SocketAddr::from(([8, 8, 8, 8], 0))])
        };
        // Nobody waits for as long as that here.
        let patience = Duration::from_secs(3600);
        let figures = Figures::default();
        let lookups = lookup::Lookups::with(Box::new(find), patience, false, figures.clone());
        let roots = Arc::new(rustls::RootCertStore::empty());
        let sender = Sender::with(lookups, roots).unwrap();
        let room = Arc::new(Room::new());
        let enter = |owner: &str, host: &str| {
            let (sender, room) = (sender.clone(), Arc::clone(&room));
            let (owner, url) = (Some(owner.to_owned()), format!("https://{host}/"));
            // As much as an owner may have: those of two owners are all that there is.
            tokio::spawn(async move {
                let entered = room.enter(&sender, &url, &owner, u32::MAX).await;
                entered.map(|(receiver, held)| (receiver.url.to_string(), held.is_some()))
            })
        };
        let mut slow = Vec::new();
        for owner in ["greedy", "greedier"] {
            slow.extend((0..20).map(|n| enter(owner, &format!("hangs{n}.example"))));
        }
        // Each of the two has all the threads that it may have, and no more.
        while figures.threads() < 16 {
            tokio::task::yield_now().await;
        }
        for owner in ["modest", "other"] {
            let entered = enter(owner, "receiver.example").await.unwrap().unwrap();
            assert_eq!(entered, ("https://receiver.example/".to_owned(), true));
        }
        assert_eq!(figures.threads(), 16);
        assert!(slow.iter().all(|task| !task.is_finished()));
        drop(open);
        for task in slow {
            assert!(task.await.unwrap().unwrap().1);
        }
        // An address that may not be is refused before any room is asked for.
        let whole = room.all.try_acquire_many(KIB_AT_ONCE).unwrap();
        let refused = enter("modest", "127.0.0.1").await.unwrap().unwrap_err();
        assert!(refused.is_final(), "{refused}");
        drop(whole);
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
