//! Every way in which a program can end, and what it may print before: reported as it was.

use quorun_ledger::job::Verdict;

use crate::fixture::{After, Job, assert_verdict, show, small, text};

#[test]
fn every_exit_code() {
    small(|sandbox| {
        let before = sandbox.discarded();
        for code in 0..=255 {
            let result = sandbox.run(&Job::dash("exit $1").arg(code));
            let verdict = match code {
                0 => Verdict::Accepted,
                _ => Verdict::RuntimeError,
            };
            assert_eq!(
                (
                    result.outcome.verdict,
                    result.outcome.exit_code,
                    result.outcome.signal
                ),
                (verdict, Some(code), None),
                "{}",
                show(&result)
            );
        }
        assert_eq!(sandbox.discarded(), before);
        sandbox.next_job_is_normal();
    });
}

/// Sends itself a signal, and ends well if it lives on.
const KILL_ITSELF: &str = "kill -$1 $$; echo lives on";

/// Signals that do nothing to a program that has not asked for them.
const HARMLESS: [i32; 4] = [
    libc_signal::CHLD,
    libc_signal::CONT,
    libc_signal::URG,
    libc_signal::WINCH,
];

/// Signals that stop a program at a terminal. It has none, and nobody who could continue it, so that they do nothing.
const OF_A_TERMINAL: [i32; 3] = [libc_signal::TSTP, libc_signal::TTIN, libc_signal::TTOU];

/// Numbers of signals on the machines that there are sandboxes for.
mod libc_signal {
    pub(super) const CHLD: i32 = 17;
    pub(super) const CONT: i32 = 18;
    pub(super) const STOP: i32 = 19;
    pub(super) const TSTP: i32 = 20;
    pub(super) const TTIN: i32 = 21;
    pub(super) const TTOU: i32 = 22;
    pub(super) const URG: i32 = 23;
    pub(super) const WINCH: i32 = 28;
}

#[test]
fn every_signal() {
    small(|sandbox| {
        let before = sandbox.discarded();
        let of_real_time = [34, 35, 50, 63, 64];
        for signal in (1..=31).chain(of_real_time) {
            if signal == libc_signal::STOP {
                continue;
            }
            let result = sandbox.run(&Job::dash(KILL_ITSELF).arg(signal));
            let outcome = &result.outcome;
            let end = (outcome.verdict, outcome.exit_code, outcome.signal);
            if HARMLESS.contains(&signal) || OF_A_TERMINAL.contains(&signal) {
                assert_eq!(end, (Verdict::Accepted, Some(0), None), "{}", show(&result));
                assert_eq!(text(&result), "lives on\n");
            } else {
                assert_eq!(
                    end,
                    (Verdict::RuntimeError, None, Some(signal)),
                    "{}",
                    show(&result)
                );
                let message = outcome.message.as_deref().unwrap_or_default();
                assert!(
                    message.starts_with(&format!("ended by signal {signal}")),
                    "{message}"
                );
                assert_eq!(text(&result), "");
            }
        }
        assert_eq!(sandbox.discarded(), before);
        sandbox.next_job_is_normal();
    });
}

#[test]
fn a_program_that_stops_itself_runs_out_of_time() {
    small(|sandbox| {
        let job = Job::dash(KILL_ITSELF).arg(libc_signal::STOP).wall_ms(700);
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::TimeLimit);
        assert_eq!(text(&result), "");
    });
}

#[test]
fn closing_every_descriptor() {
    small(|sandbox| {
        let close = "import os, time; os.closerange(0, 65536)";
        let job = Job::python(format!("{close}; os._exit(3)"));
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::RuntimeError);
        assert_eq!(result.outcome.exit_code, Some(3));
        let job = Job::python(format!("{close}; time.sleep(1000)")).wall_ms(700);
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::TimeLimit);
    });
}

#[test]
fn stdin_that_is_never_read() {
    small(|sandbox| {
        let stdin = vec![b'x'; 1 << 20];
        let job = Job::dash("echo done").stdin(stdin.clone());
        assert_eq!(sandbox.attack_prints(After::Kept, &job), "done\n");
        let job = Job::perl("close(STDIN); print \"closed\\n\"").stdin(stdin.clone());
        assert_eq!(sandbox.attack_prints(After::Kept, &job), "closed\n");
        let job = Job::perl("sleep").stdin(stdin).wall_ms(700);
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::TimeLimit);
    });
}

#[test]
fn a_source_of_one_long_line() {
    small(|sandbox| {
        let line = "x".repeat(1 << 20);
        let job = Job::python(format!("print(len('{line}'), end='')"));
        assert_eq!(sandbox.attack_prints(After::Kept, &job), "1048576");
        // Python says what is wrong with a line by printing it.
        let job = Job::python(line).output_kb(4 << 10);
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::RuntimeError);
    });
}

#[test]
fn a_source_that_is_no_text() {
    small(|sandbox| {
        let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
        for job in [
            Job::python(bytes.clone()),
            Job::bash(bytes.clone()),
            Job::perl(bytes.clone()),
        ] {
            let result = sandbox.attack(After::Kept, &job);
            assert_verdict(&result, Verdict::RuntimeError);
        }
        let result = sandbox.attack(After::Kept, &Job::c(bytes));
        assert_verdict(&result, Verdict::CompileError);
    });
}

#[test]
fn output_that_is_no_text_is_kept_to_the_byte() {
    small(|sandbox| {
        let every: Vec<u8> = (0..=255).collect();
        let broken = [
            b"\xff\xfe\0\0\xc3\x28\xed\xa0\x80\xf4\x90\x80\x80\xe2\x82".as_slice(),
            &every,
        ]
        .concat();
        let job = Job::python(
            "import sys\n\
             text = sys.stdin.buffer.read()\n\
             sys.stdout.buffer.write(text)\n\
             sys.stderr.buffer.write(text[::-1])",
        )
        .stdin(broken.clone());
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::Accepted);
        assert_eq!(result.output.stdout, broken);
        let reversed: Vec<u8> = broken.into_iter().rev().collect();
        assert_eq!(result.output.stderr, reversed);
    });
}

#[test]
fn output_of_nothing_but_nul_up_to_the_cap() {
    small(|sandbox| {
        let job =
            Job::python("import os\nfor _ in range(2): os.write(1, bytes(1 << 16))").output_kb(64);
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::Accepted);
        assert!(result.output.stdout_truncated);
        assert_eq!(result.output.stdout, vec![0; 64 << 10]);
    });
}

#[test]
fn arguments_and_variables_that_no_program_can_be_given() {
    small(|sandbox| {
        let job = || Job::dash("echo ran");
        for job in [
            job().arg("a\0b"),
            job().env("NAME", "a\0b"),
            job().env("NA\0ME", "value"),
            // More than a kernel takes.
            job().arg("x".repeat(200 << 10)),
        ] {
            let result = sandbox.attack(After::Kept, &job);
            assert_verdict(&result, Verdict::RuntimeError);
            assert_eq!(text(&result), "");
        }
        // These are odd and no more.
        let job = job()
            .arg("")
            .arg("--help")
            .env("", "value")
            .env("A=B", "value")
            .env("LD_PRELOAD", "/box/none.so")
            .env("IFS", "e")
            .env("ENV", "/proc/1/environ");
        assert_eq!(sandbox.attack_prints(After::Kept, &job), "ran\n");
    });
}
