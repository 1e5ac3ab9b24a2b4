//! Calls of the kernel that no program of a job needs, and that have opened containers before.
//!
//! Each is refused with an errno, as a kernel without it or a user without the right would: a program that only asks whether
//! it may must go on, so nothing here kills. The arguments are such that the call would succeed if it were allowed.

use quorun_ledger::job::Verdict;

use crate::fixture::{After, Job, assert_verdict, small, text};

/// For want of rights, or as if there were no such call.
const DENIED: &[&str] = &["EPERM", "EACCES", "ENOSYS"];

/// A kind of socket that may, besides, not exist in this kernel.
const NO_SOCKET: &[&str] = &[
    "EPERM",
    "EACCES",
    "ENOSYS",
    "EAFNOSUPPORT",
    "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT",
    "EINVAL",
    "ENODEV",
];

const INCLUDES: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <mqueue.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define TRY(name, call) do { \
    fflush(stdout); \
    if (fork() == 0) { \
        errno = 0; \
        long result = (long)(call); \
        if (result == -1) printf("%s: %s\n", name, strerrorname_np(errno)); \
        else printf("%s: allowed (%ld)\n", name, result); \
        fflush(stdout); \
        _exit(0); \
    } \
    int status; \
    wait(&status); \
    if (!WIFEXITED(status)) printf("%s: killed by signal %d\n", name, WTERMSIG(status)); \
} while (0)
"#;

/// Makes each call in a process of its own; says how each ended, in order.
#[track_caller]
fn tried(after: After, calls: &[(&str, &str)]) -> Vec<String> {
    let body: String = calls
        .iter()
        .map(|(name, call)| format!("    TRY(\"{name}\", {call});\n"))
        .collect();
    let program = format!("{INCLUDES}\nint main(void) {{\n{body}    return 0;\n}}\n");
    let mut ends = Vec::new();
    small(|sandbox| {
        let result = sandbox.attack(after, &Job::c(program));
        assert_verdict(&result, Verdict::Accepted);
        ends = text(&result).lines().map(str::to_owned).collect();
        assert_eq!(ends.len(), calls.len(), "{ends:?}");
    });
    ends
}

/// That every call fails with one of these.
#[track_caller]
fn assert_refused(errnos: &[&str], calls: &[(&str, &str)]) {
    assert_refused_and(After::Kept, errnos, calls);
}

