//! Reading languages from their file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};
use quorun_ledger::language::COMPILE_ARGS_PLACEHOLDER;
use quorun_ledger::{Language, Limits, StepLimits};
use serde::Deserialize;
use serde_json::Value;

use crate::config::LEAST;

/// Bounds on what is said of a language.
const MAX_NAME: usize = 40;
const MAX_ALIASES: usize = 16;
const MAX_TITLE: usize = 200;
const MAX_WORDS: usize = 64;
const MAX_WORD: usize = 4096;
const MAX_VARIABLES: usize = 64;
const MAX_SOURCE: usize = 100;
const MAX_EXAMPLE: usize = 16 << 10;
/// The most that a compile step may be given by an admin, milliseconds.
const MAX_COMPILE_MS: u64 = 600_000;

/// The languages of the standard image.
const BUILT_IN: &str = include_str!("../../../sandbox/image/languages.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    image: String,
    #[serde(default)]
    limits: PartialLimits,
    #[serde(default)]
    compile_limits: PartialStepLimits,
    language: Vec<Definition>,
}

/// What is said of a language to define it, in a file and by an admin.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields of `quorun_ledger::Language`
pub struct Definition {
    pub name: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    #[serde(default)]
    pub title: Option<String>,
    #[serde(default)]
    pub image: Option<String>,
    pub source: String,
    #[serde(default)]
    pub compile: Option<Vec<String>>,
    pub run: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub zygote: BTreeMap<String, String>,
    #[serde(default)]
    pub extensions: Vec<String>,
    #[serde(default)]
    pub limits: PartialLimits,
    #[serde(default)]
    pub compile_limits: PartialStepLimits,
    #[serde(default)]
    pub example: String,
    #[serde(default)]
    pub version_command: Option<Vec<String>>,
}

/// Limits, of which any may be left out.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartialLimits {
    cpu_ms: Option<u64>,
    wall_ms: Option<u64>,
    memory_kb: Option<u64>,
    processes: Option<u32>,
    output_kb: Option<u64>,
    open_files: Option<u32>,
    file_kb: Option<u64>,
    stack_kb: Option<u64>,
}

impl PartialLimits {
    /// These, and where they say nothing, those of `under`.
    fn over(self, under: &Limits) -> Limits {
        Limits {
            cpu_ms: self.cpu_ms.unwrap_or(under.cpu_ms),
            wall_ms: self.wall_ms.unwrap_or(under.wall_ms),
            memory_kb: self.memory_kb.unwrap_or(under.memory_kb),
            processes: self.processes.unwrap_or(under.processes),
            output_kb: self.output_kb.unwrap_or(under.output_kb),
            open_files: self.open_files.unwrap_or(under.open_files),
            file_kb: self.file_kb.or(under.file_kb),
            stack_kb: self.stack_kb.unwrap_or(under.stack_kb),
        }
    }
}

/// Times of a step, of which any may be left out.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartialStepLimits {
    cpu_ms: Option<u64>,
    wall_ms: Option<u64>,
}

/// Reads the languages of a file, or the built-in ones. Limits of theirs that are over `most` are lowered to it, with a
/// warning: one option then bounds every job, and lowering it needs no other file.
///
/// # Errors
/// When the file cannot be read, or what it says is not a set of languages; the language is named.
pub fn load(file: Option<&Path>, most: &Limits) -> anyhow::Result<Vec<Language>> {
    let mut languages = match file {
        None => parse(BUILT_IN).context("the built-in languages"),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("read the languages from {}", path.display()))?;
            parse(&text).with_context(|| format!("the languages in {}", path.display()))
        }
    }?;
    for language in &mut languages {
        for (limit, wanted, most) in lower(&mut language.limits, most) {
            tracing::warn!(
                language = language.name,
                "limits.{limit} of the language is {wanted}, over this node's maximum; it has {most} instead"
            );
        }
    }
    Ok(languages)
}

