//! What a language is: data, not code.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::job::{Limits, SourceFile, StepLimits, is_false};

/// Stands for the entrypoint's file name in a language's commands.
pub const SOURCE_PLACEHOLDER: &str = "{source}";
/// A word of its own: stands for the entrypoint and the other files of its folder with its extension.
pub const SOURCES_PLACEHOLDER: &str = "{sources}";
/// Stands for the entrypoint's file name without its extension: what some compilers name
/// their output by.
pub const STEM_PLACEHOLDER: &str = "{stem}";
/// A word of its own in the compile step's command: stands for a job's own arguments for the compiler.
pub const COMPILE_ARGS_PLACEHOLDER: &str = "{compile_args}";

/// How programs of one language are run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Language {
    /// Its name in the API: lower case, for ever.
    pub name: String,
    /// Other names that are accepted for it.
    pub aliases: Vec<String>,
    /// Its name for people, with the version of the standard image.
    pub title: String,
    /// The image of its sandboxes.
    pub image: String,
    /// The file name that a single source gets.
    pub source: String,
    /// The compile step's command; no shell is involved.
    pub compile: Option<Vec<String>>,
    /// The run step's command; the job's arguments come after it.
    pub run: Vec<String>,
    /// Environment of both steps.
    pub env: BTreeMap<String, String>,
    /// Environment with which an interpreter that is started ahead of its program waits for it; empty where none can.
    pub zygote: BTreeMap<String, String>,
    /// File name extensions, without the dot, for `quorun run FILE`.
    pub extensions: Vec<String>,
    /// What the run step may use when the submission does not say.
    pub limits: Limits,
    /// The times of the compile step.
    pub compile_limits: StepLimits,
    /// A program that prints `hello`.
    pub example: String,
    /// What prints the version of its tools, in a sandbox of its image; the first line counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_command: Option<Vec<String>>,
}

/// What the ledger says of a language: that an admin has set it, or has disabled one of the nodes' files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Grows with every change of any language of the ledger, so that no two states of one have the same.
    pub version: u64,
    /// When it was changed last, Unix milliseconds.
    pub changed_ms: u64,
    /// No submissions are accepted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disabled: bool,
    /// How its programs are run; without it, as the nodes' own files say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Definition>,
}

/// How programs of a language of the ledger are run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The entry's version when this was set. Disabling and enabling leave it as it is.
    pub version: u64,
    /// The image as it was named; the language's own names the same by its digest, where that was known.
    pub image: String,
    /// The language.
    pub language: Language,
}

/// The definition that a job was accepted with. It goes with the job, so that the job is executed as it was accepted,
/// whatever becomes of the language meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Version of the definition.
    pub version: u64,
    /// What executing the job takes of the language.
    pub language: Language,
}

impl Pinned {
    /// The definition, for a job: without what only people need.
    #[must_use]
    pub fn new(definition: &Definition) -> Self {
        let Definition {
            version, language, ..
        } = definition;
        Self {
            version: *version,
            language: Language {
                aliases: Vec::new(),
                title: String::new(),
                extensions: Vec::new(),
                example: String::new(),
                version_command: None,
                ..language.clone()
            },
        }
    }

    /// What it weighs in the queue, bytes.
    #[must_use]
    pub fn weight(&self) -> u64 {
        codec::encode(self).len() as u64
    }
}

/// What a node must be able to run for a job: a language of its file by its name, one of the ledger by name and version of
/// its definition. Names of languages have no `@`.
#[must_use]
pub fn needed(language: &str, definition: Option<u64>) -> Cow<'_, str> {
    match definition {
        None => Cow::Borrowed(language),
        Some(version) => Cow::Owned(format!("{language}@{version}")),
    }
}

