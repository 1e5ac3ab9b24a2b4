//! Following a job: its output while it is printed, wherever it runs, and its end.
//!
//! A follower reads the ledger to learn which attempt runs on which node, and listens to that attempt. When the job has
//! finished, the committed result supplies whatever the follower has not heard. What was passed on belongs to one attempt;
//! when another attempt takes over, the follower says so and goes on with what that one does, from its beginning. Where a
//! follower stands is said with everything that it is told (`resume`), so that it can go on from there at any node.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use quorun_executor::{CaseEnded, Chunk, Stream as Std};
use quorun_ledger::{JobId, JobState, NodeId, TestResult, codec};
use quorun_proto::v1::{Stream as WireStream, WatchRequest, watch_reply::Event};
use tokio::time::Instant;
use tracing::debug;

use crate::jobs::{Details, Error, Jobs, stream_of};
use crate::output::Piece;
use crate::resume::{self, Heard, Position, Replaced};
use crate::watchers::Watch;

/// How long a node may take to answer that it runs the attempt.
const LISTEN_DEADLINE: Duration = Duration::from_secs(12);
/// How soon an attempt is listened to again when its node sends no more, although there is no news of the job.
const LISTEN_AGAIN: Duration = Duration::from_millis(500);

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
    /// A test case has ended.
    Case {
        /// In which attempt.
        attempt: u32,
        /// Which, from 0.
        index: u32,
        /// How; nothing of what the program printed is in it.
        result: Box<TestResult>,
    },
    /// What was passed on so far is void: another attempt counts, from its beginning.
    Replaced(Replaced),
    /// The job has finished and all of its output was passed on; nothing follows.
    Finished(Box<Details>),
    /// The job goes on, and all was passed on that there is; nothing follows for who wanted no more.
    Shown {
        /// The current attempt, 0 before the first.
        attempt: u32,
    },
}

/// Something that a follower is told, and where it stands then.
pub type Told = (Followed, Position);

/// How long a job is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// To its end.
    End,
    /// Only until all has been told that there is.
    Now,
}

/// What the node says that runs an attempt.
enum Live {
    Piece(Box<Piece>),
    /// It has said all that there is, and the attempt goes on.
    Shown,
}

type Pieces = Pin<Box<dyn Stream<Item = Live> + Send>>;

struct Follower {
    jobs: Jobs,
    job: JobId,
    watch: Watch,
    /// To be passed on before anything else is looked at.
    ready: VecDeque<Told>,
    heard: Heard,
    until: Until,
    last: Option<(JobState, u32)>,
    /// What the current attempt does.
    pieces: Option<Pieces>,
    /// The attempt that is listened to, or was.
    listening: u32,
    /// When to try again to listen to it.
    again: Option<Instant>,
    over: bool,
}

