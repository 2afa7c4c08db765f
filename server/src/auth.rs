//! API tokens and their roles.
//!
//! A leaf module: the config has tokens and roles, the API enforces them.

use serde::{Deserialize, Serialize};

/// Role of a token; each role includes the roles before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read only
    Viewer,
    /// Also run actions on VMs, hosts and hooks
    Operator,
    /// Also change the inventory and attest that a host is off
    Admin,
}

impl Role {
    /// The role's name in a config file.
    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// A token of the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Name of its owner.
    pub name: String,
    /// Role.
    pub role: Role,
    /// SHA-256 of the token.
    pub sha256: [u8; 32],
}
