//! Why something did not happen: a stable code for programs, a sentence for people, the cause beneath.

use std::{borrow::Cow, cell::Cell, collections::BTreeMap, error::Error, fmt};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::words;

/// A stable error code such as `SYS.1001`. Scripts match on it, so a code never changes its meaning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Code(Cow<'static, str>);

impl Code {
    /// A defect in the program itself: a handler panicked, an invariant was about to break.
    pub const INTERNAL: Code = Code::new("SYS.1000");
    /// The deadline passed; the work may still happen, its late reply is dropped.
    pub const TIMEOUT: Code = Code::new("SYS.1001");
    /// No such thing.
    pub const NOT_FOUND: Code = Code::new("SYS.1003");
    /// The thing is in a state in which this cannot be asked of it.
    pub const CHANGE_STATE: Code = Code::new("SYS.1005");
    /// The operation was tried and failed.
    pub const OPERATION: Code = Code::new("SYS.1006");
    /// An argument is malformed, out of range or contradictory.
    pub const INVALID_ARGUMENT: Code = Code::new("SYS.1007");
    /// The receiver has no handler for this message.
    pub const UNKNOWN_MESSAGE: Code = Code::new("SYS.1008");
    /// No actor is registered under the address.
    pub const NO_ROUTE: Code = Code::new("SYS.1009");
    /// The receiver is not ready yet, or its lane is full: worth a retry later.
    pub const NOT_READY: Code = Code::new("SYS.1010");
    /// The message could not be delivered; it is in the dead letters.
    pub const UNDELIVERABLE: Code = Code::new("SYS.1011");
    /// The receiver's node or the receiver itself left before it answered.
    pub const NODE_UNAVAILABLE: Code = Code::new("SYS.1012");
    /// The peer answered with an HTTP error or with something that is not its protocol.
    pub const HTTP: Code = Code::new("SYS.1015");
    /// Reading or writing failed: file, socket, journal.
    pub const IO: Code = Code::new("SYS.1016");
    /// Cancelled before it finished.
    pub const CANCELLED: Code = Code::new("SYS.1017");
    /// Whoever asks may not do this, or is not known.
    pub const NOT_PERMITTED: Code = Code::new("SYS.1018");
    /// The VM could not be started.
    pub const HOST_START_VM: Code = Code::new("HOST.1005");
    /// The host is not connected.
    pub const HOST_DISCONNECTED: Code = Code::new("HOST.1010");
    /// An operation on the host failed in a way that is worth a retry.
    pub const HOST_OPERATION: Code = Code::new("HOST.1011");

    /// A code of one's own, `DOMAIN.NUMBER` by convention.
    pub const fn new(text: &'static str) -> Code {
        Code(Cow::Borrowed(text))
    }

    /// The code's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An error as it travels: in replies, over HTTP, in the journal.
///
/// `description` says what a code means in general, `details` what happened this time and what would help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ErrorCode {
    /// What kind of failure it is, for programs.
    pub code: Code,
    /// The general meaning, a short phrase.
    pub description: String,
    /// What happened here: the input, the place and, where one is known, the fix.
    pub details: String,
    /// The error beneath, if this one reports another's.
    #[serde(default, deserialize_with = "bounded_cause")]
    #[cfg_attr(feature = "schema", schema(no_recursion))]
    pub cause: Option<Box<ErrorCode>>,
    /// Machine-readable extras, ordered for stable output. Never a secret.
    #[serde(default)]
    pub opaque: BTreeMap<String, String>,
}

impl ErrorCode {
    /// An error of `code`; its description is derived from the code.
    pub fn new(code: Code, details: impl Into<String>) -> ErrorCode {
        let description = describe(&code).to_owned();
        ErrorCode { code, description, details: details.into(), cause: None, opaque: BTreeMap::new() }
    }

    /// The same error with the one beneath it.
    #[must_use]
    pub fn caused_by(mut self, cause: ErrorCode) -> ErrorCode {
        self.cause = Some(Box::new(cause));
        self
    }

