//! Messages are held, late or lost.

use std::time::{Duration, Instant};

use reqwest::Method;

use super::{LEADERLESS, OPPORTUNITY, Seen, Strike};
use crate::chaos::field::Taken;
use crate::chaos::history::{Invariant, Program};
use crate::chaos::workload;
use crate::client::Client;

impl Strike<'_> {
    /// Cuts a node off both ways. While it is, it must acknowledge nothing.
    pub(super) async fn isolate(&mut self, taken: Taken) -> Seen {
        let field = self.field();
        let id = self.nodes[0];
        let reset = self.random.bool();
        let others: Vec<u64> = field
            .ids()
            .into_iter()
            .filter(|other| *other != id)
            .collect();
        let ways: Vec<(u64, u64)> = others
            .iter()
            .flat_map(|other| [(id, *other), (*other, id)])
            .collect();
        let before = self.hits(&ways);
        self.struck = Some(Instant::now());
        for (from, to) in &ways {
            let change = |weather: &mut crate::proxy::Weather| weather.reset = reset;
            field.network.set(*from, *to, change);
        }
        field.network.cut(&ways, true);
        let least = self.between(200, 2500);
        let began = Instant::now();
        // Once the others have a leader, this one's lease is over, if it had one.
        let reached: Vec<u64> = others
            .into_iter()
            .filter(|other| field.untouched().contains(other))
            .collect();
        let elected = field.leader_among(&reached, LEADERLESS).await;
        let probes = self.probe(id).await;
        if let Some(left) = least.checked_sub(began.elapsed()) {
            tokio::time::sleep(left).await;
        }
        let hits = self.hits(&ways) - before;
        field.network.cut(&ways, false);
        for (from, to) in &ways {
            field
                .network
                .set(*from, *to, |weather| weather.reset = false);
        }
        self.back(&taken).await?;
        elected?;
        if hits == 0 {
            return Err("nothing was sent where it was cut".to_owned());
        }
        Ok(format!(
            "node {id} cut off for {:?}, {hits} chunks held, {probes}",
            began.elapsed()
        ))
    }

    /// Asks a node that is cut off to accept something, which it must not.
    async fn probe(&self, id: u64) -> String {
        let field = self.field();
        let client = field.client(id, Duration::from_secs(1));
        let body = workload::body("probe", Program::Echo, &self.scene.witness);
        let mut answers = Vec::new();
        for _ in 0..2 {
            let request = client.request(Method::POST, "/v1/jobs").json(&body);
            match Client::try_send(request).await {
                Ok(answer) if answer.status.is_success() => {
                    let what = format!("node {id} is cut off and has accepted {}", answer.text());
                    field.history.violated(Invariant::I8, what);
                }
                Ok(answer) => answers.push(answer.status.to_string()),
                Err(_) => answers.push("no answer".to_owned()),
            }
        }
        format!("asked to accept: {}", answers.join(", "))
    }

    fn hits(&self, ways: &[(u64, u64)]) -> u64 {
        let network = &self.scene.field.network;
        ways.iter().map(|(from, to)| network.hit(*from, *to)).sum()
    }

    pub(super) async fn one_way(&mut self) -> Seen {
        let field = self.field();
        let untouched = field.untouched();
        let id = *self.random.choice(&untouched).ok_or("no node is free")?;
        let taken = self.take_one(id)?;
        let outwards = self.random.bool();
        let ways: Vec<(u64, u64)> = field
            .network
            .pairs()
            .into_iter()
            .filter(|(from, to)| *(if outwards { from } else { to }) == id)
            .collect();
        let before = self.hits(&ways);
        self.struck = Some(Instant::now());
        field.network.cut(&ways, true);
        let time = self.between(500, 3000);
        tokio::time::sleep(time).await;
        let hits = self.hits(&ways) - before;
        field.network.cut(&ways, false);
        self.back(&taken).await?;
        if hits == 0 {
            return Err("nothing was sent where it was cut".to_owned());
        }
        let who = if outwards {
            "is not heard"
        } else {
            "hears nobody"
        };
        Ok(format!("node {id} {who} for {time:?}, {hits} chunks held"))
    }

    pub(super) async fn bridge(&mut self) -> Seen {
        let field = self.field();
        let mut ids = field.ids();
        if ids.len() < 5 {
            return Err("a bridge needs five nodes".to_owned());
        }
        self.random.shuffle(&mut ids);
        let (left, right) = (ids[..2].to_vec(), ids[3..].to_vec());
        let taken = self.take(ids.clone());
        let ways: Vec<(u64, u64)> = left
            .iter()
            .flat_map(|a| right.iter().flat_map(move |b| [(*a, *b), (*b, *a)]))
            .collect();
        let before = self.hits(&ways);
        self.struck = Some(Instant::now());
        field.network.cut(&ways, true);
        let time = self.between(1000, 5000);
        tokio::time::sleep(time).await;
        let hits = self.hits(&ways) - before;
        field.network.cut(&ways, false);
        self.back(&taken).await?;
        if hits == 0 {
            return Err("nothing was sent where it was cut".to_owned());
        }
        Ok(format!(
            "{left:?} and {right:?} met only in {} for {time:?}, {hits} chunks held",
            ids[2]
        ))
    }

    /// Makes some ways slow, or lossy.
    pub(super) async fn weather(&mut self, delay: bool) -> Seen {
        let field = self.field();
        let mut ways = field.network.pairs();
        self.random.shuffle(&mut ways);
        ways.truncate(self.random.usize(1..=field.ids().len()));
        let (late, loss) = (self.between(50, 300), self.random.u16(10..=50));
        let before = self.hits(&ways);
        self.struck = Some(Instant::now());
        for (from, to) in &ways {
            field.network.set(*from, *to, |weather| {
                if delay {
                    weather.delay = late;
                } else {
                    weather.loss = loss;
                }
            });
        }
        let least = self.between(1000, 4000);
        let began = Instant::now();
        // A lossy way must have lost something.
        while began.elapsed() < least
            || (self.hits(&ways) == before && began.elapsed() < OPPORTUNITY)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let hits = self.hits(&ways) - before;
        for (from, to) in &ways {
            field.network.set(*from, *to, |weather| {
                if delay {
                    weather.delay = Duration::ZERO;
                } else {
                    weather.loss = 0;
                }
            });
        }
        if hits == 0 {
            return Err("nothing was sent there".to_owned());
        }
        let what = if delay {
            format!("{late:?} late")
        } else {
            format!("{}.{} % lost", loss / 10, loss % 10)
        };
        Ok(format!(
            "{ways:?} {what} for {:?}, {hits} chunks",
            began.elapsed()
        ))
    }
}
