//! The faults: planned from the seed, carried out on the simulated cluster.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;

/// Who is hit. Who leads is found out when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    Leader,
    Follower,
    Majority,
    All,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nodes lose their memory, and what they had not synced.
    Crash(Victim),
    /// The same, at the worst moment: right after an entry was committed, while those who have confirmed it may still have
    /// a sync under way.
    CrashAtCommit(Victim),
    /// The first so many of the nodes, in this order, are cut off from the others.
    Partition { order: Vec<usize>, first: usize },
    /// Nothing goes between the leader and the others.
    CutLeader,
    /// What the leader sends is lost; what is sent to it is not, or the other way round.
    OneWay { from_leader: bool },
    /// Two halves that only reach one node in common.
    Bridge { order: Vec<usize> },
    /// What two nodes send each other stays on its way until the fault ends.
    Hold { a: usize, b: usize },
    /// Messages take up to so long.
    Slow { latency: Duration },
    /// Syncing takes up to so long.
    SlowDisks { sync: Duration },
    /// The leader is asked to hand over.
    Move,
    /// The leader hands over, and then the other one to it. Many decisions of this time come late to the log.
    MoveAndBack { back: Duration },
}

pub(super) const NAMES: [&str; 14] = [
    "crash of the leader",
    "crash of a follower",
    "crash of a majority",
    "crash of all",
    "partition",
    "leader cut off",
    "one way",
    "bridge",
    "messages held",
    "slow network",
    "slow disks",
    "leader moved",
    "crash at a commit",
    "leader moved and back",
];

/// The place of crashes at a commit in [`NAMES`].
pub(super) const AT_COMMIT: usize = 12;

impl Fault {
    /// Its place in [`NAMES`].
    pub(super) const fn kind(&self) -> usize {
        match self {
            Self::Crash(Victim::Leader) => 0,
            Self::Crash(Victim::Follower) => 1,
            Self::Crash(Victim::Majority) => 2,
            Self::Crash(Victim::All) => 3,
            Self::Partition { .. } => 4,
            Self::CutLeader => 5,
            Self::OneWay { .. } => 6,
            Self::Bridge { .. } => 7,
            Self::Hold { .. } => 8,
            Self::Slow { .. } => 9,
            Self::SlowDisks { .. } => 10,
            Self::Move => 11,
            Self::CrashAtCommit(_) => AT_COMMIT,
            Self::MoveAndBack { .. } => 13,
        }
    }

    fn draw(rng: &mut SmallRng, nodes: usize) -> Self {
        let mut order: Vec<usize> = (0..nodes).collect();
        order.shuffle(rng);
        match rng.random_range(0..16) {
            0 => Self::Crash(Victim::Leader),
            1 => Self::Crash(Victim::Follower),
            2 => Self::Crash(Victim::Majority),
            3 => Self::Crash(Victim::All),
            4 => Self::CrashAtCommit(Victim::Majority),
            5 | 6 => Self::CrashAtCommit(Victim::All),
            7 => Self::Partition {
                first: rng.random_range(1..nodes),
                order,
            },
            8 => Self::CutLeader,
            9 => Self::OneWay {
                from_leader: rng.random(),
            },
            10 => Self::Bridge { order },
            11 => Self::Hold {
                a: order[0],
                b: order[1],
            },
            12 => Self::Slow {
                latency: Duration::from_millis(rng.random_range(50..400)),
            },
            13 => Self::SlowDisks {
                sync: Duration::from_millis(rng.random_range(20..500)),
            },
            14 => Self::Move,
            _ => Self::MoveAndBack {
                back: Duration::from_millis(rng.random_range(200..1_500)),
            },
        }
    }
}

/// A fault, when it happens, and how long it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) at: Duration,
    pub(super) lasts: Duration,
    pub(super) fault: Fault,
}

/// Faults for a time, some of which overlap.
pub(super) fn plan(rng: &mut SmallRng, nodes: usize, length: Duration) -> Vec<Planned> {
    let mut plan = Vec::new();
    let mut at = Duration::from_millis(rng.random_range(500..3_000));
    while at < length {
        plan.push(Planned {
            at,
            lasts: Duration::from_millis(rng.random_range(50..4_000)),
            fault: Fault::draw(rng, nodes),
        });
        at += Duration::from_millis(rng.random_range(100..3_500));
    }
    plan
}
