//! Chaos: a cluster of real processes is harmed in every way that the plan of a seed says, while clients go on; all that
//! they see is held against what must be true.
//!
//! A run has two phases. In the first, faults come one after the other and over each other, never more than two at a time,
//! and never taking away more than a minority but where the kind of fault says so. In the second, everything is made
//! whole, and all must settle. `plan` draws the faults, `faults` inflicts them on the `field` of nodes, `workload` is the
//! clients, `history` what they see, `invariants` what must hold, `report` the words about it. `validate`
//! shows that all this finds bugs.

pub mod faults;
pub mod field;
pub mod history;
pub mod invariants;
pub mod plan;
pub mod report;
pub mod validate;
pub mod workload;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use self::faults::{Done, Scene, inflict};
use self::field::{Field, Kept, Shape};
use self::history::{History, Invariant};
use self::invariants::{Settled, Usage};
use self::plan::{Kind, Plan, Reach};
use self::report::Report;
use self::workload::Workload;
use crate::say;

/// How long nodes may take to be ready once the faults are over.
const HEALED: Duration = Duration::from_secs(90);
/// How many faults there are at one time.
const AT_ONCE: usize = 2;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The plan and the jobs follow from it.
    pub seed: u64,
    /// How long faults come.
    pub length: Duration,
    /// How many nodes.
    pub nodes: u16,
    /// Which faults.
    pub kinds: Vec<Kind>,
    /// The time from one fault to the next, on average.
    pub pause: Duration,
    /// Jobs in a second.
    pub rate: f64,
    /// No more jobs than this.
    pub jobs: u64,
    /// Half of the programs take long, and so do pauses.
    pub long: bool,
    /// More options for every node.
    pub args: Vec<String>,
    /// More variables for every node.
    pub env: Vec<(String, String)>,
    /// The run ends as soon as one of these was seen to be broken.
    pub until: Vec<String>,
    /// The folders and logs of the nodes stay.
    pub keep: bool,
}

/// The faults under way.
#[derive(Default)]
struct UnderWay {
    all: usize,
    nodes: usize,
    total: usize,
}

impl UnderWay {
    fn has_room(&self, reach: Reach, minority: usize) -> bool {
        self.all == 0
            && match reach {
                Reach::All => self.total == 0,
                Reach::Node => self.total < AT_ONCE && self.nodes < minority,
                Reach::Soft => self.total < AT_ONCE,
            }
    }

    fn begins(&mut self, reach: Reach) {
        self.total += 1;
        self.all += usize::from(reach == Reach::All);
        self.nodes += usize::from(reach == Reach::Node);
    }

    fn ends(&mut self, reach: Reach) {
        self.total -= 1;
        self.all -= usize::from(reach == Reach::All);
        self.nodes -= usize::from(reach == Reach::Node);
    }
}

/// Runs all of it.
///
/// # Panics
/// When there cannot be a cluster.
pub async fn run(settings: &Settings) -> Report {
    let plan = Plan::new(
        settings.seed,
        &settings.kinds,
        settings.nodes,
        settings.length,
        settings.pause,
    );
    let history = Arc::new(History::default());
    let shape = Shape {
        nodes: settings.nodes,
        slots: 2,
        kept: match &settings.kinds {
            kinds if kinds.contains(&Kind::PowerLossAll) => Kept::All,
            kinds if kinds.contains(&Kind::PowerLoss) => Kept::One,
            _ => Kept::None,
        },
        args: settings.args.clone(),
        env: settings.env.clone(),
    };
    let mut field = Field::start(&shape, Arc::clone(&history)).await;
    say(&format!(
        "{:8.2}s the cluster is ready",
        history.now().as_secs_f64()
    ));
    let witness = field.folder().join("executions");
    std::fs::write(&witness, "").expect("the file that programs write to");
    let workload = Workload {
        seed: settings.seed,
        rate: settings.rate,
        jobs: settings.jobs,
        long: settings.long,
        witness: witness.clone(),
    };
    let scene = Arc::new(Scene {
        field: Arc::clone(&field),
        witness: witness.clone(),
        long: settings.long,
    });
    let usage = Arc::new(Usage::default());
    let stop = Arc::new(AtomicBool::new(false));
    let mut watching = JoinSet::new();
    watching.spawn(Arc::clone(&field).supervise());
    watching.spawn(invariants::watch(Arc::clone(&field), Arc::clone(&usage)));
    let clients = {
        let (workload, field, stop) = (workload.clone(), Arc::clone(&field), Arc::clone(&stop));
        tokio::spawn(async move { workload.run(&field, &stop).await })
    };

    let began = Instant::now();
    let (faults, found) = tokio::select! {
        faults = harm(&scene, &plan, settings.length) => (faults, false),
        () = found(&history, &settings.until) => (Vec::new(), true),
    };
    let harmed = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    say(&format!(
        "{:8.2}s the faults are over",
        history.now().as_secs_f64()
    ));
    let (mut jobs, mut settled) = (0, Settled::default());
    if found {
        clients.abort();
    } else {
        field.heal(HEALED).await;
        jobs = clients.await.unwrap_or_default();
        settled = invariants::settled(&field, &workload).await;
    }
    watching.shutdown().await;

    let text = std::fs::read_to_string(&witness).unwrap_or_default();
    let executed = invariants::executions(&history, &text, &settled, &faults, &field.all_names());
    let mut loud = BTreeMap::new();
    for id in field.ids() {
        let log = field.node(id).log();
        for (what, count) in invariants::logs(&history, id, &log) {
            *loud.entry(what).or_default() += count;
        }
    }
    for kind in plan.kinds() {
        let mut of_it = faults.iter().filter(|done| done.step.kind == kind);
        // A run that was ended by what it has found does not get that far.
        if !found && !of_it.any(|done| done.seen.is_ok()) {
            let what = format!("{} was planned and never seen to happen", kind.name());
            history.violated(Invariant::Faults, what);
        }
    }
    drop(scene);
    let report = Report {
        settings: settings.clone(),
        harmed,
        jobs,
        acknowledged: history.acknowledgements(),
        tally: history.figures(),
        samples: history.samples(),
        gaps: report::gaps(&faults, &history.accepted()),
        faults,
        settled,
        executed,
        rss_kb: usage.rss_kb.load(Ordering::Relaxed),
        disk_kb: usage.disk_kb.load(Ordering::Relaxed),
        loud,
        violations: history.violations(),
    };
    if settings.keep
        && let Some(field) = Arc::get_mut(&mut field)
    {
        say(&format!(
            "the nodes' folders and logs are in {}",
            field.keep().display()
        ));
    }
    report
}

