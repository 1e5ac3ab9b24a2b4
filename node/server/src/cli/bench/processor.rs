//! What the processors did meanwhile: those of this machine altogether, and what the nodes had of them.
//!
//! The machine's figure counts everything that ran, programs, nodes, engine and this client, so on a machine that does
//! other things too it says little; and nothing of nodes that are elsewhere. Of processes that were started from here the
//! kernel says what they had, whatever program they are.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use super::client::Nodes;

/// How long a node may take to tell its figures.
const PATIENCE: Duration = Duration::from_secs(5);

/// Figures that only grow, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    at: Instant,
    machine: Option<Machine>,
    /// CPU time of all nodes, seconds; `None` if one of them did not say.
    nodes: Option<f64>,
}

/// The processors of a machine since it began, ticks of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Machine {
    busy: u64,
    idle: u64,
}

/// What lies between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// How many processors of this machine were busy, on average.
    pub machine: Option<f64>,
    /// Which part of them was idle, percent.
    pub idle_percent: Option<f64>,
    /// How many processors the nodes had, on average.
    pub nodes: Option<f64>,
}

impl Look {
    /// Looks now.
    pub async fn now(nodes: &Nodes) -> Self {
        let mut sum = Some(0.0);
        for node in 0..nodes.len() {
            let said = nodes
                .send(node, Method::GET, "/metrics", None, Bytes::new(), PATIENCE)
                .await;
            let page = said.ok().filter(|answer| answer.status.is_success());
            let seconds = page.and_then(|page| cpu_seconds(std::str::from_utf8(&page.body).ok()?));
            sum = sum.zip(seconds).map(|(sum, seconds)| sum + seconds);
        }
        Self {
            at: Instant::now(),
            machine: fs::read_to_string("/proc/stat")
                .ok()
                .and_then(|stat| Machine::parse(&stat)),
            nodes: sum,
        }
    }

    /// What was spent since an earlier look. A node that was started anew meanwhile has no figure.
    pub fn since(&self, earlier: &Self) -> Spent {
        let seconds = (self.at - earlier.at).as_secs_f64();
        let mut spent = Spent::default();
        if let Some((now, then)) = self.machine.zip(earlier.machine) {
            let per_second = rustix::param::clock_ticks_per_second() as f64;
            let busy = now.busy.saturating_sub(then.busy) as f64;
            let idle = now.idle.saturating_sub(then.idle) as f64;
            spent.machine = Some(busy / per_second / seconds);
            spent.idle_percent = Some(100.0 * idle / (busy + idle).max(1.0));
        }
        if let Some((now, then)) = self.nodes.zip(earlier.nodes) {
            spent.nodes = Some((now - then) / seconds).filter(|nodes| *nodes >= 0.0);
        }
        spent
    }
}

impl Machine {
    /// Reads `/proc/stat`, see proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Option<Vec<u64>> = fields
            .split_whitespace()
            .map(|field| field.parse().ok())
            .collect();
        let fields = fields.filter(|fields| fields.len() >= 8)?;
        // What another machine on the same host took was neither busy nor idle here.
        Some(Self {
            busy: fields[0] + fields[1] + fields[2] + fields[5] + fields[6],
            idle: fields[3] + fields[4],
        })
    }
}

/// CPU time that these processes of this machine have had so far, seconds; `None` if one of them has ended.
pub fn of_processes(pids: &[u32]) -> Option<f64> {
    let of = |pid: &u32| process_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    let ticks: u64 = pids.iter().map(of).sum::<Option<u64>>()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Reads `/proc/PID/stat`, see proc_pid_stat(5): utime and stime. The name before them may hold anything, also brackets.
fn process_ticks(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(") ")?;
    let mut fields = behind.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// Reads the CPU time of a process from its page of figures.
fn cpu_seconds(page: &str) -> Option<f64> {
    page.lines()
        .find_map(|line| line.strip_prefix("process_cpu_seconds_total "))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        let stat = "cpu  100 20 30 4000 50 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        let machine = Machine::parse(stat);
        assert_eq!(
            machine,
            Some(Machine {
                busy: 163,
                idle: 4050
            })
        );
        assert_eq!(Machine::parse("cpu  1 2 three\n"), None);
        assert_eq!(Machine::parse("intr 5\n"), None);
    }

    #[test]
    fn the_time_of_processes_is_read() {
        let stat = "4711 (a) b (c) S 1 4711 4711 0 -1 4194560 900 0 1 0 250 31 7 8 20 0 9 0 100 0";
        assert_eq!(process_ticks(stat), Some(281));
        assert_eq!(process_ticks("4711 (a) S 1 2 3"), None);
        assert_eq!(process_ticks(""), None);
        let own = std::process::id();
        assert!(of_processes(&[own]) <= of_processes(&[own, own]));
        assert!(of_processes(&[own]).is_some());
        // No process has this number.
        assert_eq!(of_processes(&[own, u32::MAX]), None);
    }

    #[test]
    fn a_nodes_figures_are_read() {
        let page = "# TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total 12.75\n";
        assert_eq!(cpu_seconds(page), Some(12.75));
        assert_eq!(cpu_seconds("process_threads 3\n"), None);
    }

    #[test]
    fn what_was_spent_is_between_two_looks() {
        let ticks = rustix::param::clock_ticks_per_second();
        let at = Instant::now();
        let earlier = Look {
            at,
            machine: Some(Machine { busy: 0, idle: 0 }),
            nodes: Some(1.0),
        };
        let later = Look {
            at: at + Duration::from_secs(2),
            machine: Some(Machine {
                busy: 3 * ticks,
                idle: ticks,
            }),
            nodes: Some(2.0),
        };
        let spent = later.since(&earlier);
        assert_eq!(spent.machine, Some(1.5));
        assert_eq!(spent.idle_percent, Some(25.0));
        assert_eq!(spent.nodes, Some(0.5));
        let restarted = Look {
            nodes: Some(0.5),
            ..later
        };
        assert_eq!(restarted.since(&earlier).nodes, None);
    }
}
