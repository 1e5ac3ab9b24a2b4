//! What is set about access, checked as a whole: what contradicts itself, or would let in more than was meant, is refused.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use http::{HeaderValue, Uri};
use quorun_consensus::{PeerAccess, PeerTls, Secrets};

use super::tls::Certificate;
use super::tokens::{self, Tokens};
use crate::config::Settings;

/// Which web pages may read answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// None but those of the node itself.
    #[default]
    None,
    /// These.
    Listed(Vec<HeaderValue>),
    /// All: whoever has a token may use it from any page.
    Any,
}

impl Origins {
    /// Whether it is one of those that are listed.
    #[must_use]
    pub fn admits(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::None => false,
            Self::Listed(list) => list.contains(origin),
            Self::Any => true,
        }
    }

    /// Whether one of those that are listed is of this host.
    #[must_use]
    pub fn name(&self, host: &str) -> bool {
        let of_host = |origin: &HeaderValue| {
            let uri = Uri::try_from(origin.as_bytes()).ok();
            uri.is_some_and(|uri| uri.host().is_some_and(|own| own.eq_ignore_ascii_case(host)))
        };
        matches!(self, Self::Listed(list) if list.iter().any(of_host))
    }
}

/// Who may do what, and how it is known.
#[derive(Clone, Debug)]
pub struct Access {
    /// The tokens; without them, everybody may do everything.
    pub tokens: Option<Tokens>,
    /// Only this machine reaches the HTTP port.
    pub local: bool,
    /// Figures are shown to whoever asks.
    pub open_metrics: bool,
    /// Which web pages may read answers.
    pub origins: Origins,
    /// TLS for clients.
    pub certificate: Option<Certificate>,
    /// How long a connection is kept on which no request is under way.
    pub idle: Duration,
    /// By what the nodes know each other.
    pub peers: PeerAccess,
}

impl Access {
    /// Checks what is set, and reads the files that it names.
    ///
    /// # Errors
    /// One clear line about the first thing that is not right; never with a secret in it.
    pub fn new(settings: &Settings, http: SocketAddr) -> anyhow::Result<Self> {
        let tokens = named(settings.tokens.as_deref())
            .map(Tokens::open)
            .transpose()?;
        let open = settings.open.unwrap_or(false);
        ensure!(
            tokens.is_some() || open || is_loopback(http.ip()),
            "--http {http} can be reached from other machines, and there are no --tokens: anybody there could run programs and change the cluster; give --tokens FILE, or --open if that is meant"
        );
        let origins = origins(settings.cors_origin.as_deref().unwrap_or_default())?;
        ensure!(
            origins != Origins::Any || tokens.is_some(),
            "--cors-origin \"*\" needs --tokens: without them any web page that somebody opens could use the cluster; list the origins that may, such as https://judge.example"
        );
        let pair = |cert: &Option<PathBuf>, key: &Option<PathBuf>, what: &str| match (
            named(cert.as_deref()),
            named(key.as_deref()),
        ) {
            (Some(cert), Some(key)) => Ok(Some((cert.to_owned(), key.to_owned()))),
            (None, None) => Ok(None),
            _ => bail!("--{what}-cert and --{what}-key go together"),
        };
        let certificate = pair(&settings.tls_cert, &settings.tls_key, "tls")?
            .map(|(cert, key)| Certificate::open(&cert, &key))
            .transpose()?;
        let own = pair(&settings.peer_tls_cert, &settings.peer_tls_key, "peer-tls")?;
        let tls = match (own, named(settings.peer_tls_ca.as_deref())) {
            (None, None) => None,
            (Some((cert, key)), Some(ca)) => Some(PeerTls {
                certificate: pem("--peer-tls-cert", &cert)?,
                key: pem("--peer-tls-key", &key)?,
                ca: pem("--peer-tls-ca", ca)?,
            }),
            _ => bail!("--peer-tls-cert, --peer-tls-key and --peer-tls-ca go together"),
        };
        let idle = settings.idle_s.unwrap_or(60);
        ensure!(
            (1..=3600).contains(&idle),
            "--idle-s {idle} is out of range; 1 to 3600"
        );
        Ok(Self {
            tokens,
            local: is_loopback(http.ip()),
            open_metrics: settings.open_metrics.unwrap_or(false),
            origins,
            certificate,
            idle: Duration::from_secs(idle),
            peers: PeerAccess {
                secrets: secrets(settings)?,
                tls,
            },
        })
    }
}

