//! Logs of what runs for long: to standard error, as text for people or as JSON for programs. `RUST_LOG` chooses what of them.
//!
//! Invariants: as JSON every line is one object, whatever happens: the last error and a panic are lines too; as text every event is
//! one line, whatever words of others are in it, and does nothing to a terminal. Secrets are
//! `secrecy` types, which do not say themselves.

use std::{io, panic};

use clap::ValueEnum;
use ringfence_actors::spans;
use ringfence_messages::{ErrorCode, words};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt};

use crate::{output, telemetry::Spans};

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON object a line: timestamp, level, target, fields (its message among them), spans
    Json,
}

/// Writes what comes in one piece, which is an event, as one line.
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

/// What is logged. Spans of the product are for traces: lines say what they say without them.
fn filter() -> EnvFilter {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    filter.add_directive(format!("{}=off", spans::TARGET).parse().expect("a target and a level"))
}

/// Whether debugging is asked for: then each message is worth a span.
pub fn is_verbose() -> bool {
    filter().max_level_hint().is_none_or(|level| level >= LevelFilter::DEBUG)
}

impl Format {
    /// From now on the program logs like this, and has its spans collected. Once for a process.
    pub fn init(self, spans: Option<Spans>) {
        let lines = fmt::layer().with_writer(io::stderr).with_ansi(false);
        let lines = match self {
            Format::Text => lines.with_writer(|| OneLine(io::stderr())).boxed(),
            Format::Json => lines.json().boxed(),
        };
        match spans {
            None => registry().with(lines).with(filter()).init(),
            // Each has a filter of its own.
            Some(spans) => registry().with(vec![spans, lines.with_filter(filter()).boxed()]).init(),
        }
        if self == Format::Json {
            panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        }
    }

    /// Says why the program ends.
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
