//! `quorun bench baseline`: the cluster beside bare processes and `docker run`, in alternation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::bare::{Bare, DockerRun, Source, WHO, Who, rate};
use super::client::{JobView, Nodes, Outcome, Wanted, submit};
use super::cluster::{Local, LocalArgs};
use super::loops::{self, End, Sender};
use super::mix::{Expected, Jobs, Mix, Program};
use super::processor::{Look, Spent};
use super::record::Record;
use super::report::lines::{self, Line, Lines, median};
use super::report::{Report, digits, per_second};
use super::{Interrupt, OutArgs, TargetArgs, run_label};
use crate::config::ExecutorKind;

/// How long one job may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// A container is started for one of so many jobs of the others: it takes as long as many of them.
const DOCKER_EVERY: u32 = 10;
/// Jobs before the first round: connections, caches, warm sandboxes.
const WARM: u64 = 10;
/// Jobs of the rates have numbers of their own.
const RATES_FROM: u64 = 1 << 40;

/// The cluster beside bare processes and `docker run`, in alternation.
///
/// In every round the same Python program is run in each way, in turn: one at a time for the latency, then as many at a
/// time as --clients for the rate. Absolute times mean little on a machine that does other things; the differences and
/// ratios of one round do, and are printed with their least, median and largest.
#[derive(Args, Debug)]
pub struct BaselineArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Start a cluster on this machine for it instead, with this executor, and end it
    #[arg(long, value_enum, value_name = "EXECUTOR")]
    local: Option<ExecutorKind>,
    #[command(flatten)]
    cluster: LocalArgs,
    /// The program: hello, lines, cpu, memory or random
    #[arg(long, value_enum, default_value = "hello", value_name = "PROGRAM")]
    program: Program,
    /// Rounds
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: u32,
    /// Jobs one at a time in each round and way; of `docker run`, a tenth
    #[arg(long, default_value_t = 30, value_name = "N")]
    each: u32,
    /// How long each way runs as fast as it goes, in each round; 0s leaves the rates out
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration, value_name = "TIME")]
    slice: Duration,
    /// At one time, for the rates
    #[arg(long, default_value_t = 4, value_name = "N")]
    clients: usize,
    /// The bare interpreter
    #[arg(long, value_enum, default_value = "auto", value_name = "WHICH")]
    bare: Source,
    /// The machine's interpreter, where that is the bare one
    #[arg(long, default_value = "/usr/bin/python3", value_name = "FILE")]
    python: String,
    /// The image for `docker run` and for the bare interpreter [default: the language's, as the cluster says]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Leave `docker run` out
    #[arg(long)]
    skip_docker_run: bool,
    #[command(flatten)]
    pub out: OutArgs,
}

/// What one round has given.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    bare_ms: f64,
    cluster_ms: f64,
    docker_ms: Option<f64>,
    bare_rate: f64,
    cluster_rate: f64,
    docker_rate: Option<f64>,
    bare_spent: Spent,
    cluster_spent: Spent,
}

/// One of the ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Bare,
    Cluster,
    Docker,
}

/// Everything that is needed in every round.
struct Bench {
    nodes: Arc<Nodes>,
    jobs: Arc<Jobs>,
    bare: Arc<Bare>,
    docker: Option<DockerRun>,
    program: String,
    printed: String,
}

/// Runs it.
pub async fn baseline(args: BaselineArgs, interrupt: &Interrupt) -> anyhow::Result<Report> {
    args.out.check()?;
    let usable = || {
        ensure!(
            !matches!(args.program, Program::Endless | Program::Compile),
            "--program {} does not end by itself with an answer; one of hello, lines, cpu, memory, random",
            args.program.name()
        );
        ensure!(
            (1..=10_000).contains(&args.rounds),
            "--rounds {} is out of range; 1 to 10000",
            args.rounds
        );
        ensure!(
            (1..=100_000).contains(&args.each),
            "--each {} is out of range; 1 to 100000",
            args.each
        );
        ensure!(
            (1..=1000).contains(&args.clients),
            "--clients {} is out of range; 1 to 1000",
            args.clients
        );
        ensure!(
            args.local != Some(ExecutorKind::Noop),
            "--local noop executes nothing that could be compared"
        );
        Ok(())
    };
    usable().map_err(|error| super::super::usage(&error))?;
    let local = match args.local {
        Some(executor) => {
            let start = Local::start(&args.cluster, executor);
            Some(interrupt.or(start).await??)
        }
        None => None,
    };
    let urls = local.as_ref().map_or(args.target.url.clone(), Local::urls);
    let nodes = Arc::new(Nodes::new(&urls).map_err(|error| super::super::usage(&error))?);
    let measured = interrupt
        .or(all_rounds(&args, &nodes, &interrupt.asked))
        .await;
    if let Some(local) = local {
        local.end().await;
    }
    let mut report = measured??;
    report
        .settings
        .insert(0, ("nodes".to_owned(), urls.join(", ")));
    Ok(report)
}

