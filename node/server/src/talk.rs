//! The way of what a client says to a program: to this node's console, or to that of the node that runs it.

use futures::StreamExt;
use quorun_consensus::Handle;
use quorun_ledger::{JobId, NodeId, Terminal};
use quorun_proto::v1::{AttachRequest, AttachTo, Blank, TerminalSize, attach_request};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::console::{Attached, Consoles, Said};

/// What may be on its way to another node, pieces.
const PIECES: usize = 4;

/// That what was said last may not have been heard.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Lost(String);

/// Somebody who talks to a program, wherever it runs.
#[derive(Debug)]
pub enum Talk {
    /// It runs here.
    Here(Attached),
    /// It runs on another node.
    There {
        /// What goes there.
        said: mpsc::Sender<AttachRequest>,
        /// Its word that nothing more is taken, or that there is no way to it.
        over: watch::Receiver<Option<Result<(), String>>>,
    },
}

impl Talk {
    /// Begins to talk to an attempt that the ledger shows on a node. Waits where this node's worker has not heard of it
    /// yet; drop it when the attempt is over.
    pub async fn begin(
        (consoles, consensus): (&Consoles, &Handle),
        (me, node): (NodeId, NodeId),
        attempt: (JobId, u32),
    ) -> Result<Self, Lost> {
        if node == me {
            let mut opened = consoles.opened();
            loop {
                if let Some(attached) = consoles.attach(attempt) {
                    return Ok(Self::Here(attached));
                }
                // The sender is in the consoles.
                let _ = opened.changed().await;
            }
        }
        let mut client = consensus
            .peer(node)
            .ok_or_else(|| Lost(format!("node {node}, which runs the job, is not known")))?;
        let (said, to_node) = mpsc::channel(PIECES);
        let first = attach_request::Said::Attempt(AttachTo {
            job: attempt.0.to_string(),
            attempt: attempt.1,
        });
        let first = AttachRequest { said: Some(first) };
        let requests = futures::stream::iter([first]).chain(ReceiverStream::new(to_node));
        let (tell, over) = watch::channel(None);
        // Ends with the talk: then nothing more is sent, and the node answers.
        tokio::spawn(async move {
            let answer = client.attach(requests).await;
            tell.send_replace(Some(match answer {
                Ok(_) => Ok(()),
                Err(status) => Err(status.message().to_owned()),
            }));
        });
        Ok(Self::There { said, over })
    }

    /// Says something; waits as long as the program does not read what was said before.
    ///
    /// # Errors
    /// When the node that runs the program cannot be reached.
    pub async fn say(&mut self, what: Said) -> Result<(), Lost> {
        match self {
            Self::Here(attached) => attached.say(what).await,
            Self::There { said, .. } => {
                let request = AttachRequest {
                    said: Some(to_wire(what)),
                };
                if said.send(request).await.is_err() {
                    return self.over().await;
                }
            }
        }
        Ok(())
    }

    /// Returns when the attempt is over, or the way to it is.
    ///
    /// # Errors
    /// As [`say`](Self::say).
    pub async fn over(&mut self) -> Result<(), Lost> {
        match self {
            Self::Here(attached) => {
                attached.over().await;
                Ok(())
            }
            Self::There { over, .. } => match over.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(reason))) => Err(Lost(format!(
                    "the node that runs the job does not listen: {reason}"
                ))),
                Ok(_) => Ok(()),
                Err(_) => Err(Lost("this node is ending".to_owned())),
            },
        }
    }
}

fn to_wire(said: Said) -> attach_request::Said {
    match said {
        Said::Stdin(data) => attach_request::Said::Stdin(data),
        Said::Eof => attach_request::Said::Eof(Blank {}),
        Said::Signal(number) => attach_request::Said::Signal(number.unsigned_abs()),
        Said::Size(size) => attach_request::Said::Size(TerminalSize {
            rows: size.rows.into(),
            columns: size.columns.into(),
        }),
    }
}

/// What a peer passes on. `None` for what does not belong there.
pub fn from_wire(request: AttachRequest) -> Option<Said> {
    Some(match request.said? {
        attach_request::Said::Attempt(_) => return None,
        attach_request::Said::Stdin(data) => Said::Stdin(data),
        attach_request::Said::Eof(_) => Said::Eof,
        attach_request::Said::Signal(number) => Said::Signal(number.try_into().ok()?),
        attach_request::Said::Size(size) => Said::Size(Terminal {
            rows: size.rows.try_into().ok()?,
            columns: size.columns.try_into().ok()?,
        }),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said() -> impl Strategy<Value = Said> {
        prop_oneof![
            any::<Vec<u8>>().prop_map(|data| Said::Stdin(data.into())),
            Just(Said::Eof),
            (1..64_i32).prop_map(Said::Signal),
            any::<(u16, u16)>().prop_map(|(rows, columns)| Said::Size(Terminal { rows, columns })),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard_by_a_peer(said in said()) {
            let request = AttachRequest { said: Some(to_wire(said.clone())) };
            prop_assert_eq!(from_wire(request), Some(said));
        }

        #[test]
        fn nonsense_from_a_peer_is_left_out(number: u32, rows: u32, columns: u32) {
            let request = |said| AttachRequest { said: Some(said) };
            let signal = from_wire(request(attach_request::Said::Signal(number)));
            prop_assert_eq!(signal.is_some(), i32::try_from(number).is_ok());
            let size = attach_request::Said::Size(TerminalSize { rows, columns });
            let small = rows.max(columns) <= u16::MAX.into();
            prop_assert_eq!(from_wire(request(size)).is_some(), small);
        }
    }
}
