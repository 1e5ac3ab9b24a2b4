//! Using up what a job shares with others: processes, memory, disk, and the node's patience with output.

use quorun_ledger::job::{JobResult, Verdict};

use crate::fixture::{
    After, Job, OUTPUT_KB, PROCESSES, assert_message, assert_verdict, show, small, text,
};

/// The bombs that never end by themselves have this much.
const CPU_MS: u64 = 500;

#[test]
fn a_fork_bomb_is_held_to_its_processes_and_runs_out_of_time() {
    small(|sandbox| {
        let bomb = "#include <unistd.h>\nint main(void) { for (;;) fork(); }";
        let result = sandbox.attack(After::Kept, &Job::c(bomb).cpu_ms(CPU_MS));
        assert_verdict(&result, Verdict::TimeLimit);
    });
}

#[test]
fn the_shells_fork_bomb_ends_with_its_first_process() {
    small(|sandbox| {
        let bomb = ":(){ :|:& };:";
        let result = sandbox.attack(After::Kept, &Job::bash(bomb).cpu_ms(CPU_MS));
        // The first process may be through before its children have used up anything.
        let ends = [Verdict::Accepted, Verdict::RuntimeError, Verdict::TimeLimit];
        assert!(ends.contains(&result.outcome.verdict), "{}", show(&result));
    });
}

#[test]
fn a_thread_bomb_is_held_to_its_processes_and_runs_out_of_time() {
    small(|sandbox| {
        let bomb = r#"
            #include <pthread.h>
            #include <stdio.h>
            #include <unistd.h>
            static void *wait(void *_) { for (;;) pause(); }
            int main(void) {
                pthread_t thread;
                int made = 0;
                while (pthread_create(&thread, NULL, wait, NULL) == 0) made++;
                printf("%d\n", made);
                fflush(stdout);
                for (;;) pthread_create(&thread, NULL, wait, NULL);
            }"#;
        let result = sandbox.attack(After::Kept, &Job::c(bomb).cpu_ms(CPU_MS));
        assert_verdict(&result, Verdict::TimeLimit);
        let made: u32 = text(&result).trim().parse().expect("a number");
        assert!(made < PROCESSES, "{made} threads besides the first");
    });
}

/// Every process of these writes to the memory that it gets until there is none.
fn assert_ran_out_of_memory(result: &JobResult) {
    assert_verdict(result, Verdict::MemoryLimit);
    assert_message(result, "KiB of memory");
}

#[test]
fn anonymous_memory_without_end() {
    small(|sandbox| {
        let bomb = r#"
            #include <stdlib.h>
            #include <string.h>
            int main(void) {
                for (;;) {
                    void *piece = malloc(1 << 20);
                    if (piece) memset(piece, 1, 1 << 20);
                }
            }"#;
        let result = sandbox.attack(After::Discarded, &Job::c(bomb));
        assert_ran_out_of_memory(&result);
    });
}

#[test]
fn anonymous_memory_of_many_processes_together() {
    small(|sandbox| {
        let bomb = r#"
            #include <stdlib.h>
            #include <string.h>
            #include <sys/wait.h>
            #include <unistd.h>
            int main(void) {
                for (int i = 0; i < 50; i++)
                    if (fork() == 0) {
                        memset(malloc(8 << 20), 1, 8 << 20);
                        for (;;) pause();
                    }
                wait(NULL);
                return 0;
            }"#;
        let result = sandbox.attack(After::Discarded, &Job::c(bomb));
        assert_ran_out_of_memory(&result);
    });
}

#[test]
fn memory_in_files_that_have_no_name() {
    // No folder's size bounds these.
    small(|sandbox| {
        let bomb = r#"
            #define _GNU_SOURCE
            #include <string.h>
            #include <sys/mman.h>
            #include <unistd.h>
            static char piece[1 << 20];
            int main(void) {
                memset(piece, 1, sizeof(piece));
                for (;;) {
                    int file = memfd_create("bomb", 0);
                    for (int i = 0; i < 32; i++) write(file, piece, sizeof(piece));
                }
            }"#;
        let result = sandbox.attack(After::Discarded, &Job::c(bomb));
        assert_ran_out_of_memory(&result);
    });
}

