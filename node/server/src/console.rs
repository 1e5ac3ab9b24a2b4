//! Who talks to the interactive programs that run on this node.
//!
//! The worker opens a desk for an attempt; whoever wants to talk to it attaches here, through this node or through another
//! one by way of [`Attach`](quorun_proto::v1). Several may at one time: what they say comes in the order in which it
//! arrives. A program that does not read holds up those who write to it, and nobody else.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorun_executor::Interaction;
use quorun_ledger::Terminal;
use tokio::sync::{mpsc, watch};

use crate::output::Attempt;

/// How long a program that somebody may talk to is not started while nobody is there, and how long it is left alone before
/// its stdin ends.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Pieces of stdin that may wait for the program beside what the sandbox takes.
const PIECES: usize = 16;
/// Signals that may wait; more are dropped.
const SIGNALS: usize = 16;

/// What is said to a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// More of its stdin.
    Stdin(Bytes),
    /// The end of its stdin.
    Eof,
    /// A signal for its process group, by number.
    Signal(i32),
    /// The new size of its terminal.
    Size(Terminal),
}

#[derive(Debug)]
struct Console {
    /// `None` after the end of stdin.
    stdin: Mutex<Option<mpsc::Sender<Bytes>>>,
    signals: mpsc::Sender<i32>,
    sizes: watch::Sender<Terminal>,
    /// How many are attached.
    attached: watch::Sender<usize>,
    /// The attempt is over.
    over: watch::Sender<bool>,
}

impl Console {
    fn stdin(&self) -> Option<mpsc::Sender<Bytes>> {
        let stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        stdin.clone()
    }

    fn end_stdin(&self) {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        *stdin = None;
    }
}

/// The interactive attempts that run on this node.
#[derive(Clone, Debug, Default)]
pub struct Consoles {
    open: Arc<Mutex<HashMap<Attempt, Arc<Console>>>>,
    opened: watch::Sender<()>,
}

impl Consoles {
    /// Opens a desk for an attempt whose program has a terminal of this size, if it has one.
    #[must_use]
    pub fn open(&self, attempt: Attempt, terminal: Option<Terminal>) -> (Desk, Interaction) {
        let (to_stdin, stdin) = mpsc::channel(PIECES);
        let (to_signals, signals) = mpsc::channel(SIGNALS);
        let (to_sizes, sizes) = watch::channel(terminal.unwrap_or(Terminal {
            rows: 24,
            columns: 80,
        }));
        let console = Arc::new(Console {
            stdin: Mutex::new(Some(to_stdin)),
            signals: to_signals,
            sizes: to_sizes,
            attached: watch::Sender::new(0),
            over: watch::Sender::new(false),
        });
        self.lock().insert(attempt, Arc::clone(&console));
        self.opened.send_replace(());
        let desk = Desk {
            attempt,
            console,
            consoles: self.clone(),
        };
        let interaction = Interaction {
            stdin,
            signals,
            sizes,
        };
        (desk, interaction)
    }

    /// Attaches to an attempt; `None` when it does not run here, or nobody may talk to it.
    #[must_use]
    pub fn attach(&self, attempt: Attempt) -> Option<Attached> {
        let console = self.lock().get(&attempt).map(Arc::clone)?;
        console.attached.send_modify(|count| *count += 1);
        let over = console.over.subscribe();
        Some(Attached { console, over })
    }

