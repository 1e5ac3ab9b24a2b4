//! This process, as the kernel sees it; and how many files it may have open.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// What the kernel says of this process.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// Memory, bytes.
    pub resident_bytes: u64,
    /// Address space, bytes.
    pub virtual_bytes: u64,
    /// Open files and connections.
    pub open_files: u64,
    /// How many there may be.
    pub most_files: u64,
    /// Threads.
    pub threads: u64,
    /// CPU time.
    pub cpu_seconds: f64,
    /// When it began, seconds since 1970.
    pub started: f64,
}

/// Asks the kernel; `None` where there is no `/proc`.
#[must_use]
pub fn look() -> Option<Process> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program may hold anything; what follows are numbers, from the third field on.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |number: usize| -> Option<u64> { fields.get(number - 3)?.parse().ok() };
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let booted = fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = booted
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    Some(Process {
        resident_bytes: field(24)? * rustix::param::page_size() as u64,
        virtual_bytes: field(23)?,
        open_files: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        most_files: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        threads: field(20)?,
        cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
        started: booted + field(22)? as f64 / ticks,
    })
}

/// Descriptors that are kept for everything that is not a client.
const OWN_FILES: u64 = 256;

/// Lets this process have as many files open as it may, and says how many connections of clients that leaves room for, of
/// those that are wanted.
#[must_use]
pub fn room_for(connections: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        debug!(%error, "the number of open files stays as it is");
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = files.saturating_sub(OWN_FILES).max(16);
    if room < connections {
        warn!(
            files,
            "this process may have too few files open for {connections} connections; it takes {room}"
        );
    }
    connections.min(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_this_process() {
        let process = look().unwrap();
        assert!(process.resident_bytes > 1 << 20, "{process:?}");
        assert!(process.virtual_bytes >= process.resident_bytes);
        assert!((3..=process.most_files).contains(&process.open_files));
        assert!(process.threads >= 1);
        let now = crate::scheduler::now_ms() as f64 / 1000.0;
        assert!(process.started > now - 3600.0 && process.started < now + 60.0);
        assert!(process.cpu_seconds < 3600.0);
    }
}
