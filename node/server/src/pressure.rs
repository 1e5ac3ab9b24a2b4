//! How much this node takes on at one time, and what it turns away.
//!
//! The queue belongs to the whole cluster and its bound is a rule of the ledger. Here are the bounds of this node's own:
//! connections, clients that wait, and bytes of request bodies that are in its memory, each for all clients together and,
//! where one client could take all of it, for one address. Each is held by a guard that gives it back when it is dropped.
//! Nothing here waits: what does not fit is refused at once, while there is still room to say so.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::pace::Pace;

/// What this node takes on at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Open connections.
    pub connections: u64,
    /// Those of one address.
    pub client_connections: u64,
    /// Clients that wait for the end of a job, or follow one.
    pub waiting: u64,
    /// Those of one address.
    pub client_waiting: u64,
    /// Bodies of submissions from the head of their request until the cluster has them, bytes. One address may have half
    /// of it.
    pub body_bytes: u64,
}

/// Who a client is taken for: its address, or its network where addresses are plenty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(IpAddr);

impl From<SocketAddr> for Client {
    fn from(address: SocketAddr) -> Self {
        match address.ip().to_canonical() {
            IpAddr::V6(ip) => {
                // Whoever has one address there has 2^64 of them.
                let network = u128::from(ip) & !u128::from(u64::MAX);
                Self(Ipv6Addr::from(network).into())
            }
            ip @ IpAddr::V4(_) => Self(ip),
        }
    }
}

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// Connections.
    Connections,
    /// Clients that wait.
    Waiting,
    /// Bytes of bodies: of requests, and of large answers.
    BodyBytes,
}

/// Whose bound it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This client's alone.
    Client,
    /// That of the node, for all clients.
    Node,
}

/// That something does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// What there is too much of.
    pub thing: Thing,
    /// Who has too much.
    pub whose: Whose,
    /// How much there would be.
    pub value: u64,
    /// How much there may be.
    pub limit: u64,
    /// When to come again, seconds.
    pub retry_s: u64,
}

/// What one client has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load([u64; THINGS]);

const THINGS: usize = 3;
/// Parts of the table of clients, so that they seldom wait for each other.
const SHARDS: usize = 16;

#[derive(Debug)]
struct Inner {
    bounds: Bounds,
    node: [AtomicU64; THINGS],
    /// How often some of each was given back.
    freed: [AtomicU64; THINGS],
    paces: [Pace; THINGS],
    clients: [Mutex<HashMap<Client, Load>>; SHARDS],
}

/// What this node has taken on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pressure {
    inner: Arc<Inner>,
}

impl Pressure {
    /// Nothing is taken on yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            inner: Arc::new(Inner {
                bounds,
                node: Default::default(),
                freed: Default::default(),
                paces: Default::default(),
                clients: Default::default(),
            }),
        }
    }

    /// How much there is of a thing, of all clients together.
    #[must_use]
    pub fn now(&self, thing: Thing) -> u64 {
        self.inner.node[thing as usize].load(Ordering::Relaxed)
    }

    /// Takes on so much for a client.
    ///
    /// # Errors
    /// When that would be too much.
    pub fn take(&self, client: Client, thing: Thing, amount: u64) -> Result<Held, Full> {
        let inner = &self.inner;
        let (for_all, for_one) = inner.bounds.of(thing);
        let full = |whose, value, limit| Full {
            thing,
            whose,
            value,
            limit,
            retry_s: inner.come_again(thing),
        };
        if amount > for_all {
            return Err(full(Whose::Node, amount, for_all));
        }
        let all = &inner.node[thing as usize];
        let before = all.fetch_add(amount, Ordering::Relaxed);
        let value = before.saturating_add(amount);
        if value > for_all {
            all.fetch_sub(amount, Ordering::Relaxed);
            return Err(full(Whose::Node, value, for_all));
        }
        let value = {
            let mut clients = inner.shard(client);
            let load = clients.entry(client).or_default();
            let value = load.0[thing as usize].saturating_add(amount);
            if value <= for_one {
                load.0[thing as usize] = value;
                return Ok(Held {
                    pressure: self.clone(),
                    client,
                    thing,
                    amount,
                });
            }
            if *load == Load::default() {
                clients.remove(&client);
            }
            value
        };
        all.fetch_sub(amount, Ordering::Relaxed);
        Err(full(Whose::Client, value, for_one))
    }

    /// Takes on an answer of so many bytes. None counts for more than a quarter of what a client may have, so that each can
    /// be had.
    ///
    /// # Errors
    /// When that would be too much.
    pub fn take_answer(&self, client: Client, bytes: u64) -> Result<Held, Full> {
        let (_, for_one) = self.inner.bounds.of(Thing::BodyBytes);
        self.take(client, Thing::BodyBytes, bytes.min(for_one / 4))
    }
}

