//! From a request to a job: filling in the defaults, and checking everything that a client can get wrong.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::HeaderMap;
use quorun_ledger::{IdempotencyKey, JobSpec, Language, Limits, Priority, SourceFile};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::callback::CallbackRequest;
use super::few::{Few, FewNamed};
use super::interactive::{self, TerminalRequest};
use super::judging::{
    CheckerRequest, Judging, JudgingRequest, OutputsRequest, TestRequest, TestsRequest,
};
use super::openapi::words;
use super::problem::{Kind, Problem, quoted};
use crate::callbacks;
use crate::catalogue::{self, Known, Snapshot};
use crate::config::{Ceilings, LEAST};
use crate::scheduler::KEPT_AT_LEAST;

/// How often a job is tried before it ends with `internal_error`.
const MAX_ATTEMPTS: u32 = 3;
/// Bounds on what stands beside the source.
pub const MAX_FILES: usize = 100;
const MAX_FILE_NAME: usize = 255;
pub const MAX_ARGS: usize = 256;
pub const MAX_ENV: usize = 64;
pub const MAX_WORD: usize = 4096;
pub const MAX_LABELS: usize = 16;
pub const MAX_LABEL: usize = 128;
pub const MAX_KEY: usize = 255;
pub const MAX_ISOLATION_KEY: usize = 128;
/// What bounds a program, and what one reads.
pub const SOURCE_SETTING: &str = "--max-source-kb";
pub const STDIN_SETTING: &str = "--max-stdin-kb";
/// What bounds a submission as a whole.
pub const JSON_SETTINGS: &str = "--max-source-kb, --max-stdin-kb and --max-tests-kb";
/// The longest a submitter may have a finished job kept, seconds: 30 days.
const MAX_RETENTION_S: u64 = 30 * 24 * 60 * 60;

/// A job to be run. `language` and one of `source` and `files` are needed; `tests` cannot be together with `stdin`,
/// `outputs`, or `interactive`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Submission)]
pub struct JobRequest {
    /// Name or alias of a language.
    pub language: String,
    /// The program, if it is one file.
    #[serde(default)]
    pub source: Option<String>,
    /// The program, if it is more.
    #[serde(default)]
    #[schema(value_type = Option<Vec<FileRequest>>, min_items = 1, max_items = 100)]
    pub files: Option<FilesRequest>,
    /// Which of the files is run or compiled; the first if not said.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255)]
    pub entrypoint: Option<String>,
    /// What the program reads.
    #[serde(default)]
    pub stdin: Option<String>,
    /// The same, for bytes that are not text.
    #[serde(default)]
    #[schema(content_encoding = "base64")]
    pub stdin_base64: Option<String>,
    /// The inputs that the program is run with, each in a clean state of its own, and what is expected of it.
    #[serde(default)]
    #[schema(value_type = Option<Vec<TestRequest>>, min_items = 1, max_items = 1000)]
    pub tests: Option<TestsRequest>,
    /// The first test case that is not accepted is the last that is run.
    #[serde(default)]
    pub stop_on_failure: bool,
    /// Who compares what was printed with what was expected.
    #[serde(default)]
    pub checker: Option<CheckerRequest>,
    /// Files below the job's folder whose content is part of the result.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 16)]
    pub outputs: OutputsRequest,
    /// Arguments.
    #[serde(default)]
    #[schema(schema_with = words::args)]
    pub args: Few<String, MAX_ARGS>,
    /// Arguments for the compiler.
    #[serde(default)]
    #[schema(schema_with = words::compile_args)]
    pub compile_args: Few<String, MAX_ARGS>,
    /// Environment.
    #[serde(default)]
    #[schema(schema_with = words::env)]
    pub env: FewNamed<String, MAX_ENV>,
    /// Limits other than the language's own.
    #[serde(default)]
    pub limits: LimitsRequest,
    /// Marks to find the job by.
    #[serde(default)]
    #[schema(schema_with = words::labels)]
    pub labels: Few<String, MAX_LABELS>,
    /// Whose job it is: its sandbox is shared with no job of another key, or of none.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128, pattern = "^[ -~]+$")]
    pub isolation_key: Option<String>,
    /// How long the finished job is kept, seconds; up to 30 days, or what the cluster keeps jobs for if that is longer.
    #[serde(default)]
    pub retention_s: Option<u64>,
    /// Which level of the queue the job waits in.
    #[serde(default)]
    #[schema(value_type = Option<words::Priority>)]
    pub priority: Option<String>,
    /// Who is to be told that it has finished.
    #[serde(default)]
    pub callback: Option<CallbackRequest>,
    /// Somebody may talk to the program while it runs.
    #[serde(default)]
    pub interactive: bool,
    /// The terminal that an interactive program gets.
    #[serde(default)]
    pub terminal: Option<TerminalRequest>,
}

