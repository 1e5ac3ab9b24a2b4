//! What is done to the cluster. Every fault looks whether it has really happened, and leaves nothing of itself behind.

mod files;
mod machine;
mod network;
mod operations;
mod processes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::field::{Field, Taken};
use super::history::Invariant;
use super::plan::{Kind, Step};

/// How long a node may take to be ready again, on a machine that is busy.
const BACK: Duration = Duration::from_secs(60);
/// How long a cluster may be without a leader while at most a minority is lost.
const LEADERLESS: Duration = Duration::from_secs(30);
/// How long a fault waits for what it needs to happen.
const OPPORTUNITY: Duration = Duration::from_secs(20);

/// What a fault knows of the run.
#[derive(Debug)]
pub struct Scene {
    /// The cluster.
    pub field: Arc<Field>,
    /// The file that programs write to.
    pub witness: PathBuf,
    /// Pauses last.
    pub long: bool,
}

/// What came of a fault.
#[derive(Clone, Debug)]
pub struct Done {
    /// Which.
    pub step: Step,
    /// When it began.
    pub began: Instant,
    /// When the harm was done: the moment of a kill.
    pub struck: Option<Instant>,
    /// When all was as before.
    pub ended: Instant,
    /// Whom it was done to.
    pub nodes: Vec<u64>,
    /// How it was seen, or why it was not.
    pub seen: Result<String, String>,
}

/// A fault in progress.
struct Strike<'a> {
    scene: &'a Scene,
    random: fastrand::Rng,
    struck: Option<Instant>,
    nodes: Vec<u64>,
}

type Seen = Result<String, String>;

/// Does what a step of the plan says.
pub async fn inflict(scene: &Scene, step: Step) -> Done {
    let began = Instant::now();
    let mut strike = Strike {
        scene,
        random: fastrand::Rng::with_seed(step.seed),
        struck: None,
        nodes: Vec::new(),
    };
    let seen = Box::pin(strike.run(step.kind)).await;
    Done {
        step,
        began,
        struck: strike.struck,
        ended: Instant::now(),
        nodes: strike.nodes,
        seen,
    }
}

impl Strike<'_> {
    async fn run(&mut self, kind: Kind) -> Seen {
        match kind {
            Kind::KillLeader => {
                let taken = self.leader().await?;
                self.kill(taken, 1500).await
            }
            Kind::KillFollower => {
                let taken = self.follower().await?;
                self.kill(taken, 4000).await
            }
            Kind::KillAfterRun => self.kill_after_run().await,
            Kind::KillMajority => {
                let mut ids = self.field().ids();
                self.random.shuffle(&mut ids);
                ids.truncate(self.field().minority() + 1);
                let taken = self.take(ids);
                self.kill(taken, 3000).await
            }
            Kind::KillAll => {
                let taken = self.take(self.field().ids());
                self.kill(taken, 1000).await
            }
            Kind::PauseLeader => {
                let taken = self.leader().await?;
                self.pause(taken).await
            }
            Kind::PauseFollower => {
                let taken = self.follower().await?;
                self.pause(taken).await
            }
            Kind::Split => {
                let taken = self.follower().await?;
                self.isolate(taken).await
            }
            Kind::IsolateLeader => {
                let taken = self.leader().await?;
                self.isolate(taken).await
            }
            Kind::OneWay => self.one_way().await,
            Kind::Bridge => self.bridge().await,
            Kind::Delay => self.weather(true).await,
            Kind::Loss => self.weather(false).await,
            Kind::Damage => self.damage(&["log", "log.watermark"]).await,
            Kind::DamageLedger => self.damage(&["ledger"]).await,
            Kind::StaleLog => self.stale(&["log", "ledger"]).await,
            Kind::StaleFolder => self.stale(&[]).await,
            Kind::RollingRestart => self.rolling_restart().await,
            Kind::MoveLeader => self.move_leader().await,
            Kind::Drain => self.drain().await,
            Kind::SlowSync => self.slow_sync().await,
            Kind::ClockJump => self.clock_jump().await,
            Kind::DiskFull => self.disk_full().await,
            Kind::PowerLoss => self.power_loss().await,
            Kind::PowerLossAll => self.power_loss_all().await,
            Kind::Replace => {
                let taken = self.follower().await?;
                self.struck = Some(Instant::now());
                self.field().node(self.nodes[0]).kill();
                self.replace(taken).await
            }
        }
    }

    fn field(&self) -> Arc<Field> {
        Arc::clone(&self.scene.field)
    }

    fn take(&mut self, ids: Vec<u64>) -> Taken {
        self.nodes.extend(&ids);
        self.scene.field.take(ids)
    }

    /// Takes a node that was free when it was looked at. Faults look at the same time.
    fn take_one(&mut self, id: u64) -> Result<Taken, String> {
        let taken = self.scene.field.take_free(id);
        let taken = taken.ok_or_else(|| format!("another fault has taken node {id} meanwhile"))?;
        self.nodes.push(id);
        Ok(taken)
    }

    /// Takes the leader.
    async fn leader(&mut self) -> Result<Taken, String> {
        let field = self.field();
        let leader = field.leader_among(&field.untouched(), LEADERLESS).await?;
        self.take_one(leader)
    }

    /// Takes a node that does not lead.
    async fn follower(&mut self) -> Result<Taken, String> {
        let field = self.field();
        let leader = field.leader_among(&field.untouched(), LEADERLESS).await?;
        let mut others = field.untouched();
        others.retain(|id| *id != leader);
        let other = self.random.choice(&others).copied();
        self.take_one(other.ok_or("no follower is free")?)
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.u64(least..=most))
    }

    /// Starts what was taken and is down, and waits until all of it is ready.
    async fn back(&self, taken: &Taken) -> Result<(), String> {
        for id in taken.ids() {
            let field = self.field();
            let mut node = field.node(id);
            if !node.runs() {
                node.start();
            }
        }
        for id in taken.ids() {
            if let Err(why) = self.field().until_ready(id, BACK).await {
                let what = format!("node {id} is not back after {BACK:?}: {why}");
                self.field().history.violated(Invariant::I10, what.clone());
                // Whatever it was, the rest of the run needs the node's place to be free.
                self.field().node(id).kill();
                self.field().node(id).start();
                return Err(what);
            }
        }
        Ok(())
    }

    /// A node that is free, whatever it is.
    fn any(&mut self) -> Result<u64, String> {
        let untouched = self.scene.field.untouched();
        let id = *self.random.choice(&untouched).ok_or("no node is free")?;
        Ok(id)
    }
}
