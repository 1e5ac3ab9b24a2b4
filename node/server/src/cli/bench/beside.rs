//! `quorun bench accept` in rounds: a new cluster in each, and after it one of etcd, if that is wanted.
//!
//! Both are on the same machine, one after the other, with the same clients, bytes and times; so what else the machine does, and how
//! fast its disk is, is in both, and the ratio of a round says more than its figures.

use std::sync::Arc;

use anyhow::ensure;
use serde_json::{Value, json};

use super::accept::{self, AcceptArgs, DURATION, Measured, put_waiting};
use super::etcd::puts::Puts;
use super::etcd::{Etcd, LocalEtcd};
use super::processor::of_processes;
use super::record::{Counts, Figures, Record};
use super::report::lines::{self, Line, Lines};
use super::report::{Report, digits, per_second};
use super::run::{ShapeArgs, end};
use super::verify::Verified;
use super::{Interrupt, LoadArgs};

/// Figures of one load.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Side {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// CPU time of the nodes, for each that was accepted.
    processor_us: Option<f64>,
}

impl Side {
    fn new(figures: &Figures, processor: Option<f64>) -> Self {
        // The warm-up is in both.
        let accepted = figures.counts.accepted.max(1) as f64;
        Self {
            per_second: per_second(figures),
            p50_ms: figures.total.ms(0.5),
            p99_ms: figures.total.ms(0.99),
            processor_us: processor.map(|seconds| 1e6 * seconds / accepted),
        }
    }
}

/// What one round has given.
#[derive(Clone, Copy, Debug)]
struct Round {
    cluster: Side,
    etcd: Option<Side>,
}

/// What one load of puts has given.
#[derive(Debug)]
struct PutsMeasured {
    figures: Figures,
    /// Keys that were there at the end, if that could be asked.
    counted: Option<u64>,
    processor: Option<f64>,
}

/// What was found beside the figures, of all rounds.
#[derive(Debug, Default)]
struct Found {
    verified: Verified,
    executed: u64,
    left: u64,
    refused: u64,
    without_answer: u64,
    /// What was said in the place of an answer, for example.
    errors: Vec<String>,
    puts: FoundPuts,
}

/// The same of the puts.
#[derive(Debug, Default, PartialEq, Eq)]
struct FoundPuts {
    acknowledged: u64,
    counted: u64,
    lost: u64,
    failed: u64,
}

impl Found {
    fn cluster(&mut self, measured: &Measured) {
        self.verified.add(measured.verified.clone());
        self.executed += measured.executed;
        self.left += measured.left;
        self.refused += measured.figures.counts.refused;
        self.without_answer += measured.figures.counts.gave_up;
        if measured.figures.counts.gave_up > 0 {
            self.errors("Quorun", &measured.figures);
        }
    }

    fn etcd(&mut self, measured: &PutsMeasured) {
        let Counts {
            accepted, gave_up, ..
        } = measured.figures.counts;
        self.puts.acknowledged += accepted;
        self.puts.failed += gave_up;
        if let Some(counted) = measured.counted {
            self.puts.counted += counted;
            self.puts.lost += accepted.saturating_sub(counted);
        }
        self.errors("etcd", &measured.figures);
    }

    fn errors(&mut self, who: &str, figures: &Figures) {
        let errors = figures.errors.iter();
        let words = errors.map(|(kind, (count, text))| format!("{who}: {kind}, {count}: {text}"));
        self.errors.extend(words);
    }

    /// Whether everything is as it must be.
    fn holds(&self) -> bool {
        self.verified.holds()
            && self.executed + self.left + self.without_answer == 0
            && self.puts.lost + self.puts.failed == 0
    }
}

