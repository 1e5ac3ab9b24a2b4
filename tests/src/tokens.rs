//! API tokens for a cluster, as an operator draws them.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::cluster::Plan;
use crate::node::Executor;
use crate::program;

/// A file of tokens; it lasts as long as this value.
#[derive(Debug)]
pub struct Tokens {
    folder: TempDir,
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new()
    }
}

impl Tokens {
    /// No token yet.
    ///
    /// # Panics
    /// When there is no folder for it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// Where the file is.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("tokens.toml")
    }

    /// Draws one as an operator would.
    ///
    /// # Panics
    /// When `quorun token new` does not do so.
    #[must_use]
    pub fn draw(&self, name: &str, role: &str, more: &[&str]) -> String {
        let output = program::command()
            .args(["token", "new", "--name", name, "--role", role])
            .args(more)
            .arg("--file")
            .arg(self.file())
            .output()
            .expect("run quorun");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let token = String::from_utf8(output.stdout).expect("a token");
        assert!(token.starts_with("quorun_"));
        token.trim().to_owned()
    }

    /// Nodes of processes that have the tokens.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let file = self.file().display().to_string();
        Plan::new(Executor::Process).arg(format!("--tokens={file}"))
    }
}
