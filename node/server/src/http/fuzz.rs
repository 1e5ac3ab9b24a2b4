//! What clients may send, good or bad, and what must hold of every refusal: for the property tests of whatever reads it.

use std::sync::LazyLock;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Uri};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use quorun_ledger::{Limits, QueueBound};
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::submission::Rules;
use crate::catalogue::Catalogue;
use crate::config::Ceilings;

/// More than any answer to a request that could not be read needs, bytes.
const LARGE: usize = 8192;

const CEILINGS: Ceilings = Ceilings {
    source_bytes: 1000,
    stdin_bytes: 200,
    tests_bytes: 300,
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

/// Rules with small ceilings.
pub fn rules() -> Rules<'static> {
    static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
        Catalogue::new(crate::languages::load(None, &CEILINGS.limits).expect("languages"))
    });
    Rules {
        languages: CATALOGUE.current(),
        ceilings: &CEILINGS,
        retention: Duration::from_secs(60),
        private_callbacks: false,
    }
}

/// That a refusal is what a client can do something with: it is the client's mistake, it says where, and it is not much
/// longer than it need be, however long the request was.
pub fn is_a_good_answer(problem: &Problem) {
    let body = problem.to_json();
    assert!(problem.status().is_client_error(), "{body}");
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    assert!(!text("detail").is_empty(), "{body}");
    assert!(!text("field").is_empty(), "no place: {body}");
    if text("type").ends_with(":not-json") {
        assert!(text("detail").contains("at line "), "{body}");
    }
    assert!(body.to_string().len() < LARGE, "{body}");
}

/// Text that tends to be trouble.
fn text() -> impl Strategy<Value = String> {
    const USUAL: &[&str] = &[
        "",
        "a",
        "main.py",
        "../a",
        "/etc/passwd",
        "a/../b",
        "-",
        "input",
        "python",
        "bash",
        "cobol",
        "YQ==",
        "====",
        "lines",
        "floats",
        "program",
        "high",
        "all",
        "any",
        "1",
        "-1",
        "1e9",
        "NaN",
        "127.0.0.1:7000",
        "[::1]:0",
        "host:99999",
        "http://a.example/",
        "http://127.0.0.1/",
        "\0",
        "a\0b",
        "\u{feff}",
        "\u{202e}",
        "\u{1f4a9}",
        "e\u{301}",
        "\r\n",
        "`",
        "\"",
        "\\",
        "01900000-0000-7000-8000-000000000000",
        "2026-01-01T00:00:00Z",
        "…",
        "source",
        "limits.cpu_ms",
    ];
    prop_oneof![
        4 => select(USUAL).prop_map(str::to_owned),
        2 => ".{0,20}",
        1 => (select(vec!["a", "é", "\u{1f4a9}", "\0", "`"]), 100..3000_usize).prop_map(|(text, n)| text.repeat(n)),
    ]
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        select(vec![0, 1, -1, 3, 1000, 1001, i64::MAX, i64::MIN]).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
    ]
}

