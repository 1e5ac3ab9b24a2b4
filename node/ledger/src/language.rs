//! What a language is: data, not code.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::job::{Limits, StepLimits};

/// Stands for the entrypoint's file name in a language's commands.
pub const SOURCE_PLACEHOLDER: &str = "{source}";

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
        template
            .iter()
            .map(|word| word.replace(SOURCE_PLACEHOLDER, source))
            .collect()
    }
}
