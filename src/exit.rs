//! The end of an actor, as the actors that watch it see it.

use std::fmt;

use serde::Serialize;

/// Why an actor ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Exit {
    /// The actor stopped itself or was stopped, or the runtime of its thread ended.
    Stopped,
    /// The actor panicked more often than its [`RestartPolicy`](crate::RestartPolicy) allows. The text of the last
    /// panic.
    Escalated(String),
    /// No actor had the address when the watch began.
    Missing,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Stopped => f.write_str("stopped"),
            Exit::Escalated(panic) => write!(f, "panicked too often, last panic: {panic}"),
            Exit::Missing => f.write_str("does not exist"),
        }
    }
}
