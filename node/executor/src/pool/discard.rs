//! Why sandboxes are thrown away.

use crate::sandbox::Broken;

/// Why a sandbox is thrown away: one fixed word each, which operators count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Discard {
    /// It has served as many jobs as one may.
    Worn,
    /// A job left something behind that the warden could not remove.
    Unclean,
    /// It ran out of memory: what else the kernel killed in it is not known.
    OutOfMemory,
    /// It did not answer in time.
    Hung,
    /// It ended by itself, or somebody removed it.
    Ended,
    /// The talk with it failed, or made no sense.
    Broken,
    /// It was not needed for a while.
    Idle,
    /// Another one needed its place.
    Evicted,
    /// The name of its image has been given to another image since.
    Outdated,
    /// Its job was given up in the middle.
    GivenUp,
}

impl Discard {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Worn,
        Self::Unclean,
        Self::OutOfMemory,
        Self::Hung,
        Self::Ended,
        Self::Broken,
        Self::Idle,
        Self::Evicted,
        Self::Outdated,
        Self::GivenUp,
    ];

    /// The word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Worn => "worn",
            Self::Unclean => "unclean",
            Self::OutOfMemory => "out_of_memory",
            Self::Hung => "hung",
            Self::Ended => "ended",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::Outdated => "outdated",
            Self::GivenUp => "given_up",
        }
    }
}

impl From<&Broken> for Discard {
    fn from(cause: &Broken) -> Self {
        match cause {
            Broken::Ended => Self::Ended,
            Broken::Silent(_) => Self::Hung,
            Broken::Stream(_) | Broken::Frame(_) | Broken::Unexpected(_) => Self::Broken,
        }
    }
}
