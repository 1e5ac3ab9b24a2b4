//! The wire between Quorun's peers: `quorun.proto` and its generated code.
//!
//! The proto file is the documentation; this crate holds the names that both ends need beside it.

/// Metadata key: the cluster id of the caller, hexadecimal.
pub const CLUSTER_KEY: &str = "quorun-cluster";
/// Metadata key: the node id of the caller.
pub const FROM_KEY: &str = "quorun-from";
/// Metadata key: the node id that the caller believes it is talking to.
pub const TARGET_KEY: &str = "quorun-target";

/// Metadata key: the proof that the caller has the cluster's secret, hexadecimal; absent where there is none.
pub const PROOF_KEY: &str = "quorun-proof";
/// Metadata key of an answer: the node knows quiet requests (`AppendRequest`).
pub const QUIET_KEY: &str = "quorun-quiet";

/// Generated from `package quorun.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("quorun.v1");
}
