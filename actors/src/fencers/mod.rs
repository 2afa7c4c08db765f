//! The actors that carry out the fencing levels: the sibling fencer (level 1) and one actor per Ceph storage (level 2).
//!
//! Purpose: the effects of a fence. When each level runs, and what its result proves, is decided in
//! [`fence`](crate::fence), which has no runtime.
//! Alternatives considered: both in one module. Ports and the inventory use values of the decision (the start permit,
//! the policy), and these actors use ports and inventory: a circle.
//!
//! The SPI: the actor at [`FENCER`] that answers `SiblingFenceVmOnHostMsg` is the fencer; [`SiblingFencer`] is the
//! shipped one. Without an actor there the policy decides.

pub mod ceph;
mod sibling;

pub use sibling::{FENCE_TIMEOUT, FENCER, MAX_SIBLINGS, SCAN_FRESH, SCAN_TIMEOUT, SiblingFencer};
