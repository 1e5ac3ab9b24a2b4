//! Jobs in containers of a real engine. Without one these tests say so and do nothing, unless QUORUN_REQUIRE_ENGINE is 1.

#[macro_use]
mod suite;
mod common;

use std::process::Command;

use quorun_executor::{Executor, Kind};

/// Whether there is an engine with the image; the tests are to fail without one if QUORUN_REQUIRE_ENGINE is 1.
fn engine() -> bool {
    let answer = Command::new("docker")
        .args(["image", "inspect", common::IMAGE])
        .output();
    let reason = match answer {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("docker: {error}"),
    };
    assert!(
        std::env::var("QUORUN_REQUIRE_ENGINE").as_deref() != Ok("1"),
        "QUORUN_REQUIRE_ENGINE is 1, but {reason}"
    );
    eprintln!(
        "SKIPPED: it needs a container engine with {}: {reason}",
        common::IMAGE
    );
    false
}

fn with<F>(test: impl FnOnce(Executor) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    if engine() {
        let folder = tempfile::tempdir().expect("a folder");
        common::with_executor(
            common::options(Kind::Docker, folder.path().to_path_buf()),
            test,
        );
    }
}

suite!(with);
