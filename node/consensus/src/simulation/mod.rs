//! Nodes in a simulated cluster (feature `simulation`): the same consensus, with a simulated network, disk and clock.
//!
//! A simulation has one thread, on which turmoil runs all hosts in turn, in simulated time. While [`enter`] holds, what
//! is started on this thread is a part of it:
//! - nothing is done by other threads: what otherwise blocks, or has a thread of its own, runs on the host's own runtime;
//! - the databases are [images](disk) in memory. [`crash`] takes from them what was not synced. The few other files (the
//!   watermark, runs, which of them count) are real ones; the code that writes them is not interrupted, so that
//!   their own crashes are tested elsewhere;
//! - connections are turmoil's ([`net`]);
//! - chance comes from the seed: the waits before elections, how long the disk takes, what a crash leaves.
//!
//! What no node can see by itself is watched here, across all of them: that they apply the same log, that a batch is
//! committed in the term of the leader that stamped it, and that none is stamped before its time. What is wrong is in [`violations`].
//!
//! A build with this feature works as ever on threads that have not entered a simulation.

mod chance;
pub(crate) mod disk;
pub(crate) mod net;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openraft::EntryPayload;
use quorun_ledger::{Batch, NodeId, codec};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, watch};
use tonic::service::Routes;

use crate::error::Error;
use crate::handle::{Handle, Notice};
use crate::node;
use crate::options::Options;
use crate::types::{EncodedBatch, Entry};

pub(crate) use self::chance::Chance;

struct World {
    rng: SmallRng,
    disks: BTreeMap<PathBuf, disk::Image>,
    /// How long a sync takes at most.
    slowest_sync: Duration,
    /// Of so many batches, a leader lets one wait before it writes it.
    late_batches: u32,
    /// See [`unconfirmed_reads`].
    unconfirmed_reads: bool,
    /// Of nodes with a wrong clock: by how much.
    wrong_clocks: BTreeMap<NodeId, i64>,
    /// Of every entry that any node has applied: its term, and a digest of its batch.
    applied: BTreeMap<u64, (u64, Option<Digest>)>,
    /// The terms of the leaders that stamped a batch.
    stamped: BTreeMap<Digest, BTreeSet<u64>>,
    violations: Vec<String>,
    /// Connections that were tried.
    connections: usize,
}

type Digest = (usize, u32);

fn digest(batch: &EncodedBatch) -> Digest {
    (batch.0.len(), crc32fast::hash(&batch.0))
}

/// See [`late_batches`].
pub const LATE_BATCHES: u32 = 100;

/// No batch may be stamped so far ahead of the true time, milliseconds, if most clocks are right.
const AHEAD_MS: u64 = 100;

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fn with<T>(act: impl FnOnce(&mut World) -> T) -> Option<T> {
    WORLD.with_borrow_mut(|world| world.as_mut().map(act))
}

/// Whether this thread simulates.
pub(crate) fn active() -> bool {
    WORLD.with_borrow(Option::is_some)
}

/// This thread simulates until this is dropped.
#[derive(Debug)]
pub struct Entered {
    not_send: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        WORLD.set(None);
    }
}

/// Begins a simulation on this thread.
///
/// # Panics
/// When it simulates already.
#[must_use]
pub fn enter(seed: u64) -> Entered {
    assert!(!active(), "this thread simulates already");
    WORLD.set(Some(World {
        rng: SmallRng::seed_from_u64(seed),
        disks: BTreeMap::new(),
        slowest_sync: Duration::from_millis(4),
        late_batches: LATE_BATCHES,
        unconfirmed_reads: false,
        wrong_clocks: BTreeMap::new(),
        applied: BTreeMap::new(),
        stamped: BTreeMap::new(),
        violations: Vec::new(),
        connections: 0,
    }));
    Entered {
        not_send: PhantomData,
    }
}

/// From now on a sync takes up to so long.
pub fn slow_disks(slowest_sync: Duration) {
    with(|world| world.slowest_sync = slowest_sync);
}

/// From now on leaders let one of so many batches wait, between their decision and their log.
pub fn late_batches(of: u32) {
    with(|world| world.late_batches = of);
}

/// From now on a leader takes openraft's word for it that it leads, to see what comes of that.
pub fn unconfirmed_reads() {
    with(|world| world.unconfirmed_reads = true);
}

/// See [`unconfirmed_reads`].
pub(crate) fn reads_are_unconfirmed() -> bool {
    with(|world| world.unconfirmed_reads).unwrap_or(false)
}

