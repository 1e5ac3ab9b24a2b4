//! The network between the nodes of a test: one TCP proxy for every ordered pair of nodes, whose traffic can be cut, held
//! up and lost in either direction alone.
//!
//! A node dials its peers through the proxies (`--dial-override`), so a connection that node A has made to node B carries
//! what A says on the way A to B, and what B answers on the way B to A. What is cut on a way waits until the way is open
//! again, as TCP would send it again; nothing arrives changed, doubled or in another order.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// What is read at once, bytes.
const CHUNK: usize = 16 * 1024;
/// Chunks that are under way on a slow way before the sender has to wait.
const UNDER_WAY: usize = 256;
/// What a lost packet costs: the time until TCP sends it again.
const RESEND: Duration = Duration::from_millis(200);

/// How a way between two nodes is at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// How many faults have cut it: nothing comes through while there is one.
    pub cuts: u8,
    /// Connections are also reset when they want to use a way that is cut.
    pub reset: bool,
    /// Everything arrives so much later.
    pub delay: Duration,
    /// So many of a thousand chunks are lost and have to be sent again; one of ten of them ends its connection.
    pub loss: u16,
}

/// The way from one node to another.
#[derive(Debug)]
struct Way {
    weather: watch::Sender<Weather>,
    /// Chunks that met a way that was cut, slow or lossy.
    hit: AtomicU64,
}

/// All ways between the nodes of a cluster. They end with this value.
#[derive(Debug)]
pub struct Network {
    ways: BTreeMap<(u64, u64), Arc<Way>>,
    ports: BTreeMap<(u64, u64), u16>,
    servers: Vec<JoinHandle<()>>,
}

impl Network {
    /// Proxies between nodes, given the peer address of each.
    ///
    /// # Panics
    /// When there are no ports.
    pub async fn between(peers: &BTreeMap<u64, u16>) -> Self {
        let pairs = || {
            let ids = || peers.keys().copied();
            ids().flat_map(move |from| {
                ids()
                    .filter(move |to| *to != from)
                    .map(move |to| (from, to))
            })
        };
        let ways: BTreeMap<_, _> = pairs()
            .map(|pair| {
                let way = Way {
                    weather: watch::Sender::new(Weather::default()),
                    hit: AtomicU64::new(0),
                };
                (pair, Arc::new(way))
            })
            .collect();
        let mut ports = BTreeMap::new();
        let mut servers = Vec::new();
        for (from, to) in pairs() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .expect("a port for a proxy");
            let port = listener.local_addr().expect("the proxy's address").port();
            ports.insert((from, to), port);
            let (there, back) = (ways[&(from, to)].clone(), ways[&(to, from)].clone());
            servers.push(tokio::spawn(serve(listener, peers[&to], there, back)));
        }
        Self {
            ways,
            ports,
            servers,
        }
    }

    /// What `--dial-override` of a node is.
    #[must_use]
    pub fn dial_override(&self, from: u64, peers: &BTreeMap<u64, u16>) -> String {
        let parts: Vec<_> = peers
            .iter()
            .filter_map(|(to, port)| {
                let proxy = self.ports.get(&(from, *to))?;
                Some(format!("127.0.0.1:{port}=127.0.0.1:{proxy}"))
            })
            .collect();
        parts.join(",")
    }

    /// All ordered pairs of nodes.
    #[must_use]
    pub fn pairs(&self) -> Vec<(u64, u64)> {
        self.ways.keys().copied().collect()
    }

    /// Changes how the way from one node to another is.
    pub fn set(&self, from: u64, to: u64, change: impl FnOnce(&mut Weather)) {
        if let Some(way) = self.ways.get(&(from, to)) {
            way.weather.send_modify(change);
        }
    }

    /// Cuts ways, or opens them again; what several have cut is open when all of them have opened it.
    pub fn cut(&self, ways: &[(u64, u64)], cut: bool) {
        for (from, to) in ways {
            self.set(*from, *to, |weather| {
                weather.cuts = if cut {
                    weather.cuts.saturating_add(1)
                } else {
                    weather.cuts.saturating_sub(1)
                };
            });
        }
    }

    /// Everything comes through everywhere.
    pub fn heal(&self) {
        for way in self.ways.values() {
            way.weather.send_replace(Weather::default());
        }
    }

    /// How many chunks have met bad weather on the way from one node to another.
    #[must_use]
    pub fn hit(&self, from: u64, to: u64) -> u64 {
        self.ways
            .get(&(from, to))
            .map_or(0, |way| way.hit.load(Ordering::Relaxed))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}

