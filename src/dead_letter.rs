//! Dead letters: messages that no actor handled, with the reason.

use std::{collections::VecDeque, time::SystemTime};

use parking_lot::Mutex;
use ringfence_messages::{Address, ErrorCode};
use serde::Serialize;

/// Number of kept dead letters; the oldest is dropped first. Too low: the relevant one is lost. Too high: memory.
pub const MAX_DEAD_LETTERS: usize = 256;

/// A message that no actor handled.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// Time of the rejection.
    pub at: SystemTime,
    /// Address of the receiver.
    #[serde(serialize_with = "as_text")]
    pub to: Address,
    /// [`Message::NAME`](crate::Message::NAME) or [`Event::TOPIC`](crate::Event::TOPIC). Never the content, which may
    /// be secret.
    pub name: &'static str,
    /// Reason of the rejection.
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
