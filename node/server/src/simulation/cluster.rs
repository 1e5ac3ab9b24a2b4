//! One run: the hosts, the two phases, and what is looked at after every step.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quorun_consensus::{ClusterId, Handle, Member, Options, simulation};
use quorun_ledger::{Ages, JobState, NodeId, RULES, Weights};
use quorun_proto::v1::peer_server::PeerServer;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, mpsc, watch};
use tonic::service::Routes;
use turmoil::Sim;

use super::client::{self, Client, Request};
use super::faults::{self, AT_COMMIT, Fault, NAMES, Planned, Victim};
use super::history::Shared;
use super::worker::Worker;
use crate::console::Consoles;
use crate::liveness::Liveness;
use crate::output::Outputs;
use crate::peer_service::PeerService;
use crate::scheduler::Scheduler;
use crate::settings::{ClusterSettings, Effective};
use crate::watchers::Watchers;

const TICK: Duration = Duration::from_millis(2);
/// Of every node, for its peers.
pub(super) const PORT: u16 = 7000;
/// How long faults happen.
const FAULTS: Duration = Duration::from_secs(20);
/// How long everything may take to come to its end when there are no faults any more.
const SETTLE: Duration = Duration::from_secs(60);
const CLIENTS: usize = 4;
const NODE_TIMEOUT: Duration = Duration::from_secs(2);
const LATENCY: Duration = Duration::from_millis(5);
/// How long a sync takes at most; one of them holds for a whole run. What is acknowledged too early is lost in a crash
/// while a sync is under way.
const SYNC: [Duration; 3] = [
    Duration::from_millis(4),
    Duration::from_millis(20),
    Duration::from_millis(80),
];
/// A node must not try more connections to another one than so many in a second, on average.
const CONNECTIONS: usize = 50;
/// The ledger's time may be so late at the end, milliseconds: batches come rarely by then.
const LATE_MS: u64 = 20_000;
/// The simulated clock begins so long after 1970: later than any real one, for whatever looks at that.
const EPOCH: Duration = Duration::from_secs(4_102_444_800);

/// A node, as it outlives its processes.
pub(super) struct Node {
    pub(super) id: NodeId,
    data_dir: PathBuf,
    incarnation: Cell<u64>,
    handle: RefCell<Option<Handle>>,
    requests: RefCell<Option<mpsc::UnboundedSender<Request>>>,
}

impl Node {
    pub(super) fn name(&self) -> String {
        format!("node-{}", self.id)
    }

    /// Asks the process, if there is one.
    pub(super) fn ask(&self, request: Request) {
        if let Some(requests) = &*self.requests.borrow() {
            // It may have ended.
            let _ = requests.send(request);
        }
    }

    /// The end of its log; 0 while there is no process.
    pub(super) fn last_log(&self) -> u64 {
        let handle = self.handle.borrow();
        let status = handle.as_ref().map(|handle| handle.status());
        status.map_or(0, |status| status.borrow().last_log_index)
    }

    /// The term in which it leads.
    pub(super) fn leads(&self) -> Option<u64> {
        let handle = self.handle.borrow();
        let status = handle.as_ref()?.status();
        let status = status.borrow();
        status.leading.then_some(status.term)
    }
}

