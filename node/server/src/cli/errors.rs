//! What went wrong: in words for people, as a problem (RFC 9457) for programs.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;

use clap::{ArgAction, CommandFactory};
use http::StatusCode;
use serde_json::{Value, json};

use super::UsageError;
use super::client::problem;
use crate::telemetry;

/// What a node's types of problems begin with.
const OF_NODES: &str = "urn:quorun:error:";
/// What the types of this program's own problems begin with.
const OWN: &str = "urn:quorun:cli:";
/// Problems that say that a request could never be taken as it is: the command line, or a file that it names, is not right.
const USAGE: [&str; 4] = [
    "invalid-request",
    "empty-source",
    "too-large",
    "unknown-language",
];

/// A node's word that it does not do what it was asked for.
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    body: Value,
    usage: bool,
    words: Option<String>,
}

impl Refused {
    /// What a node has answered.
    pub fn new(status: StatusCode, body: Value) -> Self {
        let mut refused = Self {
            status,
            body,
            usage: false,
            words: None,
        };
        refused.usage = USAGE.iter().any(|slug| refused.is(slug));
        refused
    }

    /// Whether it is the problem of this type, such as `unknown-job`.
    pub fn is(&self, slug: &str) -> bool {
        let kind = self.body["type"].as_str();
        kind.and_then(|kind| kind.strip_prefix(OF_NODES)) == Some(slug)
    }

    /// It says how things are in the cluster, and not that the command line is wrong.
    pub const fn of_the_cluster(mut self) -> Self {
        self.usage = false;
        self
    }

    /// The same in other words for people, who have a command line and no HTTP.
    pub fn in_words(mut self, words: String) -> Self {
        self.words = Some(words);
        self
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.words {
            Some(words) => write!(f, "{}: {words}", self.status),
            None => write!(f, "{}: {}", self.status, problem(&self.body)),
        }
    }
}

impl std::error::Error for Refused {}

/// Nothing was heard of any node.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(pub String);

/// Whether the user is the one who can put it right, by another command line.
pub fn is_usage(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<Refused>();
    error.is::<UsageError>() || refused.is_some_and(|refused| refused.usage)
}

/// Says on stderr what went wrong; for programs in one line of JSON, as the node said it if it was one.
pub fn tell(error: &anyhow::Error, json: bool) {
    if json {
        // Where nobody can read it, the exit code has to do.
        let _ = writeln!(std::io::stderr(), "{}", to_json(error));
    } else {
        telemetry::last_words(&format!("{error:#}"));
    }
}

fn to_json(error: &anyhow::Error) -> Value {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return refused.body.clone();
    }
    let (slug, title) = if error.is::<UsageError>() {
        ("usage", "The command line is not right")
    } else if error.is::<NoAnswer>() {
        ("no-answer", "No node has answered")
    } else {
        ("failed", "The command failed")
    };
    json!({ "type": format!("{OWN}{slug}"), "title": title, "detail": format!("{error:#}") })
}

/// Whether a command line asks for JSON, also one that cannot be read otherwise: it has `--json`, and its command has such a
/// switch.
pub fn json_is_asked<C: CommandFactory>(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut command = C::command();
    let mut asked = false;
    for argument in arguments.skip(1).take_while(|a| a != OsStr::new("--")) {
        if argument == OsStr::new("--json") {
            asked = true;
        } else if let Some(named) = command.find_subcommand(&argument) {
            command = named.clone();
        }
    }
    let is_switch = |arg: &clap::Arg| matches!(arg.get_action(), ArgAction::SetTrue);
    asked
        && command
            .get_arguments()
            .any(|arg| arg.get_long() == Some("json") && is_switch(arg))
}

/// What is wrong with a command line, without what clap says of its use.
pub fn of_clap(error: &clap::Error) -> anyhow::Error {
    let text = error.to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let words: Vec<&str> = text.split_whitespace().collect();
    UsageError(words.join(" ")).into()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::super::Cli;
    use super::*;

    fn refused(slug: &str) -> Refused {
        let body = json!({ "type": format!("{OF_NODES}{slug}"), "detail": "so it is" });
        Refused::new(StatusCode::CONFLICT, body)
    }

    #[test]
    fn a_problem_of_a_node_stays_as_it_was_said() {
        let error = anyhow::Error::new(refused("unknown-job")).context("more words");
        assert_eq!(to_json(&error)["type"], "urn:quorun:error:unknown-job");
        assert_eq!(to_json(&error)["detail"], "so it is");
        assert!(!is_usage(&error));
        assert!(is_usage(&refused("invalid-request").into()));
        assert!(!is_usage(
            &refused("unknown-language").of_the_cluster().into()
        ));
        let other = refused("language-of-file").in_words("say it so".to_owned());
        assert_eq!(other.to_string(), "409 Conflict: say it so");
        assert_eq!(to_json(&other.into())["detail"], "so it is");
    }

    #[test]
    fn what_is_no_node_s_word_has_a_type_of_its_own() {
        let kind = |error: &anyhow::Error| to_json(error)["type"].clone();
        let usage: anyhow::Error = UsageError("x".to_owned()).into();
        assert_eq!(kind(&usage), "urn:quorun:cli:usage");
        let silent = Err::<(), _>(std::io::Error::other("cut"));
        let silent = silent.context(NoAnswer("nothing".to_owned())).unwrap_err();
        assert_eq!(kind(&silent), "urn:quorun:cli:no-answer");
        assert_eq!(to_json(&silent)["detail"], "nothing: cut");
        assert_eq!(kind(&anyhow::anyhow!("x")), "urn:quorun:cli:failed");
    }

    #[test]
    fn json_is_asked_for_by_the_switch_of_a_command_and_by_nothing_else() {
        let asked = |line: &str| {
            let words = line.split_whitespace().map(OsString::from);
            json_is_asked::<Cli>(words)
        };
        for yes in [
            "quorun jobs --json",
            "quorun jobs --json --wrong",
            "quorun cluster drain x --json",
            "quorun languages set a b --json",
            "quorun languages --json",
        ] {
            assert!(asked(yes), "{yes}");
        }
        for no in [
            "quorun",
            "quorun --json",
            "quorun jobs",
            "quorun run a.py -- --json",
            "quorun bench --json file",
            "quorun serve --json",
        ] {
            assert!(!asked(no), "{no}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_said_in_one_line() {
        use clap::Parser as _;
        let error = Cli::try_parse_from(["quorun", "jobs", "--limit", "x"]).unwrap_err();
        let said = of_clap(&error).to_string();
        assert!(said.starts_with("invalid value 'x' for '--limit"), "{said}");
        assert!(!said.contains('\n') && !said.contains("Usage"), "{said}");
    }
}
