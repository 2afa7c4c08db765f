//! What the two services of Ringfence, the agent and the controller, have in common.
//!
//! [`config_file`] reads a configuration file and reports its errors, [`token_file`] reads a token or a password.
//! [`checks`] are their common checks for the doctor.
//! [`listen`] serves HTTP to clients that may be slow or hostile: [`places`] and [`rate_limit`] bound what one client
//! takes from others.
//! Invariant: a service's settings and routes are its own: this crate knows neither.
//! Alternatives considered: a part of `drivers`, whose other users need no HTTP server and no parser of TOML.

pub mod checks;
pub mod config_file;
mod handshake;
pub mod listen;
pub mod places;
pub mod rate_limit;
pub mod token_file;
