//! No execution at all: what the cluster around it can do is measured with this.

use quorun_ledger::job::{JobResult, Outcome, Output, Verdict};

/// What every job gets as its message, so that nobody takes its result for one.
const MESSAGE: &str = "nothing was executed: the node has the no-op executor";

/// The result of every attempt: accepted, without output.
pub(crate) fn result() -> JobResult {
    let mut outcome = Outcome::without_run(Verdict::Accepted, MESSAGE);
    outcome.exit_code = Some(0);
    JobResult {
        outcome,
        output: Output::default(),
    }
}

#[cfg(test)]
mod tests {
    use quorun_ledger::job;
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{Health, Kind, Labels, Options};

    #[tokio::test]
    async fn every_job_is_accepted_says_that_nothing_was_executed_and_takes_no_sandbox() {
        let folder = tempfile::tempdir().unwrap();
        let labels = Labels {
            cluster: "noop".into(),
            node: 1,
            incarnation: 1,
        };
        let mut options = Options::new(Kind::Noop, 2, labels, folder.path().to_path_buf());
        options.images = vec![("image:1".into(), 1024)];
        let (executor, upkeep) = crate::start(options).unwrap();
        tokio::spawn(upkeep);
        let mut health = executor.health();
        health.wait_for(|h| *h == Health::Ready).await.unwrap();
        let task = crate::task::tests::task(job::Limits::default());
        let (output, mut printed) = mpsc::channel(1);
        let done = executor.execute(task, output, CancellationToken::new());
        let done = done.await.unwrap();
        assert_eq!(done.outcome.verdict, Verdict::Accepted);
        assert_eq!(done.outcome.message.as_deref(), Some(MESSAGE));
        assert_eq!(done.output, Output::default());
        assert!(printed.recv().await.is_none(), "nothing was printed");
        assert!(executor.sandboxes().values().all(|count| *count == 0));
        executor.shutdown().await;
    }
}
