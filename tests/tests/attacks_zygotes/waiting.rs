//! Attacks by way of the interpreter that waits: from the job before it, and on it by those that it is not for.

use std::collections::BTreeSet;
use std::time::Instant;

use quorun_ledger::job::Verdict;
use quorun_tests::LONG;

use crate::fixture::{After, Job, PROCESSES, Sandbox, assert_verdict, show, small, text};

/// Has an interpreter wait.
#[track_caller]
fn wait(sandbox: &Sandbox) {
    let result = sandbox.run_alone(&Job::python(""));
    assert_verdict(&result, Verdict::Accepted);
}

/// Runs a program in an interpreter that waited. A job that comes at the very moment in which that would have been started
/// does without; then the next one.
#[track_caller]
fn in_zygote(sandbox: &Sandbox, source: &str) -> String {
    let deadline = Instant::now() + LONG;
    loop {
        let before = sandbox.zygotes();
        let result = sandbox.run_alone(&Job::python(source.to_owned()));
        assert_verdict(&result, Verdict::Accepted);
        if sandbox.zygotes() > before {
            return text(&result);
        }
        assert!(Instant::now() < deadline, "never: {}", show(&result));
    }
}

/// What a job finds in its interpreter, its process and its sandbox that is the same for every job.
const STATE: &str = r#"
import builtins, gc, io, os, posix, resource, signal, sys, threading, time
print(sorted(sys.modules), sys.path, [str(finder) for finder in sys.meta_path], len(sys.path_hooks))
print(sorted(sys.path_importer_cache), sorted(dir(builtins)), print, open is io.open, len, sys.stdout.write.__name__)
print(sorted(os.environ.items()), sorted(posix.environ.items()), sys.flags, sys.warnoptions, sys._xoptions)
print(sys.excepthook, sys.gettrace(), sys.getrecursionlimit(), gc.get_threshold(), len(threading.enumerate()))
print([str(signal.getsignal(n)) for n in range(1, 65) if n not in (9, 19, 32, 33)], signal.pthread_sigmask(0, []))
print([resource.getrlimit(n) for n in range(16)], os.umask(0), os.nice(0), os.sched_getscheduler(0), os.getcwd())
print(sorted(os.sched_getaffinity(0)), time.tzname, os.getpid() == os.getsid(0) == os.getpgrp(), os.getgroups())
for folder in "/box", "/tmp", "/dev/shm", "/dev/mqueue", "/proc/self/fd":
    print(folder, sorted(os.listdir(folder)) if os.path.isdir(folder) else None)
print([n for n in os.listdir("/proc") if n.isdigit() and int(n) not in (1, os.getpid())])
for name in "oom_score_adj", "timerslack_ns", "coredump_filter", "personality":
    try:
        print(name, open("/proc/self/" + name).read())
    except OSError as error:
        print(name, error.errno)
print(open("/proc/net/unix").read().count("\n"), len(open("/proc/sysvipc/shm").readlines()))
"#;

/// Does whatever might stay in an interpreter, or wait for the next one.
const SPOIL: &str = r#"
import array, atexit, builtins, ctypes, gc, mmap, os, random, resource, signal, socket, sys, threading, time
sys.modules.update({name: None for name in ("json", "random", "usercustomize", "socket")})
sys.path[:] = ["/tmp"]
sys.meta_path.insert(0, None)
sys.path_hooks.clear()
sys.setrecursionlimit(60)
gc.disable()
os.environ["PYTHONSTARTUP"] = os.environ["PYTHONPATH"] = os.environ["LD_PRELOAD"] = "/tmp/evil.so"
os.nice(19)
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for limit in range(16):
    try:
        resource.setrlimit(limit, (resource.getrlimit(limit)[0],) * 2)
    except (OSError, ValueError):
        pass
os.makedirs("/box/.local/lib/python3.13/site-packages", exist_ok=True)
evil = b"import os; os.write(1, b'evil\\n')\n"
for name in ("/box/usercustomize.py", "/box/sitecustomize.py", "/box/os.py", "/box/random.py", "/tmp/usercustomize.py",
             "/box/.local/lib/python3.13/site-packages/usercustomize.py", "/box/.local/lib/python3.13/site-packages/evil.pth",
             "/box/pyvenv.cfg", "/tmp/pyvenv.cfg", "/dev/shm/evil.py"):
    fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o777)
    os.write(fd, evil)
    os.close(fd)
# Sockets and pipes under the numbers that a hook uses; some in flight, where no process holds them.
pair = socket.socketpair()
for number in (3, 4, 5, 100):
    os.dup2(pair[0].fileno(), number)
    os.set_inheritable(number, True)
