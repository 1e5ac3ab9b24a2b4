//! Curves as SVG. Colours and sizes are classes; the page's style has them for a light and a dark ground.

use std::fmt::Write as _;
use std::time::Duration;

use super::super::record::{Event, Second};
use super::digits;

/// The drawing is this wide; the page scales it.
const WIDTH: f64 = 960.0;
/// Room for the figures of the axis, and for the names at the ends of lines.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 74.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 26.0;
/// What is shorter is drawn as if it were this, milliseconds.
const FLOOR_MS: f64 = 0.1;
/// Room that a name needs.
const LINE: f64 = 14.0;

/// Text for HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in XML, and never seen.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// From figures to places.
#[derive(Clone, Copy, Debug)]
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    fn linear(low: f64, high: f64, from: f64, to: f64) -> Self {
        Self {
            low,
            high: if high > low { high } else { low + 1.0 },
            from,
            to,
            log: false,
        }
    }

    fn log(low: f64, high: f64, from: f64, to: f64) -> Self {
        Self {
            log: true,
            ..Self::linear(low, high.max(low * 1.01), from, to)
        }
    }

    fn at(self, value: f64) -> f64 {
        let part = if self.log {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }
}

/// A step between lines of a grid: 1, 2 or 5 times a power of ten, so that there are about so many.
fn step(span: f64, about: f64) -> f64 {
    let raw = (span / about).max(1e-9);
    let power = 10f64.powf(raw.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0];
    let fitting = times.into_iter().find(|times| times * power >= raw);
    fitting.unwrap_or(10.0) * power
}

/// The figures at the lines of a linear grid.
fn ticks(high: f64, about: f64) -> Vec<f64> {
    let step = step(high, about);
    (0..)
        .map(|n| f64::from(n) * step)
        .take_while(|tick| *tick <= high * 1.0001)
        .take(100)
        .collect()
}

/// The figures at the lines of a logarithmic grid: 1, 10, 100; where that is less than a few, 2 and 5 times as well.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (high / low).log10();
    let times: &[f64] = if decades > 2.5 {
        &[1.0]
    } else {
        &[1.0, 2.0, 5.0]
    };
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32;
    (first..=last)
        .flat_map(|power| times.iter().map(move |times| times * 10f64.powi(power)))
        .filter(|tick| *tick >= low * 0.999 && *tick <= high * 1.001)
        .collect()
}

/// Milliseconds in few letters.
fn ms(value: f64) -> String {
    if value >= 1000.0 {
        let seconds = value / 1000.0;
        format!("{seconds} s")
    } else {
        format!("{value} ms")
    }
}

/// A whole drawing under way.
struct Drawing {
    svg: String,
    height: f64,
}

