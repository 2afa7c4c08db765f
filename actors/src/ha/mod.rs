//! High availability: which hosts failed, which VMs are failed over, where, and how a host returns to service.
//!
//! ```text
//! host:  in service --ping fails--> unreachable --no sibling host reaches it, no storm--> failed, quarantined
//!                                     |                                                       | answers
//!                                     | a sibling host reaches it                             v
//!                                     |                              reconciled --> in service
//!                                     +--> its VMs are judged by their watchers: no watcher = lost
//! VM:    should run and does not --> judged --> fenced and started by its actor --> running
//!        runs on a host being drained --> room elsewhere --> stopped, verified --> started by its actor --> running
//! ```
//! [`core`] decides (with `verdicts` on hosts, `failovers` of VMs, [`drain`], and the queries of each `tick`). It is
//! level-triggered: every action follows from the current state, so a restarted controller continues. It also keeps
//! the `census`: which hosts listed their processes. [`HaActor`] carries out; it requests target hosts from
//! [`placement`](crate::placement).

mod actor;
mod census;
#[cfg(test)]
mod census_tests;
pub mod core;
#[cfg(test)]
mod core_tests;
pub mod drain;
#[cfg(test)]
mod drain_status_tests;
#[cfg(test)]
mod drain_tests;
mod failovers;
#[cfg(test)]
mod failovers_tests;
#[cfg(test)]
mod inventory_tests;
mod moves;
mod reconciliation;
mod replay;
#[cfg(test)]
mod status_tests;
mod tick;
#[cfg(test)]
mod tick_tests;
mod verdicts;
#[cfg(test)]
mod verdicts_tests;

pub use actor::{FAILOVER_TIMEOUT, HaActor};
