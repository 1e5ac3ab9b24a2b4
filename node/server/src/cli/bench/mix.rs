//! The programs of the load, and what each must answer.

use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

use super::client::Finished;

/// Wall-clock time that every program may have: a machine under load must not make an answer wrong.
const WALL_MS: u64 = 30_000;
/// CPU time of the endless loop.
const ENDLESS_CPU_MS: u64 = 300;
/// Lines of the program that prints many.
const LINES: u32 = 500;
/// Steps of the CPU-heavy program.
const STEPS: u32 = 200_000;
/// How many different CPU-heavy programs there are; their answers are computed before the load begins.
const SEEDS: u32 = 16;
/// Memory that the memory-heavy program touches, MiB.
const MEMORY_MIB: u64 = 64;
/// Most characters that the program of random length prints.
const LONGEST: u32 = 20_000;
/// How much of a wrong answer is shown.
const SHOWN: usize = 80;

/// A kind of program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Program {
    /// Python prints one line
    Hello,
    /// Python prints 500 lines
    Lines,
    /// Python computes
    Cpu,
    /// Python fills 64 MiB
    Memory,
    /// Python prints up to 20,000 characters, another number each time
    Random,
    /// Python never ends; it must get time_limit
    Endless,
    /// C that does not compile; it must get compile_error
    Compile,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Hello,
        Self::Lines,
        Self::Cpu,
        Self::Memory,
        Self::Random,
        Self::Endless,
        Self::Compile,
    ];

    /// Its name in `--mix` and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Lines => "lines",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Random => "random",
            Self::Endless => "endless",
            Self::Compile => "compile",
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    pub const fn place(self) -> usize {
        self as usize
    }
}

/// How often each program comes: weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    weights: [u32; Program::ALL.len()],
}

impl Mix {
    /// One program alone.
    pub fn only(program: Program) -> Self {
        let mut weights = [0; Program::ALL.len()];
        weights[program.place()] = 1;
        Self { weights }
    }

    /// The programs that come at all.
    pub fn programs(&self) -> impl Iterator<Item = Program> + '_ {
        Program::ALL
            .into_iter()
            .filter(|program| self.weights[program.place()] > 0)
    }

    fn draw(&self, random: &mut fastrand::Rng) -> Program {
        let mut left = random.u32(0..self.weights.iter().sum());
        for program in Program::ALL {
            match left.checked_sub(self.weights[program.place()]) {
                Some(rest) => left = rest,
                None => return program,
            }
        }
        Program::Hello
    }
}

impl FromStr for Mix {
    type Err = String;

    /// Reads `hello=60,lines=10`. What is not named does not come.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = [0; Program::ALL.len()];
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let program = Program::ALL
                .into_iter()
                .find(|program| program.name() == name)
                .ok_or_else(|| {
                    let names = Program::ALL.map(Program::name).join(", ");
                    format!("there is no program \"{name}\"; there are {names}")
                })?;
            weights[program.place()] =
                weight.parse().ok().filter(|w| *w <= 1_000_000).ok_or_else(|| {
                    format!("the weight of {name} is \"{weight}\"; it should be a number up to 1000000, as in hello=60")
                })?;
        }
        if weights.iter().all(|weight| *weight == 0) {
            return Err("no program has a weight; for example hello=60,lines=10".to_owned());
        }
        Ok(Self { weights })
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<_> = self
            .programs()
            .map(|program| format!("{}={}", program.name(), self.weights[program.place()]))
            .collect();
        f.write_str(&parts.join(","))
    }
}

/// What a job must end as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It runs, and prints exactly this.
    Stdout(Arc<str>),
    /// It ends with this verdict, and prints nothing.
    Verdict(&'static str),
}

impl Expected {
    /// What is wrong with an answer, if anything is.
    pub fn check(&self, finished: &Finished) -> Result<(), String> {
        let (verdict, stdout) = match self {
            Self::Stdout(text) => ("accepted", &**text),
            Self::Verdict(verdict) => (*verdict, ""),
        };
        if finished.verdict != verdict {
            return Err(format!(
                "the verdict is {} and should be {verdict}{}",
                finished.verdict,
                finished
                    .message
                    .as_ref()
                    .map_or_else(String::new, |message| format!(" ({message})"))
            ));
        }
        if finished.stdout != stdout {
            return Err(format!(
                "it printed {} and should have printed {}",
                shown(&finished.stdout),
                shown(stdout)
            ));
        }
        Ok(())
    }
}

fn shown(text: &str) -> String {
    let mut start: String = text.chars().take(SHOWN).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    format!("{start:?} ({} bytes)", text.len())
}

