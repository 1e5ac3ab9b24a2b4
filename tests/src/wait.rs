//! Waiting for something to become true, and saying what must be heard.

use std::fmt::Display;
use std::io::Write;
use std::time::{Duration, Instant};

/// What a test takes for "never". It says nothing about how fast something should be.
pub const LONG: Duration = Duration::from_secs(120);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(25);

/// Looks again and again until there is a value; panics with the last reason when there is none for [`LONG`].
///
/// # Panics
/// When the time is up.
pub async fn eventually<T, E: Display>(what: &str, look: impl AsyncFnMut() -> Result<T, E>) -> T {
    within(LONG, what, look).await
}

/// [`eventually`] with a deadline of its own.
///
/// # Panics
/// When the time is up.
pub async fn within<T, E: Display>(
    patience: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => {
                panic!("not within {patience:?}: {what}; the last thing seen: {last}")
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Says something on stderr, also from a test that succeeds, whose words are not shown otherwise.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
