//! A job as it goes, event by event, from whichever node answers.
//!
//! The id of the last event says where to go on: when the connection breaks, another node is asked for what comes behind
//! it, and nothing is seen twice.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::{HeaderName, Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::client::{Client, problem, read};
use super::errors::{NoAnswer, Refused};

/// How long no node may answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before a node is asked again.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest event that is put together, bytes.
const MAX_EVENT: usize = 256 << 20;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What it is.
    pub name: String,
    /// Where to go on behind it.
    pub id: Option<String>,
    /// Its data.
    pub data: Value,
}

/// The events of a job.
#[derive(Debug)]
pub struct Events {
    client: Client,
    job: String,
    last: Option<String>,
    body: Option<Incoming>,
    reader: Reader,
    ready: VecDeque<Event>,
    /// Since when there was no word of a node.
    silent: Instant,
    over: bool,
    until_now: bool,
}

impl Events {
    /// A job from its beginning until now, and not what is still to come.
    pub fn until_now(client: &Client, job: &str) -> Self {
        Self {
            until_now: true,
            ..Self::of(client, job)
        }
    }

    /// Follows a job from its beginning.
    pub fn of(client: &Client, job: &str) -> Self {
        Self {
            client: client.clone(),
            job: job.to_owned(),
            last: None,
            body: None,
            reader: Reader::default(),
            ready: VecDeque::new(),
            silent: Instant::now(),
            over: false,
            until_now: false,
        }
    }

    /// The next event; `None` behind the end of the job, or behind all that there is. May be dropped and called again.
    ///
    /// # Errors
    /// When there is no such job, or no node answers for a long time.
    pub async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if event.id.is_some() {
                    self.last.clone_from(&event.id);
                }
                match event.name.as_str() {
                    "finished" | "shown" => self.over = true,
                    "error" => {
                        // The node's own trouble: another one may have none.
                        self.broken(problem(&event.data)).await?;
                        continue;
                    }
                    _ => {}
                }
                return Ok(Some(event));
            }
            if self.over {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                self.open().await?;
                continue;
            };
            match body.frame().await {
                Some(Ok(frame)) => {
                    self.silent = Instant::now();
                    if let Ok(data) = frame.into_data() {
                        self.ready.extend(self.reader.push(&data)?);
                    }
                }
                Some(Err(error)) => self.broken(error.to_string()).await?,
                None => self.broken("the node ended the stream".to_owned()).await?,
            }
        }
    }

    async fn open(&mut self) -> anyhow::Result<()> {
        const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
        let query = if self.until_now { "?follow=false" } else { "" };
        let path = format!("/v1/jobs/{}/events{query}", self.job);
        let last = self.last.as_deref().map(|last| (LAST_EVENT_ID, last));
        let headers = last.as_slice();
        let answer = match self
            .client
            .send_with(Method::GET, &path, None, headers)
            .await
        {
            Ok(answer) => answer,
            Err(error) => return self.broken(format!("{error:#}")).await,
        };
        match answer.status() {
            StatusCode::OK => {
                self.reader = Reader::default();
                self.body = Some(answer.into_body());
            }
            StatusCode::NO_CONTENT => self.over = true,
            status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                let (_, body) = read(answer).await.unwrap_or_default();
                return self.broken(format!("{status}: {}", problem(&body))).await;
            }
            status => {
                let (_, body) = read(answer).await?;
                return Err(Refused::new(status, body).into());
            }
        }
        Ok(())
    }

    /// The connection is of no use any more: the next node is asked after a pause.
    async fn broken(&mut self, reason: String) -> anyhow::Result<()> {
        self.body = None;
        self.ready.clear();
        if self.silent.elapsed() > PATIENCE {
            let words = format!(
                "no node has answered for {} s; job {} may go on: {reason}",
                PATIENCE.as_secs(),
                self.job
            );
            return Err(NoAnswer(words).into());
        }
        self.client.next_node();
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Puts server-sent events together from pieces.
#[derive(Debug, Default)]
pub struct Reader {
    rest: Vec<u8>,
    /// Up to where there is no end of an event.
    looked: usize,
}

impl Reader {
    /// Takes a piece, and gives the events that it completes.
    ///
    /// # Errors
    /// When it is not what a node sends.
    pub fn push(&mut self, data: &[u8]) -> anyhow::Result<Vec<Event>> {
        self.rest.extend_from_slice(data);
        let mut events = Vec::new();
        let mut start = 0;
        while let Some(end) = self.rest[self.looked..]
            .windows(2)
            .position(|two| two == b"\n\n")
        {
            let end = self.looked + end;
            events.extend(event(&self.rest[start..end])?);
            start = end + 2;
            self.looked = start;
        }
        self.rest.drain(..start);
        self.looked = self.rest.len().saturating_sub(1);
        if self.rest.len() > MAX_EVENT {
            bail!("an event of more than {MAX_EVENT} bytes");
        }
        Ok(events)
    }
}

/// An event, unless the block is a comment.
fn event(block: &[u8]) -> anyhow::Result<Option<Event>> {
    let block = std::str::from_utf8(block).context("an event is not UTF-8")?;
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.strip_prefix(' ').unwrap_or(value))
    };
    let (Some(name), Some(data)) = (field("event"), field("data")) else {
        return Ok(None);
    };
    Ok(Some(Event {
        name: name.to_owned(),
        id: field("id").map(ToOwned::to_owned),
        data: serde_json::from_str(data).context("an event is not JSON")?,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = "event: output\nid: 1-1-0\ndata: {\"text\":\"ä\"}\n\n:\n\nevent: finished\ndata: {\"verdict\":\"accepted\"}\n\n".as_bytes();

    #[test]
    fn events_come_whole_however_they_are_cut() {
        for cut in 0..TEXT.len() {
            let mut reader = Reader::default();
            let mut events = reader.push(&TEXT[..cut]).unwrap();
            events.extend(reader.push(&TEXT[cut..]).unwrap());
            let names: Vec<_> = events.iter().map(|event| event.name.as_str()).collect();
            assert_eq!(names, ["output", "finished"]);
            assert_eq!(events[0].id.as_deref(), Some("1-1-0"));
            assert_eq!(events[0].data["text"], "ä");
        }
        let mut reader = Reader::default();
        let one_by_one = TEXT.iter().flat_map(|byte| reader.push(&[*byte]).unwrap());
        assert_eq!(one_by_one.count(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_events_or_an_error(pieces in prop::collection::vec(
            prop_oneof![any::<Vec<u8>>(), "(event: |data: |id: |\n|\n\n|\\{\\}|x){0,12}".prop_map(String::into_bytes)],
            0..8,
        )) {
            let mut reader = Reader::default();
            for piece in pieces {
                if reader.push(&piece).is_err() {
                    break;
                }
            }
        }
    }
}
