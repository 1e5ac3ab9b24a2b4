//! openraft's own suite for stores, over both of ours.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tokio::sync::{mpsc, watch};

use crate::ledger_store::{LedgerStore, StateMachine};
use crate::log_store::{Location, LogStore};
use crate::options::ClusterId;
use crate::types::TypeConfig;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let location = Location {
            data_dir: dir.path().to_owned(),
            cluster: ClusterId([1; 16]),
            node: 0,
        };
        let log = LogStore::open(&location).unwrap();
        let ledger = LedgerStore::open(dir.path(), None).unwrap();
        let (notify, _) = mpsc::unbounded_channel();
        // The suite applies entries that are in no log.
        let (_, durable) = watch::channel(u64::MAX);
        Ok((dir, log, StateMachine::new(ledger, durable, notify)))
    }
}

#[test]
fn the_stores_pass_the_suite_of_openraft() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}
