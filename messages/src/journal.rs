//! Detection of a restored journal: hosts remember how far the journal was.
//!
//! Purpose: a journal from a backup lacks what its controller did since. Every ping and every command carries the head
//! of the journal, so that hosts are witnesses of missing records.
//! Invariant: what a host remembers never goes back.
//! Alternatives considered: a comparison of clocks. A restored machine may have a wrong clock too.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{HostId, event};

/// Bytes of a journal's id, at most. Too low: a SHA-256 in hex does not fit. Too high: a caller fills a host's disk.
pub const MAX_JOURNAL_ID: usize = 64;

/// The newest position of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct JournalHead {
    /// Id of the journal. A copy has the same id; a new journal, or one declared restored, has another.
    pub journal_id: String,
    /// Number of starts with `--restored`. The journal of the highest generation is valid.
    pub generation: u64,
    /// Sequence number of the newest record.
    pub seq: u64,
    /// Epoch of the controller that sent this.
    pub epoch: u64,
}

impl JournalHead {
    /// Whether `witness` shows that this journal lacks something: a later generation, another journal, a later record
    /// or a later epoch.
    pub fn is_behind(&self, witness: &JournalHead) -> bool {
        match self.generation.cmp(&witness.generation) {
            std::cmp::Ordering::Less => true,
            // A journal of an earlier generation is void, but its epochs count: hosts reject commands of lower ones.
            std::cmp::Ordering::Greater => witness.epoch > self.epoch,
            std::cmp::Ordering::Equal => {
                self.journal_id != witness.journal_id || witness.seq > self.seq || witness.epoch > self.epoch
            }
        }
    }

    /// What a host remembers that had `before` and receives this.
    pub fn heard_after(self, before: Option<&JournalHead>) -> JournalHead {
        match before {
            Some(before) if self.is_behind(before) => before.clone(),
            _ => self,
        }
    }

    /// Whether the id has 1 to [`MAX_JOURNAL_ID`] letters, digits and dashes.
    pub fn is_sound(&self) -> bool {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !self.journal_id.is_empty() && self.journal_id.len() <= MAX_JOURNAL_ID && self.journal_id.bytes().all(plain)
    }
}

impl fmt::Display for JournalHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let JournalHead { journal_id, generation, seq, epoch } = self;
        write!(f, "record {seq} of journal {journal_id:.8} (generation {generation}, epoch {epoch})")
    }
}

/// A controller found that its journal is behind a host's witness. From now on it rejects every irreversible act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerBehind {
    /// Uuid of the host with the later witness.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// What that host remembers.
    pub witness: JournalHead,
    /// Position of this journal.
    pub head: JournalHead,
}
event!(ControllerBehind, "controller.behind", 1, |_e| "controller".to_owned());

impl fmt::Display for ControllerBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ControllerBehind { host, witness, head, .. } = self;
        write!(
            f,
            "the journal is behind: host {host} has a witness of {witness}, this journal is at {head}. The journal was \
             restored from a backup, or another controller is active. No VM is started, stopped or fenced and no \
             target is redeployed. Verify that no other controller runs, then start this one once with \
             `ringfence serve --restored`"
        )
    }
}

/// An operator declared with `--restored` that this journal is valid, although hosts may have later witnesses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerRestored {
    /// The new id of the journal.
    pub journal_id: String,
    /// The new generation: above those of all witnesses.
    pub generation: u64,
    /// The highest epoch of all witnesses. The next epoch is above it.
    pub epoch: u64,
    /// The latest witness; `None` if no host remembers a journal.
    pub witness: Option<JournalHead>,
    /// Number of hosts that replied.
    pub heard: u32,
    /// Names of the hosts that did not reply: their witnesses are unknown.
    pub silent: Vec<String>,
}
event!(ControllerRestored, "controller.restored", 1, |_e| "controller".to_owned());

#[cfg(test)]
mod tests {
    use super::*;

    fn head(id: &str, generation: u64, seq: u64, epoch: u64) -> JournalHead {
        JournalHead { journal_id: id.to_owned(), generation, seq, epoch }
    }

    #[test]
    fn journal_is_behind_a_later_witness() {
        let own = head("a", 1, 10, 3);
        for (witness, behind) in [
            (head("a", 1, 10, 3), false),
            (head("a", 1, 9, 3), false),
            (head("a", 1, 11, 3), true),
            (head("b", 1, 5, 3), true),
            (head("b", 2, 1, 1), true),
            (head("b", 0, 99, 3), false),
            (head("b", 0, 99, 4), true),
            (head("a", 1, 10, 4), true),
        ] {
            assert_eq!(own.is_behind(&witness), behind, "{witness}");
            let kept = own.clone().heard_after(Some(&witness));
            assert_eq!(kept, if behind { witness } else { own.clone() });
        }
        assert_eq!(own.clone().heard_after(None), own);
    }

    #[test]
    fn malformed_journal_id_is_not_sound() {
        assert!(head(&"f".repeat(MAX_JOURNAL_ID), 0, 1, 1).is_sound());
        for id in ["", "a\nb", "a b", &"f".repeat(MAX_JOURNAL_ID + 1)] {
            assert!(!head(id, 0, 1, 1).is_sound(), "{id:?}");
        }
    }
}
