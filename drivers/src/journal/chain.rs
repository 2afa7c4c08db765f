//! The hash chain: the hash of a record covers its own fields and the hash of the record before.

use sha2::{Digest, Sha256};

/// What the first record's hash follows.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// SHA-256, in hex, over the previous hash, the sequence number and the fields, each with its length before it
/// so that no two records look the same when strung together.
pub(super) fn hash(previous: &str, seq: u64, fields: [&str; 4]) -> String {
    let mut sha = Sha256::new();
    sha.update(previous.as_bytes());
    sha.update(seq.to_be_bytes());
    for field in fields {
        sha.update((field.len() as u64).to_be_bytes());
        sha.update(field.as_bytes());
    }
    hex::encode(sha.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_text_between_fields_changes_the_hash() {
        assert_ne!(hash(GENESIS, 1, ["ab", "c", "", ""]), hash(GENESIS, 1, ["a", "bc", "", ""]));
        assert_ne!(hash(GENESIS, 1, ["a", "", "", ""]), hash(GENESIS, 2, ["a", "", "", ""]));
    }

    #[test]
    fn the_chain_is_the_same_for_ever() {
        // Frozen: journals written by released versions must verify.
        let first = hash(GENESIS, 1, ["2026-01-01T00:00:00.000Z", "t", "s", "{}"]);
        insta::assert_snapshot!(first);
    }
}
