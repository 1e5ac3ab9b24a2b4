//! Removing a finished job before its retention is over.

use quorun_ledger::{BY_OWNER, Command, JobId, Rejection, Reply};

use super::{Error, Jobs};
use crate::ledger;

impl Jobs {
    /// Removes a finished job, with all that was submitted and printed.
    ///
    /// # Errors
    /// When there is no such job, it has not finished or its end is still to be told, or the cluster did not confirm.
    pub async fn purge(&self, job: JobId) -> Result<(), Error> {
        let inner = &self.inner;
        inner.linearize().await?;
        let (there, rules) = ledger::look(&inner.consensus, move |view| {
            Ok((view.job(job)?.is_some(), view.counters()?.rules))
        })
        .await?;
        if !there {
            return Err(Error::NotFound(job));
        }
        // Nodes that do not know these rules would stop at the command.
        if rules < BY_OWNER {
            return Err(Error::OlderNodes);
        }
        match inner.propose(Command::Purge { job }, job).await? {
            Reply::Purged => Ok(()),
            Reply::Rejected(Rejection::UnknownJob) => Err(Error::NotFound(job)),
            Reply::Rejected(Rejection::NotFinished) => Err(Error::Unfinished(job)),
            Reply::Rejected(Rejection::Undelivered) => Err(Error::Undelivered(job)),
            _ => Err(Error::Unknown { job }),
        }
    }
}