/// One file of a program: its `content`, or `content_base64`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SourceFile)]
pub struct FileRequest {
    /// Path below the job's folder: relative, without empty, `.` or `..` parts, not beginning with `-`.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^-/]")]
    pub name: String,
    /// Its text.
    #[serde(default)]
    pub content: Option<String>,
    /// Its bytes.
    #[serde(default)]
    #[schema(content_encoding = "base64")]
    pub content_base64: Option<String>,
}

/// The files of a program.
pub type FilesRequest = Few<FileRequest, MAX_FILES>;

/// Limits of a run. What is left out is the language's own; the most that may be asked for is a setting of the nodes.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Limits)]
pub struct LimitsRequest {
    /// CPU time, user and system, of all its processes.
    #[schema(minimum = 1)]
    cpu_ms: Option<u64>,
    /// Wall-clock time.
    #[schema(minimum = 1)]
    wall_ms: Option<u64>,
    /// Memory, with that of its files.
    #[schema(minimum = 16384)]
    memory_kb: Option<u64>,
    /// Processes and threads at one time.
    #[schema(minimum = 1)]
    processes: Option<u64>,
    /// What is kept of stdout, and as much of stderr.
    #[schema(minimum = 1)]
    output_kb: Option<u64>,
    /// Open files of one process.
    #[schema(minimum = 32)]
    open_files: Option<u64>,
    /// The largest file.
    #[schema(minimum = 1)]
    file_kb: Option<u64>,
    /// The stack.
    #[schema(minimum = 128)]
    stack_kb: Option<u64>,
}

/// The largest body that a submission can have whose source and stdin have so many bytes: escapes make text at most six
/// times as long.
#[must_use]
pub const fn largest_body(content: usize) -> usize {
    6 * content + 256 * 1024
}

/// What submissions are checked against.
pub struct Rules<'a> {
    /// The languages.
    pub languages: Arc<Snapshot>,
    /// What may be asked for at most.
    pub ceilings: &'a Ceilings,
    /// How long a finished job is kept when the submission does not say.
    pub retention: Duration,
    /// Whether callbacks may go to private addresses.
    pub private_callbacks: bool,
}

