//! Figures for people: two columns, with units.

use std::fmt;

use super::samples::Quantiles;

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    what: String,
    figure: String,
}

impl Row {
    /// A figure and what it says.
    pub(super) fn new(what: impl Into<String>, figure: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            figure: figure.into(),
        }
    }

    /// The three lines of what took time.
    pub(super) fn quantiles(what: &str, quantiles: &Quantiles) -> [Self; 3] {
        [
            Self::new(format!("{what}, p50"), millis(quantiles.p50_ms)),
            Self::new(format!("{what}, p99"), millis(quantiles.p99_ms)),
            Self::new(format!("{what}, at most"), millis(quantiles.max_ms)),
        ]
    }
}

/// Writes the lines, the figures right-aligned.
pub(super) fn write_table(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    let width = |text: &str| text.chars().count();
    let left = rows.iter().map(|row| width(&row.what)).max().unwrap_or(0);
    let right = rows.iter().map(|row| width(&row.figure)).max().unwrap_or(0);
    for Row { what, figure } in rows {
        writeln!(f, "{what:left$}  {figure:>right$}")?;
    }
    Ok(())
}

/// A number.
pub(super) fn count(number: u64) -> String {
    number.to_string()
}

/// So many a second.
pub(super) fn rate(per_second: Option<f64>) -> String {
    per_second.map_or_else(none, |rate| format!("{rate:.0} /s"))
}

/// A time.
pub(super) fn millis(millis: Option<f64>) -> String {
    millis.map_or_else(none, |millis| format!("{millis:.3} ms"))
}

/// A size.
pub(super) fn bytes(bytes: f64) -> String {
    if bytes < 1024.0 * 1024.0 {
        format!("{:.1} KiB", bytes / 1024.0)
    } else {
        format!("{:.1} MiB", bytes / 1024.0 / 1024.0)
    }
}

/// There was nothing to measure.
fn none() -> String {
    "none".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table(Vec<Row>);

    impl fmt::Display for Table {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_table(f, &self.0)
        }
    }

    #[test]
    fn figures_stand_below_each_other() {
        let table = Table(vec![
            Row::new("a", rate(Some(1234.4))),
            Row::new("µ of it", millis(None)),
            Row::new("size", bytes(1536.0)),
            Row::new("sizes", bytes(3.5 * 1024.0 * 1024.0)),
        ]);
        assert_eq!(
            table.to_string(),
            "a        1234 /s\nµ of it     none\nsize     1.5 KiB\nsizes    3.5 MiB\n"
        );
    }
}
