//! Three nodes in one process, over real connections.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{COMMITTED, Cluster, Link, Node, PATIENCE, complete, job, node_up, soon, submit};
use quorun_consensus::{Error, Notice, ProposeError, ReadError, Secrets};
use quorun_ledger::{Event, JobState, Reply};
use quorun_proto::v1;
use tokio::time::{Instant, timeout};
use tonic::Code;

fn accepted(number: u64) -> Reply {
    Reply::Submitted {
        job: job(number),
        joined: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_a_cluster_and_commit_what_is_proposed_on_any_of_them() {
    let cluster = Cluster::formed(3).await;
    for (number, id) in (0..9).zip([1, 2, 3].into_iter().cycle()) {
        assert_eq!(
            cluster.propose(id, submit(number, 100)).await,
            accepted(number)
        );
        for node in cluster.nodes.values() {
            node.handle.linearize(soon()).await.unwrap();
            assert!(node.handle.view().job(job(number)).unwrap().is_some());
        }
    }
    cluster.settled().await;
    for node in cluster.nodes.values() {
        let status = node.status();
        assert!(status.initialized);
        assert_eq!(status.voters, BTreeSet::from([1, 2, 3]));
        assert_eq!(status.members, cluster.members);
        assert!(status.learners.is_empty());
        assert_eq!(status.leading, status.leader == Some(node.id));
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_is_a_cluster() {
    let mut cluster = Cluster::formed(1).await;
    assert_eq!(cluster.propose(1, submit(1, 10)).await, accepted(1));
    cluster.nodes[&1].handle.linearize(soon()).await.unwrap();
    let state = cluster.nodes[&1].state();
    cluster.stop(1).await;
    cluster.start(1).await;
    cluster.leader().await;
    cluster.nodes[&1].handle.linearize(soon()).await.unwrap();
    // The new term has an entry of its own.
    assert_eq!(cluster.nodes[&1].state().1, state.1);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_go_on_without_the_leader_and_it_catches_up() {
    let mut cluster = Cluster::formed(3).await;
    for number in 0..20 {
        cluster.propose(number % 3 + 1, submit(number, 2_000)).await;
    }
    let old = cluster.leader().await;
    cluster.stop(old).await;
    // No waiting for the election: proposing and reading do that.
    let rest = cluster.followers(old);
    for number in 20..40 {
        let id = rest[usize::try_from(number % 2).unwrap()];
        assert_eq!(
            cluster.propose(id, submit(number, 2_000)).await,
            accepted(number)
        );
    }
    cluster.nodes[&rest[0]]
        .handle
        .linearize(soon())
        .await
        .unwrap();
    let new = cluster.leader().await;
    assert_ne!(new, old);

    cluster.start(old).await;
    cluster.nodes[&old].handle.linearize(soon()).await.unwrap();
    for number in 0..40 {
        let found = cluster.nodes[&old].handle.view().job(job(number)).unwrap();
        assert!(found.is_some(), "job {number}");
    }
    cluster.settled().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_under_way_survive_the_death_of_the_leader() {
    let mut cluster = Cluster::formed(3).await;
    let leader = cluster.leader().await;
    let rest = cluster.followers(leader);
    let mut proposals = tokio::task::JoinSet::new();
    for number in 0..400 {
        let handle = cluster.nodes[&rest[number % 2]].handle.clone();
        proposals.spawn(async move {
            let reply = handle.propose(submit(number as u64, 500), soon()).await;
            (number as u64, reply)
        });
    }
    // Some are answered before, most are not.
    for _ in 0..20 {
        proposals.join_next().await.unwrap().unwrap().1.unwrap();
    }
    cluster.stop(leader).await;
    while let Some(done) = proposals.join_next().await {
        let (number, reply) = done.unwrap();
        assert!(
            matches!(reply, Ok(Reply::Submitted { job: id, .. }) if id == job(number)),
            "{reply:?}"
        );
    }
    cluster.start(leader).await;
    cluster.settled().await;
    for node in cluster.nodes.values() {
        let counters = node.handle.view().counters().unwrap();
        assert_eq!(counters.queued, 400);
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_shut_down_has_everything_when_it_comes_back() {
    let mut cluster = Cluster::formed(3).await;
    for number in 0..30 {
        let size = if number % 10 == 0 { 300_000 } else { 100 };
        cluster.propose(number % 3 + 1, submit(number, size)).await;
    }
    let (_, hash) = cluster.settled().await;
    for id in [1, 2, 3] {
        cluster.stop(id).await;
    }
    for id in [3, 1, 2] {
        cluster.start(id).await;
        cluster.nodes[&id].handle.bootstrap().await.unwrap();
    }
    for node in cluster.nodes.values() {
        node.handle.linearize(soon()).await.unwrap();
        assert_eq!(node.state().1, hash);
        let spec = node.handle.view().spec(job(20)).unwrap().unwrap();
        assert_eq!(spec.files[0].content.len(), 300_000);
    }
    assert_eq!(
        cluster.propose(2, submit(5, 1)).await,
        Reply::Submitted {
            job: job(5),
            joined: true
        }
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_far_behind_is_brought_up_by_a_snapshot() {
    let mut cluster = Cluster::new(3);
    cluster.snapshot_after = 40;
    cluster.form().await;
    let leader = cluster.leader().await;
    let away = cluster.followers(leader)[0];
    cluster.propose(leader, submit(10_000, 10)).await;
    cluster.settled().await;
    cluster.stop(away).await;
    let before = cluster.nodes[&leader].status().last_log_index;
    for number in 0..200 {
        let size = if number % 50 == 0 { 200_000 } else { 1_000 };
        cluster.propose(leader, submit(number, size)).await;
    }
    assert!(cluster.nodes[&leader].status().last_log_index > before + 150);
    for node in cluster.nodes.values() {
        node.until("a log that begins later", |status| {
            status.purged_index > before
        })
        .await;
    }
    // The leader has in hand what it last tried to send, and may have read that before it was purged. Another one reads anew.
    let third = cluster.followers(leader)[0];
    hand_over(&cluster, Some(third)).await;

    cluster.start(away).await;
    cluster.settled().await;
    let node = cluster.nodes.get_mut(&away).unwrap();
    let mut resets = 0;
    while let Ok(notice) = node.notices.try_recv() {
        resets += usize::from(notice == Notice::Reset);
    }
    assert!(resets > 0, "the log alone has brought it up");

    // It is a whole node again: also after a restart, and as one of the two that are left.
    cluster.stop(away).await;
    cluster.start(away).await;
    cluster.settled().await;
    let leader = cluster.leader().await;
    let third = *cluster
        .nodes
        .keys()
        .find(|id| ![leader, away].contains(id))
        .unwrap_or(&leader);
    cluster.stop(third).await;
    assert_eq!(cluster.propose(away, submit(300, 10)).await, accepted(300));
    cluster.nodes[&away].handle.linearize(soon()).await.unwrap();
    assert!(
        cluster.nodes[&away]
            .handle
            .view()
            .job(job(150))
            .unwrap()
            .is_some()
    );
    cluster.start(third).await;
    cluster.settled().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_large_entries_keeps_fewer_of_them() {
    const KEPT: u64 = 1 << 20;
    let mut cluster = Cluster::new(1);
    // By their number 75 would be kept.
    cluster.snapshot_after = 300;
    cluster.log_kept = KEPT;
    cluster.form().await;
    for number in 0..320 {
        cluster.propose(1, submit(number, 64 << 10)).await;
    }
    let node = &cluster.nodes[&1];
    node.until("a log that is bounded", |status| status.purged_index > 280)
        .await;
    assert!(node.status().purged_index < 300, "some are kept");
    cluster.stop(1).await;
    cluster.start(1).await;
    cluster.leader().await;
    let node = &cluster.nodes[&1];
    node.handle.linearize(soon()).await.unwrap();
    assert!(node.handle.view().job(job(0)).unwrap().is_some());
    assert!(node.handle.view().job(job(319)).unwrap().is_some());
    cluster.end().await;
}

/// The snapshot takes longer to arrive than the others take for several times as many entries as there are between two
/// snapshots: for every entry the link carries a little more of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_takes_long_to_arrive_is_enough_while_others_write() {
    const AWAY: u64 = 3;
    const BYTES_FOR_AN_ENTRY: usize = 16 * 1024;
    let mut cluster = Cluster::new(3);
    cluster.snapshot_after = 100;
    let address = cluster.members[&AWAY].peer.clone();
    let link = Link::to(address.clone()).await;
    cluster.dial.insert(address, link.address.clone());
    cluster.form().await;
    let leader = cluster.leader().await;
    if leader == AWAY {
        hand_over(&cluster, Some(1)).await;
    }
    cluster.propose(1, submit(0, 10)).await;
    cluster.settled().await;
    cluster.stop(AWAY).await;
    for number in 1..=250 {
        let size = if number % 5 == 0 { 100_000 } else { 100 };
        cluster.propose(1, submit(number, size)).await;
    }

    link.close();
    let allow = link.allow();
    cluster.start(AWAY).await;
    let leader = cluster.leader().await;
    let handle = cluster.nodes[&leader].handle.clone();
    let before = cluster.nodes[&leader].status().last_log_index;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let load = tokio::spawn(async move {
        let mut numbers = 1_000..;
        while !*stopped.borrow() {
            let number = numbers.next().unwrap();
            handle.propose(submit(number, 100), soon()).await.unwrap();
            allow(BYTES_FOR_AN_ENTRY);
        }
    });
    let mut snapshots = 0;
    let caught_up = async {
        // It gets a snapshot, and then the log up to where that ends by then, while the load goes on.
        let mut target = None;
        loop {
            let last = cluster.nodes[&leader].status().last_log_index;
            let node = cluster.nodes.get_mut(&AWAY).unwrap();
            while let Ok(notice) = node.notices.try_recv() {
                if notice == Notice::Reset {
                    snapshots += 1;
                    target = Some(last);
                }
            }
            if target.is_some_and(|target| node.status().applied_index >= target) {
                return last - before;
            }
            // The load goes on, so there is always a next entry.
            node.handle.applied().changed().await.unwrap();
        }
    };
    let written = timeout(3 * PATIENCE, caught_up).await;
    // The last proposal is answered: nothing is on its way when the ledgers are compared.
    stop.send_replace(true);
    load.await.unwrap();
    let written = written.unwrap_or_else(|_| panic!("{snapshots} snapshots were not enough"));
    assert_eq!(snapshots, 1, "it goes on with the log behind the first");
    assert!(
        written > 2 * cluster.snapshot_after,
        "only {written} entries were written meanwhile: this proves nothing"
    );
    link.open();
    cluster.settled().await;
    cluster.end().await;
}

/// The events of a node up to the one that finishes `last`.
async fn events_until(node: &mut Node, last: u64) -> Vec<Event> {
    let mut events = Vec::new();
    let finished = Event::Finished { job: job(last) };
    while events.last() != Some(&finished) {
        match timeout(PATIENCE, node.notices.recv()).await {
            Ok(Some(Notice::Events(more, _))) => {
                // What is told is there to be seen.
                for event in &more {
                    if let Event::Finished { job } = event {
                        let job = node.handle.view().job(*job).unwrap().unwrap();
                        assert_eq!(job.state, JobState::Finished);
                    }
                }
                events.extend(more);
            }
            other => panic!("node {}: {other:?} behind {events:?}", node.id),
        }
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_assigned_to_eligible_nodes_and_every_node_is_told() {
    let mut cluster = Cluster::formed(3).await;
    let leader = cluster.leader().await;
    let up = cluster.propose(2, node_up(7, 1)).await;
    assert_eq!(up, Reply::Node { requeued: 0 });
    cluster.propose(3, submit(1, 10)).await;
    cluster.nodes[&leader]
        .handle
        .linearize(soon())
        .await
        .unwrap();
    let waiting = cluster.nodes[&leader]
        .handle
        .view()
        .job(job(1))
        .unwrap()
        .unwrap();
    assert_eq!(waiting.state, JobState::Queued);

    // Whoever leads by now: only the leader's decision counts.
    for node in cluster.nodes.values() {
        node.eligible.send_replace(BTreeSet::from([7]));
        node.handle.schedule();
    }
    let assigned = Event::Assigned {
        job: job(1),
        attempt: 1,
        node: 7,
        incarnation: 1,
    };
    let node = cluster.nodes.get_mut(&2).unwrap();
    let mut seen = Vec::new();
    while !seen.contains(&assigned) {
        match timeout(PATIENCE, node.notices.recv()).await {
            Ok(Some(Notice::Events(more, _))) => seen.extend(more),
            other => panic!("{other:?} behind {seen:?}"),
        }
    }
    assert_eq!(cluster.propose(1, complete(1, 1, 7)).await, COMMITTED);
    let mut all = Vec::new();
    for node in cluster.nodes.values_mut() {
        let mut events = events_until(node, 1).await;
        if node.id == 2 {
            seen.append(&mut events);
            events = std::mem::take(&mut seen);
        }
        all.push(events);
    }
    assert_eq!(all[0], all[1]);
    assert_eq!(all[1], all[2]);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_accepts_nothing_and_says_so() {
    let mut cluster = Cluster::formed(3).await;
    cluster.propose(1, submit(1, 10)).await;
    cluster.settled().await;
    let last = cluster.leader().await;
    for id in cluster.followers(last) {
        cluster.stop(id).await;
    }
    let node = &cluster.nodes[&last];
    node.until("the loss of its quorum", |status| !status.quorum)
        .await;
    let shortly = || Instant::now() + Duration::from_millis(500);
    let error = node
        .handle
        .propose(submit(2, 10), shortly())
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        ProposeError::Unavailable | ProposeError::Unknown
    ));
    let error = node.handle.linearize(shortly()).await.unwrap_err();
    assert_eq!(error, ReadError::Unavailable);
    // What it has can still be looked at.
    assert!(node.handle.view().job(job(1)).unwrap().is_some());

    // With one of the others it is a majority again.
    let other = [1, 2, 3].into_iter().find(|id| *id != last).unwrap();
    cluster.start(other).await;
    assert_eq!(cluster.propose(last, submit(3, 10)).await, accepted(3));
    cluster.settled().await;
    cluster.end().await;
}

/// Has whoever leads hand over, until another node leads. On a busy machine that may not be done in the time that there is
/// for it, and is then tried again.
async fn hand_over(cluster: &Cluster, to: Option<u64>) {
    let deadline = soon();
    loop {
        let leader = cluster.leader().await;
        if to == Some(leader) {
            return;
        }
        let handle = &cluster.nodes[&leader].handle;
        match handle.transfer_leadership(to).await {
            Ok(()) if to.is_none() => {
                assert_ne!(cluster.leader().await, leader);
                return;
            }
            Ok(()) | Err(Error::Failed(_) | Error::NotLeader) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "{leader} does not hand over");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_can_be_handed_over() {
    let cluster = Cluster::formed(3).await;
    let first = cluster.leader().await;
    let follower = cluster.followers(first)[0];
    let error = cluster.nodes[&follower]
        .handle
        .transfer_leadership(None)
        .await;
    assert!(matches!(error, Err(Error::NotLeader)), "{error:?}");

    hand_over(&cluster, Some(follower)).await;
    cluster.propose(first, submit(1, 10)).await;
    hand_over(&cluster, None).await;
    cluster.propose(first, submit(2, 10)).await;
    let wrong = cluster.leader().await;
    let error = cluster.nodes[&wrong]
        .handle
        .transfer_leadership(Some(9))
        .await;
    assert!(matches!(error, Err(Error::Failed(_))), "{error:?}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peer_port_serves_the_right_calls_and_refuses_the_wrong_ones() {
    let cluster = Cluster::formed(3).await;
    let hello = |process: &str| v1::HelloRequest {
        id: 1,
        process: process.to_owned(),
        peers: String::new(),
    };
    // Every other node, and itself.
    for id in [1, 2, 3] {
        let mut peer = cluster.nodes[&1].handle.peer(id).unwrap();
        let reply = peer.hello(hello("me")).await.unwrap().into_inner();
        assert_eq!((reply.id, reply.process.as_str()), (id, "me"));
        assert!(reply.initialized);
    }
    assert!(cluster.nodes[&1].handle.peer(4).is_none());

    // Without the metadata; for another node; from another cluster.
    let address = format!("http://{}", cluster.members[&2].peer);
    let channel = tonic::transport::Endpoint::from_shared(address)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let here = common::CLUSTER.to_string();
    let other = quorun_consensus::ClusterId([0; 16]).to_string();
    for (cluster_id, target, expected) in [
        (None, Some("2"), "quorun-cluster is missing"),
        (Some(here.as_str()), None, "quorun-target is missing"),
        (
            Some(here.as_str()),
            Some("3"),
            "this is node 2, but the call is for node 3",
        ),
        (
            Some(other.as_str()),
            Some("2"),
            "but the call is for cluster 0000",
        ),
    ] {
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert("quorun-from", "1".parse().unwrap());
        if let Some(id) = cluster_id {
            metadata.insert("quorun-cluster", id.parse().unwrap());
        }
        if let Some(target) = target {
            metadata.insert("quorun-target", target.parse().unwrap());
        }
        let mut request = tonic::Request::new(hello("stranger"));
        *request.metadata_mut() = metadata.clone();
        let mut peer = v1::peer_client::PeerClient::new(channel.clone());
        let refused = peer.hello(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(expected), "{refused}");

        let mut request = tonic::Request::new(v1::ReadIndexRequest { deadline_ms: 1 });
        *request.metadata_mut() = metadata;
        let mut consensus = v1::consensus_client::ConsensusClient::new(channel.clone());
        let refused = consensus.read_index(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
    }
    cluster.end().await;
}

/// All that a stranger can know is in its calls; what it cannot know is the secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_not_the_secret_is_refused_by_every_call() {
    let mut cluster = Cluster::new(3);
    cluster.access.secrets = Secrets::parse(&"s".repeat(40)).unwrap();
    cluster.form().await;
    cluster.propose(1, submit(1, 10)).await;

    let address = format!("http://{}", cluster.members[&2].peer);
    let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut consensus = v1::consensus_client::ConsensusClient::new(channel.clone());
    let mut peer = v1::peer_client::PeerClient::new(channel);
    let wrong_proof = "0".repeat(64);
    for proof in [None, Some(""), Some(wrong_proof.as_str())] {
        macro_rules! refused {
            ($client:ident . $call:ident ( $message:expr )) => {
                let mut request = tonic::Request::new($message);
                let metadata = request.metadata_mut();
                metadata.insert("quorun-from", "1".parse().unwrap());
                metadata.insert("quorun-target", "2".parse().unwrap());
                metadata.insert(
                    "quorun-cluster",
                    common::CLUSTER.to_string().parse().unwrap(),
                );
                if let Some(proof) = proof {
                    metadata.insert("quorun-proof", proof.parse().unwrap());
                }
                let status = $client.$call(request).await.map(drop).unwrap_err();
                assert_eq!(status.code(), Code::Unauthenticated, "{status}");
            };
        }
        // Streams that would go on for ever, were they read.
        refused!(consensus.stream_append(futures::stream::pending()));
        refused!(consensus.install_snapshot(futures::stream::pending()));
        refused!(consensus.vote(v1::VoteRequest::default()));
        refused!(consensus.transfer_leader(v1::TransferLeaderRequest::default()));
        refused!(consensus.propose(v1::ProposeRequest::default()));
        refused!(consensus.recall(v1::RecallRequest::default()));
        refused!(consensus.confirm_term(v1::ConfirmTermRequest::default()));
        refused!(consensus.read_index(v1::ReadIndexRequest::default()));
        refused!(peer.hello(v1::HelloRequest::default()));
        refused!(peer.heartbeat(v1::HeartbeatRequest::default()));
        refused!(peer.move_leader(v1::MoveLeaderRequest::default()));
        refused!(peer.watch(v1::WatchRequest::default()));
    }
    // The first node that knows of a second secret goes on with the others.
    cluster.stop(3).await;
    let both = format!("{}\n{}", "s".repeat(40), "n".repeat(40));
    cluster.access.secrets = Secrets::parse(&both).unwrap();
    cluster.start(3).await;
    cluster.propose(3, submit(2, 10)).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_start_with_the_folder_of_another_or_with_a_damaged_log() {
    let mut cluster = Cluster::formed(3).await;
    cluster.propose(1, submit(1, 10)).await;
    cluster.stop(2).await;
    cluster.stop(3).await;

    let own = cluster.folder(2);
    let aside = cluster.dir().join("aside");
    std::fs::rename(&own, &aside).unwrap();
    std::fs::rename(cluster.folder(3), &own).unwrap();
    let error = cluster.try_start(2).await.unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("belongs to node 3"), "{error}");

    std::fs::rename(&own, cluster.folder(3)).unwrap();
    std::fs::rename(&aside, &own).unwrap();
    let database = std::fs::OpenOptions::new()
        .write(true)
        .open(own.join("log/db"))
        .unwrap();
    database.set_len(0).unwrap();
    let error = cluster.try_start(2).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");

    // The others do not need it.
    cluster.start(3).await;
    assert_eq!(cluster.propose(3, submit(2, 10)).await, accepted(2));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_says_so() {
    let cluster = Cluster::formed(1).await;
    let handle = cluster.nodes[&1].handle.clone();
    let stopped = tokio::spawn({
        let handle = handle.clone();
        async move { handle.stopped().await }
    });
    handle.shutdown().await;
    assert!(matches!(stopped.await.unwrap(), Error::Stopped));
    assert!(matches!(handle.stopped().await, Error::Stopped));
    handle.shutdown().await;
    let error = handle.propose(submit(1, 10), soon()).await.unwrap_err();
    assert_eq!(error, ProposeError::Stopped);
    assert_eq!(
        handle.linearize(soon()).await.unwrap_err(),
        ReadError::Stopped
    );
    assert!(matches!(handle.state(), Err(Error::Stopped)));
    handle.view().counters().unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_come_and_go_and_a_change_that_was_left_half_done_is_finished() {
    let mut cluster = Cluster::new(4);
    let joining = cluster.members.remove(&4).unwrap();
    cluster.form().await;
    let leader = cluster.leader().await;
    cluster.propose(leader, submit(1, 10)).await;
    cluster.members.insert(4, joining.clone());
    cluster.start(4).await;
    let handle = cluster.nodes[&leader].handle.clone();
    handle.add_learner(4, joining.clone()).await.unwrap();
    handle.add_learner(4, joining).await.unwrap(); // harmless
    cluster.nodes[&4]
        .until("the job", |status| status.applied_index >= 1)
        .await;
    let follower = cluster
        .followers(leader)
        .into_iter()
        .find(|id| *id != 4)
        .unwrap();
    let error = cluster.nodes[&follower]
        .handle
        .change_voters([1, 2].into())
        .await;
    assert!(matches!(error, Err(Error::NotLeader)), "{error:?}");

    // Of the new voters only the leader is there: the second half of the change cannot be committed, and its leader goes.
    let others: Vec<_> = cluster
        .followers(leader)
        .into_iter()
        .filter(|id| *id != 4)
        .collect();
    cluster.stop(4).await;
    let absent = 4;
    let wanted: BTreeSet<u64> = [leader, absent].into();
    let changing = tokio::spawn(async move { handle.change_voters(wanted).await });
    for id in &others {
        cluster.nodes[id]
            .until("the first half of the change", |status| status.changing)
            .await;
    }
    cluster.stop(leader).await;
    changing.await.unwrap().unwrap_err();

    // Whoever leads next needs a majority of the old and of the new voters.
    cluster.start(4).await;
    cluster.start(leader).await;
    let next = cluster.leader().await;
    cluster.nodes[&next]
        .until("the change", |status| status.changing)
        .await;
    let deadline = soon();
    // It is refused as long as the first half is not committed.
    while let Err(error) = cluster.nodes[&next].handle.finish_change().await {
        assert!(Instant::now() < deadline, "{error}");
        let mut status = cluster.nodes[&next].handle.status();
        let _ = timeout(Duration::from_millis(100), status.changed()).await;
    }
    for node in cluster.nodes.values() {
        let done = |status: &quorun_consensus::Status| {
            !status.changing && status.voters == BTreeSet::from([leader, absent])
        };
        node.until("the second half of the change", done).await;
    }
    // Whoever has lost its vote goes on following until it is put out. Another node may come to lead meanwhile, of which
    // those that are out already do not hear, and one that is put out may still take itself for the leader.
    let deadline = soon();
    let kept = BTreeSet::from([leader, absent]);
    let out = |node: &Node| node.status().members.keys().copied().eq(kept.clone());
    while !kept.iter().all(|id| out(&cluster.nodes[id])) {
        assert!(Instant::now() < deadline, "they cannot be put out");
        for node in cluster.nodes.values().filter(|node| node.status().leading) {
            for id in &others {
                // Refused where it does not lead any more, or where the node is out already.
                let _ = timeout(Duration::from_secs(1), node.handle.remove_learner(*id)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.propose(leader, submit(2, 10)).await;
    cluster.end().await;
}
