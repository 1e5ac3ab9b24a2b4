//! A short run of chaos with a fixed seed: every kind of fault at least once, and nothing that was promised is broken.

use std::time::Duration;

use quorun_tests::chaos::plan::Plan;
use quorun_tests::chaos::{self, Settings};
use quorun_tests::say;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whatever_happens_to_three_nodes() {
    let settings = Settings {
        seed: 20_260_801,
        length: Duration::from_secs(45),
        nodes: 3,
        kinds: Plan::usual(),
        pause: Duration::from_millis(1500),
        // The machine may be busy with something else.
        rate: 8.0,
        jobs: u64::MAX,
        long: false,
        args: Vec::new(),
        env: Vec::new(),
        until: Vec::new(),
        keep: false,
    };
    let report = chaos::run(&settings).await;
    say(&report.table());
    assert!(report.passed(), "REPRODUCE: {}", report.reproduce());
    // Not only that nothing was seen to be wrong, but that something was seen.
    assert!(report.acknowledged > 100, "{} jobs", report.acknowledged);
    assert!(report.samples.1 > 50, "{:?} states", report.samples);
}
