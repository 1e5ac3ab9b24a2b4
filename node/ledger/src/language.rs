//! What a language is: data, not code.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::job::{Limits, SourceFile, StepLimits};

/// Stands for the entrypoint's file name in a language's commands.
pub const SOURCE_PLACEHOLDER: &str = "{source}";
/// A word of its own: stands for the entrypoint and the other files of its folder with its extension.
pub const SOURCES_PLACEHOLDER: &str = "{sources}";
/// Stands for the entrypoint's file name without its extension: what some compilers name
/// their output by.
pub const STEM_PLACEHOLDER: &str = "{stem}";

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
}

impl Language {
    /// Whether the language goes by this name.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
            || self.aliases.iter().any(|a| a.eq_ignore_ascii_case(name))
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