impl Rules<'_> {
    /// The language that a client names.
    pub fn language(&self, name: &str) -> Result<&Language, Problem> {
        self.known(name).map(|known| &known.language)
    }

    /// What a body that could be read asks for, for [`idempotency`]: a language goes by its name there, whatever it was called.
    pub fn asked(&self, body: &[u8]) -> Value {
        let mut asked: Value = serde_json::from_slice(body).unwrap_or_default();
        if let Some(called) = asked.get_mut("language")
            && let Some(known) = called.as_str().and_then(|name| self.languages.find(name))
        {
            *called = known.language.name.as_str().into();
        }
        asked
    }

    /// The same, with where it is from.
    pub fn known(&self, name: &str) -> Result<&Known, Problem> {
        self.languages.find(name).ok_or_else(|| {
            let known = self.languages.all().filter(|known| !known.disabled);
            let known: Vec<&str> = known.map(|k| k.language.name.as_str()).collect();
            Problem::new(
                Kind::UnknownLanguage,
                format!(
                    "{} is not a language of this cluster; it has {}",
                    quoted(name),
                    known.join(", ")
                ),
            )
            .with("field", "language")
            .with("value", name)
            .with("languages", known)
        })
    }

    /// The largest body that can hold an acceptable JSON submission.
    pub fn json_body_limit(&self) -> usize {
        self.ceilings.largest_json()
    }

    /// Turns a request into a job.
    pub fn check(&self, request: JobRequest) -> Result<JobSpec, Problem> {
        let known = self.known(&request.language)?;
        let language = &known.language;
        let (files, entrypoint) =
            self.program(request.source, request.files, request.entrypoint, language)?;
        if request.tests.is_some() && (request.stdin.is_some() || request.stdin_base64.is_some()) {
            return Err(Problem::invalid(
                "stdin",
                "stdin: a job with tests has none of its own; each of the tests has one",
            ));
        }
        let stdin = bytes("stdin", request.stdin, request.stdin_base64)?.unwrap_or_default();
        if stdin.len() > self.ceilings.stdin_bytes {
            return Err(
                Problem::too_large("stdin", self.ceilings.stdin_bytes as u64)
                    .with("value", stdin.len())
                    .set_by(STDIN_SETTING),
            );
        }
        let (Few(args), FewNamed(env), Few(labels)) = (request.args, request.env, request.labels);
        for (n, arg) in args.iter().enumerate() {
            word(&format!("args[{n}]"), arg)?;
        }
        let Few(compile_args) = request.compile_args;
        if !compile_args.is_empty() && language.compile.is_none() {
            return Err(Problem::invalid(
                "compile_args",
                format!(
                    "compile_args: {} is not compiled; its programs take args",
                    language.name
                ),
            )
            .with("value", compile_args.len())
            .with("limit", 0));
        }
        for (n, arg) in compile_args.iter().enumerate() {
            word(&format!("compile_args[{n}]"), arg)?;
        }
        for (name, value) in &env {
            let field = format!("env.{name}");
            if name.is_empty() || name.contains('=') {
                return Err(Problem::invalid(
                    &field,
                    "the name of an environment variable is not empty and has no =",
                )
                .with("value", name.as_str()));
            }
            word(&field, name)?;
            word(&field, value)?;
        }
        for (n, label) in labels.iter().enumerate() {
            if label.is_empty() || label.len() > MAX_LABEL || label.contains(char::is_control) {
                let field = format!("labels[{n}]");
                let detail =
                    format!("a label has 1 to {MAX_LABEL} bytes and no control characters");
                return Err(not_printable(&field, detail, label, MAX_LABEL));
            }
        }
        if let Some(key) = &request.isolation_key {
            isolation_key(key)?;
        }
        let retention_s = request.retention_s.unwrap_or(self.retention.as_secs());
        if retention_s > MAX_RETENTION_S.max(self.retention.as_secs()) {
            return Err(Problem::over_limit(
                "retention_s",
                retention_s,
                MAX_RETENTION_S.max(self.retention.as_secs()),
            ));
        }
        let limits = self.limits(&request.limits, &language.limits)?;
        let judging = JudgingRequest {
            tests: request.tests,
            stop_on_failure: request.stop_on_failure,
            checker: request.checker,
            outputs: request.outputs,
        };
        let Judging {
            tests,
            stop_on_failure,
            checker,
            outputs,
        } = self.judging(judging, &limits)?;
        let callback = request
            .callback
            .map(|callback| callback.check(self.private_callbacks))
            .transpose()?;
        let mut retention_ms = retention_s.max(KEPT_AT_LEAST.as_secs()) * 1000;
        if callback.is_some() {
            // Whoever is told may want to look; and until it is told, there must be something to tell.
            retention_ms = retention_ms.max(callbacks::KEPT.as_secs() * 1000);
        }
        let terminal = interactive::terminal(request.interactive, request.terminal.as_ref())?;
        interactive::check(request.interactive, &tests)?;
        Ok(JobSpec {
            language: language.name.clone(),
            definition: catalogue::pinned(known),
            files,
            entrypoint,
            stdin,
            tests,
            stop_on_failure,
            checker,
            outputs,
            args,
            compile_args,
            env,
            limits,
            labels,
            isolation_key: request.isolation_key,
            owner: None, // whoever takes the submission in says whose it is
            retention_ms,
            max_attempts: if request.interactive {
                1 // what was said cannot be said again
            } else {
                MAX_ATTEMPTS
            },
            priority: priority(request.priority.as_deref())?,
            callback,
            interactive: request.interactive,
            terminal,
        })
    }

    /// The files of a program, and which of them its language's commands are given.
    pub fn program(
        &self,
        source: Option<String>,
        files: Option<FilesRequest>,
        entrypoint: Option<String>,
        language: &Language,
    ) -> Result<(Vec<SourceFile>, String), Problem> {
        let files = self.files(source, files, language)?;
        let entrypoint = entrypoint.unwrap_or_else(|| files[0].name.clone());
        if !files.iter().any(|file| file.name == entrypoint) {
            return Err(Problem::invalid(
                "entrypoint",
                format!(
                    "entrypoint {} is not the name of one of the files",
                    quoted(&entrypoint)
                ),
            )
            .with("value", entrypoint));
        }
        Ok((files, entrypoint))
    }

    fn files(
        &self,
        source: Option<String>,
        files: Option<FilesRequest>,
        language: &Language,
    ) -> Result<Vec<SourceFile>, Problem> {
        let field = if files.is_some() { "files" } else { "source" };
        let files = match (source, files) {
            (Some(source), None) => vec![SourceFile {
                name: language.source.clone(),
                content: Bytes::from(source),
            }],
            (None, Some(Few(files))) => {
                let mut named = Vec::with_capacity(files.len());
                for (n, file) in files.into_iter().enumerate() {
                    let field = format!("files[{n}]");
                    file_name(&format!("{field}.name"), &file.name)?;
                    let content = bytes(
                        &format!("{field}.content"),
                        file.content,
                        file.content_base64,
                    )?
                    .ok_or_else(|| {
                        Problem::invalid(&field, format!("{field} needs content or content_base64"))
                    })?;
                    let taken = |other: &&SourceFile| {
                        other.name == file.name
                            || is_below(&other.name, &file.name)
                            || is_below(&file.name, &other.name)
                    };
                    if let Some(other) = named.iter().find(taken) {
                        return Err(Problem::invalid(
                            &format!("{field}.name"),
                            format!(
                                "{} and {} cannot both be there",
                                quoted(&other.name),
                                quoted(&file.name)
                            ),
                        )
                        .with("value", file.name));
                    }
                    named.push(SourceFile {
                        name: file.name,
                        content,
                    });
                }
                named
            }
            (Some(_), Some(_)) => {
                return Err(Problem::invalid("source", "send source or files, not both"));
            }
            (None, None) => return Err(Problem::invalid("source", "source (or files) is missing")),
        };
        if files.is_empty() {
            let problem = Problem::invalid("files", "files is empty; at least one is needed");
            return Err(problem.with("value", 0).with("limit", 1));
        }
        let size: usize = files.iter().map(|file| file.content.len()).sum();
        if size == 0 {
            return Err(empty_source());
        }
        if size > self.ceilings.source_bytes {
            return Err(Problem::too_large(field, self.ceilings.source_bytes as u64)
                .with("value", size)
                .set_by(SOURCE_SETTING));
        }
        Ok(files)
    }

    /// The limits that were asked for, and where none were, the language's own.
    pub fn limits(&self, asked: &LimitsRequest, own: &Limits) -> Result<Limits, Problem> {
        let most = &self.ceilings.limits;
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let mut limits = Limits {
            cpu_ms: limit(
                "cpu_ms",
                asked.cpu_ms,
                own.cpu_ms,
                LEAST.cpu_ms,
                most.cpu_ms,
            )?,
            wall_ms: limit(
                "wall_ms",
                asked.wall_ms,
                own.wall_ms,
                LEAST.wall_ms,
                most.wall_ms,
            )?,
            memory_kb: limit(
                "memory_kb",
                asked.memory_kb,
                own.memory_kb,
                LEAST.memory_kb,
                most.memory_kb,
            )?,
            processes: number(limit(
                "processes",
                asked.processes,
                own.processes.into(),
                LEAST.processes.into(),
                most.processes.into(),
            )?),
            output_kb: limit(
                "output_kb",
                asked.output_kb,
                own.output_kb,
                LEAST.output_kb,
                most.output_kb,
            )?,
            open_files: number(limit(
                "open_files",
                asked.open_files,
                own.open_files.into(),
                LEAST.open_files.into(),
                most.open_files.into(),
            )?),
            file_kb: None,
            stack_kb: limit(
                "stack_kb",
                asked.stack_kb,
                own.stack_kb,
                LEAST.stack_kb,
                most.stack_kb,
            )?,
        };
        let room = quorun_executor::largest_file_kb(limits.memory_kb);
        let most = most.file_kb.unwrap_or(room);
        limits.file_kb = match asked.file_kb {
            Some(_) => {
                let least = LEAST.file_kb.unwrap_or_default();
                Some(limit("file_kb", asked.file_kb, most, least, most)?)
            }
            // Without a limit of its own a job may fill its folder, whose size follows from the memory that it got.
            None => own.file_kb.or_else(|| (room > most).then_some(most)),
        };
        Ok(limits)
    }
}