impl Drawing {
    fn new(height: f64, title: &str) -> Self {
        let svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
            escape(title)
        );
        Self { svg, height }
    }

    fn bottom(&self) -> f64 {
        self.height - BOTTOM
    }

    fn across(&mut self, y: f64, label: &str) {
        let right = WIDTH - RIGHT;
        let _ = write!(
            self.svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text class=\"tick end\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
            LEFT - 8.0,
            y + 4.0
        );
    }

    fn below(&mut self, x: f64, label: &str) {
        let y = self.bottom();
        let _ = write!(
            self.svg,
            "<text class=\"tick mid\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>",
            y + 18.0
        );
    }

    fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        match points {
            [] => {}
            [(x, y)] => {
                let _ = write!(
                    self.svg,
                    "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\"/>"
                );
            }
            _ => {
                let points: Vec<_> = points
                    .iter()
                    .map(|(x, y)| format!("{x:.1},{y:.1}"))
                    .collect();
                let _ = write!(
                    self.svg,
                    "<polyline class=\"line {class}\" points=\"{}\"/>",
                    points.join(" ")
                );
            }
        }
    }

    /// Names at the right end of lines, moved apart.
    fn names(&mut self, mut names: Vec<(&str, String, f64)>) {
        names.sort_by(|a, b| a.2.total_cmp(&b.2));
        let bottom = self.bottom() + 4.0;
        let mut free = 0.0;
        let count = names.len();
        for (place, (class, name, y)) in names.into_iter().enumerate() {
            // What comes below needs its room as well.
            let lowest = bottom - (count - 1 - place) as f64 * LINE;
            let y = (y + 4.0).min(lowest).max(free);
            free = y + LINE;
            let _ = write!(
                self.svg,
                "<text class=\"name {class}\" x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
                WIDTH - RIGHT + 6.0,
                escape(&name)
            );
        }
    }

    /// Marks of what happened, with their numbers.
    fn marks(&mut self, events: &[Event], x: Scale, numbered: bool) {
        let bottom = self.bottom();
        let mut free = 0.0;
        for (number, event) in events.iter().enumerate() {
            let at = x.at(event.at.as_secs_f64());
            let what = escape(&event.what);
            let _ = write!(
                self.svg,
                "<g class=\"mark\"><title>{:.1} s: {what}</title><line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>",
                event.at.as_secs_f64()
            );
            // Numbers that would lie on each other are left to the list.
            if numbered && at >= free {
                let _ = write!(
                    self.svg,
                    "<circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"8\"/><text class=\"mid\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
                    TOP - 10.0,
                    TOP - 6.0,
                    number + 1
                );
                free = at + 17.0;
            }
            self.svg.push_str("</g>");
        }
    }

    fn end(mut self) -> String {
        self.svg.push_str("</svg>");
        self.svg
    }
}

/// The time axis of a run.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Seconds of one place.
    pub width: usize,
    /// Seconds in all.
    pub seconds: usize,
    /// The warm-up.
    pub warmup: Duration,
}

impl Span {
    fn scale(self) -> Scale {
        Scale::linear(0.0, self.seconds as f64, LEFT, WIDTH - RIGHT)
    }

    fn draw(self, drawing: &mut Drawing) -> Scale {
        let x = self.scale();
        let warm = self.warmup.as_secs_f64().min(self.seconds as f64);
        if warm > 0.0 {
            let (right, bottom) = (x.at(warm), drawing.bottom());
            let _ = write!(
                drawing.svg,
                "<rect class=\"warm\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>warm-up</title></rect>",
                right - LEFT,
                bottom - TOP
            );
        }
        let minutes = self.seconds > 300;
        let unit = if minutes { 60.0 } else { 1.0 };
        for tick in ticks(self.seconds as f64 / unit, 8.0) {
            let label = format!("{}{}", tick, if minutes { " min" } else { " s" });
            drawing.below(x.at(tick * unit), &label);
        }
        x
    }
}

/// Jobs per second over time, with marks.
pub fn throughput(seconds: &[Second], span: Span, events: &[Event]) -> String {
    let mut drawing = Drawing::new(220.0, "Jobs per second over time");
    let per = |count: u64| count as f64 / span.width as f64;
    let most = seconds.iter().map(|s| per(s.correct + s.wrong));
    let most = most.fold(1.0, f64::max);
    // Up to a line of the grid, so that what is highest can be read.
    let grid = step(most, 4.0);
    let most = (most / grid).ceil() * grid;
    let y = Scale::linear(0.0, most, drawing.bottom(), TOP);
    for tick in ticks(most, 4.0) {
        drawing.across(y.at(tick), &digits_of(tick));
    }
    let x = span.draw(&mut drawing);
    let floor = drawing.bottom();
    for (place, second) in seconds.iter().enumerate() {
        let from = place * span.width;
        let (left, right) = (x.at(from as f64), x.at((from + span.width) as f64));
        // A gap between bars only where they are wide enough to have one.
        let gap = if right - left > 4.0 { 1.5 } else { 0.0 };
        let (correct, all) = (
            y.at(per(second.correct)),
            y.at(per(second.correct + second.wrong)),
        );
        let _ = write!(
            drawing.svg,
            "<g class=\"bar\"><title>{from} s: {} jobs/s",
            digits(per(second.correct))
        );
        if second.wrong > 0 {
            let _ = write!(drawing.svg, ", {} wrong", second.wrong);
        }
        if second.errors > 0 {
            let _ = write!(drawing.svg, ", {} errors on the way", second.errors);
        }
        drawing.svg.push_str("</title>");
        let mut rect = |class: &str, top: f64, bottom: f64| {
            if bottom - top > 0.05 {
                let _ = write!(
                    drawing.svg,
                    "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                    right - left - gap,
                    bottom - top
                );
            }
        };
        rect("jobs", correct, floor);
        rect(
            "bad",
            all.min(correct - if second.wrong > 0 { 2.0 } else { 0.0 }),
            correct,
        );
        if second.errors > 0 {
            rect("err", floor + 1.0, floor + 4.0);
        }
        drawing.svg.push_str("</g>");
    }
    drawing.marks(events, x, true);
    drawing.end()
}

