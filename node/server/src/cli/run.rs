//! `quorun run`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::Target;
use super::client::{Client, problem};

/// Exit code when Quorun, not the program, is the reason; as `docker run` has it.
const NOT_RUN: u8 = 125;
/// Exit code after a time limit; as `timeout` has it.
const TIMED_OUT: u8 = 124;

/// Run a program on a cluster.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The program
    file: PathBuf,
    /// Its language [default: from the file's extension]
    #[arg(long, value_name = "NAME")]
    lang: Option<String>,
    /// What the program reads
    #[arg(long, value_name = "FILE")]
    stdin: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// Arguments of the program
    #[arg(last = true)]
    args: Vec<String>,
}

/// Runs the program: prints what it prints while it prints it, and exits as it exits.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    let source = read(&args.file)?;
    let language = match args.lang {
        Some(language) => language,
        None => language_of(&client, &args.file).await?,
    };
    let name = args
        .file
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut request = json!({ "language": language, "args": args.args });
    match String::from_utf8(source) {
        Ok(text) => request["source"] = text.into(),
        Err(error) => {
            let content = BASE64.encode(error.as_bytes());
            request["files"] = json!([{ "name": name, "content_base64": content }]);
        }
    }
    if let Some(path) = &args.stdin {
        request["stdin_base64"] = BASE64.encode(read(path)?).into();
    }
    let (status, body) = client
        .json(Method::POST, "/v1/jobs", Some(&request))
        .await?;
    if !status.is_success() {
        bail!("{status}: {}", problem(&body));
    }
    let id = body["id"].as_str().context("the answer has no job id")?;
    let events = client
        .send(Method::GET, &format!("/v1/jobs/{id}/events"), None)
        .await?;
    if events.status() != StatusCode::OK {
        bail!("following job {id}: {}", events.status());
    }
    let mut body = events.into_body();
    let mut reader = EventReader::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.with_context(|| format!("the connection broke; job {id} goes on"))?;
        if let Ok(data) = frame.into_data() {
            for (name, value) in reader.push(&data)? {
                match name.as_str() {
                    "output" => print(&value)?,
                    "finished" => return Ok(exit_code(&value)),
                    "replaced" => bail!(
                        "the node that ran job {id} was lost after it had printed; the job goes on as another attempt, see GET /v1/jobs/{id}"
                    ),
                    "error" => bail!("{}", problem(&value)),
                    _ => {}
                }
            }
        }
    }
    bail!("the node ended the stream before job {id} had finished; ask any node for /v1/jobs/{id}")
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

async fn language_of(client: &Client, file: &Path) -> anyhow::Result<String> {
    let extension = file
        .extension()
        .map(|e| e.to_string_lossy().to_lowercase())
        .with_context(|| {
            format!(
                "{} has no extension; say its language with --lang",
                file.display()
            )
        })?;
    let (_, body) = client.json(Method::GET, "/v1/languages", None).await?;
    let languages = body["languages"].as_array().cloned().unwrap_or_default();
    languages
        .iter()
        .find(|language| {
            language["extensions"]
                .as_array()
                .is_some_and(|all| all.iter().any(|e| e == extension.as_str()))
        })
        .and_then(|language| language["name"].as_str().map(ToOwned::to_owned))
        .with_context(|| format!("no language has the extension .{extension}; say it with --lang"))
}

/// Puts server-sent events together from pieces.
#[derive(Default)]
struct EventReader {
    rest: Vec<u8>,
}

impl EventReader {
    fn push(&mut self, data: &[u8]) -> anyhow::Result<Vec<(String, Value)>> {
        self.rest.extend_from_slice(data);
        let mut events = Vec::new();
        while let Some(end) = self.rest.windows(2).position(|w| w == b"\n\n") {
            let block: Vec<u8> = self.rest.drain(..end + 2).collect();
            let block = String::from_utf8(block).context("an event is not UTF-8")?;
            let field = |name: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                    .map(str::trim_start)
            };
            if let (Some(name), Some(data)) = (field("event"), field("data")) {
                events.push((
                    name.to_owned(),
                    serde_json::from_str(data).context("an event is not JSON")?,
                ));
            }
        }
        Ok(events)
    }
}

fn print(event: &Value) -> anyhow::Result<()> {
    let bytes = match (event["text"].as_str(), event["base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(base64)) => BASE64.decode(base64).context("an output event")?,
        (None, None) => Vec::new(),
    };
    if event["stream"] == "stderr" {
        std::io::stderr().write_all(&bytes)?;
    } else {
        let mut out = std::io::stdout();
        out.write_all(&bytes)?;
        out.flush()?;
    }
    Ok(())
}

fn exit_code(job: &Value) -> ExitCode {
    let verdict = job["verdict"].as_str().unwrap_or("internal_error");
    if verdict == "compile_error" {
        for name in ["stdout", "stderr"] {
            eprint!("{}", job["compile"][name].as_str().unwrap_or_default());
        }
    }
    if !matches!(verdict, "accepted" | "runtime_error") {
        let message = job["message"].as_str().unwrap_or_default();
        eprintln!("quorun: {verdict}: {message}");
    }
    let narrow = |code: i64| u8::try_from(code & 0xff).unwrap_or(1);
    if let Some(code) = job["exit_code"].as_i64() {
        return ExitCode::from(narrow(code));
    }
    match (verdict, job["signal"].as_i64()) {
        ("time_limit", _) => ExitCode::from(TIMED_OUT),
        (_, Some(signal)) => ExitCode::from(narrow(128 + signal)),
        ("compile_error", _) => ExitCode::FAILURE,
        _ => ExitCode::from(NOT_RUN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let text = b"event: output\ndata: {\"text\":\"a\"}\n\n:\n\nevent: finished\ndata: {\"verdict\":\"accepted\"}\n\n";
        for cut in 0..text.len() {
            let mut reader = EventReader::default();
            let mut events = reader.push(&text[..cut]).unwrap();
            events.extend(reader.push(&text[cut..]).unwrap());
            let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["output", "finished"]);
        }
    }
}
