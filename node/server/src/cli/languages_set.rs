//! `quorun languages set|disable|enable|remove`: changing the languages of a running cluster.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Subcommand;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::errors::Refused;
use super::target::Target;
use super::usage;

/// How long the nodes are waited for, seconds.
const WAIT: u32 = 300;
/// The largest file that is read, bytes: nothing larger would be taken.
const MAX_FILE: u64 = 64 << 10;

/// Change the languages of a running cluster.
#[derive(Debug, Subcommand)]
pub enum LanguagesCommand {
    /// Define a language, or define it anew: what the cluster says of it goes before the nodes' files
    Set {
        /// Its name: lower case
        name: String,
        /// What it is, as one [[language]] of a languages file has it, in TOML or in JSON (.json)
        file: PathBuf,
        /// Do not wait until the nodes have its image
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Accept no more submissions in a language; what waits is still run
    Disable {
        /// Its name
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Accept submissions in a language again
    Enable {
        /// Its name
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Remove what was set of a language; one of the nodes' files is as the file says again
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Does what the command says.
pub async fn languages(command: LanguagesCommand) -> anyhow::Result<ExitCode> {
    match command {
        LanguagesCommand::Set {
            name,
            file,
            no_wait,
            target,
        } => {
            let definition = read(&file).map_err(|error| usage(&error))?;
            let mut path = path(&name);
            if !no_wait {
                path = format!("{path}?wait={WAIT}");
            }
            let answer = ask(&target, Method::PUT, &path, Some(&definition)).await?;
            tell(&name, &answer, target.json);
            let ready = answer["ready"] == true;
            Ok(if ready || no_wait {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        LanguagesCommand::Disable { name, target } => switch(&target, &name, true).await,
        LanguagesCommand::Enable { name, target } => switch(&target, &name, false).await,
        LanguagesCommand::Remove { name, target } => {
            let answer = ask(&target, Method::DELETE, &path(&name), None).await;
            let answer = answer.map_err(|error| of_file(error, &name))?;
            if target.json {
                println!("{answer}");
            } else if answer.is_null() {
                println!("{name} is removed");
            } else {
                println!("{name} is as the nodes' files say again");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// That a language of the nodes' files cannot be removed, with the command that does what may have been meant.
fn of_file(error: anyhow::Error, name: &str) -> anyhow::Error {
    match error.downcast::<Refused>() {
        Ok(refused) if refused.is("language-of-file") => refused
            .in_words(format!(
                "{name} is not set in the cluster but in the files of the nodes, which have it anyway; this has it take no more submissions: quorun languages disable {name}"
            ))
            .into(),
        Ok(refused) => refused.into(),
        Err(error) => error,
    }
}

async fn switch(target: &Target, name: &str, disabled: bool) -> anyhow::Result<ExitCode> {
    let body = json!({ "disabled": disabled });
    let answer = ask(target, Method::PATCH, &path(name), Some(&body)).await?;
    tell(name, &answer, target.json);
    Ok(ExitCode::SUCCESS)
}

/// The path of a language. Its name may be anything that was typed.
fn path(name: &str) -> String {
    let mut path = "/v1/languages/".to_owned();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

/// The definition in a file.
fn read(file: &Path) -> anyhow::Result<Value> {
    let shown = file.display();
    let size = std::fs::metadata(file).with_context(|| format!("read {shown}"))?;
    ensure!(
        size.len() <= MAX_FILE,
        "{shown} has {} bytes; a language has at most {MAX_FILE}",
        size.len()
    );
    let text = std::fs::read_to_string(file).with_context(|| format!("read {shown}"))?;
    let is_json = file
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let value: Value = if is_json {
        serde_json::from_str(&text).with_context(|| format!("{shown} is not JSON"))?
    } else {
        toml::from_str(&text).with_context(|| format!("{shown} is not TOML"))?
    };
    ensure!(
        value.get("language").is_none(),
        "{shown} has a list of languages; it should have one, without the line [[language]]"
    );
    ensure!(value.is_object(), "{shown} should have one object");
    Ok(value)
}

/// Asks for a change. The answer's JSON; null when it has none.
async fn ask(
    target: &Target,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let client = target.client()?;
    let response = client.send(method, path, body).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await;
    let bytes = bytes.context("read the answer")?.to_bytes();
    if bytes.is_empty() && status.is_success() {
        return Ok(Value::Null);
    }
    let value: Value = serde_json::from_slice(&bytes).with_context(|| {
        format!(
            "{} answered {status} and no JSON; is it a node of Quorun?",
            client.base()
        )
    })?;
    if !status.is_success() {
        let refused = Refused::new(status, value);
        // That there is no such language is no more a wrong command line than that there is no such job.
        return Err(if refused.is("unknown-language") {
            refused.of_the_cluster().into()
        } else {
            refused.into()
        });
    }
    Ok(value)
}

fn tell(name: &str, answer: &Value, json: bool) {
    if json {
        println!("{answer}");
        return;
    }
    let state = if answer["disabled"] == true {
        "disabled"
    } else if answer["offered"] == true {
        "offered"
    } else {
        "not offered yet: no node can run it"
    };
    println!("{name} (version {}) is {state}", answer["version"]);
    for node in answer["nodes"].as_array().into_iter().flatten() {
        let word = node["state"].as_str().unwrap_or("unknown");
        let more = node["reason"].as_str().or(node["version"].as_str());
        match more {
            Some(more) => println!("  node {}: {word}: {}", node["node"], one_line(more)),
            None => println!("  node {}: {word}", node["node"]),
        }
    }
}

/// What a node says is printed to a terminal: without what could steer it.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_stays_one_part_of_the_path() {
        assert_eq!(path("c++"), "/v1/languages/c%2B%2B");
        assert_eq!(path("../a?b#ü"), "/v1/languages/..%2Fa%3Fb%23%C3%BC");
    }

    #[test]
    fn a_definition_is_read_from_toml_and_from_json() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            read(&file)
        };
        let expected = json!({ "image": "zig:1", "run": ["./main"], "limits": { "cpu_ms": 5 } });
        let toml = "image = 'zig:1'\nrun = ['./main']\nlimits = { cpu_ms = 5 }\n";
        assert_eq!(file("zig.toml", toml).unwrap(), expected);
        assert_eq!(file("zig.JSON", &expected.to_string()).unwrap(), expected);
        for (name, text, words) in [
            ("a.toml", "image", "is not TOML"),
            ("a.json", "image = 1", "is not JSON"),
            ("b.json", "[1]", "one object"),
            ("b.toml", "[[language]]\nname = 'a'\n", "without the line"),
        ] {
            let error = format!("{:#}", file(name, text).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
        let long = format!("a = '{}'", "x".repeat(70_000));
        assert!(file("long.toml", &long).is_err());
        assert!(read(&folder.path().join("none.toml")).is_err());
    }
}
