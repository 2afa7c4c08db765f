//! API tokens and roles, and files with a token.
//!
//! A leaf: the config reads tokens and roles, the API enforces them, agents and clients read a token from a file.

use std::path::Path;

use ringfence_drivers::files::read_private;
use ringfence_messages::{Code, ErrorCode, Result};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// The least length of a token. 16 characters of base64 are 96 bits.
pub const MIN_TOKEN_CHARS: usize = 16;

/// The largest file with a token or a password. Too low: a long one is refused. Too high: some other file is read.
const MAX_TOKEN_FILE_BYTES: u64 = 64 << 10;

/// What somebody may do; each may what those before may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    Viewer,
    /// Start, stop and bring back VMs, take hosts out of service and back.
    Operator,
    /// Change the inventory, and attest that a host is off: nothing else proves it then.
    Admin,
}

impl Role {
    /// The role's name, as in a config.
    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// A token, as the config knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose it is.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// What it is known by.
    pub sha256: [u8; 32],
}

/// Reads a token that only its owner may read.
///
/// # Errors
/// `SYS.1007`, naming the file and the fix.
pub fn read_token(path: &Path) -> Result<SecretString> {
    let odd = |why: String| ErrorCode::new(Code::INVALID_ARGUMENT, format!("token file {}: {why}", path.display()));
    let text = read_private(path, MAX_TOKEN_FILE_BYTES).map_err(odd)?;
    let token = text.trim();
    if token.len() < MIN_TOKEN_CHARS || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(odd(format!("it must hold one line of at least {MIN_TOKEN_CHARS} printable ASCII characters")));
    }
    Ok(SecretString::from(token.to_owned()))
}
