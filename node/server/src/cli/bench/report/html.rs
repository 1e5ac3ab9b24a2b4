//! The report as one page that needs nothing else: no script, nothing from elsewhere.

use std::fmt::Write as _;

use super::svg::{self, Curve, Span, escape};
use super::text::{is_figure, load_tables, verified_words};
use super::{Report, Table, condensed, curve, distributions};

/// Most places of a time axis.
const PLACES: usize = 600;

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub fn html(report: &Report) -> String {
    let mut out = String::new();
    let title = escape(&format!("Quorun bench: {}", report.title));
    let (class, word) = match (report.passed(), report.figures.is_some()) {
        (true, _) => ("good", "everything as it must be"),
        (false, _) => ("bad", "NOT as it must be"),
    };
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/><meta name=\"color-scheme\" content=\"light dark\"/><title>{title}</title><style>{STYLE}</style></head><body><main>"
    );
    let _ = write!(
        out,
        "<header><h1>{}</h1><p class=\"badge {class}\">{word}</p><p class=\"meta\">quorun bench {}, version {}, {}</p></header>",
        escape(&report.title),
        report.mode,
        crate::VERSION,
        humantime::format_rfc3339_seconds(report.at)
    );
    out.push_str("<section class=\"tiles\">");
    for headline in &report.headlines {
        let class = match headline.good {
            Some(true) => "tile good",
            Some(false) => "tile bad",
            None => "tile",
        };
        let _ = write!(
            out,
            "<div class=\"{class}\"><span>{}</span><b>{}</b></div>",
            escape(&headline.name),
            escape(&headline.value)
        );
    }
    out.push_str("</section>");
    for note in &report.notes {
        let _ = write!(out, "<p class=\"note\">{}</p>", escape(note));
    }
    for table in &report.tables {
        put_table(&mut out, table);
    }
    put_curves(&mut out, report);
    for table in load_tables(report).iter().chain(&report.more_tables) {
        put_table(&mut out, table);
    }
    if let Some(verified) = &report.verified {
        let _ = write!(
            out,
            "<section><h2>Looked up again</h2><p>{}</p>",
            escape(&verified_words(verified))
        );
        put_list(&mut out, &verified.examples);
        out.push_str("</section>");
    }
    if let Some(figures) = report.figures.as_ref().filter(|f| !f.examples.is_empty()) {
        out.push_str("<section><h2>Wrong answers</h2>");
        put_list(&mut out, &figures.examples);
        out.push_str("</section>");
    }
    out.push_str("<section><h2>How it was set</h2><table class=\"settings\">");
    for (name, value) in &report.settings {
        let _ = write!(
            out,
            "<tr><th>{}</th><td>{}</td></tr>",
            escape(name),
            escape(value)
        );
    }
    out.push_str("</table></section></main></body></html>\n");
    out
}