ring = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
socket.send_fds(ring[0], [b"x"], [ring[1].fileno(), pair[0].fileno()])
# Whoever starts next: seize it.
def hunt():
    libc = ctypes.CDLL(None)
    own = os.getpid()
    while True:
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in (1, own):
                libc.ptrace(16, int(name), 0, 0)
                libc.ptrace(0x4206, int(name), 0, 0)
                libc.kill(int(name), signal.SIGCONT)
                for file in "mem", "fd/3", "fd/4", "fd/1":
                    try:
                        fd = os.open(f"/proc/{name}/{file}", os.O_RDWR)
                        os.write(fd, b"!")
                    except OSError:
                        pass
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        hunt()
threading.Thread(target=hunt, daemon=True).start()
@atexit.register
def again():
    while True:
        try:
            if os.fork() == 0:
                continue
        except OSError:
            pass
        os._exit(0)
sys.excepthook = sys.displayhook = None
os.umask(0o777)
builtins.print = builtins.open = builtins.len = builtins.__import__ = lambda *a, **k: 1 / 0
os.write(1, b"spoilt\n")
"#;

#[test]
fn nothing_of_a_job_is_in_the_next_interpreter() {
    small(|sandbox| {
        let discarded = sandbox.discarded();
        wait(sandbox);
        let before = in_zygote(sandbox, STATE);
        assert!(
            before.contains("main.py") && !before.contains("evil"),
            "{before}"
        );
        for _ in 0..5 {
            // Some of them hold a zygote themselves, some do not.
            let result = sandbox.run_alone(&Job::python(SPOIL));
            assert!(text(&result).contains("spoilt"), "{}", show(&result));
            let after = in_zygote(sandbox, STATE);
            for (after, before) in after.lines().zip(before.lines()) {
                assert_eq!(after, before);
            }
            assert_eq!(after, before);
        }
        assert_eq!(sandbox.discarded(), discarded);
        sandbox.next_job_is_normal();
    });
}

#[test]
fn no_job_meets_an_interpreter_that_waits_for_another() {
    small(|sandbox| {
        let discarded = sandbox.discarded();
        let look = "import os\nprint([n for n in os.listdir('/proc') if n.isdigit() and int(n) not in (1, os.getpid())])";
        let shell = "for n in /proc/[0-9]*; do [ $n = /proc/1 ] || [ $n = /proc/$$ ] || echo $n; done; kill -9 -1; echo end";
        for _ in 0..3 {
            // A run, a compile step and its run, an interpreter of the same kind that is not the same.
            for job in [
                Job::dash(shell),
                Job::scripts(format!("{shell} > seen"), "cat seen"),
                Job::c("int main(void) { return 0; }"),
            ] {
                wait(sandbox);
                let result = sandbox.run_alone(&job);
                assert_verdict(&result, Verdict::Accepted);
                let printed = text(&result);
                assert!(["end\n", ""].contains(&printed.as_str()), "{printed}");
            }
            wait(sandbox);
            let result = sandbox.run_alone(&Job::python(look).env("A", "b"));
            assert_eq!(text(&result), "[]\n", "{}", show(&result));
            wait(sandbox);
            sandbox.next_job_is_normal();
            wait(sandbox);
            assert_eq!(in_zygote(sandbox, look), "[]\n");
        }
        assert_eq!(sandbox.discarded(), discarded);
    });
}

#[test]
fn what_is_drawn_at_the_start_is_drawn_for_each_job() {
    small(|sandbox| {
        wait(sandbox);
        let draw = r#"
import ctypes, os, random, uuid
print(hash("x"), hash(b"x"))
print(random.random())
print(uuid.uuid4())
print(os.getuid())
print(id(object()), open("/proc/self/maps").readline().split("-")[0])
libc = ctypes.CDLL(None)
libc.getauxval.restype = ctypes.c_void_p
print(ctypes.string_at(libc.getauxval(ctypes.c_ulong(25)), 16).hex())
"#;
        const DRAWN: usize = 6;
        let rounds = 6;
        let mut seen = vec![BTreeSet::new(); DRAWN];
        for _ in 0..rounds {
            let printed = in_zygote(sandbox, draw);
            assert_eq!(printed.lines().count(), DRAWN, "{printed}");
            for (set, line) in seen.iter_mut().zip(printed.lines()) {
                set.insert(line.to_owned());
            }
        }
        for set in seen {
            assert_eq!(set.len(), rounds, "{set:?}");
        }
    });
}

