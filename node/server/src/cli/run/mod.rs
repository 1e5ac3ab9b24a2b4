//! `quorun run`.

mod attach;
pub mod cases;
mod changes;
mod input;
mod job;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use http::Method;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{self, Client, IDEMPOTENCY_KEY};
use super::errors::{self, Refused};
use super::outcome::{self, SIGNALLED, narrow};
use super::stream::{Event, Events};
use super::target::Target;
use attach::Conversation;
use changes::Changes;
use input::{Input, Keys};

/// Run a program on a cluster.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The program, or - for stdin; several files are put beside each other, and the first is run
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Its language [default: from the first file's extension]
    #[arg(long, value_name = "NAME")]
    lang: Option<String>,
    /// What the program reads; - is stdin to its end [default: stdin if it is a pipe, a file or a socket, else nothing]
    #[arg(long, value_name = "FILE")]
    stdin: Option<PathBuf>,
    /// A variable of the program's environment; again for more
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A limit, such as wall_ms=10000; again for more
    #[arg(long, value_name = "NAME=NUMBER")]
    limit: Vec<String>,
    /// A mark to find the job by; again for more
    #[arg(long, value_name = "TEXT")]
    label: Vec<String>,
    /// Talk to the program while it runs: this terminal becomes its own
    #[arg(long, short, conflicts_with_all = ["tests", "watch", "json"])]
    interactive: bool,
    /// Judge the program by the test cases in a JSON or TOML file; exit with 1 if not all are accepted
    #[arg(long, value_name = "FILE", conflicts_with = "stdin")]
    tests: Option<PathBuf>,
    /// Run it again whenever a file has changed
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    target: Target,
    /// Arguments of the program
    #[arg(last = true)]
    args: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    code: u8,
    /// Because of a signal to this program.
    interrupted: bool,
}

impl From<u8> for Ended {
    fn from(code: u8) -> Self {
        Self {
            code,
            interrupted: false,
        }
    }
}

/// The job of a run, once there is one.
type Job = Mutex<Option<String>>;

/// Runs the program: prints what it prints while it prints it, and exits as it exits.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    input::check(&args)?;
    let ended = if args.watch {
        again_and_again(&client, &args).await?
    } else {
        once(&client, &args, &Job::default(), None).await?
    };
    Ok(ExitCode::from(ended.code))
}

/// Runs the program once; `read` is what it reads, if that is known already.
async fn once(
    client: &Client,
    args: &RunArgs,
    job: &Job,
    read: Option<&[u8]>,
) -> anyhow::Result<Ended> {
    let mut request = job::request(client, args).await?;
    if let Some(tests) = &args.tests {
        cases::add_to(&mut request, tests)?;
    }
    let input = match read {
        Some(bytes) => Input::Whole(bytes.to_owned()),
        None => input::of(args).await?,
    };
    let flows = matches!(input, Input::Flowing(_));
    let keys = match input {
        Input::Said if args.interactive => Some(Keys::begin()),
        Input::Said => None,
        Input::Whole(bytes) => {
            request["stdin_base64"] = BASE64.encode(bytes).into();
            None
        }
        Input::Flowing(keys) => Some(keys),
    };
    if let Some(keys) = keys {
        let id = start_interactive(client, &mut request).await?;
        let silent = args.target.json;
        let conversation = Conversation {
            keys,
            flows,
            silent,
        };
        return converse(client, &id, conversation).await;
    }
    let id = client::good(submit(client, &request).await?).await?;
    let id = id_of(&id)?;
    *job.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.clone());
    watch(client, &id, args.target.json).await
}

/// Has the program read and print while it runs, to its end.
async fn converse(client: &Client, id: &str, with: Conversation) -> anyhow::Result<Ended> {
    let json = with.silent;
    let mut job = attach::talk(client, id, with).await?;
    if json {
        let path = format!("/v1/jobs/{id}");
        job = client.ask(Method::GET, &path, None).await?;
        println!("{job:#}");
    } else if !job.is_null() {
        outcome::say(&outcome::words(&job));
    }
    Ok(outcome::code(&job).into())
}

/// Runs the program now and after every change of a file, until somebody interrupts it.
async fn again_and_again(client: &Client, args: &RunArgs) -> anyhow::Result<Ended> {
    // It can be read once only.
    let read = match &args.stdin {
        Some(path) if input::is_stdin(path) => Some(input::all().await?),
        _ => None,
    };
    let stdin = args.stdin.iter().filter(|path| !input::is_stdin(path));
    let files = args.files.iter().chain(stdin).chain(&args.tests);
    let mut changes = Changes::of(files.map(PathBuf::as_path))?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    loop {
        let job = Job::default();
        let ended = tokio::select! {
            ended = once(client, args, &job, read.as_deref()) => Some(ended),
            () = changes.next() => None,
        };
        match ended {
            None => {
                // Its output is of no interest any more, nor is whether it had finished.
                let job = job.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(id) = job {
                    let path = format!("/v1/jobs/{id}");
                    let _ = client.json(Method::DELETE, &path, None).await;
                }
                eprintln!("quorun: changed, running again");
                continue;
            }
            Some(Ok(ended)) if ended.interrupted => return Ok(ended),
            Some(Ok(ended)) => eprintln!("quorun: ended with {}; waiting for a change", ended.code),
            // The file may be there again, or right again, after the next change.
            Some(Err(error)) if args.target.json => errors::tell(&error, true),
            Some(Err(error)) => eprintln!("quorun: {error:#}; waiting for a change"),
        }
        tokio::select! {
            () = changes.next() => eprintln!("quorun: changed, running again"),
            _ = interrupt.recv() => {
                return Ok(Ended { code: 130, interrupted: true });
            }
        }
    }
}

