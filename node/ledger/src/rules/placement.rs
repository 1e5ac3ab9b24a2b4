//! The end of every batch: queued jobs go to free slots.
//!
//! The node is the least busy one, busy being attempts divided by slots; ties go round, starting behind the node that
//! was assigned a job last. The level of the queue is the one whose turn it is ([`crate::priority`]), and in it the job is
//! the one nearest to the front that any of the nodes can run (of equals, whose owners have their turns in the same round, the one with the smaller id), so that a job whose language nobody can run just now holds
//! nobody up, and neither does a level of such jobs. Nothing here looks at more of the queue than the first job of each
//! language in each level.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::job::JobId;
use crate::keys;
use crate::node::{Node, NodeId};
use crate::priority::Priority;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;
use crate::view;

use super::jobs;

pub(crate) fn place<S: Store>(
    tx: &mut Transaction<S>,
    eligible: &BTreeSet<NodeId>,
) -> Result<(), StoreError> {
    while tx.counters.queued > 0 {
        let Some(Next {
            job: id,
            node,
            first,
        }) = next(tx, eligible)?
        else {
            return Ok(());
        };
        let job = tx.view().job(id)?.ok_or_else(|| {
            StoreError::Inconsistent(format!("the queue names job {id}, which is not there"))
        })?;
        jobs::serve(tx, job, node, first)?;
    }
    Ok(())
}

/// The next job to be assigned.
struct Next {
    job: JobId,
    /// To whom.
    node: NodeId,
    /// The first place that is taken in the job's level.
    first: u64,
}

/// The next job to be assigned, and to whom.
fn next<S: Store>(
    tx: &Transaction<S>,
    eligible: &BTreeSet<NodeId>,
) -> Result<Option<Next>, StoreError> {
    let free: Vec<&Node> = tx
        .nodes
        .values()
        .filter(|node| eligible.contains(&node.id) && node.has_room())
        .collect();
    if free.is_empty() {
        return Ok(None);
    }
    let mut best: [Option<(u64, JobId, NodeId)>; 3] = [None; 3];
    let mut first = [u64::MAX; 3];
    let one_level = tx.counters.waiting_levels().count() <= 1;
    let (mut from, to) = keys::queue();
    while let Some((key, value)) = tx.first(&from, &to)? {
        let (language, order) = keys::parts_of_queued(&key).ok_or_else(|| view::malformed(&key))?;
        let level = Priority::of_order(order);
        first[level as usize] = first[level as usize].min(order);
        if let Some(node) = least_busy(&free, language, tx.counters.turn) {
            let job = view::decode(&key, &value)?;
            let best = &mut best[level as usize];
            if best.is_none_or(|(place, other, _)| (order, job) < (place, other)) {
                *best = Some((order, job, node));
            }
        }
        from = if one_level {
            keys::after_language(language)
        } else {
            level.places(language).1
        };
    }
    let found = |level: &Priority| best[*level as usize].is_some();
    let levels = Priority::ALL.into_iter().filter(found);
    let next = tx.counters.turns.next(levels);
    Ok(next
        .and_then(|level| Some((best[level as usize]?, first[level as usize])))
        .map(|((_, job, node), first)| Next { job, node, first }))
}

/// The least busy of the nodes that can run the language.
fn least_busy(nodes: &[&Node], language: &str, turn: NodeId) -> Option<NodeId> {
    nodes
        .iter()
        .filter(|node| node.languages.contains(language))
        .min_by(|a, b| compare(a, b, turn))
        .map(|node| node.id)
}

fn compare(a: &Node, b: &Node, turn: NodeId) -> Ordering {
    // a.busy / a.slots against b.busy / b.slots, without division.
    let (left, right) = (
        u64::from(a.busy) * u64::from(b.slots),
        u64::from(b.busy) * u64::from(a.slots),
    );
    // Nodes behind the last one come first, then the round starts again at the lowest id.
    let round = |node: &Node| (node.id <= turn, node.id);
    left.cmp(&right).then_with(|| round(a).cmp(&round(b)))
}