#[track_caller]
fn assert_refused_and(after: After, errnos: &[&str], calls: &[(&str, &str)]) {
    let wrong: Vec<String> = tried(after, calls)
        .into_iter()
        .filter(|line| {
            let (_, end) = line.rsplit_once(": ").expect("a line with an end");
            !errnos.contains(&end)
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "not refused with one of {errnos:?}: {wrong:#?}"
    );
}

#[test]
fn mount() {
    assert_refused(
        DENIED,
        &[
            ("tmpfs", r#"mount("none", "/box", "tmpfs", 0, NULL)"#),
            ("proc", r#"mount("proc", "/box", "proc", 0, NULL)"#),
            ("bind", r#"mount("/etc", "/box", NULL, MS_BIND, NULL)"#),
            (
                "writable root",
                r#"mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL)"#,
            ),
            (
                "propagation",
                r#"mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL)"#,
            ),
            (
                "open_tree",
                r#"syscall(SYS_open_tree, AT_FDCWD, "/box", 1)"#,
            ),
            ("fsopen", r#"syscall(SYS_fsopen, "tmpfs", 0)"#),
            ("fspick", r#"syscall(SYS_fspick, AT_FDCWD, "/box", 0)"#),
        ],
    );
}

#[test]
fn umount() {
    assert_refused(
        DENIED,
        &[
            ("box", r#"umount2("/box", MNT_DETACH)"#),
            ("proc", r#"umount2("/proc", MNT_DETACH)"#),
            (
                "what covers the keys",
                r#"umount2("/proc/keys", MNT_DETACH)"#,
            ),
            ("the warden", r#"umount2("/.quorun", MNT_DETACH)"#),
        ],
    );
}

#[test]
fn unshare_of_every_namespace() {
    assert_refused(
        DENIED,
        &[
            ("user", "unshare(CLONE_NEWUSER)"),
            ("mount", "unshare(CLONE_NEWNS)"),
            ("pid", "unshare(CLONE_NEWPID)"),
            ("network", "unshare(CLONE_NEWNET)"),
            ("ipc", "unshare(CLONE_NEWIPC)"),
            ("uts", "unshare(CLONE_NEWUTS)"),
            ("cgroup", "unshare(CLONE_NEWCGROUP)"),
            ("time", "unshare(0x80)"),
            (
                "user with others",
                "unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID)",
            ),
        ],
    );
}

#[test]
fn clone_into_every_namespace() {
    let call = |flag: &str| {
        format!(
            "({{ long child = syscall(SYS_clone, {flag} | SIGCHLD, 0, 0, 0, 0); if (child == 0) _exit(0); child; }})"
        )
    };
    let call3 = |flag: &str| {
        format!(
            "({{ struct clone_args how = {{ .flags = {flag}, .exit_signal = SIGCHLD }};
                long child = syscall(SYS_clone3, &how, sizeof(how)); if (child == 0) _exit(0); child; }})"
        )
    };
    let flags = [
        "CLONE_NEWUSER",
        "CLONE_NEWNS",
        "CLONE_NEWPID",
        "CLONE_NEWNET",
        "CLONE_NEWIPC",
        "CLONE_NEWUTS",
        "CLONE_NEWCGROUP",
    ];
    let calls: Vec<(&str, String)> = flags
        .iter()
        .map(|flag| (*flag, call(flag)))
        .chain(flags.iter().map(|flag| (*flag, call3(flag))))
        .chain([("CLONE_NEWTIME", call3("0x80"))])
        .collect();
    let calls: Vec<(&str, &str)> = calls.iter().map(|(name, call)| (*name, &**call)).collect();
    assert_refused(DENIED, &calls);
}

#[test]
fn setns() {
    let call = |name: &str| {
        format!(
            r#"({{ int file = open("/proc/self/ns/{name}", O_RDONLY); file < 0 ? -2 : setns(file, 0); }})"#
        )
    };
    let names = ["user", "mnt", "pid", "net", "ipc", "uts"];
    let calls: Vec<(&str, String)> = names.iter().map(|name| (*name, call(name))).collect();
    let calls: Vec<(&str, &str)> = calls.iter().map(|(name, call)| (*name, &**call)).collect();
    assert_refused(DENIED, &calls);
}

#[test]
fn another_root() {
    assert_refused(
        DENIED,
        &[
            ("chroot", r#"chroot("/box")"#),
            ("pivot_root", r#"syscall(SYS_pivot_root, "/box", "/box")"#),
        ],
    );
}

#[test]
fn device_files() {
    assert_refused(
        DENIED,
        &[
            (
                "disk",
                r#"mknod("/box/disk", S_IFBLK | 0600, makedev(254, 0))"#,
            ),
            (
                "memory",
                r#"mknod("/tmp/memory", S_IFCHR | 0600, makedev(1, 1))"#,
            ),
            (
                "kernel's log",
                r#"mknodat(AT_FDCWD, "/box/log", S_IFCHR | 0600, makedev(1, 11))"#,
            ),
        ],
    );
}

#[test]
fn bpf() {
    assert_refused(
        DENIED,
        &[(
            "map",
            "({ union bpf_attr map = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1 };
                syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof(map)); })",
        )],
    );
}

#[test]
fn perf_event_open() {
    assert_refused(
        DENIED,
        &[(
            "clock",
            "({ struct perf_event_attr event = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(event),
                .config = PERF_COUNT_SW_TASK_CLOCK, .exclude_kernel = 1 };
                syscall(SYS_perf_event_open, &event, 0, -1, -1, 0); })",
        )],
    );
}

#[test]
fn keyrings() {
    assert_refused(
        DENIED,
        &[
            ("keyctl", "syscall(SYS_keyctl, 0, -2, 1)"),
            ("session", "syscall(SYS_keyctl, 1, 0)"),
            (
                "add_key",
                r#"syscall(SYS_add_key, "user", "quorun", "secret", 6, -4)"#,
            ),
            (
                "request_key",
                r#"syscall(SYS_request_key, "user", "quorun", NULL, -4)"#,
            ),
        ],
    );
}

#[test]
fn io_uring() {
    assert_refused(
        DENIED,
        &[(
            "setup",
            "({ char parameters[256] = { 0 }; syscall(SYS_io_uring_setup, 4, parameters); })",
        )],
    );
}

#[test]
fn userfaultfd() {
    assert_refused(
        DENIED,
        &[
            ("all faults", "syscall(SYS_userfaultfd, O_CLOEXEC)"),
            (
                "faults of programs",
                "syscall(SYS_userfaultfd, O_CLOEXEC | 1)",
            ),
        ],
    );
}

#[test]
fn the_memory_of_other_processes() {
    let call = |name: &str, pid: &str| {
        format!(
            "({{ char from[8] = \"x\", to[8]; struct iovec remote = {{ from, 8 }}, local = {{ to, 8 }};
                {name}({pid}, &local, 1, &remote, 1, 0); }})"
        )
    };
    let calls = [
        ("read its own", call("process_vm_readv", "getpid()")),
        ("write its own", call("process_vm_writev", "getpid()")),
        ("read its parent's", call("process_vm_readv", "getppid()")),
        ("read the warden's", call("process_vm_readv", "1")),
        ("write the warden's", call("process_vm_writev", "1")),
    ];
    let calls: Vec<(&str, &str)> = calls.iter().map(|(name, call)| (*name, &**call)).collect();
    assert_refused(DENIED, &calls);
}

