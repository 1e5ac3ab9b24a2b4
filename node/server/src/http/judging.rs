//! What a submission says about judging: its test cases, who compares, and the files that it wants back.

use std::borrow::Cow;
use std::fmt;

use quorun_executor::CHECKER_FILES;
use quorun_ledger::{Checker, CheckerProgram, Limits, TestCase, Tolerance};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::few::Few;
use super::problem::{Kind, Problem, quoted};
use super::submission::{
    FileRequest, FilesRequest, LimitsRequest, Rules, STDIN_SETTING, bytes, file_name, is_below,
    limit, not_printable,
};
use crate::config::LEAST;

/// Test cases of one job.
pub const MAX_TESTS: usize = 1_000;
/// Bytes of a test case's name.
pub const MAX_NAME: usize = 128;
/// The largest weight of a test case.
pub const MAX_WEIGHT: u32 = 1_000_000;
/// Files that are wanted back.
pub const MAX_OUTPUTS: usize = 16;
/// All runs of a job together may take so many times what one run may take at most.
const MAX_RUNS_WALL: u64 = 60;
/// The tolerance of a `floats` checker that names none.
const USUAL_TOLERANCE: f64 = 1e-9;

/// One run of a program that is judged.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TestCase)]
pub struct TestRequest {
    /// What the submitter calls it; no control characters.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    pub name: Option<String>,
    /// What the program reads.
    #[serde(default)]
    pub stdin: Option<String>,
    /// The same, for bytes that are not text.
    #[serde(default)]
    #[schema(content_encoding = "base64")]
    pub stdin_base64: Option<String>,
    /// What it should print; without it, whatever it prints will do.
    #[serde(default)]
    pub expected: Option<String>,
    /// The same, for bytes that are not text.
    #[serde(default)]
    #[schema(content_encoding = "base64")]
    pub expected_base64: Option<String>,
    /// Its share of the score; 1 if not said.
    #[serde(default)]
    #[schema(maximum = 1000000)]
    pub weight: Option<u32>,
    /// What was printed is shown only to who asks for it.
    #[serde(default)]
    pub hidden: bool,
    /// Times other than the job's own.
    #[serde(default)]
    pub limits: TestLimitsRequest,
}

/// Times of one test case.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = TestLimits)]
pub struct TestLimitsRequest {
    /// CPU time.
    #[schema(minimum = 1)]
    cpu_ms: Option<u64>,
    /// Wall-clock time.
    #[schema(minimum = 1)]
    wall_ms: Option<u64>,
}

/// Who compares: the name of a way, or an object with more about it.
#[derive(Debug)]
pub enum CheckerRequest {
    /// By name.
    Name(String),
    /// By name, with what belongs to it.
    Object(Box<CheckerObject>),
}

/// A checker with what belongs to it: a tolerance to `floats`, a program (as in a submission) to `program`, nothing to the
/// others.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckerObject {
    /// Which one it is.
    #[serde(rename = "type")]
    #[schema(value_type = CheckerKind)]
    kind: String,
    /// By how much numbers may differ.
    #[serde(default)]
    #[schema(minimum = 0)]
    absolute: Option<f64>,
    /// By which part of the expected number they may differ.
    #[serde(default)]
    #[schema(minimum = 0)]
    relative: Option<f64>,
    /// Name or alias of the language of the program that judges.
    #[serde(default)]
    language: Option<String>,
    /// The program, if it is one file.
    #[serde(default)]
    source: Option<String>,
    /// The program, if it is more.
    #[serde(default)]
    #[schema(value_type = Option<Vec<FileRequest>>, min_items = 1, max_items = 100)]
    files: Option<FilesRequest>,
    /// Which of the files is run or compiled; the first if not said.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255)]
    entrypoint: Option<String>,
    /// Limits of the program.
    #[serde(default)]
    limits: Option<LimitsRequest>,
}

/// How a checker compares.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "describes the words, and is never made")]
pub enum CheckerKind {
    Exact,
    Lines,
    Tokens,
    Floats,
    Program,
}

impl PartialSchema for CheckerRequest {
    fn schema() -> RefOr<Schema> {
        let names = ["exact", "lines", "tokens", "floats"];
        let name = ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(names));
        OneOfBuilder::new()
            .item(name)
            .item(Ref::from_schema_name(CheckerObject::name()))
            .description(Some(
                "Who compares what was printed with what was expected: a name, or an object with more about it",
            ))
            .into()
    }
}

