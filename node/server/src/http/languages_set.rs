//! Setting, disabling and removing languages while the cluster runs: for admins.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use quorun_consensus::ProposeError;
use quorun_executor::Presence;
use quorun_ledger::{Command, Language, Limits, NodeId, Rejection, Reply};
use serde::Deserialize;
use serde_json::Value;
use tracing::info;
use utoipa::ToSchema;

use super::jobs;
use super::languages::{self, Everybody, LanguageShape, Said, answer, everybody};
use super::openapi::words;
use super::problem::{Kind, Problem};
use super::query::{Asked, Parameters};
use super::{App, body, path};
use crate::catalogue::Known;
use crate::jobs::Error;
use crate::languages::{Definition, Mistake, PartialLimits, PartialStepLimits, define, within};
use crate::ledger;

/// The largest body.
const MAX_BODY: usize = 64 * 1024;
/// How long a proposal may take before the client is told to try again.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a registry may take to say what an image's digest is.
const REGISTRY: Duration = Duration::from_secs(5);
/// Pause between two looks at how far the nodes are.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A language as an admin defines it. `{source}`, `{sources}` and `{stem}` in its commands stand for files of the job, `{compile_args}` in
/// `compile` for its arguments for the compiler.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LanguageDefinition)]
struct PutRequest {
    /// As in the path; better left out.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    #[schema(schema_with = words::names)]
    aliases: Vec<String>,
    #[serde(default)]
    #[schema(max_length = 200)]
    title: Option<String>,
    /// Any OCI image.
    #[schema(min_length = 1)]
    image: String,
    /// Whether all nodes are to run the very image that the name stands for now.
    #[serde(default)]
    pin: Option<bool>,
    /// The file name that a single source gets.
    #[schema(min_length = 1, max_length = 100, pattern = "^[^-/]")]
    source: String,
    /// The command that compiles, without a shell.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 64)]
    compile: Option<Vec<String>>,
    /// The command that runs, without a shell.
    #[schema(min_items = 1, max_items = 64)]
    run: Vec<String>,
    #[serde(default)]
    #[schema(schema_with = words::env)]
    env: BTreeMap<String, String>,
    /// Variables of an interpreter that is started ahead, where nodes do that.
    #[serde(default)]
    #[schema(schema_with = words::env)]
    zygote: BTreeMap<String, String>,
    /// Of files in the language, without the dot.
    #[serde(default)]
    #[schema(schema_with = words::names)]
    extensions: Vec<String>,
    #[serde(default)]
    #[schema(value_type = super::submission::LimitsRequest)]
    limits: PartialLimits,
    #[serde(default)]
    #[schema(value_type = super::judging::TestLimitsRequest)]
    compile_limits: PartialStepLimits,
    /// A program in it.
    #[serde(default)]
    #[schema(max_length = 16384)]
    example: String,
    /// The command that prints the version of the tools.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 64)]
    version_command: Option<Vec<String>>,
    /// Defined, but takes no submissions yet.
    #[serde(default)]
    disabled: bool,
}

impl PutRequest {
    /// The language that is defined, by the name that the path says.
    fn check(self, name: String, most: &Limits) -> Result<Language, Problem> {
        if let Some(other) = self.name.as_ref().filter(|other| **other != name) {
            return Err(Problem::invalid(
                "name",
                format!(
                    "name is \"{}\", and the path says \"{}\"; leave it out",
                    shortened(other),
                    shortened(&name)
                ),
            )
            .with("value", other.as_str()));
        }
        let definition = Definition {
            name,
            aliases: self.aliases,
            title: self.title,
            image: Some(self.image),
            source: self.source,
            compile: self.compile,
            run: self.run,
            env: self.env,
            zygote: self.zygote,
            extensions: self.extensions,
            limits: self.limits,
            compile_limits: self.compile_limits,
            example: self.example,
            version_command: self.version_command,
        };
        let language = define(definition, &Limits::default(), PartialStepLimits::default())?;
        within(&language, most)?;
        Ok(language)
    }
}

/// What can be changed without defining the language.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LanguageChange)]
struct PatchRequest {
    /// Takes no more submissions, or takes them again.
    disabled: bool,
}

