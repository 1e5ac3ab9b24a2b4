//! The process dies, or the power fails, at any call that changes something on disk.

use quorun_tests::say;
use quorun_tests::shim::Fired;

use super::store::Place;
use super::trials;

/// So many jobs: two snapshots and purges.
const JOBS: u64 = 90;

/// The calls of a run in which nothing happens.
fn calls() -> u64 {
    let mut place = Place::new();
    place.shim.track(true);
    let said = place.work(JOBS);
    assert!(said.finished, "{said:?}");
    assert_eq!(said.accepted.len() as u64, JOBS);
    let calls = place.shim.calls();
    place.whole("nothing");
    calls
}

/// The calls to be tried: spread over all of them.
fn spread(calls: u64) -> impl Iterator<Item = u64> {
    let trials = trials();
    (0..trials).map(move |n| 1 + n * calls / trials)
}

#[test]
fn a_kill_at_any_call_loses_nothing() {
    let calls = calls();
    let mut again = 0;
    for call in spread(calls) {
        let mut place = Place::new();
        place.shim.kill_at(call);
        place.work(JOBS);
        // The run is not always the same, and may have ended just before.
        if place.shim.fired() != Some(Fired::Killed) {
            place.shim.clear();
        }
        // And once more while it is opened.
        place.shim.kill_at(1 + call % 40);
        place.work(3);
        again += u64::from(place.shim.fired() == Some(Fired::Killed));
        place.shim.clear();
        place.whole(&format!("a kill at call {call} of {calls}"));
    }
    say(&format!(
        "killed at {} calls spread over {calls}, and again {again} times at the next start: nothing lost",
        trials()
    ));
    assert!(again > 0);
}

#[test]
fn a_power_failure_at_any_call_loses_nothing() {
    let calls = calls();
    let (mut failures, mut undone) = (0, 0);
    for (seed, call) in spread(calls).enumerate() {
        let mut place = Place::new();
        place.shim.track(true);
        // Every third time all is lost that can be; otherwise by chance.
        let seed = if seed % 3 == 0 { 0 } else { seed as u64 };
        place.shim.power_loss_at(call, seed);
        let said = place.work(JOBS);
        if place.shim.fired() == Some(Fired::PowerLost) {
            assert_eq!(said.status.unwrap().code(), Some(137));
            failures += 1;
        }
        undone += place.shim.undone();
        // And once more while it is opened.
        place.shim.power_loss_at(1 + call % 40, seed);
        place.work(3);
        failures += u64::from(place.shim.fired() == Some(Fired::PowerLost));
        undone += place.shim.undone();
        place.shim.clear();
        place.whole(&format!(
            "a power failure at call {call} of {calls}, seed {seed}"
        ));
    }
    say(&format!(
        "{failures} power failures at calls spread over {calls}, {undone} sectors and names taken back: nothing lost"
    ));
    assert!(failures >= trials() && undone > 0);
}

/// Shows that the test before can fail: where syncs do nothing, what was accepted is lost with the power, and noticed.
#[test]
fn a_disk_that_lies_about_syncs_is_caught() {
    let mut caught = 0;
    for seed in 0..4 {
        let mut place = Place::new();
        place.shim.track(true);
        assert!(place.work(20).finished);
        place.shim.ignore_syncs(true);
        let mut running = place.start(1_000_000);
        running.read(|said| said.accepted.len() > 30);
        place.shim.power_loss_now(seed);
        let said = running.end();
        place.remember(&said);
        place.shim.clear();
        let after = place.look();
        caught += u32::from(after.refused.is_some() || !after.lost.is_empty());
    }
    say(&format!("a disk that lies: caught {caught} times of 4"));
    assert!(caught > 0);
}

#[test]
fn every_change_is_synced_in_the_log_and_in_the_watermark() {
    for file in ["/log/db", "/log.watermark"] {
        let mut place = Place::new();
        place.shim.only(file);
        // One by one: none can share the sync of another.
        let mut syncs = Vec::new();
        for _ in 0..12 {
            let said = place.work(1);
            assert!(said.finished && said.accepted.len() == 1, "{said:?}");
            syncs.push(place.shim.syncs());
        }
        say(&format!("{file}: syncs of a start with one job: {syncs:?}"));
        // The vote of the election, its first entry, and the job.
        assert!(syncs.iter().all(|syncs| *syncs >= 3), "{file}: {syncs:?}");
        place.whole("counting");
    }
}
