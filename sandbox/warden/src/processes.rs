//! The processes of a job: finding them, measuring them, ending them, reaping them.

use std::collections::HashMap;
use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

/// What the job's living processes use at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Processes and threads.
    pub(crate) tasks: u64,
    /// Sum of their resident memory, KiB; memory that they share counts for each of them.
    pub(crate) memory_kb: u64,
    /// CPU time that they and those they waited for have used, microseconds.
    pub(crate) cpu_us: u64,
}

/// A process that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reaped {
    pub(crate) pid: i32,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// CPU time of it and of those it waited for, microseconds.
    pub(crate) cpu_us: u64,
    /// Largest resident set of it or of one it waited for, KiB.
    pub(crate) memory_kb: u64,
}

/// What is there to reap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reap {
    /// This one.
    One(Reaped),
    /// Nobody now, but there are children.
    Later,
    /// There is no child left. All of a job's processes descend from the warden, and those whose parent ends become its
    /// own children: so none of them is left either.
    Nobody,
}

/// Reaps one child that has ended.
pub(crate) fn reap() -> io::Result<Reap> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid value of plain integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the types that wait4 fills.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
    match pid {
        0 => Ok(Reap::Later),
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(Reap::Nobody),
            error if error.kind() == io::ErrorKind::Interrupted => Ok(Reap::Later),
            error => Err(error),
        },
        pid => Ok(Reap::One(Reaped {
            pid,
            exit_code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            cpu_us: microseconds(usage.ru_utime) + microseconds(usage.ru_stime),
            memory_kb: u64::try_from(usage.ru_maxrss).unwrap_or_default(),
        })),
    }
}

fn microseconds(time: libc::timeval) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let rest = u64::try_from(time.tv_usec).unwrap_or_default();
    seconds * 1_000_000 + rest
}

/// CPU time of the warden itself, microseconds.
pub(crate) fn own_cpu_us() -> u64 {
    // SAFETY: an all-zero rusage is a valid value of plain integers, and the pointer is to a live one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    microseconds(usage.ru_utime) + microseconds(usage.ru_stime)
}

