//! Who belongs to the cluster and who votes: the loop on the leader that makes the membership of the consensus follow the
//! ledger and the nodes' lives.
//!
//! A node that the ledger has admitted becomes a learner; one that it has removed loses its vote and then its place. Of
//! the nodes that live and have caught up, up to [`MAX_VOTERS`] vote, an odd number of them: an even one needs one more
//! vote for every decision and survives no more losses. A voter that has been silent for too long gives its vote to a
//! learner and becomes one. What a leader has begun and could not finish, the next one finishes.
//!
//! One change at a time, each decided by [`next`] from how things stand then. A change that would leave the cluster
//! without a majority of living voters is never begun.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorun_consensus::{Handle, Member, Status};
use quorun_ledger::NodeId;
use tracing::{debug, info, warn};

use crate::ledger;
use crate::liveness::Liveness;
use crate::membership::Membership;
use crate::settings::ClusterSettings;

/// More voters make every write slower and no cluster safer.
pub const MAX_VOTERS: usize = 5;
/// A node that is no more entries behind has caught up.
const CLOSE: u64 = 1_000;
/// Pause between two looks, unless there is news.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The loop's parts.
pub struct Roster {
    /// The cluster.
    pub consensus: Handle,
    /// Who is alive.
    pub liveness: Liveness,
    /// News of nodes.
    pub membership: Membership,
    /// After what silence a voter is replaced.
    pub settings: ClusterSettings,
}

/// How things stand.
#[derive(Clone, Debug, Default)]
struct Standing {
    me: NodeId,
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    /// A change of the voters is half done.
    changing: bool,
    /// Nodes that the ledger has admitted.
    admitted: BTreeMap<NodeId, Member>,
    /// Nodes that the ledger has removed.
    removed: BTreeSet<NodeId>,
    /// Nodes that were heard of within the timeout.
    alive: BTreeSet<NodeId>,
    /// Nodes that have been silent for so long that a voter among them is to be replaced.
    gone: BTreeSet<NodeId>,
    /// Nodes whose logs are nearly complete.
    close: BTreeSet<NodeId>,
    /// Nodes that are about to end, or are to have no work.
    draining: BTreeSet<NodeId>,
    /// Nodes whose disks have little room.
    low: BTreeSet<NodeId>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// The second half of a change of the voters.
    Finish,
    /// Take a node in.
    Admit(NodeId, Member),
    /// Make these the voters.
    Voters(BTreeSet<NodeId>),
    /// Put a learner out.
    Remove(NodeId),
    /// Somebody else is to lead: this node drains, is to lose its vote, or its disk is nearly full.
    HandOver(NodeId),
}

impl Standing {
    /// Learners that can be given a vote, by id.
    fn candidates(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.learners
            .iter()
            .copied()
            .filter(|id| self.alive.contains(id) && self.close.contains(id))
            .filter(|id| !self.draining.contains(id) && !self.removed.contains(id))
    }

    /// These voters, and as many candidates as make their number the largest odd one that can be had.
    fn filled(&self, voters: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let most = (voters.len() + self.candidates().count()).min(MAX_VOTERS);
        let target = if most.is_multiple_of(2) {
            most - 1
        } else {
            most
        };
        let missing = target.saturating_sub(voters.len());
        voters
            .into_iter()
            .chain(self.candidates().take(missing))
            .collect()
    }

    /// Whether most of these live.
    fn has_majority(&self, voters: &BTreeSet<NodeId>) -> bool {
        has_majority(voters, |id| self.alive.contains(&id))
    }

    /// The voter that is best placed to lead in the place of this node: with room on its disk, if there is one.
    fn successor(&self) -> Option<NodeId> {
        self.voters
            .iter()
            .copied()
            .filter(|id| *id != self.me && self.alive.contains(id) && self.close.contains(id))
            .filter(|id| !self.draining.contains(id) && !self.removed.contains(id))
            .min_by_key(|id| self.low.contains(id))
    }
}

/// Whether most of some voters live.
pub fn has_majority(voters: &BTreeSet<NodeId>, alive: impl Fn(NodeId) -> bool) -> bool {
    let living = voters.iter().filter(|id| alive(**id)).count();
    2 * living > voters.len()
}

