//! Makes a token for the API.

use rand::Rng;
use ringfence_messages::{Code, ErrorCode, Result};
use sha2::{Digest, Sha256};

use crate::{auth::Role, config::token_name, output::print};

/// Prints a new token, and to standard error the table by which the controller knows it: a token that goes into a file by
/// `>` does not take the table along.
///
/// # Errors
/// `SYS.1007` if the name cannot stand in the table.
pub(super) fn make(name: &str, role: Role) -> Result<()> {
    let refused = |(what, fix)| ErrorCode::new(Code::INVALID_ARGUMENT, format!("{what}: {fix}"));
    token_name(name).map_err(refused)?;
    let token = hex::encode(rand::rng().random::<[u8; 32]>());
    let sha256 = hex::encode(Sha256::digest(token.as_bytes()));
    let role = serde_json::to_value(role).unwrap_or_default();
    eprintln!("[[api_token]]\nname = \"{name}\"\nrole = {role}\nsha256 = \"{sha256}\"");
    print(token);
    Ok(())
}