async fn all_rounds(
    args: &BaselineArgs,
    nodes: &Arc<Nodes>,
    asked: &tokio_util::sync::CancellationToken,
) -> anyhow::Result<Report> {
    let image = match &args.image {
        Some(image) => image.clone(),
        None => image_of(nodes).await?,
    };
    let cluster = who(nodes).await?;
    let jobs = Jobs::new(Mix::only(args.program), 1, run_label());
    // The same program in every way and every time.
    let model = jobs.job(0);
    let body: Value = serde_json::from_slice(&model.body).context("the program")?;
    let program = body["source"].as_str().context("the program")?.to_owned();
    let Expected::Stdout(printed) = &model.expected else {
        bail!("{} prints nothing", args.program.name());
    };
    let bare = {
        let (source, host) = (args.bare, args.python.clone());
        let (cluster, image) = (cluster.clone(), image.clone());
        let find = move || Bare::find(source, &cluster, &image, &host);
        tokio::task::spawn_blocking(find).await??
    };
    let docker = match args.skip_docker_run {
        true => None,
        false => {
            let image = image.clone();
            let found = tokio::task::spawn_blocking(move || DockerRun::new(&image)).await?;
            match found {
                Ok(docker) => Some(docker),
                Err(error) => {
                    eprintln!("without docker run: {error:#}");
                    None
                }
            }
        }
    };
    let bench = Arc::new(Bench {
        nodes: Arc::clone(nodes),
        printed: printed.to_string(),
        jobs: Arc::new(jobs.fixed(&model)),
        bare: Arc::new(bare),
        docker,
        program,
    });
    for number in 0..WARM {
        bench.once(Way::Cluster, RATES_FROM - 1 - number).await?;
        bench.once(Way::Bare, 0).await?;
    }
    let mut rounds = Vec::new();
    for number in 0..args.rounds {
        if asked.is_cancelled() {
            break;
        }
        let round = bench.round(args, number).await?;
        eprintln!(
            "round {}: one at a time {} / {} ms, {} at a time {} / {} a second (bare / cluster)",
            number + 1,
            digits(round.bare_ms),
            digits(round.cluster_ms),
            args.clients,
            digits(round.bare_rate),
            digits(round.cluster_rate)
        );
        rounds.push(round);
    }
    ensure!(
        !rounds.is_empty(),
        "interrupted before the first round was over"
    );
    Ok(told(args, &bench, &image, &cluster, &rounds))
}

impl Bench {
    async fn round(self: &Arc<Self>, args: &BaselineArgs, number: u32) -> anyhow::Result<Round> {
        let mut ways = vec![Way::Bare, Way::Cluster];
        if self.docker.is_some() {
            ways.push(Way::Docker);
        }
        // What comes first may find the machine as the last one left it.
        let turn = usize::try_from(number).unwrap_or(0) % ways.len();
        ways.rotate_left(turn);
        let mut times: [Vec<f64>; 3] = Default::default();
        for one in 0..args.each {
            for way in &ways {
                if *way == Way::Docker && one % DOCKER_EVERY != 0 {
                    continue;
                }
                let job = u64::from(number) * u64::from(args.each) + u64::from(one);
                let took = self.once(*way, job).await?;
                times[*way as usize].push(took.as_secs_f64() * 1e3);
            }
        }
        let mut rates = [None; 3];
        let mut spent = [Spent::default(); 3];
        if !args.slice.is_zero() {
            for way in &ways {
                let before = Look::now(&self.nodes).await;
                rates[*way as usize] = Some(self.rate(*way, args, number).await?);
                spent[*way as usize] = Look::now(&self.nodes).await.since(&before);
            }
        }
        let [bare, cluster, docker] = times;
        Ok(Round {
            bare_ms: median(bare),
            cluster_ms: median(cluster),
            docker_ms: (!docker.is_empty()).then(|| median(docker)),
            bare_rate: rates[0].unwrap_or(0.0),
            cluster_rate: rates[1].unwrap_or(0.0),
            docker_rate: rates[2],
            bare_spent: spent[0],
            cluster_spent: spent[1],
        })
    }