/// Submits an interactive job, with as much time as the cluster gives, unless the command line says how much.
async fn start_interactive(client: &Client, request: &mut Value) -> anyhow::Result<String> {
    attach::add_to(request);
    let asked = !request["limits"]["wall_ms"].is_null();
    if !asked {
        request["limits"]["wall_ms"] = attach::WALL_MS.into();
    }
    let (mut status, mut body) = client::read(submit(client, request).await?).await?;
    if !asked && body["field"] == "limits.wall_ms" {
        request["limits"]["wall_ms"] = body["limit"].clone();
        (status, body) = client::read(submit(client, request).await?).await?;
    }
    if !status.is_success() {
        return Err(Refused::new(status, body).into());
    }
    id_of(&body)
}

/// Submits a job. Under a key of its own, so that it can be sent again to another node.
async fn submit(client: &Client, request: &Value) -> anyhow::Result<client::Answer> {
    let key = uuid::Uuid::now_v7().to_string();
    let headers = [(IDEMPOTENCY_KEY, key.as_str())];
    client
        .send_with(Method::POST, "/v1/jobs", Some(request), &headers)
        .await
}

fn id_of(body: &Value) -> anyhow::Result<String> {
    let id = body["id"].as_str().context("the answer has no job id")?;
    Ok(id.to_owned())
}

/// Follows a job to its end; a signal to this program cancels it.
async fn watch(client: &Client, id: &str, json: bool) -> anyhow::Result<Ended> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    let mut events = Events::of(client, id);
    let mut told = None;
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = interrupt.recv() => {
                cancel(client, id, &mut told, SignalKind::interrupt()).await?;
                continue;
            }
            _ = terminate.recv() => {
                cancel(client, id, &mut told, SignalKind::terminate()).await?;
                continue;
            }
        };
        let Some(event) = event else {
            bail!("the end of job {id} was not seen; see: quorun logs {id}");
        };
        if event.name == "finished" {
            if json {
                println!("{:#}", event.data);
            } else {
                show_end(&event.data);
            }
            let code = outcome::code(&event.data);
            return Ok(match told {
                None => code.into(),
                Some(signal) => Ended {
                    code: narrow(i64::from(SIGNALLED + signal)),
                    interrupted: true,
                },
            });
        }
        if !json {
            show(&event)?;
        }
    }
}

/// Cancels a job because of a signal; at the second one, this program ends without its end.
async fn cancel(
    client: &Client,
    id: &str,
    told: &mut Option<i32>,
    signal: SignalKind,
) -> anyhow::Result<()> {
    if told.is_some() {
        bail!("interrupted before job {id} had ended");
    }
    *told = Some(signal.as_raw_value());
    // Its end comes with the events, whether it was cancelled or had finished before.
    client
        .json(Method::DELETE, &format!("/v1/jobs/{id}"), None)
        .await
        .with_context(|| format!("job {id} may go on, it could not be cancelled"))?;
    Ok(())
}

/// Shows how a job ended: the table of its test cases, if it has some, and what the program cannot have said itself.
pub fn show_end(job: &Value) {
    if outcome::is_judged(job) {
        outcome::say(&outcome::compiler(job));
        outcome::say(&cases::failures(job));
        print!("{}", cases::report(job));
    } else {
        outcome::say(&outcome::words(job));
    }
}

/// Shows an event that is not the last.
pub fn show(event: &Event) -> anyhow::Result<()> {
    match event.name.as_str() {
        "output" => print(&event.data),
        "test" => {
            eprintln!("{}", cases::line(&event.data));
            Ok(())
        }
        "replaced" => {
            eprintln!(
                "quorun: attempt {} was lost with its node; what it printed is void, attempt {} prints from its beginning",
                event.data["attempt"], event.data["by"]
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

fn print(event: &Value) -> anyhow::Result<()> {
    let bytes = match (event["text"].as_str(), event["base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(base64)) => BASE64.decode(base64).context("an output event")?,
        (None, None) => Vec::new(),
    };
    write(event["stream"] == "stderr", &bytes)
}

/// Passes on what a program printed.
pub fn write(stderr: bool, bytes: &[u8]) -> anyhow::Result<()> {
    if stderr {
        std::io::stderr().write_all(bytes)?;
    } else {
        let mut out = std::io::stdout();
        out.write_all(bytes)?;
        out.flush()?;
    }
    Ok(())
}
