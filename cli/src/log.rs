//! Logs of what runs for long: to standard error, as text for people or as JSON for programs. `RUST_LOG` chooses what of them.
//!
//! Invariants: as JSON every line is one object, whatever happens: the last error and a panic are lines too. Secrets are
//! `secrecy` types, which do not say themselves.

use std::{io, panic};

use clap::ValueEnum;
use ringfence_actors::spans;
use ringfence_messages::ErrorCode;
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
    pub fn begin(self, spans: Option<Spans>) {
        let lines = fmt::layer().with_writer(io::stderr).with_ansi(false);
        let lines = match self {
            Format::Text => lines.boxed(),
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
    pub fn last_words(self, error: &ErrorCode) {
        match self {
            Format::Text => eprintln!("{}", output::error(error)),
            Format::Json => tracing::error!(code = %error.code, "{error}"),
        }
    }
}
