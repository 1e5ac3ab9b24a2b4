//! Real bugs, to be switched on where a test wants to see whether it would find them. Only there with the feature `bugs`.

use std::sync::atomic::{AtomicU8, Ordering};

/// What can be made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// The log answers before it has written.
    AckBeforeSync = 1,
    /// The ledger takes a result from any attempt.
    StaleAttempt = 2,
    /// The log is opened whatever the watermark says, and whatever the others remember.
    SkipWatermark = 3,
    /// What a leader has decided is written in whatever term it leads by then.
    AssignWithoutFence = 4,
    /// Not a bug: leaders are slow, as they are for `AssignWithoutFence`, but do as they should.
    SlowAssign = 5,
}

impl Bug {
    /// The bug of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "ack_before_sync" => Self::AckBeforeSync,
            "stale_attempt" => Self::StaleAttempt,
            "skip_watermark" => Self::SkipWatermark,
            "assign_without_fence" => Self::AssignWithoutFence,
            "slow_assign" => Self::SlowAssign,
            _ => return None,
        })
    }

    /// Whether it is switched on.
    #[must_use]
    pub fn is_on(self) -> bool {
        ON.load(Ordering::Relaxed) == self as u8
    }

    /// Switches it on, and any other off.
    pub fn switch_on(self) {
        ON.store(self as u8, Ordering::Relaxed);
    }

    /// Switches off what is on.
    pub fn switch_off() {
        ON.store(0, Ordering::Relaxed);
    }
}

static ON: AtomicU8 = AtomicU8::new(0);
