//! Signatures of the Standard Webhooks specification: HMAC-SHA256 over `ID.TIMESTAMP.BODY`. A receiver verifies that
//! a message is authentic, unchanged and not replayed.
//!
//! Invariants: a secret has at least 192 bits and is never shown in Debug, logs or answers; during a rotation a
//! message has two signatures. Alternative considered: a single secret (a rotation would lose messages).

use std::{fmt, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use ringfence_drivers::files::open_to_others;
use secrecy::{ExposeSecret, SecretSlice};
use sha2::Sha256;

/// Prefix of a secret, by the specification.
const PREFIX: &str = "whsec_";

/// Bytes of a secret, by the specification.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Secrets in one file: the current one, and the next one during a rotation.
const MAX_SECRETS: usize = 2;

/// The largest secret file. Too low: two long secrets do not fit. Too high: a wrong file is read.
const MAX_FILE_BYTES: u64 = 4096;

/// Remedy: creates a file with a secret.
const MAKE: &str = "create one: (umask 077; echo \"whsec_$(head -c 32 /dev/urandom | base64)\" >FILE)";

/// Signs messages.
pub(crate) struct Signer(Vec<SecretSlice<u8>>);

impl Signer {
    /// Reads the secrets: `whsec_` and base64, one a line.
    ///
    /// # Errors
    /// Problem and remedy.
    pub(crate) fn read(path: &Path) -> Result<Signer, (String, String)> {
        let odd = |why: String, fix: &str| (format!("{}: {why}", path.display()), fix.to_owned());
        let metadata = std::fs::metadata(path).map_err(|e| odd(e.to_string(), MAKE))?;
        if let Some(mode) = open_to_others(&metadata) {
            return Err(odd(format!("others may read it (mode {mode})"), "chmod 600 it"));
        }
        if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
            return Err(odd("not a file with a secret".to_owned(), MAKE));
        }
        let text = std::fs::read_to_string(path).map_err(|e| odd(e.to_string(), MAKE))?;
        Signer::parse(&text).ok_or_else(|| {
            let (least, most) = (SECRET_BYTES.start(), SECRET_BYTES.end());
            odd(format!("not one or two lines of {PREFIX} and {least} to {most} bytes in base64"), MAKE)
        })
    }

    fn parse(text: &str) -> Option<Signer> {
        let secret = |line: &str| {
            let bytes = BASE64_STANDARD.decode(line.trim().strip_prefix(PREFIX)?).ok()?;
            SECRET_BYTES.contains(&bytes.len()).then(|| SecretSlice::from(bytes))
        };
        let secrets: Vec<_> = text.trim().lines().map(secret).collect::<Option<_>>()?;
        (1..=MAX_SECRETS).contains(&secrets.len()).then_some(Signer(secrets))
    }

    /// The header `webhook-signature` of a message.
    pub(crate) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signature = |secret: &SecretSlice<u8>| {
            let mut mac =
                Hmac::<Sha256>::new_from_slice(secret.expose_secret()).expect("HMAC takes keys of any length");
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
        };
        self.0.iter().map(signature).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({} secrets, not shown)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The test vector of the specification's libraries.
    #[test]
    fn signature_matches_the_specification() {
        let signer = Signer::parse(SECRET).unwrap();
        let signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secret_is_checked_and_never_shown() {
        let two = Signer::parse(&format!("{SECRET}\nwhsec_{}\n", BASE64_STANDARD.encode([7; 32]))).unwrap();
        assert_eq!(two.sign("m", 1, b"").split(' ').filter(|one| one.starts_with("v1,")).count(), 2);
        assert_eq!(format!("{two:?}"), "Signer(2 secrets, not shown)");
        let short = format!("whsec_{}", BASE64_STANDARD.encode([7; 23]));
        let long = format!("whsec_{}", BASE64_STANDARD.encode([7; 65]));
        let three = [SECRET; 3].join("\n");
        for odd in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!!!", &short, &long, &three] {
            assert!(Signer::parse(odd).is_none(), "{odd}");
        }
    }
}