/// Takes connections for one ordered pair. The connections end with it.
async fn serve(listener: TcpListener, target: u16, there: Arc<Way>, back: Arc<Way>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(connection(stream, target, there.clone(), back.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(near: TcpStream, target: u16, there: Arc<Way>, back: Arc<Way>) {
    let _ = near.set_nodelay(true);
    // A connection is made with a packet each way.
    if open(&there).await.is_err() || open(&back).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
        return;
    };
    let _ = far.set_nodelay(true);
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    // When either way has ended, so has the connection.
    tokio::select! {
        _ = carry(near_read, far_write, &there) => {}
        _ = carry(far_read, near_write, &back) => {}
    }
}

/// Returns when the way is open.
async fn open(way: &Way) -> io::Result<()> {
    let mut weather = way.weather.subscribe();
    let now = *weather.borrow_and_update();
    if now.cuts == 0 {
        return Ok(());
    }
    way.hit.fetch_add(1, Ordering::Relaxed);
    if now.reset {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let open = weather.wait_for(|weather| weather.cuts == 0).await;
    open.map(drop).map_err(io::Error::other)
}

/// Carries bytes along a way until the connection ends.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: &Way) -> io::Result<()> {
    let (send, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            let now = *way.weather.borrow();
            if now.delay > Duration::ZERO {
                way.hit.fetch_add(1, Ordering::Relaxed);
            }
            let chunk = (Instant::now() + now.delay, buffer[..count].to_vec());
            if send.send(chunk).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async {
        while let Some((at, chunk)) = under_way.recv().await {
            tokio::time::sleep_until(at).await;
            let loss = way.weather.borrow().loss;
            if loss > 0 && fastrand::u16(..1000) < loss {
                way.hit.fetch_add(1, Ordering::Relaxed);
                if fastrand::u8(..10) == 0 {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                tokio::time::sleep(RESEND).await;
            }
            open(way).await?;
            to.write_all(&chunk).await?;
        }
        Ok(())
    };
    // What was read before the end is still written.
    tokio::try_join!(read, write).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network of two nodes, of which node 2 echoes, and a connection of node 1 to it.
    async fn echo() -> (Network, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let network = Network::between(&BTreeMap::from([(1, 1), (2, port)])).await;
        let near = TcpStream::connect((Ipv4Addr::LOCALHOST, network.ports[&(1, 2)]));
        let near = near.await.unwrap();
        (network, near)
    }

    async fn says(stream: &mut TcpStream, word: &[u8; 4]) {
        stream.write_all(word).await.unwrap();
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, word);
    }

    #[tokio::test]
    async fn what_is_cut_waits_and_then_arrives_in_order() {
        for (from, to) in [(1, 2), (2, 1)] {
            let (network, mut near) = echo().await;
            says(&mut near, b"open").await;
            network.set(from, to, |weather| weather.cuts = 1);
            near.write_all(b"one two ").await.unwrap();
            while network.hit(from, to) == 0 {
                tokio::task::yield_now().await;
            }
            let mut buffer = [0; 8];
            assert!(near.try_read(&mut buffer).is_err(), "nothing comes through");
            network.heal();
            near.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"one two ");
            assert_eq!(network.hit(to, from), 0, "the other way was open");
        }
    }

    #[tokio::test]
    async fn a_reset_ends_what_uses_the_way() {
        let (network, mut near) = echo().await;
        says(&mut near, b"open").await;
        network.set(1, 2, |weather| (weather.cuts, weather.reset) = (1, true));
        near.write_all(b"lost").await.unwrap();
        let mut buffer = [0; 4];
        assert!(matches!(near.read(&mut buffer).await, Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn a_delay_is_a_delay_and_loses_nothing() {
        let (network, mut near) = echo().await;
        network.set(1, 2, |weather| weather.delay = Duration::from_millis(30));
        network.set(2, 1, |weather| weather.loss = 500);
        let began = Instant::now();
        for _ in 0..3 {
            if near.write_all(b"word").await.is_err() {
                break;
            }
            let mut heard = [0; 4];
            if near.read_exact(&mut heard).await.is_err() {
                break; // a lost packet may end the connection
            }
            assert_eq!(&heard, b"word");
        }
        assert!(began.elapsed() >= Duration::from_millis(30));
        assert!(network.hit(1, 2) > 0);
    }
}
