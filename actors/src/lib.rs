//! The controller: recovery, HA, fencing, hosts, storages, VMs and the audit, as actors.
//!
//! Purpose: every decision of the product, and the [`assembly`] that starts all of it over one [`ports::Ports`]
//! value, so that daemon, tests and simulator run the same code.
//! Invariants: decisions are in a `core.rs` (plain struct; time is an argument, effects are returned values), and an
//! `actor.rs` (the shell) carries them out. This crate has no HTTP, SQLite, QEMU or simulator.
//! Alternatives considered: async decision code. It cannot be replayed, model checked or interleaved on purpose.

pub mod assembly;
pub mod audit;
pub mod diff;
pub mod fence;
pub mod fencers;
pub mod ha;
pub mod host;
mod invariant;
pub mod inventory;
pub mod leader;
pub mod placement;
pub mod ports;
pub mod recovery;
mod replay;
pub mod restore;
pub mod sabotage;
pub mod spans;
pub mod storage;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod texts;
pub mod vm;

pub use host::AGENT_VERSION;
