//! Languages that an admin sets, disables and removes while the cluster runs.
//!
//! No node and no job is touched here: a job of one of these languages carries its definition, and nodes say by name and
//! version which definitions they can run.

use crate::command::{Rejection, Reply};
use crate::event::Event;
use crate::keys;
use crate::language::{Definition, Entry, Language};
use crate::store::{Store, StoreError};
use crate::transaction::Transaction;

/// So many languages can have an entry. Part of the rules: all nodes must have the same.
pub const MAX_ENTRIES: usize = 256;

/// What an entry is to become.
enum Wanted {
    /// Defined here.
    Defined(Box<Definition>),
    /// What it is, apart from being disabled.
    Same,
}

pub(super) fn set<S: Store>(
    tx: &mut Transaction<S>,
    image: String,
    language: Language,
    disabled: bool,
    expected: Option<u64>,
) -> Result<Reply, StoreError> {
    let name = language.name.clone();
    for (other, entry) in tx.view().languages()? {
        let Some(definition) = entry.definition.filter(|_| other != name) else {
            continue;
        };
        let mut words = std::iter::once(&language.name).chain(&language.aliases);
        if let Some(word) = words.find(|word| definition.language.is_called(word)) {
            return Ok(Reply::Rejected(Rejection::NameTaken {
                word: word.clone(),
                language: other,
            }));
        }
    }
    let definition = Definition {
        version: 0,
        image,
        language,
    };
    change(
        tx,
        &name,
        Wanted::Defined(Box::new(definition)),
        disabled,
        expected,
    )
}

pub(super) fn disable<S: Store>(
    tx: &mut Transaction<S>,
    name: &str,
    disabled: bool,
    expected: Option<u64>,
) -> Result<Reply, StoreError> {
    change(tx, name, Wanted::Same, disabled, expected)
}

fn change<S: Store>(
    tx: &mut Transaction<S>,
    name: &str,
    wanted: Wanted,
    disabled: bool,
    expected: Option<u64>,
) -> Result<Reply, StoreError> {
    let old = tx.view().language(name)?;
    let was = old.as_ref().and_then(|entry| entry.definition.as_ref());
    let mut definition = match wanted {
        Wanted::Same => was.cloned(),
        Wanted::Defined(new) => {
            // What says the same as before is the same: its nodes and its jobs need not be told apart.
            let same = was.filter(|was| was.language == new.language && was.image == new.image);
            Some(same.cloned().unwrap_or(*new))
        }
    };
    let stays = match &old {
        Some(old) => old.disabled == disabled && old.definition == definition,
        None => definition.is_none() && !disabled,
    };
    let version = old.as_ref().map_or(0, |entry| entry.version);
    if stays {
        // Also when another version was expected: a proposal that has come twice finds what it did itself.
        return Ok(Reply::LanguageSet { version });
    }
    if let Some(rejection) = unexpected(version, expected) {
        return Ok(Reply::Rejected(rejection));
    }
    if definition.is_none() && !disabled {
        // Nothing is left that differs from the nodes' files.
        return forget(tx, name);
    }
    if old.is_none() && tx.view().languages()?.len() >= MAX_ENTRIES {
        let limit = MAX_ENTRIES as u64;
        return Ok(Reply::Rejected(Rejection::TooManyLanguages { limit }));
    }
    let version = tx.view().language_changes()? + 1;
    tx.put(keys::LANGUAGE_CHANGES.to_vec(), &version)?;
    if let Some(definition) = definition.as_mut().filter(|new| new.version == 0) {
        definition.version = version;
    }
    let entry = Entry {
        version,
        changed_ms: tx.counters.time_ms,
        disabled,
        definition,
    };
    tx.put(keys::language(name), &entry)?;
    tx.events.push(Event::LanguagesChanged);
    Ok(Reply::LanguageSet { version })
}

pub(super) fn remove<S: Store>(
    tx: &mut Transaction<S>,
    name: &str,
    expected: Option<u64>,
) -> Result<Reply, StoreError> {
    let Some(old) = tx.view().language(name)? else {
        return Ok(Reply::Rejected(Rejection::UnknownLanguage));
    };
    if let Some(rejection) = unexpected(old.version, expected) {
        return Ok(Reply::Rejected(rejection));
    }
    forget(tx, name)
}

fn forget<S: Store>(tx: &mut Transaction<S>, name: &str) -> Result<Reply, StoreError> {
    tx.remove(keys::language(name))?;
    tx.events.push(Event::LanguagesChanged);
    Ok(Reply::LanguageRemoved)
}

/// Why an entry of this version, 0 for none, is not to be changed by who expects another one.
fn unexpected(version: u64, expected: Option<u64>) -> Option<Rejection> {
    expected
        .filter(|expected| *expected != version)
        .map(|_| Rejection::LanguageChanged { version })
}