/// Holds limits down to `most`. Returns what was lowered: its name, what it was, what it is.
fn lower(limits: &mut Limits, most: &Limits) -> Vec<(&'static str, u64, u64)> {
    let mut lowered = Vec::new();
    let mut note = |name, wanted: u64, most: u64| {
        let over = wanted > most;
        if over {
            lowered.push((name, wanted, most));
        }
        over
    };
    if note("cpu_ms", limits.cpu_ms, most.cpu_ms) {
        limits.cpu_ms = most.cpu_ms;
    }
    if note("wall_ms", limits.wall_ms, most.wall_ms) {
        limits.wall_ms = most.wall_ms;
    }
    if note("memory_kb", limits.memory_kb, most.memory_kb) {
        limits.memory_kb = most.memory_kb;
    }
    if note("processes", limits.processes.into(), most.processes.into()) {
        limits.processes = most.processes;
    }
    if note("output_kb", limits.output_kb, most.output_kb) {
        limits.output_kb = most.output_kb;
    }
    if note(
        "open_files",
        limits.open_files.into(),
        most.open_files.into(),
    ) {
        limits.open_files = most.open_files;
    }
    if let (Some(wanted), Some(most)) = (limits.file_kb, most.file_kb)
        && note("file_kb", wanted, most)
    {
        limits.file_kb = Some(most);
    }
    if note("stack_kb", limits.stack_kb, most.stack_kb) {
        limits.stack_kb = most.stack_kb;
    }
    lowered
}

/// That a language's programs can start at all.
fn enough(limits: &Limits) -> Result<(), Mistake> {
    let file_kb = limits.file_kb.or(LEAST.file_kb);
    for (limit, value, least) in [
        ("cpu_ms", limits.cpu_ms, LEAST.cpu_ms),
        ("wall_ms", limits.wall_ms, LEAST.wall_ms),
        ("memory_kb", limits.memory_kb, LEAST.memory_kb),
        ("processes", limits.processes.into(), LEAST.processes.into()),
        ("output_kb", limits.output_kb, LEAST.output_kb),
        (
            "open_files",
            limits.open_files.into(),
            LEAST.open_files.into(),
        ),
        (
            "file_kb",
            file_kb.unwrap_or_default(),
            LEAST.file_kb.unwrap_or_default(),
        ),
        ("stack_kb", limits.stack_kb, LEAST.stack_kb),
    ] {
        if value < least {
            return Err(Mistake {
                value: Some(value.into()),
                limit: Some(least),
                ..Mistake::new(
                    format!("limits.{limit}"),
                    format!("limits.{limit} is {value}; at least {least} is needed"),
                )
            });
        }
    }
    Ok(())
}

fn parse(text: &str) -> anyhow::Result<Vec<Language>> {
    let file: File = toml::from_str(text)?;
    ensure!(!file.language.is_empty(), "there is no [[language]]");
    let all = file.limits.over(&Limits::default());
    let mut seen = BTreeSet::new();
    let mut languages = Vec::with_capacity(file.language.len());
    for mut entry in file.language {
        let name = entry.name.clone();
        let words = std::iter::once(&entry.name).chain(&entry.aliases);
        for word in words {
            ensure!(
                seen.insert(word.clone()),
                "language \"{name}\": \"{word}\" is taken by another one"
            );
        }
        entry.image.get_or_insert_with(|| file.image.clone());
        let language = define(entry, &all, file.compile_limits)
            .with_context(|| format!("language \"{name}\""))?;
        languages.push(language);
    }
    Ok(languages)
}

/// Why something cannot be a language.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Mistake {
    /// What is wrong.
    pub field: String,
    /// In words.
    pub text: String,
    /// What it has, where that helps and is no secret.
    pub value: Option<Value>,
    /// The limit that it misses.
    pub limit: Option<u64>,
}

impl Mistake {
    fn new(field: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            text: text.into(),
            value: None,
            limit: None,
        }
    }

    fn of(field: impl Into<String>, value: &str, limit: Option<usize>, text: String) -> Self {
        Self {
            value: Some(value.into()),
            limit: limit.map(|limit| limit as u64),
            ..Self::new(field, text)
        }
    }

    fn many(field: &str, value: usize, limit: usize) -> Self {
        let text = format!("{field} is {value}; at most {limit} is allowed");
        Self {
            value: Some(value.into()),
            limit: Some(limit as u64),
            ..Self::new(field, text)
        }
    }
}

