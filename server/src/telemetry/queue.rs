//! The queue of ended spans.
//!
//! Invariants: adding a span never waits; each span is sent, dropped and counted, or omitted as routine: a successful
//! agent call outside of a trace. Those are pings and probes, several for each host and second; failed ones are sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::counter;
use opentelemetry::{
    Context,
    trace::{SpanId, SpanKind, Status},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{EXPORT_TIMEOUT, collector::Why};

/// Largest number of queued spans. Too low: a restarting collector misses spans of an outage. Too high: memory, about
/// 1 KiB each.
const MAX_WAITING: usize = 4096;

/// Largest number of spans in one request. Too low: many requests. Too high: a failed request loses more spans.
const MAX_BATCH: usize = 512;

/// Time to gather more spans for a request. Too low: many requests. Too high: traces appear late.
const LINGER: Duration = Duration::from_secs(1);

/// Least time between two warnings about a collector. Too low: warnings fill the log. Too high: they are missed.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The sending end of the queue.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: mpsc::Sender<SpanData>,
    overrun: Arc<AtomicU64>,
}

/// The receiving end, which exports.
pub(super) struct Sender<E> {
    waiting: mpsc::Receiver<SpanData>,
    overrun: Arc<AtomicU64>,
    exporter: E,
    collector: String,
    why: Why,
    complained: Option<Instant>,
    dropped: u64,
}

/// A queue before an exporter. `collector` is its name in the log, `why` holds the last connection error.
pub(super) fn queue<E: SpanExporter>(exporter: E, collector: String, why: Why) -> (Queue, Sender<E>) {
    let (sender, waiting) = mpsc::channel(MAX_WAITING);
    let overrun = Arc::new(AtomicU64::new(0));
    let queue = Queue { waiting: sender, overrun: overrun.clone() };
    (queue, Sender { waiting, overrun, exporter, collector, why, complained: None, dropped: 0 })
}

/// Whether a span is routine.
fn is_routine(span: &SpanData) -> bool {
    span.span_kind == SpanKind::Client
        && span.parent_span_id == SpanId::INVALID
        && !matches!(span.status, Status::Error { .. })
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() || is_routine(&span) {
            return;
        }
        if self.waiting.try_send(span).is_err() {
            self.overrun.fetch_add(1, Relaxed);
            counter!("ringfence_otlp_spans_dropped_total", "why" => "queue-full").increment(1);
        }
    }

    // Only `Telemetry::end` stops the sender, with a time limit.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl<E: SpanExporter> Sender<E> {
    /// Sends until `end`, then the remaining spans.
    pub(super) async fn run(mut self, end: CancellationToken) {
        loop {
            let mut batch = Vec::new();
            end.run_until_cancelled(self.gather(&mut batch)).await;
            if end.is_cancelled() {
                self.waiting.close();
                let room = MAX_BATCH - batch.len();
                if room > 0 {
                    self.waiting.recv_many(&mut batch, room).await;
                }
            }
            if batch.is_empty() {
                return;
            }
            self.send(batch).await;
        }
    }

    /// Waits for the first span, then briefly for more.
    async fn gather(&mut self, batch: &mut Vec<SpanData>) {
        self.waiting.recv_many(batch, MAX_BATCH).await;
        let more = async {
            while batch.len() < MAX_BATCH && self.waiting.recv_many(batch, MAX_BATCH - batch.len()).await > 0 {}
        };
        let _ = timeout(LINGER, more).await;
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let error = match timeout(EXPORT_TIMEOUT, self.exporter.export(batch)).await {
            Ok(Ok(())) => {
                counter!("ringfence_otlp_spans_sent_total").increment(count);
                None
            }
            Ok(Err(error)) => Some(self.why.lock().take().unwrap_or_else(|| error.to_string())),
            Err(_) => Some(format!("no answer within {EXPORT_TIMEOUT:?}")),
        };
        if error.is_some() {
            counter!("ringfence_otlp_spans_dropped_total", "why" => "collector").increment(count);
            self.dropped += count;
        }
        self.dropped += self.overrun.swap(0, Relaxed);
        if self.dropped > 0 && self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            let error = error.unwrap_or_else(|| "the queue was full".to_owned());
            tracing::warn!(collector = self.collector, dropped = self.dropped, error, "spans were dropped");
            (self.complained, self.dropped) = (Some(Instant::now()), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, TraceFlags, TraceId, TraceState};

    use super::*;

    fn span(kind: SpanKind, parent: SpanId, status: Status) -> SpanData {
        let now = std::time::SystemTime::now();
        let (trace, id) = (TraceId::from(1), SpanId::from(2));
        SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: kind,
            name: "s".into(),
            start_time: now,
            end_time: now,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status,
            instrumentation_scope: Default::default(),
        }
    }

    /// Rejects every span.
    #[derive(Debug)]
    struct Rejecting;

    impl SpanExporter for Rejecting {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            std::future::pending().await
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_at_once_and_counted() {
        let (queue, sender) = queue(Rejecting, String::new(), Why::default());
        for _ in 0..MAX_WAITING + 7 {
            queue.on_end(span(SpanKind::Internal, SpanId::INVALID, Status::Unset));
        }
        assert_eq!((sender.waiting.len(), sender.overrun.load(Relaxed)), (MAX_WAITING, 7));
    }

    #[test]
    fn only_calls_of_no_trace_that_went_well_are_left_out() {
        let (queue, sender) = queue(Rejecting, String::new(), Why::default());
        let sent = |kind, parent, status| {
            let before = sender.waiting.len();
            queue.on_end(span(kind, parent, status));
            sender.waiting.len() > before
        };
        assert!(!sent(SpanKind::Client, SpanId::INVALID, Status::Unset), "a ping");
        assert!(sent(SpanKind::Client, SpanId::INVALID, Status::error("no answer")), "a ping that fails");
        assert!(sent(SpanKind::Client, SpanId::from(7), Status::Unset), "the call of a redeploy");
        assert!(sent(SpanKind::Internal, SpanId::INVALID, Status::Unset), "a redeploy");
    }
}
