//! `[[api_token]]`: who may use the API, and as what.

use serde_spanned::Spanned;

use super::{Checker, raw::RawApiToken, text};
use crate::auth::Token;

/// The tokens of the file; each hash once.
pub(super) fn tokens(c: &mut Checker, raw: &[Spanned<RawApiToken>]) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::with_capacity(raw.len());
    for table in raw {
        let of = table.get_ref();
        c.ok(of.name.span(), name(of.name.get_ref()));
        let Some(sha256) = hash(of.sha256.get_ref()) else {
            c.wrong(
                of.sha256.span(),
                "this is no SHA-256: 64 hex digits",
                "`ringfence token NAME` makes a token and the table for it",
            );
            continue;
        };
        if let Some(known) = tokens.iter().find(|known| known.sha256 == sha256 || known.name == *of.name.get_ref()) {
            let message = format!("{:?} has this name or this token already", known.name);
            c.wrong(table.span(), message, "give each its own: `ringfence token NAME` makes one");
        }
        tokens.push(Token { name: of.name.get_ref().clone(), role: of.role, sha256 });
    }
    tokens
}

/// Whether a token may be called so; else what is wrong, and the fix.
pub(crate) fn name(text: &str) -> Result<(), (String, String)> {
    text::name(text, 64)
}

fn hash(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}