/// Any value, with the names of fields in its objects.
fn value(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number(),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let name = prop_oneof![3 => select(names).prop_map(str::to_owned), 1 => text()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// What is not to be found in a tree of values.
fn strange() -> impl Strategy<Value = String> {
    prop_oneof![
        (
            select(vec![
                "[",
                "{\"a\":",
                "[[1],",
                "{\"tests\":[",
                "{\"files\":{\"a\":"
            ]),
            1..3000_usize
        )
            .prop_map(|(text, n)| text.repeat(n)),
        (1..1500_usize).prop_map(|n| "[".repeat(n) + &"]".repeat(n)),
        (1..400_usize).prop_map(|n| "9".repeat(n)),
        (1..400_usize).prop_map(|n| format!("0.{}1", "0".repeat(n))),
        select(vec![
            "1e400",
            "-1e400",
            "1e-400",
            "-0",
            "-0.0",
            "01",
            "+1",
            "0x10",
            "1.",
            ".5",
            "NaN",
            "Infinity",
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775809",
            "\"\\ud800\"",
            "\"\\udc00\\ud800\"",
            "\"\\u0000\"",
            "\"\\uD83D\\uDE00\"",
            "\"\\x\"",
            "\"\t\"",
            "\"",
            "\u{feff}{}",
            "{}{}",
            "{},",
            "nul",
            "truefalse",
            "'a'",
            "/* */1",
            "",
            " ",
            "{\"a\":1,}",
            "[1 2]",
        ])
        .prop_map(str::to_owned),
    ]
}

/// Changes one place of a value.
fn change(value: &mut Value, place: &[Index], with: Value) {
    let here = match (&mut *value, place.split_first()) {
        (Value::Object(members), Some((index, rest))) if !members.is_empty() => {
            let names: Vec<String> = members.keys().cloned().collect();
            members
                .get_mut(index.get(&names))
                .map(|inner| (inner, rest))
        }
        (Value::Array(items), Some((index, rest))) if !items.is_empty() => {
            let at = index.index(items.len());
            items.get_mut(at).map(|inner| (inner, rest))
        }
        _ => None,
    };
    match here {
        Some((inner, rest)) => change(inner, rest, with),
        None => *value = with,
    }
}

/// The text of an object in which one member stands twice.
fn twice(object: &Map<String, Value>, index: Index) -> String {
    let mut members: Vec<String> = object
        .iter()
        .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())))
        .collect();
    if !members.is_empty() {
        members.push(index.get(&members).clone());
    }
    format!("{{{}}}", members.join(","))
}

/// Bodies: sound ones in which something was changed, others with the same names in them, and what is no JSON at all.
pub fn bodies(
    sound: &Value,
    names: &'static [&'static str],
) -> impl Strategy<Value = Vec<u8>> + use<> {
    let whole = sound.to_string();
    let length = whole.len();
    let places = || prop::collection::vec(any::<Index>(), 0..4);
    let changed = {
        let sound = sound.clone();
        (places(), value(names)).prop_map(move |(place, with)| {
            let mut changed = sound.clone();
            change(&mut changed, &place, with);
            changed.to_string().into_bytes()
        })
    };
    let with_more = {
        let sound = sound.clone();
        (text(), value(names)).prop_map(move |(name, more)| {
            let mut changed = sound.clone();
            if let Some(members) = changed.as_object_mut() {
                members.insert(name, more);
            }
            changed.to_string().into_bytes()
        })
    };
    let with_strange = {
        let sound = sound.clone();
        (places(), strange()).prop_map(move |(place, strange)| {
            let mut changed = sound.clone();
            change(&mut changed, &place, Value::from("\u{1}here\u{1}"));
            let marked = Value::from("\u{1}here\u{1}").to_string();
            changed.to_string().replace(&marked, &strange).into_bytes()
        })
    };
    let doubled = {
        let sound = sound.as_object().cloned().unwrap_or_default();
        any::<Index>().prop_map(move |index| twice(&sound, index).into_bytes())
    };
    let bent = (
        prop::collection::vec((0..length, any::<u8>()), 1..4),
        0..=length,
    )
        .prop_map(move |(bytes, end)| {
            let mut bent = whole.clone().into_bytes();
            for (at, byte) in bytes {
                bent[at] = byte;
            }
            // Half of them are cut off as well.
            if end % 2 == 0 {
                bent.truncate(end);
            }
            bent
        });
    prop_oneof![
        4 => changed,
        1 => with_more,
        2 => with_strange,
        1 => doubled,
        2 => bent,
        2 => value(names).prop_map(|value| value.to_string().into_bytes()),
        1 => strange().prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..60),
    ]
}

