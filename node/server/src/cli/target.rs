//! Which cluster a command talks to, and as whom: from its flags, the environment, or a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Deserialize;

use super::client::{Client, Credentials};
use super::usage;

/// Where a cluster is looked for when nobody says where one is.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";
const TOKEN: &str = "QUORUN_TOKEN";
const TOKEN_FILE: &str = "QUORUN_TOKEN_FILE";
const CA_FILE: &str = "QUORUN_CA_FILE";

/// Which cluster to talk to.
#[derive(Args, Clone, Debug, Default)]
pub struct Target {
    /// A node of the cluster; give several, and one that does not answer is passed over [default: http://127.0.0.1:8080]
    #[arg(
        long,
        env = "QUORUN_URL",
        value_name = "URL",
        value_delimiter = ',',
        global = false
    )]
    pub url: Vec<String>,
    /// File with the API token; also QUORUN_TOKEN_FILE, or the token itself in QUORUN_TOKEN
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The CA of the nodes' certificates, PEM, for URLs with https; also QUORUN_CA_FILE [default: those of the system]
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Settings of this command line (url, token, token_file, ca_file) [default: ~/.config/quorun/config.toml, if it is there]
    #[arg(long, env = "QUORUN_CLIENT_CONFIG", value_name = "FILE")]
    pub client_config: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    url: Option<Urls>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Urls {
    One(String),
    Several(Vec<String>),
}

/// What was found out.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    urls: Vec<String>,
    token: Option<String>,
    ca: Option<PathBuf>,
}

/// As whom the environment says, for what has no file of settings: a node that joins, the load simulator.
///
/// # Errors
/// When a file cannot be read, or what is in it cannot be a token.
pub fn of_environment() -> anyhow::Result<Credentials> {
    let found = Target::default().look(|name| std::env::var(name).ok(), File::default())?;
    Credentials::new(found.token.as_deref(), found.ca)
}

impl Target {
    /// A client of the cluster.
    ///
    /// # Errors
    /// When a setting is wrong.
    pub fn client(&self) -> anyhow::Result<Client> {
        let made = self
            .find(|name| std::env::var(name).ok())
            .and_then(|found| {
                let credentials = Credentials::new(found.token.as_deref(), found.ca)?;
                Client::of(&found.urls, &credentials)
            });
        made.map_err(|error| usage(&error))
    }

    /// What holds: a flag before the environment, the environment before the file.
    fn find(&self, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Found> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let file = match (&self.client_config, usual_file(set)) {
            (Some(path), _) => read(path)?,
            (None, Some(path)) if path.exists() => read(&path)?,
            _ => File::default(),
        };
        self.look(variable, file)
    }

    fn look(&self, variable: impl Fn(&str) -> Option<String>, file: File) -> anyhow::Result<Found> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mut urls: Vec<String> = self.url.iter().filter(|u| !u.is_empty()).cloned().collect();
        if urls.is_empty() {
            urls = match file.url {
                Some(Urls::One(url)) => vec![url],
                Some(Urls::Several(urls)) if !urls.is_empty() => urls,
                _ => vec![DEFAULT_URL.to_owned()],
            };
        }
        let token = if let Some(path) = &self.token_file {
            Some(token_in(path)?)
        } else if let Some(token) = set(TOKEN) {
            Some(token)
        } else if let Some(path) = set(TOKEN_FILE) {
            Some(token_in(Path::new(&path))?)
        } else if file.token.is_some() && file.token_file.is_some() {
            bail!("the settings of the command line have token and token_file; one is enough");
        } else if let Some(path) = &file.token_file {
            Some(token_in(path)?)
        } else {
            file.token
        };
        let ca = self
            .ca_file
            .clone()
            .or_else(|| set(CA_FILE).map(Into::into));
        let ca = ca.or(file.ca_file);
        Ok(Found { urls, token, ca })
    }
}

/// Where the file is looked for when nobody says where it is.
fn usual_file(set: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let folder = match set("XDG_CONFIG_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(set("HOME")?).join(".config"),
    };
    Some(folder.join("quorun").join("config.toml"))
}

fn read(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{}", path.display()))
}

/// The token in a file: its only line.
fn token_in(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read the token in {}", path.display()))?;
    let token = text.trim();
    ensure!(!token.is_empty(), "{} has no token", path.display());
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn find(target: &Target, variables: &[(&str, &str)]) -> anyhow::Result<Found> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        target.find(|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    fn found(urls: &[&str], token: Option<&str>) -> Found {
        Found {
            urls: urls.iter().map(|url| (*url).to_owned()).collect(),
            token: token.map(ToOwned::to_owned),
            ca: None,
        }
    }

    #[test]
    fn the_ca_is_found_as_the_token_is() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        std::fs::write(&config, "ca_file = \"of-file\"\n").unwrap();
        let mut target = Target {
            client_config: Some(config),
            ..Target::default()
        };
        let ca = |target: &Target, variables: &[(&str, &str)]| {
            find(target, variables).unwrap().ca.unwrap()
        };
        assert_eq!(ca(&target, &[]), Path::new("of-file"));
        let variable = [(CA_FILE, "of-environment")];
        assert_eq!(ca(&target, &variable), Path::new("of-environment"));
        target.ca_file = Some("of-flag".into());
        assert_eq!(ca(&target, &variable), Path::new("of-flag"));
    }

    #[test]
    fn a_flag_comes_before_the_environment_and_that_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let home = folder.path().display().to_string();
        let mut target = Target::default();
        assert_eq!(find(&target, &[]).unwrap(), found(&[DEFAULT_URL], None));
        assert_eq!(
            find(&target, &[("HOME", &home)]).unwrap(),
            found(&[DEFAULT_URL], None)
        );
        file(
            ".config/quorun/config.toml",
            "url = [\"http://a\", \"http://b\"]\ntoken = \"of-file\"\n",
        );
        let both = ["http://a", "http://b"];
        assert_eq!(
            find(&target, &[("HOME", &home)]).unwrap(),
            found(&both, Some("of-file"))
        );
        let token = file("token", "of-token-file\n").display().to_string();
        let home_and = |name, value| [("HOME", home.as_str()), (name, value)];
        assert_eq!(
            find(&target, &home_and(TOKEN_FILE, &token)).unwrap(),
            found(&both, Some("of-token-file"))
        );
        assert_eq!(
            find(&target, &home_and(TOKEN, "of-environment")).unwrap(),
            found(&both, Some("of-environment"))
        );
        target.token_file = Some(PathBuf::from(&token));
        target.url = vec!["http://c".to_owned()];
        assert_eq!(
            find(&target, &home_and(TOKEN, "of-environment")).unwrap(),
            found(&["http://c"], Some("of-token-file"))
        );
    }

    #[test]
    fn a_file_that_is_not_right_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        for text in [
            "url = 7",
            "tokn = \"x\"",
            "what",
            "token = \"a\"\ntoken_file = \"b\"",
        ] {
            let path = folder.path().join("config.toml");
            std::fs::write(&path, text).unwrap();
            let target = Target {
                client_config: Some(path),
                ..Target::default()
            };
            assert!(find(&target, &[]).is_err(), "{text}");
        }
        let missing = Target {
            client_config: Some(folder.path().join("missing")),
            ..Target::default()
        };
        assert!(
            find(&missing, &[])
                .unwrap_err()
                .to_string()
                .contains("missing")
        );
        let empty = folder.path().join("empty");
        std::fs::write(&empty, " \n").unwrap();
        let target = Target {
            token_file: Some(empty),
            ..Target::default()
        };
        assert!(find(&target, &[]).is_err());
    }
}
