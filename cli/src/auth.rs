//! API tokens and roles, and files with a token.
//!
//! A leaf module: the config has tokens and roles, the API enforces them, agents and clients read a token from a file.

use std::path::Path;

use ringfence_drivers::files::read_private;
use ringfence_messages::{Code, ErrorCode, Result};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// The least length of a token. 16 characters of base64 are 96 bits.
pub const MIN_TOKEN_CHARS: usize = 16;

/// The largest file with a token or a password. Too low: a long token is rejected. Too high: a wrong file is read.
const MAX_TOKEN_FILE_BYTES: u64 = 64 << 10;

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

/// Reads a token file, which only its owner may read.
///
/// # Errors
/// `SYS.1007`, with the file and the remedy.
pub fn read_token(path: &Path) -> Result<SecretString> {
    let odd = |why: String| ErrorCode::new(Code::INVALID_ARGUMENT, format!("token file {}: {why}", path.display()));
    let text = read_private(path, MAX_TOKEN_FILE_BYTES).map_err(odd)?;
    let token = text.trim();
    if token.len() < MIN_TOKEN_CHARS || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(odd(format!("not one line of at least {MIN_TOKEN_CHARS} printable ASCII characters")));
    }
    Ok(SecretString::from(token.to_owned()))
}
