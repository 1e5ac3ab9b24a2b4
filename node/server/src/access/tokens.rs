//! API tokens: what the file of them says, and whose a token is.
//!
//! A token is 256 random bits behind a mark by which scanners for leaked secrets can know it. The file holds SHA-256 of each
//! and never the token, so who reads the file has none. A slow hash as for passwords would gain nothing: it makes guessing
//! dear where there is little to guess, and nobody guesses 256 random bits; it would cost each request milliseconds.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::ValueEnum;
use quorun_ledger::Priority;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::{error, info};

use super::rate::{Bucket, Policy};
use super::reload;

/// What every token begins with.
const MARK: &str = "quorun_";
/// Longer ones are not even hashed.
const LONGEST: usize = 256;
/// Tokens in one file.
const MAX_TOKENS: usize = 100_000;
/// The longest name.
const MAX_NAME: usize = 64;

/// What the bearer of a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look at its own jobs.
    Read,
    /// That, and submit and cancel them.
    Submit,
    /// Everything, with everybody's jobs; also change the cluster.
    Admin,
}

impl Role {
    /// Its name in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Admin => "admin",
        }
    }
}

/// A token, as the node knows it.
pub struct Token {
    /// Whose it is. An owner may have several tokens.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// Jobs without a result that the owner may have, in the whole cluster.
    pub max_jobs: Option<u64>,
    /// The part of the queue that the owner's waiting jobs may take, percent.
    pub queue_percent: Option<u8>,
    /// The highest level of the queue in which the owner's jobs wait, whatever they ask for.
    pub max_priority: Option<Priority>,
    /// Requests that it may make at this node.
    pub requests: Option<Arc<Bucket>>,
    hash: [u8; 32],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} token of {}", self.role.name(), self.name)
    }
}

/// One entry of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    role: Role,
    sha256: String,
    requests_per_s: Option<u32>,
    burst: Option<u32>,
    max_jobs: Option<u64>,
    queue_percent: Option<u8>,
    max_priority: Option<Priority>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Entry>,
}

/// The tokens that hold, by their hash.
#[derive(Default)]
pub struct Table(HashMap<[u8; 32], Arc<Token>>);

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.len())
    }
}

