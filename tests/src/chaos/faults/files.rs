//! Files of a node that is down are damaged, or older than they were.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;

use super::{BACK, OPPORTUNITY, Seen, Strike};
use crate::chaos::history::Invariant;
use crate::client::Client;

impl Strike<'_> {
    /// Damages a file of a node while it is down. The node must notice, or have nothing to notice.
    pub(super) async fn damage(&mut self, parts: &[&str]) -> Seen {
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
    pub(super) async fn refused(&self, id: u64) -> Option<String> {
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
    pub(super) async fn stale(&mut self, parts: &[&str]) -> Seen {
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
                .and_then(|()| crate::chaos::field::copy_all(&old.path().join(part), &target));
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
