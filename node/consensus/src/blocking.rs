//! Work that blocks, done where it keeps nobody waiting.

use std::io;

/// Runs it on the threads that may block. In a simulation, where there is one thread only, it runs at once.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    #[cfg(feature = "simulation")]
    if crate::simulation::active() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}
