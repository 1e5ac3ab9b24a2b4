//! What goes into the ledger: the commands, packed into batches, and what each is answered.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::callback::DeliveryAttempt;
use crate::codec;
use crate::job::{JobId, JobResult, JobSpec};
use crate::language::Language;
use crate::node::NodeId;
use crate::settings::Settings;

/// One entry of the Raft log: commands that the leader's proposer packed together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The leader's clock when it proposed the batch, Unix milliseconds. The ledger never lets its own time go back.
    pub time_ms: u64,
    /// The scheduling decision of the leader: which nodes it believes alive and able to take work. Jobs that are
    /// queued when the batch has been applied are assigned to the least busy of these.
    pub eligible: BTreeSet<NodeId>,
    /// What the queue may hold, as the leader is configured; without it, anything. It stands in the batch so that all
    /// nodes turn away the same submissions, whatever their own configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueBound>,
    /// The commands, in order; may be empty, which is the bare scheduling decision.
    pub commands: Vec<Command>,
}

/// What the queue may hold. Only submissions are held to it: what was accepted goes back to the queue whatever is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueBound {
    /// Jobs that may wait.
    pub jobs: u64,
    /// What they may weigh all together, bytes.
    pub bytes: u64,
}

impl QueueBound {
    /// Why a queue of so many jobs and bytes takes no further job of this weight, if it does not.
    #[must_use]
    pub const fn refuses(&self, jobs: u64, bytes: u64, weight: u64) -> Option<Rejection> {
        self.refuses_all(jobs, bytes, 1, weight)
    }

    /// Why a queue of so many jobs and bytes does not take `more` further jobs of this weight all together, if it does not.
    #[must_use]
    pub const fn refuses_all(
        &self,
        jobs: u64,
        bytes: u64,
        more: u64,
        weight: u64,
    ) -> Option<Rejection> {
        if jobs.saturating_add(more) > self.jobs {
            let limit = self.jobs;
            return Some(Rejection::QueueFull { jobs, limit });
        }
        if bytes.saturating_add(weight) > self.bytes {
            let limit = self.bytes;
            return Some(Rejection::QueueHeavy { bytes, limit });
        }
        None
    }
}

impl Batch {
    /// Encodes a batch whose commands are encoded already, each by itself: the same bytes as the encoding of the whole.
    #[must_use]
    pub fn encode_with<C: AsRef<[u8]>>(
        time_ms: u64,
        eligible: BTreeSet<NodeId>,
        queue: Option<QueueBound>,
        commands: &[C],
    ) -> Vec<u8> {
        let empty = Self {
            time_ms,
            eligible,
            queue,
            commands: Vec::new(),
        };
        let mut bytes = codec::encode(&empty);
        // The commands come last, so all that is there of them is the header of an empty list, one byte.
        bytes.pop();
        bytes.reserve(5 + commands.iter().map(|c| c.as_ref().len()).sum::<usize>());
        match (u8::try_from(commands.len()), u16::try_from(commands.len())) {
            (Ok(few @ 0..=15), _) => bytes.push(0x90 | few),
            (_, Ok(some)) => {
                bytes.push(0xdc);
                bytes.extend_from_slice(&some.to_be_bytes());
            }
            _ => {
                let many = u32::try_from(commands.len()).unwrap_or(u32::MAX);
                bytes.push(0xdd);
                bytes.extend_from_slice(&many.to_be_bytes());
            }
        }
        for command in commands {
            // Without the version, which the batch has.
            bytes.extend_from_slice(command.as_ref().get(1..).unwrap_or_default());
        }
        bytes
    }
}

