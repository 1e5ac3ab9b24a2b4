//! The scheduler: the loop on the leader that decides which nodes may be given work, declares nodes lost, and has old
//! jobs expired. The assignment itself is a rule of the ledger, applied at the end of every batch to the nodes that
//! this loop calls eligible.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use quorun_consensus::{Handle, LedgerStore};
use quorun_ledger::{
    Ages, BY_AGE, BY_OWNER, BY_RECORDS, Command, Counters, NodeId, Reply, Store, StoreError, View,
    Weights,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::ledger;
use crate::liveness::Liveness;
use crate::settings::ClusterSettings;
use crate::steps::Steps;

/// How long a proposal of the scheduler may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// Pause between two looks for jobs to expire.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);
/// Jobs removed by one command, so that no batch takes long to apply.
const EXPIRE_AT_ONCE: usize = 500;
/// Jobs looked at for the order of age by one command.
const ORDER_AT_ONCE: u32 = 500;
/// Jobs weighed anew by one command; it also ends at some bytes.
const REWEIGH_AT_ONCE: u32 = 500;
/// Such commands between two looks at the nodes.
const ORDERS_AT_ONCE: usize = 20;
/// A finished job is kept for so long at least, whatever retention says: until nobody proposes its submission any more, who
/// does not know that it was taken. For the ledger a submission of a job that it no longer has is a new one. Proposals end
/// with their deadline, and this is several of them.
pub const KEPT_AT_LEAST: Duration = Duration::from_secs(30);
const _: () = assert!(KEPT_AT_LEAST.as_secs() >= 3 * crate::jobs::DEADLINE.as_secs());

/// The loop's settings.
pub struct Scheduler {
    /// The cluster.
    pub consensus: Handle,
    /// Who is alive.
    pub liveness: Liveness,
    /// Where the proposer reads whom it may name.
    pub eligible: watch::Sender<BTreeSet<NodeId>>,
    /// Silence after which a node is lost.
    pub node_timeout: Duration,
    /// How many bytes finished jobs may hold.
    pub settings: ClusterSettings,
}

impl Scheduler {
    /// Runs until the node ends.
    pub async fn run(self) {
        let mut status = self.consensus.status();
        let mut tick = tokio::time::interval(self.node_timeout / 10);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut expired_at = Instant::now();
        let mut steps = Steps::default();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.liveness.news() => {}
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let leading = status.borrow_and_update().leading;
            self.liveness.leading(leading);
            if !leading {
                steps.forget();
                continue;
            }
            if let Err(error) = self.look().await {
                warn!(%error, "the scheduler could not read the ledger");
            }
            self.watch(&mut steps).await;
            if expired_at.elapsed() >= EXPIRE_EVERY {
                self.take_up_rules().await;
                if steps.are_over(Instant::now()) {
                    self.expire().await;
                }
                expired_at = Instant::now();
            }
        }
    }

    /// Judges the nodes, and acts on it.
    async fn look(&self) -> Result<(), ledger::ReadFailed> {
        let (nodes, counters) = ledger::read(&self.consensus, |view| {
            Ok((view.nodes()?, view.counters()?))
        })
        .await?;
        let Some(judgement) = self.liveness.judge(&nodes) else {
            return Ok(());
        };
        let changed = self.eligible.send_if_modified(|eligible| {
            let changed = *eligible != judgement.eligible;
            eligible.clone_from(&judgement.eligible);
            changed
        });
        if changed {
            info!(eligible = ?judgement.eligible, "nodes that may be given work");
        }
        let room = nodes
            .iter()
            .any(|n| judgement.eligible.contains(&n.id) && n.has_room());
        if counters.queued > 0 && room {
            // Jobs wait although a slot is free: it became free without a command, because a node was heard again.
            self.consensus.schedule();
        }
        for (node, incarnation) in judgement.lost {
            warn!(node, incarnation, "node lost");
            let command = Command::NodeLost { node, incarnation };
            match self.propose(command).await {
                Some(Reply::Node { requeued }) => {
                    info!(node, requeued, "its jobs went back to the queue");
                }
                other => debug!(node, ?other, "loss not committed"),
            }
        }
        Ok(())
    }

    /// Looks whether the ledger's time has made a step.
    async fn watch(&self, steps: &mut Steps) {
        if steps.is_new() {
            let read = ledger::read(&self.consensus, |view| Ok(view.counters()?.time_ms));
            let Ok(time_ms) = read.await else { return };
            // A ledger without a batch has no time.
            if time_ms > 0 {
                steps.saw(Instant::now(), time_ms);
            }
        }
        steps.saw(Instant::now(), self.consensus.time_ms());
    }

    /// Removes what is over its time or its size.
    async fn expire(&self) {
        self.remove(over_time).await;
        self.remove(over_size).await;
    }

    /// Has the ledger go by later rules, one after the other, once all nodes know them.
    async fn take_up_rules(&self) {
        for _ in 0..ORDERS_AT_ONCE {
            let read = ledger::read(&self.consensus, |view| {
                Ok((view.nodes()?, next_rules(&view.counters()?)))
            });
            let Ok((nodes, Some((rules, command)))) = read.await else {
                return;
            };
            if !self.liveness.all_know(&nodes, rules) {
                return;
            }
            let name = command.name();
            match self.propose(command).await {
                Some(reply) => debug!(command = name, ?reply, "rules taken up"),
                None => return,
            }
        }
    }

    /// Removes what is over, a batch at a time, until nothing is.
    async fn remove(&self, over: Over) {
        let keep_bytes = self.settings.current().retention_bytes;
        loop {
            // Not by this node's own clock, which may be wrong.
            let now = self.consensus.time_ms();
            let read = move |view: &View<LedgerStore>| over(view, keep_bytes, now);
            let Ok(Some(command)) = ledger::read(&self.consensus, read).await else {
                return;
            };
            match self.propose(command).await {
                Some(Reply::Expired { jobs: 0 }) | None => return,
                Some(reply) => debug!(?reply, "jobs expired"),
            }
        }
    }

    async fn propose(&self, command: Command) -> Option<Reply> {
        let deadline = Instant::now() + DEADLINE;
        self.consensus.propose(command, deadline).await.ok()
    }
}