fn digits_of(tick: f64) -> String {
    if tick >= 1000.0 {
        format!("{}k", tick / 1000.0)
    } else {
        tick.to_string()
    }
}

/// The range of some times, for a logarithmic axis. Times in whole milliseconds may be 0, which such an axis does not
/// have: they lie on its floor.
fn range(values: impl Iterator<Item = f64> + Clone) -> Option<(f64, f64)> {
    let some = values.filter(|value| *value > 0.0);
    let low = some.clone().fold(f64::INFINITY, f64::min).max(FLOOR_MS);
    let high = some.fold(0.0, f64::max);
    (high > FLOOR_MS).then(|| (low * 0.8, (high * 1.15).max(low * 2.0)))
}

/// Latency over time, with marks.
pub fn latency(seconds: &[Second], span: Span, events: &[Event]) -> String {
    let mut drawing = Drawing::new(220.0, "Latency over time");
    type Get = fn(&Second) -> f64;
    let lines: [(&str, &str, Get); 3] = [
        ("max", "s-c", |second| second.max_ms),
        ("p99", "s-b", |second| second.p99_ms),
        ("p50", "s-a", |second| second.p50_ms),
    ];
    let all = seconds.iter().flat_map(|s| [s.p50_ms, s.max_ms]);
    let (low, high) = range(all).unwrap_or((1.0, 10.0));
    let y = Scale::log(low, high, drawing.bottom(), TOP);
    for tick in log_ticks(low, high) {
        drawing.across(y.at(tick), &ms(tick));
    }
    let x = span.draw(&mut drawing);
    let mut names = Vec::new();
    for (name, class, get) in lines {
        // Seconds in which nothing ended are a gap in the line, not a zero.
        for piece in seconds
            .iter()
            .enumerate()
            .collect::<Vec<_>>()
            .split(|(_, s)| get(s) <= 0.0)
        {
            let points: Vec<_> = piece
                .iter()
                .map(|(place, second)| {
                    let middle = (*place as f64 + 0.5) * span.width as f64;
                    (x.at(middle), y.at(get(second)))
                })
                .collect();
            drawing.line(class, &points);
        }
        if let Some(last) = seconds.iter().rev().find(|s| get(s) > 0.0) {
            names.push((class, name.to_owned(), y.at(get(last))));
        }
    }
    drawing.names(names);
    drawing.marks(events, x, false);
    drawing.end()
}

/// Jobs that wait for a slot, over time.
pub fn queue(seconds: &[Second], span: Span, events: &[Event]) -> String {
    let mut drawing = Drawing::new(130.0, "Waiting jobs over time");
    let most = seconds
        .iter()
        .filter_map(|s| s.queued)
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    let y = Scale::linear(0.0, most, drawing.bottom(), TOP);
    for tick in ticks(most, 2.0) {
        drawing.across(y.at(tick), &digits_of(tick));
    }
    let x = span.draw(&mut drawing);
    let points: Vec<_> = seconds
        .iter()
        .enumerate()
        .filter_map(|(place, second)| {
            let middle = (place as f64 + 0.5) * span.width as f64;
            Some((x.at(middle), y.at(second.queued? as f64)))
        })
        .collect();
    drawing.line("s-a", &points);
    drawing.marks(events, x, false);
    drawing.end()
}