/// Makes a language of what was said of it; the limits that it does not name are these.
///
/// # Errors
/// What cannot be, with the field.
pub fn define(
    entry: Definition,
    limits: &Limits,
    compile_limits: PartialStepLimits,
) -> Result<Language, Mistake> {
    let name = entry.name;
    for (field, word) in
        std::iter::once(("name", &name)).chain(entry.aliases.iter().map(|alias| ("aliases", alias)))
    {
        if !is_name(word) {
            return Err(Mistake::of(
                field,
                word,
                Some(MAX_NAME),
                format!(
                    "\"{}\" is no name: it should have 1 to {MAX_NAME} of a-z, 0-9, and + # . _ -",
                    beginning(word)
                ),
            ));
        }
    }
    for (field, count, most) in [
        ("aliases", entry.aliases.len(), MAX_ALIASES),
        ("extensions", entry.extensions.len(), MAX_ALIASES),
        ("env", entry.env.len(), MAX_VARIABLES),
        ("zygote", entry.zygote.len(), MAX_VARIABLES),
        ("example", entry.example.len(), MAX_EXAMPLE),
        (
            "title",
            entry.title.as_ref().map_or(0, String::len),
            MAX_TITLE,
        ),
    ] {
        if count > most {
            return Err(Mistake::many(field, count, most));
        }
    }
    let title = entry.title.unwrap_or_else(|| name.clone());
    if title.contains(char::is_control) {
        let text = "title has control characters".to_owned();
        return Err(Mistake::of("title", &title, None, text));
    }
    let Some(image) = entry.image else {
        return Err(Mistake::new("image", "image is missing"));
    };
    if !is_image(&image) {
        return Err(Mistake::of(
            "image",
            &image,
            None,
            format!(
                "\"{}\" is not the name of an image, such as python:3.13, or host:5000/name@sha256:…",
                beginning(&image)
            ),
        ));
    }
    for (field, command) in [
        ("run", Some(&entry.run)),
        ("compile", entry.compile.as_ref()),
        ("version_command", entry.version_command.as_ref()),
    ] {
        command.map_or(Ok(()), |command| is_command(field, command))?;
        command.map_or(Ok(()), |command| takes_compile_args(field, command))?;
    }
    let is_file = !entry.source.is_empty()
        && entry.source.len() <= MAX_SOURCE
        && !entry.source.starts_with('-')
        && !entry.source.contains(['/', '\0'])
        && !matches!(entry.source.as_str(), "." | "..");
    if !is_file {
        return Err(Mistake::of(
            "source",
            &entry.source,
            Some(MAX_SOURCE),
            format!(
                "source should be a file name of at most {MAX_SOURCE} bytes that does not begin with -"
            ),
        ));
    }
    for extension in &entry.extensions {
        if !is_name(extension) || extension.starts_with('.') {
            return Err(Mistake::of(
                "extensions",
                extension,
                Some(MAX_NAME),
                format!(
                    "\"{}\" is no extension; it should be like py, without the dot",
                    beginning(extension)
                ),
            ));
        }
    }
    for (field, variables) in [("env", &entry.env), ("zygote", &entry.zygote)] {
        for (variable, value) in variables {
            let sound = !variable.is_empty()
                && variable.len() <= MAX_WORD
                && value.len() <= MAX_WORD
                && !variable.contains(['=', '\0'])
                && !value.contains('\0');
            if !sound {
                // Not with what it holds, which may be meant for nobody's eyes.
                return Err(Mistake {
                    limit: Some(MAX_WORD as u64),
                    ..Mistake::new(
                        format!("{field}.{}", beginning(variable)),
                        format!(
                            "{field}: a variable has a name that is not empty and has no =, and neither name nor value has NUL or more than {MAX_WORD} bytes"
                        ),
                    )
                });
            }
        }
    }
    if !entry.zygote.is_empty() && entry.compile.is_some() {
        return Err(Mistake::new(
            "zygote",
            "zygote is for languages without a compile step",
        ));
    }
    if let Some(variable) = entry
        .zygote
        .keys()
        .find(|name| entry.env.contains_key(*name))
    {
        return Err(Mistake::new(
            "zygote",
            format!("{variable} is in zygote and in env; what it has in env would be lost"),
        ));
    }
    let limits = entry.limits.over(limits);
    enough(&limits)?;
    let (own_step, all_step) = (entry.compile_limits, compile_limits);
    let compile_limits = StepLimits {
        cpu_ms: own_step.cpu_ms.or(all_step.cpu_ms).unwrap_or(10_000),
        wall_ms: own_step.wall_ms.or(all_step.wall_ms).unwrap_or(20_000),
    };
    if compile_limits.cpu_ms == 0 || compile_limits.wall_ms == 0 {
        return Err(Mistake {
            value: Some(0.into()),
            limit: Some(1),
            ..Mistake::new("compile_limits", "compile_limits has a 0")
        });
    }
    Ok(Language {
        title,
        name,
        aliases: entry.aliases,
        image,
        source: entry.source,
        compile: entry.compile,
        run: entry.run,
        env: entry.env,
        zygote: entry.zygote,
        extensions: entry.extensions,
        limits,
        compile_limits,
        example: entry.example,
        version_command: entry.version_command,
    })
}

