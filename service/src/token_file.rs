//! Files with a token or a password.

use std::path::Path;

use ringfence_drivers::files::read_private;
use ringfence_messages::{Code, ErrorCode, Result};
use secrecy::SecretString;

/// The least length of a token. 16 characters of base64 are 96 bits.
pub const MIN_TOKEN_CHARS: usize = 16;

/// The largest file with a token or a password. Too low: a long token is rejected. Too high: a wrong file is read.
const MAX_TOKEN_FILE_BYTES: u64 = 64 << 10;

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
