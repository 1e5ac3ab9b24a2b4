//! Processes are killed and stopped.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{OPPORTUNITY, Seen, Strike};
use crate::chaos::field::Taken;
use crate::node::Node;

impl Strike<'_> {
    /// SIGKILL to nodes that were taken, and back again after some time.
    pub(super) async fn kill(&mut self, taken: Taken, longest_ms: u64) -> Seen {
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

    /// Waits for an execution on some node to end, and kills the node at once.
    pub(super) async fn kill_after_run(&mut self) -> Seen {
        let field = self.field();
        let untouched = field.untouched();
        let id = *self.random.choice(&untouched).ok_or("no node is free")?;
        let taken = self.take_one(id)?;
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

    pub(super) async fn pause(&mut self, taken: Taken) -> Seen {
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
}

fn is_stopped(node: &Node) -> bool {
    let Some(pid) = node.pid() else { return false };
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state stands behind the name in brackets.
    status
        .rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('T'))
}

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
