//! Following a job: its output while it is printed, wherever it runs, and its end.
//!
//! A follower reads the ledger to learn which attempt runs on which node, and listens to that attempt. When the job has
//! finished, the committed result supplies whatever the follower has not heard. Output that was passed on belongs to
//! one attempt; when another attempt takes over, the follower says so and ends, because the new attempt prints from its
//! beginning again.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use quorun_executor::Stream as Std;
use quorun_ledger::{JobId, JobState, NodeId};
use quorun_proto::v1::{Stream as WireStream, WatchRequest, watch_reply::Event};
use tracing::debug;

use crate::jobs::{Details, Error, Jobs, stream_of};
use crate::watchers::Watch;

/// How long a node may take to answer that it runs the attempt.
const LISTEN_DEADLINE: Duration = Duration::from_secs(12);

/// What a follower is told.
#[derive(Clone, Debug)]
pub enum Followed {
    /// The job's state has changed.
    State {
        /// The new one.
        state: JobState,
        /// The current attempt, 0 before the first.
        attempt: u32,
        /// Who runs it.
        node: Option<NodeId>,
    },
    /// Something was printed.
    Output {
        /// By which attempt.
        attempt: u32,
        /// Where.
        stream: Std,
        /// At which byte of the stream.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// Another attempt has taken over after output was passed on; nothing follows.
    Replaced {
        /// The attempt whose output was passed on.
        attempt: u32,
    },
    /// The job has finished and all of its output was passed on; nothing follows.
    Finished(Box<Details>),
}

type Chunks = std::pin::Pin<Box<dyn Stream<Item = (Std, u64, Bytes)> + Send>>;

struct Follower {
    jobs: Jobs,
    job: JobId,
    watch: Watch,
    /// To be passed on before anything else is looked at.
    ready: VecDeque<Followed>,
    last: Option<(JobState, u32)>,
    /// The attempt that is listened to.
    attempt: u32,
    chunks: Option<Chunks>,
    /// Bytes passed on of stdout and stderr.
    sent: [u64; 2],
    over: bool,
}

pub(crate) fn follow(jobs: Jobs, job: JobId) -> impl Stream<Item = Result<Followed, Error>> + Send {
    let follower = Follower {
        watch: jobs.watch(job),
        jobs,
        job,
        ready: VecDeque::new(),
        last: None,
        attempt: 0,
        chunks: None,
        sent: [0; 2],
        over: false,
    };
    stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        if item.is_err() {
            follower.over = true;
        }
        Some((item, follower))
    })
}

const fn slot(stream: Std) -> usize {
    match stream {
        Std::Stdout => 0,
        Std::Stderr => 1,
    }
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Followed, Error>> {
        let mut look = self.last.is_none();
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(Ok(item));
            }
            if self.over {
                return None;
            }
            if look {
                if let Err(error) = self.look().await {
                    return Some(Err(error));
                }
                look = false;
                continue;
            }
            match &mut self.chunks {
                Some(chunks) => tokio::select! {
                    biased;
                    chunk = chunks.next() => match chunk {
                        Some((stream, offset, data)) => self.print(stream, offset, &data),
                        None => self.chunks = None,
                    },
                    () = self.watch.changed() => look = true,
                },
                None => {
                    self.watch.changed().await;
                    look = true;
                }
            }
        }
    }

    /// Passes on the part of a chunk that was not passed on before.
    fn print(&mut self, stream: Std, offset: u64, data: &Bytes) {
        let sent = &mut self.sent[slot(stream)];
        let known = usize::try_from(sent.saturating_sub(offset)).unwrap_or(usize::MAX);
        if known >= data.len() {
            return;
        }
        let fresh = data.slice(known..);
        let offset = *sent;
        *sent += fresh.len() as u64;
        self.ready.push_back(Followed::Output {
            attempt: self.attempt,
            stream,
            offset,
            data: fresh,
        });
    }

    /// Reads how the job stands.
    async fn look(&mut self) -> Result<(), Error> {
        let Some(details) = self.jobs.local(self.job).await? else {
            if self.last.is_some() {
                return Err(Error::NotFound(self.job)); // expired
            }
            return Ok(()); // not applied on this node yet
        };
        let job = &details.job;
        let replaced = job.attempt != self.attempt || job.state == JobState::Queued;
        if replaced && self.sent != [0; 2] {
            self.ready.push_back(Followed::Replaced {
                attempt: self.attempt,
            });
            self.over = true;
            return Ok(());
        }
        if self.last != Some((job.state, job.attempt)) {
            self.last = Some((job.state, job.attempt));
            self.ready.push_back(Followed::State {
                state: job.state,
                attempt: job.attempt,
                node: job.node,
            });
        }
        match (job.state, job.node) {
            (JobState::Running, Some(node)) if job.attempt != self.attempt => {
                self.chunks = self.listen(node, job.attempt);
                if self.chunks.is_some() {
                    self.attempt = job.attempt;
                }
            }
            (JobState::Finished, _) => {
                self.attempt = job.attempt;
                for stream in [Std::Stdout, Std::Stderr] {
                    let text = stream_of(&details.output, stream).clone();
                    self.print(stream, 0, &text);
                }
                self.ready.push_back(Followed::Finished(Box::new(details)));
                self.over = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Listens to an attempt on its node. Ends early without harm: the result has everything. `None` when it is this
    /// node's and its worker has not heard of it yet, or no longer knows it: either way there will be news of the job.
    fn listen(&self, node: NodeId, attempt: u32) -> Option<Chunks> {
        if node == self.jobs.node() {
            let listener = self.jobs.outputs().listen((self.job, attempt))?;
            return Some(Box::pin(stream::unfold(
                listener,
                |mut listener| async move {
                    let chunk = listener.next().await?;
                    Some(((chunk.stream, chunk.offset, chunk.data), listener))
                },
            )));
        }
        let Some(mut client) = self.jobs.consensus().peer(node) else {
            return Some(Box::pin(stream::empty()));
        };
        let request = WatchRequest {
            job: self.job.to_string(),
            attempt,
        };
        let replies = async move {
            let answer = tokio::time::timeout(LISTEN_DEADLINE, client.watch(request)).await;
            match answer {
                Ok(Ok(reply)) => reply.into_inner().boxed(),
                Ok(Err(status)) => {
                    debug!(
                        node,
                        message = status.message(),
                        "no live output from the node"
                    );
                    stream::empty().boxed()
                }
                Err(_) => stream::empty().boxed(),
            }
        };
        let chunks = stream::once(replies)
            .flatten()
            .take_while(|reply| std::future::ready(reply.is_ok()))
            .filter_map(|reply| {
                std::future::ready(match reply.ok().and_then(|r| r.event) {
                    Some(Event::Output(chunk)) => {
                        let std = match chunk.stream() {
                            WireStream::Stderr => Std::Stderr,
                            WireStream::Stdout | WireStream::Unspecified => Std::Stdout,
                        };
                        Some((std, chunk.offset, chunk.data))
                    }
                    Some(Event::End(_)) | None => None,
                })
            });
        Some(Box::pin(chunks))
    }
}