/// One job of the load, ready to be sent.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Its number in the load.
    pub number: u64,
    /// What it is.
    pub program: Program,
    /// The request.
    pub body: Bytes,
    /// What it must end as.
    pub expected: Expected,
}

/// A job as it is submitted.
#[derive(Serialize)]
struct Request<'a> {
    language: &'static str,
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Value>,
    labels: [&'a str; 2],
}

/// What every job of a load is made from. The same seed gives the same jobs, whoever asks for them in whatever order.
#[derive(Clone, Debug)]
pub struct Jobs {
    mix: Mix,
    seed: u64,
    run: String,
    padded_to: usize,
    executed: bool,
    /// Added to every number.
    from: u64,
    /// Every job is this one.
    fixed: Option<(Program, String, Expected)>,
    cpu: Arc<[Arc<str>]>,
    lines: Arc<str>,
}

/// Label of the jobs that have this number.
pub fn number_label(number: u64) -> String {
    format!("bench-job-{number}")
}

/// The number in a label.
pub fn number_of(label: &str) -> Option<u64> {
    label.strip_prefix("bench-job-")?.parse().ok()
}

impl Jobs {
    /// The jobs of a load; `run` is a label that all of them have.
    pub fn new(mix: Mix, seed: u64, run: String) -> Self {
        let lines = (0..LINES).fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "line {line}");
            text
        });
        Self {
            mix,
            seed,
            run,
            padded_to: 0,
            executed: true,
            from: 0,
            fixed: None,
            cpu: (0..SEEDS).map(|seed| computed(seed).into()).collect(),
            lines: lines.into(),
        }
    }

    /// Every source has this many bytes at least.
    pub fn padded(mut self, bytes: usize) -> Self {
        self.padded_to = bytes;
        self
    }

    /// Nothing will be executed: every answer is accepted and empty.
    pub fn not_executed(mut self) -> Self {
        self.executed = false;
        self
    }

    /// Every job is the program of this one.
    pub fn fixed(mut self, model: &Prepared) -> Self {
        let body: Value = serde_json::from_slice(&model.body).unwrap_or_default();
        let source = body["source"].as_str().unwrap_or_default().to_owned();
        self.fixed = Some((model.program, source, model.expected.clone()));
        self
    }

    /// The same jobs with other numbers.
    pub fn numbered_from(&self, first: u64) -> Self {
        Self {
            from: first,
            ..self.clone()
        }
    }

    /// The label of this load.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The key that makes a retry of a submission safe.
    pub fn key(&self, number: u64) -> String {
        format!("{}-{}", self.run, self.from + number)
    }

    /// The job with this number.
    pub fn job(&self, number: u64) -> Prepared {
        let number = self.from + number;
        // Neighbours must not begin with nearly the same state.
        let own = self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = fastrand::Rng::with_seed(own);
        let (program, (language, mut source, expected)) = match &self.fixed {
            Some((program, source, expected)) => {
                (*program, ("python", source.clone(), expected.clone()))
            }
            None => {
                let program = self.mix.draw(&mut random);
                (program, self.program(program, &mut random))
            }
        };
        if source.len() < self.padded_to {
            source.push('#');
            let missing = self.padded_to.saturating_sub(source.len());
            source.extend(std::iter::repeat_n('.', missing));
        }
        let limits = match program {
            Program::Endless => json!({ "wall_ms": WALL_MS, "cpu_ms": ENDLESS_CPU_MS }),
            _ => json!({ "wall_ms": WALL_MS }),
        };
        let request = Request {
            language,
            source: &source,
            limits: Some(limits),
            labels: [&self.run, &number_label(number)],
        };
        let body = serde_json::to_vec(&request).unwrap_or_default();
        let expected = if self.executed {
            expected
        } else {
            Expected::Stdout("".into())
        };
        Prepared {
            number,
            program,
            body: body.into(),
            expected,
        }
    }

    fn program(
        &self,
        program: Program,
        random: &mut fastrand::Rng,
    ) -> (&'static str, String, Expected) {
        let printed = |text: &str| Expected::Stdout(text.into());
        match program {
            Program::Hello => ("python", "print('hello')\n".to_owned(), printed("hello\n")),
            Program::Lines => (
                "python",
                format!("for n in range({LINES}):\n    print('line', n)\n"),
                Expected::Stdout(Arc::clone(&self.lines)),
            ),
            Program::Cpu => {
                let seed = random.u32(0..SEEDS);
                let source = format!(
                    "x = {seed}\nfor _ in range({STEPS}):\n    x = (x * 1664525 + 1013904223) & 0xffffffff\nprint(x)\n"
                );
                let answer = Arc::clone(&self.cpu[seed as usize]);
                ("python", source, Expected::Stdout(answer))
            }
            Program::Memory => {
                let bytes = MEMORY_MIB << 20;
                let source = format!(
                    "data = bytearray({bytes})\nfor at in range(0, len(data), 4096):\n    data[at] = 1\nprint(len(data), sum(data[::4096]))\n"
                );
                (
                    "python",
                    source,
                    printed(&format!("{bytes} {}\n", bytes / 4096)),
                )
            }
            Program::Random => {
                let (length, first) = (random.u32(1..=LONGEST), random.u32(0..26));
                let source = format!(
                    "print(''.join(chr(97 + ({first} + n * n) % 26) for n in range({length})))\n"
                );
                let letter = |n: u32| {
                    let place = (u64::from(first) + u64::from(n) * u64::from(n)) % 26;
                    char::from(b'a' + u8::try_from(place).unwrap_or(0))
                };
                let mut text: String = (0..length).map(letter).collect();
                text.push('\n');
                ("python", source, Expected::Stdout(text.into()))
            }
            Program::Endless => (
                "python",
                "while True:\n    pass\n".to_owned(),
                Expected::Verdict("time_limit"),
            ),
            Program::Compile => (
                "c",
                "int main(void) { return missing; }\n".to_owned(),
                Expected::Verdict("compile_error"),
            ),
        }
    }
}

