//! Placement: the target host of a start, and the hosts where the VM may run already.
//!
//! ```text
//! VmActor, HaActor --FindTargetMsg--> PlacementActor --QueryServingHostsMsg--> RecoveryActor   which hosts serve
//!                                          |         --QueryCensusMsg--------> HaActor         which were heard (K7)
//!                                          |         --facts, process list---> HostActor       memory, QEMUs
//!                                          v
//!                          target, hosts that must be queried or fenced first
//! ```
//! [`core`] decides: who waits, what is reserved, which host has room ([`rank`](rank::rank)). [`PlacementActor`]
//! carries out.

mod actor;
pub mod core;
pub mod rank;

pub use actor::PlacementActor;
pub use rank::{nowhere, spread};
