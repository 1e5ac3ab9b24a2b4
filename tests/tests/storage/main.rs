//! What one node keeps on disk, under everything that can happen to it there.
//!
//! The stores run in a process of their own, which is this program started again ([`store`]), so that it can be killed at
//! any call, lose what it had not synced, and be given a disk that is full or fails. Whatever it had acknowledged must be
//! there afterwards.
//!
//! `QUORUN_STORAGE_TRIALS` says how often each kind of accident is tried (40 if it is not set).

#![allow(clippy::unwrap_used, missing_docs)]

mod accidents;
mod damage;
mod errors;
mod install;
mod store;

/// How often each kind of accident is tried.
fn trials() -> u64 {
    std::env::var("QUORUN_STORAGE_TRIALS").map_or(40, |text| text.parse().unwrap())
}
