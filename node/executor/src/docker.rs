//! Sandboxes as containers: the client of the engine.
//!
//! Everything here is kept off a job's path: a container takes half a second to start, a frame to a running one a third of
//! a millisecond.

mod images;

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, MountVolumeOptions,
    RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder,
    DownloadFromContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio_util::io::StreamReader;

use crate::engine::{Key, Made, MakeError};
use crate::options::Labels;
use crate::sandbox::Link;
use crate::{task, warden};

/// How long the engine may take to answer a ping.
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// How long a started container may take until its warden is ready. Engines are slow when many containers start.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long another node may take to fill the volume before its helper is taken for dead.
const HELPER_PATIENCE: Duration = Duration::from_secs(60);
const HELPER_PAUSE: Duration = Duration::from_millis(100);

/// How long a container may take to go once its removal has begun.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);
const REMOVE_PAUSE: Duration = Duration::from_millis(50);

/// Where the volume with the warden is in a container.
const WARDEN_FOLDER: &str = "/.quorun";
const WARDEN_NAME: &str = "quorun-warden";

/// Memory that a sandbox has beyond what its jobs may use: for the warden and the frames that it holds.
const WARDEN_MEMORY_KB: u64 = 4 << 10;

/// Processes and threads in one sandbox, whatever its jobs may have: what a kernel without a per-user limit holds to.
const PIDS: i64 = 1024;

/// A folder of a sandbox holds one file for so many KiB of its memory, and some in any case. What the kernel keeps of a
/// file takes about one KiB of that memory, however empty the file is.
const KB_PER_INODE: u64 = 16;
const LEAST_INODES: u64 = 1024;

/// Since this version of its API the engine takes runtimes that it does not list, by the name of their program.
const UNLISTED_RUNTIMES: (usize, usize) = (1, 42);

/// Weight against the node's own processes (1024) when processors are short.
const CPU_SHARES: i64 = 128;

const LABEL_CLUSTER: &str = "quorun.cluster";
const LABEL_NODE: &str = "quorun.node";
const LABEL_INCARNATION: &str = "quorun.incarnation";

/// The container engine, as one node sees it.
#[derive(Debug)]
pub(crate) struct Docker {
    labels: Labels,
    cpus: f64,
    runtime: Option<String>,
    /// The engine that is connected is known to have the runtime.
    has_runtime: AtomicBool,
    /// The connection; taken away when the engine stops answering, so that the next one negotiates its version anew.
    client: Mutex<Option<bollard::Docker>>,
    /// The volume with the warden has been filled.
    volume: tokio::sync::Mutex<bool>,
    /// Containers, by name or id, that nobody uses and that the engine did not say are gone.
    leftover: Mutex<BTreeSet<String>>,
    /// Part of every container's name: no two starts of a node have it in common.
    tag: u64,
    next: AtomicU64,
}

impl Docker {
    /// Checks the settings; the engine need not be there yet.
    pub(crate) fn new(labels: &Labels, cpus: f64, runtime: Option<String>) -> Result<Self, String> {
        // A wrong DOCKER_HOST will not get right by waiting; a socket that is not there will.
        if let Err(error @ EngineError::UnsupportedURISchemeError { .. }) =
            bollard::Docker::connect_with_defaults()
        {
            return Err(format!("DOCKER_HOST: {error}"));
        }
        Ok(Self {
            labels: labels.clone(),
            cpus,
            runtime,
            has_runtime: AtomicBool::new(false),
            client: Mutex::new(None),
            volume: tokio::sync::Mutex::new(false),
            leftover: Mutex::default(),
            tag: RandomState::new().build_hasher().finish(),
            next: AtomicU64::new(1),
        })
    }