impl ToSchema for CheckerRequest {
    fn name() -> Cow<'static, str> {
        "Checker".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((CheckerObject::name().into(), CheckerObject::schema()));
        CheckerObject::schemas(schemas);
    }
}

/// As an enum that serde tries one by one it could not say which field of it is wrong.
impl<'de> Deserialize<'de> for CheckerRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = CheckerRequest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a checker, or an object with its type")
            }

            fn visit_str<E>(self, name: &str) -> Result<CheckerRequest, E> {
                Ok(CheckerRequest::Name(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CheckerRequest, A::Error> {
                CheckerObject::deserialize(MapAccessDeserializer::new(map))
                    .map(|object| CheckerRequest::Object(Box::new(object)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The test cases of a request.
pub type TestsRequest = Few<TestRequest, MAX_TESTS>;

/// Names of files that are wanted back.
pub type OutputsRequest = Few<String, MAX_OUTPUTS>;

/// What a submission says about judging.
#[derive(Debug, Default)]
pub struct JudgingRequest {
    /// The test cases.
    pub tests: Option<TestsRequest>,
    /// The first that is not accepted is the last that is run.
    pub stop_on_failure: bool,
    /// Who compares.
    pub checker: Option<CheckerRequest>,
    /// Files that are wanted back.
    pub outputs: OutputsRequest,
}

/// The same, checked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judging {
    /// The test cases.
    pub tests: Vec<TestCase>,
    /// The first that is not accepted is the last that is run.
    pub stop_on_failure: bool,
    /// Who compares.
    pub checker: Checker,
    /// Files that are wanted back.
    pub outputs: Vec<String>,
}

impl Rules<'_> {
    /// Checks what a submission with these limits says about judging.
    pub fn judging(&self, request: JudgingRequest, limits: &Limits) -> Result<Judging, Problem> {
        let JudgingRequest {
            tests,
            stop_on_failure,
            checker,
            outputs: Few(outputs),
        } = request;
        let Some(Few(tests)) = tests else {
            if checker.is_some() || stop_on_failure {
                let field = if checker.is_some() {
                    "checker"
                } else {
                    "stop_on_failure"
                };
                return Err(Problem::invalid(
                    field,
                    format!("{field} is about test cases, and there are no tests"),
                ));
            }
            check_outputs(&outputs)?;
            return Ok(Judging {
                outputs,
                ..Judging::default()
            });
        };
        if !outputs.is_empty() {
            return Err(Problem::invalid(
                "outputs",
                "outputs are of a job without tests: each test case has a folder of its own, and none is kept",
            )
            .with("value", outputs.len())
            .with("limit", 0));
        }
        let tests = self.tests(tests)?;
        let checker = match checker {
            None => Checker::default(),
            Some(checker) => self.checker(checker)?,
        };
        self.check_wall(&tests, &checker, limits)?;
        Ok(Judging {
            tests,
            stop_on_failure,
            checker,
            outputs,
        })
    }

    fn tests(&self, tests: Vec<TestRequest>) -> Result<Vec<TestCase>, Problem> {
        if tests.is_empty() {
            let detail = "tests is empty; leave it out for a job that is only run";
            return Err(Problem::invalid("tests", detail)
                .with("value", 0)
                .with("limit", 1));
        }
        let mut held = 0;
        let mut cases = Vec::with_capacity(tests.len());
        for (n, test) in tests.into_iter().enumerate() {
            let case = self.test(&format!("tests[{n}]"), test)?;
            held += case.stdin.len() + case.expected.as_ref().map_or(0, bytes::Bytes::len);
            if held > self.ceilings.tests_bytes {
                let limit = self.ceilings.tests_bytes;
                return Err(Problem::new(Kind::TooLarge,
                    format!(
                        "stdin and expected of all tests together are larger than {limit} bytes, which is the most that this cluster accepts"
                    ),
                )
                .with("field", "tests")
                .with("limit", limit)
                .set_by("--max-tests-kb"));
            }
            cases.push(case);
        }
        if cases.iter().all(|case| case.weight == 0) {
            return Err(Problem::invalid(
                "tests",
                "every test has the weight 0; at least one must count for the score",
            )
            .with("value", 0)
            .with("limit", 1));
        }
        Ok(cases)
    }

    fn test(&self, field: &str, test: TestRequest) -> Result<TestCase, Problem> {
        if let Some(name) = &test.name
            && (name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control))
        {
            let field = format!("{field}.name");
            let detail =
                format!("{field} should have 1 to {MAX_NAME} bytes and no control characters");
            return Err(not_printable(&field, detail, name, MAX_NAME));
        }
        let stdin_field = format!("{field}.stdin");
        let stdin = bytes(&stdin_field, test.stdin, test.stdin_base64)?.unwrap_or_default();
        if stdin.len() > self.ceilings.stdin_bytes {
            let limit = self.ceilings.stdin_bytes as u64;
            return Err(Problem::too_large(&stdin_field, limit)
                .with("value", stdin.len())
                .set_by(STDIN_SETTING));
        }
        let expected = bytes(
            &format!("{field}.expected"),
            test.expected,
            test.expected_base64,
        )?;
        let weight = test.weight.unwrap_or(1);
        if weight > MAX_WEIGHT {
            return Err(Problem::over_limit(
                &format!("{field}.weight"),
                weight.into(),
                MAX_WEIGHT.into(),
            ));
        }
        let most = &self.ceilings.limits;
        let time = |name: &str, asked: Option<u64>, least, most| {
            asked
                .map(|_| limit(name, asked, 0, least, most))
                .transpose()
                .map_err(|problem: Problem| problem.within(&format!("{field}.")))
        };
        Ok(TestCase {
            stdin,
            expected,
            name: test.name,
            weight,
            hidden: test.hidden,
            cpu_ms: time("cpu_ms", test.limits.cpu_ms, LEAST.cpu_ms, most.cpu_ms)?,
            wall_ms: time("wall_ms", test.limits.wall_ms, LEAST.wall_ms, most.wall_ms)?,
        })
    }

    fn checker(&self, checker: CheckerRequest) -> Result<Checker, Problem> {
        let object = match checker {
            CheckerRequest::Name(kind) => CheckerObject {
                kind,
                ..CheckerObject::default()
            },
            CheckerRequest::Object(object) => *object,
        };
        let CheckerObject {
            kind,
            absolute,
            relative,
            language,
            source,
            files,
            entrypoint,
            limits,
        } = object;
        let is_floats = kind == "floats";
        let is_program = kind == "program";
        for (name, there, fits) in [
            ("absolute", absolute.is_some(), is_floats),
            ("relative", relative.is_some(), is_floats),
            ("language", language.is_some(), is_program),
            ("source", source.is_some(), is_program),
            ("files", files.is_some(), is_program),
            ("entrypoint", entrypoint.is_some(), is_program),
            ("limits", limits.is_some(), is_program),
        ] {
            if there && !fits {
                return Err(Problem::invalid(
                    &format!("checker.{name}"),
                    format!("a checker of the type {} has no {name}", quoted(&kind)),
                ));
            }
        }
        match kind.as_str() {
            "exact" => Ok(Checker::Exact),
            "lines" => Ok(Checker::Lines),
            "tokens" => Ok(Checker::Tokens),
            "floats" => {
                let (absolute, relative) = match (absolute, relative) {
                    (None, None) => (USUAL_TOLERANCE, USUAL_TOLERANCE),
                    (absolute, relative) => {
                        (absolute.unwrap_or_default(), relative.unwrap_or_default())
                    }
                };
                Ok(Checker::Floats {
                    absolute: tolerance("checker.absolute", absolute)?,
                    relative: tolerance("checker.relative", relative)?,
                })
            }
            "program" => {
                let Some(name) = language else {
                    return Err(Problem::invalid(
                        "checker.language",
                        "a checker that is a program needs its language",
                    ));
                };
                let within = |problem: Problem| problem.within("checker.");
                let language = self.language(&name).map_err(within)?;
                let (files, entrypoint) = self
                    .program(source, files, entrypoint, language)
                    .map_err(within)?;
                let own = |name: &str| {
                    CHECKER_FILES
                        .iter()
                        .any(|taken| name == *taken || is_below(name, taken))
                };
                if let Some(n) = files.iter().position(|file| own(&file.name)) {
                    return Err(Problem::invalid(
                        &format!("checker.files[{n}].name"),
                        format!(
                            "{} are the names of the files that a checker is given",
                            CHECKER_FILES.join(", ")
                        ),
                    )
                    .with("value", files[n].name.as_str()));
                }
                let limits = limits.unwrap_or_default();
                Ok(Checker::Program(Box::new(CheckerProgram {
                    limits: self.limits(&limits, &language.limits).map_err(within)?,
                    language: language.name.clone(),
                    files,
                    entrypoint,
                })))
            }
            other => Err(Problem::invalid(
                if matches!(other, "") {
                    "checker.type"
                } else {
                    "checker"
                },
                format!(
                    "there is no checker {}; it should be \"lines\" (the default), \"exact\", \"tokens\", \"floats\" or an object of the type \"program\"",
                    quoted(other)
                ),
            )
            .with("value", other)),
        }
    }

    /// A job holds a slot until its last case has ended.
    fn check_wall(
        &self,
        tests: &[TestCase],
        checker: &Checker,
        limits: &Limits,
    ) -> Result<(), Problem> {
        let own = match checker {
            Checker::Program(program) => program.limits.wall_ms,
            _ => 0,
        };
        let asked = tests.iter().fold(0_u64, |sum, test| {
            sum.saturating_add(test.limits(limits).wall_ms)
                .saturating_add(own)
        });
        let most = self.ceilings.limits.wall_ms.saturating_mul(MAX_RUNS_WALL);
        if asked <= most {
            return Ok(());
        }
        Err(Problem::invalid(
            "tests",
            format!(
                "all tests together may take {asked} ms of wall-clock time, with their checker; at most {most} is allowed: send fewer, or lower their limits.wall_ms"
            ),
        )
        .with("value", asked)
        .with("limit", most))
    }
}

fn tolerance(field: &str, value: f64) -> Result<Tolerance, Problem> {
    Tolerance::new(value).ok_or_else(|| {
        Problem::invalid(
            field,
            format!("{field} is {value}; it should be a number that is not negative"),
        )
        .with("value", value)
        .with("limit", 0)
    })
}

fn check_outputs(names: &[String]) -> Result<(), Problem> {
    for (n, name) in names.iter().enumerate() {
        let field = format!("outputs[{n}]");
        file_name(&field, name)?;
        if names[..n].contains(name) {
            return Err(
                Problem::invalid(&field, format!("{} is in outputs twice", quoted(name)))
                    .with("value", name.as_str()),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use quorun_ledger::QueueBound;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Ceilings;
    use crate::http::body;
    use crate::http::submission::JobRequest;

    const CEILINGS: Ceilings = Ceilings {
        source_bytes: 100,
        stdin_bytes: 20,
        tests_bytes: 30,
        limits: Limits {
            cpu_ms: 20_000,
            wall_ms: 60_000,
            memory_kb: 2 << 20,
            processes: 512,
            output_kb: 4096,
            open_files: 4096,
            file_kb: Some(1 << 20),
            stack_kb: 1 << 20,
        },
        queue: QueueBound { jobs: 1, bytes: 1 },
    };

    /// What may stand anywhere.
    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop::sample::select(vec![
                "", "a", "main.py", "../a", "input", "bash", "python", "YQ==", "lines", "floats",
                "program", "\0"
            ])
            .prop_map(Value::from),
            ".{0,40}".prop_map(Value::from),
            Just(json!([])),
            Just(json!({})),
        ]
    }

    /// An object with some of these fields, mostly with what might stand there.
    fn object(fields: &'static [(&'static str, &'static str)]) -> impl Strategy<Value = Value> {
        let field = prop::sample::select(fields).prop_flat_map(|(name, sound)| {
            let sound: Value = serde_json::from_str(sound).unwrap();
            (Just(name), prop_oneof![4 => Just(sound), 1 => value()])
        });
        prop::collection::vec(field, 0..6).prop_map(|fields| {
            let fields = fields.into_iter().map(|(name, v)| (name.to_owned(), v));
            Value::Object(fields.collect())
        })
    }

    fn test_case() -> impl Strategy<Value = Value> {
        object(&[
            ("name", "\"n\""),
            ("stdin", "\"1\\n\""),
            ("stdin_base64", "\"YQ==\""),
            ("expected", "\"2\""),
            ("expected_base64", "\"YQ==\""),
            ("weight", "2"),
            ("hidden", "true"),
            ("limits", "{\"cpu_ms\": 5, \"wall_ms\": 9}"),
            ("other", "1"),
        ])
    }

    fn checker() -> impl Strategy<Value = Value> {
        let any = object(&[
            ("type", "\"program\""),
            ("type", "\"floats\""),
            ("language", "\"python\""),
            ("source", "\"1\""),
            ("files", "[{\"name\": \"a\", \"content\": \"1\"}]"),
            ("entrypoint", "\"a\""),
            ("limits", "{\"cpu_ms\": 5}"),
            ("absolute", "0.5"),
            ("relative", "1e-9"),
        ]);
        let sound = prop::sample::select(vec![
            json!("tokens"),
            json!({ "type": "floats", "relative": 0.5 }),
            json!({ "type": "program", "language": "bash", "source": "exit 0" }),
        ]);
        prop_oneof![2 => sound, 3 => any, 1 => value()]
    }

    fn checked(job: &Value) -> Result<quorun_ledger::JobSpec, Problem> {
        let languages = crate::languages::load(None, &CEILINGS.limits).unwrap();
        let rules = Rules {
            languages: crate::catalogue::Catalogue::new(languages).current(),
            ceilings: &CEILINGS,
            retention: Duration::from_secs(60),
            private_callbacks: false,
        };
        let request: JobRequest = body::json(job.to_string().as_bytes())?;
        rules.check(request)
    }

    proptest! {
        /// Whatever is said about judging is taken, and then within all bounds, or refused.
        #[test]
        fn what_is_said_about_judging_is_within_bounds_or_refused(
            tests in prop::option::of(prop_oneof![
                4 => prop::collection::vec(test_case(), 0..5).prop_map(Value::from),
                1 => value(),
            ]),
            checker in prop::option::of(checker()),
            outputs in prop::option::of(value()),
            stop in prop::option::of(any::<bool>()),
        ) {
            let mut job = json!({ "language": "python", "source": "1" });
            let fields = [
                ("tests", tests),
                ("checker", checker),
                ("outputs", outputs),
                ("stop_on_failure", stop.map(Value::from)),
            ];
            for (name, value) in fields {
                if let Some(value) = value {
                    job[name] = value;
                }
            }
            if let Ok(spec) = checked(&job) {
                prop_assert!(spec.tests.len() <= MAX_TESTS && spec.outputs.len() <= MAX_OUTPUTS);
                let held: usize = spec
                    .tests
                    .iter()
                    .map(|case| case.stdin.len() + case.expected.as_ref().map_or(0, bytes::Bytes::len))
                    .sum();
                prop_assert!(held <= CEILINGS.tests_bytes);
                prop_assert!(spec.tests.is_empty() || spec.tests.iter().any(|case| case.weight > 0));
                prop_assert!(!spec.tests.is_empty() || spec.checker == Checker::default());
                prop_assert!(spec.tests.is_empty() || spec.outputs.is_empty());
                if let Checker::Program(program) = &spec.checker {
                    prop_assert!(program.files.iter().any(|file| file.name == program.entrypoint));
                    prop_assert!(program.files.iter().all(|file| !CHECKER_FILES.contains(&&file.name[..])));
                }
                let bytes = quorun_ledger::codec::encode(&spec);
                let read: quorun_ledger::JobSpec = quorun_ledger::codec::decode(&bytes).unwrap();
                prop_assert_eq!(read, spec);
            }
        }
    }

    #[test]
    fn most_of_what_is_tried_above_is_sound_by_itself() {
        let job = json!({
            "language": "python", "source": "1", "stop_on_failure": true,
            "tests": [
                { "name": "n", "stdin": "1\n", "expected": "2", "weight": 2, "hidden": true, "limits": { "cpu_ms": 5, "wall_ms": 9 } },
                { "stdin_base64": "YQ==", "expected_base64": "YQ==" },
            ],
            "checker": { "type": "program", "language": "python", "files": [{ "name": "a", "content": "1" }], "entrypoint": "a", "limits": { "cpu_ms": 5 } },
        });
        let spec = checked(&job).unwrap();
        assert_eq!(spec.tests.len(), 2);
        assert_eq!(&spec.tests[1].stdin[..], b"a");
        assert_eq!((spec.tests[0].weight, spec.tests[0].cpu_ms), (2, Some(5)));
        assert!(matches!(spec.checker, Checker::Program(_)));
    }
}
