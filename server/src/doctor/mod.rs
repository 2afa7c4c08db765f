//! The controller's checks of everything that a fence needs.
//!
//! ```text
//! probes     requests to agents and to Ceph
//! live       their results alone, for `check --live`
//! watchers   who watches a volume, and whether a fence would reach that watcher
//! hosts      checks through the agents of all hosts
//! controller journal, disk, tokens, policy, Ceph
//! twins      whether each host is one machine, with the addresses of the file
//! levels     the number of independent ways to fence each host
//! ```
//! Invariants: nothing in use is changed (the right to block is tried on an address reserved for documentation);
//! every check has a time limit; a check that could not run is "unknown", which is not a pass.

mod controller;
mod hosts;
mod levels;
mod live;
mod probes;
mod twins;
mod watchers;

use ringfence_messages::doctor::Finding;

pub use hosts::HostLook;
pub use levels::{ByStorage, Fenceability};
pub use live::{Probed, probe};

use crate::config::ControllerConfig;

/// The findings of all checks.
pub struct Findings {
    /// Of the controller itself.
    pub controller: Vec<Finding>,
    /// Of each host, in the order of the file.
    pub hosts: Vec<HostLook>,
    /// The ways to fence each host, in the same order.
    pub levels: Vec<Fenceability>,
}

/// Runs all checks.
pub async fn look(config: &ControllerConfig) -> Findings {
    let seen = probes::seen(config).await;
    let (hosts, controller) = tokio::join!(hosts::look(config, &seen), controller::look(config, &seen));
    let levels = levels::of_all(config, &hosts, &controller);
    Findings { controller, hosts, levels }
}
