//! What holds for the whole cluster: the ledger's settings, and where they say nothing, this node's configuration.

use std::time::Duration;

use quorun_consensus::Handle;
use quorun_ledger::Settings;
use tokio::sync::watch;

use crate::config::Config;
use crate::ledger;

/// What holds now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective {
    /// How long finished jobs are kept, unless their submission says otherwise.
    pub retention: Duration,
    /// What finished jobs may hold all together, bytes.
    pub retention_bytes: u64,
    /// Silence after which a voter gives its vote to a learner.
    pub replace_voter: Duration,
}

/// The settings as this node's ledger has them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    own: Effective,
    set: watch::Sender<Settings>,
}

impl ClusterSettings {
    /// Nothing is set in the ledger yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            own: Effective {
                retention: config.retention,
                retention_bytes: config.retention_bytes,
                replace_voter: config.replace_voter,
            },
            set: watch::Sender::new(Settings::default()),
        }
    }

    /// What holds now.
    #[must_use]
    pub fn current(&self) -> Effective {
        let set = self.set();
        let millis = |set: Option<u64>, own| set.map_or(own, Duration::from_millis);
        Effective {
            retention: millis(set.retention_ms, self.own.retention),
            retention_bytes: set.retention_bytes.unwrap_or(self.own.retention_bytes),
            replace_voter: millis(set.replace_voter_ms, self.own.replace_voter),
        }
    }

    /// What the ledger says.
    #[must_use]
    pub fn set(&self) -> Settings {
        *self.set.borrow()
    }

    /// Reads the ledger anew.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn changed(&self, consensus: &Handle) -> Result<(), ledger::ReadFailed> {
        let settings = ledger::read(consensus, quorun_ledger::View::settings).await?;
        self.set.send_replace(settings);
        Ok(())
    }
}