/// The databases below a folder lose what was not synced, as in a power failure. Returns how many batches were at risk.
/// The node has to be dead already.
pub fn crash(data_dir: &Path) -> usize {
    let lost = with(|world| {
        let mut at_risk = 0;
        for (path, image) in &mut world.disks {
            if path.starts_with(data_dir) {
                at_risk += image.at_risk();
                *image = image.after_crash(&mut world.rng);
            }
        }
        at_risk
    });
    lost.unwrap_or(0)
}

/// How long the disk takes now.
pub(crate) fn sync_time() -> Duration {
    let time = with(|world| {
        let micros = u64::try_from(world.slowest_sync.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(world.rng.random_range(0..=micros))
    });
    time.unwrap_or_default()
}

/// From now on a node's wall clock is wrong by so much, milliseconds.
pub fn wrong_clock(node: NodeId, ahead_ms: i64) {
    with(|world| world.wrong_clocks.insert(node, ahead_ms));
}

/// The true time, Unix milliseconds; `None` when this thread does not simulate, or no host runs.
fn true_ms() -> Option<u64> {
    let since = active().then(turmoil::since_epoch)??;
    Some(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The wall clock of a simulated node, Unix milliseconds; `None` when this thread does not simulate.
pub(crate) fn now_ms(node: NodeId) -> Option<u64> {
    let now = true_ms()?;
    let ahead = with(|world| world.wrong_clocks.get(&node).copied()).flatten();
    Some(now.saturating_add_signed(ahead.unwrap_or(0)))
}

/// A leader has put its clock and its choice of nodes into a batch that it is about to write. Sometimes it then has to
/// wait, for as long as it takes others to elect another one.
pub(crate) async fn stamped(term: u64, batch: &EncodedBatch) {
    let pause = with(|world| {
        world.stamped.entry(digest(batch)).or_default().insert(term);
        let paused = world.rng.random_ratio(1, world.late_batches);
        paused.then(|| Duration::from_millis(world.rng.random_range(0..3_000)))
    });
    if let Some(pause) = pause.flatten() {
        tokio::time::sleep(pause).await;
    }
}

/// A node applies an entry.
pub(crate) fn applied(entry: &Entry) {
    let (index, term) = (entry.log_id.index, entry.log_id.leader_id.term);
    let batch = match &entry.payload {
        EntryPayload::Normal(batch) => Some(digest(batch)),
        _ => None,
    };
    let stamped_ms = match &entry.payload {
        EntryPayload::Normal(batch) => codec::decode(&batch.0)
            .ok()
            .map(|batch: Batch| batch.time_ms),
        _ => None,
    };
    let ahead = stamped_ms
        .zip(true_ms())
        .map(|(stamped, now)| stamped.saturating_sub(now));
    with(|world| {
        if let Some(ahead) = ahead.filter(|ahead| *ahead > AHEAD_MS) {
            world.violations.push(format!(
                "entry {index} is dated {ahead} ms ahead of its time"
            ));
        }
        let first = *world.applied.entry(index).or_insert((term, batch));
        if first != (term, batch) {
            world.violations.push(format!(
                "entry {index} was applied as {first:?} and as {:?}",
                (term, batch)
            ));
        }
        let stamps = batch.and_then(|batch| world.stamped.get(&batch));
        if let Some(stamps) = stamps
            && !stamps.contains(&term)
        {
            world.violations.push(format!(
                "entry {index} was stamped in term {stamps:?} and committed in term {term}"
            ));
        }
    });
}

/// What has gone wrong so far.
#[must_use]
pub fn violations() -> Vec<String> {
    with(|world| world.violations.clone()).unwrap_or_default()
}

fn connecting() {
    with(|world| world.connections += 1);
}

/// How many connections were tried.
#[must_use]
pub fn connections() -> usize {
    with(|world| world.connections).unwrap_or(0)
}

/// How many entries were applied.
#[must_use]
pub fn entries() -> usize {
    with(|world| world.applied.len()).unwrap_or(0)
}

/// What [`start`](crate::start) does, on a host of turmoil: everything runs on the runtime of the host, and the peer
/// port is one of the simulated network.
///
/// # Errors
/// As there.
pub async fn start<F>(
    options: Options,
    port: u16,
    extra: F,
    eligible: watch::Receiver<BTreeSet<NodeId>>,
) -> Result<(Handle, mpsc::UnboundedReceiver<Notice>), Error>
where
    F: FnOnce(&Handle) -> Routes,
{
    let incoming = net::listen(port).await.map_err(Error::Listen)?;
    let (alive, ended) = watch::channel(());
    let runtime = tokio::runtime::Handle::current();
    let (node, handle, notices) =
        node::launch(options, incoming, extra, eligible, runtime, ended).await?;
    tokio::spawn(async move {
        node.serve().await;
        drop(alive);
    });
    Ok((handle, notices))
}
