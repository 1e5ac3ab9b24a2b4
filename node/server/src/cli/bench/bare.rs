//! The same program without Quorun: as a bare process, and by `docker run`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

/// Prints which interpreter runs it.
pub const WHO: &str =
    "import platform, sys\nprint(sys.executable + ' ' + platform.python_version())\n";

/// Where the bare interpreter comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// The cluster's own one where it can be reached, else the image's, else the machine's
    Auto,
    /// The image's, by chroot into a container of it; needs Docker and root
    Image,
    /// The machine's
    Host,
}

/// An interpreter: where it is, and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its path, as it sees it.
    pub path: String,
    /// Its version.
    pub version: String,
}

impl Who {
    /// Reads what [`WHO`] prints.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (path, version) = text
            .trim()
            .rsplit_once(' ')
            .with_context(|| format!("an interpreter says of itself {text:?}"))?;
        Ok(Self {
            path: path.to_owned(),
            version: version.to_owned(),
        })
    }
}

/// A bare interpreter.
#[derive(Debug)]
pub struct Bare {
    /// The words before the program's own.
    command: Vec<String>,
    /// For people.
    pub words: String,
    /// What it says of itself.
    pub who: Who,
    /// What its root costs in each run, if it has one.
    pub root_costs: Option<Duration>,
    _root: Option<Root>,
}

impl Bare {
    /// The one that is nearest to what the cluster runs.
    pub fn find(source: Source, cluster: &Who, image: &str, host: &str) -> anyhow::Result<Self> {
        // The cluster's own interpreter is one of this machine: the process executor.
        if source == Source::Auto
            && Path::new(&cluster.path).is_file()
            && let Ok(bare) = Self::of_host(&cluster.path)
            && bare.who == *cluster
        {
            return Ok(bare);
        }
        match source {
            Source::Host => Self::of_host(host),
            Source::Image => Self::of_image(image),
            Source::Auto => Self::of_image(image).or_else(|error| {
                eprintln!("bare is the machine's interpreter: {error:#}");
                Self::of_host(host)
            }),
        }
    }

    fn of_host(python: &str) -> anyhow::Result<Self> {
        let command = vec![python.to_owned()];
        let who = Who::parse(&output(&mut start(&command, WHO))?)?;
        Ok(Self {
            words: format!("the machine's {}", who.path),
            who,
            command,
            root_costs: None,
            _root: None,
        })
    }

    fn of_image(image: &str) -> anyhow::Result<Self> {
        let root = Root::of(image)?;
        let folder = root.folder.display().to_string();
        let command = ["chroot", &folder, "python3"].map(str::to_owned).to_vec();
        let who = Who::parse(&output(&mut start(&command, WHO))?)
            .context("start the image's python3 by chroot")?;
        Ok(Self {
            words: format!("the python3 of the image {image}, started by chroot"),
            who,
            command,
            root_costs: Some(chroot_costs()?),
            _root: Some(root),
        })
    }

    /// Runs a program to its end: what it printed, and how long it took from before the fork to after the end.
    pub fn run(&self, program: &str) -> anyhow::Result<(Duration, String)> {
        timed(&mut start(&self.command, program))
    }
}

fn start(command: &[String], program: &str) -> Command {
    let mut started = Command::new(&command[0]);
    started.args(&command[1..]).args(["-c", program]);
    started
}

fn timed(command: &mut Command) -> anyhow::Result<(Duration, String)> {
    let begin = Instant::now();
    let text = output(command)?;
    Ok((begin.elapsed(), text))
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {name}"))?;
    ensure!(
        output.status.success(),
        "{name} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("what {name} printed"))
}

/// What the program `chroot` adds to a run: the median of the difference to a run without.
fn chroot_costs() -> anyhow::Result<Duration> {
    const ROUNDS: usize = 41;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(timed(&mut Command::new("/bin/true"))?.0);
        let mut command = Command::new("chroot");
        with.push(timed(command.args(["/", "/bin/true"]))?.0);
    }
    with.sort();
    without.sort();
    Ok(with[ROUNDS / 2].saturating_sub(without[ROUNDS / 2]))
}

