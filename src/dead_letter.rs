//! Dead letters: messages that no actor handled, with the reason.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use ringfence_messages::{Address, Code, ErrorCode};
use serde::Serialize;

use crate::stats::Counts;

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

/// A dead letter without the parts of its error that follow from the code. To reject a message must cost less than to
/// handle it.
struct Kept {
    at: SystemTime,
    to: Address,
    name: &'static str,
    code: Code,
    details: String,
}

pub(crate) struct DeadLetters {
    counts: Arc<Counts>,
    ring: Mutex<VecDeque<Kept>>,
}

impl DeadLetters {
    pub(crate) fn new(counts: Arc<Counts>) -> DeadLetters {
        DeadLetters { counts, ring: Mutex::default() }
    }

    pub(crate) fn push(&self, to: Address, name: &'static str, why: &ErrorCode) {
        self.counts.dead_letter(name);
        let kept = Kept { at: SystemTime::now(), to, name, code: why.code.clone(), details: why.details.clone() };
        let mut ring = self.ring.lock();
        let oldest = if ring.len() == MAX_DEAD_LETTERS { ring.pop_front() } else { None };
        ring.push_back(kept);
        drop(ring);
        // Freed after the lock, which all senders share.
        drop(oldest);
    }

    pub(crate) fn list(&self) -> Vec<DeadLetter> {
        let error = |kept: &Kept| ErrorCode::new(kept.code.clone(), kept.details.clone());
        let list = |kept: &Kept| DeadLetter { at: kept.at, to: kept.to, name: kept.name, why: error(kept) };
        self.ring.lock().iter().map(list).collect()
    }
}
