//! What the shim beneath a process does: slow syncs, wrong clocks, full disks, power that fails.

use std::time::{Duration, Instant};

use reqwest::Method;

use super::{OPPORTUNITY, Seen, Strike};
use crate::chaos::history::Invariant;
use crate::client::Client;

impl Strike<'_> {
    pub(super) async fn slow_sync(&mut self) -> Seen {
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

    pub(super) async fn clock_jump(&mut self) -> Seen {
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
    pub(super) async fn disk_full(&mut self) -> Seen {
        let id = self.any()?;
        let taken = self.take_one(id)?;
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
    pub(super) async fn power_loss(&mut self) -> Seen {
        let id = self.field().tracked();
        let field = self.field();
        if !field.untouched().contains(&id) {
            return Err(format!("node {id} is not free"));
        }
        let taken = self.take_one(id)?;
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

    /// All nodes lose everything that they have not synced, while each is in the middle of a sync.
    pub(super) async fn power_loss_all(&mut self) -> Seen {
        /// The power goes before the first of these syncs is over: what a node confirms before it has synced is then lost on
        /// all of them. With shorter ones, the sync of one node ends while that of another begins, and one of them has it.
        const SYNC: Duration = Duration::from_millis(2500);
        let field = self.field();
        let taken = self.take(field.ids());
        for id in taken.ids() {
            field.shim(id).sync_delay(SYNC);
        }
        let time = self.between(500, 2000);
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
}
