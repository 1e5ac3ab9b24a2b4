//! Who belongs to the cluster: admit, remove and drain nodes, move the leadership, change the cluster's settings.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use http::{HeaderMap, StatusCode};
use quorun_consensus::{Member, ProposeError, Status};
use quorun_ledger::{Command, NodeId, Rejection, Reply, Settings};
use quorun_proto::v1::MoveLeaderRequest;
use serde::{Deserialize, Serialize};
use tonic::Code;
use tracing::info;
use utoipa::ToSchema;

use super::json::Json;
use super::problem::{Kind, Problem, quoted};
use super::{App, body, path};
use crate::config::{KEPT_MB, LONGEST_S, split_host_port};
use crate::jobs::Error;
use crate::ledger;
use crate::roster::has_majority;

/// How long a proposal may take before the client is told to try again.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long an answer waits for a change of the membership to be complete.
const COMPLETE: Duration = Duration::from_secs(15);
/// The largest body.
const MAX_BODY: usize = 16 * 1024;

/// A node that wants to come.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Admission)]
pub struct AdmitRequest {
    /// HOST:PORT, as the other nodes reach it.
    #[schema(pattern = "^[A-Za-z0-9._:%\\[\\]-]+:[0-9]{1,5}$")]
    peer: String,
    /// HOST:PORT, as clients reach it.
    #[serde(default)]
    #[schema(pattern = "^([A-Za-z0-9._:%\\[\\]-]+:[0-9]{1,5})?$")]
    http: Option<String>,
}

impl AdmitRequest {
    /// The addresses for peers and for clients; the second may be empty.
    fn check(self) -> Result<(String, String), Problem> {
        address("peer", &self.peer)?;
        let http = self.http.unwrap_or_default();
        if !http.is_empty() {
            address("http", &http)?;
        }
        Ok((self.peer, http))
    }
}

/// Whether a node is to get work.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Drain)]
pub struct DrainRequest {
    draining: bool,
}

impl DrainRequest {
    /// No body is the same as `true`.
    fn read(bytes: &[u8]) -> Result<Self, Problem> {
        if bytes.is_empty() {
            return Ok(Self { draining: true });
        }
        body::json(bytes)
    }
}

/// Who is to lead.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MoveLeader)]
pub struct LeaderRequest {
    /// A voter; whoever is best placed if not said.
    #[serde(default)]
    node: Option<u64>,
}

impl LeaderRequest {
    /// No body names nobody.
    fn read(bytes: &[u8]) -> Result<Self, Problem> {
        if bytes.is_empty() {
            return Ok(Self { node: None });
        }
        body::json(bytes)
    }
}

/// What is set for all nodes. What is left out, or null, is decided by each node's own configuration.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Settings)]
pub struct SettingsRequest {
    /// How long finished jobs are kept.
    #[serde(default)]
    #[schema(maximum = 315360000)]
    retention_s: Option<u64>,
    /// How much of them is kept.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1073741824)]
    retention_mb: Option<u64>,
    /// How long a voter may be away before another node votes in its place.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 315360000)]
    replace_voter_s: Option<u64>,
}

impl SettingsRequest {
    fn check(&self) -> Result<Settings, Problem> {
        let retention_s = within("retention_s", self.retention_s, &(0..=LONGEST_S))?;
        let retention_mb = within("retention_mb", self.retention_mb, &KEPT_MB)?;
        let replace_voter_s = within("replace_voter_s", self.replace_voter_s, &(1..=LONGEST_S))?;
        Ok(Settings {
            retention_ms: retention_s.map(|s| s * 1000),
            retention_bytes: retention_mb.map(|mb| mb << 20),
            replace_voter_ms: replace_voter_s.map(|s| s * 1000),
        })
    }
}

/// What holds on a node.
#[derive(Debug, Serialize, ToSchema)]
pub struct EffectiveSettings {
    retention_s: u64,
    retention_mb: u64,
    replace_voter_s: u64,
}

/// The cluster's settings.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClusterSettings {
    /// What is set for all nodes.
    set: SettingsRequest,
    /// What holds on this node.
    effective: EffectiveSettings,
}