impl From<Mistake> for Problem {
    fn from(mistake: Mistake) -> Self {
        let problem = Self::invalid(&mistake.field, mistake.text);
        let problem = match mistake.value {
            Some(value) => problem.with("value", value),
            None => problem,
        };
        match mistake.limit {
            Some(limit) => problem.with("limit", limit),
            None => problem,
        }
    }
}

fn changed(detail: String, version: u64) -> Problem {
    Problem::new(Kind::LanguageChanged, detail).with("version", version)
}

/// What a request expects of the language's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Nothing.
    Anything,
    /// That there is such a language.
    Some,
    /// That there is none.
    None,
    /// That its entry has this version, 0 for none.
    Version(u64),
}

impl Expected {
    /// What the headers say.
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let single = |name: header::HeaderName| -> Result<Option<&str>, Problem> {
            let mut values = headers.get_all(&name).iter();
            let Some(value) = values.next() else {
                return Ok(None);
            };
            match (value.to_str(), values.next()) {
                (Ok(text), None) => Ok(Some(text.trim())),
                _ => Err(Problem::invalid(
                    name.as_str(),
                    format!("the {name} header should be there once, in ASCII"),
                )
                .with("value", String::from_utf8_lossy(value.as_bytes()))),
            }
        };
        let (matches, none) = (single(header::IF_MATCH)?, single(header::IF_NONE_MATCH)?);
        match (matches, none) {
            (None, None) => Ok(Self::Anything),
            (Some("*"), None) => Ok(Self::Some),
            (None, Some("*")) => Ok(Self::None),
            (Some(tag), None) => tag
                .strip_prefix('"')
                .and_then(|tag| tag.strip_suffix('"'))
                .and_then(|tag| tag.parse().ok())
                .map(Self::Version)
                .ok_or_else(|| {
                    Problem::invalid(
                        "if-match",
                        "If-Match should be * or one version in quotes, such as \"3\", as the ETag of an answer has it",
                    )
                    .with("value", tag)
                }),
            (None, Some(tag)) => Err(Problem::invalid(
                "if-none-match",
                "If-None-Match should be *: the language is not there yet",
            )
            .with("value", tag)),
            (Some(_), Some(_)) => Err(Problem::invalid(
                "if-match",
                "send If-Match or If-None-Match, not both",
            )),
        }
    }

    /// The version that the ledger is to hold the entry to, now that the language is known, or is not.
    fn version(self, known: Option<&Known>) -> Result<Option<u64>, Problem> {
        match (self, known) {
            (Self::Some, None) => Err(changed("there is no such language".to_owned(), 0)),
            (Self::None, Some(known)) => Err(changed(
                format!("there is a language {} already", known.language.name),
                known.version,
            )),
            (Self::None, None) => Ok(Some(0)),
            (Self::Version(version), _) => Ok(Some(version)),
            (Self::Anything | Self::Some, _) => Ok(None),
        }
    }
}

/// How long the answer waits for the nodes.
fn wait(query: Asked) -> Result<Option<Duration>, Problem> {
    jobs::wait(Parameters::new(query)?.one("wait")?)
}