/// The files of an image, as the machine sees them: those of a container that does nothing.
#[derive(Debug)]
struct Root {
    container: String,
    folder: PathBuf,
}

impl Root {
    fn of(image: &str) -> anyhow::Result<Self> {
        let container = format!("quorun-bench-{}", std::process::id());
        let mut idle = Command::new("docker");
        idle.args(["run", "-d", "--rm", "--network", "none", "--pull", "never"])
            .args([
                "--name",
                &container,
                "--entrypoint",
                "sleep",
                image,
                "86400",
            ]);
        output(&mut idle).context("a container whose files are used")?;
        // From here on it is removed whatever happens.
        let mut root = Self {
            container,
            folder: PathBuf::new(),
        };
        let mut inspect = Command::new("docker");
        inspect.args(["inspect", "--format", "{{.GraphDriver.Data.MergedDir}}"]);
        root.folder = output(inspect.arg(&root.container))?.trim().into();
        ensure!(
            root.folder.is_dir(),
            "the files of the image {image} cannot be reached at {}",
            root.folder.display()
        );
        Ok(root)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let mut remove = Command::new("docker");
        if let Err(error) = output(remove.args(["rm", "-f", &self.container])) {
            eprintln!("the container {} is left: {error:#}", self.container);
        }
    }
}

/// `docker run --rm` of an image.
#[derive(Clone, Debug)]
pub struct DockerRun {
    image: String,
}

impl DockerRun {
    /// One that has shown that it works.
    pub fn new(image: &str) -> anyhow::Result<Self> {
        let docker = Self {
            image: image.to_owned(),
        };
        let (_, text) = docker.run("print('hello')")?;
        if text != "hello\n" {
            bail!("docker run {image} python3 printed {text:?}");
        }
        Ok(docker)
    }

    /// Runs a program in a container of its own.
    pub fn run(&self, program: &str) -> anyhow::Result<(Duration, String)> {
        let mut command = Command::new("docker");
        command
            .args([
                "run",
                "--rm",
                "--network",
                "none",
                "--memory",
                "256m",
                "--pull",
                "never",
            ])
            .args(["--entrypoint", "python3", &self.image, "-c", program]);
        timed(&mut command)
    }
}

/// How many a second, when so many threads do it one after the other for this long.
pub fn rate(
    clients: usize,
    time: Duration,
    work: impl Fn() -> anyhow::Result<()> + Sync,
) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let done: anyhow::Result<Vec<u32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = 0;
                    // One at least: a machine that is slow to start a thread is no machine that does nothing.
                    loop {
                        work()?;
                        done += 1;
                        if begin.elapsed() >= time {
                            return Ok(done);
                        }
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                let joined = thread.join();
                joined.unwrap_or_else(|_| bail!("a thread has panicked"))
            })
            .collect()
    });
    // To the end of the last one, as the cluster's jobs are counted.
    let took = begin.elapsed().as_secs_f64();
    Ok(f64::from(done?.into_iter().sum::<u32>()) / took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_interpreter_is_told_from_another() {
        let bare = Bare::of_host("python3").unwrap();
        let (_, printed) = bare.run("print('hello')").unwrap();
        assert_eq!(printed, "hello\n");
        // The cluster runs the very same.
        let same = Bare::find(Source::Auto, &bare.who, "no/such:image", "python3").unwrap();
        assert_eq!(same.who, bare.who);
        let error = bare.run("raise SystemExit(3)").unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error:#}");
        assert!(Bare::of_host("/no/such/python").is_err());
        assert!(Who::parse("nothing").is_err());
    }

    #[test]
    fn a_rate_counts_what_all_threads_have_done_and_fails_with_any() {
        let rate_of = rate(2, Duration::from_millis(1), || {
            std::thread::sleep(Duration::from_millis(2));
            Ok(())
        });
        // One each, which took at least 2 ms.
        let rate_of = rate_of.unwrap();
        assert!(rate_of > 0.0 && rate_of <= 1000.0, "{rate_of}");
        assert!(rate(2, Duration::from_secs(60), || bail!("broken")).is_err());
    }
}