/// Runs the rounds.
pub async fn beside(
    args: &AcceptArgs,
    shape: &ShapeArgs,
    interrupt: &Interrupt,
) -> anyhow::Result<Report> {
    // What cannot be started should not be found out after a round of the other.
    let etcd = match &args.etcd {
        Some(program) => {
            let etcd = interrupt.or(Etcd::find(program)).await?;
            Some(etcd.map_err(|error| super::super::usage(&error))?)
        }
        None => None,
    };
    let mut found = Found::default();
    let mut rounds = Vec::new();
    for number in 1..=args.rounds() {
        let measured = accept::once(args, shape, interrupt).await?;
        found.cluster(&measured);
        let cluster = Side::new(&measured.figures, measured.processor);
        let mut complete = measured.figures.measured > 0;
        drop(measured);
        let mut round = Round {
            cluster,
            etcd: None,
        };
        if let Some(etcd) = etcd.as_ref().filter(|_| !interrupt.asked.is_cancelled()) {
            let measured = puts_of_a_round(args, shape, etcd, interrupt).await?;
            found.etcd(&measured);
            complete &= measured.figures.measured > 0;
            round.etcd = Some(Side::new(&measured.figures, measured.processor));
        }
        // A round that was cut short is no measure; what was lost in it counts all the same.
        if interrupt.asked.is_cancelled() || !found.holds() {
            break;
        }
        ensure!(
            complete,
            "nothing was accepted after the warm-up of {:?}; give more --jobs, or a longer --duration",
            args.load.warmup
        );
        eprintln!("round {number}: {}", round.words());
        rounds.push(round);
    }
    ensure!(
        !rounds.is_empty() || !found.holds(),
        "interrupted before the first round was over"
    );
    Ok(told(args, shape, etcd.as_ref(), &rounds, found))
}

/// Nodes of etcd for one load.
async fn puts_of_a_round(
    args: &AcceptArgs,
    shape: &ShapeArgs,
    etcd: &Etcd,
    interrupt: &Interrupt,
) -> anyhow::Result<PutsMeasured> {
    let start = LocalEtcd::start(etcd, args.cluster.nodes);
    let mut cluster = interrupt.or(start).await??;
    let load = puts(args, shape, &mut cluster, interrupt);
    let measured = Box::pin(load).await;
    cluster.end().await;
    measured
}

async fn puts(
    args: &AcceptArgs,
    shape: &ShapeArgs,
    cluster: &mut LocalEtcd,
    interrupt: &Interrupt,
) -> anyhow::Result<PutsMeasured> {
    let LoadArgs {
        patience, warmup, ..
    } = args.load;
    // The first put that fails ends the load as well.
    let failed = interrupt.asked.child_token();
    let addresses = cluster.addresses();
    let puts = Puts::connect(
        &addresses,
        args.etcd_connections,
        args.source,
        patience,
        failed.clone(),
    );
    let puts = Arc::new(interrupt.or(puts).await??);
    let pids = cluster.pids();
    eprintln!("putting");
    let before = of_processes(&pids);
    let record = Record::new(warmup);
    let mut until = end(&args.load, DURATION, &record, interrupt);
    until.asked = failed;
    let load = async {
        tokio::select! {
            biased;
            error = cluster.ended() => Err(error),
            () = shape.load(Arc::clone(&puts), &until, &record) => Ok(()),
        }
    };
    interrupt.or(load).await??;
    let processor = of_processes(&pids).zip(before);
    let figures = record.figures();
    let counted = match interrupt.or(puts.count()).await? {
        Ok(counted) => Some(counted),
        // It does not answer any more, and the puts have said so already.
        Err(_) if figures.counts.gave_up > 0 => None,
        Err(error) => return Err(error),
    };
    Ok(PutsMeasured {
        figures,
        counted,
        processor: processor.map(|(after, before)| after - before),
    })
}

impl Round {
    fn words(&self) -> String {
        let Side {
            per_second: rate,
            p99_ms,
            ..
        } = self.cluster;
        match self.etcd {
            None => format!("{} a second, p99 {} ms", digits(rate), digits(p99_ms)),
            Some(etcd) => format!(
                "{} submissions and {} puts a second, x {}; p99 {} and {} ms",
                digits(rate),
                digits(etcd.per_second),
                digits(rate / etcd.per_second),
                digits(p99_ms),
                digits(etcd.p99_ms)
            ),
        }
    }
}

