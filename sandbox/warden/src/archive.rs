//! What a box holds, kept outside of it: taken once after the compile step, and put back for every further run.
//!
//! It lies in memory that has no name and no path, so that no job can reach it, and that counts into the sandbox's memory
//! limit as everything else does. It is not mapped: it does not show in what the kernel reports as a program's own memory.
//!
//! The form, which also travels to the node and back: for each entry a length (u32, big endian), a postcard encoding of an
//! [`Entry`] of that length, and, for a file, its bytes.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::files::{self, FOLDER, WriteError};

/// More files, folders and links than this are not held.
const MAX_ENTRIES: usize = 10_000;

/// Folders within folders beyond this, and paths that do not fit into [`MAX_HEADER`], are not held.
const MAX_DEPTH: usize = 64;

/// No encoding of an entry is longer than this, bytes: a path of the kernel's longest and the words around it.
const MAX_HEADER: usize = 16 << 10;

/// One thing in a box. Paths are relative to the box and in the order in which they can be made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Entry {
    Folder {
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    File {
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// Permission bits.
        mode: u32,
        length: u64,
    },
    Link {
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
    },
}

/// An archive of a box.
#[derive(Debug)]
pub(crate) struct Archive {
    file: File,
    length: u64,
}

/// Why a box cannot be held.
#[derive(Debug)]
pub(crate) enum HoldError {
    /// It holds more than it may.
    TooLarge(u64),
    /// More entries, or deeper ones, than [`MAX_ENTRIES`] and [`MAX_DEPTH`].
    TooMany,
    /// Something that is neither a file nor a folder nor a link.
    Special(String),
    /// It cannot be read or copied.
    Io(io::Error),
}

impl fmt::Display for HoldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(limit) => write!(f, "the files take more than {} KiB", limit / 1024),
            Self::TooMany => write!(
                f,
                "more than {MAX_ENTRIES} files, folders more than {MAX_DEPTH} deep, or paths that are too long"
            ),
            Self::Special(name) => write!(f, "{name} is neither a file nor a folder nor a link"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for HoldError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for HoldError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl Archive {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create(c"archive", MemfdFlags::CLOEXEC)?;
        Ok(Self {
            file: fd.into(),
            length: 0,
        })
    }

    /// Takes everything below `root`, where no process runs any more.
    pub(crate) fn of(root: &Path, limit: u64) -> Result<Self, HoldError> {
        let mut archive = Self::new()?;
        let fd = rustix::fs::openat(CWD, root, FOLDER, Mode::empty())?;
        let mut walk = Walk {
            archive: &mut archive,
            limit,
            entries: 0,
        };
        walk.folder(&fd, &mut Vec::new(), 0)?;
        Ok(archive)
    }

    /// Its length, bytes.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// Adds what the node sent.
    pub(crate) fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.length)?;
        self.length += data.len() as u64;
        Ok(())
    }

    /// Reads from some place on; 0 at the end.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    /// Makes everything anew below `root`.
    pub(crate) fn restore(&mut self, root: &Path) -> Result<(), WriteError> {
        let broken = |what: &str| WriteError::Sandbox(format!("the archive of the box: {what}"));
        let failed = |error: io::Error| broken(&error.to_string());
        let root_fd = files::open_root(root)?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut rest = self.length;
        let mut header = Vec::new();
        while rest > 0 {
            let mut length = [0; 4];
            self.file.read_exact(&mut length).map_err(failed)?;
            let length = u32::from_be_bytes(length) as usize;
            if length > MAX_HEADER {
                return Err(broken("an entry is too long"));
            }
            header.resize(length, 0);
            self.file.read_exact(&mut header).map_err(failed)?;
            let entry: Entry =
                postcard::from_bytes(&header).map_err(|error| broken(&error.to_string()))?;
            let content = self.make(&root_fd, &entry)?;
            rest = rest
                .checked_sub(4 + length as u64 + content)
                .ok_or_else(|| broken("it ends too early"))?;
        }
        Ok(())
    }

    /// Makes one thing, and says how many bytes of content it had.
    fn make(&mut self, root: &OwnedFd, entry: &Entry) -> Result<u64, WriteError> {
        let (Entry::Folder { path } | Entry::File { path, .. } | Entry::Link { path, .. }) = entry;
        let parts = files::parts(path)
            .map_err(|reason| WriteError::Sandbox(format!("the archive of the box: {reason}")))?;
        let failed = |error: Errno| files::write_error(&String::from_utf8_lossy(path), error);
        match entry {
            Entry::Folder { .. } => {
                files::make_folders(root, &parts).map_err(failed)?;
                Ok(0)
            }
            Entry::Link { target, .. } => {
                let target = CString::new(target.as_slice()).map_err(|_| failed(Errno::INVAL))?;
                files::link(root, &parts, &target).map_err(failed)?;
                Ok(0)
            }
            Entry::File { mode, length, .. } => {
                let mut file = File::from(files::create(root, &parts).map_err(failed)?);
                let copied = io::copy(&mut (&self.file).take(*length), &mut file)
                    .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
                if copied != *length {
                    return Err(WriteError::Sandbox(
                        "the archive of the box: it ends too early".into(),
                    ));
                }
                rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777)).map_err(failed)?;
                Ok(copied)
            }
        }
    }

    fn push(&mut self, entry: &Entry) -> Result<(), HoldError> {
        let header = postcard::to_stdvec(entry).map_err(io::Error::other)?;
        // Nothing may be held that could not be restored.
        if header.len() > MAX_HEADER {
            return Err(HoldError::TooMany);
        }
        let length = u32::try_from(header.len()).map_err(io::Error::other)?;
        self.append(&length.to_be_bytes())?;
        self.append(&header)?;
        Ok(())
    }
}