    /// One job, alone.
    async fn once(self: &Arc<Self>, way: Way, number: u64) -> anyhow::Result<Duration> {
        if way != Way::Cluster {
            let bench = Arc::clone(self);
            return tokio::task::spawn_blocking(move || bench.process(way)).await?;
        }
        let job = self.jobs.job(number);
        let wanted = Wanted {
            first: 0,
            end: true,
            patience: PATIENCE,
        };
        let key = self.jobs.key(number);
        let begin = Instant::now();
        let sent = submit(&self.nodes, &job, &key, wanted).await;
        let took = begin.elapsed();
        match sent.outcome {
            Outcome::Finished(finished) => {
                let checked = job.expected.check(&finished);
                checked.map_err(|wrong| anyhow::anyhow!("the cluster: {wrong}"))?;
                Ok(took)
            }
            _ => bail!("the cluster gave no result: {:?}", sent.errors),
        }
    }

    /// One process of the bare or the container's kind.
    fn process(&self, way: Way) -> anyhow::Result<Duration> {
        let (took, printed) = match (way, &self.docker) {
            (Way::Docker, Some(docker)) => docker.run(&self.program)?,
            _ => self.bare.run(&self.program)?,
        };
        ensure!(printed == self.printed, "{way:?} printed {printed:?}");
        Ok(took)
    }

    /// How many a second, several at a time.
    async fn rate(
        self: &Arc<Self>,
        way: Way,
        args: &BaselineArgs,
        number: u32,
    ) -> anyhow::Result<f64> {
        let (clients, slice) = (args.clients, args.slice);
        if way != Way::Cluster {
            let bench = Arc::clone(self);
            let work = move || rate(clients, slice, || bench.process(way).map(drop));
            return tokio::task::spawn_blocking(work).await?;
        }
        let record = Record::new(Duration::ZERO);
        let end = End {
            at: Some(record.begin() + slice),
            jobs: None,
            asked: tokio_util::sync::CancellationToken::new(),
        };
        let first = RATES_FROM + (u64::from(number) << 32);
        let sender = Arc::new(Sender {
            nodes: Arc::clone(&self.nodes),
            jobs: Arc::new(self.jobs.numbered_from(first)),
            end: true,
            patience: PATIENCE,
        });
        loops::closed(sender, clients, &end, &record).await;
        let figures = record.figures();
        let counts = figures.counts;
        ensure!(
            counts.wrong + counts.gave_up + counts.refused == 0,
            "the cluster: {} wrong, {} without an answer, {} turned away: {:?}",
            counts.wrong,
            counts.gave_up,
            counts.refused,
            figures.examples
        );
        Ok(per_second(&figures))
    }
}

/// The image of Python, as the cluster has it.
async fn image_of(nodes: &Nodes) -> anyhow::Result<String> {
    let body: Value = nodes.get("/v1/languages").await?;
    let languages = body["languages"].as_array().cloned().unwrap_or_default();
    languages
        .iter()
        .find(|language| language["name"] == "python")
        .and_then(|language| language["image"].as_str())
        .map(ToOwned::to_owned)
        .context("the cluster has no language python")
}

/// Which interpreter the cluster runs.
async fn who(nodes: &Nodes) -> anyhow::Result<Who> {
    let body = json!({ "language": "python", "source": WHO }).to_string();
    let job: JobView = nodes
        .ask(Method::POST, "/v1/jobs?wait=60", Bytes::from(body))
        .await?;
    let finished = job
        .finished()
        .context("the cluster does not run a job within a minute")?;
    ensure!(
        finished.verdict == "accepted",
        "a first job got {}: {}",
        finished.verdict,
        finished.message.unwrap_or_default()
    );
    Who::parse(&finished.stdout).context("the cluster's python")
}