/// CPU time that a process has used, microseconds; 0 if that cannot be found out.
pub(crate) fn cpu_us_of(pid: Pid) -> u64 {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both pointers are to live values of the types that are filled.
    let known = unsafe {
        libc::clock_getcpuclockid(pid.as_raw_nonzero().get(), &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    if !known {
        return 0;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let rest = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds * 1_000_000 + rest / 1000
}

/// Kills every process but this one, and returns when none is left.
pub(crate) fn end_all(contained: bool) -> io::Result<()> {
    loop {
        kill_all(contained);
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills every process of the job that can be found now. In a container that is every process but this one, at once and
/// without a race: the kernel lets nobody fork while it goes through them. Otherwise it is all descendants, group by
/// group, and the caller repeats it until nobody is left.
pub(crate) fn kill_all(contained: bool) {
    if contained && std::process::id() == 1 {
        // SAFETY: PID 1 of a PID namespace reaches only that namespace, and never itself.
        unsafe {
            libc::kill(-1, libc::SIGKILL);
        }
        return;
    }
    let own_group = rustix::process::getpgrp();
    for pid in descendants() {
        let Some(target) = Pid::from_raw(pid) else {
            continue;
        };
        if let Some(group) = Stat::read(pid).and_then(|stat| Pid::from_raw(stat.group))
            && group != own_group
        {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = rustix::process::kill_process(target, Signal::KILL);
    }
}

/// What all descendants use now.
pub(crate) fn sample() -> Sample {
    let ticks = setting(libc::_SC_CLK_TCK);
    let page_kb = setting(libc::_SC_PAGESIZE) / 1024;
    descendants()
        .into_iter()
        .filter_map(Stat::read)
        .fold(Sample::default(), |sum, stat| Sample {
            tasks: sum.tasks + stat.threads,
            memory_kb: sum.memory_kb + stat.resident_pages * page_kb,
            cpu_us: sum.cpu_us + stat.cpu_ticks * 1_000_000 / ticks,
        })
}

/// What all descendants use of the memory together, KiB: what several share counts once. Takes a walk through all their
/// pages, so it is for when [`Sample::memory_kb`] says that it may matter.
pub(crate) fn proportional_memory_kb() -> u64 {
    let page_kb = setting(libc::_SC_PAGESIZE) / 1024;
    descendants()
        .into_iter()
        .filter_map(|pid| {
            fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
                .ok()
                .and_then(|text| parse_proportional(&text))
                .or_else(|| Some(Stat::read(pid)?.resident_pages * page_kb))
        })
        .sum()
}

fn parse_proportional(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:"))?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()
}

/// How many processors the machine has: no job can use more CPU time per second than that.
pub(crate) fn processors() -> u32 {
    u32::try_from(setting(libc::_SC_NPROCESSORS_ONLN)).unwrap_or(u32::MAX)
}

/// A number that the system knows about itself, at least 1.
pub(crate) fn setting(name: libc::c_int) -> u64 {
    // SAFETY: sysconf takes any number and has no effect.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).unwrap_or(1).max(1)
}

/// Process ids that are not the warden's own, as far as /proc shows them. In a container there should be none between
/// two jobs.
pub(crate) fn others() -> io::Result<Vec<i32>> {
    let own = std::process::id().cast_signed();
    Ok(all_pids()?.into_iter().filter(|pid| *pid != own).collect())
}

fn all_pids() -> io::Result<Vec<i32>> {
    Ok(fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// All living processes that descend from this one.
fn descendants() -> Vec<i32> {
    let own = std::process::id().cast_signed();
    let mut found = Vec::new();
    let mut waiting = vec![own];
    while let Some(pid) = waiting.pop() {
        match children(pid) {
            Some(children) => {
                waiting.extend(&children);
                found.extend(children);
            }
            // It has ended meanwhile; what it left behind is ours now and found the next time.
            None if pid != own => {}
            None => return descendants_by_parent(own),
        }
    }
    found
}

/// The children of a process, if the kernel lists them (CONFIG_PROC_CHILDREN) and the process is there.
fn children(pid: i32) -> Option<Vec<i32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let list = task.ok()?.path().join("children");
        // One thread of several may have ended since.
        let list = match fs::read_to_string(list) {
            Ok(list) => list,
            Err(_) if pid == std::process::id().cast_signed() => return None,
            Err(_) => continue,
        };
        children.extend(
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    Some(children)
}

/// The same from everybody's parent.
fn descendants_by_parent(own: i32) -> Vec<i32> {
    let mut families: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in all_pids().unwrap_or_default() {
        if let Some(stat) = Stat::read(pid) {
            families.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut waiting = vec![own];
    while let Some(pid) = waiting.pop() {
        if let Some(children) = families.remove(&pid) {
            waiting.extend(&children);
            found.extend(children);
        }
    }
    found
}

/// What is used of /proc/PID/stat.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    group: i32,
    cpu_ticks: u64,
    threads: u64,
    resident_pages: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&bytes)
    }

    /// The name, in brackets, may hold anything; the fields come after the last bracket.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().rposition(|byte| *byte == b')')?;
        let fields: Vec<&str> = std::str::from_utf8(&bytes[end + 1..])
            .ok()?
            .split_ascii_whitespace()
            .collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            cpu_ticks: number(11)? + number(12)? + number(13)? + number(14)?,
            threads: number(17)?,
            resident_pages: number(21)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_full_of_brackets_does_not_confuse() {
        let line = b"4711 (a) R (b ) S 1 4711 4711 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 7 0 100 1000 55 0 0";
        assert_eq!(
            Stat::parse(line),
            Some(Stat {
                parent: 1,
                group: 4711,
                cpu_ticks: 100,
                threads: 7,
                resident_pages: 55,
            })
        );
        assert_eq!(Stat::parse(b"garbage"), None);
    }

    #[test]
    fn shared_memory_is_read_proportionally() {
        let text = "55d0-7ffc ---p 00000000 00:00 0   [rollup]\n\
                    Rss:                1000 kB\nPss:                 250 kB\nPss_Dirty:  12 kB\n";
        assert_eq!(parse_proportional(text), Some(250));
        assert_eq!(parse_proportional(""), None);
    }

    #[test]
    fn this_process_is_found_in_both_ways() {
        let own = std::process::id().cast_signed();
        assert!(children(own).is_some());
        assert!(Stat::read(own).is_some());
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        assert!(descendants().contains(&pid));
        assert!(descendants_by_parent(own).contains(&pid));
        assert!(sample().tasks >= 1);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descendants().contains(&pid));
    }
}