/// Define a language, or define it anew
#[utoipa::path(
    put, path = "/v1/languages/{name}", operation_id = "put_language", tag = "languages",
    description = "What is set here goes before the files of the nodes. To define it again with the same words is no change.",
    params(
        ("name" = String, Path, min_length = 1, max_length = 40, pattern = "^[a-z0-9+#._-]+$", description = "Its name"),
        ("wait" = Option<f64>, Query, minimum = 0,
            description = "Wait so many seconds until every living node has the language, or has failed to get it; 300 if more is asked for"),
        ("If-Match" = Option<String>, Header, pattern = "^([*]|\"[0-9]+\")$", description = "Only if it has this version in quotes, as its `ETag`; or, with `*`, if it is there"),
        ("If-None-Match" = Option<String>, Header, pattern = "^\\*$", description = "With `*`, only if it is not there"),
    ),
    request_body(content = PutRequest, example = json!({
        "image": "nickblah/lua:5.4", "source": "main.lua", "run": ["lua", "{source}"], "aliases": ["lua5"],
        "extensions": ["lua"], "version_command": ["lua", "-v"], "limits": { "memory_kb": 131_072 },
        "example": "print(\"hello\")",
    })),
    responses(
        (status = 201, description = "It is there now", body = LanguageShape, headers(("ETag" = String, description = "Its version")), example = json!(languages::example_of_change())),
        (status = 200, description = "It is defined anew", body = LanguageShape, headers(("ETag" = String, description = "Its version")), example = json!(languages::example_of_change())),
        (status = 204, description = "An admin at another node has removed it meanwhile"),
    ),
    extensions(("x-problems" = json!([
        "language-changed", "name-taken", "too-many-languages", "older-nodes", "no-quorum", "unconfirmed", "node-failing", "node-ending",
    ]))),
)]
pub async fn put(
    State(app): State<App>,
    name: Result<Path<String>, PathRejection>,
    query: Asked,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let patience = wait(query)?;
    let name = path(name)?;
    let expected = Expected::of(&headers)?;
    let bytes = body::read(&headers, body, MAX_BODY).await?;
    let request: PutRequest = body::json(&bytes)?;
    let (pin, disabled) = (request.pin.unwrap_or(true), request.disabled);
    let mut language = request.check(name, &app.config.ceilings.limits)?;
    free_of_files(&app, &language)?;
    let current = app.catalogue.current();
    let known = current.all().find(|k| k.language.name == language.name);
    let expected = expected.version(known)?;
    all_know_how(&everybody(&app, true).await)?;
    let image = language.image.clone();
    if pin && let Some(digest) = digest(&app, &language).await {
        language.image = digest;
    }
    let name = language.name.clone();
    let command = Command::SetLanguage {
        image,
        language: Box::new(language),
        disabled,
        expected,
    };
    let created = known.is_none();
    propose(&app, &name, command).await?;
    let status = if created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    outcome(&app, &name, status, patience).await
}

/// Disable a language, or enable it
#[utoipa::path(
    patch, path = "/v1/languages/{name}", operation_id = "patch_language", tag = "languages",
    description = "Also one of the nodes' files. Jobs that were accepted before still run.",
    params(
        ("name" = String, Path, description = "Its name, or an alias"),
        ("wait" = Option<f64>, Query, minimum = 0,
            description = "Wait so many seconds until every living node has the language, or has failed to get it; 300 if more is asked for"),
        ("If-Match" = Option<String>, Header, pattern = "^([*]|\"[0-9]+\")$", description = "Only if it has this version in quotes, as its `ETag`"),
    ),
    request_body(content = PatchRequest, example = json!({ "disabled": true })),
    responses(
        (status = 200, description = "So it is", body = LanguageShape, headers(("ETag" = String, description = "Its version")), example = json!(languages::example_of_change())),
        (status = 204, description = "An admin at another node has removed it meanwhile"),
    ),
    extensions(("x-problems" = json!([
        "unknown-language", "language-changed", "too-many-languages", "older-nodes", "no-quorum", "unconfirmed", "node-failing",
        "node-ending",
    ]))),
)]
pub async fn patch(
    State(app): State<App>,
    name: Result<Path<String>, PathRejection>,
    query: Asked,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let patience = wait(query)?;
    let name = path(name)?;
    let expected = Expected::of(&headers)?;
    let bytes = body::read(&headers, body, MAX_BODY).await?;
    let PatchRequest { disabled } = body::json(&bytes)?;
    let rules = app.rules();
    let known = rules.known(&name)?;
    let name = known.language.name.clone();
    let expected = expected.version(Some(known))?;
    all_know_how(&everybody(&app, true).await)?;
    let command = Command::DisableLanguage {
        name: name.clone(),
        disabled,
        expected,
    };
    propose(&app, &name, command).await?;
    outcome(&app, &name, StatusCode::OK, patience).await
}

