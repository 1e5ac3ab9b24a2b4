//! Looking names up, so that a name whose server never answers holds up only what goes to that name.
//!
//! The system's own resolver is asked, which knows what the machine's owner has set (`/etc/hosts`, `resolv.conf`,
//! `nsswitch.conf`). It answers when it likes, half a minute later if its servers are silent, and cannot be told to stop. So
//! each look-up has a thread of its own, of which there are only so many, for each name and for each owner as well; and who
//! waits for an answer waits for a while only, whatever the thread does.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::figures::{Figures, Lookup};
use super::hand::Owner;
use super::places::Places;
use super::target::is_public;

/// Threads that look names up.
const AT_ONCE: usize = 64;
/// Those for one owner, and for one name of it.
const OF_OWNER: u32 = 8;
const OF_NAME: u32 = 2;
/// How long an answer is waited for, once somebody has begun to look.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// The name stands for none to which may be sent.
    #[error(
        "{0} has no address on the public internet now; --callback-allow-private allows others"
    )]
    Private(String),
    /// It took too long.
    #[error("{0} was not looked up within {1:?}")]
    Slow(String, Duration),
    /// The resolver says that there is none, or could not say.
    #[error("{0} was not found: {1}")]
    Failed(String, io::Error),
}

type Find = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Looks names up, and leaves of their addresses those that may be connected to. Cheap to clone.
#[derive(Clone)]
pub struct Lookups {
    inner: Arc<Inner>,
}

struct Inner {
    allow_private: bool,
    find: Box<Find>,
    patience: Duration,
    all: Arc<Semaphore>,
    owners: Places<Owner>,
    names: Places<(Owner, String)>,
    figures: Figures,
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").finish_non_exhaustive()
    }
}

impl Lookups {
    /// One that leaves public addresses only, unless private ones are allowed.
    pub fn new(allow_private: bool, figures: Figures) -> Self {
        let find = |name: &str| {
            let addresses = (name, 0).to_socket_addrs()?;
            Ok(addresses.collect())
        };
        Self::with(Box::new(find), PATIENCE, allow_private, figures)
    }

