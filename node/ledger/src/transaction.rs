//! Applying batches: a layer of writes over a store that is committed, or dropped, as one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use serde::Serialize;

use crate::codec;
use crate::command::{Batch, Reply};
use crate::emptied::Emptied;
use crate::event::Event;
use crate::keys;
use crate::node::{Node, NodeId};
use crate::rules;
use crate::store::{Pair, Store, StoreError};
use crate::view::{Counters, View};

/// What a transaction has changed: for each key its new value, or `None` where it was removed.
pub type Writes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// What one batch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// One for each command, in order.
    pub replies: Vec<Reply>,
    /// What everybody should know, in order.
    pub events: Vec<Event>,
}

/// Batches applied on top of a store, not yet committed to it.
///
/// Invariants between two batches:
/// - a job is queued exactly if one place of the queue names it, and running exactly if one node holds its current
///   attempt;
/// - a node's `busy` is the number of attempts that it holds, and never more than its slots;
/// - a finished job has an outcome, no place in the queue, and one place in the order of expiry; one in the order of age as
///   well, where that holds it, or in that of those that are still to be delivered, and nothing else stands there;
/// - the counters are the sums that their names say, and the hash is over every record but the counters.
#[derive(Debug)]
pub struct Transaction<S> {
    layer: Layer<S>,
    /// The ledger's figures, written back at the end.
    pub(crate) counters: Counters,
    /// All nodes, as they stand within this transaction.
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    changed_nodes: BTreeSet<NodeId>,
    pub(crate) events: Vec<Event>,
}

/// What every transaction begins with: the ledger's figures, and its nodes. Whoever alone writes to a store can keep what one
/// transaction has ended with for the next one, which then need not read it.
#[derive(Clone, Debug)]
pub struct Heads {
    counters: Counters,
    nodes: BTreeMap<NodeId, Node>,
}

impl Heads {
    /// Those that `store` holds.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn of(store: impl Store) -> Result<Self, StoreError> {
        let view = View::new(store);
        Ok(Self {
            counters: view.counters()?,
            nodes: view.nodes()?.into_iter().map(|n| (n.id, n)).collect(),
        })
    }
}

impl<S: Store> Transaction<S> {
    /// Begins on top of what `store` holds.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn begin(store: S) -> Result<Self, StoreError> {
        let heads = Heads::of(&store)?;
        Ok(Self::after(store, heads))
    }

    /// Begins on top of what `store` holds, which has these heads.
    pub fn after(store: S, heads: Heads) -> Self {
        Self {
            layer: Layer {
                store,
                writes: Writes::new(),
                empty: RefCell::default(),
            },
            counters: heads.counters,
            nodes: heads.nodes,
            changed_nodes: BTreeSet::new(),
            events: Vec::new(),
        }
    }

    /// Applies one batch: its commands in order, then placement.
    ///
    /// # Errors
    /// When the store cannot be read; the transaction must then be dropped.
    pub fn apply(&mut self, batch: Batch) -> Result<Applied, StoreError> {
        self.counters.time_ms = self.counters.time_ms.max(batch.time_ms);
        let mut replies = Vec::with_capacity(batch.commands.len());
        for command in batch.commands {
            replies.push(rules::apply(self, command, batch.queue)?);
        }
        rules::placement::place(self, &batch.eligible)?;
        Ok(Applied {
            replies,
            events: std::mem::take(&mut self.events),
        })
    }

    /// Ends the transaction; the writes are to be committed as one, before anything else is read.
    ///
    /// Of each record that is written the store was asked before, unless there is none yet; but for the counters.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn finish(self) -> Result<Writes, StoreError> {
        self.end().map(|(writes, _)| writes)
    }

    /// The same, with the heads that the store has once the writes are committed.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn end(mut self) -> Result<(Writes, Heads), StoreError> {
        for id in std::mem::take(&mut self.changed_nodes) {
            if let Some(node) = self.nodes.get(&id) {
                let value = codec::encode(node);
                self.put_bytes(keys::node(id), value)?;
            }
        }
        let counters = self.counters.encode();
        self.layer
            .write(keys::COUNTERS.to_vec(), Some(counters.into()));
        let heads = Heads {
            counters: self.counters,
            nodes: self.nodes,
        };
        Ok((self.layer.writes, heads))
    }

    /// The ledger as it stands within this transaction. Nodes and counters are in the fields of the same name.
    pub(crate) fn view(&self) -> View<&Layer<S>> {
        View::new(&self.layer)
    }

    /// The first pair in a range of keys, as it stands within this transaction.
    pub(crate) fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.layer.first(from, to)
    }

    /// The last pair in a range of keys, as it stands within this transaction.
    pub(crate) fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.layer.last(from, to)
    }

    /// Writes a record.
    pub(crate) fn put<T: Serialize>(&mut self, key: Vec<u8>, value: &T) -> Result<(), StoreError> {
        self.put_bytes(key, codec::encode(value))
    }

    /// Writes a record whose key is not taken, as the caller knows: the store need not be asked what was there, which is most of
    /// what a write costs. A key that was taken would make the hash wrong.
    pub(crate) fn put_new<T: Serialize>(&mut self, key: Vec<u8>, value: &T) {
        debug_assert!(
            !matches!(self.layer.get(&key), Ok(Some(_))),
            "a record is there already under {}",
            key.escape_ascii()
        );
        self.write(key, codec::encode(value));
    }

    fn put_bytes(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), StoreError> {
        if let Some(old) = self.layer.get(&key)? {
            self.counters.hash.remove(&key, &old);
        }
        self.write(key, value);
        Ok(())
    }

    fn write(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.counters.hash.add(&key, &value);
        self.layer.write(key, Some(value.into()));
    }

    /// Removes a record, if it is there.
    pub(crate) fn remove(&mut self, key: Vec<u8>) -> Result<(), StoreError> {
        self.take(key).map(drop)
    }

    /// Removes a record; whether it was there.
    pub(crate) fn take(&mut self, key: Vec<u8>) -> Result<bool, StoreError> {
        let Some(old) = self.layer.get(&key)? else {
            return Ok(false);
        };
        self.counters.hash.remove(&key, &old);
        self.layer.write(key, None);
        Ok(true)
    }

    /// A node to be changed.
    pub(crate) fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        let node = self.nodes.get_mut(&id)?;
        self.changed_nodes.insert(id);
        Some(node)
    }

    /// Forgets a node that holds no attempts any more.
    pub(crate) fn forget_node(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.nodes.remove(&id);
        self.changed_nodes.remove(&id);
        self.remove(keys::node(id))
    }

    /// Takes a node in, or replaces its record.
    pub(crate) fn set_node(&mut self, node: Node) {
        self.changed_nodes.insert(node.id);
        self.nodes.insert(node.id, node);
    }
}

