//! One primary storage: how hosts reach it, and the deploy that mends a protocol that is down on a host.
//!
//! The framework of external primary storages: health report and deploy flow per kind of storage are
//! [`flow`]s of steps; when and how often they run is decided by recovery alone.

mod actor;
pub mod flow;

pub use actor::{HEALTH_TIMEOUT, StorageActor};
