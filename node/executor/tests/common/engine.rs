//! The container engine of this machine, and what is on it.

use std::process::Command;

use quorun_executor::{Executor, Kind, Labels, Options};

use super::{IMAGE, options, ready, with_executor};

/// Whether there is an engine with the image; the tests are to fail without one if QUORUN_REQUIRE_ENGINE is 1.
pub fn engine() -> bool {
    let answer = Command::new("docker")
        .args(["image", "inspect", IMAGE])
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
    eprintln!("SKIPPED: it needs a container engine with {IMAGE}: {reason}");
    false
}

/// Runs a test with an executor whose settings it may change, and looks whether anything is left on the engine.
pub fn with_options<F>(
    change: impl FnOnce(&mut Options),
    test: impl FnOnce(Executor) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    with_labels(change, |executor, _| test(executor));
}

/// The same for a test that looks at the executor's containers.
pub fn with_labels<F>(
    change: impl FnOnce(&mut Options),
    test: impl FnOnce(Executor, Labels) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    if !engine() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = options(Kind::Docker, folder.path().to_path_buf());
    change(&mut settings);
    let labels = settings.labels.clone();
    let of_test = labels.clone();
    with_executor(settings, |executor| test(executor, of_test));
    let left = containers(&labels);
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// Runs a test with two executors, of which the settings of the first are changed.
pub fn with_two<F>(
    change: impl FnOnce(&mut Options),
    test: impl FnOnce(Executor, Executor) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    if !engine() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let second = options(Kind::Docker, folder.path().to_path_buf());
    with_options(change, |first| async move {
        let (second, upkeep) = quorun_executor::start(second).expect("an executor");
        let upkeep = tokio::spawn(upkeep);
        ready(&second).await;
        let result = tokio::spawn(test(first, second.clone())).await;
        second.shutdown().await;
        upkeep.await.expect("the upkeep ends by itself");
        if let Err(panic) = result {
            std::panic::resume_unwind(panic.into_panic());
        }
    });
    drop(folder);
}

/// What the engine's client prints.
pub fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The containers of a node, running or not.
pub fn containers(labels: &Labels) -> Vec<String> {
    let cluster = format!("label=quorun.cluster={}", labels.cluster);
    let node = format!("label=quorun.node={}", labels.node);
    docker(&[
        "ps",
        "-aq",
        "--no-trunc",
        "--filter",
        &cluster,
        "--filter",
        &node,
    ])
    .lines()
    .map(str::to_owned)
    .collect()
}

/// Makes an image that holds one static program, `/hello`, which prints "hi".
pub fn static_image(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("hello.c");
    std::fs::write(
        &source,
        "#include <unistd.h>\nint main(void) { return write(1, \"hi\\n\", 3) != 3; }\n",
    )
    .unwrap();
    let compiled = Command::new("gcc")
        .arg("-static")
        .arg("-o")
        .arg(folder.path().join("hello"))
        .arg(&source)
        .status()
        .unwrap();
    assert!(compiled.success());
    let tar = folder.path().join("image.tar");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(folder.path())
        .arg("-cf")
        .arg(&tar)
        .arg("hello")
        .status()
        .unwrap();
    assert!(packed.success());
    docker(&["import", tar.to_str().unwrap(), name]);
}