/// That no limit is over what a job may ask for.
///
/// # Errors
/// The first one that is.
pub fn within(language: &Language, most: &Limits) -> Result<(), Mistake> {
    let mut limits = language.limits;
    if let Some((limit, wanted, most)) = lower(&mut limits, most).first() {
        return Err(Mistake {
            value: Some((*wanted).into()),
            limit: Some(*most),
            ..Mistake::new(
                format!("limits.{limit}"),
                format!("limits.{limit} is {wanted}; at most {most} is allowed"),
            )
        });
    }
    let StepLimits { cpu_ms, wall_ms } = language.compile_limits;
    for (limit, value) in [("cpu_ms", cpu_ms), ("wall_ms", wall_ms)] {
        if value > MAX_COMPILE_MS {
            return Err(Mistake {
                value: Some(value.into()),
                limit: Some(MAX_COMPILE_MS),
                ..Mistake::new(
                    format!("compile_limits.{limit}"),
                    format!(
                        "compile_limits.{limit} is {value}; at most {MAX_COMPILE_MS} is allowed"
                    ),
                )
            });
        }
    }
    Ok(())
}

/// Enough of a text to know it by.
fn beginning(text: &str) -> String {
    text.chars().take(60).filter(|c| !c.is_control()).collect()
}

/// A command without a shell.
fn is_command(field: &str, command: &[String]) -> Result<(), Mistake> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Mistake {
            value: Some(command.len().into()),
            limit: Some(1),
            ..Mistake::new(
                field,
                if field == "run" {
                    "run is empty".to_owned()
                } else {
                    format!("{field} is empty; leave it out")
                },
            )
        });
    }
    if command.len() > MAX_WORDS {
        return Err(Mistake::many(field, command.len(), MAX_WORDS));
    }
    match command
        .iter()
        .find(|word| word.len() > MAX_WORD || word.contains('\0'))
    {
        Some(word) if word.len() > MAX_WORD => Err(Mistake::many(field, word.len(), MAX_WORD)),
        Some(_) => Err(Mistake::new(field, format!("{field} has a NUL byte"))),
        None => Ok(()),
    }
}

/// That the place of a job's arguments for the compiler is one: behind the compiler, and in no other command.
fn takes_compile_args(field: &str, command: &[String]) -> Result<(), Mistake> {
    let places = command
        .iter()
        .enumerate()
        .filter(|(_, word)| word.contains(COMPILE_ARGS_PLACEHOLDER));
    let places: Vec<(usize, &String)> = places.collect();
    match places[..] {
        [] => Ok(()),
        [(n, word)] if n > 0 && field == "compile" && word == COMPILE_ARGS_PLACEHOLDER => Ok(()),
        _ => Err(Mistake::new(
            field,
            format!(
                "{field}: {COMPILE_ARGS_PLACEHOLDER} may be there once, as a word of its own of compile, behind the compiler"
            ),
        )),
    }
}

/// What an engine takes for the name of an image, and no more: the name becomes part of a path of the engine's API.
fn is_image(name: &str) -> bool {
    let (name, digest) = match name.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (name, None),
    };
    let digest_is_one = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(kind, hex)| {
            matches!((kind, hex.len()), ("sha256", 64) | ("sha512", 128))
                && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    });
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let (repository, tag) = match name[last..].find(':') {
        Some(colon) => (&name[..last + colon], Some(&name[last + colon + 1..])),
        None => (name, None),
    };
    let is_word = |word: &str, more: &[u8]| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && !word.contains("..")
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b) || more.contains(&b))
    };
    let tag_is_one = tag.is_none_or(|tag| {
        let bytes = tag.as_bytes();
        let sound = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
        !bytes.is_empty() && bytes.len() <= 128 && bytes.iter().all(sound) && !tag.contains("..")
    });
    name.len() <= 255
        && digest_is_one
        && tag_is_one
        && repository.split('/').enumerate().all(|(n, part)| {
            // Only the registry, if it is named, has a port.
            let more: &[u8] = if n == 0 && repository.contains('/') {
                b":"
            } else {
                b""
            };
            is_word(part, more)
        })
}

/// Names stand in URLs and in keys of the ledger.
fn is_name(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= MAX_NAME
        && word
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+#._-".contains(&b))
}