#[test]
fn tracing_its_own_processes() {
    assert_refused(
        DENIED,
        &[
            ("traced by its parent", "ptrace(PTRACE_TRACEME, 0, 0, 0)"),
            (
                "attach to its child",
                "({ pid_t child = fork(); if (child == 0) for (;;) pause();
                    long result = ptrace(PTRACE_ATTACH, child, 0, 0); int error = errno;
                    kill(child, SIGKILL); errno = error; result; })",
            ),
            (
                "seize its child",
                "({ pid_t child = fork(); if (child == 0) for (;;) pause();
                    long result = ptrace(PTRACE_SEIZE, child, 0, 0); int error = errno;
                    kill(child, SIGKILL); errno = error; result; })",
            ),
        ],
    );
}

#[test]
fn packet_sockets() {
    assert_refused(
        NO_SOCKET,
        &[
            ("raw", "socket(AF_PACKET, SOCK_RAW, 0x300)"),
            ("datagram", "socket(AF_PACKET, SOCK_DGRAM, 0x300)"),
            ("AF_INET raw", "socket(AF_INET, SOCK_RAW, 255)"),
        ],
    );
}

#[test]
fn sockets_to_the_host_of_a_virtual_machine() {
    assert_refused(
        NO_SOCKET,
        &[
            ("stream", "socket(AF_VSOCK, SOCK_STREAM, 0)"),
            ("datagram", "socket(AF_VSOCK, SOCK_DGRAM, 0)"),
        ],
    );
}

#[test]
fn sockets_to_the_kernels_ciphers() {
    assert_refused(
        NO_SOCKET,
        &[("AF_ALG", "socket(AF_ALG, SOCK_SEQPACKET, 0)")],
    );
}

#[test]
fn netlink_sockets() {
    let call = |protocol: u32| format!("socket(AF_NETLINK, SOCK_RAW, {protocol})");
    // Routes, diagnosis, packet filters, audit, transformation, generic, keys' users.
    let calls: Vec<(String, String)> = [0, 4, 5, 6, 9, 12, 15, 16, 21]
        .into_iter()
        .map(|protocol| (format!("protocol {protocol}"), call(protocol)))
        .collect();
    let calls: Vec<(&str, &str)> = calls
        .iter()
        .map(|(name, call)| (&**name, &**call))
        .collect();
    assert_refused(NO_SOCKET, &calls);
}

#[test]
fn sockets_of_rare_families() {
    let calls: Vec<(String, String)> = (3..50)
        // The internet's, which leads nowhere here, and those of the tests above.
        .filter(|family| ![10, 16, 17, 38, 40].contains(family))
        .flat_map(|family| {
            ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"].map(|kind| {
                (
                    format!("{kind} of family {family}"),
                    format!("socket({family}, {kind}, 0)"),
                )
            })
        })
        .collect();
    let calls: Vec<(&str, &str)> = calls
        .iter()
        .map(|(name, call)| (&**name, &**call))
        .collect();
    assert_refused(NO_SOCKET, &calls);
}