/// The next change, if one is due and possible.
fn next(now: &Standing) -> Option<Change> {
    if now.changing {
        return Some(Change::Finish);
    }
    let member = |id: &NodeId| now.voters.contains(id) || now.learners.contains(id);
    let newcomer = now
        .admitted
        .iter()
        .find(|(id, _)| !member(id) && !now.removed.contains(id));
    if let Some((id, address)) = newcomer {
        return Some(Change::Admit(*id, address.clone()));
    }
    if let Some(id) = now.learners.intersection(&now.removed).next() {
        return Some(Change::Remove(*id));
    }
    if (now.removed.contains(&now.me) || now.draining.contains(&now.me))
        && let Some(successor) = now.successor()
    {
        return Some(Change::HandOver(successor));
    }
    // Whoever leads writes first, and when its disk is full there is an election. Among nodes without room nobody is better.
    if now.low.contains(&now.me)
        && let Some(successor) = now.successor().filter(|id| !now.low.contains(id))
    {
        return Some(Change::HandOver(successor));
    }
    let viable = |voters: BTreeSet<NodeId>| {
        let sound = voters != now.voters && now.has_majority(&voters);
        sound.then_some(Change::Voters(voters))
    };
    let staying: BTreeSet<NodeId> = now.voters.difference(&now.removed).copied().collect();
    if staying != now.voters && !now.removed.contains(&now.me) {
        return viable(now.filled(staying));
    }
    if let Some(gone) = now.voters.intersection(&now.gone).next()
        && let Some(successor) = now.candidates().next()
    {
        let mut voters = now.voters.clone();
        voters.remove(gone);
        voters.insert(successor);
        return viable(voters);
    }
    viable(now.filled(now.voters.clone()))
}

impl Roster {
    /// Runs until the node ends.
    pub async fn run(self) {
        let mut status = self.consensus.status();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut led = false;
        loop {
            let ended = tokio::select! {
                _ = tick.tick() => false,
                () = self.membership.news() => false,
                // Much in the status changes; only a new leadership cannot wait for the next look.
                leads = status.wait_for(|now| now.leading != led) => leads.is_err(),
            };
            if ended {
                return;
            }
            let now = status.borrow_and_update().clone();
            led = now.leading;
            if !now.leading || !now.quorum {
                continue;
            }
            match self.standing(now).await {
                Ok(standing) => {
                    if let Some(change) = next(&standing) {
                        self.make(change).await;
                    }
                }
                Err(error) => warn!(%error, "the members in the ledger could not be read"),
            }
        }
    }

    async fn standing(&self, status: Status) -> Result<Standing, ledger::ReadFailed> {
        let (admitted, removed, nodes) = ledger::read(&self.consensus, |view| {
            Ok((view.admissions()?, view.removed()?, view.nodes()?))
        })
        .await?;
        let replace_after = self.settings.current().replace_voter;
        let members = status.voters.union(&status.learners);
        let (mut alive, mut gone) = (BTreeSet::new(), BTreeSet::new());
        for id in members.copied() {
            if self.liveness.is_heard(id) {
                alive.insert(id);
            }
            if self
                .liveness
                .silence(id)
                .is_some_and(|s| s >= replace_after)
            {
                gone.insert(id);
            }
        }
        let me = self.membership.id();
        alive.insert(me);
        let mut low: BTreeSet<NodeId> = alive
            .iter()
            .copied()
            .filter(|id| self.liveness.disk_low(*id))
            .collect();
        // What it last reported of itself may be older than what it knows.
        if self.membership.disk_low() {
            low.insert(me);
        } else {
            low.remove(&me);
        }
        let close = self.consensus.behind().into_iter();
        let close = close.filter(|(_, behind)| *behind <= CLOSE);
        Ok(Standing {
            me,
            changing: status.changing,
            admitted: admitted
                .into_iter()
                .map(|(id, known)| {
                    let (peer, http) = (known.peer, known.http);
                    (id, Member { peer, http })
                })
                .collect(),
            removed: removed.into_iter().collect(),
            alive,
            gone,
            close: close.map(|(id, _)| id).collect(),
            draining: nodes.iter().filter(|n| n.draining).map(|n| n.id).collect(),
            low,
            voters: status.voters,
            learners: status.learners,
        })
    }

