//! `quorun run`.

mod attach;
mod cases;
mod changes;
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

use super::client::{self, Client, IDEMPOTENCY_KEY, problem};
use super::stream::{Event, Events};
use super::target::Target;
use super::{NOT_RUN, UsageError};
use changes::Changes;

/// Exit code after a time limit; as `timeout` has it.
const TIMED_OUT: u8 = 124;
/// What a signal's number is added to for the exit code; as shells have it.
const SIGNALLED: i32 = 128;

/// Run a program on a cluster.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The program; several files are put beside each other, and the first is run
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Its language [default: from the first file's extension]
    #[arg(long, value_name = "NAME")]
    lang: Option<String>,
    /// What the program reads
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
    let ended = if args.watch {
        again_and_again(&client, &args).await
    } else {
        once(&client, &args, &Job::default()).await
    };
    match ended {
        Ok(ended) => Ok(ExitCode::from(ended.code)),
        Err(error) if error.is::<UsageError>() => Err(error),
        Err(error) => {
            eprintln!("quorun: {error:#}");
            Ok(ExitCode::from(NOT_RUN))
        }
    }
}

async fn once(client: &Client, args: &RunArgs, job: &Job) -> anyhow::Result<Ended> {
    let mut request = job::request(client, args).await?;
    if let Some(tests) = &args.tests {
        cases::add_to(&mut request, tests)?;
    }
    if args.interactive {
        let id = start_interactive(client, &mut request).await?;
        return Ok(attach::talk(client, &id).await?.into());
    }
    let id = client::good(submit(client, &request).await?).await?;
    let id = id_of(&id)?;
    *job.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.clone());
    let judged = args.tests.is_some();
    watch(client, &id, judged, args.target.json).await
}

/// Runs the program now and after every change of a file, until somebody interrupts it.
async fn again_and_again(client: &Client, args: &RunArgs) -> anyhow::Result<Ended> {
    let files = args.files.iter().chain(&args.stdin).chain(&args.tests);
    let mut changes = Changes::of(files.map(PathBuf::as_path))?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    loop {
        let job = Job::default();
        let ended = tokio::select! {
            ended = once(client, args, &job) => Some(ended),
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
        bail!("{status}: {}", problem(&body));
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
async fn watch(client: &Client, id: &str, judged: bool, json: bool) -> anyhow::Result<Ended> {
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
            bail!("the end of job {id} was not seen; ask for /v1/jobs/{id}");
        };
        if event.name == "finished" {
            let code = if json {
                println!("{:#}", event.data);
                if judged {
                    cases::exit_code(&event.data)
                } else {
                    exit_code(&event.data, true)
                }
            } else if judged {
                print!("{}", cases::report(&event.data));
                cases::exit_code(&event.data)
            } else {
                exit_code(&event.data, false)
            };
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

/// How a job ended, as an exit code; what the program itself cannot have said is said on stderr.
pub fn exit_code(job: &Value, quiet: bool) -> u8 {
    let verdict = job["verdict"].as_str().unwrap_or("internal_error");
    if !quiet {
        if verdict == "compile_error" {
            for name in ["stdout", "stderr"] {
                eprint!("{}", job["compile"][name].as_str().unwrap_or_default());
            }
        }
        if !matches!(verdict, "accepted" | "runtime_error") {
            let message = job["message"].as_str().unwrap_or_default();
            eprintln!("quorun: {verdict}: {message}");
        }
        for stream in ["stdout", "stderr"] {
            if job["truncated"][stream] == true {
                eprintln!("quorun: {stream} was longer than output_kb; the rest was dropped");
            }
        }
    }
    if let Some(code) = job["exit_code"].as_i64() {
        return narrow(code);
    }
    match (verdict, job["signal"].as_i64()) {
        ("time_limit", _) => TIMED_OUT,
        (_, Some(signal)) => narrow(i64::from(SIGNALLED) + signal),
        ("compile_error", _) => 1,
        _ => NOT_RUN,
    }
}

fn narrow(code: i64) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_code_is_the_program_s_or_says_why_there_is_none() {
        let code = |value: Value| exit_code(&value, true);
        assert_eq!(code(json!({"verdict": "accepted", "exit_code": 0})), 0);
        assert_eq!(
            code(json!({"verdict": "runtime_error", "exit_code": 42})),
            42
        );
        assert_eq!(
            code(json!({"verdict": "runtime_error", "exit_code": -1})),
            255
        );
        assert_eq!(code(json!({"verdict": "runtime_error", "signal": 11})), 139);
        assert_eq!(code(json!({"verdict": "memory_limit", "signal": 9})), 137);
        assert_eq!(
            code(json!({"verdict": "time_limit", "signal": 9})),
            TIMED_OUT
        );
        assert_eq!(code(json!({"verdict": "compile_error"})), 1);
        assert_eq!(code(json!({"verdict": "internal_error"})), NOT_RUN);
        assert_eq!(code(json!({"verdict": "cancelled"})), NOT_RUN);
        assert_eq!(code(json!({})), NOT_RUN);
    }
}
