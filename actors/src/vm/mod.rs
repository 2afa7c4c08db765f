//! One virtual machine: started at most once, stopped, and searched after every unknown outcome.

mod actor;
mod claims;
#[cfg(test)]
mod claims_tests;
pub mod core;
#[cfg(test)]
mod core_tests;
mod event;
mod exports;
mod fencing;
#[cfg(test)]
mod inventory_tests;
mod rehearsal;
mod start;

pub use actor::{SEARCH_TIMEOUT, VM_TIMEOUT, VmActor};
