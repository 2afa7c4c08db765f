//! Findings of `ringfence doctor`, and the checks that both services have.

mod files;

use std::path::Path;

use ringfence_messages::doctor::{Finding, Verdict};

pub use files::{WHY_TOKEN, state, token_file};

/// Sibling hosts that one agent checks at most; each costs a login on both hosts. Too low: a host's level relies on
/// few. Too high: a thousand hosts log in to a thousand hosts.
pub const MAX_SIBLINGS: usize = 8;

/// Builds a finding: `of("disk", WHY).about(path).ok("12 GiB free")`.
pub struct Check {
    check: &'static str,
    why: &'static str,
    about: String,
}

/// A check by its name, and the consequence of its failure.
pub fn of(check: &'static str, why: &'static str) -> Check {
    Check { check, why, about: String::new() }
}

impl Check {
    /// Adds the subject.
    #[must_use]
    pub fn about(self, about: impl ToString) -> Check {
        Check { about: about.to_string(), ..self }
    }

    fn found(self, verdict: Verdict, found: impl Into<String>, remedy: Option<String>) -> Finding {
        let Check { check, why, about } = self;
        Finding { check: check.to_owned(), about, verdict, found: found.into(), why: why.to_owned(), mend: remedy }
    }

    /// A check that passed.
    pub fn ok(self, found: impl Into<String>) -> Finding {
        self.found(Verdict::Ok, found, None)
    }

    /// A check that passed with a risk.
    pub fn warn(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.found(Verdict::Warn, found, Some(remedy.into()))
    }

    /// A check that failed.
    pub fn fail(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.found(Verdict::Fail, found, Some(remedy.into()))
    }

    /// A check that could not run.
    pub fn unknown(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.found(Verdict::Unknown, found, Some(remedy.into()))
    }
}

/// A path as one word of a shell.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '@');
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}
