//! Nodes that are let in and removed, and the settings of the cluster.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Ledger, complete, id, node_up, submit};
use quorun_ledger::{Command, Completion, Rejection, Reply, Settings};

fn admit(peer: &str, floor: u64) -> Command {
    Command::Admit {
        peer: peer.to_owned(),
        http: String::new(),
        floor,
    }
}

#[test]
fn an_admitted_node_gets_an_id_that_nobody_ever_had() {
    let mut ledger = Ledger::default();
    ledger.run(node_up(2, 1, 1));
    let (reply, _) = ledger.run(admit("a:1", 3));
    assert_eq!(reply, Reply::Admitted { node: 4 }, "3 may be silent still");
    let (reply, _) = ledger.run(admit("b:1", 3));
    assert_eq!(reply, Reply::Admitted { node: 5 });
    let (reply, _) = ledger.run(admit("a:1", 5));
    assert_eq!(reply, Reply::Admitted { node: 4 }, "a retry");
    ledger.run(node_up(4, 1, 1));
    let waiting = ledger.view().admissions().unwrap();
    assert_eq!(waiting.len(), 1, "node 4 has announced itself: {waiting:?}");
    ledger.run(Command::Remove { node: 5 });
    let (reply, _) = ledger.run(admit("a:1", 4));
    assert_eq!(reply, Reply::Admitted { node: 6 }, "5 is used up");
}

#[test]
fn a_removed_node_loses_its_work_and_never_comes_back() {
    let mut ledger = Ledger::default();
    ledger.run(node_up(1, 1, 1));
    ledger.run(submit(1));
    assert_eq!(ledger.view().job(id(1)).unwrap().unwrap().node, Some(1));
    ledger.run(node_up(2, 1, 1));
    let (reply, _) = ledger.run(Command::Remove { node: 1 });
    assert_eq!(reply, Reply::Node { requeued: 1 });
    let job = ledger.view().job(id(1)).unwrap().unwrap();
    assert_eq!((job.node, job.attempt), (Some(2), 2));
    assert!(ledger.view().node(1).unwrap().is_none());

    let (reply, _) = ledger.run(complete(1, 1, 1, "late"));
    assert_eq!(reply, Reply::Completed(Completion::Fenced));
    let (reply, _) = ledger.run(node_up(1, 2, 1));
    assert_eq!(reply, Reply::Rejected(Rejection::NodeRemoved));
    let (reply, _) = ledger.run(Command::Remove { node: 1 });
    assert_eq!(reply, Reply::Node { requeued: 0 }, "again is harmless");
    let (reply, _) = ledger.run(complete(1, 2, 2, "done"));
    assert_eq!(reply, Reply::Completed(Completion::Committed));
}

#[test]
fn a_node_that_nobody_has_heard_of_can_be_removed() {
    let mut ledger = Ledger::default();
    ledger.run(Command::Remove { node: 9 });
    let (reply, _) = ledger.run(node_up(9, 1, 1));
    assert_eq!(reply, Reply::Rejected(Rejection::NodeRemoved));
    let (reply, _) = ledger.run(admit("a:1", 0));
    assert_eq!(reply, Reply::Admitted { node: 10 });
}

#[test]
fn settings_are_replaced_as_a_whole() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.view().settings().unwrap(), Settings::default());
    let settings = Settings {
        retention_ms: Some(5),
        ..Settings::default()
    };
    let (reply, _) = ledger.run(Command::Configure { settings });
    assert_eq!(reply, Reply::Configured);
    assert_eq!(ledger.view().settings().unwrap(), settings);
    ledger.run(Command::Configure {
        settings: Settings::default(),
    });
    assert_eq!(ledger.view().settings().unwrap(), Settings::default());
}
