//! A disk and a wall clock that misbehave on demand, for one process and one folder.
//!
//! `shim/shim.c` is put into the process by `LD_PRELOAD` and is driven through a small file that both sides know: this
//! side writes plain integers, the other has the file mapped. What it can do, and what it means by power loss, is said
//! at its head.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::program;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/shim/shim.c");
const CONTROL_SIZE: usize = 4096;
const FILTER_SIZE: usize = 256;

// The numbers of the fields; `shim.c` has the same list.
const TRACK: u64 = 1;
const SYNC_DELAY: u64 = 2;
const FULL: u64 = 3;
const SPACE: u64 = 4;
const FAIL_WRITES: u64 = 5;
const FAIL_SYNCS: u64 = 6;
const SHORT_WRITES: u64 = 7;
const IGNORE_SYNCS: u64 = 8;
const KILL_AT: u64 = 9;
const POWER_AT: u64 = 10;
const POWER_NOW: u64 = 11;
const POWER_SEED: u64 = 12;
const CLOCK_OFFSET: u64 = 13;
const CLOCK_RATE: u64 = 14;
const CLOCK_FROM: u64 = 15;
const CALLS: u64 = 32;
const SYNCS: u64 = 33;
const WRITES: u64 = 34;
const BYTES: u64 = 35;
const FAULTS: u64 = 36;
const RANGE_SYNCS: u64 = 37;
const FIRED: u64 = 38;
const UNDONE: u64 = 39;
const PID: u64 = 40;
const FILTER: u64 = 128;

/// How the shim has ended its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fired {
    /// By SIGKILL.
    Killed,
    /// By the loss of what was not synced.
    PowerLost,
}

/// The control of the shim in one process; it stays over restarts of the process, and so do the faults that are set.
#[derive(Debug)]
pub struct Shim {
    control: File,
    path: PathBuf,
    data_dir: PathBuf,
}

impl Shim {
    /// A shim without faults for the files below `data_dir`, which need not be there yet. The control file is made
    /// anew; it and a folder beside it must be on the same file system as the data.
    ///
    /// # Panics
    /// When the library cannot be compiled, or the file not be made.
    #[must_use]
    pub fn new(path: &Path, data_dir: &Path) -> Self {
        let _ = library();
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .expect("make the shim's control file");
        control
            .write_all_at(&[0; CONTROL_SIZE], 0)
            .expect("write the shim's control file");
        let absolute = |path: &Path| std::path::absolute(path).expect("an absolute path");
        Self {
            control,
            path: absolute(path),
            data_dir: absolute(data_dir),
        }
    }