struct Walk<'a> {
    archive: &'a mut Archive,
    limit: u64,
    entries: usize,
}

impl Walk<'_> {
    fn folder(
        &mut self,
        folder: &OwnedFd,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), HoldError> {
        let mut names = files::entries(folder.as_fd())?;
        // The order of a folder is of no meaning; equal boxes shall give equal archives.
        names.sort();
        let base = path.len();
        for name in names {
            self.entries += 1;
            if self.entries > MAX_ENTRIES || depth >= MAX_DEPTH {
                return Err(HoldError::TooMany);
            }
            if base > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            self.one(folder.as_fd(), &name, path, depth)?;
            path.truncate(base);
        }
        Ok(())
    }

    fn one(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), HoldError> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.archive.push(&Entry::Folder { path: path.clone() })?;
                let folder = rustix::fs::openat(parent, name, FOLDER, Mode::empty())?;
                self.folder(&folder, path, depth + 1)?;
            }
            FileType::RegularFile => {
                let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
                if self.archive.len().saturating_add(length) > self.limit {
                    return Err(HoldError::TooLarge(self.limit));
                }
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(parent, name, flags, Mode::empty())?);
                self.archive.push(&Entry::File {
                    path: path.clone(),
                    mode: stat.st_mode & 0o777,
                    length,
                })?;
                self.content(&file, length)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
                self.archive.push(&Entry::Link {
                    path: path.clone(),
                    target: target.into_bytes(),
                })?;
            }
            _ => {
                let name = String::from_utf8_lossy(path).into_owned();
                return Err(HoldError::Special(name));
            }
        }
        if self.archive.len() > self.limit {
            return Err(HoldError::TooLarge(self.limit));
        }
        Ok(())
    }

    fn content(&mut self, file: &File, length: u64) -> Result<(), HoldError> {
        let mut target = &self.archive.file;
        target.seek(SeekFrom::Start(self.archive.length))?;
        let copied = io::copy(&mut file.take(length), &mut target)?;
        target.flush()?;
        if copied != length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.archive.length += copied;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn filled() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        std::fs::create_dir(root.path().join("empty")).unwrap();
        std::fs::write(root.path().join("a/b/data"), vec![7; 200_000]).unwrap();
        std::fs::write(root.path().join("main"), b"program").unwrap();
        let executable = std::fs::Permissions::from_mode(0o751);
        std::fs::set_permissions(root.path().join("main"), executable).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("a/link")).unwrap();
        root
    }

    #[test]
    fn a_box_comes_back_as_it_was() {
        let from = filled();
        let taken = Archive::of(from.path(), 1 << 20).unwrap();
        // As it travels: in pieces, through the node.
        let mut archive = Archive::new().unwrap();
        let mut buffer = [0; 1000];
        loop {
            let length = taken.read_at(&mut buffer, archive.len()).unwrap();
            if length == 0 {
                break;
            }
            archive.append(&buffer[..length]).unwrap();
        }
        assert_eq!(archive.len(), taken.len());
        for _ in 0..2 {
            let to = tempfile::tempdir().unwrap();
            archive.restore(to.path()).unwrap();
            assert_eq!(
                std::fs::read(to.path().join("a/b/data")).unwrap(),
                vec![7; 200_000]
            );
            let main = to.path().join("main");
            assert_eq!(std::fs::read(&main).unwrap(), b"program");
            assert_eq!(
                main.metadata().unwrap().permissions().mode() & 0o7777,
                0o751
            );
            assert!(to.path().join("empty").is_dir());
            let target = std::fs::read_link(to.path().join("a/link")).unwrap();
            assert_eq!(target, Path::new("/etc/passwd"));
        }
    }

    #[test]
    fn equal_boxes_give_equal_archives() {
        let bytes = |root: &Path| {
            let archive = Archive::of(root, 1 << 20).unwrap();
            let mut bytes = vec![0; usize::try_from(archive.len()).unwrap()];
            archive.file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert_eq!(bytes(filled().path()), bytes(filled().path()));
    }

    #[test]
    fn what_cannot_be_held_is_refused() {
        let root = filled();
        let large = Archive::of(root.path(), 199_999);
        assert!(
            matches!(large, Err(HoldError::TooLarge(199_999))),
            "{large:?}"
        );
        rustix::fs::mknodat(
            CWD,
            root.path().join("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let special = Archive::of(root.path(), 1 << 20);
        assert!(matches!(special, Err(HoldError::Special(name)) if name == "fifo"));
        // Within the depth, but with names so long that the path does not fit into an entry.
        let long = tempfile::tempdir().unwrap();
        let mut folder = rustix::fs::openat(CWD, long.path(), FOLDER, Mode::empty()).unwrap();
        let name = "n".repeat(255);
        for _ in 0..MAX_DEPTH {
            rustix::fs::mkdirat(&folder, &name, Mode::from_raw_mode(0o700)).unwrap();
            folder = rustix::fs::openat(&folder, &name, FOLDER, Mode::empty()).unwrap();
        }
        let held = Archive::of(long.path(), 1 << 20);
        assert!(matches!(held, Err(HoldError::TooMany)), "{held:?}");
        files::wipe(long.path()).unwrap();
        let deep = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(deep.path().join("d/".repeat(MAX_DEPTH + 1))).unwrap();
        assert!(matches!(
            Archive::of(deep.path(), 1 << 20),
            Err(HoldError::TooMany)
        ));
    }

    #[test]
    fn nonsense_and_paths_that_lead_out_are_refused() {
        let to = tempfile::tempdir().unwrap();
        let mut nonsense = Archive::new().unwrap();
        nonsense.append(&[0, 0, 0, 2, 250, 250]).unwrap();
        assert!(nonsense.restore(to.path()).is_err());
        let mut short = Archive::new().unwrap();
        let file = Entry::File {
            path: b"x".to_vec(),
            mode: 0o644,
            length: 100,
        };
        short.push(&file).unwrap();
        short.append(b"only this").unwrap();
        assert!(short.restore(to.path()).is_err());
        let mut out = Archive::new().unwrap();
        out.push(&Entry::Folder {
            path: b"../out".to_vec(),
        })
        .unwrap();
        assert!(out.restore(to.path()).is_err());
        assert!(!to.path().join("../out").exists());
        // A file below a link, wherever the link leads.
        let mut through = Archive::new().unwrap();
        let (path, target) = (
            b"l".to_vec(),
            to.path().as_os_str().as_encoded_bytes().to_vec(),
        );
        through.push(&Entry::Link { path, target }).unwrap();
        through
            .push(&Entry::File {
                path: b"l/through".to_vec(),
                mode: 0o644,
                length: 0,
            })
            .unwrap();
        assert!(through.restore(to.path()).is_err());
        assert!(!to.path().join("through").exists());
    }
}
