//! Self-heal: the one owner of ping schedule, statuses and backoff of all hosts and protocols (I3).
//!
//! [`core::Core`] decides; [`RecoveryActor`] carries out: it pings through host actors, checks and deploys through
//! storage actors, and has events recorded.

mod actor;
pub mod backoff;
pub mod core;
#[cfg(test)]
mod core_tests;
mod event;
mod identity;
#[cfg(test)]
mod inventory_tests;
#[cfg(test)]
mod redeploy_tests;
mod schedule;

pub use actor::RecoveryActor;