/// What the CPU-heavy program prints.
fn computed(seed: u32) -> String {
    let last = (0..STEPS).fold(seed, |x, _| {
        x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
    });
    format!("{last}\n")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn jobs(mix: &str) -> Jobs {
        Jobs::new(mix.parse().unwrap(), 7, "bench-test".to_owned())
    }

    #[test]
    fn weights_are_read_and_shown_and_what_is_wrong_is_said() {
        let mix: Mix = "hello=60, lines=10,endless=0".parse().unwrap();
        assert_eq!(mix.to_string(), "hello=60,lines=10");
        assert_eq!(Mix::only(Program::Cpu).to_string(), "cpu=1");
        for (wrong, words) in [
            ("", "no program has a weight"),
            ("hello=0", "no program has a weight"),
            ("hallo=1", "there is no program \"hallo\"; there are hello"),
            ("hello=x", "should be a number"),
            ("hello=-1", "should be a number"),
        ] {
            let error = wrong.parse::<Mix>().unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_jobs_and_the_weights_hold() {
        let (one, other) = (jobs("hello=3,lines=1"), jobs("hello=3,lines=1"));
        let mut hello = 0;
        for number in (0..4000).rev() {
            let job = one.job(number);
            assert_eq!(job.body, other.job(number).body);
            assert!(matches!(job.program, Program::Hello | Program::Lines));
            hello += u32::from(job.program == Program::Hello);
        }
        assert!((2800..3200).contains(&hello), "{hello} of 4000");
    }

    #[test]
    fn a_source_is_padded_and_names_its_number() {
        let job = jobs("hello=1").padded(1024).job(42);
        let body: Value = serde_json::from_slice(&job.body).unwrap();
        assert_eq!(body["source"].as_str().unwrap().len(), 1024);
        assert_eq!(body["labels"][0], "bench-test");
        assert_eq!(number_of(body["labels"][1].as_str().unwrap()), Some(42));
    }

    /// The answers are what the programs print: asked of the machine's own python3.
    #[test]
    fn the_answers_are_what_python_prints() {
        for program in ["hello", "lines", "cpu", "memory", "random"] {
            let jobs = jobs(program);
            for number in 0..3 {
                let job = jobs.job(number);
                let body: Value = serde_json::from_slice(&job.body).unwrap();
                let mut python = Command::new("python3");
                let output = python.args(["-c", body["source"].as_str().unwrap()]);
                let output = output.output().unwrap();
                let stdout = String::from_utf8(output.stdout).unwrap();
                assert_eq!(job.expected, Expected::Stdout(stdout.into()), "{program}");
            }
        }
    }

    #[test]
    fn wrong_answers_are_told_from_right_ones() {
        let mut finished = Finished {
            verdict: "accepted".to_owned(),
            stdout: "hello\n".to_owned(),
            ..Finished::default()
        };
        let hello = Expected::Stdout("hello\n".into());
        hello.check(&finished).unwrap();
        let wrong = Expected::Verdict("time_limit")
            .check(&finished)
            .unwrap_err();
        assert!(
            wrong.contains("accepted and should be time_limit"),
            "{wrong}"
        );
        finished.stdout = "hello".to_owned();
        let wrong = hello.check(&finished).unwrap_err();
        assert!(wrong.contains("\"hello\" (5 bytes)"), "{wrong}");
    }
}
