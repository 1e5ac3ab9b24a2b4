//! The languages as they are now: those of this node's file, and what the ledger says on top of it.
//!
//! What is set in the ledger goes before the file: a language that has a definition there is that one on all nodes; one of
//! the file can be disabled there, and comes back when the entry is removed. A job of a language of the ledger carries its
//! definition (see [`quorun_ledger::Pinned`]), and waits for a node that can run that one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorun_consensus::Handle;
use quorun_ledger::language::{Definition, Entry, needed};
use quorun_ledger::{JobSpec, Language, Node, NodeId, Pinned};
use tokio::sync::watch;

use crate::ledger;

/// A language that can be named.
#[derive(Clone, Debug)]
pub struct Known {
    /// How it is run.
    pub language: Language,
    /// The image as it was named; the language's own may be the same by its digest.
    pub image: String,
    /// Version of its definition, if it is the ledger's; otherwise it is the file's.
    pub definition: Option<u64>,
    /// Version of its entry in the ledger; 0 when it has none.
    pub version: u64,
    /// When the entry was changed last, Unix milliseconds.
    pub changed_ms: Option<u64>,
    /// No submissions are accepted.
    pub disabled: bool,
}

impl Known {
    /// What a node must be able to run, to run its jobs.
    #[must_use]
    pub fn needs(&self) -> String {
        needed(&self.language.name, self.definition).into_owned()
    }
}

/// The languages at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    known: Vec<Known>,
    /// Nodes that are not lost, with what they can run.
    nodes: BTreeMap<NodeId, BTreeSet<String>>,
    /// What those can run that are lost, but are not removed.
    lost: BTreeSet<String>,
}

impl Snapshot {
    fn new(file: &[Language], mut entries: BTreeMap<String, Entry>, nodes: Vec<Node>) -> Self {
        let mut known = Vec::with_capacity(file.len() + entries.len());
        for language in file {
            let entry = entries.remove(&language.name);
            let (version, changed_ms) = entry.as_ref().map(|e| (e.version, e.changed_ms)).unzip();
            let disabled = entry.as_ref().is_some_and(|entry| entry.disabled);
            let definition = entry.and_then(|entry| entry.definition);
            let number = definition.as_ref().map(|definition| definition.version);
            let (image, language) = match definition {
                Some(Definition {
                    image, language, ..
                }) => (image, language),
                None => (language.image.clone(), language.clone()),
            };
            known.push(Known {
                language,
                image,
                definition: number,
                version: version.unwrap_or(0),
                changed_ms,
                disabled,
            });
        }
        for (_, entry) in entries {
            // Without a definition it is of another node's file.
            let Some(definition) = entry.definition else {
                continue;
            };
            known.push(Known {
                language: definition.language,
                image: definition.image,
                definition: Some(definition.version),
                version: entry.version,
                changed_ms: Some(entry.changed_ms),
                disabled: entry.disabled,
            });
        }
        let (lost, nodes): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.lost);
        Self {
            known,
            nodes: nodes
                .into_iter()
                .map(|node| (node.id, node.languages))
                .collect(),
            lost: lost.into_iter().flat_map(|node| node.languages).collect(),
        }
    }

    /// All languages: those of the file in its order, then the others by name.
    pub fn all(&self) -> impl Iterator<Item = &Known> {
        self.known.iter()
    }

    /// The language that goes by this name or alias. The ledger's go before the file's, names before aliases.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Known> {
        let called = |ledger: bool| {
            let mut known = self.known.iter().filter(move |known| {
                known.definition.is_some() == ledger && known.language.is_called(name)
            });
            known.next()
        };
        let named = |known: &&Known| known.language.name.eq_ignore_ascii_case(name);
        let exact = self.known.iter().find(named);
        exact.or_else(|| called(true)).or_else(|| called(false))
    }

    /// The nodes that are not lost.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.keys().copied()
    }

    /// The nodes that are not lost and can run what is needed.
    pub fn runners<'a>(&'a self, needs: &'a str) -> impl Iterator<Item = NodeId> + 'a {
        let can = self.nodes.iter().filter(|(_, can)| can.contains(needs));
        can.map(|(id, _)| *id)
    }

    /// Whether a node that is lost could run what is needed, if it came back.
    #[must_use]
    pub fn may_come_back(&self, needs: &str) -> bool {
        self.lost.contains(needs)
    }

    /// Whether its jobs would be run. Until the first node has announced itself, those of the file are taken to be.
    #[must_use]
    pub fn is_offered(&self, known: &Known) -> bool {
        !known.disabled && self.can_run(&known.needs(), known.definition.is_none())
    }

    fn can_run(&self, needs: &str, of_file: bool) -> bool {
        (self.nodes.is_empty() && of_file) || self.runners(needs).next().is_some()
    }

    /// Why a job is not accepted because of its language, if it is not.
    #[must_use]
    pub fn refuses(&self, spec: &JobSpec) -> Option<Refused> {
        let found = self.known.iter().find(|k| k.language.name == spec.language);
        if found.is_some_and(|known| known.disabled) {
            return Some(Refused::Disabled);
        }
        let version = spec
            .definition
            .as_ref()
            .map(|definition| definition.version);
        let needs = needed(&spec.language, version);
        (!self.can_run(&needs, version.is_none())).then_some(Refused::NotReady)
    }
}

