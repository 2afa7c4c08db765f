//! Terminal output: tables that fit the terminal, colours only on a terminal.
//!
//! Invariant: text of a controller cannot control the terminal: it passes `harmless` or `error` before it is printed,
//! and `print` passes only lines and colours.

mod events;

use std::io::{IsTerminal, Write};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use ringfence_actors::texts;
use ringfence_messages::{ErrorCode, words};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

pub(crate) use events::{event_line, event_summary};

/// Whether to print colours: standard output is a terminal and `NO_COLOR` is not set.
pub fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A table with these headings, as wide as the terminal, or as needed without a terminal.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(headings);
    table
}

/// A cell with a colour for its state: green for good, red for bad, yellow for others.
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

/// The same value with clean texts: one line each, without control characters.
pub(crate) fn harmless<T: Serialize + DeserializeOwned>(value: &T) -> Option<T> {
    let clean = serde_json::to_value(value).map(cleaned).and_then(serde_json::from_value);
    clean.ok()
}

/// As [`harmless`].
pub(crate) fn cleaned(value: Value) -> Value {
    texts::each(value, &words::clean)
}

/// Length in bytes of a colour sequence at the start of a text: `ESC [`, digits and semicolons, `m`.
fn colour(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\u{1b}[")?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    numbers[end..].starts_with('m').then_some(end + 3)
}

/// The text with lines and colours only, without other control characters.
fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = colour(rest).unwrap_or(c.len_utf8());
        match c {
            '\n' | '\t' => shown.push(c),
            _ if len > c.len_utf8() => shown.push_str(&rest[..len]),
            _ => shown.push_str(&words::clean(&rest[..len])),
        }
        rest = &rest[len..];
    }
    shown
}

/// Prints to standard output. A closed pipe (`| head`) ends the program quietly.
pub fn print(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let text = shown(&text.to_string());
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// An error with its causes, one line each.
pub fn error(error: &ErrorCode) -> String {
    let line = |of: &ErrorCode| words::clean(&format!("{} ({})", of.details, of.code));
    let mut text = format!("error: {}", line(error));
    let mut cause = error.cause.as_deref();
    while let Some(deeper) = cause {
        text.push_str(&format!("\n  caused by: {}", line(deeper)));
        cause = deeper.cause.as_deref();
    }
    text
}

#[cfg(test)]
mod tests {
    use ringfence_messages::Code;

    use super::*;

    #[test]
    fn only_lines_and_colours_reach_the_terminal() {
        assert_eq!(shown("a\n\u{1b}[38;5;10mok\u{1b}[39m\tb"), "a\n\u{1b}[38;5;10mok\u{1b}[39m\tb");
        for (odd, plain) in [
            ("\u{1b}]0;title\u{7}", " ]0;title "),
            ("\u{1b}[2K\r", " [2K "),
            ("\u{1b}[1;2", " [1;2"),
            ("\u{1b}", " "),
            ("\u{9b}31m", " 31m"),
        ] {
            assert_eq!(shown(odd), plain);
        }
    }

    #[test]
    fn external_text_has_no_lines_and_no_colours() {
        let said = "x\u{1b}[31m\r\nerror: forged".to_owned();
        assert_eq!(harmless(&vec![said.clone()]).unwrap(), ["x [31m  error: forged"]);
        let text = error(&ErrorCode::new(Code::IO, said.clone()).caused_by(ErrorCode::new(Code::HTTP, said)));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
    }
}
