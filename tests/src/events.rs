//! Server-sent events of a job, one after the other.

use std::collections::VecDeque;

use reqwest::Method;
use serde_json::Value;

use crate::Client;

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Where to go on behind it.
    pub id: Option<String>,
    /// What it is.
    pub name: String,
    /// Its data.
    pub data: Value,
}

/// A stream of them.
#[derive(Debug)]
pub struct Events {
    response: reqwest::Response,
    rest: String,
    ready: VecDeque<Event>,
}

impl Events {
    /// Follows a job at a node, behind the event with this id.
    ///
    /// # Panics
    /// When the node does not answer with a stream.
    pub async fn open(client: &Client, job: &str, last: Option<&str>) -> Self {
        Self::at(client, &format!("/v1/jobs/{job}/events"), last).await
    }

    /// What there is of a job now, and nothing that comes later.
    ///
    /// # Panics
    /// When the node does not answer with a stream.
    pub async fn until_now(client: &Client, job: &str, last: Option<&str>) -> Self {
        let path = format!("/v1/jobs/{job}/events?follow=false");
        Self::at(client, &path, last).await
    }

    async fn at(client: &Client, path: &str, last: Option<&str>) -> Self {
        let mut request = client.request(Method::GET, path);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.expect("the node answers");
        assert_eq!(response.status(), 200);
        let kind = response.headers().get("content-type");
        assert_eq!(kind.expect("its type"), "text/event-stream");
        Self {
            response,
            rest: String::new(),
            ready: VecDeque::new(),
        }
    }

    /// The next event; `None` when the stream has ended or broken.
    ///
    /// # Panics
    /// When what comes is no event.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let piece = self.response.chunk().await.ok()??;
            self.rest
                .push_str(std::str::from_utf8(&piece).expect("events are UTF-8"));
            while let Some((block, rest)) = self.rest.split_once("\n\n") {
                self.ready.extend(parse(block));
                self.rest = rest.to_owned();
            }
        }
    }

    /// The next event with this name; those before it are left out.
    ///
    /// # Panics
    /// When the stream ends before.
    pub async fn until(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await;
            let event = event.unwrap_or_else(|| panic!("the stream ends without {name}"));
            if event.name == name {
                return event;
            }
        }
    }

    /// All that are left.
    pub async fn rest(&mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

/// An event, unless the block is a comment.
fn parse(block: &str) -> Option<Event> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    Some(Event {
        id: field("id").map(ToOwned::to_owned),
        name: field("event")?.to_owned(),
        data: serde_json::from_str(field("data")?).expect("an event's data"),
    })
}
