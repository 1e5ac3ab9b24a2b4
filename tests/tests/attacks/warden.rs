//! The warden: PID 1 of the sandbox, root, and the only one in it who can talk to the node.

use crate::fixture::{After, Job, small};

/// Runs a Python program that prints what went wrong with each attempt, or that nothing did.
#[track_caller]
fn attempts(program: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    small(|sandbox| {
        let job = Job::python(format!("{ATTEMPT}{program}"));
        let printed = sandbox.attack_prints(After::Kept, &job);
        all = printed
            .lines()
            .map(|line| {
                let (what, end) = line.rsplit_once(": ").expect("a line with an end");
                (what.to_owned(), end.to_owned())
            })
            .collect();
        assert!(!all.is_empty(), "nothing was tried");
    });
    all
}

const ATTEMPT: &str = r#"
import ctypes, errno, os, signal
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, call):
    try:
        print(f"{what}: done {call()!r}"[:200].replace("\n", " "))
    except OSError as error:
        print(f"{what}: {errno.errorcode[error.errno]}")
def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result
def opened(path, flags):
    file = os.open(path, flags)
    if flags & (os.O_WRONLY | os.O_RDWR):
        return os.write(file, b"1")
    return os.read(file, 100)
"#;

/// That every attempt was refused for want of rights.
#[track_caller]
fn assert_denied(attempts: &[(String, String)]) {
    for (what, end) in attempts {
        assert!(["EACCES", "EPERM"].contains(&end.as_str()), "{what}: {end}");
    }
}

#[test]
fn its_environment_is_not_readable() {
    assert_denied(&attempts(
        r#"attempt("environ", lambda: opened("/proc/1/environ", os.O_RDONLY))"#,
    ));
}

#[test]
fn its_memory_is_neither_readable_nor_writable() {
    assert_denied(&attempts(
        r#"
for name in ["maps", "smaps", "smaps_rollup", "numa_maps", "map_files", "mem", "pagemap", "auxv", "stack", "syscall"]:
    if os.path.lexists(f"/proc/1/{name}"):
        look = os.listdir if name == "map_files" else lambda path: opened(path, os.O_RDONLY)
        attempt(name, lambda: look(f"/proc/1/{name}"))
attempt("mem for writing", lambda: opened("/proc/1/mem", os.O_RDWR))
attempt("mem of its thread", lambda: opened("/proc/1/task/1/mem", os.O_RDWR))
"#,
    ));
}

#[test]
fn its_settings_are_not_writable() {
    assert_denied(&attempts(
        r#"
for name in ["oom_score_adj", "oom_adj", "clear_refs", "coredump_filter", "comm", "uid_map", "gid_map", "setgroups",
             "loginuid", "timerslack_ns", "timens_offsets"]:
    if os.path.lexists(f"/proc/1/{name}"):
        attempt(name, lambda: opened(f"/proc/1/{name}", os.O_WRONLY))
"#,
    ));
}

#[test]
fn its_descriptors_are_neither_listed_nor_opened() {
    assert_denied(&attempts(
        r#"
attempt("list", lambda: os.listdir("/proc/1/fd"))
attempt("list of its thread", lambda: os.listdir("/proc/1/task/1/fd"))
attempt("list of their states", lambda: os.listdir("/proc/1/fdinfo"))
for number in range(16):
    attempt(f"fd {number}", lambda: opened(f"/proc/1/fd/{number}", os.O_RDONLY))
    attempt(f"fdinfo {number}", lambda: opened(f"/proc/1/fdinfo/{number}", os.O_RDONLY))
"#,
    ));
}

#[test]
fn nothing_is_written_to_its_talk_with_the_node() {
    assert_denied(&attempts(
        r#"
for number in range(3):
    attempt(f"fd {number} for writing", lambda: opened(f"/proc/1/fd/{number}", os.O_WRONLY))
    attempt(f"fd {number} for both", lambda: opened(f"/proc/1/fd/{number}", os.O_RDWR | os.O_NONBLOCK))
    attempt(f"fd {number} of its thread", lambda: opened(f"/proc/1/task/1/fd/{number}", os.O_WRONLY))
if os.path.exists("/dev/console"):
    attempt("/dev/console", lambda: opened("/dev/console", os.O_WRONLY))
"#,
    ));
}

#[test]
fn its_folders_and_its_program_are_not_reached_through_proc() {
    assert_denied(&attempts(
        r#"
for name in ["root", "cwd", "exe"]:
    attempt(f"link {name}", lambda: os.readlink(f"/proc/1/{name}"))
attempt("list of its root", lambda: os.listdir("/proc/1/root/"))
attempt("file in its root", lambda: opened("/proc/1/root/etc/passwd", os.O_RDONLY))
attempt("list of its folder", lambda: os.listdir("/proc/1/cwd/"))
attempt("its program", lambda: opened("/proc/1/exe", os.O_RDONLY))
attempt("change to its root", lambda: os.chdir("/proc/1/root"))
for name in os.listdir("/proc/1/ns") if os.access("/proc/1/ns", os.R_OK) else ["pid", "mnt", "net"]:
    attempt(f"namespace {name}", lambda: os.readlink(f"/proc/1/ns/{name}"))
"#,
    ));
}

#[test]
fn its_program_in_the_volume_is_not_writable() {
    let attempts = attempts(
        r#"
program = "/.quorun/quorun-warden"
attempt("write", lambda: opened(program, os.O_WRONLY))
attempt("remove", lambda: os.unlink(program))
attempt("rename", lambda: os.rename(program, "/.quorun/old"))
attempt("create", lambda: os.open("/.quorun/new", os.O_CREAT | os.O_WRONLY))
attempt("rights", lambda: os.chmod(program, 0o777))
attempt("cover", lambda: os.symlink("/box", "/.quorun/x"))
"#,
    );
    for (what, end) in &attempts {
        let refused = ["EACCES", "EPERM", "EROFS"].contains(&end.as_str());
        assert!(refused, "{what}: {end}");
    }
}