fn lines(rounds: &[Round]) -> Vec<Line> {
    let mut lines = Lines::new(rounds);
    let (c, e) = (|r: &Round| r.cluster, |r: &Round| r.etcd);
    lines.line("accepted per second", "per_second", |r| {
        Some(c(r).per_second)
    });
    lines.line("etcd, puts per second", "etcd_per_second", |r| {
        Some(e(r)?.per_second)
    });
    lines.line("accepted / puts", "p3_ratio", |r| {
        Some(c(r).per_second / e(r)?.per_second)
    });
    lines.line("p50 ms", "p50_ms", |r| Some(c(r).p50_ms));
    lines.line("etcd, p50 ms", "etcd_p50_ms", |r| Some(e(r)?.p50_ms));
    lines.line("p99 ms", "p99_ms", |r| Some(c(r).p99_ms));
    lines.line("etcd, p99 ms", "etcd_p99_ms", |r| Some(e(r)?.p99_ms));
    lines.line(
        "nodes, processor µs for a submission",
        "processor_us",
        |r| c(r).processor_us,
    );
    lines.line("etcd, processor µs for a put", "etcd_processor_us", |r| {
        e(r)?.processor_us
    });
    lines.all()
}

fn told(
    args: &AcceptArgs,
    shape: &ShapeArgs,
    etcd: Option<&Etcd>,
    rounds: &[Round],
    found: Found,
) -> Report {
    let title = match etcd {
        Some(_) => "Submissions accepted, nothing executed, beside etcd's puts",
        None => "Submissions accepted, nothing executed, in rounds",
    };
    let mut report = Report::new("accept", title);
    report.set("nodes", u64::from(args.cluster.nodes));
    if let Some(etcd) = etcd {
        let (nodes, each) = (args.cluster.nodes, args.etcd_connections);
        let words = format!(
            "version {}, {nodes} nodes, connections to each: {each}",
            etcd.version
        );
        report.set("etcd", words);
    }
    report.set("load", shape.words());
    report.set("connections", args.load.connections_words());
    report.set("source", format!("{} bytes", args.source));
    report.set("rounds", format!("{}, new nodes in each", rounds.len()));
    let lines = lines(rounds);
    if !rounds.is_empty() {
        for line in &lines {
            let (name, unit) = match line.key {
                "p3_ratio" | "per_second" | "etcd_per_second" => (line.name, ""),
                "p99_ms" => ("p99", " ms"),
                "etcd_p99_ms" => ("etcd, p99", " ms"),
                _ => continue,
            };
            let [least, middle, largest] =
                [line.least(), line.middle(), line.largest()].map(digits);
            let value = format!("{middle}{unit} ({least} to {largest})");
            report.headline(name, value, None);
        }
        let note = "least, median and largest of the rounds; a ratio is of two figures of the same round. \
             Processor time is that of the nodes alone, from the beginning of the warm-up to the last answer, for all that were accepted meanwhile";
        report.tables.push(lines::table(&lines, note));
    }
    let Verified {
        lost,
        twice,
        changed,
        ..
    } = found.verified;
    report.headline(
        "lost / twice / changed",
        format!("{lost} / {twice} / {changed}"),
        Some(found.verified.holds()),
    );
    if found.without_answer > 0 {
        report.headline(
            "without an answer",
            found.without_answer.to_string(),
            Some(false),
        );
    }
    put_waiting(&mut report, found.executed, found.left, found.refused);
    let mut figures = lines::json(&lines);
    if rounds.is_empty() {
        figures.clear();
    }
    report.extra.insert("accept".to_owned(), figures.into());
    if let Some(etcd) = etcd {
        put_etcd(&mut report, etcd, &found.puts);
    }
    for error in found.errors {
        report.note(error);
    }
    report.verified = Some(found.verified);
    report
}

