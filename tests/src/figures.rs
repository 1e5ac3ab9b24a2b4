//! What a node shows at `/metrics`, read by the rules of Prometheus' text format (version 0.0.4).

use std::collections::BTreeMap;

/// The labels of a figure.
pub type Labels = BTreeMap<String, String>;

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Its name, with what a histogram puts behind it.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its value.
    pub value: f64,
}

/// All of them, in their order.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// The lines with values.
    pub all: Vec<Figure>,
    /// The type of each family.
    pub types: BTreeMap<String, String>,
}

impl Figures {
    /// Reads a page.
    ///
    /// # Errors
    /// The first line that is not as it should be, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut figures = Self::default();
        let mut helped = String::new();
        let mut family = String::new();
        if !text.ends_with('\n') {
            return Err("the last line does not end".to_owned());
        }
        for line in text.lines() {
            let wrong = |why: &str| format!("{why}: {line}");
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
                if !is_name(name) || help.trim().is_empty() {
                    return Err(wrong("a name and what it means"));
                }
                helped = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
                if name != helped {
                    return Err(wrong("the type is not behind the help"));
                }
                if !["counter", "gauge", "histogram"].contains(&kind) {
                    return Err(wrong("an unknown type"));
                }
                let before = figures.types.insert(name.to_owned(), kind.to_owned());
                if before.is_some() {
                    return Err(wrong("there twice"));
                }
                family = name.to_owned();
            } else {
                let figure = parse_figure(line).ok_or_else(|| wrong("not a figure"))?;
                let kind = figures.types.get(&family).map(String::as_str);
                let ends: &[&str] = match kind {
                    Some("histogram") => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                if !ends
                    .iter()
                    .any(|end| figure.name == format!("{family}{end}"))
                {
                    return Err(wrong("not of the family above it"));
                }
                let same =
                    |other: &Figure| (&other.name, &other.labels) == (&figure.name, &figure.labels);
                if figures.all.iter().any(same) {
                    return Err(wrong("there twice"));
                }
                figures.all.push(figure);
            }
        }
        figures.check_histograms()?;
        Ok(figures)
    }

    /// Buckets grow, and the last one holds as many as there are.
    fn check_histograms(&self) -> Result<(), String> {
        let mut buckets: BTreeMap<(String, Labels), Vec<(f64, f64)>> = BTreeMap::new();
        for figure in &self.all {
            let Some(name) = figure.name.strip_suffix("_bucket") else {
                continue;
            };
            let mut labels = figure.labels.clone();
            let end = labels.remove("le").ok_or("a bucket without its end")?;
            let end = parse_value(&end).ok_or("an end that is no number")?;
            let key = (name.to_owned(), labels);
            buckets.entry(key).or_default().push((end, figure.value));
        }
        for ((name, labels), buckets) in buckets {
            let grows = buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
            let last = buckets.last().copied().unwrap_or_default();
            let count = self.exactly(&format!("{name}_count"), &labels);
            if !grows || last.0 != f64::INFINITY || Some(last.1) != count {
                return Err(format!("{name} {labels:?}: {buckets:?}, {count:?}"));
            }
        }
        Ok(())
    }

    fn exactly(&self, name: &str, labels: &Labels) -> Option<f64> {
        let found = self
            .all
            .iter()
            .find(|f| f.name == name && f.labels == *labels);
        found.map(|figure| figure.value)
    }

    /// The sum of the figures of this name that have these labels, and maybe others.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |figure: &&Figure| {
            figure.name == name
                && labels
                    .iter()
                    .all(|(label, value)| figure.labels.get(*label).is_some_and(|v| v == value))
        };
        self.all.iter().filter(has).map(|figure| figure.value).sum()
    }

    /// How often a phase of a job was measured.
    #[must_use]
    pub fn phase(&self, phase: &str) -> f64 {
        self.sum("quorun_job_phase_seconds_count", &[("phase", phase)])
    }

    /// The mean of a phase of a job since `before`, milliseconds.
    #[must_use]
    pub fn phase_ms(&self, before: &Self, phase: &str) -> f64 {
        let labels = [("phase", phase)];
        let since = |name: &str| self.sum(name, &labels) - before.sum(name, &labels);
        let count = since("quorun_job_phase_seconds_count");
        1000.0 * since("quorun_job_phase_seconds_sum") / count.max(1.0)
    }

    /// Memory of the process, bytes.
    #[must_use]
    pub fn memory(&self) -> f64 {
        self.sum("process_resident_memory_bytes", &[])
    }
}

fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':')
        && letters.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

fn parse_value(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        _ => text.parse().ok().filter(|value: &f64| value.is_finite()),
    }
}

fn parse_figure(line: &str) -> Option<Figure> {
    let (head, value) = line.rsplit_once(' ')?;
    let (name, labels) = match head.split_once('{') {
        None => (head, Labels::new()),
        Some((name, rest)) => (name, parse_labels(rest.strip_suffix('}')?)?),
    };
    Some(Figure {
        name: is_name(name).then(|| name.to_owned())?,
        labels,
        value: parse_value(value)?,
    })
}

/// `a="b",c="d"`, with `\`, `"` and line ends escaped.
fn parse_labels(mut text: &str) -> Option<Labels> {
    let mut labels = Labels::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = rest.char_indices();
        let end = loop {
            match letters.next()? {
                (_, '\\') => value.push(match letters.next()?.1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    _ => return None,
                }),
                (at, '"') => break at,
                (_, c) => value.push(c),
            }
        };
        if !is_name(name) || labels.insert(name.to_owned(), value).is_some() {
            return None;
        }
        text = &rest[end + 1..];
        if let Some(more) = text.strip_prefix(',') {
            text = more;
        } else if !text.is_empty() {
            return None;
        }
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_well_formed_is_read_and_what_is_not_is_refused() {
        let good = "# HELP a_total what it is\n# TYPE a_total counter\na_total{x=\"y\\\"\\\\z\",b=\"\"} 2\na_total 3.5\n\
                    # HELP h ours\n# TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 7\nh_count 2\n";
        let figures = Figures::parse(good).unwrap();
        assert!((figures.sum("a_total", &[]) - 5.5).abs() < 1e-9);
        assert!((figures.sum("a_total", &[("x", "y\"\\z")]) - 2.0).abs() < 1e-9);
        for (part, instead) in [
            ("# HELP h ours\n", ""),
            ("# TYPE h histogram\n", ""),
            ("a_total 3.5", "a_total three"),
            ("a_total 3.5", "b_total 3.5"),
            ("a_total 3.5", "a_total{x=\"y\\\"\\\\z\",b=\"\"} 2"),
            ("le=\"0.5\"} 1", "le=\"0.5\"} 3"),
            ("h_count 2", "h_count 3"),
            ("b=\"\"", "b=\""),
        ] {
            let bad = good.replacen(part, instead, 1);
            assert_ne!(bad, good);
            Figures::parse(&bad).unwrap_err();
        }
    }
}
