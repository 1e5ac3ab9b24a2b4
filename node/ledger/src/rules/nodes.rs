//! Nodes that come, go silent, drain, and leave for ever.

use std::collections::BTreeSet;

use crate::command::{Rejection, Reply};
use crate::event::Event;
use crate::job::JobState;
use crate::keys;
use crate::node::{Admission, Node, NodeId};
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;

use super::jobs;

/// What a node says of itself when it announces itself.
pub(super) struct Announcement {
    pub(super) node: NodeId,
    pub(super) incarnation: u64,
    pub(super) http: String,
    pub(super) slots: u32,
    pub(super) languages: BTreeSet<String>,
    pub(super) version: String,
}

/// A new incarnation has lost what the old one was running, whether or not anybody noticed that it was gone. The same
/// incarnation announces itself again after it was declared lost by mistake: then nothing is assigned to it any more,
/// and what it still executes is fenced.
pub(super) fn up<S: Store>(
    tx: &mut Transaction<S>,
    announcement: Announcement,
) -> Result<Reply, StoreError> {
    let id = announcement.node;
    if tx.view().is_removed(id)? {
        return Ok(Reply::Rejected(Rejection::NodeRemoved));
    }
    let mut requeued = 0;
    let mut draining = false;
    if let Some(known) = tx.nodes.get(&id) {
        if known.incarnation > announcement.incarnation {
            return Ok(Reply::Rejected(Rejection::StaleIncarnation {
                current: known.incarnation,
            }));
        }
        draining = known.draining && known.incarnation == announcement.incarnation;
        if known.incarnation < announcement.incarnation || known.lost {
            requeued = requeue_all(tx, id, "its node restarted")?;
        }
    }
    let busy = tx.nodes.get(&id).map_or(0, |known| known.busy);
    tx.remove(keys::admission(id))?;
    tx.set_node(Node {
        id,
        incarnation: announcement.incarnation,
        http: announcement.http,
        // Slots cannot be taken away from under attempts that hold them.
        slots: announcement.slots.max(busy),
        busy,
        languages: announcement.languages,
        version: announcement.version,
        draining,
        lost: false,
    });
    tx.events.push(Event::NodeChanged { node: id });
    Ok(Reply::Node { requeued })
}

/// What a lost node was running goes to others. The incarnation keeps a late declaration from hitting a node that has
/// come back in the meantime.
pub(super) fn lost<S: Store>(
    tx: &mut Transaction<S>,
    id: NodeId,
    incarnation: u64,
) -> Result<Reply, StoreError> {
    match tx.nodes.get(&id) {
        None => return Ok(Reply::Rejected(Rejection::UnknownNode)),
        Some(known) if known.incarnation != incarnation => {
            return Ok(Reply::Rejected(Rejection::StaleIncarnation {
                current: known.incarnation,
            }));
        }
        Some(known) if known.lost => return Ok(Reply::Node { requeued: 0 }),
        Some(_) => {}
    }
    if let Some(node) = tx.node_mut(id) {
        node.lost = true;
    }
    let requeued = requeue_all(tx, id, "its node was lost")?;
    tx.events.push(Event::NodeChanged { node: id });
    Ok(Reply::Node { requeued })
}

pub(super) fn drain<S: Store>(
    tx: &mut Transaction<S>,
    id: NodeId,
    draining: bool,
) -> Result<Reply, StoreError> {
    let Some(node) = tx.node_mut(id) else {
        return Ok(Reply::Rejected(Rejection::UnknownNode));
    };
    node.draining = draining;
    tx.events.push(Event::NodeChanged { node: id });
    Ok(Reply::Node { requeued: 0 })
}

/// Gives an id that is above all that were ever given: a node that was removed may come back with an old configuration,
/// and in Raft a reused id could bring a majority of one back to life.
pub(super) fn admit<S: Store>(
    tx: &mut Transaction<S>,
    peer: String,
    http: String,
    floor: NodeId,
) -> Result<Reply, StoreError> {
    let admissions = tx.view().admissions()?;
    if let Some((id, _)) = admissions.iter().find(|(_, known)| known.peer == peer) {
        return Ok(Reply::Admitted { node: *id });
    }
    let highest = [
        Some(floor),
        tx.nodes.last_key_value().map(|(id, _)| *id),
        admissions.last().map(|(id, _)| *id),
        tx.view().removed()?.last().copied(),
    ];
    let highest = highest.into_iter().flatten().max().unwrap_or(0);
    let Some(node) = highest.checked_add(1) else {
        return Err(StoreError::Inconsistent(
            "the ids of nodes are used up".to_owned(),
        ));
    };
    tx.put(keys::admission(node), &Admission { peer, http })?;
    tx.events.push(Event::NodeChanged { node });
    Ok(Reply::Admitted { node })
}

/// The node need not have announced itself, nor be known at all: what matters is that it never takes part again.
pub(super) fn remove<S: Store>(tx: &mut Transaction<S>, id: NodeId) -> Result<Reply, StoreError> {
    if tx.view().is_removed(id)? {
        return Ok(Reply::Node { requeued: 0 });
    }
    let requeued = requeue_all(tx, id, "its node was removed")?;
    tx.forget_node(id)?;
    tx.remove(keys::admission(id))?;
    tx.put(keys::removed(id), &())?;
    tx.events.push(Event::NodeChanged { node: id });
    Ok(Reply::Node { requeued })
}

/// Takes all attempts from a node. The newest job is put back first, so that the oldest ends up at the very front.
fn requeue_all<S: Store>(
    tx: &mut Transaction<S>,
    node: NodeId,
    why: &str,
) -> Result<u32, StoreError> {
    let mut requeued = 0;
    for (id, attempt) in tx.view().attempts(node)?.into_iter().rev() {
        jobs::free_slot(tx, node, id)?;
        tx.events.push(Event::Revoked {
            job: id,
            attempt,
            node,
        });
        let Some(job) = tx.view().job(id)? else {
            continue; // cancelled and expired since
        };
        if job.state == JobState::Running && job.node == Some(node) && job.attempt == attempt {
            jobs::retry(tx, job, why)?;
            requeued += 1;
        }
    }
    Ok(requeued)
}
