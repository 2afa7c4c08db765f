//! Proving that a VM cannot write where it ran last, before it is started anywhere.
//!
//! ```text
//!             VmActor ---------------- runs an Attempt for every start, gets a StartPermit or a reason
//!                |  watchers of every Ceph volume -> (nobody else) -> has its last host answered?
//!                |        yes, and it is not there: permit
//!                |        no, and it is an HA start: the ladder
//!   level 1 -----+--> SiblingFencer --SSH by a sibling's agent--> kill, verified
//!   level 2 -----+--> CephActor ------blocklist, read back------> every write of the host refused
//!   level 4 -----+--- a human's attested confirmation
//! ```
//! Invariants: I1 (permits), I2 (three values), I4 (an intent before each level), I7 (one audit per attempt).
//! The decisions are [`tables`] and [`attempt`]: no runtime, time is an argument.
//! Rejected: one fence per host instead of per VM. A host where one VM hangs in D state still lets the others be
//! proven dead one by one, without cutting its storage.
//!
//! The SPI: whoever answers `SiblingFenceVmOnHostMsg` at [`FENCER`] is the fencer; [`SiblingFencer`] is the one that
//! ships. Nobody there means that no fencer is registered, and the policy decides.

pub mod attempt;
#[cfg(test)]
mod attempt_tests;
pub mod ceph;
mod orders;
pub mod permit;
pub mod policy;
mod sibling;
pub mod tables;

pub use orders::Orders;
pub use permit::{Cleared, PERMIT_VALIDITY, Passed, Proof, Start, StartPermit};
pub use policy::Policy;
pub use sibling::{FENCE_TIMEOUT, FENCER, MAX_SIBLINGS, SCAN_FRESH, SCAN_TIMEOUT, SiblingFencer};
