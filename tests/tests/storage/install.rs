//! A node dies, or loses its power, at any call while it receives a snapshot, unpacks it and switches over to it.
//!
//! The one that sends it is in this process; the one that receives it is in a process of its own. Each trial has a new node: an id
//! whose folder was lost must not come back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;

use quorun_consensus::{ClusterId, Handle, Member, Options};
use quorun_tests::shim::Fired;
use quorun_tests::{LONG, eventually, say};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::service::Routes;

use super::store::{CLUSTER, Place, SNAPSHOT_AFTER, Said, submit};
use super::trials;

/// So many large jobs: a snapshot of several pieces.
const JOBS: u64 = 40;

/// A cluster of one node that takes others in, for as long as they last.
struct Sender {
    runtime: Runtime,
    handle: Handle,
    address: String,
    /// The last id that was given.
    last: u64,
    _folder: tempfile::TempDir,
}

/// A node that is taken in.
struct Receiver {
    place: Place,
    id: u64,
    address: String,
}

fn member(address: &str) -> Member {
    Member {
        peer: address.to_owned(),
        http: String::new(),
    }
}

impl Sender {
    /// Its log no longer begins where it began: whoever is new needs the snapshot.
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let members = BTreeMap::from([(1, member(&address))]);
        let mut options = Options::new(1, ClusterId(CLUSTER), members, folder.path().to_owned());
        options.snapshot_after = SNAPSHOT_AFTER;
        let handle = runtime.block_on(async {
            let (_, eligible) = watch::channel(BTreeSet::new());
            let (handle, _) =
                quorun_consensus::start(options, listener, |_| Routes::default(), eligible)
                    .await
                    .unwrap();
            handle.bootstrap().await.unwrap();
            let mut status = handle.status();
            status.wait_for(|status| status.leading).await.unwrap();
            for number in 0..JOBS {
                // Those that are large.
                let command = submit(7 + 25 * number);
                handle
                    .propose(command, Instant::now() + LONG)
                    .await
                    .unwrap();
            }
            eventually("entries are purged", async || {
                let status = handle.status();
                let status = status.borrow();
                if status.purged_index > 0 {
                    return Ok(());
                }
                Err(format!("{status:?}"))
            })
            .await;
            handle
        });
        Self {
            runtime,
            handle,
            address,
            last: 1,
            _folder: folder,
        }
    }

    /// Takes a node in that has not been started yet.
    fn admit(&mut self) -> Receiver {
        self.last += 1;
        // It is free again when the node is started, and each time that it is started again.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let receiver = Receiver {
            place: Place::new(),
            id: self.last,
            address: address.unwrap().to_string(),
        };
        let learner = member(&receiver.address);
        let added = self.handle.add_learner(receiver.id, learner);
        self.runtime.block_on(added).unwrap();
        receiver
    }

    /// Runs the node until it has what this one has, or dies.
    fn bring_up(&self, receiver: &Receiver, with_shim: bool) -> Said {
        let (index, _) = self.handle.state().unwrap();
        let running = receiver.place.follow(
            with_shim,
            receiver.id,
            &receiver.address,
            &self.address,
            index,
        );
        running.end()
    }

    /// The node starts, without faults, and has what this one has.
    fn whole(&self, receiver: &Receiver, after: &str) {
        let said = self.bring_up(receiver, false);
        let (index, hash) = self.handle.state().unwrap();
        assert!(said.finished, "after {after}: {said:?}");
        assert_eq!(said.holds, Some(format!("{index} {hash}")), "after {after}");
        let left = std::fs::read_dir(receiver.place.data().join("ledger")).unwrap();
        for entry in left {
            let path = entry.unwrap().path();
            let belongs =
                path.ends_with("manifest") || path.extension().is_some_and(|e| e == "run");
            assert!(belongs, "after {after}: {} is left", path.display());
        }
    }

    fn put_out(&self, receiver: &Receiver) {
        let removed = self.handle.remove_learner(receiver.id);
        self.runtime.block_on(removed).unwrap();
    }

    /// The calls of a node to which nothing happens.
    fn calls(&mut self) -> u64 {
        let receiver = self.admit();
        receiver.place.shim.track(true);
        let said = self.bring_up(&receiver, true);
        assert!(said.finished && said.resets > 0, "{said:?}");
        let calls = receiver.place.shim.calls();
        self.whole(&receiver, "nothing");
        self.put_out(&receiver);
        calls
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.runtime.block_on(self.handle.shutdown());
    }
}

/// Half as many as of the others: each has three starts.
fn spread(calls: u64) -> impl Iterator<Item = u64> {
    let trials = trials().div_ceil(2);
    (0..trials).map(move |n| 1 + n * calls / trials)
}

#[test]
fn a_kill_at_any_call_of_installing_a_snapshot_leaves_a_node_that_starts() {
    let mut sender = Sender::new();
    let calls = sender.calls();
    let (mut killed, mut again) = (0, 0);
    for call in spread(calls) {
        let receiver = sender.admit();
        let shim = &receiver.place.shim;
        shim.kill_at(call);
        sender.bring_up(&receiver, true);
        killed += u64::from(shim.fired() == Some(Fired::Killed));
        shim.clear();
        // And once more while it is opened, and goes on from what was left.
        shim.kill_at(1 + call % 60);
        sender.bring_up(&receiver, true);
        again += u64::from(shim.fired() == Some(Fired::Killed));
        shim.clear();
        sender.whole(&receiver, &format!("a kill at call {call} of {calls}"));
        sender.put_out(&receiver);
    }
    say(&format!(
        "killed {killed} times at calls spread over the {calls} of a node that installs a snapshot, and again {again} times at the next start: it has the same ledger"
    ));
    // The run is not always the same, and may have ended just before.
    assert!(killed * 10 >= 9 * trials().div_ceil(2) && again > 0);
}

#[test]
fn a_power_failure_at_any_call_of_installing_a_snapshot_leaves_a_node_that_starts() {
    let mut sender = Sender::new();
    let calls = sender.calls();
    let (mut failures, mut undone) = (0, 0);
    for (seed, call) in spread(calls).enumerate() {
        let receiver = sender.admit();
        let shim = &receiver.place.shim;
        shim.track(true);
        // Every third time all is lost that can be; otherwise by chance.
        let seed = if seed % 3 == 0 { 0 } else { seed as u64 };
        shim.power_loss_at(call, seed);
        sender.bring_up(&receiver, true);
        failures += u64::from(shim.fired() == Some(Fired::PowerLost));
        undone += shim.undone();
        shim.clear();
        sender.whole(
            &receiver,
            &format!("a power failure at call {call} of {calls}, seed {seed}"),
        );
        sender.put_out(&receiver);
    }
    say(&format!(
        "{failures} power failures at calls spread over the {calls} of a node that installs a snapshot, {undone} sectors and names taken back: it has the same ledger"
    ));
    assert!(failures * 10 >= 9 * trials().div_ceil(2) && undone > 0);
}
