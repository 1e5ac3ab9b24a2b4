//! What each command does to the ledger. One file for each kind; `jobs` holds the steps that several of them share.

mod assign;
mod begin;
mod callback;
mod cancel;
mod complete;
mod expire;
mod jobs;
mod languages;
mod nodes;
mod owners;
pub(crate) mod placement;
mod purge;
mod reweigh;
mod submit;

use crate::command::{Command, QueueBound, Reply};
use crate::event::Event;
use crate::keys;
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;

/// The rules with which finished jobs are kept in the order of age.
pub const BY_AGE: u32 = 1;
/// Those by which a job weighs what its records hold, and what is still to be delivered is removed last.
pub const BY_RECORDS: u32 = 2;
/// Those with which owners have their turns within a level of the queue, and finished jobs can be purged.
pub const BY_OWNER: u32 = 3;
/// The last rules that this program knows, by number. What a command does may only change by another command, which begins
/// the new rules once every node knows them.
pub const RULES: u32 = BY_OWNER;

pub use cancel::CANCELLED;
pub use languages::MAX_ENTRIES as MAX_LANGUAGES;
pub use purge::PURGED_MS;

/// Applies one command.
pub(crate) fn apply<S: Store>(
    tx: &mut Transaction<S>,
    command: Command,
    queue: Option<QueueBound>,
) -> Result<Reply, StoreError> {
    match command {
        Command::Submit { id, spec, key } => submit::submit(tx, id, &spec, key, queue),
        Command::SubmitAll { jobs } | Command::SubmitCompiled { jobs } => {
            submit::submit_all(tx, jobs, queue)
        }
        Command::Assign { job, node } => assign::assign(tx, job, node),
        Command::Complete {
            job,
            attempt,
            node,
            result,
        } => complete::complete(tx, job, attempt, node, result),
        Command::Release {
            job,
            attempt,
            node,
            reason,
        } => complete::release(tx, job, attempt, node, &reason),
        Command::Cancel { job } => cancel::cancel(tx, job),
        Command::NodeUp {
            node,
            incarnation,
            http,
            slots,
            languages,
            version,
        } => nodes::up(
            tx,
            nodes::Announcement {
                node,
                incarnation,
                http,
                slots,
                languages,
                version,
            },
        ),
        Command::NodeLost { node, incarnation } => nodes::lost(tx, node, incarnation),
        Command::Drain { node, draining } => nodes::drain(tx, node, draining),
        Command::Admit { peer, http, floor } => nodes::admit(tx, peer, http, floor),
        Command::Remove { node } => nodes::remove(tx, node),
        Command::Configure { settings } => {
            tx.put(keys::SETTINGS.to_vec(), &settings)?;
            tx.events.push(Event::SettingsChanged);
            Ok(Reply::Configured)
        }
        Command::CallbackTried {
            job,
            attempt,
            outcome,
            retry_ms,
        } => callback::tried(tx, job, attempt, outcome, retry_ms),
        Command::CallbackAgain { job } => callback::again(tx, job),
        Command::SetLanguage {
            image,
            language,
            disabled,
            expected,
        } => languages::set(tx, image, *language, disabled, expected),
        Command::DisableLanguage {
            name,
            disabled,
            expected,
        } => languages::disable(tx, &name, disabled, expected),
        Command::RemoveLanguage { name, expected } => languages::remove(tx, &name, expected),
        Command::Expire { limit, keep_bytes } => expire::expire(tx, limit, keep_bytes),
        Command::OrderByAge { limit } => expire::order_by_age(tx, limit),
        Command::Reweigh { limit } => reweigh::reweigh(tx, limit),
        Command::Begin { rules } => begin::begin(tx, rules),
        Command::Purge { job } => purge::purge(tx, job),
        Command::ExpireOldest {
            limit,
            finished_ms,
            keep_bytes,
        } => expire::oldest(tx, limit, finished_ms, keep_bytes),
    }
}
