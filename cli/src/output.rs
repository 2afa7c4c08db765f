//! How answers look in a terminal: tables that fit it, colours only where somebody sees them.

use std::io::{IsTerminal, Write};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use ringfence_messages::ErrorCode;

/// Whether colours are wanted: standard output is a terminal and `NO_COLOR` is not set.
pub fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The time of day of `2026-11-21T10:00:00.000Z`, to the second; another text as it is.
pub(crate) fn clock(time: &str) -> &str {
    time.get(11..19).unwrap_or(time)
}

/// A table with these headings. Its width is the terminal's, or what it needs where there is none.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(headings);
    table
}

/// A cell whose colour says what its word means: green for well, red for not, yellow for neither.
pub fn state(word: &str) -> Cell {
    let cell = Cell::new(word);
    if !colours() {
        return cell;
    }
    match word {
        "Connected" | "Running" | "Ok" | "Enabled" => cell.fg(Color::Green),
        "Disconnected" => cell.fg(Color::Red),
        "Stopped" => cell,
        _ => cell.fg(Color::Yellow),
    }
}

/// Prints to standard output. A reader that has gone (`| head`) ends the program quietly.
pub fn print(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// An error as one or a few lines for a person.
pub fn error(error: &ErrorCode) -> String {
    let mut text = format!("error: {} ({})", error.details, error.code);
    let mut cause = error.cause.as_deref();
    while let Some(deeper) = cause {
        text.push_str(&format!("\n  because: {} ({})", deeper.details, deeper.code));
        cause = deeper.cause.as_deref();
    }
    text
}
