//! TypeScript, with the packages that the example of a client needs: its compiler, and the generator of the client.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::program::profile_dir;
use crate::wait::say;

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
        let reason = match Self::make() {
            Ok(found) => return Some(found),
            Err(reason) => reason,
        };
        let required = std::env::var_os("QUORUN_REQUIRE_NPM").is_some_and(|v| v == "1");
        assert!(
            !required,
            "QUORUN_REQUIRE_NPM=1, and no npm with what the tests need: {reason}"
        );
        say(&format!(
            "SKIPPED {test}: it needs node with npm and packages from a registry ({reason})"
        ));
        None
    }

    fn make() -> Result<Self, String> {
        let profile = profile_dir();
        let target = profile.parent().unwrap_or(&profile);
        let said = |error: std::io::Error| error.to_string();
        std::fs::create_dir_all(target).map_err(said)?;
        // Several test programs may want it at the same time.
        let lock = std::fs::File::create(target.join("typescript.lock")).map_err(said)?;
        lock.lock().map_err(said)?;
        let folder = target.join("typescript");
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

fn done(output: std::io::Result<Output>, what: &str) -> Result<(), String> {
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let stdout = String::from_utf8_lossy(&output.stdout);
            let stderr = String::from_utf8_lossy(&output.stderr);
            Err(format!("{what}: {}: {stdout}{stderr}", output.status))
        }
        Err(error) => Err(format!("{what}: {error}")),
    }
}
