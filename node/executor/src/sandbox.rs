//! The node's side of the talk with a warden, over any pair of byte streams.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use quorun_ledger::job::OutputFile;
use quorun_warden::protocol::{
    self, Collect, Decoder, End, Event, FrameError, MAX_OUTPUT, Ready, Report, Request, Run,
    StepKind,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::input::Input;
use crate::live::Live;
use crate::task::Stream;

/// Read at once.
const READ: usize = 64 << 10;

/// How long a warden may take to end a job that is cancelled, and to clean up.
const END_PATIENCE: Duration = Duration::from_secs(15);

/// Why a sandbox cannot be talked to any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// It has ended.
    #[error("the sandbox has ended")]
    Ended,
    /// The stream failed.
    #[error("the stream to the sandbox: {0}")]
    Stream(#[from] std::io::Error),
    /// It says what cannot be understood.
    #[error("the sandbox sent {0}")]
    Frame(#[from] FrameError),
    /// It says what does not belong here.
    #[error("the sandbox sent {0}")]
    Unexpected(String),
    /// It does not answer in time.
    #[error("the sandbox did not answer within {0:?}")]
    Silent(Duration),
}

/// The two streams to a warden.
pub(crate) struct Link {
    reader: Pin<Box<dyn AsyncRead + Send>>,
    writer: Pin<Box<dyn AsyncWrite + Send>>,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// The rest of a frame that was being written when its run ended: without it the warden would take what comes next
    /// for it.
    begun: Vec<u8>,
}

/// What a warden told of a job.
#[derive(Debug)]
pub(crate) struct Transcript {
    /// The compile step, and what it printed.
    pub(crate) compile: Option<Compiled>,
    /// Whether the warden holds what the box held, if that was asked for; if not, why.
    pub(crate) held: Option<Result<(), String>>,
    /// The program had been started ahead.
    pub(crate) zygote: bool,
    /// The files that were wanted.
    pub(crate) files: Vec<OutputFile>,
    /// How the run ended.
    pub(crate) end: End,
}

/// A compile step that has ended.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) report: Report,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// A talk that broke off.
#[derive(Debug)]
pub(crate) struct Interrupted {
    pub(crate) cause: Broken,
    /// A program of the job had been started.
    pub(crate) started: bool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(
        reader: impl AsyncRead + Send + 'static,
        writer: impl AsyncWrite + Send + 'static,
    ) -> Self {
        Self {
            reader: Box::pin(reader),
            writer: Box::pin(writer),
            decoder: Decoder::default(),
            buffer: vec![0; READ],
            begun: Vec::new(),
        }
    }

    /// The next thing the warden says. May be dropped and called again.
    async fn event(&mut self) -> Result<Event, Broken> {
        next(&mut self.reader, &mut self.decoder, &mut self.buffer).await
    }

    async fn event_within(&mut self, patience: Duration) -> Result<Event, Broken> {
        tokio::time::timeout(patience, self.event())
            .await
            .unwrap_or(Err(Broken::Silent(patience)))
    }

    /// Waits for the warden's first words.
    pub(crate) async fn ready(&mut self, patience: Duration) -> Result<Ready, Broken> {
        match self.event_within(patience).await? {
            Event::Ready(ready) if ready.version == protocol::VERSION => Ok(ready),
            Event::Ready(ready) => Err(Broken::Unexpected(format!(
                "version {} of the protocol instead of {}",
                ready.version,
                protocol::VERSION
            ))),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether an idle sandbox is still there: it says nothing, and its stream has not ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.event().now_or_never().is_none()
    }

    /// Runs a program to its end, or until `patience` is over.
    pub(crate) async fn run(
        &mut self,
        run: Run,
        live: &mut Live,
        input: &mut Input,
        cancel: &CancellationToken,
        patience: Duration,
    ) -> Result<Transcript, Interrupted> {
        let mut talk = Talk {
            wanted: run.collect.clone(),
            ..Talk::default()
        };
        self.talk(run, live, input, cancel, patience, &mut talk)
            .await
            .map(|end| Transcript {
                compile: talk.compiled.then_some(talk.compile),
                held: talk.held,
                zygote: talk.zygote,
                files: talk.files,
                end,
            })
            .map_err(|cause| Interrupted {
                cause,
                started: talk.started,
            })
    }

    async fn talk(
        &mut self,
        run: Run,
        live: &mut Live,
        input: &mut Input,
        cancel: &CancellationToken,
        patience: Duration,
        talk: &mut Talk,
    ) -> Result<End, Broken> {
        let mut waiting = std::mem::take(&mut self.begun);
        protocol::encode(&Request::Run(Box::new(run)), &mut waiting)?;
        let mut written = 0;
        let mut cancelled = false;
        let mut patience = patience;
        let mut deadline = Instant::now() + patience;
        loop {
            // Nothing waits for anything else here: a job is written while its output is read.
            tokio::select! {
                biased;
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    protocol::encode(&Request::Kill, &mut waiting)?;
                    let earlier = Instant::now() + END_PATIENCE;
                    if earlier < deadline {
                        deadline = earlier;
                        patience = END_PATIENCE;
                    }
                }
                () = live.forward() => {}
                request = input.next(), if waiting.is_empty() => {
                    protocol::encode(&request, &mut waiting)?;
                }
                result = self.writer.write(&waiting[written..]), if written < waiting.len() => {
                    match result? {
                        0 => return Err(Broken::Ended),
                        length => written += length,
                    }
                    if written == waiting.len() {
                        self.writer.flush().await?;
                        waiting = Vec::new();
                        written = 0;
                    }
                }
                event = next(&mut self.reader, &mut self.decoder, &mut self.buffer) => {
                    match event? {
                        Event::Fed { bytes } => input.fed(bytes),
                        event => {
                            if let Some(end) = talk.hear(event, live)? {
                                if written > 0 {
                                    self.begun = waiting.split_off(written);
                                }
                                return Ok(end);
                            }
                        }
                    }
                }
                () = tokio::time::sleep_until(deadline) => return Err(Broken::Silent(patience)),
            }
        }
    }

    /// Gives the warden an archive that the next run takes its files from.
    pub(crate) async fn load(&mut self, archive: &[u8]) -> Result<(), Broken> {
        for part in archive.chunks(MAX_OUTPUT) {
            let data = part.to_vec();
            self.say(&Request::Load { data }).await?;
        }
        Ok(())
    }

    /// Takes what the warden holds, if it is at most `limit` bytes.
    pub(crate) async fn fetch(&mut self, limit: u64) -> Result<Bytes, Broken> {
        self.say(&Request::Fetch).await?;
        let mut archive = BytesMut::new();
        loop {
            match self.event_within(END_PATIENCE).await? {
                Event::Archive { data, last } => {
                    archive.extend_from_slice(&data);
                    if archive.len() as u64 > limit {
                        return Err(Broken::Unexpected(format!(
                            "an archive of more than {limit} bytes"
                        )));
                    }
                    if last {
                        return Ok(archive.freeze());
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Lets the warden hold nothing any more.
    pub(crate) async fn forget(&mut self) -> Result<(), Broken> {
        self.say(&Request::Forget).await
    }

    async fn say(&mut self, request: &Request) -> Result<(), Broken> {
        let mut frame = std::mem::take(&mut self.begun);
        protocol::encode(request, &mut frame)?;
        let write = async {
            self.writer.write_all(&frame).await?;
            self.writer.flush().await
        };
        match tokio::time::timeout(END_PATIENCE, write).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(Broken::Silent(END_PATIENCE)),
        }
    }

    /// Waits until the sandbox is clean after a run. An error or a `false` ends its use.
    pub(crate) async fn clean(&mut self) -> Result<Result<(), Vec<String>>, Broken> {
        match self.event_within(END_PATIENCE).await? {
            Event::Clean { ok: true, .. } => Ok(Ok(())),
            Event::Clean { ok: false, left } => Ok(Err(left)),
            other => Err(unexpected(&other)),
        }
    }
}

/// The next event. May be dropped and called again: what was read is in the decoder.
async fn next(
    reader: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
    buffer: &mut [u8],
) -> Result<Event, Broken> {
    loop {
        if let Some(event) = decoder.frame()? {
            return Ok(event);
        }
        match reader.read(buffer).await? {
            0 => return Err(Broken::Ended),
            length => decoder.extend(&buffer[..length]),
        }
    }
}

fn unexpected(event: &Event) -> Broken {
    let kind = match event {
        Event::Ready(_) => "Ready",
        Event::Started { .. } => "Started",
        Event::Output { .. } => "Output",
        Event::CompileDone(_) => "CompileDone",
        Event::Held { .. } => "Held",
        Event::Fed { .. } => "Fed",
        Event::File { .. } => "File",
        Event::Archive { .. } => "Archive",
        Event::Done(_) => "Done",
        Event::Clean { .. } => "Clean",
    };
    Broken::Unexpected(format!("{kind} at the wrong time"))
}

/// What has been heard of a job so far.
#[derive(Debug, Default)]
struct Talk {
    started: bool,
    compiled: bool,
    compile: Compiled,
    held: Option<Result<(), String>>,
    zygote: bool,
    /// The files that were asked for, and what has come of them.
    wanted: Collect,
    files: Vec<OutputFile>,
}

impl Talk {
    /// A part of a file has come. They come in the order in which they were asked for.
    fn file(&mut self, index: u32, size: Result<u64, String>, data: &[u8]) -> Result<(), Broken> {
        let wrong = || Broken::Unexpected(format!("a part of file {index} that was not asked for"));
        let index = usize::try_from(index).map_err(|_| wrong())?;
        if index == self.files.len() {
            self.files.push(OutputFile {
                name: self.wanted.names.get(index).ok_or_else(wrong)?.clone(),
                size: 0,
                content: Bytes::new(),
                truncated: false,
                missing: None,
            });
        }
        let is_last = index + 1 == self.files.len();
        let rest = self.wanted.bytes.checked_sub(data.len() as u64);
        let (Some(file), Some(rest), true) = (self.files.last_mut(), rest, is_last) else {
            return Err(wrong());
        };
        self.wanted.bytes = rest;
        match size {
            Ok(size) => {
                let mut content = BytesMut::from(std::mem::take(&mut file.content));
                content.extend_from_slice(data);
                file.content = content.freeze();
                // One that has grown meanwhile is at least as large as what came of it.
                file.size = size.max(file.content.len() as u64);
                file.truncated = file.size > file.content.len() as u64;
            }
            Err(reason) => {
                file.size = 0;
                file.content = Bytes::new();
                file.truncated = false;
                file.missing = Some(reason);
            }
        }
        Ok(())
    }

    fn hear(&mut self, event: Event, live: &mut Live) -> Result<Option<End>, Broken> {
        match event {
            Event::Started { zygote, .. } => {
                self.started = true;
                self.zygote |= zygote;
            }
            Event::Output {
                step: StepKind::Compile,
                stream,
                data,
                ..
            } => match stream {
                protocol::Stream::Stdout => self.compile.stdout.extend(data),
                protocol::Stream::Stderr => self.compile.stderr.extend(data),
            },
            Event::Output {
                step: StepKind::Run,
                stream,
                offset,
                data,
            } => {
                let stream = Stream::from(stream);
                if offset != live.len(stream) {
                    return Err(Broken::Unexpected(format!(
                        "{stream:?} from byte {offset} after byte {}",
                        live.len(stream)
                    )));
                }
                live.push(stream, &data);
            }
            Event::CompileDone(report) => {
                self.compile.report = report;
                self.compiled = true;
            }
            Event::File { index, size, data } => self.file(index, size, &data)?,
            Event::Held { refused } => self.held = Some(refused.map_or(Ok(()), Err)),
            Event::Done(end) => return Ok(Some(end)),
            event @ (Event::Ready(_)
            | Event::Clean { .. }
            | Event::Fed { .. }
            | Event::Archive { .. }) => return Err(unexpected(&event)),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;
    use quorun_warden::protocol::Limits;
    use quorun_warden::protocol::Step;
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc;

    use super::*;

    fn job() -> Run {
        let limits = Limits {
            cpu_us: 1,
            wall_us: 1,
            memory_kb: 1,
            processes: 1,
            output_bytes: 1,
            file_bytes: 1,
            open_files: 1,
            stack_bytes: 1,
        };
        Run {
            program: protocol::Program::Files(Vec::new()),
            compile: None,
            hold: None,
            data: Vec::new(),
            collect: Collect {
                names: vec!["a".into(), "b".into()],
                bytes: 10,
            },
            run: Step {
                argv: vec!["x".into()],
                env: Vec::new(),
                limits,
            },
            stdin: vec![7; 1 << 20],
            close_stdin: true,
            terminal: None,
            zygote: None,
        }
    }

    fn link() -> (Link, DuplexStream, DuplexStream) {
        // Small pipes: everything is cut into pieces.
        let (to_node, from_warden) = tokio::io::duplex(5);
        let (to_warden, from_node) = tokio::io::duplex(100);
        (Link::new(from_warden, to_warden), to_node, from_node)
    }

    fn live() -> Live {
        let (sender, _) = mpsc::channel(1);
        Live::new(sender)
    }

    fn bytes(events: &[Event]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for event in events {
            protocol::encode(event, &mut bytes).unwrap();
        }
        bytes
    }

    fn output(offset: u64, data: &[u8]) -> Event {
        Event::Output {
            step: StepKind::Run,
            stream: protocol::Stream::Stdout,
            offset,
            data: data.to_vec(),
        }
    }

    async fn answered(events: &[Event]) -> (Result<Transcript, Interrupted>, Live) {
        let (mut link, mut to_node, mut from_node) = link();
        let mut live = live();
        let cancel = CancellationToken::new();
        // The warden answers while it still reads: neither may wait for the other.
        let answer = async {
            to_node.write_all(&bytes(events)).await.unwrap();
            drop(to_node);
        };
        let read = async {
            let mut buffer = Vec::new();
            from_node.read_to_end(&mut buffer).await.unwrap();
        };
        let run = async {
            let patience = Duration::from_secs(60);
            let mut input = Input::none();
            let result = link
                .run(job(), &mut live, &mut input, &cancel, patience)
                .await;
            drop(link);
            result
        };
        let (result, (), ()) = tokio::join!(run, answer, read);
        (result, live)
    }

    #[tokio::test]
    async fn a_job_is_followed_to_its_end() {
        let report = Report {
            exit_code: Some(3),
            ..Report::default()
        };
        let (result, mut live) = answered(&[
            Event::Started {
                step: StepKind::Run,
                zygote: false,
            },
            output(0, b"abc"),
            output(3, b"def"),
            Event::Done(End::Ran(report.clone())),
        ])
        .await;
        let transcript = result.unwrap();
        assert!(transcript.compile.is_none());
        assert_eq!(transcript.end, End::Ran(report));
        assert_eq!(live.take_output().0, &b"abcdef"[..]);
    }

    #[tokio::test]
    async fn what_was_being_said_when_a_job_ended_does_not_run_into_what_follows() {
        let (mut link, mut to_node, mut from_node) = link();
        let (to_stdin, stdin) = mpsc::channel(1);
        let (_to_signals, signals) = mpsc::channel(1);
        let size = quorun_ledger::job::Terminal {
            rows: 24,
            columns: 80,
        };
        let (_to_sizes, sizes) = tokio::sync::watch::channel(size);
        let mut input = Input::from(crate::input::Interaction {
            stdin,
            signals,
            sizes,
        });
        let cancel = CancellationToken::new();
        let warden = async {
            let mut decoder = Decoder::default();
            let mut buffer = [0; 1000];
            // The run has been read, and something of what follows: the program ends before it has all come.
            let mut ended = false;
            let mut heard = Vec::new();
            loop {
                let length = from_node.read(&mut buffer).await.unwrap();
                if length == 0 {
                    return heard;
                }
                decoder.extend(&buffer[..length]);
                while let Some(request) = decoder.frame::<Request>().unwrap() {
                    heard.push(request);
                }
                if heard.len() == 1 && !decoder.is_empty() && !ended {
                    ended = true;
                    let done = Event::Done(End::Ran(Report::default()));
                    to_node.write_all(&bytes(&[done])).await.unwrap();
                }
            }
        };
        let node = async {
            to_stdin.send(vec![7; 10_000].into()).await.unwrap();
            let patience = Duration::from_secs(60);
            let result = link
                .run(job(), &mut live(), &mut input, &cancel, patience)
                .await;
            result.unwrap();
            link.forget().await.unwrap();
            drop(link);
        };
        let (heard, ()) = tokio::join!(warden, node);
        assert!(
            matches!(
                &heard[..],
                [Request::Run(_), Request::Stdin { data }, Request::Forget] if data.len() == 10_000
            ),
            "{} requests",
            heard.len()
        );
    }

    #[tokio::test]
    async fn an_end_in_the_middle_says_whether_the_program_had_started() {
        let (result, _) = answered(&[]).await;
        assert!(!result.unwrap_err().started);
        let (result, _) = answered(&[Event::Started {
            step: StepKind::Run,
            zygote: false,
        }])
        .await;
        let interrupted = result.unwrap_err();
        assert!(interrupted.started && matches!(interrupted.cause, Broken::Ended));
    }

    fn part(index: u32, size: Result<u64, String>, data: &[u8]) -> Event {
        let data = data.to_vec();
        Event::File { index, size, data }
    }

    #[tokio::test]
    async fn files_come_in_parts_and_in_their_order() {
        let (result, _) = answered(&[
            part(0, Ok(20), b"abc"),
            part(0, Ok(20), b"defg"),
            part(1, Err("there is none".into()), b""),
            Event::Done(End::Ran(Report::default())),
        ])
        .await;
        let files = result.unwrap().files;
        assert_eq!(files.len(), 2);
        assert_eq!(
            (&files[0].name[..], files[0].size, files[0].truncated),
            ("a", 20, true)
        );
        assert_eq!(files[0].content, &b"abcdefg"[..]);
        assert_eq!(files[1].name, "b");
        assert_eq!(files[1].missing.as_deref(), Some("there is none"));
    }

    #[tokio::test]
    async fn files_that_were_not_asked_for_are_not_believed() {
        for parts in [
            vec![part(2, Ok(1), b"x")],
            vec![part(1, Ok(1), b"x")],
            vec![
                part(0, Ok(1), b"x"),
                part(1, Ok(1), b"x"),
                part(0, Ok(1), b"x"),
            ],
            vec![part(0, Ok(11), b"0123456789x")],
            vec![part(0, Ok(10), b"0123456789"), part(1, Ok(1), b"x")],
        ] {
            let (result, _) = answered(&parts).await;
            assert!(matches!(result.unwrap_err().cause, Broken::Unexpected(_)));
        }
    }

    #[tokio::test]
    async fn output_with_a_gap_is_not_believed() {
        let (result, _) = answered(&[output(0, b"abc"), output(4, b"x")]).await;
        assert!(matches!(result.unwrap_err().cause, Broken::Unexpected(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_warden_that_hangs_is_given_up_on() {
        let (mut link, _to_node, _from_node) = link();
        let patience = Duration::from_secs(30);
        let (mut input, cancel) = (Input::none(), CancellationToken::new());
        let result = link
            .run(job(), &mut live(), &mut input, &cancel, patience)
            .await;
        let cause = result.unwrap_err().cause;
        assert!(
            matches!(cause, Broken::Silent(time) if time == patience),
            "{cause}"
        );
    }

    #[tokio::test]
    async fn another_version_of_the_protocol_is_refused() {
        let (mut link, mut to_node, _from_node) = link();
        let ready = Event::Ready(Ready {
            version: protocol::VERSION + 1,
            pid: 1,
            contained: true,
            cgroup_cpu: true,
            cgroup_memory: true,
        });
        let sent = bytes(&[ready]);
        let (result, written) = tokio::join!(
            link.ready(Duration::from_secs(60)),
            to_node.write_all(&sent)
        );
        written.unwrap();
        assert!(result.unwrap_err().to_string().contains("version"));
    }

    #[tokio::test]
    async fn an_idle_sandbox_is_alive_until_its_stream_ends() {
        let (mut link, to_node, _from_node) = link();
        assert!(link.is_alive());
        drop(to_node);
        assert!(!link.is_alive());
    }

    fn events() -> Vec<Event> {
        let size = |size| Event::File {
            index: 1,
            size,
            data: b"abc".to_vec(),
        };
        vec![
            Event::Fed { bytes: 9 },
            Event::Held {
                refused: Some("no".to_owned()),
            },
            Event::Archive {
                data: vec![1, 2, 3],
                last: true,
            },
            size(Ok(3)),
            size(Err("there is no such file".to_owned())),
            Event::Clean {
                ok: false,
                left: vec!["a".to_owned()],
            },
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// The warden is on the other side of the wall: whatever comes from there is read, or refused.
        #[test]
        fn no_bytes_of_a_sandbox_do_harm(
            changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
            piece in 1..50_usize,
            other in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut bytes = Vec::new();
            for event in events() {
                protocol::encode(&event, &mut bytes).unwrap();
            }
            let sound = changes.is_empty();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.extend(if sound { &[][..] } else { &other[..] });
            let mut decoder = Decoder::default();
            let mut read = Vec::new();
            'all: for part in bytes.chunks(piece) {
                decoder.extend(part);
                loop {
                    match decoder.frame::<Event>() {
                        Ok(Some(event)) => read.push(event),
                        Ok(None) => break,
                        Err(_) => break 'all,
                    }
                }
            }
            prop_assert!(!sound || read == events());
        }
    }
}
