//! What this node can run: whether the images of the languages are on its engine, and how they come there.
//!
//! A loop looks for the image of each language whenever the languages, or the engine's health, have changed, and now and
//! then besides. What is missing is pulled, if that is allowed, a few at a time, and again after longer and longer pauses.
//! What can be run goes into the node's record in the ledger, so that it gets jobs of these languages only. How each of
//! them stands is told to whoever asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorun_consensus::Handle;
use quorun_executor::{Executor, Health, Presence};
use quorun_ledger::{Language, NodeId};
use quorun_proto::v1::LanguageReport;
use tokio::sync::{Notify, Semaphore, watch};
use tracing::{debug, info, warn};

use crate::catalogue::{Catalogue, Known, Snapshot};
use crate::ledger;

/// Pause between two looks, unless there is news.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What is known of an image is believed for so long.
const BELIEVED: Duration = Duration::from_secs(30);
/// Pulls at one time.
const PULLS: usize = 2;
/// How long one pull may take.
const PULL_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// Pauses between pulls of one image that fail.
const PULL_AGAIN_FIRST: Duration = Duration::from_secs(10);
const PULL_AGAIN_MOST: Duration = Duration::from_secs(600);
/// Images, each with a size of sandbox, of which one is kept warm. What is beyond is made when a job needs it.
const WARM: usize = 32;
/// What is told of a reason, or of how far a pull is, bytes.
const REASON: usize = 500;

/// What is known of what a language needs.
#[derive(Clone, Debug, Default)]
struct State {
    /// Whether it is here, as far as is known, and what stands for its content.
    id: Option<String>,
    /// Why it is not.
    missing: Option<String>,
    checked: Option<Instant>,
    /// How far the pull that is under way is.
    pulling: Option<String>,
    failures: u32,
    pull_again: Option<Instant>,
}

/// What a version follows from: what stands for the image's content, the command, and its environment.
type VersionKey = (String, Vec<String>, BTreeMap<String, String>);
type Versions = BTreeMap<VersionKey, Option<String>>;

/// What this node can run. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    consensus: Handle,
    executor: Executor,
    catalogue: Catalogue,
    /// Whether images of the ledger's languages are pulled, and those of the file's.
    pulls: (bool, bool),
    /// By image; where there are none, by what is needed.
    states: Mutex<BTreeMap<String, State>>,
    runnable: watch::Sender<BTreeSet<String>>,
    versions: Mutex<Versions>,
    /// Something changed.
    look: Notify,
    pulling: Arc<Semaphore>,
    /// Held by whoever asks for a version: one at a time, beside the jobs.
    asking: tokio::sync::Mutex<()>,
    /// Somebody goes through all of them.
    asking_all: AtomicBool,
}

/// A language for whose jobs this node may be asked.
struct Target {
    needs: String,
    language: Language,
    of_file: bool,
    /// Its sandboxes are kept warm.
    wanted: bool,
}

impl Images {
    /// Nothing was looked for yet: what is in the file is believed to be there. `pulls`: whether images of the ledger's
    /// languages are pulled, and those of the file's.
    #[must_use]
    pub fn new(
        node: NodeId,
        consensus: Handle,
        executor: Executor,
        catalogue: Catalogue,
        pulls: (bool, bool),
    ) -> Self {
        let file = catalogue.file().iter();
        let runnable = file.map(|language| language.name.clone()).collect();
        Self {
            inner: Arc::new(Inner {
                node,
                consensus,
                executor,
                catalogue,
                pulls,
                states: Mutex::default(),
                runnable: watch::Sender::new(runnable),
                versions: Mutex::default(),
                look: Notify::new(),
                pulling: Arc::new(Semaphore::new(PULLS)),
                asking: tokio::sync::Mutex::new(()),
                asking_all: AtomicBool::new(false),
            }),
        }
    }

    /// What can be run, by name, or by name and version; and every change of it.
    #[must_use]
    pub fn runnable(&self) -> watch::Receiver<BTreeSet<String>> {
        self.inner.runnable.subscribe()
    }

