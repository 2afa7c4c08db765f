//! `[[api_token]]`: the tokens of the API and their roles.

use serde_spanned::Spanned;

use super::{Checker, raw::RawApiToken, text};
use crate::auth::Token;

/// The tokens of the file, with unique hashes and names.
pub(super) fn tokens(c: &mut Checker, raw: &[Spanned<RawApiToken>]) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::with_capacity(raw.len());
    for table in raw {
        let of = table.get_ref();
        c.ok(of.name.span(), name(of.name.get_ref()));
        let Some(sha256) = hash(of.sha256.get_ref()) else {
            c.wrong(
                of.sha256.span(),
                "`sha256` is not a SHA-256 of 64 hex digits",
                "`ringfence token NAME` creates a token and its table",
            );
            continue;
        };
        if let Some(known) = tokens.iter().find(|known| known.sha256 == sha256 || known.name == *of.name.get_ref()) {
            let message = format!("{:?} already has this name or this token", known.name);
            c.wrong(table.span(), message, "create another one with `ringfence token NAME`");
        }
        tokens.push(Token { name: of.name.get_ref().clone(), role: of.role, sha256 });
    }
    tokens
}

/// Checks the name of a token.
///
/// # Errors
/// Problem and remedy.
pub fn name(text: &str) -> Result<(), (String, String)> {
    text::name(text, 64)
}

fn hash(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}
