//! Nodes that come, go silent, and drain.

use std::collections::BTreeSet;

use crate::command::{Rejection, Reply};
use crate::event::Event;
use crate::job::JobState;
use crate::node::{Node, NodeId};
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
