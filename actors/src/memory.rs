//! What actors have in common that read the journal before they may do anything.

use std::time::Duration;

use ringfence_messages::{Code, ErrorCode};

/// Between tries to read the journal at the start. Too low: a broken disk is hammered. Too high: a controller stays idle.
pub(crate) const MEMORY_RETRY: Duration = Duration::from_secs(1);

/// What such an actor answers until then.
pub(crate) fn not_ready() -> ErrorCode {
    ErrorCode::new(Code::NOT_READY, "the journal is still being read: try again in a moment")
}
