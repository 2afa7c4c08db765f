//! How far a hook has come in the journal, kept through crashes.
//!
//! `STATE_DIR/hooks/NAME.json` is replaced as a whole, synced to disk. Invariants: it is written after a record was delivered
//! or given up, never before, so that a controller that dies repeats one at most and skips none; a hook that has no file
//! begins with what happens from now on. Rejected: a table in the journal's database (the journal is append-only, and one writer's).

use std::path::{Path, PathBuf};

use ringfence_drivers::files::replace_file;
use ringfence_messages::{Code, ErrorCode, Result};
use serde::{Deserialize, Serialize};

/// The version of the file's form.
const VERSION: u32 = 1;

/// Records that are of no interest to a hook before the cursor is written all the same. Too low: a disk write for each
/// record. Too high: so many are looked at again after a crash, which takes milliseconds.
const SKIPPED_BEFORE_SAVE: u64 = 1000;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    /// The last record that is done with.
    seq: u64,
}

/// A hook's place in the journal.
#[derive(Clone, Debug)]
pub struct Cursor {
    path: PathBuf,
    saved: u64,
    /// The last record that is done with.
    pub seq: u64,
}

impl Cursor {
    /// The place of this hook; `newest`, made durable, if it is a new one. A place beyond the journal's end is that of another
    /// journal (one from a backup), and becomes its end.
    ///
    /// # Errors
    /// `SYS.1016`, naming the file and the fix.
    pub fn open(state_dir: &Path, hook: &str, newest: u64) -> Result<Cursor> {
        let path = state_dir.join("hooks").join(format!("{hook}.json"));
        let odd = |why: String, fix: &str| ErrorCode::new(Code::IO, format!("{}: {why}; {fix}", path.display()));
        let writable = "check that this user may write there";
        std::fs::create_dir_all(state_dir.join("hooks")).map_err(|e| odd(e.to_string(), writable))?;
        let seq = match std::fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(Kept { version: VERSION, seq }) => Some(seq),
                Ok(Kept { version, .. }) => {
                    return Err(odd(
                        format!("it has version {version}, this program knows {VERSION}"),
                        "run the later one",
                    ));
                }
                Err(error) => {
                    let fix = "remove it, and the hook goes on with what happens from now on";
                    return Err(odd(format!("it is damaged: {error}"), fix));
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
                    tracing::warn!(hook, seq, newest, "the journal ends before this hook's place: it is another one");
                }
                cursor.save().map_err(|e| odd(e.to_string(), writable))?;
            }
        }
        Ok(cursor)
    }

    /// Goes on past a record of no interest. Whether that is to be [saved](Cursor::save).
    pub fn skip(&mut self, seq: u64) -> bool {
        self.seq = seq;
        seq - self.saved >= SKIPPED_BEFORE_SAVE
    }

    /// Makes the place durable.
    ///
    /// # Errors
    /// Whatever the file system says; the old place is then still there.
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
        assert_eq!(open(9).unwrap().seq, 7, "it is not new any more, though nothing was delivered");
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
