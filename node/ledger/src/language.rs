//! What a language is: data, not code.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::job::{Limits, StepLimits};

/// Stands for the entrypoint's file name in a language's commands.
pub const SOURCE_PLACEHOLDER: &str = "{source}";
/// Stands for the same without its extension: what some compilers name their output by.
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

    /// A command of this language for a job whose entrypoint is `source`.
    #[must_use]
    pub fn command(template: &[String], source: &str) -> Vec<String> {
        let file_from = source.rfind('/').map_or(0, |slash| slash + 1);
        let stem = match source[file_from..].rfind('.') {
            Some(dot) if dot > 0 => &source[..file_from + dot],
            _ => source,
        };
        // One pass over the template: a file name may itself look like a placeholder.
        template
            .iter()
            .map(|word| {
                let parts: Vec<String> = word
                    .split(SOURCE_PLACEHOLDER)
                    .map(|part| part.replace(STEM_PLACEHOLDER, stem))
                    .collect();
                parts.join(source)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str], source: &str) -> Vec<String> {
        let template: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        Language::command(&template, source)
    }

    #[test]
    fn placeholders_become_the_entrypoint() {
        assert_eq!(
            command(&["cc", "{source}", "-o", "{stem}.o"], "src/a.b.c"),
            ["cc", "src/a.b.c", "-o", "src/a.b.o"]
        );
        assert_eq!(command(&["{stem}"], "v1.2/program"), ["v1.2/program"]);
        assert_eq!(command(&["{stem}"], ".hidden"), [".hidden"]);
        assert_eq!(command(&["{source}"], "{stem}.py"), ["{stem}.py"]);
    }
}
