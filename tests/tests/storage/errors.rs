//! The disk is full, fails, or does less than it is asked for.

use quorun_tests::{Shim, say};

use super::store::Place;

#[test]
fn short_writes_are_harmless() {
    let mut place = Place::new();
    place.shim.short_writes(true);
    let said = place.work(90);
    assert!(said.finished && said.accepted.len() == 90, "{said:?}");
    assert!(place.shim.faults() > 100);
    place.whole("short writes");
}

type Fault = fn(&Shim);

#[test]
fn an_error_of_the_disk_ends_the_node_and_loses_nothing() {
    let faults: [(&str, Fault, &str); 5] = [
        ("no room", |shim| shim.disk_full(true), "No space left"),
        (
            "no room soon",
            |shim| shim.disk_full_after(20_000),
            "No space left",
        ),
        (
            "writes fail",
            |shim| shim.fail_writes(true),
            "Input/output error",
        ),
        (
            "syncs fail",
            |shim| shim.fail_syncs(true),
            "Input/output error",
        ),
        (
            "syncs of the watermark fail",
            |shim| {
                shim.only("/log.watermark");
                shim.fail_syncs(true);
            },
            "Input/output error",
        ),
    ];
    for (name, fault, expected) in faults {
        for after in [1, 15, 60] {
            let mut place = Place::new();
            let mut running = place.start(1_000_000);
            running.read(|said| said.accepted.len() >= after);
            fault(&place.shim);
            let said = running.end();
            place.remember(&said);
            let stopped = said.stopped.as_deref().unwrap_or_default();
            assert!(
                stopped.contains("storage") && stopped.contains(expected),
                "{name} after {after}: {said:?}"
            );
            // Nor does it start as long as it lasts.
            if name != "no room soon" {
                let said = place.start(1).end();
                assert!(said.accepted.is_empty(), "{name}: {said:?}");
            }
            place.shim.clear();
            place.whole(name);
            // And it works again.
            assert!(place.work(5).finished, "{name}");
            place.whole(name);
        }
        say(&format!("{name}: ends the node, nothing lost"));
    }
}