/// The process of a node.
async fn process(
    node: Rc<Node>,
    members: BTreeMap<NodeId, Member>,
    snapshot_after: u64,
    history: Shared,
) -> turmoil::Result {
    let id = node.id;
    // Counted where the product counts it: on disk, before anything else.
    let incarnation = node.incarnation.get() + 1;
    node.incarnation.set(incarnation);
    let mut options = Options::new(id, ClusterId([7; 16]), members, node.data_dir.clone());
    options.snapshot_after = snapshot_after;
    let liveness = Liveness::new(NODE_TIMEOUT);
    let (eligible, eligible_now) = watch::channel(BTreeSet::new());
    let service = {
        let liveness = liveness.clone();
        move |consensus: &Handle| {
            Routes::new(PeerServer::new(PeerService {
                id,
                process: format!("{id}-{incarnation}"),
                liveness,
                outputs: Outputs::default(),
                consoles: Consoles::default(),
                watchers: Watchers::default(),
                consensus: consensus.clone(),
                images: Arc::default(),
            }))
        }
    };
    let (consensus, notices) = match simulation::start(options, PORT, service, eligible_now).await {
        Ok(started) => started,
        Err(error) => {
            let mut history = history.borrow_mut();
            history.wrong(format!("node {id} does not start: {error}"));
            return Ok(());
        }
    };
    consensus.bootstrap().await?;
    let worker = Rc::new(Worker {
        node: id,
        incarnation,
        consensus: consensus.clone(),
        liveness: liveness.clone(),
        node_timeout: NODE_TIMEOUT,
        history: Rc::clone(&history),
        running: RefCell::default(),
        announced: Cell::new(false),
        announce: Notify::new(),
    });
    worker.announce.notify_one();
    let scheduler = Scheduler {
        consensus: consensus.clone(),
        liveness,
        eligible,
        node_timeout: NODE_TIMEOUT,
        settings: ClusterSettings::new(Effective {
            retention: Duration::MAX,
            retention_bytes: u64::MAX,
            replace_voter: Duration::MAX,
        }),
    };
    tokio::spawn(scheduler.run());
    tokio::task::spawn_local(Rc::clone(&worker).follow(notices));
    tokio::task::spawn_local(Rc::clone(&worker).announce());
    tokio::task::spawn_local(worker.live());
    let (requests, waiting) = mpsc::unbounded_channel();
    tokio::task::spawn_local(client::serve(consensus.clone(), waiting));
    node.handle.replace(Some(consensus.clone()));
    node.requests.replace(Some(requests));
    let error = consensus.stopped().await;
    history
        .borrow_mut()
        .wrong(format!("node {id} has ended: {error}"));
    Ok(())
}

/// What came of a run, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) runs: usize,
    jobs: usize,
    attempts: usize,
    reads: usize,
    terms: usize,
    entries: usize,
    connections: usize,
    /// Batches that a crash could have taken.
    at_risk: usize,
    faults: [usize; NAMES.len()],
}

impl Summary {
    pub(super) fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.jobs += other.jobs;
        self.attempts += other.attempts;
        self.reads += other.reads;
        self.terms += other.terms;
        self.entries += other.entries;
        self.connections += other.connections;
        self.at_risk += other.at_risk;
        for (sum, count) in self.faults.iter_mut().zip(other.faults) {
            *sum += count;
        }
    }

    /// The faults that have not happened.
    pub(super) fn never(&self) -> Vec<&'static str> {
        let counted = NAMES.iter().zip(self.faults);
        counted
            .filter(|(_, count)| *count == 0)
            .map(|(name, _)| *name)
            .collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} runs held: {} jobs acknowledged, {} attempts executed, {} reads, {} terms with a leader, {} entries, \
             {} connections tried, {} unsynced batches at risk in crashes; faults:",
            self.runs,
            self.jobs,
            self.attempts,
            self.reads,
            self.terms,
            self.entries,
            self.connections,
            self.at_risk
        )?;
        for (name, count) in NAMES.iter().zip(self.faults) {
            write!(f, " {name} {count},")?;
        }
        Ok(())
    }
}

/// How a fault ends.
enum Undo {
    Restart(usize),
    Links(Vec<(usize, usize)>),
    Latency,
    Disks,
    /// The leadership goes to this node.
    Back(usize),
    LateBatches,
}

struct Run<'a> {
    sim: Sim<'a>,
    rng: SmallRng,
    nodes: Rc<Vec<Rc<Node>>>,
    history: Shared,
    /// What is to be undone, and when.
    active: Vec<(Duration, Undo)>,
    down: BTreeSet<usize>,
    /// Who crashes when the next entry is committed, and for how long.
    aimed: Option<(Vec<usize>, Duration)>,
    plan: Vec<Planned>,
    sync: Duration,
    summary: Summary,
}