/// A node that was let in.
#[derive(Debug, Serialize, ToSchema)]
pub struct Admitted {
    id: u64,
    cluster_id: String,
    peer: String,
    /// Empty if it was not said.
    http: String,
}

/// A node that was removed.
#[derive(Debug, Serialize, ToSchema)]
pub struct Removed {
    id: u64,
    /// It no longer belongs to the cluster; otherwise that is under way.
    removed: bool,
    /// Its jobs that went to other nodes.
    requeued: u32,
}

/// Whether a node gets work.
#[derive(Debug, Serialize, ToSchema)]
pub struct Drained {
    id: u64,
    draining: bool,
}

/// Who leads.
#[derive(Debug, Serialize, ToSchema)]
pub struct Leader {
    leader: u64,
}

fn unknown_node(id: NodeId, status: &Status) -> Problem {
    let ids: Vec<_> = status.members.keys().map(ToString::to_string).collect();
    Problem::new(
        Kind::UnknownNode,
        format!(
            "node {id} does not belong to this cluster; its nodes are {}",
            ids.join(", ")
        ),
    )
    .with("node", id)
}

/// The node that a path names.
fn node_id(part: Result<Path<String>, PathRejection>) -> Result<NodeId, Problem> {
    let text = path(part)?;
    text.parse().ok().filter(|id| *id > 0).ok_or_else(|| {
        Problem::new(
            Kind::UnknownNode,
            format!(
                "{} is not the id of a node; ids are numbers from 1",
                quoted(&text)
            ),
        )
        .with("node", text.clone())
    })
}

fn address(field: &'static str, text: &str) -> Result<(), Problem> {
    split_host_port(text).map(drop).map_err(|_| {
        let should = "HOST:PORT, as the other nodes reach this one";
        Problem::no_such(field, text, should)
    })
}

async fn propose(app: &App, command: Command) -> Result<Reply, Problem> {
    let deadline = Instant::now() + DEADLINE;
    let proposed = app.consensus.propose(command, deadline.into()).await;
    proposed.map_err(|error| match error {
        ProposeError::Unavailable => Error::NoLeader.into(),
        ProposeError::Stopped => Error::Stopped.into(),
        ProposeError::Unknown => Problem::new(
            Kind::Unconfirmed,
            "whether the request was taken is not known; sending it again is harmless",
        )
        .retry(),
    })
}

/// Waits until the members are as they should be; whether they are.
async fn until(app: &App, condition: impl FnMut(&Status) -> bool) -> bool {
    let mut status = app.consensus.status();
    let waited = tokio::time::timeout(COMPLETE, status.wait_for(condition)).await;
    matches!(waited, Ok(Ok(_)))
}

fn alive(app: &App) -> BTreeSet<NodeId> {
    let heard = app.liveness.peers().into_iter().filter(|peer| peer.alive);
    let mut alive: BTreeSet<_> = heard.filter_map(|peer| Some(peer.report?.id)).collect();
    alive.insert(app.config.id);
    alive
}

