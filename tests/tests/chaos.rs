//! A short run of chaos with a fixed seed: every kind of fault at least once, and nothing that was promised is broken. And
//! what longer runs have found, each by itself.

use std::sync::Arc;
use std::time::Duration;

use quorun_tests::chaos::field::{Field, Kept, Shape};
use quorun_tests::chaos::history::History;
use quorun_tests::chaos::plan::Plan;
use quorun_tests::chaos::{self, Settings};
use quorun_tests::{LONG, eventually, say};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_the_first_list_comes_back_when_the_others_have_been_replaced() {
    let shape = Shape {
        nodes: 3,
        slots: 2,
        kept: Kept::None,
        args: Vec::new(),
        env: Vec::new(),
    };
    let field = Field::start(&shape, Arc::new(History::default())).await;
    for place in [1, 2] {
        let _taken = field.take([place]);
        field.node(place).kill();
        let name = match field.replace(place, LONG).await {
            Ok(name) => name,
            Err(why) => panic!("no new node: {why}\n{}", field.account().await),
        };
        assert!(name > 3, "a new node has a new id, not {name}");
        // As long as it has no vote, two of the voters are left, and both are needed: also while the change is half done.
        let client = field.client(3, LONG);
        eventually("three nodes vote", async || {
            let status = client.cluster().await;
            let nodes = status["nodes"].as_array().expect("nodes");
            let voters = nodes.iter().filter(|node| node["role"] == "voter").count();
            if voters == 3 && status["voters_changing"] == false {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .await;
    }
    // Whom it knows from its list, it finds neither under these ids nor at these addresses.
    let _taken = field.take([3]);
    field.node(3).kill();
    field.node(3).start();
    field.until_ready(3, LONG).await.expect("it is ready again");
}