/// The command by which a ledger comes to the last rules, or a part of the way, and the rules that are to be known before it.
fn next_rules(counters: &Counters) -> Option<(u32, Command)> {
    if counters.ages != Ages::Kept {
        let limit = ORDER_AT_ONCE;
        return Some((BY_AGE, Command::OrderByAge { limit }));
    }
    if counters.weights != Weights::Records {
        let limit = REWEIGH_AT_ONCE;
        return Some((BY_RECORDS, Command::Reweigh { limit }));
    }
    if counters.rules < BY_OWNER {
        return Some((BY_OWNER, Command::Begin { rules: BY_OWNER }));
    }
    None
}

/// What is to be removed next of a ledger, given how many bytes finished jobs may hold and what time it is.
type Over = fn(&View<LedgerStore>, u64, u64) -> Result<Option<Command>, StoreError>;

/// Jobs that are over their time. One that has just finished may stand before others that are due, if its retention is short:
/// they have to wait for it, but for no longer than it is young. For the bytes that would not do, because there is always
/// another one, so those go by age. Where the order of age does not hold all yet, it is by expiry, as in earlier versions.
fn over_time<S: Store>(
    view: &View<S>,
    keep_bytes: u64,
    now: u64,
) -> Result<Option<Command>, StoreError> {
    let counters = view.counters()?;
    let over_size = counters.finished_bytes > keep_bytes && counters.ages != Ages::Kept;
    let (until, keep_bytes) = if over_size {
        (u64::MAX, keep_bytes)
    } else {
        // The ledger's time is what the rule goes by.
        (now.max(counters.time_ms), u64::MAX)
    };
    let finished = view.next_expiries(until, EXPIRE_AT_ONCE)?;
    Ok(match old_enough(&finished, now) {
        0 => None,
        limit => Some(Command::Expire { limit, keep_bytes }),
    })
}