    /// The variables to start the process with.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        vec![
            ("LD_PRELOAD".to_owned(), text(library())),
            ("QUORUN_SHIM_DIR".to_owned(), text(&self.data_dir)),
            ("QUORUN_SHIM_CONTROL".to_owned(), text(&self.path)),
            (
                "QUORUN_SHIM_TRASH".to_owned(),
                text(&self.path.with_extension("kept")),
            ),
        ]
    }

    fn set(&self, field: u64, value: i64) {
        self.control
            .write_all_at(&value.to_ne_bytes(), field * 8)
            .expect("write the shim's control file");
    }

    fn get(&self, field: u64) -> i64 {
        let mut value = [0; 8];
        self.control
            .read_exact_at(&mut value, field * 8)
            .expect("read the shim's control file");
        i64::from_ne_bytes(value)
    }

    fn count(&self, field: u64) -> u64 {
        self.get(field).cast_unsigned()
    }

    /// Whether what power loss takes back is kept. To be set before the process starts.
    pub fn track(&self, on: bool) {
        self.set(TRACK, on.into());
    }

    /// Only files whose path contains this are counted and have faults; all, if it is empty. Power loss is for all.
    ///
    /// # Panics
    /// When it is too long.
    pub fn only(&self, part_of_path: &str) {
        let mut filter = [0; FILTER_SIZE];
        assert!(part_of_path.len() < FILTER_SIZE, "too long: {part_of_path}");
        filter[..part_of_path.len()].copy_from_slice(part_of_path.as_bytes());
        self.control
            .write_all_at(&filter, FILTER * 8)
            .expect("write the shim's control file");
    }

    /// Every sync takes so much longer; also the one that is under way.
    pub fn sync_delay(&self, delay: Duration) {
        self.set(
            SYNC_DELAY,
            i64::try_from(delay.as_micros()).unwrap_or(i64::MAX),
        );
    }

    /// Whether there is no room for writes and new names.
    pub fn disk_full(&self, full: bool) {
        self.set(FULL, full.into());
    }

    /// So many bytes may be written until there is no room.
    pub fn disk_full_after(&self, bytes: u32) {
        self.set(SPACE, i64::from(bytes) + 1);
    }

    /// Whether writes fail.
    pub fn fail_writes(&self, fail: bool) {
        self.set(FAIL_WRITES, fail.into());
    }

    /// Whether syncs fail.
    pub fn fail_syncs(&self, fail: bool) {
        self.set(FAIL_SYNCS, fail.into());
    }

    /// Whether writes do about half of what they are asked for, which is allowed.
    pub fn short_writes(&self, short: bool) {
        self.set(SHORT_WRITES, short.into());
    }

    /// Whether syncs say that they are done and do nothing: a disk that lies. It shows whether a test of power loss can
    /// fail.
    pub fn ignore_syncs(&self, ignore: bool) {
        self.set(IGNORE_SYNCS, ignore.into());
    }

    /// The process is killed instead of its `call`th call, once.
    pub fn kill_at(&self, call: u64) {
        self.set(KILL_AT, call.cast_signed());
    }

    /// The power fails instead of the `call`th call, once: all that is not synced is lost (`seed` 0), or by chance some
    /// of it. Needs [`Self::track`].
    pub fn power_loss_at(&self, call: u64, seed: u64) {
        self.set(POWER_SEED, seed.cast_signed());
        self.set(POWER_AT, call.cast_signed());
    }

    /// The same, at once.
    pub fn power_loss_now(&self, seed: u64) {
        self.set(POWER_SEED, seed.cast_signed());
        self.set(POWER_NOW, 1);
    }

    /// How far the wall clock is ahead, or behind.
    pub fn clock_offset_ms(&self, offset: i64) {
        self.set(CLOCK_OFFSET, offset);
    }

    /// How fast the wall clock goes from now on; 1 is as it should be.
    ///
    /// # Panics
    /// When the rate is negative or out of all bounds.
    pub fn clock_rate(&self, rate: f64) {
        assert!((0.0..=1e6).contains(&rate), "rate {rate}");
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        self.set(
            CLOCK_FROM,
            i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        );
        #[allow(clippy::cast_possible_truncation)] // in bounds, and millionths are enough
        let millionths = (rate * 1e6).round() as i64;
        // 0 stands for "as it is".
        self.set(CLOCK_RATE, millionths.max(1));
    }

    /// Takes all faults away; whether power loss is tracked stays as it is.
    pub fn clear(&self) {
        for field in SYNC_DELAY..=CLOCK_FROM {
            self.set(field, 0);
        }
        self.only("");
    }

    /// The calls that change something on disk, since the start of the process.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.count(CALLS)
    }

    /// The fsyncs and fdatasyncs that succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.count(SYNCS)
    }

    /// The calls of `sync_file_range`, which makes nothing durable.
    #[must_use]
    pub fn range_syncs(&self) -> u64 {
        self.count(RANGE_SYNCS)
    }

    /// The writes that succeeded.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.count(WRITES)
    }

    /// What they have written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.count(BYTES)
    }

    /// The calls that were made to fail, or to do less.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.count(FAULTS)
    }

    /// The sectors and names that power loss has taken back.
    #[must_use]
    pub fn undone(&self) -> u64 {
        self.count(UNDONE)
    }

    /// The process that has the shim, or had it last.
    #[must_use]
    pub fn pid(&self) -> u64 {
        self.count(PID)
    }

    /// How the shim has ended the process, if it has.
    #[must_use]
    pub fn fired(&self) -> Option<Fired> {
        match self.get(FIRED) {
            1 => Some(Fired::Killed),
            2 => Some(Fired::PowerLost),
            _ => None,
        }
    }
}

/// The compiled shim, in the folder of the running test's profile.
///
/// # Panics
/// When it cannot be compiled.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let library = program::profile_dir().join("quorun-shim.so");
        let modified = |path: &Path| fs::metadata(path).and_then(|is| is.modified());
        let source_time = modified(Path::new(SOURCE)).expect("the shim's source");
        if modified(&library).is_ok_and(|time| time > source_time) {
            return library;
        }
        // Another test may do the same at the same time.
        let fresh = library.with_extension(format!("{}.so", std::process::id()));
        let status = Command::new("cc")
            .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC"])
            .arg(SOURCE)
            .arg("-o")
            .arg(&fresh)
            .args(["-ldl", "-lpthread"])
            .status()
            .expect("start cc, which compiles the shim");
        assert!(status.success(), "compiling the shim: {status}");
        fs::rename(&fresh, &library).expect("name the compiled shim");
        library
    })
}