    /// Changes whenever a desk was opened: the ledger says that an attempt runs somewhat before it can be talked to.
    #[must_use]
    pub fn opened(&self) -> watch::Receiver<()> {
        self.opened.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Attempt, Arc<Console>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker's end: the attempt can be talked to as long as it is there.
#[derive(Debug)]
pub struct Desk {
    attempt: Attempt,
    console: Arc<Console>,
    consoles: Consoles,
}

impl Desk {
    /// Returns when somebody is attached, or has not come in time.
    pub async fn somebody_comes(&self) {
        let mut attached = self.console.attached.subscribe();
        let comes = attached.wait_for(|count| *count > 0);
        let _ = tokio::time::timeout(PATIENCE, comes).await;
    }

    /// Ends stdin when nobody has been attached for a while.
    pub async fn watch_over(&self) -> Infallible {
        let mut attached = self.console.attached.subscribe();
        loop {
            // The sender is in the console.
            let _ = attached.wait_for(|count| *count == 0).await;
            let comes = attached.wait_for(|count| *count > 0);
            if tokio::time::timeout(PATIENCE, comes).await.is_err() {
                self.console.end_stdin();
                return std::future::pending().await;
            }
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.consoles.lock().remove(&self.attempt);
        self.console.end_stdin();
        self.console.over.send_replace(true);
    }
}

/// Somebody who talks to a program.
#[derive(Debug)]
pub struct Attached {
    console: Arc<Console>,
    over: watch::Receiver<bool>,
}

impl Attached {
    /// Says something; waits as long as the program does not read what was said before. What is said to a program that
    /// has ended, or to a stdin that has, is lost.
    pub async fn say(&mut self, said: Said) {
        match said {
            Said::Stdin(data) if data.is_empty() => {}
            Said::Stdin(data) => {
                if let Some(stdin) = self.console.stdin() {
                    tokio::select! {
                        _ = stdin.send(data) => {}
                        _ = self.over.wait_for(|over| *over) => {}
                    }
                }
            }
            Said::Eof => self.console.end_stdin(),
            Said::Signal(signal) => {
                let _ = self.console.signals.try_send(signal);
            }
            Said::Size(size) => {
                self.console.sizes.send_replace(size);
            }
        }
    }

    /// Returns when the attempt is over.
    pub async fn over(&mut self) {
        let _ = self.over.wait_for(|over| *over).await;
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.console.attached.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use quorun_ledger::JobId;

    fn attempt() -> Attempt {
        (JobId::new(uuid::Uuid::now_v7()), 1)
    }

    #[tokio::test]
    async fn what_several_say_comes_in_order_until_one_ends_it() {
        let consoles = Consoles::default();
        let attempt = attempt();
        let mut opened = consoles.opened();
        assert!(consoles.attach(attempt).is_none());
        let (desk, mut program) = consoles.open(attempt, None);
        assert!(opened.changed().now_or_never().is_some());
        let mut one = consoles.attach(attempt).unwrap();
        let mut two = consoles.attach(attempt).unwrap();
        one.say(Said::Stdin("a".into())).await;
        two.say(Said::Stdin(Bytes::new())).await;
        two.say(Said::Stdin("b".into())).await;
        two.say(Said::Signal(2)).await;
        let size = Terminal {
            rows: 1,
            columns: 2,
        };
        one.say(Said::Size(size)).await;
        one.say(Said::Eof).await;
        two.say(Said::Stdin("lost".into())).await;
        assert_eq!(program.stdin.recv().await.unwrap(), "a");
        assert_eq!(program.stdin.recv().await.unwrap(), "b");
        assert_eq!(program.stdin.recv().await, None);
        assert_eq!(program.signals.recv().await, Some(2));
        assert_eq!(*program.sizes.borrow(), size);
        assert!(one.over().now_or_never().is_none());
        drop(desk);
        one.over().await;
        assert!(consoles.attach(attempt).is_none());
        one.say(Said::Stdin("nobody".into())).await;
    }

    #[tokio::test]
    async fn who_writes_to_a_program_that_does_not_read_waits_and_signals_overtake() {
        let consoles = Consoles::default();
        let attempt = attempt();
        let (desk, mut program) = consoles.open(attempt, None);
        let mut one = consoles.attach(attempt).unwrap();
        for _ in 0..PIECES {
            one.say(Said::Stdin("x".into())).await;
        }
        assert!(one.say(Said::Stdin("x".into())).now_or_never().is_none());
        for _ in 0..2 * SIGNALS {
            one.say(Said::Signal(15)).await;
        }
        assert_eq!(program.signals.recv().await, Some(15));
        drop(desk);
        one.say(Said::Stdin("x".into())).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_is_left_alone_is_told_that_nothing_comes() {
        let consoles = Consoles::default();
        let attempt = attempt();
        let (desk, mut program) = consoles.open(attempt, None);
        let began = tokio::time::Instant::now();
        desk.somebody_comes().await;
        assert_eq!(began.elapsed(), PATIENCE);
        let one = consoles.attach(attempt).unwrap();
        desk.somebody_comes().await;
        assert_eq!(began.elapsed(), PATIENCE);
        tokio::select! {
            never = desk.watch_over() => match never {},
            () = tokio::time::sleep(10 * PATIENCE) => {}
        }
        assert!(program.stdin.recv().now_or_never().is_none(), "it is open");
        drop(one);
        let left = tokio::time::Instant::now();
        tokio::select! {
            never = desk.watch_over() => match never {},
            end = program.stdin.recv() => assert_eq!(end, None),
        }
        assert_eq!(left.elapsed(), PATIENCE);
    }
}
