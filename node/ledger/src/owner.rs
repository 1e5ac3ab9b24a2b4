//! Whose jobs are whose, and how many one owner may have.
//!
//! The node that accepts a submission knows its owner by the token it came with, and writes the owner's name and bounds
//! into the [`JobSpec`](crate::job::JobSpec). The ledger counts what each owner has, so that the bounds hold for the whole
//! cluster, whatever comes through how many nodes at once.

use serde::{Deserialize, Serialize};

use crate::command::{QueueBound, Rejection};
use crate::rounds::Turn;

/// Who submits a job, and what that owner may have at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The name; never empty, and without the byte 0, which ends it in keys.
    pub name: String,
    /// Jobs without a result that the owner may have; any number if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_jobs: Option<u64>,
    /// The part of the queue that the owner's waiting jobs may take, percent of its bound; all of it if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_percent: Option<u8>,
}

impl Owner {
    /// Why an owner who has this much gets no further job of this weight, if so. `queue` is what the whole queue may hold;
    /// without that, no part of it can be told.
    #[must_use]
    pub fn refuses(
        &self,
        load: &OwnerLoad,
        weight: u64,
        queue: Option<QueueBound>,
    ) -> Option<Rejection> {
        self.refuses_all(load, 1, weight, queue)
    }

    /// Why an owner who has this much does not get `more` further jobs that weigh so much all together, if so.
    #[must_use]
    pub fn refuses_all(
        &self,
        load: &OwnerLoad,
        more: u64,
        weight: u64,
        queue: Option<QueueBound>,
    ) -> Option<Rejection> {
        if let Some(limit) = self.max_jobs
            && load.unfinished.saturating_add(more) > limit
        {
            let jobs = load.unfinished;
            return Some(Rejection::OwnerBusy { jobs, limit });
        }
        let share = self.share_of(queue?)?;
        match share.refuses_all(load.queued, load.queued_bytes, more, weight)? {
            Rejection::QueueHeavy { bytes, limit } => {
                Some(Rejection::OwnerQueueHeavy { bytes, limit })
            }
            _ => Some(Rejection::OwnerQueueFull {
                jobs: load.queued,
                limit: share.jobs,
            }),
        }
    }

    /// The owner's part of a queue: one job at least.
    fn share_of(&self, queue: QueueBound) -> Option<QueueBound> {
        let percent = u128::from(self.queue_percent?);
        let part = |whole: u64| u64::try_from(u128::from(whole) * percent / 100).unwrap_or(whole);
        Some(QueueBound {
            jobs: part(queue.jobs).max(1),
            bytes: part(queue.bytes),
        })
    }
}

/// What an owner has that is not finished. An owner without any of it has no record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerLoad {
    /// Jobs that wait or run.
    pub unfinished: u64,
    /// Jobs that wait.
    pub queued: u64,
    /// What those weigh, bytes.
    pub queued_bytes: u64,
    /// How the owner stands in each level, in the order of the levels.
    #[serde(default, skip_serializing_if = "Turn::are_unused")]
    pub turns: [Turn; 3],
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueBound = QueueBound {
        jobs: 100,
        bytes: 1_000,
    };

    fn owner(max_jobs: Option<u64>, queue_percent: Option<u8>) -> Owner {
        Owner {
            name: "a".to_owned(),
            max_jobs,
            queue_percent,
        }
    }

    fn load(unfinished: u64, queued: u64, queued_bytes: u64) -> OwnerLoad {
        OwnerLoad {
            unfinished,
            queued,
            queued_bytes,
            ..OwnerLoad::default()
        }
    }

    #[test]
    fn without_bounds_nothing_is_refused() {
        let all = load(u64::MAX, u64::MAX, u64::MAX);
        assert_eq!(owner(None, None).refuses(&all, 1, Some(QUEUE)), None);
        assert_eq!(owner(None, Some(1)).refuses(&all, 1, None), None);
    }

    #[test]
    fn each_bound_says_what_it_counts() {
        let both = owner(Some(20), Some(10));
        assert_eq!(both.refuses(&load(19, 9, 90), 10, Some(QUEUE)), None);
        assert_eq!(
            both.refuses(&load(20, 0, 0), 0, Some(QUEUE)),
            Some(Rejection::OwnerBusy {
                jobs: 20,
                limit: 20
            })
        );
        assert_eq!(
            both.refuses(&load(10, 10, 0), 0, Some(QUEUE)),
            Some(Rejection::OwnerQueueFull {
                jobs: 10,
                limit: 10
            })
        );
        assert_eq!(
            both.refuses(&load(9, 9, 91), 10, Some(QUEUE)),
            Some(Rejection::OwnerQueueHeavy {
                bytes: 91,
                limit: 100
            })
        );
    }

    #[test]
    fn several_jobs_fit_together_or_not_at_all() {
        let both = owner(Some(20), Some(10));
        assert_eq!(both.refuses_all(&load(18, 8, 80), 2, 20, Some(QUEUE)), None);
        assert_eq!(
            both.refuses_all(&load(18, 0, 0), 3, 0, Some(QUEUE)),
            Some(Rejection::OwnerBusy {
                jobs: 18,
                limit: 20
            })
        );
        assert_eq!(
            both.refuses_all(&load(8, 8, 0), 3, 0, Some(QUEUE)),
            Some(Rejection::OwnerQueueFull { jobs: 8, limit: 10 })
        );
        assert_eq!(
            both.refuses_all(&load(8, 8, 80), 2, 21, Some(QUEUE)),
            Some(Rejection::OwnerQueueHeavy {
                bytes: 80,
                limit: 100
            })
        );
        let all = load(u64::MAX, u64::MAX, u64::MAX);
        assert!(both.refuses_all(&all, u64::MAX, u64::MAX, None).is_some());
    }

    #[test]
    fn a_share_is_never_less_than_one_job() {
        let tiny = QueueBound {
            jobs: 3,
            bytes: u64::MAX,
        };
        let one = owner(None, Some(1));
        assert_eq!(one.refuses(&load(0, 0, 0), 1, Some(tiny)), None);
        assert!(one.refuses(&load(1, 1, 0), 1, Some(tiny)).is_some());
    }
}
