//! One serializable picture of a bus: tests, command line and web page read the same.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::stats::BusStats;

/// Everything there is to see of a bus at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The actors, by kind and id.
    pub actors: Vec<ActorSnapshot>,
    /// What the process counted.
    pub stats: BusStats,
    /// Messages that no actor handled, oldest first.
    pub dead_letters: Vec<crate::DeadLetter>,
}

/// One actor.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActorSnapshot {
    /// Its kind.
    pub kind: String,
    /// Its id.
    pub id: Uuid,
    /// Its control, normal and bulk lane.
    pub lanes: [LaneSnapshot; 3],
    /// Messages and events that it handled.
    pub handled: u64,
    /// How many of them panicked.
    pub failed: u64,
    /// How often it was rebuilt.
    pub restarts: u32,
    /// [`Actor::observe`](crate::Actor::observe); null if it did not answer in time.
    pub state: Value,
}

/// One lane of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LaneSnapshot {
    /// Messages in it.
    pub depth: u32,
    /// Messages that it may hold.
    pub limit: u32,
}
