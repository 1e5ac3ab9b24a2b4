//! Packages from a registry that some tests need, put below `target/` once for all of them.

use std::fs::File;
use std::path::PathBuf;
use std::process::Output;

use crate::program::profile_dir;
use crate::wait::say;

/// What was made, or `None` where it cannot be: then the caller has nothing to test with and returns. That is said on stderr,
/// or is a failure where the variable is 1.
///
/// # Panics
/// When it must be there and is not.
pub(crate) fn or_skipped<T>(
    made: Result<T, String>,
    test: &str,
    variable: &str,
    what: &str,
) -> Option<T> {
    let reason = match made {
        Ok(made) => return Some(made),
        Err(reason) => reason,
    };
    let required = std::env::var_os(variable).is_some_and(|v| v == "1");
    assert!(
        !required,
        "{variable}=1, and this is missing: {what}: {reason}"
    );
    say(&format!("SKIPPED {test}: it needs {what} ({reason})"));
    None
}

/// A folder below `target/` for packages, and the lock under which they are put there: several test programs may want them at
/// the same time.
pub(crate) fn folder(name: &str) -> Result<(PathBuf, File), String> {
    let profile = profile_dir();
    let target = profile.parent().unwrap_or(&profile);
    let said = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(target).map_err(said)?;
    let lock = File::create(target.join(format!("{name}.lock"))).map_err(said)?;
    lock.lock().map_err(said)?;
    Ok((target.join(name), lock))
}

/// That a program has ended well; otherwise what it said.
pub(crate) fn done(output: std::io::Result<Output>, what: &str) -> Result<(), String> {
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
