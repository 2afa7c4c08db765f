//! The binary `ringfence`.
//!
//! [`serve`] is the controller: actors over real drivers, with an HTTP API. `ringfence_agent` runs on each host.
//! [`config`] reads the controller's file, [`commands`] is the command line, [`client`] the API client, [`demo`] the
//! demo on one machine.
//!
//! The modules have no circle (`tests/layers.rs`): leaves such as `auth`, `errors`, `https`; then `config`; then
//! `client`, `inventory`, `notify`; then `http`, `doctor`; then `page`, `commands`, `top`; last `serve`, which composes
//! the controller.

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
pub mod http;
mod https;
pub mod inventory;
pub mod log;
pub mod metrics;
pub mod notify;
pub mod oracle;
pub mod output;
mod page;
pub mod pki;
mod scenario_lab;
pub mod serve;
mod signer;
pub mod sim;
pub mod systemd;
pub mod telemetry;
pub mod top;