/// A folder for the few files that are real. They need not reach a drive.
pub(super) fn folder() -> Result<tempfile::TempDir, String> {
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    dir.map_err(|error| error.to_string())
}

/// A simulated network with nodes on it, and what is seen of them.
pub(super) fn hosts<'a>(
    seed: u64,
    count: usize,
    snapshot_after: u64,
    dir: &Path,
) -> (Sim<'a>, Vec<Rc<Node>>, Shared) {
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(FAULTS + SETTLE + SETTLE)
        .epoch(SystemTime::UNIX_EPOCH + EPOCH)
        .min_message_latency(Duration::from_micros(100))
        .max_message_latency(LATENCY)
        .tcp_capacity(4096)
        .build();
    let history = Shared::default();
    let members: BTreeMap<NodeId, Member> = (1..=count as u64)
        .map(|id| {
            let member = Member {
                peer: format!("node-{id}:{PORT}"),
                http: String::new(),
            };
            (id, member)
        })
        .collect();
    let nodes: Vec<Rc<Node>> = members
        .keys()
        .map(|id| {
            Rc::new(Node {
                id: *id,
                data_dir: dir.join(id.to_string()),
                incarnation: Cell::new(0),
                handle: RefCell::default(),
                requests: RefCell::default(),
            })
        })
        .collect();
    for node in &nodes {
        let (of, members, history) = (Rc::clone(node), members.clone(), Rc::clone(&history));
        sim.host(node.name(), move || {
            process(
                Rc::clone(&of),
                members.clone(),
                snapshot_after,
                Rc::clone(&history),
            )
        });
    }
    (sim, nodes, history)
}

/// Runs a seed to its end. An error says what did not hold.
pub(super) fn run(seed: u64) -> Result<Summary, String> {
    let _entered = simulation::enter(seed);
    let mut rng = SmallRng::seed_from_u64(seed);
    let sync = SYNC[rng.random_range(0..SYNC.len())];
    simulation::slow_disks(sync);
    let count: usize = if rng.random_ratio(2, 3) { 3 } else { 5 };
    let snapshot_after = rng.random_range(40..400);
    let plan = faults::plan(&mut rng, count, FAULTS);
    // One clock is wrong all the time, whoever leads.
    let wrong = seed % count as u64 + 1;
    let hours = if seed.is_multiple_of(2) { 1 } else { -1 };
    simulation::wrong_clock(wrong, hours * 3_600_000);

    let dir = folder()?;
    let (mut sim, nodes, history) = hosts(seed, count, snapshot_after, dir.path());
    let nodes = Rc::new(nodes);
    let stop = Rc::new(Cell::new(false));
    for number in 0..CLIENTS {
        let client = Client::new(
            number,
            seed,
            Rc::clone(&nodes),
            Rc::clone(&history),
            Rc::clone(&stop),
        );
        sim.client(format!("client-{number}"), async move {
            client.run().await;
            Ok(())
        });
    }
    let run = Run {
        sim,
        rng,
        nodes,
        history,
        active: Vec::new(),
        down: BTreeSet::new(),
        aimed: None,
        plan,
        sync,
        summary: Summary {
            runs: 1,
            ..Summary::default()
        },
    };
    run.phases(&stop)
}

