//! The witness: what this host remembers of its controller's journal, so that a restored journal is detected.
//!
//! Invariants: the remembered head never goes back; it is on disk before a command is carried out; a command of a
//! journal that is behind is rejected. A ping needs no sync of a disk: of the heads in pings, [`WRITE_AFTER_RECORDS`]
//! or
//! [`WRITE_AFTER`] may be lost in a crash.
//! Alternatives considered: a field in the file of the commands. That file is written with every command, the witness
//! changes with every ping.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use ringfence_messages::{Code, ErrorCode, Result, journal::JournalHead};

use super::io_error;
use crate::files::replace_file;

/// Records that the file may be behind. Too low: a busy journal has every ping sync a disk. Too high: a restored
/// journal that lacks fewer, none of them an order to this host, is not noticed here.
pub const WRITE_AFTER_RECORDS: u64 = 100;

/// Time that the file may be behind. Too low and too high as above.
pub const WRITE_AFTER: Duration = Duration::from_secs(10);

/// What this host has heard.
#[derive(Debug)]
pub struct Witness {
    path: PathBuf,
    heard: Mutex<Heard>,
}

#[derive(Debug)]
struct Heard {
    head: Option<JournalHead>,
    written: Option<JournalHead>,
    at: Instant,
}

impl Witness {
    /// Reads what this host had heard.
    ///
    /// # Errors
    /// `SYS.1016` if the file cannot be read or is damaged, with the fix.
    pub fn open(state_dir: &Path) -> Result<Witness> {
        let path = state_dir.join("witness.json");
        let head = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error("read", &path, &error)),
            Ok(bytes) => Some(serde_json::from_slice::<JournalHead>(&bytes).map_err(|e| {
                let details = format!(
                    "{} is damaged: {e}; the file protects against a controller on an old backup: verify that no \
                     controller runs on one, then delete the file",
                    path.display()
                );
                ErrorCode::new(Code::IO, details)
            })?),
        };
        Ok(Witness { path, heard: Mutex::new(Heard { written: head.clone(), head, at: Instant::now() }) })
    }

    /// Remembers the head in a ping; returns the latest head that this host remembers.
    ///
    /// # Errors
    /// `SYS.1007` for a malformed head, `SYS.1016` if it cannot be written.
    pub fn hear(&self, head: Option<JournalHead>) -> Result<Option<JournalHead>> {
        let mut heard = self.heard.lock();
        self.take(&mut heard, head)?;
        let grown = match (&heard.head, &heard.written) {
            (Some(now), Some(written)) => {
                let same = (&now.journal_id, now.generation, now.epoch)
                    == (&written.journal_id, written.generation, written.epoch);
                !same || now.seq >= written.seq + WRITE_AFTER_RECORDS || heard.at.elapsed() >= WRITE_AFTER
            }
            (now, _) => now.is_some(),
        };
        if grown {
            self.write(&mut heard)?;
        }
        Ok(heard.head.clone())
    }

    /// Checks and remembers the head in a command; on disk when this returns.
    ///
    /// # Errors
    /// `SYS.1005` if this host has a later witness; otherwise as [`hear`](Witness::hear).
    pub fn admit(&self, head: Option<JournalHead>) -> Result<()> {
        // A controller of the previous version sends no head.
        let Some(head) = head else { return Ok(()) };
        let mut heard = self.heard.lock();
        if let Some(witness) = heard.head.as_ref().filter(|witness| head.is_behind(witness)) {
            let details = format!(
                "the command is from a controller at {head}, this host has a witness of {witness}: the journal was \
                 restored from a backup, or another controller is active; start the controller once with `ringfence \
                 serve --restored`"
            );
            return Err(ErrorCode::new(Code::CHANGE_STATE, details));
        }
        self.take(&mut heard, Some(head))?;
        self.write(&mut heard)
    }

    fn take(&self, heard: &mut Heard, head: Option<JournalHead>) -> Result<()> {
        let Some(head) = head else { return Ok(()) };
        if !head.is_sound() {
            let details = "id of the journal is malformed".to_owned();
            return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
        }
        heard.head = Some(head.heard_after(heard.head.as_ref()));
        Ok(())
    }

    fn write(&self, heard: &mut Heard) -> Result<()> {
        if heard.head == heard.written {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&heard.head).map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))?;
        replace_file(&self.path, &bytes).map_err(|e| io_error("write", &self.path, &e))?;
        (heard.written, heard.at) = (heard.head.clone(), Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(id: &str, generation: u64, seq: u64) -> JournalHead {
        JournalHead { journal_id: id.to_owned(), generation, seq, epoch: 1 }
    }

    #[test]
    fn latest_head_is_remembered_and_older_commands_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Witness::open(dir.path()).unwrap();
        let witness = open();
        assert_eq!(witness.hear(None).unwrap(), None);
        assert_eq!(witness.hear(Some(head("a", 0, 5))).unwrap(), Some(head("a", 0, 5)));
        assert_eq!(witness.hear(Some(head("a", 0, 3))).unwrap(), Some(head("a", 0, 5)), "it never goes back");
        witness.admit(Some(head("a", 0, 7))).unwrap();
        let witness = open();
        for behind in [head("a", 0, 6), head("b", 0, 50)] {
            let error = witness.admit(Some(behind)).unwrap_err();
            assert!(error.is(&Code::CHANGE_STATE) && error.details.contains("serve --restored"), "{error}");
        }
        witness.admit(None).unwrap();
        witness.admit(Some(head("b", 1, 2))).unwrap();
        assert!(witness.admit(Some(head("a", 0, 99))).is_err(), "another journal counts now");
        assert!(witness.hear(Some(head("a\nb", 9, 1))).is_err());
        std::fs::write(dir.path().join("witness.json"), "{").unwrap();
        assert!(Witness::open(dir.path()).unwrap_err().details.contains("is damaged"));
    }

    #[test]
    fn a_ping_writes_only_what_has_grown_far() {
        let dir = tempfile::tempdir().unwrap();
        let on_disk = || Witness::open(dir.path()).unwrap().hear(None).unwrap().map(|head| head.seq);
        let witness = Witness::open(dir.path()).unwrap();
        for (told, kept) in [(1, 1), (2, 1), (100, 1), (101, 101), (102, 101)] {
            witness.hear(Some(head("a", 0, told))).unwrap();
            assert_eq!(on_disk(), Some(kept), "{told}");
        }
        witness.heard.lock().at -= WRITE_AFTER;
        witness.hear(None).unwrap();
        assert_eq!(on_disk(), Some(102), "its time had come");
        witness.hear(Some(head("b", 1, 1))).unwrap();
        assert_eq!(on_disk(), Some(1), "another journal is written at once");
    }
}