/// A distribution to be drawn: name, class, points of (the part below, milliseconds).
pub type Curve<'a> = (&'a str, &'a str, Vec<(f64, f64)>);

/// Latency by the part of the jobs that were faster, so that the rare slow ones get as much room as the many.
pub fn percentiles(curves: &[Curve<'_>]) -> String {
    let mut drawing = Drawing::new(300.0, "Latency by percentile");
    let rarity = |part: f64| 1.0 / (1.0 - part).max(1e-9);
    let points = || curves.iter().flat_map(|(_, _, points)| points.iter());
    let rarest = points().map(|(part, _)| rarity(*part)).fold(10.0, f64::max);
    let x = Scale::log(1.0, rarest, LEFT, WIDTH - RIGHT);
    let (low, high) = range(points().map(|(_, ms)| *ms)).unwrap_or((1.0, 10.0));
    let y = Scale::log(low, high, drawing.bottom(), TOP);
    for tick in log_ticks(low, high) {
        drawing.across(y.at(tick), &ms(tick));
    }
    let marks = [
        (0.0, "fastest"),
        (0.5, "50 %"),
        (0.9, "90 %"),
        (0.99, "99 %"),
        (0.999, "99.9 %"),
        (0.9999, "99.99 %"),
        (0.99999, "99.999 %"),
        (0.999_999, "99.9999 %"),
    ];
    let (top, bottom) = (TOP, drawing.bottom());
    for (part, label) in marks {
        if rarity(part) <= rarest * 1.0001 {
            let at = x.at(rarity(part));
            let _ = write!(
                drawing.svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>"
            );
            drawing.below(at, label);
        }
    }
    let mut names = Vec::new();
    for (name, class, points) in curves {
        let placed: Vec<_> = points
            .iter()
            .map(|(part, ms)| (x.at(rarity(*part)), y.at(*ms)))
            .collect();
        drawing.line(class, &placed);
        for (part, label) in marks.iter().skip(1) {
            // The point of the line that is nearest to the mark.
            let away = |(p, _): &&(f64, f64)| (x.at(rarity(*p)) - x.at(rarity(*part))).abs();
            let nearest = points.iter().min_by(|a, b| away(a).total_cmp(&away(b)));
            let Some((_, time)) = nearest else { continue };
            if rarity(*part) > rarest * 1.0001 {
                continue;
            }
            let _ = write!(
                drawing.svg,
                "<circle class=\"dot {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{name}: {label} took at most {} ms</title></circle>",
                x.at(rarity(*part)),
                y.at(*time),
                digits(*time)
            );
        }
        if let Some((_, ms)) = points.last() {
            names.push((*class, (*name).to_owned(), y.at(*ms)));
        }
    }
    drawing.names(names);
    drawing.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_have_round_figures() {
        assert_eq!(ticks(10.0, 4.0), [0.0, 5.0, 10.0]);
        assert_eq!(ticks(1.0, 2.0), [0.0, 0.5, 1.0]);
        assert_eq!(log_ticks(0.8, 1200.0), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(log_ticks(8.0, 60.0), [10.0, 20.0, 50.0]);
        assert_eq!(
            (ms(20.0), ms(5000.0)),
            ("20 ms".to_owned(), "5 s".to_owned())
        );
    }

    #[test]
    fn scales_keep_within_their_ends() {
        let log = Scale::log(1.0, 1000.0, 0.0, 300.0);
        assert!((log.at(10.0) - 100.0).abs() < 1e-9);
        assert!(log.at(0.0).abs() < 1e-9 && (log.at(1e9) - 300.0).abs() < 1e-9);
        let none = Scale::linear(0.0, 0.0, 10.0, 20.0);
        assert!((none.at(0.0) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(
            escape("<a href='x'>&\"\u{1}"),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}"
        );
    }
}
