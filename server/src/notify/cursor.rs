//! The durable position of a hook in the journal.
//!
//! `STATE_DIR/hooks/NAME.json` is replaced atomically and synced. Invariants: it is written after a record is
//! delivered or dropped, never before, so a controller that dies repeats at most one and skips none; a hook without a
//! file starts with the next record. Alternative considered: a table in the journal's database (the journal is
//! append-only and has one writer).

use std::path::{Path, PathBuf};

use ringfence_drivers::files::replace_file;
use ringfence_messages::{Code, ErrorCode, Result};
use serde::{Deserialize, Serialize};

/// Version of the file format.
const VERSION: u32 = 1;

/// Skipped records after which the position is written anyway. Too low: a disk write for each record. Too high: more
/// records are read again after a crash.
const SKIPPED_BEFORE_SAVE: u64 = 1000;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    /// The last record that is done with.
    seq: u64,
}

/// A hook's position in the journal.
#[derive(Clone, Debug)]
pub struct Cursor {
    path: PathBuf,
    saved: u64,
    /// The last record that is done with.
    pub seq: u64,
}

impl Cursor {
    /// The position of this hook; `newest`, made durable, for a new hook. A position beyond the journal's end belongs
    /// to another journal (before a restore) and is moved to the end.
    ///
    /// # Errors
    /// `SYS.1016`, with the file and the remedy.
    pub fn open(state_dir: &Path, hook: &str, newest: u64) -> Result<Cursor> {
        let path = state_dir.join("hooks").join(format!("{hook}.json"));
        let odd = |why: String, fix: &str| ErrorCode::new(Code::IO, format!("{}: {why}; {fix}", path.display()));
        let writable = "check that this user may write to the directory";
        std::fs::create_dir_all(state_dir.join("hooks")).map_err(|e| odd(e.to_string(), writable))?;
        let seq = match std::fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(Kept { version: VERSION, seq }) => Some(seq),
                Ok(Kept { version, .. }) => {
                    return Err(odd(
                        format!("version {version} is newer than {VERSION}"),
                        "run the later version of ringfence",
                    ));
                }
                Err(error) => {
                    let fix = "remove it; the hook then starts with the next event";
                    return Err(odd(format!("damaged: {error}"), fix));
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(odd(error.to_string(), writable)),
        };
        let mut cursor = Cursor { path: path.clone(), saved: 0, seq: seq.unwrap_or(newest).min(newest) };
        match seq {
            Some(seq) if seq <= newest => cursor.saved = seq,
            beyond => {
                if let Some(seq) = beyond {
                    tracing::warn!(
                        hook,
                        seq,
                        newest,
                        "the position of a hook is beyond the journal, which was probably restored; moved to its end"
                    );
                }
                cursor.save().map_err(|e| odd(e.to_string(), writable))?;
            }
        }
        Ok(cursor)
    }

    /// Skips a record. Returns true if the position should be [saved](Cursor::save).
    pub fn skip(&mut self, seq: u64) -> bool {
        self.seq = seq;
        seq - self.saved >= SKIPPED_BEFORE_SAVE
    }

    /// Makes the position durable.
    ///
    /// # Errors
    /// An error of the file system; the old position stays.
    pub fn save(&mut self) -> std::io::Result<()> {
        let kept = serde_json::to_vec(&Kept { version: VERSION, seq: self.seq })?;
        replace_file(&self.path, &kept)?;
        self.saved = self.seq;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_and_a_new_hook_begins_now() {
        let dir = tempfile::tempdir().unwrap();
        let open = |newest| Cursor::open(dir.path(), "ops", newest);
        let mut cursor = open(7).unwrap();
        assert_eq!(cursor.seq, 7, "now");
        assert_eq!(open(9).unwrap().seq, 7, "the hook is no longer new, although nothing was delivered");
        cursor.seq = 8;
        cursor.save().unwrap();
        assert_eq!(open(9).unwrap().seq, 8);
        assert!(!cursor.skip(9) && cursor.skip(8 + SKIPPED_BEFORE_SAVE));
        assert_eq!(open(3).unwrap().seq, 3, "another journal");
        assert_eq!(open(5).unwrap().seq, 3, "which is remembered");
    }

    #[test]
    fn a_damaged_file_is_named_with_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        Cursor::open(dir.path(), "ops", 1).unwrap();
        let path = dir.path().join("hooks/ops.json");
        for (text, says) in [("{", "remove it"), (r#"{"version":2,"seq":1}"#, "later"), ("[]", "remove it")] {
            std::fs::write(&path, text).unwrap();
            let error = Cursor::open(dir.path(), "ops", 1).unwrap_err();
            assert!(error.details.contains(says) && error.details.contains("ops.json"), "{error}");
        }
    }
}