    /// Looks after the images until the node ends.
    pub async fn run(self) {
        let mut catalogue = self.inner.catalogue.subscribe();
        let mut health = self.inner.executor.health();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.inner.look.notified() => {}
                changed = catalogue.changed() => if changed.is_err() { return },
                changed = health.changed() => if changed.is_err() { return },
            }
            let ready = *health.borrow_and_update() == Health::Ready;
            let now = Arc::clone(&catalogue.borrow_and_update());
            self.look(&now, ready).await;
        }
    }

    async fn look(&self, now: &Snapshot, ready: bool) {
        let inner = &self.inner;
        let targets = inner.targets(now);
        if ready {
            for target in &targets {
                inner.check(target).await;
            }
        }
        inner.forget_all_but(&targets);
        for target in &targets {
            if ready && self.is_to_be_pulled(target) {
                self.pull(target.language.image.clone());
            }
        }
        let waiting = match ledger::read(&inner.consensus, |view| view.needed()).await {
            Ok(waiting) => waiting.into_iter().map(|(needs, _)| needs).collect(),
            Err(error) => {
                debug!(%error, "what waits was not read");
                Vec::new()
            }
        };
        let runnable = inner.can_run(&targets, now, waiting);
        let changed = inner.runnable.send_if_modified(|known| {
            let changed = *known != runnable;
            *known = runnable;
            changed
        });
        if changed {
            debug!(languages = ?inner.runnable.borrow(), "what this node can run has changed");
        }
        inner.keep_warm(&targets);
        if ready {
            // Of a language that an admin has set, everybody wants to know; of the others, whoever asks.
            self.ask_versions_of(|known| known.definition.is_some());
        }
    }

    /// Whether an image is missing and may be pulled now.
    fn is_to_be_pulled(&self, target: &Target) -> bool {
        let states = self.inner.states();
        self.inner.pulls(target)
            && states.get(&self.inner.key(target)).is_some_and(|state| {
                state.missing.is_some()
                    && state.pulling.is_none()
                    && state.pull_again.is_none_or(|at| Instant::now() >= at)
            })
    }

    /// Has an image pulled, off the loop.
    fn pull(&self, image: String) {
        if let Some(state) = self.inner.states().get_mut(&image) {
            state.pulling = Some("waiting for other pulls".to_owned());
        }
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let Ok(_turn) = inner.pulling.acquire().await else {
                return;
            };
            let now = inner.catalogue.current();
            let mut targets = inner.targets(&now).into_iter();
            if !targets.any(|target| target.language.image == image) {
                // Its language was removed while others were pulled.
                inner.states().remove(&image);
                return;
            }
            info!(image, "pulling an image");
            let progress = |step: String| {
                if let Some(state) = inner.states().get_mut(&image) {
                    state.pulling = Some(shortened(&step));
                }
            };
            progress("asking the registry".to_owned());
            let pulled = inner.executor.pull(&image, progress);
            let result = match tokio::time::timeout(PULL_PATIENCE, pulled).await {
                Ok(result) => result,
                Err(_) => Err(format!("the pull took longer than {PULL_PATIENCE:?}")),
            };
            if let Some(state) = inner.states().get_mut(&image) {
                state.pulling = None;
                state.checked = None;
                match &result {
                    Ok(()) => {
                        state.failures = 0;
                        state.pull_again = None;
                    }
                    Err(reason) => {
                        let pause = PULL_AGAIN_FIRST * 2_u32.pow(state.failures.min(10));
                        state.failures += 1;
                        state.pull_again = Some(Instant::now() + pause.min(PULL_AGAIN_MOST));
                        state.missing = Some(shortened(&format!("pulling it failed: {reason}")));
                        // The reason is the pull's, and stands until the next one.
                        state.checked = Some(Instant::now());
                    }
                }
            }
            match result {
                Ok(()) => info!(image, "image pulled"),
                Err(reason) => warn!(image, reason, "an image could not be pulled"),
            }
            inner.look.notify_one();
        });
    }

    /// Whether this node believes that it has what is needed for these jobs.
    #[must_use]
    pub fn has(&self, needs: &str) -> bool {
        let targets = self.inner.targets(&self.inner.catalogue.current());
        let states = self.inner.states();
        targets
            .iter()
            .find(|target| target.needs == needs)
            .and_then(|target| states.get(&self.inner.key(target)))
            .is_some_and(|state| state.id.is_some())
    }

    /// Looks whether the image of a job that nobody has been looking after is here; why not, if it is not.
    pub async fn is_missing(&self, language: &Language) -> Option<String> {
        match self.inner.executor.presence(language).await {
            Presence::Missing(reason) => Some(reason),
            Presence::Present(_) | Presence::Unknown(_) => None,
        }
    }

    /// How every language stands on this node.
    #[must_use]
    pub fn report(&self) -> Vec<LanguageReport> {
        let now = self.inner.catalogue.current();
        now.all().map(|known| self.inner.report(known)).collect()
    }

    /// Finds out what is not known yet of the languages' versions, off the caller's path and one after the other.
    pub fn ask_versions(&self) {
        self.ask_versions_of(|_| true);
    }

    fn ask_versions_of(&self, wanted: fn(&Known) -> bool) {
        let now = self.inner.catalogue.current();
        let is_open = |known: &&Known| wanted(known) && self.inner.is_version_open(&known.language);
        if !now.all().any(|known| is_open(&known))
            || self.inner.asking_all.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let images = self.clone();
        tokio::spawn(async move {
            for known in now.all().filter(|known| wanted(known)) {
                let _turn = images.inner.asking.lock().await;
                images.inner.ask_version(&known.language).await;
            }
            images.inner.asking_all.store(false, Ordering::Release);
        });
    }

    /// Finds out a language's version, if it is not known, and says it.
    pub async fn version(&self, known: &Known) -> Option<String> {
        let _turn = self.inner.asking.lock().await;
        self.inner.ask_version(&known.language).await
    }
}

