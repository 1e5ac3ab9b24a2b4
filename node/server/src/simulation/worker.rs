//! The worker of a simulated node: what the product's worker and membership do, without sandboxes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use quorun_consensus::{Handle, Notice, ProposeError};
use quorun_ledger::{
    Command, Event, JobId, JobResult, JobState, NodeId, Outcome, Output, Rejection, Reply, Verdict,
};
use quorun_proto::v1::{HeartbeatRequest, NodeReport};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::history::Shared;
use crate::liveness::Liveness;

pub(super) const SLOTS: u32 = 2;
pub(super) const LANGUAGE: &str = "python";
const PROPOSAL: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(2);

pub(super) struct Worker {
    pub(super) node: NodeId,
    pub(super) incarnation: u64,
    pub(super) consensus: Handle,
    pub(super) liveness: Liveness,
    pub(super) node_timeout: Duration,
    pub(super) history: Shared,
    pub(super) running: RefCell<BTreeMap<JobId, (u32, CancellationToken)>>,
    pub(super) announced: Cell<bool>,
    pub(super) announce: Notify,
}

impl Worker {
    const fn process(&self) -> (NodeId, u64) {
        (self.node, self.incarnation)
    }

    /// Acts on what the ledger says.
    pub(super) async fn follow(self: Rc<Self>, mut notices: mpsc::UnboundedReceiver<Notice>) {
        while let Some(notice) = notices.recv().await {
            match notice {
                Notice::Events(events, _) => {
                    for event in events {
                        self.event(&event);
                    }
                }
                Notice::Reset | Notice::Resumed => self.reset(),
            }
        }
    }

    fn event(self: &Rc<Self>, event: &Event) {
        match *event {
            Event::Queued { .. } => {}
            Event::Assigned {
                job,
                attempt,
                node,
                incarnation,
            } => {
                let to = (node, incarnation);
                self.history
                    .borrow_mut()
                    .assigned(self.process(), job, attempt, to);
                if to == self.process() {
                    self.start(job, attempt);
                }
            }
            Event::Revoked { job, attempt, node } => {
                if node == self.node
                    && let Some((running, cancel)) = self.running.borrow().get(&job)
                    && *running == attempt
                {
                    cancel.cancel();
                }
            }
            Event::Finished { job } => {
                let view = self.consensus.view();
                if let (Ok(Some(record)), Ok(output)) = (view.job(job), view.output(job)) {
                    let stdout = output.unwrap_or_default().stdout;
                    let stdout = String::from_utf8_lossy(&stdout);
                    self.history.borrow_mut().finished(&record, &stdout);
                }
            }
            Event::LanguagesChanged | Event::SettingsChanged | Event::CallbackDue { .. } => {}
            Event::NodeChanged { node } => {
                self.liveness.node_changed(node);
                if node == self.node {
                    self.look_at_itself();
                }
            }
        }
    }

    fn look_at_itself(&self) {
        let record = self.consensus.view().node(self.node).ok().flatten();
        let current = record.is_some_and(|r| r.incarnation == self.incarnation && !r.lost);
        self.announced.set(current);
        if !current {
            self.announce.notify_one();
        }
    }

    /// Events were skipped: the ledger itself says what is to run.
    fn reset(self: &Rc<Self>) {
        self.look_at_itself();
        let view = self.consensus.view();
        let mut wanted = BTreeMap::new();
        let current = view.node(self.node).ok().flatten();
        if current.is_some_and(|node| node.incarnation == self.incarnation) {
            for (job, attempt) in view.attempts(self.node).unwrap_or_default() {
                let record = view.job(job).ok().flatten();
                if record.is_some_and(|record| record.state == JobState::Running) {
                    wanted.insert(job, attempt);
                } else if !self.running.borrow().contains_key(&job) {
                    let this = Rc::clone(self);
                    tokio::task::spawn_local(async move {
                        let reason = "cancelled before it was started".to_owned();
                        let node = this.node;
                        this.report(Command::Release {
                            job,
                            attempt,
                            node,
                            reason,
                        })
                        .await;
                    });
                }
            }
        }
        for (job, (attempt, cancel)) in self.running.borrow().iter() {
            if wanted.get(job) != Some(attempt) {
                cancel.cancel();
            }
        }
        for (job, attempt) in wanted {
            self.start(job, attempt);
        }
    }

