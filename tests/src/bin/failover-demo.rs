//! Shows that killing the leader loses nothing: posts jobs round the nodes of the compose cluster while the leader's
//! container is killed twice, and counts.
//!
//! ```text
//! ./deploy.sh && cargo run --release -p quorun-tests --bin failover-demo
//! ```

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bollard::query_parameters::{
    KillContainerOptions, ListContainersOptionsBuilder, StartContainerOptions,
};
use clap::Parser;
use quorun_tests::{Client, fleet, mix};
use reqwest::Method;
use serde_json::Value;
use tokio::sync::mpsc;

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long a node may take to come back.
const BACK: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

/// Posts jobs round the nodes of a cluster, kills the leader's container twice meanwhile, and counts what was lost.
#[derive(Debug, Parser)]
struct Args {
    /// The nodes, in the order of their ids
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8080,http://127.0.0.1:8081,http://127.0.0.1:8082"
    )]
    urls: Vec<String>,
    /// How many jobs
    #[arg(long, default_value_t = 300)]
    jobs: usize,
    /// How many of them are under way at one time
    #[arg(long, default_value_t = 60)]
    clients: usize,
    /// The compose project, if there is more than one with such services
    #[arg(long)]
    project: Option<String>,
    /// The compose service of node N is this and N
    #[arg(long, default_value = "node")]
    service: String,
    /// Kill nobody
    #[arg(long)]
    peace: bool,
}

type Outcome<T> = Result<T, String>;

#[tokio::main]
async fn main() -> ExitCode {
    match demonstrate(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("failover-demo: {error}");
            ExitCode::from(2)
        }
    }
}

/// The containers of the nodes.
struct Containers {
    docker: bollard::Docker,
    project: Option<String>,
    service: String,
}

impl Containers {
    async fn of(&self, node: u64) -> Outcome<String> {
        let service = format!("{}{node}", self.service);
        let mut labels = vec![format!("com.docker.compose.service={service}")];
        if let Some(project) = &self.project {
            labels.push(format!("com.docker.compose.project={project}"));
        }
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&HashMap::from([("label", labels)]))
            .build();
        let found = self.docker.list_containers(Some(options)).await;
        let found = found.map_err(|error| format!("list the containers: {error}"))?;
        match found.as_slice() {
            [one] => Ok(one.id.clone().unwrap_or_default()),
            [] => Err(format!(
                "there is no container of the compose service {service}"
            )),
            more => Err(format!(
                "{} containers are of the compose service {service}; say which --project",
                more.len()
            )),
        }
    }

    async fn kill(&self, container: &str) -> Outcome<()> {
        self.docker
            .kill_container(container, None::<KillContainerOptions>)
            .await
            .map_err(|error| format!("docker kill {container}: {error}"))
    }

    async fn start(&self, container: &str) -> Outcome<()> {
        self.docker
            .start_container(container, None::<StartContainerOptions>)
            .await
            .map_err(|error| format!("docker start {container}: {error}"))
    }
}

async fn demonstrate(args: Args) -> Outcome<bool> {
    let containers = Containers {
        docker: bollard::Docker::connect_with_defaults()
            .map_err(|error| format!("the container engine: {error}"))?,
        project: args.project,
        service: args.service,
    };
    let nodes: Vec<Client> = args.urls.iter().map(|url| Client::new(url)).collect();
    for node in &nodes {
        ready(node).await?;
    }
    let began = Instant::now();
    let run = format!(
        "demo-{:x}",
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_millis())
    );
    println!(
        "{} jobs round {} nodes, {} at one time; label {run}",
        args.jobs,
        nodes.len(),
        args.clients
    );
    let mut ends = post(&nodes, &run, args.jobs, args.clients);
    let mut told: BTreeMap<usize, Outcome<Value>> = BTreeMap::new();
    let mut kills = if args.peace {
        Vec::new()
    } else {
        vec![2 * args.jobs / 3, args.jobs / 3]
    };
    while let Some((n, end)) = ends.recv().await {
        told.insert(n, end);
        if kills.last().is_some_and(|at| told.len() >= *at) {
            kills.pop();
            println!(
                "{:>6.1} s  {} jobs have finished",
                began.elapsed().as_secs_f64(),
                told.len()
            );
            kill_leader(&nodes, &containers, began).await?;
        }
    }
    println!(
        "{:>6.1} s  every job has been answered",
        began.elapsed().as_secs_f64()
    );
    for node in &nodes {
        ready(node).await?;
    }
    count(&nodes, &run, args.jobs, &told).await
}

