//! What a job would like to know of the one before it: its source, its input, its environment, its output.

use quorun_ledger::job::Verdict;

use crate::fixture::{After, Job, assert_verdict, show, small, text};

/// Written in two parts in the program that looks for it, which must not find itself.
const SECRET: &str = "xyzzy-4711";
const FIRST: &str = "xyzzy-";
const SECOND: &str = "4711";

/// A job that has the secret everywhere: source, standard input, environment, arguments, memory, files, output, the
/// command lines and environments of processes that it leaves behind.
fn keeper() -> Job {
    let program = format!(
        r#"
# {SECRET}
import os, subprocess, sys
secret = sys.stdin.read()
memory = secret * 100000
for folder in "/box", "/tmp", "/dev/mqueue", "/dev/shm", "/var/tmp", "/run/lock":
    try:
        for name in "secret", ".secret", secret:
            with open(f"{{folder}}/{{name}}", "w") as file:
                file.write(secret)
    except OSError:
        pass
for _ in range(3):
    subprocess.Popen(["sleep", "1000"], start_new_session=True, env={{"SECRET": secret}})
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", secret], start_new_session=True)
print(secret * 1000)
print(secret, file=sys.stderr)
"#
    );
    Job::python(program)
        .stdin(SECRET)
        .env("SECRET", SECRET)
        .arg(SECRET)
}

/// Runs the keeper, and in the same sandbox a program that prints where it finds the secret.
#[track_caller]
fn assert_not_found(search: &str) {
    let program = format!(
        r#"
import os
secret = ("{FIRST}" + "{SECOND}").encode()
found, looked = [], 0
def look(path):
    global looked
    try:
        # Not one that would have to be written to first.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return
    try:
        looked += 1
        if secret in os.read(file, 1 << 20):
            found.append(path)
    except OSError:
        pass
    finally:
        os.close(file)
{search}
print(found, looked > 0)
"#
    );
    small(|sandbox| {
        let before = sandbox.discarded();
        let kept = sandbox.run(&keeper());
        assert_verdict(&kept, Verdict::Accepted);
        let result = sandbox.run(&Job::python(program));
        assert_verdict(&result, Verdict::Accepted);
        assert_eq!(text(&result), "[] True\n", "{}", show(&result));
        assert_eq!(sandbox.discarded(), before, "the same sandbox");
        sandbox.next_job_is_normal();
    });
}

#[test]
fn it_is_not_in_any_process() {
    assert_not_found(
        r#"
for process in filter(str.isdigit, os.listdir("/proc")):
    for name in "environ", "cmdline", "comm", "stat", "status", "wchan", "mountinfo", "maps":
        look(f"/proc/{process}/{name}")
        look(f"/proc/{process}/task/{process}/{name}")
    try:
        for number in os.listdir(f"/proc/{process}/fd"):
            if int(number) > 2:
                look(f"/proc/{process}/fd/{number}")
    except OSError:
        pass
"#,
    );
}

#[test]
fn it_is_not_in_any_file() {
    assert_not_found(
        r#"
for top in "/box", "/tmp", "/dev", "/run", "/var", "/etc", "/home", "/mnt", "/opt", "/srv", "/.quorun":
    for folder, folders, names in os.walk(top):
        for name in folders + names:
            path = os.path.join(folder, name)
            if secret in path.encode():
                found.append(path)
        for name in names:
            # Devices without an end, and its own descriptors.
            if folder != "/dev" and not folder.startswith("/dev/fd"):
                look(os.path.join(folder, name))
"#,
    );
}

#[test]
fn it_is_not_in_what_the_kernel_tells() {
    assert_not_found(
        r#"
for name in ["sysvipc/shm", "sysvipc/msg", "sysvipc/sem", "net/unix", "net/tcp", "net/udp", "keys", "key-users", "locks",
             "mounts", "kmsg", "kcore", "sched_debug", "timer_list", "self/mountinfo", "1/cmdline", "1/environ"]:
    look("/proc/" + name)
look("/dev/kmsg")
"#,
    );
}

#[test]
fn it_is_not_in_a_tmpfs_page_that_is_given_out_again() {
    // A file that grows by a hole is read before anything is written to it.
    assert_not_found(
        r#"
for folder in "/box", "/tmp":
    with open(folder + "/hole", "w") as file:
        file.truncate(8 << 20)
    with open(folder + "/hole", "rb") as file:
        looked += 1
        if any(file.read()):
            found.append(folder)
"#,
    );
}

#[test]
fn the_next_job_has_no_input_environment_or_arguments_of_the_first() {
    small(|sandbox| {
        let before = sandbox.discarded();
        assert_verdict(&sandbox.run(&keeper()), Verdict::Accepted);
        let search = "import os, sys\nprint(sys.stdin.read(), sys.argv[1:], sorted(os.environ))";
        let result = sandbox.run(&Job::python(search));
        assert_eq!(
            text(&result),
            " [] ['HOME', 'LANG', 'PATH', 'TMPDIR']\n",
            "{}",
            show(&result)
        );
        assert_eq!(result.output.stderr, "");
        assert_eq!(sandbox.discarded(), before, "the same sandbox");
        sandbox.next_job_is_normal();
    });
}

#[test]
fn the_hosts_processes_are_not_seen() {
    small(|sandbox| {
        let search = "import os\nprint(sorted(int(name) for name in os.listdir('/proc') if name.isdigit() and name != str(os.getpid())))";
        let printed = sandbox.attack_prints(After::Kept, &Job::python(search));
        assert_eq!(printed, "[1]\n");
    });
}
