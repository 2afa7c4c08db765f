//! Trace spans: which actor queried which, for what, how long it took, and how it ended.
//!
//! Invariants: no decision depends on a span. All spans have one [`TARGET`], so that logs and traces are selected
//! separately; without a collector no span is created. Names follow OpenTelemetry where it has one (`host.name`,
//! `error.type`, `url.path`); the product's own begin with `ringfence.`.
//! Alternatives considered: `#[instrument]`. Its names are those of functions, and it records every argument that is
//! not skipped.

use std::future::Future;

use ringfence_messages::{ErrorCode, Result};
use tracing::{Instrument, Span};

/// The target of every span.
pub const TARGET: &str = "ringfence_spans";

/// A span with fields for its outcome.
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

/// Records a success on a span.
pub fn well(span: &Span, outcome: &str) {
    span.record("outcome", outcome);
}

/// Records an error on a span.
pub fn failed(span: &Span, outcome: &str, error: &ErrorCode) {
    span.record("outcome", outcome);
    span.record("error.type", tracing::field::display(&error.code));
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", tracing::field::display(error));
}

/// Runs work in a span and records its outcome.
pub async fn within<T>(span: Span, work: impl Future<Output = Result<T>>) -> Result<T> {
    let result = work.instrument(span.clone()).await;
    match &result {
        Ok(_) => well(&span, "ok"),
        Err(error) => failed(&span, "failed", error),
    }
    result
}