/// Why a language's jobs are not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// An admin has disabled it.
    Disabled,
    /// No node that lives can run it.
    NotReady,
}

/// The definition that a job of this language carries.
#[must_use]
pub fn pinned(known: &Known) -> Option<Box<Pinned>> {
    let definition = Definition {
        version: known.definition?,
        image: String::new(),
        language: known.language.clone(),
    };
    Some(Box::new(Pinned::new(&definition)))
}

/// The languages as this node's ledger has them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Catalogue {
    file: Arc<Vec<Language>>,
    now: watch::Sender<Arc<Snapshot>>,
}

impl Catalogue {
    /// Those of the file; the ledger has not been asked.
    #[must_use]
    pub fn new(file: Vec<Language>) -> Self {
        let snapshot = Snapshot::new(&file, BTreeMap::new(), Vec::new());
        Self {
            file: Arc::new(file),
            now: watch::Sender::new(Arc::new(snapshot)),
        }
    }

    /// How they are now.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.now.borrow())
    }

    /// Every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.now.subscribe()
    }

    /// The languages of this node's file, whatever the ledger says of them.
    #[must_use]
    pub fn file(&self) -> &[Language] {
        &self.file
    }

    /// How a job is to be executed: as it carries it, or as this node's file says.
    #[must_use]
    pub fn of_job(&self, spec: &JobSpec) -> Option<Language> {
        match &spec.definition {
            Some(pinned) => Some(pinned.language.clone()),
            None => crate::languages::find(&self.file, &spec.language).cloned(),
        }
    }

    /// Reads the ledger anew.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn changed(&self, consensus: &Handle) -> Result<(), ledger::ReadFailed> {
        let read = ledger::read(consensus, |view| Ok((view.languages()?, view.nodes()?)));
        let (entries, nodes) = read.await?;
        let entries = entries.into_iter().collect();
        let snapshot = Snapshot::new(&self.file, entries, nodes);
        self.now.send_replace(Arc::new(snapshot));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(name: &str, aliases: &[&str]) -> Language {
        let mut language = crate::languages::tests::plain(name);
        language.aliases = aliases.iter().map(|a| (*a).to_owned()).collect();
        language
    }

    fn entry(version: u64, disabled: bool, language: Option<Language>) -> Entry {
        Entry {
            version,
            changed_ms: 1,
            disabled,
            definition: language.map(|language| Definition {
                version,
                image: "named".to_owned(),
                language,
            }),
        }
    }

    fn node(id: NodeId, can: &[&str], lost: bool) -> Node {
        Node {
            id,
            incarnation: 1,
            http: String::new(),
            slots: 1,
            busy: 0,
            languages: can.iter().map(|name| (*name).to_owned()).collect(),
            version: String::new(),
            draining: false,
            lost,
        }
    }

    #[test]
    fn the_ledger_goes_before_the_file() {
        let file = [language("python", &["py"]), language("c", &[])];
        let mut own = language("python", &["snake"]);
        own.run = vec!["pypy".to_owned()];
        let entries = BTreeMap::from([
            ("python".to_owned(), entry(3, false, Some(own))),
            (
                "zig".to_owned(),
                entry(4, false, Some(language("zig", &["C"]))),
            ),
            ("c".to_owned(), entry(5, true, None)),
            ("elsewhere".to_owned(), entry(6, true, None)),
        ]);
        let now = Snapshot::new(&file, entries, Vec::new());
        let names: Vec<_> = now.all().map(|known| known.needs()).collect();
        assert_eq!(names, ["python@3", "c", "zig@4"]);
        assert_eq!(now.find("python").unwrap().language.run, ["pypy"]);
        assert!(
            now.find("py").is_none(),
            "the file's aliases are hidden too"
        );
        assert_eq!(now.find("SNAKE").unwrap().version, 3);
        assert_eq!(now.find("c").unwrap().language.name, "c", "names first");
        assert!(now.find("c").unwrap().disabled);
        let back = Snapshot::new(&file, BTreeMap::new(), Vec::new());
        assert_eq!(back.find("py").unwrap().needs(), "python");
    }

    #[test]
    fn jobs_are_accepted_for_what_a_living_node_can_run() {
        let file = [language("python", &[]), language("c", &[])];
        let entries = || {
            BTreeMap::from([
                (
                    "zig".to_owned(),
                    entry(4, false, Some(language("zig", &[]))),
                ),
                ("nim".to_owned(), entry(5, true, Some(language("nim", &[])))),
            ])
        };
        let spec = |now: &Snapshot, name: &str| {
            let known = now.find(name).unwrap();
            JobSpec {
                language: name.to_owned(),
                definition: pinned(known),
                ..JobSpec::default()
            }
        };
        let refused = |now: &Snapshot, name: &str| {
            let refused = now.refuses(&spec(now, name));
            assert_eq!(refused.is_none(), now.is_offered(now.find(name).unwrap()));
            refused
        };
        let nobody = Snapshot::new(&file, entries(), Vec::new());
        assert_eq!(refused(&nobody, "python"), None, "nobody has said anything");
        assert_eq!(refused(&nobody, "zig"), Some(Refused::NotReady));
        let nodes = vec![
            node(1, &["python", "zig@3", "nim@5"], false),
            node(2, &["python", "c", "zig@4"], true),
        ];
        let now = Snapshot::new(&file, entries(), nodes.clone());
        assert_eq!(refused(&now, "python"), None);
        assert_eq!(refused(&now, "c"), Some(Refused::NotReady), "only the lost");
        assert!(now.may_come_back("c") && !now.may_come_back("nim@5"));
        assert_eq!(refused(&now, "zig"), Some(Refused::NotReady), "another one");
        assert_eq!(refused(&now, "nim"), Some(Refused::Disabled));
        let mut nodes = nodes;
        nodes[1].lost = false;
        let now = Snapshot::new(&file, entries(), nodes);
        assert_eq!(refused(&now, "zig"), None);
        assert_eq!(now.runners("python").collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_job_is_executed_as_it_was_accepted() {
        let catalogue = Catalogue::new(vec![language("python", &["py"])]);
        let spec = |definition| JobSpec {
            language: "python".to_owned(),
            definition,
            ..JobSpec::default()
        };
        let mut own = language("python", &["snake"]);
        own.run = vec!["pypy".to_owned()];
        let carried = Pinned {
            version: 2,
            language: own,
        };
        let ran = catalogue.of_job(&spec(Some(Box::new(carried)))).unwrap();
        assert_eq!(ran.run, ["pypy"]);
        assert_eq!(catalogue.of_job(&spec(None)).unwrap().run, ["run"]);
    }
}