fn put_curves(out: &mut String, report: &Report) {
    let Some(figures) = &report.figures else {
        return;
    };
    let (width, seconds) = condensed(&figures.seconds, PLACES);
    let span = Span {
        width,
        seconds: seconds.len() * width,
        warmup: figures.warmup,
    };
    let events = &figures.events;
    if !seconds.is_empty() {
        let legend = if figures.counts.wrong > 0 {
            "<span class=\"key jobs\">as they should</span><span class=\"key bad\">wrong</span>"
        } else {
            ""
        };
        let errors = if figures.errors.is_empty() {
            ""
        } else {
            "<span class=\"key err\">seconds with errors on the way</span>"
        };
        let _ = write!(
            out,
            "<section class=\"chart\"><h2>Throughput</h2><p>jobs that ended, per second {legend}{errors}</p>{}",
            svg::throughput(&seconds, span, events)
        );
        if !events.is_empty() {
            out.push_str("<ol class=\"events\">");
            for event in events {
                let _ = write!(
                    out,
                    "<li><b>{:.1} s</b> {}</li>",
                    event.at.as_secs_f64(),
                    escape(&event.what)
                );
            }
            out.push_str("</ol>");
        }
        let _ = write!(
            out,
            "</section><section class=\"chart\"><h2>Latency over time</h2><p>from the planned arrival to the checked result, of the jobs that ended in each second; gaps are seconds in which none did</p>{}</section>",
            svg::latency(&seconds, span, events)
        );
        if seconds
            .iter()
            .any(|s| s.queued.is_some_and(|jobs| jobs > 0))
        {
            let _ = write!(
                out,
                "<section class=\"chart\"><h2>Waiting jobs</h2><p>accepted and not yet given to a node</p>{}</section>",
                svg::queue(&seconds, span, events)
            );
        }
    }
    let classes = [("total", "s-a"), ("run", "s-b"), ("queue", "s-c")];
    let curves: Vec<Curve<'_>> = distributions(figures)
        .into_iter()
        .filter_map(|(name, _, times)| {
            let (_, class) = classes.iter().find(|(known, _)| *known == name)?;
            Some((name, *class, curve(times)))
        })
        .collect();
    if !curves.is_empty() {
        let _ = write!(
            out,
            "<section class=\"chart\"><h2>Latency by percentile</h2><p>how long the job took that was slower than this part of all; <b>total</b> as the client saw it, <b>run</b> the program alone, <b>queue</b> waiting for a slot</p>{}</section>",
            svg::percentiles(&curves)
        );
    }
}

fn put_table(out: &mut String, table: &Table) {
    let _ = write!(
        out,
        "<section><h2>{}</h2><div class=\"wide\"><table><thead><tr>",
        escape(&table.title)
    );
    let class = |cell: &str, column: usize| {
        if column > 0 && is_figure(cell, table, column) {
            " class=\"figure\""
        } else {
            ""
        }
    };
    for (column, name) in table.columns.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", class(name, column), escape(name));
    }
    out.push_str("</tr></thead><tbody>");
    for row in &table.rows {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let tag = if column == 0 { "th" } else { "td" };
            let _ = write!(
                out,
                "<{tag}{}>{}</{tag}>",
                class(cell, column),
                escape(cell)
            );
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
    if !table.note.is_empty() {
        let _ = write!(out, "<p class=\"small\">{}</p>", escape(&table.note));
    }
    out.push_str("</section>");
}

fn put_list(out: &mut String, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    out.push_str("<ul>");
    for line in lines {
        let _ = write!(out, "<li><code>{}</code></li>", escape(line));
    }
    out.push_str("</ul>");
}

#[cfg(test)]
mod tests {
    use super::super::Report;
    use super::super::tests::report;
    use super::*;

    /// Every element that is opened is closed, in the right order.
    fn well_formed(page: &str) {
        let mut open = Vec::new();
        let mut rest = page
            .split_once("<html")
            .map(|(_, rest)| format!("<html{rest}"))
            .unwrap();
        while let Some(at) = rest.find('<') {
            let end = rest[at..].find('>').expect("a tag that ends") + at;
            let tag = rest[at + 1..end].to_owned();
            rest = rest[end + 1..].to_owned();
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "in {tag}");
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap().to_owned());
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_page_is_whole_and_needs_nothing_from_elsewhere() {
        let page = html(&report());
        well_formed(&page);
        for forbidden in [
            "<script",
            "http://",
            "https://",
            "url(",
            "@import",
            "</script>",
            "NaN",
            "inf",
        ] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        for wanted in [
            "NOT as it must be",
            "leader &lt;node 1&gt; killed",
            "&lt;/script&gt;",
            "a &amp; b",
            "Latency by percentile",
            // There are too few jobs for more.
            ">99 %<",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(wanted), "{wanted}");
        }
        // Nobody has looked how many wait.
        assert!(!page.contains("Waiting jobs"));
    }

    #[test]
    fn a_page_of_nothing_is_whole_as_well() {
        let mut report = Report::new("baseline", "Beside bare processes");
        well_formed(&html(&report));
        report.load(
            super::super::super::record::Record::new(std::time::Duration::ZERO).figures(),
            None,
        );
        well_formed(&html(&report));
    }
}