    fn start(self: &Rc<Self>, job: JobId, attempt: u32) {
        let cancel = CancellationToken::new();
        {
            let mut running = self.running.borrow_mut();
            if running
                .get(&job)
                .is_some_and(|(known, _)| *known >= attempt)
            {
                return;
            }
            if let Some((_, old)) = running.insert(job, (attempt, cancel.clone())) {
                old.cancel();
            }
        }
        let this = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let result = this.execute(job, attempt, &cancel).await;
            this.report(Command::Complete {
                job,
                attempt,
                node: this.node,
                result,
            })
            .await;
            let mut running = this.running.borrow_mut();
            if running
                .get(&job)
                .is_some_and(|(known, _)| *known == attempt)
            {
                running.remove(&job);
            }
        });
    }

    /// Takes up to a second, and some up to four, so that others can have taken them over before they end. What is printed
    /// says who has printed it.
    async fn execute(&self, job: JobId, attempt: u32, cancel: &CancellationToken) -> JobResult {
        let last = job.as_bytes()[15];
        let each = if job.as_bytes()[14].is_multiple_of(8) {
            16
        } else {
            4
        };
        let time = Duration::from_millis(5 + u64::from(last.wrapping_mul(attempt as u8)) * each);
        tokio::select! {
            biased;
            () = cancel.cancelled() => JobResult {
                outcome: Outcome::without_run(Verdict::Cancelled, "cancelled"),
                output: Output::default(),
            },
            () = tokio::time::sleep(time) => {
                let printed = format!("{job} {attempt} {} {}", self.node, self.incarnation);
                self.history
                    .borrow_mut()
                    .executed(self.process(), job, attempt, printed.clone());
                JobResult {
                    outcome: Outcome {
                        verdict: Verdict::Accepted,
                        exit_code: Some(0),
                        message: None,
                        ..Outcome::without_run(Verdict::Accepted, "")
                    },
                    output: Output {
                        stdout: Bytes::from(printed),
                        ..Output::default()
                    },
                }
            }
        }
    }

    /// Proposes a report until it is answered.
    async fn report(&self, command: Command) {
        loop {
            let deadline = Instant::now() + PROPOSAL;
            match self.consensus.propose(command.clone(), deadline).await {
                Ok(_) | Err(ProposeError::Stopped) => return,
                Err(_) => {}
            }
        }
    }

    /// Announces this process whenever that is due.
    pub(super) async fn announce(self: Rc<Self>) {
        loop {
            self.announce.notified().await;
            loop {
                let command = Command::NodeUp {
                    node: self.node,
                    incarnation: self.incarnation,
                    http: String::new(),
                    slots: SLOTS,
                    languages: [LANGUAGE.to_owned()].into(),
                    version: String::new(),
                };
                match self
                    .consensus
                    .propose(command, Instant::now() + PROPOSAL)
                    .await
                {
                    Ok(Reply::Rejected(Rejection::StaleIncarnation { current })) => {
                        self.history.borrow_mut().wrong(format!(
                            "{:?} was told that {current} has announced itself",
                            self.process()
                        ));
                        return;
                    }
                    Ok(_) => break,
                    Err(ProposeError::Stopped) => return,
                    Err(_) => {}
                }
            }
        }
    }

    /// Reports to the leader that this node lives.
    pub(super) async fn live(self: Rc<Self>) {
        let mut status = self.consensus.status();
        let mut tick = tokio::time::interval(self.node_timeout / 5);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leader = None;
        loop {
            tokio::select! {
                biased;
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = status.borrow_and_update().leader;
                    if now == leader {
                        continue;
                    }
                    leader = now;
                }
                _ = tick.tick() => {}
            }
            self.beat().await;
            if !self.announced.get() && leader.is_some() {
                self.announce.notify_one();
            }
        }
    }

    async fn beat(&self) {
        let (leading, leader, applied) = {
            let status = self.consensus.status();
            let status = status.borrow();
            (status.leading, status.leader, status.applied_index)
        };
        let report = NodeReport {
            id: self.node,
            incarnation: self.incarnation,
            ready: true,
            applied_index: applied,
            rules: quorun_ledger::RULES,
            ..NodeReport::default()
        };
        if leading {
            self.liveness.heard(report);
            return;
        }
        let Some(mut client) = leader.and_then(|id| self.consensus.peer(id)) else {
            return;
        };
        let request = HeartbeatRequest {
            report: Some(report),
        };
        if let Ok(Ok(reply)) = tokio::time::timeout(HEARTBEAT, client.heartbeat(request)).await {
            let reply = reply.into_inner();
            if reply.is_leader {
                self.liveness.told(reply.peers);
            }
        }
    }
}
