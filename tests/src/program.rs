//! The program under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The `quorun` program: what `QUORUN_BIN` names, or else built once by cargo in the profile of the running test.
///
/// # Panics
/// When it is not there or cannot be built.
pub fn quorun() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("QUORUN_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(
                path.is_file(),
                "QUORUN_BIN names {}, which is not there",
                path.display()
            );
            path
        }
        None => build(),
    })
}

/// A command line of the program under test that sees none of the settings of the machine's owner.
#[must_use]
pub fn command() -> Command {
    command_of(quorun())
}

/// A command line of another program that is one of Quorun's, such as an older version.
#[must_use]
pub fn command_of(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUORUN_") {
            command.env_remove(name);
        }
    }
    command
}

/// The folder of the running program's profile, such as `target/debug`.
///
/// # Panics
/// When the program does not know where it is.
#[must_use]
pub fn profile_dir() -> PathBuf {
    let own = std::env::current_exe().expect("the path of the running test");
    let folder = own.parent().unwrap_or(&own);
    match folder.file_name() {
        Some(name) if name == "deps" => folder.parent().unwrap_or(folder).to_path_buf(),
        _ => folder.to_path_buf(),
    }
}

fn build() -> PathBuf {
    let folder = profile_dir();
    let name = folder
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let profile = if name == "debug" { "dev" } else { &name };
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["build", "--quiet", "--package", "quorun-server"])
        .args(["--bin", "quorun", "--profile", profile]);
    // Cargo marks the folder that holds all targets; between it and the profile may be the name of a target.
    let target_dir = folder
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file());
    if let Some(target_dir) = target_dir {
        command.arg("--target-dir").arg(target_dir);
        if let Some(between) = folder.parent().filter(|between| *between != target_dir) {
            let triple = between.file_name().unwrap_or_default();
            command.arg("--target").arg(triple);
        }
    }
    let status = command.status().expect("start cargo");
    assert!(status.success(), "building quorun: {status}");
    let program = folder.join("quorun");
    assert!(program.is_file(), "cargo made no {}", program.display());
    program
}