/// Posts all jobs, each with a key of its own, `clients` at a time.
fn post(
    nodes: &[Client],
    run: &str,
    jobs: usize,
    clients: usize,
) -> mpsc::UnboundedReceiver<(usize, Outcome<Value>)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let deadline = Instant::now() + PATIENCE;
    for client in 0..clients {
        let (sender, nodes, run) = (sender.clone(), nodes.to_vec(), run.to_owned());
        tokio::spawn(async move {
            for n in (client..jobs).step_by(clients) {
                let name = format!("{run}-{n}");
                let mut job = mix::job(n, &name);
                job["labels"] = serde_json::json!([run]);
                let end = fleet::finish(&nodes, n, &name, &job, deadline).await;
                if sender.send((n, end)).is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

/// Kills the leader's container, waits until another node leads, and starts it again.
async fn kill_leader(nodes: &[Client], containers: &Containers, began: Instant) -> Outcome<()> {
    let old = leader(nodes, None).await?;
    let container = containers.of(old).await?;
    let killed = Instant::now();
    containers.kill(&container).await?;
    println!(
        "{:>6.1} s  docker kill: node {old}, which led",
        began.elapsed().as_secs_f64()
    );
    let new = leader(nodes, Some(old)).await?;
    println!(
        "{:>6.1} s  node {new} leads, {} ms later",
        began.elapsed().as_secs_f64(),
        killed.elapsed().as_millis()
    );
    containers.start(&container).await?;
    println!(
        "{:>6.1} s  docker start: node {old}",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The node that leads, and is not `not`, as some node sees it.
async fn leader(nodes: &[Client], not: Option<u64>) -> Outcome<u64> {
    let deadline = Instant::now() + BACK;
    while Instant::now() < deadline {
        for node in nodes {
            let node = node.patience(Duration::from_secs(2));
            let request = node.request(Method::GET, "/v1/cluster");
            let Ok(answer) = Client::try_send(request).await else {
                continue;
            };
            if answer.status != 200 {
                continue;
            }
            let leader = answer.json()["leader"].as_u64();
            if let Some(leader) = leader.filter(|id| Some(*id) != not) {
                return Ok(leader);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err("no node leads".to_owned())
}

async fn ready(node: &Client) -> Outcome<()> {
    let deadline = Instant::now() + BACK;
    let mut last = String::new();
    while Instant::now() < deadline {
        match Client::try_send(node.request(Method::GET, "/readyz")).await {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(answer) => last = answer.text(),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(format!("{} is not ready: {last}", node.url()))
}

/// Asks every node for every job, and prints what became of them.
async fn count(
    nodes: &[Client],
    run: &str,
    jobs: usize,
    told: &BTreeMap<usize, Outcome<Value>>,
) -> Outcome<bool> {
    let (mut finished, mut lost, mut wrong, mut differ) = (0, 0, 0, 0);
    let mut attempts: BTreeMap<u64, usize> = BTreeMap::new();
    let mut on: BTreeMap<u64, usize> = BTreeMap::new();
    for n in 0..jobs {
        let job = match told.get(&n) {
            Some(Ok(job)) => job,
            Some(Err(error)) => {
                println!("job {n} is lost: {error}");
                lost += 1;
                continue;
            }
            None => {
                println!("job {n} is lost: nobody has answered");
                lost += 1;
                continue;
            }
        };
        finished += 1;
        if let Err(error) = mix::check(n, &format!("{run}-{n}"), job) {
            println!("job {n} is wrong: {error}");
            wrong += 1;
        }
        *attempts
            .entry(job["attempts"].as_u64().unwrap_or(0))
            .or_default() += 1;
        *on.entry(job["node"].as_u64().unwrap_or(0)).or_default() += 1;
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap_or_default());
        for node in nodes {
            let seen = node.get(&path).await;
            if seen.status != 200 || seen.json() != *job {
                println!("job {n} is another one at {}: {}", node.url(), seen.text());
                differ += 1;
            }
        }
    }
    let mut twice = 0;
    for node in nodes {
        let listed = listed(node, run).await?;
        twice += listed.saturating_sub(finished);
        lost += finished.saturating_sub(listed);
    }
    println!();
    println!("jobs                            {jobs}");
    println!("finished                        {finished}");
    println!("lost                            {lost}");
    println!("jobs there twice                {twice}");
    println!("wrong output                    {wrong}");
    println!("results that differ by node     {differ}");
    println!("attempts: jobs                  {attempts:?}");
    println!("node that ran it: jobs          {on:?}");
    Ok(finished == jobs && (lost, twice, wrong, differ) == (0, 0, 0, 0))
}

/// How many jobs of this run a node knows.
async fn listed(node: &Client, run: &str) -> Outcome<usize> {
    let mut count = 0;
    let mut path = format!("/v1/jobs?label={run}&limit=500");
    loop {
        let answer = node.get(&path).await;
        if answer.status != 200 {
            return Err(format!("{}: {}", node.url(), answer.text()));
        }
        let page = answer.json();
        count += page["jobs"].as_array().map_or(0, Vec::len);
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/jobs?label={run}&limit=500&cursor={cursor}"),
            None => return Ok(count),
        }
    }
}