    /// Asks the engine whether it is there, and, when that is not known yet, whether it has the runtime.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let result = tokio::time::timeout(PING_PATIENCE, async {
            let client = match self.current() {
                Some(client) => client.ping().await.map(|_| client)?,
                None => self.connect().await?,
            };
            self.check_runtime(&client).await
        })
        .await;
        let reason = match result {
            Ok(Ok(fit)) => return fit,
            Ok(Err(error)) => describe(&error),
            Err(_) => format!("no answer within {PING_PATIENCE:?}"),
        };
        *self.lock() = None;
        self.has_runtime.store(false, Ordering::Relaxed);
        Err(format!("the container engine cannot be reached: {reason}"))
    }

    /// Whether sandboxes can have the runtime that they are to have; the reason if not.
    async fn check_runtime(
        &self,
        client: &bollard::Docker,
    ) -> Result<Result<(), String>, EngineError> {
        let Some(wanted) = &self.runtime else {
            return Ok(Ok(()));
        };
        if self.has_runtime.load(Ordering::Relaxed) {
            return Ok(Ok(()));
        }
        let mut known: Vec<String> = client
            .info()
            .await?
            .runtimes
            .unwrap_or_default()
            .into_keys()
            .collect();
        let version = client.client_version();
        let unlisted = wanted.contains('.')
            && (version.major_version, version.minor_version) >= UNLISTED_RUNTIMES;
        if known.contains(wanted) || unlisted {
            self.has_runtime.store(true, Ordering::Relaxed);
            return Ok(Ok(()));
        }
        known.sort_unstable();
        Ok(Err(format!(
            "the container engine has no runtime \"{wanted}\" (--runtime); it has {}",
            known.join(", ")
        )))
    }

    fn lock(&self) -> MutexGuard<'_, Option<bollard::Docker>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leftover(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.leftover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<bollard::Docker> {
        self.lock().clone()
    }

    async fn connect(&self) -> Result<bollard::Docker, EngineError> {
        let client = bollard::Docker::connect_with_defaults()?
            .negotiate_version()
            .await?;
        *self.lock() = Some(client.clone());
        Ok(client)
    }

    async fn client(&self) -> Result<bollard::Docker, EngineError> {
        match self.current() {
            Some(client) => Ok(client),
            None => self.connect().await,
        }
    }

    /// Makes a sandbox.
    pub(crate) async fn make(&self, key: &Key) -> Result<Made, MakeError> {
        let classify = |error| classify(error, &key.image);
        let client = self.client().await.map_err(classify)?;
        let mut tries = 0;
        loop {
            tries += 1;
            self.fill_volume(&client, &key.image)
                .await
                .map_err(classify)?;
            match self.make_once(&client, key).await {
                // Somebody removed the volume: the engine made an empty one in its place.
                Err(NotMade::NoWarden) if tries == 1 => *self.volume.lock().await = false,
                Err(NotMade::NoWarden) => {
                    return Err(MakeError::Other(format!(
                        "the volume {} does not hold the warden",
                        volume_name()
                    )));
                }
                Err(NotMade::Engine(error)) => return Err(classify(error)),
                Err(NotMade::Silent(reason)) => return Err(MakeError::Other(reason)),
                Ok(made) => return Ok(made),
            }
        }
    }

    async fn make_once(&self, client: &bollard::Docker, key: &Key) -> Result<Made, NotMade> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "quorun-sandbox-{}-{:08x}-{number}",
            self.labels.node, self.tag as u32
        );
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let created = client
            .create_container(Some(options), self.container(key))
            .await;
        let id = match created {
            Ok(created) => created.id,
            Err(error) => {
                // An engine that did not get to answer may have made it.
                if !matches!(error, EngineError::DockerResponseServerError { .. }) {
                    self.leftover().insert(name);
                }
                return Err(error.into());
            }
        };
        // Asked of the container: the image's name may be given to another one at any time.
        let image_id = client
            .inspect_container(&id, None::<InspectContainerOptions>)
            .await
            .ok()
            .and_then(|container| container.image);
        match self.open(client, &id).await {
            Ok(link) => Ok(Made {
                id,
                image_id,
                link,
                child: None,
            }),
            Err(error) => {
                self.remove_surely(client, &id).await;
                Err(error)
            }
        }
    }

    /// Attaches to a container and starts it.
    async fn open(&self, client: &bollard::Docker, id: &str) -> Result<Link, NotMade> {
        let options = AttachContainerOptionsBuilder::default()
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .stream(true)
            .build();
        let attached = client.attach_container(id, Some(options)).await?;
        client
            .start_container(id, None::<StartContainerOptions>)
            .await
            .map_err(|error| match &error {
                EngineError::DockerResponseServerError { message, .. }
                    if message.contains(WARDEN_FOLDER) =>
                {
                    NotMade::NoWarden
                }
                _ => NotMade::Engine(error),
            })?;
        let short = id.get(..12).unwrap_or(id).to_owned();
        // The engine marks every piece with the stream that it is from; the warden's stderr is for its own log.
        let stdout = attached.output.filter_map(move |piece| {
            std::future::ready(match piece {
                Ok(LogOutput::StdOut { message }) => Some(Ok(message)),
                Ok(LogOutput::StdErr { message }) => {
                    let text = String::from_utf8_lossy(&message);
                    tracing::debug!(sandbox = short, "{}", text.trim_end());
                    None
                }
                Ok(_) => None,
                Err(error) => Some(Err(io::Error::other(error))),
            })
        });
        let mut link = Link::new(StreamReader::new(stdout), attached.input);
        let ready = link
            .ready(START_PATIENCE)
            .await
            .map_err(|error| NotMade::Silent(format!("the warden of container {id}: {error}")))?;
        if !ready.contained {
            return Err(NotMade::Silent(format!(
                "the warden of container {id} cannot give its jobs a user of their own"
            )));
        }
        if !ready.cgroup_cpu || !ready.cgroup_memory {
            tracing::debug!(
                sandbox = id,
                ?ready,
                "counters of the cgroup are not readable"
            );
        }
        Ok(link)
    }

    /// What a sandbox may and may not. Everything that a container can be denied, is; what is allowed has its reason here.
    fn container(&self, key: &Key) -> ContainerCreateBody {
        let memory = i64::try_from((key.memory_kb + WARDEN_MEMORY_KB).saturating_mul(1024))
            .unwrap_or(i64::MAX);
        // Programs that a job compiled are executed from the box.
        let inodes = (key.memory_kb / KB_PER_INODE).max(LEAST_INODES);
        let tmpfs =
            |bytes: u64| format!("rw,exec,nosuid,nodev,mode=1777,size={bytes},nr_inodes={inodes}");
        let shm = format!(
            "rw,noexec,nosuid,nodev,mode=1777,size={},nr_inodes={LEAST_INODES}",
            task::shm_bytes(key.memory_kb)
        );
        let host = HostConfig {
            network_mode: Some("none".into()),
            ipc_mode: Some("none".into()),
            readonly_rootfs: Some(true),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".into()]),
            // To become a job's user, and to kill what runs as that user.
            cap_add: Some(vec!["SETUID".into(), "SETGID".into(), "KILL".into()]),
            // The host's own are nobody's business here.
            dns: Some(vec!["127.0.0.1".into()]),
            dns_search: Some(vec![".".into()]),
            security_opt: Some(vec!["no-new-privileges:true".into()]),
            memory: Some(memory),
            memory_swap: Some(memory),
            pids_limit: Some(PIDS),
            nano_cpus: (self.cpus > 0.0).then_some((self.cpus * 1e9) as i64),
            cpu_shares: Some(CPU_SHARES),
            tmpfs: Some(HashMap::from([
                ("/box".into(), tmpfs(task::box_bytes(key.memory_kb))),
                ("/tmp".into(), tmpfs(task::tmp_bytes(key.memory_kb))),
                // The C library's named semaphores and shared memory are files here; Python's process pools need them.
                ("/dev/shm".into(), shm),
            ])),
            mounts: Some(vec![warden_mount(true)]),
            log_config: Some(HostConfigLogConfig {
                typ: Some("none".into()),
                config: None,
            }),
            init: Some(false),
            runtime: self.runtime.clone(),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            // A sandbox ends with its stdin, and its stdin with the node: then the engine removes it by itself.
            auto_remove: Some(true),
            ..HostConfig::default()
        };
        ContainerCreateBody {
            image: Some(key.image.clone()),
            entrypoint: Some(vec![format!("{WARDEN_FOLDER}/{WARDEN_NAME}")]),
            cmd: Some(Vec::new()),
            user: Some("0:0".into()),
            working_dir: Some("/".into()),
            hostname: Some("sandbox".into()),
            network_disabled: Some(true),
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            open_stdin: Some(true),
            stdin_once: Some(true),
            tty: Some(false),
            labels: Some(self.container_labels()),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        }
    }

    fn container_labels(&self) -> HashMap<String, String> {
        HashMap::from([
            (LABEL_CLUSTER.into(), self.labels.cluster.clone()),
            (LABEL_NODE.into(), self.labels.node.to_string()),
            (
                LABEL_INCARNATION.into(),
                self.labels.incarnation.to_string(),
            ),
        ])
    }

    /// Puts the warden into its volume, if it is not there.
    ///
    /// Several nodes may do this at once on one engine. A container that is only made, never started, gives access to the
    /// volume; its name can be had once, so that whoever has it is alone.
    async fn fill_volume(&self, client: &bollard::Docker, image: &str) -> Result<(), EngineError> {
        let mut filled = self.volume.lock().await;
        if *filled {
            return Ok(());
        }
        let helper = self.make_helper(client, image).await?;
        let result = async {
            if !holds_warden(client, &helper).await {
                let options = UploadToContainerOptionsBuilder::default()
                    .path(WARDEN_FOLDER)
                    .build();
                let body = bollard::body_full(warden_archive()?);
                client
                    .upload_to_container(&helper, Some(options), body)
                    .await?;
                tracing::info!(volume = volume_name(), "put the warden into its volume");
            }
            Ok(())
        }
        .await;
        self.remove_surely(client, &helper).await;
        *filled = result.is_ok();
        result
    }

    async fn make_helper(
        &self,
        client: &bollard::Docker,
        image: &str,
    ) -> Result<String, EngineError> {
        let name = format!("quorun-warden-helper-{}", *warden::HASH);
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(vec![format!("{WARDEN_FOLDER}/{WARDEN_NAME}")]),
            network_disabled: Some(true),
            labels: Some(self.container_labels()),
            host_config: Some(HostConfig {
                network_mode: Some("none".into()),
                mounts: Some(vec![warden_mount(false)]),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let mut waited = Duration::ZERO;
        loop {
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            match client.create_container(Some(options), body.clone()).await {
                Err(EngineError::DockerResponseServerError {
                    status_code: 409, ..
                }) => {
                    if waited >= HELPER_PATIENCE {
                        tracing::warn!(name, "removing a helper that was left behind");
                        remove_container(client, &name).await;
                        waited = Duration::ZERO;
                    }
                    tokio::time::sleep(HELPER_PAUSE).await;
                    waited += HELPER_PAUSE;
                }
                result => return result.map(|created| created.id),
            }
        }
    }

    /// Removes a sandbox.
    pub(crate) async fn remove(&self, made: Made) {
        let Made { id, link, .. } = made;
        drop(link);
        match self.client().await {
            Ok(client) => self.remove_surely(&client, &id).await,
            Err(error) => {
                tracing::debug!(sandbox = id, "not removed yet: {}", describe(&error));
                self.leftover().insert(id);
            }
        }
    }

    /// Removes a container now or, if the engine fails, when it is well again.
    async fn remove_surely(&self, client: &bollard::Docker, id: &str) {
        if !remove_container(client, id).await {
            self.leftover().insert(id.to_owned());
        }
    }

    /// Whether there are containers to [`sweep`](Self::sweep).
    pub(crate) fn has_leftovers(&self) -> bool {
        !self.leftover().is_empty()
    }

    /// Removes what could not be removed when it should have been.
    pub(crate) async fn sweep(&self) {
        let leftover = std::mem::take(&mut *self.leftover());
        let client = self.client().await;
        for id in leftover {
            match &client {
                Ok(client) => self.remove_surely(client, &id).await,
                Err(_) => {
                    self.leftover().insert(id);
                }
            }
        }
    }

    /// Whether the engine saw the container run out of memory, if the container is still there to ask.
    pub(crate) async fn was_out_of_memory(&self, id: &str) -> bool {
        let inspect = async {
            let client = self.client().await.ok()?;
            let container = client.inspect_container(id, None::<InspectContainerOptions>);
            container.await.ok()?.state?.oom_killed
        };
        // An engine that hangs must not hold the job up.
        let inspected = tokio::time::timeout(PING_PATIENCE, inspect).await;
        inspected.ok().flatten().unwrap_or(false)
    }

    pub(crate) async fn remove_orphans(&self) {
        let own = self.labels.incarnation;
        self.remove_where(self.labels.node, |incarnation| incarnation < own)
            .await;
    }

    /// Removes what another node has left on this engine, in this incarnation and those before.
    pub(crate) async fn remove_orphans_of(&self, node: u64, last: u64) {
        if node != self.labels.node {
            self.remove_where(node, |incarnation| incarnation <= last)
                .await;
        }
    }

    pub(crate) async fn remove_all(&self) {
        let own = self.labels.incarnation;
        self.remove_where(self.labels.node, |incarnation| incarnation == own)
            .await;
    }

    /// Removes the containers of a node of this cluster whose incarnation is one of these.
    async fn remove_where(&self, node: u64, wanted: impl Fn(u64) -> bool) {
        let Ok(client) = self.client().await else {
            return;
        };
        let labels = vec![
            format!("{LABEL_CLUSTER}={}", self.labels.cluster),
            format!("{LABEL_NODE}={node}"),
        ];
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&HashMap::from([("label", labels)]))
            .build();
        let containers = match client.list_containers(Some(options)).await {
            Ok(containers) => containers,
            Err(error) => {
                tracing::warn!(
                    node,
                    "listing the containers of a node: {}",
                    describe(&error)
                );
                return;
            }
        };
        for container in containers {
            let incarnation = container
                .labels
                .as_ref()
                .and_then(|labels| labels.get(LABEL_INCARNATION)?.parse().ok())
                .unwrap_or(0);
            if let (Some(id), true) = (container.id, wanted(incarnation)) {
                tracing::info!(sandbox = id, node, incarnation, "removing a container");
                remove_container(&client, &id).await;
            }
        }
    }
}

