//! Images: whether they are there, how they come here, and which of them are kept warm.

use std::path::Path;
use std::time::Duration;

use quorun_ledger::job::{JobId, JobSpec};
use quorun_ledger::{Language, SourceFile};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::executor::{Executor, Unavailable};
use crate::task::Task;

/// What is kept of what a version command says, bytes.
const VERSION: usize = 200;
/// How long a version command may take: some start a whole virtual machine to say it.
const VERSION_TIME_MS: u64 = 10_000;

/// Whether what a language needs is on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Present(Image),
    /// It is not; the reason, for people.
    Missing(String),
    /// That cannot be said now.
    Unknown(String),
}

/// An image that is on this node's engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// What stands for its content on this engine.
    pub id: String,
    /// Its name in the registry that it is from, by its digest: what every other node would get, too.
    pub digest: Option<String>,
}

impl Executor {
    /// Whether the language's programs can be started here: in containers, whether the engine has the image; as plain
    /// processes, whether the machine has the commands.
    pub async fn presence(&self, language: &Language) -> Presence {
        match self.pool.engine() {
            Engine::Docker(docker) => docker.image(&language.image).await,
            Engine::Process(processes) => match missing_command(language) {
                None => Presence::Present(Image {
                    id: processes.image_id(),
                    digest: None,
                }),
                Some(command) => Presence::Missing(format!(
                    "{command} is not among this machine's commands (PATH); the process executor uses those"
                )),
            },
            Engine::Noop => Presence::Present(Image {
                id: "noop".to_owned(),
                digest: None,
            }),
            #[cfg(test)]
            Engine::Fake(_) => Presence::Present(Image::default()),
        }
    }

    /// Whether languages are run in images that can be pulled.
    #[must_use]
    pub fn has_images(&self) -> bool {
        matches!(self.pool.engine(), Engine::Docker(_))
    }

    /// The name by digest of an image that a registry has; `None` when nobody says so in time.
    pub async fn digest_in_registry(&self, image: &str, patience: Duration) -> Option<String> {
        match self.pool.engine() {
            Engine::Docker(docker) => {
                let asked = docker.digest_in_registry(image);
                tokio::time::timeout(patience, asked).await.ok().flatten()
            }
            _ => None,
        }
    }

    /// Has the engine pull an image, and tells how far it is.
    ///
    /// # Errors
    /// What the engine said.
    pub async fn pull(&self, image: &str, progress: impl Fn(String) + Send) -> Result<(), String> {
        match self.pool.engine() {
            Engine::Docker(docker) => docker.pull(image, progress).await,
            _ => Err("this executor has no images".to_owned()),
        }
    }

    /// From now on a sandbox of each of these images with this memory, KiB, is kept warm, and none of those that were.
    pub fn keep_warm(&self, images: &[(String, u64)]) {
        let engine = self.pool.engine();
        if matches!(engine, Engine::Docker(_)) {
            let mut kinds = Vec::new();
            for (image, memory_kb) in images {
                let key = engine.key(image, *memory_kb);
                if !kinds.contains(&key) {
                    kinds.push(key);
                }
            }
            self.pool.keep(kinds);
        }
    }

    /// What the language's version command says in a sandbox of its image: the first line of it. `None` where there is no
    /// command, or it says nothing.
    ///
    /// # Errors
    /// This node cannot execute now.
    pub async fn version(&self, language: &Language) -> Result<Option<String>, Unavailable> {
        let Some(task) = version_task(language) else {
            return Ok(None);
        };
        // The receiver is gone at once: nobody listens.
        let (output, _) = mpsc::channel(1);
        let result = self.execute(task, output, CancellationToken::new()).await?;
        Ok([&result.output.stdout, &result.output.stderr]
            .into_iter()
            .find_map(|text| first_line(text)))
    }
}

/// The job that asks a language for its version. Its program is a file that nothing looks at.
fn version_task(language: &Language) -> Option<Task> {
    let command = language.version_command.clone()?;
    let mut limits = language.limits;
    limits.output_kb = 1;
    limits.cpu_ms = VERSION_TIME_MS;
    limits.wall_ms = VERSION_TIME_MS;
    Some(Task {
        job: JobId::from_slice(&[0; 16])?,
        attempt: 0,
        language: Language {
            compile: None,
            zygote: std::collections::BTreeMap::new(),
            run: command,
            ..language.clone()
        },
        spec: JobSpec {
            language: language.name.clone(),
            files: vec![SourceFile {
                name: language.source.clone(),
                content: bytes::Bytes::new(),
            }],
            entrypoint: language.source.clone(),
            limits,
            max_attempts: 1,
            ..JobSpec::default()
        },
        checker: None,
    })
}

/// The first line that has something on it, without control characters.
fn first_line(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    let mut kept = String::new();
    for letter in line.chars().filter(|letter| !letter.is_control()) {
        if kept.len() + letter.len_utf8() > VERSION {
            break;
        }
        kept.push(letter);
    }
    Some(kept).filter(|kept| !kept.is_empty())
}

/// The first command of a language that this machine does not have. What a compile step makes is not looked for.
fn missing_command(language: &Language) -> Option<&str> {
    let commands = language.compile.iter().chain([&language.run]);
    commands
        .filter_map(|command| command.first())
        .map(String::as_str)
        .find(|command| !is_there(command))
}

fn is_there(command: &str) -> bool {
    if command.contains('/') {
        // In the box, or for this machine's owner to know.
        return !command.starts_with('/') || Path::new(command).exists();
    }
    if command.contains('{') {
        return true;
    }
    let Some(path) = std::env::var_os("PATH") else {
        return true;
    };
    std::env::split_paths(&path).any(|folder| folder.join(command).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_version_the_first_line_is_kept_and_little_of_it() {
        assert_eq!(first_line(b"\n  \nPython 3\nmore").unwrap(), "Python 3");
        assert_eq!(first_line(b"a\x1b[31mb\tc\n").unwrap(), "a[31mbc");
        assert_eq!(first_line(b" \n\n"), None);
        assert_eq!(first_line("é".repeat(300).as_bytes()).unwrap().len(), 200);
        assert!(!first_line(&[0xff, 0xfe]).unwrap().is_empty());
    }

    #[test]
    fn commands_are_looked_for_on_the_path_and_made_ones_are_not() {
        assert!(is_there("sh") && is_there("./a.out") && is_there("{source}"));
        assert!(is_there("/bin/sh"));
        assert!(!is_there("/no/such/command"));
        assert!(!is_there("no-such-command-of-quorun"));
        let mut language = crate::task::tests::task(quorun_ledger::Limits::default()).language;
        language.compile = Some(vec!["sh".to_owned()]);
        assert_eq!(missing_command(&language), None);
        language.run = vec!["no-such-command-of-quorun".to_owned()];
        assert_eq!(
            missing_command(&language),
            Some("no-such-command-of-quorun")
        );
    }

    #[test]
    fn a_version_is_asked_within_bounds_and_without_compiling() {
        let mut language = crate::task::tests::task(quorun_ledger::Limits::default()).language;
        assert!(version_task(&language).is_none());
        language.version_command = Some(vec!["cc".to_owned(), "--version".to_owned()]);
        let task = version_task(&language).unwrap();
        assert_eq!(task.language.run, ["cc", "--version"]);
        assert_eq!(task.language.compile, None);
        assert_eq!(task.spec.limits.output_kb, 1);
        assert_eq!(task.spec.limits.memory_kb, language.limits.memory_kb);
    }
}
