//! What a submission says of somebody who will talk to its program.

use quorun_ledger::{Terminal, TestCase};
use serde::Deserialize;
use utoipa::ToSchema;

use super::problem::Problem;

/// The largest terminal, in either direction.
pub const MOST: u64 = 1000;

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Terminal)]
pub struct TerminalRequest {
    /// Lines.
    #[schema(minimum = 1, maximum = 1000)]
    pub rows: u64,
    /// Characters in each.
    #[schema(minimum = 1, maximum = 1000)]
    pub columns: u64,
}

impl TerminalRequest {
    /// The size, if there can be such a terminal.
    pub fn size(&self, field: &str) -> Result<Terminal, Problem> {
        let one = |name: &str, value: u64| {
            let field = format!("{field}.{name}");
            u16::try_from(value)
                .ok()
                .filter(|_| (1..=MOST).contains(&value))
                .ok_or_else(|| {
                    Problem::invalid(
                        &field,
                        format!("{field} is {value}; it should be 1 to {MOST}"),
                    )
                    .with("value", value)
                    .with("limit", if value == 0 { 1 } else { MOST })
                })
        };
        Ok(Terminal {
            rows: one("rows", self.rows)?,
            columns: one("columns", self.columns)?,
        })
    }
}

/// What cannot be together in one job.
pub fn check(interactive: bool, tests: &[TestCase]) -> Result<(), Problem> {
    if interactive && !tests.is_empty() {
        return Err(Problem::invalid(
            "interactive",
            "nobody talks to test cases: send interactive or tests, not both",
        )
        .with("value", true));
    }
    Ok(())
}

/// The terminal of a submission.
pub fn terminal(
    interactive: bool,
    asked: Option<&TerminalRequest>,
) -> Result<Option<Terminal>, Problem> {
    match asked {
        None => Ok(None),
        Some(_) if !interactive => Err(Problem::invalid(
            "terminal",
            "a terminal is for somebody who talks to the program: send \"interactive\": true with it",
        )),
        Some(asked) => asked.size("terminal").map(Some),
    }
}
