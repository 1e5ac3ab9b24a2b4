//! Python, with the packages that some tests need: schemathesis, and the generator of clients.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages::{done, folder, or_skipped};

/// Every package with its version, so that what a test finds depends on nothing but the tree.
const REQUIREMENTS: &str = include_str!("../python/requirements.txt");

/// An environment of its own, made once for all tests.
#[derive(Clone, Debug)]
pub struct Python {
    folder: PathBuf,
}

impl Python {
    /// The environment, made if it is not there yet. Where it cannot be made the caller has nothing to test with and returns:
    /// that is said on stderr, or, with `QUORUN_REQUIRE_PYTHON=1`, is a failure.
    ///
    /// # Panics
    /// When there must be one and is none.
    #[must_use]
    pub fn find(test: &str) -> Option<Self> {
        or_skipped(
            Self::make(),
            test,
            "QUORUN_REQUIRE_PYTHON",
            "python3 with venv and packages from an index",
        )
    }

    fn make() -> Result<Self, String> {
        let said = |error: std::io::Error| error.to_string();
        let (folder, _lock) = folder("python")?;
        let python = Self { folder };
        let made_of = python.folder.join("requirements.txt");
        if std::fs::read_to_string(&made_of).is_ok_and(|text| text == REQUIREMENTS) {
            return Ok(python);
        }
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", "--clear"]).arg(&python.folder);
        done(venv.output(), "python3 -m venv")?;
        let wanted = python.folder.join("wanted.txt");
        std::fs::write(&wanted, REQUIREMENTS).map_err(said)?;
        let mut pip = python.command(&["-m", "pip", "install", "--quiet", "--requirement"]);
        pip.arg(&wanted);
        done(pip.output(), "pip install")?;
        std::fs::rename(wanted, made_of).map_err(said)?;
        Ok(python)
    }

    /// A command line of this Python's interpreter.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let programs = self.folder.join("bin");
        let mut command = Command::new(programs.join("python"));
        let mut path = programs.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command
            .args(args)
            .env("PATH", path)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // A node of the test is on this machine.
            .env("NO_PROXY", "127.0.0.1");
        command
    }

    /// The folder of the scripts that tests run.
    #[must_use]
    pub fn scripts() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
    }
}
