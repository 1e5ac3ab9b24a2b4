//! One node: a real process.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::client::Client;
use crate::{eventually, program};

/// Where programs are looked for, by nodes and by the jobs of the process executor: what belongs to one user's home
/// does not work there, because a job's home is its box.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The last lines of a log that are shown when a test fails.
const SHOWN: usize = 300;

/// What executes jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// Plain processes of this machine.
    Process,
    /// Containers.
    Docker,
    /// Nothing is executed.
    Noop,
}

impl Executor {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker => "docker",
            Self::Noop => "noop",
        }
    }
}

/// How a node joins a cluster.
#[derive(Clone, Debug)]
pub struct Join {
    /// URLs of nodes of the cluster.
    pub urls: String,
    /// Its peer port.
    pub peer: u16,
}

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its id.
    pub id: u64,
    /// The list that every node gets.
    pub peers: String,
    /// Joins a running cluster instead of forming one.
    pub join: Option<Join>,
    /// Its HTTP port.
    pub http: u16,
    /// Name of the cluster.
    pub cluster: String,
    /// What executes jobs.
    pub executor: Executor,
    /// Jobs at one time.
    pub slots: u32,
    /// Its data.
    pub data: PathBuf,
    /// The program, if it is not the one under test.
    pub program: Option<PathBuf>,
    /// More options.
    pub args: Vec<String>,
    /// More variables.
    pub env: Vec<(String, String)>,
    /// What the harness says who it is by.
    pub token: Option<String>,
}

impl Settings {
    /// The options that say which cluster the node belongs to.
    fn place(&self) -> Vec<String> {
        let given = match &self.join {
            Some(join) => vec![
                ("--join", join.urls.clone()),
                ("--peer", format!("127.0.0.1:{}", join.peer)),
            ],
            None => vec![
                ("--id", self.id.to_string()),
                ("--peers", self.peers.clone()),
                ("--cluster", self.cluster.clone()),
            ],
        };
        given
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
    }

    /// The command line of `quorun serve`.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = match &self.program {
            Some(program) => program::command_of(program),
            None => program::command(),
        };
        command
            .env("PATH", PATH)
            .arg("serve")
            .args(self.place())
            .args(["--http", &format!("127.0.0.1:{}", self.http)])
            .arg("--data")
            .arg(&self.data)
            .args(["--executor", self.executor.name()])
            .args(["--slots", &self.slots.to_string()])
            .arg("--until-stdin-closes")
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A node, running or not.
#[derive(Debug)]
pub struct Node {
    settings: Settings,
    log: PathBuf,
    child: Option<Child>,
    client: Client,
}

impl Node {
    /// A node that has not been started. It writes all its logs into one file.
    #[must_use]
    pub fn new(settings: Settings, log: PathBuf) -> Self {
        let mut client = Client::new(&format!("http://127.0.0.1:{}", settings.http));
        if let Some(token) = &settings.token {
            client = client.bearing(token);
        }
        Self {
            settings,
            log,
            child: None,
            client,
        }
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.settings.id
    }

    /// What it is started with the next time.
    pub const fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// A client of it.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Whether it was started and has not been ended by the test.
    #[must_use]
    pub const fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Everything it has logged, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Starts the process; says nothing about whether it stays.
    ///
    /// # Panics
    /// When it runs already, or cannot be started.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "node {} runs", self.id());
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("open the node's log");
        let child = self
            .settings
            .command()
            // Its end ends the node: no node outlives the test, however that ends.
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("the node's log"))
            .stderr(log)
            .spawn()
            .expect("start a node");
        self.child = Some(child);
    }

    /// How the process ended, if it has; it is then no longer there.
    ///
    /// # Panics
    /// When the process cannot be asked.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().expect("look at a node");
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// Waits until the process has ended by itself.
    pub async fn ends(&mut self) -> ExitStatus {
        let what = format!("node {} ends", self.id());
        eventually(&what, async || self.ended().ok_or("it runs")).await
    }

    /// SIGKILL: the process has no chance to do anything.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end, which must be a good one.
    ///
    /// # Panics
    /// When the node does not end, or not well.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ends().await;
        assert!(
            status.success(),
            "node {} after SIGTERM: {status}",
            self.id()
        );
    }

    /// SIGSTOP: the process is there and does nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When there is no process.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a node that runs");
        let pid = Pid::from_raw(child.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("send a signal to a node");
    }

    /// Starts the node again and waits until it takes requests and work. Whoever has one of its ports meanwhile is
    /// waited for.
    pub async fn restart(&mut self) {
        self.kill();
        let what = format!("node {} is ready again", self.id());
        eventually(&what, async || {
            if self.child.is_none() {
                self.start();
            }
            self.ready().await
        })
        .await;
    }

    /// Whether it takes requests and work, and why not.
    ///
    /// # Errors
    /// What is missing.
    ///
    /// # Panics
    /// When the process has ended for another reason than a port that was taken.
    pub async fn ready(&mut self) -> Result<(), String> {
        if let Some(status) = self.ended() {
            let log = self.log();
            let last = log.lines().last().unwrap_or_default();
            assert!(
                last.contains("cannot listen"),
                "node {} has ended ({status}): {last}",
                self.id()
            );
            return Err(last.to_owned());
        }
        let client = self.client.patience(Duration::from_secs(10));
        let request = client.request(reqwest::Method::GET, "/readyz");
        match Client::try_send(request).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.text()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Prints the end of the log.
    pub fn show_log(&self) {
        let log = self.log();
        let skipped = log.lines().count().saturating_sub(SHOWN);
        eprintln!("--- log of node {} (without {skipped} lines)", self.id());
        for line in log.lines().skip(skipped) {
            eprintln!("{line}");
        }
    }

    /// Where its data is.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.settings.data
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
