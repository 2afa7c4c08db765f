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
//! The decisions are [`tables`] and [`attempt`]: no runtime, time is an argument.
//! Alternatives considered: one fence per host instead of per VM. If one VM hangs in D state, the others can still be
//! proven dead one by one, without blocking the host's storage.
//!
//! The SPI: the actor at [`FENCER`] that answers `SiblingFenceVmOnHostMsg` is the fencer; [`SiblingFencer`] is the
//! shipped one. Without an actor there the policy decides.

pub mod attempt;
#[cfg(test)]
mod attempt_tests;
pub mod ceph;
mod guard;
pub mod permit;
pub mod policy;
mod sibling;
pub mod tables;

pub use guard::FencingGuard;
pub use permit::{Cleared, PERMIT_VALIDITY, Passed, Proof, Start, StartPermit};
pub use policy::Policy;
pub use sibling::{FENCE_TIMEOUT, FENCER, MAX_SIBLINGS, SCAN_FRESH, SCAN_TIMEOUT, SiblingFencer};
