//! Looks at the cluster while the load runs: how many jobs wait, who leads, who does not answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde::Deserialize;

use super::client::Nodes;
use super::record::Record;

/// Pause between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Queue {
    jobs: u64,
}

/// What is wanted of `GET /v1/cluster`.
#[derive(Deserialize)]
struct Cluster {
    leader: Option<u64>,
    queue: Queue,
}

/// Watches until it is dropped.
pub async fn watch(nodes: Arc<Nodes>, record: Record) -> std::convert::Infallible {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut leader = None;
    let mut silent = BTreeSet::new();
    let mut turn = 0;
    loop {
        tick.tick().await;
        // Each node is asked in its turn, so that one that is gone is noticed; then the next ones, until one answers.
        turn += 1;
        for place in (turn..turn + nodes.len()).map(|place| place % nodes.len()) {
            let sent = nodes.send(
                place,
                Method::GET,
                "/v1/cluster",
                None,
                Bytes::new(),
                PATIENCE,
            );
            let Ok(answer) = sent.await else {
                if silent.insert(place) {
                    record.event(format!("{} does not answer", nodes.url(place)));
                }
                continue;
            };
            if silent.remove(&place) {
                record.event(format!("{} answers again", nodes.url(place)));
            }
            let Ok(cluster) = serde_json::from_slice::<Cluster>(&answer.body) else {
                continue;
            };
            record.queued(cluster.queue.jobs);
            if cluster.leader.is_some() && cluster.leader != leader {
                if let (Some(before), Some(now)) = (leader, cluster.leader) {
                    record.event(format!("node {now} leads in the place of node {before}"));
                }
                leader = cluster.leader;
            }
            break;
        }
    }
}
