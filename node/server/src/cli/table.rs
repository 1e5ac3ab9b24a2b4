//! Tables for people.

use serde_json::Value;

/// A value of JSON as a cell.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Rows below each other, each column as wide as its widest cell. What is not ours to print as it is, is not: a terminal
/// does what control characters say.
pub fn table(rows: &[Vec<String>]) -> String {
    let clean = |cell: &String| -> String {
        cell.chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect()
    };
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(clean).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_and_nothing_leaves_its_cell() {
        let rows = [
            vec!["a".to_owned(), "bc".to_owned()],
            vec!["äöü".to_owned(), "\u{1b}[2J\n".to_owned()],
        ];
        assert_eq!(table(&rows), "a    bc\näöü  \u{fffd}[2J\u{fffd}\n");
        assert_eq!(table(&[]), "");
        assert_eq!(text(&Value::Null), "-");
    }
}
