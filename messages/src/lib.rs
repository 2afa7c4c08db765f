//! Every typed message of Ringfence, the ids and error codes they carry, and the wire codec.
//!
//! Purpose: one vocabulary for the bus, the actors, the drivers, the host agent and every tool.
//! Invariants: no runtime, no clock, no I/O: only `serde`, `bincode` and `uuid`, so that an agent or a
//! script can speak the language without linking an actor system. No secret is ever a field of a message:
//! a driver adds it at the last hop.
//! Rejected: deriving messages from an IDL (one more language to read for the same structs), and
//! `serde(tag)`/`skip_serializing_if` on wire types (they compile and then fail to decode under bincode).
//!
//! A message is a plain struct plus one [`message!`] line that names it, versions it and types its reply.

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

/// The result of anything that a peer may refuse: the value, or the code that says why not.
pub type Result<T, E = ErrorCode> = std::result::Result<T, E>;
