//! A span for each request, in the trace of its `traceparent`.
//!
//! Invariants: the name of a span is the route, not the path, so that there are few; `/healthz` and `/metrics`, which
//! are polled, have no span.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use ringfence_actors::span;
use ringfence_drivers::trace_context::{TRACEPARENT, adopt};
use tracing::Instrument;

/// Handles a request in its own span.
pub(super) async fn trace(request: Request, next: Next) -> Response {
    if matches!(request.uri().path(), "/healthz" | "/metrics") {
        return next.run(request).await;
    }
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let span = span!(
        "api.request",
        otel.name = format!("{} {route}", request.method()).trim_end(),
        otel.kind = "server",
        http.request.method = %request.method(),
        http.route = route,
        http.response.status_code = tracing::field::Empty,
    );
    if let Some(parent) = request.headers().get(TRACEPARENT).and_then(|of| of.to_str().ok()) {
        adopt(&span, parent);
    }
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    // A client error is not an error of the controller.
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    response
}