impl Inner {
    fn states(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its image is pulled where it is missing.
    fn pulls(&self, target: &Target) -> bool {
        let (set, file) = self.pulls;
        let allowed = if target.of_file { file } else { set };
        allowed && self.executor.has_images()
    }

    /// Where the state of what a language needs is kept.
    fn key(&self, target: &Target) -> String {
        if self.executor.has_images() {
            target.language.image.clone()
        } else {
            target.needs.clone()
        }
    }

    /// All languages for whose jobs this node may be asked: those that can be named, and those of its file that the ledger
    /// hides, whose jobs were accepted before.
    fn targets(&self, now: &Snapshot) -> Vec<Target> {
        let mut targets: Vec<Target> = now
            .all()
            .map(|known| Target {
                needs: known.needs(),
                language: known.language.clone(),
                of_file: known.definition.is_none(),
                wanted: !known.disabled,
            })
            .collect();
        for language in self.catalogue.file() {
            if !targets.iter().any(|target| target.needs == language.name) {
                targets.push(Target {
                    needs: language.name.clone(),
                    language: language.clone(),
                    of_file: true,
                    wanted: false,
                });
            }
        }
        targets
    }

    /// Looks for what a language needs, unless that was done lately.
    async fn check(&self, target: &Target) {
        let key = self.key(target);
        {
            let states = self.states();
            let state = states.get(&key);
            let lately = |at: Instant| at.elapsed() < BELIEVED;
            if state.is_some_and(|s| s.pulling.is_some() || s.checked.is_some_and(lately)) {
                return;
            }
        }
        let found = self.executor.presence(&target.language).await;
        let mut states = self.states();
        let state = states.entry(key).or_default();
        let before = (state.id.is_some(), state.missing.is_some());
        match found {
            Presence::Present(image) => {
                *state = State {
                    id: Some(image.id),
                    checked: Some(Instant::now()),
                    ..State::default()
                };
            }
            Presence::Missing(reason) => {
                state.id = None;
                state.checked = Some(Instant::now());
                // What a pull said is worth more.
                if state.failures == 0 || state.missing.is_none() {
                    state.missing = Some(shortened(&reason));
                }
            }
            // What was known stands.
            Presence::Unknown(reason) => debug!(reason, "an image was not looked for"),
        }
        let after = (state.id.is_some(), state.missing.is_some());
        let missing = state.missing.clone();
        drop(states);
        if before != after {
            match missing {
                Some(reason) => warn!(
                    language = target.needs,
                    reason, "a language cannot run here"
                ),
                None => debug!(language = target.needs, "a language can run here"),
            }
        }
    }

    fn forget_all_but(&self, targets: &[Target]) {
        let keys: BTreeSet<String> = targets.iter().map(|target| self.key(target)).collect();
        let mut states = self.states();
        states.retain(|key, state| state.pulling.is_some() || keys.contains(key));
        let ids: BTreeSet<&String> = states.values().filter_map(|s| s.id.as_ref()).collect();
        let mut versions = self.versions();
        versions.retain(|(id, _, _), _| ids.contains(id));
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node says that it can run: what is here, and what waits although nobody is going to run it otherwise. Those
    /// jobs then end, if need be with what is missing as their message, and do not wait for ever.
    fn can_run(
        &self,
        targets: &[Target],
        now: &Snapshot,
        waiting: Vec<String>,
    ) -> BTreeSet<String> {
        let states = self.states();
        let mut runnable = BTreeSet::new();
        let mut coming = BTreeSet::new();
        for target in targets {
            let state = states.get(&self.key(target));
            let here = match state {
                Some(state) if state.missing.is_some() => false,
                Some(state) if state.id.is_some() => true,
                // Until somebody has looked, a node has what it was started for.
                _ => target.of_file,
            };
            if here {
                runnable.insert(target.needs.clone());
            } else if state.is_none_or(|state| state.pulling.is_some() || state.missing.is_none()) {
                coming.insert(&target.needs);
            }
        }
        for needs in waiting {
            let known = targets.iter().any(|target| target.needs == needs);
            // Of a language of another node's file this one knows nothing.
            let mine = known || needs.contains('@');
            let others = now.runners(&needs).any(|node| node != self.node);
            if mine && !coming.contains(&needs) && (!known || !others) {
                runnable.insert(needs);
            }
        }
        runnable
    }

    fn keep_warm(&self, targets: &[Target]) {
        let mut warm = Vec::new();
        {
            let states = self.states();
            for target in targets.iter().filter(|target| target.wanted) {
                let state = states.get(&self.key(target));
                let sandbox = (
                    target.language.image.clone(),
                    target.language.limits.memory_kb,
                );
                let here = state.map_or(target.of_file, |state| state.missing.is_none());
                if here && warm.len() < WARM && !warm.contains(&sandbox) {
                    warm.push(sandbox);
                }
            }
        }
        self.executor.keep_warm(&warm);
    }

    fn report(&self, known: &Known) -> LanguageReport {
        let target = Target {
            needs: known.needs(),
            language: known.language.clone(),
            of_file: known.definition.is_none(),
            wanted: true,
        };
        let state = self.states().get(&self.key(&target)).cloned();
        let state = state.unwrap_or_default();
        let (word, reason) = match (&state.pulling, &state.missing, &state.id) {
            (Some(progress), _, _) => ("pulling", Some(progress.clone())),
            (None, Some(_), _) if self.pulls(&target) && state.failures == 0 => {
                ("pulling", Some("about to be pulled".to_owned()))
            }
            (None, Some(reason), _) => ("failed", Some(reason.clone())),
            (None, None, Some(_)) => ("present", None),
            (None, None, None) => ("unknown", None),
        };
        let version = state.id.as_ref().and_then(|id| {
            let command = known.language.version_command.clone()?;
            let key = (id.clone(), command, known.language.env.clone());
            self.versions().get(&key).cloned()?
        });
        LanguageReport {
            needs: target.needs,
            state: word.to_owned(),
            reason: reason.unwrap_or_default(),
            image_id: state.id.unwrap_or_default(),
            version: version.unwrap_or_default(),
        }
    }

    /// Whether a language has a version command whose answer is not known, and what it needs is here.
    fn is_version_open(&self, language: &Language) -> bool {
        let Some(command) = &language.version_command else {
            return false;
        };
        let states = self.states();
        let here = states.iter().find_map(|(key, state)| {
            let mine = *key == language.image || !self.executor.has_images();
            state.id.clone().filter(|_| mine)
        });
        here.is_some_and(|id| {
            let key = (id, command.clone(), language.env.clone());
            !self.versions().contains_key(&key)
        })
    }

    /// The version of a language whose image is here, asked if it was not yet.
    async fn ask_version(&self, language: &Language) -> Option<String> {
        let command = language.version_command.clone()?;
        let Presence::Present(image) = self.executor.presence(language).await else {
            return None;
        };
        let key = (image.id, command, language.env.clone());
        let known = self.versions().get(&key).cloned();
        if let Some(version) = known {
            return version;
        }
        // A node that cannot execute now is asked again another time.
        let version = self.executor.version(language).await.ok()?;
        self.versions().insert(key, version.clone());
        version
    }
}

/// The beginning of a text, on one line.
fn shortened(text: &str) -> String {
    let mut kept = String::new();
    for letter in text.trim().chars() {
        if kept.len() + letter.len_utf8() > REASON {
            break;
        }
        kept.push(if letter.is_control() { ' ' } else { letter });
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_short_and_on_one_line() {
        assert_eq!(shortened(" a\nb\x1bc "), "a b c");
        assert!(shortened(&"ü".repeat(10_000)).len() <= REASON);
    }
}
