//! Errors: a stable code for programs, a text for operators, and the cause.

use std::{borrow::Cow, cell::Cell, collections::BTreeMap, error::Error, fmt};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::words;

/// A stable error code such as `SYS.1001`. Scripts match on codes, so a code never changes its meaning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Code(Cow<'static, str>);

impl Code {
    /// A defect of the program: a handler panicked, or an invariant would have been violated.
    pub const INTERNAL: Code = Code::new("SYS.1000");
    /// The deadline passed. The work may still be done; its late reply is dropped.
    pub const TIMEOUT: Code = Code::new("SYS.1001");
    /// The named object does not exist.
    pub const NOT_FOUND: Code = Code::new("SYS.1003");
    /// The object is in a state that does not permit the request.
    pub const CHANGE_STATE: Code = Code::new("SYS.1005");
    /// The operation was attempted and failed.
    pub const OPERATION: Code = Code::new("SYS.1006");
    /// An argument is malformed, out of range or contradictory.
    pub const INVALID_ARGUMENT: Code = Code::new("SYS.1007");
    /// The receiver has no handler for this message.
    pub const UNKNOWN_MESSAGE: Code = Code::new("SYS.1008");
    /// No actor is registered under the address.
    pub const NO_ROUTE: Code = Code::new("SYS.1009");
    /// The receiver is not ready yet, or its lane is full: retry later.
    pub const NOT_READY: Code = Code::new("SYS.1010");
    /// The message could not be delivered; it is among the dead letters.
    pub const UNDELIVERABLE: Code = Code::new("SYS.1011");
    /// The receiver or its node stopped before it replied.
    pub const NODE_UNAVAILABLE: Code = Code::new("SYS.1012");
    /// The peer replied with an HTTP error, or its reply is not of the protocol.
    pub const HTTP: Code = Code::new("SYS.1015");
    /// Reading or writing failed: file, socket, journal.
    pub const IO: Code = Code::new("SYS.1016");
    /// Cancelled before it finished.
    pub const CANCELLED: Code = Code::new("SYS.1017");
    /// The client's role does not permit the request, or the client is not authenticated.
    pub const NOT_PERMITTED: Code = Code::new("SYS.1018");
    /// The VM could not be started.
    pub const HOST_START_VM: Code = Code::new("HOST.1005");
    /// The host is not connected.
    pub const HOST_DISCONNECTED: Code = Code::new("HOST.1010");
    /// An operation on the host failed; a retry may succeed.
    pub const HOST_OPERATION: Code = Code::new("HOST.1011");

    /// A code of an embedding program: `DOMAIN.NUMBER` by convention.
    pub const fn new(text: &'static str) -> Code {
        Code(Cow::Borrowed(text))
    }

    /// The text, such as `SYS.1001`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An error in replies, over HTTP and in the journal.
///
/// `description` is the meaning of the code; `details` has object, problem and remedy of this error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ErrorCode {
    /// Class of the error, for programs.
    pub code: Code,
    /// Meaning of the code, a short phrase.
    pub description: String,
    /// Object, problem and, where one is known, remedy.
    pub details: String,
    /// The error that caused this one; at most 32 deep.
    #[serde(default, deserialize_with = "bounded_cause")]
    #[cfg_attr(feature = "schema", schema(no_recursion))]
    pub cause: Option<Box<ErrorCode>>,
    /// More data for programs, sorted by key. Never a secret.
    #[serde(default)]
    pub opaque: BTreeMap<String, String>,
}

impl ErrorCode {
    /// An error of `code`, with the description of that code.
    pub fn new(code: Code, details: impl Into<String>) -> ErrorCode {
        let description = describe(&code).to_owned();
        ErrorCode { code, description, details: details.into(), cause: None, opaque: BTreeMap::new() }
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, cause: ErrorCode) -> ErrorCode {
        self.cause = Some(Box::new(cause));
        self
    }

    /// Adds an entry to `opaque`.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> ErrorCode {
        self.opaque.insert(key.into(), value.into());
        self
    }

    /// Limits the size of an error from a peer: 4 causes, 16 entries in `opaque`, texts cut and without control
    /// characters.
    #[must_use]
    pub fn bounded(self) -> ErrorCode {
        self.bounded_to(MAX_KEPT_CAUSES)
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
            opaque: self.opaque.into_iter().take(MAX_KEPT_EXTRAS).map(extra).collect(),
        }
    }

    /// Whether the error has this code.
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

/// Nested causes that the decoder accepts, at most. Too low: a valid chain through several nodes is rejected. Too high:
/// a peer's error with endless nesting overflows the reader's stack; bincode has no limit.
pub const MAX_CAUSES: usize = 32;

/// Causes of a peer's error that are kept. Too low: the root cause is lost. Too high: an error does not fit into a
/// record of the journal.
const MAX_KEPT_CAUSES: usize = 4;

/// Extras of a peer's error that are kept. Too low and too high: as with [`MAX_KEPT_CAUSES`].
const MAX_KEPT_EXTRAS: usize = 16;

/// Bytes of a peer's codes, descriptions and extras. Too low and too high: as with [`MAX_KEPT_CAUSES`].
const MAX_LABEL: usize = 256;

fn bounded_cause<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<ErrorCode>>, D::Error> {
    thread_local!(static DEPTH: Cell<usize> = const { Cell::new(0) });
    /// Restores the depth, also after an error.
    struct Deeper;
    impl Drop for Deeper {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    let _deeper = Deeper;
    // The innermost error has the field `cause` too: null.
    if DEPTH.get() > MAX_CAUSES + 1 {
        return Err(D::Error::custom(format_args!("error has more than {MAX_CAUSES} causes")));
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
    fn bounded_error_fits_into_a_record() {
        let huge = "x\u{1b}\r\n".repeat(20_000);
        let mut error = ErrorCode::new(Code(huge.clone().into()), huge.clone());
        for n in 0..20 {
            error = ErrorCode { description: huge.clone(), ..ErrorCode::new(Code::HTTP, huge.clone()) }
                .with(format!("{n}{huge}"), huge.clone())
                .caused_by(error);
            error.opaque.extend((0..100).map(|n| (n.to_string(), huge.clone())));
        }
        let bounded = serde_json::to_string(&error.bounded()).unwrap();
        assert!(bounded.len() < 32 << 10 && !bounded.contains("\\u001b"), "{} bytes", bounded.len());
        let plain = ErrorCode::new(Code::TIMEOUT, "no answer")
            .with("reason", "timeout")
            .caused_by(ErrorCode::new(Code::IO, "why"));
        assert_eq!(plain.clone().bounded(), plain);
    }
}
