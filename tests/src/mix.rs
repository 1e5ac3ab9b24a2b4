//! A mix of programs whose ends are known.

use serde_json::{Value, json};

/// How many kinds there are.
pub const KINDS: usize = 5;

/// One program of the mix, called `name`; what it prints has its name in it, so that no two results can be mixed up.
#[must_use]
pub fn job(n: usize, name: &str) -> Value {
    let mut job = match n % KINDS {
        0 => json!({ "language": "python", "source": format!("print('hello {name}')") }),
        1 => {
            json!({ "language": "python", "source": "print(input())", "stdin": format!("{name}\n") })
        }
        2 => json!({ "language": "bash", "source": "sleep 1; echo slept $1", "args": [name] }),
        3 => json!({ "language": "c", "source": format!("int main(void) {{ return {n} }}") }),
        _ => json!({ "language": "bash", "source": "echo fails $1; exit 3", "args": [name] }),
    };
    // The machine may be busy.
    job["limits"] = json!({ "cpu_ms": 20_000, "wall_ms": 60_000 });
    job
}

/// Whether a finished job ended as its program does.
///
/// # Errors
/// What is wrong.
pub fn check(n: usize, name: &str, job: &Value) -> Result<(), String> {
    let (verdict, exit_code, stdout) = match n % KINDS {
        0 => ("accepted", json!(0), format!("hello {name}\n")),
        1 => ("accepted", json!(0), format!("{name}\n")),
        2 => ("accepted", json!(0), format!("slept {name}\n")),
        3 => ("compile_error", Value::Null, String::new()),
        _ => ("runtime_error", json!(3), format!("fails {name}\n")),
    };
    let wanted = json!({
        "state": "finished", "verdict": verdict, "exit_code": exit_code, "stdout": stdout,
    });
    for (member, value) in wanted.as_object().into_iter().flatten() {
        if job[member] != *value {
            return Err(format!("{member} should be {value}: {job}"));
        }
    }
    Ok(())
}
