//! The state hash: one figure for the whole ledger, kept as it changes.
//!
//! It is a multiset hash: the wrapping sum of one 128-bit BLAKE3 digest for each record, so that a write costs the
//! digests of the old and the new value and never a look at the rest. Two nodes that have applied the same log up to
//! the same index must show the same hash; a difference means that a machine computed or kept something wrong.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A multiset hash over records.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash(u64, u64);

impl StateHash {
    fn value(self) -> u128 {
        (u128::from(self.0) << 64) | u128::from(self.1)
    }

    #[allow(clippy::cast_possible_truncation)] // the two halves of the sum are what is kept
    fn of(value: u128) -> Self {
        Self((value >> 64) as u64, value as u64)
    }

    fn digest(key: &[u8], value: &[u8]) -> u128 {
        let mut hasher = blake3::Hasher::new();
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hasher.update(&(key.len() as u64).to_be_bytes());
        hasher.update(key);
        hasher.update(value);
        let mut half = [0; 16];
        half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        u128::from_be_bytes(half)
    }

    /// Takes a record in.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        *self = Self::of(self.value().wrapping_add(Self::digest(key, value)));
    }

    /// Takes a record out.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        *self = Self::of(self.value().wrapping_sub(Self::digest(key, value)));
    }
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.0, self.1)
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_removal_undoes() {
        let (mut a, mut b) = (StateHash::default(), StateHash::default());
        a.add(b"x", b"1");
        a.add(b"y", b"2");
        b.add(b"y", b"2");
        b.add(b"z", b"3");
        b.add(b"x", b"1");
        assert_ne!(a, b);
        b.remove(b"z", b"3");
        assert_eq!(a, b);
    }

    #[test]
    fn key_and_value_are_kept_apart() {
        let (mut a, mut b) = (StateHash::default(), StateHash::default());
        a.add(b"ab", b"c");
        b.add(b"a", b"bc");
        assert_ne!(a, b);
    }
}
