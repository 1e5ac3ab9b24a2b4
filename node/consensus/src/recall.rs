//! What the peers remember of a node, asked before it takes part.
//!
//! A disk can forget without a trace: an old copy of a whole data folder is put back, or an empty one is given to an old
//! id. Everything in it agrees, also with the watermark. But the node may have voted, or acknowledged entries, that it no
//! longer knows of, and a majority could be made of it twice. Others remember: the ledger has the number of the node's
//! last start, the leader how far its log reached, and everybody what the leader has told of all nodes. So a node asks
//! before it votes, and does not take part when somebody knows more of it than it does itself.
//!
//! A node that knows nothing at all waits until most of the members that it was given have answered: one of them has
//! then seen whatever was decided with its vote. Any other node asks once, and goes on without those that are silent,
//! because a cluster that was down as a whole must come up.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::Mutex;
use quorun_ledger::{NodeId, StoreError};
use quorun_proto::v1::{RecallReply, RecallRequest};
use tokio::time::timeout;
use tonic::Code;

use crate::blocking::blocking;
use crate::error::Error;
use crate::ledger_store::{LedgerStore, LogRange};
use crate::network::Peers;
use crate::options::Member;
use crate::types::{Raft, next_index};

/// How long one peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause before those that have not answered are asked again.
const RETRY: Duration = Duration::from_millis(200);

/// How far the others have come, as they have said. Soft, and kept as long as the process lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks(Arc<Mutex<BTreeMap<NodeId, u64>>>);

impl Marks {
    /// A node has applied the entries below this index, so it had them on its disk.
    pub(crate) fn remember(&self, node: NodeId, next: u64) {
        let mut marks = self.0.lock();
        let mark = marks.entry(node).or_default();
        *mark = next.max(*mark);
    }

    fn of(&self, node: NodeId) -> u64 {
        self.0.lock().get(&node).copied().unwrap_or(0)
    }
}

/// What this node remembers of another one.
pub(crate) async fn answer(
    node: NodeId,
    raft: &Raft,
    ledger: &LedgerStore,
    marks: &Marks,
) -> Result<RecallReply, StoreError> {
    let view = ledger.view();
    let record = blocking(move || view.node(node))
        .await
        .map_err(|error| StoreError::Io(error.to_string()))??;
    let metrics = raft.metrics();
    let replication = metrics.borrow_watched().replication.clone();
    let matched = replication.and_then(|progress| progress.get(&node).copied().flatten());
    Ok(RecallReply {
        incarnation: record.map_or(0, |record| record.incarnation),
        next_index: marks.of(node).max(next_index(matched.as_ref())),
    })
}

/// What a node asks with.
pub(crate) struct Recall {
    pub(crate) id: NodeId,
    /// The number of this start.
    pub(crate) incarnation: u64,
    pub(crate) data_dir: PathBuf,
    pub(crate) log: LogRange,
    /// Whom to ask.
    pub(crate) members: BTreeMap<NodeId, Member>,
    pub(crate) peers: Arc<Peers>,
}

impl Recall {
    /// Returns when this node may take part.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        self.members.remove(&self.id);
        let knows_nothing = !self.log.voted && self.log.last.is_none();
        let most = self.members.len().div_ceil(2);
        let mut answered = 0;
        loop {
            let asked = self
                .members
                .iter()
                .map(|(id, member)| self.ask(*id, member));
            for (id, reply) in join_all(asked).await.into_iter().flatten() {
                self.compare(id, &reply)?;
                self.members.remove(&id);
                answered += 1;
            }
            if !knows_nothing || answered >= most {
                return Ok(());
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn ask(&self, id: NodeId, member: &Member) -> Option<(NodeId, RecallReply)> {
        let mut client = self.peers.consensus(id, &member.peer).ok()?;
        let request = RecallRequest { node: self.id };
        match timeout(PATIENCE, client.recall(request)).await.ok()? {
            Ok(reply) => Some((id, reply.into_inner())),
            // A program from before has nothing to say.
            Err(status) if status.code() == Code::Unimplemented => {
                Some((id, RecallReply::default()))
            }
            Err(_) => None,
        }
    }

    fn compare(&self, peer: NodeId, known: &RecallReply) -> Result<(), Error> {
        let next = next_index(self.log.last.as_ref());
        let what = if known.incarnation >= self.incarnation {
            format!(
                "node {peer} knows of start {} of this node, but to its data folder this is start {}",
                known.incarnation, self.incarnation
            )
        } else if known.next_index > next {
            format!(
                "node {peer} knows that this node had {} entries, but its log ends after {next}",
                known.next_index
            )
        } else {
            return Ok(());
        };
        Err(Error::Damaged {
            path: self.data_dir.clone(),
            what,
        })
    }
}
