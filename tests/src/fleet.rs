//! A client that gives up on a node, but never on its job: it goes on at another node with the same Idempotency-Key.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;

use crate::client::Client;

/// Pause before the next node is asked.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one request may wait for the job's end, seconds.
const WAIT_S: u64 = 10;
/// How long one request may take: a node that hangs is as good as one that is gone.
const PATIENCE: Duration = Duration::from_secs(WAIT_S + 10);

/// Posts a job and comes back with its end, asking the nodes in turn from the one at `first`.
///
/// # Errors
/// When the job is refused for what it is, or has not ended by the deadline.
pub async fn finish(
    nodes: &[Client],
    first: usize,
    key: &str,
    job: &Value,
    deadline: Instant,
) -> Result<Value, String> {
    let mut last = "no node was asked".to_owned();
    for turn in first.. {
        if Instant::now() >= deadline {
            break;
        }
        let node = nodes[turn % nodes.len()].patience(PATIENCE);
        let request = node
            .request(Method::POST, &format!("/v1/jobs?wait={WAIT_S}"))
            .header("Idempotency-Key", key)
            .json(job);
        match Client::try_send(request).await {
            Ok(answer) if answer.status == 200 => return Ok(answer.json()),
            Ok(answer) if matches!(answer.status.as_u16(), 202 | 429 | 503) => {
                last = format!("{}: {}", node.url(), answer.text());
            }
            Ok(answer) => return Err(format!("{}: {}", answer.status, answer.text())),
            Err(error) => last = format!("{}: {error}", node.url()),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(format!("not finished in time; the last answer: {last}"))
}
