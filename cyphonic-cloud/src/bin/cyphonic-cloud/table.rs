//! Tables for people.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use cyphonic_cloud::register::UnixSeconds;

/// Rows under a heading, columns as wide as they must be.
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned)] }
    }

    pub(crate) fn row(&mut self, row: [String; N]) {
        self.rows.push(row);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: [usize; N] =
            std::array::from_fn(|column| self.rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A time as RFC 3339 writes it.
pub(crate) fn time(seconds: UnixSeconds) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) {
        // Past the year 9999 the form has no room.
        Some(time) if seconds < 253_402_300_800 => humantime::format_rfc3339_seconds(time).to_string(),
        _ => seconds.to_string(),
    }
}
