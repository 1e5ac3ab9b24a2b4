//! Who may do what: tokens and their roles (`tokens`), how fast (`rate`), what is set for all of it (`config`), TLS for
//! clients (`tls`), and files that are read anew when they change (`reload`). `http::access` is where requests are held
//! to it; that an owner has no more jobs than it may is a rule of the ledger.

pub mod config;
pub mod rate;
pub mod reload;
pub mod tls;
pub mod tokens;

use std::sync::Arc;

use quorun_ledger::{Job, Owner, Priority};

use tokens::{Role, Token};

/// Who makes a request, as far as jobs are concerned.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Somebody, at a node without tokens: may do everything, and owns nothing.
    Anybody,
    /// Whoever has this token.
    Bearer(Arc<Token>),
}

impl Caller {
    /// Whether a job is to be shown to this caller, or touched by it. Whose it is not, for them it is not there.
    #[must_use]
    pub fn sees(&self, job: &Job) -> bool {
        match self.only() {
            None => true,
            Some(owner) => job.owner.as_deref() == Some(owner),
        }
    }

    /// The owner whose jobs are all that this caller sees; `None` if it sees everybody's.
    #[must_use]
    pub fn only(&self) -> Option<&str> {
        match self {
            Self::Anybody => None,
            Self::Bearer(token) if token.role == Role::Admin => None,
            Self::Bearer(token) => Some(&token.name),
        }
    }

    /// Whose the jobs are that this caller submits, and what bounds the ledger holds them to.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        match self {
            Self::Anybody => None,
            Self::Bearer(token) => Some(Owner {
                name: token.name.clone(),
                max_jobs: token.max_jobs,
                queue_percent: token.queue_percent,
            }),
        }
    }

    /// The highest level of the queue in which the jobs of this caller wait.
    #[must_use]
    pub fn max_priority(&self) -> Priority {
        match self {
            Self::Anybody => Priority::High,
            Self::Bearer(token) => token.max_priority.unwrap_or(Priority::High),
        }
    }
}