    async fn make(&self, change: Change) {
        let made = match &change {
            Change::Finish => self.consensus.finish_change().await,
            Change::Admit(id, member) => self.consensus.add_learner(*id, member.clone()).await,
            Change::Voters(voters) => self.consensus.change_voters(voters.clone()).await,
            Change::Remove(id) => self.consensus.remove_learner(*id).await,
            Change::HandOver(to) => self.consensus.transfer_leadership(Some(*to)).await,
        };
        match made {
            Ok(()) => info!(?change, "the membership has changed"),
            // How things stand is looked at again, by whoever leads then.
            Err(error) => debug!(?change, %error, "the membership has not changed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: impl IntoIterator<Item = NodeId>) -> BTreeSet<NodeId> {
        ids.into_iter().collect()
    }

    /// Everybody lives and has caught up; node 1 leads.
    fn standing(voters: &[NodeId], learners: &[NodeId]) -> Standing {
        let all = voters.iter().chain(learners).copied();
        Standing {
            me: 1,
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            alive: all.clone().collect(),
            close: all.collect(),
            ..Standing::default()
        }
    }

    #[test]
    fn an_odd_number_votes_and_never_more_than_five() {
        for (voters, learners, wanted) in [
            (1, 1, None),
            (1, 2, Some(3)),
            (2, 1, Some(3)),
            (3, 0, None),
            (3, 1, None),
            (3, 2, Some(5)),
            (4, 1, Some(5)),
            (5, 4, None),
        ] {
            let ids: Vec<NodeId> = (1..=voters + learners).collect();
            let (vote, follow) = ids.split_at(usize::try_from(voters).unwrap());
            let expected = wanted.map(|count| Change::Voters(set(1..=count)));
            assert_eq!(
                next(&standing(vote, follow)),
                expected,
                "{voters} {learners}"
            );
        }
    }

    #[test]
    fn whoever_is_admitted_becomes_a_learner_and_whoever_is_removed_goes() {
        let member = Member {
            peer: "d:1".to_owned(),
            http: String::new(),
        };
        let mut now = standing(&[1, 2, 3], &[]);
        now.admitted.insert(4, member.clone());
        assert_eq!(next(&now), Some(Change::Admit(4, member)));
        now.removed.insert(4);
        assert_eq!(next(&now), None, "removed before it came");

        let mut now = standing(&[1, 2, 3], &[4]);
        now.removed.insert(4);
        assert_eq!(next(&now), Some(Change::Remove(4)));
        let mut now = standing(&[1, 2, 3], &[4]);
        now.removed.insert(2);
        assert_eq!(
            next(&now),
            Some(Change::Voters(set([1, 3, 4]))),
            "4 takes its place"
        );
        let mut now = standing(&[1, 2, 3], &[]);
        now.removed.insert(2);
        assert_eq!(next(&now), Some(Change::Voters(set([1, 3]))));
        now.alive.remove(&3);
        assert_eq!(next(&now), None, "half of two is no majority");
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_first() {
        let mut now = standing(&[1, 2, 3], &[]);
        now.removed.insert(1);
        assert_eq!(next(&now), Some(Change::HandOver(2)));
        now.close.remove(&2);
        assert_eq!(next(&now), Some(Change::HandOver(3)));
        now.alive.remove(&3);
        assert_eq!(next(&now), None, "nobody can take over yet");
        let mut now = standing(&[1, 2, 3], &[]);
        now.draining.extend([1, 2]);
        assert_eq!(next(&now), Some(Change::HandOver(3)));
    }

    #[test]
    fn a_leader_with_little_room_hands_over_to_one_that_has_more() {
        let mut now = standing(&[1, 2, 3], &[4]);
        now.low.insert(1);
        assert_eq!(next(&now), Some(Change::HandOver(2)));
        now.low.insert(2);
        assert_eq!(next(&now), Some(Change::HandOver(3)));
        now.alive.remove(&3);
        assert_eq!(next(&now), None, "2 has no more room, and 4 does not vote");
        now.draining.insert(1);
        assert_eq!(next(&now), Some(Change::HandOver(2)), "better than nobody");
        let mut now = standing(&[1, 2, 3], &[]);
        now.low.insert(2);
        assert_eq!(next(&now), None, "a follower keeps its vote");
        now.draining.insert(1);
        assert_eq!(next(&now), Some(Change::HandOver(3)), "not to 2");
    }

    #[test]
    fn a_voter_that_is_gone_gives_its_vote_to_a_learner() {
        let mut now = standing(&[1, 2, 3], &[4]);
        now.alive.remove(&3);
        assert_eq!(next(&now), None, "it may come back");
        now.gone.insert(3);
        assert_eq!(next(&now), Some(Change::Voters(set([1, 2, 4]))));
        now.close.remove(&4);
        assert_eq!(next(&now), None, "4 has not caught up");
        now.close.insert(4);
        now.draining.insert(4);
        assert_eq!(next(&now), None, "4 is about to end");
    }

    #[test]
    fn what_was_begun_is_finished_first() {
        let mut now = standing(&[1, 2, 3], &[4]);
        now.changing = true;
        now.removed.insert(4);
        assert_eq!(next(&now), Some(Change::Finish));
    }

    #[test]
    fn no_change_leaves_the_cluster_without_a_majority() {
        // Of four voters that would stay, two live.
        let mut now = standing(&[1, 2, 3, 4, 5], &[]);
        now.alive = set([1, 2, 3]);
        now.removed = set([2]);
        assert_eq!(next(&now), None);
    }
}
