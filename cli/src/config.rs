//! A configuration file of either service, for the commands that take both.

use std::path::Path;

use ringfence_agent::config::AgentConfig;
use ringfence_server::config::ControllerConfig;
use ringfence_service::config_file::{Problems, read};

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
        ringfence_server::config::parse(path, text).map(|config| Config::Controller(Box::new(config)))
    } else {
        ringfence_agent::config::parse(path, text).map(|config| Config::Agent(Box::new(config)))
    }
}
