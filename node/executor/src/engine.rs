//! What makes sandboxes: the container engine, or the operating system.

use crate::docker::Docker;
use crate::process::Processes;
use crate::sandbox::Link;

/// Sandboxes with the same key are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) image: String,
    pub(crate) memory_kb: u64,
}

/// A sandbox that has been made: its name at the engine, and the talk with its warden.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) id: String,
    /// What stands for the content of its image: as long as it is the same, so is what its tools make of the same input.
    /// `None` if it could not be found out.
    pub(crate) image_id: Option<String>,
    pub(crate) link: Link,
    /// What must live as long as the sandbox.
    pub(crate) child: Option<tokio::process::Child>,
}

/// Why a sandbox cannot be made.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum MakeError {
    /// The engine does not answer. Nothing can run now, on this node.
    #[error("the container engine cannot be reached: {0}")]
    Unreachable(String),
    /// The engine does not have the image.
    #[error(
        "the image {0} is not on this node's engine; get it with `docker pull {0}`, or build it (`./deploy.sh` builds the standard image)"
    )]
    ImageMissing(String),
    /// Anything else.
    #[error("a sandbox could not be made: {0}")]
    Other(String),
}

/// The kinds of engine.
#[derive(Debug)]
pub(crate) enum Engine {
    Docker(Box<Docker>),
    Process(Processes),
    /// Makes nothing; see [`crate::noop`].
    Noop,
    #[cfg(test)]
    Fake(crate::fake::Fake),
}

impl Engine {
    /// The key of the sandboxes that serve an image with this memory.
    pub(crate) fn key(&self, image: &str, memory_kb: u64) -> Key {
        match self {
            Self::Docker(_) => Key {
                image: image.to_owned(),
                memory_kb,
            },
            #[cfg(test)]
            Self::Fake(_) => Key {
                image: image.to_owned(),
                memory_kb,
            },
            // One child process is like any other.
            Self::Process(_) => Key {
                image: "process".to_owned(),
                memory_kb: 0,
            },
            Self::Noop => Key {
                image: "noop".to_owned(),
                memory_kb: 0,
            },
        }
    }

    /// Makes a sandbox and waits until its warden is ready.
    pub(crate) async fn make(&self, key: &Key) -> Result<Made, MakeError> {
        match self {
            Self::Docker(docker) => docker.make(key).await,
            Self::Process(processes) => processes.make().await,
            Self::Noop => Err(MakeError::Other(
                "the no-op executor has no sandboxes".to_owned(),
            )),
            #[cfg(test)]
            Self::Fake(fake) => fake.make(key).await,
        }
    }

    /// Removes a sandbox, whatever state it is in.
    pub(crate) async fn remove(&self, made: Made) {
        match self {
            Self::Docker(docker) => docker.remove(made).await,
            Self::Process(processes) => processes.remove(made).await,
            Self::Noop => {}
            #[cfg(test)]
            Self::Fake(fake) => fake.remove(made).await,
        }
    }

    /// Whether the whole sandbox is known to have been killed for its memory.
    pub(crate) async fn was_out_of_memory(&self, id: &str) -> bool {
        match self {
            Self::Docker(docker) => docker.was_out_of_memory(id).await,
            _ => false,
        }
    }

    /// Whether sandboxes can be made now; the reason if not.
    pub(crate) async fn check(&self) -> Result<(), String> {
        match self {
            Self::Docker(docker) => docker.check().await,
            _ => Ok(()),
        }
    }

    /// Removes what older incarnations of this node left.
    pub(crate) async fn remove_orphans(&self) {
        // The process executor has done it when it was started.
        if let Self::Docker(docker) = self {
            docker.remove_orphans().await;
        }
    }

    /// Removes what another node left, in this incarnation and those before, where it can be reached from here.
    pub(crate) async fn remove_orphans_of(&self, node: u64, incarnation: u64) {
        if let Self::Docker(docker) = self {
            docker.remove_orphans_of(node, incarnation).await;
        }
    }

    /// Whether sandboxes are still there that should have been removed.
    pub(crate) fn has_leftovers(&self) -> bool {
        match self {
            Self::Docker(docker) => docker.has_leftovers(),
            _ => false,
        }
    }

    /// Tries once more to remove those.
    pub(crate) async fn sweep(&self) {
        if let Self::Docker(docker) = self {
            docker.sweep().await;
        }
    }

    /// Removes every sandbox of this node and incarnation that is still there.
    pub(crate) async fn remove_all(&self) {
        match self {
            Self::Docker(docker) => docker.remove_all().await,
            Self::Process(processes) => processes.remove_all().await,
            Self::Noop => {}
            #[cfg(test)]
            Self::Fake(fake) => fake.remove_all(),
        }
    }
}
