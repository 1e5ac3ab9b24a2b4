//! What lies on the disk is damaged while the node is down.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use quorun_tests::say;

use super::store::Place;
use super::trials;

/// All files below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

fn replace(dir: &Path, with: &Path) {
    fs::remove_dir_all(dir).unwrap();
    copy(with, dir);
}

/// Small and even enough for this.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below.max(1)
    }
}

/// Damages a file of a folder; `old` is the folder as it was before. Says what it has done.
fn damage(dir: &Path, old: &Path, dice: &mut Dice) -> (&'static str, String) {
    let all = files(dir);
    // The two databases are most of it; each kind of file has its turn.
    let path = all[usize::try_from(dice.roll(all.len() as u64)).unwrap()].clone();
    let name = path.strip_prefix(dir).unwrap().display().to_string();
    let length = fs::metadata(&path).unwrap().len();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    match dice.roll(5) {
        0 => {
            let at = dice.roll(length);
            let mut byte = [0];
            if file.read_at(&mut byte, at).unwrap() == 1 {
                byte[0] ^= 1 << dice.roll(8);
                file.write_all_at(&byte, at).unwrap();
            }
            ("flipped bit", format!("bit of byte {at} in {name}"))
        }
        1 => {
            let at = dice.roll(length);
            let size = 512.min(length - at);
            file.write_all_at(&vec![0; usize::try_from(size).unwrap()], at)
                .unwrap();
            ("sector of zeros", format!("{size} bytes at {at} in {name}"))
        }
        2 => {
            let to = dice.roll(length);
            file.set_len(to).unwrap();
            ("cut off", format!("{name} at {to} of {length}"))
        }
        3 => {
            fs::remove_file(&path).unwrap();
            ("removed", name)
        }
        _ => {
            // A part of the folder from an older copy.
            let part = ["log", "log.watermark", "ledger", "snapshots"]
                [usize::try_from(dice.roll(4)).unwrap()];
            if dir.join(part).is_dir() {
                replace(&dir.join(part), &old.join(part));
            } else {
                fs::copy(old.join(part), dir.join(part)).unwrap();
            }
            ("older copy", part.to_owned())
        }
    }
}

#[test]
fn damage_while_the_node_is_down_is_noticed_or_harmless() {
    let mut place = Place::new();
    assert!(place.work(100).finished);
    let old = tempfile::tempdir().unwrap();
    copy(&place.data(), old.path());
    // It is killed: what a clean end would write is not there.
    let mut running = place.start(1_000_000);
    running.read(|said| said.accepted.len() >= 100);
    place.shim.kill_at(1);
    let said = running.end();
    place.remember(&said);
    let good = tempfile::tempdir().unwrap();
    copy(&place.data(), good.path());
    place.whole("a kill");

    let mut dice = Dice(0x9e37_79b9);
    let mut counts: BTreeMap<&str, [u32; 3]> = BTreeMap::new();
    let trials = 5 * trials();
    for trial in 0..trials {
        replace(&place.data(), good.path());
        let (kind, what) = damage(&place.data(), old.path(), &mut dice);
        let what = format!("trial {trial}, {kind}: {what}");
        let said = place.look();
        if std::env::var_os("RUST_LOG").is_some() {
            say(&format!("{what}: {said:?}"));
        }
        assert!(
            said.lost.is_empty() && said.changed.is_empty(),
            "{what}: silent loss: {said:?}"
        );
        let counts = counts.entry(kind).or_default();
        if let Some(refused) = &said.refused {
            assert!(
                refused.contains(place.data().to_str().unwrap()),
                "{what}: no file: {refused}"
            );
            counts[0] += 1;
        } else if let Some(stopped) = &said.stopped {
            assert!(stopped.contains("storage"), "{what}: {stopped}");
            counts[1] += 1;
        } else {
            assert!(said.finished, "{what}: {said:?}");
            assert!(
                said.term.unwrap() > place.term,
                "{what}: a vote was forgotten: {said:?}"
            );
            counts[2] += 1;
        }
    }
    say(&format!(
        "{trials} times damage, {} jobs accepted before, [refused, ended, harmless]: {counts:?}",
        place.accepted.len()
    ));
}
