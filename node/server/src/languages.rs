//! Reading languages from their file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use quorun_ledger::{Language, Limits, StepLimits};
use serde::Deserialize;

use crate::config::LEAST;

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
    zygote: BTreeMap<String, String>,
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

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PartialStepLimits {
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
fn enough(name: &str, limits: &Limits) -> anyhow::Result<()> {
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
        ensure!(
            value >= least,
            "language \"{name}\": limits.{limit} is {value}; at least {least} is needed"
        );
    }
    Ok(())
}

fn parse(text: &str) -> anyhow::Result<Vec<Language>> {
    let file: File = toml::from_str(text)?;
    ensure!(!file.language.is_empty(), "there is no [[language]]");
    let all = file.limits.over(&Limits::default());
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
        ensure!(
            entry.zygote.is_empty() || entry.compile.is_none(),
            "language \"{name}\": zygote is for languages without a compile step"
        );
        if let Some(variable) = entry
            .zygote
            .keys()
            .find(|name| entry.env.contains_key(*name))
        {
            bail!(
                "language \"{name}\": {variable} is in zygote and in env; what it has in env would be lost"
            );
        }
        let limits = entry.limits.over(&all);
        enough(&name, &limits)?;
        let (own_step, all_step) = (entry.compile_limits, file.compile_limits);
        let compile_limits = StepLimits {
            cpu_ms: own_step.cpu_ms.or(all_step.cpu_ms).unwrap_or(10_000),
            wall_ms: own_step.wall_ms.or(all_step.wall_ms).unwrap_or(20_000),
        };
        ensure!(
            compile_limits.cpu_ms > 0 && compile_limits.wall_ms > 0,
            "language \"{name}\": compile_limits has a 0"
        );
        languages.push(Language {
            title: entry.title.unwrap_or_else(|| name.clone()),
            name,
            aliases: entry.aliases,
            image: entry.image.unwrap_or_else(|| file.image.clone()),
            source: entry.source,
            compile: entry.compile,
            run: entry.run,
            env: entry.env,
            zygote: entry.zygote,
            extensions: entry.extensions,
            limits,
            compile_limits,
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
            let error = parse(&text).unwrap_err().to_string();
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
                .to_string()
                .contains("run is empty")
        );
        let compiled = format!(
            "{head}[[language]]\nname='a'\nsource='a'\ncompile=['c']\nrun=['a']\nzygote={{A='1'}}\n"
        );
        assert!(
            parse(&compiled)
                .unwrap_err()
                .to_string()
                .contains("without a compile step")
        );
        let twice_set = format!(
            "{head}[[language]]\nname='a'\nsource='a'\nrun=['a']\nenv={{A='1'}}\nzygote={{A='2'}}\n"
        );
        assert!(
            parse(&twice_set)
                .unwrap_err()
                .to_string()
                .contains("A is in zygote and in env")
        );
        let unknown =
            format!("{head}[[language]]\nname='a'\nsource='a'\nrun=['a']\ncolour='red'\n");
        assert!(format!("{:#}", parse(&unknown).unwrap_err()).contains("colour"));
    }
}
