//! After the load: every job that was accepted is looked up again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{Method, StatusCode};
use serde::Deserialize;

use super::client::{JobView, Nodes};
use super::mix::number_of;
use super::record::{Accepted, Figures};

/// Jobs that are looked up at one time.
const AT_ONCE: usize = 16;
/// How long a job that has not finished yet is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause before another node is asked.
const PAUSE: Duration = Duration::from_millis(100);
/// Jobs of one page of a list.
const PAGE: usize = 500;
/// Examples of what is wrong.
const EXAMPLES: usize = 5;

/// How much is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The list of the load's jobs: which are there.
    List,
    /// Also each job by its id, once it has finished: what it ended as.
    Each,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Accepted jobs.
    pub accepted: u64,
    /// Jobs that the cluster lists for this load.
    pub listed: u64,
    /// Jobs that were looked up by their id.
    pub looked_up: u64,
    /// Accepted and not there, or not finished.
    pub lost: u64,
    /// There twice: two jobs of one submission.
    pub twice: u64,
    /// Ended in another way than was told before.
    pub changed: u64,
    /// Submissions without an answer that turned out to be accepted.
    pub unknown_there: u64,
    /// Submissions without an answer that turned out not to be.
    pub unknown_not_there: u64,
    /// Examples of what is wrong.
    pub examples: Vec<String>,
}

impl Verified {
    /// Whether everything is as it must be.
    pub fn holds(&self) -> bool {
        self.lost + self.twice + self.changed == 0
    }

    /// Adds what was found after another load.
    pub fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.listed += other.listed;
        self.looked_up += other.looked_up;
        self.lost += other.lost;
        self.twice += other.twice;
        self.changed += other.changed;
        self.unknown_there += other.unknown_there;
        self.unknown_not_there += other.unknown_not_there;
        for example in other.examples {
            self.example(|| example);
        }
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text());
        }
    }
}

#[derive(Deserialize)]
struct Page {
    jobs: Vec<JobView>,
    next_cursor: Option<String>,
}

/// Every job of the load that the cluster lists, by number.
pub async fn listed(nodes: &Nodes, run: &str) -> anyhow::Result<BTreeMap<u64, Vec<JobView>>> {
    let first = format!("/v1/jobs?label={run}&limit={PAGE}");
    let mut path = first.clone();
    let mut found: BTreeMap<u64, Vec<JobView>> = BTreeMap::new();
    loop {
        let page: Page = nodes.get(&path).await?;
        for job in page.jobs {
            if let Some(number) = job.labels().iter().find_map(|label| number_of(label)) {
                found.entry(number).or_default().push(job);
            }
        }
        match page.next_cursor {
            Some(cursor) => path = format!("{first}&cursor={cursor}"),
            None => return Ok(found),
        }
    }
}

/// Compares what the cluster has with what was written down.
pub async fn verify(
    nodes: &Arc<Nodes>,
    run: &str,
    figures: &Figures,
    depth: Depth,
) -> anyhow::Result<Verified> {
    let found = listed(nodes, run).await?;
    let mut verified = compare(figures, &found);
    if depth == Depth::Each {
        look_up(nodes, &figures.accepted, &mut verified).await;
    }
    Ok(verified)
}

fn compare(figures: &Figures, found: &BTreeMap<u64, Vec<JobView>>) -> Verified {
    let mut verified = Verified {
        accepted: figures.accepted.len() as u64,
        listed: found.values().map(|jobs| jobs.len() as u64).sum(),
        ..Verified::default()
    };
    let known: HashMap<u64, uuid::Uuid> = figures
        .accepted
        .iter()
        .map(|job| (job.number, job.id))
        .collect();
    for (number, id) in &known {
        if !found
            .get(number)
            .is_some_and(|jobs| jobs.iter().any(|job| job.id == *id))
        {
            verified.lost += 1;
            verified.example(|| format!("job {number} ({id}) was accepted and is not listed"));
        }
    }
    for (number, jobs) in found {
        if jobs.len() > 1 {
            verified.twice += 1;
            verified.example(|| {
                let ids: Vec<_> = jobs.iter().map(|job| job.id.to_string()).collect();
                format!(
                    "job {number} is there {} times: {}",
                    ids.len(),
                    ids.join(", ")
                )
            });
        }
    }
    let unknown: HashSet<u64> = figures.unknown.iter().copied().collect();
    for number in unknown {
        if found.contains_key(&number) {
            verified.unknown_there += 1;
        } else {
            verified.unknown_not_there += 1;
        }
    }
    verified
}

