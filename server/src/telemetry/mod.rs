//! Traces to a collector, by OTLP over HTTP.
//!
//! Invariants: nothing waits for a collector: an ended span goes into a bounded queue or is dropped, and a separate
//! thread sends the queue; dropped spans are counted; a collector that does not answer is logged once a minute and
//! delays the end of the program by at most [`END_TIMEOUT`]. Routine successes (pings, probes) are not sent, see
//! `queue`. Alternatives considered: gRPC (a second HTTP stack); the SDK's batch processor (no count of dropped
//! spans); see `docs/adr/0008-traces-by-otlp.md`.

mod collector;
mod queue;

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracerProvider, SpanExporter as _},
};
use ringfence_actors::spans;
use ringfence_messages::{Code, ErrorCode, Result};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, Registry, filter::Targets};

use crate::config::TelemetryConfig;
use collector::Collector;

/// Time limit of one batch, with retries. Too low: a busy collector gets nothing. Too high: the queue overflows.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit of the last spans at the end of the program. Too low: the spans before the end are missing. Too high:
/// stopping a controller takes long.
pub const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The layer that collects spans, for the program's subscriber.
pub type Spans = Box<dyn Layer<Registry> + Send + Sync>;

/// The thread that sends spans.
pub struct Telemetry {
    end: CancellationToken,
    ended: mpsc::Receiver<()>,
}

impl Telemetry {
    /// Starts the sender of the layer's spans. With `messages`, each message of the bus is a span too.
    ///
    /// # Errors
    /// `SYS.1007` without certificate authorities for an `https://` collector, `SYS.1016` without a thread.
    pub fn begin(config: &TelemetryConfig, messages: bool) -> Result<(Spans, Telemetry)> {
        let resource = Resource::builder()
            .with_service_name(config.service_name.clone())
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let collector = Collector::new(config.ca_file.as_deref(), config.is_secure())?;
        let why = collector.why();
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_endpoint(config.traces_url())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|e| ErrorCode::new(Code::INVALID_ARGUMENT, format!("[telemetry] otlp_endpoint: {e}")))?;
        exporter.set_resource(&resource);
        let (queue, sender) = queue::queue(exporter, config.endpoint().to_owned(), why);
        let (end, (done, ended)) = (CancellationToken::new(), mpsc::channel());
        let until = end.clone();
        let send = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(sender.run(until)),
                Err(error) => tracing::warn!(%error, "traces are not sent"),
            }
            let _ = done.send(());
        };
        let thread = std::thread::Builder::new().name("otlp".to_owned()).spawn(send);
        thread.map_err(|e| ErrorCode::new(Code::IO, format!("cannot start a thread for traces: {e}")))?;

        let provider = SdkTracerProvider::builder().with_resource(resource).with_span_processor(queue).build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("ringfence"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(wanted(messages));
        Ok((Box::new(layer), Telemetry { end, ended }))
    }

    /// Sends the remaining spans, within [`END_TIMEOUT`].
    pub fn end(self) {
        self.end.cancel();
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(END_TIMEOUT) {
            tracing::warn!(timeout = ?END_TIMEOUT, "the last traces were not sent in time");
        }
    }
}

/// Filter of the product's spans, and of the bus's spans with `messages`.
fn wanted(messages: bool) -> Targets {
    let wanted = Targets::new().with_target(spans::TARGET, LevelFilter::INFO);
    if messages { wanted.with_target("ringfence::envelope", LevelFilter::DEBUG) } else { wanted }
}