pub(crate) fn follow(
    jobs: Jobs,
    job: JobId,
    heard: Heard,
    until: Until,
) -> impl Stream<Item = Result<Told, Error>> + Send {
    let follower = Follower {
        watch: jobs.watch(job),
        jobs,
        job,
        ready: VecDeque::new(),
        heard,
        until,
        last: None,
        pieces: None,
        listening: 0,
        again: None,
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

/// The next of what there may be; never ends when there is nothing to wait for.
async fn next(pieces: &mut Option<Pieces>) -> Option<Live> {
    match pieces {
        Some(pieces) => pieces.next().await,
        None => std::future::pending().await,
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Told, Error>> {
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
            tokio::select! {
                biased;
                piece = next(&mut self.pieces) => match piece {
                    Some(Live::Piece(piece)) => match *piece {
                        Piece::Output(chunk) => {
                            self.print(chunk.stream, chunk.offset, &chunk.data);
                        }
                        Piece::Case(case) => self.case(case.index, case.result),
                    },
                    Some(Live::Shown) => self.shown(),
                    None => {
                        self.pieces = None;
                        // It may be over, or only the way to its node.
                        self.again = Some(Instant::now() + LISTEN_AGAIN);
                    }
                },
                () = self.watch.changed() => look = true,
                () = until(self.again) => {
                    self.again = None;
                    self.listening = 0;
                    look = true;
                }
            }
        }
    }

    fn tell(&mut self, what: Followed) {
        self.ready.push_back((what, self.heard.position()));
    }

    /// Passes on the part of a chunk that was not passed on before.
    fn print(&mut self, stream: Std, offset: u64, data: &Bytes) {
        if let Some((offset, data)) = self.heard.print(stream, offset, data) {
            let attempt = self.heard.position().attempt;
            self.tell(Followed::Output {
                attempt,
                stream,
                offset,
                data,
            });
        }
    }

    fn case(&mut self, index: u32, result: TestResult) {
        if self.heard.case(index) {
            let attempt = self.heard.position().attempt;
            self.tell(Followed::Case {
                attempt,
                index,
                result: Box::new(result),
            });
        }
    }

    /// There is no more for somebody who wants no more than there is.
    fn shown(&mut self) {
        let attempt = self.heard.position().attempt;
        self.tell(Followed::Shown { attempt });
        self.over = true;
    }

    /// Reads how the job stands.
    async fn look(&mut self) -> Result<(), Error> {
        let details = match self.jobs.local(self.job).await? {
            None if self.last.is_none() => {
                // Not applied on this node yet, or purged before the first look.
                self.jobs.linearize().await?;
                self.jobs.local(self.job).await?
            }
            details => details, // none if it has expired
        };
        let Some(details) = details else {
            return Err(Error::NotFound(self.job));
        };
        let job = &details.job;
        let attempt = resume::current(job.state, job.attempt);
        if attempt != self.heard.position().attempt {
            self.pieces = None;
        }
        if let Some(replaced) = self.heard.turn_to(attempt) {
            self.tell(Followed::Replaced(replaced));
        }
        if self.last != Some((job.state, job.attempt)) {
            self.last = Some((job.state, job.attempt));
            self.tell(Followed::State {
                state: job.state,
                attempt: job.attempt,
                node: job.node,
            });
        }
        match (job.state, job.node) {
            (JobState::Queued, _) if self.until == Until::Now => self.shown(),
            (JobState::Running, Some(node)) if job.attempt != self.listening => {
                self.pieces = self.listen(node);
                if self.pieces.is_some() {
                    self.listening = job.attempt;
                    self.again = None;
                }
            }
            (JobState::Finished, _) => {
                for stream in [Std::Stdout, Std::Stderr] {
                    let text = stream_of(&details.output, stream).clone();
                    self.print(stream, 0, &text);
                }
                for (index, test) in (0..).zip(&details.output.tests) {
                    let printed = Bytes::new();
                    let result = TestResult {
                        stdout: printed.clone(),
                        stderr: printed,
                        ..test.clone()
                    };
                    self.case(index, result);
                }
                self.heard.end();
                self.tell(Followed::Finished(Box::new(details)));
                self.over = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Listens to the current attempt on its node. Ends early without harm: the result has everything. `None` when it is
    /// this node's and its worker has not heard of it yet, or no longer knows it: either way there will be news of the job.
    fn listen(&self, node: NodeId) -> Option<Pieces> {
        let from = self.heard.position();
        if node == self.jobs.node() {
            let attempt = (self.job, from.attempt);
            let mut listener = self.jobs.outputs().listen(attempt, from)?;
            if self.until == Until::Now {
                listener = listener.until_now();
            }
            let pieces = stream::unfold(Some(listener), |listener| async move {
                let mut listener = listener?;
                match listener.next().await {
                    Some(piece) => Some((Live::Piece(Box::new(piece)), Some(listener))),
                    None if listener.has_shown() => Some((Live::Shown, None)),
                    None => None,
                }
            });
            return Some(Box::pin(pieces));
        }
        let Some(mut client) = self.jobs.consensus().peer(node) else {
            return Some(Box::pin(stream::empty()));
        };
        let request = WatchRequest {
            job: self.job.to_string(),
            attempt: from.attempt,
            stdout_from: from.heard[0],
            stderr_from: from.heard[1],
            tests_from: from.cases,
            until_now: self.until == Until::Now,
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
        let pieces = stream::once(replies)
            .flatten()
            .take_while(|reply| std::future::ready(reply.is_ok()))
            .filter_map(|reply| {
                let event = reply.ok().and_then(|reply| reply.event);
                std::future::ready(event.and_then(live))
            });
        Some(Box::pin(pieces))
    }
}

/// What a peer has passed on. What cannot be made out is left out.
fn live(event: Event) -> Option<Live> {
    let piece = match event {
        Event::Output(chunk) => {
            let stream = match chunk.stream() {
                WireStream::Stderr => Std::Stderr,
                WireStream::Stdout | WireStream::Unspecified => Std::Stdout,
            };
            Piece::Output(Chunk {
                stream,
                offset: chunk.offset,
                data: chunk.data,
            })
        }
        Event::Test(test) => Piece::Case(CaseEnded {
            index: test.index,
            result: codec::decode(&test.result).ok()?,
        }),
        Event::Shown(_) => return Some(Live::Shown),
        Event::End(_) => return None,
    };
    Some(Live::Piece(Box::new(piece)))
}