/// Returns when one of these was seen to be broken.
async fn found(history: &History, until: &[String]) {
    loop {
        let broken = history.violations();
        if broken
            .iter()
            .any(|violation| until.contains(&violation.invariant.to_string()))
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How often a fault that did not come about is tried by itself at the end, and how long the cluster has before that.
const TRIES_ALONE: u32 = 5;
const BEFORE_A_TRY: Duration = Duration::from_secs(2);

/// Inflicts what is planned, until the time is over and every kind has had its turn.
async fn harm(scene: &Arc<Scene>, plan: &Plan, length: Duration) -> Vec<Done> {
    let began = Instant::now();
    let minority = scene.field.minority();
    let mut under_way = UnderWay::default();
    let mut tasks = JoinSet::new();
    let mut all = Vec::new();
    let kinds = plan.kinds();
    for (n, step) in plan.steps.iter().enumerate() {
        if n >= kinds.len() && began.elapsed() >= length {
            break;
        }
        tokio::time::sleep_until((began + step.at).into()).await;
        while !under_way.has_room(step.kind.reach(), minority) {
            let Some(done) = tasks.join_next().await else {
                break;
            };
            ended(scene, &mut under_way, &mut all, done);
        }
        under_way.begins(step.kind.reach());
        let (scene, step) = (Arc::clone(scene), *step);
        tasks.spawn(async move { inflict(&scene, step).await });
    }
    while let Some(done) = tasks.join_next().await {
        ended(scene, &mut under_way, &mut all, done);
    }
    // Another fault may have been in the way of one that did not come about: it gets more tries by itself.
    let missing = |all: &[Done], kind| {
        let mut begun = all.iter().filter(|done| done.step.kind == kind).peekable();
        begun.peek().is_some() && !begun.any(|done| done.seen.is_ok())
    };
    for step in plan.steps.iter().filter(|step| kinds.contains(&step.kind)) {
        for _ in 0..TRIES_ALONE {
            if !missing(&all, step.kind) {
                break;
            }
            tokio::time::sleep(BEFORE_A_TRY).await;
            under_way.begins(step.kind.reach());
            let (scene_of, step) = (Arc::clone(scene), *step);
            let done = tokio::spawn(async move { inflict(&scene_of, step).await }).await;
            ended(scene, &mut under_way, &mut all, done);
        }
    }
    all
}

fn ended(
    scene: &Scene,
    under_way: &mut UnderWay,
    all: &mut Vec<Done>,
    done: Result<Done, tokio::task::JoinError>,
) {
    let history = &scene.field.history;
    match done {
        Ok(done) => {
            let kind = done.step.kind;
            under_way.ends(kind.reach());
            let at = history.now().as_secs_f64();
            let count = history.acknowledgements();
            match &done.seen {
                Ok(what) => say(&format!(
                    "{at:8.2}s {count:6} jobs  {}: {what}",
                    kind.name()
                )),
                Err(why) => say(&format!(
                    "{at:8.2}s {count:6} jobs  {} NOT SEEN: {why}",
                    kind.name()
                )),
            }
            all.push(done);
        }
        Err(error) => history.violated(Invariant::Faults, format!("a fault has failed: {error}")),
    }
}
