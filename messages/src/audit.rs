//! Requests to record an event in the journal, and the event that a record was added.

use serde::{Deserialize, Serialize};

use crate::{Lane, event, message};

/// Records an event in the journal. The reply is sent when the record is on disk.
///
/// # Errors
/// `SYS.1016` for an intent if the journal cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordMsg {
    /// [`Event::TOPIC`](crate::Event::TOPIC).
    pub topic: String,
    /// [`Event::subject`](crate::Event::subject).
    pub subject: String,
    /// The event as a JSON object.
    pub payload: String,
    /// What happens while the journal cannot be written. An intent is rejected at once, because the act must not
    /// follow. A fact has happened already and is kept until it can be written.
    pub durability: Durability,
}
message!(RecordMsg, 1, Lane::Control => RecordReply);

/// How a record is treated while the journal cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// Rejected at once with an error.
    Intent,
    /// Kept in memory, in sequence, and retried.
    Fact,
}

/// The position of a new record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordReply {
    /// Sequence number: 1 for the first record, without gaps.
    pub seq: u64,
}

/// A record is on disk. Live views of the journal follow this event; it is not recorded itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRecorded {
    /// Sequence number: 1 for the first record, without gaps.
    pub seq: u64,
    /// Time of the event: RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// [`Event::TOPIC`](crate::Event::TOPIC).
    pub topic: String,
    /// [`Event::subject`](crate::Event::subject).
    pub subject: String,
    /// The event as a JSON object.
    pub payload: String,
    /// SHA-256 over the previous record's hash and this record, in hex.
    pub hash: String,
}
event!(EventRecorded, "journal.recorded", 1, |e| e.seq.to_string());

/// A controller started on this journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerStarted {
    /// Epoch of this controller's term: higher than in every earlier term. An agent rejects commands of a lower epoch
    /// than the highest that it has seen.
    pub epoch: u64,
    /// Version of the controller, such as `0.1.0`.
    pub version: String,
}
event!(ControllerStarted, "controller.started", 1, |_e| "controller".to_owned());
