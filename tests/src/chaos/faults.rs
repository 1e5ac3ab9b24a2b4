//! What is done to the cluster. Every fault looks whether it has really happened, and leaves nothing of itself behind.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;

use super::field::{Field, Taken};
use super::history::{Invariant, Program};
use super::plan::{Kind, Step};
use super::workload;
use crate::client::Client;
use crate::node::Node;

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
            Kind::StaleLog => self.stale(&["log"]).await,
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

    /// Takes the leader.
    async fn leader(&mut self) -> Result<Taken, String> {
        let field = self.field();
        let leader = field.leader_among(&field.untouched(), LEADERLESS).await?;
        Ok(self.take(vec![leader]))
    }

    /// Takes a node that does not lead.
    async fn follower(&mut self) -> Result<Taken, String> {
        let field = self.field();
        let leader = field.leader_among(&field.untouched(), LEADERLESS).await?;
        let mut others = field.untouched();
        others.retain(|id| *id != leader);
        let other = self.random.choice(&others).copied();
        Ok(self.take(vec![other.ok_or("no follower is free")?]))
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.u64(least..=most))
    }

    /// SIGKILL to nodes that were taken, and back again after some time.
    async fn kill(&mut self, taken: Taken, longest_ms: u64) -> Seen {
        let down = self.between(50, longest_ms);
        self.struck = Some(Instant::now());
        for id in taken.ids() {
            self.field().node(id).kill();
        }
        tokio::time::sleep(down).await;
        self.back(&taken).await?;
        let ids: Vec<_> = taken.ids().collect();
        Ok(format!("{ids:?} gone for {down:?}"))
    }

    /// Puts a new node into the place of one that is down for ever.
    async fn replace(&mut self, taken: Taken) -> Seen {
        let place = self.nodes[0];
        let name = self.field().replace(place, BACK).await;
        drop(taken);
        match name {
            Ok(name) => Ok(format!("node {name} is in the place of node {place}")),
            Err(why) => {
                let what = format!("no new node in the place of node {place}: {why}");
                self.field().history.violated(Invariant::I10, what.clone());
                Err(what)
            }
        }
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

    /// Waits for an execution on some node to end, and kills the node at once.
    async fn kill_after_run(&mut self) -> Seen {
        let field = self.field();
        let untouched = field.untouched();
        let id = *self.random.choice(&untouched).ok_or("no node is free")?;
        let taken = self.take(vec![id]);
        let here = format!("/node{id}/");
        let mut lines = Tail::of(&self.scene.witness)?;
        let deadline = Instant::now() + OPPORTUNITY;
        let job = loop {
            let new = lines.read()?;
            let ended = new
                .lines()
                .rev()
                .find(|line| line.starts_with("e ") && line.contains(&here));
            if let Some(line) = ended {
                self.struck = Some(Instant::now());
                field.node(id).kill();
                break line.split(' ').nth(1).unwrap_or_default().to_owned();
            }
            if Instant::now() >= deadline {
                return Err(format!("nothing ended on node {id} for {OPPORTUNITY:?}"));
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        };
        let down = self.between(50, 3000);
        tokio::time::sleep(down).await;
        self.back(&taken).await?;
        Ok(format!("node {id} gone right after {job} had run there"))
    }

    async fn pause(&mut self, taken: Taken) -> Seen {
        // Short ones more often than long ones.
        let (least, most) = match self.random.u8(..10) {
            _ if self.scene.long => (3000, 7000),
            0 => (200, 10_000),
            _ => (200, 2500),
        };
        let time = self.between(least, most);
        let ids: Vec<u64> = taken.ids().collect();
        self.struck = Some(Instant::now());
        for id in &ids {
            self.field().node(*id).pause();
        }
        tokio::time::sleep(time).await;
        let stopped = ids.iter().all(|id| is_stopped(&self.field().node(*id)));
        for id in &ids {
            self.field().node(*id).resume();
        }
        self.back(&taken).await?;
        if stopped {
            Ok(format!("{ids:?} stopped for {time:?}"))
        } else {
            Err("the process was not stopped".to_owned())
        }
    }

    /// Cuts a node off both ways. While it is, it must acknowledge nothing.
    async fn isolate(&mut self, taken: Taken) -> Seen {
        let field = self.field();
        let id = self.nodes[0];
        let reset = self.random.bool();
        let others: Vec<u64> = field
            .ids()
            .into_iter()
            .filter(|other| *other != id)
            .collect();
        let ways: Vec<(u64, u64)> = others
            .iter()
            .flat_map(|other| [(id, *other), (*other, id)])
            .collect();
        let before = self.hits(&ways);
        self.struck = Some(Instant::now());
        for (from, to) in &ways {
            let change = |weather: &mut crate::proxy::Weather| weather.reset = reset;
            field.network.set(*from, *to, change);
        }
        field.network.cut(&ways, true);
        let least = self.between(200, 2500);
        let began = Instant::now();
        // Once the others have a leader, this one's lease is over, if it had one.
        let reached: Vec<u64> = others
            .into_iter()
            .filter(|other| field.untouched().contains(other))
            .collect();
        let elected = field.leader_among(&reached, LEADERLESS).await;
        let probes = self.probe(id).await;
        if let Some(left) = least.checked_sub(began.elapsed()) {
            tokio::time::sleep(left).await;
        }
        let hits = self.hits(&ways) - before;
        field.network.cut(&ways, false);
        for (from, to) in &ways {
            field
                .network
                .set(*from, *to, |weather| weather.reset = false);
        }
        self.back(&taken).await?;
        elected?;
        if hits == 0 {
            return Err("nothing was sent where it was cut".to_owned());
        }
        Ok(format!(
            "node {id} cut off for {:?}, {hits} chunks held, {probes}",
            began.elapsed()
        ))
    }

    /// Asks a node that is cut off to accept something, which it must not.
    async fn probe(&self, id: u64) -> String {
        let field = self.field();
        let client = field.client(id, Duration::from_secs(1));
        let body = workload::body("probe", Program::Echo, &self.scene.witness);
        let mut answers = Vec::new();
        for _ in 0..2 {
            let request = client.request(Method::POST, "/v1/jobs").json(&body);
            match Client::try_send(request).await {
                Ok(answer) if answer.status.is_success() => {
                    let what = format!("node {id} is cut off and has accepted {}", answer.text());
                    field.history.violated(Invariant::I8, what);
                }
                Ok(answer) => answers.push(answer.status.to_string()),
                Err(_) => answers.push("no answer".to_owned()),
            }
        }
        format!("asked to accept: {}", answers.join(", "))
    }

    fn hits(&self, ways: &[(u64, u64)]) -> u64 {
        let network = &self.scene.field.network;
        ways.iter().map(|(from, to)| network.hit(*from, *to)).sum()
    }

    async fn one_way(&mut self) -> Seen {
        let field = self.field();
        let untouched = field.untouched();
        let id = *self.random.choice(&untouched).ok_or("no node is free")?;
        let taken = self.take(vec![id]);
        let outwards = self.random.bool();
        let ways: Vec<(u64, u64)> = field
            .network
            .pairs()
            .into_iter()
            .filter(|(from, to)| *(if outwards { from } else { to }) == id)
            .collect();
        let before = self.hits(&ways);
        self.struck = Some(Instant::now());
        field.network.cut(&ways, true);
        let time = self.between(500, 3000);
        tokio::time::sleep(time).await;
        let hits = self.hits(&ways) - before;
        field.network.cut(&ways, false);
        self.back(&taken).await?;
        if hits == 0 {
            return Err("nothing was sent where it was cut".to_owned());
        }
        let who = if outwards {
            "is not heard"
        } else {
            "hears nobody"
        };
        Ok(format!("node {id} {who} for {time:?}, {hits} chunks held"))
    }

    async fn bridge(&mut self) -> Seen {
        let field = self.field();
        let mut ids = field.ids();
        if ids.len() < 5 {
            return Err("a bridge needs five nodes".to_owned());
        }
        self.random.shuffle(&mut ids);
        let (left, right) = (ids[..2].to_vec(), ids[3..].to_vec());
        let taken = self.take(ids.clone());
        let ways: Vec<(u64, u64)> = left
            .iter()
            .flat_map(|a| right.iter().flat_map(move |b| [(*a, *b), (*b, *a)]))
            .collect();
        let before = self.hits(&ways);
        self.struck = Some(Instant::now());
        field.network.cut(&ways, true);
        let time = self.between(1000, 5000);
        tokio::time::sleep(time).await;
        let hits = self.hits(&ways) - before;
        field.network.cut(&ways, false);
        self.back(&taken).await?;
        if hits == 0 {
            return Err("nothing was sent where it was cut".to_owned());
        }
        Ok(format!(
            "{left:?} and {right:?} met only in {} for {time:?}, {hits} chunks held",
            ids[2]
        ))
    }

    /// Makes some ways slow, or lossy.
    async fn weather(&mut self, delay: bool) -> Seen {
        let field = self.field();
        let mut ways = field.network.pairs();
        self.random.shuffle(&mut ways);
        ways.truncate(self.random.usize(1..=field.ids().len()));
        let (late, loss) = (self.between(50, 300), self.random.u16(10..=50));
        let before = self.hits(&ways);
        self.struck = Some(Instant::now());
        for (from, to) in &ways {
            field.network.set(*from, *to, |weather| {
                if delay {
                    weather.delay = late;
                } else {
                    weather.loss = loss;
                }
            });
        }
        let least = self.between(1000, 4000);
        let began = Instant::now();
        // A lossy way must have lost something.
        while began.elapsed() < least
            || (self.hits(&ways) == before && began.elapsed() < OPPORTUNITY)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let hits = self.hits(&ways) - before;
        for (from, to) in &ways {
            field.network.set(*from, *to, |weather| {
                if delay {
                    weather.delay = Duration::ZERO;
                } else {
                    weather.loss = 0;
                }
            });
        }
        if hits == 0 {
            return Err("nothing was sent there".to_owned());
        }
        let what = if delay {
            format!("{late:?} late")
        } else {
            format!("{}.{} % lost", loss / 10, loss % 10)
        };
        Ok(format!(
            "{ways:?} {what} for {:?}, {hits} chunks",
            began.elapsed()
        ))
    }

    /// Damages a file of a node while it is down. The node must notice, or have nothing to notice.
    async fn damage(&mut self, parts: &[&str]) -> Seen {
        let taken = self.follower().await?;
        let (field, id) = (self.field(), self.nodes[0]);
        self.struck = Some(Instant::now());
        field.node(id).kill();
        let data = field.node(id).data().to_owned();
        let copy = field.copy_of(id);
        let mut files = Vec::new();
        for part in parts {
            files_below(&data.join(part), &mut files);
        }
        files.sort();
        let file = self
            .random
            .choice(&files)
            .ok_or("there is no file")?
            .clone();
        let harm = self.harm(&file).map_err(|error| error.to_string())?;
        let shown = file
            .strip_prefix(&data)
            .unwrap_or(&file)
            .display()
            .to_string();
        field.node(id).start();
        let seen = match self.refused(id).await {
            Some(line) => Ok(format!("node {id} with {shown} {harm} has refused: {line}")),
            // Where nothing lies that is needed: the states are compared all the time.
            None => Ok(format!(
                "node {id} with {shown} {harm} has started, and is compared"
            )),
        };
        if !field.node(id).runs() {
            // What the message says, or the way of somebody who has a copy that is not old.
            if self.random.bool() {
                let replaced = self.replace(taken).await?;
                return seen.map(|seen| format!("{seen}; {replaced}"));
            }
            field.put_back(id, &copy);
        }
        self.back(&taken).await?;
        seen
    }

    /// Flips a bit of a file, or cuts it off, where it holds something.
    fn harm(&mut self, file: &Path) -> std::io::Result<String> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(file)?;
        let length = file.metadata()?.len();
        if length == 0 {
            file.write_all_at(b"?", 0)?;
            return Ok("grown by a byte".to_owned());
        }
        if self.random.u8(..4) == 0 {
            let end = self.random.u64(..length);
            file.set_len(end)?;
            return Ok(format!("cut from {length} to {end} bytes"));
        }
        for _ in 0..1000 {
            let at = self.random.u64(..length);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            if byte[0] != 0 {
                byte[0] ^= 1 << self.random.u8(..8);
                file.write_all_at(&byte, at)?;
                return Ok(format!("flipped at {at} of {length}"));
            }
        }
        file.set_len(length / 2)?;
        Ok(format!("cut from {length} to {} bytes", length / 2))
    }

    /// Waits until a node has either ended, which is told by its last words, or is ready.
    async fn refused(&self, id: u64) -> Option<String> {
        let field = self.field();
        let client = field.client(id, Duration::from_secs(1));
        let deadline = Instant::now() + BACK;
        while Instant::now() < deadline {
            if let Ok(line) = field.until_ended(id, Duration::ZERO).await {
                return Some(line);
            }
            let ready = Client::try_send(client.request(Method::GET, "/readyz")).await;
            if ready.is_ok_and(|answer| answer.status == 200) {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }

    /// Puts a part of a node's folder, or all of it, back to what it was some acknowledgements before.
    async fn stale(&mut self, parts: &[&str]) -> Seen {
        let taken = self.follower().await?;
        let (field, id) = (self.field(), self.nodes[0]);
        self.struck = Some(Instant::now());
        field.node(id).kill();
        let old = field.copy_of(id);
        self.back(&taken).await?;
        let applied =
            |shown: Option<Value>| shown.and_then(|shown| shown["applied_index"].as_u64());
        let from = applied(field.shows(id).await).unwrap_or_default();
        let deadline = Instant::now() + OPPORTUNITY;
        while applied(field.shows(id).await).unwrap_or_default() < from + 20 {
            if Instant::now() > deadline {
                return Err("too little was written meanwhile".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        field.node(id).kill();
        let new = field.copy_of(id);
        if parts.is_empty() {
            field.put_back(id, &old);
        }
        let data = field.node(id).data().to_owned();
        for part in parts {
            let target = data.join(part);
            let put = std::fs::remove_dir_all(&target)
                .and_then(|()| super::field::copy_all(&old.path().join(part), &target));
            put.map_err(|error| error.to_string())?;
        }
        field.node(id).start();
        let refused = self.refused(id).await;
        match &refused {
            Some(line) => {
                field.put_back(id, &new);
                self.back(&taken).await?;
                Ok(format!("node {id} has refused: {line}"))
            }
            None => {
                let what = format!("node {id} takes part with an older copy of its data");
                field.history.violated(Invariant::I12, what.clone());
                field.node(id).kill();
                field.put_back(id, &new);
                self.back(&taken).await?;
                Ok(what)
            }
        }
    }

    /// A node that is free, whatever it is.
    fn any(&mut self) -> Result<u64, String> {
        let untouched = self.scene.field.untouched();
        let id = *self.random.choice(&untouched).ok_or("no node is free")?;
        Ok(id)
    }

    async fn slow_sync(&mut self) -> Seen {
        let id = self.any()?;
        self.nodes = vec![id];
        let (delay, time) = (self.between(20, 400), self.between(1000, 4000));
        let field = self.field();
        let shim = field.shim(id);
        let before = shim.syncs();
        self.struck = Some(Instant::now());
        shim.sync_delay(delay);
        tokio::time::sleep(time).await;
        let deadline = Instant::now() + OPPORTUNITY;
        // The counter begins anew with every process.
        while shim.syncs() == before && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let seen = shim.syncs() != before;
        shim.sync_delay(Duration::ZERO);
        if seen {
            Ok(format!(
                "every sync of node {id} took {delay:?} more for {time:?}"
            ))
        } else {
            Err(format!("node {id} has synced nothing"))
        }
    }

    async fn clock_jump(&mut self) -> Seen {
        let id = self.any()?;
        self.nodes = vec![id];
        let time = self.between(1000, 4000);
        let ahead = self.random.bool();
        let field = self.field();
        let shim = field.shim(id);
        self.struck = Some(Instant::now());
        shim.clock_offset_ms(if ahead { 3_600_000 } else { -3_600_000 });
        tokio::time::sleep(time).await;
        let deadline = Instant::now() + OPPORTUNITY;
        let mut seen = Err(format!("node {id} has not told the time"));
        while seen.is_err() && Instant::now() < deadline {
            if let Some(off) = self.clock_of(id).await.filter(|off| *off > 1800) {
                let way = if ahead { "ahead" } else { "back" };
                seen = Ok(format!("the clock of node {id} {off} s {way} for {time:?}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        shim.clock_offset_ms(0);
        seen
    }

    /// How far a node's wall clock is from the true one, seconds.
    async fn clock_of(&self, id: u64) -> Option<u64> {
        let client = self.scene.field.client(id, Duration::from_secs(1));
        let answer = Client::try_send(client.request(Method::GET, "/healthz")).await;
        let shown = httpdate::parse_http_date(answer.ok()?.header("date")).ok()?;
        let now = std::time::SystemTime::now();
        let off = now
            .duration_since(shown)
            .or_else(|_| shown.duration_since(now));
        Some(off.ok()?.as_secs())
    }

    /// A node finds no more room on its disk. It has to stop with a word about it, and to be there again once there is.
    async fn disk_full(&mut self) -> Seen {
        let id = self.any()?;
        let taken = self.take(vec![id]);
        let field = self.field();
        let shim = field.shim(id);
        self.struck = Some(Instant::now());
        let room = self.random.u32(..200_000);
        shim.disk_full_after(room);
        let last = field.until_ended(id, OPPORTUNITY).await;
        let failed = shim.faults();
        shim.clear();
        if last.is_err() {
            // It may also have gone on without writing.
            field.node(id).kill();
        }
        self.back(&taken).await?;
        match last {
            Ok(line) if line.to_lowercase().contains("no space left") => {
                Ok(format!("node {id} without room after {room} bytes: {line}"))
            }
            Ok(line) => {
                let what =
                    format!("node {id} has ended without saying that its disk is full: {line}");
                field.history.violated(Invariant::Processes, what.clone());
                Ok(what)
            }
            Err(_) if failed > 0 => Ok(format!("node {id} went on without room")),
            Err(why) => Err(why),
        }
    }

    /// A node loses everything that it has not synced.
    async fn power_loss(&mut self) -> Seen {
        let id = self.field().tracked();
        let field = self.field();
        if !field.untouched().contains(&id) {
            return Err(format!("node {id} is not free"));
        }
        let taken = self.take(vec![id]);
        let shim = field.shim(id);
        let seed = if self.random.bool() {
            0
        } else {
            self.random.u64(1..1 << 62)
        };
        self.struck = Some(Instant::now());
        shim.power_loss_now(seed);
        let ended = field.until_ended(id, OPPORTUNITY).await;
        let (fired, undone) = (shim.fired(), shim.undone());
        shim.clear();
        if ended.is_err() {
            field.node(id).kill();
        }
        let copy = field.copy_of(id);
        field.node(id).start();
        if let Some(line) = self.refused(id).await {
            let kept = copy.keep();
            let what = format!(
                "node {id} does not start after a power loss (seed {seed}, {undone} undone, files in {}): {line}",
                kept.display()
            );
            field.history.violated(Invariant::I1, what.clone());
            return Err(what);
        }
        self.back(&taken).await?;
        if fired == Some(crate::shim::Fired::PowerLost) {
            Ok(format!(
                "node {id} lost {undone} unsynced sectors and names"
            ))
        } else {
            Err(format!("the power of node {id} did not fail"))
        }
    }

    /// All nodes lose everything that they have not synced, while syncs take long.
    async fn power_loss_all(&mut self) -> Seen {
        let field = self.field();
        let taken = self.take(field.ids());
        for id in taken.ids() {
            field.shim(id).sync_delay(Duration::from_millis(600));
        }
        let time = self.between(1500, 3000);
        tokio::time::sleep(time).await;
        let struck = Instant::now();
        self.struck = Some(struck);
        for id in taken.ids() {
            field.shim(id).power_loss_now(0);
        }
        let accepted = field.history.accepted();
        let last = accepted.iter().map(|(_, answered)| *answered).max();
        let last = last.map_or_else(Duration::default, |last| {
            struck.saturating_duration_since(last)
        });
        let (mut lost, mut undone) = (0, 0);
        for id in taken.ids() {
            if field.until_ended(id, OPPORTUNITY).await.is_err() {
                field.node(id).kill();
            }
            let shim = field.shim(id);
            lost += usize::from(shim.fired() == Some(crate::shim::Fired::PowerLost));
            undone += shim.undone();
            shim.clear();
        }
        for id in taken.ids() {
            field.node(id).start();
        }
        self.back(&taken).await?;
        if lost == field.ids().len() {
            Ok(format!(
                "all nodes lost {undone} unsynced sectors and names, {last:?} after the last acknowledgement"
            ))
        } else {
            Err(format!("the power of only {lost} nodes has failed"))
        }
    }

    async fn rolling_restart(&mut self) -> Seen {
        let field = self.field();
        let began = Instant::now();
        self.struck = Some(began);
        for id in field.ids() {
            let taken = self.take(vec![id]);
            field.node(id).signal(rustix::process::Signal::TERM);
            let last = field.until_ended(id, BACK).await;
            if let Err(why) = last {
                let what = format!("after SIGTERM {why}");
                field.history.violated(Invariant::Processes, what);
                field.node(id).kill();
            }
            self.back(&taken).await?;
        }
        Ok(format!(
            "all nodes, one after the other, in {:?}",
            began.elapsed()
        ))
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Seen {
        let field = self.field();
        let untouched = field.untouched();
        let id = untouched.first().ok_or("no node is free")?;
        let client = field.client(*id, Duration::from_secs(15));
        let mut request = client.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        match Client::try_send(request).await {
            Ok(answer) if answer.status.is_success() => Ok(answer.text()),
            Ok(answer) => Err(format!("{path}: {} {}", answer.status, answer.text())),
            Err(error) => Err(format!("{path}: {error}")),
        }
    }

    async fn move_leader(&mut self) -> Seen {
        let field = self.field();
        let leader = field.leader_among(&field.untouched(), LEADERLESS).await?;
        let mut others = field.untouched();
        others.retain(|id| *id != leader);
        let to = *self.random.choice(&others).ok_or("no follower is free")?;
        self.nodes = vec![leader, to];
        self.struck = Some(Instant::now());
        let body = serde_json::json!({ "node": field.name_of(to) });
        self.ask(Method::POST, "/v1/cluster/leader", Some(body))
            .await?;
        let deadline = Instant::now() + OPPORTUNITY;
        while field.leader_among(&field.untouched(), LEADERLESS).await? == leader {
            if Instant::now() >= deadline {
                return Err(format!("node {leader} still leads"));
            }
        }
        Ok(format!("from node {leader} to node {to}"))
    }

    async fn drain(&mut self) -> Seen {
        let field = self.field();
        let untouched = field.untouched();
        let id = *self.random.choice(&untouched).ok_or("no node is free")?;
        self.nodes = vec![id];
        let path = format!("/v1/cluster/nodes/{}/drain", field.name_of(id));
        self.struck = Some(Instant::now());
        let draining = |on: bool| Some(serde_json::json!({ "draining": on }));
        self.ask(Method::POST, &path, draining(true)).await?;
        let shown = self.shows_draining(id, true).await;
        let time = self.between(500, 3000);
        tokio::time::sleep(time).await;
        let deadline = Instant::now() + BACK;
        while let Err(why) = self.ask(Method::POST, &path, draining(false)).await {
            if Instant::now() >= deadline {
                return Err(why);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        shown?;
        self.shows_draining(id, false).await?;
        Ok(format!("node {id} for {time:?}"))
    }

    async fn shows_draining(&self, id: u64, draining: bool) -> Result<(), String> {
        let field = self.field();
        let deadline = Instant::now() + OPPORTUNITY;
        loop {
            for at in field.untouched() {
                let shown = field.shows(at).await.unwrap_or_default();
                let nodes = shown["nodes"].as_array().cloned().unwrap_or_default();
                if nodes
                    .iter()
                    .any(|node| node["id"] == field.name_of(id) && node["draining"] == draining)
                {
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "nobody shows that draining of node {id} is {draining}"
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Whether a process has been stopped by a signal.
fn is_stopped(node: &Node) -> bool {
    let Some(pid) = node.pid() else { return false };
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state stands behind the name in brackets.
    status
        .rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('T'))
}

fn files_below(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_file() {
        files.push(path.to_owned());
        return;
    }
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        files_below(&entry.path(), files);
    }
}

/// The end of a file that grows.
struct Tail(std::fs::File);

impl Tail {
    fn of(path: &Path) -> Result<Self, String> {
        let open = || {
            let mut file = std::fs::File::open(path)?;
            file.seek(SeekFrom::End(0))?;
            Ok(Self(file))
        };
        open().map_err(|error: std::io::Error| format!("{}: {error}", path.display()))
    }

    fn read(&mut self) -> Result<String, String> {
        let mut bytes = Vec::new();
        self.0
            .read_to_end(&mut bytes)
            .map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
