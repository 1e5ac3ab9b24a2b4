//! Paths: what is submitted under them, what is linked to them, and which rights files carry.

use quorun_ledger::job::Verdict;

use crate::fixture::{After, Job, Sandbox, assert_verdict, show, small, text};

/// Leaves links under the names that the next jobs' files have, and then runs a job with files of these names.
#[track_caller]
fn assert_written_afresh(sandbox: &Sandbox, target: &str) {
    let attack = format!(
        r#"
import os
for name in "main.pl", "main.py", "main.c", "main", "data", "folder", "folder2", "main.sh", "..x":
    for top in "/box", "/tmp":
        path = f"{{top}}/{{name}}"
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink("{target}", path)
print("left")
"#
    );
    let printed = sandbox.attack_prints(After::Kept, &Job::python(attack));
    assert_eq!(printed, "left\n");
}

#[test]
fn links_to_files_under_the_names_of_the_next_sources() {
    small(|sandbox| {
        for target in [
            "/etc/passwd",
            "/proc/1/root",
            "/proc/1/fd/1",
            "/.quorun/quorun-warden",
            "/box",
            "main.py",
            "/dev/full",
        ] {
            assert_written_afresh(sandbox, target);
            let look = r#"
import os, stat
for name in "main.py", "data", "folder/data", "folder2/a/b":
    state = os.lstat(name)
    print(name, stat.S_ISREG(state.st_mode), state.st_uid == os.getuid(), state.st_nlink, len(open(name).read()) > 0)
print(sorted(os.listdir("/box")), os.listdir("/tmp"))
"#;
            let job = Job::python(look)
                .file("data", "data")
                .file("folder/data", "data")
                .file("folder2/a/b", "data");
            let printed = sandbox.attack_prints(After::Kept, &job);
            assert_eq!(
                printed,
                "main.py True True 1 True\ndata True True 1 True\nfolder/data True True 1 True\n\
                 folder2/a/b True True 1 True\n['data', 'folder', 'folder2', 'main.py'] []\n"
            );
        }
    });
}

#[test]
fn names_that_lead_out_of_the_box_are_refused() {
    small(|sandbox| {
        let long = "x".repeat(256);
        let deep = "d/".repeat(3000) + "x";
        for name in [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "/box/x",
            "//x",
            "../x",
            "../../../../proc/1/root/x",
            "a/../../x",
            "a/..",
            "./x",
            "a//b",
            "a/",
            "a\0b",
            "\0",
            "/proc/self/root/x",
            // Not out of it, but no more possible.
            &long,
            // Twice, and as a file and a folder.
            "main.py",
            "main.py/x",
        ] {
            let job = Job::python("print('ran')").file(name, "content");
            let result = sandbox.run(&job);
            assert_verdict(&result, Verdict::RuntimeError);
            assert_eq!(text(&result), "", "{name:?}: {}", show(&result));
            let message = result.outcome.message.as_deref().unwrap_or_default();
            assert!(message.contains("file "), "{name:?}: {}", show(&result));
        }
        sandbox.next_job_is_normal();
        // Each part is walked by itself: depth alone is no fault.
        let job = Job::python("print('ran')").file(deep, "content");
        assert_eq!(sandbox.attack_prints(After::Kept, &job), "ran\n");
    });
}

#[test]
fn names_that_only_look_like_trouble_are_names() {
    small(|sandbox| {
        let names = [
            "...",
            "..x",
            "-rf",
            "a b",
            "\n",
            "$(id)",
            "ü",
            "C:\\x",
            "*",
            "~",
            "%2e%2e",
            ".quorun-wipe-1",
        ];
        let job = names.iter().fold(
            Job::python(
                "import os, sys\nprint(sorted(os.listdir()) == sorted(sys.argv[1:] + ['main.py']))",
            ),
            |job, name| job.file(*name, "content").arg(name),
        );
        assert_eq!(sandbox.attack_prints(After::Kept, &job), "True\n");
    });
}

#[test]
fn hard_links_to_what_is_not_the_jobs() {
    small(|sandbox| {
        let attack = r#"
import errno, os
for target in "/etc/passwd", "/etc/shadow", "/.quorun/quorun-warden", "/usr/bin/python3", "/proc/1/environ", "/proc/self/exe", "/dev/null":
    for follow in True, False:
        for name in "/box/link", "/tmp/link":
            try:
                os.link(target, name, follow_symlinks=follow)
                print(target, name, "made")
                os.unlink(name)
            except OSError as error:
                assert error.errno in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS), error
print("done")
"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::python(attack));
        assert_eq!(printed, "done\n");
    });
}

#[test]
fn no_program_of_the_image_gives_rights() {
    small(|sandbox| {
        let search = r#"
import os, stat
found, looked = [], 0
for top in os.listdir("/"):
    if top in ("proc", "sys"):
        continue
    for folder, folders, names in os.walk("/" + top):
        for name in names:
            path = os.path.join(folder, name)
            try:
                mode = os.lstat(path).st_mode
                if not stat.S_ISREG(mode):
                    continue
                looked += 1
                if mode & (stat.S_ISUID | stat.S_ISGID):
                    found.append(path)
                if mode & 0o111 and "security.capability" in os.listxattr(path):
                    found.append(path)
            except OSError:
                pass
print(found, looked > 1000)
"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::python(search));
        assert_eq!(printed, "[] True\n");
    });
}

#[test]
fn a_setuid_program_of_its_own_changes_nothing() {
    small(|sandbox| {
        let attack = r#"
cp /usr/bin/id own && chmod 6777 own || exit 1
[ "$(./own -u)" = "$(id -u)" ] && [ "$(./own -g)" = "$(id -g)" ] && echo same
grep -E '^(NoNewPrivs|CapInh|CapPrm|CapEff|CapAmb):' /proc/self/status | tr -d '\t'
chown 0 own 2> /dev/null && echo given away
chgrp 0 own 2> /dev/null && echo given away
echo done
"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::bash(attack));
        assert_eq!(
            printed,
            "same\nCapInh:0000000000000000\nCapPrm:0000000000000000\nCapEff:0000000000000000\n\
             CapAmb:0000000000000000\nNoNewPrivs:1\ndone\n"
        );
    });
}

#[test]
fn what_only_root_may_read_is_not_read() {
    small(|sandbox| {
        let attack = r#"
import os
for path in ["/etc/shadow", "/etc/gshadow", "/root", "/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list", "/dev/mem",
             "/dev/kmsg", "/dev/vda", "/dev/sda", "/sys/kernel/security", "/sys/firmware/acpi", "/proc/sysrq-trigger"]:
    try:
        content = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(10)
        if content:
            print(path, content)
    except OSError:
        pass
for path in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches",
             "/proc/sys/net/ipv4/ip_forward", "/sys/kernel/uevent_helper", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
             "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cgroup.procs", "/etc/hosts", "/etc/resolv.conf", "/etc/ld.so.preload"]:
    try:
        open(path, "r+b").close()
        print(path, "opened for writing")
    except OSError:
        pass
print("done")
"#;
        let printed = sandbox.attack_prints(After::Kept, &Job::python(attack));
        assert_eq!(printed, "done\n");
    });
}
