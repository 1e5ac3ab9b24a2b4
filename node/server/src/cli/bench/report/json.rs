//! The report for programs.

use serde_json::{Map, Value, json};

use super::super::mix::Program;
use super::super::record::{Figures, Times};
use super::super::verify::Verified;
use super::{PARTS, Report, curve, distributions, per_second};

/// The form of the file; grows when something changes its meaning.
const FORM: u32 = 1;

/// The whole report.
pub fn json(report: &Report) -> Value {
    let settings: Map<String, Value> = report
        .settings
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect();
    let mut body = json!({
        "form": FORM,
        "benchmark": report.mode,
        "quorun": crate::VERSION,
        "at": humantime::format_rfc3339_millis(report.at).to_string(),
        "passed": report.passed(),
        "settings": settings,
        "notes": report.notes,
    });
    if let Some(figures) = &report.figures {
        put_load(&mut body, figures);
    }
    if let Some(verified) = &report.verified {
        body["verified"] = verified_json(verified);
    }
    for (name, value) in &report.extra {
        body[name] = value.clone();
    }
    body
}

fn put_load(body: &mut Value, figures: &Figures) {
    let counts = figures.counts;
    body["jobs"] = json!({
        "sent": counts.sent,
        "warmup": counts.warm,
        "correct": counts.correct,
        "wrong": counts.wrong,
        "accepted_only": counts.accepted,
        "refused": counts.refused,
        "without_answer": counts.gave_up,
        "overflow": counts.overflow,
        "more_than_one_attempt": counts.retried,
        "measured": figures.measured,
    });
    body["seconds"] = round(figures.span.as_secs_f64());
    body["warmup_seconds"] = round(figures.warmup.as_secs_f64());
    body["per_second"] = round(per_second(figures));
    body["ms"] = distributions(figures)
        .into_iter()
        .map(|(name, _, times)| (name.to_owned(), times_json(times)))
        .collect::<Map<_, _>>()
        .into();
    body["programs"] = Program::ALL
        .iter()
        .zip(&figures.programs)
        .filter(|(_, of)| of.count + of.wrong > 0)
        .map(|(program, of)| {
            let value = json!({
                "jobs": of.count,
                "wrong": of.wrong,
                "total_ms": times_json(&of.total),
                "run_ms": times_json(&of.wall),
            });
            (program.name().to_owned(), value)
        })
        .collect::<Map<_, _>>()
        .into();
    body["errors"] = figures
        .errors
        .iter()
        .map(|(kind, (count, text))| (kind.clone(), json!({ "requests": count, "example": text })))
        .collect::<Map<_, _>>()
        .into();
    body["wrong_examples"] = json!(figures.examples);
    body["timeline"] = figures
        .seconds
        .iter()
        .enumerate()
        .map(|(second, of)| {
            json!({
                "second": second,
                "correct": of.correct,
                "wrong": of.wrong,
                "errors": of.errors,
                "p50_ms": round(of.p50_ms),
                "p99_ms": round(of.p99_ms),
                "max_ms": round(of.max_ms),
                "queued": of.queued,
            })
        })
        .collect();
    body["events"] = figures
        .events
        .iter()
        .map(|event| json!({ "second": round(event.at.as_secs_f64()), "what": event.what }))
        .collect();
}

/// Three places are as fine as what is measured.
pub fn round(value: f64) -> Value {
    ((value * 1e3).round() / 1e3).into()
}

/// A distribution.
pub fn times_json(times: &Times) -> Value {
    let mut body = json!({
        "count": times.len(),
        "min": round(times.min_ms()),
        "mean": round(times.mean_ms()),
        "max": round(times.max_ms()),
    });
    for (name, part) in PARTS {
        body[name] = round(times.ms(part));
    }
    body["curve"] = curve(times)
        .into_iter()
        .map(|(part, ms)| json!([(part * 1e7).round() / 1e7, round(ms)]))
        .collect();
    body
}

fn verified_json(verified: &Verified) -> Value {
    json!({
        "accepted": verified.accepted,
        "listed": verified.listed,
        "looked_up": verified.looked_up,
        "lost": verified.lost,
        "twice": verified.twice,
        "changed": verified.changed,
        "unknown_there": verified.unknown_there,
        "unknown_not_there": verified.unknown_not_there,
        "examples": verified.examples,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn the_figures_stand_under_their_names() {
        let body = json(&report());
        assert_eq!(body["passed"], false);
        assert_eq!(body["jobs"]["sent"], 1000);
        assert_eq!(body["jobs"]["wrong"], 1);
        assert_eq!(body["ms"]["total"]["count"], 999);
        assert!(body["ms"]["total"]["p99.9"].as_f64() > Some(900.0));
        // To three digits, as histograms keep them.
        let queue = body["ms"]["queue"]["max"].as_f64().unwrap();
        assert!((queue - 6.0).abs() < 0.01, "{queue}");
        assert_eq!(body["errors"]["503 no-quorum"]["requests"], 2);
        assert_eq!(body["verified"]["lost"], 0);
        assert_eq!(body["events"][0]["what"], "leader <node 1> killed");
        let timeline = body["timeline"].as_array().unwrap();
        let sum: u64 = timeline.iter().filter_map(|s| s["correct"].as_u64()).sum();
        assert_eq!(sum, 999);
        assert_eq!(timeline[0]["errors"], 2);
    }
}