/// The only ways in which the ledger changes.
#[expect(
    clippy::large_enum_variant,
    reason = "most commands are submissions and results, and none is kept in memory"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Accepts a job and queues it.
    Submit {
        /// Drawn by the accepting node; a repeated proposal of the same submission carries the same id.
        id: JobId,
        /// What is to be run.
        spec: JobSpec,
        /// The submitter's retry key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<IdempotencyKey>,
    },
    /// Accepts several jobs, all of them or none. Also how a single job is submitted whose rules an earlier version did not
    /// have: such a version does not know this command, and stops instead of queueing the job in some other way.
    SubmitAll {
        /// The jobs, in the order in which they are queued.
        jobs: Vec<Submission>,
    },
    /// As `SubmitAll`, of jobs of which some have arguments for the compiler. A version that would leave those out does not
    /// know this command, and stops instead.
    SubmitCompiled {
        /// The jobs, in the order in which they are queued.
        jobs: Vec<Submission>,
    },
    /// Gives a queued job to a node, whatever stands before it in the queue.
    Assign {
        /// The queued job.
        job: JobId,
        /// Who is to run it.
        node: NodeId,
    },
    /// A worker reports how an attempt ended.
    Complete {
        /// The job.
        job: JobId,
        /// The attempt that ended; the fence.
        attempt: u32,
        /// Who ran it.
        node: NodeId,
        /// How it ended.
        result: JobResult,
    },
    /// A worker gives an attempt back without a result: it cannot run it now.
    Release {
        /// The job.
        job: JobId,
        /// The attempt that is given back; the fence.
        attempt: u32,
        /// Who gives it back.
        node: NodeId,
        /// Why, for the message should this have been the last attempt.
        reason: String,
    },
    /// Ends a job that has no result yet.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// A node announces itself: at its start, and when it finds itself declared lost.
    NodeUp {
        /// The node's id.
        node: NodeId,
        /// Counts the starts of its process.
        incarnation: u64,
        /// host:port of its HTTP port, as others reach it.
        http: String,
        /// How many jobs it executes at one time.
        slots: u32,
        /// Languages it can run.
        languages: BTreeSet<String>,
        /// Version of its program.
        version: String,
    },
    /// The leader declares a node lost.
    NodeLost {
        /// The node.
        node: NodeId,
        /// The incarnation that went silent; a newer one is not meant.
        incarnation: u64,
    },
    /// Stops or resumes assignments to a node.
    Drain {
        /// The node.
        node: NodeId,
        /// Whether it is to get no new assignments.
        draining: bool,
    },
    /// Lets a node into the cluster: gives it an id that no node has ever had.
    Admit {
        /// host:port of its peer port. Whoever was let in with the same address gets the same id again: it is a retry,
        /// unless the node that had it was removed.
        peer: String,
        /// host:port of its HTTP port; empty when not known.
        http: String,
        /// The highest id among the members of the consensus: the ledger may not have heard of all of them.
        floor: NodeId,
    },
    /// Removes a node for ever: what it was running goes to others, and its id is not used again.
    Remove {
        /// The node.
        node: NodeId,
    },
    /// Replaces the settings of the cluster.
    Configure {
        /// What holds from now on.
        settings: Settings,
    },
    /// Says how an attempt to tell somebody of a job's end went.
    CallbackTried {
        /// The job.
        job: JobId,
        /// Number of the attempt, from 1; the fence.
        attempt: u32,
        /// How it went.
        outcome: DeliveryAttempt,
        /// How long to wait before the next one if it was not received, milliseconds; `None` where none will do better.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_ms: Option<u64>,
    },
    /// Has a delivery sent now that was received, given up, or is to be sent later. An earlier version does not know this
    /// command, and stops.
    CallbackAgain {
        /// The job.
        job: JobId,
    },
    /// Defines a language, or defines it anew. What is in here goes before what the nodes' files say.
    SetLanguage {
        /// Its image as it was named.
        image: String,
        /// The language; its image is the one to be used.
        language: Box<Language>,
        /// Whether submissions are refused.
        #[serde(default)]
        disabled: bool,
        /// The version that its entry must have, 0 for none; any, if not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected: Option<u64>,
    },
    /// Disables or enables a language, of the ledger or of the nodes' files.
    DisableLanguage {
        /// Its name.
        name: String,
        /// Whether submissions are refused.
        disabled: bool,
        /// As in `SetLanguage`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected: Option<u64>,
    },
    /// Removes what the ledger says of a language: what the nodes' files say holds again.
    RemoveLanguage {
        /// Its name.
        name: String,
        /// As in `SetLanguage`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected: Option<u64>,
    },
    /// Removes finished jobs whose retention is over, in the order in which it is.
    Expire {
        /// At most this many.
        limit: u32,
        /// Also remove those whose retention is over next while finished jobs hold more than this, bytes.
        keep_bytes: u64,
    },
    /// Begins to keep finished jobs in the order of age, or takes more of those into it that had finished before. An earlier
    /// version does not know this command, and stops instead of keeping other records.
    OrderByAge {
        /// At most so many jobs are looked at.
        limit: u32,
    },
    /// Begins to weigh jobs by what their records hold, and to keep those that are still to be delivered in an order of
    /// their own, see [`weight`](crate::weight); or does so for more of those that there were before. Nothing happens as long as
    /// the order of age does not hold all finished jobs. An earlier version does not know this command, and stops instead of
    /// counting in another way.
    Reweigh {
        /// At most so many jobs are looked at.
        limit: u32,
    },
    /// Begins rules for which nothing of what there is has to be changed, if those before them hold for all that there is. A node
    /// stops that does not know them, and an earlier version does not know this command.
    Begin {
        /// Their number.
        rules: u32,
    },
    /// Removes a finished job, and all that was submitted and printed, before its retention is over. An earlier version does not
    /// know this command, and stops instead of keeping the job.
    Purge {
        /// The job.
        job: JobId,
    },
    /// Removes the oldest finished jobs, whatever their retention, while all together hold more than they may: those that are
    /// still to be delivered last, unless they alone hold more than half of that. Does nothing as long as the order of age does
    /// not hold all of them.
    ExpireOldest {
        /// At most this many.
        limit: u32,
        /// Only jobs that have finished by then, Unix milliseconds.
        finished_ms: u64,
        /// What finished jobs may hold, bytes.
        keep_bytes: u64,
    },
}