/// Writes a file in each of the folders until it cannot, and says why not.
const FILL: &str = r#"
import errno, os, sys
piece = b"x" * (1 << 20)
for folder in sys.argv[1:]:
    with open(folder + "/fill", "wb", buffering=0) as file:
        written = 0
        try:
            while True:
                written += file.write(piece)
        except OSError as error:
            print(folder, errno.errorcode[error.errno], written > 0, written >> 10)
"#;

#[test]
fn memory_behind_the_files_of_full_folders() {
    small(|sandbox| {
        let bomb =
            format!("{FILL}\nhold = []\nwhile True: hold.append(bytearray(b'x' * (1 << 20)))");
        let job = Job::python(bomb).arg("/box").arg("/tmp");
        let result = sandbox.attack(After::Discarded, &job);
        assert_ran_out_of_memory(&result);
    });
}

#[test]
fn memory_behind_mapped_files_of_the_box_and_of_tmp() {
    small(|sandbox| {
        let bomb = r#"
            #include <fcntl.h>
            #include <string.h>
            #include <sys/mman.h>
            #include <unistd.h>
            /* The folder's end is met as a bus error, not as an errno. */
            int main(int count, char **folders) {
                for (int i = 1; i < count; i++) {
                    chdir(folders[i]);
                    int file = open("mapped", O_RDWR | O_CREAT, 0600);
                    off_t size = 48 << 20;
                    ftruncate(file, size);
                    char *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
                    if (pages == MAP_FAILED) return 1;
                    memset(pages, 1, size);
                }
                return 0;
            }"#;
        let job = Job::c(bomb).arg("/box").arg("/tmp");
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::RuntimeError);
        assert_eq!(result.outcome.signal, Some(7), "{}", show(&result));
    });
}

#[test]
fn mapping_more_of_the_image_than_there_is_memory_does_no_harm() {
    // What is read from the image is cached on the job's account, and given up again for what it needs itself.
    small(|sandbox| {
        let bomb = r#"
import mmap, os, sys
left = int(sys.argv[1]) << 10
total = 0
for folder, _, names in os.walk("/usr/lib"):
    for name in names:
        path = os.path.join(folder, name)
        if left <= 0 or os.path.islink(path) or os.path.getsize(path) < 1 << 20:
            continue
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
            for at in range(0, len(pages), 4096):
                total += pages[at]
            left -= len(pages)
print(left <= 0, len(bytearray(b"x" * (32 << 20))))
"#;
        let job = Job::python(bomb).arg(2 * sandbox.memory_kb());
        let printed = sandbox.attack_prints(After::Kept, &job);
        assert_eq!(printed, "True 33554432\n");
    });
}

/// Prints 64 KiB pieces without a line's end, for ever.
fn output_bomb(descriptors: &str) -> Job {
    Job::python(format!(
        "import os\npiece = b'x' * 65536\nwhile True:\n    for target in {descriptors}: os.write(target, piece)"
    ))
}

#[track_caller]
fn assert_printed_too_much(result: &JobResult, stdout: bool, stderr: bool) {
    assert_verdict(result, Verdict::OutputLimit);
    let output = &result.output;
    for (wanted, kept, truncated) in [
        (stdout, &output.stdout, output.stdout_truncated),
        (stderr, &output.stderr, output.stderr_truncated),
    ] {
        assert_eq!(truncated, wanted);
        let length = if wanted { OUTPUT_KB << 10 } else { 0 };
        assert_eq!(kept.len() as u64, length, "{}", show(result));
        assert!(kept.iter().all(|byte| *byte == b'x'));
    }
}

#[test]
fn output_without_end_on_stdout() {
    small(|sandbox| {
        let result = sandbox.attack(After::Kept, &output_bomb("[1]"));
        assert_printed_too_much(&result, true, false);
    });
}

#[test]
fn output_without_end_on_stderr() {
    small(|sandbox| {
        let result = sandbox.attack(After::Kept, &output_bomb("[2]"));
        assert_printed_too_much(&result, false, true);
    });
}

#[test]
fn output_without_end_on_both() {
    small(|sandbox| {
        let result = sandbox.attack(After::Kept, &output_bomb("[1, 2]"));
        assert_printed_too_much(&result, true, true);
    });
}

