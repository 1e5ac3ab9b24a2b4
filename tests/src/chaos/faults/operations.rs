//! What operators do: nodes are replaced, restarted in turn and drained, the leadership is moved.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;

use super::{BACK, LEADERLESS, OPPORTUNITY, Seen, Strike};
use crate::chaos::field::Taken;
use crate::chaos::history::Invariant;
use crate::client::Client;

impl Strike<'_> {
    /// Puts a new node into the place of one that is down for ever.
    pub(super) async fn replace(&mut self, taken: Taken) -> Seen {
        let place = self.nodes[0];
        let name = self.field().replace(place, BACK).await;
        drop(taken);
        match name {
            Ok(name) => Ok(format!("node {name} is in the place of node {place}")),
            Err(why) => {
                let what = format!("no new node in the place of node {place}: {why}");
                self.field().history.violated(Invariant::I10, what.clone());
                Err(what)
            }
        }
    }

    pub(super) async fn rolling_restart(&mut self) -> Seen {
        let field = self.field();
        let began = Instant::now();
        self.struck = Some(began);
        for id in field.ids() {
            let taken = self.take(vec![id]);
            field.node(id).signal(rustix::process::Signal::TERM);
            let last = field.until_ended(id, BACK).await;
            if let Err(why) = last {
                let what = format!("after SIGTERM {why}");
                field.history.violated(Invariant::Processes, what);
                field.node(id).kill();
            }
            self.back(&taken).await?;
        }
        Ok(format!(
            "all nodes, one after the other, in {:?}",
            began.elapsed()
        ))
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Seen {
        let field = self.field();
        let untouched = field.untouched();
        let id = untouched.first().ok_or("no node is free")?;
        let client = field.client(*id, Duration::from_secs(15));
        let mut request = client.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        match Client::try_send(request).await {
            Ok(answer) if answer.status.is_success() => Ok(answer.text()),
            Ok(answer) => Err(format!("{path}: {} {}", answer.status, answer.text())),
            Err(error) => Err(format!("{path}: {error}")),
        }
    }

    pub(super) async fn move_leader(&mut self) -> Seen {
        let field = self.field();
        let leader = field.leader_among(&field.untouched(), LEADERLESS).await?;
        let mut others = field.untouched();
        others.retain(|id| *id != leader);
        let to = *self.random.choice(&others).ok_or("no follower is free")?;
        self.nodes = vec![leader, to];
        self.struck = Some(Instant::now());
        let body = serde_json::json!({ "node": field.name_of(to) });
        self.ask(Method::POST, "/v1/cluster/leader", Some(body))
            .await?;
        let deadline = Instant::now() + OPPORTUNITY;
        while field.leader_among(&field.untouched(), LEADERLESS).await? == leader {
            if Instant::now() >= deadline {
                return Err(format!("node {leader} still leads"));
            }
        }
        Ok(format!("from node {leader} to node {to}"))
    }

    pub(super) async fn drain(&mut self) -> Seen {
        let field = self.field();
        let untouched = field.untouched();
        let id = *self.random.choice(&untouched).ok_or("no node is free")?;
        self.nodes = vec![id];
        let path = format!("/v1/cluster/nodes/{}/drain", field.name_of(id));
        self.struck = Some(Instant::now());
        let draining = |on: bool| Some(serde_json::json!({ "draining": on }));
        self.ask(Method::POST, &path, draining(true)).await?;
        let shown = self.shows_draining(id, true).await;
        let time = self.between(500, 3000);
        tokio::time::sleep(time).await;
        let deadline = Instant::now() + BACK;
        while let Err(why) = self.ask(Method::POST, &path, draining(false)).await {
            if Instant::now() >= deadline {
                return Err(why);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        shown?;
        self.shows_draining(id, false).await?;
        Ok(format!("node {id} for {time:?}"))
    }

    async fn shows_draining(&self, id: u64, draining: bool) -> Result<(), String> {
        let field = self.field();
        let deadline = Instant::now() + OPPORTUNITY;
        loop {
            for at in field.untouched() {
                let shown = field.shows(at).await.unwrap_or_default();
                let nodes = shown["nodes"].as_array().cloned().unwrap_or_default();
                if nodes
                    .iter()
                    .any(|node| node["id"] == field.name_of(id) && node["draining"] == draining)
                {
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "nobody shows that draining of node {id} is {draining}"
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
