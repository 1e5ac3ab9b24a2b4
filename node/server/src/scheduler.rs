//! The scheduler: the loop on the leader that decides which nodes may be given work, declares nodes lost, and has old
//! jobs expired. The assignment itself is a rule of the ledger, applied at the end of every batch to the nodes that
//! this loop calls eligible.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use quorun_consensus::Handle;
use quorun_ledger::{Command, NodeId, Reply};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::ledger;
use crate::liveness::Liveness;
use crate::settings::ClusterSettings;

/// How long a proposal of the scheduler may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// Pause between two looks for jobs to expire.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);
/// Jobs removed by one command, so that no batch takes long to apply.
const EXPIRE_AT_ONCE: u32 = 500;
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
                continue;
            }
            if let Err(error) = self.look().await {
                warn!(%error, "the scheduler could not read the ledger");
            }
            if expired_at.elapsed() >= EXPIRE_EVERY {
                self.expire().await;
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

    /// Removes what is over its time or its size, a batch at a time, until nothing is.
    async fn expire(&self) {
        let keep_bytes = self.settings.current().retention_bytes;
        loop {
            let due = ledger::read(&self.consensus, move |view| {
                let (next, bytes) = (view.next_expiry()?, view.counters()?.finished_bytes);
                let now = now_ms();
                if next.is_none_or(|at| at > now) && bytes <= keep_bytes {
                    return Ok(0);
                }
                Ok(old_enough(&view.next_expiries(EXPIRE_AT_ONCE)?, now))
            })
            .await;
            let Ok(limit @ 1..) = due else { return };
            let command = Command::Expire { limit, keep_bytes };
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

/// How many of these, from the first on, have been finished for long enough. What has finished later than now was stamped by
/// another clock, which says nothing.
fn old_enough(finished_ms: &[u64], now: u64) -> u32 {
    let least = u64::try_from(KEPT_AT_LEAST.as_millis()).unwrap_or(u64::MAX);
    let young = |finished: u64| now.checked_sub(finished).is_some_and(|age| age < least);
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
    use super::*;

    #[test]
    fn what_has_just_finished_is_kept() {
        let now = 1_000_000;
        assert_eq!(old_enough(&[], now), 0);
        assert_eq!(old_enough(&[now - 30_000, 0, now - 29_999, 0], now), 2);
        assert_eq!(old_enough(&[now], now), 0);
        // A clock that was an hour ahead must not keep everything for an hour.
        assert_eq!(old_enough(&[now + 3_600_000], now), 1);
    }
}
