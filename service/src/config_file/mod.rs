//! Reads a configuration file, and reports every error with its place and a remedy.
//!
//! A schema calls [`Checker`] for each of its values. Invariants: an unknown key is an error, never ignored; all
//! independent errors of a file are reported together; an error is a problem and a remedy. Alternative considered:
//! defaults for misspelt keys.

mod report;
pub mod text;
mod tls;

use std::{collections::BTreeMap, fmt, ops::Range, path::Path, sync::Arc};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, NamedSource, SourceSpan};
use ringfence_drivers::files::not_ours;
use ringfence_messages::{Code, ErrorCode};

pub use report::report;
pub use tls::RawTls;

/// The largest config file, 1 MiB, about 10,000 VMs. Too low: a large inventory does not fit. Too high: a wrong file
/// is read.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Errors of a file that are reported at most. Too low: a rename in a large file takes many rounds to fix. Too high:
/// a wrong file fills memory and screen with errors.
pub const MAX_PROBLEMS: usize = 100;

/// One error in a file.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct Problem {
    message: String,
    #[help]
    help: String,
    #[source_code]
    text: Arc<NamedSource<String>>,
    #[label("here")]
    at: SourceSpan,
}

/// All errors of a file.
#[derive(Debug)]
pub struct Problems {
    /// Error of the file as a whole, if it could not be read.
    file: Option<String>,
    problems: Vec<Problem>,
}

impl Problems {
    /// The errors as text of `width` columns, with or without colours and line art.
    pub fn render(&self, fancy: bool, width: usize) -> String {
        let mut text = String::new();
        if let Some(whole) = &self.file {
            text.push_str(whole);
            text.push('\n');
        }
        let theme = if fancy { GraphicalTheme::unicode() } else { GraphicalTheme::none() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_context_lines(1);
        for problem in &self.problems {
            // Writing to a String does not fail.
            let _ = handler.render_report(&mut text, problem);
        }
        text
    }

    /// One line for each error, with its line of the file, for readers without the file.
    pub fn lines(&self) -> Vec<String> {
        let line = |of: &Problem| {
            let (text, at) = (of.text.inner(), of.at.offset());
            let begin = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
            let here = text[begin..].lines().next().unwrap_or_default().trim();
            format!("{here}: {}: {}", of.message, of.help)
        };
        self.file.iter().cloned().chain(self.problems.iter().map(line)).collect()
    }

    /// Byte ranges of the errors in the file.
    pub fn places(&self) -> impl Iterator<Item = Range<usize>> {
        self.problems.iter().map(|problem| problem.at.offset()..problem.at.offset() + problem.at.len())
    }

    /// Number of errors.
    pub fn count(&self) -> usize {
        self.problems.len() + usize::from(self.file.is_some())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false, 120))
    }
}

impl std::error::Error for Problems {}

/// `SYS.1007`, all errors on one line.
impl From<Problems> for ErrorCode {
    fn from(problems: Problems) -> ErrorCode {
        ErrorCode::new(Code::INVALID_ARGUMENT, problems.lines().join("; "))
    }
}

/// Rejects a file that others may write: its content gives root on hosts. `check` reads any file.
///
/// # Errors
/// The owner or mode of the file, and the remedy.
pub fn ours(path: &Path) -> Result<(), Problems> {
    // The reader reports a file without metadata.
    let Some(why) = std::fs::metadata(path).ok().and_then(|found| not_ours(&found)) else { return Ok(()) };
    let file = Some(format!("{}:1: others may change this file: {why}\n  help: then start again", path.display()));
    Err(Problems { file, problems: Vec::new() })
}

