//! High availability: which hosts failed, which VMs are brought back, where, and how a host comes back.
//!
//! ```text
//! host:  fine --ping fails--> away --no sibling sees it, no storm--> failed, quarantined --answers--> cleaning --> fine
//!                              | a sibling sees it
//!                              +--> its VMs are judged by their watchers: gone from storage = lost
//! VM:    wanted and not running --> judged --> fenced and started by its actor --> running
//!        running on a host that is drained --> room elsewhere --> stopped, verified --> started by its actor --> running
//! ```
//! [`core`] decides (with `verdicts` on hosts, `flows` of VMs, [`drain`], and what each `tick` asks again), level-triggered: what it does follows from what it knows now, so that a controller that was killed
//! goes on where it was. [`placement`] ranks hosts. [`HaActor`] carries out.

mod actor;
mod census;
mod cleaning;
pub mod core;
#[cfg(test)]
mod core_tests;
pub mod drain;
#[cfg(test)]
mod drain_tests;
mod flows;
mod memory;
mod moves;
pub mod placement;
mod tick;
mod verdicts;

pub use actor::{FLOW_TIMEOUT, HaActor};
pub(crate) use verdicts::braked;
