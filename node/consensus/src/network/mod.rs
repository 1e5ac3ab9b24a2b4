//! How nodes talk: one persistent HTTP/2 connection to every peer, gRPC over it, and a check on both ends that the
//! right node of the right cluster is talking.

mod check;
mod client;
mod service;

pub use self::check::Identity;
pub(crate) use self::check::check;
pub(crate) use self::client::{Connections, Peers, never_sent};
pub use self::client::{PeerClient, PeerTransport};
pub(crate) use self::service::Service;

/// No message is larger, in bytes. Batches are bounded far below, but a single job may be as large as its limits allow.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;