/// What became of the puts.
fn put_etcd(report: &mut Report, etcd: &Etcd, puts: &FoundPuts) {
    let FoundPuts {
        acknowledged,
        counted,
        lost,
        failed,
    } = *puts;
    report.headline("etcd, keys lost", lost.to_string(), Some(lost == 0));
    if failed > 0 {
        report.headline("etcd, puts that failed", failed.to_string(), Some(false));
    }
    let body: Value = json!({
        "version": etcd.version,
        "acknowledged": acknowledged,
        "counted": counted,
        "lost": lost,
        "failed": failed,
    });
    report.extra.insert("etcd".to_owned(), body);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn side(per_second: f64, p99_ms: f64, processor_us: Option<f64>) -> Side {
        Side {
            per_second,
            p50_ms: p99_ms / 2.0,
            p99_ms,
            processor_us,
        }
    }

    #[test]
    fn ratios_are_of_one_round() {
        let round = |cluster, etcd| Round {
            cluster: side(cluster, 100.0, Some(250.0)),
            etcd: Some(side(etcd, 200.0, None)),
        };
        // Neither the ratio of the medians nor of the largest.
        let rounds = [
            round(4000.0, 1000.0),
            round(3000.0, 2000.0),
            round(2000.0, 1600.0),
        ];
        let lines = lines(&rounds);
        let of = |key| lines.iter().find(|line| line.key == key);
        let ratio = of("p3_ratio").unwrap();
        assert_eq!(ratio.values, [4.0, 1.5, 1.25]);
        let three = (ratio.least(), ratio.middle(), ratio.largest());
        assert_eq!(three, (1.25, 1.5, 4.0));
        assert_eq!(of("processor_us").unwrap().values, [250.0; 3]);
        assert_eq!(of("etcd_p50_ms").unwrap().values, [100.0; 3]);
        // Of a process that has ended nobody knows what it took.
        assert!(of("etcd_processor_us").is_none());
    }

    #[test]
    fn rounds_without_etcd_have_no_figures_of_it() {
        let rounds = [Round {
            cluster: side(4000.0, 100.0, None),
            etcd: None,
        }];
        let keys: Vec<_> = lines(&rounds).iter().map(|line| line.key).collect();
        assert_eq!(keys, ["per_second", "p50_ms", "p99_ms"]);
    }

    fn put(accepted: u64, counted: Option<u64>, gave_up: u64) -> PutsMeasured {
        let mut figures = Record::new(Duration::ZERO).figures();
        figures.counts.accepted = accepted;
        figures.counts.gave_up = gave_up;
        PutsMeasured {
            figures,
            counted,
            processor: None,
        }
    }

    #[test]
    fn fewer_keys_than_puts_are_lost_in_that_round() {
        let mut found = Found::default();
        found.etcd(&put(100, Some(100), 0));
        assert!(found.holds());
        // A key more than was acknowledged does not make up for one that is missing elsewhere.
        found.etcd(&put(100, Some(103), 0));
        found.etcd(&put(100, Some(98), 0));
        assert!(!found.holds());
        let expected = FoundPuts {
            acknowledged: 300,
            counted: 301,
            lost: 2,
            failed: 0,
        };
        assert_eq!(found.puts, expected);
    }

    #[test]
    fn a_put_that_fails_is_not_as_it_must_be() {
        let mut found = Found::default();
        found.etcd(&put(100, None, 1));
        assert!(!found.holds());
        assert_eq!((found.puts.lost, found.puts.failed), (0, 1));
    }

    #[test]
    fn processor_time_is_for_each_that_was_accepted() {
        let mut figures = Record::new(Duration::ZERO).figures();
        figures.counts.accepted = 4000;
        figures.measured = 3000;
        figures.span = Duration::from_secs(2);
        let side = Side::new(&figures, Some(1.0));
        assert_eq!((side.per_second, side.processor_us), (1500.0, Some(250.0)));
        assert_eq!(Side::new(&figures, None).processor_us, None);
    }
}
