//! Where the ledger's records are read from.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::codec::DecodeError;

/// A record that could not be read. Always fatal for the node: what it would compute from here on could differ from
/// what the others compute.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store itself failed.
    #[error("read the ledger's records: {0}")]
    Io(String),
    /// A record is not what was written.
    #[error("the record {key} of the ledger: {source}")]
    Decode {
        /// The record's key, printable.
        key: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A record that another one refers to is missing, or a key is malformed.
    #[error("the ledger contradicts itself: {0}")]
    Inconsistent(String),
}

/// A pair of key and value.
pub type Pair = (Bytes, Bytes);

/// An ordered map of bytes that the ledger reads; what it writes is handed back as [`Writes`](crate::Writes).
pub trait Store {
    /// The value of a key.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// The first pair whose key is in `[from, to)`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError>;

    /// The last pair whose key is in `[from, to)`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError>;
}

impl<S: Store + ?Sized> Store for &S {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        (**self).get(key)
    }

    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        (**self).first(from, to)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        (**self).last(from, to)
    }
}

/// A store in memory: for tests and models of the rules. A node has one that outlasts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStore {
    records: BTreeMap<Bytes, Bytes>,
}

impl MemoryStore {
    /// Takes over what a transaction has written.
    pub fn commit(&mut self, writes: crate::Writes) {
        for (key, value) in writes {
            match value {
                Some(value) => self.records.insert(Bytes::from(key), value),
                None => self.records.remove(key.as_slice()),
            };
        }
    }

    /// All records, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.records.iter()
    }

    fn range(&self, from: &[u8], to: &[u8]) -> impl DoubleEndedIterator<Item = Pair> + '_ {
        self.records
            .range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
            .map(|(key, value)| (key.clone(), value.clone()))
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.records.get(key).cloned())
    }

    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        // BTreeMap panics where a range is empty or inverted.
        if from >= to {
            return Ok(None);
        }
        Ok(self.range(from, to).next())
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        if from >= to {
            return Ok(None);
        }
        Ok(self.range(from, to).next_back())
    }
}
