//! The files of a job: writing what was submitted, and removing whatever the job made of it.
//!
//! Both happen under the job's own user id, which takes no capability and gives no more rights than the job had. Paths are
//! walked folder by folder from an open descriptor and links are never followed.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use quorun_warden::protocol::File;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::spawn::User;

pub(crate) const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Acts as the job's user until it is dropped. The process stays root underneath (real and saved id), and no process of
/// this user exists meanwhile but, at most, the interpreter that waits for the job: it has seen nothing of it yet.
#[derive(Debug)]
pub(crate) struct ActingAs {
    changed: bool,
}

impl ActingAs {
    pub(crate) fn new(user: Option<User>) -> io::Result<Self> {
        let Some(user) = user else {
            return Ok(Self { changed: false });
        };
        rustix::thread::set_thread_res_gid(None, user.gid(), None)?;
        // From here on dropping it must undo what was done.
        let acting = Self { changed: true };
        rustix::thread::set_thread_res_uid(None, user.uid(), None)?;
        Ok(acting)
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        if self.changed {
            let uid = rustix::thread::set_thread_res_uid(None, rustix::process::Uid::ROOT, None);
            let gid = rustix::thread::set_thread_res_gid(None, rustix::process::Gid::ROOT, None);
            if uid.is_err() || gid.is_err() {
                // A warden that cannot become root again cannot do anything: with it goes the whole container.
                std::process::abort();
            }
        }
    }
}

/// Why the files of a job could not be written.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// The submission is at fault.
    Submission(String),
    /// The sandbox is.
    Sandbox(String),
}

/// Opens the folder that a job's files are written below.
pub(crate) fn open_root(root: &Path) -> Result<OwnedFd, WriteError> {
    rustix::fs::openat(CWD, root, FOLDER, Mode::empty())
        .map_err(|error| WriteError::Sandbox(format!("{}: {error}", root.display())))
}

/// What an error at writing a file means.
pub(crate) fn write_error(name: &str, error: Errno) -> WriteError {
    let message = format!("file {name:?}: {error}");
    match error {
        Errno::EXIST | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::NOSPC | Errno::FBIG => {
            WriteError::Submission(message)
        }
        _ => WriteError::Sandbox(message),
    }
}

/// Writes the files of a job below `root`.
pub(crate) fn write(root: &Path, files: &[File]) -> Result<(), WriteError> {
    let root_fd = open_root(root)?;
    for file in files {
        let parts = parts(file.name.as_bytes())
            .map_err(|reason| WriteError::Submission(format!("file {:?}: {reason}", file.name)))?;
        create(&root_fd, &parts)
            .and_then(|fd| write_all(&fd, &file.content))
            .map_err(|error| write_error(&file.name, error))?;
    }
    Ok(())
}

/// Opens a file that a job was to leave below `root`, and says how large it is: a file with content of its own, reached by
/// no link. Neither is anything else opened, nor is anybody waited for.
pub(crate) fn open(root: &Path, name: &str) -> Result<(OwnedFd, u64), String> {
    let parts = parts(name.as_bytes())?;
    let absent = |error: Errno| match error {
        Errno::NOENT => "there is no such file".to_owned(),
        Errno::LOOP | Errno::NOTDIR => {
            "it is reached by a link, or below what is no folder".to_owned()
        }
        error => error.to_string(),
    };
    let Some((name, folders)) = parts.split_last() else {
        return Err("the name is empty".into());
    };
    let mut folder = rustix::fs::openat(CWD, root, FOLDER, Mode::empty()).map_err(absent)?;
    for part in folders {
        folder = rustix::fs::openat(&folder, part, FOLDER, Mode::empty()).map_err(absent)?;
    }
    let is_file = |stat: &rustix::fs::Stat| match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(u64::try_from(stat.st_size).unwrap_or_default()),
        FileType::Symlink => Err("it is a link".to_owned()),
        FileType::Directory => Err("it is a folder".to_owned()),
        _ => Err("it is no regular file".to_owned()),
    };
    // Looked at before it is opened, because opening alone can do something to what is no file; and after, because
    // only that cannot change any more.
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    is_file(&rustix::fs::statat(&folder, name, flags).map_err(absent)?)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&folder, name, flags, Mode::empty()).map_err(absent)?;
    let size = is_file(&rustix::fs::fstat(&file).map_err(absent)?)?;
    Ok((file, size))
}

/// Splits a name into its parts, refusing all that could lead out of the box.
pub(crate) fn parts(name: &[u8]) -> Result<Vec<CString>, &'static str> {
    if name.is_empty() {
        return Err("the name is empty");
    }
    if name.starts_with(b"/") {
        return Err("the name must be relative");
    }
    name.split(|byte| *byte == b'/')
        .map(|part| match part {
            b"" => Err("the name has an empty part"),
            b"." | b".." => Err("the name has a part `.` or `..`"),
            _ => CString::new(part).map_err(|_| "the name has a NUL byte"),
        })
        .collect()
}