/// The oldest jobs, where all together are over their size.
fn over_size<S: Store>(
    view: &View<S>,
    keep_bytes: u64,
    now: u64,
) -> Result<Option<Command>, StoreError> {
    let counters = view.counters()?;
    if counters.finished_bytes <= keep_bytes || counters.ages != Ages::Kept {
        return Ok(None);
    }
    // Those that are still to be delivered go last, and the rule knows when. Nothing that is not among these goes, because there
    // is a limit, and none that is young, wherever it stands: if the first of an order is young, all behind it are.
    let orders = [
        view.oldest(EXPIRE_AT_ONCE)?,
        view.oldest_undelivered(EXPIRE_AT_ONCE)?,
    ];
    let (mut old, mut last, mut young) = (0_u32, None, None);
    for finished in &orders {
        let count = old_enough(finished, now);
        let (before, behind) = finished.split_at(usize::try_from(count).unwrap_or(usize::MAX));
        old += count;
        last = last.max(before.last().copied());
        young = [young, behind.first().copied()].into_iter().flatten().min();
    }
    let Some(last) = last else { return Ok(None) };
    Ok(Some(Command::ExpireOldest {
        limit: old.min(u32::try_from(EXPIRE_AT_ONCE).unwrap_or(u32::MAX)),
        finished_ms: young.map_or(last, |young| last.min(young.saturating_sub(1))),
        keep_bytes,
    }))
}

/// How many of these, from the first on, have been finished for long enough. What has finished much later than now was stamped
/// by another clock, which says nothing.
fn old_enough(finished_ms: &[u64], now: u64) -> u32 {
    let least = u64::try_from(KEPT_AT_LEAST.as_millis()).unwrap_or(u64::MAX);
    let young = |finished: u64| now.abs_diff(finished) < least;
    let old = finished_ms.iter().take_while(|finished| !young(**finished));
    u32::try_from(old.count()).unwrap_or(u32::MAX)
}

