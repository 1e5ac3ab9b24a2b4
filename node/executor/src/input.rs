//! What is said to a program while it runs: stdin, its end, signals, and the size of its terminal.

use bytes::Bytes;
use quorun_ledger::job::Terminal;
use quorun_warden::protocol::{MAX_OUTPUT, Request, WindowSize};
use tokio::sync::{mpsc, watch};

/// Bytes of stdin that may be on their way to a program. A program that does not read holds up whoever writes to it, not
/// the node and not the sandbox.
const WINDOW: u64 = 256 << 10;

/// The receiving ends of what a running program is told.
#[derive(Debug)]
pub struct Interaction {
    /// Its stdin, after what came with the job. The end of the channel is the end of its stdin.
    pub stdin: mpsc::Receiver<Bytes>,
    /// Signals for its process group, by number. They do not wait for stdin.
    pub signals: mpsc::Receiver<i32>,
    /// The size of its terminal, if it has one: every change of it.
    pub sizes: watch::Receiver<Terminal>,
}

/// The way of what is said, from its channels to the warden.
#[derive(Debug, Default)]
pub(crate) struct Input {
    stdin: Option<mpsc::Receiver<Bytes>>,
    signals: Option<mpsc::Receiver<i32>>,
    sizes: Option<watch::Receiver<Terminal>>,
    /// What does not fit into one frame.
    rest: Bytes,
    /// Bytes that the warden was sent and has not given to the program.
    on_the_way: u64,
    /// Something was taken from a channel, and cannot be said again.
    used: bool,
}

impl Input {
    /// Nothing will be said: stdin is what came with the job.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// The program's stdin stays open after what came with the job.
    pub(crate) fn is_open(&self) -> bool {
        self.stdin.is_some()
    }

    /// Part of it is gone: another try at the job would run with less.
    pub(crate) fn is_used(&self) -> bool {
        self.used
    }

    /// The next thing to say to the warden; never ends when there is nothing. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Request {
        let Self {
            stdin,
            signals,
            sizes,
            rest,
            on_the_way,
            ..
        } = self;
        let request = tokio::select! {
            biased;
            signal = receive(signals) => Request::Signal { signal },
            // Nothing is lost with it: another try at the job begins with the size that it has then.
            size = changed(sizes) => return Request::Resize { size: window_size(size) },
            more = more(stdin, rest), if *on_the_way < WINDOW => {
                *rest = more.unwrap_or_default();
                if rest.is_empty() {
                    Request::CloseStdin
                } else {
                    let data = rest.split_to(rest.len().min(MAX_OUTPUT)).to_vec();
                    *on_the_way += data.len() as u64;
                    Request::Stdin { data }
                }
            }
        };
        self.used = true;
        request
    }

    /// The warden has passed on so many bytes.
    pub(crate) fn fed(&mut self, bytes: u64) {
        self.on_the_way = self.on_the_way.saturating_sub(bytes);
    }
}

impl From<Interaction> for Input {
    fn from(interaction: Interaction) -> Self {
        Self {
            stdin: Some(interaction.stdin),
            signals: Some(interaction.signals),
            sizes: Some(interaction.sizes),
            ..Self::default()
        }
    }
}

/// What is left of stdin, or the next piece of it; `None`, once, at its end.
async fn more(stdin: &mut Option<mpsc::Receiver<Bytes>>, rest: &mut Bytes) -> Option<Bytes> {
    if !rest.is_empty() {
        return Some(std::mem::take(rest));
    }
    loop {
        let Some(channel) = stdin else {
            return std::future::pending().await;
        };
        match channel.recv().await {
            Some(data) if data.is_empty() => {}
            Some(data) => return Some(data),
            None => {
                *stdin = None;
                return None;
            }
        }
    }
}

/// The next of a channel that may have ended.
async fn receive<T>(channel: &mut Option<mpsc::Receiver<T>>) -> T {
    if let Some(open) = channel {
        if let Some(value) = open.recv().await {
            return value;
        }
        *channel = None;
    }
    std::future::pending().await
}

/// The next size of a terminal.
async fn changed(sizes: &mut Option<watch::Receiver<Terminal>>) -> Terminal {
    if let Some(open) = sizes {
        if open.changed().await.is_ok() {
            return *open.borrow_and_update();
        }
        *sizes = None;
    }
    std::future::pending().await
}

/// As the warden is told it.
pub(crate) fn window_size(terminal: Terminal) -> WindowSize {
    WindowSize {
        rows: terminal.rows,
        columns: terminal.columns,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn stdin_is_cut_into_frames_and_waits_for_the_program_and_signals_do_not() {
        let (to_stdin, stdin) = mpsc::channel(4);
        let (to_signals, signals) = mpsc::channel(4);
        let size = |rows| Terminal { rows, columns: 9 };
        let (to_sizes, sizes) = watch::channel(size(1));
        let mut input = Input::from(Interaction {
            stdin,
            signals,
            sizes,
        });
        to_sizes.send_replace(size(2));
        to_sizes.send_replace(size(3));
        let resize = Request::Resize {
            size: window_size(size(3)),
        };
        assert_eq!(input.next().await, resize);
        assert!(!input.is_used());
        let size = WINDOW as usize + 1;
        to_stdin.send(vec![7; size].into()).await.unwrap();
        drop(to_stdin);
        let mut sent = 0;
        while let Some(request) = input.next().now_or_never() {
            let Request::Stdin { data } = request else {
                panic!("{request:?}");
            };
            assert!(data.len() <= MAX_OUTPUT);
            sent += data.len() as u64;
        }
        assert_eq!(sent, WINDOW);
        assert!(input.is_used());
        to_signals.send(2).await.unwrap();
        assert_eq!(input.next().await, Request::Signal { signal: 2 });
        input.fed(1);
        assert!(matches!(input.next().await, Request::Stdin { data } if data.len() == 1));
        assert!(input.next().now_or_never().is_none(), "it is full again");
        input.fed(WINDOW);
        assert!(input.is_open());
        assert_eq!(input.next().await, Request::CloseStdin);
        assert!(input.next().now_or_never().is_none());
        assert!(!input.is_open());
    }
}
