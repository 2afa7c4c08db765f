//! Reads the controller's and the agent's file, and says of every mistake where it is and how to mend it.
//!
//! Invariants: an unknown key is an error, never ignored; all mistakes of a file that can be told apart are told at
//! once; each names file, line and fix; what comes out is consistent (names unique, references resolved).
//! Rejected: defaults for things that were misspelt.

mod agent;
mod controller;
mod hooks;
mod raw;
mod text;
mod tokens;

pub(crate) use tokens::name as token_name;

use std::{fmt, ops::Range, path::Path};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, NamedSource, SourceSpan};

pub use agent::AgentConfig;
pub use controller::{AgentAccess, CephAccess, ControllerConfig, MdsAccess};
pub use hooks::{HookConfig, HookUrl, HookWay, Topics, WebhookAccess};

/// The largest config file, 1 MiB; some 10,000 VMs. Larger ones are some other file.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// One mistake in a file.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct Problem {
    message: String,
    #[help]
    help: String,
    #[source_code]
    text: NamedSource<String>,
    #[label("here")]
    at: SourceSpan,
}

/// Every mistake that was found in a file.
#[derive(Debug)]
pub struct Problems {
    /// What is wrong with the file as a whole, if it could not even be read.
    file: Option<String>,
    problems: Vec<Problem>,
}

impl Problems {
    /// The mistakes as text, `width` characters wide, with or without colours and line art.
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

    /// How many there are.
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

/// A config file of either kind.
#[derive(Debug)]
pub enum Config {
    /// A controller's.
    Controller(Box<ControllerConfig>),
    /// An agent's.
    Agent(Box<AgentConfig>),
}

/// Reads a file and tells by its tables whose it is.
///
/// # Errors
/// Every mistake that was found.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let text = read(path)?;
    let is_controller = ["[controller]", "[[host]]", "[[cluster]]", "[[storage]]", "[[vm]]", "[ping]"];
    if text.lines().any(|line| is_controller.contains(&line.split('#').next().unwrap_or("").trim())) {
        controller::parse(path, text).map(|config| Config::Controller(Box::new(config)))
    } else {
        agent::parse(path, text).map(|config| Config::Agent(Box::new(config)))
    }
}

/// Reads a controller's file.
///
/// # Errors
/// Every mistake that was found.
pub fn load_controller(path: &Path) -> Result<ControllerConfig, Problems> {
    controller::parse(path, read(path)?)
}

/// Reads an agent's file.
///
/// # Errors
/// Every mistake that was found.
pub fn load_agent(path: &Path) -> Result<AgentConfig, Problems> {
    agent::parse(path, read(path)?)
}

fn read(path: &Path) -> Result<String, Problems> {
    let whole = |why: String| Problems { file: Some(format!("{}:1: {why}", path.display())), problems: Vec::new() };
    let metadata = std::fs::metadata(path)
        .map_err(|e| whole(format!("cannot read it: {e}\n  help: name the file with --config FILE")))?;
    if !metadata.is_file() {
        return Err(whole("it is not a file\n  help: name a TOML file with --config FILE".into()));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(whole(format!(
            "it has {} bytes, at most {MAX_FILE_BYTES} are read\n  help: is this the right file?",
            metadata.len()
        )));
    }
    let bytes =
        std::fs::read(path).map_err(|e| whole(format!("cannot read it: {e}\n  help: check its permissions")))?;
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..valid].iter().filter(|b| **b == b'\n').count();
        Problems {
            file: Some(format!("{}:{line}: it is not UTF-8\n  help: save the file as UTF-8", path.display())),
            problems: Vec::new(),
        }
    })
}

/// Collects mistakes while a file is checked.
struct Checker {
    name: String,
    text: String,
    problems: Vec<Problem>,
}

impl Checker {
    fn new(path: &Path, text: String) -> Checker {
        Checker { name: path.display().to_string(), text, problems: Vec::new() }
    }

    /// Notes a mistake.
    fn wrong(&mut self, at: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        let end = at.end.min(self.text.len());
        let at = SourceSpan::from(at.start.min(end)..end);
        let text = NamedSource::new(&self.name, self.text.clone());
        self.problems.push(Problem { message: message.into(), help: help.into(), text, at });
    }

    /// Notes a mistake if there is one.
    fn ok<T>(&mut self, at: Range<usize>, result: Result<T, (String, String)>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err((message, help)) => {
                self.wrong(at, message, help);
                None
            }
        }
    }

    /// Reads the text as TOML of this shape.
    fn parse<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        match toml::from_str(&self.text) {
            Ok(raw) => Some(raw),
            Err(error) => {
                let at = error.span().unwrap_or(0..0);
                let (message, help) = text::explain(error.message());
                self.wrong(at, message, help);
                None
            }
        }
    }

    /// The value if no mistake was found.
    fn finish<T>(self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(Problems { file: None, problems: self.problems }),
        }
    }
}
