//! The node's own copy of the ledger, read without holding up the async threads.

use quorun_consensus::{Handle, LedgerStore};
use quorun_ledger::{StoreError, View};

/// Why the ledger could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFailed {
    /// The store failed; the node is about to end.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The reading task was cancelled: the node is shutting down.
    #[error("the node is shutting down")]
    Stopped,
}

/// Asks for a few records. What lies in memory is there sooner than another thread would be, so this asks at once, unless
/// it would have to wait for entries that are being applied.
///
/// # Errors
/// When the store fails, or the node shuts down.
pub async fn look<T, F>(consensus: &Handle, question: F) -> Result<T, ReadFailed>
where
    F: FnOnce(&View<LedgerStore>) -> Result<T, StoreError> + Send + 'static,
    T: Send + 'static,
{
    if consensus.is_applying() {
        return read(consensus, question).await;
    }
    Ok(question(&consensus.view())?)
}

/// Runs a read of the local ledger on the threads that may block.
///
/// # Errors
/// When the store fails, or the node shuts down.
pub async fn read<T, F>(consensus: &Handle, question: F) -> Result<T, ReadFailed>
where
    F: FnOnce(&View<LedgerStore>) -> Result<T, StoreError> + Send + 'static,
    T: Send + 'static,
{
    let view = consensus.view();
    #[cfg(test)]
    if turmoil::in_simulation() {
        // There are no other threads there.
        return Ok(question(&view)?);
    }
    match tokio::task::spawn_blocking(move || question(&view)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ReadFailed::Stopped),
    }
}