/// The file that is named, if one is: an empty value is what a compose file gives for a variable that is not set.
pub fn named(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Whether only this machine reaches an address.
#[must_use]
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn pem(option: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{option}: read {}", path.display()))
}

fn origins(list: &str) -> anyhow::Result<Origins> {
    let mut origins = Vec::new();
    let mut any = false;
    for origin in list.split(',').map(str::trim).filter(|o| !o.is_empty()) {
        if origin == "*" {
            any = true;
            continue;
        }
        let wrong = || {
            format!(
                "--cors-origin: \"{origin}\" should be an origin as browsers send it: scheme, host and port without a path, such as https://judge.example"
            )
        };
        let uri: Uri = origin.parse().with_context(wrong)?;
        let (scheme, authority) = (uri.scheme_str(), uri.authority());
        let whole = scheme
            .zip(authority)
            .map(|(scheme, authority)| format!("{scheme}://{authority}"));
        // Written in another way, it would never be found equal.
        ensure!(
            whole.as_deref() == Some(origin)
                && origin == origin.to_ascii_lowercase()
                && !origin.contains('@')
                && matches!(scheme, Some("http" | "https")),
            wrong()
        );
        origins.push(HeaderValue::from_str(origin).with_context(wrong)?);
    }
    match (any, origins.is_empty()) {
        (true, true) => Ok(Origins::Any),
        (true, false) => bail!("--cors-origin: \"*\" stands for all origins; name no others"),
        (false, true) => Ok(Origins::None),
        (false, false) => Ok(Origins::Listed(origins)),
    }
}

fn secrets(settings: &Settings) -> anyhow::Result<Secrets> {
    let optional = settings.cluster_secret_optional.unwrap_or(false);
    let create = settings.cluster_secret_create.unwrap_or(false);
    let Some(path) = named(settings.cluster_secret_file.as_deref()) else {
        ensure!(
            !optional && !create,
            "--cluster-secret-optional and --cluster-secret-create need --cluster-secret-file"
        );
        return Ok(Secrets::default());
    };
    if create {
        draw_secret(path)
            .with_context(|| format!("--cluster-secret-create: {}", path.display()))?;
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--cluster-secret-file: read {}", path.display()))?;
    let secrets = Secrets::parse(&text)
        .with_context(|| format!("--cluster-secret-file: {}", path.display()))?;
    Ok(if optional {
        secrets.optional()
    } else {
        secrets
    })
}

/// Draws a secret for the cluster into a file, unless that is there. Nodes that share a folder may do so at the same
/// time: one of them is the first, and all have its secret.
fn draw_secret(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder)?;
    let draft = folder.join(format!(".secret-{}", uuid::Uuid::now_v7()));
    let write = || -> anyhow::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        writeln!(file, "{}", tokens::draw()?.token)?;
        file.sync_all()?;
        match std::fs::hard_link(&draft, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => Ok(linked?),
        }
    };
    let written = write();
    // It is there under its name, or of no use.
    let _ = std::fs::remove_file(&draft);
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Settings)) -> anyhow::Result<Access> {
        let mut settings = Settings::default();
        change(&mut settings);
        let http = settings.http.unwrap_or(([127, 0, 0, 1], 8080).into());
        Access::new(&settings, http)
    }

    fn error(change: impl FnOnce(&mut Settings)) -> String {
        format!("{:#}", check(change).unwrap_err())
    }

    #[test]
    fn without_tokens_only_this_machine_is_listened_to_unless_that_is_meant() {
        for address in [
            "127.0.0.1:80",
            "127.9.9.9:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
        ] {
            check(|s| s.http = Some(address.parse().unwrap())).unwrap();
        }
        for address in [
            "0.0.0.0:80",
            "[::]:80",
            "10.0.0.1:80",
            "[::ffff:10.0.0.1]:80",
        ] {
            let address = Some(address.parse().unwrap());
            assert!(error(|s| s.http = address).contains("--open"));
            check(|s| (s.http, s.open) = (address, Some(true))).unwrap();
        }
    }

    #[test]
    fn origins_are_what_browsers_send() {
        let list = |text: &str| check(|s| s.cors_origin = Some(text.to_owned()));
        let listed = list("https://a.example, http://b.example:8000").unwrap();
        let admits = |origin| listed.origins.admits(&HeaderValue::from_static(origin));
        assert!(admits("https://a.example") && admits("http://b.example:8000"));
        for other in [
            "null",
            "http://a.example",
            "https://a.example:444",
            "https://a.example.org",
        ] {
            assert!(!admits(other), "{other}");
        }
        assert_eq!(list(" ,").unwrap().origins, Origins::None);
        for wrong in [
            "a.example",
            "https://a.example/",
            "https://a.example/x",
            "https://A.example",
            "https://u@a.example",
            "ftp://a.example",
            "null",
            "https://a.example,*",
        ] {
            let error = format!("{:#}", list(wrong).unwrap_err());
            assert!(error.contains("--cors-origin"), "{wrong}: {error}");
        }
        assert!(error(|s| s.cors_origin = Some("*".to_owned())).contains("needs --tokens"));
    }

    #[test]
    fn what_goes_together_goes_together() {
        let some = || Some(PathBuf::from("/nowhere/x"));
        assert!(error(|s| s.tls_cert = some()).contains("--tls-cert and --tls-key"));
        assert!(error(|s| s.peer_tls_ca = some()).contains("--peer-tls-ca go together"));
        assert!(error(|s| s.tokens = some()).contains("--tokens: read /nowhere/x"));
        assert!(
            error(|s| s.cluster_secret_optional = Some(true)).contains("--cluster-secret-file")
        );
        assert!(error(|s| s.cluster_secret_file = some()).contains("read /nowhere/x"));
        assert!(error(|s| s.idle_s = Some(0)).contains("--idle-s 0"));
        let both = |s: &mut Settings| (s.tls_cert, s.tls_key) = (some(), some());
        assert!(error(both).contains("--tls-cert: read"));
        check(|s| s.tokens = Some(PathBuf::new())).unwrap();
    }

    #[test]
    fn nodes_that_draw_a_secret_at_once_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shared/secret");
        let drawing: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || {
                    draw_secret(&path).unwrap();
                    std::fs::read_to_string(&path).unwrap()
                })
            })
            .collect();
        let drawn: std::collections::BTreeSet<_> =
            drawing.into_iter().map(|d| d.join().unwrap()).collect();
        assert_eq!(drawn.len(), 1);
        let entries = std::fs::read_dir(dir.path().join("shared")).unwrap();
        assert_eq!(entries.count(), 1, "no draft is left");
        let set = |s: &mut Settings| s.cluster_secret_file = Some(path.clone());
        assert!(!check(set).unwrap().peers.secrets.is_empty());
    }
}