fn lines(rounds: &[Round], rates: bool) -> Vec<Line> {
    let mut lines = Lines::new(rounds);
    lines.line("bare, p50 ms", "bare_p50_ms", |r| Some(r.bare_ms));
    lines.line("cluster, p50 ms", "cluster_p50_ms", |r| Some(r.cluster_ms));
    lines.line("cluster over bare, ms", "p1_difference_ms", |r| {
        Some(r.cluster_ms - r.bare_ms)
    });
    lines.line("cluster / bare", "p1_ratio", |r| {
        Some(r.cluster_ms / r.bare_ms)
    });
    lines.line("docker run, p50 ms", "docker_p50_ms", |r| r.docker_ms);
    lines.line("docker run / cluster", "docker_over_cluster", |r| {
        Some(r.docker_ms? / r.cluster_ms)
    });
    if rates {
        lines.line("bare, jobs/s", "bare_per_second", |r| Some(r.bare_rate));
        lines.line("cluster, jobs/s", "cluster_per_second", |r| {
            Some(r.cluster_rate)
        });
        lines.line("cluster / bare, jobs/s", "p2_ratio", |r| {
            Some(r.cluster_rate / r.bare_rate)
        });
        lines.line("docker run, jobs/s", "docker_per_second", |r| r.docker_rate);
        lines.line(
            "cluster / docker run, jobs/s",
            "cluster_over_docker_rate",
            |r| Some(r.cluster_rate / r.docker_rate?),
        );
        let each = |processors: Option<f64>, rate: f64| Some(1e3 * processors? / rate);
        lines.line("bare, processor ms for a job", "bare_processor_ms", |r| {
            each(r.bare_spent.machine, r.bare_rate)
        });
        lines.line(
            "cluster, processor ms for a job",
            "cluster_processor_ms",
            |r| each(r.cluster_spent.machine, r.cluster_rate),
        );
        lines.line("of which the nodes", "nodes_processor_ms", |r| {
            each(r.cluster_spent.nodes, r.cluster_rate)
        });
        lines.line("cluster, processors idle %", "cluster_idle_percent", |r| {
            r.cluster_spent.idle_percent
        });
    }
    lines.all()
}

fn told(
    args: &BaselineArgs,
    bench: &Bench,
    image: &str,
    cluster: &Who,
    rounds: &[Round],
) -> Report {
    let mut report = Report::new(
        "baseline",
        "The cluster beside bare processes and docker run",
    );
    let bare = &bench.bare;
    report.set("program", args.program.name());
    report.set(
        "the cluster's python",
        format!("{} at {}", cluster.version, cluster.path),
    );
    report.set(
        "bare",
        format!("{}, version {}", bare.words, bare.who.version),
    );
    if bench.docker.is_some() {
        report.set("docker run", image);
    }
    report.set(
        "rounds",
        format!(
            "{}, each {} jobs one at a time, then {} at a time for {:?}",
            rounds.len(),
            args.each,
            args.clients,
            args.slice
        ),
    );
    if bare.who.version != cluster.version {
        report.note(format!(
            "the bare interpreter ({}) is NOT of the cluster's version ({}): the ratios compare different programs",
            bare.who.version, cluster.version
        ));
    }
    if let Some(costs) = bare.root_costs {
        report.note(format!(
            "chroot is in the bare times; by itself it takes {} ms here",
            digits(costs.as_secs_f64() * 1e3)
        ));
    }
    let lines = lines(rounds, !args.slice.is_zero());
    let note = "least, median and largest of the rounds; a ratio is of two figures of the same round. \
         Processor time is of all that ran on this machine while as many as --clients were at work";
    report.tables.push(lines::table(&lines, note));
    for line in &lines {
        let label = match line.key {
            "p1_difference_ms" => "one at a time, over bare",
            "p1_ratio" => "one at a time, cluster / bare",
            "p2_ratio" => "jobs per second, cluster / bare",
            "docker_over_cluster" => "one at a time, docker run / cluster",
            _ => continue,
        };
        let unit = if line.key == "p1_difference_ms" {
            " ms"
        } else {
            ""
        };
        report.headline(label, format!("{}{unit}", digits(line.middle())), None);
    }
    let figures = lines::json(&lines);
    report.extra.insert("baseline".to_owned(), figures.into());
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_one_round_and_missing_ways_are_left_out() {
        let round = |bare_ms, cluster_ms| Round {
            bare_ms,
            cluster_ms,
            bare_rate: 50.0,
            cluster_rate: 40.0,
            ..Round::default()
        };
        let lines = lines(&[round(10.0, 15.0), round(20.0, 22.0)], true);
        let of = |key| &lines.iter().find(|line| line.key == key).unwrap().values;
        assert_eq!(*of("p1_difference_ms"), [5.0, 2.0]);
        assert_eq!(*of("p1_ratio"), [1.5, 1.1]);
        assert_eq!(*of("p2_ratio"), [0.8, 0.8]);
        assert!(!lines.iter().any(|line| line.key.contains("docker")));
    }
}