/// Why a container did not become a sandbox.
#[derive(Debug)]
enum NotMade {
    /// The warden's program is not in its volume.
    NoWarden,
    Engine(EngineError),
    Silent(String),
}

impl From<EngineError> for NotMade {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

fn volume_name() -> String {
    format!("quorun-warden-{}", *warden::HASH)
}

fn warden_mount(read_only: bool) -> Mount {
    Mount {
        target: Some(WARDEN_FOLDER.into()),
        source: Some(volume_name()),
        typ: Some(MountType::VOLUME),
        read_only: Some(read_only),
        volume_options: Some(MountVolumeOptions {
            no_copy: Some(true),
            ..MountVolumeOptions::default()
        }),
        ..Mount::default()
    }
}

/// The warden as the archive that the engine wants.
fn warden_archive() -> io::Result<Bytes> {
    let mut header = tar::Header::new_gnu();
    header.set_size(warden::PROGRAM.len() as u64);
    header.set_mode(0o755);
    header.set_entry_type(tar::EntryType::Regular);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, WARDEN_NAME, warden::PROGRAM)?;
    archive.into_inner().map(Bytes::from)
}

/// Whether the volume holds exactly our warden. Read back whole: a half-written one would stop every sandbox.
async fn holds_warden(client: &bollard::Docker, helper: &str) -> bool {
    let path = format!("{WARDEN_FOLDER}/{WARDEN_NAME}");
    let options = DownloadFromContainerOptionsBuilder::default()
        .path(&path)
        .build();
    let archive: Result<Vec<Bytes>, _> = client
        .download_from_container(helper, Some(options))
        .try_collect()
        .await;
    let Ok(archive) = archive else { return false };
    let archive = archive.concat();
    let mut found = Vec::new();
    let read = tar::Archive::new(&archive[..])
        .entries()
        .and_then(|mut entries| entries.next().transpose())
        .and_then(|entry| entry.map_or(Ok(0), |mut entry| entry.read_to_end(&mut found)));
    read.is_ok() && found == warden::PROGRAM
}

