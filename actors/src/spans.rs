//! What is traced: spans that say who asked whom for what, how long it took, and how it ended.
//!
//! Invariants: a span only tells; nothing is decided by it. All have one [`TARGET`], so that logs and traces are chosen apart,
//! and while nobody collects traces none is made. Names follow OpenTelemetry's conventions where there is one
//! (`host.name`, `error.type`, `url.path`), the product's own begin with `ringfence.`.
//! Rejected: `#[instrument]` (its names are those of functions, and it lists what it was not told to leave out).

use std::future::Future;

use ringfence_messages::{ErrorCode, Result};
use tracing::{Instrument, Span};

/// The target of every span.
pub const TARGET: &str = "ringfence_spans";

/// A span of the product, with fields for how it ends.
#[macro_export]
macro_rules! span {
    ($name:literal $(, $($fields:tt)*)?) => {
        tracing::info_span!(
            target: $crate::spans::TARGET,
            $name,
            outcome = tracing::field::Empty,
            error.type = tracing::field::Empty,
            otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
            $($($fields)*)?
        )
    };
}

/// Says on a span that it ended well, and how.
pub fn well(span: &Span, outcome: &str) {
    span.record("outcome", outcome);
}

/// Says on a span that it ended with an error.
pub fn failed(span: &Span, outcome: &str, error: &ErrorCode) {
    span.record("outcome", outcome);
    span.record("error.type", tracing::field::display(&error.code));
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", tracing::field::display(error));
}

/// Does work in a span, which then says how it ended.
pub async fn within<T>(span: Span, work: impl Future<Output = Result<T>>) -> Result<T> {
    let result = work.instrument(span.clone()).await;
    match &result {
        Ok(_) => well(&span, "ok"),
        Err(error) => failed(&span, "failed", error),
    }
    result
}
