//! What a job may want to leave behind for the next one.
//!
//! That the next job finds nothing is for the most part seen to by the ordinary job after each attack; the second programs
//! here go and look for one thing more closely.

use quorun_ledger::job::Verdict;

use crate::fixture::{After, Job, Sandbox, assert_verdict, show, small, text};

/// Runs a program that leaves something; where it says that it was refused, that is as well.
#[track_caller]
fn leave(sandbox: &Sandbox, after: After, job: &Job) {
    let printed = sandbox.attack_prints(after, job);
    let ends = ["left\n", "refused\n"];
    assert!(ends.contains(&printed.as_str()), "{printed}");
}

/// Prints `found` or `nothing`, by whether the expression of a C program is true.
fn look(includes: &str, found: &str) -> Job {
    Job::c(format!(
        "#define _GNU_SOURCE
         #include <fcntl.h>
         #include <stdio.h>
         {includes}
         int main(void) {{ puts(({found}) ? \"found\" : \"nothing\"); return 0; }}"
    ))
}

#[track_caller]
fn assert_finds_nothing(sandbox: &Sandbox, job: &Job) {
    let result = sandbox.run(job);
    assert_verdict(&result, Verdict::Accepted);
    assert_eq!(text(&result), "nothing\n", "{}", show(&result));
}

#[test]
fn files_wherever_a_job_can_write() {
    small(|sandbox| {
        let attack = r#"
import os
written = []
for folder, folders, names in os.walk("/"):
    if folder == "/":
        folders[:] = [name for name in folders if name not in ("proc", "sys")]
    for name in ".left", "left":
        try:
            with open(os.path.join(folder, name), "w") as file:
                file.write("left")
            written.append(folder)
        except OSError:
            pass
print(sorted(set(written) - {"/box", "/tmp", "/dev/shm", "/dev/mqueue"}))
"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::python(attack));
        assert_eq!(printed, "[]\n", "no other folder is writable");
    });
}

#[test]
fn a_tree_that_is_hard_to_remove() {
    small(|sandbox| {
        let attack = r#"
import os
def tree(top):
    os.chdir(top)
    for number in range(20):
        os.mkdir(f".quorun-wipe-{number}")
    for name in b"\xff\xfe", b"\n", b" ", b"-rf", b"*", b"\\", b"x" * 255:
        open(name, "w").close()
        os.mkdir(name[:200] + b".d")
    os.mkfifo("fifo")
    os.symlink("/", "root")
    os.symlink("loop", "loop")
    os.symlink("/proc/self", "self")
    os.link("fifo", "hard")
    os.mkdir("locked")
    os.mkdir("locked/inside")
    open("locked/inside/file", "w").close()
    os.chmod("locked/inside", 0)
    os.chmod("locked", 0)
    open("read-only", "w").close()
    os.chmod("read-only", 0)
    # Far longer than a path may be.
    for _ in range(1500):
        os.mkdir("ddddddddd")
        os.mkdir("e")
        os.chmod("e", 0)
        os.chdir("ddddddddd")
tree("/box")
tree("/tmp")
print("left")
"#;
        leave(sandbox, After::Kept, &Job::python(attack));
    });
}

#[test]
fn a_file_that_may_not_be_changed() {
    small(|sandbox| {
        let attack = r#"
            #include <fcntl.h>
            #include <linux/fs.h>
            #include <stdio.h>
            #include <sys/ioctl.h>
            int main(void) {
                int left = 0;
                for (int flag = 0; flag < 2; flag++) {
                    int file = open(flag ? "append" : "immutable", O_RDWR | O_CREAT, 0600);
                    int flags = flag ? FS_APPEND_FL : FS_IMMUTABLE_FL;
                    left += ioctl(file, FS_IOC_SETFLAGS, &flags) == 0;
                }
                puts(left ? "left" : "refused");
                return 0;
            }"#;
        leave(sandbox, After::Kept, &Job::c(attack));
    });
}

#[test]
fn marks_on_the_folders_themselves() {
    small(|sandbox| {
        let attack = r#"
import os
def attempt(call):
    try:
        call()
        return True
    except OSError:
        return False
marks = []
for folder in "/box", "/tmp", "/dev/mqueue", "/":
    for call in (lambda: os.setxattr(folder, "user.left", b"left"), lambda: os.chmod(folder, 0o777),
                 lambda: os.chown(folder, os.getuid(), -1), lambda: os.utime(folder, (1, 1)),
                 lambda: os.setxattr(folder, "system.posix_acl_default", bytes(28)),
                 lambda: os.rename(folder, folder + "2"), lambda: os.rmdir(folder)):
        marks.append(attempt(call))
print("left" if any(marks) else "refused")
"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::python(attack));
        assert_eq!(printed, "refused\n");
    });
}

#[test]
fn a_source_under_the_name_of_the_next_ones() {
    small(|sandbox| {
        // Folders, so that a file of the name could not be made.
        let attack = r#"
import os
for name in "main.pl", "main.c", "main", "main.sh":
    os.makedirs(f"{name}/{name}")
    os.chmod(name, 0)
print("left")
"#;
        leave(sandbox, After::Kept, &Job::python(attack));
    });
}

#[test]
fn a_socket_in_the_file_system_and_one_without_a_file() {
    small(|sandbox| {
        let attack = r#"
import os, socket, time
for name in "/box/left.sock", "/tmp/left.sock", "\0left":
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen()
    os.set_inheritable(listener.fileno(), True)
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
print("left")
"#;
        leave(sandbox, After::Kept, &Job::python(attack));
        let search = r#"
import os, socket
found = [name for name in ("/box/left.sock", "/tmp/left.sock", "\0left")
         if socket.socket(socket.AF_UNIX).connect_ex(name) == 0]
print(found or "nothing")
"#;
        assert_finds_nothing(sandbox, &Job::python(search));
    });
}

#[test]
fn a_server_on_the_loopback() {
    small(|sandbox| {
        let attack = r#"
import os, socket, time
end = "refused"
for family, address in (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"):
    try:
        listener = socket.socket(family)
        listener.bind((address, 4711))
        listener.listen()
    except OSError:
        continue
    end = "left"
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
print(end)
"#;
        leave(sandbox, After::Kept, &Job::python(attack));
        let search = r#"
import socket
try:
    socket.create_connection(("127.0.0.1", 4711))
    print("found")
except OSError:
    print("nothing")
"#;
        assert_finds_nothing(sandbox, &Job::python(search));
    });
}

const KEY: &str = "0x4711";

#[test]
fn a_system_v_shared_memory_segment() {
    small(|sandbox| {
        let attack = format!(
            "#include <stdio.h>
             #include <string.h>
             #include <sys/shm.h>
             int main(void) {{
                 int id = shmget({KEY}, 4096, IPC_CREAT | 0666);
                 if (id < 0) {{ puts(\"refused\"); return 0; }}
                 strcpy(shmat(id, NULL, 0), \"secret\");
                 puts(\"left\");
                 return 0;
             }}"
        );
        // Where no filter keeps a job from making one, the sandbox must go with it.
        leave(sandbox, After::Either, &Job::c(attack));
        let search = format!("shmget({KEY}, 0, 0) >= 0 || shmget({KEY}, 4096, 0) >= 0");
        assert_finds_nothing(sandbox, &look("#include <sys/shm.h>", &search));
    });
}

#[test]
fn a_system_v_message_queue() {
    small(|sandbox| {
        let attack = format!(
            "#include <stdio.h>
             #include <sys/msg.h>
             int main(void) {{
                 struct {{ long type; char text[8]; }} message = {{ 1, \"secret\" }};
                 int id = msgget({KEY}, IPC_CREAT | 0666);
                 if (id < 0) {{ puts(\"refused\"); return 0; }}
                 msgsnd(id, &message, 7, 0);
                 puts(\"left\");
                 return 0;
             }}"
        );
        leave(sandbox, After::Either, &Job::c(attack));
        let search = format!("msgget({KEY}, 0) >= 0");
        assert_finds_nothing(sandbox, &look("#include <sys/msg.h>", &search));
    });
}

#[test]
fn a_system_v_semaphore() {
    small(|sandbox| {
        let attack = format!(
            "#include <stdio.h>
             #include <sys/sem.h>
             int main(void) {{
                 puts(semget({KEY}, 4, IPC_CREAT | 0666) < 0 ? \"refused\" : \"left\");
                 return 0;
             }}"
        );
        leave(sandbox, After::Either, &Job::c(attack));
        let search = format!("semget({KEY}, 0, 0) >= 0");
        assert_finds_nothing(sandbox, &look("#include <sys/sem.h>", &search));
    });
}

#[test]
fn a_posix_message_queue() {
    small(|sandbox| {
        let attack = r#"
            #include <fcntl.h>
            #include <mqueue.h>
            #include <stdio.h>
            #include <sys/stat.h>
            int main(void) {
                struct mq_attr form = { .mq_maxmsg = 4, .mq_msgsize = 64 };
                mqd_t queue = mq_open("/left", O_RDWR | O_CREAT, 0666, &form);
                if (queue < 0) { puts("refused"); return 0; }
                mq_send(queue, "secret", 6, 0);
                puts("left");
                return 0;
            }"#;
        leave(sandbox, After::Kept, &Job::c(attack));
        let search = "mq_open(\"/left\", O_RDONLY) >= 0";
        assert_finds_nothing(sandbox, &look("#include <mqueue.h>", search));
    });
}

#[test]
fn a_posix_semaphore_and_posix_shared_memory() {
    small(|sandbox| {
        let attack = r#"
            #include <fcntl.h>
            #include <semaphore.h>
            #include <stdio.h>
            #include <sys/mman.h>
            int main(void) {
                int left = sem_open("/left", O_CREAT, 0666, 1) != SEM_FAILED;
                left |= shm_open("/left", O_RDWR | O_CREAT, 0666) >= 0;
                puts(left ? "left" : "refused");
                return 0;
            }"#;
        leave(sandbox, After::Kept, &Job::c(attack));
        let search =
            "sem_open(\"/left\", 0) != SEM_FAILED || shm_open(\"/left\", O_RDONLY, 0) >= 0";
        let includes = "#include <semaphore.h>\n#include <sys/mman.h>";
        assert_finds_nothing(sandbox, &look(includes, search));
    });
}

#[test]
fn processes_in_the_background() {
    small(|sandbox| {
        let attack = r#"
for i in 1 2 3 4 5 6 7 8; do
    (trap '' HUP INT TERM; setsid sleep 1000 &) &
done
wait
nohup sleep 1000 > /dev/null 2>&1 &
disown -a
echo left
"#;
        leave(sandbox, After::Kept, &Job::bash(attack));
    });
}

#[test]
fn a_process_that_is_stopped() {
    small(|sandbox| {
        let attack = "sleep 1000 & kill -STOP $!; sleep 1000 & kill -TSTP $!; echo left";
        leave(sandbox, After::Kept, &Job::bash(attack));
    });
}

#[test]
fn a_terminal() {
    small(|sandbox| {
        let attack = r#"
import os, pty, time
try:
    pid, master = pty.fork()
except OSError:
    print("refused")
    raise SystemExit
if pid == 0:
    os.write(1, b"x")
    time.sleep(1000)
os.read(master, 1)
print("left")
"#;
        leave(sandbox, After::Kept, &Job::python(attack));
        let search = "import os\nprint([name for name in os.listdir('/dev/pts') if name != 'ptmx'] or 'nothing')";
        assert_finds_nothing(sandbox, &Job::python(search));
    });
}
