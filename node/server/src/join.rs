//! Joining a running cluster: a node without a place asks any member for one.
//!
//! The member has the ledger admit it, which gives it an id that no node ever had; the leader then takes it in as a
//! learner. Whoever asks again from the same address before it has announced itself gets the same id, so that an answer
//! that was lost costs nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::{Method, StatusCode};
use quorun_consensus::ClusterId;
use quorun_ledger::NodeId;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::client::{Client, problem};
use crate::config::Config;

/// Pause before the members are asked again.
const RETRY: Duration = Duration::from_millis(500);
/// How long a conflict with the former owner of the address may last.
const FORMER_OWNER: Duration = Duration::from_secs(30);

/// A node's place in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its id.
    pub id: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
}

/// Asks the members, one after the other and again and again, until one answers.
///
/// # Errors
/// When a member refuses this node, or the node is told to end.
pub async fn join(
    config: &Config,
    members: &[String],
    stop: &CancellationToken,
) -> anyhow::Result<Place> {
    let request = json!({ "peer": config.advertise_peer, "http": config.advertise_http });
    let started = Instant::now();
    info!(?members, peer = config.advertise_peer, "joining a cluster");
    loop {
        for url in members {
            let client = Client::new(url)?;
            let asked = tokio::select! {
                asked = client.json(Method::POST, "/v1/cluster/nodes", Some(&request)) => asked,
                () = stop.cancelled() => bail!("told to end before a place in the cluster was found"),
            };
            match asked {
                Ok((status, body)) if status.is_success() => {
                    let place = place(&body)
                        .with_context(|| format!("{url} answered without a place: {body}"))?;
                    info!(id = place.id, cluster = %place.cluster, "admitted");
                    return Ok(place);
                }
                Ok((status, body)) if is_final(status, started.elapsed()) => {
                    bail!("{url} refuses this node: {}", problem(&body))
                }
                Ok((status, body)) => warn!(url, %status, "not admitted yet: {}", problem(&body)),
                Err(error) => warn!(url, "not admitted yet: {error:#}"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => bail!("told to end before a place in the cluster was found"),
        }
    }
}

/// Asking again would be answered alike. The former owner of the address may count as alive for a moment after its end.
fn is_final(status: StatusCode, elapsed: Duration) -> bool {
    match status {
        StatusCode::TOO_MANY_REQUESTS => false,
        StatusCode::CONFLICT => elapsed > FORMER_OWNER,
        status => status.is_client_error(),
    }
}

fn place(body: &Value) -> Option<Place> {
    Some(Place {
        id: body["id"].as_u64().filter(|id| *id > 0)?,
        cluster: body["cluster_id"].as_str()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_an_id_and_a_cluster() {
        let cluster = "000102030405060708090a0b0c0d0eff";
        let good = json!({ "id": 4, "cluster_id": cluster });
        assert_eq!(place(&good).unwrap().cluster.to_string(), cluster);
        for wrong in [
            json!({ "id": 0, "cluster_id": cluster }),
            json!({ "id": "4", "cluster_id": cluster }),
            json!({ "id": 4, "cluster_id": "x" }),
            json!([]),
        ] {
            assert_eq!(place(&wrong), None, "{wrong}");
        }
    }
}
