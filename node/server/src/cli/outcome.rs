//! How a job ended: what of it the program itself cannot have said, and the exit code that says the rest.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::Value;

use super::NOT_RUN;
use super::run::cases;

/// Exit code after a time limit; as `timeout` has it.
const TIMED_OUT: u8 = 124;
/// What a signal's number is added to for the exit code; as shells have it.
pub const SIGNALLED: i32 = 128;

/// Whether a job has test cases.
pub fn is_judged(job: &Value) -> bool {
    !job["tests_total"].is_null()
}

/// What the compiler said, if that is why the job ended.
pub fn compiler(job: &Value) -> String {
    let mut words = String::new();
    if job["verdict"] == "compile_error" {
        for name in ["stdout", "stderr"] {
            words += job["compile"][name].as_str().unwrap_or_default();
        }
        end_line(&mut words);
        if job["compile"]["truncated"] == true {
            words += "quorun: the compiler said more; the rest was dropped\n";
        }
    }
    words
}

/// What is to be said of a finished job beside what it printed.
pub fn words(job: &Value) -> String {
    let verdict = job["verdict"].as_str().unwrap_or("internal_error");
    let message = job["message"].as_str().unwrap_or_default();
    let mut words = compiler(job);
    match verdict {
        "accepted" => {}
        // The exit code says it.
        "runtime_error" if message.is_empty() => {}
        "cancelled" => {
            let id = job["id"].as_str().unwrap_or_default();
            words += &format!("quorun: job {id} was cancelled: {message}\n");
        }
        _ => words += &format!("quorun: {verdict}: {message}\n"),
    }
    for stream in ["stdout", "stderr"] {
        if job["truncated"][stream] == true {
            words += &format!("quorun: {stream} was longer than output_kb; the rest was dropped\n");
        }
    }
    words
}

/// What is said of a finished job that has printed nothing, and of which nothing else is to be said.
pub fn silence(job: &Value) -> String {
    let id = job["id"].as_str().unwrap_or_default();
    let code = &job["exit_code"];
    format!("quorun: job {id} ended with exit code {code} and printed nothing\n")
}

fn end_line(text: &mut String) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
}

/// Says something on stderr. Where nobody can read it, the exit code has to do.
pub fn say(words: &str) {
    let _ = std::io::stderr().write_all(words.as_bytes());
}

/// How a job ended, as an exit code.
pub fn code(job: &Value) -> u8 {
    if is_judged(job) {
        return cases::exit_code(job);
    }
    if let Some(code) = job["exit_code"].as_i64() {
        return narrow(code);
    }
    let verdict = job["verdict"].as_str().unwrap_or("internal_error");
    match (verdict, job["signal"].as_i64()) {
        // Whatever it took to end the program: it is not the program's own end.
        ("cancelled" | "internal_error", _) => NOT_RUN,
        ("time_limit", _) => TIMED_OUT,
        (_, Some(signal)) => narrow(i64::from(SIGNALLED) + signal),
        ("compile_error", _) => 1,
        _ => NOT_RUN,
    }
}

/// The code of a finished job as the exit code of this program.
pub fn exit_code(job: &Value) -> ExitCode {
    ExitCode::from(code(job))
}

/// The part of a number that an exit code has room for.
pub fn narrow(code: i64) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_code_is_the_program_s_or_says_why_there_is_none() {
        let code = |value: Value| code(&value);
        assert_eq!(code(json!({"verdict": "accepted", "exit_code": 0})), 0);
        assert_eq!(
            code(json!({"verdict": "runtime_error", "exit_code": 42})),
            42
        );
        assert_eq!(
            code(json!({"verdict": "runtime_error", "exit_code": -1})),
            255
        );
        assert_eq!(code(json!({"verdict": "runtime_error", "signal": 11})), 139);
        assert_eq!(code(json!({"verdict": "memory_limit", "signal": 9})), 137);
        assert_eq!(
            code(json!({"verdict": "time_limit", "signal": 9})),
            TIMED_OUT
        );
        assert_eq!(code(json!({"verdict": "compile_error"})), 1);
        assert_eq!(code(json!({"verdict": "internal_error"})), NOT_RUN);
        assert_eq!(code(json!({"verdict": "cancelled"})), NOT_RUN);
        assert_eq!(code(json!({"verdict": "cancelled", "signal": 9})), NOT_RUN);
        assert_eq!(code(json!({})), NOT_RUN);
        let judged = |verdict| json!({"verdict": verdict, "exit_code": 0, "tests_total": 2});
        assert_eq!(code(judged("accepted")), 0);
        assert_eq!(code(judged("wrong_answer")), 1);
        assert_eq!(code(judged("internal_error")), NOT_RUN);
    }

    #[test]
    fn what_the_program_cannot_say_is_said() {
        let words = |value: Value| words(&value);
        assert_eq!(words(json!({"verdict": "accepted"})), "");
        assert_eq!(
            words(json!({"verdict": "runtime_error", "exit_code": 3})),
            ""
        );
        assert_eq!(
            words(json!({"verdict": "runtime_error", "message": "ended by signal 11 (SIGSEGV)"})),
            "quorun: runtime_error: ended by signal 11 (SIGSEGV)\n"
        );
        assert_eq!(
            words(
                json!({"id": "7", "verdict": "cancelled", "message": "cancelled by the submitter"})
            ),
            "quorun: job 7 was cancelled: cancelled by the submitter\n"
        );
        let broken = json!({
            "verdict": "compile_error", "message": "exit code 1",
            "compile": { "stdout": "", "stderr": "a.c:1: no", "truncated": true },
        });
        let said = words(broken);
        assert!(said.starts_with("a.c:1: no\nquorun: "), "{said}");
        assert!(
            said.ends_with("quorun: compile_error: exit code 1\n"),
            "{said}"
        );
        assert_eq!(
            silence(&json!({"id": "7", "exit_code": 0})),
            "quorun: job 7 ended with exit code 0 and printed nothing\n"
        );
    }
}
