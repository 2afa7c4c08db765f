//! The binary `ringfence`.
//!
//! `ringfence_server` is the controller and `ringfence_agent` runs on each host. [`commands`] is the command line,
//! [`client`] the API client, [`doctor`] checks what a fence needs, and [`demo`] is the demo on one machine.
//!
//! The modules have no circle (`tests/layers.rs`): leaves such as `config`, `output`, `systemd`; then `client`, `log`,
//! `pki`; then `doctor`, `demo`, `top`, `sim`; last `commands`.

mod chaos;
pub mod client;
pub mod commands;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod log;
pub mod oracle;
pub mod output;
pub mod pki;
mod scenario_lab;
pub mod sim;
pub mod systemd;
pub mod top;
