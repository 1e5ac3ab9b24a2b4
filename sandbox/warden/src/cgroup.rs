//! The counters that the kernel keeps for the container: CPU time of everything in it, and kills for memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// The container's counters, opened once and read again and again.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    cpu: Option<Counter>,
    oom: Option<Counter>,
    memory: Option<Memory>,
}

/// What the container's memory is used for, and how much it may be.
#[derive(Debug)]
struct Memory {
    statistics: File,
    limit: u64,
    /// The keys whose sum cannot be taken back by the kernel: pages of processes, and files in memory.
    keys: [&'static str; 2],
}

#[derive(Debug)]
struct Counter {
    file: File,
    format: Format,
}

#[derive(Clone, Copy, Debug)]
enum Format {
    /// One number of nanoseconds.
    Nanoseconds,
    /// Lines of a key and a number; the line with this key counts.
    Keyed(&'static str),
}

impl Cgroup {
    /// Opens the counters of the container that this process is in, version 2 or 1. Never the counters of a whole
    /// machine: outside a container there is nothing to read.
    pub(crate) fn open() -> Self {
        let own = own_paths();
        let unified = |name: &str| {
            own.unified
                .iter()
                .map(|path| path.join(name))
                .collect::<Vec<_>>()
        };
        let legacy = |controllers: &[&str], name: &str| {
            controllers
                .iter()
                .map(|controller| Path::new(ROOT).join(controller).join(name))
                .collect::<Vec<_>>()
        };
        Self {
            cpu: Counter::first(&unified("cpu.stat"), Format::Keyed("usage_usec")).or_else(|| {
                Counter::first(
                    &legacy(&["cpuacct", "cpu,cpuacct"], "cpuacct.usage"),
                    Format::Nanoseconds,
                )
            }),
            oom: Counter::first(&unified("memory.events"), Format::Keyed("oom_kill")).or_else(
                || {
                    Counter::first(
                        &legacy(&["memory"], "memory.oom_control"),
                        Format::Keyed("oom_kill"),
                    )
                },
            ),
            memory: Memory::open(&unified, "memory.max", ["anon", "shmem"]).or_else(|| {
                Memory::open(
                    &|name| legacy(&["memory"], name),
                    "memory.limit_in_bytes",
                    ["rss", "shmem"],
                )
            }),
        }
    }

    /// Whether what cannot be taken back takes up nearly all of the memory; `None` where that cannot be read.
    pub(crate) fn is_nearly_full(&self) -> Option<bool> {
        let memory = self.memory.as_ref()?;
        Some(nearly_full(memory.used()?, memory.limit))
    }

    /// CPU time of everything that ever ran in the container, microseconds.
    pub(crate) fn cpu_us(&self) -> Option<u64> {
        let counter = self.cpu.as_ref()?;
        let value = counter.read()?;
        Some(match counter.format {
            Format::Nanoseconds => value / 1000,
            Format::Keyed(_) => value,
        })
    }

    /// How many processes of the container were killed for its memory.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        self.oom.as_ref()?.read()
    }
}

/// A sixteenth is left, or less.
fn nearly_full(used: u64, limit: u64) -> bool {
    used >= limit - limit / 16
}

impl Memory {
    fn open(
        paths: &dyn Fn(&str) -> Vec<PathBuf>,
        limit: &str,
        keys: [&'static str; 2],
    ) -> Option<Self> {
        let limit = paths(limit)
            .iter()
            .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok())?;
        let statistics = paths("memory.stat")
            .iter()
            .find_map(|path| File::open(path).ok())?;
        Some(Self {
            statistics,
            limit,
            keys,
        })
    }

    fn used(&self) -> Option<u64> {
        let mut buffer = [0; 4096];
        let length = self.statistics.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(&buffer[..length]).ok()?;
        self.keys
            .iter()
            .map(|key| parse(text, Format::Keyed(key)))
            .sum()
    }
}

impl Counter {
    fn first(paths: &[PathBuf], format: Format) -> Option<Self> {
        paths.iter().find_map(|path| {
            let counter = Self {
                file: File::open(path).ok()?,
                format,
            };
            counter.read().is_some().then_some(counter)
        })
    }

    fn read(&self) -> Option<u64> {
        let mut buffer = [0; 1024];
        let length = self.file.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(&buffer[..length]).ok()?;
        parse(text, self.format)
    }
}

fn parse(text: &str, format: Format) -> Option<u64> {
    match format {
        Format::Nanoseconds => text.trim().parse().ok(),
        Format::Keyed(key) => text.lines().find_map(|line| {
            let (name, value) = line.split_once(' ')?;
            (name == key).then(|| value.trim().parse().ok())?
        }),
    }
}

struct Own {
    unified: Vec<PathBuf>,
}

/// Where the container's own group of version 2 is: the mount's root when the container has a cgroup namespace of its
/// own, else the path that /proc names.
fn own_paths() -> Own {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut unified = Vec::new();
    if let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) {
        unified.push(Path::new(ROOT).join(path));
        unified.push(PathBuf::from(ROOT));
    }
    Own { unified }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_understood() {
        assert_eq!(parse("123456789\n", Format::Nanoseconds), Some(123_456_789));
        let v2 = "usage_usec 4711\nuser_usec 4000\nsystem_usec 711\n";
        assert_eq!(parse(v2, Format::Keyed("usage_usec")), Some(4711));
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(parse(v1, Format::Keyed("oom_kill")), Some(3));
        let events = "low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(parse(events, Format::Keyed("oom_kill")), Some(2));
        let stat = "cache 8192\nrss 4096\nrss_huge 0\nshmem 1024\n";
        assert_eq!(parse(stat, Format::Keyed("rss")), Some(4096));
        assert_eq!(parse(stat, Format::Keyed("shmem")), Some(1024));
        assert!(nearly_full(61, 64) && !nearly_full(59, 64));
        assert_eq!(parse("", Format::Keyed("oom_kill")), None);
        assert_eq!(
            parse("oom_kill_disable 0\n", Format::Keyed("oom_kill")),
            None
        );
    }
}
