//! The journal: recording facts durably, and telling the bus that one was recorded.

use serde::{Deserialize, Serialize};

use crate::{Lane, event, message};

/// Records a fact in the journal. The reply comes when it is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordMsg {
    /// [`Event::TOPIC`](crate::Event::TOPIC).
    pub topic: String,
    /// [`Event::subject`](crate::Event::subject).
    pub subject: String,
    /// The event as a JSON object.
    pub payload: String,
    /// What happens while the journal cannot be written: an intent is refused at once, for nothing may be
    /// done without it; a fact has happened already and is kept until it can be written.
    pub durability: Durability,
}
message!(RecordMsg, 1, Lane::Control => RecordReply);

/// What to do while the journal cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// Answer an error at once.
    Intent,
    /// Keep it, in order, and try again.
    Fact,
}

/// Where in the journal it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordReply {
    /// Its sequence number, from 1, without gaps.
    pub seq: u64,
}

/// A record was made durable. This is what a live view of the journal follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRecorded {
    /// Its sequence number.
    pub seq: u64,
    /// When, RFC 3339 in UTC with milliseconds.
    pub time: String,
    /// Its topic.
    pub topic: String,
    /// What it is about.
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
    /// Raised by every start; a host agent refuses a smaller one than it has seen.
    pub epoch: u64,
    /// The version of the controller.
    pub version: String,
}
event!(ControllerStarted, "controller.started", 1, |_e| "controller".to_owned());
