//! What the consensus of a node is started with.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use quorun_ledger::{NodeId, QueueBound};

use crate::error::Error;
use crate::network::PeerAccess;

/// The id of a cluster: which nodes may talk to each other. Displayed as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why text is not a cluster id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cluster id is 32 hexadecimal digits")]
pub struct InvalidClusterId;

impl FromStr for ClusterId {
    type Err = InvalidClusterId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(InvalidClusterId);
        }
        u128::from_str_radix(text, 16)
            .map(|id| Self(id.to_be_bytes()))
            .map_err(|_| InvalidClusterId)
    }
}

/// Where a member of the cluster is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// host:port of its peer port (gRPC).
    pub peer: String,
    /// host:port of its HTTP port; empty when not known.
    pub http: String,
}

/// What the consensus of a node is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node. Never 0, and never the id of a node that was removed.
    pub id: NodeId,
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// The voters that a fresh cluster starts with; the same on every node.
    pub members: BTreeMap<NodeId, Member>,
    /// Holds `log/`, `log.watermark`, `ledger/` and `snapshots/`.
    pub data_dir: PathBuf,
    /// How often the leader shows that it lives.
    pub heartbeat: Duration,
    /// The shortest time without a leader after which a node stands for election; see [`Self::election_max`].
    pub election_min: Duration,
    /// The longest such time, and the length of the leader's lease.
    pub election_max: Duration,
    /// A snapshot is built when so many entries were committed since the last one; a quarter of them is then kept in the
    /// log for followers that are only a little behind. While a follower receives one, none is built, up to a bound.
    pub snapshot_after: u64,
    /// What the log keeps on disk of the entries that a snapshot covers, bytes, however many entries are to be kept.
    pub log_kept: u64,
    /// Counts the starts of this node, from 1: the others are then asked whether they know of a later one, or of more
    /// entries, before the node takes part. `None`: nobody is asked.
    pub incarnation: Option<u64>,
    /// What the queue may hold while this node leads; anything if `None`.
    pub queue: Option<QueueBound>,
    /// By what the nodes know each other.
    pub access: PeerAccess,
    /// Peer addresses that are dialled at another address, so that tests can put themselves between the nodes.
    pub dial: BTreeMap<String, String>,
}

impl Options {
    /// The default of [`log_kept`](Self::log_kept): more than 5,000 entries take that fit into a part of a record each.
    pub const LOG_KEPT: u64 = 64 << 20;

    /// Options with the default times: a heartbeat every 75 ms, elections after 150 to 300 ms, a snapshot every 20,000
    /// entries, 64 MiB of log behind it.
    #[must_use]
    pub fn new(
        id: NodeId,
        cluster: ClusterId,
        members: BTreeMap<NodeId, Member>,
        data_dir: PathBuf,
    ) -> Self {
        Self {
            id,
            cluster,
            members,
            data_dir,
            heartbeat: Duration::from_millis(75),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
            snapshot_after: 20_000,
            log_kept: Self::LOG_KEPT,
            incarnation: None,
            queue: None,
            access: PeerAccess::default(),
            dial: BTreeMap::new(),
        }
    }

    /// What openraft is told.
    pub(crate) fn raft(&self) -> Result<openraft::Config, Error> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: self.cluster.to_string(),
            heartbeat_interval: millis(self.heartbeat),
            // None where replication has been answered just now. A follower then hears nothing for less than two
            // heartbeats, which is the shortest election time that is allowed.
            heartbeat_min_interval: Some(millis(self.heartbeat) / 2),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            enable_pre_vote: Some(true),
            // A restarted leader's ledger may be behind what it had answered for: it has to be elected anew.
            enable_leader_restore: Some(false),
            // They are asked for when they are due (`transfers`).
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.snapshot_after / 4,
            // Below the snapshot threshold a snapshot would never cure the lag.
            replication_lag_threshold: self.snapshot_after.saturating_mul(2),
            purge_batch_size: (self.snapshot_after / 8).clamp(1, 256),
            max_payload_entries: 1024,
            install_snapshot_timeout: 60_000,
            backoff: "50ms 100ms 200ms ...250ms".to_owned(),
            ..openraft::Config::default()
        };
        config
            .validate()
            .map_err(|error| Error::Options(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_is_read_as_it_is_displayed() {
        let id = ClusterId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            "",
            "00",
            "+00102030405060708090a0b0c0d0eff",
            "x00102030405060708090a0b0c0d0eff",
        ] {
            assert_eq!(wrong.parse::<ClusterId>(), Err(InvalidClusterId), "{wrong}");
        }
    }

    #[test]
    fn the_default_times_are_valid() {
        let options = Options::new(1, ClusterId([7; 16]), BTreeMap::new(), PathBuf::new());
        let config = options.raft().unwrap();
        assert_eq!(config.heartbeat_interval, 75);
        assert_eq!(config.max_in_snapshot_log_to_keep, 5_000);
    }
}
