//! API tokens and their roles.
//!
//! A leaf module: the config has tokens and roles, the API enforces them.

pub use ringfence_messages::action::Role;

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