/// Remove what was set of a language
#[utoipa::path(
    delete, path = "/v1/languages/{name}", operation_id = "delete_language", tag = "languages",
    description = "One of the nodes' files is as the file says again.",
    params(
        ("name" = String, Path, description = "Its name"),
        ("If-Match" = Option<String>, Header, pattern = "^([*]|\"[0-9]+\")$", description = "Only if it has this version in quotes, as its `ETag`"),
    ),
    responses(
        (status = 200, description = "The language of the files is there again", body = LanguageShape,
            headers(("ETag" = String, description = "Its version")), example = json!(languages::example_of_change())),
        (status = 204, description = "It is gone"),
    ),
    extensions(("x-problems" = json!([
        "unknown-language", "language-changed", "language-of-file", "no-quorum", "unconfirmed", "node-failing", "node-ending",
    ]))),
)]
pub async fn remove(
    State(app): State<App>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let name = path(name)?;
    let expected = Expected::of(&headers)?;
    let rules = app.rules();
    // Also an entry that only nodes with another file know a language for.
    let asked = name.clone();
    let entry = ledger::read(&app.consensus, move |view| view.language(&asked));
    let entry = entry.await.map_err(Error::from)?;
    let was_set = entry.is_some();
    let known = rules.known(&name);
    let (name, expected) = match (entry, known) {
        (Some(_), known) => {
            let expected = match expected {
                Expected::Some => None,
                expected => expected.version(known.ok())?,
            };
            (name, expected)
        }
        (None, Ok(known)) => (known.language.name.clone(), expected.version(Some(known))?),
        (None, Err(unknown)) => return Err(unknown),
    };
    let command = Command::RemoveLanguage {
        name: name.clone(),
        expected,
    };
    let reply = propose(&app, &name, command).await?;
    // What was there and is not any more has been removed, maybe by somebody else.
    if !was_set && reply != Reply::LanguageRemoved {
        return Err(Problem::new(Kind::LanguageOfFile,
            format!(
                "{name} is not set in the cluster but in the files of the nodes, which have it anyway; disable it with PATCH {{\"disabled\": true}}"
            ),
        )
        .with("language", name));
    }
    info!(language = name, "language removed");
    let now = app.catalogue.current();
    match now.all().find(|known| known.language.name == name) {
        // The file's is there again.
        Some(_) => outcome(&app, &name, StatusCode::OK, None).await,
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// That no name of the language belongs to another one of this node's file. What the ledger has, the ledger looks at.
fn free_of_files(app: &App, language: &Language) -> Result<(), Problem> {
    let now = app.catalogue.current();
    let of_file = now
        .all()
        .filter(|known| known.definition.is_none() && known.language.name != language.name);
    for known in of_file {
        let mut words = std::iter::once(&language.name).chain(&language.aliases);
        if let Some(word) = words.find(|word| known.language.is_called(word)) {
            return Err(name_taken(word, &known.language.name));
        }
    }
    Ok(())
}

fn name_taken(word: &str, language: &str) -> Problem {
    Problem::new(Kind::NameTaken,
        format!(
            "\"{word}\" is a name or an alias of the language {language}; take another one, or define {language} without it first"
        ),
    )
    .with("name", word)
    .with("language", language)
}

/// That every node that lives knows what a language of the ledger is: an older program would stop at the command.
fn all_know_how(said: &Everybody) -> Result<(), Problem> {
    let older: Vec<NodeId> = said
        .iter()
        .filter(|(_, said)| matches!(said, Said::Older))
        .map(|(id, _)| *id)
        .collect();
    if older.is_empty() {
        return Ok(());
    }
    Err(Problem::new(Kind::OlderNodes,
        "some nodes run an older program that does not know languages at run time; upgrade all nodes first",
    )
    .with("nodes", older))
}

/// The image by its digest: as this node's engine has it; where it has none, as the registry says. `None` where nobody
/// knows one, as of an image that was built on the machine.
async fn digest(app: &App, language: &Language) -> Option<String> {
    if language.image.contains('@') {
        return None;
    }
    match app.executor.presence(language).await {
        Presence::Present(image) => image.digest,
        Presence::Missing(_) if app.config.pulls.0 => {
            app.executor
                .digest_in_registry(&language.image, REGISTRY)
                .await
        }
        Presence::Missing(_) | Presence::Unknown(_) => None,
    }
}

/// Why the ledger has not changed a language, if it has not.
fn refused(name: &str, reply: &Reply) -> Result<(), Problem> {
    match reply {
        Reply::LanguageSet { version } => {
            info!(language = name, version, "language set");
            Ok(())
        }
        Reply::LanguageRemoved | Reply::Rejected(Rejection::UnknownLanguage) => Ok(()),
        Reply::Rejected(Rejection::LanguageChanged { version }) => Err(changed(
            format!("the language {name} has version {version}; look at it and decide again"),
            *version,
        )),
        Reply::Rejected(Rejection::NameTaken { word, language }) => Err(name_taken(word, language)),
        Reply::Rejected(Rejection::TooManyLanguages { limit }) => Err(Problem::new(
            Kind::TooManyLanguages,
            format!("{limit} languages are set, which is the most; remove one first"),
        )
        .with("limit", *limit)),
        other => Err(Problem::new(
            Kind::Internal,
            format!("the ledger answered with {other:?}"),
        )),
    }
}

/// Has the ledger change a language, and waits until this node sees it.
async fn propose(app: &App, name: &str, command: Command) -> Result<Reply, Problem> {
    let deadline = Instant::now() + DEADLINE;
    let proposed = app.consensus.propose(command, deadline.into()).await;
    let reply = proposed.map_err(|error| match error {
        ProposeError::Unavailable => Problem::from(Error::NoLeader),
        ProposeError::Stopped => Error::Stopped.into(),
        ProposeError::Unknown => Problem::new(
            Kind::Unconfirmed,
            "whether the request was taken is not known; look at the language, or send it again",
        )
        .retry(),
    })?;
    refused(name, &reply)?;
    // The answer, and whoever asks this node next, must see it.
    let deadline = Instant::now() + DEADLINE;
    let caught_up = app.consensus.linearize(deadline.into()).await;
    caught_up.map_err(|_| Error::NoLeader)?;
    let read = app.catalogue.changed(&app.consensus).await;
    read.map_err(Error::from)?;
    Ok(reply)
}

/// The answer to a change, once all nodes that live have the language, have said why not, or the time is up.
async fn outcome(
    app: &App,
    name: &str,
    status: StatusCode,
    patience: Option<Duration>,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + patience.unwrap_or_default();
    loop {
        let said = everybody(app, true).await;
        let now = app.catalogue.current();
        let Some(known) = now.all().find(|known| known.language.name == name) else {
            // An admin at another node has removed it.
            return Ok(StatusCode::NO_CONTENT.into_response());
        };
        let nodes = languages::on_nodes(known, &said);
        let is = |node: &Value, state: &str| node["state"] == state;
        let needs = known.needs();
        // Present, and with a place in the ledger that says so.
        let ready = nodes.iter().all(|node| is(node, "present"))
            && now.runners(&needs).count() == now.nodes().count();
        let settled = ready
            || nodes
                .iter()
                .all(|node| is(node, "present") || is(node, "failed"))
                && nodes.iter().any(|node| is(node, "failed"));
        if settled || Instant::now() >= deadline {
            let mut body = languages::shown(app, &now, known, &said);
            body["ready"] = ready.into();
            let mut response = answer(known, body);
            *response.status_mut() = status;
            return Ok(response);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY.min(deadline.saturating_duration_since(Instant::now()))) => {}
            () = app.closing.cancelled() => {
                return Err(Problem::new(Kind::NodeEnding,
                    format!("the language {name} is set; ask another node how far it is"),
                )
                .retry());
            }
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::fuzz;
    use super::*;

    fn sound() -> Value {
        json!({
            "name": "a", "image": "alpine:3", "pin": true, "source": "main.a", "run": ["a", "{source}"], "compile": ["b"],
            "env": { "A": "1" }, "aliases": ["b"], "title": "A", "extensions": ["a"], "limits": { "cpu_ms": 1000 },
            "compile_limits": { "cpu_ms": 1000 }, "example": "1", "version_command": ["a", "-v"], "disabled": true,
        })
    }

    proptest! {
        #[test]
        fn any_definition_is_within_bounds_or_refused_in_words(
            put in fuzz::bodies(&sound(), fuzz::NAMES),
            patch in fuzz::bodies(&json!({ "disabled": true }), fuzz::NAMES),
            headers in fuzz::headers(&["if-match", "if-none-match"]),
            name in prop_oneof![Just("a".to_owned()), any::<String>()],
        ) {
            let most = fuzz::rules().ceilings.limits;
            match body::json::<PutRequest>(&put).and_then(|request| request.check(name, &most)) {
                Ok(language) => {
                    prop_assert!(language.limits.cpu_ms <= most.cpu_ms);
                    prop_assert!(!language.run.is_empty());
                }
                Err(problem) => fuzz::is_a_good_answer(&problem),
            }
            if let Err(problem) = body::json::<PatchRequest>(&patch) {
                fuzz::is_a_good_answer(&problem);
            }
            if let Err(problem) = Expected::of(&headers) {
                fuzz::is_a_good_answer(&problem);
            }
        }
    }

    #[test]
    fn a_cluster_with_older_nodes_takes_no_languages() {
        let reports = || Said::Reports(Vec::new());
        let said = |said: Vec<Said>| Everybody::new((1..).zip(said).collect());
        all_know_how(&said(vec![reports(), Said::Silent])).unwrap();
        let older = said(vec![reports(), Said::Older, Said::Older]);
        let problem = all_know_how(&older).unwrap_err().to_json();
        assert_eq!(problem["type"], "urn:quorun:error:older-nodes");
        assert_eq!(problem["nodes"], json!([2, 3]));
    }

    #[test]
    fn what_the_ledger_refuses_is_said() {
        refused("a", &Reply::LanguageSet { version: 3 }).unwrap();
        for (rejection, kind, member, value) in [
            (
                Rejection::LanguageChanged { version: 3 },
                "language-changed",
                "version",
                json!(3),
            ),
            (
                Rejection::TooManyLanguages { limit: 256 },
                "too-many-languages",
                "limit",
                json!(256),
            ),
            (
                Rejection::NameTaken {
                    word: "b".to_owned(),
                    language: "c".to_owned(),
                },
                "name-taken",
                "language",
                json!("c"),
            ),
            (Rejection::UnknownNode, "internal", "status", json!(500)),
        ] {
            let problem = refused("a", &Reply::Rejected(rejection))
                .unwrap_err()
                .to_json();
            assert_eq!(problem["type"], format!("urn:quorun:error:{kind}"));
            assert_eq!(problem[member], value, "{problem}");
        }
    }

    #[test]
    fn what_is_changed_above_is_sound_before() {
        let request: PutRequest = body::json(sound().to_string().as_bytes()).unwrap();
        request
            .check("a".to_owned(), &fuzz::rules().ceilings.limits)
            .unwrap();
    }

    fn of(headers: &[(header::HeaderName, &'static str)]) -> Result<Expected, Problem> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        Expected::of(&map)
    }

    #[test]
    fn conditions_are_read_as_http_has_them() {
        let (matches, none) = (header::IF_MATCH, header::IF_NONE_MATCH);
        assert_eq!(of(&[]).unwrap(), Expected::Anything);
        assert_eq!(of(&[(matches.clone(), "*")]).unwrap(), Expected::Some);
        assert_eq!(
            of(&[(matches.clone(), " \"17\" ")]).unwrap(),
            Expected::Version(17)
        );
        assert_eq!(of(&[(none.clone(), "*")]).unwrap(), Expected::None);
        for wrong in [
            vec![(matches.clone(), "17")],
            vec![(matches.clone(), "W/\"17\"")],
            vec![(matches.clone(), "\"a\"")],
            vec![(matches.clone(), "\"1\", \"2\"")],
            vec![(matches.clone(), "\"1\""), (matches.clone(), "\"2\"")],
            vec![(none.clone(), "\"1\"")],
            vec![(matches, "*"), (none, "*")],
        ] {
            assert!(of(&wrong).is_err(), "{wrong:?}");
        }
    }
}
