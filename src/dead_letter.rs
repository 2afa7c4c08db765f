//! Messages that no actor handled, kept for whoever asks why.

use std::{collections::VecDeque, time::SystemTime};

use parking_lot::Mutex;
use ringfence_messages::{Address, ErrorCode};
use serde::Serialize;

/// Dead letters that are kept; the oldest goes first. Too low: the interesting one is gone. Too high: memory.
pub const MAX_DEAD_LETTERS: usize = 256;

/// A message that no actor handled.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// When it was refused.
    pub at: SystemTime,
    /// Where it was to go.
    #[serde(serialize_with = "as_text")]
    pub to: Address,
    /// [`Message::NAME`](crate::Message::NAME) or [`Event::TOPIC`](crate::Event::TOPIC). Not its contents: they may be secret.
    pub name: &'static str,
    /// Why it was not handled.
    pub why: ErrorCode,
}

fn as_text<S: serde::Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(address)
}

#[derive(Default)]
pub(crate) struct DeadLetters {
    ring: Mutex<VecDeque<DeadLetter>>,
}

impl DeadLetters {
    pub(crate) fn push(&self, to: Address, name: &'static str, why: &ErrorCode) {
        metrics::counter!("ringfence_bus_dead_letters_total", "message" => name).increment(1);
        let mut ring = self.ring.lock();
        if ring.len() == MAX_DEAD_LETTERS {
            ring.pop_front();
        }
        ring.push_back(DeadLetter { at: SystemTime::now(), to, name, why: why.clone() });
    }

    pub(crate) fn list(&self) -> Vec<DeadLetter> {
        self.ring.lock().iter().cloned().collect()
    }
}
