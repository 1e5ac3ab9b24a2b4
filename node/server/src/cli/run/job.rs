//! The job that a command line asks for.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Method;
use serde_json::{Map, Value, json};

use super::super::client::Client;
use super::super::usage;
use super::{RunArgs, input};

/// The submission.
pub async fn request(client: &Client, args: &RunArgs) -> anyhow::Result<Value> {
    let mut files: Vec<(&PathBuf, Vec<u8>)> = Vec::new();
    for path in &args.files {
        let content = if input::is_stdin(path) {
            text_of_stdin().await?
        } else {
            read(path)?
        };
        files.push((path, content));
    }
    let mut limits = Map::new();
    for limit in &args.limit {
        let (name, number) = pair("--limit", limit)?;
        let number: u64 = number.parse().map_err(|_| {
            usage(&anyhow!(
                "--limit {limit}: {number} is not a number; for example wall_ms=10000"
            ))
        })?;
        limits.insert(name.to_owned(), number.into());
    }
    let mut env = Map::new();
    for variable in &args.env {
        let (name, value) = pair("--env", variable)?;
        env.insert(name.to_owned(), value.into());
    }
    let language = match &args.lang {
        Some(language) => language.clone(),
        None => language_of(client, &args.files[0]).await?,
    };
    let mut request = json!({
        "language": language,
        "args": args.args,
        "env": env,
        "limits": limits,
        "labels": args.label,
    });
    match &files[..] {
        [(_, source)] if std::str::from_utf8(source).is_ok() => {
            request["source"] = String::from_utf8_lossy(source).into();
        }
        files => {
            let files = files.iter().map(|(path, content)| {
                let name = name_of(path)?;
                Ok(match std::str::from_utf8(content) {
                    Ok(text) => json!({ "name": name, "content": text }),
                    Err(_) => json!({ "name": name, "content_base64": BASE64.encode(content) }),
                })
            });
            request["files"] = files.collect::<anyhow::Result<Vec<_>>>()?.into();
        }
    }
    if let Some(path) = args.stdin.as_ref().filter(|path| !input::is_stdin(path)) {
        request["stdin_base64"] = BASE64.encode(read(path)?).into();
    }
    Ok(request)
}

/// A program from stdin. It has no name, and without one only text can be sent.
async fn text_of_stdin() -> anyhow::Result<Vec<u8>> {
    let content = input::all().await?;
    if std::str::from_utf8(&content).is_err() {
        return Err(usage(&anyhow!(
            "the program on stdin (-) is not text in UTF-8; put it into a file"
        )));
    }
    Ok(content)
}

pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path)
        .with_context(|| format!("read {}", path.display()))
        .map_err(|error| usage(&error))
}

fn pair<'a>(option: &str, text: &'a str) -> anyhow::Result<(&'a str, &'a str)> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| usage(&anyhow!("{option} {text}: it should be NAME=VALUE")))
}

/// What a file is called in the job's folder: its path, if that stays below this folder, or its name alone.
fn name_of(path: &Path) -> anyhow::Result<String> {
    let below = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let name: Option<Vec<&str>> = if below {
        let parts = path.components().filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_str()),
            _ => None,
        });
        parts.collect()
    } else {
        path.file_name()
            .and_then(|name| name.to_str())
            .map(|name| vec![name])
    };
    name.filter(|parts| !parts.is_empty())
        .map(|parts| parts.join("/"))
        .ok_or_else(|| {
            usage(&anyhow!(
                "{} is not the name of a file in UTF-8",
                path.display()
            ))
        })
}

async fn language_of(client: &Client, file: &Path) -> anyhow::Result<String> {
    let extension = file
        .extension()
        .map(|e| e.to_string_lossy().to_lowercase())
        .with_context(|| {
            format!(
                "{} has no extension; say its language with --lang",
                file.display()
            )
        })
        .map_err(|error| usage(&error))?;
    let body = client.ask(Method::GET, "/v1/languages", None).await?;
    let languages = body["languages"].as_array().cloned().unwrap_or_default();
    languages
        .iter()
        .find(|language| {
            language["extensions"]
                .as_array()
                .is_some_and(|all| all.iter().any(|e| e == extension.as_str()))
        })
        .and_then(|language| language["name"].as_str().map(ToOwned::to_owned))
        .with_context(|| format!("no language has the extension .{extension}; say it with --lang"))
        .map_err(|error| usage(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_their_place_below_this_folder_and_otherwise_their_name() {
        let name = |path: &str| name_of(Path::new(path)).ok();
        assert_eq!(name("main.py").as_deref(), Some("main.py"));
        assert_eq!(name("./lib/a.py").as_deref(), Some("lib/a.py"));
        assert_eq!(name("../lib/a.py").as_deref(), Some("a.py"));
        assert_eq!(name("/tmp/a.py").as_deref(), Some("a.py"));
        assert_eq!(name(".."), None);
        assert_eq!(name("."), None);
    }

    #[test]
    fn pairs_have_a_name() {
        assert_eq!(pair("--env", "A=b=c").unwrap(), ("A", "b=c"));
        assert_eq!(pair("--env", "A=").unwrap(), ("A", ""));
        assert!(pair("--env", "=b").is_err());
        assert!(pair("--env", "A").is_err());
    }
}
