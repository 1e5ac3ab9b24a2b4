//! Sandboxes without isolation: the warden as a child process.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::engine::{Made, MakeError};
use crate::sandbox::Link;
use crate::warden;

/// How long a warden may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a program that was written a moment ago is tried: while another thread of this process forks, its copy of
/// the descriptor that wrote it may still be open, and the kernel says "text file busy".
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Child processes of this node.
#[derive(Debug)]
pub(crate) struct Processes {
    program: PathBuf,
    folder: PathBuf,
    next: AtomicU64,
    /// Drawn at the start.
    tag: u64,
}

impl Processes {
    /// Writes the warden's program below the data folder.
    pub(crate) fn new(data_dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(data_dir)?;
        // The warden gets absolute paths: it and its jobs run elsewhere.
        let data_dir = data_dir.canonicalize()?;
        let program = data_dir.join(format!("quorun-warden-{}", *warden::HASH));
        if std::fs::read(&program).ok().as_deref() != Some(warden::PROGRAM) {
            let unfinished = program.with_extension(format!("new-{}", std::process::id()));
            let mut file = std::fs::File::create(&unfinished)?;
            file.write_all(warden::PROGRAM)?;
            file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
            // What has its name is whole, also after a power failure.
            file.sync_all()?;
            drop(file);
            std::fs::rename(&unfinished, &program)?;
        }
        // Only one node at a time works on a data folder, and its wardens end with it: what is there is of the past.
        let folder = data_dir.join("sandboxes");
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self {
            program,
            folder,
            next: AtomicU64::new(1),
            tag: RandomState::new().build_hasher().finish(),
        })
    }

    /// The machine's own tools have no id, and may be others by the next start.
    pub(crate) fn image_id(&self) -> String {
        format!("process-{:016x}", self.tag)
    }

    pub(crate) async fn make(&self) -> Result<Made, MakeError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.join(number.to_string());
        self.make_in(&folder, number)
            .await
            .map_err(|error| MakeError::Other(format!("{}: {error}", folder.display())))
    }

    async fn make_in(&self, folder: &Path, number: u64) -> io::Result<Made> {
        let (work, tmp) = (folder.join("box"), folder.join("tmp"));
        tokio::fs::create_dir_all(&work).await?;
        tokio::fs::create_dir_all(&tmp).await?;
        let mut command = Command::new(&self.program);
        command
            .arg("--box")
            .arg(&work)
            .arg("--tmp")
            .arg(&tmp)
            .current_dir(folder)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let mut tries = 0;
        let mut child = loop {
            match command.spawn() {
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                result => break result?,
            }
        };
        let missing = || io::Error::other("a pipe of the warden is missing");
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                tracing::debug!(sandbox = number, "{line}");
            }
        });
        let mut link = Link::new(stdout, stdin);
        link.ready(PATIENCE).await.map_err(io::Error::other)?;
        Ok(Made {
            id: number.to_string(),
            image_id: Some(self.image_id()),
            link,
            child: Some(child),
        })
    }

    pub(crate) async fn remove(&self, made: Made) {
        let Made {
            id, link, child, ..
        } = made;
        // The end of its stdin is the warden's sign to kill what runs and to end; killing it outright would leave its
        // job's processes alone in the world.
        drop(link);
        if let Some(mut child) = child
            && tokio::time::timeout(PATIENCE, child.wait()).await.is_err()
        {
            tracing::warn!(sandbox = id, "the warden does not end by itself");
            let _ = child.kill().await;
        }
        self.remove_folder(&self.folder.join(&id)).await;
    }

    pub(crate) async fn remove_all(&self) {
        self.remove_folder(&self.folder).await;
    }

    async fn remove_folder(&self, folder: &Path) {
        match tokio::fs::remove_dir_all(folder).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("removing {}: {error}", folder.display());
            }
            _ => {}
        }
    }
}
