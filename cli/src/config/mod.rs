//! The controller's and the agent's configuration file.
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

pub(crate) use tokens::name as token_name;

use std::path::Path;

use ringfence_agent::config::AgentConfig;
use ringfence_service::config_file::{Checker, Problems, ours, read};

pub use controller::ControllerConfig;
pub use hooks::{HookConfig, HookTransport, HookUrl, Topics, WebhookAccess};
pub use hosts::AgentAccess;
pub use managed::Source;
pub use storages::{CephAccess, MdsAccess};
pub use telemetry::TelemetryConfig;

/// A config file of either kind.
#[derive(Debug)]
pub enum Config {
    /// The controller's file.
    Controller(Box<ControllerConfig>),
    /// An agent's file.
    Agent(Box<AgentConfig>),
}

/// Reads a file of either kind, which its tables determine.
///
/// # Errors
/// All errors of the file.
pub fn load(path: &Path) -> Result<Config, Problems> {
    parse(path, read(path)?)
}

/// Parses the text of a file of either kind; relative paths are relative to the folder of `path`.
///
/// # Errors
/// All errors of the file.
pub fn parse(path: &Path, text: String) -> Result<Config, Problems> {
    let is_controller = ["[controller]", "[[host]]", "[[cluster]]", "[[storage]]", "[[vm]]", "[ping]"];
    if text.lines().any(|line| is_controller.contains(&line.split('#').next().unwrap_or("").trim())) {
        controller::parse(Source::read(path, text)?).map(|config| Config::Controller(Box::new(config)))
    } else {
        ringfence_agent::config::parse(path, text).map(|config| Config::Agent(Box::new(config)))
    }
}

/// Reads a controller's file.
///
/// # Errors
/// All errors of the file.
pub fn load_controller(path: &Path) -> Result<ControllerConfig, Problems> {
    ours(path)?;
    controller::parse(Source::read(path, read(path)?)?)
}
