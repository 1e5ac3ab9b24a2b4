//! Builds the warden as a static program, to be carried inside the node.
//!
//! A cargo of its own does it, with a target folder of its own: the outer one holds the lock of its target folder while
//! this script runs, and builds for another purpose (debug, clippy, dynamic). `QUORUN_WARDEN=/path` takes a finished
//! program instead.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    if let Err(message) = run() {
        // How a build script tells a user what is wrong.
        println!("cargo::error={}", message.replace('\n', " | "));
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let warden = manifest.join("../../sandbox/warden");
    let workspace = manifest.join("../..");
    println!("cargo::rerun-if-env-changed=QUORUN_WARDEN");
    for path in [
        warden.join("src"),
        warden.join("Cargo.toml"),
        workspace.join("Cargo.lock"),
    ] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let built = match env::var_os("QUORUN_WARDEN").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => build(&workspace, &out)?,
    };
    let target = out.join("quorun-warden.bin");
    std::fs::copy(&built, &target)
        .map_err(|error| format!("the warden {}: {error}", built.display()))?;
    Ok(())
}

fn build(workspace: &Path, out: &Path) -> Result<PathBuf, String> {
    // Static programs are made for the GNU target of the machine that the node is for; with `--target` the flags below
    // hold for the program only, not for build scripts and procedural macros, which cannot be static.
    let triple = variable("TARGET")?;
    let target_dir = out.join("warden-target");
    let mut command = Command::new(variable("CARGO")?);
    command
        .current_dir(workspace)
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "quorun-warden",
        ])
        .args(["--bin", "quorun-warden", "--target", &triple])
        .arg("--target-dir")
        .arg(&target_dir);
    // What the outer cargo and its user set for the outer build must not reach this one: flags (also in their encoded
    // form), wrappers such as clippy's, a target folder, profiles. What says where cargo keeps and finds things must, and
    // what links.
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let keep = matches!(name, "CARGO_HOME" | "CARGO_MAKEFLAGS")
            || [
                "CARGO_NET_",
                "CARGO_HTTP_",
                "CARGO_REGISTR",
                "CARGO_SOURCE_",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            // for a target of another machine
            || (name.starts_with("CARGO_TARGET_") && name.ends_with("_LINKER"));
        let outer = name.starts_with("CARGO")
            || name.starts_with("CLIPPY")
            || matches!(
                name,
                "RUSTFLAGS"
                    | "RUSTDOCFLAGS"
                    | "RUSTC"
                    | "RUSTDOC"
                    | "RUSTC_WRAPPER"
                    | "RUSTC_WORKSPACE_WRAPPER"
                    | "TARGET"
                    | "HOST"
                    | "PROFILE"
                    | "OPT_LEVEL"
                    | "DEBUG"
                    | "OUT_DIR"
                    | "NUM_JOBS"
            );
        if outer && !keep {
            command.env_remove(name);
        }
    }
    // Small and without a way to unwind: it is PID 1, and the same for everybody who builds it.
    command
        .env("RUSTC", variable("RUSTC")?)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    let result = command
        .output()
        .map_err(|error| format!("cargo for the warden: {error}"))?;
    if !result.status.success() {
        return Err(format!(
            "building the static warden failed ({}): {}",
            result.status,
            String::from_utf8_lossy(&result.stderr)
        ));
    }
    Ok(target_dir
        .join(triple)
        .join("release")
        .join("quorun-warden"))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