#[test]
fn system_v_objects() {
    // What is made all the same is left behind, and ends the sandbox.
    assert_refused_and(
        After::Either,
        DENIED,
        &[
            (
                "shared memory",
                "shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600)",
            ),
            ("queue", "msgget(IPC_PRIVATE, IPC_CREAT | 0600)"),
            ("semaphores", "semget(IPC_PRIVATE, 1, IPC_CREAT | 0600)"),
        ],
    );
}

#[test]
fn posix_queues() {
    assert_refused(
        DENIED,
        &[(
            "queue",
            r#"mq_open("/queue", O_RDWR | O_CREAT, 0600, NULL)"#,
        )],
    );
}

#[test]
fn huge_pages() {
    // They come from a store of the machine's own and count into nobody's memory. Most machines have an empty one.
    assert_refused(
        &["EPERM", "EACCES", "ENOSYS", "EINVAL", "ENOMEM"],
        &[
            (
                "anonymous",
                "mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0)",
            ),
            (
                "of a file without a name",
                "({ int file = memfd_create(\"huge\", MFD_HUGETLB); file < 0 ? -1 :
                    (long)mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0); })",
            ),
        ],
    );
}

#[test]
fn handles_of_files() {
    assert_refused(
        DENIED,
        &[(
            // The second file of nearly every file system is its root.
            "open",
            "({ struct { struct file_handle handle; unsigned char bytes[8]; } root = { { 8, 1 }, { 2 } };
                int folder = open(\"/etc/hostname\", O_RDONLY); open_by_handle_at(folder, &root.handle, O_RDONLY); })",
        )],
    );
}

#[test]
fn the_machine_itself() {
    assert_refused(
        DENIED,
        &[
            ("reboot", "reboot(RB_ENABLE_CAD)"),
            (
                "clock",
                "({ struct timeval now; gettimeofday(&now, NULL); settimeofday(&now, NULL); })",
            ),
            (
                "clock's speed",
                "({ struct timex how = { .modes = ADJ_FREQUENCY }; adjtimex(&how); })",
            ),
            ("host's name", r#"sethostname("quorun", 6)"#),
            ("domain's name", r#"setdomainname("quorun", 6)"#),
            ("swap", r#"swapon("/box/main.c", 0)"#),
            ("no swap", r#"swapoff("/box/main.c")"#),
            ("accounting", r#"acct("/box/main.c")"#),
            (
                "kernel's log",
                "({ char log[64]; klogctl(3, log, sizeof(log)); })",
            ),
            ("hang up", "vhangup()"),
            ("module", r#"syscall(SYS_init_module, "x", 1, "")"#),
            (
                "module's file",
                r#"({ int file = open("/box/main.c", O_RDONLY); syscall(SYS_finit_module, file, "", 0); })"#,
            ),
            (
                "no module",
                r#"syscall(SYS_delete_module, "quorun", O_NONBLOCK)"#,
            ),
            ("another kernel", "syscall(SYS_kexec_load, 0, 0, NULL, 0)"),
            (
                "watch everything",
                "syscall(SYS_fanotify_init, 0, O_RDONLY)",
            ),
            (
                "quotas",
                r#"syscall(SYS_quotactl, 0x800002 << 8, "/dev/vda", 0, NULL)"#,
            ),
        ],
    );
}

#[test]
fn rights_that_were_given_up() {
    assert_refused(
        DENIED,
        &[
            ("user", "setuid(0)"),
            ("group", "setgid(0)"),
            ("all users", "setresuid(0, 0, 0)"),
            ("all groups", "setresgid(0, 0, 0)"),
            ("the warden's user", "setreuid(-1, 0)"),
            ("another job's user", "setuid(getuid() + 1)"),
            ("groups", "({ gid_t root = 0; setgroups(1, &root); })"),
            (
                "capabilities",
                "({ struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
                    struct __user_cap_data_struct all[2] = { { -1, -1, -1 }, { -1, -1, -1 } };
                    syscall(SYS_capset, &head, all); })",
            ),
            (
                "ambient capability",
                "prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0)",
            ),
            (
                "first in line for memory",
                r#"write(open("/proc/self/oom_score_adj", O_WRONLY), "-1000", 5)"#,
            ),
            ("priority", "setpriority(PRIO_PROCESS, 0, -20)"),
            (
                "real time",
                "({ struct sched_param first = { 1 }; sched_setscheduler(0, SCHED_FIFO, &first); })",
            ),
        ],
    );
}

#[test]
fn limits_that_were_set() {
    let call = |limit: &str| {
        format!(
            "({{ struct rlimit more; getrlimit({limit}, &more); more.rlim_cur = ++more.rlim_max;
                more.rlim_max == 0 ? -2 : setrlimit({limit}, &more); }})"
        )
    };
    let limits = [
        "RLIMIT_CPU",
        "RLIMIT_FSIZE",
        "RLIMIT_NOFILE",
        "RLIMIT_NPROC",
        "RLIMIT_CORE",
        "RLIMIT_STACK",
    ];
    let calls: Vec<(&str, String)> = limits.iter().map(|limit| (*limit, call(limit))).collect();
    let calls: Vec<(&str, &str)> = calls.iter().map(|(name, call)| (*name, &**call)).collect();
    assert_refused(DENIED, &calls);
}

#[test]
fn a_program_without_a_filter_and_with_new_rights() {
    small(|sandbox| {
        let attack = r#"
            #include <stdio.h>
            #include <sys/prctl.h>
            int main(void) {
                printf("%d", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
                printf(" %d", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
                printf(" %d", prctl(PR_SET_SECCOMP, 0, 0, 0, 0));
                printf(" %d\n", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
                return 0;
            }"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::c(attack));
        assert_eq!(printed, "-1 1 -1 2\n");
    });
}

/// The machine has older ways into the kernel, with other numbers for the same calls: a filter that only knows the numbers
/// of today's way does not see them.
#[cfg(target_arch = "x86_64")]
mod other_ways {
    use super::{After, tried};

    /// Refused with an errno, or, since no program of this image has a use for the way as such, ended.
    #[track_caller]
    fn assert_closed(calls: &[(&str, &str)]) {
        let open: Vec<String> = tried(After::Either, calls)
            .into_iter()
            .filter(|line| line.contains("allowed"))
            .collect();
        assert!(open.is_empty(), "{open:#?}");
    }

    /// A call by the interrupt of 32-bit programs; errors come back as negative numbers.
    fn interrupt(number: u32, arguments: [u32; 3]) -> String {
        let [first, second, third] = arguments;
        format!(
            "({{ int result; __asm__ volatile(\"int $0x80\" : \"=a\"(result)
                : \"a\"({number}), \"b\"({first}), \"c\"({second}), \"d\"({third}), \"S\"(0), \"D\"(0) : \"memory\");
                if (result < 0 && result > -4096) {{ errno = -result; result = -1; }} result; }})"
        )
    }

    #[test]
    fn the_interrupt_of_32_bit_programs() {
        let calls = [
            ("ptrace", interrupt(26, [0, 0, 0])),
            ("unshare", interrupt(310, [0x1000_0000, 0, 0])),
            ("semget", interrupt(393, [0, 1, 0o1600])),
            ("semget by ipc", interrupt(117, [2, 0, 1])),
            ("shmget", interrupt(395, [0, 4096, 0o1600])),
            ("msgget", interrupt(399, [0, 0o1600, 0])),
            ("keyctl", interrupt(288, [0, u32::MAX - 1, 1])),
            ("AF_VSOCK", interrupt(359, [40, 1, 0])),
            ("AF_NETLINK", interrupt(359, [16, 3, 0])),
            ("AF_ALG", interrupt(359, [38, 5, 0])),
            ("userfaultfd", interrupt(374, [1, 0, 0])),
        ];
        let calls: Vec<(&str, &str)> = calls.iter().map(|(name, call)| (*name, &**call)).collect();
        assert_closed(&calls);
    }

    #[test]
    fn the_numbers_of_x32_programs() {
        let call = |arguments: &str| format!("syscall(0x40000000 | {arguments})");
        let calls = [
            ("getpid", call("39")),
            ("ptrace", call("521, 0, 0, 0, 0")),
            ("unshare", call("272, CLONE_NEWUSER")),
            ("shmget", call("29, 0, 4096, 01600")),
            ("semget", call("64, 0, 1, 01600")),
            ("AF_VSOCK", call("41, 40, 1, 0")),
            ("keyctl", call("250, 0, -2, 1")),
        ];
        let calls: Vec<(&str, &str)> = calls.iter().map(|(name, call)| (*name, &**call)).collect();
        assert_closed(&calls);
    }
}