    /// The same error with one more machine-readable extra.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> ErrorCode {
        self.opaque.insert(key.into(), value.into());
        self
    }

    /// The same error as a peer may tell it: its words bounded and clean, and not too many of them.
    #[must_use]
    pub fn bounded(self) -> ErrorCode {
        self.bounded_to(MAX_TOLD_CAUSES)
    }

    fn bounded_to(self, causes: usize) -> ErrorCode {
        let label = |text: &str| words::cut(&words::clean(text), MAX_LABEL);
        let extra = |(key, value): (String, String)| (label(&key), label(&value));
        let cause = self.cause.filter(|_| causes > 0);
        ErrorCode {
            code: Code(label(self.code.as_str()).into()),
            description: label(&self.description),
            details: words::bounded(&self.details),
            cause: cause.map(|deeper| Box::new(deeper.bounded_to(causes - 1))),
            opaque: self.opaque.into_iter().take(MAX_TOLD_EXTRAS).map(extra).collect(),
        }
    }

    /// Whether it is of this code.
    pub fn is(&self, code: &Code) -> bool {
        self.code == *code
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.description, self.details)?;
        match &self.cause {
            Some(cause) => write!(f, "; caused by {cause}"),
            None => Ok(()),
        }
    }
}

impl Error for ErrorCode {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|c| c as &(dyn Error + 'static))
    }
}

/// Causes beneath an error that are read, at most. Too low: an honest chain through several nodes is refused. Too high: a
/// peer's error, nested without end, overflows the stack of whoever reads it; bincode has no limit of its own.
pub const MAX_CAUSES: usize = 32;

/// Causes beneath a peer's error that are kept. Too low: the root of a failure is not told. Too high: an error does not fit into a
/// record of the journal.
const MAX_TOLD_CAUSES: usize = 4;

/// Extras of a peer's error that are kept. Too low and too high: as with [`MAX_TOLD_CAUSES`].
const MAX_TOLD_EXTRAS: usize = 16;

/// Bytes of a peer's codes, descriptions and extras. Too low and too high: as with [`MAX_TOLD_CAUSES`].
const MAX_LABEL: usize = 256;

fn bounded_cause<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<ErrorCode>>, D::Error> {
    thread_local!(static DEPTH: Cell<usize> = const { Cell::new(0) });
    /// Back up again, whatever happened below.
    struct Deeper;
    impl Drop for Deeper {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    let _deeper = Deeper;
    // The innermost has a `cause` too: that nothing is there.
    if DEPTH.get() > MAX_CAUSES + 1 {
        return Err(D::Error::custom(format_args!("an error with more than {MAX_CAUSES} causes")));
    }
    Option::deserialize(from)
}

fn describe(code: &Code) -> &'static str {
    match code.as_str() {
        "SYS.1000" => "internal error",
        "SYS.1001" => "timed out",
        "SYS.1003" => "not found",
        "SYS.1005" => "not allowed in this state",
        "SYS.1006" => "operation failed",
        "SYS.1007" => "invalid argument",
        "SYS.1008" => "unknown message",
        "SYS.1009" => "no route",
        "SYS.1010" => "not ready",
        "SYS.1011" => "undeliverable",
        "SYS.1012" => "receiver unavailable",
        "SYS.1015" => "HTTP error",
        "SYS.1016" => "I/O error",
        "SYS.1017" => "cancelled",
        "SYS.1018" => "not permitted",
        "HOST.1005" => "VM start failed",
        "HOST.1010" => "host disconnected",
        "HOST.1011" => "host operation failed",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_error_fits_into_a_record_whatever_it_says() {
        let huge = "x\u{1b}\r\n".repeat(20_000);
        let mut error = ErrorCode::new(Code(huge.clone().into()), huge.clone());
        for n in 0..20 {
            error = ErrorCode { description: huge.clone(), ..ErrorCode::new(Code::HTTP, huge.clone()) }
                .with(format!("{n}{huge}"), huge.clone())
                .caused_by(error);
            error.opaque.extend((0..100).map(|n| (n.to_string(), huge.clone())));
        }
        let told = serde_json::to_string(&error.bounded()).unwrap();
        assert!(told.len() < 32 << 10 && !told.contains("\\u001b"), "{} bytes", told.len());
        let plain = ErrorCode::new(Code::TIMEOUT, "no answer")
            .with("reason", "timeout")
            .caused_by(ErrorCode::new(Code::IO, "why"));
        assert_eq!(plain.clone().bounded(), plain);
    }
}
