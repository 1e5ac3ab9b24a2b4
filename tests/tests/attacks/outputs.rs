//! Files that come back: what a job puts under the names that are asked for, to have something else read in their place.

use quorun_ledger::job::{OutputFile, Verdict};

use crate::fixture::{Job, Sandbox, assert_verdict, show, small};

/// Runs a job, and a normal one behind it; the files that came back.
#[track_caller]
fn files(sandbox: &Sandbox, job: &Job, verdict: Verdict) -> Vec<OutputFile> {
    let result = sandbox.run(job);
    assert_verdict(&result, verdict);
    sandbox.next_job_is_normal();
    assert!(!result.output.files.is_empty(), "{}", show(&result));
    result.output.files
}

#[test]
fn links_lead_nowhere() {
    small(|sandbox| {
        let targets = [
            "/etc/passwd",
            "/proc/1/environ",
            "/proc/1/mem",
            "/proc/1/root/etc/passwd",
            "/proc/self/exe",
            "/.quorun/quorun-warden",
            "/dev/zero",
            "/dev/stdin",
            "main.py",
            "loop",
        ];
        for target in targets {
            let source = format!(
                "import os\nos.symlink({target:?}, 'loop')\nos.mkdir('d')\nos.symlink(os.path.dirname({target:?}) or '.', 'd/up')\n"
            );
            let name = target.rsplit('/').next().unwrap_or(target);
            let job = Job::python(source)
                .output("loop")
                .output(format!("d/up/{name}"));
            for file in files(sandbox, &job, Verdict::Accepted) {
                assert!(file.missing.is_some(), "{target}: {file:?}");
                assert!(file.content.is_empty(), "{target}: {file:?}");
            }
        }
    });
}

#[test]
fn names_that_lead_out_of_the_box_are_not_followed() {
    small(|sandbox| {
        let names = [
            "/etc/passwd",
            "../etc/passwd",
            "a/../../etc/passwd",
            "",
            ".",
            "..",
            "a//b",
            "a\0b",
        ];
        let job = names
            .iter()
            .fold(Job::dash("mkdir a"), |job, name| job.output(*name));
        let files = files(sandbox, &job, Verdict::Accepted);
        assert_eq!(files.len(), names.len());
        assert!(files.iter().all(|file| file.missing.is_some()), "{files:?}");
    });
}

#[test]
fn a_name_that_changes_all_the_time_gives_a_file_or_nothing() {
    small(|sandbox| {
        // Somebody goes on swapping a file and a link until it is killed.
        let source = r#"
import os
with open("own", "w") as f:
    f.write("own")
os.symlink("/etc/passwd", "link")
if os.fork() == 0:
    os.setsid()
    os.close(1); os.close(2)
    while True:
        for name in "own", "link":
            os.link(name, "new", follow_symlinks=False)
            os.rename("new", "swapped")
            if os.path.lexists("new"):
                os.unlink("new")
while not os.path.lexists("swapped"):
    pass
"#;
        for _ in 0..10 {
            let job = Job::python(source).output("swapped");
            let file = files(sandbox, &job, Verdict::Accepted).remove(0);
            match file.missing {
                None => assert_eq!(file.content, &b"own"[..]),
                Some(reason) => assert!(reason.contains("link"), "{reason}"),
            }
        }
    });
}

#[test]
fn pipes_devices_and_endless_files_hold_nobody_up() {
    small(|sandbox| {
        let source = r#"
import os, socket
os.mkfifo("fifo")
os.mkdir("folder")
s = socket.socket(socket.AF_UNIX)
s.bind("socket")
with open("sparse", "w") as f:
    f.truncate(20 << 20)
with open("locked", "w") as f:
    f.write("locked")
os.chmod("locked", 0)
os.mkdir("shut")
with open("shut/file", "w") as f:
    f.write("shut")
os.chmod("shut", 0)
"#;
        let names = [
            "fifo",
            "folder",
            "socket",
            "locked",
            "shut/file",
            "main.py/x",
            "sparse",
        ];
        let job = names
            .iter()
            .fold(Job::python(source).output_kb(3), |job, name| {
                job.output(*name)
            });
        let files = files(sandbox, &job, Verdict::Accepted);
        let (sparse, others) = files.split_last().expect("some");
        assert!(
            others.iter().all(|file| file.missing.is_some()),
            "{others:?}"
        );
        assert_eq!((sparse.size, sparse.truncated), (20 << 20, true));
        assert_eq!(sparse.content, vec![0; 3 << 10]);
    });
}

#[test]
fn what_is_read_does_not_count_twice_in_a_sandbox_that_is_full() {
    small(|sandbox| {
        // Full folders, a file as large as there is room for, and all of it wanted as far as it goes.
        let source = r#"
import os
with open("large", "wb") as f:
    try:
        while True:
            f.write(b"x" * 65536)
    except OSError:
        pass
"#;
        let job = Job::python(source).output("large");
        let file = files(sandbox, &job, Verdict::Accepted).remove(0);
        assert!(file.truncated && !file.content.is_empty(), "{file:?}");
        assert!(file.content.iter().all(|byte| *byte == b'x'));
    });
}
