//! The audit: the one writer of the journal.
//!
//! Events and intents of all actors pass through [`AuditActor`], in order. While the journal is not writable (such as
//! on a full disk) intents are rejected at once, so that nothing irreversible happens unrecorded (I4); events have
//! happened already and are kept until they can be written.

mod actor;
mod core;
mod recorder;
mod shorten;

pub use actor::AuditActor;
pub use core::{MAX_BATCH, MAX_PENDING, RETRY_CEILING, RETRY_FLOOR};
pub use recorder::Recorder;
pub use shorten::MARK as SHORTENED;
