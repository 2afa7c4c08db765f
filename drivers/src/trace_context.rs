//! The trace of a request, as W3C `traceparent`.
//!
//! Invariant: an unreadable header begins a new trace and never fails the request.
//! Alternatives considered: `tracestate` and `baggage`. They would pass text from unknown clients to every host.

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header that says it.
pub const TRACEPARENT: &str = "traceparent";

/// The one header.
#[derive(Default)]
struct Header(Option<String>);

impl Injector for Header {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = Some(value);
        }
    }
}

impl Extractor for Header {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.as_deref().filter(|_| key == TRACEPARENT)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

/// What a request is to say that is made in this span; `None` while nobody collects traces.
pub fn outgoing(span: &Span) -> Option<String> {
    let mut header = Header::default();
    TraceContextPropagator::new().inject_context(&span.context(), &mut header);
    header.0
}

/// Makes a span, before it is entered, part of the trace that its request names.
pub fn adopt(span: &Span, traceparent: &str) {
    let header = Header(Some(traceparent.to_owned()));
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &header);
    // Refused only where nobody collects traces.
    let _ = span.set_parent(parent);
}
