//! What programs do, as somebody outside of the cluster sees it.
//!
//! The process executor does not isolate, so a program can write a line into a file of the test, and wait until the
//! test lets it go on. Nothing the cluster says about executions has to be believed then.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::eventually;

/// A file that programs write to, and a gate that they wait at.
#[derive(Debug)]
pub struct Witness {
    folder: TempDir,
}

/// Writes down its process and its name, waits at the gate, and prints both.
const GATED: &str = r#"
echo "$$ $NAME" >> "$WITNESS"
while [ ! -e "$GATE" ]; do sleep 0.05; done
echo "$NAME by $$"
"#;

/// Writes down its process and its name, takes a second, and prints its name.
const ONE_SECOND: &str = r#"
echo "$$ $NAME" >> "$WITNESS"
sleep 1
echo "$NAME"
"#;

/// One execution of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// The process.
    pub pid: i32,
    /// What the test called the program.
    pub name: String,
}

impl Execution {
    /// Whether the process is still there.
    #[must_use]
    pub fn lives(&self) -> bool {
        rustix::process::Pid::from_raw(self.pid)
            .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
    }
}

impl Witness {
    /// Has seen nothing; the gate is closed.
    ///
    /// # Panics
    /// When there is no place for files.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("quorun-witness-")
            .tempdir()
            .expect("a folder for the witness");
        Self { folder }
    }

    fn lines(&self) -> PathBuf {
        self.folder.path().join("lines")
    }

    /// The file whose existence opens the gate.
    #[must_use]
    pub fn gate(&self) -> PathBuf {
        self.folder.path().join("gate")
    }

    /// Lets every program go on that waits at the gate, now or later.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn open_gate(&self) {
        std::fs::write(self.gate(), "").expect("open the gate");
    }

    /// A job that is executed until the gate is opened, and then prints `NAME by PID`.
    #[must_use]
    pub fn gated(&self, name: &str) -> Value {
        self.job(GATED, name)
    }

    /// A job that takes a second and prints its name.
    #[must_use]
    pub fn one_second(&self, name: &str) -> Value {
        self.job(ONE_SECOND, name)
    }

    fn job(&self, source: &str, name: &str) -> Value {
        json!({
            "language": "bash",
            "source": source,
            "env": { "WITNESS": self.lines(), "GATE": self.gate(), "NAME": name },
            // As much as can be asked for: the machine may be busy.
            "limits": { "cpu_ms": 20_000, "wall_ms": 60_000 },
        })
    }

    /// All executions so far, in the order in which they began.
    #[must_use]
    pub fn executions(&self) -> Vec<Execution> {
        let text = std::fs::read_to_string(self.lines()).unwrap_or_default();
        text.lines()
            .filter_map(|line| {
                let (pid, name) = line.split_once(' ')?;
                Some(Execution {
                    pid: pid.parse().ok()?,
                    name: name.to_owned(),
                })
            })
            .collect()
    }

    /// The executions of one program.
    #[must_use]
    pub fn executions_of(&self, name: &str) -> Vec<Execution> {
        let mut all = self.executions();
        all.retain(|execution| execution.name == name);
        all
    }

    /// Waits until a program has been begun `count` times.
    pub async fn began(&self, name: &str, count: usize) -> Vec<Execution> {
        eventually(
            &format!("program {name} is begun {count} times"),
            async || {
                let all = self.executions_of(name);
                if all.len() >= count {
                    Ok(all)
                } else {
                    Err(format!("{all:?}"))
                }
            },
        )
        .await
    }
}

impl Default for Witness {
    fn default() -> Self {
        Self::new()
    }
}
