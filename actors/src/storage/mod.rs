//! One primary storage: how hosts reach it, and the redeploy of a protocol that is down on a host.
//!
//! Health report and redeploy of each kind of storage are [`flow`]s of steps; recovery alone decides when and how
//! often they run.

mod actor;
pub mod flow;

pub use actor::{HEALTH_TIMEOUT, StorageActor};
