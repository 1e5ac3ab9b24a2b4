//! Jobs as plain child processes.

#[macro_use]
#[path = "suite/judging.rs"]
mod judging;
#[macro_use]
mod suite;
mod common;

use quorun_executor::{Executor, Kind};

fn with<F>(test: impl FnOnce(Executor) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let folder = tempfile::tempdir().expect("a folder");
    common::with_executor(
        common::options(Kind::Process, folder.path().to_path_buf()),
        test,
    );
}

suite!(with);
judging!(with);