impl Bounds {
    /// For all clients together, and for one of them.
    const fn of(&self, thing: Thing) -> (u64, u64) {
        match thing {
            Thing::Connections => (self.connections, self.client_connections),
            Thing::Waiting => (self.waiting, self.client_waiting),
            Thing::BodyBytes => (self.body_bytes, self.body_bytes / 2),
        }
    }
}

impl Inner {
    fn shard(&self, client: Client) -> MutexGuard<'_, HashMap<Client, Load>> {
        let bytes = match client.0 {
            IpAddr::V4(ip) => u128::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip) >> 64,
        };
        let place = (bytes % SHARDS as u128) as usize;
        self.clients[place]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn come_again(&self, thing: Thing) -> u64 {
        let freed = self.freed[thing as usize].load(Ordering::Relaxed);
        self.paces[thing as usize].come_again(freed, Instant::now())
    }

    fn give_back(&self, client: Client, thing: Thing, amount: u64) {
        self.node[thing as usize].fetch_sub(amount, Ordering::Relaxed);
        self.freed[thing as usize].fetch_add(1, Ordering::Relaxed);
        let mut clients = self.shard(client);
        if let Some(load) = clients.get_mut(&client) {
            load.0[thing as usize] -= amount;
            if *load == Load::default() {
                clients.remove(&client);
            }
        }
    }
}

/// What was taken on for a client; given back when it is dropped.
#[derive(Debug)]
pub struct Held {
    pressure: Pressure,
    client: Client,
    thing: Thing,
    amount: u64,
}

impl Held {
    /// Gives back what is more than this.
    pub fn shrink(&mut self, to: u64) {
        if let Some(rest) = self.amount.checked_sub(to) {
            self.amount = to;
            let inner = &self.pressure.inner;
            inner.give_back(self.client, self.thing, rest);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        connections: 3,
        client_connections: 2,
        waiting: 1,
        client_waiting: 1,
        body_bytes: 100,
    };

    fn client(address: &str) -> Client {
        Client::from(SocketAddr::new(address.parse().unwrap(), 1))
    }

    fn known(pressure: &Pressure) -> usize {
        let shards = pressure.inner.clients.iter();
        shards.map(|shard| shard.lock().unwrap().len()).sum()
    }

    #[test]
    fn one_client_cannot_take_all_and_what_is_given_back_is_free_again() {
        let pressure = Pressure::new(BOUNDS);
        let (a, b) = (client("10.0.0.1"), client("10.0.0.2"));
        let one = pressure.take(a, Thing::Connections, 1).unwrap();
        let _two = pressure.take(a, Thing::Connections, 1).unwrap();
        let refused = Full {
            thing: Thing::Connections,
            whose: Whose::Client,
            value: 3,
            limit: 2,
            retry_s: 1,
        };
        assert_eq!(
            pressure.take(a, Thing::Connections, 1).unwrap_err(),
            refused
        );
        let _three = pressure.take(b, Thing::Connections, 1).unwrap();
        let refused = Full {
            whose: Whose::Node,
            value: 4,
            limit: 3,
            ..refused
        };
        assert_eq!(
            pressure.take(b, Thing::Connections, 1).unwrap_err(),
            refused
        );
        drop(one);
        pressure.take(b, Thing::Connections, 1).unwrap();
        assert_eq!(pressure.now(Thing::Connections), 2);
    }

    #[test]
    fn bytes_are_given_back_in_parts() {
        let pressure = Pressure::new(BOUNDS);
        let a = client("10.0.0.1");
        let mut body = pressure.take(a, Thing::BodyBytes, 50).unwrap();
        pressure.take(a, Thing::BodyBytes, 1).unwrap_err();
        body.shrink(20);
        body.shrink(30);
        assert_eq!(pressure.now(Thing::BodyBytes), 20);
        drop(body);
        assert_eq!(pressure.now(Thing::BodyBytes), 0);
        // A number that no addition may overflow with.
        pressure.take(a, Thing::BodyBytes, u64::MAX).unwrap_err();
        assert_eq!(pressure.now(Thing::BodyBytes), 0);
    }

    #[test]
    fn who_has_nothing_is_forgotten() {
        let pressure = Pressure::new(BOUNDS);
        let a = client("::1");
        let held = pressure.take(a, Thing::Waiting, 1).unwrap();
        pressure.take(a, Thing::BodyBytes, 51).unwrap_err();
        assert_eq!(known(&pressure), 1);
        drop(held);
        pressure.take(a, Thing::BodyBytes, 51).unwrap_err();
        assert_eq!(known(&pressure), 0);
    }

    #[test]
    fn a_network_of_addresses_is_one_client() {
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:2"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:10.0.0.1"), client("10.0.0.1"));
        assert_ne!(client("10.0.0.1"), client("10.0.0.2"));
    }
}