/// The text of a file that is not too large.
///
/// # Errors
/// The reason why the file as a whole cannot be read.
pub fn read(path: &Path) -> Result<String, Problems> {
    let whole = |why: String| Problems { file: Some(format!("{}:1: {why}", path.display())), problems: Vec::new() };
    let metadata =
        std::fs::metadata(path).map_err(|e| whole(format!("cannot read the file: {e}\n  help: set --config FILE")))?;
    if !metadata.is_file() {
        return Err(whole("not a file\n  help: set --config to a TOML file".into()));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(whole(format!(
            "the file has {} bytes (at most {MAX_FILE_BYTES})\n  help: check that this is the right file",
            metadata.len()
        )));
    }
    let bytes =
        std::fs::read(path).map_err(|e| whole(format!("cannot read the file: {e}\n  help: check its permissions")))?;
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..valid].iter().filter(|b| **b == b'\n').count();
        Problems {
            file: Some(format!("{}:{line}: the file is not UTF-8\n  help: save the file as UTF-8", path.display())),
            problems: Vec::new(),
        }
    })
}

/// Collects errors of a file and of the file of the API behind it.
pub struct Checker {
    /// The files, each with its offset in the text of all.
    files: Vec<(String, usize)>,
    text: String,
    /// Sources for the diagnostics, created with the first error.
    shown: BTreeMap<usize, Arc<NamedSource<String>>>,
    problems: Vec<Problem>,
}

impl Checker {
    /// Checks a file with this text.
    pub fn new(path: &Path, text: String) -> Checker {
        Checker { files: vec![(path.display().to_string(), 0)], text, shown: BTreeMap::new(), problems: Vec::new() }
    }

    /// Adds a second file.
    #[must_use]
    pub fn and(mut self, path: &Path, text: &str) -> Checker {
        self.text.push('\n');
        self.files.push((path.display().to_string(), self.text.len()));
        self.text.push_str(text);
        self
    }

    /// Adds an error.
    pub fn wrong(&mut self, at: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        if self.problems.len() == MAX_PROBLEMS {
            return;
        }
        let of = self.files.iter().rposition(|(_, begin)| *begin <= at.start).unwrap_or(0);
        let (name, begin) = &self.files[of];
        let limit = self.files.get(of + 1).map_or(self.text.len(), |(_, next)| next - 1);
        let (mut start, mut end) = (at.start.min(limit), at.end.min(limit));
        // Whole characters: the file may start with a byte order mark.
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        while !self.text.is_char_boundary(end) {
            end += 1;
        }
        let at = SourceSpan::from(start.min(end) - begin..end - begin);
        let shown = || Arc::new(NamedSource::new(name, self.text[*begin..limit].to_owned()));
        let text = self.shown.entry(of).or_insert_with(shown).clone();
        self.problems.push(Problem { message: message.into(), help: help.into(), text, at });
    }

    /// `FILE:LINE` of a place, for messages about two places.
    pub fn place(&self, at: &Range<usize>) -> String {
        let of = self.files.iter().rposition(|(_, begin)| *begin <= at.start).unwrap_or(0);
        let (name, begin) = &self.files[of];
        let before = self.text.as_bytes().get(*begin..at.start).unwrap_or_default();
        format!("{name}:{}", 1 + before.iter().filter(|byte| **byte == b'\n').count())
    }

    /// Adds the error of a result, if any.
    pub fn ok<T>(&mut self, at: Range<usize>, result: Result<T, (String, String)>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err((message, help)) => {
                self.wrong(at, message, help);
                None
            }
        }
    }

    /// Parses the n-th file.
    pub fn parse<T: serde::de::DeserializeOwned>(&mut self, n: usize) -> Option<T> {
        let begin = self.files[n].1;
        let end = self.files.get(n + 1).map_or(self.text.len(), |(_, next)| next - 1);
        // Blanks replace the other files, so that spans are offsets in the text of all.
        let blanks = " ".repeat(begin);
        match toml::from_str(&(blanks + &self.text[begin..end])) {
            Ok(raw) => Some(raw),
            Err(error) => {
                let at = error.span().unwrap_or(0..0);
                let (message, help) = text::explain(error.message());
                self.wrong(at, message, help);
                None
            }
        }
    }

    /// The value, if there is no error.
    ///
    /// # Errors
    /// All errors of the files.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(Problems { file: None, problems: self.problems }),
        }
    }
}