#[test]
fn secrets_of_the_job_before_are_not_in_it() {
    small(|sandbox| {
        let job = Job::python("import sys; print(len(sys.argv[1]), input())")
            .env("TOKEN", "top-secret")
            .arg("top-secret")
            .stdin("top-secret\n")
            .file("secret.txt", "top-secret");
        let search = r#"
import os, re
word = b"top-" + b"secret"
found = []
for name in "environ", "cmdline":
    found += [name] * (word in open("/proc/self/" + name, "rb").read())
memory = open("/proc/self/mem", "rb", 0)
for line in open("/proc/self/maps"):
    begin, end, rights = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
    if rights.startswith("r") and "[v" not in line:
        begin, end = int(begin, 16), int(end, 16)
        try:
            memory.seek(begin)
            content = memory.read(min(end - begin, 16 << 20))
        except (OSError, ValueError, OverflowError):
            continue
        # Its own two halves are never side by side.
        found += [line] * (word + b"\n" in content or b"TOKEN=" + word in content)
print(found or "nothing")
"#;
        for _ in 0..3 {
            let result = sandbox.run_alone(&job);
            assert_eq!(text(&result), "10 top-secret\n", "{}", show(&result));
            assert_eq!(in_zygote(sandbox, search), "nothing\n");
        }
    });
}

#[test]
fn one_that_waits_takes_nothing_from_another_job() {
    small(|sandbox| {
        let discarded = sandbox.discarded();
        // All but a few MiB of the memory; and all processes, threads and files that there may be.
        let memory = format!(
            "my $x; vec($x, ({} << 10) - 1, 8) = 1; print length($x) > 0 ? 'all' : 'none'",
            sandbox.memory_kb() - (12 << 10)
        );
        let processes = format!(
            "my $n = 1; pipe R, W; while (defined(my $p = fork)) {{ if (!$p) {{ close W; <R>; exit }} $n++; last if $n > {PROCESSES} }} print $n"
        );
        for _ in 0..3 {
            wait(sandbox);
            let result = sandbox.run_alone(&Job::perl(memory.clone()));
            assert_eq!(text(&result), "all", "{}", show(&result));
            wait(sandbox);
            let result = sandbox.run_alone(&Job::perl(processes.clone()));
            assert_eq!(text(&result), PROCESSES.to_string(), "{}", show(&result));
        }
        // Nor does one that waited have more.
        let forks = format!(
            "import os, time\nn = 1\ntry:\n  while n < {PROCESSES} + 9:\n    if os.fork() == 0: time.sleep(1000)\n    n += 1\nexcept OSError: pass\nprint(n)"
        );
        assert_eq!(in_zygote(sandbox, &forks), format!("{PROCESSES}\n"));
        assert_eq!(sandbox.discarded(), discarded);
    });
}

#[test]
fn a_job_that_ends_all_and_itself() {
    small(|sandbox| {
        for attack in [
            "import os; os.kill(-1, 9); os.kill(0, 9)",
            "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
            "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
            "x = bytearray(1 << 30)",
            "import os; os.write(3, b'!')",
            "import os; os.read(3, 1)",
        ] {
            wait(sandbox);
            sandbox.run_alone(&Job::python(attack).wall_ms(500));
            assert_eq!(in_zygote(sandbox, "print('on')"), "on\n");
        }
    });
}

#[test]
fn a_job_that_plays_the_one_that_waits() {
    small(|sandbox| {
        let job = Job::python("print('on')")
            .env("QUORUN_ZYGOTE", "1")
            .env("PYTHONPATH", "/usr/local/lib/quorun/zygote/python")
            .wall_ms(2000);
        for _ in 0..3 {
            wait(sandbox);
            let before = sandbox.zygotes();
            let result = sandbox.attack(After::Kept, &job);
            assert_eq!(result.outcome.exit_code, Some(0), "{}", show(&result));
            assert_eq!(sandbox.zygotes(), before);
        }
        // A program that waits on for a word that does not come is ended like any other.
        let hook = "import os; os.environ['QUORUN_ZYGOTE'] = '1'; os.environ['PYTHONPATH'] = '/usr/local/lib/quorun/zygote/python'\n\
                    r, w = os.pipe(); os.dup2(r, 3); os.dup2(os.open('/dev/null', 1), 4)\n\
                    os.execv('/usr/bin/python3', ['python3', '-c', ''])";
        let result = sandbox.attack(After::Kept, &Job::python(hook).wall_ms(500));
        assert_verdict(&result, Verdict::Accepted);
    });
}
