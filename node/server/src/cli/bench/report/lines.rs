//! Figures of several rounds: least, median, largest, and each of them.

use serde_json::{Map, Value, json};

use super::json::round;
use super::{Table, digits};

/// A figure of every round.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it is, for people.
    pub name: &'static str,
    /// What it is, for programs.
    pub key: &'static str,
    /// Of each round.
    pub values: Vec<f64>,
}

impl Line {
    /// The least of the rounds.
    pub fn least(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The median of the rounds.
    pub fn middle(&self) -> f64 {
        median(self.values.clone())
    }

    /// The largest of the rounds.
    pub fn largest(&self) -> f64 {
        let values = self.values.iter().copied();
        values.fold(f64::NEG_INFINITY, f64::max)
    }
}

/// The lines of some rounds. One that a round has no figure for is left out.
#[derive(Debug)]
pub struct Lines<'a, R> {
    rounds: &'a [R],
    lines: Vec<Line>,
}

impl<'a, R> Lines<'a, R> {
    /// None yet.
    pub fn new(rounds: &'a [R]) -> Self {
        Self {
            rounds,
            lines: Vec::new(),
        }
    }

    /// One more.
    pub fn line(&mut self, name: &'static str, key: &'static str, get: impl Fn(&R) -> Option<f64>) {
        let values: Vec<f64> = self.rounds.iter().filter_map(get).collect();
        if values.len() == self.rounds.len() {
            self.lines.push(Line { name, key, values });
        }
    }

    /// All of them.
    pub fn all(self) -> Vec<Line> {
        self.lines
    }
}

/// The lines as a table.
pub fn table(lines: &[Line], note: impl Into<String>) -> Table {
    let rounds = lines.first().map_or(0, |line| line.values.len());
    let mut columns = ["", "min", "median", "max"].map(str::to_owned).to_vec();
    columns.extend((1..=rounds).map(|n| format!("round {n}")));
    let row = |line: &Line| {
        let mut row = vec![line.name.to_owned()];
        row.extend([line.least(), line.middle(), line.largest()].map(digits));
        row.extend(line.values.iter().copied().map(digits));
        row
    };
    Table {
        title: match rounds {
            1 => "1 round".to_owned(),
            _ => format!("{rounds} rounds"),
        },
        columns,
        rows: lines.iter().map(row).collect(),
        note: note.into(),
    }
}

/// The lines for programs.
pub fn json(lines: &[Line]) -> Map<String, Value> {
    let of = |line: &Line| {
        let [least, middle, largest] = [line.least(), line.middle(), line.largest()].map(round);
        let all: Vec<_> = line.values.iter().copied().map(round).collect();
        json!({ "min": least, "median": middle, "max": largest, "rounds": all })
    };
    lines
        .iter()
        .map(|line| (line.key.to_owned(), of(line)))
        .collect()
}

/// The median; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }

    #[test]
    fn a_line_has_a_figure_of_every_round_or_is_left_out() {
        let rounds = [(3.0, Some(1.0)), (1.0, None), (2.5, Some(4.0))];
        let mut lines = Lines::new(&rounds);
        lines.line("first", "first_key", |round| Some(round.0));
        lines.line("second", "second_key", |round| round.1);
        let lines = lines.all();
        let table = table(&lines, "note");
        assert_eq!(table.title, "3 rounds");
        let columns = ["", "min", "median", "max", "round 1", "round 2", "round 3"];
        assert_eq!(table.columns, columns);
        let row = ["first", "1.00", "2.50", "3.00", "3.00", "1.00", "2.50"];
        assert_eq!(table.rows, [row]);
        let body = Value::Object(json(&lines));
        let of = json!({ "min": 1.0, "median": 2.5, "max": 3.0, "rounds": [3.0, 1.0, 2.5] });
        assert_eq!(body, json!({ "first_key": of }));
    }
}
