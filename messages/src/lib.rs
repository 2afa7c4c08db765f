//! Every typed message of Ringfence, the ids and error codes in them, and the wire codec.
//!
//! Purpose: one vocabulary for the bus, the actors, the drivers, the agent and every tool.
//! Invariants: no runtime, no clock, no I/O: only `serde`, `bincode` and `uuid`, so that an agent or a tool does not
//! link an actor system; no secret is a field of a message: a driver adds it at the last hop.
//! Alternatives considered: messages from an IDL (one more language for the same structs); `serde(tag)` and
//! `skip_serializing_if` on wire types (they compile, and bincode cannot decode them).
//!
//! A message is a plain struct with one [`message!`] line that gives its name, version and reply type.

pub mod action;
mod address;
pub mod agent;
pub mod audit;
pub mod ceph;
pub mod codec;
pub mod doctor;
mod error;
pub mod evidence;
pub mod fence;
pub mod ha;
pub mod host;
mod id;
pub mod inventory;
pub mod journal;
mod message;
mod protocol;
pub mod recovery;
pub mod storage;
pub mod topics;
pub mod vhost;
pub mod vm;
pub mod words;
pub mod zbs;

pub use address::{Address, Kind};
pub use error::{Code, ErrorCode, MAX_CAUSES};
pub use id::{ClusterId, HostId, ParseIdError, StorageId, VmId, VolumeId};
pub use message::{Event, Lane, Message};
pub use protocol::{Health, Protocol, ProtocolStatus};

/// A value, or the [`ErrorCode`] of the failure.
pub type Result<T, E = ErrorCode> = std::result::Result<T, E>;
