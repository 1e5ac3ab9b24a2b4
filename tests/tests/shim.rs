//! Each fault of the shim, shown on a small program: this one, started again.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use quorun_tests::Shim;
use quorun_tests::shim::Fired;

const CHILD: &str = "SHIM_TEST_CHILD";
const DIR: &str = "SHIM_TEST_DIR";

/// What the other process does; what it says is on its stdout.
fn child(what: &str, dir: &Path) -> io::Result<String> {
    let old = dir.join("old");
    match what {
        // Calls: create 1, write 2, sync 3, write 4, rename 5, sync of the folder 6, unlink 7, mkdir 8.
        "steps" => {
            let mut file = File::create(dir.join("new"))?;
            file.write_all(&[b'1'; 2000])?;
            file.sync_data()?;
            file.write_all(&[b'2'; 2000])?;
            fs::rename(dir.join("new"), &old)?;
            File::open(dir)?.sync_all()?;
            fs::remove_file(&old)?;
            fs::create_dir(dir.join("below"))?;
            fs::write(dir.join("below/file"), "text")?;
        }
        "overwrite" => {
            let file = OpenOptions::new().write(true).open(&old)?;
            file.write_all_at(&[b'x'; 3000], 1000)?;
            file.set_len(2000)?;
            file.write_all_at(&[b'y'; 100], 5000)?;
            drop(file);
            File::create(dir.join("other"))?.write_all(b"other")?;
            fs::write(&old, "short")?;
        }
        "write" => {
            let written = (|| {
                let mut file = File::create(dir.join("new"))?;
                file.write_all(&[b'z'; 10_000])?;
                file.sync_all()
            })();
            let length = fs::metadata(dir.join("new")).map_or(0, |is| is.len());
            return Ok(format!("{:?} {length}", written.map_err(|e| e.kind())));
        }
        "outside" => {
            let outside = dir.with_extension("outside");
            fs::write(&outside, "text")?;
            File::open(&outside)?.sync_all()?;
        }
        "clock" => {
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            return Ok(now.as_secs().to_string());
        }
        "preload" => return Ok(format!("{:?}", std::env::var_os("LD_PRELOAD"))),
        other => panic!("{other}"),
    }
    Ok("done".to_owned())
}

/// The program that is started again.
#[test]
fn the_child() {
    if let Some(what) = std::env::var_os(CHILD) {
        let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
        let said = child(what.to_str().unwrap(), &dir);
        println!("\nsaid: {}", said.unwrap());
    }
}

struct Case {
    folder: tempfile::TempDir,
    shim: Shim,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let shim = Shim::new(&folder.path().join("control"), &data);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("old"), [b'0'; 4096]).unwrap();
        Self { folder, shim }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn run(&self, what: &str) -> (ExitStatus, String) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["the_child", "--exact", "--nocapture"])
            .env(CHILD, what)
            .env(DIR, self.data())
            .envs(self.shim.env())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let said = text.lines().find_map(|line| line.strip_prefix("said: "));
        (output.status, said.unwrap_or_default().to_owned())
    }

    /// Every name in the folder with what lies there; folders end with a stroke.
    fn names(&self) -> Vec<(String, usize)> {
        let mut names: Vec<_> = fs::read_dir(self.data())
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    (format!("{name}/"), 0)
                } else {
                    (name, fs::read(path).unwrap().len())
                }
            })
            .collect();
        names.sort();
        names
    }

    fn old(&self) -> Vec<u8> {
        fs::read(self.data().join("old")).unwrap()
    }
}

fn names(of: &[(&str, usize)]) -> Vec<(String, usize)> {
    of.iter()
        .map(|(name, size)| ((*name).to_owned(), *size))
        .collect()
}

#[test]
fn without_faults_it_only_counts() {
    let case = Case::new();
    let (status, said) = case.run("steps");
    assert!(status.success());
    assert_eq!(said, "done");
    assert_eq!(case.names(), names(&[("below/", 0)]));
    assert_eq!(case.shim.calls(), 10);
    assert_eq!(case.shim.writes(), 3);
    assert_eq!(case.shim.bytes(), 4004);
    assert_eq!(case.shim.syncs(), 2);
    assert_eq!(case.shim.faults(), 0);
    assert_eq!(case.shim.fired(), None);
    case.run("outside");
    assert_eq!(case.shim.calls(), 0, "other folders are left alone");
    assert_eq!(
        case.run("preload").1,
        "None",
        "its own processes are without it"
    );
}

#[test]
fn only_some_files_are_counted() {
    let case = Case::new();
    case.shim.only("/below/");
    assert_eq!(case.run("steps").1, "done");
    assert_eq!((case.shim.calls(), case.shim.writes()), (2, 1));
}

#[test]
fn it_kills_at_any_call() {
    let expected: [&[(&str, usize)]; 10] = [
        &[("old", 4096)],
        &[("new", 0), ("old", 4096)],
        &[("new", 2000), ("old", 4096)],
        &[("new", 2000), ("old", 4096)],
        &[("new", 4000), ("old", 4096)],
        &[("old", 4000)],
        &[("old", 4000)],
        &[],
        &[("below/", 0)],
        &[("below/", 0)],
    ];
    for (call, expected) in (1..).zip(expected) {
        let case = Case::new();
        case.shim.kill_at(call);
        let (status, _) = case.run("steps");
        assert_eq!(status.signal(), Some(9), "call {call}");
        assert_eq!(case.shim.fired(), Some(Fired::Killed));
        assert_eq!(case.names(), names(expected), "call {call}");
    }
}