/// A folder that is as large as this part of the memory.
fn assert_filled(printed: &str, folder: &str, size_kb: u64) {
    let why = ["ENOSPC", "EFBIG"].map(|errno| format!("{folder} {errno} True {size_kb}\n"));
    assert!(why.iter().any(|line| line == printed), "{printed}");
}

#[test]
fn a_full_box() {
    small(|sandbox| {
        let printed = sandbox.attack_prints(After::Kept, &Job::python(FILL).arg("/box"));
        // The source is in it, too.
        assert_filled(&printed, "/box", sandbox.memory_kb() / 2 - 4);
    });
}

#[test]
fn a_full_tmp() {
    small(|sandbox| {
        let printed = sandbox.attack_prints(After::Kept, &Job::python(FILL).arg("/tmp"));
        assert_filled(&printed, "/tmp", sandbox.memory_kb() / 4);
    });
}

#[test]
fn empty_files_until_there_are_no_more_inodes() {
    // An inode takes memory of the kernel's, which is the job's to answer for like any other.
    small(|sandbox| {
        let bomb = r#"
            #include <errno.h>
            #include <fcntl.h>
            #include <stdio.h>
            #include <string.h>
            #include <unistd.h>
            int main(void) {
                char name[16];
                for (int i = 0; i < 1000000; i++) {
                    sprintf(name, "%d", i);
                    int file = open(name, O_WRONLY | O_CREAT, 0600);
                    if (file < 0) { printf("%d: %s\n", i, strerror(errno)); return 3; }
                    close(file);
                }
                return 0;
            }"#;
        let result = sandbox.attack(After::Either, &Job::c(bomb));
        let ends = [Verdict::RuntimeError, Verdict::MemoryLimit];
        assert!(ends.contains(&result.outcome.verdict), "{}", show(&result));
    });
}

#[test]
fn a_huge_file_that_is_all_hole() {
    small(|sandbox| {
        let attack = r#"
import errno, os
file = os.open("huge", os.O_RDWR | os.O_CREAT)
def attempt(what, call):
    try:
        call()
        print(what, "done")
    except OSError as error:
        print(what, errno.errorcode[error.errno])
attempt("truncate", lambda: os.ftruncate(file, 1 << 40))
attempt("allocate", lambda: os.posix_fallocate(file, 0, 1 << 40))
attempt("write", lambda: os.pwrite(file, b"x", 1 << 40))
print(os.fstat(file).st_size)
"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::python(attack));
        assert_eq!(printed, "truncate EFBIG\nallocate EFBIG\nwrite EFBIG\n0\n");
        // A program that does not ignore the signal is ended by it.
        let attack = "open(my $file, '>', 'huge'); truncate($file, 1 << 40);";
        let result = sandbox.attack(After::Kept, &Job::perl(attack));
        assert_verdict(&result, Verdict::RuntimeError);
        assert_eq!(result.outcome.signal, Some(25), "{}", show(&result));
    });
}

#[test]
fn memory_that_is_asked_for_again_and_again() {
    // The kernel kills one process after the other; that it killed any is the verdict, however the first one ends.
    small(|sandbox| {
        let bomb = r#"
            #include <stdlib.h>
            #include <string.h>
            #include <sys/wait.h>
            #include <unistd.h>
            int main(void) {
                for (int i = 0; i < 20; i++) {
                    if (fork() == 0)
                        for (;;) memset(malloc(1 << 20), 1, 1 << 20);
                    wait(NULL);
                }
                return 0;
            }"#;
        let result = sandbox.attack(After::Discarded, &Job::c(bomb));
        assert_ran_out_of_memory(&result);
    });
}

#[test]
fn memory_of_a_job_that_is_as_dear_to_the_kernel_as_its_warden() {
    // The warden has the input that nobody reads, the job has next to nothing in its own name: the kernel takes the warden,
    // and with it the sandbox.
    small(|sandbox| {
        let bomb = r#"
            #define _GNU_SOURCE
            #include <fcntl.h>
            #include <sys/mman.h>
            #include <unistd.h>
            static char piece[1 << 12];
            int main(void) {
                write(open("/proc/self/oom_score_adj", O_WRONLY), "0", 1);
                for (;;) {
                    int file = memfd_create("bomb", 0);
                    for (int i = 0; i < 8192; i++) write(file, piece, sizeof(piece));
                }
            }"#;
        let job = Job::c(bomb).stdin(vec![b'x'; 4 << 20]);
        let result = sandbox.attack(After::Discarded, &job);
        assert_ran_out_of_memory(&result);
    });
}

