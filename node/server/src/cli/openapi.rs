//! `quorun openapi`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

/// Prints the document that a node of this version serves at `/openapi.json`.
pub fn openapi() -> anyhow::Result<ExitCode> {
    let text = crate::http::openapi_json().context("make the document")?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("print the document")?;
    Ok(ExitCode::SUCCESS)
}
