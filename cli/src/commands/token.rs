//! `ringfence token`: creates an API token.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use rand::Rng;
use ringfence_messages::{Code, ErrorCode, Result, action::Role};
use ringfence_server::config::token_name;
use sha2::{Digest, Sha256};

use crate::output::print;

/// Reads the name of a role.
pub(super) fn roles() -> impl TypedValueParser<Value = Role> {
    let names = Role::ALL.map(|(role, permits)| PossibleValue::new(role.name()).help(permits));
    PossibleValuesParser::new(names).try_map(|name| {
        let mut roles = Role::ALL.into_iter().map(|(role, _)| role);
        roles.find(|role| role.name() == name).ok_or("unknown role")
    })
}

/// Prints a new token, and its table for the controller's file to standard error: redirecting standard output into a
/// file then saves the token alone.
///
/// # Errors
/// `SYS.1007` if the name is invalid in the table.
pub(super) fn make(name: &str, role: Role) -> Result<()> {
    let invalid = |(problem, remedy)| ErrorCode::new(Code::INVALID_ARGUMENT, format!("{problem}; {remedy}"));
    token_name(name).map_err(invalid)?;
    let token = hex::encode(rand::rng().random::<[u8; 32]>());
    let sha256 = hex::encode(Sha256::digest(token.as_bytes()));
    let role = serde_json::to_value(role).unwrap_or_default();
    eprintln!("[[api_token]]\nname = \"{name}\"\nrole = {role}\nsha256 = \"{sha256}\"");
    print(token);
    Ok(())
}
