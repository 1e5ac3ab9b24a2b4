//! How far a follower of a job has come, and what it has not heard yet: the rule by which a stream of events that broke
//! off is taken up again, at any node.
//!
//! A position names an attempt, how many bytes of its stdout and of its stderr were heard, and how many of its test cases.
//! What an attempt prints is the same wherever it is read from (the node that runs it, or the committed result), so a
//! position is all that has to be remembered, and the client is the one who remembers it.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use quorun_executor::Stream as Std;
use quorun_ledger::JobState;

/// Longer than any position is.
const MAX_TEXT: usize = 80;
/// What stands at the end of the position behind which nothing comes.
const END: &str = "end";

/// How far a follower has come. As text it is the id of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The attempt; 0 before any was heard of.
    pub attempt: u32,
    /// Bytes heard of its stdout and of its stderr.
    pub heard: [u64; 2],
    /// How many of its test cases were heard of.
    pub cases: u32,
    /// The end of the job was heard.
    pub ended: bool,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [stdout, stderr] = self.heard;
        write!(f, "{}-{stdout}-{stderr}", self.attempt)?;
        if self.cases > 0 || self.ended {
            write!(f, "-{}", self.cases)?;
        }
        if self.ended {
            write!(f, "-{END}")?;
        }
        Ok(())
    }
}

/// That a text is not a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAPosition;

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        if text.len() > MAX_TEXT {
            return Err(NotAPosition);
        }
        let mut parts = text.split('-');
        let position = Self {
            attempt: number(parts.next())?,
            heard: [number(parts.next())?, number(parts.next())?],
            cases: match parts.next() {
                None => 0,
                some => number(some)?,
            },
            ended: match parts.next() {
                None => false,
                Some(END) => true,
                Some(_) => return Err(NotAPosition),
            },
        };
        match parts.next() {
            None => Ok(position),
            Some(_) => Err(NotAPosition),
        }
    }
}

/// Digits and nothing else: `parse` would take a sign as well.
fn number<T: FromStr>(text: Option<&str>) -> Result<T, NotAPosition> {
    let text = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or(NotAPosition)
}

/// The number of the attempt whose output counts. What waits in the queue has lost the one that it had.
pub const fn current(state: JobState, attempt: u32) -> u32 {
    match state {
        JobState::Queued => attempt.saturating_add(1),
        JobState::Running | JobState::Finished => attempt,
    }
}

/// That what a follower has heard is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The attempt that it had heard; `None` when what it said it had heard cannot be made out.
    pub attempt: Option<u32>,
    /// The attempt whose output counts now, from its beginning.
    pub by: u32,
}

/// What a follower has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    position: Position,
    /// It claims to have heard something that cannot be made out.
    unknown: bool,
}

impl Heard {
    /// What a client says that it has heard: nothing, or the id of the last event that it got.
    pub fn from_id(id: Option<&str>) -> Self {
        let (position, unknown) = match id.map(str::parse) {
            None => (Position::default(), false),
            Some(Ok(position)) => (
                Position {
                    ended: false,
                    ..position
                },
                false,
            ),
            Some(Err(NotAPosition)) => (Position::default(), true),
        };
        Self { position, unknown }
    }

    /// How far it has come.
    pub const fn position(&self) -> Position {
        self.position
    }

    fn anything(&self) -> bool {
        let Position { heard, cases, .. } = self.position;
        self.unknown || heard != [0; 2] || cases > 0
    }

    /// This attempt's output counts now. Says what became void by that, if anything was heard that did.
    pub fn turn_to(&mut self, attempt: u32) -> Option<Replaced> {
        if self.position.attempt == attempt && !self.unknown {
            return None;
        }
        let replaced = self.anything().then_some(Replaced {
            attempt: (!self.unknown).then_some(self.position.attempt),
            by: attempt,
        });
        *self = Self {
            position: Position {
                attempt,
                ..Position::default()
            },
            unknown: false,
        };
        replaced
    }

