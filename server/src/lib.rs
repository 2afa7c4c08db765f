//! The controller's process: actors over real drivers, with an HTTP API and a web page.
//!
//! [`serve`] composes it from [`config`], the API ([`http`]), the page, the hooks ([`notify`]), [`telemetry`],
//! [`metrics`] and [`inventory`], which changes the inventory at run time. [`doctor`] checks what a fence needs.
//!
//! The modules have no circle (`tests/layers.rs`): leaves such as `auth`, `errors`, `https`; then `config`; then
//! `inventory`, `notify`; then `http`, `doctor`; then `page`; last `serve`.

pub mod auth;
mod certificates;
pub mod config;
pub mod doctor;
pub mod errors;
mod explain;
pub mod http;
mod https;
pub mod inventory;
pub mod metrics;
pub mod notify;
mod page;
pub mod serve;
mod signer;
pub mod telemetry;
pub mod times;
