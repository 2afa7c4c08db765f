//! Errors that more than one part of the controller returns.

use ringfence_messages::{Code, ErrorCode};

/// `SYS.1003`: no object of this kind has this name or uuid.
pub fn not_found(kind: &str, text: &str) -> ErrorCode {
    ErrorCode::new(
        Code::NOT_FOUND,
        format!("there is no {kind} with the name or uuid {:?}", text.chars().take(80).collect::<String>()),
    )
}
