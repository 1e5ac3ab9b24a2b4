//! Telling somebody that a job has finished: what the submitter asked for, and what has come of it.
//!
//! A delivery is a record of the ledger from the submission on. The command that finishes the job makes it due; whoever
//! leads sends it, and says with a command how each attempt went. So every node shows the same log of it, and whoever leads
//! next goes on where the last leader was.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A delivery is tried no more often.
pub const MAX_ATTEMPTS: usize = 8;
/// Nor is it sent again on demand once it was tried so often: its log must not grow for ever.
pub const MAX_ON_DEMAND: usize = 64;
/// What an attempt's error may have at most, characters.
const MAX_ERROR: usize = 200;

/// Text that must not be seen: it is not in what is printed for people.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text from being seen.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for whoever has to use it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Who is to be told, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// Where to; checked by the node that accepts the job.
    pub url: String,
    /// Further headers of the request. Their values may be credentials.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// What the request is signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
}

impl Callback {
    /// What it weighs, bytes.
    #[must_use]
    pub fn weight(&self) -> u64 {
        let headers = self.headers.iter();
        let headers: usize = headers
            .map(|(name, value)| name.len() + value.0.len())
            .sum();
        let secret = self.secret.as_ref().map_or(0, |secret| secret.0.len());
        (self.url.len() + headers + secret) as u64
    }
}

/// How a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// The job has not finished.
    Waiting,
    /// It is to be sent, for the first time or again.
    Pending,
    /// It was received.
    Delivered,
    /// It was tried as often as it may be, or cannot be sent.
    Failed,
}

impl DeliveryState {
    /// The word used in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

/// One attempt to deliver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryAttempt {
    /// When it had ended, Unix milliseconds of the sender's clock.
    pub at_ms: u64,
    /// The receiver's status, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong, if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl DeliveryAttempt {
    /// Whether the receiver has it.
    #[must_use]
    pub fn delivered(&self) -> bool {
        self.status
            .is_some_and(|status| (200..300).contains(&status))
    }

    pub(crate) fn bounded(mut self) -> Self {
        if let Some(error) = &mut self.error
            && let Some((end, _)) = error.char_indices().nth(MAX_ERROR)
        {
            error.truncate(end);
        }
        self
    }
}

/// A delivery and its log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Where to.
    pub url: String,
    /// How it stands.
    pub state: DeliveryState,
    /// When it is to be sent next, Unix milliseconds; only while it is pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_ms: Option<u64>,
    /// What was tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<DeliveryAttempt>,
}

impl Delivery {
    /// The receiver's host, with its port if it is named: deliveries to one host must not hold up those to others.
    #[must_use]
    pub fn host(&self) -> &str {
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        rest.split(['/', '?', '#']).next().unwrap_or_default()
    }
}