/// Give a node a place
#[utoipa::path(
    post, path = "/v1/cluster/nodes", operation_id = "admit_node", tag = "cluster",
    description = "It becomes a learner, and a voter when one is needed. This is what `quorun serve --join` does for itself. The same address gets the same id until the node has come.",
    request_body(content = AdmitRequest, example = json!({ "peer": "10.0.0.4:7000", "http": "10.0.0.4:8080" })),
    responses((status = 201, description = "It has an id", body = Admitted, example = json!({
        "id": 4, "cluster_id": "01900000-0000-7000-8000-000000000000", "peer": "10.0.0.4:7000", "http": "10.0.0.4:8080",
    }))),
    extensions(("x-problems" = json!(["node-alive", "no-majority-left", "no-quorum", "unconfirmed", "node-failing"]))),
)]
pub async fn admit(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Admitted>), Problem> {
    let bytes = body::read(&headers, body, MAX_BODY).await?;
    let (peer, http) = body::json::<AdmitRequest>(&bytes)?.check()?;
    let status = app.consensus.status().borrow().clone();
    let same = |(_, member): &(&NodeId, &Member)| member.peer == peer;
    if let Some((id, _)) = status.members.iter().find(same) {
        let id = *id;
        catch_up(&app).await?;
        let known = ledger::read(&app.consensus, move |view| {
            let admitted = view.admissions()?.iter().any(|(known, _)| *known == id);
            Ok((admitted, view.is_removed(id)?, view.node(id)?))
        });
        let (admitted, removed, record) = known.await.map_err(Error::from)?;
        // Let in, and not come yet: this is it. Removed, and still a member for a moment: it has no claim to the address.
        let waits = admitted && record.is_none();
        if !waits && !removed {
            // Whoever had this address loses its place if the leader has declared it lost. That nothing is known of it
            // is not enough: it may have been there for a moment only, or the leader.
            if !record.is_some_and(|record| record.lost) {
                return Err(Problem::new(Kind::NodeAlive,
                    format!(
                        "node {id} has the address {peer} and was not declared lost; a new node needs an address of its own, or node {id} has to be removed first"
                    ),
                )
                .with("node", id));
            }
            info!(node = id, peer = peer, "replaced by a new node");
            remove_node(&app, id, &status).await?;
        }
    }
    let floor = status.members.keys().copied().max().unwrap_or(0);
    let command = Command::Admit {
        peer: peer.clone(),
        http: http.clone(),
        floor,
    };
    match propose(&app, command).await? {
        Reply::Admitted { node } => {
            info!(node, peer = peer, "node admitted");
            let body = Admitted {
                id: node,
                cluster_id: app.config.cluster.to_string(),
                peer,
                http,
            };
            Ok((StatusCode::CREATED, Json(body)))
        }
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> Problem {
    Problem::new(
        Kind::Internal,
        format!("the ledger answered with {reply:?}"),
    )
}

async fn remove_node(app: &App, id: NodeId, status: &Status) -> Result<u32, Problem> {
    let staying: BTreeSet<_> = status.voters.iter().copied().filter(|v| *v != id).collect();
    let alive = alive(app);
    if status.voters.contains(&id) && !has_majority(&staying, |id| alive.contains(&id)) {
        let living = staying.iter().filter(|id| alive.contains(id)).count();
        return Err(Problem::new(Kind::NoMajorityLeft,
            format!(
                "without node {id}, {living} of {} voters would be alive, which is no majority; bring nodes back or add some first",
                staying.len()
            ),
        )
        .with("node", id));
    }
    match propose(app, Command::Remove { node: id }).await? {
        Reply::Node { requeued } => Ok(requeued),
        other => Err(unexpected(&other)),
    }
}

/// Waits until this node's ledger shows what was let in and removed through other nodes before now.
async fn catch_up(app: &App) -> Result<(), Problem> {
    let deadline = Instant::now() + DEADLINE;
    let caught_up = app.consensus.linearize(deadline.into()).await;
    Ok(caught_up.map_err(|_| Error::NoLeader)?)
}

/// Whether a node was let in, and not removed: it need not have come, nor be a member on this node yet.
async fn is_admitted(app: &App, id: NodeId) -> Result<bool, Problem> {
    catch_up(app).await?;
    let admissions = ledger::read(&app.consensus, |view| view.admissions());
    let admissions = admissions.await.map_err(Error::from)?;
    Ok(admissions.iter().any(|(known, _)| *known == id))
}

/// Remove a node for ever
#[utoipa::path(
    delete, path = "/v1/cluster/nodes/{id}", operation_id = "remove_node", tag = "cluster",
    description = "What it was running goes to others. A node that was let in and has not come can be removed as well.",
    params(("id" = u64, Path, minimum = 1, description = "The node")),
    responses(
        (status = 200, description = "It no longer belongs to the cluster", body = Removed,
            example = json!({ "id": 3, "removed": true, "requeued": 2 })),
        (status = 202, description = "It is being removed", body = Removed,
            example = json!({ "id": 3, "removed": false, "requeued": 2 })),
    ),
    extensions(("x-problems" = json!(["unknown-node", "no-majority-left", "no-quorum", "unconfirmed", "node-failing"]))),
)]
pub async fn remove(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<(StatusCode, Json<Removed>), Problem> {
    let id = node_id(id)?;
    let status = app.consensus.status().borrow().clone();
    if !status.members.contains_key(&id) && !is_admitted(&app, id).await? {
        return Err(unknown_node(id, &status));
    }
    let requeued = remove_node(&app, id, &status).await?;
    let complete = until(&app, |now| !now.members.contains_key(&id)).await;
    let code = if complete {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let body = Removed {
        id,
        removed: complete,
        requeued,
    };
    Ok((code, Json(body)))
}

/// Give a node no more work, or work again
#[utoipa::path(
    post, path = "/v1/cluster/nodes/{id}/drain", operation_id = "drain_node", tag = "cluster",
    description = "Without a body it is given no more. A leader that drains hands over. A restart of the node ends it.",
    params(("id" = u64, Path, minimum = 1, description = "The node")),
    request_body(content = Option<DrainRequest>, example = json!({ "draining": true })),
    responses((status = 200, description = "So it is", body = Drained, example = json!({ "id": 3, "draining": true }))),
    extensions(("x-problems" = json!(["unknown-node", "no-quorum", "unconfirmed"]))),
)]
pub async fn drain(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Drained>, Problem> {
    let id = node_id(id)?;
    let bytes = body::read(&headers, body, MAX_BODY).await?;
    let draining = DrainRequest::read(&bytes)?.draining;
    let command = Command::Drain { node: id, draining };
    match propose(&app, command).await? {
        Reply::Node { .. } => Ok(Json(Drained { id, draining })),
        Reply::Rejected(Rejection::UnknownNode) => {
            let status = app.consensus.status().borrow().clone();
            Err(unknown_node(id, &status))
        }
        other => Err(unexpected(&other)),
    }
}

/// Move the leadership
#[utoipa::path(
    post, path = "/v1/cluster/leader", operation_id = "move_leader", tag = "cluster",
    description = "To a named voter, or to whoever is best placed; answers once that one leads.",
    request_body(content = Option<LeaderRequest>, example = json!({ "node": 2 })),
    responses((status = 200, description = "It leads", body = Leader, example = json!({ "leader": 2 }))),
    extensions(("x-problems" = json!(["unknown-node", "not-a-voter", "leader-not-moved", "no-quorum"]))),
)]
pub async fn move_leader(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Leader>, Problem> {
    let bytes = body::read(&headers, body, MAX_BODY).await?;
    let request = LeaderRequest::read(&bytes)?;
    let status = app.consensus.status().borrow().clone();
    if let Some(node) = request.node {
        if !status.members.contains_key(&node) {
            return Err(unknown_node(node, &status));
        }
        if !status.voters.contains(&node) {
            return Err(Problem::new(
                Kind::NotAVoter,
                format!("node {node} is a learner; only voters lead"),
            )
            .with("node", node));
        }
        if status.leader == Some(node) {
            return Ok(Json(Leader { leader: node }));
        }
    }
    let client = status.leader.and_then(|leader| app.consensus.peer(leader));
    let mut client = client.ok_or(Error::NoLeader)?;
    let request = MoveLeaderRequest {
        to: request.node.unwrap_or(0),
    };
    match tokio::time::timeout(DEADLINE, client.move_leader(request)).await {
        Ok(Ok(reply)) => Ok(Json(Leader {
            leader: reply.into_inner().leader,
        })),
        Ok(Err(status)) if status.code() == Code::FailedPrecondition => Err(Problem::new(
            Kind::LeaderNotMoved,
            status.message().to_owned(),
        )),
        Ok(Err(_)) | Err(_) => Err(Error::NoLeader.into()),
    }
}

/// Look at the cluster's settings
#[utoipa::path(
    get, path = "/v1/cluster/settings", operation_id = "get_settings", tag = "cluster",
    responses((status = 200, description = "The settings", body = ClusterSettings, example = json!({
        "set": { "retention_s": 3600, "retention_mb": null, "replace_voter_s": null },
        "effective": { "retention_s": 3600, "retention_mb": 1024, "replace_voter_s": 30 },
    }))),
)]
pub async fn settings(State(app): State<App>) -> Json<ClusterSettings> {
    let (set, now) = (app.settings.set(), app.settings.current());
    Json(ClusterSettings {
        set: SettingsRequest {
            retention_s: set.retention_ms.map(|ms| ms / 1000),
            retention_mb: set.retention_bytes.map(|bytes| bytes >> 20),
            replace_voter_s: set.replace_voter_ms.map(|ms| ms / 1000),
        },
        effective: EffectiveSettings {
            retention_s: now.retention.as_secs(),
            retention_mb: now.retention_bytes >> 20,
            replace_voter_s: now.replace_voter.as_secs(),
        },
    })
}