/// Queries of some of these parameters, and of others.
pub fn queries(names: &'static [&'static str]) -> impl Strategy<Value = Uri> {
    let name = prop_oneof![6 => select(names).prop_map(str::to_owned), 1 => text()];
    let words = select(vec![
        "queued",
        "finished,running",
        "oldest",
        "stale",
        "base64",
        "tests",
        "true",
        "0",
        "500",
        "501",
        "9e99",
        "-0",
        "inf",
    ]);
    let value = prop_oneof![2 => words.prop_map(str::to_owned), 3 => text()];
    let pairs = prop::collection::vec((name, value), 0..5).prop_map(|pairs| {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(pairs);
        query.finish()
    });
    let raw = "[a-z_]{0,12}=?(%[0-9a-fA-F]{0,2}|[a-z0-9&=+;,%-]){0,30}";
    prop_oneof![4 => pairs, 1 => raw]
        .prop_map(|query| format!("/?{query}").parse().unwrap_or_default())
}

/// Headers of these names.
pub fn headers(names: &'static [&'static str]) -> impl Strategy<Value = HeaderMap> {
    let bytes = prop_oneof![
        text().prop_map(String::into_bytes),
        select(vec![
            "\"3\"",
            "*",
            "W/\"3\"",
            "1-0-0",
            "1-2-3-4-end",
            "\"18446744073709551616\""
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(32..=255_u8, 0..300),
    ];
    prop::collection::vec((select(names), bytes), 0..3).prop_map(|fields| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.append(name, value);
            }
        }
        headers
    })
}

/// A submission with everything that one can have.
pub fn submission() -> Value {
    json!({
        "language": "python", "source": "print(1)", "entrypoint": "main.py", "args": ["a"], "env": { "A": "1" },
        "limits": { "cpu_ms": 100, "wall_ms": 200, "memory_kb": 65536, "processes": 9, "output_kb": 4, "open_files": 64, "file_kb": 64, "stack_kb": 1024 },
        "tests": [{ "name": "n", "stdin": "1", "expected": "2", "weight": 2, "hidden": true, "limits": { "cpu_ms": 50 } },
                  { "stdin_base64": "YQ==", "expected_base64": "YQ==" }],
        "stop_on_failure": true,
        "checker": { "type": "program", "language": "bash", "files": [{ "name": "a", "content": "exit 0" }], "entrypoint": "a", "limits": { "cpu_ms": 50 } },
        "labels": ["l"], "isolation_key": "k", "retention_s": 60, "priority": "low",
        "callback": { "url": "https://hook.example/x", "headers": { "X-Own": "v" }, "secret": "12345678" },
    })
}

/// One that can be talked to, with what the other cannot have.
pub fn conversation() -> Value {
    json!({
        "language": "bash", "files": [{ "name": "a", "content": "1" }, { "name": "b/c", "content_base64": "YQ==" }],
        "stdin_base64": "YQ==", "interactive": true, "terminal": { "rows": 24, "columns": 80 }, "outputs": ["x"],
    })
}

/// Names of fields.
pub const NAMES: &[&str] = &[
    "language",
    "source",
    "files",
    "name",
    "content",
    "content_base64",
    "entrypoint",
    "stdin",
    "stdin_base64",
    "tests",
    "expected",
    "expected_base64",
    "weight",
    "hidden",
    "limits",
    "cpu_ms",
    "wall_ms",
    "memory_kb",
    "processes",
    "output_kb",
    "open_files",
    "file_kb",
    "stack_kb",
    "stop_on_failure",
    "checker",
    "type",
    "absolute",
    "relative",
    "outputs",
    "args",
    "env",
    "labels",
    "isolation_key",
    "retention_s",
    "priority",
    "callback",
    "url",
    "headers",
    "secret",
    "interactive",
    "terminal",
    "rows",
    "columns",
    "jobs",
    "atomic",
    "ids",
    "until",
    "timeout_s",
    "image",
    "pin",
    "run",
    "compile",
    "compile_limits",
    "aliases",
    "title",
    "extensions",
    "example",
    "zygote",
    "version_command",
    "disabled",
    "peer",
    "http",
    "draining",
    "node",
    "retention_mb",
    "replace_voter_s",
    "signal",
];

#[test]
fn what_is_changed_is_sound_before() {
    for job in [submission(), conversation()] {
        let request = super::body::json(job.to_string().as_bytes()).expect("a request");
        rules().check(request).expect("a job");
    }
}
