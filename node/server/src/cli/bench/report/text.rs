//! The report for a terminal.

use std::fmt::Write as _;

use super::super::mix::Program;
use super::super::verify::Verified;
use super::{PARTS, Report, Table, digits, distributions};

/// The whole report.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "\n{}", report.title);
    for (name, value) in &report.settings {
        let _ = writeln!(out, "  {name}: {value}");
    }
    out.push('\n');
    let names = report.headlines.iter().map(|h| h.name.chars().count());
    let width = names.max().unwrap_or(0) + 2;
    for headline in &report.headlines {
        let mark = match headline.good {
            Some(false) => "  <-- NOT AS IT MUST BE",
            _ => "",
        };
        let _ = writeln!(out, "  {:<width$}{}{mark}", headline.name, headline.value);
    }
    let load = load_tables(report);
    for table in report.tables.iter().chain(&load).chain(&report.more_tables) {
        put(&mut out, table);
    }
    if let Some(figures) = &report.figures {
        lines(&mut out, "wrong answers", &figures.examples);
        let events: Vec<_> = figures
            .events
            .iter()
            .map(|event| format!("{:>7.1} s  {}", event.at.as_secs_f64(), event.what))
            .collect();
        lines(&mut out, "what happened", &events);
    }
    if let Some(verified) = &report.verified {
        let _ = writeln!(out, "\n{}", verified_words(verified));
        lines(&mut out, "not as it must be", &verified.examples);
    }
    for note in &report.notes {
        let _ = writeln!(out, "\nnote: {note}");
    }
    out.push('\n');
    out
}

/// What was looked up, in words.
pub fn verified_words(verified: &Verified) -> String {
    let Verified {
        accepted,
        listed,
        looked_up,
        lost,
        twice,
        changed,
        unknown_there,
        unknown_not_there,
        ..
    } = verified;
    let mut text = format!(
        "looked up afterwards: {accepted} accepted, {listed} listed, {looked_up} asked for by id; {lost} lost, {twice} twice, {changed} changed"
    );
    if unknown_there + unknown_not_there > 0 {
        let _ = write!(
            text,
            "; of those without an answer {unknown_there} had been accepted, {unknown_not_there} not"
        );
    }
    text
}

/// The tables of a load.
pub fn load_tables(report: &Report) -> Vec<Table> {
    let Some(figures) = &report.figures else {
        return Vec::new();
    };
    let parts = || PARTS.iter().map(|(name, _)| (*name).to_owned());
    let columns = |first: &[&str], last: &[&str]| -> Vec<String> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        [owned(first), parts().collect(), owned(last)].concat()
    };
    let mut tables = Vec::new();
    let rows = distributions(figures).into_iter().map(|(name, _, times)| {
        let mut row = vec![
            name.to_owned(),
            times.len().to_string(),
            digits(times.min_ms()),
        ];
        row.push(digits(times.mean_ms()));
        row.extend(PARTS.iter().map(|(_, part)| digits(times.ms(*part))));
        row.push(digits(times.max_ms()));
        row
    });
    let words: Vec<_> = distributions(figures)
        .into_iter()
        .map(|(name, words, _)| format!("{name}: {words}"))
        .collect();
    tables.push(Table {
        title: "Times, ms".to_owned(),
        columns: columns(&["", "jobs", "min", "mean"], &["max"]),
        rows: rows.collect(),
        note: words.join("; "),
    });
    let programs = Program::ALL.iter().zip(&figures.programs);
    let rows: Vec<_> = programs
        .filter(|(_, of)| of.count + of.wrong > 0)
        .map(|(program, of)| {
            let mut row = vec![
                program.name().to_owned(),
                of.count.to_string(),
                of.wrong.to_string(),
            ];
            row.extend(PARTS.iter().map(|(_, part)| digits(of.total.ms(*part))));
            row.push(digits(of.total.max_ms()));
            row.push(digits(of.wall.ms(0.5)));
            row
        })
        .collect();
    if !rows.is_empty() {
        tables.push(Table {
            title: "Programs, ms".to_owned(),
            columns: columns(&["", "jobs", "wrong"], &["max", "run p50"]),
            rows,
            note: String::new(),
        });
    }
    let counts = figures.counts;
    let rows = [
        ("sent", counts.sent),
        ("of them in the warm-up", counts.warm),
        ("ended as they should", counts.correct),
        ("ended in another way", counts.wrong),
        ("accepted and not waited for", counts.accepted),
        ("turned away (429)", counts.refused),
        ("without an answer", counts.gave_up),
        ("due and not sent", counts.overflow),
        ("more than one attempt", counts.retried),
    ];
    tables.push(Table {
        title: "Jobs".to_owned(),
        columns: vec![String::new(), "jobs".to_owned()],
        rows: rows
            .into_iter()
            .filter(|(name, count)| *count > 0 || matches!(*name, "sent" | "ended in another way"))
            .map(|(name, count)| vec![name.to_owned(), count.to_string()])
            .collect(),
        note: String::new(),
    });
    if !figures.errors.is_empty() {
        let rows = figures.errors.iter();
        tables.push(Table {
            title: "Errors on the way".to_owned(),
            columns: vec![
                String::new(),
                "requests".to_owned(),
                "for example".to_owned(),
            ],
            rows: rows
                .map(|(kind, (count, text))| vec![kind.clone(), count.to_string(), text.clone()])
                .collect(),
            note: "a job whose request goes wrong is sent again with its key, to the next node"
                .to_owned(),
        });
    }
    tables
}

fn lines(out: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}:");
    for line in lines {
        let _ = writeln!(out, "  {line}");
    }
}

fn put(out: &mut String, table: &Table) {
    let width = |column: usize| {
        let rows = table.rows.iter().filter_map(|row| row.get(column));
        let cells = rows.chain(table.columns.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    let _ = writeln!(out, "\n{}", table.title);
    for row in std::iter::once(&table.columns).chain(&table.rows) {
        let mut line = String::from("  ");
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 || !is_figure(cell, table, column) {
                let _ = write!(line, "{cell:<width$}  ");
            } else {
                let _ = write!(line, "{cell:>width$}  ");
            }
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    if !table.note.is_empty() {
        let _ = writeln!(out, "  ({})", table.note);
    }
}

/// Whether a column holds figures: they stand at its right.
pub fn is_figure(cell: &str, table: &Table, column: usize) -> bool {
    let number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit() || "+-x".contains(c));
    let first = table.rows.first().and_then(|row| row.get(column));
    number(cell) || first.is_some_and(|first| number(first))
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn what_is_wrong_cannot_be_overlooked() {
        let text = text(&report());
        for words in [
            "NOT AS IT MUST BE",
            "job 500",
            "503 no-quorum",
            "leader <node 1> killed",
            "1000 accepted, 1000 listed",
            "p99.9",
            "endless",
            "less is better",
        ] {
            assert!(text.contains(words), "{words} is missing in:\n{text}");
        }
    }
}