/// The wall clock, Unix milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use quorun_ledger::{Batch, Callback, JobId, JobSpec, MemoryStore, Transaction};

    use super::*;

    #[test]
    fn what_has_just_finished_is_kept() {
        let now = 1_000_000;
        assert_eq!(old_enough(&[], now), 0);
        assert_eq!(old_enough(&[now - 30_000, 0, now - 29_999, 0], now), 2);
        assert_eq!(old_enough(&[now], now), 0);
        // A clock that is a little ahead makes nothing older, and one that was an hour ahead must not keep everything for an hour.
        assert_eq!(old_enough(&[now + 1_000], now), 0);
        assert_eq!(old_enough(&[now + 3_600_000], now), 1);
    }

    const BEGUN: u64 = 1_000_000_000;

    /// A ledger in memory at a time, expired as the scheduler does it.
    struct Kept {
        store: MemoryStore,
        now: u64,
        /// The number of the next job.
        next: u128,
    }

    impl Kept {
        fn new() -> Self {
            Self {
                store: MemoryStore::default(),
                now: BEGUN,
                next: 0,
            }
        }

        fn view(&self) -> View<&MemoryStore> {
            View::new(&self.store)
        }

        fn bytes(&self) -> u64 {
            self.view().counters().unwrap().finished_bytes
        }

        fn run(&mut self, commands: Vec<Command>) -> Vec<Reply> {
            let mut tx = Transaction::begin(&self.store).unwrap();
            let batch = Batch {
                time_ms: self.now,
                eligible: BTreeSet::new(),
                queue: None,
                commands,
            };
            let applied = tx.apply(batch).unwrap();
            let writes = tx.finish().unwrap();
            self.store.commit(writes);
            applied.replies
        }

        /// A job that finishes at once.
        fn job(&mut self, retention_s: u64, size: usize) -> JobId {
            self.job_for(retention_s, size, None)
        }

        /// The same, and somebody is to be told, who has not been yet.
        fn undelivered(&mut self, retention_s: u64, size: usize) -> JobId {
            let callback = Callback {
                url: "https://host/".to_owned(),
                ..Callback::default()
            };
            self.job_for(retention_s, size, Some(callback))
        }

        fn job_for(&mut self, retention_s: u64, size: usize, callback: Option<Callback>) -> JobId {
            let id = JobId::from_slice(&self.next.to_be_bytes()).unwrap();
            self.next += 1;
            let spec = JobSpec {
                language: "c".to_owned(),
                stdin: vec![0; size].into(),
                retention_ms: retention_s * 1_000,
                callback,
                ..JobSpec::default()
            };
            let key = None;
            self.run(vec![
                Command::Submit { id, spec, key },
                Command::Cancel { job: id },
            ]);
            id
        }

        fn has(&self, job: JobId) -> bool {
            self.view().job(job).unwrap().is_some()
        }

        fn order_by_age(&mut self) {
            while self.view().counters().unwrap().ages != Ages::Kept {
                self.run(vec![Command::OrderByAge { limit: 3 }]);
            }
        }

        fn take_up_rules(&mut self) {
            while let Some((_, command)) = next_rules(&self.view().counters().unwrap()) {
                self.run(vec![command]);
            }
        }

        fn expire(&mut self, keep_bytes: u64) {
            while let Some(command) = over_time(&self.view(), keep_bytes, self.now).unwrap() {
                self.remove(command);
            }
            while let Some(command) = over_size(&self.view(), keep_bytes, self.now).unwrap() {
                self.remove(command);
            }
        }

        fn remove(&mut self, command: Command) {
            let replies = self.run(vec![command]);
            let removed = matches!(replies[..], [Reply::Expired { jobs: 1.. }]);
            assert!(removed, "proposed in vain: {replies:?}");
        }
    }

    #[test]
    fn jobs_without_retention_do_not_keep_the_others_over_their_size() {
        let mut kept = Kept::new();
        kept.order_by_age();
        let big: Vec<_> = (0..10).map(|_| kept.job(30 * 86_400, 10_000)).collect();
        // There is a young one that goes first by its expiry at any time.
        for _ in 0..60 {
            kept.now += 1_000;
            kept.job(0, 10);
            kept.expire(50_000);
        }
        assert!(kept.bytes() <= 50_000, "{}", kept.bytes());
        let left: Vec<_> = big.iter().map(|job| kept.has(*job)).collect();
        assert_eq!(
            left,
            [[false; 6].as_slice(), &[true; 4]].concat(),
            "the oldest go"
        );
    }

    #[test]
    fn a_long_retention_removes_nobody_elses_jobs() {
        let mut kept = Kept::new();
        kept.order_by_age();
        let hoard: Vec<_> = (0..10).map(|_| kept.job(30 * 86_400, 10_000)).collect();
        kept.now += 1_000;
        let others: Vec<_> = (0..3).map(|_| kept.job(3_600, 10_000)).collect();
        kept.now += 60_000;
        kept.expire(65_000);
        assert!(others.iter().all(|job| kept.has(*job)));
        assert_eq!(hoard.iter().filter(|job| kept.has(**job)).count(), 3);
        // What is over its time goes by its time, whatever room there is.
        kept.now += 3_600_000;
        kept.expire(u64::MAX);
        assert!(!others.iter().any(|job| kept.has(*job)));
        assert_eq!(hoard.iter().filter(|job| kept.has(**job)).count(), 3);
    }

    #[test]
    fn what_is_over_size_but_young_stays() {
        let mut kept = Kept::new();
        kept.order_by_age();
        let old = kept.job(3_600, 1_000);
        kept.now += 10_000;
        let young = kept.job(3_600, 1_000);
        kept.now += 20_000;
        kept.expire(0);
        assert!(!kept.has(old));
        assert!(kept.has(young));
        kept.now += 9_999;
        kept.expire(0);
        assert!(kept.has(young));
        kept.now += 1;
        kept.expire(0);
        assert!(!kept.has(young));
    }

    #[test]
    fn what_finished_before_there_was_an_order_of_age_goes_by_expiry_and_then_by_age() {
        let mut kept = Kept::new();
        let long = kept.job(7_200, 1_000);
        let more: Vec<_> = (0..9).map(|_| kept.job(7_000, 1_000)).collect();
        kept.now += 60_000;
        let late = kept.job(60, 1_000);
        kept.now += 40_000;
        kept.expire(10_500);
        assert!(kept.has(long) && !kept.has(late), "by expiry");
        // Part of them does not do: the others would be taken for the oldest.
        kept.run(vec![Command::OrderByAge { limit: 3 }]);
        assert!(matches!(
            kept.view().counters().unwrap().ages,
            Ages::Begun { .. }
        ));
        kept.expire(9_500);
        assert!(kept.has(long) && !kept.has(more[0]), "by expiry");
        kept.order_by_age();
        kept.expire(8_500);
        assert!(!kept.has(long), "by age");
        assert!(more[1..].iter().all(|job| kept.has(*job)));
    }

    #[test]
    fn what_is_still_to_be_delivered_goes_last() {
        let mut kept = Kept::new();
        kept.take_up_rules();
        let first = kept.undelivered(86_400, 10);
        kept.now += 1_000;
        let others: Vec<_> = (0..9).map(|_| kept.job(86_400, 10_000)).collect();
        kept.now += 60_000;
        // It is the oldest, and holds less than half.
        kept.expire(60_000);
        assert!(kept.has(first));
        let left = others.iter().filter(|job| kept.has(**job)).count();
        assert!((1..9).contains(&left), "{left}");
        kept.expire(5_000);
        assert!(kept.has(first));
        assert!(!others.iter().any(|job| kept.has(*job)));
        // Where nothing else is left to go, it goes.
        kept.expire(1_000);
        assert!(!kept.has(first));
    }

    #[test]
    fn a_receiver_that_never_answers_does_not_cost_others_more_than_half() {
        let mut kept = Kept::new();
        kept.take_up_rules();
        let waiting: Vec<_> = (0..20).map(|_| kept.undelivered(86_400, 10_000)).collect();
        kept.now += 1_000;
        let others: Vec<_> = (0..20).map(|_| kept.job(86_400, 10_000)).collect();
        kept.now += 60_000;
        kept.expire(120_000);
        let left = |jobs: &[JobId]| jobs.iter().filter(|job| kept.has(**job)).count();
        assert_eq!((left(&waiting), left(&others)), (5, 5));
        assert!(
            kept.has(waiting[19]) && kept.has(others[19]),
            "the oldest go"
        );
    }

    #[test]
    fn no_young_job_goes_for_another_order() {
        let mut kept = Kept::new();
        kept.take_up_rules();
        let old = kept.undelivered(86_400, 1_000);
        kept.now += 60_000;
        let young = [kept.job(86_400, 1_000), kept.undelivered(86_400, 1_000)];
        kept.expire(0);
        assert!(!kept.has(old), "there is nothing else that may go");
        assert!(young.iter().all(|job| kept.has(*job)));
        // Whatever clock has stamped another.
        kept.now += 3_600_000;
        let ahead = kept.undelivered(86_400, 1_000);
        kept.now -= 3_600_000;
        kept.expire(0);
        assert!(young.iter().all(|job| kept.has(*job)), "still young");
        assert!(kept.has(ahead), "behind a young one");
        kept.now += 30_000;
        kept.expire(0);
        assert!(!young.iter().any(|job| kept.has(*job)));
        assert!(!kept.has(ahead));
    }

    #[test]
    fn rules_are_taken_up_one_after_the_other() {
        let mut kept = Kept::new();
        let jobs: Vec<_> = (0..1_200).map(|_| kept.job(86_400, 1)).collect();
        let mut asked = Vec::new();
        while let Some((rules, command)) = next_rules(&kept.view().counters().unwrap()) {
            asked.push(rules);
            kept.run(vec![command]);
        }
        assert_eq!(asked, [1, 1, 1, 2, 2, 2, 3]);
        assert_eq!(kept.view().counters().unwrap().rules, quorun_ledger::RULES);
        assert!(kept.bytes() > 500 * jobs.len() as u64);
    }
}