fn within(
    field: &'static str,
    value: Option<u64>,
    range: &std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, Problem> {
    match value {
        Some(value) if !range.contains(&value) => Err(Problem::invalid(
            field,
            format!(
                "{field} is {value}; it should be {} to {}",
                range.start(),
                range.end()
            ),
        )
        .with("value", value)
        .with(
            "limit",
            if value < *range.start() {
                *range.start()
            } else {
                *range.end()
            },
        )),
        value => Ok(value),
    }
}

/// Replace the cluster's settings
#[utoipa::path(
    put, path = "/v1/cluster/settings", operation_id = "put_settings", tag = "cluster",
    request_body(content = SettingsRequest, example = json!({ "retention_s": 3600 })),
    responses((status = 200, description = "The settings as they are now", body = ClusterSettings, example = json!({
        "set": { "retention_s": 3600, "retention_mb": null, "replace_voter_s": null },
        "effective": { "retention_s": 3600, "retention_mb": 1024, "replace_voter_s": 30 },
    }))),
    extensions(("x-problems" = json!(["no-quorum", "unconfirmed", "node-failing"]))),
)]
pub async fn configure(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ClusterSettings>, Problem> {
    let bytes = body::read(&headers, body, MAX_BODY).await?;
    let settings = body::json::<SettingsRequest>(&bytes)?.check()?;
    match propose(&app, Command::Configure { settings }).await? {
        Reply::Configured => {
            // The answer, and whoever asks this node next, must see it.
            catch_up(&app).await?;
            app.settings
                .changed(&app.consensus)
                .await
                .map_err(Error::from)?;
            Ok(self::settings(State(app)).await)
        }
        other => Err(unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::fuzz;
    use super::*;

    #[test]
    fn what_the_ledger_should_not_say_is_a_bug_of_ours() {
        let problem = unexpected(&Reply::Configured).to_json();
        assert_eq!(problem["type"], "urn:quorun:error:internal");
        assert_eq!(problem["status"], 500);
    }

    proptest! {
        #[test]
        fn any_change_of_the_cluster_is_read_or_refused_in_words(
            admit in fuzz::bodies(&json!({ "peer": "host:7000", "http": "host:8080" }), fuzz::NAMES),
            drain in fuzz::bodies(&json!({ "draining": true }), fuzz::NAMES),
            leader in fuzz::bodies(&json!({ "node": 2 }), fuzz::NAMES),
            settings in fuzz::bodies(
                &json!({ "retention_s": 60, "retention_mb": 64, "replace_voter_s": 60 }), fuzz::NAMES,
            ),
        ) {
            let read = [
                body::json::<AdmitRequest>(&admit).and_then(AdmitRequest::check).map(drop),
                DrainRequest::read(&drain).map(drop),
                LeaderRequest::read(&leader).map(drop),
                body::json::<SettingsRequest>(&settings).and_then(|request| request.check()).map(drop),
            ];
            for problem in read.into_iter().filter_map(Result::err) {
                fuzz::is_a_good_answer(&problem);
            }
        }
    }
}
