//! Data on stdout: a table, JSON, YAML, or names.

use std::io::{self, Write};

use fabric::seams::{Clock, real::KernelClock};
use serde::Serialize;

use super::args::Output;
use super::error::{CliError, Exit};
use crate::api::types::List;

/// Something that has a row in a table and a name.
pub trait Row {
    /// Titles of the columns.
    const COLUMNS: &'static [&'static str];
    /// What `-o name` prints.
    fn name(&self) -> String;
    /// The cells.
    fn cells(&self, now_ms: u64) -> Vec<String>;
}

/// What a worker's answers are about.
pub const WORKER: &str = "this node is a worker and knows what concerns itself alone";

/// The wall clock, for ages.
pub fn now_ms() -> u64 {
    KernelClock.wall().as_millis() as u64
}

/// Writes text to stdout.
///
/// # Errors
/// When stdout is gone for another reason than a reader that had enough.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Serializes in the shape asked for; a table is the caller's.
fn structured<T: Serialize>(output: Output, value: &T) -> Result<String, CliError> {
    let failed = |error: String| CliError::new(Exit::Failed, format!("the answer cannot be printed: {error}"));
    match output {
        Output::Yaml => serde_saphyr::to_string(value).map_err(|error| failed(error.to_string())),
        _ => serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| failed(error.to_string())),
    }
}

/// One thing: `table` gives what people see.
///
/// # Errors
/// When stdout is gone.
pub fn one<T: Serialize>(
    output: Output,
    value: &T,
    name: &str,
    table: impl FnOnce() -> String,
) -> Result<(), CliError> {
    match output {
        Output::Table => print(&table()),
        Output::Name => print(&format!("{name}\n")),
        _ => print(&structured(output, value)?),
    }
}

/// One thing with all its fields: people get YAML.
///
/// # Errors
/// When stdout is gone.
pub fn inspect<T: Serialize>(output: Output, value: &T, name: &str) -> Result<(), CliError> {
    match output {
        Output::Name => print(&format!("{name}\n")),
        Output::Table => print(&structured(Output::Yaml, value)?),
        _ => print(&structured(output, value)?),
    }
}

/// A list. What may be missing is said on stderr.
///
/// # Errors
/// When stdout is gone.
pub fn list<T: Row + Serialize>(output: Output, list: &List<T>) -> Result<(), CliError> {
    match output {
        Output::Table => {
            let now_ms = now_ms();
            let rows: Vec<_> = list.items.iter().map(|item| item.cells(now_ms)).collect();
            print(&table(T::COLUMNS, &rows))?;
        }
        Output::Name => print(&list.items.iter().map(|item| item.name() + "\n").collect::<String>())?,
        _ => print(&structured(output, list)?)?,
    }
    if !list.unreachable.is_empty() {
        let names = list.unreachable.join(", ");
        let _ = writeln!(anstream::stderr(), "no answer from {names}: what they observe is missing");
    }
    if list.partial {
        let _ = writeln!(anstream::stderr(), "{WORKER}: ask a node with role voter for the rest");
    }
    Ok(())
}

/// Columns aligned to the left, two spaces between them, titles in capitals. What would disturb a terminal is escaped.
pub fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let clean = |text: &str| -> String {
        text.chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
            .collect()
    };
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|title| title.to_uppercase()).collect()];
    lines.extend(rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()));
    let mut widths = vec![0; columns.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for line in lines {
        let padded: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(padded.join("  ").trim_end());
        out.push('\n');
    }
    out
}
