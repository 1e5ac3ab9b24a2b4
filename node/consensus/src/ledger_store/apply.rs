//! Committed entries become transactions of the ledger.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use quorun_ledger::store::Pair;
use quorun_ledger::{Event, Heads, Store, StoreError, Transaction};
use quorun_metrics::Histogram;
use tokio::sync::{mpsc, watch};

use super::{Chunked, LedgerStore, SnapshotFile};
use crate::blocking::blocking;
use crate::clock::Clocks;
use crate::handle::{Notice, fail};
use crate::metrics::Metrics;
use crate::types::{Entry, LogId, Replies, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};

/// How many entries become one transaction at most.
const MAX_ENTRIES: usize = 512;
/// How large their batches are together at most, unless a single one is larger, bytes. Nobody reads the ledger while it takes
/// over what they have written.
const MAX_BYTES: usize = 1 << 20;

/// What openraft drives.
#[derive(Debug)]
pub(crate) struct StateMachine {
    store: LedgerStore,
    /// The index behind the last entry that the log has on disk.
    durable: watch::Receiver<u64>,
    notices: mpsc::UnboundedSender<Notice>,
    /// Where the first failure is told: openraft may say no more than that its state machine has gone.
    failure: watch::Sender<Option<String>>,
    metrics: Arc<Metrics>,
}

impl StateMachine {
    pub(crate) fn new(
        store: LedgerStore,
        durable: watch::Receiver<u64>,
        notices: mpsc::UnboundedSender<Notice>,
    ) -> Self {
        Self {
            store,
            durable,
            notices,
            failure: watch::channel(None).0,
            metrics: Arc::new(Metrics::new(
                Arc::new(Histogram::of_times()),
                Arc::new(Clocks::new(0)),
            )),
        }
    }

    /// The same, telling its first failure here.
    pub(crate) fn telling(self, failure: watch::Sender<Option<String>>) -> Self {
        Self { failure, ..self }
    }

    /// The same, adding to these figures.
    pub(crate) fn measured(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    fn failed(&self, error: &io::Error) {
        fail(&self.failure, || {
            format!("the ledger cannot be written: {error}")
        });
    }

    async fn apply_group(
        &mut self,
        entries: Vec<Entry>,
        responders: Vec<Option<ApplyResponder<TypeConfig>>>,
    ) -> io::Result<()> {
        let Some(last) = entries.last().map(|entry| entry.log_id.index) else {
            return Ok(());
        };
        self.durable
            .wait_for(|next| *next > last)
            .await
            .map_err(|_| io::Error::other("the log is closed"))?;
        let store = self.store.clone();
        let metrics = self.metrics.clone();
        let (replies, events) = blocking(move || {
            let (started, count) = (Instant::now(), entries.len());
            let applied = store.apply(entries)?;
            metrics.follow(&store).map_err(io::Error::other)?;
            metrics.apply.since(started);
            metrics.apply_entries.add(count as u64);
            Ok(applied)
        })
        .await
        .and_then(|applied| applied)
        .inspect_err(|error| self.failed(error))?;
        for (responder, replies) in responders.into_iter().zip(replies) {
            if let Some(responder) = responder {
                responder.send(replies);
            }
        }
        if !events.is_empty() {
            // Nobody needs to listen.
            let _ = self.notices.send(Notice::Events(events, Instant::now()));
        }
        Ok(())
    }
}

/// The ledger as a transaction reads it, which notes how many chunks the records that it finds lie in: it reads what it is going
/// to replace, so that nobody has to look once more.
struct Reads<'a> {
    store: &'a LedgerStore,
    chunks: RefCell<Chunked>,
}

impl<'a> Reads<'a> {
    fn new(store: &'a LedgerStore) -> Self {
        Self {
            store,
            chunks: RefCell::default(),
        }
    }
}

impl Store for Reads<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let read = self.store.record(key)?;
        Ok(read.map(|(record, chunks)| {
            if chunks > 0 {
                self.chunks.borrow_mut().insert(key.to_vec(), chunks);
            }
            record
        }))
    }

    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.store.first(from, to)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.store.last(from, to)
    }
}

impl LedgerStore {
    /// Applies entries as one. Returns what the commands of each were answered, and all their events.
    pub(super) fn apply(&self, entries: Vec<Entry>) -> io::Result<(Vec<Replies>, Vec<Event>)> {
        self.wait_for_room()?;
        let mut meta = self.meta();
        let mut replies = Vec::with_capacity(entries.len());
        let mut events = Vec::new();
        let reads = Reads::new(self);
        // Put back when all has gone well.
        let heads = self.inner.heads.lock().take();
        let heads = match heads {
            Some(heads) => heads,
            None => Heads::of(self).map_err(io::Error::other)?,
        };
        let mut transaction = Transaction::after(&reads, heads);
        let mut changed = false;
        for entry in entries {
            #[cfg(feature = "simulation")]
            crate::simulation::applied(&entry);
            #[cfg(feature = "bugs")]
            crate::bugs::applied(&entry);
            meta.applied = Some(entry.log_id);
            replies.push(match entry.payload {
                EntryPayload::Blank => Replies::default(),
                EntryPayload::Normal(batch) => {
                    let malformed = |error: quorun_ledger::codec::DecodeError| {
                        let index = entry.log_id.index;
                        io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("the batch of entry {index}: {error}"),
                        )
                    };
                    let batch = batch.decode().map_err(malformed)?;
                    let mut applied = transaction.apply(batch).map_err(io::Error::other)?;
                    events.append(&mut applied.events);
                    changed = true;
                    Replies(applied.replies)
                }
                EntryPayload::Membership(membership) => {
                    meta.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Replies::default()
                }
            });
        }
        let (mut writes, heads) = transaction.end().map_err(io::Error::other)?;
        if !changed {
            writes.clear();
        }
        self.commit(writes, &reads.chunks.into_inner(), meta)?;
        *self.inner.heads.lock() = Some(heads);
        Ok((replies, events))
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let meta = self.store.meta();
        Ok((meta.applied, meta.membership))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut groups = entries.ready_chunks(MAX_ENTRIES);
        while let Some(group) = groups.next().await {
            let (mut entries, mut responders, mut bytes) = (Vec::new(), Vec::new(), 0);
            for item in group {
                let (entry, responder) = item?;
                if let EntryPayload::Normal(batch) = &entry.payload {
                    bytes += batch.0.len();
                }
                entries.push(entry);
                responders.push(responder);
                if bytes >= MAX_BYTES {
                    bytes = 0;
                    let group = (
                        std::mem::take(&mut entries),
                        std::mem::take(&mut responders),
                    );
                    self.apply_group(group.0, group.1).await?;
                }
            }
            self.apply_group(entries, responders).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.store.clone())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let store = self.store.clone();
        let (metrics, notices) = (self.metrics.clone(), self.notices.clone());
        let meta = meta.clone();
        blocking(move || {
            store.install(&meta, &snapshot)?;
            // Nobody needs to listen. Told here, because consensus may be ended as soon as the ledger shows what is new.
            let _ = notices.send(Notice::Reset);
            metrics.follow(&store).map_err(io::Error::other)
        })
        .await
        .and_then(|installed| installed)
        .inspect_err(|error| self.failed(error))?;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let store = self.store.clone();
        blocking(move || store.current_snapshot()).await?
    }
}

/// Builds a snapshot while entries go on being applied.
#[derive(Debug)]
pub(crate) struct Builder(LedgerStore);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let store = self.0.clone();
        blocking(move || store.build()).await?
    }
}