impl Command {
    /// The command that accepts these jobs, all or none: one that every version knows which would run them alike.
    #[must_use]
    pub fn submit_all(jobs: Vec<Submission>) -> Self {
        if jobs.iter().any(|job| !job.spec.compile_args.is_empty()) {
            Self::SubmitCompiled { jobs }
        } else {
            Self::SubmitAll { jobs }
        }
    }

    /// The command's name, for logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Submit { .. } => "submit",
            Self::SubmitAll { .. } => "submit_all",
            Self::SubmitCompiled { .. } => "submit_compiled",
            Self::Assign { .. } => "assign",
            Self::Complete { .. } => "complete",
            Self::Release { .. } => "release",
            Self::Cancel { .. } => "cancel",
            Self::NodeUp { .. } => "node_up",
            Self::NodeLost { .. } => "node_lost",
            Self::Drain { .. } => "drain",
            Self::Admit { .. } => "admit",
            Self::Remove { .. } => "remove",
            Self::Configure { .. } => "configure",
            Self::CallbackTried { .. } => "callback_tried",
            Self::CallbackAgain { .. } => "callback_again",
            Self::SetLanguage { .. } => "set_language",
            Self::DisableLanguage { .. } => "disable_language",
            Self::RemoveLanguage { .. } => "remove_language",
            Self::Expire { .. } => "expire",
            Self::OrderByAge { .. } => "order_by_age",
            Self::Reweigh { .. } => "reweigh",
            Self::Begin { .. } => "begin",
            Self::Purge { .. } => "purge",
            Self::ExpireOldest { .. } => "expire_oldest",
        }
    }
}

/// One of the jobs of [`Command::SubmitAll`]: what [`Command::Submit`] has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Drawn by the accepting node.
    pub id: JobId,
    /// What is to be run.
    pub spec: JobSpec,
    /// The submitter's retry key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<IdempotencyKey>,
}

/// What became of one of several submissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The job's id: the submitted one, or that of the job that was joined.
    pub job: JobId,
    /// An earlier submission with the same key, or the same id, was found.
    pub joined: bool,
}

/// A submitter's key that makes retries join the first job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// The key.
    pub key: String,
    /// Digest of the request it came with, so that a key is not used for two different jobs.
    pub fingerprint: [u8; 16],
}

/// What became of a command; the same on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The job is in the ledger.
    Submitted {
        /// Its id: the submitted one, or that of the job that was joined.
        job: JobId,
        /// An earlier submission with the same key, or the same id, was found.
        joined: bool,
    },
    /// All the jobs are in the ledger.
    SubmittedAll {
        /// One for each, in their order.
        jobs: Vec<Taken>,
    },
    /// The job was assigned.
    Assigned {
        /// Number of the attempt.
        attempt: u32,
    },
    /// What became of a result, or of an attempt that was given back.
    Completed(Completion),
    /// The job has ended as cancelled.
    Cancelled,
    /// The delivery is due.
    CallbackDue,
    /// The node's announcement or loss was taken; so many attempts went back to the queue or ended.
    Node {
        /// Attempts that the node no longer holds.
        requeued: u32,
    },
    /// The node was let in.
    Admitted {
        /// The id that it has from now on.
        node: NodeId,
    },
    /// The settings hold.
    Configured,
    /// The language is as was asked.
    LanguageSet {
        /// Version of its entry; 0 when it has none.
        version: u64,
    },
    /// The ledger says nothing of the language any more.
    LanguageRemoved,
    /// So many jobs were removed.
    Expired {
        /// Removed jobs.
        jobs: u32,
    },
    /// So many jobs were looked at for the order of age; it holds all once there are none left.
    Ordered {
        /// Jobs that were looked at.
        jobs: u32,
    },
    /// So many jobs were weighed anew; all are once there are none left.
    Reweighed {
        /// Jobs that were looked at.
        jobs: u32,
    },
    /// The rules that hold from now on: those that were to begin, or former ones if these do not hold for everything yet.
    Begun {
        /// Their number.
        rules: u32,
    },
    /// The job is no longer there.
    Purged,
    /// Nothing changed.
    Rejected(Rejection),
}