impl Table {
    /// Reads the text of a file. Buckets of `former` go on where they are.
    ///
    /// # Errors
    /// When something in it is not right; the text of a secret is never in the error.
    pub fn parse(text: &str, former: &Self) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| without_source(&error))?;
        ensure!(
            !file.token.is_empty(),
            "there is no [[token]] in it; `quorun token new` makes one"
        );
        ensure!(
            file.token.len() <= MAX_TOKENS,
            "it has {} tokens; at most {MAX_TOKENS}",
            file.token.len()
        );
        let mut tokens = HashMap::with_capacity(file.token.len());
        for (n, entry) in file.token.into_iter().enumerate() {
            let number = n + 1;
            let token =
                Token::new(entry, former).with_context(|| format!("[[token]] number {number}"))?;
            let name = token.name.clone();
            if let Some(other) = tokens.insert(token.hash, Arc::new(token)) {
                bail!(
                    "[[token]] number {number} of {name} has the same sha256 as one of {}",
                    other.name
                );
            }
        }
        Ok(Self(tokens))
    }

    /// Whose token this is.
    #[must_use]
    pub fn find(&self, presented: &[u8]) -> Option<&Arc<Token>> {
        if presented.len() > LONGEST {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(presented).into();
        // How long the look-up takes may say something of hashes that are there. It says nothing of a token: whoever wants
        // to have a certain hash must try as many tokens as whoever wants the token itself.
        let token = self.0.get(&hash)?;
        bool::from(token.hash.ct_eq(&hash)).then_some(token)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// What is wrong with a text, without the line that it is in: that may be a token that was put in the wrong place.
fn without_source(error: &toml::de::Error) -> anyhow::Error {
    let place = error.span().map_or(String::new(), |span| {
        format!(" (at byte {} of the file)", span.start)
    });
    let message = error.message().split('`').next().unwrap_or_default();
    let named = match error.message().strip_prefix("unknown field `") {
        Some(rest) => format!(
            "unknown key {}; there are name, role, sha256, requests_per_s, burst, max_jobs, queue_percent and max_priority",
            rest.split('`').next().unwrap_or_default()
        ),
        None if error.message().starts_with("missing field `") => error.message().to_owned(),
        None => message.trim_end().to_owned(),
    };
    anyhow::anyhow!("{named}{place}")
}

impl Token {
    fn new(entry: Entry, former: &Table) -> anyhow::Result<Self> {
        check_name(&entry.name)?;
        let hash = unhex(&entry.sha256).context(
            "sha256 should be 64 hexadecimal digits: the SHA-256 of the token, never the token itself",
        )?;
        let requests = match (entry.requests_per_s, entry.burst) {
            (None, None) => None,
            (None, Some(_)) => bail!("burst is there without requests_per_s"),
            (Some(0), _) | (_, Some(0)) => bail!("requests_per_s and burst should be at least 1"),
            (Some(per_second), burst) => {
                let policy = Policy {
                    per_second: per_second.min(1_000_000),
                    burst: burst.unwrap_or(per_second).min(1_000_000),
                };
                let bucket = former.0.get(&hash).and_then(|token| token.requests.clone());
                Some(
                    bucket
                        .filter(|bucket| bucket.policy() == policy)
                        .unwrap_or_else(|| Arc::new(Bucket::new(policy))),
                )
            }
        };
        ensure!(entry.max_jobs != Some(0), "max_jobs should be at least 1");
        if let Some(percent) = entry.queue_percent {
            ensure!(
                (1..=100).contains(&percent),
                "queue_percent is {percent}; it should be 1 to 100"
            );
        }
        Ok(Self {
            name: entry.name,
            role: entry.role,
            max_jobs: entry.max_jobs,
            queue_percent: entry.queue_percent,
            max_priority: entry.max_priority,
            requests,
            hash,
        })
    }
}

/// The name of an owner: it stands in keys of the ledger, in logs and in answers.
///
/// # Errors
/// When it is not one.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    ensure!(
        (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(plain)
            && name.as_bytes()[0].is_ascii_alphanumeric(),
        "name should be 1 to {MAX_NAME} letters, digits, dots, underscores and hyphens, beginning with a letter or digit"
    );
    // The other way round, a token would be logged with the first job.
    ensure!(
        !name.starts_with(MARK),
        "name begins with {MARK}; it should be whose the token is, not the token"
    );
    Ok(())
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(16 * digit(pair[0])? + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

/// A token that was drawn just now, and its hash for the file.
pub struct Drawn {
    /// What its bearer is given; nobody else ever sees it.
    pub token: String,
    /// SHA-256 of that, hexadecimal.
    pub sha256: String,
}

/// Draws a token.
///
/// # Errors
/// When the system has no randomness to give.
pub fn draw() -> anyhow::Result<Drawn> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| anyhow::anyhow!("draw a token: {error}"))?;
    let token = format!("{MARK}{}", URL_SAFE_NO_PAD.encode(secret));
    let sha256 = Sha256::digest(&token)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(Drawn { token, sha256 })
}

/// The tokens of a file, read anew when it changes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokens {
    path: Arc<PathBuf>,
    table: Arc<RwLock<Arc<Table>>>,
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or is not right.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let table = read(path, &Table::default())?;
        Ok(Self {
            path: Arc::new(path.to_owned()),
            table: Arc::new(RwLock::new(Arc::new(table))),
        })
    }

    /// The tokens that hold now.
    #[must_use]
    pub fn now(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file anew. What is wrong with it is logged, and the former tokens go on to hold.
    pub fn reread(&self) {
        match read(&self.path, &self.now()) {
            Ok(table) => {
                info!(tokens = table.len(), "the file of tokens was read anew");
                *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
            }
            Err(error) => error!("{error:#}; the tokens stay as they were"),
        }
    }

    /// Reads the file anew whenever it has changed, and on SIGHUP.
    pub async fn follow(self) {
        reload::whenever_changed(vec![self.path.to_path_buf()], || self.reread()).await;
    }
}

