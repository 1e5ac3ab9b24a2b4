//! What makes a bug of the proposer harmful, and what notices it. Only there with the feature `bugs`.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::EntryPayload;
use quorun_ledger::bugs::Bug;

use crate::types::{EncodedBatch, Entry};

/// How long a slow leader takes from its decision to its log, at most.
const SLOWEST_MS: u32 = 1500;

/// The batches that this process has stamped as a leader, and in which term.
static STAMPED: LazyLock<Mutex<HashMap<Vec<u8>, u64>>> = LazyLock::new(Mutex::default);

/// This node has decided something as the leader of a term. A slow one takes its time then.
pub(crate) async fn stamped(term: u64, batch: &EncodedBatch) {
    if !Bug::AssignWithoutFence.is_on() && !Bug::SlowAssign.is_on() {
        return;
    }
    // There, leaders are slow anyhow, and all nodes are in one process.
    #[cfg(feature = "simulation")]
    if crate::simulation::active() {
        return;
    }
    STAMPED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(batch.0.to_vec(), term);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let chance = now
        .map_or(0, |now| now.subsec_nanos())
        .wrapping_mul(0x9e37_79b1)
        >> 8;
    if chance.is_multiple_of(8) {
        let pause = Duration::from_millis(u64::from(chance / 8 % SLOWEST_MS));
        tokio::time::sleep(pause).await;
    }
}

/// An entry was committed. What a leader has decided may only be committed in its own term.
pub(crate) fn applied(entry: &Entry) {
    let EntryPayload::Normal(batch) = &entry.payload else {
        return;
    };
    let mut stamped = STAMPED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(term) = stamped.remove(&batch.0[..]) {
        let committed = entry.log_id.leader_id.term;
        if committed != term {
            tracing::error!(
                index = entry.log_id.index,
                "the fence is broken: what was decided in term {term} was committed in term {committed}"
            );
        }
    }
}
