//! Traces to a collector, by OTLP over HTTP.
//!
//! Invariants: nobody waits for a collector: a span that ended is put into a bounded queue or dropped, and a thread of its
//! own sends them; what was dropped is counted; a collector that does not answer is complained of once a minute, and holds up
//! the program's end for [`END_TIMEOUT`] at most. What goes well all the time (pings, probes) is not sent, see `queue`.
//! Rejected: gRPC (a second HTTP stack); the SDK's batch processor (does not say what it dropped while it runs); see
//! `docs/adr/0008-traces-by-otlp.md`.

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

/// How long a collector may take for one batch, tries again included. Too low: a busy one is told nothing. Too high: the
/// queue runs over meanwhile.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last spans may take when the program ends. Too low: what led to the end is missing. Too high: whoever
/// stops a controller waits for a collector.
pub const END_TIMEOUT: Duration = Duration::from_secs(1);

/// What collects spans, to be put into the program's subscriber.
pub type Spans = Box<dyn Layer<Registry> + Send + Sync>;

/// The thread that sends them.
pub struct Telemetry {
    end: CancellationToken,
    ended: mpsc::Receiver<()>,
}

impl Telemetry {
    /// Begins to send what is put into the layer. With `messages`, each message of the bus is a span, too.
    ///
    /// # Errors
    /// `SYS.1007` if there are no authorities to believe an `https://` collector by, `SYS.1016` if there is no thread.
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
                Err(error) => tracing::warn!(%error, "no traces are sent"),
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

    /// Sends what is left, bounded by [`END_TIMEOUT`].
    pub fn end(self) {
        self.end.cancel();
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(END_TIMEOUT) {
            tracing::warn!("the last traces were not sent within {END_TIMEOUT:?}");
        }
    }
}

/// The product's spans, and the bus's own if each message is wanted.
fn wanted(messages: bool) -> Targets {
    let wanted = Targets::new().with_target(spans::TARGET, LevelFilter::INFO);
    if messages { wanted.with_target("ringfence::envelope", LevelFilter::DEBUG) } else { wanted }
}
