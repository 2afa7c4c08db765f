//! Logs of the controller and the agent: to standard error, as text or JSON, filtered by `RUST_LOG`.
//!
//! Invariants: with JSON every line is one object, including the fatal error and panics; with text every event is one
//! line without control characters, whatever external text is in it. Secrets are `secrecy` types, which are never
//! printed.

use std::{io, panic};

use clap::ValueEnum;
use ringfence_actors::spans;
use ringfence_messages::{ErrorCode, words};
use ringfence_server::telemetry::Spans;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt};

use crate::output;

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Plain text
    #[default]
    Text,
    /// One JSON object per line: timestamp, level, target, fields (with the message), spans
    Json,
}

/// Writes each event, which comes in one piece, as one line.
struct OneLine<W>(W);

impl<W: io::Write> io::Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = words::clean(text.strip_suffix('\n').unwrap_or(&text));
        self.0.write_all(format!("{line}\n").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The log filter. Spans of the product are for traces only.
fn filter() -> EnvFilter {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    filter.add_directive(format!("{}=off", spans::TARGET).parse().expect("a target and a level"))
}

/// Whether `RUST_LOG` enables debug level: then each message has a span.
pub fn is_verbose() -> bool {
    filter().max_level_hint().is_none_or(|level| level >= LevelFilter::DEBUG)
}

impl Format {
    /// Installs the logger in this format, with the collector of spans. Once for a process.
    pub fn init(self, spans: Option<Spans>) {
        let lines = fmt::layer().with_writer(io::stderr).with_ansi(false);
        let lines = match self {
            Format::Text => lines.with_writer(|| OneLine(io::stderr())).boxed(),
            Format::Json => lines.json().boxed(),
        };
        match spans {
            None => registry().with(lines).with(filter()).init(),
            // Each layer has its own filter.
            Some(spans) => registry().with(vec![spans, lines.with_filter(filter()).boxed()]).init(),
        }
        if self == Format::Json {
            panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        }
    }

    /// Reports the error that ends the program.
    pub fn report_fatal(self, error: &ErrorCode) {
        match self {
            Format::Text => eprintln!("{}", output::error(error)),
            Format::Json => tracing::error!(code = %error.code, "{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = fmt::layer().with_ansi(false).with_writer({
            let said = said.clone();
            move || OneLine(Into(said.clone()))
        });
        let error = "SYS.1006 operation failed: x\r\n2026-11-25T00:00:00Z  INFO serve: FORGED\u{1b}[2K\u{7}";
        tracing::subscriber::with_default(registry().with(lines), || {
            tracing::warn!(%error, "{error}");
            tracing::info!("second");
        });
        let said = String::from_utf8(said.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = said.split('\n').collect();
        assert!(lines.len() == 3 && lines[0].contains("FORGED") && lines[1].ends_with("second"), "{said:?}");
        assert!(!said.contains(['\u{1b}', '\r', '\u{7}']), "{said:?}");
    }

    struct Into(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Into {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
