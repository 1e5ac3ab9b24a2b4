//! Beginning rules that change nothing of what there is.

use crate::command::Reply;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;
use crate::weight::Weights;

use super::{BY_OWNER, RULES};

/// From here on owners have their turns within each level of the queue. What waits keeps its place, before all that comes.
pub(super) fn begin<S: Store>(tx: &mut Transaction<S>, rules: u32) -> Result<Reply, StoreError> {
    if rules > RULES {
        return Err(StoreError::Inconsistent(format!(
            "the rules {rules} begin, and this program knows no later ones than {RULES}; a newer one is needed here"
        )));
    }
    // One after the other: the former ones hold for all jobs before others begin.
    let before = tx.counters.weights == Weights::Records;
    if rules == BY_OWNER && before && tx.counters.rules < BY_OWNER {
        tx.counters.rules = BY_OWNER;
        tx.counters.begin_rounds();
    }
    Ok(Reply::Begun {
        rules: tx.counters.rules,
    })
}