impl Language {
    /// Whether the language goes by this name.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
            || self.aliases.iter().any(|a| a.eq_ignore_ascii_case(name))
    }

    /// The command of the compile step, if there is one, for a job with these files and these arguments for the compiler. A
    /// command that does not say where those go has them before the first word with the source in it: behind its own, so that
    /// they hold where two contradict each other, and where also compilers look that read no options behind a file.
    #[must_use]
    pub fn compile_command(
        &self,
        entrypoint: &str,
        files: &[SourceFile],
        compile_args: &[String],
    ) -> Option<Vec<String>> {
        let template = self.compile.as_deref()?;
        let says_where = |word: &String| word == COMPILE_ARGS_PLACEHOLDER;
        let has_source = |word: &String| {
            word == SOURCES_PLACEHOLDER
                || word.contains(SOURCE_PLACEHOLDER)
                || word.contains(STEM_PLACEHOLDER)
        };
        let (place, behind) = template.iter().position(says_where).map_or_else(
            || {
                // The first word is the compiler itself.
                let source = template.iter().skip(1).position(has_source);
                let place = source.map_or(template.len(), |n| n + 1);
                (place, place)
            },
            |place| (place, place + 1),
        );
        let (before, rest) = template.split_at(place);
        let behind = &rest[behind - place..];
        let mut command = Self::command(before, entrypoint, files);
        command.extend_from_slice(compile_args);
        command.extend(Self::command(behind, entrypoint, files));
        Some(command)
    }

    /// A command of this language for a job with these files.
    #[must_use]
    pub fn command(template: &[String], entrypoint: &str, files: &[SourceFile]) -> Vec<String> {
        let (folder, name) =
            entrypoint.split_at(entrypoint.rfind('/').map_or(0, |slash| slash + 1));
        let (stem, extension) = match name.rfind('.') {
            Some(dot) if dot > 0 => name.split_at(dot),
            _ => (name, ""),
        };
        let belongs = |file: &&SourceFile| {
            file.name != entrypoint
                && file.name.strip_prefix(folder).is_some_and(|name| {
                    !extension.is_empty() && !name.contains('/') && name.ends_with(extension)
                })
        };
        let mut command = Vec::with_capacity(template.len());
        for word in template {
            if word == SOURCES_PLACEHOLDER {
                command.push(entrypoint.to_owned());
                command.extend(files.iter().filter(belongs).map(|file| file.name.clone()));
                continue;
            }
            // One pass over the word: a file name may itself look like a placeholder.
            let parts: Vec<String> = word
                .split(SOURCE_PLACEHOLDER)
                .map(|part| part.replace(STEM_PLACEHOLDER, &format!("{folder}{stem}")))
                .collect();
            command.push(parts.join(entrypoint));
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn command(words: &[&str], entrypoint: &str, others: &[&str]) -> Vec<String> {
        let template: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let files: Vec<SourceFile> = others
            .iter()
            .chain(&[entrypoint])
            .map(|name| SourceFile {
                name: (*name).to_owned(),
                content: Bytes::new(),
            })
            .collect();
        Language::command(&template, entrypoint, &files)
    }

    #[test]
    fn placeholders_become_the_entrypoint() {
        assert_eq!(
            command(&["cc", "{source}", "-o", "{stem}.o"], "src/a.b.c", &[]),
            ["cc", "src/a.b.c", "-o", "src/a.b.o"]
        );
        assert_eq!(command(&["{stem}"], "v1.2/program", &[]), ["v1.2/program"]);
        assert_eq!(command(&["{stem}"], ".hidden", &[]), [".hidden"]);
        assert_eq!(command(&["{source}"], "{stem}.py", &[]), ["{stem}.py"]);
    }

    fn compiled(template: &[&str], compile_args: &[&str]) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let language = Language {
            name: "x".to_owned(),
            aliases: Vec::new(),
            title: String::new(),
            image: String::new(),
            source: "a.c".to_owned(),
            compile: Some(words(template)),
            run: Vec::new(),
            env: BTreeMap::new(),
            zygote: BTreeMap::new(),
            extensions: Vec::new(),
            limits: Limits::default(),
            compile_limits: StepLimits {
                cpu_ms: 1,
                wall_ms: 1,
            },
            example: String::new(),
            version_command: None,
        };
        let compile_args: Vec<String> = words(compile_args);
        let command = language.compile_command("a.c", &[], &compile_args);
        assert_eq!(
            Language {
                compile: None,
                ..language
            }
            .compile_command("a.c", &[], &compile_args),
            None
        );
        command.unwrap()
    }

    #[test]
    fn arguments_for_the_compiler_go_where_its_command_says() {
        let template = ["cc", "-O2", "{sources}", "{compile_args}", "-lm"];
        assert_eq!(
            compiled(&template, &["-O0", "{source}"]),
            ["cc", "-O2", "a.c", "-O0", "{source}", "-lm"]
        );
        assert_eq!(compiled(&template, &[]), ["cc", "-O2", "a.c", "-lm"]);
        // Only as a word of its own, and only once.
        assert_eq!(
            compiled(&["cc", "x{compile_args}", "{source}"], &["-g"]),
            ["cc", "x{compile_args}", "-g", "a.c"]
        );
    }

    #[test]
    fn a_command_that_does_not_say_where_has_them_before_the_source() {
        for (template, expected) in [
            (
                &["cc", "-o", "main", "{sources}", "-lm"][..],
                &["cc", "-o", "main", "-g", "a.c", "-lm"][..],
            ),
            (
                &["go", "build", "-o={stem}", "{source}"],
                &["go", "build", "-g", "-o=a", "a.c"],
            ),
            (&["make"], &["make", "-g"]),
            (&["{source}", "x"], &["a.c", "x", "-g"]),
        ] {
            assert_eq!(compiled(template, &["-g"]), expected);
        }
    }

    #[test]
    fn sources_are_those_beside_the_entrypoint_with_its_extension() {
        let others = ["b.c", "b.h", "sub/c.c", "c.cc", "data"];
        assert_eq!(
            command(&["cc", "{sources}", "-lm"], "a.c", &others),
            ["cc", "a.c", "b.c", "-lm"]
        );
        assert_eq!(
            command(&["{sources}"], "sub/a.c", &others),
            ["sub/a.c", "sub/c.c"]
        );
        assert_eq!(command(&["{sources}"], "data", &["other"]), ["data"]);
    }
}