/// What became of a worker's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Completion {
    /// It was from the current attempt and stands.
    Committed,
    /// The job has another attempt, or has ended without this one; the report was dropped.
    Fenced,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// No such job.
    #[error("no such job")]
    UnknownJob,
    /// No such node.
    #[error("no such node")]
    UnknownNode,
    /// The job already has its result.
    #[error("the job has already finished")]
    AlreadyFinished,
    /// The job has no result yet.
    #[error("the job has not finished")]
    NotFinished,
    /// Somebody is still to be told that the job has finished.
    #[error("the job's callback is still to be delivered")]
    Undelivered,
    /// The idempotency key belongs to a job with another body.
    #[error("the idempotency key was used for job {job} with a different request")]
    KeyConflict {
        /// The job that has the key.
        job: JobId,
    },
    /// As many jobs wait as may.
    #[error("{jobs} jobs are waiting, and {limit} may")]
    QueueFull {
        /// Waiting jobs.
        jobs: u64,
        /// How many may wait.
        limit: u64,
    },
    /// The waiting jobs would hold more than they may.
    #[error("the waiting jobs hold {bytes} bytes, and may hold {limit} together with this one")]
    QueueHeavy {
        /// What they hold, bytes.
        bytes: u64,
        /// What they may hold.
        limit: u64,
    },
    /// The owner has as many jobs without a result as one may.
    #[error("the owner has {jobs} jobs that are not finished, and may have {limit}")]
    OwnerBusy {
        /// Jobs that are not finished.
        jobs: u64,
        /// How many there may be.
        limit: u64,
    },
    /// The owner has as many waiting jobs as fit into the owner's part of the queue.
    #[error("the owner has {jobs} jobs that wait, and may have {limit}")]
    OwnerQueueFull {
        /// Waiting jobs of the owner.
        jobs: u64,
        /// How many there may be.
        limit: u64,
    },
    /// The owner's waiting jobs would hold more than the owner's part of the queue.
    #[error(
        "the owner's waiting jobs hold {bytes} bytes, and may hold {limit} together with this one"
    )]
    OwnerQueueHeavy {
        /// What they hold, bytes.
        bytes: u64,
        /// What they may hold.
        limit: u64,
    },
    /// The node was removed from the cluster; its id is not used again.
    #[error("the node was removed from the cluster")]
    NodeRemoved,
    /// The job is not queued.
    #[error("the job is not queued")]
    NotQueued,
    /// The node has no free slot, is draining or lost, or cannot run the language.
    #[error("the node cannot take the job")]
    NoRoom,
    /// The ledger says nothing of the language.
    #[error("no such language")]
    UnknownLanguage,
    /// The entry of the language is not the one that was to be changed.
    #[error("the language has version {version}")]
    LanguageChanged {
        /// The version that it has; 0 for none.
        version: u64,
    },
    /// A name or an alias belongs to another language.
    #[error("\"{word}\" is a name of the language {language}")]
    NameTaken {
        /// The name.
        word: String,
        /// Whose it is.
        language: String,
    },
    /// As many languages have entries as may.
    #[error("{limit} languages are set, which is the most")]
    TooManyLanguages {
        /// How many may.
        limit: u64,
    },
    /// The job has no callback, has not finished, or its delivery was tried as often as it may be on demand.
    #[error("there is nothing to be sent")]
    NotDeliverable,
    /// A newer process of the node has announced itself.
    #[error("incarnation {current} of the node has announced itself since")]
    StaleIncarnation {
        /// The newest incarnation.
        current: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_the_same_whoever_encodes_its_commands() {
        let commands = [
            Command::Drain {
                node: 3,
                draining: true,
            },
            Command::NodeLost {
                node: 1 << 40,
                incarnation: 7,
            },
            Command::Expire {
                limit: 500,
                keep_bytes: 9,
            },
        ];
        for count in [0, 1, 3, 15, 16, 255, 256, 1_000, 65_535, 65_536] {
            let commands: Vec<_> = commands.iter().cycle().take(count).cloned().collect();
            let encoded: Vec<_> = commands.iter().map(codec::encode).collect();
            let eligible = BTreeSet::from([1, 2, 300]);
            let queue = (count % 2 == 0).then_some(QueueBound {
                jobs: 100_000,
                bytes: 1 << 33,
            });
            let batch = Batch {
                time_ms: 1_700_000_000_000,
                eligible: eligible.clone(),
                queue,
                commands,
            };
            assert!(
                Batch::encode_with(batch.time_ms, eligible, queue, &encoded)
                    == codec::encode(&batch),
                "{count} commands"
            );
        }
    }
}
