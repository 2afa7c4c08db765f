//! Logs of what runs for long: to standard error, as text for people or as JSON for programs. `RUST_LOG` chooses what of them.
//!
//! Invariants: as JSON every line is one object, whatever happens: the last error and a panic are lines too. Secrets are
//! `secrecy` types, which do not say themselves.

use std::{io, panic};

use clap::ValueEnum;
use ringfence_messages::ErrorCode;
use tracing_subscriber::EnvFilter;

use crate::output;

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON object a line: timestamp, level, target, fields (its message among them), spans
    Json,
}

impl Format {
    /// From now on the program logs like this. Once for a process.
    pub fn begin(self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
        match self {
            Format::Text => logs.init(),
            Format::Json => {
                logs.json().init();
                panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
            }
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
