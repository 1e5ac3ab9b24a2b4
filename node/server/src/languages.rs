//! Reading languages from their file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};
use quorun_ledger::{Language, Limits, StepLimits};
use serde::Deserialize;

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
    language: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    image: Option<String>,
    source: String,
    #[serde(default)]
    compile: Option<Vec<String>>,
    run: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    extensions: Vec<String>,
    #[serde(default)]
    limits: PartialLimits,
    #[serde(default)]
    compile_limits: PartialStepLimits,
    #[serde(default)]
    example: String,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PartialLimits {
    cpu_ms: Option<u64>,
    wall_ms: Option<u64>,
    memory_kb: Option<u64>,
    processes: Option<u32>,
    output_kb: Option<u64>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PartialStepLimits {
    cpu_ms: Option<u64>,
    wall_ms: Option<u64>,
}

/// Reads the languages of a file, or the built-in ones.
///
/// # Errors
/// When the file cannot be read, or what it says is not a set of languages; the language is named.
pub fn load(file: Option<&Path>) -> anyhow::Result<Vec<Language>> {
    match file {
        None => parse(BUILT_IN).context("the built-in languages"),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("read the languages from {}", path.display()))?;
            parse(&text).with_context(|| format!("the languages in {}", path.display()))
        }
    }
}

fn parse(text: &str) -> anyhow::Result<Vec<Language>> {
    let file: File = toml::from_str(text)?;
    ensure!(!file.language.is_empty(), "there is no [[language]]");
    let mut seen = BTreeSet::new();
    let mut languages = Vec::with_capacity(file.language.len());
    for entry in file.language {
        let name = entry.name.clone();
        let words = std::iter::once(&entry.name).chain(&entry.aliases);
        for word in words {
            ensure!(
                is_name(word),
                "language \"{name}\": \"{word}\" may have only a-z, 0-9, and + # . _ -"
            );
            ensure!(
                seen.insert(word.clone()),
                "language \"{name}\": \"{word}\" is taken by another one"
            );
        }
        ensure!(!entry.run.is_empty(), "language \"{name}\": run is empty");
        ensure!(
            entry.compile.as_ref().is_none_or(|c| !c.is_empty()),
            "language \"{name}\": compile is empty; leave it out"
        );
        ensure!(
            !entry.source.is_empty() && !entry.source.contains('/'),
            "language \"{name}\": source should be a file name"
        );
        let (own, all) = (entry.limits, file.limits);
        let (own_step, all_step) = (entry.compile_limits, file.compile_limits);
        languages.push(Language {
            title: entry.title.unwrap_or_else(|| name.clone()),
            name,
            aliases: entry.aliases,
            image: entry.image.unwrap_or_else(|| file.image.clone()),
            source: entry.source,
            compile: entry.compile,
            run: entry.run,
            env: entry.env,
            extensions: entry.extensions,
            limits: Limits {
                cpu_ms: own.cpu_ms.or(all.cpu_ms).unwrap_or(2_000),
                wall_ms: own.wall_ms.or(all.wall_ms).unwrap_or(5_000),
                memory_kb: own.memory_kb.or(all.memory_kb).unwrap_or(262_144),
                processes: own.processes.or(all.processes).unwrap_or(64),
                output_kb: own.output_kb.or(all.output_kb).unwrap_or(400),
            },
            compile_limits: StepLimits {
                cpu_ms: own_step.cpu_ms.or(all_step.cpu_ms).unwrap_or(10_000),
                wall_ms: own_step.wall_ms.or(all_step.wall_ms).unwrap_or(20_000),
            },
            example: entry.example,
        });
    }
    Ok(languages)
}

/// Names stand in URLs and in keys of the ledger.
fn is_name(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= 40
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
mod tests {
    use super::*;

    #[test]
    fn the_built_in_ones_are_the_promised_ones() {
        let languages = load(None).unwrap();
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
                .to_string()
                .contains("run is empty")
        );
        let unknown =
            format!("{head}[[language]]\nname='a'\nsource='a'\nrun=['a']\ncolour='red'\n");
        assert!(format!("{:#}", parse(&unknown).unwrap_err()).contains("colour"));
    }
}
