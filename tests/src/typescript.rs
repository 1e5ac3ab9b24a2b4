//! TypeScript, with the packages that the example of a client needs: its compiler, and the generator of the client.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages::{done, folder, or_skipped};

/// Every package with its version and its hash, so that what a test finds depends on nothing but the tree.
const PACKAGE: &str = include_str!("../typescript/package.json");
const LOCK: &str = include_str!("../typescript/package-lock.json");

/// The packages, installed once for all tests.
#[derive(Clone, Debug)]
pub struct TypeScript {
    folder: PathBuf,
}

impl TypeScript {
    /// The packages, installed if they are not there yet. Where they cannot be, the caller has nothing to test with and
    /// returns: that is said on stderr, or, with `QUORUN_REQUIRE_NPM=1`, is a failure.
    ///
    /// # Panics
    /// When they must be there and are not.
    #[must_use]
    pub fn find(test: &str) -> Option<Self> {
        or_skipped(
            Self::make(),
            test,
            "QUORUN_REQUIRE_NPM",
            "node with npm and packages from a registry",
        )
    }

    fn make() -> Result<Self, String> {
        let said = |error: std::io::Error| error.to_string();
        let (folder, _lock) = folder("typescript")?;
        let made_of = folder.join("made-of");
        let wanted = format!("{PACKAGE}{LOCK}");
        if std::fs::read_to_string(&made_of).is_ok_and(|text| text == wanted) {
            return Ok(Self { folder });
        }
        std::fs::create_dir_all(&folder).map_err(said)?;
        std::fs::write(folder.join("package.json"), PACKAGE).map_err(said)?;
        std::fs::write(folder.join("package-lock.json"), LOCK).map_err(said)?;
        // No package has to run anything to be installed.
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(&folder);
        done(npm.output(), "npm ci")?;
        std::fs::write(made_of, wanted).map_err(said)?;
        Ok(Self { folder })
    }

    /// Makes a folder one of a program with these packages.
    ///
    /// # Panics
    /// When it cannot be written to.
    pub fn lay_out(&self, folder: &Path) {
        let packages = self.folder.join("node_modules");
        std::os::unix::fs::symlink(packages, folder.join("node_modules")).expect("a link");
        std::fs::write(folder.join("package.json"), "{\"type\": \"module\"}").expect("write");
    }

    /// A command line of one of the packages' programs.
    #[must_use]
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.folder.join("node_modules/.bin").join(program));
        command.args(args);
        command
    }
}
