//! Programs that do not end, or that want to go on after they have.

use quorun_ledger::job::Verdict;

use crate::fixture::{After, Job, assert_message, assert_verdict, small, text};

/// Long enough for every program here to get going.
const WALL_MS: u64 = 700;

#[test]
fn a_loop_without_end() {
    small(|sandbox| {
        let job = Job::perl("print \"x\\n\"; 1 while 1").cpu_ms(300);
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::TimeLimit);
        assert_message(&result, "more than 300 ms of CPU time");
        assert!(result.outcome.cpu_us > 300_000);
    });
}

#[test]
fn loops_without_end_in_many_processes_count_together() {
    small(|sandbox| {
        let job = Job::perl("fork() for 1..4; 1 while 1").cpu_ms(600);
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::TimeLimit);
        assert_message(&result, "more than 600 ms of CPU time");
    });
}

#[test]
fn a_sleep_without_end() {
    small(|sandbox| {
        let job = Job::perl("sleep").wall_ms(WALL_MS);
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::TimeLimit);
        assert_message(&result, "more than 700 ms of wall-clock time");
        assert!(result.outcome.wall_us >= WALL_MS * 1000);
    });
}

#[test]
fn waiting_for_input_that_never_comes() {
    // The other end of its stdin is closed; that of a pipe of its own never is.
    small(|sandbox| {
        let job = Job::perl("pipe(my $out, my $in); sysread($out, my $byte, 1)").wall_ms(WALL_MS);
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::TimeLimit);
    });
}

/// Lets nothing disturb it that it can help.
const DEAF: &str = r#"
import os, signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
for _ in range(8):
    if os.fork() == 0:
        os.setsid()
        break
os.kill(os.getpid(), signal.SIGTERM)
print("deaf", flush=True)
while True:
    time.sleep(1000)
"#;

#[test]
fn ignoring_and_blocking_every_signal() {
    small(|sandbox| {
        let job = Job::python(DEAF).wall_ms(WALL_MS);
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::TimeLimit);
    });
}

#[test]
fn cancelling_what_ignores_and_blocks_every_signal() {
    small(|sandbox| {
        let result = sandbox.attack(After::Kept, &Job::python(DEAF).cancelled());
        assert_verdict(&result, Verdict::Cancelled);
    });
}

#[test]
fn cancelling_a_fork_bomb() {
    small(|sandbox| {
        let bomb = "#include <unistd.h>\nint main(void) { write(1, \"x\", 1); for (;;) fork(); }";
        let result = sandbox.attack(After::Kept, &Job::c(bomb).cancelled());
        assert_verdict(&result, Verdict::Cancelled);
    });
}

/// A daemon in all forms: a session of its own, no parent, ignoring what can be ignored; `$keep` says whether it has the
/// job's descriptors.
fn daemon(keep: bool, work: &str) -> Job {
    let close = if keep {
        ""
    } else {
        "close(STDIN); close(STDOUT); close(STDERR); chdir('/');"
    };
    Job::perl(format!(
        "use POSIX;
         $SIG{{$_}} = 'IGNORE' for qw(HUP INT QUIT TERM CHLD PIPE TSTP USR1 USR2);
         pipe(my $out, my $in);
         if (fork() == 0) {{
             POSIX::setsid();
             if (fork() == 0) {{ {close} syswrite($in, 'x'); while (1) {{ {work} }} }}
             POSIX::_exit(0);
         }}
         # Only when the daemon is there.
         close($in);
         sysread($out, my $byte, 1);
         print \"left one behind\\n\";"
    ))
}

#[test]
fn a_daemon_does_not_outlive_its_job() {
    small(|sandbox| {
        for work in ["sleep(1000)", "fork()"] {
            let printed = sandbox.attack_prints(After::Kept, &daemon(false, work));
            assert_eq!(printed, "left one behind\n");
        }
    });
}

#[test]
fn a_daemon_that_holds_the_output_open_does_not_hold_the_job_up() {
    small(|sandbox| {
        let printed = sandbox.attack_prints(After::Kept, &daemon(true, "sleep(1000)"));
        assert_eq!(printed, "left one behind\n");
    });
}

#[test]
fn a_process_that_has_the_warden_for_its_parent_from_the_start() {
    // A sibling instead of a child: its end is not the job's, and it goes with the job like all others.
    small(|sandbox| {
        let attack = r#"
            #define _GNU_SOURCE
            #include <errno.h>
            #include <sched.h>
            #include <stdio.h>
            #include <string.h>
            #include <sys/syscall.h>
            #include <unistd.h>
            int main(void) {
                int ends[2];
                char byte;
                pipe(ends);
                for (int i = 0; i < 8; i++) {
                    /* Half of them end at once, with a status that would be a failure. */
                    long child = syscall(SYS_clone, CLONE_PARENT, 0, 0, 0, 0);
                    if (child < 0) { printf("%s\n", strerror(errno)); return 1; }
                    if (child == 0) {
                        if (i % 2) _exit(9);
                        close(ends[0]);
                        write(ends[1], "x", 1);
                        for (;;) pause();
                    }
                }
                for (int i = 0; i < 4; i++) read(ends[0], &byte, 1);
                printf("%d siblings\n", 8);
                return 0;
            }"#;
        let result = sandbox.attack(After::Kept, &Job::c(attack));
        assert_verdict(&result, Verdict::Accepted);
        assert_eq!(text(&result), "8 siblings\n");
    });
}