impl Run<'_> {
    fn phases(mut self, stop: &Cell<bool>) -> Result<Summary, String> {
        let plan = std::mem::take(&mut self.plan);
        let mut plan = plan.iter().peekable();
        while self.sim.elapsed() < FAULTS {
            while let Some(planned) = plan.next_if(|planned| planned.at <= self.sim.elapsed()) {
                self.begin(planned);
            }
            self.end_those_that_are_due(self.sim.elapsed());
            let entries = simulation::entries();
            self.step()?;
            if simulation::entries() > entries
                && let Some((victims, lasts)) = self.aimed.take()
            {
                tracing::info!(?victims, at = ?self.sim.elapsed(), "crash at a commit");
                self.summary.faults[AT_COMMIT] += 1;
                self.crash_all(victims, self.sim.elapsed() + lasts);
            }
        }
        tracing::info!("all faults end");
        self.aimed = None;
        stop.set(true);
        self.end_those_that_are_due(Duration::MAX);
        let deadline = self.sim.elapsed() + SETTLE;
        loop {
            let clients_done = self.step()?;
            let unsettled = self.unsettled();
            if clients_done && unsettled.is_none() {
                break;
            }
            if self.sim.elapsed() > deadline {
                let why = unsettled.unwrap_or_else(|| "a client is not answered".to_owned());
                return Err(format!(
                    "not settled {SETTLE:?} after the last fault: {why}"
                ));
            }
        }
        self.compare()?;
        let connections = simulation::connections();
        let too_many = CONNECTIONS * self.nodes.len() * (self.nodes.len() - 1);
        let seconds = usize::try_from(self.sim.elapsed().as_secs()).unwrap_or(usize::MAX);
        if connections > too_many * seconds {
            return Err(format!(
                "{connections} connections were tried in {seconds} s"
            ));
        }
        let history = self.history.borrow();
        self.summary.jobs = history.jobs.len();
        self.summary.attempts = history.attempts();
        self.summary.reads = history.reads;
        self.summary.terms = history.terms();
        self.summary.entries = simulation::entries();
        self.summary.connections = simulation::connections();
        Ok(self.summary)
    }

    fn step(&mut self) -> Result<bool, String> {
        let at = self.sim.elapsed();
        let done = self
            .sim
            .step()
            .map_err(|error| format!("at {at:?}: {error}"))?;
        let mut history = self.history.borrow_mut();
        for node in self.nodes.iter() {
            let handle = node.handle.borrow();
            let Some(handle) = &*handle else { continue };
            if let Some(term) = node.leads() {
                history.leads(term, node.id);
            }
            if let Ok((index, hash)) = handle.state() {
                history.stands((node.id, node.incarnation.get()), index, hash);
            }
        }
        let mut wrong = history.violations().to_vec();
        wrong.extend(simulation::violations());
        wrong.extend(super::PANIC.with_borrow(Clone::clone));
        if wrong.is_empty() {
            return Ok(done);
        }
        Err(format!("at {at:?}: {}", wrong.join("; ")))
    }

    fn leader(&self) -> Option<usize> {
        let leading = self.nodes.iter().enumerate();
        leading
            .filter_map(|(n, node)| Some((node.leads()?, n)))
            .max()
            .map(|(_, n)| n)
    }

    fn begin(&mut self, planned: &Planned) {
        let end = self.sim.elapsed() + planned.lasts;
        let count = self.nodes.len();
        let all: Vec<usize> = (0..count).collect();
        let leader = self.leader();
        tracing::info!(fault = ?planned.fault, lasts = ?planned.lasts, leader, at = ?self.sim.elapsed(), "fault");
        match &planned.fault {
            Fault::Crash(victim) => {
                let victims = self.victims(*victim, leader);
                if victims.is_empty() {
                    return;
                }
                self.crash_all(victims, end);
            }
            Fault::CrashAtCommit(victim) => {
                let victims = self.victims(*victim, leader);
                self.aimed = Some((victims, planned.lasts));
                return; // counted when it happens
            }
            Fault::Partition { order, first } => {
                let (a, b) = order.split_at(*first);
                self.cut(end, a, b);
            }
            Fault::CutLeader => {
                let Some(leader) = leader else { return };
                let others: Vec<usize> = all.into_iter().filter(|n| *n != leader).collect();
                self.cut(end, &[leader], &others);
            }
            Fault::OneWay { from_leader } => {
                let Some(leader) = leader else { return };
                let mut links = Vec::new();
                for other in all.into_iter().filter(|n| *n != leader) {
                    let (from, to) = if *from_leader {
                        (leader, other)
                    } else {
                        (other, leader)
                    };
                    self.sim
                        .partition_oneway(self.nodes[from].name(), self.nodes[to].name());
                    links.push((from, to));
                }
                self.active.push((end, Undo::Links(links)));
            }
            Fault::Bridge { order } => {
                let half = (count - 1) / 2;
                let (a, b) = (&order[1..=half], &order[half + 1..]);
                self.cut(end, a, b);
            }
            Fault::Hold { a, b } => {
                self.sim.hold(self.nodes[*a].name(), self.nodes[*b].name());
                self.active.push((end, Undo::Links(vec![(*a, *b)])));
            }
            Fault::Slow { latency } => {
                self.sim.set_max_message_latency(*latency);
                self.active.push((end, Undo::Latency));
            }
            Fault::SlowDisks { sync } => {
                simulation::slow_disks(*sync);
                self.active.push((end, Undo::Disks));
            }
            Fault::Move => {
                let Some(leader) = leader else { return };
                self.nodes[leader].ask(Request::Move(None));
            }
            Fault::MoveAndBack { back } => {
                let Some(leader) = leader else { return };
                simulation::late_batches(2);
                self.nodes[leader].ask(Request::Move(None));
                let back = self.sim.elapsed() + *back;
                self.active.push((back, Undo::Back(leader)));
                self.active.push((end, Undo::LateBatches));
            }
        }
        self.summary.faults[planned.fault.kind()] += 1;
    }

    fn victims(&mut self, victim: Victim, leader: Option<usize>) -> Vec<usize> {
        let count = self.nodes.len();
        let mut others: Vec<usize> = (0..count).filter(|n| Some(*n) != leader).collect();
        match victim {
            Victim::Leader => leader.into_iter().collect(),
            Victim::Follower => vec![others[self.rng.random_range(0..others.len())]],
            Victim::Majority => {
                // With the leader, in half of the cases.
                others.truncate(count / 2 + 1);
                if let Some(leader) = leader.filter(|_| self.rng.random()) {
                    others[0] = leader;
                }
                others
            }
            Victim::All => (0..count).collect(),
        }
    }

    fn crash_all(&mut self, victims: Vec<usize>, end: Duration) {
        for victim in victims {
            if self.down.insert(victim) {
                self.crash(victim);
                // They do not all come back at once.
                let late = Duration::from_millis(self.rng.random_range(0..500));
                self.active.push((end + late, Undo::Restart(victim)));
            }
        }
    }

    fn crash(&mut self, victim: usize) {
        let node = Rc::clone(&self.nodes[victim]);
        node.handle.take();
        node.requests.take();
        self.sim.crash(node.name());
        self.summary.at_risk += simulation::crash(&node.data_dir);
    }

    fn cut(&mut self, end: Duration, a: &[usize], b: &[usize]) {
        let mut links = Vec::new();
        for a in a {
            for b in b {
                self.sim
                    .partition(self.nodes[*a].name(), self.nodes[*b].name());
                links.push((*a, *b));
            }
        }
        self.active.push((end, Undo::Links(links)));
    }

    fn end_those_that_are_due(&mut self, now: Duration) {
        let (due, active) = std::mem::take(&mut self.active)
            .into_iter()
            .partition(|(end, _)| *end <= now);
        self.active = active;
        for (_, undo) in due {
            match undo {
                Undo::Restart(node) => {
                    self.down.remove(&node);
                    self.sim.bounce(self.nodes[node].name());
                }
                Undo::Links(links) => {
                    for (a, b) in links {
                        let (a, b) = (self.nodes[a].name(), self.nodes[b].name());
                        self.sim.release(a.as_str(), b.as_str());
                        self.sim.repair(a, b);
                    }
                }
                Undo::Latency => self.sim.set_max_message_latency(LATENCY),
                Undo::Disks => simulation::slow_disks(self.sync),
                Undo::Back(to) => {
                    if let Some(leader) = self.leader() {
                        let to = self.nodes[to].id;
                        self.nodes[leader].ask(Request::Move(Some(to)));
                    }
                }
                Undo::LateBatches => simulation::late_batches(simulation::LATE_BATCHES),
            }
        }
    }

    /// What is still to come, if anything.
    fn unsettled(&self) -> Option<String> {
        let mut states = BTreeSet::new();
        for node in self.nodes.iter() {
            let id = node.id;
            let handle = node.handle.borrow();
            let Some(handle) = &*handle else {
                return Some(format!("node {id} has not started"));
            };
            let state = handle.state().ok();
            let Some((index, hash)) = state else {
                return Some(format!("node {id} has ended"));
            };
            states.insert((index, hash.to_string()));
            let view = handle.view();
            let (Ok(counters), Ok(nodes)) = (view.counters(), view.nodes()) else {
                return Some(format!("the ledger of node {id} cannot be read"));
            };
            let busy: u32 = nodes.iter().map(|node| node.busy).sum();
            if counters.queued + counters.running + u64::from(busy) > 0 {
                return Some(format!(
                    "node {id} has {} jobs queued, {} running, {busy} slots taken; {nodes:?}",
                    counters.queued, counters.running
                ));
            }
            if nodes.len() < self.nodes.len() || nodes.iter().any(|node| node.lost) {
                return Some(format!("not all nodes are back: {nodes:?}"));
            }
            if counters.weights != Weights::Records {
                return Some(format!(
                    "node {id} does not weigh all jobs by their records: {:?}",
                    counters.weights
                ));
            }
            if counters.rules != RULES {
                return Some(format!("node {id} goes by rules {}", counters.rules));
            }
            if counters.ages != Ages::Kept {
                return Some(format!(
                    "node {id} does not have all finished jobs in the order of age: {:?}",
                    counters.ages
                ));
            }
        }
        (states.len() > 1).then(|| format!("the ledgers differ: {states:?}"))
    }

    /// Everything that was acknowledged is finished on every node, once.
    fn compare(&mut self) -> Result<(), String> {
        let jobs = self.history.borrow().jobs.clone();
        let now = u64::try_from((EPOCH + self.sim.elapsed()).as_millis()).unwrap_or(u64::MAX);
        for node in self.nodes.iter() {
            let handle = node.handle.borrow();
            let Some(handle) = &*handle else { continue };
            let view = handle.view();
            let mut aged = view.oldest(usize::MAX).map_err(|error| error.to_string())?;
            let undelivered = view.oldest_undelivered(usize::MAX);
            aged.extend(undelivered.map_err(|error| error.to_string())?);
            let finished = view.counters().map_err(|error| error.to_string())?.finished;
            if aged.len() as u64 != finished {
                return Err(format!(
                    "node {} has {finished} finished jobs, and {} in the order of age",
                    node.id,
                    aged.len()
                ));
            }
            for (key, job) in &jobs {
                let found = view.job(*job).map_err(|error| error.to_string())?;
                let Some(found) = found.filter(|job| job.state == JobState::Finished) else {
                    return Err(format!("{key} ({job}) is not finished on node {}", node.id));
                };
                let output = view.output(*job).map_err(|error| error.to_string())?;
                let stdout = output.unwrap_or_default().stdout;
                let stdout = String::from_utf8_lossy(&stdout);
                self.history.borrow_mut().finished(&found, &stdout);
            }
            let counters = view.counters().map_err(|error| error.to_string())?;
            // That it is not ahead is watched all the time.
            let late = now.saturating_sub(counters.time_ms);
            if late > LATE_MS {
                return Err(format!("the ledger's time is {late} ms late"));
            }
            // Every submission was acknowledged in the end, or is one that was never answered and joined later.
            if counters.finished != jobs.len() as u64 {
                return Err(format!(
                    "{} jobs are finished, but {} were acknowledged",
                    counters.finished,
                    jobs.len()
                ));
            }
        }
        match self.history.borrow().violations() {
            [] => Ok(()),
            wrong => Err(wrong.join("; ")),
        }
    }
}
