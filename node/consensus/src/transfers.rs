//! When snapshots are built: after every so many entries, or as soon as they have changed much of the ledger, but not while
//! a follower is brought up with one. And what the log keeps behind them.
//!
//! What a snapshot covers may be purged from the log, and a follower that has received one goes on with the log behind
//! it. If the next ones were built while it receives the first, the log that it needs then would be gone: it would
//! get another snapshot, and, as long as the load is what it is, another one after that. So the log waits for
//! followers that are on their way: none is built while a transfer is under way, nor until that follower is as close as
//! followers must be that are brought up by the log.
//!
//! Of the entries that a snapshot covers Raft keeps a number, for followers that are only a little behind. Entries may be large, so
//! what is kept is bounded by bytes as well, by the same rule: nothing is cut while somebody is on the way.
//!
//! The waiting has a bound, because the log must have one: after [`MOST`] times as much as usual a snapshot is built
//! whoever waits. A link that is too slow for that many entries is too slow for the cluster's load.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use quorun_ledger::NodeId;
use tokio::sync::{Notify, watch};

use crate::ledger_store::LedgerStore;
use crate::log_store::LogStore;
use crate::status::Progress;
use crate::types::Raft;

/// So many times as much as usual may lie in the log for the sake of followers.
const MOST: u64 = 16;

/// The followers that are brought up with a snapshot. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transfers {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    followers: Mutex<BTreeMap<NodeId, Stage>>,
    /// A transfer has ended.
    news: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// So many transfers to it are under way: one, or for a moment a new one and one that was given up.
    Receives(u32),
    /// It has the snapshot, and now reads the log behind it.
    CatchesUp,
}

/// A transfer that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Transfer {
    transfers: Transfers,
    to: NodeId,
    delivered: bool,
}

impl Transfers {
    /// A snapshot is about to be sent.
    pub(crate) fn begin(&self, to: NodeId) -> Transfer {
        let mut followers = self.inner.followers.lock();
        let stage = followers.entry(to).or_insert(Stage::Receives(0));
        *stage = match *stage {
            Stage::Receives(count) => Stage::Receives(count + 1),
            Stage::CatchesUp => Stage::Receives(1),
        };
        Transfer {
            transfers: self.clone(),
            to,
            delivered: false,
        }
    }

    /// Whether somebody needs the log as it is. `matched` is how much of it each follower has; nothing where this node does
    /// not lead.
    fn wait(&self, matched: &BTreeMap<NodeId, u64>, last: u64, close: u64) -> bool {
        let mut followers = self.inner.followers.lock();
        followers.retain(|id, stage| match stage {
            Stage::Receives(_) => true,
            Stage::CatchesUp => matched
                .get(id)
                .is_some_and(|matched| last.saturating_sub(*matched) > close),
        });
        !followers.is_empty()
    }

    /// Nobody is waited for any longer who is not in the middle of a transfer.
    fn give_up(&self) {
        let mut followers = self.inner.followers.lock();
        followers.retain(|_, stage| matches!(stage, Stage::Receives(_)));
    }
}

impl Transfer {
    /// The follower has the snapshot.
    pub(crate) fn delivered(mut self) {
        self.delivered = true;
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let inner = &self.transfers.inner;
        let mut followers = inner.followers.lock();
        match followers.get_mut(&self.to) {
            Some(Stage::Receives(count)) if *count > 1 => *count -= 1,
            Some(stage) if self.delivered => *stage = Stage::CatchesUp,
            _ => drop(followers.remove(&self.to)),
        }
        drop(followers);
        inner.news.notify_one();
    }
}

/// Whether a snapshot is to be built now. `changed` is how many times as much was changed as calls for one.
fn is_due(now: &Progress, transfers: &Transfers, after: u64, changed: u64) -> bool {
    let since = now.applied.saturating_sub(now.covered);
    if since < after && changed == 0 {
        return false;
    }
    if since >= after.saturating_mul(MOST) || changed >= MOST {
        transfers.give_up();
        return true;
    }
    !is_needed(now, transfers, after)
}

/// Whether a follower needs the log as it is.
fn is_needed(now: &Progress, transfers: &Transfers, after: u64) -> bool {
    transfers.wait(&now.matched, now.end, after / 4)
}

/// Has a snapshot built whenever one is due, and what is too much of the log behind it purged, until Raft has ended.
pub(crate) async fn run(
    raft: Raft,
    mut progress: watch::Receiver<Progress>,
    transfers: Transfers,
    log: LogStore,
    ledger: LedgerStore,
    after: u64,
    kept: u64,
) {
    // What the last one covered when it was asked for: it is asked for once.
    let mut asked = None;
    // The snapshot behind which the log has been cut.
    let mut cut = 0;
    loop {
        let (due, surplus) = {
            let now = progress.borrow_and_update();
            let covered = now.covered;
            let due = asked != Some(covered) && is_due(&now, &transfers, after, ledger.changed());
            let mut surplus = None;
            if cut < covered && !is_needed(&now, &transfers, after) {
                cut = covered;
                surplus = log.surplus(covered - 1, kept);
            }
            (due.then_some(covered), surplus)
        };
        if let Some(upto) = surplus
            && raft.trigger().purge_log(upto).await.is_err()
        {
            return;
        }
        if let Some(covered) = due {
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            asked = Some(covered);
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() { return },
            () = transfers.inner.news.notified() => {}
            () = ledger.grown() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(of: NodeId, index: u64) -> BTreeMap<NodeId, u64> {
        BTreeMap::from([(of, index)])
    }

    #[test]
    fn the_log_waits_for_who_receives_and_then_for_who_catches_up() {
        let transfers = Transfers::default();
        assert!(!transfers.wait(&matched(2, 0), 1_000, 10));
        let first = transfers.begin(2);
        let second = transfers.begin(2);
        drop(first);
        assert!(transfers.wait(&matched(2, 0), 1_000, 10), "another one");
        transfers.give_up();
        assert!(transfers.wait(&matched(2, 0), 1_000, 10), "it receives");
        second.delivered();
        assert!(transfers.wait(&matched(2, 900), 1_000, 10), "far behind");
        assert!(!transfers.wait(&matched(2, 995), 1_000, 10), "close");
        assert!(!transfers.wait(&matched(2, 0), 1_000, 10), "done with");
    }

    #[test]
    fn nobody_waits_for_a_transfer_that_has_failed_nor_when_this_node_leads_no_more() {
        let transfers = Transfers::default();
        drop(transfers.begin(3));
        assert!(!transfers.wait(&matched(3, 0), 1_000, 10));
        transfers.begin(3).delivered();
        assert!(!transfers.wait(&BTreeMap::new(), 1_000, 10));
        transfers.begin(3).delivered();
        transfers.give_up();
        assert!(!transfers.wait(&matched(3, 0), 1_000, 10));
    }
}