    /// One that asks somebody else than the system, and waits so long.
    pub(super) fn with(
        find: Box<Find>,
        patience: Duration,
        allow_private: bool,
        figures: Figures,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                allow_private,
                find,
                patience,
                all: Arc::new(Semaphore::new(AT_ONCE)),
                owners: Places::new(OF_OWNER),
                names: Places::new(OF_NAME),
                figures,
            }),
        }
    }

    /// Whether an address may be connected to.
    pub fn may_be(&self, address: IpAddr) -> bool {
        self.inner.allow_private || is_public(address)
    }

    /// The addresses of a name that may be connected to.
    ///
    /// # Errors
    /// When there is none, or none in time.
    pub async fn find(&self, owner: &Owner, name: &str) -> Result<Vec<SocketAddr>, NotFound> {
        let inner = &self.inner;
        // Whoever waits for a place holds none that others of the owner could use.
        let place = (owner.clone(), name.to_owned());
        let of_name = inner.names.take(place, 1).await;
        let of_owner = inner.owners.take(owner.clone(), 1).await;
        let of_all = Arc::clone(&inner.all).acquire_owned().await;
        let (answer, answered) = oneshot::channel();
        let thread = std::thread::Builder::new().name("look-up".to_owned());
        let look = {
            let (inner, name) = (Arc::clone(inner), name.to_owned());
            let looking = inner.figures.looking();
            move || {
                let found = (inner.find)(&name);
                drop((of_name, of_owner, of_all, looking));
                // Perhaps nobody waits any more.
                let _ = answer.send(found);
            }
        };
        let began = thread.spawn(look).map(drop);
        let found = match began {
            Ok(()) => tokio::time::timeout(inner.patience, answered).await,
            Err(error) => Ok(Ok(Err(error))),
        };
        let (ended, found) = match found {
            Ok(Ok(Ok(addresses))) if !addresses.is_empty() => (Lookup::Found, Ok(addresses)),
            Ok(found) => {
                let none = || io::Error::new(io::ErrorKind::NotFound, "it has no address");
                let error = found.ok().and_then(Result::err).unwrap_or_else(none);
                (
                    Lookup::Failed,
                    Err(NotFound::Failed(name.to_owned(), error)),
                )
            }
            Err(_) => (
                Lookup::Slow,
                Err(NotFound::Slow(name.to_owned(), inner.patience)),
            ),
        };
        inner.figures.looked_up(ended);
        let mut addresses = found?;
        addresses.retain(|address| self.may_be(address.ip()));
        if addresses.is_empty() {
            return Err(NotFound::Private(name.to_owned()));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use futures::FutureExt;
    use futures::future::join_all;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts
            .iter()
            .map(|text| SocketAddr::new(text.parse().unwrap(), 0))
            .collect()
    }

    fn owner(name: &str) -> Owner {
        Some(name.to_owned())
    }

    /// Names that begin with `hangs` are answered once this is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<bool>, Condvar)>);

    impl Gate {
        fn lookups(&self, figures: &Figures) -> Lookups {
            let gate = self.clone();
            let find = move |name: &str| {
                let (open, changed) = &*gate.0;
                let open = open.lock().unwrap();
                if name.starts_with("hangs") {
                    drop(changed.wait_while(open, |open| !*open).unwrap());
                }
                Ok(addresses(&["8.8.8.8"]))
            };
            // The answers of the others come well before.
            Lookups::with(
                Box::new(find),
                Duration::from_secs(2),
                false,
                figures.clone(),
            )
        }

        fn open(&self) {
            *self.0.0.lock().unwrap() = true;
            self.0.1.notify_all();
        }
    }

    #[tokio::test]
    async fn of_several_addresses_those_that_may_be_are_left() {
        let find = |name: &str| match name {
            "both" => Ok(addresses(&["127.0.0.1", "8.8.8.8", "::1"])),
            "private" => Ok(addresses(&["127.0.0.1", "::1"])),
            "none" => Ok(Vec::new()),
            "bug" => panic!("of the resolver"),
            _ => Err(io::Error::other("the servers know nothing")),
        };
        let figures = Figures::default();
        let public = Lookups::with(Box::new(find), PATIENCE, false, figures.clone());
        assert_eq!(
            public.find(&None, "both").await.unwrap(),
            addresses(&["8.8.8.8"])
        );
        for (name, says) in [
            (
                "private",
                "private has no address on the public internet now",
            ),
            ("none", "none was not found: it has no address"),
            ("bug", "bug was not found: it has no address"),
            ("unknown", "unknown was not found: the servers know nothing"),
        ] {
            let error = public.find(&None, name).await.unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
        let all = Lookups::with(Box::new(find), PATIENCE, true, figures.clone());
        let found = all.find(&None, "private").await.unwrap();
        assert_eq!(found, addresses(&["127.0.0.1", "::1"]));
        let counted: Vec<_> = figures.lookups().collect();
        assert_eq!(counted, [("found", 3), ("failed", 3), ("slow", 0)]);
        assert_eq!(figures.threads(), 0);
    }

    #[tokio::test]
    async fn the_system_is_asked() {
        let lookups = Lookups::new(true, Figures::default());
        let found = lookups.find(&None, "localhost").await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        let lookups = Lookups::new(false, Figures::default());
        let error = lookups.find(&None, "localhost").await.unwrap_err();
        assert!(matches!(error, NotFound::Private(_)), "{error}");
    }

    #[tokio::test]
    async fn a_name_that_is_never_answered_holds_up_nobody_else() {
        let (gate, figures) = (Gate::default(), Figures::default());
        let lookups = gate.lookups(&figures);
        let greedy = owner("greedy");
        // One name takes two threads of its owner, whoever else wants it; the others of the owner go on.
        let hanging = |name: &str| {
            let (lookups, greedy, name) = (lookups.clone(), greedy.clone(), name.to_owned());
            tokio::spawn(async move { lookups.find(&greedy, &name).await })
        };
        let same: Vec<_> = (0..20).map(|_| hanging("hangs")).collect();
        let slow = same.into_iter().map(|task| async { task.await.unwrap() });
        let mut slow: Vec<_> = slow.map(Box::pin).collect();
        for task in &mut slow[..2] {
            let error = task.await.unwrap_err();
            assert!(matches!(error, NotFound::Slow(..)), "{error}");
        }
        assert_eq!(figures.threads(), 2, "nobody waits, and still they look");
        lookups.find(&greedy, "other").await.unwrap();
        // All threads of the owner hang, and those of the others do not.
        let more: Vec<_> = (0..20).map(|n| hanging(&format!("hangs{n}"))).collect();
        while figures.threads() < u64::from(OF_OWNER) {
            tokio::task::yield_now().await;
        }
        let mut own = Box::pin(lookups.find(&greedy, "other"));
        assert!((&mut own).now_or_never().is_none());
        for other in ["a", "b"] {
            lookups.find(&owner(other), "other").await.unwrap();
        }
        lookups.find(&None, "other").await.unwrap();
        assert_eq!(figures.threads(), u64::from(OF_OWNER));
        // Once the servers answer, everything is found.
        gate.open();
        own.await.unwrap();
        for found in join_all(slow.drain(2..)).await {
            found.unwrap();
        }
        let late = join_all(more).await;
        let late = late.into_iter().map(Result::unwrap);
        assert!(late.filter(Result::is_ok).count() >= 14);
        let threads = async {
            while figures.threads() > 0 {
                tokio::task::yield_now().await;
            }
        };
        threads.await;
    }
}
