//! The controller's configuration file.
//!
//! Invariants: an unknown key is an error, never ignored; all independent errors of a file are reported together; the
//! result is consistent (unique names, resolved references). Alternative considered: defaults for misspelt keys.

mod controller;
mod disks;
mod hooks;
mod hosts;
pub(crate) mod managed;
mod raw;
mod storages;
mod telemetry;
mod text;
mod tokens;
mod vms;

use std::path::Path;

use ringfence_service::config_file::{Checker, Problems, ours, read};

pub use controller::ControllerConfig;
pub use hooks::{HookConfig, HookTransport, HookUrl, Topics, WebhookAccess};
pub use hosts::AgentAccess;
pub use managed::Source;
pub use storages::{CephAccess, MdsAccess};
pub use telemetry::TelemetryConfig;
pub use tokens::name as token_name;

/// Reads a controller's file.
///
/// # Errors
/// All errors of the file.
pub fn load(path: &Path) -> Result<ControllerConfig, Problems> {
    ours(path)?;
    parse(path, read(path)?)
}

/// Parses the text of a controller's file; relative paths are relative to the folder of `path`.
///
/// # Errors
/// All errors of the file, and of the file of the API.
pub fn parse(path: &Path, text: String) -> Result<ControllerConfig, Problems> {
    controller::parse(Source::read(path, text)?)
}
