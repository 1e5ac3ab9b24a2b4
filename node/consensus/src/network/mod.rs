//! How nodes talk: gRPC over persistent connections, one to every peer for consensus and one for everything else, and a
//! check that the right node of the right cluster is talking.

mod access;
mod append;
mod check;
mod client;
mod service;

pub use self::access::{NAME as PEER_CERTIFICATE_NAME, PeerAccess, PeerTls, Secrets};
pub use self::check::Identity;
pub(crate) use self::check::check;
pub(crate) use self::client::{Connections, Peers, never_sent, of_certificates};
pub use self::client::{PeerClient, PeerTransport};
pub(crate) use self::service::Service;

/// No message is larger, in bytes. Batches are bounded far below, but a single job may be as large as its limits allow.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;
