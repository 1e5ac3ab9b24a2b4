//! A cluster of etcd that the benchmark starts for itself beside that of Quorun, and ends.
//!
//! It has etcd's defaults: each put is in the logs of a majority, fsynced, before it is answered. [`puts`] are the load.

pub mod puts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::{Child, Command};

use super::super::local::{self, Folder, Node, PEER_OFFSET};
use super::cluster::{first_end, last_lines};
use puts::Connection;

/// How long the nodes may take until they have a leader and answer.
const START: Duration = Duration::from_secs(60);
/// How long the program may take to say what it is.
const SAY: Duration = Duration::from_secs(10);
/// Pause between two looks whether a node is ready.
const LOOK: Duration = Duration::from_millis(50);
/// What the program says of itself begins with this.
const BANNER: &str = "etcd Version: ";
/// Variables of the environment from which etcd takes settings; all but the one without which it refuses some machines.
const SETTINGS: (&str, &str) = ("ETCD_", "ETCD_UNSUPPORTED_ARCH");

/// An etcd that can be started.
#[derive(Clone, Debug)]
pub struct Etcd {
    program: PathBuf,
    /// As it says.
    pub version: String,
}

impl Etcd {
    /// Looks whether there is such a program, and whether it is etcd.
    pub async fn find(program: &Path) -> anyhow::Result<Self> {
        let shown = program.display();
        let mut command = command(program);
        command
            .arg("--version")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(SAY, command.output())
            .await
            .with_context(|| format!("--etcd {shown}: --version did not end within {SAY:?}"))?
            .with_context(|| format!("--etcd {shown} cannot be started"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version = said.lines().find_map(|line| line.strip_prefix(BANNER));
        let version = version
            .filter(|_| output.status.success())
            .with_context(|| format!("--etcd {shown} is not etcd, as its --version says"))?;
        Ok(Self {
            program: program.to_owned(),
            version: version.trim().to_owned(),
        })
    }
}

/// The program, without settings from this environment.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let (prefix, kept) = SETTINGS;
        if name.as_encoded_bytes().starts_with(prefix.as_bytes()) && name != kept {
            command.env_remove(name);
        }
    }
    command
}

/// Where the nodes listen and keep their data.
#[derive(Clone, Debug)]
struct Plan {
    nodes: u16,
    client_port: u16,
    data: PathBuf,
}

impl Plan {
    fn client(&self, id: u16) -> String {
        format!("127.0.0.1:{}", self.client_port + id - 1)
    }

    fn peer(&self, id: u16) -> String {
        format!(
            "http://127.0.0.1:{}",
            self.client_port + PEER_OFFSET + id - 1
        )
    }

    fn log_file(&self, id: u16) -> PathBuf {
        self.data.join(format!("etcd{id}.log"))
    }

    /// What a node is started with: addresses and names, and nothing that changes how it works.
    fn arguments(&self, id: u16) -> Vec<(&'static str, String)> {
        let client = format!("http://{}", self.client(id));
        let cluster: Vec<_> = (1..=self.nodes)
            .map(|id| format!("etcd{id}={}", self.peer(id)))
            .collect();
        vec![
            ("--name", format!("etcd{id}")),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", self.peer(id)),
            ("--initial-advertise-peer-urls", self.peer(id)),
            ("--initial-cluster", cluster.join(",")),
            ("--initial-cluster-state", "new".to_owned()),
            (
                "--initial-cluster-token",
                format!("bench-{}", std::process::id()),
            ),
            // 3.4 logs in another way by default, to which a level means nothing.
            ("--logger", "zap".to_owned()),
            ("--log-level", "error".to_owned()),
        ]
    }

    fn start(&self, etcd: &Etcd, id: u16) -> anyhow::Result<Node> {
        let (out, err) = local::log_into(&self.log_file(id))?;
        let mut command = command(&etcd.program);
        for (option, value) in self.arguments(id) {
            command.args([option, &value]);
        }
        let child = command
            .arg("--data-dir")
            .arg(self.data.join(format!("etcd{id}")))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // Ctrl-C at a terminal is for this program alone, which ends them.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", etcd.program.display()))?;
        Ok(Node::new(id, child))
    }
}

/// Nodes of etcd on this machine that end with this value.
#[derive(Debug)]
pub struct LocalEtcd {
    plan: Plan,
    nodes: BTreeMap<u16, Node>,
    guard: Child,
    /// After the nodes, so that it goes when they have gone.
    _folder: Folder,
}

