//! Who exchanges Ringfence's messages: the supervisor of recovery, HA and fencing, hosts, storages, VMs and the audit.
//!
//! Purpose: every decision of the product, and the [`assembly`] that starts all of it over one [`ports::Ports`]
//! value, so that daemon, tests and simulator run the same code.
//! Invariants: decisions are `core.rs` (plain struct; time is an argument, effects are returned values), and an
//! `actor.rs` (a shell) carries the values out. Nothing here knows HTTP, SQLite, QEMU or a simulator.
//! Rejected: async decision code. It cannot be replayed, model checked or interleaved on purpose.

pub mod assembly;
pub mod audit;
pub mod change;
pub mod fence;
pub mod ha;
pub mod host;
mod invariant;
pub mod inventory;
mod memory;
pub mod office;
pub mod ports;
pub mod recovery;
pub mod restore;
pub mod sabotage;
pub mod spans;
pub mod storage;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod texts;
pub mod vm;

pub use host::AGENT_VERSION;
