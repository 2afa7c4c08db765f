//! Fencing: proof that a VM cannot write on its last host, before it starts anywhere.
//!
//! ```text
//!             VmActor ---------------- runs an Attempt for every start, gets a StartPermit or a reason
//!                |  watchers of every Ceph volume -> (no other client) -> did its last host answer?
//!                |        yes, and the VM is not there: permit
//!                |        no, and it is an HA start: the fencing levels
//!   level 1 -----+--> SiblingFencer --SSH by a sibling host's agent--> kill, verified
//!   level 2 -----+--> CephActor ------blocklist, read back-----------> every write of the host rejected
//!   level 4 -----+--- attestation by an operator
//! ```
//! Invariants: I1 (permits), I2 (three values), I4 (an intent before each level), I7 (one audit record per attempt).
//! The whole module is a core: no runtime, time is an argument. [`fencers`](crate::fencers) carry the levels out.
//! Alternatives considered: one fence per host instead of per VM. If one VM hangs in D state, the others can still be
//! proven dead one by one, without blocking the host's storage.

pub mod attempt;
#[cfg(test)]
mod attempt_tests;
mod guard;
pub mod permit;
pub mod policy;
pub mod tables;

pub use guard::FencingGuard;
pub use permit::{Cleared, PERMIT_VALIDITY, Passed, Proof, Start, StartPermit};
pub use policy::Policy;
