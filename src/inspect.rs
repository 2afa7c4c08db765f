//! A serializable snapshot of a bus, for tests, command line and web page.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::stats::BusStats;

/// The state of a bus at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// All actors, sorted by kind and id.
    pub actors: Vec<ActorSnapshot>,
    /// Counts of this bus.
    pub stats: BusStats,
    /// Messages that no actor handled, oldest first.
    pub dead_letters: Vec<crate::DeadLetter>,
}

/// The state of one actor.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActorSnapshot {
    /// Kind in the address.
    pub kind: String,
    /// Uuid in the address.
    pub id: Uuid,
    /// The control, normal and bulk lane.
    pub lanes: [LaneSnapshot; 3],
    /// Number of handled messages and events.
    pub handled: u64,
    /// Number of panics in handlers.
    pub failed: u64,
    /// Number of rebuilds.
    pub restarts: u32,
    /// [`Actor::observe`](crate::Actor::observe); null if the actor did not answer in time,
    /// or panicked in `observe`.
    pub state: Value,
}

/// One lane of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LaneSnapshot {
    /// Number of queued messages.
    pub depth: u32,
    /// Greatest number of queued messages.
    pub limit: u32,
}