    /// The part of a piece of output that was not heard before, and where it begins; it counts as heard from now on. A
    /// piece with a gap before it is left out, and so is all that comes behind it: the result will have it.
    pub fn print(&mut self, stream: Std, offset: u64, data: &Bytes) -> Option<(u64, Bytes)> {
        let heard = &mut self.position.heard[slot(stream)];
        let known = usize::try_from(heard.checked_sub(offset)?).ok()?;
        if known >= data.len() {
            return None;
        }
        let fresh = data.slice(known..);
        let from = *heard;
        *heard += fresh.len() as u64;
        Some((from, fresh))
    }

    /// Whether it is news that this test case has ended; it is none from now on.
    pub fn case(&mut self, index: u32) -> bool {
        let news = index == self.position.cases;
        self.position.cases += u32::from(news);
        news
    }

    /// The end is told.
    pub fn end(&mut self) {
        self.position.ended = true;
    }
}

/// Where a stream stands in [`Position::heard`].
pub const fn slot(stream: Std) -> usize {
    match stream {
        Std::Stdout => 0,
        Std::Stderr => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_is_read_back_and_nothing_else_is_an_id() {
        for text in ["0-0-0", "2-1024-0", "1-0-7-3", "3-5-6-0-end"] {
            let position: Position = text.parse().unwrap();
            assert_eq!(position.to_string(), text);
        }
        for text in [
            "",
            "1",
            "1-2",
            "1-2-",
            "-1-2-3",
            "1-+2-3",
            "1-2-3-4-5",
            "1-2-3-4-end-",
            "1-2-3-end",
            "4294967296-0-0",
            "1-18446744073709551616-0",
            "1- 2-3",
            "１-2-3",
            "1-2-3\n",
        ] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition), "{text:?}");
        }
    }

    #[test]
    fn what_was_heard_of_another_attempt_is_void_and_what_was_not_understood_too() {
        let mut nothing = Heard::from_id(None);
        assert_eq!(nothing.turn_to(1), None);
        assert_eq!(nothing.turn_to(2), None, "nothing of it was heard");
        let mut heard = Heard::from_id(Some("1-5-0"));
        assert_eq!(heard.turn_to(1), None);
        let by = |attempt, by| Some(Replaced { attempt, by });
        assert_eq!(heard.turn_to(2), by(Some(1), 2));
        assert_eq!(heard.turn_to(2), None);
        assert_eq!(heard.position().to_string(), "2-0-0");
        assert_eq!(Heard::from_id(Some("9-1-0")).turn_to(2), by(Some(9), 2));
        assert_eq!(Heard::from_id(Some("9-0-0")).turn_to(2), None);
        assert_eq!(Heard::from_id(Some("1-0-0-1")).turn_to(2), by(Some(1), 2));
        let mut garbage = Heard::from_id(Some("what"));
        assert_eq!(garbage.turn_to(0), by(None, 0));
        assert_eq!(garbage.turn_to(0), None);
    }

    /// What one attempt did, and how the pieces are cut in which a node keeps it.
    #[derive(Clone, Debug)]
    struct Attempt {
        printed: [Vec<u8>; 2],
        cases: u32,
        cut: usize,
        /// Whether its end is its own, or that of its node, after so much of it was seen live.
        seen: usize,
    }

    fn attempt() -> impl Strategy<Value = Attempt> {
        let printed = [vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..40)];
        (printed, 0..4_u32, 1..9_usize, 0..30_usize).prop_map(|(printed, cases, cut, seen)| {
            Attempt {
                printed,
                cases,
                cut,
                seen,
            }
        })
    }

    enum Piece {
        Output(Std, u64, Bytes),
        Case(u32),
    }

    /// What the node that runs it passes on, always from the first byte.
    fn live(attempt: &Attempt) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for stream in [Std::Stderr, Std::Stdout] {
            let mut offset = 0;
            for part in attempt.printed[slot(stream)].chunks(attempt.cut) {
                let data = Bytes::copy_from_slice(part);
                pieces.push(Piece::Output(stream, offset, data));
                offset += part.len() as u64;
            }
        }
        pieces.extend((0..attempt.cases).map(Piece::Case));
        pieces
    }

    /// A client that believes what it is told, and notices a gap or a repetition.
    #[derive(Default)]
    struct Client {
        attempt: u32,
        printed: [Vec<u8>; 2],
        cases: u32,
        id: Option<String>,
    }

    impl Client {
        fn told(&mut self, attempt: u32, heard: &mut Heard, piece: &Piece) {
            match piece {
                Piece::Output(stream, offset, data) => {
                    if let Some((from, fresh)) = heard.print(*stream, *offset, data) {
                        let printed = &mut self.printed[slot(*stream)];
                        assert!(!fresh.is_empty());
                        assert_eq!(from, printed.len() as u64, "a gap or a repetition");
                        printed.extend_from_slice(&fresh);
                    }
                }
                Piece::Case(index) => {
                    if heard.case(*index) {
                        assert_eq!(*index, self.cases);
                        self.cases += 1;
                    }
                }
            }
            assert_eq!(self.attempt, attempt);
            self.id = Some(heard.position().to_string());
        }

        fn turned(&mut self, heard: &mut Heard, attempt: u32) {
            let void = self.printed.iter().any(|printed| !printed.is_empty()) || self.cases > 0;
            let replaced = heard.turn_to(attempt);
            assert_eq!(
                replaced.is_some(),
                void && self.attempt != attempt,
                "told apart"
            );
            if let Some(replaced) = replaced {
                assert_eq!(replaced.attempt, Some(self.attempt));
                assert_eq!(replaced.by, attempt);
            }
            if self.attempt != attempt {
                *self = Self {
                    attempt,
                    id: self.id.take(),
                    ..Self::default()
                };
            }
            self.id = Some(heard.position().to_string());
        }
    }

    proptest! {
        #[test]
        fn a_stream_that_breaks_anywhere_is_taken_up_without_gap_or_repetition(
            attempts in vec(attempt(), 1..4),
            breaks in vec(any::<bool>(), 1..30),
        ) {
            let mut breaks = breaks.into_iter().cycle();
            let mut client = Client::default();
            let mut heard = Heard::from_id(None);
            let last = attempts.len();
            for (number, attempt) in (1..).zip(&attempts) {
                client.turned(&mut heard, number);
                let seen = attempt.seen.min(live(attempt).len());
                for (n, piece) in live(attempt).iter().enumerate().take(seen) {
                    client.told(number, &mut heard, piece);
                    if breaks.next() == Some(true) {
                        // At another node, which begins at the first byte, or somewhere before where the client is.
                        heard = Heard::from_id(client.id.as_deref());
                        client.turned(&mut heard, number);
                        for again in &live(attempt)[n / 2..=n] {
                            client.told(number, &mut heard, again);
                        }
                    }
                }
            }
            // The rest comes from the result, in one piece.
            let end = &attempts[last - 1];
            let number = u32::try_from(last).unwrap();
            for stream in [Std::Stdout, Std::Stderr] {
                let whole = Bytes::from(end.printed[slot(stream)].clone());
                client.told(number, &mut heard, &Piece::Output(stream, 0, whole));
            }
            for index in 0..end.cases {
                client.told(number, &mut heard, &Piece::Case(index));
            }
            prop_assert_eq!(&client.printed, &end.printed);
            prop_assert_eq!(client.cases, end.cases);
        }

        #[test]
        fn any_text_is_an_id_or_is_not(text in ".{0,100}", id in "[0-9end-]{0,40}") {
            for text in [text, id] {
                if let Ok(position) = text.parse::<Position>() {
                    prop_assert_eq!(position.to_string().parse(), Ok(position));
                }
                let mut heard = Heard::from_id(Some(&text));
                heard.turn_to(3);
                heard.print(Std::Stdout, u64::MAX, &Bytes::from_static(b"x"));
                heard.print(Std::Stderr, 0, &Bytes::from_static(b"x"));
                heard.case(u32::MAX);
                prop_assert_eq!(heard.position().attempt, 3);
            }
        }
    }
}
