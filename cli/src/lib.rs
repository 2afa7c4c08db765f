//! Everything behind the one binary `ringfence`.
//!
//! [`serve`] is the controller: actors over real drivers, with an HTTP API. [`agent`] is what runs on a host.
//! [`config`] reads their files, [`commands`] are the command line's questions to a controller, [`demo`] tells the
//! whole story on one machine.

pub mod agent;
pub mod auth;
mod certificates;
mod chaos;
pub mod client;
pub mod commands;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod errors;
mod explain;
mod handshake;
pub mod http;
mod https;
pub mod inventory;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod notify;
pub mod oracle;
pub mod output;
mod page;
pub mod pki;
mod places;
mod rate_limit;
mod scenario_lab;
pub mod serve;
mod signer;
pub mod sim;
pub mod systemd;
pub mod telemetry;
pub mod top;