/// A body without a program.
pub fn empty_source() -> Problem {
    Problem::new(
        Kind::EmptySource,
        "the source is empty; send the program's text as the body",
    )
    .with("field", "source")
}

/// The value that was asked for, if it is allowed; the language's own if none was.
pub fn limit(
    name: &str,
    asked: Option<u64>,
    own: u64,
    least: u64,
    most: u64,
) -> Result<u64, Problem> {
    let field = format!("limits.{name}");
    match asked {
        None => Ok(own),
        Some(value) if value < least => Err(Problem::invalid(
            &field,
            format!("{field} is {value}; at least {least} is needed"),
        )
        .with("value", value)
        .with("limit", least)),
        Some(value) if value > most => Err(Problem::over_limit(&field, value, most)),
        Some(value) => Ok(value),
    }
}

/// Something that people are shown is empty, too long, or not all of it can be shown.
pub fn not_printable(field: &str, detail: String, text: &str, most: usize) -> Problem {
    let limit = if text.is_empty() { 1 } else { most };
    Problem::invalid(field, detail)
        .with("value", text)
        .with("limit", limit)
}

/// The key by which jobs are kept apart. Compared byte by byte, so that what looks the same must be the same.
fn isolation_key(key: &str) -> Result<(), Problem> {
    let printable = key.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if printable && (1..=MAX_ISOLATION_KEY).contains(&key.len()) {
        return Ok(());
    }
    Err(Problem::invalid(
        "isolation_key",
        format!(
            "isolation_key should be 1 to {MAX_ISOLATION_KEY} printable ASCII characters; leave it out for a job that may share its sandbox with other jobs without a key"
        ),
    )
    .with("value", key)
    .with("limit", MAX_ISOLATION_KEY))
}