/// Makes the folders of a path where they are missing, and opens the last; `None` when there are none.
pub(crate) fn make_folders(root: &OwnedFd, parts: &[CString]) -> Result<Option<OwnedFd>, Errno> {
    let mut folder: Option<OwnedFd> = None;
    for part in parts {
        let parent = folder.as_ref().unwrap_or(root).as_fd();
        match rustix::fs::mkdirat(parent, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let child = rustix::fs::openat(parent, part, FOLDER, Mode::empty())?;
        folder = Some(child);
    }
    Ok(folder)
}

/// Creates a file that is not there yet, and the folders before it.
pub(crate) fn create(root: &OwnedFd, parts: &[CString]) -> Result<OwnedFd, Errno> {
    let (name, folders) = parts.split_last().ok_or(Errno::INVAL)?;
    let folder = make_folders(root, folders)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(
        folder.as_ref().unwrap_or(root),
        name,
        flags,
        Mode::from_raw_mode(0o644),
    )
}

/// Makes a link, and the folders before it.
pub(crate) fn link(root: &OwnedFd, parts: &[CString], target: &CStr) -> Result<(), Errno> {
    let (name, folders) = parts.split_last().ok_or(Errno::INVAL)?;
    let folder = make_folders(root, folders)?;
    rustix::fs::symlinkat(target, folder.as_ref().unwrap_or(root), name)
}

fn write_all(file: &OwnedFd, content: &[u8]) -> Result<(), Errno> {
    let mut rest = content;
    while !rest.is_empty() {
        match rustix::io::write(file, rest) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes everything below `root`, however deep and whatever its rights.
///
/// It never goes deeper than two levels: the folders in a folder are moved up to `root` before it is removed. So neither
/// the depth of what a job made nor the length of its paths matters.
pub(crate) fn wipe(root: &Path) -> io::Result<()> {
    let root_fd = match rustix::fs::openat(CWD, root, FOLDER, Mode::empty()) {
        Ok(fd) => fd,
        // A folder that the job may not even look into has nothing of the job's in it.
        Err(Errno::ACCESS | Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0_u64;
    loop {
        let names = entries(root_fd.as_fd())?;
        if names.is_empty() {
            return Ok(());
        }
        let mut removed = false;
        let mut failure = None;
        for name in &names {
            match remove(root_fd.as_fd(), name, &mut moved) {
                Ok(()) => removed = true,
                Err(error) => failure = Some(error),
            }
        }
        if let (false, Some(error)) = (removed, failure) {
            return Err(error.into());
        }
    }
}

/// The names in a folder.
pub(crate) fn entries(folder: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn remove(parent: BorrowedFd<'_>, name: &CStr, moved: &mut u64) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Errno::PERM);
    }
    if rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(());
    }
    // No process of the job is left, so what was a folder a moment ago still is one and chmod follows no link.
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o700), AtFlags::empty())?;
    let folder = rustix::fs::openat(parent, name, FOLDER, Mode::empty())?;
    for child in entries(folder.as_fd())? {
        match rustix::fs::unlinkat(&folder, &child, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
        if rustix::fs::unlinkat(&folder, &child, AtFlags::REMOVEDIR).is_ok() {
            continue;
        }
        // Moving a folder writes its `..`, which takes the right to write it.
        rustix::fs::chmodat(
            &folder,
            &child,
            Mode::from_raw_mode(0o700),
            AtFlags::empty(),
        )?;
        loop {
            *moved += 1;
            let target = format!(".quorun-wipe-{moved}");
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(&folder, &child, parent, target.as_str(), flags) {
                Ok(()) => break,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Whether the folder holds anything.
pub(crate) fn is_empty(root: &Path) -> io::Result<bool> {
    match rustix::fs::openat(CWD, root, FOLDER, Mode::empty()) {
        Ok(fd) => Ok(entries(fd.as_fd())?.is_empty()),
        Err(Errno::NOENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// The mounts of this container that a job could leave something in, whatever the image or the engine put there: a job's
/// user owns nothing and is in no group, so it is those that everybody may write.
pub(crate) fn writable_mounts() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mount_points(&text)
        .filter(|point| {
            rustix::fs::stat(point.as_path()).is_ok_and(|stat| {
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                    && Mode::from_raw_mode(stat.st_mode).contains(Mode::WOTH | Mode::XOTH)
            })
        })
        .collect()
}

/// The mounts that are not read-only and hold files.
fn mount_points(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let options = filesystem.nth(1)?;
        let mut mount = mount.split(' ').skip(4);
        let (point, mount_options) = (mount.next()?, mount.next()?);
        let read_only = [options, mount_options]
            .iter()
            .any(|options| options.split(',').any(|option| option == "ro"));
        let holds_no_files = matches!(kind, "proc" | "sysfs" | "cgroup" | "cgroup2" | "devpts");
        (!read_only && !holds_no_files).then(|| PathBuf::from(unescape(point)))
    })
}

/// Undoes the kernel's escapes of blanks and backslashes in mountinfo.
fn unescape(text: &str) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &[u8]) -> File {
        File {
            name: name.to_owned(),
            content: content.to_vec(),
        }
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a\0b",
        ] {
            assert!(parts(name.as_bytes()).is_err(), "{name:?}");
        }
        assert_eq!(parts(b"a/b.c/...").unwrap().len(), 3);
    }

    #[test]
    fn files_get_their_folders() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                file("a/b/c.txt", b"deep"),
                file("a/d", b""),
                file("e", &[0, 255]),
            ],
        )
        .unwrap();
        assert_eq!(
            std::fs::read(root.path().join("a/b/c.txt")).unwrap(),
            b"deep"
        );
        assert_eq!(std::fs::read(root.path().join("e")).unwrap(), [0, 255]);
    }

    #[test]
    fn a_link_is_no_folder_and_no_file_is_written_twice() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        let result = write(root.path(), &[file("link/x", b"out")]);
        assert!(
            matches!(result, Err(WriteError::Submission(_))),
            "{result:?}"
        );
        assert!(!outside.path().join("x").exists());
        let twice = write(root.path(), &[file("x", b"1"), file("x", b"2")]);
        assert!(matches!(twice, Err(WriteError::Submission(_))), "{twice:?}");
    }

    #[test]
    fn wiping_removes_whatever_it_finds_and_follows_no_link() {
        // In memory where there is such a folder, as a sandbox has it.
        let root = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("keep"), b"keep").unwrap();
        let base = root.path().to_path_buf();
        std::os::unix::fs::symlink(outside.path(), base.join("link")).unwrap();
        std::fs::write(base.join(".hidden"), b"").unwrap();
        // A name that wiping itself would choose.
        std::fs::create_dir(base.join(".quorun-wipe-1")).unwrap();
        rustix::fs::mknodat(
            CWD,
            base.join("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        // Deeper than any path may be long, with a locked folder half way.
        let mut folder = rustix::fs::openat(CWD, &base, FOLDER, Mode::empty()).unwrap();
        for _ in 0..600 {
            rustix::fs::mkdirat(&folder, "ddddddd", Mode::from_raw_mode(0o700)).unwrap();
            rustix::fs::mkdirat(&folder, "other", Mode::from_raw_mode(0o000)).unwrap();
            let child = rustix::fs::openat(&folder, "ddddddd", FOLDER, Mode::empty()).unwrap();
            rustix::fs::symlinkat("/", &child, "root").unwrap();
            folder = child;
        }
        drop(folder);
        assert!(!is_empty(&base).unwrap());
        wipe(&base).unwrap();
        assert!(is_empty(&base).unwrap());
        assert!(outside.path().join("keep").exists());
    }

    #[test]
    fn only_a_file_of_the_box_is_opened_and_nothing_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), b"secret").unwrap();
        let base = root.path();
        std::fs::create_dir_all(base.join("a/b")).unwrap();
        std::fs::write(base.join("a/b/c"), b"content").unwrap();
        std::fs::write(base.join("locked"), b"content").unwrap();
        std::os::unix::fs::symlink(outside.path(), base.join("out")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), base.join("link")).unwrap();
        std::os::unix::fs::symlink("a/b/c", base.join("inside")).unwrap();
        std::os::unix::fs::symlink("loop", base.join("loop")).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, base.join("fifo"), FileType::Fifo, mode, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(base.join("socket")).unwrap();
        let sparse = std::fs::File::create(base.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();

        assert_eq!(open(base, "a/b/c").unwrap().1, 7);
        assert_eq!(open(base, "sparse").unwrap().1, 1 << 40);
        for (name, words) in [
            ("missing", "no such file"),
            ("a/missing", "no such file"),
            ("a/b/c/d", "link"),
            ("a", "folder"),
            ("a/b", "folder"),
            ("link", "link"),
            ("inside", "link"),
            ("loop", "link"),
            ("out/secret", "link"),
            ("fifo", "no regular file"),
            ("socket", "no regular file"),
            ("../secret", "`..`"),
            ("/etc/passwd", "relative"),
            ("", "empty"),
        ] {
            let error = open(base, name).unwrap_err();
            assert!(error.contains(words), "{name}: {error}");
        }
    }

    #[test]
    fn mount_points_are_read_from_mountinfo() {
        let text = "136 119 0:60 / /box rw,nosuid - tmpfs tmpfs rw\n\
                    120 119 0:55 / /proc rw - proc proc rw\n\
                    134 121 0:54 / /dev/mqueue rw - mqueue mqueue rw\n\
                    122 119 0:61 / /ro ro,nosuid - tmpfs tmpfs rw\n\
                    123 119 0:61 / /ro2 rw,nosuid - tmpfs tmpfs ro,size=1k\n\
                    140 119 0:61 / /with\\040blank rw,nosuid master:3 - tmpfs tmpfs rw\n";
        let points: Vec<_> = mount_points(text).collect();
        assert_eq!(
            points,
            ["/box", "/dev/mqueue", "/with blank"].map(PathBuf::from)
        );
    }
}