#[test]
fn it_is_not_traced() {
    assert_denied(&attempts(
        r#"
ATTACH, SEIZE = 16, 0x4206
for what, request in [("attach", ATTACH), ("seize", SEIZE)]:
    attempt(what, lambda: checked(libc.ptrace(ctypes.c_long(request), ctypes.c_long(1), None, None)))
"#,
    ));
}

#[test]
fn it_is_not_killed_by_its_number() {
    assert_denied(&attempts(
        r#"
for number in [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGSTOP, signal.SIGSEGV,
               signal.SIGRTMIN]:
    attempt(f"signal {int(number)}", lambda: os.kill(1, number))
"#,
    ));
}

#[test]
fn it_is_not_killed_with_everybody() {
    small(|sandbox| {
        // The kernel spares the caller; those that it reaches are the job's own.
        let attack = r#"
import os, signal, time
child = os.fork()
if child == 0:
    while True: time.sleep(1000)
os.kill(-1, signal.SIGKILL)
print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::python(attack));
        assert_eq!(printed, "9\n");
        let result = sandbox.attack(After::Kept, &Job::bash("kill -9 -1; kill -9 1; exit 0"));
        assert!(
            result.outcome.exit_code == Some(0) || result.outcome.signal == Some(9),
            "{:?}",
            result.outcome
        );
    });
}

#[test]
fn its_descriptors_and_signals_are_not_had_through_a_pidfd() {
    let attempts = attempts(
        r#"
SEND, OPEN, GET = 424, 434, 438
handle = libc.syscall(OPEN, 1, 0)
if handle == -1:
    attempt("open", lambda: checked(-1))
else:
    attempt("signal", lambda: checked(libc.syscall(SEND, handle, 9, None, 0)))
    for number in range(3):
        attempt(f"descriptor {number}", lambda: checked(libc.syscall(GET, handle, number, 0)))
"#,
    );
    for (what, end) in &attempts {
        let refused = ["EACCES", "EPERM", "ENOSYS"].contains(&end.as_str());
        assert!(refused, "{what}: {end}");
    }
}

#[test]
fn its_limits_and_its_priority_are_not_changed() {
    assert_denied(&attempts(
        r#"
import resource
attempt("descriptors", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)))
attempt("CPU time", lambda: resource.prlimit(1, resource.RLIMIT_CPU, (1, 1)))
attempt("limits for reading", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
attempt("scheduler", lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)))
attempt("processors", lambda: os.sched_setaffinity(1, [0]))
"#,
    ));
}

#[test]
fn it_gets_no_signal_from_the_kernel_on_behalf_of_a_job() {
    small(|sandbox| {
        // A descriptor may have an owner who is told that it is ready, and by which signal.
        let attack = r#"
import fcntl, os, signal
SETSIG = 10
def owned_by_the_warden(target):
    try:
        fcntl.fcntl(target, fcntl.F_SETOWN, 1)
        fcntl.fcntl(target, SETSIG, signal.SIGTERM)
        fcntl.fcntl(target, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    except PermissionError:
        pass
for _ in range(100):
    out, into = os.pipe()
    owned_by_the_warden(out)
    os.write(into, b"x")
    os.close(into)
    os.close(out)
print("done")
"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::python(attack));
        assert_eq!(printed, "done\n");
    });
}

#[test]
fn a_program_is_given_its_three_descriptors_and_no_more() {
    small(|sandbox| {
        let attack = r#"
            #include <fcntl.h>
            #include <stdio.h>
            #include <sys/stat.h>
            int main(void) {
                struct stat stat;
                for (int fd = 0; fd < 65536; fd++)
                    if (fcntl(fd, F_GETFD) != -1)
                        printf("%d %s\n", fd, fstat(fd, &stat) == 0 && S_ISFIFO(stat.st_mode) ? "pipe" : "other");
                return 0;
            }"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::c(attack));
        assert_eq!(printed, "0 pipe\n1 pipe\n2 pipe\n");
    });
}

#[test]
fn what_looks_like_its_talk_with_the_node_is_only_output() {
    small(|sandbox| {
        // Lengths and numbers of all kinds, as a frame begins with.
        let attack = r#"
import os, struct
frames = b"".join(struct.pack(form, number) + bytes([kind]) * 8
                  for form in ("<I", ">I", "<Q") for number in (0, 1, 9, 1 << 26) for kind in range(8))
os.write(1, frames)
os.write(2, frames)
"#;
        let result = sandbox.attack(After::Kept, &Job::python(attack));
        assert_eq!(result.outcome.exit_code, Some(0));
        assert_eq!(result.output.stdout.len(), 8 * 4 * (12 + 12 + 16));
        assert_eq!(result.output.stdout, result.output.stderr);
    });
}

#[test]
fn orphans_by_the_hundred_do_not_keep_it_from_its_work() {
    small(|sandbox| {
        // Each becomes the warden's child when its parent ends, and is reaped by it.
        let attack = r#"
            #include <stdio.h>
            #include <sys/wait.h>
            #include <unistd.h>
            int main(void) {
                for (int i = 0; i < 500; i++) {
                    if (fork() == 0) {
                        for (int j = 0; j < 4; j++) if (fork() == 0) _exit(3);
                        _exit(0);
                    }
                    while (wait(NULL) > 0);
                }
                puts("done");
                return 0;
            }"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::c(attack));
        assert_eq!(printed, "done\n");
    });
}