/// Which level of the queue a word means.
fn priority(word: Option<&str>) -> Result<Priority, Problem> {
    let Some(word) = word else {
        return Ok(Priority::Normal);
    };
    Priority::named(word).ok_or_else(|| Problem::no_such("priority", word, "high, normal or low"))
}

/// Something that becomes an argument or a variable of a process.
fn word(field: &str, text: &str) -> Result<(), Problem> {
    if text.len() > MAX_WORD {
        return Err(Problem::too_long(field, text.len(), MAX_WORD, "bytes"));
    }
    if text.contains('\0') {
        return Err(Problem::invalid(
            field,
            format!("{field} has a NUL byte, which no argument or variable can hold"),
        ));
    }
    Ok(())
}

/// Names stay below the job's folder.
pub fn file_name(field: &str, name: &str) -> Result<(), Problem> {
    let sound = !name.is_empty()
        && !name.starts_with('-') // an interpreter would take it for an option
        && name.len() <= MAX_FILE_NAME
        && !name.contains('\0')
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if sound {
        return Ok(());
    }
    Err(Problem::invalid(
        field,
        format!(
            "{field} should be a relative path of at most {MAX_FILE_NAME} bytes without empty, . or .. parts, and not begin with -"
        ),
    )
    .with("value", name)
    .with("limit", MAX_FILE_NAME))
}