/// Writes that hide what is beneath them.
#[derive(Debug)]
pub(crate) struct Layer<S> {
    store: S,
    writes: Writes,
    /// Where removals hide all that there was.
    empty: RefCell<Emptied>,
}

impl<S> Layer<S> {
    fn write(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        if value.is_some() {
            self.empty.get_mut().written(&key);
        }
        self.writes.insert(key, value);
    }
}

fn between<'a>(from: &'a [u8], to: &'a [u8]) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(from), Bound::Excluded(to))
}

impl<S: Store> Store for Layer<S> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.writes.get(key) {
            Some(written) => Ok(written.clone()),
            None => self.store.get(key),
        }
    }

    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        let start = self.empty.borrow().end(from).map(<[u8]>::to_vec);
        let start = start.as_deref().unwrap_or(from);
        if start >= to {
            return Ok(None);
        }
        let mut removed = false;
        let mut below = self.store.first(start, to)?;
        let mut found = None;
        for (key, value) in self.writes.range::<[u8], _>(between(start, to)) {
            if below.as_ref().is_some_and(|(below, _)| below < key) {
                break;
            }
            if let Some(value) = value {
                found = Some((Bytes::copy_from_slice(key), value.clone()));
                break;
            }
            removed = true;
            if below.as_ref().is_some_and(|(below, _)| below == key) {
                let mut behind = key.clone();
                behind.push(0);
                below = self.store.first(&behind, to)?;
            }
        }
        let found = found.or(below);
        if removed {
            let end = found.as_ref().map_or(to, |(key, _)| key);
            self.empty.borrow_mut().note(from, end);
        }
        Ok(found)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        let mut to = to.to_vec();
        while from < to.as_slice() {
            let below = self.store.last(from, &to)?;
            let above = self.writes.range::<[u8], _>(between(from, &to)).next_back();
            match (below, above) {
                (below, None) => return Ok(below),
                (Some(below), Some((key, _))) if below.0 > key.as_slice() => {
                    return Ok(Some(below));
                }
                (_, Some((key, Some(value)))) => {
                    return Ok(Some((Bytes::copy_from_slice(key), value.clone())));
                }
                (_, Some((key, None))) => to.clone_from(key),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::store::MemoryStore;

    /// Few enough that they meet.
    fn key() -> impl Strategy<Value = u8> {
        0_u8..24
    }

    proptest! {
        #[test]
        fn a_layer_shows_what_is_there_once_it_is_committed(
            stored in prop::collection::btree_set(key(), 0..16),
            steps in prop::collection::vec((key(), any::<bool>(), key(), key()), 1..60),
        ) {
            let mut store = MemoryStore::default();
            let value = Bytes::from_static(b"stored");
            store.commit(stored.iter().map(|key| (vec![*key], Some(value.clone()))).collect());
            let mut layer = Layer { store, writes: Writes::new(), empty: RefCell::default() };
            let mut there: BTreeSet<u8> = stored;
            for (key, written, from, to) in steps {
                if written {
                    there.insert(key);
                    layer.write(vec![key], Some(Bytes::from_static(b"written")));
                } else {
                    there.remove(&key);
                    layer.write(vec![key], None);
                }
                // The same beginning again and again is what is remembered.
                for (from, to) in [(from, to), (0, 24), (0, to), (from, 24)] {
                    let expected = |mut keys: std::collections::btree_set::Range<'_, u8>, back| {
                        let key: Option<&u8> = if back { keys.next_back() } else { keys.next() };
                        key.map(|key| vec![*key])
                    };
                    let range = || there.range(from..to.max(from));
                    let seen = |pair: Option<Pair>| pair.map(|(key, _)| key.to_vec());
                    let first = layer.first(&[from], &[to]).unwrap();
                    prop_assert_eq!(seen(first), expected(range(), false));
                    let last = layer.last(&[from], &[to]).unwrap();
                    prop_assert_eq!(seen(last), expected(range(), true));
                }
            }
        }
    }
}