impl LocalEtcd {
    /// Starts nodes and waits until all of them answer, which takes a leader.
    pub async fn start(etcd: &Etcd, nodes: u16) -> anyhow::Result<Self> {
        let folder = Folder::new("bench-etcd")?;
        let plan = Plan {
            nodes,
            client_port: local::free_ports(nodes)?,
            data: folder.path().to_path_buf(),
        };
        eprintln!(
            "starting {nodes} nodes of etcd {} on ports from {}, data in {}",
            etcd.version,
            plan.client_port,
            plan.data.display()
        );
        let mut started = BTreeMap::new();
        for id in 1..=nodes {
            started.insert(id, plan.start(etcd, id)?);
        }
        let pids: Vec<u32> = started.values().map(Node::pid).collect();
        let mut cluster = Self {
            guard: guard(&pids)?,
            plan,
            nodes: started,
            _folder: folder,
        };
        match cluster.ready().await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                cluster.end().await;
                Err(error)
            }
        }
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let plan = self.plan.clone();
        tokio::select! {
            ready = plan.all_ready() => ready,
            error = self.ended() => Err(error),
        }
    }

    /// Returns when a node has ended by itself.
    pub async fn ended(&mut self) -> anyhow::Error {
        let (id, status) = first_end(self.nodes.values_mut()).await;
        let log = last_lines(&self.plan.log_file(id));
        anyhow::anyhow!("node {id} of etcd has ended by itself ({status}):\n{log}")
    }

    /// Where clients reach the nodes: host and port.
    pub fn addresses(&self) -> Vec<String> {
        (1..=self.plan.nodes)
            .map(|id| self.plan.client(id))
            .collect()
    }

    /// The processes of its nodes.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.values().map(Node::pid).collect()
    }

    /// Ends the nodes at once, since nobody wants their data any more, and removes it.
    pub async fn end(mut self) {
        // The guard first: later the processes' numbers may be those of others.
        let _ = self.guard.kill().await;
        for node in self.nodes.values_mut() {
            let _ = node.child.kill().await;
        }
    }
}

impl Drop for LocalEtcd {
    /// What was not ended well: the benchmark failed, or was told to end at once.
    fn drop(&mut self) {
        let _ = self.guard.start_kill();
        for node in self.nodes.values_mut() {
            let _ = node.child.start_kill();
        }
    }
}

impl Plan {
    async fn all_ready(&self) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + START;
        for id in 1..=self.nodes {
            let ready = tokio::time::timeout_at(deadline, self.ready(id)).await;
            if ready.is_err() {
                let log = last_lines(&self.log_file(id));
                bail!("node {id} of etcd did not come up within {START:?}:\n{log}");
            }
        }
        Ok(())
    }

    /// Waits until a node answers a read that a majority has to agree to.
    async fn ready(&self, id: u16) {
        loop {
            if let Ok(mut connection) = Connection::open(&self.client(id)).await
                && connection.count("").await.is_ok()
            {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Ends these processes when this program has ended without having done so, killed for example: unlike Quorun's nodes, those
/// of etcd do not end when their stdin is closed. This one does, and takes them along.
fn guard(pids: &[u32]) -> anyhow::Result<Child> {
    ensure!(!pids.contains(&0), "etcd has ended at once");
    Command::new("/bin/sh")
        .args(["-c", "read -r _; kill -9 \"$@\"", "sh"])
        .args(pids.iter().map(u32::to_string))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("start /bin/sh")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_told_of_each_other_and_nothing_else() {
        let plan = Plan {
            nodes: 2,
            client_port: 13_000,
            data: PathBuf::from("/data"),
        };
        let options: Vec<_> = plan
            .arguments(2)
            .into_iter()
            .map(|(option, value)| format!("{option}={value}"))
            .collect();
        let expected = [
            "--name=etcd2".to_owned(),
            "--listen-client-urls=http://127.0.0.1:13001".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:13001".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:23001".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:23001".to_owned(),
            "--initial-cluster=etcd1=http://127.0.0.1:23000,etcd2=http://127.0.0.1:23001"
                .to_owned(),
            "--initial-cluster-state=new".to_owned(),
            format!("--initial-cluster-token=bench-{}", std::process::id()),
            "--logger=zap".to_owned(),
            "--log-level=error".to_owned(),
        ];
        assert_eq!(options, expected);
    }

    #[tokio::test]
    async fn what_is_not_etcd_is_not_started() {
        for (program, words) in [
            (
                "/there/is/no/etcd",
                "--etcd /there/is/no/etcd cannot be started",
            ),
            ("/bin/true", "--etcd /bin/true is not etcd"),
            ("/bin/false", "--etcd /bin/false is not etcd"),
        ] {
            let error = Etcd::find(Path::new(program)).await.unwrap_err();
            assert!(format!("{error:#}").contains(words), "{error:#}");
        }
    }

    /// A guard whose stdin is closed, as the kernel does it when this program is gone, takes along what it guards.
    #[tokio::test]
    async fn a_guard_ends_what_it_guards() {
        let mut guarded = Command::new("/bin/sleep")
            .arg("600")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut guard = guard(&[guarded.id().unwrap()]).unwrap();
        assert!(guarded.try_wait().unwrap().is_none());
        drop(guard.stdin.take());
        let ended = tokio::time::timeout(SAY, guarded.wait()).await;
        assert!(!ended.expect("it ends").unwrap().success());
        guard.wait().await.unwrap();
    }
}