fn read(path: &Path, former: &Table) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--tokens: read {}", path.display()))?;
    Table::parse(&text, former).with_context(|| format!("--tokens: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, sha256: &str, more: &str) -> String {
        format!("[[token]]\nname = \"{name}\"\nrole = \"submit\"\nsha256 = \"{sha256}\"\n{more}\n")
    }

    fn parse(text: &str) -> anyhow::Result<Table> {
        Table::parse(text, &Table::default())
    }

    #[test]
    fn a_token_is_known_by_its_hash_alone() {
        let (one, two) = (draw().unwrap(), draw().unwrap());
        assert_ne!(one.token, two.token);
        assert!(one.token.len() > 40 && one.token.starts_with(MARK));
        let table = parse(&entry("judge", &one.sha256, "max_jobs = 7")).unwrap();
        let found = table.find(one.token.as_bytes()).unwrap();
        assert_eq!(
            (found.name.as_str(), found.role, found.max_jobs),
            ("judge", Role::Submit, Some(7))
        );
        let longer = format!("{}x", one.token);
        let shorter = &one.token[..one.token.len() - 1];
        for wrong in [
            "",
            &two.token,
            &one.sha256,
            &longer,
            shorter,
            &"x".repeat(10_000),
        ] {
            assert!(table.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn the_hash_is_what_others_call_sha_256() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let table = parse(&entry("a", abc, "")).unwrap();
        assert!(table.find(b"abc").is_some());
    }

    #[test]
    fn a_file_that_is_not_right_is_one_clear_line_and_shows_no_secret() {
        let hash = "0".repeat(64);
        let good = entry("a", &hash, "");
        for (text, words) in [
            (String::new(), "no [[token]]"),
            (entry("a", "quorun_oops", ""), "64 hexadecimal digits"),
            (entry("", &hash, ""), "name should be"),
            (entry("a b", &hash, ""), "name should be"),
            (entry("-a", &hash, ""), "name should be"),
            (entry(&"a".repeat(65), &hash, ""), "name should be"),
            (entry("quorun_oops", &hash, ""), "not the token"),
            (entry("a", &hash, "burst = 3"), "without requests_per_s"),
            (entry("a", &hash, "requests_per_s = 0"), "at least 1"),
            (entry("a", &hash, "max_jobs = 0"), "at least 1"),
            (entry("a", &hash, "queue_percent = 101"), "1 to 100"),
            (
                entry("a", &hash, "max_priority = \"oops\""),
                "unknown variant",
            ),
            (
                entry("a", &hash, "tokn = \"quorun_oops\""),
                "unknown key tokn",
            ),
            (good.clone() + &good, "same sha256"),
            ("[[token]]\nname = \"a\"\n".to_owned(), "missing field"),
            ("quorun_oops".to_owned(), "at byte"),
            (
                "[[token]]\nrole = \"quorun_oops\"\n".to_owned(),
                "unknown variant",
            ),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains("oops"), "{error}");
        }
    }

    #[test]
    fn a_file_read_anew_keeps_its_buckets_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.toml");
        let (one, two) = (draw().unwrap(), draw().unwrap());
        let limited = "requests_per_s = 1\nburst = 2";
        std::fs::write(&path, entry("a", &one.sha256, limited)).unwrap();
        let tokens = Tokens::open(&path).unwrap();
        let take = |drawn: &Drawn| {
            let table = tokens.now();
            let token = table.find(drawn.token.as_bytes()).unwrap();
            let bucket = token.requests.as_ref().unwrap();
            bucket.take(std::time::Instant::now()).unwrap().left
        };
        assert_eq!(take(&one), 1);
        let both = entry("a", &one.sha256, limited) + &entry("b", &two.sha256, limited);
        std::fs::write(&path, &both).unwrap();
        tokens.reread();
        assert_eq!((take(&one), take(&two)), (0, 1));
        std::fs::write(&path, "nonsense").unwrap();
        tokens.reread();
        assert_eq!(tokens.now().len(), 2);
        std::fs::write(&path, entry("b", &two.sha256, limited)).unwrap();
        tokens.reread();
        assert!(tokens.now().find(one.token.as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn whatever_a_file_holds_nothing_panics(text in ".*") {
            let _ = parse(&text);
            let _ = parse(&format!("[[token]]\nname = \"a\"\nrole = \"read\"\nsha256 = \"{}\"", text.escape_default()));
        }

        #[test]
        fn whatever_is_presented_nothing_panics(presented in prop::collection::vec(any::<u8>(), 0..600)) {
            let table = parse(&entry("a", &"0".repeat(64), "")).unwrap();
            prop_assert!(table.find(&presented).is_none());
        }
    }
}
