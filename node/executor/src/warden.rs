//! The warden's program, carried inside the node.

use std::sync::LazyLock;

/// The program: static, for the machine that the node is for.
pub(crate) const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quorun-warden.bin"));

/// A short name for exactly this program.
pub(crate) static HASH: LazyLock<String> =
    LazyLock::new(|| blake3::hash(PROGRAM).to_hex()[..16].to_owned());