/// Removes a container and returns when it is gone, whoever removes it: one whose warden has ended is removed by the engine
/// itself, maybe at this moment. Says whether it is gone.
async fn remove_container(client: &bollard::Docker, id: &str) -> bool {
    // With the nameless volumes that an image may declare; the warden's, which has a name, stays.
    let options = RemoveContainerOptionsBuilder::default()
        .force(true)
        .v(true)
        .build();
    let mut waited = Duration::ZERO;
    loop {
        match client.remove_container(id, Some(options.clone())).await {
            Ok(())
            | Err(EngineError::DockerResponseServerError {
                status_code: 404, ..
            }) => return true,
            Err(EngineError::DockerResponseServerError {
                status_code: 409, ..
            }) if waited < REMOVE_PATIENCE => {
                tokio::time::sleep(REMOVE_PAUSE).await;
                waited += REMOVE_PAUSE;
            }
            Err(error) => {
                tracing::warn!(container = id, "not removed: {}", describe(&error));
                return false;
            }
        }
    }
}

/// What an error of the engine means for the job that met it.
fn classify(error: EngineError, image: &str) -> MakeError {
    match error {
        EngineError::DockerResponseServerError {
            status_code: 404,
            message,
        } if message.to_lowercase().contains("no such image") => {
            MakeError::ImageMissing(image.to_owned())
        }
        EngineError::DockerResponseServerError { message, .. } => MakeError::Other(message),
        EngineError::JsonDataError { .. } => MakeError::Other(error.to_string()),
        other => MakeError::Unreachable(describe(&other)),
    }
}

/// An error with all its causes: the outermost alone often says nothing.
fn describe(error: &EngineError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