#[test]
fn what_is_not_synced_is_lost_with_the_power() {
    let expected: [&[(&str, usize)]; 10] = [
        &[("old", 4096)],
        &[("old", 4096)],
        &[("old", 4096)],
        // The file is synced, its name is not.
        &[("old", 4096)],
        &[("old", 4096)],
        &[("old", 4096)],
        // The names are synced, the second half of the file is not.
        &[("old", 2000)],
        &[("old", 2000)],
        &[("old", 2000)],
        &[("old", 2000)],
    ];
    for (call, expected) in (1..).zip(expected) {
        let case = Case::new();
        case.shim.track(true);
        case.shim.power_loss_at(call, 0);
        let (status, _) = case.run("steps");
        assert_eq!(status.code(), Some(137), "call {call}");
        assert_eq!(case.shim.fired(), Some(Fired::PowerLost));
        assert_eq!(case.names(), names(expected), "call {call}");
        let old = case.old();
        assert!(
            old.iter().all(|byte| *byte == old[0]),
            "what was lost is not in the file"
        );
    }
}

#[test]
fn what_was_overwritten_comes_back() {
    // Calls: write 1, set_len 2, write 3, create 4, write 5, truncate 6, write 7.
    for call in 2..=7 {
        let case = Case::new();
        case.shim.track(true);
        case.shim.power_loss_at(call, 0);
        let (status, _) = case.run("overwrite");
        assert_eq!(status.code(), Some(137), "call {call}");
        assert_eq!(case.names(), names(&[("old", 4096)]), "call {call}");
        assert_eq!(case.old(), [b'0'; 4096], "call {call}");
        assert!(case.shim.undone() > 0);
    }
}

#[test]
fn by_chance_some_of_it_is_lost_and_the_same_seed_loses_the_same() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 1..=24 {
        let mut twice = Vec::new();
        for _ in 0..2 {
            let case = Case::new();
            case.shim.track(true);
            case.shim.power_loss_at(6, seed);
            case.run("overwrite");
            assert_eq!(case.shim.fired(), Some(Fired::PowerLost));
            let old = case.old();
            assert!([2000, 4096, 5100].contains(&old.len()), "{}", old.len());
            // Nothing but what was there at some time.
            assert!(old[..1000].iter().all(|byte| *byte == b'0'));
            assert!(old.iter().all(|byte| [b'0', b'x', b'y', 0].contains(byte)));
            twice.push((case.names(), old));
        }
        assert_eq!(twice[0], twice[1], "seed {seed}");
        outcomes.extend(twice);
    }
    assert!(
        outcomes.len() > 8,
        "{} outcomes of 24 seeds",
        outcomes.len()
    );
}

#[test]
fn a_disk_that_lies_loses_what_was_synced() {
    let case = Case::new();
    case.shim.track(true);
    case.shim.ignore_syncs(true);
    case.shim.power_loss_at(7, 0);
    case.run("steps");
    assert_eq!(case.names(), names(&[("old", 4096)]));
    assert_eq!(case.old(), [b'0'; 4096]);
}

#[test]
fn writes_and_syncs_fail_as_they_are_told() {
    let case = Case::new();
    assert_eq!(case.run("write").1, "Ok(()) 10000");
    case.shim.short_writes(true);
    assert_eq!(case.run("write").1, "Ok(()) 10000");
    assert!(case.shim.writes() > 10, "{} writes", case.shim.writes());
    case.shim.clear();
    case.shim.fail_writes(true);
    assert_eq!(case.run("write").1, "Err(Uncategorized) 0");
    case.shim.clear();
    case.shim.fail_syncs(true);
    assert_eq!(case.run("write").1, "Err(Uncategorized) 10000");
    case.shim.clear();
    case.shim.disk_full_after(4_321);
    assert_eq!(case.run("write").1, "Err(StorageFull) 4321");
    case.shim.clear();
    case.shim.disk_full(true);
    fs::remove_file(case.data().join("new")).unwrap();
    assert_eq!(case.run("write").1, "Err(StorageFull) 0");
    assert_eq!(case.names(), names(&[("old", 4096)]));
    case.shim.clear();
    assert_eq!(case.run("write").1, "Ok(()) 10000");
}

#[test]
fn a_sync_takes_as_long_as_it_is_told() {
    let case = Case::new();
    let delay = Duration::from_millis(300);
    case.shim.sync_delay(delay);
    let started = std::time::Instant::now();
    assert_eq!(case.run("write").1, "Ok(()) 10000");
    assert!(started.elapsed() >= delay);
}

#[test]
fn the_wall_clock_is_bent() {
    let case = Case::new();
    let real = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let hour = 3_600;
    let seen = || case.run("clock").1.parse::<u64>().unwrap();
    case.shim.clock_offset_ms(3_600_000);
    let before = real();
    let ahead = seen();
    assert!((before + hour..=real() + hour).contains(&ahead));
    case.shim.clock_offset_ms(-3_600_000);
    let before = real();
    let behind = seen();
    assert!((before - hour..=real() - hour).contains(&behind));
    case.shim.clear();
    // A thousand seconds for each millisecond, and no process starts in a tenth of one.
    case.shim.clock_rate(1e6);
    assert!(seen() > real() + 100);
}