/// Makes many pairs of connected sockets and fills their buffers, up to twice the sandbox's memory; prints how much they hold,
/// KiB.
fn sockets(pair: &str, memory_kb: u64) -> Job {
    Job::python(format!(
        r#"
import errno, os, socket, sys
most = int(sys.argv[1]) << 10
held, total = [], 0
piece = b"x" * 32768
{pair}
while total < most and len(held) < 480:
    try:
        ends = pair()
    except OSError:
        break
    for end in ends:
        end.setblocking(False)
        try:
            for _ in range(300):
                total += end.send(piece)
        except OSError:
            pass
    held.append(ends)
print(total >> 10)
"#
    ))
    .arg(2 * memory_kb)
}

/// What is on its way between two sockets is memory of the kernel's, and no less the job's than its own.
#[track_caller]
fn assert_bounded_in_sockets(pair: &str) {
    small(|sandbox| {
        let job = sockets(pair, sandbox.memory_kb());
        let result = sandbox.attack(After::Either, &job);
        if result.outcome.verdict == Verdict::MemoryLimit {
            return;
        }
        assert_verdict(&result, Verdict::Accepted);
        let held: u64 = text(&result).trim().parse().expect("a number");
        assert!(
            held < sandbox.memory_kb(),
            "{held} KiB in sockets of a sandbox with {} KiB",
            sandbox.memory_kb()
        );
    });
}

#[test]
fn memory_in_the_buffers_of_local_sockets() {
    assert_bounded_in_sockets("pair = socket.socketpair");
}

#[test]
fn memory_in_the_buffers_of_connections_over_the_loopback() {
    assert_bounded_in_sockets(
        r#"
try:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1000)
except OSError:
    pass
def pair():
    one = socket.socket()
    one.connect(listener.getsockname())
    return one, listener.accept()[0]
"#,
    );
}

#[test]
fn memory_in_the_buffers_of_datagrams_over_the_loopback() {
    assert_bounded_in_sockets(
        r#"
def pair():
    one, other = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    other.bind(("127.0.0.1", 0))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    other.connect(one.getsockname())
    # Datagrams beyond the receiver's buffer are dropped, not kept.
    class Sender:
        def setblocking(self, _): other.setblocking(False)
        def send(self, piece):
            if self.left == 0: raise BlockingIOError
            self.left -= 1
            return other.send(piece)
    sender = Sender()
    sender.keep, sender.left = (one, other), 10
    return (sender,)
"#,
    );
}

#[test]
fn memory_in_pipes() {
    small(|sandbox| {
        let attack = r#"
import fcntl, os
total = 0
for _ in range(480):
    out, into = os.pipe()
    os.set_blocking(into, False)
    try:
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 1 << 20)
    except OSError:
        pass
    try:
        while True:
            total += os.write(into, b"x" * 4096)
    except BlockingIOError:
        pass
print(total >> 10)
"#;
        let result = sandbox.attack(After::Either, &Job::python(attack));
        if result.outcome.verdict != Verdict::MemoryLimit {
            assert_verdict(&result, Verdict::Accepted);
            let held: u64 = text(&result).trim().parse().expect("a number");
            assert!(held < sandbox.memory_kb(), "{held}");
        }
    });
}

#[test]
fn terminals_until_the_machine_has_no_more() {
    // They are counted for the machine as a whole: who takes all takes them from the jobs in all other sandboxes.
    small(|sandbox| {
        let attack = r#"
import errno, os
ready, go = os.pipe(), os.pipe()
held = []
for _ in range(8):
    if os.fork() == 0:
        end = 0
        try:
            while True:
                held.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
        except OSError as error:
            end = error.errno
        os.write(ready[1], bytes([end]))
        os.read(go[0], 1)
        os._exit(0)
ends = b"".join(os.read(ready[0], 1) for _ in range(8))
print("some are left" if errno.ENOSPC not in ends else "all taken")
"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::python(attack));
        assert_eq!(printed, "some are left\n");
    });
}