/// Looks every accepted job up by its id, at one node after the other.
async fn look_up(nodes: &Arc<Nodes>, accepted: &[Accepted], verified: &mut Verified) {
    let found = Mutex::new(std::mem::take(verified));
    let write = || found.lock().unwrap_or_else(PoisonError::into_inner);
    stream::iter(accepted.iter().enumerate())
        .for_each_concurrent(AT_ONCE, |(place, job)| async move {
            let now = ends_as(nodes, place, job.id).await;
            let mut found = write();
            found.looked_up += 1;
            match (now, job.digest) {
                (Ok(now), Some(before)) if now != before => {
                    found.changed += 1;
                    found.example(|| {
                        format!("job {} ({}) has another result now", job.number, job.id)
                    });
                }
                (Ok(_), _) => {}
                (Err(reason), _) => {
                    found.lost += 1;
                    found.example(|| format!("job {} ({}): {reason}", job.number, job.id));
                }
            }
        })
        .await;
    *verified = found.into_inner().unwrap_or_else(PoisonError::into_inner);
}

async fn ends_as(nodes: &Nodes, first: usize, id: uuid::Uuid) -> Result<u64, String> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = "it has not finished".to_owned();
    for turn in first.. {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let path = format!("/v1/jobs/{id}?wait={}", left.as_secs().clamp(1, 60));
        let sent = nodes.send(turn, Method::GET, &path, None, Bytes::new(), left);
        match sent.await {
            Ok(answer) if answer.status.is_success() => {
                let view: JobView = serde_json::from_slice(&answer.body)
                    .map_err(|error| format!("what was answered is not a job: {error}"))?;
                if let Some(finished) = view.finished() {
                    return Ok(finished.digest());
                }
                "it has not finished".clone_into(&mut last);
            }
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => {
                return Err(format!("{} does not know it", nodes.url(turn)));
            }
            Ok(answer) => last = answer.problem().0,
            Err(lost) => lost.text().clone_into(&mut last),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::super::mix::number_label;
    use super::super::record::Record;
    use super::*;

    fn view(number: u64, id: uuid::Uuid) -> JobView {
        let text = format!(
            r#"{{"id":"{id}","labels":["run","{}"]}}"#,
            number_label(number)
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn lost_and_twice_are_found() {
        let ids: Vec<_> = (0..4).map(|_| uuid::Uuid::now_v7()).collect();
        let mut figures = Record::new(Duration::ZERO).figures();
        figures.accepted = (0..3)
            .map(|number| Accepted {
                number,
                id: ids[usize::try_from(number).unwrap()],
                digest: None,
            })
            .collect();
        figures.unknown = vec![7, 8];
        let mut found = BTreeMap::from([
            (0, vec![view(0, ids[0])]),
            (1, vec![view(1, ids[1]), view(1, ids[3])]),
            (7, vec![view(7, uuid::Uuid::now_v7())]),
        ]);
        let verified = compare(&figures, &found);
        assert_eq!((verified.lost, verified.twice), (1, 1));
        assert_eq!((verified.unknown_there, verified.unknown_not_there), (1, 1));
        assert!(!verified.holds());
        assert!(
            verified
                .examples
                .iter()
                .any(|e| e.contains(&ids[2].to_string()))
        );
        // Another job in the place of the one that was accepted.
        found = BTreeMap::from([
            (0, vec![view(0, ids[3])]),
            (1, vec![view(1, ids[1])]),
            (2, vec![view(2, ids[2])]),
        ]);
        assert_eq!(compare(&figures, &found).lost, 1);
    }
}
