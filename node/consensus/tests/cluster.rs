//! Three nodes in one process, over real connections.

mod common;

use common::{Cluster, job, soon, submit};
use quorun_ledger::Reply;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_a_cluster_and_commit_what_is_proposed_on_any_of_them() {
    let cluster = Cluster::formed(3).await;
    for (number, id) in (0..9).zip([1, 2, 3].into_iter().cycle()) {
        let reply = cluster.propose(id, submit(number, 100)).await;
        let expected = Reply::Submitted {
            job: job(number),
            joined: false,
        };
        assert_eq!(reply, expected);
        for node in cluster.nodes.values() {
            node.handle.linearize(soon()).await.unwrap();
            assert!(node.handle.view().job(job(number)).unwrap().is_some());
        }
    }
    let (_, hash) = cluster.settled().await;
    assert_ne!(hash, quorun_ledger::StateHash::default());
    for node in cluster.nodes.values() {
        node.handle.shutdown().await;
    }
}
