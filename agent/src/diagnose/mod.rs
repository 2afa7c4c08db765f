//! Checks that a host runs for `ringfence doctor`.
//!
//! ```text
//! local     the host itself: state, disk, tokens, QEMU, and the needs of its storages
//! siblings  the SSH path to each sibling host, up to a login
//! ```

pub mod local;
pub(crate) mod siblings;