/// Whether one path would need the other to be a folder.
pub fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// The bytes of a field that comes as text, or as base64 under another name.
pub fn bytes(
    field: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Bytes>, Problem> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(Problem::invalid(
            field,
            format!("send {field} or {field}_base64, not both"),
        )),
        (Some(text), None) => Ok(Some(Bytes::from(text))),
        (None, Some(text)) => match BASE64.decode(text.as_bytes()) {
            Ok(decoded) => Ok(Some(Bytes::from(decoded))),
            Err(error) => Err(Problem::invalid(
                &format!("{field}_base64"),
                format!("{field}_base64 is not base64: {error}"),
            )
            .with("value", text)),
        },
        (None, None) => Ok(None),
    }
}

/// The idempotency key of a request, with the fingerprint of what it asks for: what the client said, before anything is
/// added that is decided here, so that a retry is the same request whatever an admin has changed meanwhile.
pub fn idempotency(
    headers: &HeaderMap,
    asked: impl FnOnce() -> Value,
) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let single = headers.get_all("idempotency-key").iter().count() == 1;
    let key = value
        .to_str()
        .ok()
        .filter(|key| single && !key.is_empty() && key.len() <= MAX_KEY && !key.contains('\t'))
        .ok_or_else(|| {
            Problem::invalid(
                "Idempotency-Key",
                format!(
                    "the Idempotency-Key header should be there once, with 1 to {MAX_KEY} printable ASCII characters"
                ),
            )
            .with("value", String::from_utf8_lossy(value.as_bytes()))
            .with("limit", MAX_KEY)
        })?;
    // Written anew: neither white space nor the order of the fields makes another request.
    let digest = blake3::hash(asked().to_string().as_bytes());
    let mut fingerprint = [0; 16];
    fingerprint.copy_from_slice(&digest.as_bytes()[..16]);
    Ok(Some(IdempotencyKey {
        key: key.to_owned(),
        fingerprint,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{body, fuzz};
    use super::*;

    fn read(bytes: &[u8], headers: &HeaderMap) -> Result<JobSpec, Problem> {
        let request: JobRequest = body::json(bytes)?;
        let spec = fuzz::rules().check(request)?;
        idempotency(headers, || fuzz::rules().asked(bytes))?;
        Ok(spec)
    }

    #[test]
    fn a_request_is_the_same_however_it_is_written() {
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", "k".parse().unwrap());
        let fingerprint = |body: &str| {
            let key = idempotency(&headers, || fuzz::rules().asked(body.as_bytes()));
            key.unwrap().unwrap().fingerprint
        };
        let first = fingerprint(r#"{"language":"python","source":"1"}"#);
        assert_eq!(
            first,
            fingerprint(r#"{ "source": "\u0031", "language": "python" }"#)
        );
        assert_eq!(first, fingerprint(r#"{"language":"py","source":"1"}"#));
        for other in [
            r#"{"language":"python","source":"2"}"#,
            r#"{"language":"bash","source":"1"}"#,
            r#"{"language":"python","source":"1","retention_s":60}"#,
        ] {
            assert_ne!(first, fingerprint(other), "{other}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn any_submission_is_taken_within_bounds_or_refused_in_words(
            bytes in prop_oneof![
                fuzz::bodies(&fuzz::submission(), fuzz::NAMES),
                fuzz::bodies(&fuzz::conversation(), fuzz::NAMES),
            ],
            headers in fuzz::headers(&["idempotency-key"]),
        ) {
            match read(&bytes, &headers) {
                Ok(spec) => {
                    let bytes = quorun_ledger::codec::encode(&spec);
                    let again: JobSpec = quorun_ledger::codec::decode(&bytes).unwrap();
                    prop_assert_eq!(&again, &spec);
                    prop_assert!(spec.files.iter().any(|file| file.name == spec.entrypoint));
                    prop_assert!(spec.files.len() <= MAX_FILES && spec.args.len() <= MAX_ARGS);
                    prop_assert!(spec.compile_args.len() <= MAX_ARGS);
                    prop_assert!(spec.labels.len() <= MAX_LABELS && spec.env.len() <= MAX_ENV);
                }
                Err(problem) => fuzz::is_a_good_answer(&problem),
            }
        }
    }

    /// What a refusal says of the field, for one of each way of being wrong.
    #[test]
    fn a_refusal_has_the_field_the_value_and_the_limit() {
        let long = "x".repeat(3000);
        for (job, field, value, limit) in [
            (r#"{"source":"1"}"#, "language", None, None),
            (r#"{"language":7}"#, "language", Some("7"), None),
            (r#"{"language":"a","language":"b"}"#, "language", None, None),
            (r#"{"language":"a","sauce":"b"}"#, "sauce", None, None),
            (
                r#"{"language":"a","args":["x",-5]}"#,
                "args[1]",
                Some("-5"),
                None,
            ),
            (r#"{"language":"a","args":{}}"#, "args", None, None),
            (
                r#"{"language":"a","limits":{"cpu_ms":"1"}}"#,
                "limits.cpu_ms",
                Some("\"1\""),
                None,
            ),
            (
                r#"{"language":"a","files":[{"content":""}]}"#,
                "files[0].name",
                None,
                None,
            ),
            (
                r#"{"language":"a","files":[{"name":"a"},{"name":true}]}"#,
                "files[1].name",
                Some("true"),
                None,
            ),
            (
                r#"{"language":"a","outputs":["","","","","","","","","","","","","","","","",""]}"#,
                "outputs",
                Some("17"),
                Some(16),
            ),
            // What may be secret is not sent back.
            (
                r#"{"language":"a","callback":"hunter2"}"#,
                "callback",
                None,
                None,
            ),
            (
                r#"{"language":"a","callback":{"url":"x","secret":77777}}"#,
                "callback.secret",
                None,
                None,
            ),
            (
                r#"{"language":"a","callback":{"url":"x","headers":"hunter2"}}"#,
                "callback.headers",
                None,
                None,
            ),
            (r#"{"language":"a","env":"hunter2"}"#, "env", None, None),
            // What can only be seen when it is checked.
            (
                r#"{"language":"bash","source":"1","compile_args":["-g"]}"#,
                "compile_args",
                Some("1"),
                Some(0),
            ),
            (
                r#"{"language":"c","source":"1","compile_args":["-g","\u0000"]}"#,
                "compile_args[1]",
                None,
                None,
            ),
            (
                r#"{"language":"bash","source":"1","priority":"urgent"}"#,
                "priority",
                Some("\"urgent\""),
                None,
            ),
            (
                r#"{"language":"bash","source":"1","labels":[""]}"#,
                "labels[0]",
                Some("\"\""),
                Some(1),
            ),
            (
                r#"{"language":"bash","source":"1","terminal":{"rows":2000,"columns":1},"interactive":true}"#,
                "terminal.rows",
                Some("2000"),
                Some(1000),
            ),
        ] {
            let problem = read(job.as_bytes(), &HeaderMap::new()).unwrap_err();
            fuzz::is_a_good_answer(&problem);
            let body = problem.to_json();
            assert_eq!(body["field"], field, "{job}: {body}");
            let said = body.get("value").map(ToString::to_string);
            assert_eq!(said.as_deref(), value, "{job}: {body}");
            assert_eq!(
                body.get("limit").and_then(serde_json::Value::as_u64),
                limit,
                "{job}: {body}"
            );
            for secret in ["hunter2", "77777"] {
                assert!(!body.to_string().contains(secret), "{job}: {body}");
            }
        }
        let named = format!(r#"{{"language":"{long}","source":"1"}}"#);
        let problem = read(named.as_bytes(), &HeaderMap::new()).unwrap_err();
        fuzz::is_a_good_answer(&problem);
        let typed = format!(r#"{{"language":"a","interactive":"{long}"}}"#);
        let problem = read(typed.as_bytes(), &HeaderMap::new()).unwrap_err();
        fuzz::is_a_good_answer(&problem);
    }
}