/// The language that goes by this name or alias.
#[must_use]
pub fn find<'a>(languages: &'a [Language], name: &str) -> Option<&'a Language> {
    languages.iter().find(|language| language.is_called(name))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As little of a language as can be.
    pub(crate) fn plain(name: &str) -> Language {
        let text = format!("image='x'\n[[language]]\nname='{name}'\nsource='a'\nrun=['run']\n");
        parse(&text).unwrap().remove(0)
    }

    #[test]
    fn images_have_the_names_that_engines_know() {
        let digest = "a".repeat(64);
        for name in [
            "python",
            "python:3.13",
            "quorun/sandbox:0.1.0",
            "registry.example:5000/a/b:v1",
            "localhost:5000/x",
            &format!("python@sha256:{digest}"),
            &format!("python:3@sha256:{digest}"),
        ] {
            assert!(is_image(name), "{name}");
        }
        for name in [
            "",
            "-rm",
            "a b",
            "../containers/x",
            "a/../b",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:b:c",
            "a:..",
            "a?x=1",
            "a#b",
            "a%2e",
            "a\0",
            "é",
            "a@sha256:00",
            "a@",
            &format!("a@sha256:{}", "A".repeat(64)),
            &"a".repeat(256),
        ] {
            assert!(!is_image(name), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_a_language_is_said_by_field() {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        let good = || Definition {
            name: "a".to_owned(),
            image: Some("a".to_owned()),
            source: "a".to_owned(),
            run: words(&["a"]),
            ..Definition::default()
        };
        let define =
            |definition| define(definition, &Limits::default(), PartialStepLimits::default());
        assert!(define(good()).is_ok());
        type Spoil = fn(&mut Definition);
        let spoiled: [(&str, Spoil); 22] = [
            ("name", |d| d.name = "A".to_owned()),
            ("name", |d| d.name = "a@1".to_owned()),
            ("name", |d| d.name = "a".repeat(41)),
            ("aliases", |d| d.aliases = vec![String::new()]),
            ("aliases", |d| d.aliases = vec!["a".to_owned(); 17]),
            ("title", |d| d.title = Some("t".repeat(201))),
            ("title", |d| d.title = Some("a\nb".to_owned())),
            ("image", |d| d.image = None),
            ("image", |d| d.image = Some("a b".to_owned())),
            ("run", |d| d.run.clear()),
            ("run", |d| d.run = vec![String::new()]),
            ("run", |d| d.run = vec!["a".to_owned(); 65]),
            ("compile", |d| d.compile = Some(Vec::new())),
            ("compile", |d| d.compile = Some(vec!["a\0".to_owned()])),
            ("version_command", |d| {
                d.version_command = Some(vec!["a".repeat(4097)]);
            }),
            ("source", |d| d.source = "a/b".to_owned()),
            ("source", |d| d.source = "..".to_owned()),
            ("source", |d| d.source = "-a".to_owned()),
            ("extensions", |d| d.extensions = vec![".py".to_owned()]),
            ("env.A=B", |d| {
                drop(d.env.insert("A=B".to_owned(), String::new()));
            }),
            ("zygote.", |d| {
                drop(d.zygote.insert(String::new(), String::new()));
            }),
            ("example", |d| d.example = "a".repeat(20_000)),
        ];
        for (field, spoil) in spoiled {
            let mut definition = good();
            spoil(&mut definition);
            let mistake = define(definition).unwrap_err();
            assert_eq!(mistake.field, field, "{mistake}");
        }
    }

    #[test]
    fn an_admin_s_language_has_limits_within_the_nodes_own() {
        let mut language = plain("a");
        assert!(within(&language, &HIGH).is_ok());
        let most = Limits { cpu_ms: 1, ..HIGH };
        let mistake = within(&language, &most).unwrap_err();
        assert_eq!(
            (mistake.field.as_str(), mistake.value, mistake.limit),
            ("limits.cpu_ms", Some(2000.into()), Some(1))
        );
        language.compile_limits.wall_ms = 600_001;
        let mistake = within(&language, &HIGH).unwrap_err();
        assert_eq!(mistake.field, "compile_limits.wall_ms");
    }

    /// Ceilings that nothing reaches.
    const HIGH: Limits = Limits {
        cpu_ms: u64::MAX,
        wall_ms: u64::MAX,
        memory_kb: u64::MAX,
        processes: u32::MAX,
        output_kb: u64::MAX,
        open_files: u32::MAX,
        file_kb: Some(u64::MAX),
        stack_kb: u64::MAX,
    };

    #[test]
    fn limits_are_the_language_s_then_the_file_s_then_the_usual_ones() {
        let text = "image='x'\n[limits]\nopen_files=100\nstack_kb=128\n\
                    [[language]]\nname='a'\nsource='a'\nrun=['a']\nlimits={stack_kb=256,file_kb=9}\n";
        let limits = parse(text).unwrap().remove(0).limits;
        let expected = Limits {
            open_files: 100,
            stack_kb: 256,
            file_kb: Some(9),
            ..Limits::default()
        };
        assert_eq!(limits, expected);
    }

    #[test]
    fn what_is_over_a_ceiling_is_lowered_to_it() {
        let most = Limits {
            cpu_ms: 1000,
            memory_kb: 64 << 10,
            processes: 10,
            stack_kb: 512,
            file_kb: Some(5),
            ..HIGH
        };
        let limits = |languages: &[Language], name| find(languages, name).map(|l| l.limits);
        let languages = load(None, &most).unwrap();
        let java = limits(&languages, "java").unwrap();
        assert_eq!((java.cpu_ms, java.wall_ms), (1000, 5000));
        assert_eq!((java.memory_kb, java.processes), (64 << 10, 10));
        // Where there is none, the accepting node bounds it, when it knows the job's memory.
        assert_eq!((java.stack_kb, java.file_kb), (512, None));
        let mut own = Limits {
            file_kb: Some(6),
            ..Limits::default()
        };
        assert!(lower(&mut own, &most).contains(&("file_kb", 6, 5)));
        assert_eq!(own.file_kb, Some(5));
        assert_eq!(lower(&mut own, &most), []);
    }

    #[test]
    fn limits_that_nothing_could_start_with_are_refused() {
        for (limit, words) in [
            ("cpu_ms=0", "limits.cpu_ms is 0; at least 1"),
            ("memory_kb=1000", "limits.memory_kb is 1000; at least 16384"),
            ("open_files=3", "limits.open_files is 3; at least 32"),
            ("file_kb=0", "limits.file_kb is 0; at least 1"),
            ("stack_kb=8", "limits.stack_kb is 8; at least 128"),
        ] {
            let text = format!(
                "image='x'\n[[language]]\nname='a'\nsource='a'\nrun=['a']\nlimits={{{limit}}}\n"
            );
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(words) && error.contains("\"a\""), "{error}");
        }
    }

    #[test]
    fn the_built_in_ones_are_the_promised_ones() {
        let languages = load(None, &HIGH).unwrap();
        for name in [
            "python",
            "javascript",
            "typescript",
            "java",
            "ruby",
            "perl",
            "php",
            "c",
            "cpp",
            "go",
            "rust",
            "bash",
        ] {
            let language = find(&languages, name).unwrap();
            assert_eq!(language.name, name);
            assert!(!language.example.is_empty(), "{name} has an example");
        }
        assert_eq!(
            find(&languages, "PY").map(|l| l.name.as_str()),
            Some("python")
        );
    }

    #[test]
    fn mistakes_name_the_language() {
        let head = "image = \"x\"\n";
        let twice = format!(
            "{head}[[language]]\nname='a'\nsource='a'\nrun=['a']\n[[language]]\nname='b'\naliases=['a']\nsource='a'\nrun=['a']\n"
        );
        assert!(
            parse(&twice)
                .unwrap_err()
                .to_string()
                .contains("taken by another")
        );
        let empty = format!("{head}[[language]]\nname='a'\nsource='a'\nrun=[]\n");
        assert!(
            parse(&empty)
                .unwrap_err()
                .root_cause()
                .to_string()
                .contains("run is empty")
        );
        let compiled = format!(
            "{head}[[language]]\nname='a'\nsource='a'\ncompile=['c']\nrun=['a']\nzygote={{A='1'}}\n"
        );
        assert!(
            parse(&compiled)
                .unwrap_err()
                .root_cause()
                .to_string()
                .contains("without a compile step")
        );
        let twice_set = format!(
            "{head}[[language]]\nname='a'\nsource='a'\nrun=['a']\nenv={{A='1'}}\nzygote={{A='2'}}\n"
        );
        assert!(
            parse(&twice_set)
                .unwrap_err()
                .root_cause()
                .to_string()
                .contains("A is in zygote and in env")
        );
        let unknown =
            format!("{head}[[language]]\nname='a'\nsource='a'\nrun=['a']\ncolour='red'\n");
        assert!(format!("{:#}", parse(&unknown).unwrap_err()).contains("colour"));
    }
}
