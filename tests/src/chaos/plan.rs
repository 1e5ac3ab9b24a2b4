//! Which faults happen when: all of it follows from the seed.

use std::collections::BTreeSet;
use std::time::Duration;

/// How much of the cluster a fault may take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// No node is lost by it.
    Soft,
    /// One node, or what the others cannot tell from the loss of one.
    Node,
    /// It needs the whole cluster for itself.
    All,
}

macro_rules! kinds {
    ($($kind:ident $name:literal $reach:ident $weight:literal $what:literal,)+) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = $what] $kind,)+
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// Its name on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),+ }
            }

            /// What it does.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self { $(Self::$kind => $what),+ }
            }

            /// How much of the cluster it may take away.
            #[must_use]
            pub const fn reach(self) -> Reach {
                match self { $(Self::$kind => Reach::$reach),+ }
            }

            /// How often it comes, relative to the others; 0 where it has to be asked for by name.
            const fn weight(self) -> u32 {
                match self { $(Self::$kind => $weight),+ }
            }
        }
    };
}

kinds! {
    KillLeader "kill-leader" Node 30 "SIGKILL to the leader",
    KillFollower "kill-follower" Node 10 "SIGKILL to a follower",
    KillAfterRun "kill-after-run" Node 8 "SIGKILL to a node right after an execution on it has ended and before it is reported",
    KillMajority "kill-majority" All 3 "SIGKILL to a majority at once",
    KillAll "kill-all" All 2 "SIGKILL to all nodes at once",
    PauseLeader "pause-leader" Node 6 "SIGSTOP to the leader, then SIGCONT",
    PauseFollower "pause-follower" Node 6 "SIGSTOP to a follower, then SIGCONT",
    Split "split" Node 5 "a follower is cut off both ways",
    OneWay "one-way" Node 5 "a node hears the others but is not heard by them, or the other way round",
    IsolateLeader "isolate-leader" Node 5 "the leader is cut off both ways",
    Bridge "bridge" All 3 "two halves that see each other only through one node (five nodes)",
    Delay "delay" Soft 14 "50 to 300 ms more on some ways",
    Loss "loss" Soft 14 "1 to 5 % of what is sent on some ways has to be sent again, or loses its connection",
    SlowSync "slow-sync" Soft 8 "every sync of one node's disk takes long",
    ClockJump "clock-jump" Soft 8 "the wall clock of one node jumps an hour ahead or back",
    DiskFull "disk-full" Node 3 "a node's disk is full",
    PowerLoss "power-loss" Node 0 "a node loses all that it has not synced",
    PowerLossAll "power-loss-all" All 0 "all nodes lose what they have not synced, at once",
    Damage "damage" Node 3 "a bit is flipped in the log or the watermark of a node while it is down, or the file is truncated",
    StaleLog "stale-log" Node 2 "a node's log and ledger are put back to an older copy while it is down, but not the watermark",
    RollingRestart "rolling-restart" All 1 "SIGTERM and start, one node after the other",
    MoveLeader "move-leader" Soft 4 "the leadership is moved by request",
    Drain "drain" Soft 3 "a node is drained by request, and taken back",
    Replace "replace" Node 2 "a node is killed for good, and a new one with an empty folder takes its place",
    DamageLedger "damage-ledger" Node 0 "a bit is flipped in the ledger of a node while it is down",
    StaleFolder "stale-folder" Node 0 "the whole folder of a node is put back to an older copy while it is down",
}

impl Kind {
    /// Whether it ends processes at once.
    #[must_use]
    pub const fn kills(self) -> bool {
        matches!(
            self,
            Self::KillLeader
                | Self::KillFollower
                | Self::KillAfterRun
                | Self::KillMajority
                | Self::KillAll
                | Self::PowerLoss
                | Self::PowerLossAll
        )
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|kind| kind.name() == name);
        found.copied().ok_or_else(|| {
            let all: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("no such fault; there are {}", all.join(", "))
        })
    }
}

/// One fault of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it begins at the earliest, from the beginning of the run.
    pub at: Duration,
    /// What happens.
    pub kind: Kind,
    /// Everything else about it follows from this.
    pub seed: u64,
}

/// What is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In their order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The plan of a seed. Every kind comes at least once, however short the run is.
    #[must_use]
    pub fn new(seed: u64, kinds: &[Kind], nodes: u16, length: Duration, pause: Duration) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let kinds: Vec<Kind> = kinds
            .iter()
            .copied()
            .filter(|kind| *kind != Kind::Bridge || nodes >= 5)
            .collect();
        let mut first = kinds.clone();
        random.shuffle(&mut first);
        let total: u32 = kinds.iter().map(|kind| kind.weight().max(1)).sum();
        let mut at = Duration::ZERO;
        let mut steps = Vec::new();
        while at < length || steps.len() < kinds.len() {
            let kind = match first.pop() {
                Some(kind) => kind,
                None if kinds.is_empty() => break,
                None => {
                    let mut ticket = random.u32(..total);
                    let drawn = kinds.iter().find(|kind| {
                        let weight = kind.weight().max(1);
                        let hit = ticket < weight;
                        ticket = ticket.saturating_sub(weight);
                        hit
                    });
                    *drawn.unwrap_or(&kinds[0])
                }
            };
            steps.push(Step {
                at,
                kind,
                seed: random.u64(..),
            });
            // Once all have come, in the pace that was asked for; the first round of a short run must fit into it.
            at += pause.mul_f64(0.5 + random.f64());
        }
        Self { steps }
    }

    /// The kinds that come.
    #[must_use]
    pub fn kinds(&self) -> BTreeSet<Kind> {
        self.steps.iter().map(|step| step.kind).collect()
    }

    /// The kinds that come without being asked for.
    #[must_use]
    pub fn usual() -> Vec<Kind> {
        let all = Kind::ALL.iter().copied();
        all.filter(|kind| kind.weight() > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        let second = Duration::from_secs(1);
        Plan::new(seed, &Plan::usual(), 5, 120 * second, second)
    }

    #[test]
    fn the_same_seed_is_the_same_plan() {
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn every_kind_comes() {
        for kind in Plan::usual() {
            assert!(plan(7).steps.iter().any(|step| step.kind == kind));
        }
        let leaders = plan(7).steps;
        let leaders = leaders.iter().filter(|step| step.kind == Kind::KillLeader);
        assert!(leaders.count() > 10);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(*kind));
        }
        "kill-nobody".parse::<Kind>().unwrap_err();
    }
}
